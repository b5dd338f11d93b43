"""A stack of layers that learns by exact gradients, a plan for each parameter; and its curvature.

Curvature of the loss in one parameter of one layer, along V, both [N_o, N_i]:

    "full"   H V = (g(p + e V) - g(p - e V)) / 2e           g the exact gradient
    "gn"     J^T Lambda J V,  J V = (t(p + e V) - t(p - e V)) / 2e
             t: the outputs' first spikes, Lambda = d^2L/dt^2, J^T: the adjoint

Between spike patterns the loss is smooth, so these differences are of what the gradient itself is
made of, unlike those of a spike with a surrogate; e = 1e-5 / max |V|. They are taken 2e-5 ms later
for delays, which may be 0 and not less. A sample whose pattern changes within e has no second
derivative there: it is left out of the product, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.deltas import is_finite
from grasp_plugin.learning.exact.engine import (
    LayerGradients,
    Parameters,
    Run,
    layer_gradients,
    run_layer,
)
from grasp_plugin.learning.exact.episode import (
    DELAYS,
    Episode,
    as_matrix,
    moved,
    plan_of,
    with_value,
)
from grasp_plugin.learning.exact.losses import (
    ttfs_cross_entropy_curvature,
    ttfs_cross_entropy_gradient,
)
from grasp_plugin.learning.rule import Rule
from grasp_plugin.learning.spec import Learning
from grasp_plugin.learning.states import State
from grasp_plugin.network.weights import Array

STEP = 1e-5  # of a finite difference, in units of the parameter


def run_stack(stack: list[Parameters], times: Array, t_end_ms: float) -> list[Run]:
    """The run of every layer, first to last."""
    runs: list[Run] = []
    for p in stack:
        runs.append(run_layer(runs[-1].times if runs else times, p, t_end_ms))
    return runs


def stack_gradients(runs: list[Run], d_first: Array, gdot_min: float) -> list[LayerGradients]:
    """All gradients of every layer, first to last, from dL/dt of the outputs' first spikes."""
    error = np.zeros(runs[-1].times.shape)
    error[:, :, 0] = d_first
    found: list[LayerGradients] = []
    for run in runs[::-1]:
        found.append(layer_gradients(run, error, gdot_min_per_ms=gdot_min))
        error = found[-1].times
    return found[::-1]


class EpisodeLearner:
    """A feed-forward stack that learns from first spikes, a plan for each parameter.

    Args:
        stack: layers [ms], all of which spike; they are not changed.
        plans: by "layer1.weight", "layer2.delay", ...: a `Rule`, usually
            `Plan(ExactGradient("weight"), (GRASP(...), Adam(5e-3)))`.
        t_end_ms: end of an episode.
        gdot_min_per_ms: least slope at a spike; 0: none, the gradients are exact.
        loss: tau0_ms, tau1_ms, alpha of `ttfs_cross_entropy`.

    Attributes:
        stack: the layers as they are now.
        learning, transforms(): as of a session, for `UpdateMeter`.
        changed: samples that were left out of a product with the curvature, so far.

    Raises:
        Invalid: no layer, a plan for a layer or a parameter that is not there.
        Refused: a read-out, which has no first spike.

    Example:
        >>> from grasp_plugin.learning.exact.episode import ExactGradient
        >>> stack = [Parameters(np.full((2, 3), 4.0))]
        >>> learner = EpisodeLearner(stack, {"layer1.weight": ExactGradient()}, t_end_ms=30.0)
        >>> loss, first = learner.learn(np.zeros((1, 3, 1)), np.array([1]))
    """

    def __init__(
        self,
        stack: list[Parameters],
        plans: Mapping[str, Rule],
        *,
        t_end_ms: float,
        gdot_min_per_ms: float = 0.0,
        loss: dict[str, float] | None = None,
    ) -> None:
        self.stack, self.t_end, self.gdot_min = list(stack), t_end_ms, gdot_min_per_ms
        self.loss, self.changed = dict(loss or {}), 0
        if not stack or not plans:
            raise Invalid("EpisodeLearner", "expected a layer and a plan, got none", "Pass them")
        if any(np.any(np.isinf(np.asarray(p.theta, float))) for p in stack):
            raise Refused("stack", "expected layers that spike, got a read-out", "Train by torch")
        self.places = {name: plan_of(plans, name) for name in plans}
        for name, (layer, parameter) in self.places.items():
            if layer not in range(len(stack)) or np.ndim(getattr(stack[layer], parameter)) == 0:
                raise Invalid(
                    name, f"expected an array of one of {len(stack)} layers to train, got none",
                    "Give the layer that parameter as an array",
                )  # fmt: skip
        classes = np.shape(stack[-1].weight)[0]
        self.learning = Learning(dict(plans), {}, classes, f"layer{len(stack)}")
        self.states = {name: plan.init(self.value(name)) for name, plan in plans.items()}

    def value(self, name: str) -> Array:
        """The parameter of a plan as it sees it, [N_o, N_i] or [N, 1]."""
        layer, parameter = self.places[name]
        return as_matrix(np.array(getattr(self.stack[layer], parameter), float))

    def transforms(self) -> dict[str, State]:
        """By plan, the states of its transforms by their place."""
        return {name: state.get("transforms", {}) for name, state in self.states.items()}

    def learn(self, times: Array, labels: Array) -> tuple[Array, Array]:
        """One update from a batch of episodes: the gradient is that of the mean loss.

        Args:
            times: input spikes (batch, N_i, spikes) [ms], inf for none; labels: (batch,) integers.

        Returns:
            loss (batch,), and the outputs' first spikes (batch, classes) [ms], before the update.

        Raises:
            Invalid: what the engine raises; updates that are not finite: nothing is changed then.
        """
        runs = run_stack(self.stack, times, self.t_end)
        first, labels = runs[-1].times[:, :, 0], np.asarray(labels)
        loss, d_first = ttfs_cross_entropy_gradient(first, labels, t_end_ms=self.t_end, **self.loss)
        found = stack_gradients(runs, d_first / len(labels), self.gdot_min)
        new, states = list(self.stack), dict(self.states)
        for name, plan in self.learning.plans.items():
            layer, parameter = self.places[name]
            bend = _Curvature(self, runs, labels, layer, parameter)
            seen = Episode(runs[layer].inputs, gradients=vars(found[layer]), curvature=bend)
            delta, states[name] = plan.update(seen, self.states[name], self.value(name))
            if not is_finite(delta):
                raise Invalid(name, "expected finite updates, got NaN or inf", "Lower the rate")
            new[layer] = moved(new[layer], parameter, delta)
        self.stack, self.states = new, states
        return loss, first


class _Curvature:
    """(V, kind) -> H V of one parameter; see the module.

    macs: multiplications of the flow in three passes from this layer up, three an arrival.
    """

    def __init__(
        self, learner: EpisodeLearner, runs: list[Run], labels: Array, layer: int, parameter: str
    ) -> None:
        self.learner, self.runs, self.labels = learner, runs, labels
        self.layer, self.parameter = layer, parameter
        self.macs = 9 * sum(run.traffic.arrivals for run in runs[layer:])

    def __call__(self, v: Array, kind: str = "gn") -> Array:
        if kind not in ("gn", "full"):
            raise Refused(
                "curvature", f"expected 'gn' or 'full' of spike times, got {kind!r}",
                "Spike times are smooth as they are: use 'full'",
            )  # fmt: skip
        largest = float(np.abs(v).max(initial=0.0))
        if not largest:
            return np.zeros(v.shape)
        e = STEP / largest
        up, down = self._runs(e * v), self._runs(-e * v)
        same = self._same(up) & self._same(down)
        self.learner.changed += int((~same).sum())
        if kind == "full":
            bend: Array = (self._gradient(up, same) - self._gradient(down, same)) / (2 * e)
            return bend
        first = self.runs[-1].times[:, :, 0]
        with np.errstate(invalid="ignore"):  # inf - inf of silent outputs
            tangent = (up[-1].times[:, :, 0] - down[-1].times[:, :, 0]) / (2 * e)
        tangent = np.where(same[:, None] & np.isfinite(first), tangent, 0.0)
        bent = ttfs_cross_entropy_curvature(first, self.labels, tangent, **self.learner.loss)
        return self._back(self.runs[self.layer :], bent / len(self.labels))

    def _runs(self, change: Array) -> list[Run]:
        """The runs from this layer up, with its parameter changed."""
        stack = self.learner.stack[self.layer :]
        value = np.array(getattr(stack[0], self.parameter), float)
        value += change.reshape(value.shape) + 2 * STEP * (self.parameter in DELAYS)
        changed = with_value(stack[0], self.parameter, value)
        return run_stack([changed, *stack[1:]], self.runs[self.layer].inputs, self.learner.t_end)

    def _same(self, runs: list[Run]) -> Array:
        """Which samples have the spikes, neuron by neuron, that they had."""
        pairs = zip(runs, self.runs[self.layer :], strict=True)
        same: Array = np.all([(a.counts == b.counts).all(1) for a, b in pairs], axis=0)
        return same

    def _gradient(self, runs: list[Run], same: Array) -> Array:
        first = runs[-1].times[:, :, 0]
        _, d = ttfs_cross_entropy_gradient(
            first, self.labels, t_end_ms=self.learner.t_end, **self.learner.loss
        )
        return self._back(runs, np.where(same[:, None], d, 0.0) / len(self.labels))

    def _back(self, runs: list[Run], d_first: Array) -> Array:
        found = stack_gradients(runs, d_first, self.learner.gdot_min)[0]
        gradient: Array = getattr(found, self.parameter)
        return as_matrix(gradient)

"""A stack that learns where it runs: float shadows here, grid values there.

A sample ends:   g += gradient of the loss at the spikes seen      (`observed`)
A batch ends:    the deltas of plans on the shadows, then rounded to what the substrate takes:

    float    weight = w kappa(dt)                      D = round(d / dt)      v_th = theta - V_r
    integer  weight = 2 round(w kappa S / 2^(e+1)), |.| <= 254      D      v_th = floor(... S)

NumPy and Numba only: this runs inside a Lava ProcessModel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.deltas import is_finite
from grasp_plugin.learning.exact.engine import Parameters
from grasp_plugin.learning.exact.episode import (
    Episode,
    ExactGradient,
    as_matrix,
    moved,
    plan_of,
)
from grasp_plugin.learning.exact.flow import decays
from grasp_plugin.learning.exact.losses import ttfs_cross_entropy_gradient
from grasp_plugin.learning.exact.observed import in_steps, observed_gradients
from grasp_plugin.learning.optimise import Adam
from grasp_plugin.learning.rule import Plan, Rule
from grasp_plugin.learning.spec import Learning
from grasp_plugin.learning.states import State
from grasp_plugin.network.network import Network
from grasp_plugin.network.weights import Array

TRAINABLE = ("weight", "delay", "theta")
WEIGHT_MAX, V_TH_MAX = 254, 131071
DECAY_ONE = 4096.0


@dataclass(frozen=True, eq=False)
class Units:
    """How one layer stands on the substrate.

    Args:
        gain: kappa of one step; scale, exponent: S and e of `quantise`, None and 0 in float.
        tau_mem, tau_syn: time constants that the decays amount to, in steps.
    """

    gain: float
    scale: float | None
    exponent: int
    tau_mem: float
    tau_syn: float


def units_of(network: Network, stack: list[Parameters]) -> list[Units]:
    """The units of `adapters.from_exact.to_network(stack, dt_ms)`, or of `quantise` of it.

    Raises:
        Invalid: a network that is not a chain of the stack's layers.
    """
    dt_ms = 1000.0 * (network.dt_s or 0.0)
    shapes = [np.shape(p.weight) for p in stack]
    if dt_ms <= 0 or [tuple(k.weight.shape) for k in network.projections] != shapes:
        raise Invalid(
            "network", f"expected one projection a layer with weights {shapes}, got "
            f"{[tuple(k.weight.shape) for k in network.projections]}", "Pass to_network(layers)",
        )  # fmt: skip
    out = []
    for p, k, layer in zip(network.populations, network.projections, stack, strict=True):
        if p.scale is None:
            tau_m, tau_s = float(layer.tau_mem_ms) / dt_ms, float(layer.tau_syn_ms) / dt_ms
        else:
            tau_m = -1 / np.log1p(-float(p.dv[0]) / DECAY_ONE)
            tau_s = -1 / np.log1p(-(float(p.du[0]) + 1) / DECAY_ONE)
        gain = float(decays(1.0, tau_m, tau_s)[2])
        out.append(Units(gain, p.scale, k.weight_exp, float(tau_m), float(tau_s)))
    return out


def plans_of(
    layers: int, train: Collection[str], rates: dict[str, float], adam: bool
) -> dict[str, Rule]:
    """A plan for each parameter of each layer: Adam, or plain SGD, at its rate."""
    plans: dict[str, Rule] = {}
    for k, name in product(range(1, layers + 1), train):
        rule = ExactGradient(name, 1.0 if adam else rates[name])
        plans[f"layer{k}.{name}"] = Plan(rule, (Adam(rates[name]),) if adam else ())
    return plans


@dataclass(eq=False)
class Written:
    """What a layer's synapses and neurons hold: weights, delays [N_o, N_i], v_th (N_o,)."""

    weight: Array
    delay: Array
    v_th: Array


class Deployed:
    """Shadow parameters of a stack on a grid, and how they learn from the spikes seen there.

    Args:
        stack: layers that all spike, first to last [ms]; delays of all kinds become synaptic.
        network: the same on its grid, float or integers (`units_of`).
        t_end_ms: end of an episode.
        train: of "weight", "delay", "theta".
        rates: of the optimiser, by those names [per unit of each].
        batch: samples between two updates; the gradient is their mean.
        adam: False: plain SGD.
        plans: in the place of train, rates and adam: by "layer1.weight", ..., a `Plan` of
            `ExactGradient`, with `GRASP`, say. No curvature is known here.
        most_steps: of delay; shadows are kept in 0..most_steps dt.
        slack, gdot_min_per_ms: as in `observed_gradients`.
        bump: added to the weights into a hidden neuron that was silent over a batch, and into the
            output of a label that was, whether weights are trained or not; 0: silent neurons stay
            silent.
        loss: tau0_ms, tau1_ms, alpha of `ttfs_cross_entropy`.

    Counts: `impossible` and `clamped` spikes, `updates`, and integer weights `clipped`, those at
    their limit after an update (quantise with more growth).

    Raises:
        Invalid: names or numbers outside these; delays that are not the network's.
        Refused: a read-out: the learner hears spikes only.
    """

    def __init__(
        self,
        stack: list[Parameters],
        network: Network,
        *,
        t_end_ms: float,
        train: Collection[str] = ("weight", "delay"),
        rates: dict[str, float] | None = None,
        batch: int = 1,
        adam: bool = True,
        plans: Mapping[str, Rule] | None = None,
        most_steps: int = 62,
        slack: float = 0.1,
        gdot_min_per_ms: float = 1e-4,
        bump: float = 0.0,
        loss: dict[str, float] | None = None,
    ) -> None:
        unknown = (set(train) | set(rates or {})) - set(TRAINABLE)
        if unknown or batch < 1:
            raise Invalid(
                "train, rates", f"expected some of {TRAINABLE} and batch >= 1, got "
                f"{sorted(unknown)} and {batch}", "Choose of these",
            )  # fmt: skip
        if any(np.any(np.isinf(np.asarray(p.theta, float))) for p in stack):
            raise Refused(
                "stack", "expected layers that spike, got a read-out", "Train it by torch"
            )
        self.units, self.dt = units_of(network, stack), 1000.0 * float(network.dt_s or 0.0)
        self.layers = [_synaptic(p) for p in stack]
        self.batch, self.most = int(batch), int(most_steps)
        rates = {"weight": 5e-3, "delay": 2e-2, "theta": 1.5e-3} | (rates or {})
        self._plan(plans_of(len(stack), train, rates, adam) if plans is None else plans)
        self.t_end = float(t_end_ms)
        self.slack, self.gdot_min, self.bump = float(slack), float(gdot_min_per_ms), float(bump)
        self.loss = dict(loss or {})
        self.impossible = self.clamped = self.clipped = self.updates = 0
        self._check_delays(network)
        self._clear()

    def _plan(self, plans: Mapping[str, Rule]) -> None:
        self.places = {name: plan_of(plans, name) for name in plans}
        for name, (layer, parameter) in self.places.items():
            if layer not in range(len(self.layers)) or parameter not in TRAINABLE:
                raise Invalid(
                    name, f"expected {TRAINABLE} of one of {len(self.layers)} layers, got that",
                    "Train the others by torch, before they are deployed",
                )  # fmt: skip
        self.train = tuple(n for n in TRAINABLE if n in {p for _, p in self.places.values()})
        classes = len(self.layers[-1].weight)
        self.learning = Learning(dict(plans), {}, classes, f"layer{len(self.layers)}")
        self.states = {n: plan.init(self._matrix(n)) for n, plan in plans.items()}

    def _matrix(self, name: str) -> Array:
        layer, parameter = self.places[name]
        return as_matrix(np.asarray(getattr(self.layers[layer], parameter)))

    def transforms(self) -> dict[str, State]:
        """By plan, the states of its transforms by their place; for `UpdateMeter`."""
        return {name: state.get("transforms", {}) for name, state in self.states.items()}

    def _check_delays(self, network: Network) -> None:
        for k, (projection, held) in enumerate(
            zip(network.projections, self.written(), strict=True)
        ):
            steps: Array = np.asarray(projection.delay_steps) - (k > 0)
            if np.any(steps != held.delay):
                raise Invalid(
                    projection.name,
                    f"expected the stack's delays in 0..{self.most} steps, got up to {steps.max()}",
                    "Pass to_network(stack, dt_ms) without gauge, or raise most_steps",
                )

    def _clear(self) -> None:
        self.sums = [
            {name: np.zeros(np.shape(getattr(p, name))) for name in TRAINABLE} for p in self.layers
        ]
        self.heard = [np.zeros(len(p.weight), bool) for p in self.layers]
        self.labels = np.zeros(len(self.layers[-1].weight), bool)
        self.seen = 0

    def written(self) -> list[Written]:
        """The shadows as the substrate takes them."""
        return [self._written(p, u) for p, u in zip(self.layers, self.units, strict=True)]

    def _written(self, p: Parameters, u: Units) -> Written:
        delay = np.clip(np.round(np.asarray(p.delay) / self.dt), 0, self.most).astype(np.int64)
        v_th = np.asarray(p.theta) - np.asarray(p.v_reset)
        if u.scale is None:
            return Written(p.weight * u.gain, delay, v_th)
        lsb = 2.0 ** (u.exponent + 1) / u.scale
        weight = np.clip(2 * np.round(p.weight * u.gain / lsb), -WEIGHT_MAX, WEIGHT_MAX)
        levels = np.clip(np.floor(v_th * u.scale), 0, V_TH_MAX).astype(np.int64)
        return Written(weight.astype(np.int64), delay, levels)

    def running(self) -> list[Parameters]:
        """The layers that the written values amount to, with time in steps."""
        out = []
        for p, u, held in zip(self.layers, self.units, self.written(), strict=True):
            unit = 1.0 if u.scale is None else 2.0**u.exponent / u.scale
            theta = held.v_th / (u.scale or 1.0) + np.asarray(p.v_reset)
            made = in_steps(p, self.dt, held.delay)
            out.append(
                replace(
                    made, weight=held.weight * (unit / u.gain), theta=theta,
                    tau_mem_ms=u.tau_mem, tau_syn_ms=u.tau_syn,
                )
            )  # fmt: skip
        return out

    def hear(self, times: list[Array], label: int) -> tuple[float, Array]:
        """Add the gradient of one episode; (loss, first spikes of the outputs (classes,) [ms]).

        Args:
            times: padded times (1, N, k) of the inputs and of every layer, in steps (whole).
        """
        first = times[-1][:, :, 0] * self.dt
        loss, d_first = ttfs_cross_entropy_gradient(
            first, np.array([label]), t_end_ms=self.t_end, **self.loss
        )
        d_out = np.zeros(times[-1].shape)
        d_out[:, :, 0] = d_first * self.dt
        found = observed_gradients(
            self.running(), times, d_out, np.ceil(self.t_end / self.dt - 1e-9),
            slack=self.slack, gdot_min=self.gdot_min * self.dt,
        )  # fmt: skip
        for sums, g, heard, own in zip(self.sums, found.layers, self.heard, times[1:], strict=True):
            sums["weight"] += g.weight
            sums["delay"] += g.delay / self.dt
            sums["theta"] += g.theta
            heard |= np.isfinite(own[0]).any(axis=1)
        self.labels[label] = True
        self.impossible += found.impossible
        self.clamped += found.clamped
        self.seen += 1
        return float(loss[0]), first[0]

    def update(self) -> bool:
        """Move the shadows if a batch is full; True if it was.

        Raises:
            Invalid: updates that are not finite, or parameters that no layer can have: nothing is
                changed then.
        """
        if self.seen < self.batch:
            return False
        new, states = list(self.layers), dict(self.states)
        for name, plan in self.learning.plans.items():
            layer, parameter = self.places[name]
            means = {key: value / self.seen for key, value in self.sums[layer].items()}
            seen = Episode(np.zeros((0, new[layer].weight.shape[1], 0)), gradients=means)
            delta, states[name] = plan.update(seen, self.states[name], self._matrix(name))
            if not is_finite(delta):
                raise Invalid(name, "expected finite updates, got NaN or inf", "Lower the rates")
            new[layer] = moved(new[layer], parameter, delta, self.most * self.dt)
        last = len(new) - 1
        for k, p in enumerate(new):
            silent = ~self.heard[k] & (self.labels if k == last else True)
            if self.bump and silent.any():
                new[k] = replace(p, weight=p.weight + self.bump * silent[:, None])
        self.layers, self.states = new, states
        self.updates += 1
        if self.units[0].scale is not None:
            self.clipped += sum(int((abs(h.weight) == WEIGHT_MAX).sum()) for h in self.written())
        self._clear()
        return True


def _synaptic(p: Parameters) -> Parameters:
    outs, ins = np.shape(p.weight)

    def each(value: Any, size: int) -> Array:
        full: Array = np.zeros(size) + np.asarray(0.0 if value is None else value, float)
        return full

    delay = np.zeros((outs, ins)) if p.delay is None else np.asarray(p.delay, float)
    delay = delay + each(p.axonal, ins)[None, :] + each(p.dendritic, outs)[:, None]
    return replace(
        p, weight=np.array(p.weight, float), delay=delay, axonal=None, dendritic=None,
        theta=each(p.theta, outs), v_reset=each(p.v_reset, outs), beta=each(p.beta, outs),
        bias=each(p.bias, outs),
    )  # fmt: skip

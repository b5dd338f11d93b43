"""Curvature of the instantaneous loss as an operator on membranes: u -> M u, (batch, N_o) both.

The Hessian of a rule's loss at step t in the weights of a projection is known by M alone, since
U = W p + (what does not depend on W at this step):

    (H V) = sum_b (M_b V p_b) p_b^T                         V [N_o, N_i], p the trace

    signal            Gauss-Newton M u                                        full: and
    RandomReadout     s' * G^T [Lambda G (s' * u)]                            (dL/dS) s'' * u
    Projection        proxy: s' * Bf [Bf^T (s' * u)] at an event              L s'' * u, exact alone
    OutputError       s'^2 * u at an event                                    (S_o - y*) s'' * u
    Backpropagation   the tangents s' * u forward through the layers above,   g s'' * u, at every
                      Lambda, and back                                        layer from here up

s' = sigma'(margin), Lambda = d^2 L / dY^2. Gauss-Newton is positive semi-definite and needs no
sigma''; that of a steep surrogate changes its sign at the threshold and drowns the rest. ETLP's
hidden loss is linear in the spikes: its Gauss-Newton term is 0, and the proxy is the curvature of
||Bf^T S - y*||^2 / 2.

Kinds: "gn"; "full"; "fd_smooth", the finite difference of a gradient whose spikes are the
surrogate's primitive, sigma(U + du) - sigma(U) away from those that were seen, which is "full" up
to its step; "diag", the diagonal of "gn".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

import numpy as np
from array_api_compat import array_namespace, device

from grasp_plugin.learning.deltas import Array
from grasp_plugin.learning.signals import Backpropagation, OutputError, Projection, RandomReadout
from grasp_plugin.learning.states import State
from grasp_plugin.neurons.surrogate import Surrogate

Operator = Callable[[Array], Array]
KINDS = ("gn", "full", "fd_smooth", "diag")


def readout_curvature(
    signal: RandomReadout, spikes: Array, slope: Array, target: Array, mask: Array, state: State
) -> Operator:
    """Gauss-Newton M of DECOLLE's local loss.

    Args:
        spikes, slope: S and s' (batch, N).
        target, mask: (batch, C), (batch, 1).
        state: the signal's, before this step (its dropout mask is this step's).
    """
    keep = signal.keep(spikes, state) if signal.dropout else 1.0
    g = state["readout"]
    y = signal.logits(spikes * keep, state)
    inner = slope * keep

    def product(u: Array) -> Array:
        bent = signal.loss.curvature(y, target, (inner * u) @ g.T, mask)
        return inner * (bent @ g)

    return product


def projection_curvature(signal: Projection, slope: Array, state: State) -> Operator:
    """The proxy M of ETLP's hidden layer; `state` is the signal's after this step (its event)."""
    bf, event = state["feedback"], state["event"]
    del signal
    return lambda u: event * slope * (((slope * u) @ bf) @ bf.T)


def output_curvature(signal: OutputError, slope: Array, event: Array) -> Operator:
    """Gauss-Newton M of ETLP's output, at an event (1,) of 1."""
    del signal
    return lambda u: event * slope * slope * u


def surrogate_curvature(surrogate: Surrogate | None, margin: Array, third: Array) -> Operator:
    """The term that Gauss-Newton leaves out: (dL/dS) s''(margin) * u; 0 without a surrogate."""
    if surrogate is None:
        return lambda u: u * 0
    bend = third * surrogate.second(margin)
    return lambda u: bend * u


def plus(*parts: Operator) -> Operator:
    """The sum of operators."""
    return lambda u: sum(part(u) for part in parts)


@dataclass(frozen=True, eq=False)
class Unit:
    """A population at one step, as far as its spikes can be moved.

    Args:
        surrogate: its sigma'; None: it does not spike, S = U.
        margin: membrane minus threshold (batch, N).
        active: 0 where it is refractory (batch, N), or 1.0.
        third: dL/dS (batch, N); "full" and "fd_smooth" only.
    """

    surrogate: Surrogate | None
    margin: Array
    active: Array = 1.0
    third: Array = None

    def slope(self, du: Array = 0.0) -> Array:
        """dS/dU at U + du."""
        if self.surrogate is None:
            return self.margin * 0 + self.active
        return self.surrogate.first(self.margin + du) * self.active

    def bend(self) -> Array:
        """dL/dS d^2S/dU^2."""
        if self.surrogate is None:
            return self.margin * 0
        return self.third * self.surrogate.second(self.margin) * self.active

    def moved(self, du: Array) -> Array:
        """The change of a smooth spike, sigma(U + du) - sigma(U)."""
        if self.surrogate is None:
            return du * self.active
        smooth = self.surrogate.smooth
        return (smooth(self.margin + du) - smooth(self.margin)) * self.active


class InstantaneousGraph:
    """The layers above each population at one step, for `Backpropagation`.

    Args:
        signal: the top's loss.
        units: by population.
        above: by population, (target population, weight [N_o, N_i]) of its undelayed projections.
        top: the population that the loss reads, its logits, and target and mask.
    """

    def __init__(
        self,
        signal: Backpropagation,
        units: Mapping[str, Unit],
        above: Mapping[str, list[tuple[str, Array]]],
        top: str,
        logits: Array,
        target: Array,
        mask: Array,
    ) -> None:
        self._signal, self._units, self._above = signal, units, above
        self._top, self._loss = top, (logits, target, mask)

    def of(self, population: str, *, full: bool = False) -> Operator:
        """Gauss-Newton M of a population: tangents up, Lambda, errors down; or with sigma''."""
        return lambda u: self._bent(population, u, full)

    def gradient(self, population: str, du: Array) -> Array:
        """dL/dU of a population at U + du, with smooth spikes all the way up."""
        order = self.reached(population)
        shift = self._up(order, population, du, lambda p, m: self._units[p].moved(m))
        logits, target, mask = self._loss
        if self._top not in shift:
            return du * 0
        spikes = self._units[self._top].moved(shift[self._top])
        back = {self._top: self._signal.top(logits + spikes, target, mask)}
        for p in reversed(order):
            self._down(p, back, lambda q: self._units[q].slope(shift[q]) * back[q])
        return self._units[population].slope(du) * back.get(population, du * 0)

    def reached(self, population: str) -> list[str]:
        """A population and all above it, each after all that feed it."""
        names, feeding = [population], {population: set[str]()}
        for p in names:  # grows while it is gone through
            for target, _ in self._above.get(p, []):
                feeding.setdefault(target, set()).add(p)
                if target not in names:
                    names.append(target)
        return list(TopologicalSorter(feeding).static_order())

    def _bent(self, population: str, u: Array, full: bool) -> Array:
        order = self.reached(population)
        tangent = self._up(order, population, u, lambda p, m: self._units[p].slope() * m)
        logits, wanted, mask = self._loss
        if self._top not in tangent:
            return u * 0
        at_top = self._units[self._top].slope() * tangent[self._top]
        back = {self._top: self._signal.loss.curvature(logits, wanted, at_top, mask)}

        def at_membrane(q: str) -> Array:
            value = self._units[q].slope() * back[q]
            return value + self._units[q].bend() * tangent[q] if full else value

        for p in reversed(order):
            self._down(p, back, at_membrane)
        return at_membrane(population) if population in back else u * 0

    def _up(
        self, order: list[str], population: str, u: Array, spikes: Callable[[str, Array], Array]
    ) -> dict[str, Array]:
        """Changes of the membranes of all that a change u of one reaches."""
        moved = {population: u}
        for p in order:
            for target, weight in self._above.get(p, []):
                step = spikes(p, moved[p]) @ weight.T
                moved[target] = moved[target] + step if target in moved else step
        return moved

    def _down(self, p: str, back: dict[str, Array], at_membrane: Callable[[str], Array]) -> None:
        for target, weight in self._above.get(p, []):
            if target in back:
                down = at_membrane(target) @ weight
                back[p] = back[p] + down if p in back else down


def finite_difference(gradient: Callable[[Array], Array], u: Array, step: float = 1e-5) -> Array:
    """(g(e u) - g(-e u)) / 2e, e = step / max |u|; 0 for u = 0.

    The gradient must be one of smooth spikes: with H as the forward function a spike does not move,
    and all Gauss-Newton curvature is lost without a sign of it.
    """
    largest = float(array_namespace(u).max(abs(u)))
    if not largest:
        return u * 0
    e = step / largest
    return (gradient(e * u) - gradient(-e * u)) / (2 * e)


def diagonal(product: Operator, like: Array, seed: int) -> Array:
    """An unbiased estimate of the diagonal of M (batch, N_o): z * M z, z = +-1 at random.

    Exact where M is diagonal. Hutchinson's estimator with one probe.
    """
    xp = array_namespace(like)
    signs = np.random.default_rng(seed).integers(0, 2, tuple(like.shape)) * 2.0 - 1.0
    z = xp.asarray(signs, dtype=like.dtype, device=device(like))
    return z * product(z)


def hessian_vector(product: Operator, trace: Array, v: Array) -> Array:
    """H V [N_o, N_i] for any direction V [N_o, N_i]; trace (batch, N_i)."""
    return product(trace @ v.T).T @ trace

"""The curvature of a population's instantaneous loss in a network, worked out when it is asked for.

One step's `learning.curvature` operator for each plan of an `OnlineLearner`: only an update
scheduler calls it, so nothing is computed before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.curvature import (
    InstantaneousGraph,
    Operator,
    Unit,
    finite_difference,
    plus,
)
from grasp_plugin.learning.deltas import Array
from grasp_plugin.learning.local_curvature import local_curvature
from grasp_plugin.learning.rule import Factors, Plan, Rule, ThreeFactor
from grasp_plugin.learning.signals import (
    Backpropagation,
    OutputError,
    Projection,
    RandomReadout,
)
from grasp_plugin.learning.spec import Learning, Seen, carries_error
from grasp_plugin.learning.states import State
from grasp_plugin.network.network import Network


@dataclass(frozen=True, eq=False)
class Curvature:
    """(u, kind="gn") -> M u of one population at one step.

    Args:
        make: kind -> the operator.
        count: counts the multiplications of one Gauss-Newton product for one sample.
    """

    make: Callable[[str], Operator]
    count: Callable[[], int]

    @property
    def macs(self) -> int:
        """Multiplications of one Gauss-Newton product for one sample."""
        return self.count()

    def __call__(self, u: Array, kind: str = "gn") -> Array:
        return self.make(kind)(u)


@dataclass(frozen=True, eq=False)
class StepCurvature:
    """Curvature of one step.

    Args:
        network, learning: what learns.
        seen, target, mask, weights: as `OnlineLearner.step`.
        before, after: the signals' states around the step.
        thirds: dL/dS by population (batch, N); "full" and "fd_smooth" only.
    """

    network: Network
    learning: Learning
    seen: Seen
    target: Array
    mask: Array
    weights: Mapping[str, Array]
    before: State
    after: State
    thirds: Mapping[str, Array] | None = None

    def of(self, population: str, plan: Rule, factors: Factors) -> Curvature:
        """M of a population, with the slope of the plan's own surrogate."""
        return Curvature(
            lambda kind: self._operator(population, self._own(plan, factors), kind),
            lambda: products(self.network, self.learning, self.weights, population),
        )

    def _own(self, plan: Rule, factors: Factors) -> Unit:
        rule = plan.rule if isinstance(plan, Plan) else plan
        if not isinstance(rule, ThreeFactor):
            raise Refused(
                "curvature", f"expected a three-factor rule, got {type(rule).__name__}",
                "Use score='magnitude'",
            )  # fmt: skip
        active = 1.0 if factors.active is None else factors.active
        return Unit(rule.surrogate, factors.membrane, active, factors.signal)

    def _operator(self, p: str, unit: Unit, kind: str) -> Operator:
        signal, full = self.learning.signals[p], kind == "full"
        if kind == "fd_smooth":
            return lambda u: finite_difference(lambda du: self._gradient(p, unit, du), u)
        if kind not in ("gn", "full"):
            raise Invalid("curvature", f"expected gn, full or fd_smooth, got {kind!r}", "Pick one")
        if isinstance(signal, Backpropagation):
            return self._graph(p, unit).of(p, full=full)
        flat = self._gauss_newton(p, unit)
        if not full:
            return flat

        def bent(u: Array) -> Array:
            return unit.bend() * u

        return bent if isinstance(signal, Projection) else plus(flat, bent)

    def _gauss_newton(self, p: str, unit: Unit) -> Operator:
        return local_curvature(
            self.learning.signals[p], self.seen.output[p], unit, self.target, self.mask,
            self.before[p], self.after[p],
        )  # fmt: skip

    def _gradient(self, p: str, unit: Unit, du: Array) -> Array:
        """dL/dU at U + du, with smooth spikes."""
        signal = self.learning.signals[p]
        if isinstance(signal, Backpropagation):
            return self._graph(p, unit).gradient(p, du)
        third = unit.third  # a projected label does not move with the spikes
        output = self.seen.output[p] + unit.moved(du)
        if isinstance(signal, RandomReadout):
            third, _ = signal.update(output, self.target, self.before[p], mask=self.mask)
        elif isinstance(signal, OutputError):
            third, _ = signal.update(output, self.target, self.before[p])
            third = third * self.mask
        return third * unit.slope(du)

    def _graph(self, p: str, unit: Unit) -> InstantaneousGraph:
        units = {q: self._unit(q, s) for q, s in self.learning.signals.items()}
        top = self.learning.readout
        signal: Any = self.learning.signals[top]
        return InstantaneousGraph(
            signal, {**units, p: unit}, self._above(), top, self.seen.output[top], self.target,
            self.mask,
        )  # fmt: skip

    def _above(self) -> dict[str, list[tuple[str, Array]]]:
        return carriers(self.network, self.learning, self.weights)

    def _unit(self, p: str, signal: Any) -> Unit:
        spiking = self.network[p].spiking and isinstance(signal, Backpropagation)
        surrogate = signal.surrogate if spiking else None
        third = None if self.thirds is None else self.thirds[p]
        active = self.seen.active.get(p, 1.0) if spiking else 1.0
        return Unit(surrogate, self.seen.margin[p], active, third)


def carriers(
    network: Network, learning: Learning, weights: Mapping[str, Any]
) -> dict[str, list[tuple[str, Any]]]:
    """By population, (target, weight) of the projections that bring an error down to it."""
    above: dict[str, list[tuple[str, Any]]] = {}
    for k in network.projections:
        if carries_error(k, learning):
            above.setdefault(k.source, []).append((k.target, weights[k.name]))
    return above


def products(network: Network, learning: Learning, weights: Mapping[str, Any], p: str) -> int:
    """Multiplications of one Gauss-Newton product of a population for one sample.

    Args:
        weights: arrays by projection, at least of those that carry an error down.
    """
    signal, size = learning.signals[p], network[p].size
    if isinstance(signal, (RandomReadout, Projection)):
        return 2 * learning.classes * size
    if isinstance(signal, OutputError):
        return size
    above, reached, total = carriers(network, learning, weights), [p], 0
    for q in reached:  # grows while it is gone through
        for target, weight in above.get(q, []):
            total += 2 * math.prod(weight.shape)
            if target not in reached:
                reached.append(target)
    return total

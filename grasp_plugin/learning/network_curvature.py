"""The curvature of a population's instantaneous loss in a network, worked out when it is asked for.

One step's `learning.curvature` operator for each plan of an `OnlineLearner`: only an update
scheduler calls it, so nothing is computed before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grasp_plugin.errors import Refused
from grasp_plugin.learning.curvature import (
    InstantaneousGraph,
    Operator,
    output_curvature,
    projection_curvature,
    readout_curvature,
)
from grasp_plugin.learning.rule import Array, Factors, Plan, Rule, State, ThreeFactor
from grasp_plugin.learning.signals import (
    Backpropagation,
    OutputError,
    Projection,
    RandomReadout,
    teaching_event,
)
from grasp_plugin.learning.spec import Learning, Seen, carries_error
from grasp_plugin.network.network import Network


@dataclass(frozen=True, eq=False)
class StepCurvature:
    """Gauss-Newton operators of one step.

    Args:
        network, learning: what learns.
        seen, target, mask, weights: as `OnlineLearner.step`.
        before, after: the signals' states around the step.
    """

    network: Network
    learning: Learning
    seen: Seen
    target: Array
    mask: Array
    weights: Mapping[str, Array]
    before: State
    after: State

    def of(self, population: str, plan: Rule, factors: Factors) -> Operator:
        """M of a population, with the slope of the plan's own surrogate."""
        return lambda u: self._operator(population, slope_of(plan, factors))(u)

    def _operator(self, p: str, slope: Array) -> Operator:
        signal = self.learning.signals[p]
        if isinstance(signal, RandomReadout):
            return readout_curvature(
                signal, self.seen.output[p], slope, self.target, self.mask, self.before[p]
            )
        if isinstance(signal, Projection):
            product = projection_curvature(signal, slope, self.after[p])
            return lambda u: self.mask * product(u)
        if isinstance(signal, OutputError):
            event = teaching_event(
                signal.seed, self.before[p]["step"], signal.probability, self.target
            )
            return output_curvature(signal, slope, event * self.mask)
        return self._graph(p, slope).of(p)

    def _graph(self, p: str, slope: Array) -> InstantaneousGraph:
        slopes = {q: self._slope(q, s) for q, s in self.learning.signals.items() if q != p}
        above: dict[str, list[tuple[str, Array]]] = {}
        for k in self.network.projections:
            if carries_error(k, self.learning):
                above.setdefault(k.source, []).append((k.target, self.weights[k.name]))
        top = self.learning.readout
        signal: Any = self.learning.signals[top]
        return InstantaneousGraph(
            signal, {**slopes, p: slope}, above, top, self.seen.output[top], self.target, self.mask
        )

    def _slope(self, p: str, signal: Any) -> Array:
        margin = self.seen.margin[p]
        if not self.network[p].spiking or not isinstance(signal, Backpropagation):
            return margin * 0 + 1
        slope = signal.surrogate.first(margin)
        return slope * self.seen.active[p] if p in self.seen.active else slope


def slope_of(plan: Rule, factors: Factors) -> Array:
    """dS/dmembrane (batch, N) as the plan's rule has it, 0 where refractory.

    Raises:
        Refused: a rule that has no slope of its own.
    """
    rule = plan.rule if isinstance(plan, Plan) else plan
    if not isinstance(rule, ThreeFactor):
        raise Refused(
            "curvature", f"expected a three-factor rule, got {type(rule).__name__}",
            "Use score='magnitude'",
        )  # fmt: skip
    post = rule.seen(factors).post
    return post if factors.active is None else post * factors.active

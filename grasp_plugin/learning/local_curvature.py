"""Curvature where a population's own signal closes its loss, so that no other one takes part.

    signal                              M                      see `learning.curvature`
    RandomReadout                       readout_curvature
    Projection                          projection_curvature
    OutputError                         output_curvature
    Backpropagation, at the readout     s' * Lambda (s' * u)

At batch 1 a scheduler asks for one product, M d with the error d of the synapse: h = |p|^2 M d.
So the place that makes the signal can work out M d and send it along, as `LearningSignal` does on
Lava; a synapse holds it as a `KnownDirection`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.curvature import (
    InstantaneousGraph,
    Operator,
    Unit,
    output_curvature,
    projection_curvature,
    readout_curvature,
)
from grasp_plugin.learning.deltas import Array
from grasp_plugin.learning.signals import (
    Backpropagation,
    OutputError,
    Projection,
    RandomReadout,
    teaching_event,
)
from grasp_plugin.learning.states import State

PARALLEL = 1e-9  # how far u may point away from d, of its largest entry


def local_curvature(
    signal: Any,
    output: Array,
    unit: Unit,
    target: Array,
    mask: Array,
    before: State,
    after: State,
) -> Operator:
    """Gauss-Newton M of a population that its own signal teaches; a `Backpropagation` as readout.

    Args:
        signal: the population's.
        output: its spikes, or its membrane where it does not spike (batch, N).
        unit: its margin and sigma' at this step.
        target, mask: (batch, C), (batch, 1).
        before, after: the signal's state around the step: dropout and events are this step's.
    """
    slope = unit.slope()
    if isinstance(signal, RandomReadout):
        return readout_curvature(signal, output, slope, target, mask, before)
    if isinstance(signal, Projection):
        product = projection_curvature(signal, slope, after)
        return lambda u: mask * product(u)
    if isinstance(signal, Backpropagation):
        graph = InstantaneousGraph(signal, {"": unit}, {}, "", output, target, mask)
        return graph.of("")
    assert isinstance(signal, OutputError)
    event = teaching_event(signal.seed, before["step"], signal.probability, target)
    return output_curvature(signal, slope, event * mask)


@dataclass(frozen=True, eq=False)
class KnownDirection:
    """(u, kind="gn") -> M u, known in the direction of one error d only.

    M u = (u.d / d.d) M d      for u parallel to d

    Args:
        error: d (1, N_o).
        bent: M d (1, N_o).
        macs: multiplications that M d took, where it was worked out.

    Raises:
        Invalid: a u that is not parallel to d, or another kind than "gn".
    """

    error: Array
    bent: Array
    macs: int = 0

    def __call__(self, u: Array, kind: str = "gn") -> Array:
        if kind != "gn":
            raise Invalid(
                "curvature", f"expected kind 'gn' where M d is sent, got {kind!r}",
                "Use curvature='gn', or backend='fused' or 'torch'",
            )  # fmt: skip
        d, xp = self.error, array_namespace(self.error)
        size = xp.sum(d * d)
        ratio = xp.sum(u * d) / size if size else size
        if xp.max(abs(u - ratio * d)) > PARALLEL * xp.max(abs(u)):
            raise Invalid(
                "curvature", "expected to be asked for M d, d the error of the synapses, got "
                "another direction", "Put GRASP right behind a rule with a rank-1 trace, or use "
                "backend='fused' or 'torch'",
            )  # fmt: skip
        return ratio * self.bent

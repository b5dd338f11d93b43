"""Plastic connections whose updates wait until their input spikes."""

from __future__ import annotations

from typing import Any

from grasp_plugin.learning.postponed import modes_of
from grasp_plugin.learning.rule import Rule
from grasp_plugin.processes.plastic.process import PlasticDense


class PostponedDense(PlasticDense):
    """A `PlasticDense` in float whose updates wait until their input spikes: the fastest way.

    Ports and arguments are the same, and the weights up to rounding (1e-12 over 200 steps); the
    work of a step is the columns of W that belong to active inputs, at any share of neurons with an
    error. `weights` reads and writes as ever, with all updates made: each look at it costs passes
    over the matrix, and `back_out` one at every step. The weights are held twice, beside 256 N_o
    floats for each decay of the trace.

    Raises:
        Refused: a plan whose updates cannot wait, see `learning.postponed.modes_of`.
    """

    def __init__(self, *, weights: Any, plan: Rule | None, **options: Any) -> None:
        super().__init__(weights=weights, plan=plan, **options)
        modes_of(plan, self.name)

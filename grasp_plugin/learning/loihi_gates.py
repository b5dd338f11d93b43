"""What Loihi's learning engine can leave unwritten: rows by their y, columns by x0.

Row gate. A neuron that sends y = 0 writes none of its synapses. Which rows are worth their writes
is decided where y comes from, the host or an error Process, before `LoihiForm.y_ports`:

    score r_o = sum_i score_oi = a_o n,  n = |p|^2           p the trace, N_i numbers; see `grasp`

A neuron does not know n: it is a sum over the traces that its synapses hold. It is the same for all
rows, so that the largest k rows, a share of the sum, all rows and random rows are chosen without
it. A price, a sharpness and the predicted decrease are not: they need n from whoever has the
traces. So does a trace for each synapse, where every row has an n of its own.

Column gate. The dependency x0 lets a synapse learn in Lava steps with an input spike only:
`columns_by_x0`. With the error of network step t at Lava step t + delay, it is the rule

    delta_oi[t] s_i[t + delay]                                     s the input spikes, 0 or 1
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from grasp_plugin.errors import Refused
from grasp_plugin.learning.budget import (
    Coverage,
    Every,
    Everything,
    Fixed,
    Given,
    Marginal,
    NonZero,
    RandomSteps,
)
from grasp_plugin.learning.deltas import Array, Outer
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.loihi_traces import Term, name_of
from grasp_plugin.learning.rule import Factors, ThreeFactor
from grasp_plugin.learning.states import State

SCALE_FREE = (Fixed, Coverage, Given, Every, RandomSteps, NonZero, Everything)


@dataclass(frozen=True)
class RowGate:
    """Sets the error of the rows that are not worth their writes to 0; `GRASP` chooses them.

        state = gate.init(N_o)
        error, state = gate.update(error, state)               each network step, 0 during burn-in
        y = form.y_ports(error)

    The state is GRASP's, and counts rows where GRASP counts synapses, N_i each.

    Args:
        grasp: of granularity "row".
        learning_rate: eta of the rule, for the predicted decrease.
    """

    grasp: GRASP
    learning_rate: float

    @property
    def needs_norm(self) -> bool:
        """True if the choice depends on |p|^2 of the trace, and not on ratios of rows alone."""
        budget, score = self.grasp.budget, self.grasp.score
        free = isinstance(budget, Marginal) if score == "error" else False
        return score == "pred_decrease" or not (free or isinstance(budget, SCALE_FREE))

    def init(self, rows: int) -> State:
        """The state before step 0."""
        return self.grasp.init(np.zeros((rows, 1)))

    def update(
        self,
        error: Array,
        state: State,
        *,
        norm: float | None = None,
        curvature: Callable[..., Array] | None = None,
    ) -> tuple[Array, State]:
        """(the error with 0 in the rows left out (N_o,), the state after the step).

        Args:
            error: d[t] = dL/dmembrane, `rule.error(factors)` (N_o,).
            norm: |p|^2 of the rule's trace at this step; None: not known, taken as 1.
            curvature: u -> M u (1, N_o), as `Factors.curvature`; for scores that need it.

        Raises:
            Invalid: the score needs a curvature, and none is given.
            Refused: the choice needs the norm, and none is given.
        """
        if norm is None and self.needs_norm:
            raise Refused(
                "RowGate", f"expected the norm |p|^2 of the trace for score {self.grasp.score!r} "
                f"with {self.grasp.budget}, got None: the neuron that sends y does not know it",
                "Use score='error' with a price, 'magnitude' with a fixed share, or pass norm=",
            )  # fmt: skip
        xp = array_namespace(error)
        length = 1.0 if norm is None else math.sqrt(norm)
        right = xp.full((1, 1), length, dtype=error.dtype, device=device(error))
        part = Outer(error[None, :], right, -self.learning_rate)
        seen = Factors(right, curvature=curvature)
        out, state = self.grasp.update({"weight": part}, state, right, factors=seen)
        keep: Any = np.zeros(error.shape[0])
        keep[out["weight"].picked.pairs().rows] = 1
        return error * xp.asarray(keep, dtype=error.dtype, device=device(error)), state


def row_gate(rule: ThreeFactor, grasp: GRASP) -> RowGate:
    """The gate of a plan.

    Raises:
        Refused: another granularity than rows; a trace for each synapse.
    """
    if grasp.granularity != "row":
        raise Refused(
            rule.name, f"expected granularity 'row', got {grasp.granularity!r}: Loihi's engine "
            "writes a neuron's synapses or leaves them (y = 0), and has no product for a single "
            "synapse's choice or threshold",
            "Use GRASP(granularity='row'), gate='x0' for columns, or learn on another back end",
        )  # fmt: skip
    if not rule.trace.rank_one:
        raise Refused(
            rule.name, f"expected one trace for all neurons with GRASP, got {name_of(rule.trace)}: "
            "each row's score has a norm of its own, which its neuron does not know",
            "Leave GRASP out, or use a trace of the input alone",
        )  # fmt: skip
    return RowGate(grasp, rule.learning_rate)


def columns_by_x0(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """The terms of dw with x0 for u0: x0 s = x0 for a term that has it already."""
    return tuple((rate, product.replace("u0", "x0")) for rate, product in terms)

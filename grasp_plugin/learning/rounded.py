"""What a write in integers is worth after its rounding: the score "change".

    r_oi = |g_oi D_oi|,  D the change that is written      decrease of the loss to first order

Most writes round to nothing, by chance, or meet the limit of their weight, and those have r = 0:
they are never taken, so that where the budget holds all changes the weights are those of the dense
rule, bit for bit. Every product of an error and a trace is formed to know which; only writes are
saved.
"""

from __future__ import annotations

from dataclasses import dataclass

from grasp_plugin.learning.chosen import Chosen, Sparse
from grasp_plugin.learning.deltas import Array
from grasp_plugin.learning.scores import Scores, Selection, Table
from grasp_plugin.learning.worth import Bend, RankOne, Whole


@dataclass(frozen=True, eq=False)
class Rounded:
    """A gradient whose scores are given.

    Args:
        base: the same gradient, for all but the scores.
        worth: r, [N_o, N_i], not negative.
    """

    base: RankOne | Whole
    worth: Array

    @property
    def nonzero(self) -> int:
        """Synapses with a gradient."""
        return self.base.nonzero

    def scores(self, score: str, rho: float, bend: Bend | None) -> Scores:
        known = self.base.scores("magnitude", rho, bend)
        return Table(self.worth, known.sharpness, known.gradient)

    def take(self, picked: Selection) -> Chosen | Sparse:
        """The delta of the picked synapses."""
        return self.base.take(picked)

    def products(self, picked: Selection, bent: bool) -> int:
        """Products of an error and a trace that were formed: all that are not zero."""
        del picked, bent
        return self.base.dense_products()[1]

    def dense_products(self) -> tuple[int, int]:
        return self.base.dense_products()

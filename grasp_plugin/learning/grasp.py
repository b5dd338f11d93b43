"""GRASP: decide at every step how many synapses to write, and which, over any three-factor rule.

After "GRASP: Dynamic and Priority-Aware Gradient Sparsification ..." (Swaminathan & Sampson, ICONS
2025), of which only the abstract is public: the sharpness of the loss decides how many gradients
are applied at a timestep, a Hessian-vector product which. Every choice that the abstract leaves
open is an argument here; no equation or number of the paper is claimed.

At batch 1 a rule's gradient is g = d p^T (error and trace) and H g = h p^T with h = |p|^2 M d, so
every score is separable, score_oi = a_o q_i, and nothing of size N_o N_i is formed:

    score            a_o                              q_i
    pred_decrease    eta d_o^2 - eta^2 d_o h_o / 2    p_i^2     decrease of the quadratic model
    abs_gHg          |d_o h_o|                        p_i^2
    magnitude        d_o^2                            p_i^2     |g|, squared
    random           any of those with a gradient, k as `magnitude` would have it; control
    error            |d_o|                            1         the row's error alone
    change           as magnitude; in integers |g_oi D_oi|, D what is written after rounding, and
                     none that round to nothing: see `learning.rounded`

    sharpness        s = rho |g| + rho^2 g^T H g / (2 |g|^2)

Batches and per-synapse traces have the same scores as arrays: see `learning.worth`. There the
gradient is formed in full, so that writes are saved and products are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.budget import Budget, Fixed
from grasp_plugin.learning.chosen import Chosen as Chosen
from grasp_plugin.learning.curvature import KINDS, diagonal
from grasp_plugin.learning.deltas import Array, Delta
from grasp_plugin.learning.rounded import Rounded
from grasp_plugin.learning.rule import Factors, Transform
from grasp_plugin.learning.scores import Block, Scores, Selection, Separable, spread
from grasp_plugin.learning.states import State
from grasp_plugin.learning.worth import Bend, RankOne, Whole, gradient_of

SCORES = ("pred_decrease", "abs_gHg", "magnitude", "random", "error", "change")
GRAINS = ("weight", "row", "column", "block")
BENT = ("pred_decrease", "abs_gHg")  # scores that need a curvature
COUNTS = (
    "issued", "dense", "dense_nz", "steps", "products", "dense_products", "dense_nz_products",
    "overhead",
)  # fmt: skip
SERIES = ("k", "sharpness", "gradient")


@dataclass(frozen=True)
class GRASP(Transform):
    """Pass on the part of a delta that is worth its writes.

    Args:
        budget: how many: one of `learning.budget`.
        score: which, as in the module's table.
        granularity: what is written together: "weight"; "row" (all synapses of a neuron, what Loihi
            can gate), "column" (of an input) or "block"; scores are summed over it.
        block: (rows, columns) of a "block".
        curvature: "gn" (Gauss-Newton), "full" (with sigma''), "fd_smooth" (finite difference with a
            smooth spike) or "diag" (of Gauss-Newton, by random signs); see `learning.curvature`.
        rho: radius of the sharpness.
        seed: of the random score and of the signs.
        series: how many of the last steps to keep k, sharpness and |g| of, for a plot.

    State:
        budget: the budget's.
        issued, dense, dense_nz, steps, products, overhead: counts so far, int64 (1,): synapses
            written; N_o N_i; those with a gradient that is not zero; steps; products of an error
            and a trace that were formed; multiplications and comparisons spent on choosing.
        dense_products, dense_nz_products: those that the dense rule forms, and without zeros.
        k, sharpness, gradient: (series,), entry t % series of step t; NaN: not known.

    Raises:
        Invalid: an unknown option, or a budget that is none; a curvature is needed and the factors
            hold none.
        Refused: a score with curvature for a sum over time; a delta already thinned out.
    """

    lasting: ClassVar[bool] = True
    budget: Budget = field(default_factory=lambda: Fixed(0.02))
    score: str = "pred_decrease"
    granularity: str = "weight"
    block: Block = (1, 1)
    curvature: str = "gn"
    rho: float = 0.05
    seed: int = 0
    series: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.budget, Budget):
            share = isinstance(self.budget, Real)
            raise Invalid(
                "GRASP", f"expected a budget of learning.budget, got {self.budget!r}",
                f"Pass GRASP(Fixed({self.budget if share else 0.05}))",
            )  # fmt: skip
        object.__setattr__(self, "block", tuple(self.block))
        for name, options in (("score", SCORES), ("granularity", GRAINS), ("curvature", KINDS)):
            if getattr(self, name) not in options:
                raise Invalid(
                    "GRASP", f"expected {name} in {options}, got {getattr(self, name)!r}", "Pick"
                )
        if len(self.block) != 2 or min(self.block) < 1:
            raise Invalid("GRASP", f"expected block (rows, columns), got {self.block}", "Pass two")

    @property
    def bends(self) -> bool:
        """True if it needs a curvature."""
        return self.score in BENT or self.budget.bends

    def init(self, weight: Array, *, batch: int = 1) -> State:
        counts = {name: np.zeros(1, np.int64) for name in COUNTS}
        series = {name: np.full(self.series, np.nan) for name in SERIES} if self.series else {}
        return {"budget": self.budget.init(), **counts, **series}

    def update(
        self, delta: Delta, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        gradient = extras.get("gradient") or gradient_of(delta["weight"])
        bend = self._bend(extras["factors"], int(state["steps"][0]))
        scores = self.scores(gradient, bend)
        picked, budget = self.choose(scores, state)
        spent = self._spent(scores, picked, extras["factors"])
        formed, live = gradient.dense_products()
        counts = {
            "issued": picked.size, "dense": scores.size, "dense_nz": gradient.nonzero, "steps": 1,
            "products": gradient.products(picked, self.bends), "dense_products": formed,
            "dense_nz_products": live, "overhead": spent,
        }  # fmt: skip
        after: State = {
            name: np.array([int(state[name][0]) + n], np.int64) for name, n in counts.items()
        }
        after |= self._noted(state, picked, scores)
        return {**delta, "weight": gradient.take(picked)}, {"budget": budget, **after}

    def scores(self, gradient: RankOne | Whole | Rounded, bend: Bend | None) -> Scores:
        """The score of every synapse."""
        scores = gradient.scores(self.score, self.rho, bend)
        if self.score == "error":
            if not isinstance(gradient, RankOne):
                raise Invalid("GRASP", "expected batch 1 for score 'error'", "Use 'magnitude'")
            a = np.abs(gradient.d) * (gradient.eta != 0)
            return Separable(a, np.ones_like(gradient.p), scores.sharpness, scores.gradient)
        return scores

    def choose(self, scores: Scores, state: Mapping[str, Any]) -> tuple[Selection, Any]:
        """The synapses to write, and the budget's state after the step."""
        block = self._block(scores.shape)
        whole = scores if block == (1, 1) else scores.in_blocks(block)
        picked, budget = self.budget.choose(whole, state["budget"])
        if self.score == "random":
            picked = whole.some(picked.size, self.seed + 2**32 * int(state["steps"][0]))
        return spread(picked, block, scores.shape), budget

    def _block(self, shape: tuple[int, int]) -> Block:
        grains = {"weight": (1, 1), "row": (1, shape[1]), "column": (shape[0], 1)}
        return grains.get(self.granularity, self.block)

    def _bend(self, factors: Factors, step: int) -> Bend | None:
        """u -> M u of the wanted kind; None if nothing asks for it."""
        product = factors.curvature
        if not (self.bends or (self.series and product is not None)):
            return None
        if product is None:
            raise Invalid(
                "GRASP", f"expected Factors.curvature for score {self.score!r}, got none",
                "Learn through OnlineLearner, or use score='magnitude'",
            )  # fmt: skip
        if self.curvature == "diag":
            return lambda u: diagonal(product, u, self.seed + 2**32 * step) * u
        if self.curvature == "gn":
            return product
        return lambda u: product(u, self.curvature)

    def _spent(self, scores: Scores, picked: Selection, factors: Factors) -> int:
        """Multiplications and comparisons of a step's choice."""
        bent = int(getattr(factors.curvature, "macs", 0)) if self.bends else 0
        if isinstance(scores, Separable):
            return picked.compared + scores.q.size + (3 if self.bends else 1) * scores.a.size + bent
        return picked.compared + (3 if self.bends else 1) * scores.size + bent

    def _noted(self, state: State, picked: Selection, scores: Scores) -> State:
        if not self.series:
            return {}
        at = int(state["steps"][0]) % self.series
        new = {"k": picked.size, "sharpness": scores.sharpness, "gradient": scores.gradient}
        out = {}
        for name, value in new.items():
            out[name] = state[name].copy()
            out[name][at] = np.nan if value is None else value
        return out

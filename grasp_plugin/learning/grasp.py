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

    sharpness        s = rho |g| + rho^2 g^T H g / (2 |g|^2)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.budget import Budget, Fixed, Scores
from grasp_plugin.learning.chosen import Chosen as Chosen
from grasp_plugin.learning.rule import Array, Delta, Factors, Outer, State, Transform
from grasp_plugin.learning.selection import Pairs, Picked, some

SCORES = ("pred_decrease", "abs_gHg", "magnitude", "random")
GRAINS = ("weight", "row", "column")


@dataclass(frozen=True)
class GRASP(Transform):
    """Pass on the part of a delta that is worth its writes; batch 1.

    Args:
        budget: how many: one of `learning.budget`.
        score: which, as in the module's table.
        granularity: "weight"; "row" (all synapses of a neuron, what Loihi can gate) or "column".
        rho: radius of the sharpness.
        seed: of the random score.

    State:
        budget: the budget's; issued, dense, dense_nz, steps: counts so far, int64 (1,): synapses
        written, N_o N_i, those with a gradient that is not zero, and steps.

    Raises:
        Invalid: an unknown score or granularity; a curvature is needed and the factors hold none
            (as on Lava, where synapses see no curvature: "magnitude" and "random" need none).
        Refused: a batch above 1, or a delta that is no outer product.
    """

    lasting: ClassVar[bool] = True
    budget: Budget = field(default_factory=lambda: Fixed(0.02))
    score: str = "pred_decrease"
    granularity: str = "weight"
    rho: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name, options in (("score", SCORES), ("granularity", GRAINS)):
            if getattr(self, name) not in options:
                raise Invalid(
                    "GRASP", f"expected {name} in {options}, got {getattr(self, name)!r}", "Pick"
                )

    def init(self, weight: Array, *, batch: int = 1) -> State:
        if batch != 1:
            raise Refused("GRASP", f"expected batch 1, got {batch}", "Learn sample by sample")
        counts = {name: np.zeros(1, np.int64) for name in ("issued", "dense", "dense_nz", "steps")}
        return {"budget": self.budget.init(), **counts}

    def update(
        self, delta: Delta, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        part = delta["weight"]
        if not isinstance(part, Outer) or part.left.shape[0] != 1:
            raise Refused(
                "GRASP", f"expected an outer product of one sample, got {type(part).__name__}",
                "Put GRASP right behind a rule with a rank-1 trace, at batch 1",
            )  # fmt: skip
        d, p = _vector(part.left), _vector(part.right)
        scale = float(np.asarray(part.scale).reshape(-1)[0])
        scores = self._scores(d, p, -scale, extras["factors"], part.left)
        picked, budget = self._choose(scores, state["budget"])
        if self.score == "random":
            alive = np.flatnonzero(d), np.flatnonzero(p)
            seed = self.seed + 2**32 * int(state["steps"][0])
            picked = some(*alive, picked.size, (d.size, p.size), seed)
        counts = {
            "issued": picked.size,
            "dense": d.size * p.size,
            "dense_nz": int(np.count_nonzero(d)) * int(np.count_nonzero(p)),
            "steps": 1,
        }
        after = {name: state[name] + n for name, n in counts.items()}
        out = Chosen(d, p, scale, picked, part.left)
        return {**delta, "weight": out}, {"budget": budget, **after}

    def _scores(self, d: Array, p: Array, eta: float, factors: Factors, like: Array) -> Scores:
        q = p * p
        if factors.curvature is None:
            if self.score not in ("magnitude", "random"):
                raise Invalid(
                    "GRASP", f"expected Factors.curvature for score {self.score!r}, got none",
                    "Learn through OnlineLearner, or use score='magnitude'",
                )  # fmt: skip
            return Scores(d * d, q)
        norm = float(q.sum())
        h = norm * _vector(factors.curvature(like))
        a = {
            "pred_decrease": eta * d * d - 0.5 * eta * eta * d * h,
            "abs_gHg": np.abs(d * h),
        }.get(self.score, d * d)
        size = math.sqrt(float(d @ d) * norm)
        bent = float(d @ h) * norm / (2 * size * size) if size else 0.0
        return Scores(a, q, self.rho * size + self.rho**2 * bent)

    def _choose(self, scores: Scores, state: State) -> tuple[Picked | Pairs, State]:
        if self.granularity == "weight":
            return self.budget.choose(scores, state)
        one = np.ones(1)
        if self.granularity == "row":
            whole = Scores(scores.a * scores.q.sum(), one, scores.sharpness)
        else:
            whole = Scores(scores.q * max(float(scores.a.sum()), 0.0), one, scores.sharpness)
        picked, state = self.budget.choose(whole, state)
        lines = picked.counts > 0
        order = np.arange(scores.q.size)
        if self.granularity == "row":
            return Picked(lines * scores.q.size, order), state
        order = np.argsort(~lines, kind="stable")
        return Picked(np.full(scores.a.size, int(lines.sum())), order), state


def _vector(value: Any) -> Array:
    """The one row of an array or tensor (1, n) as NumPy float64 (n,)."""
    row = value[0]
    return np.ascontiguousarray(row if isinstance(row, np.ndarray) else row.cpu().numpy(), float)

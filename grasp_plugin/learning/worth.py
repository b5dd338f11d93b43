"""What a write is worth: the scores of `learning.grasp` for each kind of delta.

delta        gradient g                      H g                                    scores
Outer, B=1   d p^T                           (|p|^2 M d) p^T                        Separable
Outer        sum_b d_b p_b^T                 sum_b (M_b (K d)_b) p_b^T, K = p p^T   Table
PerSynapse   sum_b d_bo e_boi                sum_b (M_b u_b)_o e_boi,               Table
                                             u_bo = sum_i g_oi e_boi
Full         as it is                        not known                              Table

r_oi = eta g_oi^2 - eta^2 g_oi (H g)_oi / 2  "pred_decrease": sum r = -(g.D + D.HD / 2) of the
                                             step D = -eta g
       |g_oi (H g)_oi|                       "abs_gHg"
       g_oi^2                                "magnitude", "random"

sharpness s = rho |g| + rho^2 g.H g / (2 |g|^2), the rise of the quadratic model along g / |g|
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from grasp_plugin.errors import Refused
from grasp_plugin.learning import selection_kernels as kernels
from grasp_plugin.learning.chosen import Chosen, Sparse
from grasp_plugin.learning.deltas import Array, Full, Outer, PerSynapse, number
from grasp_plugin.learning.scores import Scores, Selection, Separable, Table
from grasp_plugin.learning.selection import Pairs

Bend = Callable[[Array], Array]  # u -> M u, (batch, N_o) in the kind of array of the rule


class RankOne:
    """A gradient d p^T of one sample; nothing N_o x N_i is formed.

    Args:
        part: the delta, scale = -eta.
    """

    def __init__(self, part: Outer) -> None:
        self.part, self.eta = part, -number(part.scale)
        self.d: Array = _numpy(part.left)[0]
        self.p: Array = _numpy(part.right)[0]

    @cached_property
    def nonzero(self) -> int:
        return int(kernels.nonzero(self.d) * kernels.nonzero(self.p)) if self.eta else 0

    def scores(self, score: str, rho: float, bend: Bend | None) -> Scores:
        d, q, eta = self.d, self.p * self.p, self.eta
        if not eta:
            return Separable(0 * d, q, None if bend is None else 0.0)
        norm, squares = float(self.p @ self.p), d * d
        size = math.sqrt(float(d @ d) * norm)
        if bend is None:
            return Separable(squares, q, None, size)
        h = norm * _numpy(bend(self.part.left))[0]
        a = squares
        if score == "pred_decrease":
            a = eta * squares - 0.5 * eta * eta * d * h
        elif score == "abs_gHg":
            a = np.abs(d * h)
        return Separable(a, q, _sharpness(rho, size, float(d @ h) * norm), size)

    def take(self, picked: Selection) -> Chosen:
        """The delta of the picked synapses."""
        return Chosen(self.d, self.p, -self.eta, picked, self.part.left)

    def products(self, picked: Selection, bent: bool) -> int:
        """Products of an error and a trace that were formed."""
        del bent
        return picked.size

    def dense_products(self) -> tuple[int, int]:
        """Those that the dense rule forms, and without the ones that are zero."""
        return self.d.size * self.p.size, self.nonzero


class Whole:
    """A gradient as an array [N_o, N_i]: batches, per-synapse traces, sums over time.

    Args:
        part: the delta; a `Full` one without a scale is taken as a step of size 1.
    """

    def __init__(self, part: Outer | PerSynapse | Full) -> None:
        self.part = part
        self.eta = 1.0 if part.scale is None else -number(part.scale)
        self.delta: Array = _numpy(part.dense())

    @cached_property
    def nonzero(self) -> int:
        return int(np.count_nonzero(self.delta))

    def scores(self, score: str, rho: float, bend: Bend | None) -> Scores:
        eta = self.eta
        if not eta:
            return Table(0 * self.delta, None if bend is None else 0.0)
        g = self.delta / -eta
        size = float(np.sqrt(np.sum(g * g)))
        if bend is None:
            return Table(g * g, None, size)
        bent = g * self._hessian(g, bend)
        r = {
            "pred_decrease": eta * g * g - 0.5 * eta * eta * bent,
            "abs_gHg": np.abs(bent),
        }.get(score, g * g)
        return Table(r, _sharpness(rho, size, float(bent.sum())), size)

    def _hessian(self, g: Array, bend: Bend) -> Array:
        part = self.part
        if isinstance(part, Outer):
            left, right = _numpy(part.left), _numpy(part.right)
            tangent = (right @ right.T) @ left
            return _numpy(bend(_beside(tangent, part.left))).T @ right
        if isinstance(part, PerSynapse):
            e = _numpy(part.eligibility)
            h = _numpy(bend(_beside(np.einsum("oi,boi->bo", g, e), part.left)))
            return np.einsum("bo,boi->oi", h, e)
        if part.scale is not None:  # an episode's gradient, with a curvature in the weights
            return _numpy(bend(_beside(g, part.value)))
        raise Refused(
            "GRASP", "expected a delta with factors for a score with curvature, got a sum",
            "Put GRASP before Accumulate, or use score='magnitude'",
        )  # fmt: skip

    def take(self, picked: Selection) -> Sparse:
        """The delta of the picked synapses."""
        pairs: Pairs = picked.pairs()
        like = self.part.value if isinstance(self.part, Full) else self.part.left
        return Sparse(self.delta[pairs.rows, pairs.columns], pairs, like)

    def products(self, picked: Selection, bent: bool) -> int:
        """Products of an error and a trace that were formed: all, and again for H g."""
        del picked
        return self.dense_products()[0] * (2 if bent else 1)

    def dense_products(self) -> tuple[int, int]:
        """Those that the dense rule forms, twice: the zeros of a sum are known at its end."""
        batch = 1 if isinstance(self.part, Full) else int(self.part.left.shape[0])
        return (batch * int(self.delta.size),) * 2


def gradient_of(part: Any) -> RankOne | Whole:
    """The gradient behind a delta's weights.

    Raises:
        Refused: a delta that another scheduler has thinned out already.
    """
    if isinstance(part, Outer) and part.left.shape[0] == 1:
        return RankOne(part)
    if isinstance(part, (Outer, PerSynapse, Full)):
        return Whole(part)
    raise Refused(
        "GRASP", f"expected a rule's own delta, got {type(part).__name__}",
        "Use one scheduler for each projection",
    )  # fmt: skip


def _sharpness(rho: float, size: float, bent: float) -> float:
    return rho * size + (rho**2 * bent / (2 * size * size) if size else 0.0)


def _numpy(value: Any) -> Array:
    """An array or tensor as NumPy float64."""
    array = value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
    return np.ascontiguousarray(array, np.float64)


def _beside(value: Array, like: Any) -> Any:
    """A NumPy array in like's kind, dtype and device."""
    return value if isinstance(like, np.ndarray) else like.new_tensor(value)

"""Which synapses of an outer product to write: exact selection without forming the product.

At batch 1 every score of `learning.grasp` is separable, score_oi = a_o q_i with q >= 0. Then

    count(tau) = #{(o, i): a_o q_i > tau}     one walk along the staircase, O(N_o + N_i) once sorted
    top-k      = the least tau with count(tau) <= k, found by bisection on the floats themselves,
                 and as many of the pairs at tau as are still missing, by row and then by column

so that a selection costs O(N_i log N_i + N_o log N_o + k), never N_o N_i. The loops are in
`learning.selection_kernels`. A selection says for each
row how many of the columns in `order` are written: `Picked`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.learning import selection_kernels as kernels
from grasp_plugin.network.weights import Array


@dataclass(frozen=True, eq=False)
class Picked:
    """Pairs (row o, column order[c]) with c < counts[o].

    Args:
        counts: (N_o,), how many columns of each row.
        order: (N_i,), columns by falling q, ties by index.
        compared: comparisons that the selection took, sorting included.
    """

    counts: Array
    order: Array
    compared: int = 0

    @cached_property
    def size(self) -> int:
        """How many pairs."""
        return int(self.counts.sum())

    def pairs(self) -> Pairs:
        """The same pairs one by one, by row."""
        rows = np.repeat(np.arange(self.counts.size), self.counts)
        first = np.cumsum(self.counts) - self.counts
        columns = self.order[np.arange(rows.size) - np.repeat(first, self.counts)]
        return Pairs(rows, columns, (self.counts.size, self.order.size), self.compared)

    def mask(self) -> Array:
        """As booleans [N_o, N_i], for tests and small layers."""
        out = np.zeros((self.counts.size, self.order.size), bool)
        for o, count in enumerate(self.counts):
            out[o, self.order[:count]] = True
        return out


@dataclass(frozen=True, eq=False)
class Pairs:
    """Any synapses: (rows[n], columns[n]), each pair once; shape (N_o, N_i)."""

    rows: Array
    columns: Array
    shape: tuple[int, int]
    compared: int = 0

    @property
    def size(self) -> int:
        """How many pairs."""
        return int(self.rows.size)

    def pairs(self) -> Pairs:
        """Itself."""
        return self

    def mask(self) -> Array:
        """As booleans [N_o, N_i], for tests and small layers."""
        out = np.zeros(self.shape, bool)
        out[self.rows, self.columns] = True
        return out


def some(rows: Array, columns: Array, k: int, shape: tuple[int, int], seed: int) -> Pairs:
    """k pairs out of rows x columns at random, all equally likely; fewer where there are fewer."""
    total = rows.size * columns.size
    draw = np.random.default_rng(seed).choice(total, min(k, total), replace=False, shuffle=False)
    return Pairs(rows[draw // max(columns.size, 1)], columns[draw % max(columns.size, 1)], shape)


def _checked(a: Array, q: Array) -> tuple[Array, Array]:
    a, q = np.ascontiguousarray(a, np.float64), np.ascontiguousarray(q, np.float64)
    flaw = kernels.flawed(a, q) if a.ndim == q.ndim == 1 else 1
    if flaw == 1:
        raise Invalid("selection", f"expected finite vectors, got {a.shape}, {q.shape}", "Check")
    if flaw == 2:
        raise Invalid("selection", f"expected q >= 0, got {q.min()}", "Pass squares or magnitudes")
    return a, q


def above(a: Array, q: Array, tau: float) -> Picked:
    """All pairs with a_o q_i > tau, tau >= 0.

    Raises:
        Invalid: scores that are not finite vectors, a negative q or tau.
    """
    a, q = _checked(a, q)
    if not tau >= 0:
        raise Invalid("selection", f"expected tau >= 0, got {tau}", "Pass a price of a write")
    found: Any = kernels.above(a, q, float(tau))
    counts, order = found
    return Picked(counts, order, a.size + q.size + _sorting(a, q))


def top(a: Array, q: Array, k: int) -> Picked:
    """The k pairs with the largest a_o q_i; pairs with a score <= 0 are never taken.

    Raises:
        Invalid: scores that are not finite vectors, a negative q or k.
    """
    a, q = _checked(a, q)
    if k < 0:
        raise Invalid("selection", f"expected k >= 0, got {k}", "Pass a number of writes")
    found: Any = kernels.top(a, q, k)
    counts, order, compared = found
    return Picked(counts, order, int(compared) + a.size + q.size + _sorting(a, q))


def covering(a: Array, q: Array, share: float) -> Picked:
    """The pairs with the largest scores that hold `share` of the sum of all positive ones.

    As few as can be told apart by a threshold: pairs of equal score come together.

    Raises:
        Invalid: scores that are not finite vectors, a negative q, a share outside (0, 1].
    """
    a, q = _checked(a, q)
    if not 0 < share <= 1:
        raise Invalid("selection", f"expected a share in (0, 1], got {share}", "Pass a share")
    rows, columns = kernels.falling(a), kernels.falling(q)
    found, walks = np.zeros(a.size, np.int64), 0
    sorted_a, sorted_q = a[rows], q[columns]
    if a.size and q.size and sorted_a[0] * sorted_q[0] > 0:
        sums = np.concatenate([[0.0], np.cumsum(sorted_q)])
        kernels.staircase(sorted_a, sorted_q, 0.0, found)
        wanted = share * kernels.covered(sorted_a, sums, found)
        least: Any = kernels.covering_tau(sorted_a, sorted_q, sums, wanted, found)
        tau, walks = least
        kernels.staircase(sorted_a, sorted_q, tau, found)
    counts = np.empty_like(found)
    counts[rows] = found
    return Picked(counts, columns, (walks + 2) * (a.size + q.size) + _sorting(a, q))


def _sorting(a: Array, q: Array) -> int:
    """Comparisons that sorting both is counted as: n log2 n each."""
    return math.ceil(a.size * math.log2(a.size or 1) + q.size * math.log2(q.size or 1))


def write_picked(
    weights: Array, left: Array, right: Array, scale: float, picked: Picked | Pairs
) -> int:
    """weights += scale left right^T at the picked pairs only, in place; returns how many.

    The same numbers in either order of memory.
    """
    if isinstance(picked, Pairs):
        rows, columns = picked.rows, picked.columns
        weights[rows, columns] += scale * left[rows] * right[columns]
    elif weights.flags.f_contiguous and not weights.flags.c_contiguous:
        kernels.write_transposed(weights.T, left, right, scale, picked.counts, picked.order)
    else:
        kernels.write(weights, left, right, scale, picked.counts, picked.order)
    return picked.size

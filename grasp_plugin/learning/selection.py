"""Which synapses of an outer product to write: exact selection without forming the product.

At batch 1 every score of `learning.grasp` is separable, score_oi = a_o q_i with q >= 0. Then

    count(tau) = #{(o, i): a_o q_i > tau}     one walk along the staircase, O(N_o + N_i) once sorted
    top-k      = the tau with count(tau) <= k, found by bisection on the floats themselves, and as
                 many of the pairs at tau as are still missing, by row and then by column

so that a selection costs O(N_i log N_i + N_o log N_o + k), never N_o N_i. A selection says for each
row how many of the columns in `order` are written: `Picked`.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.network.weights import Array

jit = numba.njit(cache=True, nogil=True)


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

    @property
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


@jit
def _staircase(a, q, tau, counts):
    """counts[r] = how many sorted q_c have a_r q_c > tau; a and q fall. Returns the sum."""
    total, c = 0, q.size
    for r in range(a.size):
        while c > 0 and not a[r] * q[c - 1] > tau:
            c -= 1
        counts[r] = c
        total += c
    return total


@jit
def _largest_tau(a, q, k, counts):
    """(the least float tau >= 0 with count(tau) <= k, by bisection on its bits; walks taken)."""
    low, high, walks = np.int64(0), np.float64(a[0] * q[0]).view(np.int64), 0
    while low < high:
        walks += 1
        middle = low + (high - low) // 2
        if _staircase(a, q, np.int64(middle).view(np.float64), counts) <= k:
            high = middle
        else:
            low = middle + 1
    return np.int64(low).view(np.float64), walks


@jit
def _covered(a, q_sums, counts):
    """The sum of a_r q_c over the pairs taken; q_sums[c] = sum of the first c sorted q."""
    total = 0.0
    for r in range(a.size):
        total += a[r] * q_sums[counts[r]]
    return total


@jit
def _covering_tau(a, q, q_sums, wanted, counts):
    """(the largest float tau >= 0 at which the pairs above it hold at least `wanted`; walks)."""
    low, high, walks = np.int64(0), np.float64(a[0] * q[0]).view(np.int64), 0
    while low < high:
        walks += 1
        middle = low + (high - low + 1) // 2
        _staircase(a, q, np.int64(middle).view(np.float64), counts)
        if _covered(a, q_sums, counts) >= wanted:
            low = middle
        else:
            high = middle - 1
    return np.int64(low).view(np.float64), walks


@jit
def _fill(a, q, tau, missing, counts):
    """Take `missing` more pairs with a score of exactly tau, row by row; they follow in order."""
    for r in range(a.size):
        while missing > 0 and counts[r] < q.size and a[r] * q[counts[r]] == tau:
            counts[r] += 1
            missing -= 1


def _sorted(a: Array, q: Array) -> tuple[Array, Array]:
    """(rows, columns) by falling score, ties by index."""
    return np.argsort(-a, kind="stable"), np.argsort(-q, kind="stable")


def _checked(a: Array, q: Array) -> tuple[Array, Array]:
    a, q = np.asarray(a, np.float64), np.asarray(q, np.float64)
    if a.ndim != 1 or q.ndim != 1 or not np.all(np.isfinite(a)) or not np.all(np.isfinite(q)):
        raise Invalid("selection", f"expected finite vectors, got {a.shape}, {q.shape}", "Check")
    if q.size and q.min() < 0:
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
    rows, columns = _sorted(a, q)
    counts = np.empty(a.size, np.int64)
    _staircase(a[rows], q[columns], float(tau), counts)
    return Picked(_unsorted(counts, rows), columns, _compared(a, q, 1))


def top(a: Array, q: Array, k: int) -> Picked:
    """The k pairs with the largest a_o q_i; pairs with a score <= 0 are never taken.

    Raises:
        Invalid: scores that are not finite vectors, a negative q or k.
    """
    a, q = _checked(a, q)
    if k < 0:
        raise Invalid("selection", f"expected k >= 0, got {k}", "Pass a number of writes")
    rows, columns = _sorted(a, q)
    counts, walks = np.zeros(a.size, np.int64), 0
    sorted_a, sorted_q = a[rows], q[columns]
    if k and a.size and q.size and sorted_a[0] * sorted_q[0] > 0:
        found: Any = _largest_tau(sorted_a, sorted_q, k, counts)
        tau, walks = found
        taken = int(_staircase(sorted_a, sorted_q, tau, counts))
        if tau > 0:
            _fill(sorted_a, sorted_q, tau, k - taken, counts)
    return Picked(_unsorted(counts, rows), columns, _compared(a, q, walks + 1))


def covering(a: Array, q: Array, share: float) -> Picked:
    """The pairs with the largest scores that hold `share` of the sum of all positive ones.

    As few as can be told apart by a threshold: pairs of equal score come together.

    Raises:
        Invalid: scores that are not finite vectors, a negative q, a share outside (0, 1].
    """
    a, q = _checked(a, q)
    if not 0 < share <= 1:
        raise Invalid("selection", f"expected a share in (0, 1], got {share}", "Pass a share")
    rows, columns = _sorted(a, q)
    counts, walks = np.zeros(a.size, np.int64), 0
    sorted_a, sorted_q = a[rows], q[columns]
    if a.size and q.size and sorted_a[0] * sorted_q[0] > 0:
        sums = np.concatenate([[0.0], np.cumsum(sorted_q)])
        _staircase(sorted_a, sorted_q, 0.0, counts)
        wanted = share * _covered(sorted_a, sums, counts)
        found: Any = _covering_tau(sorted_a, sorted_q, sums, wanted, counts)
        tau, walks = found
        _staircase(sorted_a, sorted_q, tau, counts)
    return Picked(_unsorted(counts, rows), columns, _compared(a, q, walks + 2))


def _compared(a: Array, q: Array, walks: int) -> int:
    """Comparisons: a walk passes every row and column once; a sort of n takes n log2 n."""
    sorts = sum(v.size * math.log2(max(v.size, 2)) for v in (a, q))
    return walks * (a.size + q.size) + math.ceil(sorts)


def _unsorted(counts: Array, rows: Array) -> Array:
    out = np.empty_like(counts)
    out[rows] = counts
    return out


@jit
def _write(weights, left, right, scale, counts, order):
    for o in range(counts.size):
        factor = scale * left[o]
        row = weights[o]
        for c in range(counts[o]):
            row[order[c]] += factor * right[order[c]]


def write_picked(
    weights: Array, left: Array, right: Array, scale: float, picked: Picked | Pairs
) -> int:
    """weights += scale left right^T at the picked pairs only, in place; returns how many."""
    if isinstance(picked, Pairs):
        rows, columns = picked.rows, picked.columns
        weights[rows, columns] += scale * left[rows] * right[columns]
    else:
        _write(weights, left, right, scale, picked.counts, picked.order)
    return picked.size

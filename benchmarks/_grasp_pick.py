"""Which synapses to write, for many separable score matrices at once: batched `selection`.

    counts, rank, _ = pick(a, q, k, price)       synapse (o, i) is written where rank_i < count_o

Three ways to the same numbers: a compiled walk along the staircase, matrix by matrix (CPU); a
Triton kernel with the same bisection on the bits of the floats (CUDA); and plain torch, which forms
every matrix (anywhere, slow). All compare a_o q_i > tau and fill ties by falling a, then by falling
q, as `learning.selection` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

BITS = 63  # of a positive float64
Above = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def pick(
    a: Tensor, q: Tensor, k: Tensor, price: Tensor, method: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts (B, N_o), ranks of the columns (B, N_i), and the smallest score taken (B,).

    Args:
        a: (B, N_o) float64; q: (B, N_i) float64, >= 0: scores are a_o q_i.
        k: (B,) int64, so many of the largest positive scores.
        price: (B,) float64; where it is not NaN, all scores above it instead.
        method: "numba", "triton", "plain", or "auto": numba on the CPU, triton on CUDA.
    """
    sorted_a, rows = torch.sort(a, dim=1, descending=True, stable=True)
    sorted_q, columns = torch.sort(q, dim=1, descending=True, stable=True)
    if method == "auto":
        method = "triton" if a.is_cuda else "numba"
    if method == "numba":
        found = _numba(sorted_a, sorted_q, k, price)
    else:
        above = _triton if method == "triton" else _plain
        found = _filled(*above(sorted_a, sorted_q, k, price), k, price)
    counts = torch.empty_like(found).scatter_(1, rows, found)
    places = torch.arange(q.shape[1], device=q.device).expand_as(columns)
    rank = torch.empty_like(columns).scatter_(1, columns, places)
    last = torch.gather(sorted_q, 1, (found - 1).clamp(min=0))
    taken = torch.where(found > 0, sorted_a * last, math.inf)
    return counts, rank, taken.amin(1)


def _filled(above: Tensor, least: Tensor, tau: Tensor, k: Tensor, price: Tensor) -> Tensor:
    """Counts with as many of the pairs at tau as are missing, in order."""
    ties = least - above
    missing = torch.where(price.isnan() & (tau > 0), k - above.sum(1), 0)
    before = ties.cumsum(1) - ties
    return above + torch.minimum((missing[:, None] - before).clamp(min=0), ties)


def _plain(a: Tensor, q: Tensor, k: Tensor, price: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per sorted row how many scores are > tau and >= tau, and tau, by bisection on its bits."""
    scores = a[:, :, None] * q[:, None, :]
    high = (a[:, 0] * q[:, 0]).clamp(min=0).view(torch.int64)
    low = torch.zeros_like(high)
    for _ in range(BITS):
        middle = low + (high - low) // 2
        fits = (scores > middle.view(torch.float64)[:, None, None]).sum((1, 2)) <= k
        high = torch.where(fits, middle, high)
        low = torch.where(fits, low, torch.minimum(middle + 1, high))
    tau = torch.where(price.isnan(), high.view(torch.float64), price)
    compared = tau[:, None, None]
    return (scores > compared).sum(2), (scores >= compared).sum(2), tau


def _numba(a: Tensor, q: Tensor, k: Tensor, price: Tensor) -> Tensor:
    counts = np.zeros(a.shape, np.int64)
    _many(a.numpy(), q.numpy(), k.numpy(), price.numpy(), counts)
    return torch.from_numpy(counts)


@numba.njit(cache=True, nogil=True)
def _many(a: Any, q: Any, k: Any, price: Any, counts: Any) -> None:
    for b in range(len(a)):
        best = a[b, 0] * q[b, 0]
        if not best > 0:
            continue
        if price[b] == price[b]:
            _walk(a[b], q[b], price[b], counts[b])
        elif k[b] > 0:
            _top(a[b], q[b], k[b], best, counts[b])


@numba.njit(cache=True, nogil=True)
def _walk(a: Any, q: Any, tau: float, counts: Any) -> int:
    """counts[r] = how many sorted columns have a_r q_c > tau; their sum."""
    total, c = 0, q.size
    for r in range(a.size):
        while c > 0 and not a[r] * q[c - 1] > tau:
            c -= 1
        counts[r] = c
        total += c
    return total


@numba.njit(cache=True, nogil=True)
def _float(bits: Any) -> Any:
    return np.int64(bits).view(np.float64)


@numba.njit(cache=True, nogil=True)
def _top(a: Any, q: Any, k: int, best: float, counts: Any) -> None:
    low, high = np.int64(0), np.float64(best).view(np.int64)
    while low < high:
        middle = low + (high - low) // 2
        if _walk(a, q, _float(middle), counts) <= k:
            high = middle
        else:
            low = middle + 1
    tau = _float(high)
    missing = k - _walk(a, q, tau, counts)
    for r in range(a.size):
        while tau > 0 and missing > 0 and counts[r] < q.size and a[r] * q[counts[r]] == tau:
            counts[r] += 1
            missing -= 1


# --- writing --------------------------------------------------------------------------------------


def write(weights: Tensor, left: Tensor, right: Tensor, counts: Tensor, rank: Tensor) -> None:
    """weights[r, o, i] += left[r, o] right[r, i] where rank[r, i] < counts[r, o], in place.

    Args:
        weights: (R, N_o, N_i); left, counts: (R, N_o); right, rank: (R, N_i).
    """
    if weights.is_cuda:
        _write_triton(weights, left, right, counts, rank)
    else:
        arrays = (x.contiguous().numpy() for x in (left, right, counts, rank))
        _write(weights.numpy(), *arrays)


@numba.njit(cache=True, nogil=True)
def _write(weights: Any, left: Any, right: Any, counts: Any, rank: Any) -> None:
    runs, n_o, n_i = weights.shape
    for r in range(runs):
        for o in range(n_o):
            if counts[r, o] == 0 or left[r, o] == 0:
                continue
            for i in range(n_i):
                if rank[r, i] < counts[r, o]:
                    weights[r, o, i] += left[r, o] * right[r, i]


def write_plain(weights: Tensor, left: Tensor, right: Tensor, mask: Tensor) -> None:
    """weights += mask * left right^T, in place; mask (R, N_o, N_i) of booleans."""
    weights += torch.where(mask, left[:, :, None] * right[:, None, :], 0)


# --- CUDA -----------------------------------------------------------------------------------------


def _triton(a: Tensor, q: Tensor, k: Tensor, price: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from _grasp_triton import staircases

    return staircases(a, q, k, price)


def _write_triton(
    weights: Tensor, left: Tensor, right: Tensor, counts: Tensor, rank: Tensor
) -> None:
    from _grasp_triton import write_staircases

    write_staircases(weights, left, right, counts, rank)

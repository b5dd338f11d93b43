"""The selection and the writes of `_grasp_pick` as Triton kernels; one program a matrix.

Each row's count is a binary search along the sorted columns with the predicate a_o q_i > tau
itself, so that the numbers are those of `learning.selection` to the last bit.
"""

# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _count(a, q, n_i, tau, STEPS: tl.constexpr, WITH_TIES: tl.constexpr):
    """How many leading sorted columns of each row have a q > tau (>= tau with ties)."""
    low = tl.zeros_like(a).to(tl.int32)
    high = low + n_i
    for _ in range(STEPS):
        middle = (low + high) >> 1
        inside = low < high
        score = a * tl.load(q + middle, mask=inside, other=0.0)
        if WITH_TIES:
            is_above = score >= tau
        else:
            is_above = score > tau
        low = tl.where(inside & is_above, middle + 1, low)
        high = tl.where(inside & (is_above == 0), middle, high)
    return low


@triton.jit
def _staircases(
    a_at, q_at, k_at, price_at, above_at, least_at, tau_at, n_o, n_i,
    ROWS: tl.constexpr, STEPS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, ROWS)
    a = tl.load(a_at + b * n_o + o, mask=o < n_o, other=0.0)
    q = q_at + b * n_i
    k = tl.load(k_at + b)
    price = tl.load(price_at + b)
    best = tl.load(a_at + b * n_o) * tl.load(q)
    best = tl.where(best > 0, best, 0.0)
    low = k * 0
    high = best.to(tl.int64, bitcast=True)
    high = tl.where(price == price, low, high)
    for _ in range(BITS):
        middle = low + (high - low) // 2
        tau = middle.to(tl.float64, bitcast=True)
        fits = tl.sum(_count(a, q, n_i, tau, STEPS, False).to(tl.int64), axis=0) <= k
        high = tl.where(fits, middle, high)
        low = tl.where(fits, low, tl.minimum(middle + 1, high))
    tau = high.to(tl.float64, bitcast=True)
    tau = tl.where(price == price, price, tau)
    tl.store(tau_at + b, tau)
    above = _count(a, q, n_i, tau, STEPS, False).to(tl.int64)
    least = _count(a, q, n_i, tau, STEPS, True).to(tl.int64)
    tl.store(above_at + b * n_o + o, above, mask=o < n_o)
    tl.store(least_at + b * n_o + o, tl.maximum(least, above), mask=o < n_o)


@triton.jit
def _write(
    w_at, left_at, right_at, counts_at, rank_at, n_o, n_i, stride_left, stride_right,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, COLUMNS)
    left = tl.load(left_at + r * stride_left + o, mask=o < n_o, other=0.0)
    counts = tl.load(counts_at + r * stride_left + o, mask=o < n_o, other=0)
    right = tl.load(right_at + r * stride_right + i, mask=i < n_i, other=0.0)
    rank = tl.load(rank_at + r * stride_right + i, mask=i < n_i, other=0)
    inside = (o < n_o)[:, None] & (i < n_i)[None, :]
    chosen = inside & (rank[None, :] < counts[:, None])
    place = w_at + r * n_o * n_i + o[:, None] * n_i + i[None, :]
    old = tl.load(place, mask=chosen, other=0.0)
    tl.store(place, old + left[:, None] * right[None, :], mask=chosen)


def staircases(a: Tensor, q: Tensor, k: Tensor, price: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `_grasp_pick._plain`; sorted a (B, N_o), q (B, N_i)."""
    above, tau = torch.empty(a.shape, dtype=torch.int64, device=a.device), torch.empty_like(price)
    least = torch.empty_like(above)
    n_o, n_i = a.shape[1], q.shape[1]
    rows = max(32, triton.next_power_of_2(n_o))
    _staircases[(len(a),)](
        a.contiguous(), q.contiguous(), k.contiguous(), price.contiguous(), above, least, tau,
        n_o, n_i, ROWS=rows, STEPS=n_i.bit_length(), BITS=63, num_warps=rows // 32,
    )  # fmt: skip
    return above, least, tau


def write_staircases(
    weights: Tensor, left: Tensor, right: Tensor, counts: Tensor, rank: Tensor
) -> None:
    """As `_grasp_pick.write`; rows of the vectors may be apart, their entries are not."""
    runs, n_o, n_i = weights.shape
    rows = 16
    _write[(runs, triton.cdiv(n_o, rows))](
        weights, left, right, counts, rank, n_o, n_i, left.stride(0), right.stride(0),
        ROWS=rows, COLUMNS=triton.next_power_of_2(n_i), num_warps=4,
    )  # fmt: skip

"""Compiled loops of `learning.fixed`: decaying traces and writing weights with random rounding.

The random words are those of `learning.counter_random`, one hash of (key, index) each.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from grasp_plugin.learning.selection import Pairs, Picked

jit = numba.njit(cache=True, nogil=True)

GOLDEN = np.uint32(0x9E3779B9)
FIRST, SECOND = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
S15, S16 = np.uint32(15), np.uint32(16)


@jit
def mix(x):
    """`counter_random`'s bijection of 32-bit words."""
    x = np.uint32((x ^ (x >> S16)) * FIRST)
    x = np.uint32((x ^ (x >> S15)) * SECOND)
    return np.uint32(x ^ (x >> S16))


@jit
def _key(seed, step, stream):
    word = np.uint32(mix(np.uint32(step * 4 + stream)) ^ np.uint32(seed))
    return mix(word)


@jit
def _decay(x, decay, impulse, spikes, key, limit):
    clipped = 0
    for i in range(x.size):
        r = np.int64(mix(np.uint32(key + np.uint32(i) * GOLDEN)) & np.uint32(4095))
        value = ((x[i] * decay + r) >> 12) + impulse * spikes[i]
        if value > limit or value < 0:
            clipped += 1
            value = limit if value > limit else 0
        x[i] = value
    return clipped


@jit
def _write(weights, rows, columns, row_stride, column_stride, bits, low, high, key):
    """weights[r, c] += 2 SR(rows[r] columns[c] / 2^bits), index r row_stride + c column_stride."""
    clipped = 0
    mask = np.uint32((1 << bits) - 1)
    for r in range(weights.shape[0]):
        a = np.int32(rows[r])
        if a == 0:
            continue
        first = np.uint32(key + np.uint32(r * row_stride) * GOLDEN)
        step = np.uint32(np.uint32(column_stride) * GOLDEN)
        line = weights[r]
        for c in range(line.size):
            word = mix(np.uint32(first + np.uint32(c) * step)) & mask
            change = (a * columns[c] + np.int32(word)) >> bits
            value = np.int32(line[c]) + (change << 1)
            bounded = min(max(value, low), high)
            clipped += value != bounded
            line[c] = bounded
    return clipped


@jit
def _write_sums(weights, sums, bits, low, high, key):
    """weights += 2 SR(sums / 2^bits), index r columns + c."""
    clipped = 0
    mask = np.uint32((1 << bits) - 1)
    for r in range(weights.shape[0]):
        for c in range(weights.shape[1]):
            if sums[r, c] != 0:
                index = np.uint32(r * weights.shape[1] + c)
                word = mix(np.uint32(key + index * GOLDEN)) & mask
                value = np.int64(weights[r, c]) + (((sums[r, c] + np.int64(word)) >> bits) << 1)
                bounded = min(max(value, low), high)
                clipped += value != bounded
                weights[r, c] = bounded
    return clipped


@jit
def _write_counts(weights, y, x, counts, order, bits, low, high, key):
    """weights[o, i] += 2 SR(y[o] x[i] / 2^bits), i = order[c], c < counts[o]; index o N_i + i."""
    clipped, changed = 0, 0
    mask = np.uint32((1 << bits) - 1)
    for o in range(counts.size):
        for c in range(counts[o]):
            i = order[c]
            index = np.uint32(o * weights.shape[1] + i)
            word = mix(np.uint32(key + index * GOLDEN)) & mask
            value = np.int64(weights[o, i]) + (((y[o] * x[i] + np.int64(word)) >> bits) << 1)
            bounded = min(max(value, low), high)
            clipped += value != bounded
            changed += bounded != weights[o, i]
            weights[o, i] = bounded
    return clipped, changed


@jit
def _write_pairs(weights, products, rows, columns, bits, low, high, key):
    """weights[rows[n], columns[n]] += 2 SR(products[n] / 2^bits), index row N_i + column."""
    clipped, changed = 0, 0
    mask = np.uint32((1 << bits) - 1)
    for n in range(rows.size):
        o, i = rows[n], columns[n]
        index = np.uint32(o * weights.shape[1] + i)
        word = mix(np.uint32(key + index * GOLDEN)) & mask
        value = np.int64(weights[o, i]) + (((products[n] + np.int64(word)) >> bits) << 1)
        bounded = min(max(value, low), high)
        clipped += value != bounded
        changed += bounded != weights[o, i]
        weights[o, i] = bounded
    return clipped, changed


def key(seed: int, step: int, stream: int) -> Any:
    """The key of one step's random words; streams 0 to 3 are independent."""
    return _key(np.uint32(seed & 0xFFFFFFFF), np.uint32(step & 0x3FFFFFFF), np.uint32(stream))


def decay(x: Any, decay: int, impulse: int, spikes: Any, key: Any, limit: int) -> int:
    """x <- clip(SR(x decay / 4096) + impulse spikes, 0, limit) in place; how many were clipped."""
    return int(_decay(x, decay, impulse, spikes, np.uint32(key), limit))


def write(weights: Any, y: Any, x: Any, shift: int, low: int, high: int, key: Any) -> int:
    """weights += 2 SR(y x^T / 2^(shift + 1)) in place; returns how many met a limit.

    The index of a synapse is o N_i + i, whatever the memory order.
    """
    inputs, bits, key = weights.shape[1], shift + 1, np.uint32(key)
    low32, high32 = np.int32(low), np.int32(high)
    y32, x32 = y.astype(np.int32), x.astype(np.int32)
    if weights.flags.c_contiguous:
        return int(_write(weights, y32, x32, inputs, 1, bits, low32, high32, key))
    return int(_write(weights.T, x32, y32, 1, inputs, bits, low32, high32, key))


def write_sums(weights: Any, sums: Any, shift: int, low: int, high: int, key: Any) -> int:
    """weights += 2 SR(sums / 2^(shift + 1)) in place; returns how many met a limit."""
    wide = np.ascontiguousarray(sums, np.int64)
    return int(_write_sums(weights, wide, shift + 1, low, high, np.uint32(key)))


def write_picked(
    weights: Any, y: Any, x: Any, picked: Picked | Pairs, shift: int, low: int, high: int, key: Any
) -> tuple[int, int]:
    """`write` at the picked synapses only, each by the same random word; (met a limit, changed)."""
    if isinstance(picked, Pairs):
        wide = y.astype(np.int64)[picked.rows] * x[picked.columns]
        return _pairs(weights, wide, picked, shift, low, high, key)
    found: Any = _write_counts(
        weights, y.astype(np.int64), x.astype(np.int64), picked.counts, picked.order, shift + 1,
        low, high, np.uint32(key),
    )  # fmt: skip
    return int(found[0]), int(found[1])


def write_picked_sums(
    weights: Any, sums: Any, picked: Picked | Pairs, shift: int, low: int, high: int, key: Any
) -> tuple[int, int]:
    """`write_sums` at the picked synapses only; (met a limit, changed)."""
    pairs = picked.pairs()
    wide = sums.astype(np.int64)[pairs.rows, pairs.columns]
    return _pairs(weights, wide, pairs, shift, low, high, key)


def _pairs(
    weights: Any, products: Any, pairs: Pairs, shift: int, low: int, high: int, key: Any
) -> tuple[int, int]:
    found: Any = _write_pairs(
        weights, products, pairs.rows, pairs.columns, shift + 1, low, high, np.uint32(key)
    )
    return int(found[0]), int(found[1])

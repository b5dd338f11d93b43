"""Compiled loops of `learning.fixed`: decaying traces and writing weights with random rounding.

The random words are those of `learning.counter_random`, one hash of (key, index) each.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any

import numpy as np

from grasp_plugin.learning.counter_random import GOLDEN, jit, key_of, mix
from grasp_plugin.learning.selection import Pairs, Picked


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
    """weights[o, i] += 2 SR(y[o] x[i] / 2^bits), i = order[c], c < counts[o]; index o N_i + i.

    Row by row: read, then change in 32 bits and without a branch, then write.
    """
    clipped, changed = 0, 0
    mask, one, n = np.uint32((1 << bits) - 1), np.int32(1), order.size
    at, falling, places = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.uint32)
    old, new = np.empty(n, np.int32), np.empty(n, np.int32)
    for c in range(n):
        at[c], falling[c], places[c] = order[c], x[order[c]], np.uint32(order[c]) * GOLDEN
    for o in range(counts.size):
        if counts[o] == 0:
            continue
        a, first = np.int32(y[o]), np.uint32(key + np.uint32(o * weights.shape[1]) * GOLDEN)
        count, line, met, moved = np.int32(counts[o]), weights[o], np.int32(0), np.int32(0)
        for c in range(count):
            old[c] = line[at[c]]
        for c in range(count):
            word = mix(np.uint32(first + places[c])) & mask
            value = old[c] + (((a * falling[c] + np.int32(word)) >> bits) << one)
            new[c] = min(max(value, low), high)
            met += np.int32(value != new[c])
            moved += np.int32(new[c] != old[c])
        for c in range(count):
            line[at[c]] = new[c]
        clipped, changed = clipped + int(met), changed + int(moved)
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


@jit
def _changes(sums, bits, key):
    """SR(sums / 2^bits), index r columns + c, 0 where a sum is."""
    out = np.zeros(sums.shape, np.int64)
    mask = np.uint32((1 << bits) - 1)
    for r in range(sums.shape[0]):
        for c in range(sums.shape[1]):
            if sums[r, c] != 0:
                index = np.uint32(r * sums.shape[1] + c)
                word = mix(np.uint32(key + index * GOLDEN)) & mask
                out[r, c] = (sums[r, c] + np.int64(word)) >> bits
    return out


def key(seed: int, step: int, stream: int) -> Any:
    """The key of one step's random words; streams 0 to 3 are independent."""
    return key_of(np.uint32(seed & 0xFFFFFFFF), np.uint32((step & 0x3FFFFFFF) * 4 + stream))


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


def changes(sums: Any, shift: int, key: int) -> Any:
    """SR(sums / 2^(shift + 1)), [N_o, N_i]: half of what `write` adds by the same key."""
    wide = np.ascontiguousarray(sums, np.int64)
    return _changes(wide, shift + 1, np.uint32(key))


def write_picked(
    weights: Any, y: Any, x: Any, picked: Picked | Pairs, shift: int, low: int, high: int, key: Any
) -> tuple[int, int]:
    """`write` at the picked synapses only, each by the same random word; (met a limit, changed)."""
    if isinstance(picked, Pairs):
        wide = y.astype(np.int64)[picked.rows] * x[picked.columns]
        return _pairs(weights, wide, picked, shift, low, high, key)
    found: Any = _write_counts(
        weights, y, x, picked.counts, picked.order, shift + 1, np.int32(low), np.int32(high),
        np.uint32(key),
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

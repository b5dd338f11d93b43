"""Compiled inner loops of plastic synapses: what a step reads and writes, and no more.

Weights are [N_o, N_i], one row a postsynaptic neuron. Compiled by Numba on first use, cached.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from grasp_plugin.learning.chosen import Chosen, Sparse
from grasp_plugin.learning.deltas import Array, Delta, Outer, PerSynapse, number

SPARSE_BELOW = 0.25  # share of non-zero inputs below which they are visited one by one

jit = numba.njit(cache=True, nogil=True)


@jit
def _active(x, places):
    """How many entries of x are not zero; their indices go to the front of `places`."""
    n = 0
    for i in range(x.size):
        places[n] = i
        n += x[i] != 0
    return n


@jit
def _gather(weights, x, places, out):
    """out = weights x, over the inputs that are not zero, in their order; four rows at a time."""
    active = places[: _active(x, places)]
    rows, o = weights.shape[0], 0
    while o + 4 <= rows:
        p, q, r, s = weights[o], weights[o + 1], weights[o + 2], weights[o + 3]
        a = b = c = d = out[o] * 0
        for k in range(active.size):
            j, y = active[k], x[active[k]]
            a += p[j] * y
            b += q[j] * y
            c += r[j] * y
            d += s[j] * y
        out[o], out[o + 1], out[o + 2], out[o + 3] = a, b, c, d
        o += 4
    while o < rows:
        a = out[o] * 0
        for k in range(active.size):
            a += weights[o, active[k]] * x[active[k]]
        out[o] = a
        o += 1


@jit
def _add_row(row, factor, right, active, few):
    if few:
        for c in range(active.size):
            row[active[c]] += factor * right[active[c]]
    else:
        for i in range(row.size):
            row[i] += factor * right[i]


@jit
def _add_outer(weights, left, right, scale, places):
    """weights += scale left right^T, the rows of scale left that are not zero only."""
    active, written = places[: _active(right, places)], 0
    few = active.size < SPARSE_BELOW * right.size
    for o in range(weights.shape[0]):
        factor = scale * left[o]
        if factor != 0:
            _add_row(weights[o], factor, right, active, few)
            written += 1
    return written


def gather(weights: Array, x: Array) -> Array:
    """W x (N_o,): work proportional to the inputs that are not zero."""
    out = np.zeros(weights.shape[0], weights.dtype if weights.dtype.kind == "f" else np.int64)
    _gather(weights, x, np.empty(x.size, np.int64), out)
    return out


def add_delta(weights: Array, delta: Delta) -> bool:
    """weights += delta["weight"], in place; only rows with an error are read and written.

    Returns False if nothing was written.

    Args:
        weights: [N_o, N_i], C or Fortran order; kernels [C_out, ...]; biases (N,).
    """
    part = delta["weight"]
    if isinstance(part, (Chosen, Sparse)):
        matrix = weights if weights.ndim == 2 else weights.reshape(len(weights), -1)
        return part.add_to(matrix) > 0
    if not isinstance(part, Outer) or part.left.shape[0] > 1 or weights.ndim != 2:
        if isinstance(part, (Outer, PerSynapse)) and not part.left.any():
            return False
        weights += part.dense().reshape(weights.shape)
        return True
    left, right = np.ascontiguousarray(part.left[0]), np.ascontiguousarray(part.right[0])
    scale = number(part.scale)
    # (scale left_o) right_i in either order of memory
    if weights.flags.c_contiguous:
        return add_outer(weights, left, right, scale) > 0
    return add_outer(weights.T, right, scale * left, 1.0) > 0


def add_outer(weights: Array, left: Array, right: Array, scale: float) -> int:
    """weights += scale left right^T in place, returning the number of rows written."""
    written: Any = _add_outer(weights, left, right, scale, np.empty(right.size, np.int64))
    return int(written)

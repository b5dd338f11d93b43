"""Random numbers that are a hash of (seed, step, index): the same on NumPy and torch, in a resumed
run, and whatever order they are drawn in.

    word(seed, step, index) = mix(key + index GOLDEN)      key = mix(mix(step) ^ seed)

in 32 bits. Twice: on arrays of any kind, and compiled for NumPy, tens of times faster.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from array_api_compat import array_namespace, device

Array = Any  # a NumPy array or torch tensor

_WORD = 0xFFFFFFFF
GOLDEN = np.uint32(0x9E3779B9)
FIRST, SECOND = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
S8, S15, S16 = np.uint32(8), np.uint32(15), np.uint32(16)

jit = numba.njit(cache=True, nogil=True)


@jit
def mix(x):
    """A bijection of 32-bit words that leaves no visible pattern."""
    x = np.uint32((x ^ (x >> S16)) * FIRST)
    x = np.uint32((x ^ (x >> S15)) * SECOND)
    return np.uint32(x ^ (x >> S16))


@jit
def key_of(seed, step):
    """The key of a step's words, from two words."""
    return mix(np.uint32(mix(np.uint32(step)) ^ np.uint32(seed)))


@jit
def _fill(seed, step, out):
    key = key_of(seed, step)
    for i in range(out.size):
        out[i] = np.float64(mix(np.uint32(key + np.uint32(i) * GOLDEN)) >> S8) / 2**24


def _mix(x: Array) -> Array:
    """`mix`, on words held in int64."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = x ^ (x >> shift)
        high = ((x >> 16) * factor & 0xFFFF) << 16
        x = ((x & 0xFFFF) * factor + high) & _WORD
    return x ^ (x >> 16)


def uniform(seed: int, step: Array, size: int, like: Array) -> Array:
    """Multiples of 2^-24 in [0, 1) (size,), in like's dtype, the same in float32 and float64;
    `step` is a counter (1,)."""
    if isinstance(like, np.ndarray) and like.dtype in (np.float32, np.float64):
        out = np.empty(size, like.dtype)
        _fill(np.uint32(seed & _WORD), np.uint32(int(step[0]) & _WORD), out)
        return out
    return uniform_on_arrays(seed, step, size, like)


def uniform_on_arrays(seed: int, step: Array, size: int, like: Array) -> Array:
    """`uniform` by array operations."""
    xp = array_namespace(like)
    index = xp.arange(size, dtype=xp.int64, device=device(like))
    key = _mix(_mix(step & _WORD) ^ (seed & _WORD))
    word = _mix((key + index * 0x9E3779B9) & _WORD)
    return xp.astype(word >> 8, like.dtype) / 2.0**24

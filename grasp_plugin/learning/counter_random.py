"""Random numbers that are a hash of (seed, step, index): the same on NumPy and torch, in a resumed
run, and whatever order they are drawn in.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

Array = Any  # a NumPy array or torch tensor

_WORD = 0xFFFFFFFF


def _mix(x: Array) -> Array:
    """A bijection of 32-bit words held in int64 that leaves no visible pattern."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = x ^ (x >> shift)
        high = ((x >> 16) * factor & 0xFFFF) << 16
        x = ((x & 0xFFFF) * factor + high) & _WORD
    return x ^ (x >> 16)


def uniform(seed: int, step: Array, size: int, like: Array) -> Array:
    """Multiples of 2^-24 in [0, 1) (size,), in like's dtype, the same in float32 and float64;
    `step` is a counter (1,)."""
    xp = array_namespace(like)
    index = xp.arange(size, dtype=xp.int64, device=device(like))
    key = _mix(_mix(step & _WORD) ^ (seed & _WORD))
    word = _mix((key + index * 0x9E3779B9) & _WORD)
    return xp.astype(word >> 8, like.dtype) / 2**24

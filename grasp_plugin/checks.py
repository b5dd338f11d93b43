"""Is it such a number? For those who refuse what is not, in their own words."""

from __future__ import annotations

import math
from numbers import Integral, Real


def is_whole(value: object, least: int) -> bool:
    """Whether it is an integer (of Python or NumPy; no bool) from `least` on."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_real(value: object, least: float) -> bool:
    """Whether it is a finite real number (of Python or NumPy) from `least` on."""
    return isinstance(value, Real) and least <= float(value) < math.inf

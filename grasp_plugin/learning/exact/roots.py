"""All roots of a sum of exponentials, by a cascade of derivatives: no grid, none missed.

Multiplied by e^{r_k u} and differentiated, a sum has one term fewer. The roots of the derivative,
found the same way, cut the interval into pieces on which the sum times e^{r_k u} is monotone, one
root at most in each (Rolle's theorem).
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.exact.flow import jit


@jit
def _level(cs, ss, rs, row, u):
    """(f, f') of f(u) = sum (c + s u) e^{-r u}, the row's terms."""
    f = df = 0.0
    for k in range(cs.shape[1]):
        c, s, r = cs[row, k], ss[row, k], rs[row, k]
        if c != 0.0 or s != 0.0:
            e = math.exp(-r * u)
            f += (c + s * u) * e
            df += (s - r * (c + s * u)) * e
    return f, df


@jit
def _between(cs, ss, rs, row, lo, hi, rises):
    """The root of f between lo and hi, where it changes sign: Newton's method with bisection."""
    u, width = 0.5 * (lo + hi), hi - lo
    for _ in range(200):
        f, df = _level(cs, ss, rs, row, u)
        if (f > 0.0) == rises:
            hi = u
        else:
            lo = u
        new = u - f / df if df != 0.0 else lo
        if not lo < new < hi or abs(2.0 * (new - u)) > width:
            new = 0.5 * (lo + hi)
        width = abs(new - u)
        u = new
        if width <= 1e-16 * u or hi - lo <= 2e-16 * hi:
            break
    return u


@jit
def _ladder(cs, ss, rs):
    """Fill the rows below the first, each the derivative of e^{r_k u} times the row above.

    r_k is the least rate of the row; the row is left multiplied by e^{r_k u}. Returns the rows.
    """
    row, n = 0, cs.shape[1]
    while True:
        live, least, flat = 0, math.inf, True
        for k in range(n):
            if cs[row, k] != 0.0 or ss[row, k] != 0.0:
                live += 1
                least = min(least, rs[row, k])
                flat = flat and ss[row, k] == 0.0
        if live <= 1 and flat:
            return row
        for k in range(n):
            rs[row, k] -= least
            rate = rs[row, k]
            cs[row + 1, k] = ss[row, k] - rate * cs[row, k]
            ss[row + 1, k] = -rate * ss[row, k]
            rs[row + 1, k] = rate
        row += 1


@jit
def expsum_roots(cs, ss, rs, d, roots):
    """Fill roots with those in (0, d] of sum_k (c_k + s_k u) e^{-r_k u}; returns their number.

    Args:
        cs, ss, rs: (2 n + 1, n), the terms in the first row, scratch below; roots: (2 n + 1,).
    """
    count = 0
    for row in range(_ladder(cs, ss, rs) - 1, -1, -1):
        lo, found = 0.0, 0
        last = _level(cs, ss, rs, row, lo)[0] > 0.0
        for k in range(count + 1):
            hi = roots[k] if k < count else d
            above = _level(cs, ss, rs, row, hi)[0] > 0.0
            if above != last:
                u = _between(cs, ss, rs, row, lo, hi, above)
                if u > 0.0:
                    roots[found] = u  # found <= k: what it overwrites has been read
                    found += 1
            lo, last = hi, above
        count = found
    return count


def roots_expsum(c: ArrayLike, r: ArrayLike, d: float, *, slope: ArrayLike = 0.0) -> list[float]:
    """All roots in (0, d] of g(u) = sum_k (c_k + s_k u) e^{-r_k u}, ascending; s_k = `slope`.

    A root is a change of sign, with g = 0 taken as negative: a maximum that touches 0 is none.

    Args:
        c, r: (n,), [1] and [1/ms]; d [ms].

    Raises:
        Invalid: c and r are not of one length, a value is not finite, or d < 0.
    """
    cs, rs = np.asarray(c, float), np.asarray(r, float)
    ss = np.zeros_like(cs) + np.asarray(slope, float)
    if cs.ndim != 1 or cs.shape != rs.shape or ss.shape != cs.shape:
        raise Invalid(
            "roots_expsum",
            f"expected c, r and slope of one length, got {cs.shape}, {rs.shape}, {ss.shape}",
            "Pass one coefficient and one rate for each term",
        )
    if not (np.isfinite(cs).all() and np.isfinite(rs).all() and np.isfinite(ss).all() and d >= 0):
        raise Invalid("roots_expsum", f"expected finite terms and d >= 0, got d = {d}", "Mend it")
    rows = np.zeros((3, 2 * cs.size + 1, cs.size))
    rows[:, 0] = cs, ss, rs
    roots = np.zeros(2 * cs.size + 1)
    count = expsum_roots(rows[0], rows[1], rows[2], float(d), roots)
    return [float(u) for u in roots[:count]]

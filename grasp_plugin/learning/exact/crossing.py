"""When a membrane next crosses its threshold: exact, with no grid and no missed spike.

Between events g(u) = V(u) - theta - a(u), u in (0, D], and the spike is the first u at which g
rises through 0. Tangency is no spike. With x = V - b and vth = theta - b:

* a = 0 and vth > 0: V has one maximum at most. The peak test rejects most intervals; what is left
  has a closed form at tau_m = 2 tau_s (a quadratic) and at tau_m = tau_s (Lambert W0), and else
  Newton's method from u = 0, which cannot overshoot: V is concave up to its peak. At whole ratios
  it runs on a polynomial in e^{-u/tau_m}.
* a != 0, or a bias at or above the threshold: V may be crossed while it falls. The derivative
  cascade of `roots` finds all roots of a sum of exponentials.

Sources: Goeltz et al., Nature Machine Intelligence 2021, for the closed forms; Wunderlich & Pehle,
Scientific Reports 2021, for the model.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import math

import numpy as np

from grasp_plugin.learning.exact.flow import decays, jit
from grasp_plugin.learning.exact.roots import expsum_roots

NEWTON_STEPS = 60  # near tangency the rate falls to linear
RATIO_MOST = 16  # tau_m / tau_s up to which powers are multiplied out
NEAR_EQUAL = 1e-8  # |tau_m - tau_s| / tau_m below which the cascade takes u e^{-u/tau}


@jit
def peak_time(x, i, tau_m, tau_s):
    """u > 0 [ms] of the maximum of x(u), given that x rises at 0 (i > x); inf if it has none."""
    if i <= 0.0:
        return math.inf
    if tau_m == tau_s:
        return tau_m * (1.0 - x / i)
    y = (x / i - 1.0) * (tau_m - tau_s) / tau_m
    if y <= -1.0:
        return math.inf
    return -math.log1p(y) * tau_m * tau_s / (tau_m - tau_s)


@jit
def lambert_w0(z):
    """The principal branch of W e^W = z for -1/e <= z < 0, by Halley's method."""
    p = math.sqrt(max(2.0 * (math.e * z + 1.0), 0.0))
    w = -1.0 + p * (1.0 - p / 3.0 + 11.0 / 72.0 * p * p) if z < -0.1 else z * (1.0 - z)
    for _ in range(20):
        e = math.exp(w)
        f = w * e - z
        slope = e * (w + 1.0) - (w + 2.0) * f / (2.0 * w + 2.0) if w > -1.0 else 0.0
        if slope == 0.0:
            return w
        step = f / slope
        w -= step
        if abs(step) <= 1e-16 * abs(w):
            break
    return max(w, -1.0)


@jit
def _newton(u, x, i, vth, u_max, tau_m, tau_s):
    """Newton's method from u to the left of the root; u_max where the slope vanishes first."""
    for _ in range(NEWTON_STEPS):
        em, es, ka = decays(u, tau_m, tau_s)
        v = x * em + i * ka
        slope = (i * es - v) / tau_m
        if slope <= 0.0:
            return u_max
        step = (vth - v) / slope
        u += step
        if abs(step) <= 4e-16 * u or (step < 0.0 and abs(step) < 1e-9 * u):
            break
    return min(max(u, 0.0), u_max)


@jit
def whole_ratio(tau_m, tau_s):
    """tau_m / tau_s if that is a whole number of 2..RATIO_MOST, else 0."""
    ratio = tau_m / tau_s
    n = int(ratio) if ratio <= RATIO_MOST else 0
    return n if n >= 2 and n == ratio else 0


@jit
def _power(y, n):
    out = y
    for _ in range(n - 1):
        out *= y
    return out


@jit
def _polynomial_root(x, i, vth, n, tau_m):
    """About the first u with x(u) = vth at tau_m = n tau_s, by Newton's method without exps.

    In y = e^{-u/tau_m}, x(u) = A y - B y^n with B = i / (n - 1), A = x + B: concave, so that the
    iterates fall from y = 1 to the root and do not pass it.
    """
    b = i / (n - 1)
    a, y = x + b, 1.0
    for _ in range(NEWTON_STEPS):
        below = _power(y, n - 1)
        slope = a - n * b * below
        if slope >= 0.0:
            break
        step = (vth - (a - b * below) * y) / slope
        y += step
        if step >= -1e-9 * y:
            break
    return -tau_m * math.log(y) if 0.0 < y < 1.0 else 0.0


@jit
def _rising_root(x, i, vth, u_max, tau_m, tau_s):
    """The first u in (0, u_max] with x(u) = vth, which exists."""
    n = whole_ratio(tau_m, tau_s)
    if n == 2:
        a = x + i
        u = tau_m * math.log(2.0 * i / (a + math.sqrt(max(a * a - 4.0 * i * vth, 0.0))))
    elif tau_m == tau_s:
        w = lambert_w0(max(-(vth / i) * math.exp(-x / i), -1.0 / math.e))
        u = tau_m * (-x / i - w)
    else:
        near = min(_polynomial_root(x, i, vth, n, tau_m), u_max) if n else 0.0
        return _newton(near, x, i, vth, u_max, tau_m, tau_s)
    return min(max(u, 0.0), u_max)


@jit
def _peak_reaches(x, i, vth, d, tau_m, tau_s):
    """Whether the maximum of x(u), which lies in (0, d], is above vth."""
    n = whole_ratio(tau_m, tau_s)
    if n:  # x_peak = i y^{n / (n - 1)}
        y = (1.0 + (n - 1) * x / i) / n
        return _power(y, n) * _power(i, n - 1) > _power(vth, n - 1)
    em, _, ka = decays(min(peak_time(x, i, tau_m, tau_s), d), tau_m, tau_s)
    return x * em + i * ka > vth


@jit
def first_crossing(x, i, vth, d, x_end, i_end, tau_m, tau_s):
    """The first u in [0, d] at which x rises through vth > 0; -1 if there is none.

    Args:
        x, i: V - b and I at the start; x_end, i_end: at d, which the caller has anyway.
    """
    if x >= vth:
        return 0.0 if i > x else -1.0  # left here by rounding
    if not x_end > vth:
        if i <= x or i_end > x_end or i <= vth:  # falls, or rises still, or x_peak = I(u*) < i
            return -1.0
        if not _peak_reaches(x, i, vth, d, tau_m, tau_s):
            return -1.0
    u_max = d if i_end >= x_end else min(peak_time(x, i, tau_m, tau_s), d)
    return _rising_root(x, i, vth, u_max, tau_m, tau_s)


@jit
def first_crossing_adaptive(x, i, a, vth, d, tau_m, tau_s, tau_a):
    """The first u in [0, d] at which x(u) - a(u) rises through vth; -1 if there is none.

    For any signs of a and vth. The root of the cascade is polished on the stable form of g.
    """
    gap = x - a - vth
    if gap >= 0.0:
        return 0.0 if (i - x) / tau_m + a / tau_a > 0.0 else -1.0
    c, s, r, roots = np.zeros((9, 4)), np.zeros((9, 4)), np.zeros((9, 4)), np.zeros(9)
    r[0, 0], r[0, 1], r[0, 2] = 1.0 / tau_m, 1.0 / tau_s, 1.0 / tau_a
    if abs(tau_m - tau_s) <= NEAR_EQUAL * tau_m:
        c[0, 0], s[0, 0] = x, i / tau_m
    else:
        c[0, 1] = -i * tau_s / (tau_m - tau_s)
        c[0, 0] = x - c[0, 1]
    c[0, 2], c[0, 3] = -a, -vth
    if expsum_roots(c, s, r, d, roots) == 0:
        return -1.0
    u = roots[0]
    for _ in range(2):
        em, es, ka = decays(u, tau_m, tau_s)
        fall = a * math.exp(-u / tau_a)
        v = x * em + i * ka
        slope = (i * es - v) / tau_m + fall / tau_a
        new = u - (v - fall - vth) / slope if slope > 0.0 else u
        if 0.0 < new <= d and abs(new - u) < 1e-3 * u:
            u = new
    return u


@jit
def next_spike(x, i, a, vth, d, x_end, i_end, a_end, tau_m, tau_s, tau_a):
    """The first spike in [0, d] of the general model, -1 if none; rejects before it solves.

    Returns (u, solved): solved is 1 where a root was sought.
    """
    if a == 0.0 and vth > 0.0:
        u = first_crossing(x, i, vth, d, x_end, i_end, tau_m, tau_s)
        return u, 1 if u >= 0.0 else 0
    top = max(x, x_end)
    if i > x and i_end <= x_end:
        u = peak_time(x, i, tau_m, tau_s)
        top = max(top, i * math.exp(-min(u, d) / tau_s))
    if top < vth + min(a, a_end):
        return -1.0, 0
    return first_crossing_adaptive(x, i, a, vth, d, tau_m, tau_s, tau_a), 1


def critical_weight(tau_mem_ms: float, tau_syn_ms: float) -> float:
    """The least single input that makes a neuron at rest spike, in units of its threshold.

    w_c = ((tau_m - tau_s) / tau_s) rho^{rho / (rho - 1)} / (rho - 1),  rho = tau_m / tau_s; e at 1
    """
    u = float(peak_time(0.0, 1.0, tau_mem_ms, tau_syn_ms))
    return 1.0 / float(decays(u, tau_mem_ms, tau_syn_ms)[2])

"""The flow of a CuBa-LIF neuron between events, in closed form, and its adjoint's integrals.

    tau_m V' = -V + I + b        tau_s I' = -I        tau_a a' = -a

With x = V - b, over u >= 0:

    x(u) = x e^{-u/tau_m} + I kappa(u)      I(u) = I e^{-u/tau_s}      a(u) = a e^{-u/tau_a}
    kappa(u) = tau_s / (tau_m - tau_s) (e^{-u/tau_m} - e^{-u/tau_s}),  (u/tau) e^{-u/tau} if equal

Times and time constants in ms, V, I, a in units of the threshold. Everything is written with
r = 1/tau_s - 1/tau_m so that tau_m -> tau_s is no special case, and no e^{+u/tau} is formed.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import math

import numba

jit = numba.njit(cache=True, nogil=True, error_model="numpy")

SERIES_BELOW = 0.1  # |z| below which phi2 is summed: there (z + expm1(-z)) / z^2 cancels


@jit
def decays(u, tau_m, tau_s):
    """(e^{-u/tau_m}, e^{-u/tau_s}, kappa(u)) for u >= 0 [ms]."""
    em = math.exp(-u / tau_m)
    es = math.exp(-u / tau_s)
    if tau_m == tau_s:
        return em, es, u / tau_m * em
    scale = tau_s / (tau_m - tau_s)
    z = u * (tau_m - tau_s) / (tau_m * tau_s)
    if abs(z) < 0.5:
        return em, es, -em * math.expm1(-z) * scale
    return em, es, (em - es) * scale


@jit
def _phi2(z):
    """(z - 1 + e^{-z}) / z^2 for |z| <= SERIES_BELOW: 1/2 - z/6 + z^2/24 - ..."""
    term, total = 0.5, 0.5
    for n in range(3, 13):
        term *= -z / n
        total += term
    return total


@jit
def second_order(u, tau_m, tau_s, em, es):
    """(K_m, K_s) [ms], the double responses that the time constants' gradients need:

        K_m = int_0^u e^{-(u-s)/tau_m} kappa(s) ds      K_s = int_0^u e^{-(u-s)/tau_s} kappa(s) ds

    Args:
        em, es: e^{-u/tau_m}, e^{-u/tau_s}.
    """
    r = (tau_m - tau_s) / (tau_m * tau_s)
    z = u * r
    if abs(z) <= SERIES_BELOW:
        square = u * u / tau_m
        return em * square * _phi2(z), es * square * _phi2(-z)
    scale = 1.0 / (tau_m * r * r)
    return scale * (em * z - em + es), scale * (em - es - es * z)


@jit
def voltage_integral(u, x, i, b, tau_m, tau_s, em, es, ka):
    """int_0^u V ds [threshold units ms] from V = x + b, I = i."""
    return b * u + x * tau_m * (1 - em) + i * (tau_s * (1 - es) - tau_m * ka)


@jit
def tau_integrals(u, x, i, pv, pi, c, tau_m, tau_s, em, es, ka):
    """(dL/dtau_m, dL/dtau_s) of one interval.

        dL/dtau_m = int p_V (V - I - b) / tau_m^2 dt        dL/dtau_s = int p_I I / tau_s^2 dt

    Args:
        u: length of the interval [ms]; x, i: V - b and I at its start.
        pv, pi: dL/dV and dL/dI at its end; c: running cost of int c V dt.
    """
    km, ks = second_order(u, tau_m, tau_s, em, es)
    qv, qi = pv - c * tau_m, pi - c * tau_s
    moved = x * em + i * ka - x
    d_m = -c * tau_m * tau_m * moved + qv * (x * u * em + i * km - i * tau_m * ka)
    d_s = i * (c * tau_s * tau_s * (1 - es) + qi * u * es + qv * ks)
    return d_m / (tau_m * tau_m), d_s / (tau_s * tau_s)


@jit
def adjoint_flow(pv, pi, c, tau_m, tau_s, em, es, ka):
    """(p_V, p_I) at the start of an interval from those at its end, running cost c."""
    qv, qi = pv - c * tau_m, pi - c * tau_s
    return c * tau_m + qv * em, c * tau_s + qi * es + qv * ka

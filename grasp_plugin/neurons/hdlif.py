"""The hybrid-driven LIF step (EM-PF, HM-DF, HD-LIF), for NumPy and torch arrays alike.

One step, elementwise, all arrays (..., neuron); membrane, threshold and spike share one unit:

    m  = lambda_t v + g I + c                charge                  parallel: m = g I + c
    s* = max(m - theta_t, 0)                 graded spike: the excess over the threshold
    v  = m - s* = min(m, theta_t)            reset: pinned at theta where it fired
    out = s*  or  Q(s*)                      Q(s) = q clip(round(s / q), 0, top),  q = 1/4, top = 15

Below theta it is a leaky integrator that sends nothing; above, it sends what exceeds theta. s* is
continuous and piecewise linear, so that its derivative needs no surrogate:

    ds*/dm = chi,   dm[t+1]/dm[t] = lambda_{t+1} (1 - chi),   chi = 1 where m > theta, else 0

g and c are a folded normalisation of the membrane (Mem-BN), 1 and 0 without it.

In integers, with tz(x) = truncation of x / 4096 toward zero, as Lava's fixed-point LIF:

    m    = sat(tz(v (4096 - dv)) + (a << act_shift) + bias)         +-(2^23 - 1)
    s    = max(m - vth, 0)                                          v = min(m, vth)
    code = min((s q_mult + 2^(q_shift - 1)) >> q_shift, top)        half a code rounds up

References:
    specs/hmdf.md 2, 3, 11. arXiv:2410.07547 v3, its released `modules.py`; v1 (EM-PF) is a
    reconstruction from its abstract and reviews.
Departures:
    The derivative at the tie m = theta is 0, as torch's ReLU has it; the paper's chi is 1 there.
    Q rounds half a code to even in floats (torch.round) and up in integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from grasp_plugin.neurons.lif_fixed import DECAY_ONE, UV_MAX, Ints

Array = Any  # a NumPy array or torch tensor
State = dict[str, Array]
CODE_STEP, TOP_CODE = 0.25, 15


def init(a: Array) -> State:
    """The state before step 0, shaped like the input `a`."""
    return {"v": a * 0}


def fire(m: Array, theta: Array) -> tuple[Array, Array]:
    """(s*, v) of a charged membrane m (..., neuron); theta a number or an array of m's kind."""
    xp = array_namespace(m)
    theta = theta + m * 0
    fired = m > theta
    return xp.where(fired, m - theta, xp.zeros_like(m)), xp.where(fired, theta, m)


def step(
    a: Array,
    state: State,
    *,
    decay: Array,
    theta: Array,
    gain: Array = 1.0,
    offset: Array = 0.0,
    parallel: bool = False,
) -> tuple[Array, State, Array]:
    """One step of the module's equations, the spike not quantised.

    Args:
        symbol   argument  unit  shape
        I        a         -     (..., neuron)
        v        state     -     {"v": (..., neuron)}
        lambda   decay     -     () or (neuron,)
        theta    theta     -     () or (neuron,)
        g        gain      -     () or (neuron,)
        c        offset    -     () or (neuron,)
                 parallel  -     bool: without memory; v stays as it is

    Returns:
        (s*, state, m - theta), the last positive where it fired.
    """
    m = gain * a + offset
    if not parallel:
        m = decay * state["v"] + m
    s, v = fire(m, theta)
    return s, {"v": state["v"] if parallel else v}, m - theta


def codes(s: Array, q: float = CODE_STEP, top: int = TOP_CODE) -> Array:
    """clip(round(s / q), 0, top): whole numbers in s's dtype, half to even."""
    xp = array_namespace(s)
    return xp.clip(xp.round(s / q), 0, top)


def quantised(s: Array, q: float = CODE_STEP, top: int = TOP_CODE) -> Array:
    """Q(s): `codes` in units of s."""
    return codes(s, q, top) * q


def fold_mem_bn(
    alpha: Array, beta: Array, *, scale: Array, shift: Array, mean: Array, var: Array, eps: float
) -> tuple[Array, Array]:
    """alpha m + beta BN(m) as g m + c, for inference.

    g = alpha + beta gamma / sqrt(var + eps)       c = beta (b - gamma mu / sqrt(var + eps))

    With m = lambda v + I the neuron runs on lambda g, g and c.

    Args:
        symbol            argument     unit  shape
        alpha, beta       alpha, beta  -     ()
        gamma, b          scale, shift -     (neuron,)
        mu, var           mean, var    -     (neuron,), running statistics

    References:
        specs/hmdf.md 3 (there with Bc = -c).
    """
    steep = scale / (var + eps) ** 0.5
    return alpha + beta * steep, beta * (shift - steep * mean)


def step_fixed(
    a: Ints,
    state: dict[str, Ints],
    *,
    dv: Ints | int,
    vth: Ints,
    bias: Ints,
    act_shift: Ints | int,
    q_mult: Ints,
    q_shift: Ints,
    top: int = TOP_CODE,
    parallel: bool = False,
) -> tuple[Ints, dict[str, Ints], Ints]:
    """One integer step of the module's equations; int64 inside.

    Args:
        symbol     argument  unit               shape
        a          a         LSB of the input   (..., neuron)
        v          state     LSB                {"v": (..., neuron)}, 24 bit
        dv         dv        4096 (1 - lambda)  () or (neuron,)
        vth, bias  as named  LSB                (neuron,)
        q_mult     as named  -                  (neuron,), q_shift and act_shift likewise

    Returns:
        (code, state, m - vth).
    """
    m = (a.astype(np.int64) << act_shift) + bias
    if not parallel:
        product = state["v"].astype(np.int64) * (DECAY_ONE - dv)
        m = m + np.sign(product) * (np.abs(product) >> 12)
    m = np.clip(m, 1 - UV_MAX, UV_MAX - 1)
    margin = m - vth
    s = np.maximum(margin, 0)
    half = np.int64(1) << (np.asarray(q_shift, np.int64) - 1)
    code = np.minimum((s * q_mult + half) >> q_shift, top)
    return code, {"v": state["v"] if parallel else np.minimum(m, vth)}, margin

"""The same step in Loihi's integers, bit for bit as Lava's fixed-point LIF where Lava has it.

With tz(x) = truncation of x / 4096 toward zero, all arrays integer:

    u <- wrap(tz(u (4096 - (du + 1))) + (a << 6))            24-bit wrap with sign flip
    m  = sat(tz(v (4096 - dv)) + u + (drive << drive_exp) [- s_old (v_th << 6)])    +-(2^23 - 1)
    s  = 1 if m > (v_th << 6) [doubled by snntorch-nodelay], and the resets of `neurons.lif`

du and dv are the 12-bit registers; du carries Lava's hidden +1. For a population without synaptic
memory du = 4095. Adaptive populations (theta is given), A and theta in the membrane's LSBs:

    A <- min(tz(A (4096 - drho)) + s_old theta, 2^23 - 1)
    s  = 1 if m > (v_th << 6) [doubled by snntorch-nodelay] + A and wait_old = 0
    wait = n_ref where s = 1, else max(wait_old - 1, 0)

Sources: Lava 0.10, lava/proc/lif (value reset); the other resets follow `neurons.lif` with the
subtraction before saturation (`subtract-delayed`) or after it (at the spike). Lava has no adaptive
threshold with these resets; A is `neurons.lif` in the arithmetic of v.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from grasp_plugin.errors import Invalid, Refused

Ints = npt.NDArray[Any]
UV_MAX = 2**23
DECAY_ONE = 4096
SHIFT = 6


def _decayed(x: Ints, decay: Ints | int) -> Ints:
    product = x.astype(np.int64) * (DECAY_ONE - decay)
    return np.asarray(np.sign(product) * (np.abs(product) >> 12))


def wrap(u: Ints) -> Ints:
    """24-bit wrap as Lava does it: once, with a sign flip."""
    over = np.where(u > UV_MAX, u - 2 * UV_MAX, u)
    return np.where(u <= -UV_MAX, u + 2 * UV_MAX, over)


def integrate_fixed(
    a: Ints, u: Ints, v: Ints, *, du: Ints, dv: Ints, drive: Ints
) -> tuple[Ints, Ints]:
    """(u, m) after one step, m before any reset and before saturation."""
    u = wrap(_decayed(u, du + 1) + (a.astype(np.int64) << SHIFT))
    return u, _decayed(v, dv) + u + drive


def step_fixed(
    a: Ints,
    state: dict[str, Ints],
    *,
    du: Ints,
    dv: Ints,
    v_th: Ints,
    drive: Ints,
    reset: str | None,
    **adaptation: Any,
) -> tuple[Ints, dict[str, Ints]]:
    """(output, state) of `margin_step_fixed`."""
    return margin_step_fixed(
        a, state, du=du, dv=dv, v_th=v_th, drive=drive, reset=reset, **adaptation
    )[:2]


def margin_step_fixed(
    a: Ints,
    state: dict[str, Ints],
    *,
    du: Ints,
    dv: Ints,
    v_th: Ints,
    drive: Ints,
    reset: str | None,
    drho: Ints | int = 0,
    theta: Ints | int | None = None,
    n_ref: Ints | int = 0,
) -> tuple[Ints, dict[str, Ints], Ints]:
    """One integer step; shapes (..., neuron), `drive` already shifted by its exponent.

    Args: as `lif.step`, with drho the register of rho; theta None: not adaptive.

    Returns:
        (output, state, margin) as `lif.step`, the margin in the membrane's LSBs.

    Raises:
        Invalid: an unknown reset.
    """
    v, s_old = state["v"], state["s"]
    u, m = integrate_fixed(a, state["u"], v, du=du, dv=dv, drive=drive)
    thr = v_th.astype(np.int64) << SHIFT
    if reset == "subtract-delayed":
        m = m - s_old * thr
    m = np.clip(m, 1 - UV_MAX, UV_MAX - 1)
    if reset is None:
        return m, {"u": u, "v": m, "s": s_old}, np.ones_like(m)
    threshold = thr
    if reset == "refractory1":
        m = np.where(s_old > 0, 0, m)
    elif reset == "snntorch-nodelay":
        threshold = thr * (1 + (v > thr))
    elif reset not in ("value", "subtract-delayed", "subtract-immediate", "none"):
        raise Invalid("reset", f"expected a known reset, got {reset!r}", "See hints.RESETS")
    more: dict[str, Ints] = {}
    if theta is not None:
        more["adapt"] = np.minimum(_decayed(state["adapt"], drho) + s_old * theta, UV_MAX - 1)
        threshold = threshold + more["adapt"]
    margin = m - threshold
    s = (margin > 0).astype(np.int64)
    if theta is not None:
        s = np.where(state["wait"] > 0, 0, s)
        more["wait"] = np.where(s > 0, n_ref, np.maximum(state["wait"] - 1, 0))
    return s, {"u": u, "v": _after_spike(m, s, thr, reset), "s": s, **more}, margin


def _after_spike(m: Ints, s: Ints, thr: Ints, reset: str) -> Ints:
    if reset in ("value", "refractory1"):
        return np.where(s > 0, 0, m)
    return m - s * thr if reset in ("subtract-immediate", "snntorch-nodelay") else m


REGISTERS = {
    "du": (0, 4095, "12-bit decay"),
    "dv": (0, 4095, "12-bit decay"),
    "v_th": (0, 131071, "17-bit threshold mantissa"),
    "drive": (-4096, 4095, "13-bit bias mantissa"),
    "drive_exp": (0, 7, "3-bit bias exponent"),
    "rho": (0, 4095, "12-bit decay"),
    "theta": (0, UV_MAX - 1, "23-bit rise of the threshold"),
    "n_ref": (0, 63, "6-bit count of steps"),
}


def check_registers(name: str, **values: Any) -> None:
    """Refuse what does not fit a Loihi register (Lava itself checks nothing, and floats hang it).

    Args:
        name: the population or Process, for the message.
        values: du, dv, v_th, drive, drive_exp, rho (as the register drho), theta, n_ref.

    Raises:
        Refused: a float where an integer is expected, or a value out of range.
    """
    for field, value in values.items():
        least, most, what = REGISTERS[field]
        array = np.asarray(value)
        if array.dtype.kind not in "iu":
            raise Refused(
                name,
                f"expected integers in {field} ({what}), got {array.dtype}",
                "Use quantise(network), which rounds and reports",
            )
        if array.size and (array.min() < least or array.max() > most):
            raise Refused(
                name,
                f"expected {field} in {least}..{most} ({what}), got {array.min()}..{array.max()}",
                "Run in float" if field == "n_ref" else "Choose a smaller scale",
            )

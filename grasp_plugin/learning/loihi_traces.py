"""How Loihi's traces x1, x2 and the synaptic tag t hold each of our traces, and which not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from grasp_plugin.errors import Refused
from grasp_plugin.learning.rule import Trace
from grasp_plugin.learning.traces import (
    AdaptiveThreshold,
    Average,
    CurrentExponential,
    DoubleExponential,
    Exponential,
    Instant,
    SynapticExponential,
)

Term = tuple[float, str]  # coefficient, product; "e" stands for the y that carries the error
FIXED_IMPULSE = 16.0  # traces of 7 bits: room for 8 spikes at once, steps of 1/16
SUBTRACT: tuple[Term, ...] = ((1.0, "u0*x1*e"), (-1.0, "u0*x2*e"))


@dataclass(frozen=True)
class Draft:
    """A trace's products, before literals are rounded to Loihi's and y ports are given out.

    dw = -eta gain sum_i weight_i,   dt = sum_i tag_i;   `constants`: x1_tau and the like.
    """

    gain: float
    weight: tuple[Term, ...]
    constants: dict[str, Any]
    tag: tuple[Term, ...] = ()
    delay: int = 1


def draft(node: str, trace: Trace, delay: int | None, fixed: bool, split: bool) -> Draft:
    """The products of a trace; arguments as in `loihi_form`, `split`: target "loihi".

    Raises:
        Refused: the engine cannot hold this trace, or no form of it is written; says which.
    """
    impulse = FIXED_IMPULSE if fixed else 1.0
    pair = isinstance(trace, DoubleExponential)
    if delay not in ((None, 0, 1) if pair else (None, 1)):
        raise Refused(
            node, f"expected delay {'0 or 1' if pair else 1} for {name_of(trace)}, got {delay!r}: "
            "Dense puts the neuron one step behind its input", "Leave delay out",
        )  # fmt: skip
    if isinstance(trace, DoubleExponential):
        return _late_pair(node, trace, fixed) if delay else _pair(node, trace, impulse)
    if isinstance(trace, CurrentExponential):
        slow, fast = _two(node, trace, "decay", "current")
        return Draft(1 / ((slow - fast) * impulse), SUBTRACT, _pair_of(slow, fast, impulse))
    if isinstance(trace, (Exponential, Average)):
        k = _one(node, trace, "decay")
        gain = (1 - k if isinstance(trace, Average) else 1.0) / (k * impulse)
        return Draft(gain, ((1.0, "u0*x1*e"), (-impulse, "x0*e")), _trace(1, k, impulse))
    if isinstance(trace, Instant):
        impulse = 32.0 if fixed else 1.0  # 2^5, which t*y1 loses
        return Draft(1 / impulse, ((1.0, "u0*t*e"),), {}, ((impulse, "x0"), (-1.0, "u0*t")))
    if fixed and isinstance(trace, (SynapticExponential, AdaptiveThreshold)):
        raise Refused(
            node, f"expected precision 'float' for {name_of(trace)}, got 'fixed': a y port would "
            "have to carry its decay, a fraction, as a whole number", "Pass precision='float'",
        )  # fmt: skip
    if isinstance(trace, SynapticExponential):
        return _synaptic(node, trace, "y1" if split else "y2")
    if isinstance(trace, AdaptiveThreshold):
        return _adaptive(node, trace, split)
    raise unknown(node, name_of(trace), "a trace of learning.traces")


def _gain(trace: DoubleExponential, slow: float, fast: float) -> float:
    """g g_q g_p; the two decays may be either way round."""
    beta, alpha = (fast, slow) if trace.alpha == slow else (slow, fast)
    q = 1 - beta if trace.gain_q is None else trace.gain_q
    return trace.gain * q * (1 - alpha if trace.gain_p is None else trace.gain_p)


def _pair(node: str, trace: DoubleExponential, impulse: float) -> Draft:
    """P[t] = g g_q g_p (x1 - x2) / (slow - fast): s of this step cancels."""
    slow, fast = _two(node, trace, "alpha", "beta")
    gain = _gain(trace, slow, fast) / ((slow - fast) * impulse)
    return Draft(gain, SUBTRACT, _pair_of(slow, fast, impulse), delay=0)


def _late_pair(node: str, trace: DoubleExponential, fixed: bool) -> Draft:
    """P[t-1] = g g_q g_p (x1 - x2 + x0) / (slow fast), with impulses that differ by 1."""
    slow, fast = _two(node, trace, "alpha", "beta")
    if fixed:
        raise Refused(
            node, "expected delay 0 in precision 'fixed', got 1: the impulses of x1 and x2 would "
            "be fractions", "Use a neuron that reads this step's q",
        )  # fmt: skip
    constants = {
        **_trace(1, slow, fast / (slow - fast)),
        **_trace(2, fast, slow / (slow - fast)),
    }
    gain = _gain(trace, slow, fast) / (slow * fast)
    return Draft(gain, (*SUBTRACT, (1.0, "x0*e")), constants)


def _synaptic(node: str, trace: SynapticExponential, gate: str) -> Draft:
    """The tag is the trace: what arrives, minus (1 - k_j (1 - z s_j)) of what is there."""
    if trace.refractory:
        raise Refused(
            node, "expected no refractory step, got SynapticExponential(refractory=True): its "
            "input is gated by the spike too, and no form with a further y is written",
            "Use a neuron without it",
        )  # fmt: skip
    arrives, constants = "x0", {}
    if trace.current is not None:
        arrives, constants = "u0*x1", _trace(1, _one(node, trace, "current"), 1.0)
    return Draft(1.0, ((1.0, "u0*t*e"),), constants, ((1.0, arrives), (-1.0, f"u0*t*{gate}")))


def _adaptive(node: str, trace: AdaptiveThreshold, split: bool) -> Draft:
    """t = k theta eps_a, so that no product but 1 - rho needs a coefficient."""
    k = _one(node, trace, "decay")
    weight = ((1.0, "u0*x1*e"), (-1.0, "x0*e"), (-1.0, "u0*t*e"))
    gate: str = "y2"
    leak: tuple[Term, ...] = ((-1.0, "u0*t*y3"),)
    if split:
        gate, leak = "y1", ((-1.0, "u0*t*y1"), *_literal_leak(node, trace))
    tag = ((1.0, f"u0*x1*{gate}"), (-1.0, f"x0*{gate}"), *leak)
    return Draft(1 / k, weight, _trace(1, k, 1.0), tag)


def _literal_leak(node: str, trace: AdaptiveThreshold) -> tuple[Term, ...]:
    """-(1 - rho) t, as up to three literals of 3 bits."""
    if trace.theta < 0:
        raise Refused(
            node, f"expected theta >= 0 for target 'loihi', got {trace.theta}: y1 = theta psi "
            "would be negative", "Pass target='lava'",
        )  # fmt: skip
    n = round((1 - trace.rho) * 128)
    if abs(n / 128 - (1 - trace.rho)) > 1e-12:
        near = 1 - min(max(n, 1), 127) / 128
        raise Refused(
            node, f"expected 1 - rho in steps of 2^-7 for target 'loihi', got {1 - trace.rho:.6g}: "
            "y1 to y3 are taken, so literals must hold it",
            f"Pass rho = {near} (tau_a = {-1 / math.log(near):.6g} steps) or target='lava'",
        )  # fmt: skip
    digits = [(n >> at & 7) * 2.0 ** (at - 7) for at in (0, 3, 6)]
    return tuple((-digit, "u0*t") for digit in digits if digit)


def _one(node: str, trace: Trace, name: str) -> float:
    """A decay as a Loihi trace can have it: one for all, and neither 0 nor 1."""
    decay = getattr(trace, name)
    if isinstance(decay, tuple):
        raise Refused(
            node, f"expected one {name} for {name_of(trace)}, got {len(decay)}: a LearningDense "
            "has one x1_tau and one x2_tau for all its synapses", "Make one LearningDense for each",
        )  # fmt: skip
    if not 0 < decay < 1:
        raise Refused(
            node, f"expected 0 < {name} < 1 for {name_of(trace)}, got {decay}: tau = -1 / "
            "ln(decay) steps, and Lava keeps no trace with tau 0 or infinite",
            "Use Instant for 0, and less than 1 for 1",
        )  # fmt: skip
    return float(decay)


def _two(node: str, trace: Trace, first: str, second: str) -> tuple[float, float]:
    """(the slower, the faster decay)."""
    fast, slow = sorted((_one(node, trace, first), _one(node, trace, second)))
    if fast == slow:
        raise Refused(
            node, f"expected {first} != {second}, got {slow} for both: x1 - x2 is then 0, and the "
            "response n k^n is no difference of two traces", "Pass two different decays",
        )  # fmt: skip
    return slow, fast


def _trace(n: int, decay: float, impulse: float) -> dict[str, Any]:
    return {f"x{n}_tau": -1 / math.log(decay), f"x{n}_impulse": impulse}


def _pair_of(slow: float, fast: float, impulse: float) -> dict[str, Any]:
    return {**_trace(1, slow, impulse), **_trace(2, fast, impulse)}


def name_of(what: object) -> str:
    return type(what).__name__


def unknown(node: str, got: str, expected: str) -> Refused:
    """The refusal of a kind of rule, trace or transform that is not known here."""
    return Refused(
        node, f"expected {expected}, got {got}: no Loihi form of it is written",
        "Train with another back end",
    )  # fmt: skip

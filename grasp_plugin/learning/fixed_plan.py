"""Three-factor rules on Loihi's widths, in integers: 8-bit weights, 7-bit traces, 8-bit errors.

    x1 <- min(127, SR(x1 d1 / 4096) + I1 s)                       unsigned; x2 likewise
    x   = x1 - x2  |  x1  |  I1 s                                 by the rule's trace
    y   = clip(SR(-y_scale d), -128, 127)                         d = dL/dmembrane, float
    w  <- clip(w + 2 SR(x y / 2^(shift + 1)), -256, 254)          mixed signs: even weights

SR rounds up with the probability of the fraction, by a number that is a hash of (seed, step,
index): one for every synapse, so that rounding errors are independent, as on the chip. The scale of
a rule is stated once: a weight unit is 2^e / S of float, hence

    y_scale / 2^shift = eta (S / 2^e) g               trace of the float rule = g x

and `shift` is the largest up to 10 (the engine's smallest product of a trace and an error, 2^-7
with three bits lost) for which `error_max` still fits in y. What is clipped is counted. The two
impulses of a current's trace are whole numbers, so that its first steps are off by up to half one.

With a `GRASP` only the synapses that it picks are written. It scores what the integers would write,
in the units of the float rule, so that prices and predicted decreases mean the same:

    d = -y / y_scale (N_o,)    p = g x (N_i,)    eta d p = (unit / 2^shift) (-y x)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.deltas import Array
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.losses import SmoothL1
from grasp_plugin.learning.rule import Plan, Rule, ThreeFactor, Transform
from grasp_plugin.learning.signals import Projection, RandomReadout
from grasp_plugin.learning.spec import Learning
from grasp_plugin.learning.traces import (
    Average,
    CurrentExponential,
    DoubleExponential,
    Exponential,
    Instant,
)
from grasp_plugin.learning.transforms import BurnIn, Late
from grasp_plugin.network import weights as W
from grasp_plugin.network.network import Network
from grasp_plugin.network.weights import Conv

TRACE_MAX, Y_MIN, Y_MAX, W_MIN, W_MAX = 127, -128, 127, -256, 254
MAX_SHIFT, DECAY_ONE = 10, 4096


@dataclass(frozen=True)
class FixedPlan:
    """A plan in integers; see the module's equations. From `fixed_plan`.

    Args:
        rule: the float rule whose error d is used.
        decays: (d1,) or (d1, d2), 12-bit; (): no memory.
        impulses: added by a spike, as many as decays, or one.
        y_scale, shift: see above.
        burn_in: steps without writes.
        late: by how many steps a write comes late (`Late`).
        seed: of the rounding.
        name: of the projection or bias, for messages.
        gain: g, the float trace of one unit of x.
        grasp: which synapses are written; None: all.
    """

    rule: ThreeFactor
    decays: tuple[int, ...]
    impulses: tuple[int, ...]
    y_scale: float
    shift: int
    burn_in: int = 0
    late: int = 0
    seed: int = 0
    name: str = "plastic synapses"
    gain: float = 1.0
    grasp: GRASP | None = None


def fixed_plan(
    name: str, plan: Rule, unit: float, *, error_max: float, rate_max: float = 0.5, seed: int = 0
) -> FixedPlan:
    """The plan of one projection (or bias) in integers.

    Args:
        name: for messages.
        plan: a `ThreeFactor`, or a `Plan` with `BurnIn`, one `GRASP` and `Late`, in that order.
        unit: float per weight unit, 2^e / S.
        error_max: the largest |d| that y must hold.
        rate_max: mean input a step up to which traces must not saturate.
        seed: of the rounding.

    Raises:
        Invalid: learning rate, error_max or rate_max not finite, error_max <= 0, rate_max < 0.
        Refused: a per-synapse trace, decays that differ, another transform or order of them, a
            learning rate that does not fit the engine.
    """
    transforms = plan.transforms if isinstance(plan, Plan) else ()
    rule = plan.rule if isinstance(plan, Plan) else plan
    grasp = _scheduler(name, transforms)
    if not isinstance(rule, ThreeFactor):
        raise Refused(
            name, f"expected a three-factor rule in fixed point, got {type(rule).__name__}",
            "Use DECOLLE, ETLP, OTTT or SLTT, or run in float",
        )  # fmt: skip
    if not (math.isfinite(rule.learning_rate) and 0 < error_max < math.inf and rate_max >= 0):
        raise Invalid(
            name, f"expected a finite learning rate, error_max > 0 and rate_max >= 0, got "
            f"{rule.learning_rate}, {error_max}, {rate_max}", "Pass finite numbers",
        )  # fmt: skip
    decays, impulses, gain = _traces(name, rule.trace, rate_max)
    wanted = rule.learning_rate / unit * gain  # weight units per (float error x trace unit)
    shift = MAX_SHIFT
    if wanted:
        most = Y_MAX / (abs(wanted) * error_max)
        shift = min(MAX_SHIFT, math.floor(math.log2(most))) if most else -1
    if shift < 0:
        raise Refused(
            name, f"expected a learning rate up to {Y_MAX * unit / abs(gain) / error_max:.3g} for "
            f"errors up to {error_max:.3g}, got {rule.learning_rate:.3g}",
            "Lower it, or pass error_max",
        )  # fmt: skip
    burn_in = max((t.steps for t in transforms if isinstance(t, BurnIn)), default=0)
    late = sum(t.steps for t in transforms if isinstance(t, Late))
    scale = wanted * 2.0**shift
    return FixedPlan(rule, decays, impulses, scale, shift, burn_in, late, seed, name, gain, grasp)


def _scheduler(name: str, transforms: tuple[Transform, ...]) -> GRASP | None:
    """The `GRASP` among transforms that integers can do."""
    for t in transforms:
        if not isinstance(t, (BurnIn, GRASP, Late)):
            raise Refused(
                name, f"expected BurnIn, GRASP or Late in fixed point, got {t}",
                "Leave it out, or use float",
            )  # fmt: skip
    found = [(at, t) for at, t in enumerate(transforms) if isinstance(t, GRASP)]
    if not found:
        return None
    at, grasp = found[0]
    early = any(isinstance(t, Late) for t in transforms[:at])
    if len(found) > 1 or early or any(isinstance(t, BurnIn) for t in transforms[at:]):
        names = ", ".join(type(t).__name__ for t in transforms)
        raise Refused(
            name, f"expected BurnIn, then one GRASP, then Late, got {names}",
            "Put them in that order, as `scheduled` does",
        )  # fmt: skip
    return grasp


def refuse_bent_sums(name: str, grasp: GRASP | None) -> None:
    """Refuse a scheduler that needs factors, over weights that many positions share.

    Raises:
        Refused: the score or the budget needs a curvature, or the score is "error".
    """
    if grasp is not None and (grasp.bends or grasp.score == "error"):
        raise Refused(
            name, f"expected a score of the sums over positions for a convolution in fixed point, "
            f"got score {grasp.score!r} with {grasp.budget}: a sum has no factors and no curvature",
            "Use score='magnitude' or 'random' and a budget without sharpness",
        )  # fmt: skip


def _traces(name: str, trace: Any, rate: float) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    """(12-bit decays, impulses, g) with trace = g x, x = x1 - x2."""
    if isinstance(trace, Instant):
        return (), (1,), 1.0
    kinds = (Exponential, Average, DoubleExponential, CurrentExponential)
    decays = [getattr(trace, f) for f in ("decay", "current", "alpha", "beta") if hasattr(trace, f)]
    if not isinstance(trace, kinds) or not all(isinstance(d, float) for d in decays):
        raise Refused(
            name, f"expected a rank-1 trace with one decay in fixed point, got {trace}",
            "Discretise with a subtractive reset and one time constant, or run in float",
        )  # fmt: skip
    slow = max(decays)
    most = 1 + rate / max(1 - slow, 1 / DECAY_ONE)  # the accumulated trace at that rate
    impulse = max(1, int(TRACE_MAX / most))
    registers = tuple(min(DECAY_ONE - 1, round(DECAY_ONE * d)) for d in decays)
    if isinstance(trace, Exponential):
        return registers, (impulse,), 1 / impulse
    if isinstance(trace, Average):
        return registers, (impulse,), (1 - trace.decay) / impulse  # type: ignore[operator]
    if decays[0] == decays[1]:
        raise Refused(
            name, f"expected two different decays, got {decays[0]:.6g} twice: the difference of "
            "two traces vanishes", "Change one time constant a little, or run in float",
        )  # fmt: skip
    if isinstance(trace, CurrentExponential):
        fast = min(decays)  # the trace is the same with k and b exchanged
        first = min(  # of the larger half, the one whose partner is nearest to a whole number
            range(impulse, max(1, impulse // 2) - 1, -1),
            key=lambda i: abs(i * fast / slow - round(i * fast / slow)),
        )
        both = (first, round(first * fast / slow))
        return tuple(sorted(registers, reverse=True)), both, slow / (slow - fast) / first
    alpha, beta = decays
    gain_q = 1 - beta if trace.gain_q is None else trace.gain_q
    gain_p = 1 - alpha if trace.gain_p is None else trace.gain_p
    return registers, (impulse, impulse), trace.gain * gain_q * gain_p / (alpha - beta) / impulse


def refuse_odd(name: str, weights: Array) -> None:
    """Refuse weights that a plastic synapse of mixed signs cannot hold.

    Raises:
        Refused: odd, or outside -256..254.
    """
    if np.any(weights % 2) or weights.min() < W_MIN or weights.max() > W_MAX:
        raise Refused(
            name, f"expected even weights in {W_MIN}..{W_MAX}, since learning may change their "
            f"sign, got {weights.min()}..{weights.max()}", "Call quantise(network, plastic=...)",
        )  # fmt: skip


def default_error_max(learning: Learning, network: Network, name: str, target: str) -> float:
    """The |d| that y holds without clipping, where the caller names none.

    DECOLLE  max_j sum_c |H_cj| max|dL/dy| sigma'(0) / (1 - dropout)
             SmoothL1: |dL/dy| <= 1/C, others taken as 1 (a bound for cross-entropy, not for MSE)
    ETLP     max_jc |Bf_jc| sigma'(0)                          output: sigma'(0), both bounds
    OTTT     sigma'(0), no bound: an error that many weights bring down can be larger
    """
    signal, plan = learning.signals[target], learning.plans[name]
    rule = plan.rule if isinstance(plan, Plan) else plan
    surrogate = getattr(rule, "surrogate", None)
    peak = 1.0 if surrogate is None else float(surrogate.first(np.zeros(1))[0])
    if isinstance(signal, RandomReadout):
        state = signal.init(network[target].size, np.zeros(1))
        g: Array = state.get("feedback", state["readout"])
        peak /= 1 - signal.dropout
        slope = 1 / signal.classes if isinstance(signal.loss, SmoothL1) else 1.0
        return peak * slope * float(np.abs(g).sum(axis=0).max())
    if isinstance(signal, Projection):
        return peak * float(
            np.abs(signal.init(network[target].size, np.zeros(1))["feedback"]).max()
        )
    return peak


def fixed_plans(
    network: Network,
    learning: Learning,
    *,
    error_max: float | Mapping[str, float] | None = None,
    rate_max: float = 0.5,
    seed: int = 0,
) -> dict[str, FixedPlan]:
    """Every plan of a `Learning` in integers, for a network from `quantise`.

    Args:
        error_max: the largest |dL/dmembrane|, one number or by plan; None: `default_error_max`.
        rate_max, seed: as `fixed_plan`; plan i rounds with seed + i.

    Raises:
        Invalid: as `fixed_plan`; an error_max for something that has no plan.
        Refused: as `fixed_plan`; weights that are odd; a bias that the positions of a convolution
            share; a score over a convolution that needs a curvature.
    """
    for name in error_max if isinstance(error_max, Mapping) else ():
        if name not in learning.plans:
            raise Invalid(
                name, f"expected error_max of a plan, one of {', '.join(learning.plans)}, got "
                f"{name!r}", "Check the name",
            )  # fmt: skip
    out: dict[str, FixedPlan] = {}
    synapses: dict[str, Any] = {k.name: k for k in network.projections}
    synapses |= {b.name: b for b in network.biases}
    for i, (name, plan) in enumerate(learning.plans.items()):
        k = synapses[name]
        is_bias = not hasattr(k, "weight")
        if is_bias and any(isinstance(j.weight, Conv) for j in network.into(k.target)):
            raise Refused(
                name, "expected a bias for each neuron in fixed point, got one that the positions "
                "of a convolution share", "Freeze it (frozen=[...]), or learn in float",
            )  # fmt: skip
        refuse_odd(name, k.value if is_bias else W.values(k.weight))
        most = error_max.get(name) if isinstance(error_max, Mapping) else error_max
        if most is None:
            most = default_error_max(learning, network, name, k.target)
        unit = 2.0**k.weight_exp / float(network[k.target].scale or 1.0)
        rate = 1.0 if is_bias else rate_max  # a bias's input is always on
        out[name] = fixed_plan(name, plan, unit, error_max=most, rate_max=rate, seed=seed + i)
        if not is_bias and isinstance(k.weight, Conv):
            refuse_bent_sums(name, out[name].grasp)
    return out

"""ETLP: event-based three-factor local plasticity, and e-prop on the same traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.deltas import Array, Delta, PerSynapse
from grasp_plugin.learning.rule import Factors, Plan, Rule, ThreeFactor
from grasp_plugin.learning.states import State, zeros
from grasp_plugin.learning.traces import (
    AdaptiveThreshold,
    Decay,
    Exponential,
    SynapticExponential,
    decay_of,
)
from grasp_plugin.learning.transforms import L1
from grasp_plugin.neurons.surrogate import Triangular


def etlp(
    learning_rate: float,
    *,
    tau_v_ms: float | Sequence[float] = 80.0,
    tau_a_ms: float = 10.0,
    theta: float = 5.0,
    thr: float = 1.0,
    dt_ms: float = 1.0,
    low_pass_ms: float | None = None,
    l1: float = 0.0,
    official: bool = False,
) -> Rule:
    """The rule of ETLP's hidden weights, input and recurrent alike.

    eps_v[t] = d_v eps_v[t-1] + x[t]                  x: input spikes, or S[t-1] for W_rec
    eps_a[t] = psi[t-1] eps_v[t-1] + (rho - psi[t-1] theta) eps_a[t-1]
    e[t]     = psi[t] (eps_v[t] - theta eps_a[t])
    dW[t]    = -eta (sum_b L[t] e[t] + lambda_1 sign(W) [event])
    L                                                 `signals.Projection`, 0 between events
    psi      = 0.3 / thr^2 max(0, 1 - |V - A| / thr)  0 while the neuron is refractory

    The gradient of <L, S[t]> through time, exact where the reset and the recurrent spikes are
    detached. With one tau and theta = 0 the traces collapse to (batch, N_i), and the rule is
    built so.

    Args:
        symbol       argument       unit  shape
        eta          learning_rate  -     ()
        d_v          tau_v_ms       ms    () or (N_o,); d_v = exp(-dt / tau)
        rho          tau_a_ms       ms    ()
        theta        theta          -     ()
        thr          thr            -     ()
        dt           dt_ms          ms    ()
        lambda_1     l1             -     ()
                     low_pass_ms    ms    (); e-prop: e filtered with the output's time constant
                     official       -     bool; see Departures

    Raises:
        Invalid: a time constant or thr <= 0.

    References:
        Quintana et al., arXiv:2301.08281, Neuromorph. Comput. Eng. 2024: equations 7 (trace), 8
        (surrogate), 10 (eligibility), 11 (signal). Authors' code (Apache-2.0, branch main),
        models.py:166-255.

    Departures:
        `official` does as the authors' code: psi = 0.3 / thr max(...), without the chain factor
        1 / thr, and psi[t-1] in eps_a not masked by the refractory period. Both are errors of the
        gradient, for thr != 1 and for (n_ref > 0 and theta > 0).

    Example:
        >>> from grasp_plugin.learning import etlp
        >>> etlp(1e-3, theta=0.0, tau_v_ms=20.0).trace
        Exponential(decay=0.951229424500714)
    """
    if thr <= 0:
        raise Invalid("etlp", f"expected thr > 0, got {thr}", "Pass a positive threshold")
    decay = decay_of(tau_v_ms, dt_ms)
    surrogate = Triangular(0.3 / thr if official else 0.3 / thr**2, thr)
    trace: Exponential | SynapticExponential | AdaptiveThreshold
    if theta:
        rho = decay_of(tau_a_ms, dt_ms)
        trace = AdaptiveThreshold(decay, _single(rho), theta, masked=not official)
    elif isinstance(decay, float):
        trace = Exponential(decay)
    else:
        trace = SynapticExponential(decay, hard_reset=False)
    core = ThreeFactor(trace, surrogate, learning_rate, name="etlp")
    rule: Rule = core
    if low_pass_ms is not None:
        rule = EProp(core, _single(decay_of(low_pass_ms, dt_ms)))
    return Plan(rule, (L1(learning_rate * l1),)) if l1 else rule


def etlp_output(
    learning_rate: float,
    *,
    tau_o_ms: float = 80.0,
    thr: float = 1.0,
    dt_ms: float = 1.0,
    official: bool = False,
) -> Rule:
    """The rule of ETLP's output weights: it learns from the error S_o - y*, at the same events.

    eps_o[t] = d_o eps_o[t-1] + S[t]
    dW[t]    = -eta sum_b ((S_o - y*) psi(V_o)) outer eps_o[t]

    `official` leaves out the factor 1 / thr of psi, as in `etlp`. V_o is the membrane *after*
    this step; see `neurons.adaptive.output_step`.

    References:
        Authors' code, models.py:58-62, 73.
    """
    if thr <= 0:
        raise Invalid("etlp output", f"expected thr > 0, got {thr}", "Pass a positive threshold")
    surrogate = Triangular(0.3 / thr if official else 0.3 / thr**2, thr)
    trace = Exponential(decay_of(tau_o_ms, dt_ms))
    return ThreeFactor(trace, surrogate, learning_rate, name="etlp output")


def heterogeneous_tau_ms(
    neurons: int, mean_ms: float = 80.0, *, seed: int = 0
) -> tuple[float, ...]:
    """The authors' time constants: Gamma(shape 3, mean `mean_ms`), clamped to 3..100 ms."""
    draw = np.random.default_rng(seed).gamma(3.0, mean_ms / 3.0, neurons)
    return tuple(float(tau) for tau in np.clip(draw, 3.0, 100.0))


def _single(decay: Decay) -> float:
    if isinstance(decay, tuple):
        raise Invalid("etlp", f"expected one time constant, got {len(decay)}", "Pass a number")
    return decay


@dataclass(frozen=True)
class EProp(Rule):
    """ETLP's traces with the eligibility low-passed, for a leaky readout: e-prop.

    f[t]  = d_o f[t-1] + e[t]             e[t] = psi[t] trace[t]
    dW[t] = -eta sum_b L[t] f[t]          L = (S_o - y*) Bf^T at every step

    Sum over the sequence (`Accumulate(T)`) for the authors' one step per sequence.

    Args:
        rule: the `ThreeFactor` whose trace, surrogate and learning rate are used.
        low_pass: d_o, per step.

    References:
        Bellec et al., Nat. Commun. 11:3625, 2020; ETLP's code, models.py:78-100, 240-247.
    """

    rule: ThreeFactor
    low_pass: float

    def init(self, weight: Array, *, batch: int = 1) -> State:
        state = self.rule.init(weight, batch=batch)
        return {**state, "filtered": zeros(weight, batch, *weight.shape)}

    def update(
        self, factors: Factors, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        del weight, extras
        seen = self.rule.seen(factors)
        value, trace = self.rule.trace.update(seen, state["trace"])
        if value.ndim == 2:
            value = value[:, None, :]
        signal = factors.need("signal", "e-prop")
        one = factors.active if factors.active is not None else signal * 0 + 1
        e = (seen.post * one)[:, :, None] * value
        filtered = self.low_pass * state["filtered"] + e
        delta: Delta = {"weight": PerSynapse(signal, filtered, -self.rule.learning_rate)}
        return delta, {**state, "trace": trace, "filtered": filtered}

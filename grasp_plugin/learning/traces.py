"""The traces: what a synapse remembers of its input. One table, because they differ by a hair.

    class                equation                                             shape
    Instant              t = s                                                (batch, N_i)
    Exponential          t <- k t + s              accumulating, no 1 - k     (batch, N_i)
    Average              t <- k t + (1 - k) s      averaging                  (batch, N_i)
    DoubleExponential    p <- a p + g_p q;  q <- b q + g_q g s                (batch, N_i)
                         p reads the q of the step before
    CurrentExponential   q <- b q + s;  p <- k p + q      reads this step's q (batch, N_i)
    SynapticExponential  e <- k_j (1 - z s_j) e + q;  q <- b q + s            (batch, N_o, N_i)
    AdaptiveThreshold    v <- k_j v + s;  a <- psi v + (rho - psi theta) a    (batch, N_o, N_i)
                         value v - theta a; a reads psi, v of the step before

s is the input of this step, s_j the postsynaptic spike of the step before. `Exponential` with k
and then times 1 - k is `Average`; OTTT, ETLP and Loihi accumulate, DECOLLE averages (twice).

A trace of shape (batch, N_i) is exact only if the leak is the same for every postsynaptic neuron
and the reset subtracts or is a state of its own. A hard reset or a leak per neuron needs the
traces of shape (batch, N_o, N_i): N_o times the memory.

Decays are numbers per step in [0, 1]: exp(-dt / tau). A sequence is kept as a tuple, so that rules
compare, print and pickle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace, device

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.deltas import Array
from grasp_plugin.learning.rule import Factors, Trace
from grasp_plugin.learning.states import State, zeros

Decay = float | tuple[float, ...]


def decay_of(tau_ms: float | Sequence[float], dt_ms: float = 1.0) -> Decay:
    """exp(-dt / tau) of one time constant or one per neuron, both in milliseconds.

    Raises:
        Invalid: tau or dt <= 0.
    """
    values = _as_decay_input(tau_ms)
    if dt_ms <= 0 or min(values) <= 0:
        raise Invalid("tau_ms", f"expected tau, dt > 0, got {tau_ms}, {dt_ms}", "Pass both in ms")
    decays = tuple(math.exp(-dt_ms / tau) for tau in values)
    return decays if _is_sequence(tau_ms) else decays[0]


def _is_sequence(value: Any) -> bool:
    return getattr(value, "ndim", 0) > 0 or isinstance(value, (tuple, list))


def _as_decay_input(value: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in value) if _is_sequence(value) else (float(value),)


def freeze(owner: Any, *fields: str) -> None:
    """Turn decay fields into float or tuple of float, and check their range."""
    for name in fields:
        given = getattr(owner, name)
        values = _as_decay_input(given)
        if not values or not all(0 <= v <= 1 for v in values):
            raise Invalid(
                type(owner).__name__,
                f"expected {name} in [0, 1], got {given}",
                f"Pass {name} as a factor per step, such as decay_of(tau_ms)",
            )
        object.__setattr__(owner, name, values if _is_sequence(given) else values[0])


def _array(decay: Decay, like: Array) -> Array:
    if isinstance(decay, float):
        return decay
    return array_namespace(like).asarray(decay, dtype=like.dtype, device=device(like))


def _per_neuron(decay: Decay, like: Array) -> Array:
    """A decay that broadcasts over (batch, N_o, N_i)."""
    return decay if isinstance(decay, float) else _array(decay, like)[:, None]


@dataclass(frozen=True)
class Instant(Trace):
    """t = s: no memory (SLTT; the readout of OTTT)."""

    rank_one: ClassVar[bool] = True

    def init(self, weight: Array, *, batch: int = 1) -> State:
        return {}

    def update(self, factors: Factors, state: State) -> tuple[Array, State]:
        return factors.pre, {}


@dataclass(frozen=True)
class _Single(Trace):
    """One filter of the input, with a decay (), or one for each input (N_i,)."""

    decay: Decay
    rank_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        freeze(self, "decay")

    def init(self, weight: Array, *, batch: int = 1) -> State:
        return {"t": zeros(weight, batch, weight.shape[1])}


@dataclass(frozen=True)
class Exponential(_Single):
    """t <- k t + s: accumulating; k = `decay`, a number or one per input (N_i,).

    Raises:
        Invalid: decay outside [0, 1].
    """

    def update(self, factors: Factors, state: State) -> tuple[Array, State]:
        t = _array(self.decay, factors.pre) * state["t"] + factors.pre
        return t, {"t": t}


@dataclass(frozen=True)
class Average(_Single):
    """t <- k t + (1 - k) s: averaging; k = `decay`, a number or one per input (N_i,).

    Raises:
        Invalid: decay outside [0, 1].
    """

    def update(self, factors: Factors, state: State) -> tuple[Array, State]:
        k = _array(self.decay, factors.pre)
        t = k * state["t"] + (1 - k) * factors.pre
        return t, {"t": t}


@dataclass(frozen=True)
class DoubleExponential(Trace):
    """DECOLLE's pair of filters; the outer one reads the inner one a step late.

    Q[t] = beta Q[t-1] + g_q g S[t]
    P[t] = alpha P[t-1] + g_p Q[t-1]

    Args:
        symbol  argument  unit  shape
        alpha   alpha     -     () or (N_i,)
        beta    beta      -     () or (N_i,)
        g       gain      -     ()
        g_q     gain_q    -     (); None: 1 - beta
        g_p     gain_p    -     (); None: 1 - alpha

    Raises:
        Invalid: a decay outside [0, 1].
    """

    alpha: Decay
    beta: Decay
    gain: float = 1.0
    gain_q: float | None = None
    gain_p: float | None = None
    rank_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        freeze(self, "alpha", "beta")

    def init(self, weight: Array, *, batch: int = 1) -> State:
        zero = zeros(weight, batch, weight.shape[1])
        return {"q": zero, "p": zero}

    def update(self, factors: Factors, state: State) -> tuple[Array, State]:
        alpha, beta = _array(self.alpha, factors.pre), _array(self.beta, factors.pre)
        gain_q = 1 - beta if self.gain_q is None else self.gain_q
        gain_p = 1 - alpha if self.gain_p is None else self.gain_p
        q = beta * state["q"] + gain_q * self.gain * factors.pre
        p = alpha * state["p"] + gain_p * state["q"]
        return p, {"q": q, "p": p}


@dataclass(frozen=True)
class CurrentExponential(Trace):
    """What a current-based neuron remembers: the input through its current, then its membrane.

    q[t] = b q[t-1] + s[t]
    p[t] = k p[t-1] + q[t]

    Args:
        symbol  argument  unit  shape
        k       decay     -     () or (N_i,), of the membrane
        b       current   -     () or (N_i,), of the current

    Raises:
        Invalid: a decay outside [0, 1].
    """

    decay: Decay
    current: Decay
    rank_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        freeze(self, "decay", "current")

    def init(self, weight: Array, *, batch: int = 1) -> State:
        zero = zeros(weight, batch, weight.shape[1])
        return {"q": zero, "p": zero}

    def update(self, factors: Factors, state: State) -> tuple[Array, State]:
        q = _array(self.current, factors.pre) * state["q"] + factors.pre
        p = _array(self.decay, factors.pre) * state["p"] + q
        return p, {"q": q, "p": p}


@dataclass(frozen=True)
class SynapticExponential(Trace):
    """A trace for each synapse, where the leak or the reset belongs to the neuron.

    q_ji[t] = b_j q_ji[t-1] + s_i[t]                                       q = s without a current
    e_ji[t] = (1 - r s_j[t-1]) (k_j (1 - z s_j[t-1]) e_ji[t-1] + q_ji[t])

    Args:
        symbol  argument    unit  shape
        k       decay       -     () or (N_o,)
        z       hard_reset  -     bool: the neuron's membrane is set to 0 by its spike
        b       current     -     () or (N_o,), or None: no current
        r       refractory  -     bool: the membrane is also 0 in the step after a spike

    Raises:
        Invalid: decay outside [0, 1]; Factors.spikes is missing under a hard reset.
    """

    decay: Decay
    hard_reset: bool = True
    current: Decay | None = None
    refractory: bool = False
    rank_one: ClassVar[bool] = False

    def __post_init__(self) -> None:
        freeze(self, "decay", *(() if self.current is None else ("current",)))

    def init(self, weight: Array, *, batch: int = 1) -> State:
        state = {"e": zeros(weight, batch, *weight.shape)}
        if self.current is not None:
            state["q"] = zeros(weight, batch, *weight.shape)
        if self.hard_reset or self.refractory:
            state["s"] = zeros(weight, batch, weight.shape[0])
        return state

    def update(self, factors: Factors, state: State) -> tuple[Array, State]:
        keep = _per_neuron(self.decay, factors.pre)
        q, new = factors.pre[:, None, :], {}
        if self.current is not None:
            new["q"] = q = _per_neuron(self.current, factors.pre) * state["q"] + q
        if "s" not in state:
            new["e"] = keep * state["e"] + q
            return new["e"], new
        held = 1 - state["s"][:, :, None]
        e = keep * (held if self.hard_reset else 1) * state["e"] + q
        new["e"] = held * e if self.refractory else e
        return new["e"], {**new, "s": factors.need("spikes", "hard reset")}


@dataclass(frozen=True)
class AdaptiveThreshold(Trace):
    """ETLP's pair: what the membrane and what the threshold remember of each synapse.

    eps_v[t] = d_v eps_v[t-1] + x[t]
    eps_a[t] = psi[t-1] eps_v[t-1] + (rho - psi[t-1] theta) eps_a[t-1]
    value[t] = eps_v[t] - theta eps_a[t]                 e[t] = psi[t] value[t]

    Args:
        symbol  argument  unit  shape
        d_v     decay     -     () or (N_o,)
        rho     rho       -     (), decay of the threshold
        theta   theta     -     (), strength of the adaptation
                masked    -     bool: psi[t-1] = 0 where the neuron was refractory

    Raises:
        Invalid: a decay outside [0, 1].
    """

    decay: Decay
    rho: float
    theta: float
    masked: bool = True
    rank_one: ClassVar[bool] = False

    def __post_init__(self) -> None:
        freeze(self, "decay", "rho")

    def init(self, weight: Array, *, batch: int = 1) -> State:
        zero = zeros(weight, batch, *weight.shape)
        return {"v": zero, "a": zero, "psi": zero[:, :, 0]}

    def update(self, factors: Factors, state: State) -> tuple[Array, State]:
        v_old, a_old, psi_old = state["v"], state["a"], state["psi"][:, :, None]
        v = _per_neuron(self.decay, factors.pre) * v_old + factors.pre[:, None, :]
        a = psi_old * v_old + (self.rho - psi_old * self.theta) * a_old
        psi = factors.need("post", "AdaptiveThreshold")
        if self.masked and factors.active is not None:
            psi = psi * factors.active
        return v - self.theta * a, {"v": v, "a": a, "psi": psi}

"""What a learning rule is: a pair of pure functions on an explicit state, and how pairs compose.

    rule.init(weight) -> state              rule.update(factors, state, weight) -> (delta, state)
    transform.init(weight) -> state         transform.update(delta, state, weight) -> (delta, state)
    Plan(rule, transforms)                  is a rule again

`weight` is [N_o, N_i]; the batch is the first axis of every factor. `state` is a nested dict of
arrays that the caller holds; nothing is changed in place. `delta` is a dict: "weight" holds one of
`Outer`, `PerSynapse`, `Full` (all with `dense()`, [N_o, N_i]), "bias" an array [N_o] where the
rule has one. The caller adds it: weight + delta["weight"].dense().

A rule *sums* over the batch. The 1/B of a mean is part of the loss, hence of the signal.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, ClassVar

from array_api_compat import array_namespace

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.deltas import Array, Delta, Outer, PerSynapse
from grasp_plugin.learning.states import State
from grasp_plugin.neurons.surrogate import Surrogate


@dataclass(frozen=True, eq=False)
class Factors:
    """All that the synapses of one projection may see at step t: locality is this type.

    Args:
        pre: what arrives, before the weights (batch, N_i).
        signal: third factor, dL/dS of the postsynaptic spike (batch, N_o).
        membrane: membrane minus the threshold in force (batch, N_o).
        post: dS/dmembrane (batch, N_o); None: the rule's surrogate at `membrane`.
        spikes: postsynaptic spikes of this step (batch, N_o); only per-synapse traces read them.
        active: 0 where the neuron is refractory, else 1 (batch, N_o); None: all active.
        direct: dL/dmembrane that does not pass through the spike (batch, N_o), such as a penalty
            on the membrane.
        curvature: (u, kind="gn") -> M u (batch, N_o), the loss's curvature in the membranes at this
            step, see `learning.curvature`; only update schedulers ask for it.
    """

    pre: Array
    signal: Array | None = None
    membrane: Array | None = None
    post: Array | None = None
    spikes: Array | None = None
    active: Array | None = None
    direct: Array | None = None
    curvature: Callable[..., Array] | None = None

    def need(self, name: str, by: str) -> Array:
        """The factor of that name.

        Raises:
            Invalid: it was not given.
        """
        value = getattr(self, name)
        if value is None:
            raise Invalid(by, f"expected Factors.{name}, got None", f"Pass {name}=... in Factors")
        return value


class Rule(ABC):
    """A learning rule of one projection."""

    @abstractmethod
    def init(self, weight: Array, *, batch: int = 1) -> State:
        """The state before step 0, on weight's dtype and device."""

    @abstractmethod
    def update(
        self, factors: Factors, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        """What to add to weight (and bias) after this step, and the state after it.

        `extras` are for rules that need more than factors; a rule ignores those it does not know.
        """


class Transform(ABC):
    """A map on deltas with a state: update schedulers, accumulators, burn-in.

    A `lasting` transform keeps its state from one sequence to the next; traces never do.
    """

    lasting: ClassVar[bool] = False

    @abstractmethod
    def init(self, weight: Array, *, batch: int = 1) -> State:
        """The state before step 0."""

    @abstractmethod
    def update(
        self, delta: Delta, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        """The delta to pass on, and the state after it. `Plan` passes factors= and rule=."""


class Trace(ABC):
    """A filter on the presynaptic side of a rule; see `grasp_plugin.learning.traces`."""

    rank_one: ClassVar[bool]  # value is (batch, N_i), else (batch, N_o, N_i)

    @abstractmethod
    def init(self, weight: Array, *, batch: int = 1) -> State:
        """Zero traces."""

    @abstractmethod
    def update(self, factors: Factors, state: State) -> tuple[Array, State]:
        """(the trace at this step, the state after it); factors.post is given, before masking."""


@dataclass(frozen=True)
class Plan(Rule):
    """A rule followed by transforms, in order. Is itself a rule."""

    rule: Rule
    transforms: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "transforms", tuple(self.transforms))

    def init(self, weight: Array, *, batch: int = 1) -> State:
        after = {str(i): t.init(weight, batch=batch) for i, t in enumerate(self.transforms)}
        return {"rule": self.rule.init(weight, batch=batch), "transforms": after}

    def update(
        self, factors: Factors, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        delta, inner = self.rule.update(factors, state["rule"], weight, **extras)
        delta, after = self.pass_on(delta, factors, state["transforms"], weight, **extras)
        return delta, {"rule": inner, "transforms": after}

    def pass_on(
        self, delta: Delta, factors: Factors, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        """A delta of the rule through the transforms; `state` is theirs."""
        after = {}
        extras = {**extras, "factors": factors, "rule": self.rule}
        for i, transform in enumerate(self.transforms):
            delta, after[str(i)] = transform.update(delta, state[str(i)], weight, **extras)
        return delta, after


@dataclass(frozen=True)
class ThreeFactor(Rule):
    """The skeleton that DECOLLE, ETLP and OTTT share: error times surrogate times trace.

    delta[t]      = -eta sum_b d[t]_b (x) trace[t]_b
    d[t]          = signal[t] post[t] active[t] + direct[t]
    delta_bias[t] = -eta sum_b d[t]_b c[t]_b            c: the bias's trace of a constant 1
    Args:
        symbol  argument       unit  shape
        trace   trace          -     (batch, N_i) or (batch, N_o, N_i)
        post    surrogate      -     (batch, N_o); None: post = 1, a memoryless linear readout
        eta     learning_rate  -     ()
        c       bias           -     a trace; Instant(): c = 1; None: no bias

    Raises:
        Invalid: a learning rate that is no finite number; a factor that the rule needs is missing.
    """

    trace: Trace
    surrogate: Surrogate | None
    learning_rate: float
    bias: Trace | None = None
    name: str = field(default="rule", compare=False)

    def __post_init__(self) -> None:
        check_rate(self.name, self.learning_rate, signed=True)

    def init(self, weight: Array, *, batch: int = 1) -> State:
        state = {"trace": self.trace.init(weight, batch=batch)}
        if self.bias is not None:
            state["bias"] = self.bias.init(weight[:, :1], batch=batch)
        return state

    def seen(self, factors: Factors) -> Factors:
        """The factors with `post` filled in from the surrogate."""
        return factors if factors.post is not None else replace(factors, post=self.post(factors))

    def post(self, factors: Factors) -> Array:
        """dS/dmembrane of this step (batch, N_o)."""
        if factors.post is not None:
            return factors.post
        if self.surrogate is not None:
            return self.surrogate.first(factors.need("membrane", self.name))
        known = factors.need("signal", self.name)
        return array_namespace(known).ones_like(known)

    def error(self, factors: Factors) -> Array:
        """d = dL/dmembrane of this step (batch, N_o)."""
        if factors.signal is None:
            return factors.need("direct", self.name)
        error = factors.signal * self.post(factors)
        if factors.active is not None:
            error = error * factors.active
        return error if factors.direct is None else error + factors.direct

    def update(
        self, factors: Factors, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        del weight, extras
        error = self.error(factors)
        local = self.trace.rank_one and (self.bias is None or self.bias.rank_one)
        seen = factors if local else self.seen(factors)
        value, trace = self.trace.update(seen, state["trace"])
        delta: Delta = {"weight": self._pair(error, value)}
        state = {**state, "trace": trace}
        if self.bias is not None:
            constant = replace(seen, pre=array_namespace(error).ones_like(seen.pre[:, :1]))
            value, state["bias"] = self.bias.update(constant, state["bias"])
            delta["bias"] = self._pair(error, value).dense()[:, 0]
        return delta, state

    def _pair(self, error: Array, value: Array) -> Outer | PerSynapse:
        kind = Outer if value.ndim == 2 else PerSynapse
        return kind(error, value, -self.learning_rate)


def check_rate(culprit: str, rate: Any, *, signed: bool = False) -> None:
    """Refuse a learning rate that is no finite number >= 0.

    An array, as meta-learning has it, is not looked into.

    Args:
        signed: a rule alone may go up its gradient; in a network none may.

    Raises:
        Invalid: names the culprit and the rate.
    """
    if hasattr(rate, "shape") and not isinstance(rate, Real):
        return
    number = not isinstance(rate, bool) and isinstance(rate, Real) and math.isfinite(rate)
    if not number or (rate < 0 and not signed):
        wanted = "a finite learning_rate" if signed else "learning_rate >= 0"
        raise Invalid(culprit, f"expected {wanted}, got {rate!r}", "Pass a finite number")


def with_lasting(plan: Rule, fresh: State, old: State) -> State:
    """A plan's fresh state with the old states of its lasting transforms."""
    if not isinstance(plan, Plan):
        return fresh
    kept = {str(i): old["transforms"][str(i)] for i, t in enumerate(plan.transforms) if t.lasting}
    return {**fresh, "transforms": {**fresh["transforms"], **kept}}

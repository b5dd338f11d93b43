"""Transforms of deltas: when an update is made, and from which steps.

BurnIn(n)       nothing in the first n steps
Accumulate(n)   the sum of n steps at every n-th
Late(n)         the update of n steps ago
L1(c)           - c sign(w) on top, at steps with a learning signal
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.chosen import from_state
from grasp_plugin.learning.deltas import Array, Delta, Full, Outer, PerSynapse, scaled
from grasp_plugin.learning.rule import Transform
from grasp_plugin.learning.states import State, counter


@dataclass(frozen=True)
class BurnIn(Transform):
    """delta = 0 in the first `steps` steps; traces advance meanwhile."""

    steps: int

    def init(self, weight: Array, *, batch: int = 1) -> State:
        return {"step": counter(weight)}

    def update(
        self, delta: Delta, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        xp = array_namespace(weight)
        is_open = xp.astype(state["step"] >= self.steps, weight.dtype)
        return scaled(delta, is_open), {"step": state["step"] + 1}


@dataclass(frozen=True)
class Accumulate(Transform):
    """The sum of the last `steps` deltas at every `steps`-th step, zero in between.

    A sequence that ends in between takes its unfinished sum with it.

    Raises:
        Invalid: steps < 1.
    """

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise Invalid("Accumulate", f"expected steps >= 1, got {self.steps}", "Pass steps >= 1")

    def init(self, weight: Array, *, batch: int = 1) -> State:
        zero = weight * 0
        return {"weight": zero, "bias": zero[:, 0], "step": counter(weight)}

    def update(
        self, delta: Delta, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        xp = array_namespace(weight)
        step = state["step"] + 1
        due = xp.astype(step % self.steps == 0, weight.dtype)
        total = {"weight": state["weight"] + delta["weight"].dense()}
        if "bias" in delta:
            total["bias"] = state["bias"] + delta["bias"]
        out: Delta = {**scaled(total, due), "weight": Full(total["weight"] * due)}
        return out, {**state, **scaled(total, 1 - due), "step": step}


@dataclass(frozen=True)
class Late(Transform):
    """delta[t] = the delta of `steps` steps ago, zero before: a learning signal that comes late.

    On Lava the error of a layer reaches the layer below one step later for every connection in
    between; a plan with that `Late` does the same anywhere. An error that goes down through such a
    layer is carried by the weights with the pending deltas, as it is on Lava, where they are made
    by the time that it passes.

    Raises:
        Invalid: steps < 1.
    """

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise Invalid("Late", f"expected steps >= 1, got {self.steps}", "Leave it out for 0")

    def init(self, weight: Array, *, batch: int = 1) -> State:
        return {}

    def pending(self, state: State) -> list[Delta]:
        """The deltas that are known and not yet made, oldest first."""
        return [{k: _from_state(v) for k, v in waiting.items()} for waiting in state.values()]

    def update(
        self, delta: Delta, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        queue = [*state.values(), {k: _to_state(v) for k, v in delta.items()}]
        if len(queue) > self.steps:
            first, *queue = queue
            out = {k: _from_state(v) for k, v in first.items()}
        else:
            out = scaled(delta, 0.0)
        return out, {str(i): waiting for i, waiting in enumerate(queue)}


@dataclass(frozen=True)
class L1(Transform):
    """delta - strength sign(w) at steps at which any neuron has a learning signal.

    `strength` is eta lambda_1: ETLP's regulariser, which acts at teaching events only.

    Raises:
        Invalid: strength < 0.
    """

    strength: float

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise Invalid("L1", f"expected strength >= 0, got {self.strength}", "Pass eta lambda")

    def init(self, weight: Array, *, batch: int = 1) -> State:
        return {}

    def update(
        self, delta: Delta, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        xp, signal = array_namespace(weight), extras["factors"].need("signal", "L1")
        event = xp.astype(xp.max(abs(signal)) > 0, weight.dtype)
        pull = self.strength * event * xp.sign(weight)
        return {**delta, "weight": Full(delta["weight"].dense() - pull)}, state


def _to_state(value: Any) -> Any:
    """A part of a delta as a dict of arrays (or an array, a bias's)."""
    if isinstance(value, Outer):
        return {"left": value.scale * value.left, "right": value.right}
    if isinstance(value, PerSynapse):
        return {"left": value.scale * value.left, "eligibility": value.eligibility}
    if isinstance(value, Full):
        return {"value": value.value}
    return value.to_state() if hasattr(value, "to_state") else value


def _from_state(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "value" in value:
        return Full(value["value"])
    if "counts" in value or "rows" in value:
        return from_state(value)
    if "right" in value:
        return Outer(value["left"], value["right"], 1.0)
    return PerSynapse(value["left"], value["eligibility"], 1.0)

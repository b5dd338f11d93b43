"""What values of a forward pass mean: signals, hidden states, layers and their calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

Source = tuple[str, "int | None"]
VALUE = "value"
"""Key of a node's value in the `meta` of an fx graph."""
BATCH = ("batch",)
TIME_FIRST = ("time", "batch")
TIME_SECOND = ("batch", "time")


@dataclass(frozen=True)
class Framework:
    """What the tracer must know of snnTorch or Norse.

    Args:
        name: "snntorch" or "norse".
        known: the neuron classes that can be exported; others are refused by name.
        check: raises for a neuron (name, module) that cannot be exported, before anything runs.
        is_leaf: modules kept whole.
        is_neuron: leaves that hold a state, and so return it or keep it.
        is_timed: neurons that take the whole time axis at once.
        state_output: position, in the output tuple, of what the state argument of that name
            continues.
        keeps_state: True if a call without state goes on from the call before (snnTorch), False
            if it starts afresh (Norse).
    """

    name: str
    known: tuple[type[nn.Module], ...]
    check: Callable[[str, nn.Module], object]
    is_leaf: Callable[[nn.Module], bool]
    is_neuron: Callable[[nn.Module], bool]
    is_timed: Callable[[nn.Module], bool]
    state_output: Callable[[nn.Module, str], int]
    keeps_state: bool


@dataclass(frozen=True)
class Signal:
    """The sum of `sources`; `lead` names the axes before those of the features."""

    sources: frozenset[Source]
    lead: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """Output `index` (> 0) of call number `call` of a neuron, or field `part` of that tuple."""

    leaf: str
    call: int
    index: int
    part: int | None = None


@dataclass(frozen=True)
class Bundle:
    """The output tuple of a neuron: its signal, then its states."""

    leaf: str
    call: int
    signal: Signal


@dataclass(frozen=True)
class Stack:
    """torch.stack of signals, not yet known to be a time axis or a sum."""

    items: tuple[Any, ...]
    axis: int


@dataclass
class Call:
    sources: frozenset[Source]
    timed: bool


@dataclass
class Layer:
    """One module (or functional layer) of the model, and its calls.

    Args:
        name: the NIR node name, the module's path.
        module: the module of the private copy; functional layers get an equal module.
        input_shape, output_shape: of one sample at one step, batch and time removed.
        lead: number of axes before the features, for the dims of Flatten.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    lead: int
    calls: list[Call] = field(default_factory=list)


@dataclass(frozen=True)
class Traced:
    """Layers and wiring of a model: `inputs` by source name with the shape of one sample at one
    step, `outputs` maps a name to the nodes summed there."""

    inputs: dict[str, tuple[int, ...]]
    layers: dict[str, Layer]
    edges: list[tuple[str, str]]
    delayed: frozenset[tuple[str, str]]
    outputs: dict[str, list[str]]


def say(value: Any) -> str:
    """A meaning, or several, in words."""
    if isinstance(value, (list, tuple)):
        return ", ".join(say(item) for item in value) or "nothing"
    if isinstance(value, State):
        part = "" if value.part is None else f"part {value.part} of "
        return f"{part}the state of {value.leaf!r} after call {value.call + 1}"
    if isinstance(value, Bundle):
        return f"the output tuple of {value.leaf!r} in call {value.call + 1}"
    if isinstance(value, Signal):
        return say_sources(value.sources)
    return "a constant" if hasattr(value, "shape") else str(value)


def say_sources(sources: Iterable[Source]) -> str:
    """Where a signal comes from: calls of layers, counted from 1, and steps of inputs."""
    words = []
    for name, step in sorted(sources, key=str):
        given = name.startswith(input_source(""))
        what = f"the input {name.removeprefix(input_source(''))!r}" if given else repr(name)
        count = "" if step is None else f"step {step} of " if given else f"call {step + 1} of "
        words.append(f"{count}{what}")
    return " + ".join(words) or "nothing"


def input_source(argument: str) -> str:
    """The source name of a forward argument: no module path can be equal to it."""
    return f"input:{argument}"


class NeedsTime(Exception):
    """An input turned out to have a time axis: read its axes as `lead` and start again."""

    def __init__(self, inputs: frozenset[str], lead: tuple[str, ...]) -> None:
        super().__init__(inputs, lead)
        self.inputs = inputs
        self.lead = lead

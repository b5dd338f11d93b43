"""The calls of a forward pass, folded over its time steps into nodes and edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from grasp_plugin.adapters._signals import (
    BATCH,
    TIME_FIRST,
    TIME_SECOND,
    Bundle,
    Call,
    Framework,
    Layer,
    Signal,
    Source,
    Stack,
    State,
    say,
)
from grasp_plugin.errors import Refused


class Recorder:
    """Collects inputs, layer calls and outputs; `finish` checks that the steps agree."""

    def __init__(self, framework: Framework) -> None:
        self.framework = framework
        self.layers: dict[str, Layer] = {}
        self.inputs: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}
        self.used_steps: dict[str, set[int]] = {}
        self.outputs: list[tuple[str, Signal]] = []
        self._shared: dict[tuple[str, str, frozenset[str]], str] = {}
        self.state_inputs: set[str] = set()
        self.returned: set[str] = set()

    @property
    def has_time_loop(self) -> bool:
        """True if the model loops over time itself."""
        repeated = any(
            len(layer.calls) > 1 and self.framework.is_neuron(layer.module)
            for layer in self.layers.values()
        )
        timed = any(self.framework.is_timed(layer.module) for layer in self.layers.values())
        return repeated or timed or any(lead != BATCH for _, lead in self.inputs.values())

    def add_input(self, name: str, shape: tuple[int, ...], lead: tuple[str, ...]) -> None:
        self.inputs[name] = shape, lead

    def roots(self, sources: frozenset[Source]) -> frozenset[str]:
        """The inputs that `sources` depend on."""
        found: set[str] = set()
        waiting, seen = [name for name, _ in sources], set()
        while waiting:
            name = waiting.pop()
            if name in self.inputs:
                found.add(name)
            elif name not in seen:
                seen.add(name)
                waiting += [n for call in self.layers[name].calls for n, _ in call.sources]
        return frozenset(found)

    def call(
        self,
        path: str,
        module: nn.Module,
        signal: Signal,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        shared: bool,
    ) -> Signal:
        """One call of a layer; a shared layer (no parameters) is one node per set of sources."""
        name = self._shared_name(path, module, signal) if shared else path
        lead = len(signal.lead)
        layer = self.layers.get(name)
        if layer is None:
            layer = Layer(name, module, shapes[0][lead:], shapes[1][lead:], lead)
            self.layers[name] = layer
        timed = signal.lead != BATCH
        layer.calls.append(Call(signal.sources, timed))
        step = None if timed else len(layer.calls) - 1
        return Signal(frozenset({(name, step)}), signal.lead)

    def _shared_name(self, path: str, module: nn.Module, signal: Signal) -> str:
        key = path, repr(module), frozenset(name for name, _ in signal.sources)
        if key not in self._shared:
            name, number = path, 0
            while name in self.layers or name in self.inputs:
                number += 1
                name = f"{path}_{number}"
            self._shared[key] = name
        return self._shared[key]

    def at_step(self, signal: Signal, step: int) -> Signal:
        for name, _ in signal.sources:
            self.used_steps.setdefault(name, set()).add(step)
        return Signal(frozenset((name, step) for name, _ in signal.sources), BATCH)

    def check_state(self, path: str, call: int, index: int, state: Any) -> None:
        """A neuron goes on from its own last state, or starts from rest at the first step."""
        fresh = state is None or isinstance(state, torch.Tensor)
        if fresh and isinstance(state, torch.Tensor) and bool(state.any()):
            raise Refused(
                path,
                "expected an initial state of zero, got other values",
                "Start from the module's own initial state",
            )
        if fresh and (call == 0 or (state is None and self.framework.keeps_state)):
            return
        if state == State(path, call - 1, index):
            return
        if isinstance(state, Signal):
            names = {name for name, _ in state.sources}
            if names <= set(self.inputs):
                self.state_inputs |= names
                return
            if index == 0 and state.sources == {(path, call - 1)}:
                return
        raise Refused(
            path,
            f"expected call {call + 1} of this neuron to continue the state of call {call},"
            f" got {'a fresh state' if fresh else say(state)}",
            "Hand every neuron its own last state: forward(x, state=None) -> (out, state), or a"
            " loop over time that keeps it; give each layer its own neuron module",
        )

    def series(self, items: tuple[Any, ...], axis: int) -> Signal:
        """Signals of steps 0, 1, ... stacked: the whole time axis of one set of nodes."""
        signals = [item for item in items if isinstance(item, Signal)]
        names = {frozenset(name for name, _ in signal.sources) for signal in signals}
        in_order = all(
            {step for _, step in signal.sources} <= {position, None}
            for position, signal in enumerate(signals)
        )
        if len(signals) != len(items) or len(names) != 1 or not in_order or axis not in (0, 1):
            raise Refused(
                "stack",
                f"expected the outputs of one layer at steps 0, 1, ... in order, got {say(items)}",
                "Stack one layer's outputs over time, along axis 0; call every layer once per step",
            )
        sources = frozenset((name, None) for name in next(iter(names)))
        return Signal(sources, TIME_SECOND if axis else TIME_FIRST)

    def set_outputs(self, meaning: Any) -> None:
        """Keep the signals among the returned values; hidden states are no outputs."""
        self.outputs = self._signals(meaning, ())

    def _signals(self, meaning: Any, path: tuple[str, ...]) -> list[tuple[str, Signal]]:
        name = "_".join(path)
        if isinstance(meaning, Bundle):
            return [(name, meaning.signal)]
        if isinstance(meaning, Signal):
            return [(name, meaning)]
        if isinstance(meaning, Stack):
            hidden = all(isinstance(item, State) for item in meaning.items)
            return [] if hidden else [(name, self.series(meaning.items, meaning.axis))]
        if isinstance(meaning, list) and len(meaning) > 1:
            steps = [self._signals(item, path) for item in meaning]
            if _is_series(steps):
                columns = zip(*steps, strict=True)
                return [
                    (column[0][0], self.series(tuple(signal for _, signal in column), 0))
                    for column in columns
                ]
        found: list[tuple[str, Signal]] = []
        if isinstance(meaning, (list, dict)):
            pairs = meaning.items() if isinstance(meaning, dict) else enumerate(meaning)
            for key, item in pairs:
                found += self._signals(item, (*path, str(key)))
        elif isinstance(meaning, torch.Tensor) and bool(meaning.any()):
            raise Refused(
                "output",
                "expected signals of the network, got a constant",
                "Return the outputs of layers only",
            )
        return found


def _is_series(steps: list[list[tuple[str, Signal]]]) -> bool:
    """True for the outputs of steps 0, 1, ... of one structure, as from a time loop."""
    if not steps[0] or len({len(step) for step in steps}) != 1:
        return False
    return all(
        {name for name, _ in mine.sources} == {name for name, _ in first.sources}
        and {step for _, step in mine.sources} == {position}
        for position, outputs in enumerate(steps)
        for (_, mine), (_, first) in zip(outputs, steps[0], strict=True)
    )

"""A NIR graph as a torch module that runs one step, with a framework's own neuron modules.

At step t every neuron n gets the sum over its projections of W s_m[t], or W s_m[t-1] where the
projection closes a loop (`_wiring`), with s[-1] = 0; biases act from t = 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
import torch
from torch import nn

from grasp_plugin.adapters._from_nir import layer_to_torch
from grasp_plugin.adapters._layers import Array
from grasp_plugin.adapters._wiring import NEURONS, late_projections, projections
from grasp_plugin.errors import Invalid, MissingChoice, Refused
from grasp_plugin.network.adaptation import has_adaptation
from grasp_plugin.network.graph import FlatGraph, flatten
from grasp_plugin.network.hints import RESETS, read_hints, refuse_dirac, refuse_graded

State = dict[str, dict[str, Any]]
Run = Callable[[nn.Module, torch.Tensor, Any], tuple[torch.Tensor, Any]]


@dataclass(frozen=True)
class Choices:
    """The caller's dt and reset, before the hints of the graph and its nodes."""

    hints: Mapping[str, Any]
    dt: float | None
    reset: str | Mapping[str, str] | None

    def dt_of(self, name: str, node: nir.NIRNode) -> float:
        """Seconds a step.

        Raises:
            MissingChoice: neither caller nor hints say.
        """
        dt = self.dt or read_hints(node).get("dt_s") or self.hints.get("dt_s")
        if dt is None:
            raise MissingChoice(
                name, "dt", {"1e-4": "snnTorch's own convention", "1e-3": "Norse's default"}
            )
        return float(dt)

    def reset_of(self, name: str, node: nir.NIRNode) -> str:
        """The reset rule, one of `hints.RESETS`.

        Raises:
            MissingChoice: neither caller nor hints say.
            Invalid: no such rule.
        """
        given = self.reset
        if isinstance(given, Mapping):
            given = given.get(name, given.get("*"))
        reset = given or read_hints(node).get("reset")
        if reset is None:
            raise MissingChoice(name, "reset", RESETS)
        if reset not in RESETS:
            raise Invalid(
                name, f"expected a reset of {', '.join(RESETS)}, got {reset!r}", "Pick one"
            )
        if read_hints(node).get("comparator", ">") != ">":
            raise Refused(name, "expected the comparator '>', got another", "Export with '>'")
        return str(reset)


@dataclass(frozen=True)
class Neuron:
    """A framework neuron, how to run it, and the input gain left for the weights before it."""

    module: nn.Module
    run: Run
    gain: Array


def build(
    graph: nir.NIRGraph,
    dt: float | None,
    reset: str | Mapping[str, str] | None,
    dtype: torch.dtype | None,
    neuron: Callable[[str, nir.NIRNode, tuple[int, ...], Choices, torch.dtype], Neuron],
) -> StepGraph:
    """`graph` as a step module: `neuron` makes the framework's neurons."""
    flat = flatten(graph)
    refuse_dirac(flat.nodes, flat.hints)
    refuse_graded(flat.nodes)
    if flat.hints.get("time_unit", "s") != "s":
        raise Refused(
            "graph",
            f"expected times in seconds, got time_unit {flat.hints['time_unit']!r}",
            "Convert the graph to seconds first",
        )
    for name, node in flat.nodes.items():
        if has_adaptation(node):
            raise Refused(
                name,
                "expected a neuron with a fixed threshold, got hints of rho, theta and n_ref",
                "Use grasp_plugin's own back ends",
            )
    choices = Choices(flat.hints, dt, reset)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    neurons = {
        name: neuron(name, node, flat.shape_out[name], choices, dtype)
        for name, node in flat.nodes.items()
        if isinstance(node, NEURONS)
    }
    nodes = dict(flat.nodes)
    for name, made in neurons.items():
        _fold_gain(name, made.gain, flat, nodes)
    layers = {
        name: layer_to_torch(name, node, flat.shape_in[name], dtype)
        for name, node in nodes.items()
        if not isinstance(node, (*NEURONS, nir.Input, nir.Output))
    }
    return StepGraph(flat, neurons, layers, dtype)


def _fold_gain(name: str, gain: Array, flat: FlatGraph, nodes: dict[str, nir.NIRNode]) -> None:
    """Scale the weights and biases before a neuron by its input gain, in float64."""
    gain = np.where(np.abs(gain - 1.0) <= 1e-6, 1.0, gain)
    if np.all(gain == 1.0):
        return
    for source in flat.before(name):
        node: Any = copy.copy(nodes[source])
        conv = isinstance(node, (nir.Conv1d, nir.Conv2d))
        alone = [b for a, b in flat.edges if a == source] == [name]
        rows = gain.reshape(gain.shape[0], -1) if gain.ndim else gain.reshape(1, 1)
        foldable = isinstance(node, (nir.Linear, nir.Affine)) and gain.ndim == 1
        foldable = foldable or (conv and bool(np.all(rows == rows[:, :1])))
        if not (alone and foldable):
            raise Refused(
                name,
                f"expected an input gain of 1, or weights before it that feed {name!r} alone, got"
                f" the gain {float(gain.ravel()[0]):g} after {source!r}"
                f" ({type(node).__name__})",
                "Put a Linear before the neuron, or scale r so that the gain is 1",
            )
        node.weight = node.weight * rows[:, 0].reshape((-1,) + (1,) * (node.weight.ndim - 1))
        if getattr(node, "bias", None) is not None:
            node.bias = node.bias * rows[:, 0]
        nodes[source] = node


class StepGraph(nn.Module):
    """One step of a graph: `out, state = module(x, state)`; start with `state=None`.

    Args of forward:
        x: (batch, ...) in the shape of the Input, or a dict of them by Input name.
        state: of the step before: {neuron: {"output": (batch, ...), "state": its own}}.

    Returns:
        The tensor at the Output, or a dict by Output name, and the new state.
    """

    def __init__(
        self,
        flat: FlatGraph,
        neurons: Mapping[str, Neuron],
        layers: Mapping[str, nn.Module],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        modules = {name: made.module for name, made in neurons.items()} | dict(layers)
        self.keys = {name: f"n{i}_{name.replace('.', '_')}" for i, name in enumerate(modules)}
        self.nodes = nn.ModuleDict({self.keys[name]: m for name, m in modules.items()})
        self.dtype = dtype
        self.runs = {name: made.run for name, made in neurons.items()}
        self.shapes = {name: flat.shape_out[name] for name in neurons}
        self.inputs = flat.named(nir.Input)
        self.outputs = flat.named(nir.Output)
        self.before = {name: flat.before(name) for name in flat.nodes}
        late = late_projections(flat.nodes, flat.edges, flat.hints.get("loop"))
        self.late = {n: frozenset(a for a, b in late if b == n) for n in flat.nodes}
        found = projections(flat.nodes, flat.edges)
        self.order = _order(list(neurons), {edge for edge in found if edge not in late})
        self.above = {name: self._neurons_above(name) for name in layers}

    @property
    def node_names(self) -> dict[str, str]:
        """Module path below this module -> NIR node name."""
        return {f"nodes.{key}": name for name, key in self.keys.items()}

    def forward(self, x: Any, state: State | None = None) -> tuple[Any, State]:
        given = x if isinstance(x, dict) else {self.inputs[0]: x}
        if set(given) != set(self.inputs):
            raise Invalid(
                "x", f"expected the inputs {self.inputs}, got {sorted(given)}", "Pass a dict"
            )
        now: dict[str, Any] = dict(given)
        some = next(iter(given.values()))
        ago = {
            name: some.new_zeros((some.shape[0], *shape))
            if state is None
            else state[name]["output"]
            for name, shape in self.shapes.items()
        }
        following: State = {}
        done: dict[tuple[str, frozenset[str]], Any] = {}
        for name in self.order:
            current = self._current(name, self.late[name], now, ago, done)
            own = None if state is None else state[name]["state"]
            now[name], own = self.runs[name](self.nodes[self.keys[name]], current, own)
            following[name] = {"output": now[name], "state": own}
        outs = {name: self._current(name, frozenset(), now, ago, done) for name in self.outputs}
        return (outs[self.outputs[0]] if len(outs) == 1 else outs), following

    def _current(
        self,
        name: str,
        late: frozenset[str],
        now: dict[str, Any],
        ago: dict[str, Any],
        done: dict[tuple[str, frozenset[str]], Any],
    ) -> Any:
        """The sum that reaches `name`, taking the neurons in `late` one step back.

        `done` keeps each layer's output, so that a layer with several targets runs once, or twice
        if it is needed at both steps.
        """
        total = None
        for source in self.before[name]:
            if source in self.shapes:
                part = ago[source] if source in late else now[source]
            elif source in now:
                part = now[source]
            else:
                key = source, late & self.above[source]
                if key not in done:
                    layer = self.nodes[self.keys[source]]
                    done[key] = layer(self._current(source, late, now, ago, done))
                part = done[key]
            total = part if total is None else total + part
        return total

    def _neurons_above(self, name: str) -> frozenset[str]:
        """The neurons that reach a layer through layers alone."""
        found: set[str] = set()
        for source in self.before[name]:
            if source in self.shapes:
                found.add(source)
            elif source in self.keys:
                found |= self._neurons_above(source)
        return frozenset(found)


def _order(names: list[str], edges: set[tuple[str, str]]) -> list[str]:
    """The neurons, each after those whose present output it needs."""
    needs = {name: {a for a, b in edges if b == name and a in names} for name in names}
    done: list[str] = []
    while len(done) < len(names):
        done += [name for name in names if name not in done and needs[name] <= set(done)]
    return done


def full(value: Any, shape: tuple[int, ...]) -> Array:
    """A parameter in the shape of its node, float64."""
    array = np.asarray(value, dtype=np.float64)
    return np.broadcast_to(array.ravel()[0] if array.size == 1 else array, shape)


def ratio(name: str, field: str, node: Any, shape: tuple[int, ...], choices: Choices) -> Array:
    """dt/tau, the part that leaks in a step of forward Euler; within [0, 1]."""
    dt = choices.dt_of(name, node)
    tau = full(getattr(node, field), shape)
    if np.any(np.isnan(tau)) or np.any(tau < dt * (1 - 1e-9)):
        raise Refused(
            name,
            f"expected {field} >= dt = {dt:g} s with forward Euler, got {tau.min():g} s",
            "Choose a smaller dt, or check the time unit",
        )
    return np.minimum(dt / tau, 1.0)

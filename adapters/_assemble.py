"""From traced layers to one NIR graph: neuron blocks, folded batch norms, inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import nir
import numpy as np
from torch import nn

from grasp_plugin.adapters._layers import fold_batch_norm, layer_to_nir
from grasp_plugin.adapters._signals import Framework, Layer, Traced, input_source
from grasp_plugin.adapters._trace import trace_model
from grasp_plugin.adapters._wiring import late_projections, loop_hint
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network.hints import write_hints

Edge = tuple[str, str]


@dataclass
class Block:
    """The NIR nodes of one neuron module, e.g. a neuron and its recurrent weights.

    Args:
        nodes: by suffix; "" is the neuron itself, named as the module.
        edges: between suffixes; those in `delayed` carry the step before.
        entry, exit: suffixes of the nodes that receive and send the module's signals.
    """

    nodes: dict[str, nir.NIRNode]
    edges: list[Edge] = field(default_factory=list)
    delayed: list[Edge] = field(default_factory=list)
    entry: str = ""
    exit: str = ""


def check_dt(dt: float) -> float:
    """A time step in seconds as a finite positive float."""
    if isinstance(dt, bool) or not isinstance(dt, Real) or not 0 < dt < float("inf"):
        raise Invalid(
            "dt",
            f"expected a positive time step in seconds, as a number, got {dt!r}"
            f" ({type(dt).__name__})",
            "Pass dt=1e-3",
        )
    return float(str(dt)) if isinstance(dt, np.floating) else float(dt)  # float32(1e-3) is 1e-3


def to_graph(
    model: nn.Module,
    sample: Any,
    dt: float,
    framework: Framework,
    neuron: Callable[[Layer, float], Block],
) -> nir.NIRGraph:
    """Trace `model` and write it as a NIR graph with hints; `neuron` maps neuron layers."""
    dt = check_dt(dt)
    traced = trace_model(model, sample, framework)
    builder = _Builder(traced)
    for name, layer in traced.layers.items():
        if framework.is_neuron(layer.module):
            _check_shape(layer)
            builder.add_block(name, neuron(layer, dt))
        else:
            builder.add_layer(name, layer)
    return builder.graph(dt, framework.name)


def _check_shape(layer: Layer) -> None:
    """A neuron per input value, unless the module brings its own input weights."""
    weights = hasattr(layer.module, "input_weights")
    if not layer.output_shape or (layer.input_shape != layer.output_shape and not weights):
        raise Refused(
            layer.name,
            f"expected one neuron per value of an input (batch, ...), got input"
            f" {layer.input_shape} and output {layer.output_shape}, batch axis not counted",
            "Give the input the shape of the layer's parameters",
        )


class _Builder:
    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.nodes: dict[str, nir.NIRNode] = {}
        self.edges: list[Edge] = []
        self.delayed: set[Edge] = set()
        self.entry: dict[str, str] = {}
        self.exit: dict[str, str] = {}

    def add_block(self, name: str, block: Block) -> None:
        def full(suffix: str) -> str:
            return f"{name}.{suffix}" if suffix else name

        for suffix, node in block.nodes.items():
            self._add(full(suffix), node)
        self.edges += [(full(a), full(b)) for a, b in block.edges]
        self.delayed |= {(full(a), full(b)) for a, b in block.delayed}
        self.entry[name], self.exit[name] = full(block.entry), full(block.exit)

    def add_layer(self, name: str, layer: Layer) -> None:
        before = self._foldable(name, layer)
        if before is not None:
            self.nodes[before] = fold_batch_norm(self.nodes[before], layer)
            self.entry[name] = self.exit[name] = before
            return
        self._add(name, layer_to_nir(layer))
        self.entry[name] = self.exit[name] = name

    def _add(self, name: str, node: nir.NIRNode) -> None:
        if name in self.nodes:
            raise Refused(
                name,
                "expected one module per node name, got two",
                "Rename the module whose path ends in that of a recurrent weight",
            )
        self.nodes[name] = node

    def _foldable(self, name: str, layer: Layer) -> str | None:
        """The weights right before a batch norm, if nothing else reads them."""
        if not isinstance(layer.module, nn.modules.batchnorm._BatchNorm):
            return None
        sources = [edge for edge in self.traced.edges if edge[1] == name]
        if len(sources) != 1 or sources[0] in self.traced.delayed:
            return None
        source = sources[0][0]
        readers = [edge for edge in self.traced.edges if edge[0] == source]
        shown = any(source in names for names in self.traced.outputs.values())
        weights = (nir.Linear, nir.Affine, nir.Conv1d, nir.Conv2d)
        foldable = isinstance(self.nodes.get(source), weights)
        return source if foldable and len(readers) == 1 and not shown else None

    def graph(self, dt: float, source: str) -> nir.NIRGraph:
        inputs = self._inputs()
        outputs = self._outputs()
        for a, b in self.traced.edges:
            edge = inputs.get(a) or self.exit[a], self.entry[b]
            if edge[0] == edge[1] and (a, b) not in self.traced.delayed:
                continue  # the edge into a batch norm that was folded away
            self.edges.append(edge)
            if (a, b) in self.traced.delayed:
                self.delayed.add(edge)
        for name, sources in self.traced.outputs.items():
            self.edges += [(inputs.get(s) or self.exit[s], outputs[name]) for s in sources]
        graph = nir.NIRGraph(nodes=self.nodes, edges=self.edges, type_check=False)
        graph.validate_structure()
        write_hints(graph, dt_s=dt, time_unit="s", source=source)
        loop = loop_hint(self.nodes, self.edges, self.delayed)
        if loop is not None:
            write_hints(graph, loop=loop)
        late_projections(self.nodes, self.edges, loop)
        return graph

    def _inputs(self) -> dict[str, str]:
        single = len(self.traced.inputs) == 1
        names = {}
        for argument, shape in self.traced.inputs.items():
            name = self._free("input" if single else argument.removeprefix(input_source("")))
            node = nir.Input(input_type={"input": np.array(shape)})
            self.nodes = {name: node, **self.nodes}
            names[argument] = name
        return names

    def _outputs(self) -> dict[str, str]:
        names = {}
        for output, sources in self.traced.outputs.items():
            name = self._free(output)
            shape = self._output_shape(sources[0])
            self.nodes[name] = nir.Output(output_type={"output": np.array(shape)})
            names[output] = name
        return names

    def _output_shape(self, source: str) -> tuple[int, ...]:
        if source in self.traced.inputs:
            return self.traced.inputs[source]
        return self.traced.layers[source].output_shape

    def _free(self, name: str) -> str:
        while name in self.nodes:
            name += "_"
        return name

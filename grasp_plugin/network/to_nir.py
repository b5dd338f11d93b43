"""`Network` -> NIR graph: weights, learned or not, go back to where other tools can read them.

The graph is canonical: one neuron node a population, one Linear, Affine, Conv1d or Conv2d node a
projection, Delay nodes for explicit delays, Flatten where a matrix follows a shaped population. It
discretises (forward Euler, with the hints it carries) to the network that was written: gains are
undone in the weights and stored in r, so that (dt/tau) r is the gain again. A convolution whose
target has one gain a channel stays a convolution; chains that were folded become one matrix. An
adaptive population becomes its stock node with rho, theta and n_ref as hints (a warning is logged).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network import loops
from grasp_plugin.network import weights as W
from grasp_plugin.network.adaptation import adaptation_hints
from grasp_plugin.network.hints import write_hints
from grasp_plugin.network.network import Bias, Network, Population, Projection
from grasp_plugin.network.weights import Array, Conv, Weight

SLOWEST = 1e300  # dt / tau = 1e-300: no leak in float64, and still finite


@dataclass
class _Graph:
    nodes: dict[str, Any] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, node: Any, before: str) -> str:
        name = self.free(name)
        self.nodes[name] = node
        self.edges.append((before, name))
        return name

    def free(self, name: str) -> str:
        name = name.replace("/", "_")
        count, wanted = 1, name
        while name in self.nodes:
            name, count = f"{wanted}_{count}", count + 1
        return name


def to_nir(network: Network, provenance: Mapping[str, str] | None = None) -> nir.NIRGraph:
    """A float network as a NIR graph in seconds.

    Args:
        network: precision "float"; for integers pass `dequantise(network)`.
        provenance: text to keep in the graph's metadata beside the network's own, e.g. the rule
            that changed the weights.

    Returns:
        A `nir.NIRGraph` whose hints carry dt, reset rules and loops. Write it with
        `adapters.nir_file.write_nir`.

    Raises:
        Refused: integers; a delay without dt.
    """
    if network.precision != "float":
        raise Refused("network", "expected float precision, got Loihi integers",
                      "Pass dequantise(network)")  # fmt: skip
    shapes = _written_shapes(network)
    graph = _Graph()
    for name, shape in network.inputs.items():
        graph.nodes[name] = nir.Input(input_type={"input": np.array(shape)})
    for p in network.populations:
        graph.nodes[p.name] = _neuron(network, p, shapes[p.name])
    for output, source in network.outputs.items():
        if output != source:
            node = nir.Output(output_type={"output": np.array(shapes[source])})
            graph.nodes[output] = node
            graph.edges.append((source, output))
    in_loop = _loop_steps(network)
    for p in network.populations:
        _write_inputs(graph, network, p, shapes, in_loop)
    out = nir.NIRGraph(nodes=graph.nodes, edges=graph.edges, type_check=False)
    hints: dict[str, Any] = {**network.provenance, **(provenance or {}), "time_unit": "s"}
    hints["source"] = network.provenance.get("source", "nir")
    hints.pop("scheme", None)  # decays are written as forward Euler reads them
    hints.pop("integrator", None)
    if network.dt_s is not None:
        hints["dt_s"] = network.dt_s
    feedback = [
        f"{k.source}->{k.target}" for k in network.projections if in_loop[k.name]
        and k.source != k.target
    ]  # fmt: skip
    if feedback:
        hints["loop"] = ";".join(dict.fromkeys(feedback))
    write_hints(out, **hints)
    return out


def _loop_steps(network: Network) -> dict[str, int]:
    """1 for projections whose delay holds the implicit step of a loop, 0 for the others."""
    component = loops.components(network.projections) if network.projections else {}
    return {
        k.name: int(component[k.source] == component[k.target] and k.min_delay > 0)
        for k in network.projections
    }


def _written_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """A population keeps its shape if only convolutions of that shape feed it; else it is flat."""
    shapes: dict[str, tuple[int, ...]] = dict(network.inputs)
    for p in network.populations:
        into = network.into(p.name)
        kept = len(p.shape) == 1 or all(_keeps(k, network, p) for k in into)
        shapes[p.name] = p.shape if kept else (p.size,)
    return shapes


def _keeps(k: Projection, network: Network, p: Population) -> bool:
    if isinstance(k.weight, Conv):
        return k.weight.out_shape == p.shape
    source = network.inputs.get(k.source) or network[k.source].shape
    return W.is_identity(k.weight) and tuple(source) == p.shape and bool(np.all(p.gain == 1))


def _neuron(network: Network, p: Population, shape: tuple[int, ...]) -> Any:
    def shaped(values: Array) -> Array:
        return np.asarray(values, np.float64).reshape(shape).copy()

    if p.node == "Output":
        return nir.Output(output_type={"output": np.array(shape)})
    if p.node == "Threshold":
        node = nir.Threshold(threshold=shaped(p.v_th))
        if p.adaptive:
            write_hints(node, **_hints(network, p))
        return node
    fields: dict[str, Array] = {}
    if p.node in ("IF", "I"):
        fields["r"] = p.gain
    else:
        if network.dt_s is None:
            raise Refused(p.name, "expected dt_s for a time constant, got none", "Discretise again")
        slow = np.maximum(p.dv, 1.0 / SLOWEST)
        fields |= {"r": p.gain / slow, "v_leak": p.drive / slow + p.v_offset}
        fields["tau" if p.node in ("LIF", "LI") else "tau_mem"] = network.dt_s / slow
    if p.node in ("CubaLIF", "CubaLI"):
        du = np.maximum(p.du, 1.0 / SLOWEST)
        fields |= {"tau_syn": network.dt_s / du, "w_in": 1.0 / du}
    if p.spiking:
        fields |= {"v_threshold": p.v_th + p.v_offset, "v_reset": p.v_offset}
    node = getattr(nir, p.node)(**{name: shaped(values) for name, values in fields.items()})
    write_hints(node, **_hints(network, p))
    return node


def _hints(network: Network, p: Population) -> dict[str, Any]:
    hints: dict[str, Any] = {"source": network.provenance.get("source", "nir")}
    if network.dt_s is not None:
        hints["dt_s"] = network.dt_s
    if p.reset is not None:
        hints |= {"reset": p.reset, "comparator": ">"}
    return hints | adaptation_hints(p)


def _write_inputs(
    graph: _Graph,
    network: Network,
    p: Population,
    shapes: Mapping[str, tuple[int, ...]],
    in_loop: Mapping[str, int],
) -> None:
    biases = [b for b in network.biases if b.target == p.name]
    at_once = sum((b.value for b in biases if b.onset_steps == 0), np.zeros(p.size))
    for k in network.into(p.name):
        delays = np.asarray(k.delay_steps) - in_loop[k.name]
        for delay in np.unique(delays):
            weight: Weight = k.weight
            if delays.ndim and np.any(delays != delay):
                weight = np.where(delays == delay, W.to_dense(k.weight), 0.0)
            weight = W.scale_rows(weight, 1.0 / p.gain)
            bias = (
                at_once / p.gain if delay == 0 and _can_hold(weight, at_once, shapes, k) else None
            )
            if bias is not None:
                at_once = np.zeros(p.size)
            _path(graph, network, k, weight, bias, int(delay), shapes)
    if np.any(at_once):
        biases = [Bias("bias", p.name, at_once, 0), *(b for b in biases if b.onset_steps)]
    else:
        biases = [b for b in biases if b.onset_steps]
    for b in biases:
        _bias_path(graph, network, b, p, shapes)


def _can_hold(
    weight: Weight, bias: Array, shapes: Mapping[str, tuple[int, ...]], k: Projection
) -> bool:
    """A convolution holds one bias a channel, a matrix any, an identity edge none."""
    if isinstance(weight, Conv) and shapes[k.target] == weight.out_shape:
        channels = bias.reshape(weight.out_shape[0], -1)
        return bool(np.all(channels == channels[:, :1]))
    return not W.is_identity(weight)


def _path(
    graph: _Graph,
    network: Network,
    k: Projection,
    weight: Weight,
    bias: Array | None,
    delay: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    at, shape = k.source, shapes[k.source]
    if delay:
        if network.dt_s is None:
            raise Refused(k.name, "expected dt_s for a delay, got none", "Discretise again")
        node = nir.Delay(delay=np.full(shape, delay * network.dt_s))
        at = graph.add(f"{k.name}.delay", node, at)
    name = _weight_name(k)
    if isinstance(weight, Conv) and _writable(weight, shape, shapes[k.target]):
        at = graph.add(name, _conv_node(weight, bias), at)
    elif W.is_identity(weight) and shape == shapes[k.target] and bias is None:
        pass
    else:
        if len(shape) > 1:
            flat = nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1)
            at = graph.add(f"{k.name}.flatten", flat, at)
        matrix = W.to_dense(weight).astype(np.float64)
        node = nir.Linear(matrix) if bias is None else nir.Affine(matrix, np.asarray(bias))
        at = graph.add(name, node, at)
    graph.edges.append((at, k.target))


def _weight_name(k: Projection) -> str:
    """The NIR node the weights came from if it was one, else the projection's name."""
    return k.nodes[0] if len(k.nodes) == 1 else k.name


def _writable(conv: Conv, source: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """NIR pads both sides alike, and has no reshape back from flat neurons."""
    fits = conv.in_shape == source and conv.out_shape == target
    return fits and all(low == high for low, high in conv.padding)


def _conv_node(conv: Conv, bias: Array | None) -> Any:
    channels = conv.out_shape[0]
    per_channel = np.zeros(channels) if bias is None else bias.reshape(channels, -1)[:, 0].copy()
    one = len(conv.in_shape) == 2
    kind = nir.Conv1d if one else nir.Conv2d

    def axes(values: tuple[int, ...]) -> Any:
        return int(values[0]) if one else tuple(int(v) for v in values)

    return kind(
        input_shape=axes(conv.in_shape[1:]),
        weight=np.asarray(conv.kernel, np.float64),
        stride=axes(conv.stride),
        padding=axes(tuple(low for low, _ in conv.padding)),
        dilation=axes(conv.dilation),
        groups=int(conv.groups),
        bias=per_channel,
    )


def _bias_path(
    graph: _Graph,
    network: Network,
    b: Bias,
    p: Population,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """A bias that no weight node holds: an Affine of zero weights from an input, then its delay."""
    if len(shapes[p.name]) > 1:
        raise Invalid(
            b.name, "expected a flat population or one bias a channel", "Flatten the population"
        )
    source = next(iter(network.inputs))
    at, shape = source, shapes[source]
    if len(shape) > 1:
        flat = nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1)
        at = graph.add(f"{b.name}.flatten", flat, at)
    zeros = np.zeros((p.size, network.size_of(source)))
    at = graph.add(f"{b.name}->{p.name}", nir.Affine(zeros, b.value / p.gain), at)
    if b.onset_steps:
        if network.dt_s is None:
            raise Refused(b.name, "expected dt_s for a delayed bias, got none", "Discretise again")
        delay = np.full((p.size,), b.onset_steps * network.dt_s)
        at = graph.add(f"{b.name}.delay", nir.Delay(delay=delay), at)
    graph.edges.append((at, p.name))

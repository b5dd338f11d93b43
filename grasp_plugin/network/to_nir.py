"""`Network` -> NIR graph: weights, learned or not, go back to where other tools can read them.

The graph is canonical: one neuron node a population, one Linear, Affine, Conv1d or Conv2d node a
projection, Delay nodes for explicit delays, Flatten where a matrix follows a shaped population. It
discretises (forward Euler, with the hints it carries) to the network that was written: gains are
undone in the weights and stored in r, so that (dt/tau) r is the gain again (r such that it is 1
where it was 0, the weights being 0 there). A convolution stays one where its target has one gain a
channel and both sides keep their shapes (see `network.written`); chains that were folded, pooling
too, become one matrix. An adaptive population becomes its stock node with rho, theta and n_ref as
hints (a warning is logged).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np

from grasp_plugin.errors import GraspError, Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.adaptation import adaptation_hints
from grasp_plugin.network.graph import flatten
from grasp_plugin.network.hints import write_hints
from grasp_plugin.network.network import Network, Population, require_network
from grasp_plugin.network.weights import Array, Conv
from grasp_plugin.network.written import (
    Layout,
    Path,
    Shape,
    layout_of,
    loop_steps,
    writable,
    written_gain,
)

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

    def flat(self, name: str, shape: Shape, before: str) -> str:
        """`before`, through a Flatten if it has more than one axis."""
        if len(shape) < 2:
            return before
        node = nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1)
        return self.add(f"{name}.flatten", node, before)

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
        `adapters.nir_file.write_nir`. Populations keep their names, sizes and C order, but a shape
        (C, H, W) only where NIR can express all that feeds it: one whose input is pooled or a
        matrix, whose gain or bias differs within a channel, or that lies behind a convolution from
        a flat population, is written flat, (2, 3, 3) as (18,); so are its Output, and what a
        recording of the graph holds for both.

    Raises:
        Invalid: something else than a Network.
        Refused: integers; a delay without dt; a drive without leak; what NIR cannot hold.
    """
    require_network(network)
    if network.precision != "float":
        raise Refused("network", "expected float precision, got Loihi integers",
                      "Pass dequantise(network)")  # fmt: skip
    layout, graph = layout_of(network), _Graph()
    for name, shape in network.inputs.items():
        graph.nodes[name] = nir.Input(input_type={"input": np.array(shape)})
    for p in network.populations:
        graph.nodes[p.name] = _neuron(network, p, layout.shapes[p.name])
    for output, source in network.outputs.items():
        if output != source:
            node = nir.Output(output_type={"output": np.array(layout.shapes[source])})
            graph.nodes[output] = node
            graph.edges.append((source, output))
    for p in network.populations:
        _write_inputs(graph, network, p, layout)
    out = nir.NIRGraph(nodes=graph.nodes, edges=graph.edges, type_check=False)
    write_hints(out, **_graph_hints(network, provenance or {}))
    _check_readable(out)
    return out


def _graph_hints(network: Network, provenance: Mapping[str, str]) -> dict[str, Any]:
    hints: dict[str, Any] = {**network.provenance, **provenance, "time_unit": "s"}
    hints["source"] = network.provenance.get("source", "nir")
    hints.pop("scheme", None)  # decays are written as forward Euler reads them
    hints.pop("integrator", None)
    if network.dt_s is not None:
        hints["dt_s"] = network.dt_s
    in_loop = loop_steps(network)
    feedback = [
        f"{k.source}->{k.target}" for k in network.projections if in_loop[k.name]
        and k.source != k.target
    ]  # fmt: skip
    if feedback:
        hints["loop"] = ";".join(dict.fromkeys(feedback))
    return hints


def _check_readable(graph: nir.NIRGraph) -> None:
    """What is written can be read: all that `discretise` asks of fields, edges and shapes."""
    try:
        flatten(graph)
    except GraspError as error:
        raise Refused(
            error.node,
            f"expected a network that NIR can hold, got a graph that cannot be read back: "
            f"{error.reason}",
            "Check the parameters of this population; if they are sound, please report it",
        ) from error


def _neuron(network: Network, p: Population, shape: Shape) -> Any:
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
        fields["r"] = written_gain(p)
    else:
        if network.dt_s is None:
            raise Refused(p.name, "expected dt_s for a time constant, got none", "Discretise again")
        slow = np.maximum(p.dv, 1.0 / SLOWEST)
        fields |= {"r": written_gain(p) / slow, "v_leak": _leak(p)}
        fields["tau" if p.node in ("LIF", "LI") else "tau_mem"] = network.dt_s / slow
    if p.node in ("CubaLIF", "CubaLI"):
        du = np.maximum(p.du, 1.0 / SLOWEST)
        fields |= {"tau_syn": network.dt_s / du, "w_in": 1.0 / du}
    if p.spiking:
        fields |= {"v_threshold": p.v_th + p.v_offset, "v_reset": p.v_offset}
    node = getattr(nir, p.node)(**{name: shaped(values) for name, values in fields.items()})
    write_hints(node, **_hints(network, p))
    return node


def _leak(p: Population) -> Array:
    """v_leak, which the drive pulls to; without a leak it is but where the membrane starts."""
    if np.any((p.dv == 0) & (p.drive != 0)):
        raise Refused(
            p.name,
            "expected no drive where the membrane does not leak, got a drive with dv = 0, which no "
            "v_leak gives",
            "Make the drive a bias; after dequantise, take a dt of at least tau / 8000",
        )
    resting = np.where(p.dv > 0, p.drive / np.where(p.dv > 0, p.dv, 1.0), p.v_init)
    return np.asarray(resting + p.v_offset)


def _hints(network: Network, p: Population) -> dict[str, Any]:
    hints: dict[str, Any] = {"source": network.provenance.get("source", "nir")}
    if network.dt_s is not None:
        hints["dt_s"] = network.dt_s
    if p.reset is not None:
        hints |= {"reset": p.reset, "comparator": ">"}
    return hints | adaptation_hints(p)


def _write_inputs(graph: _Graph, network: Network, p: Population, layout: Layout) -> None:
    for i, path in enumerate(layout.paths[p.name]):
        _write_path(graph, network, path, layout.held[p.name].get(i), layout.shapes)
    for onset, value in sorted(layout.left[p.name].items()):
        _write_bias(graph, network, p, (onset, value), layout.shapes)


def _write_path(
    graph: _Graph,
    network: Network,
    path: Path,
    held: tuple[int, Array] | None,
    shapes: Mapping[str, Shape],
) -> None:
    k, weight = path.projection, path.weight
    onset, bias = (0, None) if held is None else held
    at, shape, target = k.source, shapes[k.source], shapes[k.target]
    if path.delay and not onset:
        at = _delayed(graph, network, k.name, path.delay, shape, at)
    if isinstance(weight, Conv) and writable(weight, shape, target):
        at = graph.add(_weight_name(path), _conv_node(weight, bias), at)
    elif W.is_identity(weight) and bias is None:
        at = at if shape == target else graph.flat(k.name, shape, at)
    else:
        at = graph.flat(k.name, shape, at)
        matrix = W.to_dense(weight).astype(np.float64)
        node = nir.Linear(matrix) if bias is None else nir.Affine(matrix, np.asarray(bias))
        at = graph.add(_weight_name(path), node, at)
    if path.delay and onset:
        at = _delayed(graph, network, k.name, path.delay, target, at)
    graph.edges.append((at, k.target))


def _delayed(
    graph: _Graph, network: Network, name: str, steps: int, shape: Shape, before: str
) -> str:
    if network.dt_s is None:
        raise Refused(name, "expected dt_s for a delay, got none", "Discretise again")
    node = nir.Delay(delay=np.full(shape, steps * network.dt_s))
    return graph.add(f"{name}.delay", node, before)


def _weight_name(path: Path) -> str:
    """The NIR node the weights came from if it was one, else the projection's name."""
    k = path.projection
    return k.nodes[0] if len(k.nodes) == 1 else k.name


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


def _write_bias(
    graph: _Graph,
    network: Network,
    p: Population,
    bias: tuple[int, Array],
    shapes: Mapping[str, Shape],
) -> None:
    """A bias that no weight node holds: an Affine of zero weights from an input, then its delay."""
    onset, value = bias
    source, name = next(iter(network.inputs)), f"bias->{p.name}"
    at = graph.flat(name, shapes[source], source)
    at = graph.add(name, nir.Affine(np.zeros((p.size, network.size_of(source))), value), at)
    if onset:
        at = _delayed(graph, network, name, onset, (p.size,), at)
    graph.edges.append((at, p.name))

"""A NIR graph in canonical form: nested graphs inlined, shapes inferred, nothing mutated.

NIR's own inference is not relied on: it reports wrong shapes for grouped and non-square
convolutions, needs `input_shape`, and skips what lies behind a recurrence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network.fields import check_shape
from grasp_plugin.network.hints import read_hints
from grasp_plugin.network.validate import validate
from grasp_plugin.network.weights import Conv

Shape = tuple[int, ...]
NEURONS = (nir.IF, nir.LIF, nir.LI, nir.I, nir.CubaLIF, nir.CubaLI)
SPIKING = (nir.IF, nir.LIF, nir.CubaLIF, nir.Threshold)
ELEMENTWISE = {nir.Scale: "scale", nir.Threshold: "threshold", nir.Delay: "delay"}


@dataclass
class FlatGraph:
    """Nodes by full name (`outer.inner`), edges without duplicates, shapes in and out."""

    nodes: dict[str, Any]
    edges: list[tuple[str, str]]
    hints: dict[str, Any]
    shape_in: dict[str, Shape] = field(default_factory=dict)
    shape_out: dict[str, Shape] = field(default_factory=dict)

    def before(self, name: str) -> list[str]:
        """The nodes that feed `name`, sorted."""
        return sorted(a for a, b in self.edges if b == name)

    def named(self, kind: type) -> list[str]:
        return sorted(name for name, node in self.nodes.items() if isinstance(node, kind))


def flatten(graph: nir.NIRGraph) -> FlatGraph:
    """Inline nested graphs and infer every shape.

    Raises:
        Invalid: the graph is malformed (see `validate`), or shapes clash.
        Refused: a nested graph with several ports.
    """
    validate(graph)
    nodes, edges = _inline(graph, "")
    flat = FlatGraph(nodes, sorted(edges), read_hints(graph))
    _splice_inner_ports(flat)
    _infer_shapes(flat)
    return flat


def _inline(graph: nir.NIRGraph, prefix: str) -> tuple[dict[str, Any], set[tuple[str, str]]]:
    nodes: dict[str, Any] = {}
    ports: dict[str, tuple[str | None, str | None]] = {}
    edges: set[tuple[str, str]] = set()
    for key, node in graph.nodes.items():
        name = f"{prefix}{key}"
        if isinstance(node, nir.NIRGraph):
            inner_nodes, inner_edges = _inline(node, f"{name}.")
            taken = sorted({*inner_nodes} & {*nodes, *(f"{prefix}{k}" for k in graph.nodes)})
            if taken:
                raise Invalid(
                    taken[0], "expected one node of this full name, got two", "Rename one"
                )
            nodes |= inner_nodes
            edges |= inner_edges
            ports[name] = tuple(
                _single_port(name, node, prefix=f"{name}.", kind=kind)
                for kind in (nir.Input, nir.Output)
            )  # type: ignore[assignment]
        else:
            nodes[name] = node
    for a, b in graph.edges:
        source, target = f"{prefix}{a}", f"{prefix}{b}"
        first = ports[source][1] if source in ports else source
        last = ports[target][0] if target in ports else target
        if first is None or last is None:
            culprit = source if first is None else target
            raise Refused(
                culprit,
                "expected a nested graph with one Input and one Output, since an edge names only "
                "the graph, got several or none",
                "Flatten the graph before exporting",
            )
        edges.add((first, last))
    return nodes, edges


def _single_port(name: str, graph: nir.NIRGraph, *, prefix: str, kind: type) -> str | None:
    found = [key for key, node in graph.nodes.items() if isinstance(node, kind)]
    return f"{prefix}{found[0]}" if len(found) == 1 else None


def _splice_inner_ports(flat: FlatGraph) -> None:
    """Join what feeds an inner Input or Output to what it feeds."""
    for kind, far_side in ((nir.Input, 1), (nir.Output, 0)):
        for name in flat.named(kind):
            if not any(edge[far_side] == name for edge in flat.edges):
                continue
            sources = [a for a, b in flat.edges if b == name]
            targets = [b for a, b in flat.edges if a == name]
            rest = {edge for edge in flat.edges if name not in edge}
            flat.edges = sorted(rest | {(a, b) for a in sources for b in targets})
            del flat.nodes[name]


def as_shape(name: str, value: Any) -> Shape | None:
    """A NIR type entry as a tuple; None stays None."""
    if isinstance(value, dict):
        if len(value) != 1:
            raise Invalid(name, f"expected one port, got {sorted(value)}", "Use one port a node")
        value = next(iter(value.values()))
    if value is None:
        return None
    return check_shape(value, name, "shape")


def parameter_shape(node: Any) -> Shape | None:
    """The common shape of a neuron's or elementwise node's parameters; None if all are scalar."""
    if isinstance(node, NEURONS):
        names = [f for f in ("tau", "tau_mem", "tau_syn", "r", "v_leak", "v_threshold", "v_reset",
                             "w_in") if getattr(node, f, None) is not None]  # fmt: skip
    else:
        names = [ELEMENTWISE[type(node)]]
    shapes = {np.shape(getattr(node, name)) for name in names}
    shapes.discard(())
    return max(shapes, key=lambda s: int(np.prod(s))) if shapes else None


def _infer_shapes(flat: FlatGraph) -> None:
    for name, node in flat.nodes.items():
        if isinstance(node, nir.Input):
            shape = as_shape(name, node.input_type)
            if shape is None:
                raise Invalid(name, "expected an Input with a shape, got none", "Give input_type")
            flat.shape_in[name] = flat.shape_out[name] = shape
        elif isinstance(node, (*NEURONS, *ELEMENTWISE)):
            known = parameter_shape(node)
            if known is not None:
                flat.shape_in[name] = flat.shape_out[name] = known
        elif isinstance(node, (nir.Affine, nir.Linear)):
            flat.shape_in[name], flat.shape_out[name] = _linear_shapes(name, node)
    changed = True
    while changed:
        changed = _propagate(flat)
    unknown = sorted(set(flat.nodes) - set(flat.shape_out))
    if unknown:
        raise Invalid(
            unknown[0],
            "expected a shape, got none: no edge from an Input reaches this node",
            "Connect it, or remove it from the graph",
        )
    for name, node in flat.nodes.items():
        if isinstance(node, nir.Output):
            declared = as_shape(name, node.output_type)
            if declared is not None and declared != flat.shape_in[name]:
                raise _clash(name, flat.before(name)[0], declared, flat.shape_in[name])


def _propagate(flat: FlatGraph) -> bool:
    changed = False
    for source, target in flat.edges:
        shape = flat.shape_out.get(source)
        if shape is None:
            continue
        if target not in flat.shape_in:
            flat.shape_in[target] = shape
            changed = True
        elif flat.shape_in[target] != shape:
            node = flat.nodes[target]
            size_one = isinstance(node, (*NEURONS, *ELEMENTWISE)) and parameter_shape(node) == (1,)
            if size_one and flat.shape_out[target] == (1,) and len(shape) == 1:
                flat.shape_in[target] = flat.shape_out[target] = shape  # a broadcast scalar
                changed = True
            else:
                raise _clash(target, source, flat.shape_in[target], shape)
    for name, node in flat.nodes.items():
        if name in flat.shape_in and name not in flat.shape_out:
            flat.shape_out[name] = _out_shape(name, node, flat.shape_in[name])
            changed = True
    return changed


def _clash(target: str, source: str, expected: Shape, got: Shape) -> Invalid:
    remedy = "Check the layer sizes"
    if len(got) == len(expected) + 1 and got[1:] == expected:
        remedy = "NIR has no time or batch axis: declare the Input without it"
    elif int(np.prod(got)) == int(np.prod(expected)):
        remedy = "Put a Flatten between them"
    return Invalid(target, f"expected input of shape {expected}, got {got} from {source}", remedy)


def _linear_shapes(name: str, node: Any) -> tuple[Shape, Shape]:
    shape = np.shape(node.weight)
    if len(shape) < 2:
        raise Invalid(name, f"expected a weight [out, in], got shape {shape}", "Give both axes")
    out = (*shape[:-2], shape[-2])
    if isinstance(node, nir.Affine) and np.shape(node.bias) not in (out, ()):
        raise Invalid(
            name, f"expected a bias of shape {out}, got {np.shape(node.bias)}", "One bias an output"
        )
    return (*shape[:-2], shape[-1]), out


def _out_shape(name: str, node: Any, shape: Shape) -> Shape:
    if isinstance(node, (nir.Conv1d, nir.Conv2d)):
        return conv_of(name, node, shape).out_shape
    if isinstance(node, (nir.SumPool2d, nir.AvgPool2d)):
        return pool_of(name, node, shape).out_shape
    if isinstance(node, nir.Flatten):
        return _flatten_shape(name, node, shape)
    return shape


def _flatten_shape(name: str, node: Any, shape: Shape) -> Shape:
    start, end = int(node.start_dim), int(node.end_dim)
    first = start + len(shape) if start < 0 else start
    last = end + len(shape) if end < 0 else end
    if not 0 <= first < len(shape) or not 0 <= last < len(shape):
        raise Invalid(
            name,
            f"expected start_dim and end_dim within {len(shape)} axes, got {start} and {end}",
            "NIR has no batch axis: start_dim=0 flattens everything",
        )
    last = max(first, last)
    return (*shape[:first], int(np.prod(shape[first : last + 1])), *shape[last + 1 :])


def conv_of(name: str, node: Any, shape: Shape) -> Conv:
    """A Conv1d or Conv2d node on an input (C, *S) as a `Conv`.

    Raises:
        Invalid: channels, groups, stride, padding or dilation that do not fit.
    """
    kernel = np.asarray(node.weight, dtype=np.float64)
    axes = 1 if isinstance(node, nir.Conv1d) else 2
    if kernel.ndim != axes + 2:
        raise Invalid(name, f"expected a weight of {axes + 2} axes, got {kernel.shape}", "Check it")
    groups = int(np.asarray(node.groups).item())
    if len(shape) != axes + 1 or groups < 1 or shape[0] != kernel.shape[1] * groups:
        raise Invalid(
            name,
            f"expected input ({kernel.shape[1] * groups}, {', '.join(['size'] * axes)}), "
            f"got {shape}",
            "Check channels and groups",
        )
    if kernel.shape[0] % groups:
        raise Invalid(name, f"expected groups dividing {kernel.shape[0]}, got {groups}", "Check it")
    stride = per_axis(name, "stride", node.stride, axes, least=1)
    dilation = per_axis(name, "dilation", node.dilation, axes, least=1)
    padding = _padding(name, node.padding, kernel.shape[2:], dilation, stride)
    conv = Conv(kernel, shape, stride, padding, dilation, groups)
    return _require_room(name, conv)


def pool_of(name: str, node: Any, shape: Shape) -> Conv:
    """A SumPool2d or AvgPool2d node as a grouped convolution; padding counts in the mean."""
    size = per_axis(name, "kernel_size", node.kernel_size, 2, least=1)
    stride = per_axis(name, "stride", node.stride, 2, least=1)
    padding = per_axis(name, "padding", node.padding, 2, least=0)
    if len(shape) != 3:
        raise Invalid(name, f"expected input (C, H, W), got {shape}", "Pool before Flatten")
    weight = 1.0 / np.prod(size) if isinstance(node, nir.AvgPool2d) else 1.0
    kernel = np.full((shape[0], 1, *size), weight)
    pads = tuple((p, p) for p in padding)
    return _require_room(name, Conv(kernel, shape, stride, pads, (1, 1), shape[0]))


def _require_room(name: str, conv: Conv) -> Conv:
    if min(conv.out_shape) < 1:
        raise Invalid(
            name,
            f"expected an input at least as large as the kernel, got {conv.in_shape} for kernel "
            f"{conv.kernel.shape[2:]}",
            "Check the input size and the padding",
        )
    return conv


def per_axis(name: str, field: str, value: Any, axes: int, *, least: int) -> tuple[int, ...]:
    """An integer or one integer an axis, as a tuple."""
    array = np.atleast_1d(np.asarray(value))
    ok = array.dtype.kind in "iuf" and array.size in (1, axes) and np.all(array == np.round(array))
    if not ok or np.any(array < least):
        raise Invalid(
            name, f"expected {field} of 1 or {axes} integers >= {least}, got {value!r}", "Check it"
        )
    return tuple(int(n) for n in np.broadcast_to(array.ravel(), (axes,)))


def _padding(
    name: str, value: Any, kernel: Shape, dilation: Shape, stride: Shape
) -> tuple[tuple[int, int], ...]:
    if isinstance(value, bytes):
        value = value.decode("utf8")
    if isinstance(value, str):
        if value == "valid":
            return tuple((0, 0) for _ in kernel)
        if value != "same" or any(s != 1 for s in stride):
            raise Invalid(
                name,
                f"expected padding of integers, 'valid', or 'same' with stride 1, got {value!r}",
                "Give the padding in numbers",
            )
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)
    return tuple((p, p) for p in per_axis(name, "padding", value, len(kernel), least=0))


def topological(names: Iterable[str], before: Callable[[str], list[str]]) -> list[str]:
    """Names with every one behind those that `before` gives.

    Raises:
        Refused: a loop, named.
    """
    order: list[str] = []
    waiting = sorted(names)
    while waiting:
        ready = [n for n in waiting if all(b in order for b in before(n))]
        if not ready:
            raise Refused(
                " -> ".join(waiting),
                "expected a neuron in every loop, got a loop of linear nodes",
                "Put a neuron population into the loop",
            )
        order += ready
        waiting = [n for n in waiting if n not in order]
    return order

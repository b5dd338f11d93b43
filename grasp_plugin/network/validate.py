"""Is this graph well formed NIR?  Every field of every node, and every edge, before anything runs.

`nir` itself validates by `assert` (gone under `python -O`) and by type inference that alters the
graph. The checks here raise `Invalid` with the node's name, change nothing and need no shapes to be
inferred. They are structural: whether the shapes of neighbours agree is `discretise`'s question.

Checked, per node: a known type, no unknown or missing field, numbers (no bool, complex, text or
objects), no NaN, inf for time constants only, time constants above zero, delays not below zero, one
common shape for the parameters of a neuron (a single value stands for all), the rank of weights,
the shape of biases, the integers of convolutions, pooling and flattening, sane sizes. Per graph: at
least one Input and one Output, each with a shape; edges between nodes that exist, each edge once,
none into an Input or out of an Output, every Output fed. Nested graphs alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import nir

from grasp_plugin.errors import Invalid
from grasp_plugin.network.fields import at, check_fields, check_type, fields_of, options, show
from grasp_plugin.network.hints import KEY

MAX_DEPTH = 32
"""Deeper nesting of graphs than this counts as a graph that contains itself."""


def validate(graph: nir.NIRGraph, where: str = "graph") -> None:
    """Raise `Invalid` unless the graph is well formed; the graph is left as it is.

    Args:
        graph: the graph in memory, nested graphs included.
        where: what to call it in messages, e.g. the file it came from.

    Raises:
        Invalid: naming `where`, the node, what was expected and got, and the remedy.

    Example:
        >>> import nir, numpy as np
        >>> lif = nir.LIF(*(np.array([value]) for value in (0.02, 1.0, 0.0, 1.0)))
        >>> shape = np.array([1])
        >>> nodes = {"in": nir.Input(shape), "lif": lif, "out": nir.Output(shape)}
        >>> validate(nir.NIRGraph(nodes, [("in", "lif"), ("lif", "out")], type_check=False))
        >>> lif.tau = np.array([-0.02])
        >>> validate(nir.NIRGraph(nodes, [("in", "lif"), ("lif", "out")], type_check=False))
        Traceback (most recent call last):
        grasp_plugin.errors.Invalid: graph, node 'lif': expected tau > 0, got -0.02. ...
    """
    if not isinstance(graph, nir.NIRGraph):
        kind = type(graph).__name__
        remedy = "Put the node into a NIRGraph between an Input and an Output"
        if not isinstance(graph, nir.NIRNode):
            remedy = "Pass the graph itself: nir.NIRGraph, or read_nir(path)"
        raise Invalid(where, f"expected a nir.NIRGraph, got {kind}", remedy)
    _validate_graph(graph, where, "", 0)


def _validate_graph(graph: nir.NIRGraph, where: str, prefix: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Invalid(
            at(where, prefix), f"graphs are nested more than {MAX_DEPTH} deep", "Flatten the graph"
        )
    nodes = getattr(graph, "nodes", None)
    if not isinstance(nodes, Mapping):
        _fail(where, prefix, "expected a dict of nodes", nodes, "Give NIRGraph a dict name: node")
    types: dict[str, str] = {}
    for name, node in nodes.items():
        if not isinstance(name, str) or not name:
            _fail(where, prefix, "expected node names that are text", name, "Rename the node")
        path = f"{prefix}.{name}" if prefix else name
        kind = types[name] = type(node).__name__
        known = isinstance(node, nir.NIRNode) and getattr(nir, kind, None) is type(node)
        check_type(kind if known else f"{type(node).__module__}.{kind}", at(where, path))
        if kind == "NIRGraph":
            _validate_graph(node, where, path, depth + 1)
        else:
            check_fields(kind, fields_of(node), at(where, path))
        _check_metadata(node, at(where, path))
    _check_metadata(graph, at(where, prefix))
    check_edges(types, getattr(graph, "edges", None), where, prefix)


def _check_metadata(node: nir.NIRNode, culprit: str) -> None:
    metadata = getattr(node, "metadata", None)
    if not isinstance(metadata, dict | None):
        raise Invalid(
            culprit,
            f"expected metadata to be a dict, got {type(metadata).__name__}",
            "Put the value under a key: node.metadata = {'key': value}",
        )
    hints = (metadata or {}).get(KEY, {})
    if not isinstance(hints, dict):
        raise Invalid(
            culprit,
            f"expected metadata[{KEY!r}] to be a dict, got {show(hints)}",
            "Use another key: this one is for the hints of this package",
        )


def check_edges(types: Mapping[str, str], edges: Any, where: str, prefix: str = "") -> None:
    """Raise `Invalid` unless the edges make a sound graph of these nodes.

    Args:
        types: the type of each node, by name.
        edges: pairs of node names.
        where: the graph or file, for messages.
        prefix: the path of a nested graph, empty for the outermost.
    """
    culprit = at(where, prefix)
    if not types:
        raise Invalid(culprit, "expected nodes, got an empty graph", "Export the network again")
    for kind in ("Input", "Output"):
        if kind not in types.values():
            raise Invalid(
                culprit,
                f"expected at least one {kind} node, got none among {show(sorted(types))}",
                f"Add a nir.{kind} with the shape of the signal and an edge",
            )
    if isinstance(edges, str | bytes) or not isinstance(edges, Iterable):
        _fail(where, prefix, "expected a list of edges", edges, "Give (source, target) pairs")
    seen: set[tuple[str, str]] = set()
    for edge in edges:
        seen.add(_check_edge(edge, types, seen, culprit))
    fed = {target for _, target in seen}
    for name, kind in types.items():
        if kind == "Output" and name not in fed:
            raise Invalid(
                culprit,
                f"expected an edge into the Output {show(name)}, got none",
                "Connect it, or remove it",
            )


def _check_edge(
    edge: Any, types: Mapping[str, str], seen: set[tuple[str, str]], culprit: str
) -> tuple[str, str]:
    pair = tuple(edge) if isinstance(edge, Iterable) and not isinstance(edge, str | bytes) else ()
    if len(pair) != 2 or not all(isinstance(name, str) for name in pair):
        raise Invalid(
            culprit,
            f"expected edges (source, target) of two names, got {show(edge)}",
            "Write each edge as a pair of node names",
        )
    for name in pair:
        if name not in types:
            raise Invalid(
                culprit,
                f"edge {show(pair)} leads to node {show(name)}, which does not exist",
                f"Remove the edge or correct the name: {options(types, name)}",
            )
    if pair in seen:
        raise Invalid(culprit, f"edge {show(pair)} is there twice", "Write each edge once")
    if types[pair[1]] == "Input" or types[pair[0]] == "Output":
        wrong = "into an Input" if types[pair[1]] == "Input" else "out of an Output"
        raise Invalid(
            culprit, f"edge {show(pair)} leads {wrong}", "Connect to the nodes behind it instead"
        )
    return pair


def _fail(where: str, node: str, expected: str, got: Any, remedy: str) -> NoReturn:
    raise Invalid(at(where, node), f"{expected}, got {show(got)}", remedy)

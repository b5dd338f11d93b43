"""NIR written by `from_exact`, back to `Parameters`: the layers in continuous time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nir
import numpy as np

from grasp_plugin.errors import Refused
from grasp_plugin.learning.exact import Parameters
from grasp_plugin.network.graph import FlatGraph, flatten
from grasp_plugin.network.hints import DIRAC, SPIKE_AREA, read_hints
from grasp_plugin.network.weights import Array

PER_SECOND = 1000.0
REMEDY = "Use discretise(graph) instead"


def read_exact(graph: nir.NIRGraph) -> list[Parameters]:
    """The layers of a chain of CubaLIF nodes, the last may be a CubaLI, first to last.

    weight = r w_in / tau_syn times the product of the matrices; all delays of a path add up to one
    per synapse. The graph must say that its spikes are Dirac impulses (hint `spike_area`).

    Raises:
        Invalid: a malformed graph.
        Refused: no such hint; other nodes; layers that are no chain; time constants that differ
            within a layer; a synapse with two delays.

    Example:
        >>> from grasp_plugin.adapters.from_exact import from_exact
        >>> layer = Parameters(np.ones((2, 3)), delay=np.eye(2, 3), tau_mem_ms=10.0)
        >>> read_exact(from_exact([layer], dt_ms=0.5))[0].delay
        array([[1., 0., 0.],
               [0., 1., 0.]])
    """
    flat = flatten(graph)
    if flat.hints.get("time_unit", "s") != "s":
        raise Refused("graph", "expected times in seconds, got others", "Read it with read_nir")
    neurons = {n: x for n, x in flat.nodes.items() if isinstance(x, (nir.CubaLIF, nir.CubaLI))}
    for name, node in neurons.items():
        if read_hints(node).get(SPIKE_AREA) != DIRAC:
            raise Refused(name, f'expected the hint {SPIKE_AREA} = "{DIRAC}", got none', REMEDY)
    sources = {name: list(_paths(flat, name)) for name in neurons}
    at = _one(flat.named(nir.Input), "inputs")
    out: list[Parameters] = []
    while len(out) < len(neurons):
        above = [n for n, paths in sources.items() if {p[0] for p in paths} == {at}]
        at = _one(above, f"layers on {at}")
        out.append(_layer(at, neurons[at], sources[at]))
    return out


def _one(names: list[str], what: str) -> str:
    if len(names) != 1:
        raise Refused("graph", f"expected a chain, got {len(names)} {what}", REMEDY)
    return names[0]


def _paths(flat: FlatGraph, name: str) -> Iterator[tuple[str, Array, Array]]:
    """(source, weight [N, N_i], delay [N, N_i] in seconds) of every path into a node."""
    size = int(np.prod(flat.shape_in[name]))
    stack: list[tuple[str, Any, Array]] = [
        (b, None, np.zeros((size, 1))) for b in flat.before(name)
    ]
    while stack:
        at, weight, delay = stack.pop()
        node = flat.nodes[at]
        if isinstance(node, (nir.Input, nir.CubaLIF)):
            if weight is None:
                weight = np.eye(size)
            yield at, weight, np.broadcast_to(delay, weight.shape)
            continue
        if isinstance(node, nir.Linear) and weight is None:
            weight = np.asarray(node.weight, float)
            own = np.asarray(read_hints(node).get("delay_s", 0.0), float)
            delay = delay + np.broadcast_to(own, weight.shape)
        elif isinstance(node, nir.Delay):
            values = np.broadcast_to(np.asarray(node.delay, float).ravel(), (_size(flat, at),))
            delay = delay + (values[:, None] if weight is None else values[None, :])
        else:
            kind = type(node).__name__
            raise Refused(at, f"expected Delay and one Linear between layers, got {kind}", REMEDY)
        stack += [(b, weight, delay) for b in flat.before(at)]


def _size(flat: FlatGraph, name: str) -> int:
    return int(np.prod(flat.shape_in[name]))


def _layer(name: str, node: Any, paths: list[tuple[str, Array, Array]]) -> Parameters:
    def number(field: str) -> float:
        values = np.unique(np.asarray(getattr(node, field), float))
        if values.size != 1:
            raise Refused(name, f"expected one {field}, got {values.size}", "Split the layer")
        return float(values[0])

    def each(field: str) -> Array:
        return np.asarray(getattr(node, field), float).ravel()

    if sum((w != 0).astype(int) for _, w, _ in paths).max() > 1:
        raise Refused(name, "expected one delay a synapse, got two", REMEDY)
    weight, delay = np.zeros(paths[0][1].shape), np.zeros(paths[0][1].shape)
    for _, w, d in paths:
        weight += w
        delay += np.where(w != 0, d, 0.0) * PER_SECOND
    gain = each("r") * each("w_in") / each("tau_syn")
    hints, spikes = read_hints(node), isinstance(node, nir.CubaLIF)
    more: dict[str, Any] = {"theta": each("v_threshold") if spikes else np.inf}
    if spikes:
        more["v_reset"] = each("v_reset")
        if "beta" in hints:
            more["beta"] = np.broadcast_to(np.asarray(hints["beta"], float), gain.shape)
            more["tau_adapt_ms"] = float(hints["tau_adapt_s"]) * PER_SECOND
    return Parameters(
        gain[:, None] * weight, delay if np.any(delay) else None,
        bias=each("v_leak"), tau_mem_ms=number("tau_mem") * PER_SECOND,
        tau_syn_ms=number("tau_syn") * PER_SECOND, **more,
    )  # fmt: skip

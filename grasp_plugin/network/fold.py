"""Fold chains of linear nodes between neurons into delayed weights.

A path of Linear, Affine, Scale, Conv, pooling, Flatten and Delay nodes is one linear map with
delays: a polynomial  sum_d A_d z^-d  with a weight A_d for each delay of d steps, and a bias
polynomial  sum_d b_d z^-d  for what Affine and Conv biases contribute from step d on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import nir
import numpy as np
import scipy.sparse as sp

from grasp_plugin.errors import Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.graph import (
    NEURONS,
    FlatGraph,
    conv_of,
    pool_of,
    topological,
)
from grasp_plugin.network.weights import Array, Weight

SOURCES = (*NEURONS, nir.Threshold, nir.Input)


@dataclass
class Signal:
    """What arrives at a node: source -> delay -> weight, delay -> bias, and the nodes passed."""

    paths: dict[str, dict[int, Weight]] = field(default_factory=dict)
    bias: dict[int, Array] = field(default_factory=dict)
    nodes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __add__(self, other: Signal) -> Signal:
        out = Signal({k: dict(v) for k, v in self.paths.items()}, dict(self.bias), dict(self.nodes))
        for source, terms in other.paths.items():
            mine = out.paths.setdefault(source, {})
            for delay, weight in terms.items():
                mine[delay] = W.add(mine[delay], weight) if delay in mine else weight
            out.nodes[source] = tuple(
                dict.fromkeys((*out.nodes.get(source, ()), *other.nodes[source]))
            )
        for delay, value in other.bias.items():
            out.bias[delay] = out.bias[delay] + value if delay in out.bias else value
        return out


def incoming(flat: FlatGraph, dt_s: float | None) -> dict[str, Signal]:
    """The folded input of every neuron, Threshold and Output node.

    Raises:
        Refused: a loop of linear nodes only, or a Delay that is no whole number of steps.
    """
    linear = [n for n, node in flat.nodes.items() if not isinstance(node, (*SOURCES, nir.Output))]

    def linear_before(name: str) -> list[str]:
        return [b for b in flat.before(name) if b in linear]

    emitted: dict[str, Signal] = {}
    for name in flat.nodes:
        if isinstance(flat.nodes[name], SOURCES):
            size = int(np.prod(flat.shape_out[name]))
            emitted[name] = Signal({name: {0: W.identity(size)}}, {}, {name: ()})

    def summed(name: str) -> Signal:
        return sum((emitted[b] for b in flat.before(name)), Signal())

    for name in topological(linear, linear_before):
        emitted[name] = _through(flat, name, summed(name), dt_s)
    ends = (*NEURONS, nir.Threshold, nir.Output)
    return {n: summed(n) for n, node in sorted(flat.nodes.items()) if isinstance(node, ends)}


def _through(flat: FlatGraph, name: str, signal: Signal, dt_s: float | None) -> Signal:
    node = flat.nodes[name]
    nodes = {source: (*passed, name) for source, passed in signal.nodes.items()}
    if isinstance(node, nir.Delay):
        return _delayed(flat, name, signal, nodes, dt_s)
    weight, bias = _linear_map(flat, name)
    if weight is None:
        paths, biases = signal.paths, dict(signal.bias)
    else:
        paths = {
            source: {delay: W.compose(weight, inner) for delay, inner in terms.items()}
            for source, terms in signal.paths.items()
        }
        biases = {delay: W.apply(weight, value) for delay, value in signal.bias.items()}
    if bias is not None and np.any(bias != 0):
        biases[0] = biases[0] + bias if 0 in biases else bias
    return Signal(paths, biases, nodes)


def _linear_map(flat: FlatGraph, name: str) -> tuple[Weight | None, Array | None]:
    """The map of one node over flattened neurons; None where it is the identity."""
    node, shape = flat.nodes[name], flat.shape_in[name]
    if isinstance(node, (nir.Affine, nir.Linear)):
        matrix = np.asarray(node.weight, dtype=np.float64)
        if matrix.ndim > 2:
            blocks = matrix.reshape(-1, *matrix.shape[-2:])
            matrix = sp.block_diag(list(blocks), format="csr")
        bias = getattr(node, "bias", None)
        size = int(np.prod(flat.shape_out[name]))
        if bias is None:
            return matrix, None
        return matrix, np.broadcast_to(np.asarray(bias, np.float64).ravel(), (size,)).copy()
    if isinstance(node, nir.Scale):
        factor = np.broadcast_to(np.asarray(node.scale, np.float64), shape).ravel()
        return W.scale_rows(W.identity(factor.size), factor), None
    if isinstance(node, (nir.Conv1d, nir.Conv2d)):
        conv = conv_of(name, node, shape)
        out = conv.out_shape
        channels = np.broadcast_to(np.asarray(node.bias, np.float64).ravel(), (out[0],))
        return conv, np.repeat(channels, int(np.prod(out[1:])))
    if isinstance(node, (nir.SumPool2d, nir.AvgPool2d)):
        return pool_of(name, node, shape), None
    return None, None  # Flatten: the flat order does not change


def _delayed(
    flat: FlatGraph,
    name: str,
    signal: Signal,
    nodes: dict[str, tuple[str, ...]],
    dt_s: float | None,
) -> Signal:
    steps = delay_in_steps(name, flat.nodes[name], dt_s)
    steps = np.broadcast_to(steps, flat.shape_in[name]).ravel()
    out = Signal({}, {}, nodes)
    for extra in np.unique(steps):
        keep = steps == extra
        for source, terms in signal.paths.items():
            mine = out.paths.setdefault(source, {})
            for delay, weight in terms.items():
                total, part = delay + int(extra), W.mask_rows(weight, keep)
                mine[total] = W.add(mine[total], part) if total in mine else part
        for delay, value in signal.bias.items():
            total = delay + int(extra)
            out.bias[total] = out.bias.get(total, 0) + np.where(keep, value, 0.0)
    return out


def delay_in_steps(name: str, node: nir.Delay, dt_s: float | None) -> Array:
    """delay / dt as integers.

    Raises:
        Refused: dt is missing, or a delay is no whole number of steps (to 1e-6 of a step).
    """
    delay = np.asarray(node.delay, dtype=np.float64)
    if np.all(delay == 0):
        return np.zeros(delay.shape, dtype=np.int64)
    if dt_s is None:
        raise Refused(name, "expected dt for a Delay in seconds, got none", "Pass dt_s")
    steps = delay / dt_s
    whole = np.round(steps)
    if np.any(np.abs(steps - whole) > 1e-6 * np.maximum(1.0, steps)) or np.any(whole < 0):
        worst = steps.ravel()[np.argmax(np.abs(steps - whole))]
        raise Refused(
            name,
            f"expected delays of a whole number >= 0 of steps of {dt_s} s, got {worst:.6g} steps",
            "Choose dt so that it divides the delay, or round the delays before exporting",
        )
    out: Array = whole.astype(np.int64)
    return out

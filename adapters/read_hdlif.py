"""NIR written by `from_hdlif`, back to HD-LIF layers, bit for bit."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np

from grasp_plugin.adapters.from_hdlif import VERSION
from grasp_plugin.adapters.hdlif_node import HDLIF as Node
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network.hdlif import Deployed, GradedLayer, check_stack
from grasp_plugin.network.hints import HDLIF, NEURON, read_hints
from grasp_plugin.network.validate import validate
from grasp_plugin.network.weights import Array

ROWS = ("decay", "theta", "gain", "offset")
NUMBERS = ("steps", "parallel", "code_step", "top")
CHANGED = "Export the layers again with from_hdlif"


def read_hdlif(graph: nir.NIRGraph) -> Deployed:
    """The layers and the read-out of a graph in either form of `from_hdlif`.

    Raises:
        Invalid: a malformed graph, or hints that fit no layer.
        Refused: other nodes, no chain, an unknown version of the hints, or weights, a threshold or
            a tau that are no longer those which the hints belong to.

    Example:
        >>> from grasp_plugin.adapters.from_hdlif import from_hdlif
        >>> from grasp_plugin.hdlif import hdlif_compressed
        >>> made = read_hdlif(from_hdlif(hdlif_compressed(3, 2, 4, shared=True)))
        >>> made.layers[0].bits, float(made.layers[0].theta[0, 0])
        ('1.5bit', 0.5)
    """
    layers: list[GradedLayer] = []
    readout = None
    path = _chain(graph)
    if len(path) % 2:  # the last node is a read-out
        last = graph.nodes[path.pop()]
        if not isinstance(last, nir.Affine):
            raise Refused("graph", "expected an Affine at the end of a chain", CHANGED)
        readout = np.asarray(last.weight, float), np.asarray(last.bias, float)
    for below, name in zip(path[::2], path[1::2], strict=True):
        weights, node = graph.nodes[below], graph.nodes[name]
        if isinstance(node, Node) and isinstance(weights, nir.Linear):
            layers.append(_layer(name, weights.weight, weights, dict(vars(node))))
        elif isinstance(node, nir.LIF) and isinstance(weights, nir.Affine):
            layers.append(_from_hints(name, weights, node))
        else:
            raise Refused(
                name, f"expected Affine and LIF or Linear and HDLIF, got {type(weights).__name__} "
                f"and {type(node).__name__}", CHANGED,
            )  # fmt: skip
    return Deployed(check_stack(layers), readout)


def _chain(graph: nir.NIRGraph) -> list[str]:
    """Names from the node after the input to the one before the output."""
    if not any(isinstance(node, Node) for node in graph.nodes.values()):
        validate(graph)
    (name,) = _one([n for n, node in graph.nodes.items() if isinstance(node, nir.Input)], "inputs")
    path: list[str] = []
    while len(path) <= len(graph.nodes):
        (name,) = _one([b for a, b in graph.edges if a == name], f"nodes behind {name}")
        if isinstance(graph.nodes[name], nir.Output):
            return path
        path.append(name)
    raise Refused("graph", "expected a chain, got a loop", CHANGED)


def _one(names: list[str], what: str) -> list[str]:
    if len(names) != 1:
        raise Refused("graph", f"expected a chain, got {len(names)} {what}", CHANGED)
    return names


def _from_hints(name: str, affine: nir.Affine, lif: nir.LIF) -> GradedLayer:
    hints = read_hints(lif)
    if hints.get(NEURON) != HDLIF:
        raise Refused(name, f'expected the hint {NEURON} = "{HDLIF}", got none', "Use discretise")
    if hints.get("hdlif_version") != VERSION:
        got = hints.get("hdlif_version")
        raise Refused(name, f"expected version {VERSION} of the hints, got {got}", CHANGED)
    values = {key.removeprefix("hdlif_"): value for key, value in hints.items()}
    missing = [n for n in (*ROWS, *NUMBERS, "dt_s") if n not in values]
    if missing:
        raise Invalid(name, f"expected the hints of an HD-LIF layer, got no {missing}", CHANGED)
    own = read_hints(affine)
    gain = np.asarray(values["gain"], float).mean(0)
    weight = np.asarray(affine.weight, float)
    if "hdlif_kernel" in own:
        kernel = np.asarray(own["hdlif_kernel"], float)
    elif own.get("hdlif_bits") == "fp":
        kernel = weight
    else:
        kernel = np.sign(weight) * np.sign(gain)[:, None]
    same = np.array_equal(gain[:, None] * kernel, weight)
    if not same or not np.array_equal(affine.bias, np.asarray(values["offset"], float).mean(0)):
        raise Refused(
            name, "expected the weights that the hints were written for, got others: the file was "
            "changed by a tool that left the hints as they were", CHANGED,
        )  # fmt: skip
    layer = _layer(name, kernel, affine, values)
    tau = float(values["dt_s"]) / (1 - layer.decay.mean(0) * (not layer.parallel))
    if np.any(lif.v_threshold != layer.theta.mean()) or not np.allclose(lif.tau, tau, 1e-9, 0):
        raise Refused(
            name, "expected the threshold and tau that the hints were written for, got others",
            CHANGED,
        )  # fmt: skip
    return layer


def _layer(name: str, kernel: Array, weights: nir.NIRNode, values: dict[str, Any]) -> GradedLayer:
    decay, theta, gain, offset = (np.asarray(values[n], float) for n in ROWS)
    return GradedLayer(
        name, np.asarray(kernel, float), str(read_hints(weights).get("hdlif_bits", "fp")),
        int(values["steps"]), decay, theta, gain, offset, bool(values["parallel"]),
        float(values["code_step"]) or None, int(values["top"]),
    )  # fmt: skip

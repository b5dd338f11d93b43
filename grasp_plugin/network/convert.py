"""Rewrite a NIR graph in another convention: choices into its metadata, nested graphs inlined."""

from __future__ import annotations

import copy

import nir
import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.network.adaptation import refuse_other_step
from grasp_plugin.network.graph import SPIKING, flatten
from grasp_plugin.network.hints import read_hints, write_hints
from grasp_plugin.network.policy import Discretisation, require_policy


def with_choices(
    graph: nir.NIRGraph, policy: Discretisation, *, flatten_nested: bool = False
) -> nir.NIRGraph:
    """A copy of the graph with the caller's choices as hints; the graph itself is not changed.

    Args:
        graph: any valid graph.
        policy: dt_s, reset and loop are recorded where given; the other fields describe how to
            simulate, not what the network is, and are not.
        flatten_nested: inline nested graphs; inner nodes are then called `outer.inner`.

    Raises:
        Invalid: a malformed graph, or a reset for a node that does not spike.
        Refused: another dt_s for an adaptive node, whose hints count in steps.
    """
    require_policy(policy)
    flat = flatten(graph)
    if flatten_nested:
        out = nir.NIRGraph(
            nodes={name: copy.deepcopy(node) for name, node in flat.nodes.items()},
            edges=list(flat.edges),
            type_check=False,
        )
        out.metadata = copy.deepcopy(graph.metadata)
        for name, node in out.nodes.items():
            if isinstance(node, nir.Output):
                node.output_type = {"output": np.array(flat.shape_in[name])}
    else:
        out = copy.deepcopy(graph)
    spiking = dict(_spiking(out))
    resets = policy.reset if isinstance(policy.reset, dict) else {"*": policy.reset}
    for name, rule in resets.items():
        if name != "*" and name not in spiking:
            raise Invalid(name, f"expected a spiking node, one of {', '.join(spiking)}", "Check it")
        for target in spiking if name == "*" else (name,):
            if rule is not None and (name != "*" or target not in resets):
                write_hints(spiking[target], reset=rule, comparator=">")
    if policy.dt_s is not None:
        write_hints(out, dt_s=policy.dt_s)
        for name, node in _all(out):
            refuse_other_step(name, node, policy.dt_s)
            if "dt_s" in read_hints(node):
                write_hints(node, dt_s=policy.dt_s)
    if policy.loop is not None:
        text = (
            policy.loop
            if isinstance(policy.loop, str)
            else ";".join("->".join(edge) for edge in policy.loop)
        )
        write_hints(out, loop=text)
    return out


def _spiking(graph: nir.NIRGraph, prefix: str = "") -> list[tuple[str, nir.NIRNode]]:
    found = []
    for name, node in graph.nodes.items():
        if isinstance(node, nir.NIRGraph):
            found += _spiking(node, f"{prefix}{name}.")
        elif isinstance(node, SPIKING) and not isinstance(node, nir.Threshold):
            found.append((f"{prefix}{name}", node))
    return found


def _all(graph: nir.NIRGraph) -> list[tuple[str, nir.NIRNode]]:
    out: list[tuple[str, nir.NIRNode]] = []
    for name, node in graph.nodes.items():
        out += _all(node) if isinstance(node, nir.NIRGraph) else [(name, node)]
    return out

"""What a meta-trained network says of itself in NIR: how it adapts, what is plastic, at what rate.

Hints (`network.hints`) beside the usual ones, so that the nodes stay stock NIR:

    graph   meta_algo, meta_rule        text: "maml", "anil", ...; "soel" or "sgd"
            meta_order, meta_inner_steps, meta_ways, meta_shots        integers
            meta_adapt                  names of the plastic nodes, joined by ";"
            meta_<name>                 a number for each parameter of the rule
    node    plastic = 1                 of a weight node (Linear, Affine, Conv1d, Conv2d)
            inner_lr                    eta of one sample, a number or an array like the weight

References:
    specs/meta-learning.md 10.
Departures:
    Flat hints under the key "grasp_plugin", as all of this package's, where the specification names
    nested ones under "grasp.meta".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.network.hints import read_hints, write_hints
from grasp_plugin.network.network import Network

RULES: Mapping[str, tuple[str, ...]] = {"sgd": (), "soel": ("error_threshold",)}
"""By rule, its parameters."""
_COUNTS = ("order", "inner_steps", "ways", "shots")


@dataclass(frozen=True, eq=False)
class MetaHints:
    """How a network was meta-trained and how it is to adapt.

    Args:
        algo: what trained it, e.g. "maml".
        plastic: by NIR weight node, eta of one sample: a number, or an array like its weight.
        rule: "soel" or "sgd". rule_parameters: by name, see `RULES`.
        order, inner_steps: of meta-training.
        ways, shots: of the tasks.

    Raises:
        Invalid: an unknown rule, other parameters than the rule's, a count below 1, or an eta that
            is not finite.
    """

    algo: str
    plastic: Mapping[str, Any]
    rule: str = "soel"
    rule_parameters: Mapping[str, float] = field(default_factory=dict)
    order: int = 2
    inner_steps: int = 1
    ways: int = 5
    shots: int = 1

    def __post_init__(self) -> None:
        if self.rule not in RULES or set(self.rule_parameters) != set(RULES[self.rule]):
            raise Invalid(
                "MetaHints", f"expected a rule of {', '.join(RULES)} with its parameters "
                f"{RULES.get(self.rule, ())}, got {self.rule!r} with {dict(self.rule_parameters)}",
                "Correct them",
            )  # fmt: skip
        counts = {name: getattr(self, name) for name in _COUNTS}
        if min(counts.values()) < 1 or not self.plastic:
            raise Invalid("MetaHints", f"expected counts >= 1, got {counts}", "Correct them")
        for node, eta in self.plastic.items():
            if not np.all(np.isfinite(eta)):
                raise Invalid(node, f"expected a finite inner_lr, got {eta}", "Correct it")

    def rate_of(self, network: Network) -> dict[str, Any]:
        """eta by projection of a network that was discretised from the graph.

        Raises:
            Invalid: a plastic node that is no projection of its own.
        """
        owner = {k.nodes[0]: k for k in network.projections if len(k.nodes) == 1}
        for node in self.plastic:
            if node not in owner:
                raise Invalid(
                    node, f"expected a projection of its own, one of {', '.join(owner)}, got none",
                    "Keep plastic weights apart from pooling and scaling",
                )  # fmt: skip
        return {owner[node].name: eta for node, eta in self.plastic.items()}


def write_meta(graph: nir.NIRGraph, meta: MetaHints) -> None:
    """Write the hints into a graph and its plastic nodes, in place.

    Raises:
        Invalid: a plastic node that is not in the graph, has no weight, or has another shape.
    """
    for name, eta in meta.plastic.items():
        node = graph.nodes.get(name)
        weight = getattr(node, "weight", None)
        if weight is None or np.shape(eta) not in ((), np.shape(weight)):
            raise Invalid(
                name, f"expected a node with weights, and inner_lr a number or of their shape, got "
                f"{type(node).__name__} and {np.shape(eta)}", "Name a Linear, Affine or Conv node",
            )  # fmt: skip
        write_hints(node, plastic=1, inner_lr=np.asarray(eta, np.float64))
    write_hints(
        graph, meta_algo=meta.algo, meta_rule=meta.rule, meta_adapt=";".join(meta.plastic),
        **{f"meta_{name}": int(getattr(meta, name)) for name in _COUNTS},
        **{f"meta_{name}": float(value) for name, value in meta.rule_parameters.items()},
    )  # fmt: skip


def read_meta(graph: nir.NIRGraph) -> MetaHints:
    """The hints of a graph that `write_meta` wrote.

    Raises:
        Invalid: the graph has none, or they contradict its nodes.
    """
    hints = read_hints(graph)
    missing = [n for n in ("algo", "rule", "adapt", *_COUNTS) if f"meta_{n}" not in hints]
    if missing:
        raise Invalid(
            "graph", f"expected the hints of a meta-trained network, got none of meta_{missing[0]}",
            "Write them with write_meta(graph, MetaHints(...))",
        )  # fmt: skip
    plastic = {}
    for name in hints["meta_adapt"].split(";"):
        node = read_hints(graph.nodes[name]) if name in graph.nodes else {}
        if not node.get("plastic") or "inner_lr" not in node:
            raise Invalid(name, "expected a node with hints plastic and inner_lr, got none", "Mend")
        plastic[name] = node["inner_lr"]
    flagged = {n for n, node in graph.nodes.items() if read_hints(node).get("plastic")}
    if flagged != set(plastic):
        extra = ", ".join(sorted(flagged - set(plastic)))
        raise Invalid(extra, "expected it in meta_adapt, since it is plastic, got another", "Mend")
    rule = hints["meta_rule"]
    own = {n: float(hints[f"meta_{n}"]) for n in RULES.get(rule, ()) if f"meta_{n}" in hints}
    counts = {name: int(hints[f"meta_{name}"]) for name in _COUNTS}
    return MetaHints(hints["meta_algo"], plastic, rule, own, **counts)

"""What a meta-trained network says of itself in NIR: how it adapts, what is plastic, at what rate.

Hints (`network.hints`) beside the usual ones, so that the nodes stay stock NIR:

    graph   meta_algo, meta_rule        text: "maml", "anil", ...; "soel" or "sgd"
            meta_order, meta_inner_steps, meta_ways, meta_shots        integers
            meta_adapt                  names of the plastic nodes, joined by ";"
            meta_<name>                 a number for each parameter of the rule
    node    plastic = 1                 of a weight node (Linear, Affine, Conv1d, Conv2d)
            inner_lr                    eta of one sample, a number or an array like the weight
            plastic_bias                1 if biases adapt too, else 0; the same at all plastic nodes
                                        (a file from before it was written has none: 1)

References:
    specs/meta-learning.md 10.
Departures:
    Flat hints under the key "grasp_plugin", as all of this package's, where the specification names
    nested ones under "grasp.meta".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np

from grasp_plugin.checks import is_real, is_whole
from grasp_plugin.errors import Invalid
from grasp_plugin.network.hints import KEY, read_hints, write_hints
from grasp_plugin.network.network import Network

RULES: Mapping[str, tuple[str, ...]] = {"sgd": (), "soel": ("error_threshold",)}
"""By rule, its parameters."""
_COUNTS = ("order", "inner_steps", "ways", "shots")
_OF_A_NODE = ("plastic", "inner_lr", "plastic_bias")


@dataclass(frozen=True, eq=False)
class MetaHints:
    """How a network was meta-trained and how it is to adapt.

    Args:
        algo: what trained it, e.g. "maml".
        plastic: by NIR weight node, eta of one sample: a number, or an array like its weight.
        rule: "soel" or "sgd". rule_parameters: by name, see `RULES`.
        order, inner_steps: of meta-training; `learning.soel.learning_of` says how inner steps are
            taken on a device.
        ways, shots: of the tasks.
        bias: whether the biases of what is plastic adapt with its weights.

    Raises:
        Invalid: nothing plastic, a node's name with ";" in it, an eta that is negative, not finite
            or no number, an unknown rule, other parameters than the rule's, or one that is
            negative, not finite or no number, or a count that is no integer from 1 on.
    """

    algo: str
    plastic: Mapping[str, Any]
    rule: str = "soel"
    rule_parameters: Mapping[str, float] = field(default_factory=dict)
    order: int = 2
    inner_steps: int = 1
    ways: int = 5
    shots: int = 1
    bias: bool = True

    def __post_init__(self) -> None:
        self._check_rule()
        for name in _COUNTS:
            value = getattr(self, name)
            if not is_whole(value, 1):
                raise Invalid(
                    f"MetaHints, {name}", f"expected an integer from 1 on, got {value!r}",
                    "Correct it",
                )  # fmt: skip
        if not self.plastic:
            raise Invalid(
                "MetaHints, plastic", f"expected one weight node or more, got {self.plastic!r}",
                "Name the nodes that adapt, with their eta",
            )  # fmt: skip
        for node, eta in self.plastic.items():
            if not isinstance(node, str) or ";" in node:
                raise Invalid(
                    repr(node), "expected a name of a node without ';', which joins names in the "
                    "hint meta_adapt, got another", "Rename the node",
                )  # fmt: skip
            if not _is_rate(eta):
                raise Invalid(
                    node, f"expected an inner_lr of finite numbers >= 0, got {eta!r}", "Correct it"
                )

    def _check_rule(self) -> None:
        own = RULES.get(self.rule) if isinstance(self.rule, str) else None
        if own is None or set(self.rule_parameters) != set(own):
            raise Invalid(
                "MetaHints, rule", f"expected a rule of {', '.join(RULES)} with its parameters "
                f"{own or ()}, got {self.rule!r} with {dict(self.rule_parameters)}", "Correct them",
            )  # fmt: skip
        for name, value in self.rule_parameters.items():
            if not is_real(value, 0.0):
                raise Invalid(
                    f"MetaHints, {name}", f"expected a finite number >= 0, got {value!r}",
                    "Correct it",
                )  # fmt: skip

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


def _is_rate(eta: Any) -> bool:
    """True for a number, or an array of them, finite and >= 0."""
    try:
        values = np.asarray(eta)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, torch tensors with a graph
        return False
    return values.dtype.kind in "uif" and bool(np.all((values >= 0) & (values < np.inf)))


def _check_node(graph: nir.NIRGraph, name: str, eta: Any) -> None:
    node = graph.nodes.get(name)
    weight = getattr(node, "weight", None)
    if weight is None or np.shape(eta) not in ((), np.shape(weight)):
        raise Invalid(
            name, f"expected a node with weights, and inner_lr a number or of their shape, got "
            f"{type(node).__name__} and {np.shape(eta)}", "Name a Linear, Affine or Conv node",
        )  # fmt: skip


def write_meta(graph: nir.NIRGraph, meta: MetaHints) -> None:
    """Write the hints into a graph and its plastic nodes, in place of those that are there.

    Where it raises, the graph is as it was.

    Raises:
        Invalid: a plastic node that is not in the graph, has no weight, or has another shape.
    """
    for name, eta in meta.plastic.items():
        _check_node(graph, name, eta)
    for node in graph.nodes.values():
        _clear(node, [key for key in read_hints(node) if key in _OF_A_NODE])
    _clear(graph, [key for key in read_hints(graph) if key.startswith("meta_")])
    for name, eta in meta.plastic.items():
        write_hints(
            graph.nodes[name], plastic=1, inner_lr=np.asarray(eta, np.float64),
            plastic_bias=int(meta.bias),
        )  # fmt: skip
    write_hints(
        graph, meta_algo=meta.algo, meta_rule=meta.rule, meta_adapt=";".join(meta.plastic),
        **{f"meta_{name}": int(getattr(meta, name)) for name in _COUNTS},
        **{f"meta_{name}": float(value) for name, value in meta.rule_parameters.items()},
    )  # fmt: skip


def _clear(node: nir.NIRNode, keys: Collection[str]) -> None:
    """Take hints out, in place; a dict that another node may share is left alone."""
    if keys:
        hints = {key: value for key, value in node.metadata[KEY].items() if key not in keys}
        node.metadata = {**node.metadata, KEY: hints}


def read_meta(graph: nir.NIRGraph) -> MetaHints:
    """The hints of a graph that `write_meta` wrote.

    Raises:
        Invalid: the graph has none, they contradict its nodes or each other, or as `MetaHints`.
    """
    hints = read_hints(graph)
    missing = [n for n in ("algo", "rule", "adapt", *_COUNTS) if f"meta_{n}" not in hints]
    if missing:
        raise Invalid(
            "graph", f"expected the hints of a meta-trained network, got none of meta_{missing[0]}",
            "Write them with write_meta(graph, MetaHints(...))",
        )  # fmt: skip
    names = str(hints["meta_adapt"]).split(";")
    plastic = {}
    for name in names:
        node = read_hints(graph.nodes[name]) if name in graph.nodes else {}
        if not node.get("plastic") or "inner_lr" not in node:
            raise Invalid(name, "expected a node with hints plastic and inner_lr, got none", "Mend")
        _check_node(graph, name, node["inner_lr"])
        plastic[name] = node["inner_lr"]
    flagged = {n for n, node in graph.nodes.items() if read_hints(node).get("plastic")}
    if flagged != set(plastic):
        extra = ", ".join(sorted(flagged - set(plastic)))
        raise Invalid(extra, "expected it in meta_adapt, since it is plastic, got another", "Mend")
    rule = hints["meta_rule"]
    own = {n: hints[f"meta_{n}"] for n in RULES.get(str(rule), ()) if f"meta_{n}" in hints}
    counts = {name: hints[f"meta_{name}"] for name in _COUNTS}
    return MetaHints(hints["meta_algo"], plastic, rule, own, **counts, bias=_bias(graph, names))


def _bias(graph: nir.NIRGraph, names: Sequence[str]) -> bool:
    """Whether biases adapt, by the hint of the plastic nodes."""
    found = {name: read_hints(graph.nodes[name]).get("plastic_bias", 1) for name in names}
    if any(value not in (0, 1) for value in found.values()) or len(set(found.values())) > 1:
        raise Invalid(
            ", ".join(found), f"expected plastic_bias 0 at all or 1 at all, got {found}", "Mend"
        )
    return bool(found[names[0]])

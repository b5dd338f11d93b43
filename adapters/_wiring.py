"""Which projections of a recurrent graph carry the step before: the one thing NIR leaves open.

A projection goes from one neuron node to another (or the same) through linear nodes. As in
`network.loops`: a neuron's projection onto itself takes one step; inside a cycle of several
neurons the hint `loop` of the graph says which do, as "a->b;c->d" or "each".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import nir
import numpy as np

from grasp_plugin.errors import Invalid, MissingChoice, Refused

Edge = tuple[str, str]
NEURONS = (nir.LIF, nir.IF, nir.LI, nir.I, nir.CubaLIF, nir.CubaLI, nir.Threshold)


def projections(
    nodes: Mapping[str, nir.NIRNode], edges: Iterable[Edge], delayed: Iterable[Edge] = ()
) -> dict[Edge, set[int]]:
    """(source, target) of every projection, with the delayed edges on each of its paths.

    Sources are neurons and inputs, targets neurons and outputs.

    Raises:
        Refused: a cycle of linear nodes alone.
    """
    before: dict[str, list[str]] = {name: [] for name in nodes}
    for a, b in edges:
        before[b].append(a)
    late = set(delayed)
    memo: dict[str, dict[str, set[int]]] = {}

    def sources(name: str, above: tuple[str, ...]) -> dict[str, set[int]]:
        if name in above:
            raise Refused(
                name, "expected a neuron in every cycle, got a cycle without", "Break the cycle"
            )
        if name not in memo:
            found: dict[str, set[int]] = {}
            for a in before[name]:
                plain = not isinstance(nodes[a], (*NEURONS, nir.Input))
                for source, steps in (sources(a, (*above, name)) if plain else {a: {0}}).items():
                    step = int((a, name) in late)
                    found.setdefault(source, set()).update(s + step for s in steps)
            memo[name] = found
        return memo[name]

    return {
        (source, target): steps
        for target, node in nodes.items()
        if isinstance(node, (*NEURONS, nir.Output))
        for source, steps in sources(target, ()).items()
    }


def loop_hint(
    nodes: Mapping[str, nir.NIRNode], edges: Iterable[Edge], delayed: Iterable[Edge]
) -> str | None:
    """The `loop` hint that says what the `delayed` edges say; None if no loop needs it.

    Raises:
        Refused: delays that neither the rule nor the hint can say.
    """
    edges, delayed = list(edges), set(delayed)
    _refuse_late_bias(nodes, edges, delayed)
    found = projections(nodes, edges, delayed)
    together = components(found)
    hinted = []
    for (source, target), steps in sorted(found.items()):
        inside = source == target or target in together.get(source, ())
        if len(steps) > 1 or max(steps) > 1 or (max(steps) == 1 and not inside):
            raise Refused(
                target,
                f"expected one arrival time from {source!r}, and a delay inside loops only, got"
                f" delays of {sorted(steps)} steps",
                "Say a delay outside a recurrence with a NIR Delay node",
            )
        if source != target and max(steps) == 1:
            hinted.append(f"{source}->{target}")
    return ";".join(hinted) or None


def late_projections(
    nodes: Mapping[str, nir.NIRNode], edges: Iterable[Edge], loop: object
) -> set[Edge]:
    """The projections that carry the step before, by the rule and the hint `loop`.

    Raises:
        MissingChoice: a cycle of several neurons, and no hint.
        Invalid: a hint that names no projection or leaves a cycle.
    """
    found = projections(nodes, edges)
    late = {(a, b) for a, b in found if a == b}
    together = components(found)
    inside = {(a, b) for a, b in found if a != b and b in together.get(a, ())}
    if not inside:
        return late
    if not loop:
        raise MissingChoice(
            ", ".join(sorted({a for a, _ in inside})),
            "loop",
            {
                "each": "every projection inside the loop takes one step",
                "a->b;c->d": "the named projections take one step, the others none",
            },
        )
    if loop == "each":
        return late | inside
    named = {(a, b) for a, b in (str(edge).split("->") for edge in str(loop).split(";"))}
    if not named <= set(found) or components(set(found) - late - named):
        raise Invalid(
            "graph",
            f"expected the hint 'loop' to name projections that open every loop, got {loop!r}",
            f"Pick from {sorted(inside)}",
        )
    return late | named


def components(edges: Iterable[Edge]) -> dict[str, set[str]]:
    """For every node on a cycle: the nodes of its strongly connected component."""
    after: dict[str, set[str]] = {}
    for a, b in edges:
        after.setdefault(a, set()).add(b)
    reached = {name: _reach(name, after) for name in after}
    return {
        name: {n for n in reached[name] if name in reached.get(n, ())}
        for name in after
        if name in reached[name]
    }


def _reach(start: str, after: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(after.get(start, ()))
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += after.get(name, ())
    return seen


def _refuse_late_bias(
    nodes: Mapping[str, nir.NIRNode], edges: list[Edge], delayed: set[Edge]
) -> None:
    """A bias before a delayed edge would start one step late; NIR's starts at once."""
    for late_source, target in sorted(delayed):
        waiting = [late_source]
        while waiting:
            name = waiting.pop()
            node: Any = nodes[name]
            if isinstance(node, (*NEURONS, nir.Input)):
                continue
            if np.any(getattr(node, "bias", 0.0)):
                raise Refused(
                    name,
                    "expected a recurrence whose bias acts from the first step, got one that"
                    f" reaches {target!r} from the second step on",
                    "Apply the layer to the spikes of the step before, or leave out its bias",
                )
            waiting += [a for a, b in edges if b == name and (a, b) not in delayed]

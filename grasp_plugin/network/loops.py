"""The delay inside loops, which NIR does not specify.

A population's projection onto itself takes one step (s[t-1], as in snnTorch and Norse). For a loop
through several populations the caller chooses: "each" projection inside a loop takes one step, or
named feedback edges do. Explicit Delay nodes add to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from grasp_plugin.errors import Invalid, MissingChoice
from grasp_plugin.network.network import Projection

Loop = str | tuple[tuple[str, str], ...] | None


def check_choice(loop: object) -> None:
    """Raise `Invalid` unless it is None, "each" or a tuple of (source, target) pairs of names."""
    edges = loop if isinstance(loop, tuple) else ()
    if all(
        isinstance(e, tuple) and len(e) == 2 and all(isinstance(n, str) for n in e) for e in edges
    ) and (loop is None or loop == "each" or isinstance(loop, tuple)):
        return
    raise Invalid(
        "loop",
        f"expected 'each' or a tuple of (source, target) pairs, got {loop!r}",
        "Pass e.g. loop=(('a', 'b'),)",
    )


def from_hint(value: object) -> Loop:
    """The `loop` hint: "each", or "a->b;c->d"."""
    if not isinstance(value, str) or value in ("", "each"):
        return value if value == "each" else None
    edges = [tuple(edge.split("->")) for edge in value.split(";")]
    if any(len(edge) != 2 for edge in edges):
        raise Invalid(
            "graph",
            f"expected the hint loop as 'each' or 'a->b;c->d', got {value!r}",
            "Pass loop, or write the file again",
        )
    return tuple((edge[0], edge[1]) for edge in edges)


def components(projections: Sequence[Projection]) -> dict[str, int]:
    """Strongly connected component of every population named in the projections."""
    names = sorted({p.source for p in projections} | {p.target for p in projections})
    index = {name: i for i, name in enumerate(names)}
    rows = [index[p.source] for p in projections]
    cols = [index[p.target] for p in projections]
    matrix = sp.csr_matrix((np.ones(len(rows)), (rows, cols)), shape=(len(names), len(names)))
    _, label = sp.csgraph.connected_components(matrix, directed=True, connection="strong")
    return {name: int(label[i]) for name, i in index.items()}


def with_loop_delays(projections: Sequence[Projection], loop: Loop) -> list[Projection]:
    """The projections with the loop steps added to their delays.

    Raises:
        MissingChoice: a loop through several populations, and no choice was made.
        Invalid: a feedback edge that names no projection, or one that lies in no loop.
    """
    component = components(projections)
    inside = [p.source != p.target and component[p.source] == component[p.target]
              for p in projections]  # fmt: skip
    if any(inside) and loop is None:
        members = sorted({p.source for p, yes in zip(projections, inside, strict=True) if yes})
        raise MissingChoice(
            " -> ".join(members),
            "loop",
            {
                "each": "every projection inside the loop takes one step",
                "feedback edges": "the named (source, target) projections take one step, the "
                "others none",
            },
        )
    feedback = set(loop) if isinstance(loop, tuple) else set()
    _check_feedback(feedback, projections, component)
    out = []
    for p, yes in zip(projections, inside, strict=True):
        one_step = p.source == p.target or (p.source, p.target) in feedback
        one_step = one_step or (yes and loop == "each")
        out.append(replace(p, delay_steps=p.delay_steps + 1) if one_step else p)
    return out


def _check_feedback(
    feedback: set[tuple[str, str]],
    projections: Sequence[Projection],
    component: dict[str, int],
) -> None:
    edges = {(p.source, p.target) for p in projections}
    inside = sorted(edge for edge in edges if component[edge[0]] == component[edge[1]])
    for source, target in sorted(feedback - set(inside)):
        known = (source, target) in edges
        got = "one that lies in no loop" if known else "one that is no projection"
        options = f"Pick from {inside}" if inside else "Leave loop out: the network has no loop"
        raise Invalid(
            f"{source}->{target}",
            f"expected feedback edges between populations in a loop, got {got}",
            options + ("; for a delay put a Delay node into the graph" if known else ""),
        )

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


def from_hint(value: object) -> Loop:
    """The `loop` hint: "each", or "a->b;c->d"."""
    if not isinstance(value, str) or value in ("", "each"):
        return value if value == "each" else None
    edges = [tuple(edge.split("->")) for edge in value.split(";")]
    return tuple((e[0], e[1]) for e in edges if len(e) == 2)


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
        Invalid: a feedback edge that names no projection.
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
    unknown = feedback - {(p.source, p.target) for p in projections}
    if unknown:
        raise Invalid(
            f"{sorted(unknown)[0]}",
            "expected feedback edges between populations, got one that is no projection",
            f"Pick from {sorted({(p.source, p.target) for p in projections})}",
        )
    out = []
    for p, yes in zip(projections, inside, strict=True):
        one_step = p.source == p.target or (p.source, p.target) in feedback
        one_step = one_step or (yes and loop == "each")
        out.append(replace(p, delay_steps=p.delay_steps + 1) if one_step else p)
    return out

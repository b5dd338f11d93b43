"""When a value of network step t exists on a substrate where every projection takes one step.

On Lava (and Loihi) a connection sends what it accumulated one step ago. Population p then lives
`arrival[p]` steps behind the input: its network step t is the substrate's step t + arrival[p]. A
projection with network delay d waits  arrival[target] - arrival[source] - 1 + d >= 0  extra steps.
"""

from __future__ import annotations

import numpy as np

from grasp_plugin.errors import Refused
from grasp_plugin.network.network import Network, Projection
from grasp_plugin.network.weights import Array


def arrival_steps(network: Network) -> dict[str, int]:
    """Steps by which each input (0) and population (>= 1) lies behind; as small as possible.

    Raises:
        Refused: a loop holds fewer steps of delay than projections, so the substrate is slower
            than the network.
    """
    arrival = dict.fromkeys(network.inputs, 0) | {p.name: 1 for p in network.populations}
    for _ in range(len(network.populations) + 1):
        late = [
            k
            for k in network.projections
            if arrival[k.target] < arrival[k.source] + 1 - k.min_delay
        ]
        if not late:
            return arrival
        for k in late:
            arrival[k.target] = arrival[k.source] + 1 - k.min_delay
    loop = ", ".join(sorted({k.name for k in late}))
    raise Refused(
        loop,
        "expected every loop to hold at least as many steps of delay as projections, since each "
        "takes one step on Lava, got fewer",
        "Discretise with loop='each', put a Delay into the loop, or use backend='torch'",
    )


def extra_delay(projection: Projection, arrival: dict[str, int]) -> int | Array:
    """Steps a projection waits beyond the one every projection takes; like `delay_steps`."""
    base = arrival[projection.target] - arrival[projection.source] - 1
    if np.ndim(projection.delay_steps) == 0:
        return base + projection.min_delay
    return np.asarray(projection.delay_steps + base)

"""What NIR cannot say, kept in node metadata: time step, reset rule, comparator, time unit.

Every node that our adapters write carries `metadata["grasp_plugin"]`, a flat dict of strings,
numbers and arrays. Nothing requires it (NIR asks that no back end rely on metadata): a caller's
argument overrides it, and where both are silent and the choice matters, `discretise` asks.

Keys of a spiking node: `reset` (one of `RESETS`), `comparator` (always ">"), `dt_s`, `source`
("snntorch", "norse", "nir"); of an adaptive one also `rho`, `theta`, `n_ref`, one number or one a
neuron in C order, in steps of its `dt_s` (see `network.adaptation`). Keys of the graph: `dt_s`,
`time_unit` ("s" once read), `source`. Adapters may add keys of their own framework (prefix
`snntorch_` or `norse_`) for exact round trips. `adapters.from_exact` adds `spike_area` = "dirac" to
graph and neurons: a spike is an impulse of area 1, not 1 for a step (area dt).
`adapters.from_hdlif` adds `neuron` = "hdlif" and keys with the prefix `hdlif_` to LIF nodes.
Meta-trained networks have `plastic`, `inner_lr` and `plastic_bias` at weight nodes, and keys with
the prefix `meta_` at the graph: see `network.meta_hints`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nir
import numpy as np

from grasp_plugin.errors import Invalid, Refused

KEY = "grasp_plugin"
SPIKE_AREA, DIRAC = "spike_area", "dirac"
NEURON, HDLIF = "neuron", "hdlif"

RESETS: dict[str, str] = {
    "value": "v = v_reset in the step of the spike (NIR's own meaning; Lava LIF)",
    "subtract-delayed": "v loses v_threshold in the step after the spike (snnTorch 'subtract')",
    "subtract-immediate": "v loses v_threshold in the step of the spike (Norse reset_subtract)",
    "snntorch-nodelay": "snnTorch 'subtract' with reset_delay=False: above threshold after a reset,"
    " the next spike needs twice the threshold",
    "refractory1": "v = v_reset, and the step after the spike is lost (snnTorch 'zero', delayed)",
    "none": "the spike leaves v alone",
}


def read_hints(node: nir.NIRNode) -> dict[str, Any]:
    """The hints of a node or graph; scalars as Python values, empty if it has none."""
    metadata = node.metadata if isinstance(node.metadata, dict) else {}
    hints = metadata.get(KEY, {})
    if not isinstance(hints, dict):
        return {}
    return {key: _plain(value) for key, value in hints.items()}


def write_hints(node: nir.NIRNode, **hints: Any) -> None:
    """Merge hints into `node.metadata["grasp_plugin"]`, in place."""
    metadata = dict(node.metadata) if isinstance(node.metadata, dict) else {}
    metadata[KEY] = {**metadata.get(KEY, {}), **hints}
    node.metadata = metadata


def seconds(culprit: str, value: Any, remedy: str) -> float:
    """A time step as a float.

    Args:
        culprit: the argument or hint, for the message; remedy: what to do about it.

    Raises:
        Invalid: text, an array, or a number that is not positive and finite.
    """
    array = np.asarray(value)
    number = array.ndim == 0 and array.dtype.kind in "iuf"
    if not (number and np.isfinite(array) and array > 0):
        raise Invalid(culprit, f"expected seconds > 0, got {value!r}", remedy)
    return float(array)


def refuse_dirac(nodes: Mapping[str, nir.NIRNode], hints: Mapping[str, Any]) -> None:
    """Raise `Refused` where spikes are impulses of area 1: a step would scale each jump by dt.

    Args:
        nodes: by name; hints: the graph's.
    """
    found = [n for n, node in nodes.items() if read_hints(node).get(SPIKE_AREA) == DIRAC]
    if found or hints.get(SPIKE_AREA) == DIRAC:
        raise Refused(
            found[0] if found else "graph",
            "expected spikes that last a step, got Dirac impulses (hint spike_area) of exact spike "
            "times, with delays and adaptation that may stand in hints",
            "Use adapters.from_exact: to_network(read_exact(graph), dt_ms)",
        )


def refuse_graded(nodes: Mapping[str, nir.NIRNode]) -> None:
    """Raise `Refused` where a LIF stands for an HD-LIF neuron, whose spikes are graded.

    Args:
        nodes: by name.
    """
    found = [name for name, node in nodes.items() if read_hints(node).get(NEURON) == HDLIF]
    if found:
        raise Refused(
            found[0],
            "expected spikes of 0 and 1, got an HD-LIF neuron (hint neuron), of which the LIF is a "
            "rough picture for tools that know no other",
            "Use adapters.read_hdlif(graph), and backends.hdlif.build_hdlif to run it; for the "
            "rough picture delete the node's metadata",
        )


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf8")
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
        return value.decode("utf8") if isinstance(value, bytes) else value
    return value

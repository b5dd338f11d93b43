"""A `Network` as Lava Processes for someone who writes a Lava program of their own."""

from __future__ import annotations

from typing import Any

from grasp_plugin.network.network import Network, require_network
from grasp_plugin.runtime.lava_import import kept_logging, require_lava


def to_lava(network: Network) -> Any:
    """One hierarchical Lava Process with ports to connect, for Lava's own run configurations.

    Args:
        network: float, to run with `Loihi2SimCfg(select_tag="floating_pt")`, or in Loihi integers
            (from `quantise`), to run with `Loihi2SimCfg(select_tag="fixed_pt")`. With the other
            tag Lava finds no model and says so.

    Returns:
        A `FloatNetwork` or `FixedNetwork`. `process.input(name)` is the InPort of a NIR Input node,
        flat (neuron,), `process.output(name)` the OutPort of an Output node or of any population,
        and `process.latency(name)` the Lava steps that output lies behind the input. Non-spiking
        outputs send their membrane (in integers: in units of 1 / (64 scale)).

    Raises:
        Invalid: no Network, such as a NIR graph.
        Refused: Lava is not installed, or its timing or registers cannot express the network.

    Example:
        >>> process = to_lava(network)                                        # doctest: +SKIP
        >>> source.s_out.connect(process.input())                             # doctest: +SKIP
        >>> process.output().connect(sink.a_in)                               # doctest: +SKIP
        >>> process.run(RunSteps(100), Loihi2SimCfg(select_tag="floating_pt"))  # doctest: +SKIP
    """
    require_network(network)
    require_lava()
    from grasp_plugin.processes.network.process import FixedNetwork, FloatNetwork

    with kept_logging():
        return (FloatNetwork if network.precision == "float" else FixedNetwork)(network=network)

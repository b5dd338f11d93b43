"""Which Lava Process a population becomes; one decision for the back end and for reports."""

from __future__ import annotations

import numpy as np

from grasp_plugin.network.network import Network, Population


def lava_process(p: Population, precision: str) -> str:
    """The Process class by name: stock Lava where it is exact, ours where it is not.

    "LIF" resets to value, has no constant drive (its bias would act before the input arrives) and
    no negative threshold (it would spike at rest, before the input arrives); "LIFRefractory" exists
    in float only and takes one membrane decay; "ResetLIF", which alone adapts, and "LeakyReadout"
    are ours.
    """
    if p.reset is None:
        return "LeakyReadout"
    if p.adaptive or np.any(p.drive) or np.any(p.v_init) or np.any(p.v_th < 0):
        return "ResetLIF"
    memoryless = p.reset == "none" and bool(np.all(p.dv == 1)) and precision == "float"
    if p.reset == "value" or memoryless:
        return "LIF"
    if p.reset == "refractory1" and precision == "float" and np.all(p.dv == p.dv[0]):
        return "LIFRefractory"
    return "ResetLIF"


def lava_refusal(network: Network) -> str | None:
    """Why Lava's timing cannot express the network, or None."""
    from grasp_plugin.errors import Refused
    from grasp_plugin.network.schedule import arrival_steps

    try:
        arrival_steps(network)
    except Refused as error:
        return str(error)
    return None

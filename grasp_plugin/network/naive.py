"""The scaling of the NIR repository's `paper/nir_to_lava.py`, for comparison only.

    weight = trunc(256 w),         v_th = trunc(131071 theta) >> 9,
    du = trunc(4095 du),           dv = trunc(4095 dv)

one scale for every layer, no rounding, no range check: weights beyond +-254 are clipped by Lava
without a word. `quantise` is what to use; `verify` shows both.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from grasp_plugin.errors import Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.network import Network
from grasp_plugin.neurons.lif_fixed import REGISTERS, check_registers

SCALE = 256.0


def naive_scaling(network: Network) -> Network:
    """The network in integers as the old converter would scale it (where it knew the neuron).

    Raises:
        Refused: a neuron, reset, drive or bias that it did not know, or a threshold beyond 17 bits.
    """
    if network.biases:
        raise Refused(network.biases[0].name, "the old converter has no biases", "Use quantise")
    populations = []
    for p in network.populations:
        if p.reset != "value" or p.adaptive or np.any(p.drive) or np.any(p.v_init):
            raise Refused(p.name, "the old converter has no such neuron", "Use quantise(network)")
        most = REGISTERS["du"][1]
        new = replace(
            p,
            du=np.minimum(p.du * most, most).astype(np.int64),
            dv=np.minimum(p.dv * most, most).astype(np.int64),
            v_th=(p.v_th * REGISTERS["v_th"][1]).astype(np.int64) >> 9,
            drive=np.zeros(p.size, np.int64),
            v_init=np.zeros(p.size, np.int64),
            scale=SCALE,
        )
        check_registers(p.name, v_th=new.v_th)
        populations.append(new)
    projections = tuple(
        replace(k, weight=W.with_values(k.weight, (W.values(k.weight) * SCALE).astype(np.int64)))
        for k in network.projections
    )
    return replace(
        network, populations=tuple(populations), projections=projections, precision="loihi"
    )

"""A whole `Network` as one leaf Process: one model, one compiled step, no latency."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var

from grasp_plugin.errors import Refused
from grasp_plugin.network.network import Network
from grasp_plugin.network.packed import pack


class FusedNetwork(AbstractProcess):
    """A `Network` that takes one Lava step for each of its own and answers within the step.

    `s_in` takes the network's one input, shape (input neurons,) (Lava 0.10 cannot compile the
    ConcatPorts that several would need); `s_out` sends the populations that `network.outputs`
    shows, side by side in that order. Outputs depend on inputs of the same step, so a loop
    from `s_out` back to `s_in` must hold a Process that sends before it receives, as every Lava
    connection does. Membranes are sent in the network's own units (integers: 1 / (64 scale)).

    Args:
        network: precision "float" for `select_tag="floating_pt"`, "loihi" for "fixed_pt"; the model
            of the other tag refuses it.

    Raises:
        Refused: a network with several inputs.
    """

    def __init__(self, *, network: Network, **kwargs: Any) -> None:
        super().__init__(network=network, **kwargs)
        if len(network.inputs) != 1:
            raise Refused(
                "network",
                f"expected one input, got {', '.join(network.inputs)}",
                "Use adapters.to_lava(network), which has a port for each",
            )
        packed = pack(network)
        size = sum(network[source].size for source in network.outputs.values())
        self.s_in = InPort(shape=(packed.inputs,))
        self.s_out = OutPort(shape=(size,))
        recent = np.zeros((packed.depth, packed.inputs + packed.neurons), packed.v_init.dtype)
        zeros = np.zeros_like(packed.v_init)
        self.u = Var(shape=zeros.shape, init=zeros)
        self.v = Var(shape=zeros.shape, init=packed.v_init)
        self.s = Var(shape=zeros.shape, init=zeros)
        self.adapt = Var(shape=zeros.shape, init=zeros)
        self.wait = Var(shape=zeros.shape, init=zeros)
        self.buffer = Var(shape=recent.shape, init=recent)
        self.age = Var(shape=(1,), init=0)

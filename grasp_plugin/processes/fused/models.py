"""Float and fixed models of a fused network: shells around `network.packed.advance`."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from grasp_plugin.errors import Refused
from grasp_plugin.network.packed import PackedState, advance, pack
from grasp_plugin.processes.fused.process import FusedNetwork


class _Fused(PyLoihiProcessModel):
    precision = ""
    u: Any
    v: Any
    s: Any
    adapt: Any
    wait: Any

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        network = proc_params["network"]
        if network.precision != self.precision:
            raise Refused(
                "FusedNetwork",
                f"expected precision {self.precision!r} for this tag, got {network.precision!r}",
                "Use select_tag='floating_pt' for float and 'fixed_pt' for Loihi integers",
            )
        self.packed = pack(network)
        self.shown = [self.packed.slices[source] for source in network.outputs.values()]

    def run_spk(self) -> None:
        x = self.s_in.recv()
        age = int(self.age[0])
        state = PackedState(
            self.packed, self.u, self.v, self.s, self.buffer, age, self.adapt, self.wait
        )
        out, _, _ = advance(self.packed, state, x[None])
        self.age[0] += 1
        self.s_out.send(np.concatenate([out[0, part] for part in self.shown]))


@implements(proc=FusedNetwork, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyFusedFloat(_Fused):
    precision = "float"
    s_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    u: Any = LavaPyType(np.ndarray, float)
    v: Any = LavaPyType(np.ndarray, float)
    s: Any = LavaPyType(np.ndarray, float)
    adapt: Any = LavaPyType(np.ndarray, float)
    wait: Any = LavaPyType(np.ndarray, float)
    buffer: Any = LavaPyType(np.ndarray, float)
    age: Any = LavaPyType(np.ndarray, int)


@implements(proc=FusedNetwork, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyFusedFixed(_Fused):
    precision = "loihi"
    s_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    u: Any = LavaPyType(np.ndarray, np.int64, precision=24)
    v: Any = LavaPyType(np.ndarray, np.int64, precision=24)
    s: Any = LavaPyType(np.ndarray, np.int64)
    adapt: Any = LavaPyType(np.ndarray, np.int64, precision=24)
    wait: Any = LavaPyType(np.ndarray, np.int64, precision=6)
    buffer: Any = LavaPyType(np.ndarray, np.int64)
    age: Any = LavaPyType(np.ndarray, int)

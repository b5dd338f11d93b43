"""Float and fixed models of `GradedHDLIF`: thin shells around `neurons.hdlif`."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from grasp_plugin.network.hdlif import row
from grasp_plugin.neurons import hdlif
from grasp_plugin.neurons.lif_fixed import UV_MAX
from grasp_plugin.processes.hdlif.process import GradedHDLIF


class _Graded(PyLoihiProcessModel):
    """What both share: silence until the phase, rest before each sample."""

    v: Any

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.options = {n: proc_params[n] for n in ("steps", "phase", "parallel", "top")}
        self.code_step = proc_params["code_step"]
        self.saturated = 0

    def run_spk(self) -> None:
        a = self.a_in.recv()
        at = int(self.age[0]) - self.options["phase"]
        self.age[0] += 1
        if at < 0:
            self.s_out.send(np.zeros_like(self.v))
            self.margin_out.send(np.zeros_like(self.v))
            return
        t = at % self.options["steps"]
        if t == 0:
            self.v = np.zeros_like(self.v)
        out, margin = self.advance(a, t)
        self.s_out.send(out)
        self.margin_out.send(margin)

    @abstractmethod
    def advance(self, a: Any, t: int) -> tuple[Any, Any]:
        """(what is sent, margin) at step t of a sample."""


@implements(proc=GradedHDLIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyGradedHDLIFFloat(_Graded):
    """`neurons.hdlif.step`, in float64."""

    a_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    margin_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    decay: Any = LavaPyType(np.ndarray, float)
    vth: Any = LavaPyType(np.ndarray, float)
    gain: Any = LavaPyType(np.ndarray, float)
    offset: Any = LavaPyType(np.ndarray, float)
    act_shift: Any = LavaPyType(np.ndarray, float)
    q_mult: Any = LavaPyType(np.ndarray, float)
    q_shift: Any = LavaPyType(np.ndarray, float)
    v: Any = LavaPyType(np.ndarray, float)
    age: Any = LavaPyType(np.ndarray, int)

    def advance(self, a: Any, t: int) -> tuple[Any, Any]:
        s, state, margin = hdlif.step(
            a, {"v": self.v}, decay=row(self.decay, t), theta=row(self.vth, t),
            gain=row(self.gain, t), offset=row(self.offset, t), parallel=self.options["parallel"],
        )  # fmt: skip
        self.v = state["v"]
        if self.code_step is not None:
            s = hdlif.quantised(s, self.code_step, self.options["top"])
        return s, margin


@implements(proc=GradedHDLIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyGradedHDLIFFixed(_Graded):
    """`neurons.hdlif.step_fixed`, in integers of 24 bits; what met a limit is in `saturated`."""

    a_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=8)
    margin_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)
    decay: Any = LavaPyType(np.ndarray, np.int64, precision=12)
    vth: Any = LavaPyType(np.ndarray, np.int64, precision=24)
    gain: Any = LavaPyType(np.ndarray, np.int64)
    offset: Any = LavaPyType(np.ndarray, np.int64, precision=24)
    act_shift: Any = LavaPyType(np.ndarray, np.int64, precision=5)
    q_mult: Any = LavaPyType(np.ndarray, np.int64, precision=16)
    q_shift: Any = LavaPyType(np.ndarray, np.int64, precision=5)
    v: Any = LavaPyType(np.ndarray, np.int64, precision=24)
    age: Any = LavaPyType(np.ndarray, int)

    def advance(self, a: Any, t: int) -> tuple[Any, Any]:
        vth = row(self.vth, t)
        code, state, margin = hdlif.step_fixed(
            a, {"v": self.v}, dv=row(self.decay, t), vth=vth, bias=row(self.offset, t),
            act_shift=self.act_shift, q_mult=self.q_mult, q_shift=self.q_shift,
            top=self.options["top"], parallel=self.options["parallel"],
        )  # fmt: skip
        self.v = state["v"]
        self.saturated += int(np.sum(np.abs(margin + vth) >= UV_MAX - 1))
        return code, margin

"""Float and fixed models of the leaky family: thin shells around `neurons.lif`, `lif_fixed`."""

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

from grasp_plugin.neurons import lif
from grasp_plugin.neurons.lif_fixed import margin_step_fixed, step_fixed
from grasp_plugin.processes.leaky.process import DelayLine, LeakyReadout, OnsetSource, ResetLIF


class _Leaky(PyLoihiProcessModel):
    """What the four neuron models share: receive, freeze until the onset, step, send."""

    u: Any
    v: Any

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.reset = proc_params.get("reset")
        self.adaptive = bool(proc_params.get("adaptive"))
        self.onset = int(proc_params["onset"])
        self.drive_exp = int(proc_params["drive_exp"])

    def run_spk(self) -> None:
        a = self.a_in.recv()
        if self.age[0] < self.onset:
            out = margin = active = np.zeros_like(self.v)
        else:
            active = self.ready()
            out, margin = self.advance(a)
        self.age[0] += 1
        self.s_out.send(out)
        self.margin_out.send(margin)
        if self.reset is not None:
            self.active_out.send(active)

    def ready(self) -> Any:
        """1 where a neuron may spike in this step."""
        return None

    @abstractmethod
    def advance(self, a: Any) -> tuple[Any, Any]:
        """(output, margin) of this step."""


class _Spiking(_Leaky):
    """ResetLIF: its state and adaptation as `neurons.lif` takes them."""

    def ready(self) -> Any:
        if not self.active_out.csp_ports:
            return None  # nobody asks
        ready = lif.ready({"wait": self.wait})
        return ready * (1 - self.s) if self.reset == "refractory1" else ready

    def advance(self, a: Any) -> tuple[Any, Any]:
        state = {"u": self.u, "v": self.v, "s": self.s}
        adaptation = {}
        if self.adaptive:
            state |= {"adapt": self.adapt, "wait": self.wait}
            adaptation = {"rho": self.rho, "theta": self.theta, "n_ref": self.n_ref}
        out, state, margin = self.fire(a, state, adaptation)
        for name, value in state.items():
            setattr(self, name, value)
        return out, margin

    @abstractmethod
    def fire(self, a: Any, state: Any, adaptation: dict[str, Any]) -> tuple[Any, Any, Any]:
        """(spikes, state, margin) of this step, in the model's arithmetic."""


@implements(proc=ResetLIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyResetLIFFloat(_Spiking):
    a_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    margin_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    active_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    u: Any = LavaPyType(np.ndarray, float)
    v: Any = LavaPyType(np.ndarray, float)
    s: Any = LavaPyType(np.ndarray, float)
    adapt: Any = LavaPyType(np.ndarray, float)
    wait: Any = LavaPyType(np.ndarray, float)
    du: Any = LavaPyType(np.ndarray, float)
    dv: Any = LavaPyType(np.ndarray, float)
    vth: Any = LavaPyType(np.ndarray, float)
    drive: Any = LavaPyType(np.ndarray, float)
    rho: Any = LavaPyType(np.ndarray, float)
    theta: Any = LavaPyType(np.ndarray, float)
    n_ref: Any = LavaPyType(np.ndarray, int)
    age: Any = LavaPyType(np.ndarray, int)

    def fire(self, a: Any, state: Any, adaptation: dict[str, Any]) -> tuple[Any, Any, Any]:
        return lif.step(
            a, state, du=self.du, dv=self.dv, v_th=self.vth, drive=self.drive, reset=self.reset,
            **adaptation,
        )  # fmt: skip


@implements(proc=ResetLIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyResetLIFFixed(_Spiking):
    a_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    margin_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)
    active_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=1)
    u: Any = LavaPyType(np.ndarray, np.int64, precision=24)
    v: Any = LavaPyType(np.ndarray, np.int64, precision=24)
    s: Any = LavaPyType(np.ndarray, np.int64, precision=1)
    adapt: Any = LavaPyType(np.ndarray, np.int64, precision=24)
    wait: Any = LavaPyType(np.ndarray, np.int64, precision=6)
    du: Any = LavaPyType(np.ndarray, np.int64, precision=12)
    dv: Any = LavaPyType(np.ndarray, np.int64, precision=12)
    vth: Any = LavaPyType(np.ndarray, np.int64, precision=17)
    drive: Any = LavaPyType(np.ndarray, np.int64, precision=13)
    rho: Any = LavaPyType(np.ndarray, np.int64, precision=12)
    theta: Any = LavaPyType(np.ndarray, np.int64, precision=24)
    n_ref: Any = LavaPyType(np.ndarray, np.int64, precision=6)
    age: Any = LavaPyType(np.ndarray, int)

    def fire(self, a: Any, state: Any, adaptation: dict[str, Any]) -> tuple[Any, Any, Any]:
        if adaptation:
            adaptation["drho"] = adaptation.pop("rho")
        return margin_step_fixed(
            a, state, du=self.du, dv=self.dv, v_th=self.vth, drive=self.drive << self.drive_exp,
            reset=self.reset, **adaptation,
        )  # fmt: skip


@implements(proc=LeakyReadout, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyLeakyReadoutFloat(_Leaky):
    a_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    margin_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    u: Any = LavaPyType(np.ndarray, float)
    v: Any = LavaPyType(np.ndarray, float)
    du: Any = LavaPyType(np.ndarray, float)
    dv: Any = LavaPyType(np.ndarray, float)
    drive: Any = LavaPyType(np.ndarray, float)
    age: Any = LavaPyType(np.ndarray, int)

    def advance(self, a: Any) -> tuple[Any, Any]:
        out, state, _ = lif.step(
            a, {"u": self.u, "v": self.v, "s": 0.0}, du=self.du, dv=self.dv, v_th=0.0,
            drive=self.drive, reset=None,
        )  # fmt: skip
        self.u, self.v = state["u"], state["v"]
        return out, out


@implements(proc=LeakyReadout, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyLeakyReadoutFixed(_Leaky):
    a_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    margin_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    u: Any = LavaPyType(np.ndarray, np.int64, precision=24)
    v: Any = LavaPyType(np.ndarray, np.int64, precision=24)
    du: Any = LavaPyType(np.ndarray, np.int64, precision=12)
    dv: Any = LavaPyType(np.ndarray, np.int64, precision=12)
    drive: Any = LavaPyType(np.ndarray, np.int64, precision=13)
    age: Any = LavaPyType(np.ndarray, int)

    def advance(self, a: Any) -> tuple[Any, Any]:
        zero = np.zeros_like(self.v)
        out, state = step_fixed(
            a, {"u": self.u, "v": self.v, "s": zero}, du=self.du, dv=self.dv, v_th=zero,
            drive=self.drive << self.drive_exp, reset=None,
        )  # fmt: skip
        self.u, self.v = state["u"], state["v"]
        return out, out


class _Onset(PyLoihiProcessModel):
    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.onset = int(proc_params["onset"])

    def run_spk(self) -> None:
        self.s_out.send(np.array([int(self.age[0] >= self.onset)]))
        self.age[0] += 1


@implements(proc=OnsetSource, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyOnsetSourceFloat(_Onset):
    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    age: Any = LavaPyType(np.ndarray, int)


@implements(proc=OnsetSource, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyOnsetSourceFixed(_Onset):
    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    age: Any = LavaPyType(np.ndarray, int)


class _DelayLine(PyLoihiProcessModel):
    def run_spk(self) -> None:
        slot = int(self.age[0]) % len(self.buffer)
        self.s_out.send(self.buffer[slot])  # before receiving, so that loops do not block
        self.buffer[slot] = self.s_in.recv()
        self.age[0] += 1


@implements(proc=DelayLine, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyDelayLineFloat(_DelayLine):
    s_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    buffer: Any = LavaPyType(np.ndarray, float)
    age: Any = LavaPyType(np.ndarray, int)


@implements(proc=DelayLine, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyDelayLineFixed(_DelayLine):
    s_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    buffer: Any = LavaPyType(np.ndarray, np.int32)
    age: Any = LavaPyType(np.ndarray, int)

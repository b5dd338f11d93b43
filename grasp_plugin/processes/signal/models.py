"""The model of `LearningSignal`: a shell around `third_factor` and `local_curvature`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from grasp_plugin.learning.curvature import Unit
from grasp_plugin.learning.local_curvature import local_curvature
from grasp_plugin.learning.online import third_factor
from grasp_plugin.learning.rule import Factors
from grasp_plugin.learning.signals import RandomReadout
from grasp_plugin.processes.signal.process import LearningSignal

ENDLESS = 2**62


@implements(proc=LearningSignal, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt", "fixed_pt")
class PyLearningSignal(PyLoihiProcessModel):
    s_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    target_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    signal_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    logits_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    margin_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    active_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    bent_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    age: Any = LavaPyType(np.ndarray, int)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.signal = proc_params["signal"]
        self.classes = int(proc_params["classes"])
        self.first = int(proc_params["first_step"])
        self.unit = float(proc_params["unit"])
        self.bends = proc_params["bends"]
        self.margin_unit = float(proc_params["margin_unit"])
        self.window = ENDLESS
        neurons, like = int(proc_params["neurons"]), np.zeros(1)
        self.state: Any = self.signal.init(neurons, like)

    def rest(self) -> None:
        """Count steps from 0 again; the readout and its random numbers go on."""
        self.age[0] = 0

    def run_spk(self) -> None:
        output, given = self.s_in.recv()[None] * self.unit, self.target_in.recv()
        target, mask = given[None, :-1], given[None, -1:]
        membrane = self._membrane() if self.bends is not None else None
        now = int(self.age[0]) - self.first
        self.age[0] += 1
        signal, logits = np.zeros(output.shape), np.zeros((1, self.classes))
        bent = signal
        if 0 <= now < self.window:
            before = self.state
            if isinstance(self.signal, RandomReadout):
                logits = self.signal.logits(output, before)
            signal, self.state = third_factor(self.signal, output, target, mask, before)
            if membrane is not None:
                m = local_curvature(
                    self.signal, output, self._unit(membrane), target, mask, before, self.state
                )
                bent = m(self.bends.error(replace(membrane, signal=signal)))
        self.signal_out.send(signal[0])
        self.logits_out.send(logits[0])
        if membrane is not None:
            self.bent_out.send(bent[0])

    def _membrane(self) -> Factors:
        """Margin and activity of this step, as the synapses see them."""
        margin = self.margin_in.recv()[None] / self.margin_unit
        active = self.active_in.recv()[None] if self.active_in.csp_ports else None
        return Factors(margin, membrane=margin, active=active)

    def _unit(self, seen: Factors) -> Unit:
        return Unit(
            self.bends.surrogate, seen.membrane, 1.0 if seen.active is None else seen.active
        )

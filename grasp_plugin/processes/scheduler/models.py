"""The model of `BudgetScheduler`: a shell around `learning.shared_budget`."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from grasp_plugin.processes.scheduler.process import BudgetScheduler

ENDLESS = 2**62


@implements(proc=BudgetScheduler, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyBudgetScheduler(PyLoihiProcessModel):
    price_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    taken_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    age: Any = LavaPyType(np.ndarray, int)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.price = proc_params["price"]
        self.first = max(h.arrival for h in self.price.holders)
        self.window = ENDLESS
        self.log_price = -np.inf

    def rest(self) -> None:
        """Count steps from 0 again; the price goes on."""
        self.age[0] = 0

    def run_spk(self) -> None:
        self.price_out.send(np.array([self.log_price]))
        taken, least = self.taken_in.recv().reshape(-1, 2).T
        now = int(self.age[0]) - self.first
        self.age[0] += 1
        if 0 <= now < self.window:
            self.log_price = self.price.after(self.log_price, [taken.sum()], [least.max()])

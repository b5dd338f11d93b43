"""The model of `PostponedDense`: a shell around `learning.postponed.Postponed`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from grasp_plugin.learning.deltas import Delta, size
from grasp_plugin.learning.postponed import Postponed, modes_of
from grasp_plugin.learning.rule import Factors, Plan
from grasp_plugin.learning.states import check_finite
from grasp_plugin.processes.plastic.models import PlasticFloat
from grasp_plugin.processes.postponed.process import PostponedDense


class _Lent(LavaPyType):
    """A Var that is brought up to date when anyone looks at it, and read back at the next step.

    A reference kept over a step is out of date, and what is written through it is lost.
    """

    def __get__(self, model: Any, owner: Any = None) -> Any:
        return self if model is None else model.lend()

    def __set__(self, model: Any, value: Any) -> None:
        model.__dict__["weights"] = value  # as Lava's __setattr__ does, which does not come here


@implements(proc=PostponedDense, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyPostponedDense(PlasticFloat):
    """Holds the weights twice: as the Var [N_o, N_i], and by input, where the updates are made."""

    weights: Any = _Lent(np.ndarray, float)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.modes = modes_of(self.plan, self.name)
        self.held: Postponed | None = None
        self.taken: Any = None  # the Var's array, while `held` is ahead of it

    def holding(self) -> Postponed:
        """The weights by input, as the Var gave them if it was lent or set since."""
        var, held = self.__dict__["weights"], self.held
        if held is None:
            self.held = held = Postponed(var, self.modes)
            self.taken = var
        elif self.taken is not var:
            held.replace(var)
            self.taken = var
        return held

    def lend(self) -> Any:
        """The Var's array with all updates made; it is ahead of `held` from here on."""
        var = self.__dict__["weights"]
        if self.held is not None and self.taken is var:
            var[...] = self.held.settle()
        self.taken = None
        return var

    def rest(self) -> None:
        self.holding().rest()
        super().rest()

    def matrix(self) -> Any:
        return self.holding().columns.T  # no rule whose updates can wait reads its values

    def forward(self, pre: Any) -> Any:
        return self.holding().gather(pre)

    def backward(self, error: Any) -> Any:
        return self.holding().back(error)

    def add(self, delta: Delta, factors: Factors) -> None:
        trace = (self.state["rule"] if isinstance(self.plan, Plan) else self.state)["trace"]
        if "q" in trace and not math.isfinite(size(trace["q"])):  # no part of this step's delta
            check_finite({"trace": trace}, node=self.name, step=self.step())
        self.holding().add(delta["weight"], factors.pre[0], trace)

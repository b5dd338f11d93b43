"""Models of plastic connections: shells around `Rule.update`, `FixedSynapses` and their kernels."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from grasp_plugin.learning.convolved import conv_back, patches
from grasp_plugin.learning.fixed import FixedSynapses
from grasp_plugin.learning.kernels import add_delta, gather
from grasp_plugin.learning.online import refuse_unless_finite
from grasp_plugin.learning.rule import Factors
from grasp_plugin.processes.plastic.process import PlasticConv, PlasticDense

ENDLESS = 2**62


class _Plastic(PyLoihiProcessModel):
    """What all plastic models share: the order of a step, and which steps learn."""

    weights: Any
    kind: type = float

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.plan = proc_params["plan"]
        self.first = int(proc_params["first_step"])
        self.late = int(proc_params["late"])
        self.surrogate = proc_params["surrogate"]
        self.uses_active = bool(proc_params["uses_active"])
        self.window = ENDLESS  # steps of learning from `first` on
        self.name = str(proc_params.get("name", "plastic synapses"))
        self.state: Any = None
        self.pre: Any = 0
        self.waiting: deque[Any] = deque()
        self.factors: Factors | None = None

    def rest(self) -> None:
        """Forget all traces and what is under way; weights stay."""
        self.state, self.pre, self.factors = None, 0, None
        self.waiting.clear()
        self.age[0] = 0

    def run_spk(self) -> None:
        pre = np.zeros(self.s_in.shape, self.kind) + self.pre
        self.a_out.send(self.forward(pre))
        self.pre = self.s_in.recv().astype(self.kind)
        signal, margin = self.signal_in.recv(), self.in_float(self.margin_in.recv())
        post, active = self.post_in.recv(), self.active_in.recv()
        self.waiting.append((pre, margin, post, active))
        now = int(self.age[0]) - self.first - self.late
        self.age[0] += 1
        if len(self.waiting) <= self.late:
            self.factors = None
            self.back_out.send(np.zeros(self.s_in.shape))
            return
        pre, margin, post, active = (value[None] for value in self.waiting.popleft())
        one = active if self.uses_active else None
        self.factors = Factors(pre, signal[None], margin, spikes=post, active=one)
        if not 0 <= now < self.window:
            self.factors = None
        error = signal if self.surrogate is None else signal * self.surrogate.first(margin[0])
        self.back_out.send(self.backward(error * active[0] if self.uses_active else error))

    def lrn_guard(self) -> bool:
        return self.plan is not None and self.factors is not None

    def run_lrn(self) -> None:
        matrix = self.weights.reshape(len(self.weights), -1)
        if self.state is None:
            self.state = self.plan.init(matrix)
        delta, self.state = self.plan.update(self.factors, self.state, matrix)
        refuse_unless_finite(delta, self.state, self.name, int(self.age[0]) - 1)
        add_delta(self.weights, delta)

    def in_float(self, margin: Any) -> Any:
        """A margin in the units that the plan is written in."""
        return margin

    def forward(self, pre: Any) -> Any:
        raise NotImplementedError("a model knows its weights")

    def backward(self, error: Any) -> Any:
        raise NotImplementedError("a model knows its weights")


@implements(proc=PlasticDense, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyPlasticDenseFloat(_Plastic):
    s_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    a_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    signal_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    margin_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    post_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    active_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    back_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    weights: Any = LavaPyType(np.ndarray, float)
    age: Any = LavaPyType(np.ndarray, int)

    def forward(self, pre: Any) -> Any:
        return gather(self.weights, pre)

    def backward(self, error: Any) -> Any:
        return error @ self.weights if self.back_out.csp_ports else np.zeros(self.s_in.shape)


@implements(proc=PlasticDense, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyPlasticDenseFixed(_Plastic):
    kind = np.int64
    s_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    a_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    signal_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    margin_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    post_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    active_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    back_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    weights: Any = LavaPyType(np.ndarray, np.int16, precision=8)
    age: Any = LavaPyType(np.ndarray, int)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.weight_exp = int(proc_params["weight_exp"])
        self.scale = float(proc_params["scale"])
        self.synapses: FixedSynapses | None = None

    def rest(self) -> None:
        super().rest()
        if self.synapses is not None:
            self.synapses.rest()

    def learning(self) -> FixedSynapses:
        """The integer state, on the weights as they are now."""
        if self.synapses is None or self.synapses.weights is not self.weights:
            self.synapses = FixedSynapses(self.plan, self.weights)
        return self.synapses

    def run_lrn(self) -> None:
        self.learning().step(self.factors)  # type: ignore[arg-type]  # given, by lrn_guard

    def in_float(self, margin: Any) -> Any:
        return margin / (64.0 * self.scale)

    def forward(self, pre: Any) -> Any:
        total, exponent = gather(self.weights, pre), self.weight_exp
        return total << exponent if exponent > 0 else total >> -exponent

    def backward(self, error: Any) -> Any:
        if not self.back_out.csp_ports:
            return np.zeros(self.s_in.shape)
        return (error @ self.weights) * (2.0**self.weight_exp / self.scale)


@implements(proc=PlasticConv, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyPlasticConvFloat(_Plastic):
    s_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    a_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    signal_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    margin_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    post_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    active_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    back_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    weights: Any = LavaPyType(np.ndarray, float)
    age: Any = LavaPyType(np.ndarray, int)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.patches = patches(proc_params["conv"])

    def forward(self, pre: Any) -> Any:
        seen = np.append(pre, 0.0)[self.patches]
        return (self.weights.reshape(len(self.weights), -1) @ seen.T).ravel()

    def backward(self, error: Any) -> Any:
        if not self.back_out.csp_ports:
            return np.zeros(self.s_in.shape)
        return conv_back(self.weights, self.patches, error, self.s_in.shape[0])

"""Models of plastic connections: shells around `Rule.update`, `FixedSynapses` and their kernels."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from grasp_plugin.learning.convolved import conv_back, core_of, patches
from grasp_plugin.learning.deltas import Delta
from grasp_plugin.learning.fixed import FixedSynapses
from grasp_plugin.learning.kernels import add_delta, gather
from grasp_plugin.learning.local_curvature import KnownDirection
from grasp_plugin.learning.online import refuse_unless_finite
from grasp_plugin.learning.price_post import Post
from grasp_plugin.learning.rule import Factors, Rule, with_lasting
from grasp_plugin.learning.shared_budget import report, with_price
from grasp_plugin.network.weights import Conv
from grasp_plugin.processes.plastic.process import PlasticConv, PlasticDense

ENDLESS = 2**62


class _Plastic(PyLoihiProcessModel):
    """What all plastic models share: the order of a step, and which steps learn."""

    weights: Any
    age: Any
    kind: type = float

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.plan = proc_params["plan"]
        self.first = int(proc_params["first_step"])
        self.late = int(proc_params["late"])
        self.surrogate = proc_params["surrogate"]
        self.uses_active = bool(proc_params["uses_active"])
        self.curvature_macs = int(proc_params["curvature_macs"])
        holder = proc_params["holder"]
        self.price_post = None if holder is None else Post(holder)
        self.window = ENDLESS  # steps of learning from `first` on
        self.name = str(proc_params.get("name", "plastic synapses"))
        self.state: Any = None
        self.pre: Any = None
        self.waiting: deque[Any] = deque()
        self.factors: Factors | None = None

    def rest(self) -> None:
        """Forget all traces and what is under way; weights stay."""
        if self.state is not None and isinstance(self.plan, Rule):
            fresh = self.plan.init(self.matrix())
            self.state = with_lasting(core_of(self.plan), fresh, self.state)
        self.pre, self.factors = None, None
        if self.price_post is not None:
            self.price_post.rest()
        self.waiting.clear()
        self.age[0] = 0

    def run_spk(self) -> None:
        pre: Any = np.zeros(self.s_in.shape, self.kind) if self.pre is None else self.pre
        self.a_out.send(self.forward(pre))
        self.pre = self.s_in.recv().astype(self.kind, copy=False)
        signal, margin = self.signal_in.recv(), self.in_float(self.margin_in.recv())
        post = self.post_in.recv()[None] if self.post_in.csp_ports else None
        active = self.active_in.recv()[None] if self.uses_active else None
        bent = self.bent_in.recv()[None] if self.bent_in.csp_ports else None
        self.waiting.append((pre[None], margin[None], post, active))
        now = int(self.age[0]) - self.first - self.late
        self.age[0] += 1
        factors = None
        if len(self.waiting) > self.late:
            pre, margin, post, active = self.waiting.popleft()
            if 0 <= now < self.window:
                factors = Factors(pre, signal[None], margin, spikes=post, active=active)
                if bent is not None:
                    factors = self._bending(factors, bent)
        self.factors = factors
        if self.back_out.csp_ports:
            self.back_out.send(self._error_below())
        if self.price_post is not None:
            self._learn_at_price(self.price_post)
        elif self.plan is not None and self.factors is not None:
            self.learn(self.factors)

    def _bending(self, seen: Factors, bent: Any) -> Factors:
        """The factors with the curvature along their own error."""
        plan: Any = core_of(self.plan)
        error = plan.rule.error(seen)
        return replace(seen, curvature=KnownDirection(error, bent, self.curvature_macs))

    def _error_below(self) -> Any:
        """W^T d, d = dL/dm of this step's factors."""
        seen = self.factors
        if seen is None or seen.signal is None:
            return np.zeros(self.s_in.shape)
        error = seen.signal
        if self.surrogate is not None:
            error = error * self.surrogate.first(seen.membrane)
        return self.backward((error if seen.active is None else error * seen.active)[0])

    def _learn_at_price(self, post: Post) -> None:
        """Write at a shared price, and report what was written."""
        log_price, taken = post.price(float(self.price_in.recv()[0])), (0, 0.0)
        if self.factors is not None:
            at = post.place.at
            self.state = with_price(self.plan_state(), at, log_price)
            self.learn(self.factors)
            taken = report(self.state, at)
        self.taken_out.send(post.report(*taken))

    def plan_state(self) -> Any:
        """The state of a float plan; that of before step 0, if it has none yet."""
        if self.state is None:
            return self.plan.init(self.matrix())
        return self.state

    def learn(self, factors: Factors) -> None:
        """Write the weights, at the end of the spiking phase, when all that a synapse sees is here.

        A learning phase would be one more round of synchronisation for every Process of the graph.
        """
        delta, self.state = self.plan.update(factors, self.plan_state(), self.matrix())
        refuse_unless_finite(delta, self.state, self.name, self.step())
        self.add(delta, factors)

    def step(self) -> int:
        """The step of the sequence that is learned from."""
        return int(self.age[0]) - 1 - self.first - self.late

    def matrix(self) -> Any:
        """The weights as a rule sees them: [N_o, N_i], or a kernel [C_out, C_in prod(K)]."""
        return self.weights.reshape(len(self.weights), -1)

    def add(self, delta: Delta, factors: Factors) -> None:
        """W += delta, which came of these factors."""
        del factors
        add_delta(self.weights, delta)

    def in_float(self, margin: Any) -> Any:
        """A margin in the units that the plan is written in."""
        return margin

    @abstractmethod
    def forward(self, pre: Any) -> Any:
        """W pre (N_o,)."""

    @abstractmethod
    def backward(self, error: Any) -> Any:
        """W^T error (N_i,)."""


class PlasticFloat(_Plastic):
    """The ports and weights of the float models."""

    s_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    a_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    signal_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    margin_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    post_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    active_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    bent_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    back_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    price_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    taken_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    weights: Any = LavaPyType(np.ndarray, float)
    age: Any = LavaPyType(np.ndarray, int)


@implements(proc=PlasticDense, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyPlasticDenseFloat(PlasticFloat):
    def forward(self, pre: Any) -> Any:
        return gather(self.weights, pre)

    def backward(self, error: Any) -> Any:
        return error @ self.weights


class _PlasticFixed(_Plastic):
    """What the fixed models share: integers around, `FixedSynapses` inside."""

    kind = np.int64
    conv: Conv | None = None
    s_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    a_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    signal_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    margin_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    post_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    active_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    bent_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    back_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    price_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    taken_out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
    weights: Any = LavaPyType(np.ndarray, np.int16, precision=8)
    age: Any = LavaPyType(np.ndarray, int)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.weight_exp = int(proc_params["weight_exp"])
        self.scale = float(proc_params["scale"])
        self.synapses: FixedSynapses | None = None
        self.bound: Any = None  # the array that they write

    def rest(self) -> None:
        super().rest()
        if self.synapses is not None:
            self.synapses.rest()

    def learning(self) -> FixedSynapses:
        """The integer state, on the weights as they are now."""
        if self.synapses is None or self.bound is not self.weights:
            self.bound = self.weights
            matrix = self.weights.reshape(len(self.weights), -1)
            self.synapses = FixedSynapses(self.plan, matrix, self.conv)
        return self.synapses

    def learn(self, factors: Factors) -> None:
        self.learning().step(factors)

    def in_float(self, margin: Any) -> Any:
        return margin / (64.0 * self.scale)

    def shifted(self, total: Any) -> Any:
        exponent = self.weight_exp
        return total << exponent if exponent > 0 else total >> -exponent

    def in_weights(self, error: Any) -> Any:
        return error * (2.0**self.weight_exp / self.scale)


@implements(proc=PlasticDense, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyPlasticDenseFixed(_PlasticFixed):
    def forward(self, pre: Any) -> Any:
        return self.shifted(gather(self.weights, pre))

    def backward(self, error: Any) -> Any:
        return self.in_weights(error @ self.weights)


@implements(proc=PlasticConv, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyPlasticConvFloat(PlasticFloat):
    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.patches = patches(proc_params["conv"])

    def forward(self, pre: Any) -> Any:
        seen = np.append(pre, 0.0)[self.patches]
        return (self.weights.reshape(len(self.weights), -1) @ seen.T).ravel()

    def backward(self, error: Any) -> Any:
        return conv_back(self.weights, self.patches, error, self.s_in.shape[0])


@implements(proc=PlasticConv, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyPlasticConvFixed(_PlasticFixed):
    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.conv = proc_params["conv"]
        self.patches = patches(proc_params["conv"])

    def forward(self, pre: Any) -> Any:
        seen = np.append(pre, 0)[self.patches]
        matrix = self.weights.reshape(len(self.weights), -1).astype(np.int64)
        return self.shifted((matrix @ seen.T).ravel())

    def backward(self, error: Any) -> Any:
        return self.in_weights(conv_back(self.weights, self.patches, error, self.s_in.shape[0]))

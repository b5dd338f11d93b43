"""The models of `ExactLearner`: shells around `learning.exact.deployed`, float and fixed point."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyRefPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from grasp_plugin.processes.exact.process import MOST_LAYERS, ExactLearner

PORTS = {"weight": "weights", "delay": "delays", "v_th": "theta"}


def _declared(kind: Any) -> Any:
    """A class decorator: the ports of all layers, spikes and weights as `kind`."""

    def declare(model: Any) -> Any:
        for k in range(MOST_LAYERS + 1):
            setattr(model, f"s_in_{k}", LavaPyType(PyInPort.VEC_DENSE, kind))
        for k in range(1, MOST_LAYERS + 1):
            setattr(model, f"weights_{k}", LavaPyType(PyRefPort.VEC_DENSE, kind))
            setattr(model, f"delays_{k}", LavaPyType(PyRefPort.VEC_DENSE, int))
            setattr(model, f"theta_{k}", LavaPyType(PyRefPort.VEC_DENSE, kind))
        return model

    return declare


class _Exact(PyLoihiProcessModel):
    """What both share: collect, and at the end of a sample learn and write."""

    teach_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
    loss: Any = LavaPyType(np.ndarray, float)
    first: Any = LavaPyType(np.ndarray, float)
    age: Any = LavaPyType(np.ndarray, int)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.learner = proc_params["learner"]
        self.sizes = [
            self.learner.layers[0].weight.shape[1],
            *(p.weight.shape[0] for p in self.learner.layers),
        ]
        self.rest()

    def rest(self) -> None:
        """Forget the spikes of an unfinished sample."""
        self.events: list[list[tuple[int, int]]] = [[] for _ in self.sizes]
        self.label, self.ended = 0, False

    def run_spk(self) -> None:
        step = int(self.age[0])
        for k, events in enumerate(self.events):
            spikes = getattr(self, f"s_in_{k}").recv()
            for n in np.flatnonzero(spikes):
                events += [(step, int(n))] * int(spikes[n])
        label, end = self.teach_in.recv()
        self.label, self.ended = int(label), bool(end)
        self.age[0] += 1

    def post_guard(self) -> bool:
        return self.ended

    def run_post_mgmt(self) -> None:
        times = [padded(e, n) for e, n in zip(self.events, self.sizes, strict=True)]
        loss, first = self.learner.hear(times, self.label)
        self.loss[0], self.first[:] = loss, first
        if self.learner.update():
            self._write()
        self.rest()
        self.age[0] = 0

    def _write(self) -> None:
        """Write all, then wait: on Lava's own runtime they may else arrive a step late."""
        ports = []
        for k, held in enumerate(self.learner.written(), start=1):
            for name in ("weight", "delay", "v_th"):
                port = getattr(self, f"{PORTS[name]}_{k}")
                port.write(getattr(held, name))
                ports.append(port)
        for port in ports:
            port.wait()


def padded(events: list[tuple[int, int]], size: int) -> Any:
    """(step, id) in order of time as padded times (1, size, spikes) in steps, inf for none."""
    seen = np.zeros(size, int)
    for _, n in events:
        seen[n] += 1
    out = np.full((1, size, max(int(seen.max(initial=0)), 1)), np.inf)
    seen[:] = 0
    for step, n in events:
        out[0, n, seen[n]] = step
        seen[n] += 1
    return out


@implements(proc=ExactLearner, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
@_declared(float)
class PyExactLearnerFloat(_Exact):
    """Beside float Processes."""


@implements(proc=ExactLearner, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
@_declared(np.int32)
class PyExactLearnerFixed(_Exact):
    """Beside bit-accurate Processes."""

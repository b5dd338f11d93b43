"""`ExactLearner`: hears the spikes of every layer, and at the end of a sample writes parameters."""

from __future__ import annotations

from typing import Any

from lava.magma.core.process.ports.ports import InPort, RefPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.exact.deployed import Deployed

MOST_LAYERS = 4  # a ProcessModel names its ports in its class


class ExactLearner(AbstractProcess):
    """Exact event-time gradients of a feed-forward stack, computed beside it (`learner`).

    It keeps (step, id) of each spike and nothing else. At the end of a sample the currents are
    recomputed from those times, the adjoint runs once backwards (`learning.exact.observed`), and at
    the end of a batch new weights, delays and thresholds go through RefPorts to the Processes.
    All of that happens in the post-management phase of the last step; the next step runs on the new
    values. Whoever runs the graph sets the neurons back to rest between samples.

    Ports:
        s_in_0 (N_i,): the input's spikes. s_in_l (N_l,): those of layer l. In step t (from 0) of a
            sample both carry the spikes that stand at t dt: layers are one step behind the input.
        teach_in (2,): the label, and 1 in the last step of a sample, else 0.
        weights_l, delays_l [N_l, N_(l-1)]: RefPorts to a DelayDense with room for the longest
            delay (`max_delay`). theta_l (N_l,): to the vth of a ResetLIF; a stock LIF has one vth
            a population, so thresholds that learn need ours (`lay_out(own=...)`).
        Connect only what is to be written; all others stay.

    Vars: loss (1,) of the last sample; first (classes,), its first output spikes [ms].

    Bit-accurate DelayDense scales its weights once, in its first step, to what its sign mode can
    hold. What is written later must be so already: even integers in -254..254, mode MIXED. These
    are.

    Args:
        learner: shadow parameters and how they learn; each Process needs its own.

    Raises:
        Refused: more than 4 layers.
        Invalid: learner is no `Deployed`.
    """

    def __init__(self, *, learner: Deployed, **kwargs: Any) -> None:
        super().__init__(learner=learner, **kwargs)
        if not isinstance(learner, Deployed):
            raise Invalid(
                self.name, f"expected a Deployed, got {type(learner).__name__}", "Make one"
            )
        shapes = [p.weight.shape for p in learner.layers]
        if len(shapes) > MOST_LAYERS:
            raise Refused(
                self.name, f"expected at most {MOST_LAYERS} layers, got {len(shapes)}",
                "Train by learning.exact.layers and deploy, or raise MOST_LAYERS",
            )  # fmt: skip
        sizes = [shapes[0][1], *(outs for outs, _ in shapes)]
        sizes += [1] * (MOST_LAYERS + 1 - len(sizes))
        self.teach_in = InPort(shape=(2,))
        for k, size in enumerate(sizes):
            setattr(self, f"s_in_{k}", InPort(shape=(size,)))
        for k in range(1, MOST_LAYERS + 1):
            shape = shapes[k - 1] if k <= len(shapes) else (1, 1)
            setattr(self, f"weights_{k}", RefPort(shape=shape))
            setattr(self, f"delays_{k}", RefPort(shape=shape))
            setattr(self, f"theta_{k}", RefPort(shape=(shape[0],)))
        self.loss = Var(shape=(1,), init=0)
        self.first = Var(shape=(shapes[-1][0],), init=0)
        self.age = Var(shape=(1,), init=0)

"""HD-LIF neurons as a Lava Process."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var

from grasp_plugin.errors import Invalid
from grasp_plugin.neurons.hdlif import TOP_CODE
from grasp_plugin.neurons.lif_fixed import check_registers


class GradedHDLIF(AbstractProcess):
    """Neurons that send how far they exceed their threshold, as floats or 4-bit codes.

    The equations are those of `neurons.hdlif`. In its own step k (from 0) the Process is at step
    t = (k - phase) mod steps of a sample: it uses lambda_t and theta_t, and begins each sample at
    v = 0. For its first `phase` steps it is silent. A connection takes one step, so the k-th layer
    (from 1) of a chain behind a source has phase k.

    After s_out it sends margin_out = m - theta (in LSBs in integers), 0 while silent; a plastic
    connection takes it as its margin_in, and as its post_in, since it is above 0 where it fired.

    Tags: "floating_pt": sends s*, or Q(s*) with a code_step; "fixed_pt": sends codes.

    Args:
        shape: (neuron,).
        steps, phase: T, and the steps before the first sample.
        decay: float: lambda; fixed: dv = 4096 (1 - lambda), 12 bits. (R, 1) or (R, neuron), with
            R = T or 1; so are all below.
        vth: theta, or in LSBs.
        gain, offset: of the current, in float. In fixed point gain is 1 and offset the bias [LSB].
        act_shift, q_mult, q_shift: fixed, one or one a neuron: the input is shifted left by the
            first; code = (s q_mult + half) >> q_shift.
        code_step: float: of Q; None: float spikes.
        top: the largest code.
        parallel: no memory.

    Vars: v (neuron,); age (1,), its own steps; the arguments of those names.

    Raises:
        Invalid: a phase below 0, parameters with other than 1 or T rows, or a decay that is no
            12-bit integer where integers are given.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        steps: int,
        decay: Any,
        vth: Any,
        gain: Any = 1.0,
        offset: Any = 0.0,
        q_mult: Any = 1,
        q_shift: Any = 1,
        act_shift: Any = 0,
        phase: int = 1,
        code_step: float | None = None,
        top: int = TOP_CODE,
        parallel: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            steps=steps, phase=phase, code_step=code_step, top=top, parallel=parallel, **kwargs,
        )  # fmt: skip
        if phase < 0:
            raise Invalid(self.name, f"expected a phase >= 0, got {phase}", "Pass 1, 2, ...")
        if np.asarray(decay).dtype.kind in "iu" and not parallel:
            check_registers(self.name, dv=decay)
        self.a_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.margin_out = OutPort(shape=shape)
        for name, value in (("decay", decay), ("vth", vth), ("gain", gain), ("offset", offset)):
            rows = np.atleast_2d(np.asarray(value))
            if len(rows) not in (1, steps):
                raise Invalid(
                    self.name, f"expected 1 or {steps} rows in {name}, got {len(rows)}",
                    "Pass a row a step, or one",
                )  # fmt: skip
            wide = np.broadcast_to(rows, (len(rows), *shape)).copy()
            setattr(self, name, Var(shape=wide.shape, init=wide))
        self.act_shift = Var(shape=shape, init=np.broadcast_to(act_shift, shape).copy())
        self.q_mult = Var(shape=shape, init=np.broadcast_to(q_mult, shape).copy())
        self.q_shift = Var(shape=shape, init=np.broadcast_to(q_shift, shape).copy())
        self.v = Var(shape=shape, init=np.broadcast_to(0, shape).copy())
        self.age = Var(shape=(1,), init=0)

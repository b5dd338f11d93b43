"""Processes that stock Lava lacks: reset rules, read-outs, bias with an onset, delay lines.

All count their own steps in the Var `age`, so that setting their Vars back starts them afresh.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var

from grasp_plugin.errors import Invalid
from grasp_plugin.neurons.lif_fixed import check_registers


def _vars(process: Any, shape: tuple[int, ...], **values: Any) -> None:
    for name, value in values.items():
        setattr(process, name, Var(shape=shape, init=np.broadcast_to(value, shape).copy()))


class ResetLIF(AbstractProcess):
    """Leaky integrate-and-fire neurons with any reset rule of `neurons.lif`.

    u = (1 - du) u + a_in;  m = (1 - dv) v + u + drive;  spike where m > vth; reset as named.
    Where theta or n_ref is not 0:  A = rho A + theta s;  spike where m > vth + A and wait was 0.
    Sends s_out, then margin_out = m - vth - A and active_out = 1 where wait was 0 (and, for
    "refractory1", s was 0); 0 all before the onset. In fixed point a margin is in membrane LSBs.

    Tags: "floating_pt" (equations of `neurons.lif`), "fixed_pt" (`neurons.lif_fixed`).

    Args:
        shape: (neuron,).
        du, dv, vth, drive: one value or one a neuron. In fixed point du, dv are 12-bit registers
            (du with Lava's hidden +1), vth a 17-bit mantissa (<< 6) and drive a 13-bit mantissa.
        rho, theta: decay and rise of the threshold as in `Population`, one value or one a neuron.
            In fixed point rho is the 12-bit register 4096 (1 - rho), theta in membrane LSBs.
        n_ref: silent steps after a spike, one integer or one a neuron.
        drive_exp: fixed point only: drive << drive_exp, 0 to 7.
        v: membrane before the first step.
        reset: one of `network.hints.RESETS`.
        onset: the neuron is frozen (no spikes, state kept) for its first `onset` steps.

    Raises:
        Invalid: integers given that exceed their registers. Floats are checked when they meet the
            fixed model.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        du: Any,
        dv: Any,
        vth: Any,
        reset: str,
        drive: Any = 0,
        drive_exp: int = 0,
        v: Any = 0,
        onset: int = 0,
        rho: Any = 0,
        theta: Any = 0,
        n_ref: Any = 0,
        **kwargs: Any,
    ) -> None:
        adaptive = bool(np.any(theta) or np.any(n_ref))
        super().__init__(reset=reset, onset=onset, drive_exp=drive_exp, adaptive=adaptive, **kwargs)
        if np.asarray(vth).dtype.kind in "iu":
            check_registers(
                self.name, du=du, dv=dv, v_th=vth, drive=drive, drive_exp=drive_exp, rho=rho,
                theta=theta, n_ref=n_ref,
            )  # fmt: skip
        self.a_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.margin_out = OutPort(shape=shape)
        self.active_out = OutPort(shape=shape)
        _vars(self, shape, du=du, dv=dv, vth=vth, drive=drive, u=0, v=v, s=0)
        _vars(self, shape, rho=rho, theta=theta, n_ref=n_ref, adapt=0, wait=0)
        self.age = Var(shape=(1,), init=0)


class LeakyReadout(AbstractProcess):
    """Non-spiking leaky integrators: u = (1 - du) u + a_in; v = (1 - dv) v + u + drive; sends v.

    margin_out sends what s_out sends. In fixed point v is sent in membrane LSBs (1 / (64 scale) of
    a float unit).

    Args: as `ResetLIF`, without vth, reset, rho, theta and n_ref.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        du: Any,
        dv: Any,
        drive: Any = 0,
        drive_exp: int = 0,
        v: Any = 0,
        onset: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(onset=onset, drive_exp=drive_exp, **kwargs)
        if np.asarray(du).dtype.kind in "iu":
            check_registers(self.name, du=du, dv=dv, v_th=0, drive=drive, drive_exp=drive_exp)
        self.a_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.margin_out = OutPort(shape=shape)
        _vars(self, shape, du=du, dv=dv, drive=drive, u=0, v=v)
        self.age = Var(shape=(1,), init=0)


class OnsetSource(AbstractProcess):
    """Sends 0 for its first `onset` steps and 1 from then on, shape (1,); drives a bias synapse.

    Raises:
        Invalid: a negative onset.
    """

    def __init__(self, *, onset: int, **kwargs: Any) -> None:
        super().__init__(onset=onset, **kwargs)
        if onset < 0:
            raise Invalid(self.name, f"expected an onset >= 0 steps, got {onset}", "Check it")
        self.s_out = OutPort(shape=(1,))
        self.age = Var(shape=(1,), init=0)


class DelayLine(AbstractProcess):
    """Sends what it received `delay` steps ago (>= 1), zeros before; spikes or graded values.

    Raises:
        Invalid: a delay below 1.
    """

    def __init__(self, *, shape: tuple[int, ...], delay: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if delay < 1:
            raise Invalid(self.name, f"expected a delay >= 1 step, got {delay}", "Connect directly")
        self.s_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.buffer = Var(shape=(delay, *shape), init=np.zeros((delay, *shape)))
        self.age = Var(shape=(1,), init=0)

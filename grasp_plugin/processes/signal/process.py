"""Where the third factor is made: a readout, a projected label, or a loss, in the same step."""

from __future__ import annotations

from typing import Any

from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var

from grasp_plugin.learning.rule import ThreeFactor
from grasp_plugin.learning.spec import Signal


class LearningSignal(AbstractProcess):
    """dL/dS of one population, from its output and a target, within the step.

    Ports:
        s_in (N,): the population's spikes, or its membrane where it does not spike.
        target_in (classes + 1,): the target, and a last entry that is 1 where there is one, else 0.
        signal_out (N,): to `PlasticDense.signal_in`.
        logits_out (classes,): a random readout's logits, else zeros.
        margin_in (N,), active_in (N,), bent_out (N,): with `bends` only: the population's margin
            and activity (active_in where it may rest), and the curvature M d along the error d of
            the synapses, beside signal_out, to `PlasticDense.bent_in`.

    Args:
        signal: a `RandomReadout`, `Projection` (of labels), `OutputError` or `Backpropagation`.
        neurons: N.
        classes: number of classes.
        first_step: the Lava step (from 0) of the population's first network step; before it, zeros
            are sent and no random number is drawn.
        unit: what s_in is multiplied by; 1 / (64 S) for a membrane in integers.
        bends: the rule of the synapses that ask for a curvature, which says what d is; None: none
            asks, and no curvature is worked out.
        margin_unit: what margin_in is divided by; 64 S in integers.
    """

    def __init__(
        self,
        *,
        signal: Signal,
        neurons: int,
        classes: int,
        first_step: int = 0,
        unit: float = 1.0,
        bends: ThreeFactor | None = None,
        margin_unit: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            signal=signal, neurons=neurons, classes=classes, first_step=first_step, unit=unit,
            bends=bends, margin_unit=margin_unit, **kwargs,
        )  # fmt: skip
        self.s_in = InPort(shape=(neurons,))
        self.target_in = InPort(shape=(classes + 1,))
        self.margin_in = InPort(shape=(neurons,))
        self.active_in = InPort(shape=(neurons,))
        self.signal_out = OutPort(shape=(neurons,))
        self.bent_out = OutPort(shape=(neurons,))
        self.logits_out = OutPort(shape=(classes,))
        self.age = Var(shape=(1,), init=0)

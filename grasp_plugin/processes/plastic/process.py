"""Plastic connections. Like Lava's own, they send what they received one step ago.

Unlike stock `LearningDense`, the sum is formed when it is sent, so it uses the weights that the
last step left; and the error of a neuron that fires at this step meets the input that made it fire.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.convolved import Convolved
from grasp_plugin.learning.fixed_plan import FixedPlan
from grasp_plugin.learning.price_post import Place
from grasp_plugin.learning.rule import Rule
from grasp_plugin.network.weights import Conv
from grasp_plugin.neurons.surrogate import Surrogate


class _Plastic(AbstractProcess):
    """What both share: the options, and the ports."""

    def __init__(
        self,
        *,
        plan: Rule | FixedPlan | None,
        first_step: int = 0,
        late: int = 0,
        surrogate: Surrogate | None = None,
        uses_active: bool = False,
        curvature_macs: int = 0,
        holder: Place | None = None,
        weight_exp: int = 0,
        scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            plan=plan, first_step=first_step, late=late, surrogate=surrogate,
            uses_active=uses_active, curvature_macs=curvature_macs, weight_exp=weight_exp,
            scale=scale, holder=holder, **kwargs,
        )  # fmt: skip
        if plan is not None and not isinstance(plan, (Rule, FixedPlan)):
            got = type(plan).__name__
            raise Invalid(self.name, f"expected a Rule or FixedPlan, got {got}", "Pass one")

    def _ports(self, inputs: int, outputs: int, weights: Any) -> None:
        self.s_in = InPort(shape=(inputs,))
        self.a_out = OutPort(shape=(outputs,))
        for name in ("signal_in", "margin_in", "post_in", "active_in", "bent_in"):
            setattr(self, name, InPort(shape=(outputs,)))
        self.back_out = OutPort(shape=(inputs,))
        holder = self.proc_params["holder"]
        self.price_in = InPort(shape=(1,))
        self.taken_out = OutPort(shape=(1 if holder is None else 2 * holder.holders,))
        self.weights = Var(shape=np.shape(weights), init=weights)
        self.age = Var(shape=(1,), init=0)


class PlasticDense(_Plastic):
    """Dense synapses [N_o, N_i] that learn by a `Plan`, in feed-forward or recurrent place.

    Per step: a_out = W pre, pre = what s_in received a step ago; then, with the factors received in
    this step, W += plan.update(Factors(pre, signal, margin, ...)).

    Ports:
        s_in (N_i,), a_out (N_o,): as Lava's Dense.
        signal_in (N_o,): dL/dS of the postsynaptic population, from `LearningSignal.signal_out` or
            from the `back_out` of the layer above.
        margin_in (N_o,): membrane minus threshold, `ResetLIF.margin_out`.
        post_in (N_o,): its spikes; active_in (N_o,): `ResetLIF.active_out`, 0 where refractory;
            connect them where the plan needs them (a hard reset; a refractory count).
        bent_in (N_o,): curvature M d along the error d of these synapses, from
            `LearningSignal.bent_out`, with signal_in; connect it where a plan asks for curvature.
        price_in (1,), taken_out (2 holders,): with a `holder` only: the price of a write and what
            was written at it, from and to `BudgetScheduler`.
        back_out (N_i,): W^T d with d = signal sigma'(margin), for the layer below.

    Args:
        weights: (N_o, N_i) floats; even integers in -256..254 for "fixed_pt".
        plan: any `Rule`; for "fixed_pt" a `FixedPlan`; None: the weights stay.
        first_step: the Lava step (from 0) at which learning starts: the one at which the target
            first spikes with an input behind it.
        late: by how many steps the signal comes after the spike that it judges.
        surrogate: sigma' of `back_out`; None: 1.
        uses_active: active_in is connected.
        holder: its place among the connections that share a price; None: it shares none.
        curvature_macs: multiplications that M d takes, for the plan's own count of them.
        weight_exp: "fixed_pt": the sum is shifted by it, as in Lava's Dense.
        scale: "fixed_pt": weight LSBs per unit of float of the target, S of `quantise`.

    Raises:
        Invalid: weights that are no matrix, or no plan.
    """

    def __init__(self, *, weights: Any, plan: Rule | FixedPlan | None, **options: Any) -> None:
        super().__init__(plan=plan, **options)
        if np.ndim(weights) != 2:
            got = f"got {np.ndim(weights)} axes"
            raise Invalid(self.name, f"expected weights (N_o, N_i), {got}", "Check the weights")
        self._ports(np.shape(weights)[1], np.shape(weights)[0], weights)


class PlasticConv(_Plastic):
    """A convolution whose kernel learns; ports flat, (C_in prod(S),) and (C_out prod(S'),).

    Args:
        conv: geometry and kernel [C_out, C_in, *K].
        plan: a `Rule` with a rank-1 trace; None: the kernel stays. Others as `PlasticDense`.

    Raises:
        Refused: groups or a per-synapse trace.
    """

    def __init__(self, *, conv: Conv, plan: Rule | FixedPlan | None, **options: Any) -> None:
        if conv.groups != 1:
            raise Refused(
                "PlasticConv", f"expected a convolution of one group, got {conv.groups}",
                "Store it dense (network.weights.to_dense)",
            )  # fmt: skip
        if isinstance(plan, Rule) and not isinstance(plan, Convolved):
            plan = Convolved(plan, conv)
        super().__init__(conv=conv, plan=plan, **options)
        self._ports(conv.shape[1], conv.shape[0], conv.kernel)

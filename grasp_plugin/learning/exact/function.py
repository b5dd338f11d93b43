"""Engine B under torch's autograd: spike times in, spike times out, exact gradients.

The pair `run_layer`, `layer_gradients` as a `torch.autograd.Function`; torch supplies losses and
optimisers. Computation is on the CPU, in float64 whatever the tensors' dtype.
"""

# mypy: disallow-untyped-calls=False, disallow-any-generics=False

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.exact.engine import CAPACITY, Parameters, layer_gradients, run_layer
from grasp_plugin.learning.exact.traffic import Traffic

ORDER = (
    "weight", "delay", "axonal", "dendritic", "theta", "beta", "v_reset", "bias", "tau_mem_ms",
    "tau_syn_ms", "tau_adapt_ms",
)  # fmt: skip
TAUS = ORDER[-3:]


@dataclass(eq=False)
class Guard:
    """Clamps against the divergence dt/dp ~ 1/gdot near a tangency; off until set, and counted.

        gdot_eff = max(gdot, gdot_min)        gradient <- gradient min(1, max_norm / norm)

    With either engaged a gradient is no longer exact; `report` says how often that was.

    Args:
        gdot_min_per_ms: least slope at a spike, in units of the threshold a ms.
        max_norm: of the gradients of all parameters that `clip` is given; inf: no clipping.
    """

    gdot_min_per_ms: float = 0.0
    max_norm: float = math.inf
    clamped: int = 0
    spikes: int = 0
    clipped: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        if not self.gdot_min_per_ms >= 0 or not self.max_norm > 0:
            raise Invalid(
                "Guard",
                f"expected gdot_min_per_ms >= 0 and max_norm > 0, got {self.gdot_min_per_ms} "
                f"and {self.max_norm}",
                "Use 0 and inf for no guard",
            )

    def clip(self, parameters: Any) -> float:
        """Scale the gradients to max_norm where they exceed it; returns their norm before."""
        norm = float(nn.utils.clip_grad_norm_(parameters, self.max_norm, error_if_nonfinite=True))
        self.steps += 1
        self.clipped += norm > self.max_norm
        return norm

    def report(self) -> dict[str, int]:
        """Clamped spikes of all that were swept, and clipped steps of all."""
        names = ("clamped", "spikes", "clipped", "steps")
        return {name: int(getattr(self, name)) for name in names}


@dataclass(eq=False)
class Setting:
    """What a layer's passes share besides its parameters: fixed numbers, guard and counts."""

    t_end_ms: float
    fixed: dict[str, Any] = field(default_factory=dict)
    capacity: int = CAPACITY
    guard: Guard = field(default_factory=Guard)
    traffic: Traffic = field(default_factory=Traffic)


class Outputs(NamedTuple):
    """times (batch, N_o, spikes) [ms], inf for none; v_end, integral, v_max (batch, N_o), or
    (0, 0) where not measured; v_max is inf where the neuron spikes."""

    times: Tensor
    v_end: Tensor
    integral: Tensor
    v_max: Tensor


def _numpy(value: Tensor | None) -> Any:
    return None if value is None else value.detach().to(torch.float64).numpy()


class _SpikeTimes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, setting: Setting, measure: bool, times: Tensor, *values: Tensor | None
    ) -> Any:
        given = {
            name: float(v) if name in TAUS else _numpy(v)
            for name, v in zip(ORDER, values, strict=True)
            if v is not None
        }
        parameters = Parameters(**{**setting.fixed, **given})
        run = run_layer(
            _numpy(times), parameters, setting.t_end_ms,
            capacity=setting.capacity, measure=measure,
        )  # fmt: skip
        setting.traffic += run.traffic
        ctx.save_for_backward(times, *values)  # the run looks at their memory: torch guards it
        ctx.setting, ctx.run, ctx.measured = setting, run, measure
        ctx.dtypes = [None if v is None else v.dtype for v in (times, *values)]
        v_max = np.where(run.counts > 0, np.inf, run.measures.v_max) if measure else None
        measures = run.measures if v_max is None else run.measures._replace(v_max=v_max)
        out = (run.times, measures.v_end, measures.integral, measures.v_max)
        return tuple(torch.from_numpy(o).to(times.dtype) for o in out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        setting, run, _ = ctx.setting, ctx.run, ctx.saved_tensors
        d_times, d_v_end, d_integral, d_v_max = (_numpy(g) for g in grads)
        needs = ctx.needs_input_grad[2:]
        per = {"d_v_end": d_v_end, "d_integral": d_integral, "d_v_max": d_v_max}
        out = layer_gradients(
            run, d_times, gdot_min_per_ms=setting.guard.gdot_min_per_ms,
            want_taus=any(needs[-3:]), **(per if ctx.measured else {}),
        )  # fmt: skip
        setting.traffic += out.traffic
        setting.guard.clamped += out.traffic.clamped
        setting.guard.spikes += run.log.shape[1]
        values = [getattr(out, name) for name in ("times", *ORDER)]
        shaped = [
            torch.as_tensor(v, dtype=dtype) if need and dtype is not None else None
            for v, dtype, need in zip(values, ctx.dtypes, needs, strict=True)
        ]
        return (None, None, *shaped)


def spike_times(
    setting: Setting, times: Tensor, values: dict[str, Tensor], *, measure: bool = False
) -> Outputs:
    """The spikes of a layer, differentiable in times and in every tensor of values.

    Args:
        times: (batch, N_i, spikes) [ms], inf for none.
        values: by the names of `Parameters`; a name may also be in setting.fixed as a number.
        measure: also the read-outs of `Outputs`.

    Raises:
        Invalid: tensors that are not on the CPU; what `run_layer` and `layer_gradients` raise.
    """
    for name, value in {"times": times, **values}.items():
        if value.device.type != "cpu":
            raise Invalid(name, f"expected a CPU tensor, got {value.device}", 'Call .to("cpu")')
    ordered = (values.get(name) for name in ORDER)
    return Outputs(*_SpikeTimes.apply(setting, measure, times, *ordered))

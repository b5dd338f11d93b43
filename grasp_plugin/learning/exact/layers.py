"""Layers of exact spike times as torch modules: `SpikeTimeLayer` and `LeakyReadout`.

Padded spike times (batch, neuron, spike) in ms go from layer to layer, inf where there is no spike.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.exact.engine import CAPACITY, THETA_LEAST, Parameters
from grasp_plugin.learning.exact.function import TAUS, Guard, Outputs, Setting, spike_times
from grasp_plugin.learning.exact.traffic import Traffic

TAU_LEAST_MS = 1e-2


class _Layer(nn.Module):
    """Parameters by name, fixed numbers by name, and the counts of all passes so far."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        t_end_ms: float,
        numbers: dict[str, float],
        *,
        delays: str | tuple[str, ...],
        train: str | tuple[str, ...],
        guard: Guard | None,
        capacity: int,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        shapes = {"delay": (outputs, inputs), "axonal": (inputs,), "dendritic": (outputs,)}
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))
        for name in _names("delays", delays, tuple(shapes)):
            self.register_parameter(name, nn.Parameter(torch.zeros(shapes[name], dtype=dtype)))
        for name in _names("train", train, tuple(numbers)):
            shape = () if name in TAUS else (outputs,)
            start = torch.full(shape, numbers.pop(name), dtype=dtype)
            self.register_parameter(name, nn.Parameter(start))
        self.inputs, self.outputs = inputs, outputs
        self._setting = Setting(t_end_ms, numbers, capacity, guard=guard or Guard())
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights N(2 / sqrt(N_i), 1 / sqrt(N_i)) times tau_m / tau_s; delays stay as they are."""
        with torch.no_grad():
            scale = self.number("tau_mem_ms") / self.number("tau_syn_ms") / self.inputs**0.5
            self.weight.normal_(2 * scale, scale)

    def number(self, name: str) -> float:
        """A time constant [ms], trained or not."""
        value = getattr(self, name, None)
        return self._setting.fixed[name] if value is None else float(value.detach())

    @property
    def guard(self) -> Guard:
        """The clamps of this layer, and how often they engaged."""
        return self._setting.guard

    def snapshot(self) -> Parameters:
        """A copy of the parameters as they are now, in float64 without torch."""
        own = {
            name: float(v.detach()) if name in TAUS else v.detach().double().numpy().copy()
            for name, v in self.named_parameters()
        }
        return Parameters(**{**self._setting.fixed, **own})

    def take_traffic(self) -> Traffic:
        """The counts of all passes since the last call; the counters start anew."""
        taken, self._setting.traffic = self._setting.traffic, Traffic()
        return taken

    def project_(self) -> int:
        """Put parameters back where they are valid; call it after each step of an optimiser.

        Delays >= 0, theta >= max(V_r, 0) + 1e-3, time constants >= 0.01 ms.
        Returns how many it moved.
        """
        moved = 0
        least: dict[str, Any] = dict.fromkeys(("delay", "axonal", "dendritic"), 0.0)
        least |= dict.fromkeys(TAUS, TAU_LEAST_MS)
        reset = getattr(self, "v_reset", None)
        resets = self._setting.fixed.get("v_reset", 0.0) if reset is None else reset.detach()
        least["theta"] = THETA_LEAST + torch.as_tensor(resets).clamp(min=0.0)
        with torch.no_grad():
            for name, value in self.named_parameters():
                if name in least:
                    floor = torch.as_tensor(least[name], dtype=value.dtype)
                    moved += int((value < floor).sum())
                    value.copy_(torch.maximum(value, floor))
        return moved

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, t_end_ms={self._setting.t_end_ms}"

    def _run(self, times: Tensor, measure: bool) -> Outputs:
        return spike_times(self._setting, times, dict(self.named_parameters()), measure=measure)


def _names(argument: str, given: str | tuple[str, ...], options: tuple[str, ...]) -> list[str]:
    names = [given] if isinstance(given, str) else list(given)
    for name in names:
        if name not in options:
            raise Invalid(argument, f"expected some of {options}, got {name!r}", "Choose of these")
    return names


class SpikeTimeLayer(_Layer):
    """CuBa-LIF neurons with exact gradients of every parameter; equations in `oracle`.

    Args:
        inputs, outputs: N_i, N_o; weight [N_o, N_i] is always trained.
        t_end_ms: end of the episode; later spikes do not exist.
        delays: trained delays >= 0, of "delay" (per synapse), "axonal" and "dendritic"; they begin
            at 0 and add. Together the last two have one freedom too many a hidden neuron.
        train: of "theta", "beta", "v_reset", "bias", (N_o,), and "tau_mem_ms", "tau_syn_ms",
            "tau_adapt_ms", (); they begin at the numbers below. A trained theta alone is a scale
            of the weights and adds nothing that a network can express; beta does.
        theta, beta, v_reset, bias, tau_mem_ms, tau_syn_ms, tau_adapt_ms: as in `Parameters`.
        guard: clamps; None: none, the gradients are exact. Share one among the layers.
        capacity: the most spikes of one neuron; more is an error.

    Raises:
        Invalid: unknown names; values outside the model; what the engine raises.

    Example:
        >>> layer = SpikeTimeLayer(2, 3, t_end_ms=50.0, delays="delay")
        >>> times = layer(torch.tensor([[[1.0], [4.0]]]))
        >>> tuple(times.shape)[:2]
        (1, 3)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        t_end_ms: float,
        delays: str | tuple[str, ...] = (),
        train: str | tuple[str, ...] = (),
        theta: float = 1.0,
        beta: float = 0.0,
        v_reset: float = 0.0,
        bias: float = 0.0,
        tau_mem_ms: float = 20.0,
        tau_syn_ms: float = 5.0,
        tau_adapt_ms: float = 100.0,
        guard: Guard | None = None,
        capacity: int = CAPACITY,
        dtype: torch.dtype | None = None,
    ) -> None:
        numbers = {
            "theta": theta, "beta": beta, "v_reset": v_reset, "bias": bias,
            "tau_mem_ms": tau_mem_ms, "tau_syn_ms": tau_syn_ms, "tau_adapt_ms": tau_adapt_ms,
        }  # fmt: skip
        super().__init__(
            inputs, outputs, t_end_ms, numbers,
            delays=delays, train=train, guard=guard, capacity=capacity, dtype=dtype,
        )  # fmt: skip

    def forward(self, times: Tensor) -> Tensor:
        """Spike times (batch, N_o, spikes) from (batch, N_i, spikes) [ms]."""
        return self._run(times, False).times

    def with_peaks(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Also max V (batch, N_o), inf where the neuron spikes: for `losses.peak_margin`."""
        out = self._run(times, True)
        return out.times, out.v_max


class LeakyReadout(_Layer):
    """The same membranes without a threshold: a leaky integrator that is read, not heard.

    `forward` gives `Outputs`: v_end = V(T), integral = int_0^T V dt [threshold ms] and
    v_max = max_t V(t) >= 0, (batch, N_o) each. Where the maximum is a kink at an inhibitory arrival
    its gradient follows the arrival's time.

    Args:
        as for `SpikeTimeLayer`; train: of "bias", "tau_mem_ms", "tau_syn_ms".
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        t_end_ms: float,
        delays: str | tuple[str, ...] = (),
        train: str | tuple[str, ...] = (),
        bias: float = 0.0,
        tau_mem_ms: float = 20.0,
        tau_syn_ms: float = 5.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        numbers = {"bias": bias, "tau_mem_ms": tau_mem_ms, "tau_syn_ms": tau_syn_ms}
        super().__init__(
            inputs, outputs, t_end_ms, numbers,
            delays=delays, train=train, guard=None, capacity=1, dtype=dtype,
        )  # fmt: skip
        self._setting.fixed["theta"] = float("inf")

    def forward(self, times: Tensor) -> Outputs:
        """The read-outs of spike times (batch, N_i, spikes) [ms]."""
        return self._run(times, True)

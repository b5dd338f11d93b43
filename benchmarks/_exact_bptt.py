"""Surrogate-gradient BPTT of the same CuBa-LIF network on a time grid, in torch.

With step dt and the exact propagator, x[k] the drive that arrives in step k:

    V <- e^{-dt/tau_m} V + kappa(dt) I       I <- e^{-dt/tau_s} I + x[k]
    s[k] = H(V - theta), derivative 1 / (1 + slope |V - theta|)^2       V <- V (1 - s), detached

Delays are read between two steps by linear interpolation, as a convolution over time (DCLS with a
triangle), so that they have a gradient. Layers are computed one after the other, all steps of a
layer at a time: matrix products are as large as they can be, and only the membrane is a loop.

Two loops that agree: `torch_loop`, in torch operations as such networks are mostly written, and
`compiled_loop`, one Numba kernel, so that the price of the method and of Python can be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn

from grasp_plugin.learning.exact.flow import decays

Loop = Callable[[Tensor, "Grid", float], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Grid:
    """Step dt and end of the episode [ms], slope of the surrogate [1 / threshold]."""

    dt: float
    t_end: float
    slope: float = 10.0
    tau_m: float = 20.0
    tau_s: float = 5.0

    @property
    def steps(self) -> int:
        return round(self.t_end / self.dt)

    def rates(self) -> tuple[float, float, float]:
        """e^{-dt/tau_m}, e^{-dt/tau_s}, kappa(dt)."""
        em, es, ka = decays(self.dt, self.tau_m, self.tau_s)
        return float(em), float(es), float(ka)


def trains(times: Tensor, grid: Grid) -> Tensor:
    """Spike times (batch, input, spike) as counts (step, batch, input), float32."""
    batch, inputs, _ = times.shape
    out = torch.zeros(grid.steps, batch, inputs)
    step = torch.where(torch.isfinite(times), times / grid.dt, grid.steps).floor().long()
    b, m, k = torch.nonzero(step < grid.steps, as_tuple=True)
    out.index_put_((step[b, m, k], b, m), torch.ones(len(b)), accumulate=True)
    return out


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad / (1 + ctx.slope * x.abs()) ** 2, None


def torch_loop(drive: Tensor, grid: Grid, theta: float) -> tuple[Tensor, Tensor]:
    """(s, V before the reset) (step, batch, neuron) of a drive of that shape."""
    em, es, ka = grid.rates()
    v = i = torch.zeros_like(drive[0])
    spikes, membranes = [], []
    for x in drive.unbind(0):
        v = em * v + ka * i
        i = es * i + x
        if math.isfinite(theta):
            s = _Spike.apply(v - theta, grid.slope)
            spikes.append(s)
            membranes.append(v)
            v = v * (1 - s.detach())
        else:
            membranes.append(v)
    v_all = torch.stack(membranes)
    return (torch.stack(spikes) if spikes else v_all), v_all


@numba.njit(cache=True, error_model="numpy")
def _forward(drive, em, es, ka, theta, s_out, v_out):  # type: ignore[no-untyped-def]
    steps, cells = drive.shape
    v, i = np.zeros(cells, np.float32), np.zeros(cells, np.float32)
    for k in range(steps):
        for n in range(cells):
            x = em * v[n] + ka * i[n]
            i[n] = es * i[n] + drive[k, n]
            v_out[k, n] = x
            fired = x >= theta
            s_out[k, n] = np.float32(1.0) if fired else np.float32(0.0)
            v[n] = np.float32(0.0) if fired else x


@numba.njit(cache=True, error_model="numpy")
def _backward(v_out, gs, gv, em, es, ka, theta, slope, grad):  # type: ignore[no-untyped-def]
    steps, cells = v_out.shape
    pv, pi = np.zeros(cells, np.float32), np.zeros(cells, np.float32)
    one = np.float32(1.0)
    for k in range(steps - 1, -1, -1):
        for n in range(cells):
            x = v_out[k, n] - theta
            grad[k, n] = pi[n]
            bend = one + slope * abs(x)
            p = (np.float32(0.0) if x >= 0 else pv[n]) + gs[k, n] / (bend * bend) + gv[k, n]
            pi[n] = es * pi[n] + ka * p
            pv[n] = em * p


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, drive: Tensor, grid: Grid, theta: float) -> Any:
        drive = drive.contiguous()
        s, v = torch.empty_like(drive), torch.empty_like(drive)
        ctx.numbers = [np.float32(x) for x in (*grid.rates(), theta)]
        ctx.slope = np.float32(grid.slope)
        em, es, ka, level = ctx.numbers
        _forward(_flat(drive), em, es, ka, level, _flat(s), _flat(v))
        ctx.save_for_backward(v)
        return s, v

    @staticmethod
    def backward(ctx: Any, gs: Any, gv: Any) -> Any:
        (v,) = ctx.saved_tensors
        grad = torch.empty_like(v)
        em, es, ka, level = ctx.numbers
        gs, gv = _flat(gs.contiguous()), _flat(gv.contiguous())
        _backward(_flat(v), gs, gv, em, es, ka, level, ctx.slope, _flat(grad))
        return grad, None, None


def _flat(value: Tensor) -> Any:
    return value.detach().numpy().reshape(len(value), -1)


def compiled_loop(drive: Tensor, grid: Grid, theta: float) -> tuple[Tensor, Tensor]:
    """As `torch_loop`, in one kernel forwards and one backwards."""
    out: tuple[Tensor, Tensor] = _Compiled.apply(drive, grid, theta)
    return out


class GridLayer(nn.Module):
    """Weights [N_o, N_i] and, where given, delays of that shape [ms]; theta inf: a read-out."""

    def __init__(self, weight: Any, delay: Any, grid: Grid, loop: Loop, theta: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(weight, dtype=torch.float32).clone())
        if delay is not None:
            self.delay = nn.Parameter(torch.as_tensor(delay, dtype=torch.float32).clone())
        self.grid, self.loop, self.theta = grid, loop, theta

    def forward(self, spikes: Tensor) -> tuple[Tensor, Tensor]:
        """(s, V) of spikes (step, batch, input)."""
        return self.loop(self.drive(spikes), self.grid, self.theta)

    def drive(self, spikes: Tensor) -> Tensor:
        """What arrives in each step (step, batch, neuron)."""
        if not hasattr(self, "delay"):
            return spikes @ self.weight.T
        late = self.delay.clamp(min=0.0) / self.grid.dt
        reach = int(late.detach().max()) + 2
        taps = torch.arange(reach, dtype=late.dtype)
        kernel = torch.relu(1 - (taps - late[:, :, None]).abs()) * self.weight[:, :, None]
        padded = nn.functional.pad(spikes.permute(1, 2, 0), (reach - 1, 0))
        return nn.functional.conv1d(padded, kernel.flip(2)).permute(2, 0, 1)


def first_times(spikes: Tensor, dt: float) -> Tensor:
    """dt sum_k prod_{j <= k} (1 - s[j]): the first spike's time, T for none, with a gradient."""
    return dt * torch.cumprod(1 - spikes, dim=0).sum(0)


def loss_of(kind: str, out: tuple[Tensor, Tensor], labels: Tensor, dt: float) -> Tensor:
    """Cross-entropy of first spikes ("first", tau0 = 0.5 ms as in `ttfs_cross_entropy`) or of
    max V ("vmax")."""
    spikes, v = out
    if kind == "first":
        return nn.functional.cross_entropy(-first_times(spikes, dt) / 0.5, labels)
    return nn.functional.cross_entropy(v.amax(0), labels)


def classes_of(kind: str, out: tuple[Tensor, Tensor], dt: float) -> Tensor:
    """The class read from an output; ties of first spikes go to the higher membrane then."""
    spikes, v = out
    if kind == "vmax":
        return v.amax(0).argmax(1)
    first = torch.cumprod(1 - spikes, dim=0).sum(0).long()
    at = first.clamp(max=len(v) - 1)
    overshoot = v.gather(0, at[None])[0]
    return (-first.double() + 1e-3 * overshoot.double().clamp(-9, 9)).argmax(1)

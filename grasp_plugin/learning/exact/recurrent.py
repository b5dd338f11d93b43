"""Recurrent networks under torch: the oracle's event queue as an autograd function.

Any graph, exact and slow: one event at a time in Python. For feed-forward layers use `layers`,
which is hundreds of times faster.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.exact.function import Guard
from grasp_plugin.learning.exact.oracle import Graph, Record, simulate
from grasp_plugin.learning.exact.oracle_adjoint import LossGradient, adjoint
from grasp_plugin.network.weights import Array

VALUES = (
    "weight", "delay", "theta", "beta", "v_reset", "bias", "tau_mem_ms", "tau_syn_ms",
    "tau_adapt_ms",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Wiring:
    """What of a graph is not trained: inputs, pre and post (E,), as in `Graph`; t_end_ms; guard."""

    inputs: int
    pre: Array
    post: Array
    t_end_ms: float
    guard: Guard


def _padded(records: list[Record], neurons: int) -> tuple[Array, list[tuple[Array, Array]]]:
    """Times (batch, neuron, spike), and for each sample where its spikes stand in them."""
    places, width = [], 1
    for record in records:
        seen, slots = [0] * neurons, []
        for spike in record.spikes:
            slots.append(seen[spike.neuron])
            seen[spike.neuron] += 1
        width = max([width, *seen])
        who = np.array([s.neuron for s in record.spikes], int)
        places.append((who, np.array(slots, int)))
    out = np.full((len(records), neurons, width), np.inf)
    for b, (record, place) in enumerate(zip(records, places, strict=True)):
        out[b][place] = [s.time for s in record.spikes]
    return out, places


class _GraphTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wiring: Wiring, times: Tensor, *values: Tensor) -> Tensor:
        arrays = [v.detach().to(torch.float64).numpy() for v in values]
        graph = Graph(wiring.inputs, wiring.pre, wiring.post, *arrays)
        ctx.runs = []
        for sample in times.detach().to(torch.float64).numpy():
            place = np.nonzero(~np.isposinf(sample))
            record = simulate(graph, sample[place], place[0], wiring.t_end_ms)
            ctx.runs.append((place, sample[place], record))
        out, ctx.places = _padded([run[2] for run in ctx.runs], len(graph.theta))
        ctx.save_for_backward(times, *values)
        ctx.wiring, ctx.graph = wiring, graph
        return torch.from_numpy(out).to(times.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_times: Tensor) -> Any:
        times, *values = ctx.saved_tensors
        guard, seeds = ctx.wiring.guard, d_times.to(torch.float64).numpy()
        d_inputs = np.zeros(times.shape)
        total = [np.zeros(tuple(v.shape)) for v in values]
        for b, (place, t, record) in enumerate(ctx.runs):
            found = adjoint(
                ctx.graph, t, place[0], ctx.wiring.t_end_ms, record,
                LossGradient(seeds[b][ctx.places[b]]), gdot_min_per_ms=guard.gdot_min_per_ms,
            )  # fmt: skip
            d_inputs[b][place] = found.input_times
            guard.clamped += found.clamped
            guard.spikes += len(record.spikes)
            for sum_, name in zip(total, VALUES, strict=True):
                sum_ += getattr(found, name)
        out = [torch.from_numpy(g).to(v.dtype) for g, v in zip(total, values, strict=True)]
        return (None, torch.from_numpy(d_inputs).to(times.dtype), *out)


def graph_spike_times(
    times: Tensor,
    values: dict[str, Tensor],
    *,
    inputs: int,
    pre: Array,
    post: Array,
    t_end_ms: float,
    guard: Guard | None = None,
) -> Tensor:
    """Spike times (batch, neuron, spike) of a network with recurrence, differentiable in all.

    Args:
        times: (batch, inputs, spikes) [ms], inf for none.
        values: weight, delay (E,); theta, beta, v_reset, bias, tau_mem_ms, tau_syn_ms,
            tau_adapt_ms (N,), as in `Graph`; those that require a gradient get one.
        inputs, pre, post: as in `Graph`.

    Raises:
        Invalid: a value is missing, or times have another shape; what `simulate` raises.
        Refused: what `adjoint` raises.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> names = ("theta", "tau_mem_ms", "tau_syn_ms", "tau_adapt_ms")
        >>> values = dict(zip(names, (one, 20 * one, 5 * one, 100 * one)))
        >>> values |= {name: 0 * one for name in ("beta", "v_reset", "bias")}
        >>> values |= {"weight": torch.tensor([9.0, -2.0]), "delay": torch.tensor([0.0, 1.0])}
        >>> t = torch.zeros(1, 1, 1, dtype=torch.float64)
        >>> graph_spike_times(t, values, inputs=1, pre=[0, 1], post=[0, 0], t_end_ms=50.0).shape
        torch.Size([1, 1, 1])
    """
    missing = [name for name in VALUES if name not in values]
    if missing or times.ndim != 3 or times.shape[1] != inputs:
        raise Invalid(
            "graph_spike_times",
            f"expected (batch, {inputs}, spikes) and all of {VALUES}, got {tuple(times.shape)} "
            f"without {missing}",
            "Pass padded times and every value",
        )
    wiring = Wiring(inputs, np.asarray(pre), np.asarray(post), t_end_ms, guard or Guard())
    out: Tensor = _GraphTimes.apply(wiring, times, *(values[name] for name in VALUES))
    return out

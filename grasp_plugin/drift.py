"""How far the spikes of a grid lie from those of continuous time, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from grasp_plugin.adapters._exact_stack import spiking, stack_of, steps_of_delays
from grasp_plugin.adapters.from_exact import from_grid, on_grid, steps_for, to_network
from grasp_plugin.backends.build import build
from grasp_plugin.learning.exact import run_layer
from grasp_plugin.network.quantise import quantise
from grasp_plugin.network.weights import Array


@dataclass(frozen=True)
class Drift:
    """|t_grid - t_event| of one layer over a batch, the k-th spike of a neuron with its k-th.

    Args:
        name: the population.
        mean_ms, rms_ms, max_ms: over all matched spikes; 0 where there are none.
        late_ms: mean of t_grid - t_event, with sign.
        first_mean_ms, first_max_ms: over the first spike of each neuron and sample only.
        spikes: in continuous time.
        missed, extra: spikes that one side has more than the other, summed over neurons.
    """

    name: str
    mean_ms: float
    rms_ms: float
    max_ms: float
    late_ms: float
    first_mean_ms: float
    first_max_ms: float
    spikes: int
    missed: int
    extra: int


def event_times(layers: Any, times: Array, t_end_ms: float) -> list[Array]:
    """Padded spike times (batch, neuron, spike) [ms] of every layer that spikes, exact."""
    out = []
    for p in stack_of(layers):
        if spiking(p):
            times = run_layer(times, p, t_end_ms).times
            out.append(times)
    return out


def drift(
    layers: Any,
    times: Array,
    dt_ms: float,
    *,
    t_end_ms: float,
    backend: str = "fused",
    fixed: bool = False,
    gauge: bool = False,
    **options: Any,
) -> list[Drift]:
    """Run layers in continuous time and on a grid, and compare their spikes.

    Where `gauge` shifts a hidden neuron by delta, that delta is no drift and is taken off.

    Args:
        layers, dt_ms, gauge: as for `to_network`; options: more of its arguments.
        times: input spikes (batch, N_i, spikes) [ms], inf for none.
        t_end_ms: end of the episode.
        backend: of `build`; fixed: in Loihi's integers (`quantise`).

    Returns:
        A `Drift` for each layer that spikes.

    Raises:
        Invalid, Refused: what `to_network`, `quantise` and `run_layer` raise.
    """
    stack = stack_of(layers)
    network = to_network(stack, dt_ms, gauge=gauge, **options)
    most = options.get("most_steps", 62)
    _, shifts = steps_of_delays(stack, dt_ms, gauge=gauge, most=most)
    inputs = on_grid(times, dt_ms, steps_for(t_end_ms, dt_ms))
    with build(quantise(network) if fixed else network, backend=backend) as session:
        recording = session.run(inputs)
    out = []
    for k, wanted in enumerate(event_times(stack, times, t_end_ms)):
        got = from_grid(recording[f"layer{k + 1}"], dt_ms) - shifts[k][None, :, None]
        out.append(compare(f"layer{k + 1}", wanted, got))
    return out


def compare(name: str, wanted: Array, got: Array) -> Drift:
    """The `Drift` between two sets of padded times (batch, neuron, spike) [ms]."""
    width = max(wanted.shape[2], got.shape[2])
    a, b = (_wide(x, width) for x in (wanted, got))
    both = np.isfinite(a) & np.isfinite(b)
    late = np.where(both, b, 0.0) - np.where(both, a, 0.0)
    count_a, count_b = np.isfinite(a).sum(-1), np.isfinite(b).sum(-1)
    size, first = np.abs(late[both]), np.abs(late[:, :, 0][both[:, :, 0]])
    return Drift(
        name, _mean(size), float(np.sqrt(_mean(size**2))), float(size.max(initial=0)),
        _mean(late[both]), _mean(first), float(first.max(initial=0)), int(count_a.sum()),
        int(np.maximum(count_a - count_b, 0).sum()), int(np.maximum(count_b - count_a, 0).sum()),
    )  # fmt: skip


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else 0.0


def _wide(times: Array, width: int) -> Array:
    pad = ((0, 0), (0, 0), (0, width - times.shape[2]))
    return np.pad(times, pad, constant_values=np.inf)

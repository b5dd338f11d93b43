"""Memory traffic of event-driven training beside time-stepped BPTT, from the engine's counters.

    state        bytes of BPTT's states, traces and adjoints / our bytes but those of the synapses
    total gated  all bytes of BPTT that reads weights at spikes / all of ours
    total GEMM   the same for BPTT that reads every weight in every step, 16 N_i bytes a neuron
    storage      what BPTT keeps for its backward pass (V, I a step) / our log (16 B a spike)

Above 1 we move less. "neuron" is the engine's schedule with a tile of one neuron: each neuron
streams the arrival list for itself. "scatter" is that of an event-driven core. Words of 4 bytes,
no caches: a model, fed with counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _exact_tasks import Workload

from grasp_plugin.learning.exact import Traffic, dense_bytes, layer_gradients, run_layer

KEYS = ("workload", "dt_ms", "schedule", "t_end_ms", "samples")
FIGURES = ("state", "total_gated", "total_gemm", "storage", "arrivals_neuron", "steps_arrivals",
           "hidden_spikes", "input_spikes", "clamped")  # fmt: skip


def count(work: Workload) -> tuple[list[Traffic], list[int]]:
    """Traffic of each layer for one forward and backward pass, and its input spikes.

    Every output spike has an error: the loss that asks for most.
    """
    runs, times = [], work.times
    for parameters in work.parameters():
        runs.append(run_layer(times, parameters, work.t_end, capacity=10_000))
        times = runs[-1].times
    errors = np.where(np.isfinite(times), 1.0, 0.0)
    traffic, spikes = [], []
    for run in reversed(runs):
        found = layer_gradients(run, errors, gdot_min_per_ms=1e-4)
        traffic.append(run.traffic + found.traffic)
        spikes.append(int(np.isfinite(run.inputs).sum()))
        errors = found.times
    return traffic[::-1], spikes[::-1]


def ratios(work: Workload, dt: float, schedule: str, counted: Any) -> dict[str, float]:
    """The ratios of FIGURES at a time step."""
    traffic, spikes = counted
    samples, steps = len(work.times), round(work.t_end / dt)
    ours = {"synapses": 0, "rest": 0}
    dense = {"state": 0, "synapses": 0, "gemm": 0, "kept": 0}
    for one, ins, outs in zip(traffic, work.sizes[:-1], work.sizes[1:], strict=True):
        mine = one.bytes(schedule=schedule)
        theirs = dense_bytes(outs, steps, samples, one.arrivals)
        ours["synapses"] += mine["synapses"]
        ours["rest"] += mine["arrivals"] + mine["state"] + mine["log"]
        dense["state"] += theirs["state"]
        dense["synapses"] += theirs["synapses"]
        dense["gemm"] += 16 * ins * outs * steps * samples
        dense["kept"] += 8 * outs * steps * samples
    mine = sum(ours.values())
    arrivals = sum(t.arrivals for t in traffic) / (samples * sum(work.sizes[1:]))
    return {
        "state": dense["state"] / ours["rest"],
        "total_gated": (dense["state"] + dense["synapses"]) / mine,
        "total_gemm": (dense["state"] + dense["gemm"]) / mine,
        "storage": dense["kept"] / (16 * max(sum(t.spikes for t in traffic), 1)),
        "arrivals_neuron": arrivals, "steps_arrivals": steps / arrivals,
        "hidden_spikes": traffic[0].spikes / samples, "input_spikes": spikes[0] / samples,
        "clamped": sum(t.clamped for t in traffic),
    }  # fmt: skip

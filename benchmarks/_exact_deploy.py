"""Trained Yin-Yang networks on Lava's grid, float and integer: accuracy, and first spikes.

A spike at step k of the grid is a crossing in (k dt, (k + 1) dt]. What is predicted of a layer,
from the spikes that reached it on the grid: a neuron's first spike is the event simulation's,
rounded up, and there is one where the event simulation has one. `first` is the share of predicted
first spikes of all layers that came on that very step, `missed` of those that did not come at all.
In integers the prediction is still that of the float parameters. All samples run on the fused back
end, which is Lava's bit for bit; `lava` is the share of the first SAMPLES of them whose spikes on
Lava's own Processes are the same in all layers. Delays may take 62 steps in integers, as many as
they need in float; a network whose delays do not fit has NaN.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import _exact_train as exact
import numpy as np
from _exact_store import Store
from tqdm import tqdm

from grasp_plugin import build, quantise
from grasp_plugin.adapters._exact_stack import steps_of_delays
from grasp_plugin.adapters.from_exact import (
    MOST_STEPS,
    from_grid,
    on_grid,
    steps_for,
    to_network,
)
from grasp_plugin.errors import Refused
from grasp_plugin.learning.exact import Parameters, run_layer

Array = Any
STEPS_MS, SAMPLES, T_END = (1.0, 0.5, 0.2, 0.1), 20, 60.0
DEPLOYED = ("5-200-3 W", "5-200-3 W+d", "5-30-3 W+d")
KEYS = ("model", "seed", "precision", "dt_ms")
FIGURES = ("event", "test", "first", "missed", "lava")
NONE = dict.fromkeys(FIGURES, float("nan"))


def store(results: Path) -> Store:
    """The file of deployed accuracies."""
    return Store(results / "exact_deployed.csv", KEYS, FIGURES)


def decided(first: Array, labels: Array) -> float:
    """Accuracy of first spikes (sample, class); all silent: wrong."""
    right = (first.argmin(1) == labels) & np.isfinite(first).any(1)
    return float(right.mean())


def on_time(
    stack: list[Parameters], delays: list[Array], times: list[Array], dt: float
) -> tuple[float, float]:
    """Shares of the predicted first spikes that came on their step, and that did not come."""
    came = missed = wanted = 0
    for p, delay, below, own in zip(stack, delays, times, times[1:], strict=False):
        there = replace(p, delay=delay * dt, axonal=None, dendritic=None)
        event = run_layer(below, there, T_END).times[:, :, 0]
        due, got = np.isfinite(event), own[:, :, 0]
        step = np.ceil(event[due] / dt - 1e-9)
        came += int((np.abs(got[due] / dt - step) < 1e-6).sum())
        missed += int(np.isinf(got[due]).sum())
        wanted += int(due.sum())
    return came / wanted, missed / wanted


def run_on(network: Any, inputs: Array, backend: str, layers: int) -> list[Array]:
    """Spikes (step, sample, neuron) of each layer."""
    with build(network, backend=backend) as session:
        recording = session.run(inputs)
    return [np.asarray(recording[f"layer{k}"]) for k in range(1, layers + 1)]


def measure(stack: list[Parameters], dt: float, fixed: bool) -> dict[str, float]:
    """One network at one step and precision."""
    x, labels = (t.numpy() for t in exact.encode("test"))
    most = MOST_STEPS if fixed else None
    try:
        delays, _ = steps_of_delays(stack, dt, gauge=True, most=most)
    except Refused:
        return NONE
    network = to_network(stack, dt, gauge=True, most_steps=most)
    net = quantise(network) if fixed else network
    inputs = on_grid(x, dt, steps_for(T_END, dt))
    spikes = run_on(net, inputs, "fused", len(stack))
    lava = run_on(net, inputs[:, :SAMPLES], "lava", len(stack))
    same = np.all([(a == b[:, :SAMPLES]).all((0, 2)) for a, b in zip(lava, spikes, strict=True)], 0)
    given = np.ceil(x / dt - 1e-9) * dt
    times = [given, *(from_grid(s, dt) for s in spikes)]
    came, missed = on_time(stack, delays, times, dt)
    event = x
    for p in stack:
        event = run_layer(event, p, exact.T_END).times
    return {
        "event": decided(event[:, :, 0], labels), "test": decided(times[-1][:, :, 0], labels),
        "first": came, "missed": missed, "lava": float(same.mean()),
    }  # fmt: skip


def deploy_all(results: Path, nets: Path) -> Store:
    """Every seed of DEPLOYED whose network is in `nets`."""
    runs = store(results)
    found = [
        (m, s)
        for m, s in exact.plan()
        if m.name in DEPLOYED and exact.net_file(nets, m, s).is_file()
    ]
    for model, seed in tqdm(found, desc="on Lava's grid"):
        pair = exact.load(exact.net_file(nets, model, seed), model)
        stack = [layer.snapshot() for layer in pair]
        for dt in STEPS_MS:
            for precision in ("float", "fixed"):
                runs.make(
                    lambda p=stack, d=dt, f=precision == "fixed": measure(p, d, f),  # type: ignore[misc]
                    model=model.name, seed=seed, precision=precision, dt_ms=dt,
                )  # fmt: skip
    return runs

"""Random networks, losses and finite differences for the tests of exact gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from grasp_plugin.learning.exact import Graph, LossGradient, adjoint, critical_weight, simulate
from grasp_plugin.learning.exact.oracle import Record
from grasp_plugin.learning.exact.oracle_adjoint import events_of

Array = Any
T_END = 60.0
STEPS = (1e-5, 1e-6, 2e-7)
RATIOS = (None, 2.0, 1.0, None, 1 + 1e-9)  # tau_m / tau_s; None: as it comes
CLASSES = (
    "weight", "delay", "theta", "beta", "v_reset", "bias", "tau_mem_ms", "tau_syn_ms",
    "tau_adapt_ms", "input_times",
)  # fmt: skip


def random_graph(seed: int, *, inputs: int = 4, hidden: int = 5, outputs: int = 2) -> Graph:
    """Recurrent at even seeds; delays; adaptation at two seeds of three; every tau ratio."""
    rng = np.random.default_rng(seed)
    n = hidden + outputs
    pairs = [(m, k) for m in range(inputs) for k in range(hidden)]
    pairs += [(inputs + m, hidden + k) for m in range(hidden) for k in range(outputs)]
    if seed % 2 == 0:
        links = [(inputs + m, k) for m in range(hidden) for k in range(hidden)]
        pairs += [pair for pair in links if rng.random() < 0.4]
    pre, post = (np.array(side) for side in zip(*pairs, strict=True))
    weight = rng.normal(np.where(pre < inputs, 2.0, np.where(post >= hidden, 2.5, 0.0)), 0.8)
    tau_m, ratio = rng.uniform(8, 25, n), RATIOS[seed % 5]
    if ratio is not None:
        weight *= critical_weight(ratio, 1.0) / 6  # else hundreds of spikes
    return Graph(
        inputs, pre, post, weight, rng.uniform(0.1, 4, len(pre)), rng.uniform(0.8, 1.3, n),
        rng.uniform(0.05, 0.5, n) if seed % 3 else np.zeros(n), rng.uniform(-0.4, 0.3, n),
        rng.uniform(-0.2, 0.25, n), tau_m, rng.uniform(3, 8, n) if ratio is None else tau_m / ratio,
        rng.uniform(10, 40, n),
    )  # fmt: skip


def random_inputs(seed: int, graph: Graph, events: int = 9) -> tuple[Array, Array]:
    """Times and sources of input spikes."""
    rng = np.random.default_rng(seed + 10_000)
    return rng.uniform(0.5, 35, events), rng.integers(0, graph.inputs, events)


class Probe:
    """A loss of everything: spike times, V(T), int V dt and max V of the silent neurons."""

    def __init__(self, seed: int, graph: Graph) -> None:
        rng = np.random.default_rng(seed + 20_000)
        self.v_end, self.integral, self.v_max = rng.normal(size=(3, len(graph.theta)))
        self.integral *= 0.1

    def gradient(self, record: Record) -> LossGradient:
        silent = np.ones(len(self.v_end))
        silent[[s.neuron for s in record.spikes]] = 0
        times = 0.1 * np.cos(np.arange(len(record.spikes)))
        return LossGradient(times, self.v_end, self.integral, self.v_max * silent)

    def value(self, record: Record) -> float:
        g = self.gradient(record)
        times = np.array([s.time for s in record.spikes])
        peaks = np.array([p.value for p in record.peaks])
        return float(
            g.times @ times
            + self.v_end @ record.v_end
            + self.integral @ record.integral
            + g.v_max @ peaks
        )


def pattern(graph: Graph, times: Array, sources: Array, record: Record) -> list[Any]:
    """What must not change between the two sides of a finite difference: the order of events."""
    events = events_of(graph, record, times, sources, T_END)
    order = sorted(range(len(events)), key=lambda k: (events[k].neuron, k))
    kinks = [p.kink for p in record.peaks]
    return [tuple(events[k])[1:] for k in order] + [s.neuron for s in record.spikes] + kinks


def central_difference(f: Callable[[float], float], step: float = 1e-5) -> float:
    """df/dx at 0, of fourth order."""
    return (f(-2 * step) - 8 * f(-step) + 8 * f(step) - f(2 * step)) / (12 * step)


def worst_errors(seed: int) -> dict[str, float]:
    """Of each class, |FD - adjoint| / max(1, |FD|) along a random direction; NaN: pattern moved."""
    graph, rng = random_graph(seed), np.random.default_rng(seed + 30_000)
    times, sources = random_inputs(seed, graph)
    probe, record = Probe(seed, graph), simulate(graph, times, sources, T_END)
    found = adjoint(graph, times, sources, T_END, record, probe.gradient(record))
    before, out = pattern(graph, times, sources, record), {}
    for name in CLASSES:
        base = times if name == "input_times" else getattr(graph, name)
        way = rng.normal(size=base.shape)
        way /= np.linalg.norm(way)
        stable = True

        def loss(h: float, name: str = name, base: Array = base, way: Array = way) -> float:
            nonlocal stable
            moved = base + h * way
            g = graph if name == "input_times" else replace(graph, **{name: moved})
            t = moved if name == "input_times" else times
            r = simulate(g, t, sources, T_END)
            stable = stable and pattern(g, t, sources, r) == before
            return probe.value(r)

        errors = []
        for step in STEPS:  # near a tangency the larger ones see the curvature
            stable = True
            wanted = central_difference(loss, step)
            error = abs(wanted - getattr(found, name) @ way) / max(1.0, abs(wanted))
            errors += [error] if stable else []
            if stable and error < 1e-7:
                break
        out[name] = min(errors, default=float("nan"))
    return out


def random_layer(seed: int, neurons: int = 5) -> tuple[dict[str, Any], Array]:
    """Arguments of `Parameters` and padded input times (3, 4, 3), each feature at some seeds."""
    rng = np.random.default_rng(seed)
    taus = ((20, 5), (20, 10), (10, 10), (10, 10 * (1 + 1e-9)), (7, 11))[seed % 5]
    out: dict[str, Any] = dict(zip(("tau_mem_ms", "tau_syn_ms"), map(float, taus), strict=True))
    out |= {"weight": rng.normal(2.5, 2, (neurons, 4)), "tau_adapt_ms": 25.0}
    out["theta"] = np.full(neurons, np.inf) if seed % 6 == 5 else rng.uniform(0.7, 1.3, neurons)
    if seed % 2:
        out["delay"] = rng.uniform(0, 5, (neurons, 4))
    if seed % 3:
        out |= {"axonal": rng.uniform(0, 3, 4), "dendritic": rng.uniform(0, 3, neurons)}
    if seed % 4 > 1:
        out |= {"beta": rng.uniform(0, 0.5, neurons), "v_reset": rng.uniform(-0.4, 0.3, neurons)}
    if seed % 7 > 3:
        out["bias"] = rng.uniform(-0.2, 0.3, neurons)
    times = rng.uniform(0, 30, (3, 4, 3))
    times[rng.random(times.shape) < 0.2] = np.inf
    return out, times


def as_graph(layer: dict[str, Any]) -> Graph:
    """The layer as a graph: synapse (n, m) has the number n N_i + m."""
    outs, ins = layer["weight"].shape
    post, pre = np.divmod(np.arange(outs * ins), ins)
    delay = layer.get("delay", 0) + layer.get("axonal", np.zeros(ins))[None, :]
    delay = np.zeros((outs, ins)) + delay + layer.get("dendritic", np.zeros(outs))[:, None]
    default = {"theta": 1.0, "beta": 0.0, "v_reset": 0.0, "bias": 0.0}
    default |= {"tau_mem_ms": 20.0, "tau_syn_ms": 5.0, "tau_adapt_ms": 100.0}
    per = [np.zeros(outs) + layer.get(name, value) for name, value in default.items()]
    return Graph(ins, pre, post, layer["weight"].ravel(), delay.ravel(), *per)

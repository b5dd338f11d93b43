"""How exact: gradients against finite differences, and identities that need no difference.

Random networks with delays, adaptation, resets, biases, recurrence in every second one, and every
case of tau_m / tau_s (any, 2, 1, near 1). The loss is of spike times, V(T) and int V dt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from grasp_plugin.learning.exact import (
    Graph,
    LossGradient,
    Parameters,
    adjoint,
    critical_weight,
    layer_gradients,
    run_layer,
    simulate,
)
from grasp_plugin.learning.exact.oracle import Record

Array = Any
T_END = 60.0
STEPS = (1e-5, 1e-6, 2e-7)
RATIOS = (None, 2.0, 1.0, None, 1 + 1e-9)
PER_SYNAPSE, PER_NEURON = ("weight", "delay"), ("theta", "beta", "v_reset", "bias")
TAUS = ("tau_mem_ms", "tau_syn_ms", "tau_adapt_ms")
CLASSES = (*PER_SYNAPSE, *PER_NEURON, *TAUS, "input_times")


def random_graph(seed: int, inputs: int = 5, hidden: int = 8, outputs: int = 3) -> Graph:
    """inputs -> hidden -> outputs, and 40 % of hidden -> hidden where seed is even."""
    rng = np.random.default_rng(seed)
    n = hidden + outputs
    joined = np.zeros((inputs + n, n), bool)
    joined[:inputs, :hidden] = joined[inputs : inputs + hidden, hidden:] = True
    if seed % 2 == 0:
        joined[inputs : inputs + hidden, :hidden] = rng.random((hidden, hidden)) < 0.4
    pre, post = np.nonzero(joined)
    weight = rng.normal(np.where(pre < inputs, 2.0, np.where(post >= hidden, 2.0, 0.0)), 0.8)
    tau_m, ratio = rng.uniform(8, 25, n), RATIOS[seed % 5]
    if ratio is not None:
        weight *= critical_weight(ratio, 1.0) / 6
    return Graph(
        inputs, pre, post, weight, rng.uniform(0.1, 4, len(pre)), rng.uniform(0.8, 1.3, n),
        rng.uniform(0.05, 0.5, n) if seed % 3 else np.zeros(n), rng.uniform(-0.4, 0.3, n),
        rng.uniform(-0.2, 0.25, n), tau_m, rng.uniform(3, 8, n) if ratio is None else tau_m / ratio,
        rng.uniform(10, 40, n),
    )  # fmt: skip


def random_inputs(seed: int, inputs: int = 5) -> tuple[Array, Array]:
    """Times and sources of nine input spikes."""
    rng = np.random.default_rng(seed + 10_000)
    return rng.uniform(0.5, 35, 9), rng.integers(0, inputs, 9)


class _Loss:
    """A linear function of spike times, V(T) and int V dt."""

    def __init__(self, seed: int, neurons: int) -> None:
        self.v_end, self.integral = np.random.default_rng(seed + 20_000).normal(size=(2, neurons))
        self.integral *= 0.1

    def gradient(self, record: Record) -> LossGradient:
        return LossGradient(0.1 * np.cos(np.arange(len(record.spikes))), self.v_end, self.integral)

    def value(self, record: Record) -> float:
        times = np.array([s.time for s in record.spikes])
        g = self.gradient(record)
        return float(g.times @ times + self.v_end @ record.v_end + self.integral @ record.integral)


def _pattern(graph: Graph, times: Array, sources: Array, record: Record) -> list[Any]:
    """Each neuron's order of arrivals and own spikes, and the order of all spikes."""
    fired = [*zip(times, sources, strict=True)]
    fired += [(s.time, graph.inputs + s.neuron) for s in record.spikes]
    events = [(s.time, s.neuron, -1, k) for k, s in enumerate(record.spikes)]
    for j, (t, source) in enumerate(fired):
        for e in np.nonzero(graph.pre == source)[0]:
            if t + graph.delay[e] <= T_END:
                events.append((t + graph.delay[e], int(graph.post[e]), int(e), j))
    by_neuron = sorted((n, t, e, j) for t, n, e, j in events)
    return [(n, e, j) for n, _, e, j in by_neuron] + [s.neuron for s in record.spikes]


def fd_errors(seed: int) -> dict[str, float]:
    """By class |FD - adjoint| / max(1, |FD|) in a random direction; NaN: the pattern moved."""
    graph, rng = random_graph(seed), np.random.default_rng(seed + 30_000)
    times, sources = random_inputs(seed)
    loss, record = _Loss(seed, len(graph.theta)), simulate(graph, times, sources, T_END)
    found = adjoint(graph, times, sources, T_END, record, loss.gradient(record))
    before, out = _pattern(graph, times, sources, record), {}
    for name in CLASSES:
        base = times if name == "input_times" else getattr(graph, name)
        way = rng.normal(size=base.shape)
        way /= np.linalg.norm(way)

        def at(h: float, name: str = name, base: Array = base, way: Array = way) -> float:
            moved = base + h * way
            g = graph if name == "input_times" else replace(graph, **{name: moved})
            t = moved if name == "input_times" else times
            r = simulate(g, t, sources, T_END)
            return loss.value(r) if _pattern(g, t, sources, r) == before else float("nan")

        out[name] = _least_error(at, float(getattr(found, name).ravel() @ way.ravel()))
    return out


def _least_error(at: Any, claimed: float) -> float:
    """Over the steps: near a tangency the larger ones see the curvature."""
    errors = []
    for h in STEPS:
        wanted = (at(-2 * h) - 8 * at(-h) + 8 * at(h) - at(2 * h)) / (12 * h)
        if np.isfinite(wanted):
            errors.append(abs(wanted - claimed) / max(1.0, abs(wanted)))
        if errors and errors[-1] < 1e-7:
            break
    return min(errors, default=float("nan"))


def identity_errors(seed: int) -> dict[str, float]:
    """Residuals relative to the largest term: scale, delay balance, input times, theta."""
    graph = replace(random_graph(seed), bias=np.zeros(11))
    times, sources = random_inputs(seed)
    record = simulate(graph, times, sources, T_END)
    d_times = np.random.default_rng(seed).normal(size=len(record.spikes))
    g = adjoint(graph, times, sources, T_END, record, LossGradient(d_times))
    who = [s.neuron for s in record.spikes]
    parts = np.array([getattr(graph, p) * getattr(g, p) for p in PER_NEURON])
    scale, balance, theta = parts.sum(0), np.zeros(11), g.theta.copy()
    np.add.at(scale, graph.post, graph.weight * g.weight)
    np.add.at(balance, graph.post, g.delay)
    inner = graph.pre >= graph.inputs
    np.subtract.at(balance, graph.pre[inner] - graph.inputs, g.delay[inner])
    np.subtract.at(balance, who, d_times)
    np.add.at(theta, who, g.before_spike)
    return {
        "scale": _relative(scale, parts), "delay balance": _relative(balance, g.delay),
        "input times": _relative(g.input_times.sum() - d_times.sum(), g.input_times),
        "theta": _relative(theta, g.theta),
    }  # fmt: skip


def _relative(residual: Array, terms: Array) -> float:
    return float(np.abs(residual).max() / max(1.0, np.abs(terms).max(initial=0.0)))


def engine_error(seed: int) -> float:
    """Largest difference of the compiled layer's gradients from the oracle's, one sample."""
    rng = np.random.default_rng(seed)
    outs, ins = 6, 5
    weight, delay = rng.normal(2.5, 2, (outs, ins)), rng.uniform(0, 5, (outs, ins))
    span = {"theta": (0.7, 1.3), "beta": (0, 0.5), "v_reset": (-0.4, 0.3), "bias": (-0.2, 0.3)}
    per: dict[str, Any] = {name: rng.uniform(*ends, outs) for name, ends in span.items()}
    taus: dict[str, Any] = dict(zip(TAUS, (20.0, (5.0, 10.0, 20.0)[seed % 3], 25.0), strict=True))
    times = rng.uniform(0, 30, (1, ins, 2))
    run = run_layer(times, Parameters(weight, delay, **per, **taus), T_END)
    seeds = rng.normal(size=run.times.shape)
    mine = layer_gradients(run, seeds, want_taus=True)
    post, pre = np.divmod(np.arange(outs * ins), ins)
    many = {name: np.full(outs, value) for name, value in taus.items()}
    graph = Graph(ins, pre, post, weight.ravel(), delay.ravel(), **per, **many)
    flat, sources = times.ravel(), np.repeat(np.arange(ins), 2)
    record = simulate(graph, flat, sources, T_END)
    place, seen = [], [0] * outs
    for spike in record.spikes:
        place.append(seeds[0, spike.neuron, seen[spike.neuron]])
        seen[spike.neuron] += 1
    if seen != run.counts[0].tolist():
        return float("inf")
    theirs = adjoint(graph, flat, sources, T_END, record, LossGradient(np.array(place)))
    worst = [_difference(getattr(mine, n), getattr(theirs, n)) for n in (*PER_SYNAPSE, *PER_NEURON)]
    worst += [_difference(getattr(mine, n), getattr(theirs, n).sum()) for n in TAUS]
    return max([*worst, _difference(mine.times, theirs.input_times)])


def _difference(mine: Array, wanted: Array) -> float:
    return _relative(np.ravel(mine) - np.ravel(wanted), wanted)


def errors(networks: int, progress: Any = iter) -> dict[str, Any]:
    """Worst of every class over that many networks, and how many differences were not taken."""
    seeds: Iterable[int] = progress(range(networks))
    out: dict[str, Any] = {"fd": dict.fromkeys(CLASSES, 0.0), "identity": {}, "engine": 0.0}
    out["skipped"] = 0
    for seed in seeds:
        for name, error in fd_errors(seed).items():
            out["skipped"] += np.isnan(error)
            out["fd"][name] = max(out["fd"][name], np.nan_to_num(error))
        for name, error in identity_errors(seed).items():
            out["identity"][name] = max(out["identity"].get(name, 0.0), error)
        out["engine"] = max(out["engine"], engine_error(seed))
    out["skipped"], out["networks"] = int(out["skipped"]), networks
    return out

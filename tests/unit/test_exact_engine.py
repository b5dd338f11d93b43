"""The compiled engine is the oracle on feed-forward layers, and keeps nothing but spikes."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from exact_cases import T_END, as_graph, random_layer

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.exact import (
    Graph,
    LayerGradients,
    LossGradient,
    Parameters,
    Run,
    Traffic,
    adjoint,
    dense_bytes,
    layer_gradients,
    run_layer,
    simulate,
)
from grasp_plugin.learning.exact.arrivals import merge

SEEDS = range(60)
PER_NEURON = ("theta", "beta", "v_reset", "bias")
TAUS = ("tau_mem_ms", "tau_syn_ms", "tau_adapt_ms")


def close(found: Any, wanted: Any, terms: Any = None) -> None:
    """Equal to 1e-12 of the largest entry, or of the terms that were summed."""
    scale = max(1.0, float(np.max(np.abs(wanted if terms is None else terms), initial=0.0)))
    assert np.max(np.abs(np.asarray(found) - wanted), initial=0.0) <= 1e-12 * scale


def oracle_of(
    graph: Graph, times: Any, run: Run, seeds: dict[str, Any]
) -> tuple[dict[str, Any], list[Any]]:
    """The oracle's gradients summed over the samples, and its records."""
    names = ("weight", "delay", *PER_NEURON, *TAUS)
    total: dict[str, Any] = dict.fromkeys(names, 0.0) | {"times": np.zeros(times.shape)}
    records = []
    for b, sample in enumerate(times):
        who, k = np.nonzero(np.isfinite(sample))
        record = simulate(graph, sample[who, k], who, T_END)
        records.append(record)
        seen, d_times = [0] * len(graph.theta), []
        for spike in record.spikes:
            d_times.append(seeds["times"][b, spike.neuron, seen[spike.neuron]])
            seen[spike.neuron] += 1
        per = {name: seeds[name][b] for name in ("v_end", "integral", "v_max")}
        loss = LossGradient(np.array(d_times), **per)
        found = adjoint(graph, sample[who, k], who, T_END, record, loss)
        for name in names:
            total[name] = total[name] + getattr(found, name)
        total["times"][b, who, k] = found.input_times
    return total, records


def compare_gradients(found: LayerGradients, wanted: dict[str, Any], shape: Any) -> None:
    delay = wanted["delay"].reshape(shape)
    close(found.weight, wanted["weight"].reshape(shape))
    close(found.axonal, delay.sum(0))
    close(found.dendritic, delay.sum(1))
    if found.delay.size:
        close(found.delay, delay)
    for name in (*PER_NEURON, "times"):
        close(getattr(found, name), wanted[name])
    for name in TAUS:
        close(getattr(found, name), wanted[name].sum(), np.abs(wanted[name]).sum())


@pytest.mark.parametrize("seed", SEEDS)
def test_engine_is_the_oracle(seed: int) -> None:
    layer, times = random_layer(seed)
    run = run_layer(times, Parameters(**layer), T_END, measure=True)
    rng = np.random.default_rng(seed)
    per = dict(zip(("v_end", "integral", "v_max"), rng.normal(size=(3, 3, 5)), strict=True))
    per["v_max"] *= run.counts == 0
    seeds = {"times": rng.normal(size=run.times.shape), **per}
    wanted, records = oracle_of(as_graph(layer), times, run, seeds)
    for b, record in enumerate(records):
        for n in range(5):
            spikes = [s.time for s in record.spikes if s.neuron == n]
            assert run.counts[b, n] == len(spikes)
            close(run.times[b, n, : len(spikes)], spikes)
            if not spikes:
                close(run.measures.v_max[b, n], record.peaks[n].value)
        close(run.measures.v_end[b], record.v_end)
        close(run.measures.integral[b], record.integral)
    d = {f"d_{name}": value for name, value in per.items()}
    found = layer_gradients(run, seeds["times"], want_taus=True, **d)
    compare_gradients(found, wanted, layer["weight"].shape)


@pytest.mark.parametrize("seed", [1, 6, 10])
def test_losses_of_spike_times_alone(seed: int) -> None:
    layer, times = random_layer(seed)
    run = run_layer(times, Parameters(**layer), T_END)
    seeds = {name: np.zeros((3, 5)) for name in ("v_end", "integral", "v_max")}
    seeds["times"] = np.random.default_rng(seed).normal(size=run.times.shape)
    seeds["times"][0] = 0.0
    wanted, _ = oracle_of(as_graph(layer), times, run, seeds)
    found = layer_gradients(run, seeds["times"], want_taus=True)
    compare_gradients(found, wanted, layer["weight"].shape)
    assert found.traffic.swept == (run.counts[1:] > 0).sum()


def test_an_arrival_at_an_own_spike_takes_one_of_its_two_sides() -> None:
    layer = Parameters(np.array([[9.0, 2.0, -3.0]]), beta=0.2)
    at = run_layer(np.array([[[1.0], [np.inf], [np.inf]]]), layer, T_END).times[0, 0, 0]

    def weight(shift: float) -> Any:
        run = run_layer(np.array([[[1.0], [at + shift], [at + shift]]]), layer, T_END)
        return layer_gradients(run, np.ones(run.times.shape)).weight

    sides = weight(-1e-9), weight(1e-9)
    assert not np.allclose(*sides, atol=1e-3)
    assert any(np.allclose(weight(0.0), side, atol=1e-7) for side in sides)


def test_a_bias_above_the_threshold_drives_spikes() -> None:
    layer = Parameters(np.zeros((1, 1)), bias=1.5, v_reset=-0.2)
    run = run_layer(np.full((1, 1, 1), np.inf), layer, 200.0)
    spikes = run.times[0, 0]
    close(spikes[0], 20 * np.log(1.5 / 0.5))
    close(np.diff(spikes), 20 * np.log(1.7 / 0.5))
    found = layer_gradients(run, np.eye(1, spikes.size)[None])
    close(found.bias, 20 * (1 / 1.5 - 1 / 0.5))
    close(found.theta, 20 / 0.5)


def test_a_threshold_that_falls_with_spikes() -> None:
    layer, times = random_layer(10)
    layer["beta"] = np.full(5, -0.03)
    run = run_layer(times, Parameters(**layer), T_END)
    seeds = {name: np.zeros((3, 5)) for name in ("v_end", "integral", "v_max")}
    seeds["times"] = np.ones(run.times.shape)
    wanted, _ = oracle_of(as_graph(layer), times, run, seeds)
    compare_gradients(
        layer_gradients(run, seeds["times"], want_taus=True), wanted, layer["weight"].shape
    )


def test_coincident_arrivals() -> None:
    layer = {"weight": np.array([[9.0, 2.0, -3.0]]), "beta": np.array([0.2])}
    times = np.ones((1, 3, 1))
    run = run_layer(times, Parameters(**layer), T_END)
    seeds = {name: np.zeros((1, 1)) for name in ("v_end", "integral", "v_max")}
    seeds["times"] = np.ones(run.times.shape)
    wanted, _ = oracle_of(as_graph(layer), times, run, seeds)
    assert run.counts[0, 0] > 0
    compare_gradients(layer_gradients(run, seeds["times"], want_taus=True), wanted, (1, 3))


def test_float32_times_are_float64_inside() -> None:
    layer, times = random_layer(4)
    single = run_layer(times.astype(np.float32), Parameters(**layer), T_END)
    double = run_layer(times.astype(np.float32).astype(float), Parameters(**layer), T_END)
    assert np.array_equal(single.times, double.times)


def test_many_arrivals_are_sorted() -> None:
    rng = np.random.default_rng(0)
    times = rng.integers(0, 50, (2, 30, 20)) / 1.0
    times[:, ::3, 5:] = np.inf
    arrivals = merge(times, np.zeros(30), 40.0, (20.0, 5.0, 100.0))
    for b in range(2):
        kept = np.sort(times[b][times[b] <= 40.0])
        part = slice(arrivals.first[b], arrivals.first[b + 1])
        assert np.array_equal(arrivals.time[part], kept)
    assert np.array_equal(times.ravel()[arrivals.slot], arrivals.time)
    assert np.array_equal(arrivals.slot // 20 % 30, arrivals.source)
    delay = rng.uniform(0, 9, (3, 30))
    layer = {"weight": rng.normal(0.1, 0.3, (3, 30)), "delay": delay}
    run = run_layer(times, Parameters(**layer), T_END)
    m, k = np.nonzero(np.isfinite(times[0]))
    record = simulate(as_graph(layer), times[0, m, k], m, T_END)
    assert len(record.spikes) == run.counts[0].sum() > 3
    close(np.sort(run.times[0][np.isfinite(run.times[0])]), [s.time for s in record.spikes])


def test_held_memory_is_that_of_the_spikes() -> None:
    layer, times = random_layer(10)
    short = run_layer(times, Parameters(**layer), 200.0)
    long = run_layer(times, Parameters(**layer), 2000.0)
    assert np.array_equal(short.counts, long.counts)
    assert long.held_bytes == short.held_bytes == 24 * short.counts.sum() + 8 * 15
    twice = run_layer(np.tile(times, (2, 1, 1)), Parameters(**layer), 200.0)
    assert twice.held_bytes == 2 * short.held_bytes


def test_nothing_is_cut_off() -> None:
    layer, times = random_layer(10)
    run = run_layer(times, Parameters(**layer), T_END)
    most = int(run.counts.max())
    assert run.times.shape[2] == most > 1
    run_layer(times, Parameters(**layer), T_END, capacity=most)
    with pytest.raises(Refused, match=f"expected at most {most - 1} spikes in an episode"):
        run_layer(times, Parameters(**layer), T_END, capacity=most - 1)


def test_a_silent_layer_has_zero_gradients_and_a_peak_that_can_be_raised() -> None:
    rng = np.random.default_rng(1)
    times, weight = rng.uniform(0, 20, (2, 4, 1)), rng.normal(0.5, 0.5, (3, 4))
    run = run_layer(times, Parameters(weight), T_END, measure=True)
    assert not run.counts.any()
    assert run.times.shape == (2, 3, 1)
    assert np.isinf(run.times).all()
    assert not layer_gradients(run, np.ones(run.times.shape)).weight.any()
    gap = 1.0 - run.measures.v_max
    found = layer_gradients(run, np.zeros(run.times.shape), d_v_max=-gap).weight
    better = run_layer(times, Parameters(weight - 0.1 * found), T_END, measure=True)
    assert (better.measures.v_max > run.measures.v_max).all()


def test_traffic() -> None:
    layer, times = random_layer(10)
    run = run_layer(times, Parameters(**layer), T_END)
    back = layer_gradients(run, np.ones(run.times.shape)).traffic
    both = run.traffic + back
    arriving = sum((t <= T_END).sum() for t in times) * 5
    assert both.arrivals == arriving
    assert both.solves >= both.spikes == run.counts.sum()
    assert 0 < both.arrivals_back <= both.arrivals
    ours, scatter = both.bytes(), both.bytes(schedule="scatter")
    assert ours["state"] == 0 < scatter["state"]
    assert ours["log"] == 32 * both.spikes
    dense = dense_bytes(5, 60, 3, both.arrivals)
    assert dense["state"] == 48 * 5 * 60 * 3
    assert asdict(Traffic()) == dict.fromkeys(asdict(both), 0)
    with pytest.raises(Invalid, match="schedule"):
        both.bytes(schedule="gather")


BAD = {
    "weight: expected": {"weight": np.zeros(3)},
    "delay: expected delays >= 0": {"delay": np.full((5, 4), -1.0)},
    "delay: expected shape": {"delay": np.zeros((4, 5))},
    "beta: expected finite": {"beta": np.nan},
    "v_reset: expected less than theta": {"v_reset": 2.0},
    "theta: expected > 0": {"theta": 0.0, "v_reset": -1.0},
    "tau_syn_ms: expected a finite time > 0": {"tau_syn_ms": 0.0},
}


@pytest.mark.parametrize("message", BAD)
def test_invalid_parameters(message: str) -> None:
    layer, _ = random_layer(10)
    with pytest.raises(Invalid, match=message):
        Parameters(**(layer | BAD[message]))


def test_invalid_calls() -> None:
    layer, times = random_layer(10)
    parameters = Parameters(**layer)
    with pytest.raises(Invalid, match=r"times: expected \(batch, 4, spikes\)"):
        run_layer(times[0], parameters, T_END)
    with pytest.raises(Invalid, match="t_end_ms"):
        run_layer(times, parameters, np.inf)
    with pytest.raises(Invalid, match="times: expected spike times >= 0 ms"):
        run_layer(-times, parameters, T_END)
    run = run_layer(times, parameters, T_END)
    zero, per = np.zeros(run.times.shape), np.ones(run.counts.shape)
    with pytest.raises(Invalid, match="expected a run that measured"):
        layer_gradients(run, zero, d_v_end=per)
    with pytest.raises(Invalid, match="d_times: expected finite"):
        layer_gradients(run, zero + np.nan)
    measured = run_layer(times, parameters, T_END, measure=True)
    with pytest.raises(Refused, match="neurons without spikes"):
        layer_gradients(measured, zero, d_v_max=per)
    flat = replace(run, log=run.log * np.array([[1.0], [0.0], [0.0]]))
    with pytest.raises(Refused, match="tangent spikes"):
        layer_gradients(flat, zero + 1)

"""Exact layers on a grid: first spikes rounded up, the same on every back end; drift; NIR."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact_cases import random_layer

from grasp_plugin import build, quantise
from grasp_plugin.adapters import from_exact as as_nir
from grasp_plugin.adapters import read_exact, read_nir, to_norse, write_nir
from grasp_plugin.adapters._exact_stack import steps_of_delays, total_delay
from grasp_plugin.adapters.from_exact import from_grid, on_grid, steps_for, to_network
from grasp_plugin.drift import compare, drift, event_times
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.exact import Parameters, critical_weight, run_layer
from grasp_plugin.network.discretise import discretise
from grasp_plugin.network.to_nir import to_nir

T_END = 50.0
LAVA = pytest.param("lava", marks=pytest.mark.lava)
FEATURES = ("plain", "v_reset", "bias", "beta", "all")


def stack(seed: int, feature: str = "plain", sizes: tuple[int, ...] = (4, 6, 5, 3)) -> Any:
    """Layers with delays of all three kinds and thresholds of their own."""
    rng, out = np.random.default_rng(seed), []
    for ins, outs in pairwise(sizes):
        more: dict[str, Any] = {}
        if feature in ("v_reset", "all"):
            more["v_reset"] = rng.uniform(-0.4, 0.3, outs)
        if feature in ("bias", "all"):
            more["bias"] = rng.uniform(-0.2, 0.25, outs)
        if feature in ("beta", "all"):
            more |= {"beta": rng.uniform(0, 0.5, outs), "tau_adapt_ms": 30.0}
        weight = rng.normal(2.0, 1.0, (outs, ins)) * critical_weight(20, 5) / np.sqrt(6 * ins)
        out.append(
            Parameters(
                weight, rng.uniform(0, 3, (outs, ins)), rng.uniform(0, 2, ins),
                rng.uniform(0, 1, outs), rng.uniform(0.8, 1.2, outs), **more,
            )
        )  # fmt: skip
    return out


def grid_inputs(seed: int, dt_ms: float, spikes: int = 2) -> Any:
    rng = np.random.default_rng(seed + 1000)
    times = rng.integers(0, int(25 / dt_ms), (4, 4, spikes)) * dt_ms
    times[rng.random(times.shape) < 0.2] = np.inf
    return times


def layer_on_grid(p: Parameters, delay: Any, dt_ms: float) -> Parameters:
    return replace(p, delay=delay * dt_ms, axonal=None, dendritic=None)


def first(times: Any) -> Any:
    return times[:, :, 0]


@pytest.mark.parametrize("backend", [LAVA, "fused"])
@pytest.mark.parametrize("feature", FEATURES)
def test_first_spikes_are_rounded_up_through_delays_and_layers(backend: str, feature: str) -> None:
    """Layer by layer, on the grid times of the layer below: first spike = ceil(t / dt) dt."""
    seen = 0
    for seed, dt in ((0, 0.5), (1, 1.0), (2, 0.25)):
        layers, times = stack(seed, feature), grid_inputs(seed, dt)
        network = to_network(layers, dt, gauge=True)
        delays, _ = steps_of_delays(layers, dt, gauge=True, most=62)
        with build(network, backend=backend) as session:
            recording = session.run(on_grid(times, dt, steps_for(T_END, dt)))
        below = times
        for k, p in enumerate(layers):
            grid = from_grid(recording[f"layer{k + 1}"], dt)
            event = run_layer(below, layer_on_grid(p, delays[k], dt), T_END).times
            wanted, got = first(event), first(grid)
            assert np.all(np.isfinite(wanted) >= np.isfinite(got))  # a spike may be missed
            both = np.isfinite(got)
            assert (~both & np.isfinite(wanted)).sum() <= 1
            late = got[both] - np.ceil(wanted[both] / dt - 1e-9) * dt
            assert (np.abs(late) < 1e-9).mean() > 0.95  # else the peak fell between grid points
            assert np.all(late > -1e-9)
            seen += int(both.sum())
            below = grid
    assert seen > 100


@pytest.mark.parametrize("feature", FEATURES)
def test_single_spikes_are_exact_without_exception(feature: str) -> None:
    """Neurons that spike once: the whole pattern is the event pattern, rounded up."""
    dt, found = 0.5, 0
    for seed in range(12):
        (p,) = stack(seed, feature, (4, 6))
        p, times = replace(p, weight=p.weight / 1.5), grid_inputs(seed, dt, 1)
        delays, _ = steps_of_delays([p], dt, gauge=True, most=62)
        event = run_layer(times, layer_on_grid(p, delays[0], dt), T_END)
        with build(to_network([p], dt, gauge=True), backend="fused") as session:
            grid = from_grid(session.run(on_grid(times, dt, 100))["layer1"], dt)
        once = (event.counts == 1) & np.isfinite(first(grid))
        assert (once | (event.counts != 1)).mean() > 0.95
        assert np.allclose(first(grid)[once], np.ceil(first(event.times)[once] / dt - 1e-9) * dt)
        found += int(once.sum())
    assert found > 20


def test_a_chain_of_single_spikes_arrives_at_k_plus_1_plus_d() -> None:
    """One synapse a layer, known by hand: input at 3 dt, delays 2 and 5 steps."""
    dt, w = 0.5, 2 * critical_weight(20, 5)
    layers = [Parameters(np.array([[w]]), np.array([[d * dt]])) for d in (2, 5)]
    rise = first(run_layer(np.zeros((1, 1, 1)), Parameters(np.array([[w]])), T_END).times)[0, 0]
    steps = int(np.ceil(rise / dt))
    network = to_network(layers, dt)
    with build(network, backend="fused") as session:
        recording = session.run(on_grid(np.full((1, 1, 1), 3 * dt), dt, 100))
    first_spike = 3 + 2 + steps - 1  # step k of the crossing
    assert np.flatnonzero(recording["layer1"][:, 0, 0])[0] == first_spike
    assert np.flatnonzero(recording["layer2"][:, 0, 0])[0] == first_spike + 1 + 5 + steps - 1


@pytest.mark.lava
@pytest.mark.parametrize("feature", FEATURES)
def test_back_ends_agree(feature: str) -> None:
    """Lava = fused = torch in float, Lava = fused in Loihi's integers, spike for spike."""
    layers, dt = stack(5, feature), 0.5
    network, inputs = to_network(layers, dt), on_grid(grid_inputs(5, dt), dt, 100)
    runs = []
    for net, backend in (
        (network, "lava"), (network, "fused"), (network, "torch"),
        (quantise(network), "lava"), (quantise(network), "fused"),
    ):  # fmt: skip
        with build(net, backend=backend) as session:
            runs.append(session.run(inputs))
    for p in network.populations:
        float_run = runs[0][p.name]
        assert float_run.sum() > 10
        assert np.array_equal(float_run, runs[1][p.name])
        assert np.array_equal(float_run, runs[2][p.name])
        assert np.array_equal(runs[3][p.name], runs[4][p.name])


def test_readout_is_the_membrane() -> None:
    """A LeakyReadout on the grid: step k is V((k + 1) dt)."""
    dt, rng = 0.5, np.random.default_rng(3)
    p = Parameters(rng.normal(size=(3, 4)), theta=np.inf, bias=rng.normal(size=3))
    times = grid_inputs(3, dt)
    with build(to_network([p], dt), backend="fused") as session:
        out = session.run(on_grid(times, dt, 100))["layer1"]
    for k in (0, 7, 50, 99):
        arrived = np.where(times < (k + 0.5) * dt, times, np.inf)
        end = run_layer(arrived, p, (k + 1) * dt, measure=True).measures.v_end
        assert np.allclose(out[k], end, rtol=1e-12, atol=1e-12)


def test_drift_falls_with_the_step() -> None:
    layers = stack(7)
    times = np.random.default_rng(0).uniform(0, 25, (4, 4, 2))
    means = [drift(layers, times, dt, t_end_ms=T_END)[0].mean_ms for dt in (1.0, 0.25, 0.1)]
    assert means[0] > means[1] > means[2] > 0
    fine = drift(layers, times, 0.01, t_end_ms=T_END, most_steps=None)
    assert all(d.missed + d.extra == 0 and d.max_ms < 0.5 for d in fine)
    fixed = drift(layers, times, 0.5, t_end_ms=T_END, fixed=True)
    assert [d.name for d in fixed] == ["layer1", "layer2", "layer3"]
    assert all(np.isfinite(d.mean_ms) and d.spikes > 0 for d in fixed)


def test_compare_counts_what_one_side_has_more() -> None:
    a, b = np.array([[[1.0, 4.0], [2.0, np.inf]]]), np.array([[[1.5], [np.inf]]])
    d = compare("x", a, b)
    assert (d.spikes, d.missed, d.extra, d.mean_ms, d.late_ms) == (3, 2, 0, 0.5, 0.5)
    assert compare("x", b, a).extra == 2


def test_folded_thresholds_spike_alike() -> None:
    layers, inputs = stack(4, "all"), on_grid(grid_inputs(4, 0.5), 0.5, 100)
    plain, folded = to_network(layers, 0.5), to_network(layers, 0.5, fold_theta=True)
    with build(plain, backend="fused") as a, build(folded, backend="fused") as b:
        first_run, second_run = a.run(inputs), b.run(inputs)
    for p in plain.populations:
        assert np.array_equal(first_run[p.name], second_run[p.name])
    assert np.allclose(folded["layer1"].v_th + folded["layer1"].v_offset, 1)


def test_gauge_leaves_the_outputs_and_rounds_less() -> None:
    """Delays shifted across hidden neurons: the same output times, less rounding, never < 0."""
    layers, dt = stack(8), 1.0
    whole, shifts = steps_of_delays(layers, dt, gauge=True, most=62)
    plain, none = steps_of_delays(layers, dt, gauge=False, most=62)
    assert not any(s.any() for s in none)
    assert any(s.any() for s in shifts)
    moved = []
    for k, p in enumerate(layers):
        delay = total_delay(p) + shifts[k][:, None]
        delay = delay - (shifts[k - 1][None, :] if k else 0)
        moved.append(replace(p, delay=delay.clip(min=0), axonal=None, dendritic=None))
        exact = (p.weight**2 * (delay / dt - whole[k]) ** 2).sum()
        rough = (p.weight**2 * (total_delay(p) / dt - plain[k]) ** 2).sum()
        assert exact <= rough * 1.05
        assert whole[k].min() >= 0
    if all((m.delay > 0).all() for m in moved):
        times = np.random.default_rng(1).uniform(0, 20, (3, 4, 1))
        wanted = event_times(layers, times, 200.0)[-1]
        assert np.allclose(event_times(moved, times, 200.0)[-1], wanted)


def test_gauge_takes_delays_out_of_range_where_it_can() -> None:
    """An input delay too long by itself, with room on the output side the other way."""
    w = np.array([[9.0]])
    layers = [Parameters(w, np.array([[70.0]])), Parameters(w, np.array([[5.0]]))]
    with pytest.raises(
        Refused,
        match=r"layer 1: expected delays of 0..62 steps of 1 ms, got 70..70. Pass gauge=True",
    ):
        to_network(layers, 1.0)
    whole, _ = steps_of_delays(layers, 1.0, gauge=True, most=62)
    assert [int(d[0, 0]) for d in whole] == [62, 13]
    with pytest.raises(Refused, match=r"dt_ms >= 1.13"):
        to_network(layers[:1], 1.0, gauge=True)
    assert to_network(layers[:1], 1.0, most_steps=None).projections[0].delay_steps == 70


def test_refusals_name_the_remedy() -> None:
    w = np.ones((2, 2))
    with pytest.raises(Refused, match="beta >= 0"):
        to_network([Parameters(w, beta=-0.1)], 1.0)
    with pytest.raises(Invalid, match="read-out"):
        to_network([Parameters(w, theta=np.inf), Parameters(w)], 1.0)
    with pytest.raises(Invalid, match="expected 2 inputs, got 3"):
        to_network([Parameters(w), Parameters(np.ones((2, 3)))], 1.0)
    with pytest.raises(Invalid, match="at least one layer"):
        to_network([], 1.0)
    with pytest.raises(Invalid, match="dt_ms"):
        to_network([Parameters(w)], 0.0)


def test_inputs_are_rounded_up_and_counted() -> None:
    times = np.array([[[0.0, 0.1, 0.3 / 0.1 * 0.1, np.inf], [0.31, 0.35, 9.9, np.inf]]])
    grid = on_grid(times, 0.1, 50)
    assert [tuple(i) for i in np.argwhere(grid)] == [(0, 0, 0), (1, 0, 0), (3, 0, 0), (4, 0, 1)]
    assert grid[4, 0, 1] == 2
    assert steps_for(30.0, 0.1) == 300


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("dt", [None, 0.5])
def test_nir_gives_the_layers_back(feature: str, dt: float | None, tmp_path: Path) -> None:
    layers = stack(9, feature)
    write_nir(as_nir(layers, dt), tmp_path / "exact.nir")
    back = read_exact(read_nir(tmp_path / "exact.nir"))
    times = np.random.default_rng(2).uniform(0, 20, (3, 4, 2))
    for a, b in zip(layers, back, strict=True):
        delay = total_delay(a)
        if dt is not None:
            synaptic = np.round(a.delay / dt) * dt
            delay = synaptic + a.axonal[None, :] + a.dendritic[:, None]
        assert np.allclose(b.delay, delay, atol=1e-9)
        for name in ("weight", "theta", "beta", "v_reset", "bias", "tau_mem_ms", "tau_adapt_ms"):
            if name != "tau_adapt_ms" or np.any(a.beta):
                assert np.allclose(getattr(a, name), getattr(b, name), rtol=1e-12), name
    if dt is None:
        for x, y in zip(event_times(layers, times, T_END), event_times(back, times, T_END),
                        strict=True):  # fmt: skip
            assert np.allclose(x, y)


def test_nir_of_dirac_spikes_is_refused_by_what_steps() -> None:
    graph = as_nir(stack(9, "beta"), 0.5)
    for reader in (discretise, to_norse):
        with pytest.raises(Refused, match="Dirac impulses"):
            reader(graph)
    with pytest.raises(Refused, match="spike_area"):
        read_exact(to_nir(to_network(stack(9), 0.5)))


@pytest.mark.parametrize("feature", ["plain", "v_reset", "beta"])
def test_the_grid_network_goes_to_nir_and_back(feature: str) -> None:
    """The project's own exporter holds the grid, adaptive thresholds as rho and theta."""
    network = to_network(stack(6, feature), 0.5)
    back = discretise(to_nir(network))
    inputs = on_grid(grid_inputs(6, 0.5), 0.5, 100)
    with build(network, backend="fused") as a, build(back, backend="fused") as b:
        x, y = a.run(inputs), b.run(inputs)
    for p in network.populations:
        assert (x[p.name] != y[p.name]).mean() < 1e-3  # float rounding at ties only


@pytest.mark.parametrize("seed", range(6))
def test_every_layer_that_the_engine_takes_is_exported(seed: int) -> None:
    """All ratios of time constants, thresholds, read-outs."""
    given, times = random_layer(seed)
    p = Parameters(**given)
    with build(to_network([p], 0.02, most_steps=None), backend="fused") as session:
        out = session.run(on_grid(times, 0.02, 2500))["layer1"]
    if np.all(np.isfinite(p.theta)):
        wanted = run_layer(times, p, 50.0).times
        d = compare("layer1", wanted, from_grid(out, 0.02))
        assert d.missed + d.extra <= 0.1 * d.spikes
        assert d.first_max_ms < 0.1


def test_torch_layers_are_taken_as_they_are() -> None:
    torch = pytest.importorskip("torch")
    from grasp_plugin.learning.exact.layers import LeakyReadout, SpikeTimeLayer

    one = SpikeTimeLayer(4, 5, t_end_ms=T_END, delays="delay", train=("theta", "tau_mem_ms"))
    two = LeakyReadout(5, 2, t_end_ms=T_END, train="bias")
    with torch.no_grad():
        one.delay.uniform_(0, 3)
    network = to_network([one, two], 0.5)
    assert [p.node for p in network.populations] == ["CubaLIF", "CubaLI"]
    assert one.snapshot().weight.dtype == np.float64
    assert [type(n).__name__ for n in as_nir([one, two]).nodes.values()].count("CubaLI") == 1

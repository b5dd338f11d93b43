"""What `benchmarks/exact.py` compares with: its BPTT, its traffic ratios, its resumed runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grasp_plugin.learning.exact import Parameters, run_layer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import _exact_train as exact
from _exact_bptt import Grid, GridLayer, compiled_loop, first_times, loss_of, torch_loop, trains
from _exact_errors import engine_error, fd_errors, identity_errors
from _exact_store import Store
from _exact_tasks import Workload, padded
from _exact_traffic import count, ratios


def batch(samples: int = 6) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    times = np.where(rng.random((samples, 4, 2)) < 0.2, np.inf, rng.uniform(0, 20, (samples, 4, 2)))
    return times, rng.integers(0, 3, samples)


def layers(loop: Any, grid: Grid, delays: bool) -> list[GridLayer]:
    rng, out = np.random.default_rng(1), []
    for ins, outs in ((4, 7), (7, 3)):
        delay = rng.uniform(0, 3, (outs, ins)) if delays else None
        out.append(GridLayer(rng.normal(2.5, 1, (outs, ins)), delay, grid, loop))
    return out


@pytest.mark.parametrize("delays", [False, True])
@pytest.mark.parametrize("kind", ["first", "vmax"])
def test_the_two_loops_have_the_same_gradients(delays: bool, kind: str) -> None:
    times, labels = batch()
    grid, found = Grid(1.0, 40.0), []
    for loop in (torch_loop, compiled_loop):
        one, two = layers(loop, grid, delays)
        out = two(one(trains(torch.from_numpy(times), grid))[0])
        loss_of(kind, out, torch.from_numpy(labels), grid.dt).backward()
        found.append([p.grad for layer in (one, two) for p in layer.parameters()])
    assert any(float(g.abs().max()) > 0 for g in found[0])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("delays", [False, True])
def test_a_fine_grid_has_the_spikes_of_the_engine(delays: bool) -> None:
    times, _ = batch()
    grid = Grid(0.005, 40.0)
    one, _ = layers(compiled_loop, grid, delays)
    delay = one.delay.detach().numpy() if delays else None
    wanted = run_layer(times, Parameters(one.weight.detach().numpy(), delay), 40.0)
    with torch.no_grad():
        spikes, _ = one(trains(torch.from_numpy(times), grid))
    first = first_times(spikes, grid.dt).numpy()
    assert np.isfinite(wanted.times[:, :, 0]).sum() > 20
    miss = np.abs(np.minimum(wanted.times[:, :, 0], 40.0) - first)
    assert np.quantile(miss, 0.95) < 0.02


def test_the_errors_of_the_benchmark_see_an_exact_gradient() -> None:
    assert max(v for v in fd_errors(1).values() if np.isfinite(v)) < 1e-6
    assert max(identity_errors(1).values()) < 1e-12
    assert engine_error(1) < 1e-10


def test_traffic_ratios_are_those_of_the_formulas() -> None:
    times = np.random.default_rng(2).uniform(0, 20, (5, 4, 1))
    work = Workload("w", times, np.zeros(5), (np.full((3, 4), 0.01),), (None,), 50.0, (1.0,))
    counted = count(work)
    assert counted[0][0].spikes == 0
    assert counted[0][0].arrivals == 5 * 3 * 4
    assert counted[1] == [20]
    found = ratios(work, 1.0, "scatter", counted)  # no spike: the backward pass walks nothing
    assert found["steps_arrivals"] == pytest.approx(50 / 4)
    assert found["state"] == pytest.approx(48 * 50 / (24 * 4))


def test_padded_keeps_every_event() -> None:
    events = [(np.array([2, 0, 2]), np.array([5.0, 1.0, 3.0])), (np.array([1]), np.array([4.0]))]
    out = padded(events, 3)
    assert out.shape == (2, 3, 2)
    assert sorted(out[0, 2].tolist()) == [3.0, 5.0]
    assert np.isfinite(out).sum() == 4


def test_a_store_makes_each_row_once(tmp_path: Path) -> None:
    calls = []

    def call() -> dict[str, float]:
        calls.append(1)
        return {"value": 0.25}

    for _ in range(2):
        store = Store(tmp_path / "a.csv", ("name", "seed"), ("value",))
        assert store.make(call, name="x", seed=1) == {"value": 0.25}
    assert len(calls) == 1
    assert store.rows(seed=1) == [{"name": "x", "seed": "1", "value": 0.25}]


def test_a_resumed_training_is_the_same() -> None:
    data = tuple(t[:200] for t in exact.encode("train"))
    runs = [exact.Training(exact.MODELS[1], 3, data) for _ in range(2)]
    runs[0].epoch()
    state = runs[0].state()
    runs[0].epoch()
    runs[1].resume(state)
    runs[1].epoch()
    assert runs[1].done == 2
    for mine, theirs in zip(runs[1].one.parameters(), runs[0].one.parameters(), strict=True):
        assert torch.equal(mine, theirs)

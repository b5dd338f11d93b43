"""The oracle's gradients are finite differences, for every parameter and every kind of loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exact_cases import (
    CLASSES,
    T_END,
    Probe,
    central_difference,
    random_graph,
    random_inputs,
    worst_errors,
)

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.exact import Graph, LossGradient, adjoint, oracle_adjoint, simulate

NETWORKS = 60


def one_neuron(weight: list[float], **more: float) -> Graph:
    """One neuron with one synapse from each of len(weight) inputs, no delays."""
    n = len(weight)
    per = {"theta": 1.0, "beta": 0.0, "v_reset": 0.0, "bias": 0.0, "tau_mem_ms": 20.0}
    per |= {"tau_syn_ms": 5.0, "tau_adapt_ms": 30.0, **more}
    rows = {name: np.array([value]) for name, value in per.items()}
    zero = np.zeros(n, int)
    return Graph(n, np.arange(n), zero, np.array(weight), np.zeros(n), **rows)


def test_every_gradient_is_a_finite_difference() -> None:
    errors: dict[str, list[float]] = {name: [] for name in CLASSES}
    for seed in range(NETWORKS):
        for name, error in worst_errors(seed).items():
            errors[name].append(error)
    for name, found in errors.items():
        kept = [e for e in found if not np.isnan(e)]
        assert len(kept) >= 50, name
        assert max(kept) < 1e-6, name


def test_a_wrong_jump_fails_the_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    right = oracle_adjoint.spike_jump

    def without_beta(graph: Graph, spike: Any, pv: float, pa: float, *rest: float) -> Any:
        return right(graph, spike, pv, 0.0, *rest)._replace(pa=pa)

    monkeypatch.setattr(oracle_adjoint, "spike_jump", without_beta)
    errors = worst_errors(1)
    assert np.nanmax(list(errors.values())) > 1e-3


def test_maximum_at_an_inhibitory_arrival_moves_with_the_arrival() -> None:
    graph, sources = one_neuron([3.0, -4.0]), np.array([0, 1])
    times = np.array([1.0, 4.0])
    record = simulate(graph, times, sources, T_END)
    assert record.peaks[0].kink == (1, 1)
    loss = LossGradient(v_max=np.array([1.0]))
    found = adjoint(graph, times, sources, T_END, record, loss).input_times
    for k in range(2):

        def value(h: float, k: int = k) -> float:
            moved = times + h * (np.arange(2) == k)
            return simulate(graph, moved, sources, T_END).peaks[0].value

        assert found[k] == pytest.approx(central_difference(value), abs=1e-9)
    assert found[1] > 1e-3


def test_order_of_magnitude_of_the_random_networks() -> None:
    counts = []
    for seed in range(NETWORKS):
        graph = random_graph(seed)
        counts.append(len(simulate(graph, *random_inputs(seed, graph), T_END).spikes))
    assert min(counts) > 2
    assert 15 < np.mean(counts) < 60


def test_ties_and_zero_delays() -> None:
    graph = Graph(
        1, np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([9.0, -3.0, 9.0]), np.zeros(3),
        *(np.full(2, v) for v in (1.0, 0.0, 0.0, 0.0, 20.0, 5.0, 30.0)),
    )  # fmt: skip
    times, sources = np.array([2.0, 2.0]), np.zeros(2, int)
    record = simulate(graph, times, sources, T_END)
    assert [s.neuron for s in record.spikes][:2] == [0, 0]
    found = adjoint(graph, times, sources, T_END, record, LossGradient(np.ones(len(record.spikes))))
    assert found.input_times[0] == pytest.approx(found.input_times[1], rel=1e-12)
    assert found.input_times.sum() == pytest.approx(len(record.spikes), rel=1e-12)


def test_spikes_after_the_end_do_not_exist() -> None:
    graph = one_neuron([9.0])
    at = simulate(graph, np.array([2.0]), np.array([0]), T_END).spikes[0].time
    early = simulate(graph, np.array([2.0]), np.array([0]), at - 1e-9)
    assert early.spikes == []
    assert early.v_end[0] == pytest.approx(1.0, abs=1e-7)


def test_refusals() -> None:
    graph, times, sources = one_neuron([9.0]), np.array([2.0]), np.array([0])
    record = simulate(graph, times, sources, T_END)
    with pytest.raises(Refused, match="neuron 0: expected a neuron without spikes"):
        adjoint(graph, times, sources, T_END, record, LossGradient(v_max=np.ones(1)))
    with pytest.raises(Invalid, match="times: expected input times >= 0"):
        simulate(graph, np.array([-1.0]), sources, T_END)
    with pytest.raises(Invalid, match="v_reset: expected less than theta"):
        one_neuron([1.0], v_reset=1.0)
    still = one_neuron([0.0], bias=1.0 + 1e-12)
    record = simulate(still, times, sources, 1000.0)
    probe = LossGradient(np.ones(len(record.spikes)))
    assert record.spikes
    slow = adjoint(still, times, sources, 1000.0, record, probe, gdot_min_per_ms=1e-3)
    assert slow.clamped == len(record.spikes)
    flat = record.spikes[0]._replace(current=0.0, adaptation=0.0)
    record.spikes[0] = flat
    with pytest.raises(Refused, match="tangency"):
        adjoint(one_neuron([0.0]), times, sources, 1000.0, record, probe)


def test_probe_sees_silent_neurons() -> None:
    graph = random_graph(3)
    record = simulate(graph, np.zeros(0), np.zeros(0, int), T_END)
    assert np.abs(Probe(3, graph).gradient(record).v_max).min() > 0

"""What holds to rounding, with no finite difference: autodiff, symmetries, the limit dt -> 0."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from exact_cases import T_END, random_graph, random_inputs

from grasp_plugin.learning.exact import (
    Graph,
    LossGradient,
    Parameters,
    adjoint,
    layer_gradients,
    run_layer,
    simulate,
)
from grasp_plugin.learning.exact.flow import decays

SEEDS = range(20)


def case(seed: int, *, bias: bool = True) -> tuple[Graph, Any, Any, Any, Any, Any]:
    """A graph, its inputs, its record, dL/dt_k and the gradients of a loss of spike times."""
    graph = random_graph(seed)
    if not bias:
        graph = replace(graph, bias=np.zeros_like(graph.bias))
    times, sources = random_inputs(seed, graph)
    record = simulate(graph, times, sources, T_END)
    d_times = np.random.default_rng(seed).normal(size=len(record.spikes))
    found = adjoint(graph, times, sources, T_END, record, LossGradient(d_times))
    return graph, times, sources, record, d_times, found


def close(found: Any, wanted: Any, scale: Any) -> None:
    assert np.max(np.abs(np.asarray(found) - wanted)) <= 1e-12 * max(1.0, np.max(np.abs(scale)))


@pytest.mark.parametrize("seed", SEEDS)
def test_scale_identity_of_each_neuron(seed: int) -> None:
    graph, _, _, _, _, found = case(seed)
    inward = np.zeros_like(graph.theta)
    np.add.at(inward, graph.post, graph.weight * found.weight)
    parts = [getattr(graph, p) * getattr(found, p) for p in ("theta", "beta", "v_reset", "bias")]
    close(inward + np.sum(parts, axis=0), 0.0, parts)


@pytest.mark.parametrize("seed", SEEDS)
def test_delay_balance_of_each_neuron_and_of_the_inputs(seed: int) -> None:
    graph, _, _, record, d_times, found = case(seed, bias=False)
    balance, own = np.zeros_like(graph.theta), np.zeros_like(graph.theta)
    np.add.at(balance, graph.post, found.delay)
    inner = graph.pre >= graph.inputs
    np.subtract.at(balance, graph.pre[inner] - graph.inputs, found.delay[inner])
    np.add.at(own, [s.neuron for s in record.spikes], d_times)
    close(balance, own, found.delay)
    close(found.input_times.sum(), d_times.sum(), found.input_times)


@pytest.mark.parametrize("seed", SEEDS)
def test_theta_is_the_membrane_sensitivity_before_the_spikes(seed: int) -> None:
    graph, _, _, record, _, found = case(seed)
    total = np.zeros_like(graph.theta)
    np.subtract.at(total, [s.neuron for s in record.spikes], found.before_spike)
    close(total, found.theta, found.theta)


@pytest.mark.parametrize("seed", SEEDS)
def test_invariances_of_the_forward_pass(seed: int) -> None:
    graph, times, sources, record, _, _ = case(seed)
    wanted = np.array([s.time for s in record.spikes])

    def compare(other: Graph, t: Any, who: Any, shift: float = 0.0) -> None:
        found = simulate(other, t, who, T_END + shift).spikes
        assert len(found) == len(wanted)
        close([s.time - shift for s in found], wanted, 1e2)

    three = {p: 3 * getattr(graph, p) for p in ("weight", "theta", "beta", "v_reset", "bias")}
    compare(replace(graph, **three), times, sources)
    order = np.random.default_rng(seed).permutation(len(graph.weight))
    synapse = {p: getattr(graph, p)[order] for p in ("pre", "post", "weight", "delay")}
    compare(replace(graph, **synapse), times, sources)
    twice = {p: np.tile(getattr(graph, p), 2) for p in ("pre", "post", "delay")}
    halves = np.tile(graph.weight / 2, 2)
    compare(replace(graph, weight=halves, **twice), times, sources)
    nought = np.concatenate([graph.weight, 0 * graph.weight])
    later = twice | {"delay": np.concatenate([graph.delay, graph.delay + 0.37])}
    compare(replace(graph, weight=nought, **later), times, sources)


def test_shift_in_time() -> None:
    graph, times, sources, record, _, _ = case(2, bias=False)
    late = simulate(graph, times + 11.0, sources, T_END + 11.0)
    close([s.time - 11.0 for s in late.spikes], [s.time for s in record.spikes], 1e2)


def closed_form(times: Any, w: Any, d: Any, theta: Any, tau_m: float, when: Any) -> Any:
    """First spikes at tau_m = 2 tau_s from the inputs that arrive before them (`when`: known)."""
    arrival = times[:, None, :] + d
    causal = (arrival < when[:, :, None]).to(times.dtype)
    y = torch.exp(arrival / tau_m)
    a1, a2 = (causal * w * y * y).sum(2), (causal * w * y).sum(2)
    return tau_m * torch.log(2 * a1 / (a2 + torch.sqrt(a2 * a2 - 4 * a1 * theta)))


def test_autodiff_through_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    times = rng.uniform(0, 20, (6, 5, 1))
    w, d, theta = rng.uniform(1, 4, (4, 5)), rng.uniform(0, 3, (4, 5)), rng.uniform(0.8, 1.2, 4)
    layer = Parameters(w, d, theta=theta, v_reset=-99.0, tau_mem_ms=20.0, tau_syn_ms=10.0)
    run = run_layer(times, layer, 80.0)
    assert (run.counts == 1).all()
    seeds = rng.normal(size=run.times.shape)
    found = layer_gradients(run, seeds)
    inputs = [torch.tensor(v, requires_grad=True) for v in (times[:, :, 0], w, d, theta)]
    spikes = closed_form(*inputs, 20.0, torch.tensor(run.times[:, :, 0]))
    close(run.times[:, :, 0], spikes.detach().numpy(), 1e2)
    (spikes * torch.tensor(seeds[:, :, 0])).sum().backward()
    for name, leaf in zip(("times", "weight", "delay", "theta"), inputs, strict=True):
        wanted = leaf.grad.numpy()
        close(getattr(found, name).reshape(wanted.shape), wanted, wanted)


def stepped(graph: Graph, times: Any, sources: Any, dt: float) -> list[tuple[float, int]]:
    """Spikes of the same graph on a grid, with the exact propagator and delays rounded to it."""
    steps, n = round(T_END / dt), len(graph.theta)
    arriving = np.zeros((steps + round(6 / dt) + 2, n))
    late = np.maximum(np.rint(graph.delay / dt).astype(int), 1)
    out = graph.fan_out()

    def emit(step: int, source: int) -> None:
        for e in out[source]:
            arriving[step + late[e], graph.post[e]] += graph.weight[e]

    for t, m in zip(times, sources, strict=True):
        emit(round(t / dt), int(m))
    taus = zip(graph.tau_mem_ms, graph.tau_syn_ms, strict=True)
    em, es, ka = np.array([decays(dt, *pair) for pair in taus]).T
    ea = np.exp(-dt / graph.tau_adapt_ms)
    x, i, a, spikes = -graph.bias, np.zeros(n), np.zeros(n), []
    for k in range(steps):
        i = i + arriving[k]
        x, i, a = x * em + i * ka, i * es, a * ea
        for m in np.flatnonzero(x + graph.bias > graph.theta + a):
            spikes.append(((k + 1) * dt, int(m)))
            x[m], a[m] = graph.v_reset[m] - graph.bias[m], a[m] + graph.beta[m]
            emit(k + 1, graph.inputs + int(m))
    return spikes


@pytest.mark.parametrize("seed", [4, 10, 34])  # all recurrent, 28 to 38 spikes
def test_a_stepped_simulation_converges_to_the_events(seed: int) -> None:
    graph, times, sources, record, _, _ = case(seed)
    wanted = sorted((s.neuron, s.time) for s in record.spikes)
    errors = []
    for dt in (0.05, 0.01, 0.002):
        found = sorted((m, t) for t, m in stepped(graph, times, sources, dt))
        assert [m for m, _ in found] == [m for m, _ in wanted]
        errors.append(max(abs(t - u) for (_, t), (_, u) in zip(found, wanted, strict=True)))
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2
    assert errors[2] < 15 * 0.002

"""Gradients at observed spikes: against the oracle's adjoint, the engine, and by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from exact_cases import as_graph

from grasp_plugin import build
from grasp_plugin.adapters.from_exact import from_grid, on_grid, to_network
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.exact import (
    LossGradient,
    Parameters,
    adjoint,
    layer_gradients,
    losses,
    run_layer,
)
from grasp_plugin.learning.exact.deployed import Deployed, units_of
from grasp_plugin.learning.exact.observed import in_steps, observed_gradients, observed_run
from grasp_plugin.learning.exact.oracle import Record, Spike

NAMES = ("weight", "delay", "theta", "beta", "v_reset", "bias")
DT, STEPS = 0.5, 100


def layers(seed: int, sizes: tuple[int, ...] = (4, 6, 3)) -> list[Parameters]:
    rng, out = np.random.default_rng(seed), []
    for ins, outs in pairwise(sizes):
        out.append(
            Parameters(
                rng.normal(3.5, 1.5, (outs, ins)), rng.uniform(0, 3, (outs, ins)),
                theta=rng.uniform(0.8, 1.2, outs), v_reset=rng.uniform(-0.3, 0.2, outs),
                beta=rng.uniform(0, 0.4, outs), bias=rng.uniform(-0.1, 0.1, outs),
            )
        )  # fmt: skip
    return out


def on_the_grid(stack: list[Parameters], times: Any) -> tuple[list[Parameters], list[Any]]:
    """The stack in steps, and the spike times of inputs and layers on the grid, in steps."""
    network = to_network(stack, DT)
    delays = [k.delay_steps - (i > 0) for i, k in enumerate(network.projections)]
    with build(network, backend="fused") as session:
        recording = session.run(on_grid(times, DT, STEPS))
    seen = [np.ceil(times / DT), *(from_grid(recording[p.name], 1.0) for p in network.populations)]
    return [in_steps(p, DT, d) for p, d in zip(stack, delays, strict=True)], seen


def record_of(p: Parameters, below: Any, own: Any) -> tuple[Record, Any, Any]:
    """A `Record` of observed spikes, currents summed from their definition, one sample."""
    neurons, spikes = own.shape[1], []
    source, k = np.nonzero(np.isfinite(below[0]))
    t_in = below[0][source, k]
    for n in range(neurons):
        before: list[float] = []
        for t in own[0, n][np.isfinite(own[0, n])]:
            ages = t - t_in - p.delay[n, source]
            current = (p.weight[n, source] * np.exp(-ages / p.tau_syn_ms))[ages > 0].sum()
            raised = sum(p.beta[n] * np.exp(-(t - b) / p.tau_adapt_ms) for b in before)
            spikes.append(Spike(float(t), n, float(current), float(raised)))
            before.append(t)
    spikes.sort(key=lambda s: s.time)
    zeros = np.zeros(neurons)
    return Record(spikes, zeros, zeros, []), t_in, source


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_oracles_adjoint_of_the_same_spikes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    (p,) = layers(seed, (4, 5))
    times = rng.uniform(0, 25, (1, 4, 2))
    (running,), (below, own) = on_the_grid([p], times)
    d = np.where(np.isfinite(own), rng.normal(size=own.shape), 0.0)
    found = observed_gradients([running], [below, own], d, STEPS, slack=0.5)
    record, t_in, source = record_of(running, below, own)
    flat = {(n, t): d[0, n, k] for n in range(5) for k, t in enumerate(own[0, n])}
    seeds = np.array([flat[s.neuron, s.time] for s in record.spikes])
    given = {f: getattr(running, f) for f in (*NAMES, "tau_mem_ms", "tau_syn_ms", "tau_adapt_ms")}
    wanted = adjoint(as_graph(given), t_in, source, float(STEPS), record, LossGradient(seeds))
    assert len(record.spikes) > 5
    assert found.impossible == 0
    for name in NAMES:
        got = np.asarray(getattr(found.layers[0], name)).ravel()
        assert np.allclose(got, getattr(wanted, name), rtol=1e-11, atol=1e-12), name


@pytest.mark.parametrize("seed", range(4))
def test_at_event_times_it_is_the_engine(seed: int) -> None:
    """No rounding, no loss of anything: the same gradients through two layers."""
    rng, stack, times = np.random.default_rng(seed), layers(seed), [np.zeros((0, 0, 0))]
    times, runs = [rng.uniform(0, 25, (3, 4, 2))], []
    for p in stack:
        runs.append(run_layer(times[-1], p, 60.0))
        times.append(runs[-1].times)
    d = np.where(np.isfinite(times[-1]), rng.normal(size=times[-1].shape), 0.0)
    found = observed_gradients(stack, times, d, 60.0, slack=1e-6)
    above = layer_gradients(runs[1], d)
    below = layer_gradients(runs[0], np.where(np.isfinite(times[1]), above.times, 0.0))
    assert found.impossible == 0
    for got, wanted in zip(found.layers, (below, above), strict=True):
        for name in NAMES:
            a, b = getattr(got, name), getattr(wanted, name)
            assert np.allclose(a, b, rtol=1e-8, atol=1e-9), name


def test_an_impossible_spike_has_no_gradient() -> None:
    """One that nothing caused: zero itself, and nothing flows through it to those before."""
    p = Parameters(np.array([[8.0]]), np.array([[0.0]]))
    true = run_layer(np.zeros((1, 1, 1)), p, 60.0).times[:, :, :1]
    own = np.concatenate([true, [[[50.0]]]], axis=2)
    d = np.array([[[0.0, 1.0]]])
    found = observed_gradients([p], [np.zeros((1, 1, 1)), own], d, 60.0)
    assert found.impossible == 1
    assert not any(np.any(getattr(found.layers[0], name)) for name in ("weight", "theta", "times"))
    run, lost = observed_run(np.zeros((1, 1, 1)), own, p, 60.0, slack=0.1)
    assert lost == 1
    assert np.isnan(run.log[1]).tolist() == [False, True]
    d = np.array([[[1.0, 5.0]]])
    one = observed_gradients([p], [np.zeros((1, 1, 1)), true], d[:, :, :1], 60.0)
    both = observed_gradients([p], [np.zeros((1, 1, 1)), own], d, 60.0)
    assert both.layers[0].weight == pytest.approx(one.layers[0].weight, rel=1e-14)


def test_loss_gradient_is_autograds() -> None:
    torch = pytest.importorskip("torch")
    t = torch.tensor([[3.0, 2.5, 4.0], [1.0, np.inf, 2.0], [np.inf, 1.0, 2.0]], dtype=torch.float64)
    labels = torch.tensor([1, 0, 0])
    t.requires_grad_()
    loss = losses.ttfs_cross_entropy(t, labels, t_end_ms=60.0)
    loss.backward()
    value, d = losses.ttfs_cross_entropy_gradient(t.detach().numpy(), labels.numpy(), t_end_ms=60.0)
    assert np.allclose(value.mean(), loss.item(), rtol=1e-14)
    assert np.allclose(d / 3, t.grad.numpy(), rtol=1e-13, atol=1e-15)


def test_deployed_refuses_what_it_cannot_do() -> None:
    stack = layers(0)
    network = to_network(stack, DT)
    with pytest.raises(Invalid, match="weight"):
        Deployed(stack, network, t_end_ms=50.0, train=("tau",))
    with pytest.raises(Invalid, match=r"train, rates: .*got \['wieght'\]"):
        Deployed(stack, network, t_end_ms=50.0, rates={"wieght": 1.0})
    read = [stack[0], Parameters(np.ones((3, 6)), theta=np.inf)]
    with pytest.raises(Refused, match="read-out"):
        Deployed(read, to_network(read, DT), t_end_ms=50.0)
    with pytest.raises(Invalid, match="without gauge, or raise most_steps"):
        Deployed(stack, network, t_end_ms=50.0, most_steps=2)
    with pytest.raises(Invalid, match="one projection a layer"):
        units_of(network, stack[:1])


@pytest.mark.parametrize("name", ["weight", "delay", "theta"])
def test_updates_that_are_not_finite_change_nothing(name: str) -> None:
    stack = layers(0)
    learner = Deployed(
        stack, to_network(stack, DT), t_end_ms=50.0, train=("weight", "delay", "theta"), adam=False
    )
    _, seen = on_the_grid(stack, np.random.default_rng(0).uniform(0, 20, (1, 4, 1)))
    learner.hear(seen, 0)
    learner.sums[1][name][:] = -np.inf
    kept, states = learner.layers, learner.states
    with pytest.raises(Invalid, match=rf"layer2\.{name}: expected finite updates"):
        learner.update()
    assert learner.layers is kept
    assert learner.states is states
    with pytest.raises(Invalid, match=r"expected 0..2, got -1..-1"):
        learner.hear(seen, -1)


def test_shadows_stay_valid_and_silent_neurons_are_woken() -> None:
    stack = layers(0)
    quiet = [replace(p, weight=np.zeros_like(p.weight)) for p in stack]
    learner = Deployed(quiet, to_network(quiet, DT), t_end_ms=50.0, bump=0.25, rates={"delay": 99})
    none = [np.zeros((1, 4, 1)), np.full((1, 6, 1), np.inf), np.full((1, 3, 1), np.inf)]
    loss, first = learner.hear(none, 2)
    assert loss == pytest.approx(50.0 / 0.5)
    assert np.isinf(first).all()
    assert learner.update()
    assert np.all(learner.layers[0].weight == 0.25)
    assert learner.layers[1].weight[:, 0].tolist() == [0, 0, 0.25]
    _, seen = on_the_grid(stack, np.random.default_rng(0).uniform(0, 20, (1, 4, 1)))
    learner = Deployed(stack, to_network(stack, DT), t_end_ms=50.0, rates={"delay": 99.0})
    learner.hear(seen, 0)
    learner.update()
    delays = np.concatenate([np.ravel(p.delay) for p in learner.layers])
    assert delays.min() >= 0
    assert delays.max() <= 62 * DT

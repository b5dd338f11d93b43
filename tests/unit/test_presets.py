"""The networks of the papers are what their neurons' equations say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from grasp_plugin import build
from grasp_plugin.errors import Invalid
from grasp_plugin.learning import L1, Factors, Plan, decolle_for, etlp, etlp_for, ottt_for
from grasp_plugin.learning.etlp import heterogeneous_tau_ms
from grasp_plugin.learning.traces import Exponential, Instant
from grasp_plugin.network.network import Population
from grasp_plugin.network.presets import decolle_network, etlp_network
from grasp_plugin.neurons.adaptive import alif_init, alif_step, decolle_init, decolle_step

STEPS = 300


def test_decolle_network_is_its_neuron() -> None:
    network = decolle_network((7, 9, 5), weight_scale=4.0)
    rng = np.random.default_rng(0)
    x = (rng.random((STEPS, 7)) < 0.4) * 1.0
    with build(network, "torch") as session:
        recording = session.run(x)
    s_in, gain = x[:, None], 0.03 * 0.08
    for i, name in enumerate(("layer1", "layer2")):
        w, b = network.projections[i].weight / gain, -network[name].v_th
        state, out = decolle_init(np.zeros((1, len(b)))), np.empty((STEPS, 1, len(b)))
        for t in range(STEPS):
            out[t], state, _ = decolle_step(
                s_in[t] @ w.T, state, alpha=0.97, beta=0.92, alpha_rp=0.65, bias=b
            )
        assert np.array_equal(out[:, 0], recording.spikes[name])
        assert 0 < out.mean() < 1
        s_in = out


@pytest.mark.parametrize("recurrent", [True, False])
def test_etlp_network_is_its_neuron(recurrent: bool) -> None:
    tau = heterogeneous_tau_ms(8, seed=3)
    network = etlp_network(12, 8, 3, tau_v_ms=tau, theta=0.5, n_ref=2, recurrent=recurrent)
    weights = network.weights()
    rng = np.random.default_rng(1)
    x = (rng.random((STEPS, 12)) < 0.5) * 4.0
    with build(network, "fused") as session:
        spikes = session.run(x).spikes["hidden"]
    state, out = alif_init(np.zeros((1, 8))), np.empty((STEPS, 8))
    decay = np.exp(-1 / np.array(tau))
    for t in range(STEPS):
        a = x[t][None] @ weights["input->hidden"].T
        if recurrent:
            a = a + state["s"] @ weights["hidden->hidden"].T
        s, state, _, _ = alif_step(
            a, state, decay=decay, rho=math.exp(-0.1), theta=0.5, thr=1.0, n_ref=2
        )
        out[t] = s[0]
    assert np.array_equal(out, spikes)
    assert 0 < out.mean() < 0.4


@pytest.mark.parametrize("rule", [decolle_for, etlp_for])
def test_papers_networks_learn_the_same_everywhere(rule: object) -> None:
    pytest.importorskip("lava")
    network = (
        decolle_network((6, 8, 5), weight_scale=4.0)
        if rule is decolle_for
        else etlp_network(6, 8, 3, theta=0.3, n_ref=2, bias=True)
    )
    classes = 5 if rule is decolle_for else 3
    x = (np.random.default_rng(2).random((200, 6)) < 0.4) * 3.0
    learned = {}
    for backend in ("torch", "fused", "lava"):
        with build(network, backend, plans=rule(network, classes, 1e-3)) as session:  # type: ignore[operator]
            session.learn(x, 1)
            learned[backend] = session.weights()
    for name, value in learned["torch"].items():
        before = {b.name: b.value for b in network.biases} | network.weights()
        assert np.abs(value - before[name]).max() > 1e-6
        for backend in ("fused", "lava"):
            assert np.abs(learned[backend][name] - value).max() < 1e-12


def test_l1_pulls_at_events_only() -> None:
    plan = etlp(0.1, theta=0.0, l1=0.5)
    assert isinstance(plan, Plan)
    assert plan.transforms == (L1(0.05),)
    w, plain = np.array([[1.0, -2.0, 0.0]]), etlp(0.1, theta=0.0)
    state, bare = plan.init(w), plain.init(w)
    for signal in (0.0, 0.7):
        f = Factors(pre=np.ones((1, 3)), membrane=np.zeros((1, 1)), signal=np.full((1, 1), signal))
        delta, state = plan.update(f, state, w)
        without, bare = plain.update(f, bare, w)
        pull = delta["weight"].dense() - without["weight"].dense()
        assert np.allclose(pull, -0.05 * np.sign(w) * (signal != 0), atol=1e-15)


def test_refractory_by_membrane() -> None:
    u, state = np.array([[2.0]]), decolle_init(np.zeros((1, 1)))
    options = {"alpha": 0.0, "beta": 0.0, "alpha_rp": 0.5, "by_membrane": True}
    _, state, _ = decolle_step(np.zeros((1, 1)), state, bias=u, **options)  # U = 2, spikes
    _, state, now = decolle_step(np.zeros((1, 1)), state, bias=u, **options)
    assert now[0, 0] == 2.0 - 0.5 * 2.0


def test_bad_input() -> None:
    with pytest.raises(Invalid, match="expected inputs and layers"):
        decolle_network((3,))
    with pytest.raises(Invalid, match="time constants > 0"):
        etlp_network(2, 2, 2, tau_a_ms=0.0)


def test_official_ottt_of_a_network_has_the_authors_traces() -> None:
    """No trace in the first layer and in biases; the classifier has its input's."""
    network = etlp_network(4, 6, 3, theta=0.0, n_ref=0, recurrent=False, bias=True)
    one, zero = np.ones(3), np.zeros(3)
    readout = Population("output", (3,), "Output", None, one, one, zero, zero, zero, one, zero)
    network = replace(network, populations=(network["hidden"], readout))
    plans = ottt_for(network, 3, 0.1, official=True).plans
    keep = float(1 - network["hidden"].dv[0])
    assert plans["input->hidden"].trace == Instant()
    assert plans["hidden->output"].trace == Exponential(keep)
    assert plans["bias->output"].trace == Instant()
    exact = ottt_for(network, 3, 0.1).plans
    assert exact["input->hidden"].trace == Exponential(keep)
    assert exact["hidden->output"].trace == Instant()

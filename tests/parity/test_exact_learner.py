"""`ExactLearner` on Lava: the update is the one computed outside, RefPorts write it, it learns."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from grasp_plugin import build, quantise
from grasp_plugin.adapters.from_exact import from_grid, on_grid, to_network
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.baselines import magnitude
from grasp_plugin.learning.budget import Fixed
from grasp_plugin.learning.exact import Parameters
from grasp_plugin.learning.exact.deployed import Deployed
from grasp_plugin.learning.exact.episode import ExactGradient
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.meter import UpdateMeter
from grasp_plugin.learning.optimise import Adam
from grasp_plugin.learning.rule import Plan

pytestmark = pytest.mark.lava

DT, T_END, MOST = 0.5, 30.0, 12
RATES = {"weight": 0.03, "delay": 0.05, "theta": 0.01}
ALL = ("weight", "delay", "theta")


def stack(seed: int = 0, sizes: tuple[int, ...] = (3, 6, 2)) -> list[Parameters]:
    rng = np.random.default_rng(seed)
    return [
        Parameters(rng.normal(3.4, 0.8, (outs, ins)), rng.uniform(0, 2, (outs, ins)))
        for ins, outs in pairwise(sizes)
    ]


def latency_task(samples: int, seed: int = 1) -> tuple[Any, Any]:
    """Which of two inputs comes first; a third at 0."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, samples)
    times = np.zeros((samples, 3, 1))
    times[:, 0, 0] = np.where(labels == 0, 1, 8) + rng.uniform(0, 2, samples)
    times[:, 1, 0] = np.where(labels == 0, 8, 1) + rng.uniform(0, 2, samples)
    return times, labels


def delays(p: Parameters) -> Any:
    return np.asarray(p.delay)


def network_of(layers: list[Parameters], fixed: bool) -> Any:
    network = to_network(layers, DT)
    plastic = [k.name for k in network.projections]
    return quantise(network, plastic=plastic, growth=2) if fixed else network


def session_of(fixed: bool, **options: Any) -> Any:
    from grasp_plugin.backends.exact_lava import ExactLavaLearning

    layers = stack()
    chosen: dict[str, Any] = {"train": ALL, "rates": RATES, "batch": 4, "most_steps": MOST}
    chosen |= {"t_end_ms": T_END} | options
    return ExactLavaLearning(network_of(layers, fixed), layers, **chosen)


def spikes_of(learner: Deployed, times: Any) -> list[Any]:
    """The spikes of the shadows on the fused back end, an independent run, in steps."""
    with build(to_network(learner.layers, DT), backend="fused") as session:
        recording = session.run(on_grid(times[None], DT, int(T_END / DT)))
    return [np.ceil(times[None] / DT), *(from_grid(recording[f"layer{k}"], 1.0) for k in (1, 2))]


def test_the_update_is_the_one_computed_outside() -> None:
    """From spikes that another back end recorded, through three updates, to 1e-12."""
    times, labels = latency_task(12)
    layers = stack()
    outside = Deployed(
        layers, to_network(layers, DT), t_end_ms=T_END, train=ALL, rates=RATES, batch=4,
        most_steps=MOST,
    )  # fmt: skip
    wanted = []
    for x, y in zip(times, labels, strict=True):
        wanted.append(outside.hear(spikes_of(outside, x), int(y)))
        outside.update()
    with session_of(False) as session:
        losses, first = session.learn(times, labels)
        inside = session.parameters()
    assert np.allclose(losses, [loss for loss, _ in wanted], rtol=1e-12)
    assert np.array_equal(first, [f for _, f in wanted])
    assert outside.updates == 3
    for a, b, begun in zip(inside, outside.layers, layers, strict=True):
        for name in ALL:
            x, y = getattr(a, name), getattr(b, name)
            assert np.allclose(x, y, rtol=1e-12, atol=1e-12), name
            assert np.abs(x - getattr(begun, name)).max() > 1e-3, name


@pytest.mark.parametrize("fixed", [False, True])
def test_ref_ports_write_what_the_learner_holds(fixed: bool) -> None:
    times, labels = latency_task(5)
    with session_of(fixed) as session:
        before = [h.weight.copy() for h in session.learner.written()]
        session.learn(times[:3], labels[:3])
        for p, held in zip(session.synapses, before, strict=True):
            assert np.array_equal(session.model(p).weights, held)  # no batch is full yet
        session.learn(times[3:4], labels[3:4])
        written = session.learner.written()
        for when in ("at once", "after a run"):
            for p, n, held in zip(session.synapses, session.neurons, written, strict=True):
                model = session.model(p)
                assert np.array_equal(model.weights, held.weight), when
                assert np.array_equal(model.delays, held.delay), when
                assert np.array_equal(session.model(n).vth, held.v_th), when
            session.learn(times[4:], labels[4:])
        assert any((a != h.weight).any() for a, h in zip(before, written, strict=True))


def test_bit_accurate_synapses_take_writes_as_they_are() -> None:
    """Scaled once, in the first step; a later write is neither clipped nor made even: ours are."""
    times, labels = latency_task(2)
    with session_of(True) as session:
        model = session.model(session.synapses[0])
        assert not model.weights_set
        session.learn(times[:1], labels[:1])
        assert model.weights_set
        wild = np.full(model.weights.shape, 301, np.int32)
        model.weights = wild.copy()
        session.learn(times[1:], labels[1:])
        assert np.array_equal(model.weights, wild)  # Lava does not mend it
        loud = [p.weight * 50 for p in stack()]
        for p, weight in zip(session.learner.layers, loud, strict=True):
            p.weight[...] = weight
        for held in session.learner.written():
            assert np.abs(held.weight).max() <= 254
            assert not np.any(held.weight % 2)


@pytest.mark.parametrize("fixed", [False, True])
def test_learning_lowers_the_loss(fixed: bool) -> None:
    times, labels = latency_task(32)
    rates = {"weight": 0.1, "delay": 0.2, "theta": 0.02}
    with session_of(fixed, batch=8, rates=rates) as session:
        means, hits = [], []
        for _ in range(5):
            losses, first = session.learn(times, labels)
            means.append(losses.mean())
            hits.append((first.argmin(axis=1) == labels).mean())
    assert means[-1] < 0.5 * means[0]
    assert hits[0] < 0.7
    assert hits[-1] >= 0.9


@pytest.mark.parametrize("fixed", [False, True])
def test_grasp_writes_a_quarter_and_the_rest_keeps_every_bit(fixed: bool) -> None:
    """What a batch does not choose is on Lava what it was; the meter counts the shadows moved."""
    names = ("layer1.weight", "layer2.weight", "layer1.delay")
    plans = {
        n: Plan(ExactGradient(n.partition(".")[2]), (magnitude(0.25), Adam(0.3))) for n in names
    }
    times, labels = latency_task(24)
    with session_of(fixed, plans=plans) as session:
        meter, losses = UpdateMeter(session), []
        for k in range(0, 24, 4):
            before, read = session.parameters(), meter.read()
            held = [session.model(p).weights.copy() for p in session.synapses]
            losses.append(session.learn(times[k : k + 4], labels[k : k + 4])[0].mean())
            counts = meter.since(read)
            for layer, (a, b) in enumerate(zip(before, session.parameters(), strict=True), start=1):
                moved = a.weight != b.weight
                count = counts[f"layer{layer}.weight"]
                assert count is not None
                assert 0 < moved.sum() == count.issued <= 0.25 * moved.size + 1
                now = session.model(session.synapses[layer - 1]).weights
                assert np.array_equal(now[~moved], held[layer - 1][~moved])
                assert np.any(now != held[layer - 1])
        assert not np.array_equal(delays(session.parameters()[0]), delays(stack()[0]))
        assert np.array_equal(delays(session.parameters()[1]), delays(stack()[1]))
        assert losses[-1] < losses[0]


def test_curvature_is_refused_where_it_is_not_known() -> None:
    plans = {"layer1.weight": Plan(ExactGradient(), (GRASP(Fixed(0.1)),))}
    times, labels = latency_task(4)
    with session_of(False, plans=plans) as session:
        with pytest.raises(Exception, match="curvature"):
            session.learn(times, labels)
    with pytest.raises(Invalid, match=r"layer1\.beta"):
        session_of(False, plans={"layer1.beta": ExactGradient("beta")})


def test_only_what_is_trained_moves() -> None:
    times, labels = latency_task(4)
    with session_of(False, train=("delay",)) as session:
        weights = session.model(session.synapses[0]).weights.copy()
        session.learn(times, labels)
        assert session.learner.updates == 1
        assert np.array_equal(session.model(session.synapses[0]).weights, weights)
        assert not np.array_equal(delays(session.parameters()[0]), delays(stack()[0]))
        assert type(session.neurons[0]).__name__ == "LIF"  # stock, its threshold is not written


def test_refusals() -> None:
    from grasp_plugin.backends.exact_lava import ExactLavaLearning

    deep = stack(sizes=(3, 2, 2, 2, 2, 2))
    with pytest.raises(Refused, match="at most 4 layers"):
        ExactLavaLearning(to_network(deep, DT), deep, t_end_ms=T_END)
    with session_of(False) as session:
        with pytest.raises(Invalid, match=r"one of 0..1"):
            session.learn(*latency_task(1)[:1], np.array([2]))

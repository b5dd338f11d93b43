"""Prequential accuracy: what is tested, when, and that nothing is judged after it was learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from grasp_plugin import build
from grasp_plugin.accuracy import Curve, accuracy, predicted, prequential
from grasp_plugin.errors import Invalid
from grasp_plugin.learning import Learning, decolle_for, ottt_for
from grasp_plugin.network import Network
from grasp_plugin.network.network import Population, Projection

CLASSES, STEPS = 3, 12


def network(top: str | None = "subtract-delayed") -> Network:
    rng = np.random.default_rng(0)

    def population(name: str, size: int, reset: str | None) -> Population:
        one = np.ones(size)
        node = "LIF" if reset else "LI"
        return Population(name, (size,), node, reset, one, 0.1 * one, one, 0 * one, 0 * one, one,
                          0 * one)  # fmt: skip

    return Network(
        (population("h", 20, "subtract-delayed"), population("o", CLASSES, top)),
        (Projection("in->h", "in", "h", rng.normal(size=(20, 9)) * 0.6),
         Projection("h->o", "h", "o", rng.normal(size=(CLASSES, 20)) * 0.3)),
        (), {"in": (3, 3)}, {"out": "o"}, 1e-3,
    )  # fmt: skip


def samples(count: int, seed: int = 0) -> tuple[Any, Any]:
    """Class c spikes mostly in row c."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    rates = np.where(np.arange(3)[None, :] == labels[:, None], 0.6, 0.05)
    return (rng.random((STEPS, count, 3, 3)) < rates[None, :, :, None]).astype(float), labels


def learning(kind: str) -> tuple[Network, Learning]:
    net = network(None if kind == "membrane" else "subtract-delayed")
    if kind == "random readout":
        return net, decolle_for(net, CLASSES, 0.1, amplitude=1.0)
    return net, ottt_for(net, CLASSES, 3e-3)


@pytest.mark.parametrize("kind", ["spikes", "membrane", "random readout"])
def test_predicted_is_what_learning_would_read(kind: str) -> None:
    """With a mask of zeros nothing is learned, and the logits are those of a run."""
    net, rules = learning(kind)
    spikes, labels = samples(30)
    with build(net, backend="fused", plans=rules) as session:
        record = session.learn(spikes, labels, mask=np.zeros(STEPS))
        said = predicted(net, rules, session.run(spikes))
        one = predicted(net, rules, session.run(spikes[:, 0]))
    assert np.array_equal(record.predicted, said)
    assert one == said[0]
    assert kind == "random readout" or len(np.unique(said)) > 1


def test_each_block_is_tested_before_it_is_learned() -> None:
    net, rules = learning("membrane")
    spikes, labels = samples(50)
    with build(net, backend="fused", plans=rules) as session:
        curves = list(prequential(session, spikes, labels, Curve("a"), block=20))
    expected, at = [], 0
    with build(net, backend="fused", plans=rules) as session:
        for first in (0, 20, 40):
            part = slice(first, first + 20)
            expected.append(accuracy(session, spikes[:, part], labels[part]))
            session.learn(spikes[:, part], labels[part])
            at += 1
    assert curves[-1].accuracy == tuple(expected)
    assert curves[-1].samples == (0, 20, 40)
    assert curves[-1].sizes == (20, 20, 10)
    assert [c.learned for c in curves] == [20, 40, 50]


def test_it_learns_and_held_out_samples_are_never_learned_from() -> None:
    net, rules = learning("membrane")
    held = samples(60, seed=1)
    runs = []
    for given in (held, None):
        with build(net, backend="fused", plans=rules) as session:
            *_, curve = prequential(session, *samples(120), Curve("a"), held_out=given, every=2)
            runs.append((curve, session.weights()))
    curve = runs[0][0]
    assert curve.held_samples == (0, 40, 80, 120)
    assert curve.held_out[-1] > 0.8 > curve.held_out[0]
    assert curve.mean(40) > curve.accuracy[0]
    assert all(np.array_equal(runs[0][1][n], w) for n, w in runs[1][1].items())


def test_without_learning_nothing_changes() -> None:
    net, rules = learning("spikes")
    with build(net, backend="fused", plans=rules) as session:
        before = session.weights()
        *_, curve = prequential(session, *samples(40), Curve("a"), learn=False)
        assert all(np.array_equal(before[n], w) for n, w in session.weights().items())
        assert session.steps == 0
    assert curve.learned == 40


def test_torch_learns_as_the_others_do() -> None:
    net, rules = learning("membrane")
    found = []
    for backend in ("torch", "fused"):
        with build(net, backend=backend, plans=rules) as session:
            *_, curve = prequential(session, *samples(30), Curve("a"), block=10)
            found.append((curve.accuracy, session.weights()))
    assert found[0][0] == found[1][0]
    for name, weight in found[0][1].items():
        assert np.allclose(weight, found[1][1][name], atol=1e-10)


def test_mean_takes_whole_blocks_from_the_end() -> None:
    curve = Curve("a").tested(0.0, 20).tested(0.5, 20).tested(1.0, 10)
    assert curve.mean(10) == 1.0
    assert curve.mean(11) == pytest.approx(20 / 30)
    assert curve.mean(1000) == pytest.approx(20 / 50)
    assert np.isnan(Curve("b").mean(10))


def test_wrong_arguments_are_named() -> None:
    net, rules = learning("spikes")
    spikes, labels = samples(6)
    with build(net, backend="fused", plans=rules) as session:
        for bad in ((spikes, labels[:5]), (spikes[:, :0], labels[:0])):
            with pytest.raises(Invalid):
                next(prequential(session, *bad, Curve("a")))
        with pytest.raises(Invalid, match="block"):
            next(prequential(session, spikes, labels, Curve("a"), block=0))

"""Closing a learning session, saving and resuming it, and writing what it learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plastic_cases as cases
import pytest

from grasp_plugin import build, dequantise, discretise, quantise, to_nir
from grasp_plugin.adapters.nir_file import read_nir, write_nir
from grasp_plugin.errors import Invalid, RunFailed
from grasp_plugin.learning import GRASP, decolle_for, etlp_for, ottt_for, scheduled
from grasp_plugin.learning.budget import Fixed

OUT = cases.OUT
BACKENDS = ("torch", "fused", pytest.param("lava", marks=pytest.mark.lava))
NET = cases.two_layers(np.random.default_rng(0))
INTEGERS = quantise(NET, plastic=["in->h", "h->o", "bh", "bo"])
SPIKES = (np.random.default_rng(1).random((20, cases.IN)) < 0.4).astype(float)


def made(backend: str = "fused", net: Any = NET, learning: Any = None) -> Any:
    return build(net, backend, plans=learning or decolle_for(NET, 3, 0.05))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_session_says_so(backend: str, tmp_path: Path) -> None:
    session = made(backend)
    session.close()
    session.close()
    for use in (
        lambda: session.learn(SPIKES, 1), lambda: session.run(SPIKES),
        lambda: session.save(tmp_path / "a"), lambda: session.load(tmp_path / "a"),
    ):  # fmt: skip
        with pytest.raises(RunFailed, match="expected an open session"):
            use()


KINDS = [("torch", "float"), ("fused", "float"), ("fused", "loihi"),
         pytest.param("lava", "float", marks=pytest.mark.lava),
         pytest.param("lava", "loihi", marks=pytest.mark.lava)]  # fmt: skip
RECIPES: dict[str, Any] = {
    "decolle with dropout": lambda: decolle_for(NET, 3, 0.2, dropout=0.3),
    "etlp": lambda: etlp_for(NET, OUT, 0.05, probability=0.4),
    "ottt": lambda: ottt_for(NET, OUT, 0.02, pipelined=True),
}


@pytest.mark.parametrize(("backend", "precision"), KINDS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_session_learns_the_same_bits(
    recipe: str, backend: str, precision: str, tmp_path: Path
) -> None:
    """save, load into a new session, go on: as if nothing had been in between."""
    net, learning = (NET if precision == "float" else INTEGERS), RECIPES[recipe]()
    more = SPIKES[::-1].copy()
    with made(backend, net, learning) as session:
        session.learn(SPIKES, 1)
        session.save(tmp_path / "kept")
        session.learn(more, 2)
        session.learn(SPIKES, 0)
        want, steps = session.weights(), session.steps
    with made(backend, net, learning) as session:
        session.learn(more[:7], 0)  # to be forgotten
        session.load(tmp_path / "kept")
        assert session.steps == 20
        session.learn(more, 2)
        session.learn(SPIKES, 0)
        assert cases.gap([session.weights()], [want]) == 0
        assert session.steps == steps
    with made(backend, net, learning) as session:  # and it does depend on what was saved
        session.learn(more, 2)
        session.learn(SPIKES, 0)
        assert cases.gap([session.weights()], [want]) > 0


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    with made() as session:
        session.learn(SPIKES, 1)
        session.save(path)
    small = cases.network(
        [cases.population("h", 1), cases.population("o", 1)],
        [cases.dense(np.random.default_rng(0), "in->h", (1, 9)),
         cases.dense(np.random.default_rng(0), "h->o", (1, 1))],
        [replace(b, value=b.value[:1]) for b in NET.biases],
    )  # fmt: skip
    others = {
        "plan": made(learning=decolle_for(NET, 3, 0.06)),
        "signal": made(learning=decolle_for(NET, 3, 0.05, seed=1)),
        "back end": made("torch"),
        "precision": made(net=INTEGERS),
        "network": made(net=small, learning=decolle_for(small, 3, 0.05)),
    }
    for name, session in others.items():
        before = session.weights()
        with session, pytest.raises(Invalid, match="expected a checkpoint of"):
            session.load(path)
        assert cases.gap([session.weights()], [before]) == 0, name
    with made() as session:
        with pytest.raises(Invalid, match="expected a checkpoint file"):
            session.load(tmp_path / "none")
        path.write_bytes(b"nonsense")
        with pytest.raises(Invalid, match="expected a checkpoint"):
            session.load(path)


@pytest.mark.parametrize(("backend", "precision"), KINDS)
def test_what_was_learned_is_written_and_read_back(
    backend: str, precision: str, tmp_path: Path
) -> None:
    """learned() -> to_nir -> file -> discretise: the same weights and biases, and the same run."""
    net = NET if precision == "float" else INTEGERS
    with made(backend, net, decolle_for(NET, 3, 0.2)) as session:
        session.learn(SPIKES, 1)
        learned = session.learned()
        assert cases.gap([session.weights()], [learned.weights() | _biases(learned)]) == 0
    assert max(cases.moved(net, learned.weights()).values()) > 1e-3
    if precision == "loihi":
        learned = dequantise(learned)
    write_nir(to_nir(learned), tmp_path / "net.nir")
    again = discretise(read_nir(tmp_path / "net.nir"))
    pairs = {k.target: k for k in again.projections}
    for k in learned.projections:
        assert np.allclose(pairs[k.target].weight, k.weight, atol=1e-12, rtol=1e-12)
    want = {b.target: (b.value, b.onset_steps) for b in learned.biases}
    for b in again.biases:
        assert np.allclose(b.value, want[b.target][0], atol=1e-12, rtol=1e-12)
        assert b.onset_steps == want[b.target][1]
    with build(learned, "fused") as one, build(again, "fused") as two:
        assert np.array_equal(one.run(SPIKES)["out"], two.run(SPIKES)["out"])


def _biases(net: Any) -> dict[str, Any]:
    return {b.name: b.value for b in net.biases}


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_lasts_lasts_over_sequences_of_other_lengths(backend: str) -> None:
    """A share of less than one write a step: what is owed at the end of a sequence is not lost."""
    learning = scheduled(decolle_for(NET, 3, 0.1), GRASP(Fixed(0.0008), "magnitude"))
    for lengths, writes in (((12, 9), True), ((12,), False), ((9,), False)):
        with made(backend, learning=learning) as session:
            for steps in lengths:
                session.learn(SPIKES[:steps], 1)
            changed = session.weights()["in->h"] != NET.weights()["in->h"]
            owed = 0.0008 * changed.size * sum(lengths)
            assert (owed >= 1) is writes
            assert changed.any() == writes

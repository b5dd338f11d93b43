"""Sessions: what they take, what they refuse, and that they end."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import pytest

from grasp_plugin import Discretisation, build, discretise, quantise
from grasp_plugin.errors import Invalid, MissingChoice, Refused, RunFailed

BACKENDS = ["torch", pytest.param("lava", marks=pytest.mark.lava)]


def network_of(inputs: int = 1) -> Any:
    nodes: dict[str, Any] = {f"i{k}": nir.Input(np.array([2, 3])) for k in range(inputs)}
    nodes |= {"f": nir.Flatten(np.array([2, 3]), 0, -1),
              "w": nir.Linear(np.random.default_rng(0).normal(size=(4, 6)) + 0.5),
              "n": nir.LIF(np.full(4, 0.01), np.full(4, 10.0), np.zeros(4), np.ones(4),
                           np.full(4, -0.5)),
              "o": nir.Output(np.array([4]))}  # fmt: skip
    edges = [(f"i{k}", "f") for k in range(inputs)] + [("f", "w"), ("w", "n"), ("n", "o")]
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    return discretise(graph, Discretisation(dt_s=1e-3, reset="value"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_axes(backend: str) -> None:
    with build(network_of(), backend=backend) as session:
        alone = session.run(np.ones((5, 2, 3)))
        assert alone["o"].shape == (5, 4)
        batch = session.run(np.ones((5, 7, 2, 3)))
        assert batch["o"].shape == (5, 7, 4)
        assert np.array_equal(batch["o"][:, 3], alone["o"])
        assert session.state()["n"]["v"].shape == (7, 4)
        assert set(session.weights()) == {"i0->n"}
        assert "n (5, 7, 4)" in repr(batch)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("spikes", "says"),
    [
        (np.ones((5, 3, 2)), "time comes first"),
        (np.ones((3,)), "time"),
        (np.full((5, 2, 3), np.nan), "NaN"),
        (np.array([["a"]]), "time|numbers"),
        (np.ones((0, 2, 3)), "at least one step"),
        ({"wrong": np.ones((5, 2, 3))}, "i0"),
    ],
)
def test_bad_input_is_named(backend: str, spikes: Any, says: str) -> None:
    with build(network_of(), backend=backend) as session, pytest.raises(Invalid, match=says):
        session.run(spikes)


def test_several_inputs() -> None:
    with build(network_of(2), backend="torch") as session:
        session.run({"i0": np.ones((5, 2, 3)), "i1": np.zeros((5, 2, 3))})
        with pytest.raises(Invalid, match="mapping"):
            session.run(np.ones((5, 2, 3)))
        with pytest.raises(Invalid, match="one time and batch"):
            session.run({"i0": np.ones((5, 2, 3)), "i1": np.zeros((6, 2, 3))})


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_start_from_rest_and_end_with_the_session(backend: str) -> None:
    spikes = (np.random.default_rng(1).random((30, 2, 3)) < 0.5).astype(float)
    session = build(network_of(), backend=backend)
    with session:
        rest = session.state()["n"]["v"]
        assert np.allclose(rest, 0.0)  # v_leak, not v_reset
        first, second = session.run(spikes), session.run(spikes)
        assert np.array_equal(first["n"], second["n"])
        shorter = session.run(spikes[:7])
        assert np.array_equal(shorter["n"], first["n"][:7])
        with pytest.raises(Invalid, match="records among"):
            session.run(spikes, record=("colour",))
    session.close()
    with pytest.raises(RunFailed, match="closed"):
        session.run(spikes)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(Refused, match="torch, lava"):
        build(network_of(), backend="fpga")


@pytest.mark.lava
def test_fractions_are_refused_on_integers() -> None:
    with build(quantise(network_of()), backend="lava") as session:
        session.run(np.full((5, 2, 3), 2.0))
        with pytest.raises(Refused, match=r"0\.5"):
            session.run(np.full((5, 2, 3), 0.5))


@pytest.mark.lava
def test_loops_faster_than_lava_are_refused_at_build() -> None:
    eye = np.eye(2)
    nodes = {
        "i": nir.Input(np.array([2])),
        "n": nir.IF(*np.ones((2, 2))),
        "a": nir.Linear(eye),
        "m": nir.IF(*np.ones((2, 2))),
        "b": nir.Linear(eye),
        "o": nir.Output(np.array([2])),
    }
    edges = [tuple(e.split(">")) for e in "i>n n>a a>m m>b b>n m>o".split()]
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    fast = discretise(graph, Discretisation(reset="value", loop=(("m", "n"),)))
    with build(fast, backend="torch") as session:
        session.run(np.ones((3, 2)))
    with pytest.raises(Refused, match="loop='each'"):
        build(fast, backend="lava")


def test_errors_survive_pickling() -> None:
    import pickle

    for error in (Invalid("n", "a", "b"), MissingChoice("n", "reset", {"value": "x"})):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.node) == (type(error), str(error), error.node)


@pytest.mark.lava
def test_root_logger_is_left_alone() -> None:
    import logging

    before = list(logging.getLogger().handlers)
    with build(network_of(), backend="lava") as session:
        session.run(np.ones((5, 2, 3)))
    assert logging.getLogger().handlers == before

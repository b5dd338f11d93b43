"""Network -> NIR -> Network: the same spikes, weights and choices, for every kind of node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from grasp_plugin import Discretisation, build, discretise, to_nir
from grasp_plugin.adapters.nir_file import read_nir, write_nir
from grasp_plugin.network.hints import RESETS, read_hints

DT = 1e-3


def graph(make: Any, rng: np.random.Generator, kind: str) -> nir.NIRGraph:
    shape = np.array([3, 4, 4])
    change = {"v_leak": 0.2, "v_reset": -0.1} if kind in ("LIF", "CubaLIF") else {}
    nodes = {
        "i": nir.Input(np.array([1, 6, 6])),
        "c": nir.Conv2d(None, rng.normal(size=(3, 1, 3, 3)) + 0.4, 1, 0, 1, 1, rng.normal(size=3)),
        "n": make("LIF", tuple(shape)),
        "p": nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "f": nir.Flatten(np.array([3, 2, 2]), 0, -1),
        "z": nir.Delay(rng.integers(0, 3, 12) * DT),
        "a": nir.Affine(rng.normal(size=(7, 12)) + 0.2, rng.normal(size=7)),
        "m": make(kind, (7,), **change),
        "w": nir.Affine(rng.normal(size=(7, 7)), rng.normal(size=7) * 0.1),
        "y": nir.Delay(np.full(7, 2 * DT)),
        "b": nir.Affine(rng.normal(size=(4, 7)), rng.normal(size=4)),
        "x": nir.Delay(np.full(4, DT)),
        "k": make("LI", (4,)),
        "o": nir.Output(np.array([7])),
        "q": nir.Output(np.array([4])),
    }
    edges = "i>c c>n n>p p>f f>z z>a a>m m>y y>w w>m m>b b>x x>k m>o k>q".split()
    return nir.NIRGraph(nodes, [tuple(e.split(">")) for e in edges], type_check=False)


@pytest.mark.parametrize("kind", ["LIF", "CubaLIF", "IF", "LI", "CubaLI", "I", "Threshold"])
def test_round_trip(kind: str, make_neuron: Any, rng: Any, tmp_path: Path) -> None:
    network = discretise(graph(make_neuron, rng, kind), Discretisation(dt_s=DT, reset="value"))
    write_nir(to_nir(network, {"rule": "none"}), tmp_path / "x.nir")
    read = read_nir(tmp_path / "x.nir")
    assert read_hints(read)["rule"] == "none"
    again = discretise(read)
    assert again.dt_s == network.dt_s
    assert {p.name: p.reset for p in again.populations} == {
        p.name: p.reset for p in network.populations
    }
    spikes = (rng.random((80, 2, 1, 6, 6)) < 0.4).astype(float)
    with build(network, backend="torch") as a, build(again, backend="torch") as b:
        first, second = a.run(spikes), b.run(spikes)
    for p in network.populations:
        x, y = first.spikes[p.name], second.spikes[p.name].reshape(first.spikes[p.name].shape)
        assert np.array_equal(x, y) if p.spiking else np.allclose(x, y, rtol=1e-9, atol=1e-9)
        assert x.any()


@pytest.mark.parametrize("reset", RESETS)
def test_resets_travel(reset: str, make_neuron: Any, rng: Any) -> None:
    network = discretise(graph(make_neuron, rng, "IF"), Discretisation(dt_s=DT, reset=reset))
    assert {p.reset for p in discretise(to_nir(network)).populations if p.spiking} == {reset}


def test_changed_weights_arrive(make_neuron: Any, rng: Any) -> None:
    network = discretise(graph(make_neuron, rng, "LIF"), Discretisation(dt_s=DT, reset="value"))
    name = next(k.name for k in network.projections if k.target == "m" and k.source == "m")
    learned = network.with_weights({name: network.weights()[name] + 0.125})
    again = discretise(to_nir(learned))
    found = next(k for k in again.projections if k.target == "m" and k.source == "m")
    assert np.allclose(found.weight, learned.weights()[name], rtol=1e-12)


def test_loops_travel(make_neuron: Any, rng: Any) -> None:
    nodes = {"i": nir.Input(np.array([5])), "n": make_neuron("LIF", (5,)),
             "a": nir.Linear(np.eye(5)),
             "m": make_neuron("LIF", (5,)), "b": nir.Linear(np.eye(5) * 2),
             "o": nir.Output(np.array([5]))}  # fmt: skip
    edges = [tuple(e.split(">")) for e in "i>n n>a a>m m>b b>n m>o".split()]
    loop = nir.NIRGraph(nodes, edges, type_check=False)
    for choice in ("each", (("m", "n"),)):
        network = discretise(loop, Discretisation(dt_s=DT, reset="value", loop=choice))
        again = discretise(to_nir(network))
        assert {k.name: k.delay_steps for k in again.projections} == {
            k.name: k.delay_steps for k in network.projections
        }


def test_shapes_and_convolutions_are_kept_where_they_can_be(make_neuron: Any, rng: Any) -> None:
    """A gain that differs within a channel turns the convolution into a matrix; else it stays."""
    source = graph(make_neuron, rng, "LIF")
    policy = Discretisation(dt_s=DT, reset="value")
    unrolled = to_nir(discretise(source, policy))
    assert isinstance(unrolled.nodes["c"], nir.Affine)
    source.nodes["n"] = make_neuron("LIF", (3, 4, 4), tau=0.01, r=5.0)
    written = to_nir(discretise(source, policy))
    assert isinstance(written.nodes["c"], nir.Conv2d)
    assert written.nodes["n"].tau.shape == (3, 4, 4)
    assert np.allclose(written.nodes["c"].weight, source.nodes["c"].weight, rtol=1e-12)
    assert np.allclose(written.nodes["n"].tau, 0.01, rtol=1e-12)

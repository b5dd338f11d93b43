"""What `to_nir` writes can be read, and runs spike for spike: shapes, biases, gains, loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from grasp_plugin import Discretisation, build, dequantise, discretise, quantise, to_nir
from grasp_plugin.adapters.nir_file import read_nir, write_nir
from grasp_plugin.errors import Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.graph import conv_of, pool_of
from grasp_plugin.network.network import Network, Projection

DT = 1e-3
VALUE = Discretisation(dt_s=DT, reset="value")
Shape = tuple[int, ...]


def drawn(rng: np.random.Generator, size: Shape, low: float, high: float) -> Any:
    """One value for all, one a channel or, rarely, one a neuron; always as a full array."""
    channels = (size[0], *(1,) * (len(size) - 1))
    shape = [(1,) * len(size), channels, size][rng.choice(3, p=[0.5, 0.45, 0.05])]
    return np.broadcast_to(rng.uniform(low, high, shape), size).copy()


def spiking(rng: np.random.Generator, shape: Shape) -> Any:
    zero, v_th = np.zeros(shape), drawn(rng, shape, 0.3, 0.6)
    if rng.random() < 0.3:
        return nir.IF(drawn(rng, shape, 0.5, 1.0), v_th, zero)
    return nir.LIF(drawn(rng, shape, 3e-3, 2e-2), drawn(rng, shape, 4.0, 8.0), zero, v_th, zero)


def convolution(rng: np.random.Generator, shape: Shape) -> nir.Conv2d:
    out, size = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    padding = rng.choice(["same", "valid", "number"])
    stride = 1 if padding == "same" else int(rng.integers(1, 3))
    weight = rng.normal(size=(out, shape[0], size, size)) / size + 0.3
    bias = rng.normal(size=out) * 0.1 * rng.integers(2)
    return nir.Conv2d(None, weight, stride, 1 if padding == "number" else str(padding), 1, 1, bias)


def linear_step(rng: np.random.Generator, shape: Shape) -> tuple[Any, Shape] | None:
    """A node without neurons that fits behind `shape`, and the shape behind it."""
    small = min(shape[1:]) < 3
    kind = rng.choice(["conv"] * 5 + ["pool", "pool", "delay", "scale", "flatten"])
    if kind == "delay":
        steps = rng.integers(0, 3, shape) if rng.random() < 0.3 else np.full(shape, 2)
        return nir.Delay(steps * DT), shape
    if kind == "scale":
        return nir.Scale(drawn(rng, shape, 0.7, 1.3)), shape
    if kind == "flatten" and rng.random() < 0.2:
        return nir.Flatten({"input": np.array(shape)}, 0, -1), (int(np.prod(shape)),)
    if small:
        return None
    two = np.array([2, 2])
    if kind == "pool":
        pool = nir.AvgPool2d(two, two, two * 0)
        return pool, pool_of("x", pool, shape).out_shape
    node = convolution(rng, shape)
    return node, conv_of("x", node, shape).out_shape


def random_graph(seed: int) -> nir.NIRGraph:
    """Two to five populations behind convolutions, pools, delays, ...; some with skip edges."""
    rng = np.random.default_rng(seed)
    shape: Shape = (int(rng.integers(1, 3)), 6, 8)
    nodes: dict[str, Any] = {"i": nir.Input(np.array(shape))}
    edges, at, same = [], "i", {}
    for layer in range(rng.integers(2, 6)):
        for _ in range(rng.choice([1, 1, 2, 3])):
            step = linear_step(rng, shape) if len(shape) == 3 else None
            if step is not None:
                name, (node, shape) = f"x{len(nodes)}", step
                nodes[name] = node
                edges.append((at, name))
                at = name
        name = f"n{layer}"
        nodes[name] = spiking(rng, shape)
        edges.append((at, name))
        if shape in same and rng.random() < 0.5:
            edges.append((same[shape], name))
        if rng.random() < 0.2:
            edges.append((name, name))
        at = same[shape] = name
    nodes["o"] = nir.Output(np.array(shape))
    return nir.NIRGraph(nodes, list(dict.fromkeys([*edges, (at, "o")])), type_check=False)


def spikes_of(network: Network, x: Any) -> dict[str, Any]:
    with build(network, "torch") as session:
        found = session.run(x).spikes
    return {name: value.reshape(*value.shape[:2], -1) for name, value in found.items()}


def same_spikes(network: Network, again: Network, seed: int = 0) -> None:
    shape = next(iter(network.inputs.values()))
    x = (np.random.default_rng(seed).random((40, 2, *shape)) < 0.4).astype(float)
    first, second = spikes_of(network, x), spikes_of(again, x)
    for p in network.populations:
        assert np.array_equal(first[p.name], second[p.name]), p.name
    assert any(first[p.name].any() for p in network.populations)


@pytest.mark.parametrize("seed", range(40))
def test_convolutions_and_pools_come_back(seed: int, tmp_path: Path) -> None:
    network = discretise(random_graph(seed), VALUE)
    write_nir(to_nir(network), tmp_path / "x.nir")
    same_spikes(network, discretise(read_nir(tmp_path / "x.nir")), seed)


def line(**nodes: Any) -> nir.NIRGraph:
    names = list(nodes)
    return nir.NIRGraph(nodes, list(pairwise(names)), type_check=False)


def lif(*shape: int, **change: Any) -> nir.LIF:
    fields = {"tau": 5e-3, "r": 5.0, "v_leak": 0.0, "v_threshold": 0.3, "v_reset": 0.0} | change
    return nir.LIF(**{k: np.broadcast_to(v, shape).copy() for k, v in fields.items()})


def conv(rng: Any, out: int, into: int, bias: Any = None, padding: Any = 1) -> nir.Conv2d:
    size = 2 if padding == "same" else 3
    bias = np.zeros(out) if bias is None else bias
    return nir.Conv2d(None, rng.normal(size=(out, into, size, size)), 1, padding, 1, 1, bias)


def pool() -> nir.AvgPool2d:
    return nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))


BEHIND: dict[str, Callable[[Any], dict[str, Any]]] = {
    "pool": lambda rng: {"p": pool(), "c": conv(rng, 3, 2), "m": lif(3, 2, 2)},
    "two convolutions": lambda rng: {"c": conv(rng, 3, 2), "d": conv(rng, 3, 3),
                                     "m": lif(3, 4, 4)},
    "one-sided padding": lambda rng: {"c": conv(rng, 3, 2, padding="same"), "m": lif(3, 4, 4)},
    "scale": lambda rng: {"s": nir.Scale(rng.uniform(1, 2, (2, 4, 4))), "c": conv(rng, 3, 2),
                          "m": lif(3, 4, 4)},
}  # fmt: skip


@pytest.mark.parametrize("kind", BEHIND)
def test_a_convolution_behind_flat_neurons_is_written_as_a_matrix(kind: str, rng: Any) -> None:
    """And one before them stays a convolution."""
    middle = BEHIND[kind](rng)
    shape = middle["m"].tau.shape
    behind = (2, *shape[1:])
    graph = line(i=nir.Input(np.array([1, 4, 4])), b=conv(rng, 2, 1), n=lif(2, 4, 4), **middle,
                 e=conv(rng, 2, 3), k=lif(*behind), o=nir.Output(np.array(behind)))  # fmt: skip
    network = discretise(graph, VALUE)
    written = to_nir(network)
    assert isinstance(written.nodes["b"], nir.Conv2d)
    assert isinstance(written.nodes["e"], nir.Linear)
    assert written.nodes["k"].tau.shape == (network["k"].size,)
    assert written.nodes["o"].output_type["output"].tolist() == [network["k"].size]
    same_spikes(network, discretise(written))


def test_a_graph_that_could_not_be_read_back_is_refused(rng: Any) -> None:
    graph = line(i=nir.Input(np.array([2])), w=nir.Linear(np.ones((2, 2))), n=lif(2),
                 o=nir.Output(np.array([2])))  # fmt: skip
    network = discretise(graph, VALUE)
    p = network.populations[0]
    endless = replace(p, gain=np.full(2, 1e100), dv=np.full(2, 1e-250))  # r = 1e350
    with (
        np.errstate(over="ignore"),
        pytest.raises(Refused, match=r"n'?: .*cannot be read back.*finite"),
    ):
        to_nir(replace(network, populations=(endless,)))


DELAYED: dict[str, Callable[[nir.Conv2d, nir.Delay, nir.Delay], dict[str, Any]]] = {
    "before": lambda c, early, late: {"d": early, "c": c},
    "behind": lambda c, early, late: {"c": c, "d": late},
    "both": lambda c, early, late: {"d": early, "c": c, "e": late},
}


@pytest.mark.parametrize("where", DELAYED)
def test_a_convolution_with_bias_and_delay_is_written(where: str, rng: Any) -> None:
    early, late = nir.Delay(np.full((1, 4, 4), 2 * DT)), nir.Delay(np.full((2, 4, 4), 3 * DT))
    layer = DELAYED[where](conv(rng, 2, 1, np.array([0.3, -0.2])), early, late)
    graph = line(i=nir.Input(np.array([1, 4, 4])), **layer, n=lif(2, 4, 4),
                 o=nir.Output(np.array([2, 4, 4])))  # fmt: skip
    network = discretise(graph, VALUE)
    written = to_nir(network)
    assert any(isinstance(n, nir.Conv2d) for n in written.nodes.values()) == (where != "both")
    again = discretise(written)
    assert [(b.onset_steps, b.target) for b in again.biases] == [
        (b.onset_steps, b.target) for b in network.biases
    ]
    same_spikes(network, again)


def test_a_bias_that_no_weight_holds_makes_the_population_flat(rng: Any) -> None:
    """A bias a neuron beside a convolution, at a step that is no delay of it."""
    graph = line(i=nir.Input(np.array([1, 4, 4])), c=conv(rng, 2, 1), n=lif(2, 4, 4),
                 o=nir.Output(np.array([2, 4, 4])))  # fmt: skip
    graph.nodes |= {
        "f": nir.Flatten({"input": np.array([1, 4, 4])}, 0, -1),
        "a": nir.Affine(np.zeros((32, 16)), rng.normal(size=32)),
        "d": nir.Delay(np.full(32, 4 * DT)),
        "m": lif(32),
    }
    graph.nodes["c"].bias = np.array([0.1, 0.2])
    graph.edges += [("i", "f"), ("f", "a"), ("a", "d"), ("d", "m"), ("m", "p")]
    graph.nodes["p"] = nir.Output(np.array([32]))
    network = discretise(graph, VALUE)
    moved = tuple(replace(b, target="n") if b.target == "m" else b for b in network.biases)
    network = replace(network, biases=moved)
    again = discretise(to_nir(network))
    assert again["n"].shape == (32,)
    same_spikes(network, again)


@pytest.mark.parametrize(
    "change", [{"r": [0.0, 5.0]}, {"tau": [np.inf, 5e-3]}, {"r": [1e-320, 5.0]}], ids=str
)
@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_a_neuron_without_gain_is_written(change: dict[str, Any], leak: float, rng: Any) -> None:
    graph = line(i=nir.Input(np.array([3])), w=nir.Affine(rng.normal(size=(2, 3)), np.ones(2)),
                 n=lif(2, v_leak=leak, **change), o=nir.Output(np.array([2])))  # fmt: skip
    network = discretise(graph, VALUE)
    written = to_nir(network)
    again = discretise(written)
    assert np.allclose(again["n"].v_init, network["n"].v_init, rtol=1e-12)
    assert np.allclose(again.projections[0].weight, network.projections[0].weight, rtol=1e-12)
    same_spikes(network, again)


def test_what_a_neuron_without_gain_learned_is_written(rng: Any) -> None:
    graph = line(i=nir.Input(np.array([3])), w=nir.Linear(rng.normal(size=(2, 3))),
                 n=lif(2, r=[0.0, 5.0]), o=nir.Output(np.array([2])))  # fmt: skip
    network = discretise(graph, VALUE).with_weights({"i->n": rng.uniform(0.1, 0.3, (2, 3))})
    again = discretise(to_nir(network))
    assert np.allclose(again.projections[0].weight, network.projections[0].weight, rtol=1e-12)
    same_spikes(network, again)


def test_a_drive_without_leak_is_refused(rng: Any) -> None:
    """What `dequantise` makes of a membrane that leaks less than a register can say."""
    graph = line(i=nir.Input(np.array([3])), w=nir.Linear(rng.normal(size=(2, 3))),
                 n=lif(2, tau=10.0, r=1e4, v_leak=0.2), o=nir.Output(np.array([2])))  # fmt: skip
    network = discretise(graph, VALUE)
    assert np.array_equal(discretise(to_nir(network))["n"].v_init, network["n"].v_init)
    with pytest.raises(Refused, match=r"^n: expected no drive"):
        to_nir(dequantise(quantise(network)))


def test_a_loop_with_and_without_its_step_between_two_populations(rng: Any) -> None:
    """The loop hint names a pair of populations: it holds for all projections between them."""
    graph = line(i=nir.Input(np.array([3])), n=lif(3), a=nir.Linear(rng.normal(size=(3, 3))),
                 m=lif(3), o=nir.Output(np.array([3])))  # fmt: skip
    graph.nodes |= {"d": nir.Delay(np.full(3, 3 * DT)), "b": nir.Linear(rng.normal(size=(3, 3))),
                    "c": nir.Linear(rng.normal(size=(3, 3)))}  # fmt: skip
    graph.edges += [("n", "d"), ("d", "b"), ("b", "m"), ("m", "c"), ("c", "n")]
    network = discretise(graph, replace(VALUE, loop=(("m", "n"),)))
    found = {k.name: k.delay_steps for k in network.projections}
    again = discretise(to_nir(network))
    assert sorted(found.values()) == [0, 0, 1, 3]
    assert {k.name: k.delay_steps for k in again.projections} == found
    same_spikes(network, again)


def test_flat_and_shaped_populations_of_one_size_need_no_matrix() -> None:
    shape = np.array([2, 3, 4])
    graph = line(i=nir.Input(shape), n=lif(2, 3, 4, r=5.0), f=nir.Flatten({"input": shape}, 0, -1),
                 m=lif(24, r=5.0), o=nir.Output(np.array([24])))  # fmt: skip
    network = discretise(graph, VALUE)
    written = to_nir(network)
    assert not any(isinstance(node, nir.Linear) for node in written.nodes.values())
    same_spikes(network, discretise(written))


def test_a_convolution_with_a_gain_that_differs_within_a_channel(rng: Any) -> None:
    """A network made by hand: the gain is undone in the weights, which makes them a matrix."""
    graph = line(i=nir.Input(np.array([1, 4, 4])), c=conv(rng, 2, 1), n=lif(2, 4, 4),
                 d=conv(rng, 2, 2), m=lif(2, 4, 4), o=nir.Output(np.array([2, 4, 4])))  # fmt: skip
    network = discretise(graph, VALUE)
    p = network["n"]
    made = replace(p, gain=rng.uniform(0.5, 2.0, p.size))
    others = tuple(made if q.name == "n" else q for q in network.populations)
    network = replace(network, populations=others)
    kernel: Projection = network.into("n")[0]
    assert isinstance(kernel.weight, W.Conv)
    same_spikes(network, discretise(to_nir(network)))

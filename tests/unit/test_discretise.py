"""From NIR to steps: gains, choices that must be made, and everything that is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grasp_plugin import Discretisation, build, discretise
from grasp_plugin.errors import Invalid, MissingChoice, Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.convert import with_choices
from grasp_plugin.network.hints import RESETS, write_hints

VALUE = Discretisation(dt_s=1e-3, reset="value")


def lif(n: int, **change: Any) -> nir.LIF:
    fields = {"tau": 1e-2, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | change
    return nir.LIF(**{k: np.full(n, v) if np.ndim(v) == 0 else v for k, v in fields.items()})


def two(node: Any, weight: Any = None, n: int = 3) -> nir.NIRGraph:
    weight = np.eye(n) if weight is None else weight
    nodes = {"i": nir.Input(np.array([weight.shape[1]])), "w": nir.Linear(weight), "n": node,
             "o": nir.Output(np.array([n]))}  # fmt: skip
    return nir.NIRGraph(nodes, [("i", "w"), ("w", "n"), ("n", "o")], type_check=False)


def cuba(n: int) -> nir.CubaLIF:
    return nir.CubaLIF(*(np.full(n, v) for v in (5e-3, 1e-2, 2.0, 0.5, 1.5, 0.25, 3.0)))


def test_euler_gain_and_shift() -> None:
    network = discretise(two(cuba(3)), VALUE)
    p = network["n"]
    assert np.allclose(p.du, 0.2)
    assert np.allclose(p.dv, 0.1)
    assert np.allclose(p.gain, 0.2 * 3.0 * 0.1 * 2.0)
    assert np.allclose(p.v_th, 1.5 - 0.25)
    assert np.allclose(p.drive, 0.1 * (0.5 - 0.25))
    assert np.allclose(p.v_init, 0.25)
    assert np.allclose(p.v_offset, 0.25)
    (k,) = network.projections
    assert np.allclose(W.to_dense(k.weight), np.eye(3) * p.gain[0])


@pytest.mark.parametrize(
    ("scheme", "decay", "gain"),
    [("euler", 0.1, 0.1), ("exponential", -np.expm1(-0.1), -np.expm1(-0.1)),
     ("exponential-euler-gain", -np.expm1(-0.1), 0.1)],
)  # fmt: skip
def test_schemes(scheme: str, decay: float, gain: float) -> None:
    policy = Discretisation(dt_s=1e-3, reset="value", scheme=scheme)
    p = discretise(two(lif(3)), policy)["n"]
    assert np.allclose(p.dv, decay, rtol=1e-12)
    assert np.allclose(p.gain, gain, rtol=1e-12)


def test_integrators() -> None:
    node = nir.IF(np.full(3, 2.0), np.full(3, 1.0))
    assert discretise(two(node), Discretisation(reset="value"))["n"].gain.tolist() == [2.0] * 3
    physical = Discretisation(reset="value", integrator="physical", dt_s=1e-2)
    assert np.allclose(discretise(two(node), physical)["n"].gain, 0.02)


def test_gain_near_one_is_one() -> None:
    tau = np.full(3, np.float32(1e-4 / (1 - 0.9)))
    node = lif(3, tau=tau, r=np.float32(tau / np.float32(1e-4)))
    assert (
        discretise(two(node), Discretisation(dt_s=1e-4, reset="value"))["n"].gain.tolist()
        == [1.0] * 3
    )


def test_scalar_parameters_are_broadcast() -> None:
    fields = {k: np.array(v) for k, v in (("tau", 0.01), ("r", 1.0), ("v_leak", 0.0),
                                          ("v_threshold", 1.0), ("v_reset", 0.0))}  # fmt: skip
    network = discretise(two(nir.LIF(**fields)), VALUE)
    assert network["n"].shape == (3,)


@pytest.mark.parametrize("missing", ["dt_s", "reset"])
def test_a_missing_choice_is_asked_for(missing: str) -> None:
    policy = Discretisation(**{"dt_s": 1e-3, "reset": "value", missing: None})  # type: ignore[arg-type]
    with pytest.raises(MissingChoice) as caught:
        discretise(two(lif(3)), policy)
    error = caught.value
    assert (error.node, error.choice) == ("n", missing)
    assert all(option in str(error) for option in error.options)


def test_hints_are_read_and_overridden() -> None:
    node = lif(3)
    write_hints(node, reset="none", dt_s=2e-3)
    graph = two(node)
    network = discretise(graph)
    assert (network["n"].reset, network.dt_s) == ("none", 2e-3)
    network = discretise(graph, VALUE)
    assert (network["n"].reset, network.dt_s) == ("value", 1e-3)


def test_contradicting_hints_are_refused() -> None:
    node = lif(3)
    write_hints(node, reset="none", dt_s=2e-3)
    graph = two(node)
    write_hints(graph, dt_s=1e-3)
    with pytest.raises(Refused, match=r"0.001.*0.002|0.002.*0.001"):
        discretise(graph)


def test_presets_of_the_source() -> None:
    for source, dt in (("snntorch", 1e-4), ("norse", 1e-3)):
        network = discretise(two(lif(3)), Discretisation(reset="value", source=source))
        assert network.dt_s == dt


REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "tau below dt": (lambda: two(lif(3, tau=5e-4)), "n", "smaller dt"),
    "comparator": (lambda: hinted(comparator=">="), "n", "strictly"),
    "unknown reset": (lambda: hinted(reset="sideways"), "n", "Pass reset"),
    "time unit": (lambda: hinted_graph(time_unit="ms"), "graph", "time_unit"),
}


def hinted(**hints: Any) -> nir.NIRGraph:
    node = lif(3)
    write_hints(node, **hints)
    return two(node)


def hinted_graph(**hints: Any) -> nir.NIRGraph:
    graph = two(lif(3))
    write_hints(graph, **hints)
    return graph


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_node_and_remedy(name: str) -> None:
    make, node, remedy = REFUSED[name]
    policy = Discretisation(dt_s=1e-3, reset=None if name == "unknown reset" else "value")
    with pytest.raises(Refused) as caught:
        discretise(make(), policy)
    assert node in caught.value.node
    assert remedy in str(caught.value)


@pytest.mark.parametrize("reset", [r for r in RESETS if r.startswith(("subtract", "snn"))])
def test_a_reset_voltage_with_a_subtraction_is_refused(reset: str) -> None:
    with pytest.raises(Refused, match="v_reset"):
        discretise(two(lif(3, v_reset=0.1)), Discretisation(dt_s=1e-3, reset=reset))
    node = lif(3, v_reset=0.1)  # Norse's rule is known: it takes v_threshold, whatever v_reset
    write_hints(node, source="norse")
    assert discretise(two(node), Discretisation(dt_s=1e-3, reset=reset))["n"].v_offset.max() == 0


def test_a_delay_of_no_whole_number_of_steps_is_refused() -> None:
    def graph(delay: float) -> nir.NIRGraph:
        nodes = {"i": nir.Input(np.array([3])), "z": nir.Delay(np.full(3, delay)), "n": lif(3),
                 "o": nir.Output(np.array([3]))}  # fmt: skip
        return nir.NIRGraph(nodes, [("i", "z"), ("z", "n"), ("n", "o")], type_check=False)

    assert discretise(graph(3e-3), VALUE).projections[0].delay_steps == 3
    with pytest.raises(Refused, match=r"2\.5 steps"):
        discretise(graph(2.5e-3), VALUE)


def loop_of_two() -> nir.NIRGraph:
    nodes = {"i": nir.Input(np.array([3])), "n": lif(3), "w": nir.Linear(np.eye(3)), "m": lif(3),
             "b": nir.Linear(np.eye(3)), "o": nir.Output(np.array([3]))}  # fmt: skip
    edges = [("i", "n"), ("n", "w"), ("w", "m"), ("m", "b"), ("b", "n"), ("m", "o")]
    return nir.NIRGraph(nodes, edges, type_check=False)


def test_loops_through_several_populations_need_a_choice() -> None:
    with pytest.raises(MissingChoice, match="each"):
        discretise(loop_of_two(), VALUE)
    each = discretise(loop_of_two(), Discretisation(dt_s=1e-3, reset="value", loop="each"))
    assert {k.name: k.delay_steps for k in each.projections} == {
        "i->n": 0, "n->m": 1, "m->n": 1
    }  # fmt: skip
    one = Discretisation(dt_s=1e-3, reset="value", loop=(("m", "n"),))
    delays = {k.name: k.delay_steps for k in discretise(loop_of_two(), one).projections}
    assert delays == {"i->n": 0, "n->m": 0, "m->n": 1}
    with pytest.raises(Invalid, match=r"^x->n: expected feedback"):
        discretise(loop_of_two(), Discretisation(dt_s=1e-3, reset="value", loop=(("x", "n"),)))


def test_a_feedback_edge_that_lies_in_no_loop_is_named() -> None:
    """It would be delayed by a step."""
    for edges in ((("i", "n"),), (("m", "n"), ("i", "n"))):
        policy = Discretisation(dt_s=1e-3, reset="value", loop=edges)
        with pytest.raises(Invalid, match=r"^i->n: .* lies in no loop\. Pick from .*'m', 'n'"):
            discretise(loop_of_two(), policy)
    three = np.array([3])
    nodes = {"i": nir.Input(three), "w": nir.Linear(np.eye(3)), "n": lif(3),
             "v": nir.Linear(np.eye(3) * 2), "m": lif(3), "o": nir.Output(three)}  # fmt: skip
    forward = nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False)
    policy = Discretisation(dt_s=1e-3, reset="value", loop=(("n", "m"),))
    with pytest.raises(Invalid, match=r"^n->m: .* the network has no loop"):
        discretise(forward, policy)
    forward.edges.append(("n", "n"))
    own = Discretisation(dt_s=1e-3, reset="value", loop=(("n", "n"),))
    assert {k.name: k.delay_steps for k in discretise(forward, own).projections}["n->n"] == 1


def test_an_output_behind_a_flatten_shows_the_populations_shape() -> None:
    shape = np.array([2, 3, 1])
    nodes = {"i": nir.Input(shape), "n": nir.Threshold(np.full((2, 3, 1), 0.5)),
             "f": nir.Flatten({"input": shape}, 0, -1), "o": nir.Output(np.array([6]))}  # fmt: skip
    network = discretise(nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False), VALUE)
    with build(network, "torch") as session:
        assert session.run(np.ones((4, 2, 3, 1)))["o"].shape == (4, 2, 3, 1)


def test_a_loop_of_linear_nodes_is_refused() -> None:
    nodes = {"i": nir.Input(np.array([3])), "a": nir.Linear(np.eye(3)), "b": nir.Linear(np.eye(3)),
             "n": lif(3), "o": nir.Output(np.array([3]))}  # fmt: skip
    edges = [("i", "a"), ("a", "b"), ("b", "a"), ("b", "n"), ("n", "o")]
    with pytest.raises(Refused, match="neuron"):
        discretise(nir.NIRGraph(nodes, edges, type_check=False), VALUE)


def test_resets_by_node() -> None:
    policy = Discretisation(dt_s=1e-3, reset={"n": "none", "*": "value"}, loop="each")
    network = discretise(loop_of_two(), policy)
    assert (network["n"].reset, network["m"].reset) == ("none", "value")
    with pytest.raises(Invalid, match="nobody"):
        discretise(two(lif(3)), Discretisation(dt_s=1e-3, reset={"nobody": "none", "*": "value"}))


@pytest.mark.parametrize(
    "policy",
    [{"dt_s": 0.0}, {"dt_s": float("nan")}, {"reset": "sideways"}, {"scheme": "magic"},
     {"integrator": "x"}, {"source": "y"}, {"loop": "z"}, {"reset": {"n": "sideways"}},
     {"dt_s": "1e-3"}, {"dt_s": np.ones(2)}, {"dt_s": True}, {"reset": ["value"]},
     {"scheme": ["euler"]}, {"source": ["norse"]}, {"loop": ("m", "n")}, {"loop": [("m", "n")]},
     {"loop": ((1, 2),)}],
    ids=str,
)  # fmt: skip
def test_policies_are_checked(policy: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        Discretisation(**policy)


@pytest.mark.parametrize("policy", [1e-3, {"dt_s": 1e-3}, "euler", 0], ids=str)
def test_a_policy_is_a_discretisation(policy: Any) -> None:
    with pytest.raises(Invalid, match=r"^policy: expected a Discretisation, got") as caught:
        discretise(two(lif(3)), policy)
    assert "Discretisation(dt_s=" in caught.value.remedy


@pytest.mark.parametrize("graph", ["x.nir", Path("x.nir"), None, 3], ids=str)
def test_a_graph_is_a_nir_graph(graph: Any) -> None:
    with pytest.raises(Invalid, match=r"expected a nir\.NIRGraph, got .*read_nir\(path\)"):
        discretise(graph, VALUE)


@pytest.mark.parametrize("where", ["graph", "n"])
@pytest.mark.parametrize("hint", ["1 ms", np.ones(3), -1.0, np.nan], ids=str)
def test_a_time_step_in_the_hints_is_a_number_of_seconds(where: str, hint: Any) -> None:
    graph = two(lif(3))
    write_hints(graph if where == "graph" else graph.nodes[where], dt_s=hint)
    with pytest.raises(Invalid, match=rf"^{where}, hint dt_s: expected seconds > 0"):
        discretise(graph, Discretisation(reset="value"))
    assert discretise(graph, VALUE).dt_s == 1e-3


def test_an_adaptive_neurons_time_step_is_read_even_if_another_is_given() -> None:
    graph = two(lif(3))
    write_hints(graph.nodes["n"], rho=0.9, theta=0.1, n_ref=0, dt_s="1 ms")
    with pytest.raises(Invalid, match=r"^n, hint dt_s: expected seconds > 0, got '1 ms'"):
        discretise(graph, VALUE)


def test_choices_are_a_discretisation() -> None:
    with pytest.raises(Invalid, match=r"^policy: expected a Discretisation, got float"):
        with_choices(two(lif(3)), 1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "hint", "text"),
    [("reset", np.ones(2), "expected a reset"), ("comparator", np.ones(2), "got comparator"),
     ("source", "brian", "hint source: expected one of"),
     ("source", np.ones(2), "hint source: expected one of"), ("loop", "n->m->k", "hint loop"),
     ("time_unit", np.ones(2), "expected times in seconds")],
    ids=str,
)  # fmt: skip
def test_other_hints_that_make_no_sense_are_named(name: str, hint: Any, text: str) -> None:
    graph = two(lif(3))
    write_hints(graph.nodes["n"] if name in ("reset", "comparator") else graph, **{name: hint})
    with pytest.raises((Invalid, Refused), match=text):
        discretise(graph, Discretisation(dt_s=1e-3))


def test_how_much_too_short_a_time_constant_is() -> None:
    """The difference shows where tau was stored in float32, too."""
    short = float(np.float32(1e-3) * np.float32(1 - 1e-7))
    with pytest.raises(Refused, match=r"dt = 0\.001 s .*got 0\.00099999\d+ s, \d.*e-0\d of dt"):
        discretise(two(lif(3, tau=short)), VALUE)


def test_shapes_that_clash_are_named() -> None:
    graph = two(lif(3), np.ones((4, 2)), n=3)
    with pytest.raises(Invalid, match=r"\(3,\).*\(4,\)"):
        discretise(graph, VALUE)
    graph = two(lif(3))
    graph.nodes["i"] = nir.Input(np.array([50, 3]))
    with pytest.raises(Invalid, match="time or batch"):
        discretise(graph, VALUE)


def test_inner_names_that_clash_are_refused() -> None:
    inner = nir.NIRGraph(
        {"in": nir.Input(np.array([3])), "n": lif(3), "out": nir.Output(np.array([3]))},
        [("in", "n"), ("n", "out")], type_check=False,
    )  # fmt: skip
    nodes = {
        "i": nir.Input(np.array([3])),
        "a": inner,
        "a.n": lif(3),
        "o": nir.Output(np.array([3])),
    }
    edges = [("i", "a"), ("a", "a.n"), ("a.n", "o")]
    with pytest.raises(Invalid, match=r"a\.n"):
        discretise(nir.NIRGraph(nodes, edges, type_check=False), VALUE)


def everything() -> nir.NIRGraph:
    rng = np.random.default_rng(0)
    inner = nir.NIRGraph(
        {"in": nir.Input(np.array([9])), "n": lif(9), "w": nir.Affine(rng.normal(size=(9, 9)),
         np.ones(9)), "out": nir.Output(np.array([9]))},
        [("in", "n"), ("n", "w"), ("w", "n"), ("n", "out")], type_check=False,
    )  # fmt: skip
    nodes = {
        "i": nir.Input(np.array([1, 5, 5])),
        "c": nir.Conv2d(None, rng.normal(size=(2, 1, 3, 3)), 1, 0, 1, 1, np.ones(2)),
        "p": nir.SumPool2d(np.array([2, 2]), np.array([1, 1]), np.array([0, 0])),
        "f": nir.Flatten(np.array([2, 2, 2]), 0, -1), "s": nir.Scale(rng.normal(size=8)),
        "z": nir.Delay(rng.integers(0, 3, 8) * 1e-3), "a": nir.Linear(rng.normal(size=(9, 8))),
        "sub": inner, "b": nir.Linear(rng.normal(size=(4, 9))), "m": cuba(4),
        "skip": nir.Linear(rng.normal(size=(4, 8))), "li": nir.LI(np.full(4, 0.02), np.ones(4),
        np.zeros(4)), "o": nir.Output(np.array([4])), "q": nir.Output(np.array([4])),
    }  # fmt: skip
    edges = [("i", "c"), ("c", "p"), ("p", "f"), ("f", "s"), ("s", "z"), ("z", "a"), ("a", "sub"),
             ("sub", "b"), ("b", "m"), ("s", "skip"), ("skip", "m"), ("m", "li"), ("m", "o"),
             ("li", "q")]  # fmt: skip
    return nir.NIRGraph(nodes, edges, type_check=False)


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_order_of_nodes_and_edges_means_nothing(random: Any) -> None:
    graph = everything()
    names, edges = list(graph.nodes), list(graph.edges)
    random.shuffle(names)
    random.shuffle(edges)
    shuffled = nir.NIRGraph({n: graph.nodes[n] for n in names}, edges, type_check=False)
    first, second = discretise(graph, VALUE), discretise(shuffled, VALUE)
    assert str(first) == str(second)
    for a, b in zip(first.projections, second.projections, strict=True):
        assert np.array_equal(W.to_dense(a.weight), W.to_dense(b.weight))
        assert np.array_equal(a.delay_steps, b.delay_steps)


def test_the_graph_is_not_changed() -> None:
    graph = everything()
    before = copy.deepcopy(graph)
    discretise(graph, VALUE)
    assert list(graph.nodes) == list(before.nodes)
    assert graph.edges == before.edges
    for name, node in graph.nodes.items():
        for field, value in vars(node).items():
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, getattr(before.nodes[name], field)), (name, field)


def test_a_path_folded_equals_the_path_walked() -> None:
    """Conv, sum pool, flatten, scale, delay and matrix against torch, step by step."""
    import torch

    graph = everything()
    rng = np.random.default_rng(3)
    network = discretise(graph, VALUE)
    x = (rng.random((12, 1, 5, 5)) < 0.4).astype(float)
    conv = torch.nn.functional.conv2d(
        torch.as_tensor(x), torch.as_tensor(graph.nodes["c"].weight), torch.ones(2).double()
    )
    pooled = torch.nn.functional.avg_pool2d(conv, 2, 1) * 4
    scaled = pooled.reshape(12, 8).numpy() * graph.nodes["s"].scale
    steps = np.round(graph.nodes["z"].delay / 1e-3).astype(int)
    delayed = np.zeros_like(scaled)
    for j, d in enumerate(steps):
        delayed[d:, j] = scaled[: len(scaled) - d, j]
    expected = delayed @ graph.nodes["a"].weight.T * 0.1
    into = [k for k in network.into("sub.n") if k.source == "i"]
    found = np.zeros((12, 9))
    for k in into:
        for d in np.unique(k.delay_steps):
            w = W.to_dense(k.weight) * (np.asarray(k.delay_steps) == d)
            found[d:] += (x.reshape(12, -1) @ w.T)[: 12 - d]
    for b in network.biases:
        if b.target == "sub.n" and not np.array_equal(b.value, np.full(9, 0.1)):
            found[b.onset_steps :] += b.value
    found -= 0.1  # the recurrent Affine's own bias, in the undelayed Bias
    assert np.max(np.abs(found - expected)) < 1e-12


def test_with_weights_checks_names_and_shapes() -> None:
    network = discretise(two(lif(3)), VALUE)
    changed = network.with_weights({"i->n": np.full((3, 3), 0.5)})
    assert changed.weights()["i->n"].tolist() == np.full((3, 3), 0.5).tolist()
    with pytest.raises(Invalid, match="i->n"):
        network.with_weights({"nothing": np.ones(3)})
    with pytest.raises(Invalid, match=r"\(3, 3\)"):
        network.with_weights({"i->n": np.ones(4)})


def test_runs_without_lava() -> None:
    with build(discretise(everything(), VALUE), backend="torch") as session:
        recording = session.run(np.ones((5, 1, 5, 5)))
    assert recording["q"].shape == (5, 4)
    assert recording["o"] is recording.spikes["m"]

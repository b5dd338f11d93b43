"""What a meta-trained network says of itself in NIR, and the learning that it asks for."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import meta_cases as cases
import nir
import numpy as np
import pytest
import torch
from few_shot_cases import discretised, with_biases

from grasp_plugin import build, quantise
from grasp_plugin.adapters import read_nir, write_nir
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning import Soel
from grasp_plugin.learning.meta import Stack
from grasp_plugin.learning.soel import learning_of
from grasp_plugin.network.discretise import discretise
from grasp_plugin.network.hints import read_hints, write_hints
from grasp_plugin.network.meta_hints import MetaHints, read_meta, write_meta
from grasp_plugin.network.to_nir import to_nir

HEAD = "layer1->layer2"
SIZES = (cases.INPUTS, 8, cases.WAYS)
SOEL: Any = {"rule_parameters": {"error_threshold": 0.05}, "ways": cases.WAYS}


def stack() -> Stack:
    torch.manual_seed(0)
    return Stack(SIZES, gain=3.0, threshold=0.7, dtype=torch.float64)


def all_hints(graph: nir.NIRGraph) -> dict[str, Any]:
    return {name: deepcopy(read_hints(node)) for name, node in graph.nodes.items()} | {
        "graph": deepcopy(read_hints(graph))
    }


def test_meta_hints_survive_a_file_and_give_the_learning(tmp_path: Path) -> None:
    net = stack()
    graph = to_nir(net.network())
    (head,) = [n for n in graph.nodes if n.startswith("w2")]
    meta = MetaHints("anil", {head: 0.125}, "soel", {"error_threshold": 0.05}, ways=3, shots=2)
    write_meta(graph, meta)
    write_nir(graph, tmp_path / "meta.nir")
    again = read_nir(tmp_path / "meta.nir")
    back = read_meta(again)
    for name in ("algo", "rule", "order", "inner_steps", "ways", "shots"):
        assert getattr(back, name) == getattr(meta, name)
    assert back.bias is True
    assert dict(back.plastic) == {head: 0.125}
    assert dict(back.rule_parameters) == {"error_threshold": 0.05}
    network = discretise(again)
    learning = learning_of(network, back, cases.WAYS)
    (plan,) = learning.plans.values()
    assert isinstance(plan, Soel)
    assert (plan.learning_rate, plan.error_threshold) == (0.125, 0.05)
    x = next(iter(cases.tasks()))[0].numpy()
    with build(network, "torch") as one, build(net.network(), "torch") as two:
        assert np.array_equal(one.run(x).spikes["layer2"], two.run(x).spikes["layer2"])


def test_meta_hints_refuse_what_does_not_fit() -> None:
    graph = to_nir(stack().network())
    with pytest.raises(Invalid, match="hints of a meta-trained network"):
        read_meta(graph)
    threshold = {"error_threshold": 0.0}
    for node, eta in (("layer1", 0.1), ("nothing", 0.1), ("w2", np.ones(2))):
        with pytest.raises(Invalid, match="expected a node with weights"):
            write_meta(graph, MetaHints("maml", {node: eta}, rule_parameters=threshold))
    write_meta(graph, MetaHints("maml", {"w1": 0.1, "w2": 0.1}, rule_parameters=threshold, ways=3))
    with pytest.raises(Refused, match="projections into the output"):
        learning_of(discretise(graph), read_meta(graph), cases.WAYS)
    entries = to_nir(stack().network())
    each = {"w2": np.full((3, 8), 0.1)}
    write_meta(entries, MetaHints("maml", each, rule_parameters=threshold, ways=3))
    with pytest.raises(Refused, match="one step size"):
        learning_of(discretise(entries), read_meta(entries), cases.WAYS)
    del graph.nodes["w1"].metadata["grasp_plugin"]["plastic"]
    with pytest.raises(Invalid, match="hints plastic and inner_lr"):
        read_meta(graph)


@pytest.mark.parametrize("bias", [True, False])
def test_whether_biases_adapt_survives_a_file(tmp_path: Path, bias: bool) -> None:
    graph = with_biases(*SIZES)
    write_meta(graph, MetaHints("anil", {"w2": 0.1}, **SOEL, bias=bias))
    assert read_hints(graph.nodes["w2"])["plastic_bias"] == int(bias)
    write_nir(graph, tmp_path / "meta.nir")
    back = read_meta(read_nir(tmp_path / "meta.nir"))
    assert back.bias is bias
    plans = learning_of(discretised(graph), back, cases.WAYS).plans
    assert set(plans) == ({HEAD, "bias->layer2"} if bias else {HEAD})


def test_files_from_before_the_hint_on_biases_are_read_as_they_were() -> None:
    graph = with_biases(*SIZES)
    write_meta(graph, MetaHints("anil", {"w2": 0.1}, **SOEL, bias=False))
    del graph.nodes["w2"].metadata["grasp_plugin"]["plastic_bias"]
    assert read_meta(graph).bias is True
    for wrong in (2, "no"):
        write_hints(graph.nodes["w2"], plastic_bias=wrong)
        with pytest.raises(Invalid, match="w2: expected plastic_bias 0 at all or 1 at all"):
            read_meta(graph)
    write_meta(graph, MetaHints("maml", {"w1": 0.1, "w2": 0.1}, **SOEL))
    write_hints(graph.nodes["w1"], plastic_bias=0)
    with pytest.raises(Invalid, match="w1, w2: expected plastic_bias 0 at all or 1 at all"):
        read_meta(graph)


def test_hints_take_the_place_of_those_that_are_there() -> None:
    graph = with_biases(*SIZES)
    write_hints(graph, source="mine")
    write_hints(graph.nodes["w1"], source="mine")
    before = all_hints(graph)
    write_meta(graph, MetaHints("maml", {"w1": 0.2, "w2": 0.1}, **SOEL))
    write_meta(graph, MetaHints("anil", {"w2": 0.3}, "sgd", ways=cases.WAYS))
    back = read_meta(graph)
    assert dict(back.plastic) == {"w2": 0.3}
    assert (back.algo, back.rule, dict(back.rule_parameters)) == ("anil", "sgd", {})
    after = all_hints(graph)
    assert after["w1"] == before["w1"] == {"source": "mine"}
    assert "meta_error_threshold" not in after["graph"]
    assert after["graph"]["source"] == "mine"


@pytest.mark.parametrize("wrong", [{"nothing": 0.1}, {"layer1": 0.1}, {"w1": np.ones(2)}])
def test_a_graph_is_as_it_was_where_hints_are_refused(wrong: Any) -> None:
    graph = with_biases(*SIZES)
    for given in (graph, with_biases(*SIZES)):
        if given is graph:
            write_meta(given, MetaHints("maml", {"w1": 0.1}, **SOEL))
        before = all_hints(given)
        with pytest.raises(Invalid, match="expected a node with weights"):
            write_meta(given, MetaHints("maml", {"w2": 0.1} | wrong, **SOEL))
        assert all_hints(given) == before


def test_a_file_whose_inner_lr_is_not_of_its_weight_s_shape_is_refused() -> None:
    graph = with_biases(*SIZES)
    write_meta(graph, MetaHints("maml", {"w2": 0.1}, **SOEL))
    write_hints(graph.nodes["w2"], inner_lr=np.ones(2))
    with pytest.raises(Invalid, match=r"w2: .*inner_lr a number or of their shape"):
        read_meta(graph)
    write_hints(graph.nodes["w2"], inner_lr=0.1)
    write_hints(graph, meta_ways=2.5)
    with pytest.raises(Invalid, match=r"ways: expected an integer from 1 on, got 2\.5"):
        read_meta(graph)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"plastic": {}}, "MetaHints, plastic: expected one weight node or more, got {}"),
        ({"plastic": {"w2;w1": 0.1}}, "'w2;w1': expected a name of a node without ';'"),
        ({"plastic": {"w2": -0.1}}, "w2: expected an inner_lr of finite numbers >= 0, got -0.1"),
        ({"plastic": {"w2": "0.1"}}, "w2: expected an inner_lr .*got '0.1'"),
        ({"plastic": {"w2": np.nan}}, "w2: expected an inner_lr .*got nan"),
        ({"plastic": {"w2": np.array([0.1, -0.1])}}, "w2: expected an inner_lr"),
        ({"plastic": {"w2": [[0.1], [0.1, 0.2]]}}, "w2: expected an inner_lr"),
        ({"plastic": {"w2": torch.ones((), requires_grad=True)}}, "w2: expected an inner_lr"),
        ({"plastic": {"w2": None}}, "w2: expected an inner_lr .*got None"),
        ({"rule": "ottt"}, "MetaHints, rule: expected a rule of sgd, soel.*got 'ottt'"),
        ({"rule_parameters": {}}, "MetaHints, rule: .*error_threshold.*got 'soel' with {}"),
        ({"rule_parameters": {"error_threshold": "big"}}, "error_threshold: .*got 'big'"),
        ({"rule_parameters": {"error_threshold": np.nan}}, "error_threshold: .*got nan"),
        ({"rule_parameters": {"error_threshold": -1}}, "error_threshold: .*got -1"),
        *(({name: value}, f"MetaHints, {name}: expected an integer from 1 on, got {value!r}")
          for name in ("order", "inner_steps", "ways", "shots") for value in (0, 2.5, "5", True)),
    ],
)  # fmt: skip
def test_what_meta_hints_refuse(wrong: Any, message: str) -> None:
    given: Any = {"plastic": {"w2": 0.1}, **SOEL}
    MetaHints("maml", **given)
    with pytest.raises(Invalid, match=message):
        MetaHints("maml", **given | wrong)


def test_learning_is_for_as_many_classes_as_the_ways_of_meta_training() -> None:
    network = discretised(with_biases(*SIZES))
    meta = MetaHints("anil", {"w2": 0.1}, rule_parameters={"error_threshold": 0.05}, ways=5)
    with pytest.raises(Invalid, match="classes: expected the 5 ways of meta-training, got 3"):
        learning_of(network, meta, cases.WAYS)


def test_learning_is_for_the_network_and_for_its_integers() -> None:
    network = discretised(with_biases(*SIZES))
    meta = MetaHints("anil", {"w2": 0.1}, **SOEL, bias=False)
    learning = learning_of(network, meta, cases.WAYS)
    integers = quantise(network, plastic=list(learning.plans))
    build(integers, "fused", plans=learning).close()
    with pytest.raises(Invalid, match="expected a float population"):
        learning_of(integers, meta, cases.WAYS)

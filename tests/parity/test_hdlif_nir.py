"""HD-LIF layers to NIR and back: stock nodes with hints, and the exact node."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from hdlif_cases import DOUBLE, spread
from torch import nn

from grasp_plugin import Discretisation, build, discretise
from grasp_plugin.adapters import (
    from_hdlif,
    read_hdlif,
    read_nir,
    register_nir_extensions,
    write_nir,
)
from grasp_plugin.adapters.hdlif_node import HDLIF as Node
from grasp_plugin.backends.hdlif import build_hdlif
from grasp_plugin.errors import GraspError, Invalid, Refused
from grasp_plugin.hdlif import HDLayer, HDStack, hdlif_compressed, hmdf
from grasp_plugin.hdlif.deploy import deploy
from grasp_plugin.network.hdlif import Deployed

FIELDS = ("name", "bits", "steps", "parallel", "code_step", "top")
CASES: dict[str, Callable[[], HDLayer]] = {
    "ternary": lambda: hdlif_compressed(6, 5, 3, dtype=DOUBLE),
    "binary": lambda: hdlif_compressed(6, 5, 3, weights="1bit", dtype=DOUBLE),
    "shared": lambda: hdlif_compressed(6, 5, 3, shared=True, dtype=DOUBLE),
    "parallel": lambda: hdlif_compressed(6, 5, 3, parallel=True, dtype=DOUBLE),
    "float": lambda: hmdf(6, 5, 3, weights="fp", dtype=DOUBLE),
    "mem_bn": lambda: hmdf(6, 5, 3, mem_bn=True, dtype=DOUBLE),
}


def made(case: str) -> Deployed:
    torch.manual_seed(1)
    layer = CASES[case]()
    spread(layer.neuron, 2)
    with torch.no_grad():
        layer.norm.weight.copy_(torch.randn(5))
        layer.norm.bias.copy_(torch.randn(5))
        layer.norm.running_var.copy_(torch.rand(5) + 0.5)
    above = spread_layer(hdlif_compressed(5, 4, 3, dtype=DOUBLE))
    return deploy(HDStack(layer, above, nn.Linear(4, 2, dtype=DOUBLE)))


def spread_layer(layer: HDLayer) -> HDLayer:
    spread(layer.neuron, 3)
    return layer


def same(a: Deployed, b: Deployed) -> None:
    for one, two in zip(a.layers, b.layers, strict=True):
        assert [getattr(one, n) for n in FIELDS] == [getattr(two, n) for n in FIELDS]
        for name in ("kernel", "decay", "theta", "gain", "offset"):
            assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert all(np.array_equal(x, y) for x, y in zip(a.readout, b.readout, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_stock_nodes_give_the_layers_back(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = made(case)
    with caplog.at_level(logging.WARNING):
        graph = from_hdlif(given)
    assert caplog.records[0].getMessage().startswith("layer1: written as a LIF with")
    assert len(caplog.records) == 2
    write_nir(graph, tmp_path / "a.nir")
    back = read_hdlif(read_nir(tmp_path / "a.nir"))
    same(given, back)
    same(given, read_hdlif(nir.read(tmp_path / "a.nir")))
    x = 0.25 * np.random.default_rng(0).integers(0, 9, (3, 8, 6))
    with build_hdlif(given.layers, "fused") as a, build_hdlif(back.layers, "fused") as b:
        assert np.array_equal(a.run(x)["layer2"], b.run(x)["layer2"])


@pytest.mark.parametrize("case", CASES)
def test_the_exact_node_gives_the_layers_back(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = made(case)
    monkeypatch.setattr(nir.ir, "__all_ir", list(vars(nir.ir)["__all_ir"]))  # and back again
    monkeypatch.setattr(nir.ir, "HDLIF", None, raising=False)
    register_nir_extensions()
    register_nir_extensions()
    nir.write(tmp_path / "b.nir", from_hdlif(given, exact=True))
    graph = nir.read(tmp_path / "b.nir")
    assert isinstance(graph.nodes["layer1"], Node)
    same(given, read_hdlif(graph))


def test_foreign_readers_get_a_lif_of_the_mean_decay() -> None:
    """What the stock nodes are without hints: v (1 - dt/tau) + I, fire above, back to theta."""
    given = made("ternary")
    graph = from_hdlif(given, dt_s=2e-3)
    lif, affine = graph.nodes["layer1"], graph.nodes["layer1.weight"]
    keep = given.layers[0].decay.mean()
    assert np.allclose(1 - 2e-3 / lif.tau, keep, rtol=1e-15)
    assert np.allclose(lif.r * 2e-3 / lif.tau, 1, rtol=1e-15)
    assert np.array_equal(lif.v_threshold, lif.v_reset)
    assert np.allclose(affine.weight, given.layers[0].gain.T * given.layers[0].kernel)
    for node in graph.nodes.values():
        node.metadata = {}
    network = discretise(graph, Discretisation(dt_s=2e-3, reset="value"))
    with build(network, "fused") as session:
        out = session.run(np.ones((4, 6)))
    assert set(np.unique(out["layer1"])) <= {0.0, 1.0}


def test_readers_of_spikes_of_0_and_1_refuse_it() -> None:
    message = r"layer1: expected spikes of 0 and 1.*read_hdlif"
    with pytest.raises(Refused, match=message):
        discretise(from_hdlif(made("ternary")))
    pytest.importorskip("norse")
    from grasp_plugin.adapters import to_norse

    with pytest.raises(Refused, match=message):
        to_norse(from_hdlif(made("ternary")))


def test_a_module_is_taken_as_it_is() -> None:
    layer = CASES["shared"]()
    back = read_hdlif(from_hdlif(layer))
    assert back.readout is None
    assert np.array_equal(back.layers[0].kernel, deploy(layer).layers[0].kernel)


def changed(name: str, field: str, change: Callable[[Any], Any]) -> nir.NIRGraph:
    graph = from_hdlif(made("ternary"))
    node = graph.nodes[name]
    setattr(node, field, change(getattr(node, field)))
    return graph


def hinted(name: str, **hints: Any) -> nir.NIRGraph:
    graph = from_hdlif(made("ternary"))
    node = graph.nodes[name]
    kept = {**node.metadata["grasp_plugin"], **hints}
    node.metadata = {"grasp_plugin": {k: v for k, v in kept.items() if v is not None}}
    return graph


def named(name: str) -> Any:
    given = made("ternary")
    return replace(given, layers=[replace(given.layers[0], name=name), *given.layers[1:]])


def looped() -> nir.NIRGraph:
    graph = from_hdlif(made("ternary"), exact=True)
    graph.edges = [(a, "layer1.weight" if b == "readout" else b) for a, b in graph.edges]
    return graph


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "weights": (
        lambda: read_hdlif(changed("layer1.weight", "weight", lambda w: w * 1.01)),
        "layer1: expected the weights that the hints were written for",
    ),
    "bias": (lambda: read_hdlif(changed("layer2.weight", "bias", lambda b: b + 1)), "was changed"),
    "threshold": (
        lambda: read_hdlif(changed("layer1", "v_threshold", lambda v: 3 * v)),
        "layer1: expected the threshold and tau",
    ),
    "tau": (lambda: read_hdlif(changed("layer2", "tau", lambda t: 2 * t)), "threshold and tau"),
    "name": (lambda: from_hdlif(named("input")), r"names that no other node has.*Rename"),
    "readout": (lambda: from_hdlif(named("readout")), "names that no other node has"),
    "hint": (lambda: read_hdlif(hinted("layer1", neuron="x")), 'the hint neuron = "hdlif"'),
    "version": (lambda: read_hdlif(hinted("layer1", hdlif_version=9)), "version 1 .*, got 9"),
    "missing": (lambda: read_hdlif(hinted("layer1", hdlif_steps=None)), r"got no \['steps'\]"),
    "loop": (lambda: read_hdlif(looped()), "got a loop"),
    "step": (lambda: from_hdlif(made("ternary"), 0.0), "step > 0 s, got 0"),
    "node": (lambda: Node(gain=np.ones((1, 2))), "expected decay, got none"),
    "rows": (
        lambda: Node(decay=1, theta=1, gain=np.ones(2), offset=0, steps=1), r"gain \(R, N\), got",
    ),
    "kind": (
        lambda: read_hdlif(changed("layer1", "tau", lambda t: -t)), "expected tau > 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_remedy(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(GraspError, match=message):
        call()


def test_other_chains_are_refused() -> None:
    graph = from_hdlif(made("ternary"))
    size = np.array([4])
    graph.nodes["readout"] = nir.Linear(weight=np.ones((2, 4)))
    with pytest.raises(Refused, match="an Affine at the end"):
        read_hdlif(graph)
    nodes = {"input": nir.Input(size), "a": nir.Scale(np.ones(4)), "b": nir.Scale(np.ones(4)),
             "output": nir.Output(size)}  # fmt: skip
    edges = [("input", "a"), ("a", "b"), ("b", "output")]
    with pytest.raises(Refused, match="got Scale and Scale"):
        read_hdlif(nir.NIRGraph(nodes, edges, type_check=False))
    own = Node(decay=1, theta=1, gain=np.ones((1, 4)), offset=0, steps=1)
    with pytest.raises(Refused, match="0 nodes behind input"):
        read_hdlif(nir.NIRGraph({"input": nir.Input(size), "x": own}, [], type_check=False))


def test_a_decay_that_no_tau_has_is_refused_in_stock_form() -> None:
    given = made("ternary")
    layer = replace(given.layers[0], decay=given.layers[0].decay + 2)
    with pytest.raises(Refused, match=r"mean lambda in \[0, 1\).*exact=True"):
        from_hdlif(replace(given, layers=[layer]))


def test_a_nir_without_its_list_of_nodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nir.ir, "__all_ir", ())
    with pytest.raises(Refused, match="exact=False"):
        register_nir_extensions()
    with pytest.raises(Invalid, match="node type"):
        read_and_validate()


def read_and_validate() -> None:
    from grasp_plugin.network.validate import validate

    validate(from_hdlif(made("ternary"), exact=True))

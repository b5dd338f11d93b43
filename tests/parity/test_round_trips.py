"""from_x . to_x = identity: the same parameters, and the same spikes from the module in between."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import framework_cases as cases
import nir
import numpy as np
import pytest
import torch

import grasp_plugin.adapters as adapters
from grasp_plugin.errors import MissingChoice, Refused
from grasp_plugin.network.hints import read_hints, write_hints

STEPS = 100
ROOT = Path(__file__).parents[2]


def _names(framework: str) -> list[str]:
    try:
        return list(getattr(cases, f"{framework}_cases")())
    except ModuleNotFoundError:
        return []


CASES = [(f, name) for f in ("snntorch", "norse") for name in _names(f)]
REFUSED_BACK = {"Leaky-negative-threshold-zero"}
# A layer inside and after a loop runs twice a step (for s[t-1] and s[t]), which is no single node.
NOT_RETRACED = {"RLeaky-graded"}
NOT_IDENTITY = {n for n in _names("snntorch") if n.startswith("Lapicque")}  # gain goes to weights


def export(framework: str, name: str) -> Any:
    pytest.importorskip(framework)
    torch.manual_seed(1)
    model, shape = getattr(cases, f"{framework}_cases")()[name]()
    model = cases.promoted(model.eval().double())
    x = cases.inputs(shape, torch.float64, STEPS)
    graph = getattr(adapters, f"from_{framework}")(model, cases.sample_of(name, x))
    return graph, x, cases.run(model, x, name in cases.TIMED)


def back(framework: str, graph: nir.NIRGraph, dtype: torch.dtype = torch.float64) -> Any:
    return getattr(adapters, f"to_{framework}")(graph, dtype=dtype)


@pytest.mark.parametrize(("framework", "name"), CASES)
def test_the_module_gives_the_same_output(framework, name):
    graph, x, expected = export(framework, name)
    if name in REFUSED_BACK:
        with pytest.raises(Refused, match="v_threshold >= 0"):
            back(framework, graph)
        return
    module, state, outs = back(framework, graph), None, []
    with torch.no_grad():
        for now in x:
            out, state = module(now, state)
            outs.append(out)
    got, expected = torch.stack(outs).numpy(), expected.double().numpy()
    if set(np.unique(expected)) <= {0.0, 1.0}:
        assert np.count_nonzero(got != expected) == 0
    else:
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("framework", "name"), CASES)
def test_parameters_come_back(framework, name):
    graph, x, _ = export(framework, name)
    if name in REFUSED_BACK | NOT_IDENTITY:
        pytest.skip("refused, or the gain went into the weights")
    module = back(framework, graph)
    if name in NOT_RETRACED:
        with pytest.raises(Refused, match="of the same step or the step before"):
            getattr(adapters, f"from_{framework}")(module, x[0])
        return
    again = getattr(adapters, f"from_{framework}")(module, x[0])
    assert_same(graph, again, rtol=1e-13)


@pytest.mark.parametrize("framework", ["snntorch", "norse"])
def test_float32_parameters_come_back_to_rounding(framework):
    name = {"snntorch": "Synaptic-vectors", "norse": "LIFBoxCell-vectors"}[framework]
    graph, x, _ = export(framework, name)
    module = back(framework, graph, torch.float32)
    again = getattr(adapters, f"from_{framework}")(module, x[0].float())
    assert_same(graph, again, rtol=1e-5)


def assert_same(one: nir.NIRGraph, two: nir.NIRGraph, rtol: float) -> None:
    assert set(one.edges) == set(two.edges)
    assert {n: type(v) for n, v in one.nodes.items()} == {n: type(v) for n, v in two.nodes.items()}
    ours = {"dt_s", "time_unit", "source", "loop"}
    assert {k: v for k, v in read_hints(one).items() if k in ours} == {
        k: v for k, v in read_hints(two).items() if k in ours
    }
    for name, node in one.nodes.items():
        other = two.nodes[name]
        assert read_hints(node).get("reset") == read_hints(other).get("reset")
        for side in ("input_type", "output_type"):
            for a, b in zip(
                getattr(node, side).values(), getattr(other, side).values(), strict=True
            ):
                assert tuple(a) == tuple(b), f"{name}.{side}"
        for field, value in vars(node).items():
            if field not in ("input_type", "output_type", "metadata"):
                np.testing.assert_allclose(
                    np.asarray(getattr(other, field), dtype=float),
                    np.asarray(value, dtype=float),
                    rtol=rtol,
                    atol=rtol,
                    err_msg=f"{name}.{field}",
                )


def lif(**fields: Any) -> nir.LIF:
    one = np.ones(3)
    given = {"tau": 0.01 * one, "r": one, "v_leak": 0 * one, "v_threshold": one, "v_reset": 0 * one}
    return nir.LIF(**(given | fields))


def before(node: nir.NIRNode, *, gain: bool = True) -> nir.NIRGraph:
    """input -> weights -> node, or input -> node."""
    weights = nir.Affine(weight=np.arange(9.0).reshape(3, 3) / 4, bias=np.full(3, 0.5))
    return nir.NIRGraph.from_list(weights, node) if gain else nir.NIRGraph.from_list(node)


@pytest.mark.parametrize("framework", ["snntorch", "norse"])
@pytest.mark.parametrize("node", [nir.IF, nir.LIF, nir.CubaLIF])
def test_the_input_gain_goes_into_the_weights(framework, node):
    """A graph in physical units, r = 1.7: checked against NIR's own Euler step in NumPy."""
    pytest.importorskip(framework)
    one = np.array([1.0, 0.9, 1.2])
    fields = {"r": 1.7 * one, "v_threshold": 0.3 * one, "v_reset": 0 * one}
    if node is nir.LIF:
        fields |= {"tau": 0.004 * one, "v_leak": 0 * one}
    if node is nir.CubaLIF:
        fields |= {"tau_syn": 0.002 * one, "tau_mem": 0.005 * one, "v_leak": 0 * one, "w_in": one}
    graph = before(node(**fields))
    weights = np.array(graph.nodes["affine"].weight)
    to = getattr(adapters, f"to_{framework}")
    module = to(graph, dt=1e-3, reset="value", dtype=torch.float64)
    x = np.random.default_rng(0).normal(0.2, 1.0, (100, 1, 3))
    expected, current, v = [], np.zeros(3), np.zeros(3)
    for now in x[:, 0]:
        drive = weights @ now + 0.5
        if node is nir.CubaLIF:
            current = current + 1e-3 / fields["tau_syn"] * (fields["w_in"] * drive - current)
            v = v + 1e-3 / fields["tau_mem"] * (fields["r"] * current - v)
        elif node is nir.LIF:
            v = v + 1e-3 / fields["tau"] * (fields["r"] * drive - v)
        else:
            v = v + fields["r"] * drive
        spikes = v > fields["v_threshold"]
        v = np.where(spikes, 0.0, v)
        expected.append(spikes)
    state, got = None, []
    with torch.no_grad():
        for now in torch.as_tensor(x):
            out, state = module(now, state)
            got.append(out[0].numpy())
    assert 0.05 < np.mean(expected) < 0.95
    np.testing.assert_array_equal(np.array(got), np.array(expected, dtype=float))
    np.testing.assert_array_equal(graph.nodes["affine"].weight, weights)


TOO_MUCH = [
    ("snntorch", lif(v_leak=np.ones(3)), "value", "expected v_leak=0"),
    ("snntorch", lif(v_reset=np.ones(3)), "value", "expected v_reset=0"),
    ("snntorch", lif(), "subtract-immediate", "got 'subtract-immediate'"),
    ("snntorch", lif(tau=np.full(3, 1e-4)), "value", "expected tau >= dt"),
    ("snntorch", nir.LI(np.ones(3), np.ones(3), np.zeros(3)), None, "got LI, which snnTorch lacks"),
    ("snntorch", nir.Threshold(np.ones(3)), None, "got Threshold"),
    ("snntorch", nir.Delay(np.ones(3)), None, "got Delay"),
    ("norse", lif(), "subtract-delayed", "got 'subtract-delayed'"),
    ("norse", lif(), "refractory1", "got 'refractory1'"),
    ("norse", lif(), "none", "got 'none'"),
    ("norse", nir.IF(np.ones(3), np.ones(3)), "subtract-immediate", "got 'subtract-immediate'"),
    ("norse", nir.I(np.ones(3)), None, "got I"),
    ("norse", nir.Delay(np.ones(3)), None, "got Delay"),
    ("norse", lif(tau=np.full(3, 1e-4)), "value", "expected tau >= dt"),
]


@pytest.mark.parametrize(("framework", "node", "reset", "message"), TOO_MUCH)
def test_what_the_framework_cannot_do_is_refused(framework, node, reset, message):
    pytest.importorskip(framework)
    with pytest.raises(Refused, match=message) as caught:
        getattr(adapters, f"to_{framework}")(before(node), dt=1e-3, reset=reset)
    assert caught.value.node == type(node).__name__.lower()


@pytest.mark.parametrize("framework", ["snntorch", "norse"])
def test_a_gain_without_weights_is_refused(framework):
    pytest.importorskip(framework)
    to = getattr(adapters, f"to_{framework}")
    with pytest.raises(Refused, match=r"lif: expected an input gain of 1.*after 'input'"):
        to(before(lif(r=3 * np.ones(3)), gain=False), dt=1e-3, reset="value")


@pytest.mark.parametrize("framework", ["snntorch", "norse"])
def test_missing_choices_are_asked_for(framework):
    pytest.importorskip(framework)
    to = getattr(adapters, f"to_{framework}")
    with pytest.raises(MissingChoice, match="reset") as caught:
        to(before(lif()), dt=1e-3)
    assert caught.value.choice == "reset"
    with pytest.raises(MissingChoice, match="dt") as caught:
        to(before(lif()), reset="value")
    assert caught.value.choice == "dt"


def two_neuron_loop() -> nir.NIRGraph:
    one = np.ones(3)
    nodes = {
        "input": nir.Input({"input": np.array([3])}),
        "a": nir.IF(r=one, v_threshold=one),
        "w": nir.Linear(np.eye(3)),
        "b": nir.IF(r=one, v_threshold=0.5 * one),
        "w_back": nir.Affine(0.7 * np.eye(3), 0.1 * one),
        "output": nir.Output({"output": np.array([3])}),
    }
    edges = [("input", "a"), ("a", "w"), ("w", "b"), ("b", "w_back"), ("w_back", "a")]
    return nir.NIRGraph(nodes, [*edges, ("b", "output")], type_check=False)


def test_a_loop_of_two_needs_its_delay():
    pytest.importorskip("snntorch")
    graph = two_neuron_loop()
    with pytest.raises(MissingChoice, match="loop"):
        adapters.to_snntorch(graph, reset="value")
    firsts = {}
    for loop in ("b->a", "each"):
        write_hints(graph, loop=loop)
        module, state, outs = adapters.to_snntorch(graph, reset="value"), None, []
        for _ in range(4):
            out, state = module(torch.full((1, 3), 0.95), state)
            outs.append(out[0, 0].item())
        firsts[loop] = outs
    # a: 0.95 + 0.1 (bias from t=0) fires at once; b sees it at once, or a step later
    assert firsts["b->a"] == [1.0, 1.0, 1.0, 1.0]
    assert firsts["each"] == [0.0, 1.0, 1.0, 1.0]


def test_a_wrong_loop_hint_is_invalid():
    pytest.importorskip("snntorch")
    graph = two_neuron_loop()
    write_hints(graph, loop="w->a")
    with pytest.raises(ValueError, match="'loop' to name projections"):
        adapters.to_snntorch(graph, reset="value")


def test_several_inputs_are_a_dict():
    pytest.importorskip("snntorch")
    one = np.ones(2)
    nodes = {
        "left": nir.Input({"input": np.array([2])}),
        "right": nir.Input({"input": np.array([2])}),
        "if": nir.IF(r=one, v_threshold=one),
        "output": nir.Output({"output": np.array([2])}),
    }
    edges = [("left", "if"), ("right", "if"), ("if", "output")]
    module = adapters.to_snntorch(nir.NIRGraph(nodes, edges), reset="value")
    x = torch.full((1, 2), 0.75)
    assert module({"left": x, "right": x})[0].tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match="expected the inputs"):
        module(x)


def test_a_nested_recurrent_graph_in_any_order():
    """The form that snnTorch's own exporter writes: {lif, w_rec} nested, nodes in any order."""
    pytest.importorskip("snntorch")
    inner = nir.NIRGraph(
        {
            "w_rec": nir.Affine(np.array([[0.0, 0.5], [-0.5, 0.0]]), np.array([0.25, 0.0])),
            "output": nir.Output({"output": np.array([2])}),
            "lif": nir.LIF(
                tau=np.full(2, 5e-4),
                r=np.full(2, 5.0),
                v_leak=np.zeros(2),
                v_threshold=np.ones(2),
                v_reset=np.zeros(2),
            ),
            "input": nir.Input({"input": np.array([2])}),
        },
        [("w_rec", "lif"), ("lif", "output"), ("lif", "w_rec"), ("input", "lif")],
    )
    graph = nir.NIRGraph(
        {
            "output": nir.Output({"output": np.array([2])}),
            "block": inner,
            "input": nir.Input({"input": np.array([2])}),
        },
        [("block", "output"), ("input", "block")],
        type_check=False,
    )
    module = adapters.to_snntorch(graph, dt=1e-4, reset="value", dtype=torch.float64)
    x = np.random.default_rng(3).uniform(0, 0.6, (100, 2))
    v, spikes, expected = np.zeros(2), np.zeros(2), []
    for now in x:
        v = 0.8 * v + now + np.array([0.5 * spikes[1] + 0.25, -0.5 * spikes[0]])
        spikes = (v > 1).astype(float)
        v = np.where(v > 1, 0.0, v)
        expected.append(spikes)
    state, got = None, []
    with torch.no_grad():
        for now in torch.as_tensor(x)[:, None]:
            out, state = module(now, state)
            got.append(out[0].numpy())
    assert 0.05 < np.mean(expected) < 0.95
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("first", ["package", "module"])
def test_the_package_names_functions_and_imports_no_framework(first):
    pytest.importorskip("snntorch")
    code = [
        "import sys, grasp_plugin.adapters as a",
        "assert not {'torch', 'snntorch', 'norse', 'nirtorch'} & set(sys.modules)",
        "from grasp_plugin.adapters.to_snntorch import to_snntorch as direct",
        "from grasp_plugin.adapters import to_snntorch",
        "assert to_snntorch is direct and callable(to_snntorch)",
    ]
    if first == "package":
        code[2], code[3] = code[3], code[2]
    if "torch" in _imported_by("import grasp_plugin"):
        code.pop(1)  # the package itself needs torch
    subprocess.run([sys.executable, "-c", "\n".join(code)], check=True, cwd=ROOT)


def _imported_by(code: str) -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    return set(shown.stdout.split())

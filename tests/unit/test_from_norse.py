"""from_norse: parameters, units, state over time, and every refusal with its message."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch import nn

norse = pytest.importorskip("norse.torch")

from grasp_plugin.adapters import from_norse  # noqa: E402
from grasp_plugin.errors import Invalid, Refused  # noqa: E402
from grasp_plugin.network.hints import read_hints  # noqa: E402

t = torch.as_tensor
X = torch.zeros(2, 3)


def graph_of(*layers: nn.Module, x: torch.Tensor = X, dt: float = 1e-3) -> nir.NIRGraph:
    return from_norse(norse.SequentialState(*layers), x, dt)


def test_lif_box_by_hand():
    p = norse.LIFBoxParameters(
        tau_mem_inv=t(50.0), v_leak=t(0.25), v_th=t(0.5), v_reset=torch.tensor([0.0, -1.0, 2.0])
    )
    node = graph_of(norse.LIFBoxCell(p)).nodes["0"]
    assert isinstance(node, nir.LIF)
    for field, value in {"tau": 0.02, "r": 1, "v_leak": 0.25, "v_threshold": 0.5}.items():
        np.testing.assert_allclose(getattr(node, field), np.full(3, value), rtol=1e-15)
    np.testing.assert_array_equal(node.v_reset, [0.0, -1.0, 2.0])
    assert read_hints(node) == {
        "reset": "value",
        "comparator": ">",
        "dt_s": 1e-3,
        "source": "norse",
        "norse_module": "LIFBoxCell",
    }


def test_lif_by_hand_and_its_input_gain():
    p = norse.LIFParameters(tau_syn_inv=t(200.0), tau_mem_inv=t(100.0))
    node = graph_of(norse.LIFCell(p)).nodes["0"]
    assert isinstance(node, nir.CubaLIF)
    np.testing.assert_allclose(node.tau_syn, np.full(3, 5e-3))
    np.testing.assert_allclose(node.tau_mem, np.full(3, 1e-2))
    np.testing.assert_allclose(1e-3 / node.tau_syn * node.w_in, 1.0)  # the jump arrives whole
    np.testing.assert_array_equal(node.r, np.ones(3))


def test_read_outs_have_no_reset():
    graph = graph_of(norse.LICell(), norse.LIBoxCell())
    assert isinstance(graph.nodes["0"], nir.CubaLI)
    assert isinstance(graph.nodes["1"], nir.LI)
    assert "reset" not in read_hints(graph.nodes["1"])


def test_iaf_ignores_dt():
    p = norse.IAFParameters(v_reset=t(-0.5))
    node = graph_of(norse.IAFCell(p), dt=0.25).nodes["0"]
    assert isinstance(node, nir.IF)
    np.testing.assert_array_equal(node.v_reset, np.full(3, -0.5))
    np.testing.assert_array_equal(node.r, np.ones(3))


def test_a_recurrent_cell_is_three_nodes():
    cell = norse.LIFRecurrentCell(3, 2)
    graph = graph_of(cell)
    assert set(graph.edges) == {
        ("input", "0.w_in"), ("0.w_in", "0"), ("0", "0.w_rec"), ("0.w_rec", "0"), ("0", "output"),
    }  # fmt: skip
    recurrent = graph.nodes["0.w_rec"].weight
    np.testing.assert_array_equal(recurrent, cell.recurrent_weights.detach().double())
    np.testing.assert_array_equal(np.diag(recurrent), [0.0, 0.0])
    assert isinstance(graph.nodes["0.w_in"], nir.Linear)
    own = graph_of(norse.LIFRecurrentCell(3, 2, autapses=True)).nodes["0.w_rec"].weight
    assert np.all(np.diag(own) != 0)


def test_reset_methods():
    for method, hint in (
        (norse.reset_value, "value"),
        (norse.reset_subtract, "subtract-immediate"),
    ):
        node = graph_of(norse.LIFBoxCell(norse.LIFBoxParameters(reset_method=method))).nodes["0"]
        assert read_hints(node)["reset"] == hint
    other = norse.LIFBoxParameters(reset_method=lambda z, v, reset, th: v)
    with pytest.raises(Refused, match="0: expected reset_value or reset_subtract, got <lambda>"):
        graph_of(norse.LIFBoxCell(other))


def test_the_cells_dt_must_agree():
    with pytest.raises(Refused, match=r"expected the cell's dt to equal dt=0.001 s, got 0.0001"):
        graph_of(norse.LIFCell(dt=1e-4))
    assert read_hints(graph_of(norse.LIFCell(dt=1e-4), dt=1e-4))["dt_s"] == 1e-4


@pytest.mark.parametrize(
    "cell",
    [
        "LSNNCell", "LIFAdExCell", "LIFExCell", "LIFRefracCell", "IzhikevichCell", "LSNN", "LIFEx",
    ],
)  # fmt: skip
def test_other_neurons_are_refused_by_name(cell):
    make = getattr(norse, cell)
    if cell == "IzhikevichCell":
        neuron = make(norse.tonic_spiking)
    else:
        neuron = make()
    with pytest.raises(Refused, match=rf"1: expected one of LIFCell, .*, got {cell}\."):
        graph_of(nn.Linear(3, 3), neuron)


def test_parameters_that_make_no_neuron_are_refused():
    for p, match in (
        (norse.LIFBoxParameters(tau_mem_inv=t(0.0)), r"tau_mem_inv > 0 \(in 1/s\), got 0"),
        (norse.LIFBoxParameters(v_th=t(float("nan"))), "a finite v_th"),
        (norse.LIFBoxParameters(v_th=torch.ones(2, 1, 3)), "one neuron per value"),
    ):
        with pytest.raises(Refused, match=match):
            graph_of(norse.LIFBoxCell(p), x=torch.zeros(2, 3))


def test_a_method_without_heaviside_is_refused():
    with pytest.raises((Refused, Invalid), match=r"no such|threshold method"):
        graph_of(norse.LIFBoxCell(norse.LIFBoxParameters(method="logistic")))


# --- state and time ------------------------------------------------------------------------------


def test_modules_with_a_time_axis():
    graph = graph_of(
        norse.Lift(nn.Conv2d(1, 2, 3)), norse.LIF(), nn.Flatten(2), nn.Linear(8, 4),
        norse.LIFRecurrent(4, 3), norse.LI(), x=torch.zeros(3, 2, 1, 4, 4),
    )  # fmt: skip
    shapes = {n: tuple(node.output_type["output"]) for n, node in graph.nodes.items()}
    assert shapes == {
        "input": (1, 4, 4), "0.lifted_module": (2, 2, 2), "1": (2, 2, 2), "2": (8,), "3": (4,),
        "4.w_in": (3,), "4": (3,), "4.w_rec": (3,), "5": (3,), "output": (3,),
    }  # fmt: skip
    assert graph.nodes["2"].start_dim == 0
    with pytest.raises(Invalid, match="at least two time steps"):
        graph_of(norse.LIF(), x=torch.zeros(1, 2, 3))


def test_recurrent_sequential_feeds_back_into_its_first_layer():
    model = norse.RecurrentSequential(nn.Linear(3, 3), norse.LIFBoxCell())
    graph = from_norse(model, X)
    assert {("module.1", "module.0"), ("input", "module.0")} <= set(graph.edges)
    assert "loop" not in read_hints(graph)
    two = norse.RecurrentSequential(
        nn.Linear(3, 3), norse.LIFBoxCell(), nn.Linear(3, 3), norse.LIFBoxCell()
    )
    assert read_hints(from_norse(two, X))["loop"] == "module.3->module.1"
    inner = norse.RecurrentSequential(
        nn.Linear(3, 3), norse.LIFBoxCell(), nn.Linear(3, 3), output_modules=1
    )
    assert ("module.1", "output") in from_norse(inner, X).edges
    with pytest.raises(Refused, match=r"module\.1: expected a recurrence whose bias acts"):
        from_norse(norse.RecurrentSequential(norse.LIFCell(), nn.Linear(3, 3)), X)


def test_a_network_of_ones_own():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.skip = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
            self.cell, self.out = norse.LIFCell(), norse.LICell()

        def forward(self, x: torch.Tensor, state: Any = None) -> Any:
            s1, s2 = (None, None) if state is None else state
            z, s1 = self.cell(self.fc(x), s1)
            v, s2 = self.out(self.skip(z) + x, s2)
            return v, (s1, s2)

    graph = from_norse(Net(), X)
    assert {("skip", "out"), ("input", "out"), ("cell", "skip")} <= set(graph.edges)


def test_a_cell_that_starts_afresh_each_step_is_refused():
    with pytest.raises(Refused, match="1: expected call 2 of this neuron to continue the state"):
        from_norse(nn.Sequential(nn.Linear(3, 3), norse.LIFCell()), X)

    class Forgets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = norse.LIFCell()

        def forward(self, x: torch.Tensor, state: Any = None) -> Any:
            z, _ = self.cell(x)
            return z, None

    with pytest.raises(Refused, match="got a fresh state"):
        from_norse(Forgets(), X)


def test_the_users_model_stays_as_it_was():
    model = norse.SequentialState(nn.Linear(3, 3), norse.IAFCell(), norse.LIFRecurrentCell(3, 2))
    default = norse.IAFParameters().v_reset
    flag = default.requires_grad
    before = {k: v.clone() for k, v in model.state_dict().items()}
    from_norse(model, X)
    assert default.requires_grad == flag
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_parameters_with_a_gradient_history_are_read():
    threshold = torch.nn.Parameter(t(0.5)) * 2
    node = graph_of(norse.LIFBoxCell(norse.LIFBoxParameters(v_th=threshold))).nodes["0"]
    np.testing.assert_array_equal(node.v_threshold, np.ones(3))

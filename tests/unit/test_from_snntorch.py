"""from_snntorch: parameters, names, time loops, and every refusal with its message."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch import nn

snn = pytest.importorskip("snntorch")

from grasp_plugin.adapters import from_snntorch  # noqa: E402
from grasp_plugin.errors import Invalid, Refused  # noqa: E402
from grasp_plugin.network.hints import read_hints  # noqa: E402

DT = 1e-4


class Own(nn.Module):
    """A model from a forward function and named layers."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def hidden(beta: Any = 0.9, **options: Any) -> Any:
    return snn.Leaky(beta, init_hidden=True, **options)


def graph_of(*layers: nn.Module, shape: tuple[int, ...] = (3,), dt: float = DT) -> nir.NIRGraph:
    return from_snntorch(nn.Sequential(*layers), torch.zeros(2, *shape), dt)


# --- parameters ----------------------------------------------------------------------------------


def test_leaky_by_hand():
    node = graph_of(hidden(0.75, threshold=2.0), shape=(2,)).nodes["0"]
    assert isinstance(node, nir.LIF)
    np.testing.assert_allclose(node.tau, [4e-4, 4e-4], rtol=1e-15)  # dt / (1 - 3/4)
    np.testing.assert_array_equal(node.r, [4.0, 4.0])
    np.testing.assert_array_equal(node.v_threshold, [2.0, 2.0])
    np.testing.assert_array_equal([node.v_leak, node.v_reset], np.zeros((2, 2)))
    assert node.tau.dtype == np.float64


def test_synaptic_by_hand():
    node = graph_of(snn.Synaptic(0.5, 0.75, init_hidden=True), shape=(1,), dt=1e-3).nodes["0"]
    assert isinstance(node, nir.CubaLIF)
    np.testing.assert_allclose(
        [node.tau_syn, node.w_in, node.tau_mem, node.r],
        [[2e-3], [2.0], [4e-3], [4.0]],
        rtol=1e-15,
    )


def test_lapicque_decays_by_its_rc_circuit_not_by_beta():
    node = graph_of(snn.Lapicque(R=2.0, C=4.0, time_step=1, init_hidden=True)).nodes["0"]
    np.testing.assert_allclose(DT / node.tau, 1 / 8)  # D/(RC)
    np.testing.assert_allclose(DT / node.tau * node.r, 1 / 4)  # D/C
    node = graph_of(snn.Lapicque(beta=0.9, init_hidden=True)).nodes["0"]
    np.testing.assert_allclose(DT / node.tau, -np.log(0.9), rtol=1e-6)


def test_a_stored_float32_decay_is_recovered_in_float64():
    beta = torch.rand(1000)
    node = graph_of(hidden(beta), shape=(1000,)).nodes["0"]
    recovered = 1 - DT / node.tau
    np.testing.assert_allclose(recovered, beta.double().numpy(), rtol=0, atol=3e-16)
    np.testing.assert_array_equal(recovered.astype(np.float32), beta.numpy())
    np.testing.assert_allclose(DT / node.tau * node.r, 1.0, rtol=5e-16)


def test_decays_are_clamped_as_in_the_forward_pass():
    tau = graph_of(hidden(torch.tensor([-0.5, 0.5, 1.2]))).nodes["0"].tau
    decay = 1 - DT / tau
    np.testing.assert_allclose(decay, [0.0, 0.5, 1.0])
    assert np.all(np.isfinite(tau))


def test_no_leak_is_an_if():
    node = graph_of(hidden(1.0)).nodes["0"]
    assert isinstance(node, nir.IF)
    np.testing.assert_array_equal(node.r, np.ones(3))


def test_parameters_take_the_shape_of_the_layer():
    graph = graph_of(nn.Conv2d(1, 2, 3), hidden(torch.rand(2, 1, 1)), shape=(1, 5, 5))
    assert graph.nodes["1"].tau.shape == (2, 3, 3)
    assert len(np.unique(graph.nodes["1"].tau)) == 2
    with pytest.raises(Refused, match=r"0: expected beta that broadcasts .*\(3,\), got \(2, 1\)"):
        graph_of(hidden(torch.rand(2, 1)), shape=(3,))  # one value per sample of the batch


@pytest.mark.parametrize(
    ("kind", "mechanism", "delay", "reset"),
    [
        ("Leaky", "subtract", True, "subtract-delayed"),
        ("Leaky", "subtract", False, "snntorch-nodelay"),
        ("Leaky", "zero", True, "value"),
        ("Leaky", "zero", False, "value"),
        ("Leaky", "none", True, "none"),
        ("Synaptic", "subtract", False, "snntorch-nodelay"),
        ("Synaptic", "zero", True, "refractory1"),
        ("Synaptic", "zero", False, "value"),
        ("RLeaky", "zero", True, "refractory1"),
        ("RLeaky", "subtract", False, "snntorch-nodelay"),
        ("RSynaptic", "zero", True, "refractory1"),
        ("RSynaptic", "subtract", True, "subtract-delayed"),
        ("Lapicque", "zero", None, "refractory1"),
        ("Lapicque", "subtract", None, "subtract-delayed"),
    ],
)
def test_the_reset_is_a_hint(kind, mechanism, delay, reset):
    decays = (0.5, 0.9) if "Synaptic" in kind else (0.9,)
    options: dict[str, Any] = {"linear_features": 3} if kind.startswith("R") else {}
    if delay is not None:
        options["reset_delay"] = delay
    neuron = getattr(snn, kind)(*decays, reset_mechanism=mechanism, init_hidden=True, **options)
    graph = graph_of(neuron)
    hints = read_hints(graph.nodes["0"])
    assert hints == {
        "reset": reset,
        "comparator": ">",
        "dt_s": DT,
        "source": "snntorch",
        "snntorch_module": kind,
        "snntorch_reset_mechanism": mechanism,
        "snntorch_reset_delay": int(delay is not False),
    }
    assert read_hints(graph) == {"dt_s": DT, "time_unit": "s", "source": "snntorch"}


def test_recurrent_weights_are_nodes_of_their_own():
    neuron = snn.RLeaky(0.9, linear_features=3, init_hidden=True)
    graph = graph_of(neuron)
    assert {("0", "0.w_rec"), ("0.w_rec", "0")} <= set(graph.edges)
    weights = graph.nodes["0.w_rec"]
    np.testing.assert_array_equal(weights.weight, neuron.recurrent.weight.detach().double())
    np.testing.assert_array_equal(weights.bias, neuron.recurrent.bias.detach().double())
    vector = torch.tensor([0.5, -1.0, 2.0])
    one_to_one = graph_of(snn.RLeaky(0.9, V=vector, all_to_all=False, init_hidden=True))
    np.testing.assert_array_equal(one_to_one.nodes["0.w_rec"].weight, np.diag([0.5, -1.0, 2.0]))


def test_graded_spikes_are_a_scale_before_every_target():
    neuron = snn.RLeaky(0.9, linear_features=3, init_hidden=True)
    neuron.graded_spikes_factor = torch.tensor(0.5)
    graph = graph_of(neuron)
    np.testing.assert_array_equal(graph.nodes["0.scale"].scale, np.full(3, 0.5))
    assert set(graph.edges) == {
        ("input", "0"),
        ("0", "0.scale"),
        ("0.scale", "0.w_rec"),
        ("0.w_rec", "0"),
        ("0.scale", "output"),
    }


# --- layers --------------------------------------------------------------------------------------


def test_types_are_right_where_nir_infers_them_wrongly():
    conv = nn.Conv2d(2, 4, (3, 5), groups=2, bias=False)
    node = graph_of(conv, hidden(), shape=(2, 10, 12)).nodes["0"]
    assert tuple(node.input_type["input"]) == (2, 10, 12)
    assert tuple(node.output_type["output"]) == (4, 8, 8)
    np.testing.assert_array_equal(node.bias, np.zeros(4))


def test_the_graph_survives_a_file(tmp_path):
    graph = graph_of(
        nn.Conv2d(1, 2, 3), hidden(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3),
        snn.RLeaky(0.9, linear_features=3, init_hidden=True), shape=(1, 6, 6),
    )  # fmt: skip
    nir.write(tmp_path / "net.nir", graph)
    again = nir.read(tmp_path / "net.nir")
    assert set(again.edges) == set(graph.edges)
    assert read_hints(again.nodes["5"]) == read_hints(graph.nodes["5"])


def test_batch_norm_is_folded_into_the_weights_before_it():
    norm = nn.BatchNorm1d(4)
    with torch.no_grad():
        for values in (norm.running_mean, norm.weight, norm.bias):
            values.normal_()
        norm.running_var.uniform_(0.5, 2)
    model = nn.Sequential(nn.Linear(3, 4), norm, hidden()).double().eval()
    graph = from_snntorch(model, torch.zeros(2, 3, dtype=torch.float64))
    assert graph.edges == [("input", "0"), ("0", "2"), ("2", "output")]
    x = torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        expected = norm(model[0](x)).numpy()
    affine = graph.nodes["0"]
    np.testing.assert_allclose(x.numpy() @ affine.weight.T + affine.bias, expected, atol=1e-13)


def test_dropout_and_identity_vanish():
    graph = from_snntorch(
        nn.Sequential(nn.Identity(), nn.Linear(3, 3), nn.Dropout(0.5), hidden()).eval(),
        torch.zeros(1, 3),
    )
    assert graph.edges == [("input", "1"), ("1", "3"), ("3", "output")]


def test_flatten_in_all_its_spellings():
    spellings = [
        lambda m, x: torch.flatten(x, 1),
        lambda m, x: torch.flatten(x, start_dim=1),
        lambda m, x: x.flatten(1),
        lambda m, x: x.view(x.size(0), -1),
        lambda m, x: x.reshape(x.shape[0], 12),
    ]
    for flatten in spellings:
        model = Own(lambda m, x, f=flatten: m.lif(m.fc(f(m, x))), fc=nn.Linear(12, 2), lif=hidden())
        node = from_snntorch(model, torch.zeros(2, 3, 4)).nodes["flatten"]
        assert (node.start_dim, node.end_dim) == (0, -1)
        assert tuple(node.output_type["output"]) == (12,)
    part = graph_of(nn.Flatten(2), hidden(), shape=(2, 3, 4)).nodes["0"]
    assert (part.start_dim, tuple(part.output_type["output"])) == (1, (2, 12))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.MaxPool2d(2), "0: expected a layer that NIR can express, got MaxPool2d. Use AvgPool2d"),
        (nn.ReLU(), "got ReLU"),
        (nn.ConvTranspose2d(1, 1, 2), "got ConvTranspose2d"),
        (nn.AvgPool2d(2, ceil_mode=True), "expected ceil_mode=False, got True"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "expected count_include_pad=True"),
        (nn.AvgPool2d(2, divisor_override=3), "expected no divisor_override, got 3"),
        (nn.LPPool2d(2, 2), "expected norm_type=1"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "expected padding_mode='zeros'"),
        (nn.Conv2d(1, 1, 2, padding="same"), "expected padding='same' that pads both sides alike"),
        (nn.Linear(4, 4), "expected a vector per sample"),
        (nn.Flatten(0), "expected start_dim >= 1, got 0"),
        (nn.BatchNorm2d(1, track_running_stats=False).eval(), "expected running statistics"),
    ],
)
def test_layers_that_nir_cannot_say_are_refused(layer, message):
    with pytest.raises(Refused) as caught:
        from_snntorch(nn.Sequential(layer).eval(), torch.zeros(2, 1, 4, 4))
    assert message in str(caught.value)
    assert caught.value.node == "0"
    assert caught.value.remedy


# --- neurons that are refused --------------------------------------------------------------------


def test_options_that_nir_cannot_say_are_refused():
    with pytest.warns(UserWarning, match="Inhibition"):
        inhibited = hidden(inhibition=True)
    with pytest.raises(Refused, match="0: expected inhibition=False, got True"):
        graph_of(inhibited)
    with pytest.raises(Refused, match="expected state_quant=False"):
        graph_of(hidden(state_quant=lambda m: m))
    with pytest.raises(Refused, match="expected a spike_grad that spikes for z > 0"):
        graph_of(hidden(spike_grad=lambda z: (z >= 0).float()))
    with pytest.raises(Refused, match="expected a threshold that is finite and not negative"):
        graph_of(hidden(threshold=-1.0))
    neuron = snn.RSynaptic(0.5, 0.9, linear_features=3, init_hidden=True, reset_delay=False)
    with pytest.raises(Refused, match="expected reset_delay=True, got False"):
        graph_of(neuron)
    with pytest.raises(Refused, match=r"expected R > 0 and a finite R\*C"):
        graph_of(snn.Lapicque(beta=1.0, init_hidden=True))
    with pytest.raises(Refused, match=r"0: expected one of Leaky, RLeaky.*got Alpha"):
        graph_of(snn.Alpha(0.9, 0.8))


def test_a_reset_assigned_after_construction_is_refused():
    neuron = hidden()
    neuron.reset_mechanism = "zero"
    with pytest.raises(Refused, match=r"'zero', 'zero', 'subtract'.*after construction"):
        graph_of(neuron)
    loaded = hidden(reset_mechanism="subtract")
    loaded.load_state_dict(hidden(reset_mechanism="zero").state_dict())
    with pytest.raises(Refused, match="expected one reset mechanism"):
        graph_of(loaded)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(3)])
def test_training_mode_is_refused(layer):
    with pytest.raises(Refused, match=r"1: expected .* in evaluation mode.*model.eval\(\)"):
        graph_of(nn.Linear(3, 3), layer, hidden())


# --- wiring and time -----------------------------------------------------------------------------


def test_the_users_model_stays_as_it_was():
    model = nn.Sequential(nn.Linear(3, 3), hidden(learn_beta=True, learn_threshold=True))
    model(torch.rand(2, 3)).sum().backward()  # the membrane now has a gradient history
    before = {k: v.clone() for k, v in model.state_dict().items()}
    membrane, count = model[1].mem, len(snn.SpikingNeuron.instances)
    from_snntorch(model, torch.ones(5, 3))
    assert model[1].mem is membrane
    assert len(snn.SpikingNeuron.instances) == count
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_lone_neuron_and_a_lone_layer():
    assert set(from_snntorch(snn.Leaky(0.9), torch.zeros(1, 2)).nodes) == {
        "input", "leaky", "output",
    }  # fmt: skip
    assert set(from_snntorch(nn.Linear(2, 2), torch.zeros(1, 2)).nodes) == {
        "input", "linear", "output",
    }  # fmt: skip


def test_nested_modules_are_named_by_path():
    block = nn.Sequential(nn.Linear(3, 3), hidden())
    graph = from_snntorch(nn.Sequential(block, nn.Linear(3, 1)), torch.zeros(1, 3))
    assert set(graph.nodes) == {"input", "0.0", "0.1", "1", "output"}


def test_both_ways_of_returning_spikes():
    for options in ({"init_hidden": True}, {"init_hidden": True, "output": True}, {}):
        graph = graph_of(nn.Linear(3, 2), snn.Leaky(0.9, **options))
        assert graph.edges == [("input", "0"), ("0", "1"), ("1", "output")]


def test_several_inputs_and_outputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)
            self.lif, self.out = hidden(), hidden()

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> Any:
            spikes = self.lif(self.a(left) + self.b(right))
            return spikes, self.out(spikes)

    for sample in ((torch.zeros(2, 3), torch.zeros(2, 4)),
                   {"left": torch.zeros(2, 3), "right": torch.zeros(2, 4)}):  # fmt: skip
        graph = from_snntorch(Two(), sample)
        assert {"left", "right", "output_0", "output_1"} <= set(graph.nodes)
        assert {("lif", "output_0"), ("out", "output_1"), ("b", "lif")} <= set(graph.edges)


def test_a_time_loop_over_a_constant_input():
    def forward(m: Any, x: torch.Tensor) -> Any:
        m.lif.reset_mem()
        return torch.stack([m.lif(m.fc(x)) for _ in range(5)])

    graph = from_snntorch(Own(forward, fc=nn.Linear(3, 2), lif=hidden()), torch.zeros(2, 3))
    assert graph.edges == [("input", "fc"), ("fc", "lif"), ("lif", "output")]


def test_time_second_and_iteration_over_time():
    def second(m: Any, x: torch.Tensor) -> Any:
        return torch.stack([m.lif(m.fc(x[:, t])) for t in range(x.size(1))], dim=1)

    def iterated(m: Any, x: torch.Tensor) -> Any:
        return [m.lif(m.fc(now)) for now in x]

    def whole(m: Any, x: torch.Tensor) -> Any:
        currents = m.fc(x)
        return torch.stack([m.lif(currents[t]) for t in range(len(x))])

    for forward, shape in ((second, (2, 4, 3)), (iterated, (4, 2, 3)), (whole, (4, 2, 3))):
        model = Own(forward, fc=nn.Linear(3, 2), lif=hidden())
        graph = from_snntorch(model, torch.zeros(shape))
        assert graph.edges == [("input", "fc"), ("fc", "lif"), ("lif", "output")]
        assert tuple(graph.nodes["input"].input_type["input"]) == (3,)


def test_utils_reset_inside_forward():
    from snntorch import utils

    def forward(m: Any, x: torch.Tensor) -> Any:
        utils.reset(m)
        return torch.stack([m.lif(m.fc(x[t])) for t in range(x.shape[0])])

    model = Own(forward, fc=nn.Linear(3, 2), lif=hidden())
    model(torch.ones(3, 2, 3))
    membrane = model.lif.mem
    assert len(from_snntorch(model, torch.zeros(3, 2, 3)).nodes) == 4
    assert model.lif.mem is membrane


def test_a_recurrence_over_two_steps_is_refused():
    def forward(m: Any, x: torch.Tensor) -> Any:
        now = torch.zeros_like(x) if m.ago is None else m.ago
        m.ago, spikes = m.last, m.lif(m.fc(x) + now)
        m.last = spikes
        return spikes

    model = Own(forward, fc=nn.Linear(3, 3), lif=hidden())
    model.ago = model.last = None
    with pytest.raises(Refused, match="lif: expected sources of the same step or the step before"):
        from_snntorch(model, torch.zeros(2, 3))


def test_parameterless_layers_may_be_shared():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), hidden(), nn.Conv2d(1, 1, 1), hidden())
    pool = nn.AvgPool2d(2)
    model = nn.Sequential(model[0], pool, model[1], model[2], pool, model[3])
    graph = from_snntorch(model, torch.zeros(1, 1, 8, 8))
    pools = {n for n, node in graph.nodes.items() if isinstance(node, nir.AvgPool2d)}
    assert pools == {"1", "1_1"}
    assert tuple(graph.nodes["5"].input_type["input"]) == (1, 2, 2)


def _refused(forward: Any, match: str, sample: torch.Tensor | None = None, **layers: Any) -> None:
    layers = {"fc": nn.Linear(3, 3), "lif": hidden(), "lif2": hidden()} | layers
    with pytest.raises(Refused, match=match) as caught:
        from_snntorch(Own(forward, **layers), torch.zeros(2, 3) if sample is None else sample)
    assert caught.value.remedy


def test_operations_that_nir_cannot_say_are_refused_by_name():
    _refused(lambda m, x: torch.relu(m.lif(m.fc(x))), r"relu: expected layers.*got relu\(\)")
    _refused(lambda m, x: m.lif(m.fc(x) * 2), r"mul: .*got mul\(\)")
    _refused(lambda m, x: m.lif(m.fc(x) + 1.0), "add: expected a signal.*got a constant")
    _refused(lambda m, x: m.lif(x + x), "every source once in a sum")
    _refused(lambda m, x: m.lif(torch.cat([x, x], 1)[:, :3]), r"got cat\(\)")
    _refused(lambda m, x: m.lif(x) if x.sum() > 0 else x, r"branch on the value|got sum\(\)")
    _refused(lambda m, x: torch.ones(2, 3), "output: expected signals|reach a layer|got a constant")
    _refused(
        lambda m, x: m.fc(m.shown(x)[1]),
        "fc: expected spikes or currents, got the hidden state of 'shown'",
        shown=snn.Leaky(0.9),
    )
    _refused(lambda m, x: m.shown(x)[1], "output: .*hidden states only", shown=snn.Leaky(0.9))


def test_steps_that_disagree_are_refused():
    time = torch.zeros(3, 2, 3)
    _refused(lambda m, x: m.lif(m.fc(m.lif(m.fc(x)))), "expected the same sources at every step")
    _refused(
        lambda m, x: torch.stack([m.lif(m.fc(x[t])) for t in range(3)]).sum(0),
        "expected 'lif' at every step",
        time,
    )
    _refused(
        lambda m, x: torch.stack([m.lif(m.fc(x[max(t - 1, 0)])) for t in range(3)]),
        "fc: expected sources of the same step",
        time,
    )
    _refused(
        lambda m, x: torch.stack([m.lif(m.fc(x[t]), torch.zeros(2, 3))[0] for t in range(3)]),
        "lif: expected call 2 of this neuron to continue the state of call 1, got a fresh state",
        time,
        lif=snn.Leaky(0.9),
    )
    _refused(
        lambda m, x: m.shown(x, torch.ones(2, 3))[0],
        "shown: expected an initial state of zero",
        shown=snn.Leaky(0.9),
    )
    with pytest.raises(Invalid, match=r"input.*|expected the model to read at least steps 0 and 1"):
        from_snntorch(
            Own(lambda m, x: m.lif(m.fc(x[:, 0])), fc=nn.Linear(3, 3), lif=hidden()),
            torch.zeros(2, 4, 3),
        )


def test_a_late_recurrent_bias_is_refused():
    def forward(m: Any, x: torch.Tensor) -> Any:
        feedback, spikes = 0, []
        for t in range(x.shape[0]):
            spikes.append(m.lif(m.fc(x[t]) + feedback))
            feedback = m.rec(spikes[-1])
        return torch.stack(spikes)

    _refused(forward, "rec: expected a recurrence whose bias acts", torch.zeros(3, 2, 3),
             rec=nn.Linear(3, 3))  # fmt: skip
    model = Own(forward, fc=nn.Linear(3, 3), lif=hidden(), rec=nn.Linear(3, 3, bias=False))
    graph = from_snntorch(model, torch.zeros(3, 2, 3))
    assert {("lif", "rec"), ("rec", "lif")} <= set(graph.edges)


def test_a_delay_outside_a_loop_is_refused():
    def forward(m: Any, x: torch.Tensor) -> Any:
        late, spikes = torch.zeros(2, 3), []
        for t in range(x.shape[0]):
            spikes.append(m.lif2(m.fc2(late)))
            late = m.lif(m.fc(x[t]))
        return torch.stack(spikes)

    _refused(forward, "lif2: expected one arrival time.*Delay node", torch.zeros(3, 2, 3),
             fc2=nn.Linear(3, 3))  # fmt: skip


@pytest.mark.parametrize(
    ("model", "sample", "match"),
    [
        (nn.Linear(3, 2), torch.zeros(2, 4), "forward pass that runs on the sample"),
        (nn.Linear(3, 2), "no tensor", "sample: expected a tensor"),
        (nn.Linear(3, 2), torch.tensor(0.0), "expected a batch axis"),
        ("no model", torch.zeros(2, 4), "expected a torch.nn.Module, got str"),
    ],
)
def test_what_does_not_fit_is_invalid(model, sample, match):
    with pytest.raises(Invalid, match=match):
        from_snntorch(model, sample)


@pytest.mark.parametrize("dt", [0, -1e-3, float("nan"), float("inf"), "1e-3", True])
def test_dt_is_positive_seconds(dt):
    with pytest.raises(Invalid, match="dt: expected a positive time step in seconds"):
        from_snntorch(snn.Leaky(0.9), torch.zeros(1, 1), dt)


def test_in_place_addition_is_refused():
    def forward(m: Any, x: torch.Tensor) -> Any:
        current = m.fc(x)
        current.add_(m.fc2(x))
        return m.lif(current)

    _refused(forward, r"add_: expected layers.*got add_\(\)", fc2=nn.Linear(3, 3))


def test_layers_with_several_outputs_are_refused():
    _refused(lambda m, x: m.rnn(x)[0], "rnn: expected layers with one output, got a LSTM",
             rnn=nn.LSTM(3, 3))  # fmt: skip


def test_one_neuron_per_input_value():
    with pytest.raises(Refused, match=r"0: expected one neuron per value .*\(1,\) and output \(3,"):
        graph_of(hidden(torch.rand(3)), shape=(1,))


def test_modules_may_be_named_as_arguments_and_ends():
    from collections import OrderedDict

    layers = OrderedDict(input=nn.Linear(3, 3), output=hidden())
    graph = from_snntorch(nn.Sequential(layers), torch.zeros(1, 3))
    assert graph.edges == [("input_", "input"), ("input", "output"), ("output", "output_")]
    assert isinstance(graph.nodes["input_"], nir.Input)


def test_batch_and_time_may_be_swapped():
    def forward(m: Any, x: torch.Tensor) -> Any:
        x = x.permute(1, 0, 2)
        return torch.stack([m.lif(m.fc(x[t])) for t in range(x.size(0))]).transpose(0, 1)

    graph = from_snntorch(Own(forward, fc=nn.Linear(3, 2), lif=hidden()), torch.zeros(2, 4, 3))
    assert graph.edges == [("input", "fc"), ("fc", "lif"), ("lif", "output")]
    assert tuple(graph.nodes["input"].input_type["input"]) == (3,)
    _refused(lambda m, x: m.fc(x.permute(0, 2, 1)), r"permute: .*got permute\(\)",
             torch.zeros(2, 3, 3))  # fmt: skip


def test_parametrised_weights_are_the_ones_in_force():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    graph = graph_of(layer, hidden())
    np.testing.assert_array_equal(graph.nodes["0"].weight, layer.weight.detach().double())

"""What the adapters must not drop in silence: operations on states, hooks, side effects, ..."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from grasp_plugin.adapters import from_norse, from_snntorch
from grasp_plugin.errors import GraspError, Invalid, Refused

snn = pytest.importorskip("snntorch")
norse = pytest.importorskip("norse.torch")

X = torch.zeros(2, 3)
TIME = torch.zeros(3, 2, 3)
PLAIN = {("input", "fc"), ("fc", "lif"), ("lif", "output")}


class Own(nn.Module):
    """A model from a forward function and named layers."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in ({"fc": nn.Linear(3, 3), "lif": hidden()} | layers).items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


class OwnStep(Own):
    def forward(self, x: torch.Tensor, state: Any = None) -> Any:
        return self.function(self, x, state)


def hidden(**options: Any) -> Any:
    return snn.Leaky(0.9, init_hidden=True, **options)


def simple(m: Any, x: torch.Tensor) -> Any:
    return m.lif(m.fc(x))


def edges_of(forward: Any, sample: torch.Tensor = X, **layers: nn.Module) -> set[tuple[str, str]]:
    return set(from_snntorch(Own(forward, **layers), sample).edges)


def refused(forward: Any, match: str, sample: torch.Tensor = X, **layers: nn.Module) -> GraspError:
    with pytest.raises(Refused, match=match) as caught:
        edges_of(forward, sample, **layers)
    assert caught.value.remedy
    return caught.value


# --- operations on a hidden state ----------------------------------------------------------------


def loop(change: Any) -> Any:
    """A time loop that does `change(m, membrane)` to the membrane between the steps."""

    def forward(m: Any, x: torch.Tensor) -> Any:
        membrane, spikes = m.lif.reset_mem(), []
        for t in range(x.shape[0]):
            spike, membrane = m.lif(m.fc(x[t]), membrane)
            membrane = change(m, membrane)
            spikes.append(spike)
        return torch.stack(spikes)

    return forward


CHANGES = {
    "mul": lambda m, v: v * 0.5,
    "mul ": lambda m, v: 0.5 * v,
    "truediv": lambda m, v: v / 2,
    "neg": lambda m, v: -v,
    "clamp": lambda m, v: v.clamp(min=0),
    "clamp ": lambda m, v: torch.clamp(v, min=0),
    "relu": lambda m, v: torch.relu(v),
    "gt": lambda m, v: torch.where(v > 0, v, torch.zeros_like(v)),
    "roll": lambda m, v: torch.roll(v, 1),
    "mul_": lambda m, v: v.mul_(0.5),
    "getitem": lambda m, v: v[:, [1, 0, 2]],
    "add": lambda m, v: v + m.fc(v.new_zeros(2, 3)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_arithmetic_on_a_membrane_is_refused_and_names_the_neuron(name):
    got = rf"lif: expected the state as the neuron returned it, got {name.strip()}\(\)\. "
    refused(loop(CHANGES[name]), got, TIME, lif=snn.Leaky(0.9))


def test_a_membrane_set_to_zero_between_steps_is_a_fresh_state():
    refused(loop(lambda m, v: torch.zeros_like(v)), "lif: expected call 2 .*got a fresh state",
            TIME, lif=snn.Leaky(0.9))  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda m, v: v,
        lambda m, v: v.detach(),
        lambda m, v: v.detach_(),
        lambda m, v: torch.clone(v).contiguous(),
        lambda m, v: v.to(torch.float32),
        lambda m, v: nn.functional.dropout(v, 0.5, training=False),
        lambda m, v: v[...] if v.size(0) + v.shape[0] + v.numel() else None,
    ],
)
def test_what_leaves_a_membrane_as_it_is_passes(change):
    assert edges_of(loop(change), TIME, lif=snn.Leaky(0.9)) == PLAIN


def norse_step(change: Any) -> nn.Module:
    def forward(m: Any, x: torch.Tensor, state: Any) -> Any:
        spikes, state = m.lif(m.fc(x), state)
        return spikes, change(m, state, spikes)

    return OwnStep(forward, lif=norse.LIFCell(), rec=nn.Linear(3, 3))


def pair(v: Any, i: Any) -> Any:
    from norse.torch.functional.lif import LIFFeedForwardState

    return LIFFeedForwardState(v, i)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m, s, z: s._replace(v=s.v + m.rec(z)), r"got add\(\)"),
        (lambda m, s, z: s._replace(i=m.rec(z) + s.i), r"got add\(\)"),
        (lambda m, s, z: s._replace(v=s.v.clamp(min=0)), r"got clamp\(\)"),
        (lambda m, s, z: s._replace(i=s.i * 0), r"got mul\(\)"),
        (lambda m, s, z: s._replace(v=s.i), r"got _replace\(\)"),
        (lambda m, s, z: s._replace(v=torch.zeros_like(s.v)), r"got _replace\(\)"),
        (lambda m, s, z: pair(s.v * 2, s.i), r"got mul\(\)"),
        (lambda m, s, z: pair(s.i, s.v), "part 1 of the state of 'lif' after call 1"),
    ],
)
def test_arithmetic_on_a_state_tuple_is_refused(change, match):
    with pytest.raises(Refused, match=match) as caught:
        from_norse(norse_step(change), X)
    assert caught.value.node == "lif"


@pytest.mark.parametrize(
    "change",
    [
        lambda m, s, z: s._replace(v=s.v.detach(), i=s.i),
        lambda m, s, z: pair(s.v, s.i),
        lambda m, s, z: pair(s[0].clone(), s[1]),
    ],
)
def test_a_state_tuple_of_its_own_parts_passes(change):
    assert set(from_norse(norse_step(change), X).edges) == PLAIN


def test_a_class_made_from_a_traced_value_is_refused():
    with pytest.raises(Refused, match=r"forward: expected a class by its name, got type\(x\)"):
        from_norse(norse_step(lambda m, s, z: type(s)(*s)), X)


def test_a_neuron_of_which_only_the_membrane_is_returned_is_refused():
    def forward(m: Any, x: torch.Tensor) -> Any:
        return m.lif(m.fc(x)), m.out(m.fc2(x))[1]

    refused(forward, "out: expected its output to reach an output", out=snn.Leaky(0.9),
            fc2=nn.Linear(3, 3))  # fmt: skip


def test_an_input_that_is_also_a_state_is_refused():
    refused(lambda m, x: m.lif(m.fc(x), x)[0], "input:x: .*got one that is both",
            lif=snn.Leaky(0.9))  # fmt: skip


# --- hooks and replaced forwards -----------------------------------------------------------------


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3, bias=False), hidden())


@pytest.mark.parametrize("at", [0, 1, None])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_that_change_values_are_refused(at, kind):
    model = layers()
    target = model if at is None else model[at]
    hook = (lambda m, i: (3 * i[0],)) if "pre" in kind else (lambda m, i, o: 3 * o)
    getattr(target, kind)(hook)
    name = "Sequential" if at is None else str(at)
    with pytest.raises(Refused, match=f"{name}: expected hooks that change no value"):
        from_snntorch(model, X)


def test_hooks_on_norse_cells_and_inside_neurons_are_refused():
    model = norse.SequentialState(nn.Linear(3, 3), norse.LIFCell())
    model[1].register_forward_hook(lambda m, i, o: (0 * o[0], o[1]))
    with pytest.raises(Refused, match="1: expected hooks that change no value"):
        from_norse(model, X)
    neuron = snn.RLeaky(0.9, linear_features=3, init_hidden=True)
    neuron.recurrent.register_forward_hook(lambda m, i, o: 2 * o)
    refused(simple, "lif: expected hooks that change no value", lif=neuron)


def test_hooks_on_a_state_and_with_keywords_are_refused():
    def drain(m: Any, i: Any, o: Any) -> None:
        m.mem = 0.5 * m.mem

    def in_place(m: Any, i: Any) -> None:
        i[0].mul_(2)

    def clip(m: Any, i: Any, keywords: Any) -> Any:
        return (i[0].clamp(-10, 10),), keywords

    for register, hook in (
        (lambda m: m.register_forward_hook, drain),
        (lambda m: m.register_forward_pre_hook, in_place),
        (lambda m: lambda h: m.register_forward_pre_hook(h, with_kwargs=True), clip),
    ):
        neuron = hidden()
        register(neuron)(hook)
        refused(simple, "lif: expected hooks that change no value", lif=neuron)


def test_hooks_that_return_what_they_got_pass():
    model = layers()
    model[0].register_forward_pre_hook(lambda m, i: i[0])
    model[0].register_forward_hook(lambda m, i, k, o: o, with_kwargs=True)
    model.register_forward_pre_hook(lambda m, i, k: (i, k), with_kwargs=True)
    assert len(from_snntorch(model, X).nodes) == 4


def test_hooks_that_only_look_pass_and_see_values():
    seen: list[float] = []
    model = layers()
    for module in model.modules():
        module.register_forward_hook(lambda m, i, o: seen.append(float(o.mean())))
        module.register_forward_pre_hook(lambda m, i: seen.append(float(i[0].mean())))
    assert len(from_snntorch(model, X).nodes) == 4
    assert seen


def test_global_hooks_are_refused():
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: None)
    try:
        with pytest.raises(Refused, match="expected no global forward hooks"):
            from_snntorch(layers(), X)
    finally:
        handle.remove()
    assert len(from_snntorch(layers(), X).nodes) == 4


def test_hooks_on_a_container_inside_are_traced():
    block = layers()
    block.register_forward_hook(lambda m, i, o: 3 * o)
    with pytest.raises(Refused, match=r"mul: .*got mul\(\)"):
        from_snntorch(nn.Sequential(block), X)


def test_a_hook_that_fails_is_invalid():
    def hook(m: Any, i: Any, o: Any) -> Any:
        raise RuntimeError("no")

    model = layers()
    model.register_forward_hook(hook)
    with pytest.raises(Invalid, match=r"Sequential: expected hooks that run .*RuntimeError: no"):
        from_snntorch(model, X)


@pytest.mark.parametrize("at", [0, 1, None])
def test_a_replaced_forward_is_refused(at):
    model = layers()
    target = model if at is None else model[at]
    old = target.forward
    target.forward = lambda x: 0.3 * old(x)
    kind = type(target).__name__
    with pytest.raises(Refused, match=f"expected the forward of {kind}, got another assigned"):
        from_snntorch(model, X)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 2),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_norms_and_pruning_by_hooks_still_pass(norm, training):
    layer = norm(nn.Linear(3, 3))
    layer.register_forward_hook(lambda m, i, o: None)
    model = nn.Sequential(layer, hidden())
    model(torch.rand(2, 3))
    model.train(training)
    weight = from_snntorch(model, X).nodes["0"].weight
    if not training:
        np.testing.assert_array_equal(weight, layer.weight.detach().double())


# --- weights without values, wrappers, the other adapter -----------------------------------------


def test_a_lazy_layer_that_never_ran_is_invalid():
    model = nn.Sequential(nn.LazyLinear(3), hidden())
    with pytest.raises(Invalid, match="0: expected a weight with values, got a lazy layer"):
        from_snntorch(model, X)
    model(X)
    assert len(from_snntorch(model, X).nodes) == 4


def test_meta_tensors_are_invalid():
    with pytest.raises(Invalid, match=r"0: expected a weight with values, got .*meta device"):
        from_snntorch(layers().to("meta"), X)
    with pytest.raises(Invalid, match="sample: expected values, got a meta tensor"):
        from_snntorch(layers(), X.to("meta"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_wrappers_are_refused_with_what_to_pass():
    traced = torch.jit.trace(nn.Linear(3, 3), X)
    for model, match in (
        (traced, "expected a Python module, got TorchScript"),
        (nn.Sequential(traced, hidden()), "0: expected a Python module"),
        (torch.compile(layers()), "OptimizedModule: .*model._orig_mod"),
        (nn.DataParallel(layers()), "DataParallel: .*model.module"),
    ):
        with pytest.raises(Refused, match=match):
            from_snntorch(model, X)


def test_the_other_adapter_is_named():
    with pytest.raises(Refused, match=r"1: expected neurons of Norse, got Leaky of snnTorch. "
                       "Convert the model with from_snntorch"):  # fmt: skip
        from_norse(layers(), X)
    with pytest.raises(Refused, match="1: expected neurons of snnTorch, got LIFCell of Norse"):
        from_snntorch(norse.SequentialState(nn.Linear(3, 3), norse.LIFCell()), X)
    with pytest.raises(Refused, match="Leaky: expected neurons of Norse"):
        from_norse(hidden(), X)


# --- side effects --------------------------------------------------------------------------------


def test_a_sum_in_place_whose_left_side_is_read_later_is_refused():
    def alias(m: Any, x: torch.Tensor) -> Any:
        spikes = m.lif(m.fc(x))
        old = spikes
        spikes += x
        return m.fc2(old)

    def view(m: Any, x: torch.Tensor) -> Any:
        spikes = m.lif(m.fc(x))
        old = torch.flatten(spikes, 1).detach()
        spikes += x
        return m.fc2(old)

    def listed(m: Any, x: torch.Tensor) -> Any:
        spikes = []
        for t in range(x.shape[0]):
            spikes.append(m.lif(m.fc(x[t])))
            last = spikes[-1]
            last += x[t]
        return torch.stack(spikes)

    for forward, sample in ((alias, X), (view, X), (listed, TIME)):
        refused(forward, r"iadd.*: expected the left side of \+= to be read no more", sample,
                fc2=nn.Linear(3, 3))  # fmt: skip


def test_a_sum_in_place_that_nobody_else_reads_passes():
    def forward(m: Any, x: torch.Tensor) -> Any:
        spikes, outs = torch.zeros(2, 3), []
        for t in range(x.shape[0]):
            now = x[t]
            now += m.rec(spikes)
            spikes = m.lif(m.fc(now))
            outs.append(spikes)
        return torch.stack(outs)

    rec = nn.Linear(3, 3, bias=False)
    assert edges_of(forward, TIME, rec=rec) == PLAIN | {("lif", "rec"), ("rec", "fc")}


def test_assigning_to_a_traced_tensor_is_refused():
    def forward(m: Any, x: torch.Tensor) -> Any:
        spikes = m.lif(m.fc(x))
        spikes.data = 0.5 * x
        return spikes

    refused(forward, r"lif: .*assigns nothing to a tensor, got \.data")


def set_membrane(m: Any) -> None:
    m.lif.mem = m.lif.mem * 0.5


def reset_late(m: Any) -> None:
    m.lif.reset_mem()


@pytest.mark.parametrize(
    "change",
    [set_membrane, reset_late, lambda m: m.lif.mem.mul_(0.5), lambda m: m.lif.mem.data.mul_(0.5)],
)
def test_a_membrane_changed_on_the_neuron_is_refused(change):
    def forward(m: Any, x: torch.Tensor) -> Any:
        spikes = m.lif(m.fc(x))
        change(m)
        return spikes

    refused(forward, "lif: expected the state as the neuron left it, got a 'mem' that the forward",
            fc=nn.Linear(3, 3, bias=False))  # fmt: skip


def test_a_membrane_that_starts_from_other_values_or_is_read_is_refused():
    def start(m: Any, x: torch.Tensor) -> Any:
        m.lif.mem = torch.ones(2, 3)
        return torch.stack([m.lif(m.fc(x[t])) for t in range(3)])

    refused(start, "lif: expected the state as the neuron left it", TIME)
    refused(lambda m, x: m.lif2(m.fc(m.lif(x)) + m.lif.mem), "add: .*got a constant",
            fc=nn.Linear(3, 3, bias=False), lif2=hidden())  # fmt: skip


def test_spikes_changed_in_place_that_the_neuron_feeds_back_are_refused():
    def forward(m: Any, x: torch.Tensor) -> Any:
        spikes = m.lif(m.fc(x))
        spikes += x
        return m.fc2(spikes)

    refused(forward, "lif: .*got a 'spk' that the forward pass changed", fc2=nn.Linear(3, 3),
            lif=snn.RLeaky(0.9, linear_features=3, init_hidden=True))  # fmt: skip


def test_a_detached_membrane_passes():
    def assigned(m: Any, x: torch.Tensor) -> Any:
        m.lif.mem = m.lif.mem.detach()
        return m.lif(m.fc(x))

    def in_place(m: Any, x: torch.Tensor) -> Any:
        m.lif.mem.detach_()
        return m.lif(m.fc(x))

    assert edges_of(assigned) == edges_of(in_place) == PLAIN


def test_parameters_changed_in_the_forward_pass_are_refused():
    def weights(m: Any, x: torch.Tensor) -> Any:
        m.fc.weight.data.clamp_(-0.01, 0.01)
        return m.lif(m.fc(x))

    def threshold(m: Any, x: torch.Tensor) -> Any:
        m.lif.threshold = m.lif.threshold * 1.1
        return m.lif(m.fc(x))

    refused(weights, "fc: expected a forward pass that leaves 'weight' as it is")
    refused(threshold, "lif: expected a forward pass that leaves 'threshold' as it is")
    model = Own(weights)
    model(X)  # clamped once, the weights stay
    before = copy.deepcopy(model.state_dict())
    assert set(from_snntorch(model, X).edges) == PLAIN
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if "mem" not in k)


def test_weights_that_are_nan_are_not_called_a_changed_state():
    fc = nn.Linear(3, 3)
    nn.init.constant_(fc.weight, float("nan"))
    assert edges_of(simple, fc=fc) == PLAIN


# --- arguments and messages ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: torch.flatten(x, end_dim=-1, start_dim=1),
        lambda x: torch.flatten(x, end_dim=2, start_dim=1),
        lambda x: torch.flatten(input=x, start_dim=1),
        lambda x: x.flatten(end_dim=-1, start_dim=1),
        lambda x: x.flatten(1, end_dim=-1),
    ],
)
def test_flatten_by_keyword(flatten):
    def forward(m: Any, x: torch.Tensor) -> Any:
        return m.lif(m.fc(flatten(x)))

    node = from_snntorch(Own(forward, fc=nn.Linear(12, 3)), torch.zeros(2, 3, 4)).nodes["flatten"]
    assert (node.start_dim, node.end_dim) == (0, -1)


def test_first_arguments_by_keyword():
    assert edges_of(lambda m, x: torch.stack(tensors=[m.lif(m.fc(x[t])) for t in range(3)], dim=0),
                    TIME) == PLAIN  # fmt: skip
    refused(lambda m, x: torch.relu(input=m.lif(m.fc(x))), r"got relu\(\)")
    assert ("flatten", "lif") in edges_of(
        lambda m, x: m.lif(torch.flatten(end_dim=2, start_dim=1, input=x)),
        torch.zeros(2, 3, 1),
    )


def test_a_constant_filled_in_place_is_refused():
    def forward(m: Any, x: torch.Tensor) -> Any:
        bias = torch.zeros_like(x)
        bias.fill_(1.0)
        return m.lif(m.fc(x) + bias)

    refused(forward, r"fill_: expected constants that are not changed in place, got fill_\(\)")


def test_values_read_out_of_a_signal_are_refused():
    refused(lambda m, x: m.lif(m.fc(x)) if x.equal(x) else x, r"got equal\(\)")
    with pytest.raises(Refused, match=r"got item\(\)"):
        from_snntorch(Own(lambda m, x: m.lif(x) if x.item() else x), torch.zeros(1, 1))


def test_messages_name_calls_and_steps_in_words():
    def twice(m: Any, x: torch.Tensor) -> Any:
        return torch.stack([m.lif(m.fc(x[t]) + m.fc2(m.fc(x[t]))) for t in range(3)])

    refused(twice, "fc: .*got step 0 of the input 'x' as a source of its call 2", TIME,
            fc2=nn.Linear(3, 3))  # fmt: skip

    def substeps(m: Any, x: torch.Tensor) -> Any:
        return torch.stack([[m.lif(m.fc(x[t])) for _ in range(2)][1] for t in range(3)])

    error = refused(substeps, "stack: .*got call 2 of 'lif', call 4 of 'lif', call 6 of", TIME)
    assert "frozenset" not in str(error)
    refused(lambda m, x: m.lif(x + x), "got the input 'x' . the input 'x'")


def test_a_sample_without_batch_axis_is_named():
    for convert, model in ((from_snntorch, layers()),
                           (from_norse, norse.SequentialState(nn.Linear(3, 3)))):  # fmt: skip
        with pytest.raises(Refused, match="got a single number, so the sample has no batch axis"):
            convert(model, torch.zeros(3))


def test_numpy_samples_and_steps_are_taken():
    for dtype in (np.float64, np.float32, np.int64, bool):
        assert len(from_snntorch(layers(), np.zeros((2, 3), dtype)).nodes) == 4
    graph = from_snntorch(layers(), X, dt=np.float32(1e-3))
    np.testing.assert_allclose(graph.nodes["1"].tau, 1e-2, rtol=1e-6)
    assert len(from_norse(norse.SequentialState(norse.LIFCell()), X, np.float32(1e-3)).nodes) == 3
    with pytest.raises(
        Invalid, match=r"sample: expected a tensor, .* got ndarray with \['input'\]"
    ):
        from_snntorch(layers(), np.array(["a"]))
    with pytest.raises(Invalid, match=r"dt: expected .*got array\(0.001\) \(ndarray\)"):
        from_snntorch(layers(), X, dt=np.array(1e-3))

"""OTTT in the user's own module: against autograd, against `learning.ottt`, and what is refused."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning import Factors, ottt
from grasp_plugin.learning.losses import one_hot, ottt_loss
from grasp_plugin.learning.signals import Backpropagation
from grasp_plugin.learning.traces import CurrentExponential, Exponential, SynapticExponential
from grasp_plugin.training.ottt_layers import (
    TracedLinear,
    detach,
    reset_traces,
    with_traces,
    without_traces,
)

snn = pytest.importorskip("snntorch")
log = logging.getLogger(__name__)
SIZES, BATCH, STEPS, BETAS = (8, 16, 14, 5), 6, 9, (0.5, 0.75)
Grads = dict[str, Tensor]


def sigmoid_surrogate(x: Tensor) -> Tensor:
    """H forward; backward 4 sg(4x) (1 - sg(4x)), as `learning.ottt` has it."""
    smooth = torch.sigmoid(4 * x)
    return (x > 0).to(x.dtype) + smooth - smooth.detach()


class Net(nn.Module):
    """Linear-Leaky-Linear-Leaky-Linear, one step per call, states handed to and fro."""

    def __init__(self, betas: tuple[float, float] = BETAS, **leaky: Any) -> None:
        super().__init__()
        torch.manual_seed(11)
        leaky = {"spike_grad": sigmoid_surrogate, **leaky}
        self.fc1 = nn.Linear(*SIZES[:2])
        self.lif1 = snn.Leaky(beta=betas[0], **leaky)
        self.fc2 = nn.Linear(*SIZES[1:3])
        self.lif2 = snn.Leaky(beta=betas[1], **leaky)
        self.fc3 = nn.Linear(*SIZES[2:])
        self.double()
        with torch.no_grad():
            for layer in (self.fc1, self.fc2, self.fc3):
                layer.weight.mul_(2.5)
                layer.bias.add_(0.4)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        mem1, mem2 = state or (x.new_zeros(BATCH, SIZES[1]), x.new_zeros(BATCH, SIZES[2]))
        s1, mem1 = self.lif1(self.fc1(x), mem1)
        s2, mem2 = self.lif2(self.fc2(s1), mem2)
        self.spikes = (s1, s2)
        return self.fc3(s2), (mem1, mem2)


LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def inputs(steps: int = STEPS) -> Tensor:
    return (
        torch.rand(steps, BATCH, SIZES[0], generator=torch.Generator().manual_seed(3)) < 0.5
    ) * 1.0


def run(net: nn.Module, hand: Callable[[Any], Any] = lambda s: s, x: Any = None) -> Grads:
    """One backward per step; the gradients summed over time."""
    net.zero_grad()
    reset_traces(net)
    state = None
    for now in (inputs() if x is None else x).double():
        logits, state = net(now, hand(state))
        (cross_entropy(logits, LABELS) / STEPS).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def alive(net: Net, layer: int) -> Grads:
    """Autograd through the whole sequence where only one layer's membrane is not detached."""
    net.zero_grad()
    state, total = None, torch.zeros(()).double()
    for now in inputs().double():
        logits, state = net(now, state)
        total = total + cross_entropy(logits, LABELS) / STEPS
        if not net.lif1.reset_delay:  # the gradient of the reset of this step, taken back
            state = tuple(m + s - s.detach() for m, s in zip(state, net.spikes, strict=True))
        state = tuple(m if n == layer else m.detach() for n, m in enumerate(state))
    total.backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def close(what: str, got: Tensor, want: Tensor, tol: float = 1e-12) -> None:
    error = float((got - want).abs().max())
    log.info("%s: %.1e of %.1e", what, error, float(want.abs().max()))
    assert error <= tol, f"{what}: {error:.2e}"


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hand", [lambda s: s, detach], ids=["hook", "detach"])
@pytest.mark.parametrize(
    "leaky", [{}, {"reset_mechanism": "none"}, {"reset_delay": False}], ids=str
)
def test_each_layer_is_autograd_with_its_own_leak_alive(hand: Any, leaky: Any) -> None:
    net = Net(**leaky)
    want = [alive(net, n) for n in range(3)]
    got = run(with_traces(net), hand)
    for n in range(3):
        for kind in ("weight", "bias"):
            name = f"fc{n + 1}.{kind}"
            close(name, got[name], want[n][name])
            assert float(want[n][name].abs().max()) > 1e-3
    if leaky == {}:
        plain = run(without_traces(net), detach)
        for name in ("fc1.weight", "fc2.weight", "fc1.bias", "fc2.bias"):
            gap = float((plain[name] - got[name]).norm() / got[name].norm())
            assert gap > 0.05  # without traces it is another gradient
        assert torch.equal(plain["fc3.weight"], got["fc3.weight"])  # memoryless: the spike itself


def rule_gradient(net: Net, official: bool) -> Grads:
    """Minus the summed deltas of `learning.ottt` with `Backpropagation`, on the same forward."""
    w = [p.detach() for p in (net.fc1.weight, net.fc2.weight, net.fc3.weight)]
    b = [p.detach() for p in (net.fc1.bias, net.fc2.bias, net.fc3.bias)]
    decays = (*BETAS, BETAS[1])
    layers = ("first", "hidden", "readout")
    pairs = zip(decays, layers, strict=True)
    rules = [ottt(1.0, decay=d, layer=layer, official=official) for d, layer in pairs]
    states = [r.init(p, batch=BATCH) for r, p in zip(rules, w, strict=True)]
    signals = Backpropagation(ottt_loss(STEPS))
    sums = {f"fc{n + 1}.{k}": p[n] * 0 for n in range(3) for k, p in (("weight", w), ("bias", b))}
    mem = [torch.zeros(BATCH, n).double() for n in SIZES[1:3]]
    hot = one_hot(LABELS, SIZES[-1], b[0])
    for now in inputs().double():
        pre, margins = [now], []
        for n in range(2):
            reset = (mem[n] > 1).double()
            mem[n] = BETAS[n] * mem[n] + pre[n] @ w[n].T + b[n] - reset
            margins.append(mem[n] - 1)
            pre.append((margins[n] > 0).double())
        signal = signals.top(pre[2] @ w[2].T + b[2], hot)
        for n in (2, 1, 0):
            margin = margins[n] if n < 2 else None
            factors = Factors(pre[n], signal=signal, membrane=margin)
            delta, states[n] = rules[n].update(factors, states[n], w[n])
            sums[f"fc{n + 1}.weight"] -= delta["weight"].dense()
            sums[f"fc{n + 1}.bias"] -= delta["bias"]
            signal = signals.below(rules[n].error(factors), w[n])  # type: ignore[attr-defined]
    return sums


@pytest.mark.parametrize("official", [False, True])
def test_equals_the_rule_with_explicit_factors(official: bool) -> None:
    net = Net()
    want = rule_gradient(net, official)
    got = run(with_traces(net, official=official))
    for name, value in want.items():
        close(name, got[name], value)


@pytest.mark.parametrize(
    ("knob", "changes"),
    [
        ("first_layer_trace", {"fc1.weight"}),
        ("readout_trace", {"fc3.weight"}),
        ("bias_trace", {"fc1.bias", "fc2.bias"}),
    ],
)
def test_each_official_knob_alone(knob: str, changes: set[str]) -> None:
    net = Net()
    exact, official = rule_gradient(net, False), rule_gradient(net, True)
    got = run(with_traces(net, **{knob: "official"}))
    back = run(with_traces(net, official=True, **{knob: "exact"}))
    for name, value in got.items():
        mine, other = (official, exact) if name in changes else (exact, official)
        close(name, value, mine[name])
        close(name, back[name], other[name])
        if name in changes:
            assert float((official[name] - exact[name]).abs().max()) > 1e-3


def test_one_loss_over_the_sequence_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net = with_traces(Net())
    want = run(net)
    net.zero_grad()
    reset_traces(net)
    state, total = None, torch.zeros(()).double()
    for now in inputs().double():
        logits, state = net(now, state)
        total = total + cross_entropy(logits, LABELS) / STEPS
    total.backward()
    for name, p in net.named_parameters():
        close(name, p.grad, want[name])


def test_init_hidden_is_detached_too() -> None:
    net, seq = Net(), None
    want = run(with_traces(net))
    without_traces(net)
    first, second = (snn.Leaky(b, init_hidden=True, spike_grad=sigmoid_surrogate) for b in BETAS)
    seq = nn.Sequential(net.fc1, first, net.fc2, second, net.fc3).double()
    with_traces(seq)
    net.zero_grad()
    for now in inputs().double():
        (cross_entropy(seq(now), LABELS) / STEPS).backward()
    for name, p in net.named_parameters():
        close(name, p.grad, want[name])


CONVS = {
    "stride": {"stride": 2},
    "padding": {"padding": 1},
    "dilation": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2},
    "all": {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": False},
    "same": {"padding": "same"},
    "same even": {"padding": "same", "kernel_size": 2},
    "valid": {"padding": "valid"},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflect": {"padding": 1, "padding_mode": "reflect", "stride": 2},
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("options", CONVS.values(), ids=CONVS)
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_convolution_is_autograd_of_op_of_the_trace(kind: Any, options: Any) -> None:
    torch.manual_seed(2)
    conv = kind(4, 6, **{"kernel_size": 3, **options}).double()
    space = (9, 8)[: conv.weight.ndim - 2]
    plain = copy.deepcopy(conv)
    with_traces(conv, {"": 0.5})
    a, c = torch.zeros(3, 4, *space).double(), 0.0
    for _ in range(4):
        x = (torch.rand(3, 4, *space) < 0.4).double().requires_grad_()
        y, same = conv(x), plain(x)
        g = torch.randn_like(y)
        conv.zero_grad()
        got = torch.autograd.grad((y * g).sum(), [x, *conv.parameters()])
        want_x = torch.autograd.grad((same * g).sum(), x)[0]
        a, c = 0.5 * a + x.detach(), 0.5 * c + 1
        want = torch.autograd.grad((plain(a) * g).sum(), list(plain.parameters()))
        assert torch.equal(y, same)
        assert torch.equal(got[0], want_x)
        close("conv weight", got[1], want[0])
        if conv.bias is not None:
            close("conv bias", got[2], c * want[1])


def test_convolution_without_a_batch_and_linear_with_more_axes() -> None:
    torch.manual_seed(2)
    conv = with_traces(nn.Conv1d(2, 3, 3).double(), {"": 0.5})
    linear = with_traces(nn.Linear(4, 3).double(), {"": 0.5})
    for layer, shape in ((conv, (2, 7)), (linear, (5, 2, 4)), (linear, (4,))):
        reset_traces(layer)
        plain, a, c = without_traces(copy.deepcopy(layer)), torch.zeros(shape).double(), 0.0
        for _ in range(3):
            x = torch.rand(shape).double().requires_grad_()
            g = torch.randn_like(y := layer(x))
            got = torch.autograd.grad((y * g).sum(), [x, layer.weight, layer.bias])
            a, c = 0.5 * a + x.detach(), 0.5 * c + 1
            want = torch.autograd.grad((plain(a) * g).sum(), [plain.weight, plain.bias])
            assert torch.equal(got[0], torch.autograd.grad((plain(x) * g).sum(), x)[0])
            close("weight", got[1], want[0])
            close("bias", got[2], c * want[1])


@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 4), nn.Conv1d(3, 4, 2), nn.Conv2d(3, 2, 2, 2)], ids=str
)
def test_gradcheck_of_the_input_gradient(layer: Any) -> None:
    layer = with_traces(copy.deepcopy(layer).double(), {"": 0.9})
    shape = (2, 3, 4, 4)[: max(2, layer.weight.ndim)]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)


def test_forward_and_input_gradients_are_bit_identical() -> None:
    x = inputs().double()

    def trajectory(net: Net) -> list[Tensor]:
        state, out = None, []
        for now in x.clone():
            now.requires_grad_()
            logits, state = net(now, detach(state))
            loss = cross_entropy(logits, LABELS)
            out += [logits.detach(), *detach(state), torch.autograd.grad(loss, now)[0]]
        return out

    net = Net()
    plain = trajectory(net)
    for a, b in zip(plain, trajectory(with_traces(net)), strict=True):
        assert torch.equal(a, b)


def test_one_forward_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"linear": 0, "conv2d": 0}
    for name in calls:
        real = getattr(nn.functional, name)

        def counted(*args: Any, _name: str = name, _real: Any = real) -> Tensor:
            calls[_name] += 1
            return _real(*args)  # type: ignore[no-any-return]

        monkeypatch.setattr(nn.functional, name, counted)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    with_traces(net, {"0": 0.5, "2": 0.5})
    for _ in range(5):
        net(torch.rand(2, 1, 4, 4)).sum().backward()
    assert calls == {"linear": 5, "conv2d": 5}


def peak_bytes(work: Callable[[], Any]) -> int:
    """The peak of what the allocator holds, from the profiler's record of each allocation."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = record.profiler.kineto_results.events()  # type: ignore[union-attr]
    held = top = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        top = max(top, held)
    return top


def test_memory_is_flat_in_time() -> None:
    def train(steps: int, through_time: bool = False) -> None:
        leaky = snn.Leaky(0.5, spike_grad=sigmoid_surrogate, init_hidden=True)
        net = nn.Sequential(nn.Linear(8, 32), leaky, nn.Linear(32, 5)).double()
        net = net if through_time else with_traces(net)
        total, x = torch.zeros(()).double(), torch.ones(BATCH, 8).double()
        for _ in range(steps):
            loss = net(x).sum()
            if through_time:
                total = total + loss
            else:
                loss.backward()
        if through_time:
            total.backward()

    ours = {steps: peak_bytes(lambda n=steps: train(n)) for steps in (50, 1000)}
    bptt = {steps: peak_bytes(lambda n=steps: train(n, True)) for steps in (50, 100)}
    log.info("peak bytes by steps: traces %s, BPTT %s", ours, bptt)
    assert ours[1000] == ours[50]
    assert bptt[100] > 1.8 * bptt[50] > 3 * ours[50]


# --- other neurons --------------------------------------------------------------------------------


def chain_gradient(cell: Any, w: Tensor, x: Tensor) -> Tensor:
    """Autograd through the cell's state, reset detached, of a loss on its output at each step."""
    w, state, total = w.clone().requires_grad_(), None, torch.zeros(()).double()
    for t, now in enumerate(x):
        out, state = cell(now @ w.T, state)
        if hasattr(cell.p, "v_th"):  # Norse's reset carries the spike's gradient: take it back
            state = type(state)(state.v + cell.p.v_th * (out - out.detach()))
        total = total + (out * (t + 1)).sum()
    return torch.autograd.grad(total, w)[0]


def test_norse_cells_with_one_filter_are_exact() -> None:
    norse = pytest.importorskip("norse.torch")
    functional = pytest.importorskip("norse.torch.functional.reset")
    x = inputs().double()
    for cell in (
        norse.LIBoxCell(norse.LIBoxParameters(torch.tensor(150.0)), dt=0.001),
        norse.LIFBoxCell(
            norse.LIFBoxParameters(torch.tensor(150.0), reset_method=functional.reset_subtract,
            v_th=torch.tensor(50.0)), dt=0.001,
        ),
    ):  # fmt: skip
        net = norse.SequentialState(nn.Linear(SIZES[0], 3, bias=False).double(), cell)
        want = chain_gradient(cell, net[0].weight.detach(), x)
        with_traces(net)
        assert net[0].trace.decay == pytest.approx(0.85)
        state = None
        for t, now in enumerate(x):
            out, state = net(now, state)
            (out * (t + 1)).sum().backward()
        close(type(cell).__name__, net[0].weight.grad, want)


def test_a_second_order_neuron_with_the_trace_of_the_caller() -> None:
    fc = nn.Linear(SIZES[0], 4).double()
    neuron = snn.Synaptic(alpha=0.75, beta=0.5).double()
    net = with_traces(nn.Sequential(fc, neuron), {"0": CurrentExponential(decay=0.5, current=0.75)})
    plain, w = snn.Synaptic(alpha=0.75, beta=0.5).double(), fc.weight.detach().clone()
    w.requires_grad_()
    total, state, old = torch.zeros(()).double(), (None, None), (None, None)
    for t, now in enumerate(inputs().double()):
        spikes, *state = net[1](net[0](now), *state)
        (spikes * (t + 1)).sum().backward()
        s, *old = plain(now @ w.T + fc.bias.detach(), *old)
        total = total + (s * (t + 1)).sum()
    close("Synaptic", fc.weight.grad, torch.autograd.grad(total, w)[0])


def test_the_recurrent_layer_of_a_neuron_where_the_caller_names_it() -> None:
    torch.manual_seed(0)
    fc = nn.Linear(SIZES[0], 4).double()
    neuron = snn.RLeaky(0.5, linear_features=4, spike_grad=sigmoid_surrogate).double()
    net = nn.Sequential(fc, neuron)
    plain, total, spikes, mem = copy.deepcopy(net), torch.zeros(()).double(), None, None
    for t, now in enumerate(inputs().double()):
        spikes, mem = plain[1](plain[0](now), None if spikes is None else spikes.detach(), mem)
        total = total + (spikes * (t + 1)).sum()
    want = torch.autograd.grad(total, list(plain.parameters()))
    with_traces(net, {"0": 0.5, "1.recurrent": 0.5})
    spikes = mem = None
    for t, now in enumerate(inputs().double()):
        spikes, mem = net[1](net[0](now), spikes, mem)
        (spikes * (t + 1)).sum().backward()
    for (name, p), value in zip(net.named_parameters(), want, strict=True):
        close(name, p.grad, value, 1e-11)


def test_one_number_is_the_trace_of_an_official_readout_too() -> None:
    net = nn.Sequential(nn.Linear(3, 2), snn.Synaptic(0.5, 0.5), nn.Linear(2, 2))
    with_traces(net, 0.75, readout_trace="official")
    assert [net[n].trace for n in (0, 2)] == [Exponential(0.75)] * 2


# --- the module stays the user's ------------------------------------------------------------------


def test_state_dict_and_an_optimizer_made_before() -> None:
    net = Net()
    before, params = net.state_dict(), list(net.parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with_traces(net)
    assert list(net.state_dict()) == list(before)
    assert all(a is b for a, b in zip(net.parameters(), params, strict=True))
    run(net)
    twin = nn.Parameter(net.fc1.weight.detach().clone())  # torch may fuse the step: ask torch
    twin.grad = net.fc1.weight.grad.clone()
    torch.optim.SGD([twin], lr=0.1).step()
    assert not torch.equal(net.fc1.weight, twin)
    optimizer.step()
    assert torch.equal(net.fc1.weight, twin)
    net.load_state_dict(before)
    assert list(without_traces(net).state_dict()) == list(before)
    assert type(net.fc1) is nn.Linear
    assert not net.lif1._forward_pre_hooks
    assert run(net, detach).keys() == before.keys() & dict(net.named_parameters()).keys()


def test_copy_and_pickle_in_the_middle_of_a_sequence() -> None:
    net = with_traces(Net(), official=True)
    x = inputs().double()
    _, state = net(x[0])
    net.spikes = None
    net.lif1.mem, net.lif2.mem = net.lif1.mem.detach(), net.lif2.mem.detach()  # torch cannot copy
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    twins = [
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.load(buffer, weights_only=False),
    ]
    want = None
    for twin in (net, *twins):
        twin(x[1], detach(state))[0].sum().backward()
        grads = [p.grad for p in twin.parameters()]
        want = want or grads
        assert all(torch.equal(a, b) for a, b in zip(grads, want, strict=True))
        without_traces(twin)
        assert not twin.lif2._forward_pre_hooks
        assert type(twin.fc2) is nn.Linear


def test_roles_are_said_and_twice_is_as_once(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    with caplog.at_level(logging.INFO):
        with_traces(with_traces(net), 0.9)
    assert "fc1 (first): trace Exponential(decay=0.9)" in caplog.text
    assert "fc2 (hidden)" in caplog.text
    assert "fc3 (readout): trace Instant(), bias Instant()" in caplog.text
    assert len(net.lif1._forward_pre_hooks) == 1
    assert "trace=Exponential(decay=0.9)" in repr(net)


def test_branches_into_the_first_neuron_are_both_first() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.lif = nn.Linear(3, 2), nn.Linear(3, 2), snn.Leaky(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.lif((2 * self.a(x) + self.b(x)[:, :]) / 3, x.new_zeros(2, 2))[0]  # type: ignore[no-any-return]

    net = with_traces(Branches(), first_layer_trace="official")
    assert [repr(layer.trace) for layer in (net.a, net.b)] == ["Instant()"] * 2
    net(torch.ones(2, 3)).sum().backward()


def test_detach_keeps_the_shape_of_a_state() -> None:
    class Pair(NamedTuple):
        v: Tensor
        i: Any

    x = torch.ones(2, requires_grad=True) * 2
    got = detach({"a": [x, (x, None)], "b": Pair(x, 3)})
    assert type(got["b"]) is Pair
    leaves = [got["a"][0], got["a"][1][0], got["b"].v]
    assert not any(leaf.requires_grad for leaf in leaves)
    assert (got["a"][1][1], got["b"].i) == (None, 3)


# --- refusals -------------------------------------------------------------------------------------


def leaky(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), snn.Leaky(**{"beta": 0.5, **options}), nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"reset_mechanism": "zero"}, r"0: .*hard reset.*inexact. Train with .*'subtract'"),
        ({"learn_beta": True}, r"0: expected a neuron without learnable parameters, got Leaky"),
        ({"learn_threshold": True}, "without learnable parameters"),
        ({"beta": torch.tensor([0.5, 0.6])}, r"one decay for the layer, got 2 in Leaky: one per"),
        ({"state_quant": lambda x: x}, "not rounded, got Leaky with state_quant"),
    ],
)
def test_a_leaky_whose_trace_is_not_exact(options: Any, reason: str) -> None:
    net = leaky(**options)
    with pytest.raises(Refused, match=reason):
        with_traces(net)
    assert type(net[0]) is nn.Linear
    if options != {"reset_mechanism": "zero"}:
        assert type(with_traces(net, 0.5)[0]) is TracedLinear
    else:
        with pytest.raises(Refused, match="hard reset"):
            with_traces(net, 0.5)
        with_traces(net, {"0": Exponential(0.5), "2": 0.0})


def test_one_decay_in_a_tensor_is_read() -> None:
    assert with_traces(leaky(beta=torch.tensor([0.25, 0.25])))[0].trace == Exponential(0.25)
    assert with_traces(leaky(beta=1.5))[0].trace == Exponential(1.0)  # clamped as snnTorch does


def test_other_neurons_are_refused() -> None:
    norse = pytest.importorskip("norse.torch")
    for neuron, reason in (
        (snn.Synaptic(0.5, 0.5), "Leaky, LIFBoxCell or LIBoxCell, got Synaptic: not one exp"),
        (snn.RLeaky(0.5, linear_features=2), "got RLeaky"),
        (norse.LIFBoxCell(), "got LIFBoxCell with a hard reset.*reset_subtract"),
        (norse.LIFCell(), "got LIFCell with a hard reset"),
        (
            norse.LICell(),
            r"got LICell: not one exponential filter. Change the neuron, or pass decay",
        ),
    ):
        with pytest.raises(Refused, match=reason):
            with_traces(nn.Sequential(nn.Linear(3, 2), neuron))


def test_what_cannot_be_placed_is_refused() -> None:
    class Mine(nn.Module):
        pass

    with pytest.raises(Refused, match=r"0: expected a neuron .* got none. Pass decay=.*\['0'\]"):
        with_traces(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(Refused, match=r"3: expected modules of torch.*got Mine: is it a neuron"):
        with_traces(nn.Sequential(*leaky(), Mine()))
    with pytest.raises(Invalid, match="ReLU: expected Linear, Conv1d or Conv2d layers, got none"):
        with_traces(nn.ReLU())
    shared = nn.Linear(2, 2)
    with pytest.raises(Refused, match="2: expected a layer that is registered and called once"):
        with_traces(nn.Sequential(shared, snn.Leaky(0.5), shared))
    with pytest.raises(Invalid, match=r"expected layers in \['0', '2'\], got 'fc'"):
        with_traces(leaky(), {"fc": 0.5})
    with pytest.raises(Refused, match=r"expected a trace of shape \(batch, N_i\).*per synapse"):
        with_traces(leaky(), {"0": SynapticExponential(0.5)})
    with pytest.raises(Invalid, match=r"decay in \[0, 1\], got 1.5"):
        with_traces(leaky(), {"0": 1.5})


@pytest.mark.parametrize("knob", ["first_layer_trace", "readout_trace", "bias_trace"])
def test_unknown_knobs(knob: str) -> None:
    with pytest.raises(Invalid, match=f"expected {knob} 'exact' or 'official', got 'sideways'"):
        with_traces(leaky(), **{knob: "sideways"})  # type: ignore[arg-type]


def test_the_graph_contradicts_the_order_of_registration() -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 3), nn.Linear(3, 3)
            self.lif1, self.lif2 = snn.Leaky(0.5), snn.Leaky(0.5)

        def forward(self, x: Tensor) -> Tensor:
            zero = x.new_zeros(2, 3)
            return self.lif2(self.fc2(self.lif1(self.fc1(x), zero)[0]), zero)[0]  # type: ignore[no-any-return]

    net = with_traces(Swapped())
    with pytest.raises(Refused, match=r"fc2: expected \['fc1', 'fc2'\].* to feed lif1.*\['fc1'\]"):
        net(torch.ones(2, 3))
    with_traces(net, {"fc1": 0.5, "fc2": 0.5})(torch.ones(2, 3)).sum().backward()


@pytest.mark.parametrize(
    ("between", "operation"),
    [
        (nn.ReLU(), "ReluBackward"),
        (nn.Dropout(0.5), "(Mul|NativeDropout)Backward"),
        (nn.BatchNorm1d(4), "BatchNorm"),
        (nn.MaxPool1d(2), "MaxPool"),
    ],
)
def test_an_operation_that_may_change_from_step_to_step(between: nn.Module, operation: str) -> None:
    between.requires_grad_(False)
    net = with_traces(nn.Sequential(nn.Linear(3, 4), between, snn.Leaky(0.5, init_hidden=True)))
    with pytest.raises(Refused, match=f"0: expected a linear map.* 2, got .*{operation}"):
        net(torch.ones(2, 3))


def test_a_layer_called_twice_in_a_step() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(3, 3), snn.Leaky(0.5)

        def forward(self, x: Tensor) -> Any:
            return self.lif(self.fc(x) + self.fc(2 * x), x.new_zeros(2, 3))

    with pytest.raises(Refused, match=r"fc: .*more than once \['fc'\]"):
        with_traces(Twice())(torch.ones(2, 3))


def test_another_shape_without_a_reset() -> None:
    net = with_traces(nn.Sequential(nn.Linear(3, 2)), {"0": 0.5})
    net(torch.ones(2, 3))
    with pytest.raises(Invalid, match=r"\(2, 3\).*got \(\(4, 3\).*Call reset_traces"):
        net(torch.ones(4, 3))
    reset_traces(net)
    net(torch.ones(4, 3))


def test_parameters_without_a_trace_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with_traces(nn.Sequential(*leaky(), nn.LayerNorm(2)))
    assert "no trace, so the gradient of each step alone: ['3.weight', '3.bias']" in caplog.text


def test_a_refused_second_call_leaves_the_first_in_force() -> None:
    net = with_traces(
        nn.Sequential(nn.Linear(3, 2), nn.Flatten(), nn.Linear(2, 2)), {"0": 0.5, "2": 0.0}
    )
    kinds = [type(m) for m in net]
    with pytest.raises(Invalid):
        with_traces(net, {"nowhere": 0.5})
    assert [type(m) for m in net] == kinds
    again = with_traces(net, {"0": 0.25, "2": 0.0})
    assert again[0].trace == Exponential(0.25)

"""HD-LIF modules beside others: presets, attention, snnTorch, Norse, states, refusals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from hdlif_cases import DOUBLE, spread
from torch import nn

from grasp_plugin.errors import GraspError
from grasp_plugin.hdlif import (
    HDLIF,
    SECA,
    HDLayer,
    HDStack,
    QuantConv2d,
    empf,
    hdlif_compressed,
    hmdf,
)
from grasp_plugin.hdlif.training import accumulate

STEPS = 5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def spikes(size: int = 6) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.rand(STEPS, 4, size, generator=g, dtype=DOUBLE)


def test_presets_are_the_published_versions() -> None:
    made = {
        "empf": empf(6, 5, STEPS, dtype=DOUBLE),
        "hmdf": hmdf(6, 5, STEPS, dtype=DOUBLE),
        "hdlif": hdlif_compressed(6, 5, STEPS, weights="1bit", seca=True, dtype=DOUBLE),
    }
    found = {n: (m.synapse.bits, m.neuron.spikes) for n, m in made.items()}
    assert found == {
        "empf": ("1bit", "float"), "hmdf": ("1.5bit", "float"), "hdlif": ("1bit", "4bit"),
    }  # fmt: skip
    for layer in made.values():
        nn.init.constant_(layer.norm.weight, 4.0)
        out, state = layer(spikes()[0])
        out, state = layer(spikes()[1], state)
        assert (out >= 0).all()
        assert out.any()
        whole = torch.equal(4 * out, torch.round(4 * out))
        assert whole == (layer.neuron.spikes == "4bit")
    assert made["hdlif"].attention is not None
    assert made["empf"].attention is None


@pytest.mark.parametrize("mode", ["bptt", "online"])
def test_options_train_together(mode: str) -> None:
    """Mem-BN, attention, convolution, shared parameters: every parameter gets a gradient."""
    conv = HDLayer(
        QuantConv2d(2, 3, 3, weights="1bit", padding=1, dtype=DOUBLE),
        HDLIF(STEPS, grad_mode=mode, spikes="4bit", mem_bn=3, dtype=DOUBLE),
        nn.BatchNorm2d(3, dtype=DOUBLE), SECA(3, dtype=DOUBLE),
    )  # fmt: skip
    dense = hdlif_compressed(48, 5, STEPS, grad_mode=mode, shared=True, dtype=DOUBLE)
    net = HDStack(conv, nn.Flatten(), dense, nn.Linear(5, 3, dtype=DOUBLE))
    x = torch.randn(STEPS, 6, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    accumulate(net, x, torch.arange(6) % 3, nn.functional.cross_entropy)
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name
    assert dense.neuron.decay_logit.shape == (1,)


def test_attention_scales_channels() -> None:
    torch.manual_seed(0)
    attention = SECA(3, dtype=DOUBLE)
    x = torch.randn(2, 7, 3, 4, dtype=DOUBLE)
    gate = attention(x) / x
    assert torch.allclose(gate, gate[:, :, :1, :1])
    wanted = torch.sigmoid(attention.conv(x.mean((2, 3))[:, None])[:, 0])
    assert torch.allclose(gate[:, :, 0, 0], wanted)
    assert torch.allclose(attention(x[:, :, :1, :1])[:, :, 0, 0], attention(x[:, :, 0, 0]))


def test_parallel_neurons_take_each_steps_threshold() -> None:
    neuron = spread(HDLIF(STEPS, parallel=True, dtype=DOUBLE), 1)
    state = None
    for t, a in enumerate(spikes()):
        out, state = neuron(a, state)
        assert torch.equal(out, torch.relu(a - neuron.theta(t)))
        assert not state["v"].any()


def test_in_a_snntorch_loop_and_sequential() -> None:
    snntorch = pytest.importorskip("snntorch")
    hidden = spread(HDLIF(STEPS, init_hidden=True, dtype=DOUBLE), 2)
    explicit = spread(HDLIF(STEPS, dtype=DOUBLE), 2)
    net = nn.Sequential(snntorch.Leaky(0.9, init_hidden=True), hidden)
    leaky = snntorch.Leaky(0.9)
    for _ in range(2):  # two samples
        hidden.reset_state()
        net[0].reset_mem()
        mem, held, sent = leaky.init_leaky(), None, 0
        for x in spikes():
            spk, mem = leaky(2 * x, mem)
            wanted, held = explicit(spk, held)
            assert torch.equal(net(2 * x), wanted)
            sent += int((wanted > 0).sum())
        assert sent > 10


def test_in_a_norse_sequential() -> None:
    norse = pytest.importorskip("norse.torch")
    neuron = spread(HDLIF(STEPS, dtype=DOUBLE), 2)
    linear = nn.Linear(6, 6, dtype=DOUBLE)
    net = norse.SequentialState(linear, norse.LIFBoxCell(), neuron)
    cell = norse.LIFBoxCell()
    state, apart, held = None, None, None
    for x in spikes():
        out, state = net(20 * x, state)
        z, apart = cell(linear(20 * x), apart)
        wanted, held = neuron(z, held)
        assert torch.equal(out, wanted)
    assert held["t"] == STEPS
    assert held["v"].any()


def test_modules_copy_pickle_and_reload() -> None:
    layer = hdlif_compressed(6, 5, STEPS, mem_bn=True, dtype=DOUBLE)
    spread(layer.neuron, 1)
    other = hdlif_compressed(6, 5, STEPS, mem_bn=True, dtype=DOUBLE)
    other.load_state_dict(layer.state_dict())
    again = pickle.loads(pickle.dumps(layer))
    outs = [m(spikes()[0])[0] for m in (layer, other, again, copy.deepcopy(layer))]
    assert all(torch.equal(outs[0], out) for out in outs)
    assert "steps" not in repr(layer.neuron)
    assert "5, grad_mode='bptt', spikes='4bit'" in repr(layer.neuron)


def traced_beyond() -> None:
    layer, state = HDLayer(nn.Linear(3, 2), HDLIF(1, grad_mode="trace")), None
    for x in torch.ones(2, 1, 3):
        _, state = layer(x, state)


def stepwise_norm() -> None:
    norm = nn.BatchNorm1d(2, track_running_stats=False)
    HDLayer(nn.Linear(3, 2), HDLIF(1, grad_mode="trace"), norm).eval()(torch.ones(3, 3))


def beyond() -> None:
    neuron, state = HDLIF(1, dtype=DOUBLE), None
    for x in spikes():
        _, state = neuron(x, state)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "steps": (lambda: HDLIF(0), "steps >= 1, got 0"),
    "mode": (lambda: HDLIF(2, grad_mode="rtrl"), r"'trace'\), got 'rtrl'. Pass one"),
    "spikes": (lambda: HDLIF(2, spikes="2bit"), r"\('float', '4bit'\), got '2bit'"),
    "beyond": (beyond, r"at most 1 steps, got step 2. Start each sample with state=None"),
    "beyond, traced": (traced_beyond, "at most 1 steps, got step 2"),
    "beyond, decay": (lambda: HDLIF(2).decay(2), "at most 2 steps, got step 3"),
    "trace, no statistics": (stepwise_norm, "with track_running_stats, or leave it out"),
    "parallel": (lambda: HDLIF(2, parallel=True, mem_bn=3), "no membrane"),
    "bare": (lambda: HDLIF(2, grad_mode="trace")(spikes()[0]), r"Use HDLayer\(linear, neuron\)"),
    "kernel": (lambda: SECA(4), "odd kernel, got 4"),
    "shape": (
        lambda: HDLIF(2)(torch.zeros(2, 3), {"v": torch.zeros(2, 4), "t": 1}),
        r"shape \(2, 3\), got \(2, 4\)",
    ),
    "held": (lambda: HDLIF(2, init_hidden=True)(torch.zeros(2, 3), {}), "no state with init_hid"),
    "neuron": (lambda: HDLayer(nn.Linear(2, 2), HDLIF(2, init_hidden=True)), "without init_hidden"),
    "conv": (
        lambda: HDLayer(nn.Conv2d(1, 1, 1), HDLIF(2, grad_mode="trace")),
        "got Conv2d: the trace of a synapse would not be exact",
    ),
    "trace, attention": (lambda: hmdf(2, 2, 2, grad_mode="trace", seca=True), "got attention"),
    "trace, mem_bn": (lambda: hmdf(2, 2, 2, grad_mode="trace", mem_bn=True), "got mem_bn"),
    "trace, norm": (
        lambda: hmdf(2, 2, 2, grad_mode="trace")(torch.zeros(3, 2)), r"Call norm.eval\(\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_remedy(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(GraspError, match=message):
        call()

"""The HD-LIF step: resets, derivatives, folding, codes (H1, H2, H12, H13, H14, H17)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from hdlif_cases import DOUBLE, spread

from grasp_plugin.errors import Invalid
from grasp_plugin.hdlif import HDLIF, QuantConv2d, QuantLinear
from grasp_plugin.hdlif.quantisers import parts, quantised_spikes, quantised_weight
from grasp_plugin.neurons import hdlif


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def currents(steps: int = 6, batch: int = 4, size: int = 50, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return 0.6 * torch.randn(steps, batch, size, generator=g, dtype=DOUBLE) + 0.2


def test_a_trajectory_by_hand() -> None:
    """lambda = 0.5, theta = 0.5; currents 0.4, 0.4, 1.0, -1.0."""
    neuron, state, out, v = HDLIF(4, dtype=DOUBLE), None, [], []
    for current in (0.4, 0.4, 1.0, -1.0):
        spike, state = neuron(torch.tensor([[current]], dtype=DOUBLE), state)
        out.append(spike.item())
        v.append(state["v"].item())
    assert np.allclose(out, [0.0, 0.1, 0.75, 0.0], atol=1e-15)
    assert np.allclose(v, [0.4, 0.5, 0.5, -0.75], atol=1e-15)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_h1_the_residual_is_pinned_at_the_threshold(kind: str) -> None:
    given = currents()
    xs = given.numpy() if kind == "numpy" else given
    state, fired, m_all = hdlif.init(xs[0]), 0, []
    for t, a in enumerate(xs):
        m = 0.7 * state["v"] + a
        s, state, margin = hdlif.step(a, state, decay=0.7, theta=0.3 + 0.05 * t)
        theta = 0.3 + 0.05 * t
        v = state["v"]
        assert abs(v - (np.minimum(m, theta) if kind == "numpy" else m.clamp(max=theta))).max() == 0
        assert abs(s + v - m).max() < 1e-12
        assert (s >= 0).all()
        assert ((s == 0) == (m <= theta)).all()
        assert ((margin > 0) == (s > 0)).all()
        fired += int((s > 0).sum())
        m_all.append(m)
    assert 100 < fired < 1100


def test_h2_spikes_see_one_earlier_membrane_path() -> None:
    """eps[i, t] = chi_i prod lambda_j (1 - chi_{j-1}), and at most one i for each (t, n)."""
    steps, size = 7, 40
    neuron = spread(HDLIF(steps, dtype=DOUBLE), 1)
    a = currents(steps, 1, size, 2).requires_grad_()
    state, out, fired = None, [], []
    for t in range(steps):
        s, state = neuron(a[t], state)
        out.append(s)
        fired.append((state["margin"] > 0).to(DOUBLE))
    seen = np.zeros((steps, steps, size))
    for i in range(steps):
        (grad,) = torch.autograd.grad(out[i].sum(), a, retain_graph=True)
        seen[i] = grad[:, 0].numpy()
    wanted = np.zeros_like(seen)
    chi = torch.stack(fired)[:, 0].numpy()
    decay = [float(neuron.decay(t).detach()) for t in range(steps)]
    for i, t in product(range(steps), range(steps)):
        if i >= t:
            wanted[i, t] = chi[i]
            for j in range(t + 1, i + 1):
                wanted[i, t] *= decay[j] * (1 - chi[j - 1])
    assert np.abs(seen - wanted).max() < 1e-12
    assert ((seen != 0).sum(0) <= 1).all()
    later = sum((seen[i, t] != 0).sum() for i in range(steps) for t in range(i))
    assert later > 20  # paths through time exist


def test_h12_gradcheck_away_from_the_kink() -> None:
    steps = 4
    neuron = spread(HDLIF(steps, dtype=DOUBLE), 3)
    a = currents(steps, 2, 6, 5).requires_grad_()
    state, margins = None, []
    for t in range(steps):
        before = 0 if state is None else state["v"]
        margins.append(neuron.decay(t) * before + a[t] - neuron.theta(t))
        _, state = neuron(a[t], state)
    assert float(torch.cat(margins).abs().min().detach()) > 1e-4  # finite differences stay away

    def run(a: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        state, out = hdlif.init(a[0]), []
        for t in range(steps):
            s, state, _ = hdlif.step(
                a[t], state, decay=torch.sigmoid(p[t]), theta=torch.sigmoid(q[t])
            )
            out.append(s)
        return torch.stack(out)

    logits = (neuron.decay_logit, neuron.theta_logit)
    assert torch.autograd.gradcheck(run, (a, *logits))


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 2)])
def test_h13_mem_bn_folds(shape: tuple[int, ...]) -> None:
    steps = 3
    neuron = spread(HDLIF(steps, mem_bn=5, dtype=DOUBLE), 4)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(steps, *shape, generator=g, dtype=DOUBLE)
    for norm in neuron.mem_norms:
        with torch.no_grad():
            norm.norm.weight.copy_(torch.randn(5, generator=g, dtype=DOUBLE))  # of both signs
            norm.norm.bias.copy_(torch.randn(5, generator=g, dtype=DOUBLE))
    state = None
    for t in range(steps):  # moves the running statistics
        _, state = neuron(x[t], state)
    neuron.eval()
    wide = (5, *[1] * (len(shape) - 2))
    state, held, fired = None, {"v": x[0] * 0}, 0
    for t in range(steps):
        out, state = neuron(x[t], state)
        gain, offset = (v.reshape(wide) for v in neuron.mem_norms[t].folded())
        decay = (gain * neuron.decay(t)).detach()
        s, held, _ = hdlif.step(
            x[t], held, decay=decay, theta=neuron.theta(t).detach(), gain=gain, offset=offset
        )
        assert float((out - s).abs().max().detach()) < 1e-10
        fired += int((s > 0).sum())
    assert fired > 10


def test_h14_weights_and_codes() -> None:
    g = torch.Generator().manual_seed(0)
    w = torch.randn(4, 30, generator=g, dtype=DOUBLE).requires_grad_()
    way = torch.randn(4, 30, generator=g, dtype=DOUBLE)
    one = quantised_weight(w, "1bit")
    size = w.detach().abs()
    assert torch.equal(one, size.mean(1, keepdim=True) * torch.where(w >= 0, 1.0, -1.0))
    (grad,) = torch.autograd.grad((one * way).sum(), w)
    assert torch.equal(grad, way * (size <= 1))
    three = quantised_weight(w, "1.5bit")
    there = size > 0.7 * size.mean()
    alpha = size[there].mean()
    assert torch.allclose(three, alpha * torch.sign(w) * there, rtol=1e-15)
    assert 0 < int((three == 0).sum()) < 120
    (grad,) = torch.autograd.grad((three * way).sum(), w)
    assert torch.equal(grad, way * (size < 1))
    assert quantised_weight(w, "fp") is w
    s = torch.tensor([0.0, 0.1, 0.13, 0.9, 3.74, 3.9, 50.0], dtype=DOUBLE, requires_grad=True)
    assert quantised_spikes(s).tolist() == [0.0, 0.0, 0.25, 1.0, 3.75, 3.75, 3.75]
    assert hdlif.codes(s.detach()).tolist() == [0, 0, 1, 4, 15, 15, 15]
    (grad,) = torch.autograd.grad(quantised_spikes(s).sum(), s)
    assert torch.equal(grad, torch.ones_like(s))  # not masked where it saturates
    kernel, scale = parts(torch.zeros(2, 3), "1bit")
    assert kernel.tolist() == [[1.0] * 3] * 2
    assert scale.tolist() == [0.0, 0.0]


def test_integer_codes_are_whole_and_bounded() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-600, 2500, 400)
    code, state, margin = hdlif.step_fixed(
        a, {"v": rng.integers(-4000, 4000, 400)}, dv=2048, vth=np.full(400, 900), act_shift=2,
        bias=np.full(400, 7), q_mult=np.full(400, 301), q_shift=np.full(400, 17),
    )  # fmt: skip
    assert code.dtype == np.int64
    assert code.min() == 0
    assert code.max() == 15
    assert len(np.unique(code)) == 16
    assert (state["v"] <= 900).all()
    s = np.maximum(margin, 0)
    assert np.array_equal(code, np.minimum(np.floor(s * 301 / 2**17 + 0.5), 15))


def test_h17_parameters_stay_inside_and_learn() -> None:
    neuron = HDLIF(3, dtype=DOUBLE)
    with torch.no_grad():
        neuron.decay_logit.copy_(torch.tensor([-30.0, 0.0, 30.0]))
    assert all(0 < float(neuron.decay(t).detach()) < 1 for t in range(3))
    for mode in ("bptt", "online"):
        neuron = HDLIF(3, grad_mode=mode, dtype=DOUBLE)
        state, total = None, torch.zeros((), dtype=DOUBLE)
        for a in currents(3):
            s, state = neuron(a, state)
            total = total + s.square().sum()
        total.backward()
        assert (neuron.theta_logit.grad < 0).all()
        assert neuron.decay_logit.grad[0] == 0  # v_0 = 0
        assert (neuron.decay_logit.grad[1:] != 0).all()


def test_layers_of_torch_take_quantised_weights() -> None:
    x = torch.randn(2, 3, 6, 6)
    conv = QuantConv2d(3, 4, 3, weights="1.5bit", padding=1)
    wanted = torch.nn.functional.conv2d(x, quantised_weight(conv.weight, "1.5bit"), padding=1)
    assert torch.equal(conv(x), wanted)
    assert "1.5bit" in repr(conv)
    linear = QuantLinear(6, 2, weights="1bit", bias=True)
    assert linear(x).shape == (2, 3, 6, 2)
    assert "1bit" in repr(linear)
    for make in (lambda: QuantLinear(2, 2, weights="2bit"), lambda: parts(x, "2bit")):
        with pytest.raises(
            Invalid, match=r"expected one of \('fp', '1bit', '1.5bit'\), got '2bit'"
        ):
            make()

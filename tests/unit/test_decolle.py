"""DECOLLE against autograd of its local loss: invariants D1 to D6 of specs/online-rules.md."""

from __future__ import annotations

import logging
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import smooth_l1_loss

from grasp_plugin.errors import Invalid
from grasp_plugin.learning import Factors, decolle, decolle_readout
from grasp_plugin.learning.losses import CrossEntropy, one_hot
from grasp_plugin.learning.signals import activity_penalty
from grasp_plugin.learning.states import leaves
from grasp_plugin.learning.traces import DoubleExponential
from grasp_plugin.neurons.adaptive import decolle_init, decolle_step

log = logging.getLogger(__name__)
ALPHA, BETA, ALPHA_RP, W_RP = 0.97, 0.92, 0.65, 1.0
SIZES, BATCH, CLASSES, STEPS = (9, 12, 9), 5, 4, 60


def close(name: str, got: Any, want: Any, tol: float) -> None:
    error = float(abs(torch.as_tensor(got) - torch.as_tensor(want)).max())
    log.info("%s: %.1e", name, error)
    assert error <= tol, f"{name}: {error:.2e} > {tol:.0e}"


class Spike(torch.autograd.Function):
    """H forward; backward the fast sigmoid or the boxcar, written out once more."""

    @staticmethod
    def forward(ctx: Any, u: torch.Tensor, kind: str) -> torch.Tensor:
        ctx.save_for_backward(u)
        ctx.kind = kind
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (u,) = ctx.saved_tensors
        if ctx.kind == "fast_sigmoid":
            return grads[0] / (10 * u.abs() + 1).square(), None
        return grads[0] * ((u >= -0.5) & (u <= 0.5)).to(u.dtype), None


class Net:
    """The spec's equations in plain torch; `cut` detaches the states and the layers' inputs."""

    def __init__(self, kind: str = "fast_sigmoid", cut: bool = True, gain: float = 20.0) -> None:
        g = torch.Generator().manual_seed(3)
        self.kind, self.cut = kind, cut
        self.w = [
            (torch.randn(o, i, generator=g, dtype=torch.float64) * gain / i).requires_grad_()
            for i, o in pairwise(SIZES)
        ]
        self.b = [(torch.randn(o, generator=g, dtype=torch.float64) * 0.1).requires_grad_()
                  for o in SIZES[1:]]  # fmt: skip
        self.state = [
            {"q": torch.zeros(BATCH, i).double(), "p": torch.zeros(BATCH, i).double(),
             "r": torch.zeros(BATCH, o).double(), "s": torch.zeros(BATCH, o).double()}
            for i, o in pairwise(SIZES)
        ]  # fmt: skip
        self.x = (torch.rand(STEPS, BATCH, SIZES[0], generator=g) < 0.4).double()
        self.target = torch.rand(STEPS, BATCH, CLASSES, generator=g, dtype=torch.float64)

    def step(self, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Per layer (input, U, S)."""
        seen = []
        for layer, (w, b, z) in enumerate(zip(self.w, self.b, self.state, strict=True)):
            q = BETA * z["q"] + (1 - BETA) * x
            p = ALPHA * z["p"] + (1 - ALPHA) * z["q"]
            r = ALPHA_RP * z["r"] - (1 - ALPHA_RP) * W_RP * z["s"]
            if self.cut:
                q, p, r = q.detach(), p.detach(), r.detach()
            u = p @ w.T + b + r
            s = Spike.apply(u, self.kind)
            held = s.detach() if self.cut else s
            self.state[layer] = {"q": q, "p": p, "r": r, "s": held}
            seen.append((x, u, s))
            x = held
        return seen


@pytest.mark.parametrize("kind", ["fast_sigmoid", "boxcar"])
@pytest.mark.parametrize(("dropout", "penalty"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.3)])
def test_d1_update_is_the_gradient_of_the_local_loss(
    kind: str, dropout: float, penalty: float
) -> None:
    net = Net(kind)
    rule = decolle(1.0, alpha=ALPHA, beta=BETA, surrogate=kind)
    readouts = [decolle_readout(CLASSES, dropout=dropout, seed=n) for n in range(2)]
    fixed = [r.init(o, net.w[0]) for r, o in zip(readouts, SIZES[1:], strict=True)]
    states = [rule.init(w.detach(), batch=BATCH) for w in net.w]
    largest = spikes = 0.0
    for t in range(STEPS):
        seen = net.step(net.x[t])
        mask = (torch.arange(BATCH) != t % BATCH).double()[:, None]  # one row has no target
        loss = torch.zeros(()).double()
        for layer, (_, u, s) in enumerate(seen):
            keep = readouts[layer].keep(s.detach(), fixed[layer]) if dropout else 1.0
            y = (s * keep) @ fixed[layer]["readout"].T + fixed[layer]["bias"]
            loss = loss + smooth_l1_loss(y * mask, net.target[t] * mask)
            low = (0.1 - torch.sigmoid(u)).mean().relu()
            loss = loss + penalty * ((u + 0.01).relu().mean() + 3e-3 * low)
        wanted = torch.autograd.grad(loss, [*net.w, *net.b])
        for layer, (x, u, s) in enumerate(seen):
            e, fixed[layer] = readouts[layer].update(
                s.detach(), net.target[t], fixed[layer], mask=mask
            )
            direct = activity_penalty(u.detach(), penalty) if penalty else None
            factors = Factors(x, signal=e, membrane=u.detach(), direct=direct)
            delta, states[layer] = rule.update(factors, states[layer], net.w[layer])
            close("D1 W", -delta["weight"].dense(), wanted[layer], 1e-15)
            close("D1 b", -delta["bias"], wanted[2 + layer], 1e-15)
            largest = max(largest, float(wanted[layer].abs().max()))
            spikes += float(s.detach().mean()) / (2 * STEPS)
    assert largest > 1e-3
    assert 0.05 < spikes < 0.95


def test_d2_no_gradient_between_layers_nor_through_time() -> None:
    """Ours is the whole gradient of the cut graph, and the cuts matter."""
    kept, cut = Net(cut=False), Net()
    readouts = [decolle_readout(CLASSES, seed=n) for n in range(2)]
    fixed = [r.init(o, cut.w[0]) for r, o in zip(readouts, SIZES[1:], strict=True)]
    before = []
    for t in range(12):
        before = [dict(z) for z in kept.state]
        seen, seen_kept = cut.step(cut.x[t]), kept.step(kept.x[t])
    losses = [
        readouts[n].loss.value(readouts[n].logits(s, fixed[n]), cut.target[0])
        for n, (_, _, s) in enumerate(seen)
    ]
    for n, loss in enumerate(losses):  # exact: the graph has no such edge
        others = [cut.w[1 - n], cut.b[1 - n]]
        assert torch.autograd.grad(loss, others, retain_graph=True, allow_unused=True) == (
            None, None,
        )  # fmt: skip
    for name, value in ((k, v) for z in cut.state for k, v in z.items()):
        assert not value.requires_grad, name
    # negative: without the cuts both gradients exist
    uncut = readouts[1].loss.value(readouts[1].logits(seen_kept[1][2], fixed[1]), kept.target[0])
    through = torch.autograd.grad(uncut, [kept.w[0], before[1]["p"]])
    assert min(float(g.abs().max()) for g in through) > 1e-5


def online(net: Net, steps: int, rate: float) -> list[Any]:
    """Online SGD on layer 0 with our rule: per step (weight, input, neuron state, rule state)."""
    rule, readout = decolle(rate, alpha=ALPHA, beta=BETA), decolle_readout(CLASSES)
    fixed = readout.init(SIZES[1], net.w[0])
    state = rule.init(net.w[0].detach(), batch=BATCH)
    saved = []
    for t in range(steps):
        saved.append((net.w[0].detach().clone(), dict(net.state[0]), state))
        x, u, s = net.step(net.x[t])[0]
        e, fixed = readout.update(s.detach(), net.target[t], fixed)
        delta, state = rule.update(Factors(x, signal=e, membrane=u.detach()), state, net.w[0])
        net.w[0] = (net.w[0].detach() + delta["weight"].dense()).requires_grad_()
    saved.append((net.w[0].detach().clone(), dict(net.state[0]), state))
    return saved


def test_d3_an_update_depends_on_the_weights_of_its_step_only() -> None:
    t, rate = 20, 5.0
    saved = online(Net(), t + 1, rate)
    assert float((saved[t][0] - saved[0][0]).abs().max()) > 1e-2  # the weights have moved
    replay = Net()
    replay.w[0], replay.state[0] = saved[t][0].clone().requires_grad_(), saved[t][1]
    readout = decolle_readout(CLASSES)
    _, _, s = replay.step(replay.x[t])[0]
    y = readout.logits(s, readout.init(SIZES[1], s))
    (grad,) = torch.autograd.grad(smooth_l1_loss(y, replay.target[t]), replay.w[0])
    close("D3", saved[t + 1][0], saved[t][0] - rate * grad, 1e-14)
    # negative: back-propagation through two steps gives another gradient
    two = Net(cut=False)
    two.state[0] = {k: v.detach() for k, v in saved[t - 1][1].items()}
    two.w[0] = saved[t][0].clone().requires_grad_()
    two.step(two.x[t - 1])
    y = readout.logits(two.step(two.x[t])[0][2], readout.init(SIZES[1], s))
    (bptt,) = torch.autograd.grad(smooth_l1_loss(y, two.target[t]), two.w[0])
    assert float((bptt - grad).abs().max()) > 1e-5


@pytest.mark.parametrize(("alpha", "beta"), [(0.97, 0.92), (0.75, 0.5), (0.3, 0.9)])
def test_d4_the_double_trace_is_a_difference_of_two(
    alpha: float, beta: float, rng: np.random.Generator
) -> None:
    trace, weight = DoubleExponential(alpha, beta), np.zeros((1, 6))
    state = trace.init(weight)
    slow = fast = np.zeros((1, 6))
    kappa = (1 - alpha) * (1 - beta) / (alpha - beta)
    for _ in range(200):
        s = (rng.random((1, 6)) < 0.3) * 1.0
        p, state = trace.update(Factors(s), state)
        slow, fast = alpha * slow + s, beta * fast + s
        close("D4", p, kappa * (slow - fast), 2e-15)
    assert p.max() > 0.1


def test_d5_burn_in_and_masked_targets_write_nothing(rng: np.random.Generator) -> None:
    rule, readout = decolle(1.0, burn_in=7), decolle_readout(CLASSES)
    weight = rng.normal(size=(5, 4))
    start = weight.copy()
    fixed = readout.init(5, weight)
    g = fixed["readout"].copy(), fixed["bias"].copy()
    state = rule.init(weight, batch=3)
    for t in range(20):
        u, x = rng.normal(size=(3, 5)), (rng.random((3, 4)) < 0.5) * 1.0
        mask = np.full((3, 1), 0.0 if t >= 14 else 1.0)
        e, fixed = readout.update((u > 0) * 1.0, rng.random((3, CLASSES)), fixed, mask=mask)
        delta, state = rule.update(Factors(x, signal=e, membrane=u), state, weight)
        moved = np.count_nonzero(delta["weight"].dense()), np.count_nonzero(delta["bias"])
        if 7 <= t < 14:
            assert min(moved) > 0
            weight = weight + delta["weight"].dense()
        else:
            assert moved == (0, 0)
        if t == 6:
            assert (weight == start).all()
            assert state["rule"]["trace"]["p"].max() > 0  # the traces advance meanwhile
    np.testing.assert_array_equal(fixed["readout"], g[0])
    np.testing.assert_array_equal(fixed["bias"], g[1])


def peak_bytes(steps: int) -> int:
    rule, readout = decolle(1e-3), decolle_readout(CLASSES)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(150, 200))
    fixed, state = readout.init(150, weight), rule.init(weight, batch=8)
    tracemalloc.start()
    for _ in range(steps):
        u, x = rng.normal(size=(8, 150)), rng.normal(size=(8, 200))
        e, fixed = readout.update((u > 0) * 1.0, np.zeros((8, CLASSES)), fixed)
        delta, state = rule.update(Factors(x, signal=e, membrane=u), state, weight)
        weight = weight + delta["weight"].dense()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_d5_memory_is_flat_in_time() -> None:
    peak_bytes(5)
    short, long = peak_bytes(50), peak_bytes(1000)
    log.info("D5 memory: %d, %d bytes", short, long)
    assert long < 1.02 * short


def test_d6_filter_behind_the_weights(rng: np.random.Generator) -> None:
    weight, bias = rng.normal(size=(6, 9)) * 5, rng.normal(size=6)
    trace = DoubleExponential(ALPHA, BETA)
    held = trace.init(weight, batch=4)
    state = decolle_init(np.zeros((4, 6)))
    r = s = np.zeros((4, 6))
    for _ in range(100):
        x = (rng.random((4, 9)) < 0.3) * 1.0
        p, held = trace.update(Factors(x), held)
        r = ALPHA_RP * r - (1 - ALPHA_RP) * W_RP * s
        s, state, u = decolle_step(
            x @ weight.T, state, alpha=ALPHA, beta=BETA, alpha_rp=ALPHA_RP, bias=bias
        )
        close("D6", u, p @ weight.T + bias + r, 2e-14)
    assert 0.05 < s.mean() < 0.95


def test_trace_by_hand_reads_the_previous_q() -> None:
    trace = DoubleExponential(0.5, 0.5)
    state, got = trace.init(np.zeros((1, 1))), []
    for s in (1.0, 0.0, 0.0, 0.0):
        p, state = trace.update(Factors(np.array([[s]])), state)
        got.append(float(p[0, 0]))
    assert got == [0, 0.25, 0.25, 0.1875]  # q = 1/2, 1/4, 1/8


def test_unnormalised_gains_and_a_tau_for_each_input() -> None:
    trace = DoubleExponential((0.5, 0.25), (0.5, 0.5), gain_q=1.0, gain_p=1.0)
    state = trace.init(np.zeros((1, 2)))
    for s in (1.0, 0.0, 0.0):
        p, state = trace.update(Factors(np.array([[s, s]])), state)
    assert p.tolist() == [[0.5 * 1 + 0.5, 0.25 * 1 + 0.5]]


def test_sign_concordant_feedback_keeps_the_sign_of_g() -> None:
    readout = decolle_readout(CLASSES, feedback_noise=0.9)
    state = readout.init(30, np.zeros(1))
    assert (state["feedback"] * state["readout"] > 0).all()
    assert abs(state["feedback"] / state["readout"] - 1).max() > 0.5


def test_cross_entropy_readout_equals_autograd(rng: np.random.Generator) -> None:
    y = torch.tensor(rng.normal(size=(6, 5)), requires_grad=True)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    loss = torch.nn.functional.cross_entropy(y, labels)
    hot = one_hot(labels, 5, y.detach())
    close("CE value", CrossEntropy().value(y.detach(), hot), loss.detach(), 1e-15)
    (grad,) = torch.autograd.grad(loss, y)
    close("CE", CrossEntropy().gradient(y.detach(), hot), grad, 1e-16)


def test_official_drops_half_and_has_the_half_open_boxcar() -> None:
    assert decolle_readout(3, official=True).dropout == 0.5
    edge = np.array([[-0.5]])
    for official, want in ((False, 1.0), (True, 0.0)):
        rule = decolle(1.0, surrogate="boxcar", official=official)
        factors = Factors(edge, membrane=edge, signal=np.ones((1, 1)))
        delta, _ = rule.update(factors, rule.init(edge), edge)
        assert float(delta["bias"][0]) == -want


def test_state_holds_two_numbers_for_each_input_and_no_weight_matrix() -> None:
    state = decolle(1.0).init(np.zeros((70, 50)), batch=2)
    assert sum(v.size for _, v in leaves(state)) == 2 * 2 * 50


def test_bad_choices_are_named() -> None:
    with pytest.raises(Invalid, match=r"sideways.*Pass one of"):
        decolle(1.0, surrogate="sideways")
    with pytest.raises(Invalid, match=r"alpha in \[0, 1\], got 1.5"):
        decolle(1.0, alpha=1.5)
    with pytest.raises(Invalid, match="dropout"):
        decolle_readout(3, dropout=1.0)

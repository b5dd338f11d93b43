"""ETLP against back-propagation through time: invariants E1 to E6 of specs/online-rules.md."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch

from grasp_plugin.errors import Invalid
from grasp_plugin.learning import Accumulate, Factors, Plan, ThreeFactor, etlp, etlp_output
from grasp_plugin.learning.counter_random import uniform
from grasp_plugin.learning.etlp import heterogeneous_tau_ms
from grasp_plugin.learning.signals import Projection
from grasp_plugin.learning.states import leaves
from grasp_plugin.learning.traces import AdaptiveThreshold
from grasp_plugin.neurons.adaptive import alif_init, alif_step, output_init, output_step

log = logging.getLogger(__name__)
BATCH, N_IN, N_REC, N_OUT, STEPS = 4, 7, 6, 3, 40
TAU_A, TAU_O = 10.0, 30.0
TAU_V = (20.0, 5.0, 60.0, 12.0, 35.0, 90.0)  # one per neuron
RHO, D_O = math.exp(-1 / TAU_A), math.exp(-1 / TAU_O)


def close(name: str, got: Any, want: Any, tol: float) -> float:
    """max |got - want|, relative to max |want| where that is above 1."""
    scale = max(1.0, float(abs(torch.as_tensor(want)).max()))
    error = float(abs(torch.as_tensor(got) - torch.as_tensor(want)).max()) / scale
    log.info("%s: %.1e", name, error)
    assert error <= tol, f"{name}: {error:.2e} > {tol:.0e}"
    return error


class Spike(torch.autograd.Function):
    """Theta(v) of the spec, v = (V - A) / thr; dTheta/dv = (0.3 / thr) max(0, 1 - |v|)."""

    @staticmethod
    def forward(ctx: Any, v: torch.Tensor, thr: float) -> torch.Tensor:
        ctx.save_for_backward(v)
        ctx.thr = thr
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (v,) = ctx.saved_tensors
        return grads[0] * 0.3 / ctx.thr * (1 - v.abs()).clamp(min=0), None


class Net:
    """The spec's hidden layer in plain torch; leak and adaptation keep their graph."""

    def __init__(self, theta: float, thr: float, n_ref: int, tau: Any = TAU_V) -> None:
        g = torch.Generator().manual_seed(5)
        rand = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)  # noqa: E731
        self.theta, self.thr, self.n_ref = theta, thr, n_ref
        self.decay = torch.exp(-1 / torch.tensor(tau, dtype=torch.float64))
        self.w_in = (rand(N_REC, N_IN) * 0.5 * thr + 0.2 * thr).requires_grad_()
        self.w_rec = (rand(N_REC, N_REC) * 0.4 * thr).requires_grad_()
        self.w_out = (rand(N_OUT, N_REC)).requires_grad_()
        self.x = (torch.rand(STEPS, BATCH, N_IN, generator=g) < 0.3).double()
        self.c = rand(STEPS, BATCH, N_REC)  # any learning signal
        self.v = self.s = self.adapt = self.wait = torch.zeros(BATCH, N_REC).double()

    def step(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(S before, V - A, active), S in self.s; the reset and the recurrence are detached."""
        old = self.s.detach()
        self.adapt = RHO * self.adapt + self.s
        self.v = self.decay * self.v + x @ self.w_in.T + old @ self.w_rec.T - self.thr * old
        margin = self.v - self.thr - self.theta * self.adapt
        active = (self.wait == 0).double()
        self.s = Spike.apply(margin / self.thr, self.thr) * active
        self.wait = torch.where(
            self.s > 0, torch.full_like(self.wait, self.n_ref), (self.wait - 1).clamp(min=0)
        )
        return old, margin.detach(), active


CASES = [(th, thr, ref) for th in (0.0, 1.0, 5.0) for thr in (0.5, 1.0, 2.0) for ref in (0, 5)]


def worst_error(theta: float, thr: float, n_ref: int, official: bool) -> tuple[float, float]:
    """max |ours - BPTT| over all steps and both matrices, and max |BPTT|."""
    net = Net(theta, thr, n_ref)
    rule = etlp(1.0, tau_v_ms=TAU_V, tau_a_ms=TAU_A, theta=theta, thr=thr, official=official)
    weights = net.w_in, net.w_rec
    states = [rule.init(w.detach(), batch=BATCH) for w in weights]
    error = largest = fired = 0.0
    for t in range(STEPS):
        old, margin, active = net.step(net.x[t])
        wanted = torch.autograd.grad((net.c[t] * net.s).sum(), weights, retain_graph=True)
        for n, pre in enumerate((net.x[t], old)):
            factors = Factors(pre, signal=net.c[t], membrane=margin, active=active)
            delta, states[n] = rule.update(factors, states[n], weights[n])
            error = max(error, float((-delta["weight"].dense() - wanted[n]).abs().max()))
            largest = max(largest, float(wanted[n].abs().max()))
        fired += float(net.s.detach().mean()) / STEPS
    assert 0.01 < fired < 0.9
    assert largest > 0.1
    return error, largest


@pytest.mark.parametrize(("theta", "thr", "n_ref"), CASES)
def test_e1_exact_for_every_threshold_refractory_period_and_adaptation(
    theta: float, thr: float, n_ref: int
) -> None:
    error, largest = worst_error(theta, thr, n_ref, official=False)
    log.info("E1 exact %s: %.1e of %.1f", (theta, thr, n_ref), error, largest)
    assert error <= 3e-15 * max(1.0, largest)


@pytest.mark.parametrize(("theta", "thr", "n_ref"), CASES)
def test_e2_official_is_exact_only_without_its_two_deviations(
    theta: float, thr: float, n_ref: int
) -> None:
    error, largest = worst_error(theta, thr, n_ref, official=True)
    log.info("E2 official %s: %.1e of %.1f", (theta, thr, n_ref), error, largest)
    if thr == 1 and (n_ref == 0 or theta == 0):
        assert error <= 3e-15 * max(1.0, largest)
    else:
        assert error > 1e-2 * largest


def test_e1_prime_a_trigger_is_the_gradient_of_the_linear_pseudo_loss() -> None:
    net, signal = Net(1.0, 1.0, 2), Projection(N_OUT, probability=1.0)
    rule = etlp(1.0, tau_v_ms=TAU_V, tau_a_ms=TAU_A, theta=1.0)
    fixed, state = signal.init(N_REC, net.w_in), rule.init(net.w_in.detach(), batch=BATCH)
    label = torch.eye(N_OUT).double()[[0, 2, 1, 0]]
    for t in range(STEPS):
        _, margin, active = net.step(net.x[t])
        pseudo = -((label @ fixed["feedback"].T) * net.s).sum()
        (wanted,) = torch.autograd.grad(pseudo, net.w_in, retain_graph=True)
        third, fixed = signal.update(label, fixed)
        factors = Factors(net.x[t], signal=third, membrane=margin, active=active)
        delta, state = rule.update(factors, state, net.w_in)
        close("E1'", -delta["weight"].dense(), wanted, 3e-15)


@pytest.mark.parametrize("thr", [1.0, 2.0])
def test_e3_output_update_is_the_gradient_at_the_new_membrane(thr: float) -> None:
    net, rule = Net(1.0, thr, 0), etlp_output(1.0, tau_o_ms=TAU_O, thr=thr)
    quirk = etlp_output(1.0, tau_o_ms=TAU_O, thr=thr, official=True)
    state = rule.init(net.w_out.detach(), batch=BATCH)
    v_o = torch.zeros(BATCH, N_OUT).double()
    s_o = v_o
    ours = output_init(v_o)
    label = torch.eye(N_OUT).double()[[0, 2, 1, 0]]
    largest = fired = 0.0
    for t in range(STEPS):
        net.step(net.x[t])
        s = net.s.detach()
        new = D_O * v_o + s @ net.w_out.T - thr * s_o
        s_o = ((v_o.detach() - thr) / thr > 0).double()  # the OLD membrane: one step late
        v_o = new
        loss = ((s_o - label) * Spike.apply((v_o - thr) / thr, thr)).sum()
        (wanted,) = torch.autograd.grad(loss, net.w_out, retain_graph=True)
        got_s, ours, margin = output_step(s @ net.w_out.T.detach(), ours, decay=D_O, thr=thr)
        close("E3 S_o", got_s, s_o, 0)
        factors = Factors(s, signal=got_s - label, membrane=margin)
        official, _ = quirk.update(factors, state, net.w_out)
        delta, state = rule.update(factors, state, net.w_out)
        close("E3", -delta["weight"].dense(), wanted, 3e-15)
        close("E3 official", -official["weight"].dense(), wanted * thr, 6e-15)
        largest, fired = max(largest, float(wanted.abs().max())), fired + float(s_o.mean())
    assert largest > 0.1
    assert fired > 0.5


def test_e4_no_trigger_leaves_the_weights_bit_identical() -> None:
    net, rule, signal = Net(1.0, 1.0, 0), etlp(0.1, tau_v_ms=TAU_V, theta=1.0), Projection(N_OUT)
    fixed = signal.init(N_REC, net.w_in)
    state = rule.init(net.w_in.detach(), batch=BATCH)
    weight, label = net.w_in.detach().clone(), torch.eye(N_OUT).double()[[0, 2, 1, 0]]
    events = 0
    for t in range(STEPS):
        _, margin, active = net.step(net.x[t])
        third, fixed = signal.update(label, fixed)
        before = dict(leaves(state))["trace.v"]
        factors = Factors(net.x[t], signal=third, membrane=margin, active=active)
        delta, state = rule.update(factors, state, weight)
        new = weight + delta["weight"].dense()
        event = bool(fixed["event"][0])
        assert torch.equal(new, weight) != event
        assert not torch.equal(dict(leaves(state))["trace.v"], before)  # traces advance anyway
        weight, events = new, events + event
    assert 0 < events < STEPS


def test_e4_event_rate_is_binomial_and_certain_at_one() -> None:
    label, steps = np.ones((1, 2)), 20_000
    for p in (0.1, 0.5):
        signal = Projection(2, probability=p, seed=7)
        drawn = uniform(signal.seed, np.arange(1), 1, label)
        assert 0 <= drawn[0] < 1
        state, count = signal.init(1, label), 0
        for _ in range(steps):
            _, state = signal.update(label, state)
            count += int(state["event"][0])
        sd = math.sqrt(steps * p * (1 - p))
        log.info("E4 p=%s: %d events, %.2f sd off", p, count, (count - p * steps) / sd)
        assert abs(count - p * steps) < 3 * sd
    for p in (0.0, 1.0):
        signal = Projection(2, probability=p)
        state = signal.init(1, label)
        for _ in range(200):
            third, state = signal.update(label, state)
            assert bool(third.any()) == (p == 1.0)


def test_e4_events_are_the_same_on_torch_and_differ_by_seed() -> None:
    def events(seed: int, like: Any) -> list[int]:
        signal, out = Projection(2, probability=0.5, seed=seed), []
        state = signal.init(3, like)
        for _ in range(64):
            _, state = signal.update(like, state)
            out.append(int(state["event"][0]))
        return out

    one = np.ones((1, 2))
    assert events(1, one) == events(1, torch.tensor(one)) != events(2, one)
    numbers = uniform(3, np.zeros(1, dtype=np.int64), 100_000, np.zeros(1))
    assert abs(numbers.mean() - 0.5) < 3 / math.sqrt(12 * 100_000)
    counts = np.bincount((numbers * 100).astype(int), minlength=100)
    assert ((counts - 1000) ** 2 / 1000).sum() < 149  # chi square, 99 degrees: p = 0.001
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.01


def test_e5_full_tensor_equals_factorised(rng: np.random.Generator) -> None:
    short = etlp(1.0, tau_v_ms=20.0, theta=0.0)
    assert isinstance(short, ThreeFactor)
    assert short.trace.rank_one
    decay = math.exp(-1 / 20)
    full = ThreeFactor(AdaptiveThreshold(decay, 0.9, 0.0), short.surrogate, 1.0)
    neurons = etlp(1.0, tau_v_ms=[20.0] * N_REC, theta=0.0)
    weight = rng.normal(size=(N_REC, N_IN))
    states = [r.init(weight, batch=BATCH) for r in (short, full, neurons)]
    for _ in range(100):
        factors = Factors(
            (rng.random((BATCH, N_IN)) < 0.3) * 1.0,
            signal=rng.normal(size=(BATCH, N_REC)),
            membrane=rng.normal(size=(BATCH, N_REC)),
        )
        out = []
        for n, rule in enumerate((short, full, neurons)):
            delta, states[n] = rule.update(factors, states[n], weight)
            out.append(delta["weight"].dense())
        close("E5", out[1], out[0], 1e-14)
        close("E5 per neuron", out[2], out[0], 1e-14)
        assert abs(out[0]).max() > 0.01


def test_e6_error_signal_and_low_pass_are_e_prop() -> None:
    """Autograd of sum_t <S_o - y*, Y[t]>, Y the leaky readout of S through Bf."""
    net, signal = Net(1.0, 1.0, 2), Projection(N_OUT, probability=1.0, source="error")
    common = {"tau_v_ms": TAU_V, "tau_a_ms": TAU_A, "theta": 1.0}
    rule = Plan(etlp(1.0, **common, low_pass_ms=TAU_O), (Accumulate(STEPS),))
    unfiltered = Plan(etlp(1.0, **common), (Accumulate(STEPS),))
    fixed = signal.init(N_REC, net.w_in)
    state, other = (r.init(net.w_in.detach(), batch=BATCH) for r in (rule, unfiltered))
    label = torch.eye(N_OUT).double()[[0, 2, 1, 0]]
    output = output_init(torch.zeros(BATCH, N_OUT).double())
    y, loss = torch.zeros(BATCH, N_OUT).double(), torch.zeros(()).double()
    for t in range(STEPS):
        _, margin, active = net.step(net.x[t])
        a = net.s.detach() @ net.w_out.T.detach()
        s_o, output, _ = output_step(a, output, decay=D_O, thr=1.0)
        y = D_O * y + net.s @ fixed["feedback"]
        loss = loss + ((s_o - label) * y).sum()
        third, fixed = signal.update(label, fixed, output=s_o)
        factors = Factors(net.x[t], signal=third, membrane=margin, active=active)
        delta, state = rule.update(factors, state, net.w_in)
        wrong, other = unfiltered.update(factors, other, net.w_in)
        if t < STEPS - 1:
            assert not delta["weight"].dense().any()
    (wanted,) = torch.autograd.grad(loss, net.w_in)
    close("E6", -delta["weight"].dense(), wanted, 1e-14)
    assert float((-wrong["weight"].dense() - wanted).abs().max()) > 0.1 * float(wanted.abs().max())


def test_e_prop_on_the_factorised_trace_equals_the_full_one(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(N_REC, N_IN))
    rules = [etlp(1.0, tau_v_ms=tau, theta=0.0, low_pass_ms=5.0) for tau in (20.0, [20.0] * N_REC)]
    states = [r.init(weight, batch=BATCH) for r in rules]
    for _ in range(20):
        factors = Factors(
            rng.random((BATCH, N_IN)), signal=rng.normal(size=(BATCH, N_REC)),
            membrane=rng.normal(size=(BATCH, N_REC)),
        )  # fmt: skip
        deltas = []
        for n, rule in enumerate(rules):
            delta, states[n] = rule.update(factors, states[n], weight)
            deltas.append(delta["weight"].dense())
        np.testing.assert_allclose(deltas[0], deltas[1], atol=1e-14)
        assert abs(deltas[0]).max() > 0.1


@pytest.mark.parametrize("n_ref", [0, 3])
def test_alif_step_equals_the_reference(n_ref: int) -> None:
    net = Net(1.0, 2.0, n_ref)
    state = alif_init(torch.zeros(BATCH, N_REC).double())
    for t in range(STEPS):
        a = (net.x[t] @ net.w_in.T + state["s"] @ net.w_rec.T).detach()
        _, want, want_active = net.step(net.x[t])
        s, state, margin, active = alif_step(
            a, state, decay=net.decay, rho=RHO, theta=1.0, thr=2.0, n_ref=n_ref
        )
        close("ALIF margin", margin, want, 1e-14)
        assert torch.equal(s, net.s.detach())
        assert torch.equal(active, want_active)


def test_alif_by_hand() -> None:
    state, spikes, thresholds = alif_init(np.zeros((1, 1))), [], []
    for x in (1.5, 1.5, 0.0, 2.0):  # thr 1, theta 1, rho = d_v = 1/2, silent for one step
        s, state, margin, _ = alif_step(
            np.array([[x]]), state, decay=0.5, rho=0.5, theta=1.0, thr=1.0, n_ref=1
        )
        spikes.append(float(s[0, 0]))
        thresholds.append(float((state["v"] - margin)[0, 0]))
    assert thresholds == [1, 2, 1.5, 1.25]
    assert spikes == [1, 0, 0, 1]  # V = 1.5, 1.25, 0.625, 2.3125


def test_membrane_regulariser_joins_the_signal_at_events() -> None:
    signal = Projection(2, probability=1.0, v_reg=0.5, thr=1.0)
    label = np.zeros((1, 2))
    third, _ = signal.update(label, signal.init(3, label), potential=np.array([[2.0, -3.0, 0.9]]))
    assert third.tolist() == [[1.0, -1.5, 0.0]]


def test_heterogeneous_time_constants_are_clamped_gammas() -> None:
    tau = np.array(heterogeneous_tau_ms(5000, 40.0))
    assert tau.min() >= 3
    assert tau.max() == 100
    assert abs(np.median(tau) - 35.65) < 1.5  # median of Gamma(3, 40/3): 2.674 * 40 / 3


def test_bad_choices_are_named() -> None:
    with pytest.raises(Invalid, match="tau, dt > 0"):
        etlp(1.0, tau_v_ms=0.0)
    with pytest.raises(Invalid, match="thr > 0"):
        etlp(1.0, thr=0.0)
    with pytest.raises(Invalid, match="one time constant, got 2"):
        etlp(1.0, low_pass_ms=(1.0, 2.0))  # type: ignore[arg-type]
    with pytest.raises(Invalid, match=r"probability in \[0, 1\], got 2"):
        Projection(3, probability=2.0)
    with pytest.raises(Invalid, match="'label' or 'error', got 'oracle'"):
        Projection(3, source="oracle")
    label = np.ones((1, 3))
    signal = Projection(3, source="error")
    with pytest.raises(Invalid, match="Pass output=S_o"):
        signal.update(label, signal.init(2, label))
    signal = Projection(3, v_reg=1.0)
    with pytest.raises(Invalid, match="Pass potential=V"):
        signal.update(label, signal.init(2, label))

"""HD-LIF neurons under learning rules: exact, with DECOLLE's signal, with GRASP; refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hdlif_cases import DOUBLE, STEPS, gradients, samples, stack
from torch import nn

from grasp_plugin.errors import GraspError
from grasp_plugin.hdlif import HDLIF, HDLayer, HDStack, QuantConv2d, hmdf
from grasp_plugin.hdlif.rules import RuleLearner, plans_for
from grasp_plugin.learning import GRASP, Accumulate, Factors
from grasp_plugin.learning.budget import Fixed
from grasp_plugin.learning.fixed_plan import fixed_plan
from grasp_plugin.learning.hdlif import Excess, FiringMasked, hdlif_rule
from grasp_plugin.learning.loihi import loihi_form
from grasp_plugin.learning.losses import MSE
from grasp_plugin.learning.signals import RandomReadout

RATE = 0.1
SIZES = (7, 24, 4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def moved(net: HDStack, learner: RuleLearner, x: Any, y: Any) -> dict[str, torch.Tensor]:
    """What one batch adds to the weights."""
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    learner.learn(x, y, nn.functional.cross_entropy)
    return {n: p.detach() - before[n] for n, p in net.named_parameters()}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("biased", [False, True])
def test_summed_over_a_sample_the_rule_is_bptt(seed: int, biased: bool) -> None:
    x, y = samples(seed)
    net = stack(seed, "bptt", SIZES)
    if biased:
        net[0].synapse.bias = nn.Parameter(0.1 * torch.ones(24, dtype=DOUBLE))
    wanted = gradients(copy.deepcopy(net), x, y)
    plans = plans_for(net, RATE / STEPS, transforms=lambda: (Accumulate(STEPS),))
    found = moved(net, RuleLearner(net, plans), x, y)
    names = ["0.synapse.weight", "1.weight"] + ["0.synapse.bias"] * biased
    for name in names:
        assert float((found[name] + RATE * wanted[name]).abs().max()) < 1e-12
        assert float(wanted[name].abs().max()) > 1e-3
    assert not found["0.neuron.theta_logit"].any()


def test_the_instant_trace_is_the_papers_online_gradient() -> None:
    x, y = samples(1)
    net = stack(1, "online", (7, 24, 24, 4))
    wanted = gradients(copy.deepcopy(net), x, y)
    plans = plans_for(net, RATE / STEPS, trace="instant",
                      transforms=lambda: (Accumulate(STEPS),))  # fmt: skip
    found = moved(net, RuleLearner(net, plans), x, y)
    for name in ("0.synapse.weight", "1.synapse.weight", "2.weight"):
        assert float((found[name] + RATE * wanted[name]).abs().max()) < 1e-12


def test_decolles_signal_gives_the_gradient_of_its_local_loss() -> None:
    """dL_local/dW of each layer by autograd, the layers cut from each other."""
    x, _ = samples(2)
    y = torch.eye(4, dtype=DOUBLE)[torch.arange(5) % 4]
    sizes = (7, 20, 16, 4)
    readouts = {n: RandomReadout(4, 2.0, MSE(), seed=int(n)) for n in ("0", "1")}
    net = stack(2, "bptt", sizes)
    plans = {n: p for n, p in plans_for(
        net, RATE, transforms=lambda: (Accumulate(STEPS),)).items() if n in readouts}  # fmt: skip
    reference = copy.deepcopy(net)
    total, states = 0.0, {"0": None, "1": None}
    fixed = {n: r.init(s, x) for (n, r), s in zip(readouts.items(), sizes[1:3], strict=True)}
    for step in x:
        pre = step
        for k, name in enumerate(readouts):
            out, states[name] = reference[k](pre, states[name])
            total = total + MSE().value(readouts[name].logits(out, fixed[name]), y)
            pre = out.detach()
    total.backward()
    before = {k: net[k].synapse.weight.detach().clone() for k in (0, 1)}
    learner = RuleLearner(net, plans, readouts=readouts)
    learner.learn(x, y, lambda out, y: (out - y).square().mean())
    for k in (0, 1):
        wanted = reference[k].synapse.weight.grad
        found = net[k].synapse.weight.detach() - before[k]
        assert float((found + RATE * wanted).abs().max()) < 1e-12
        assert float(wanted.abs().max()) > 1e-3


def test_grasp_writes_its_share() -> None:
    x, y = samples(3)
    changed = {}
    for share in (1.0, 0.1):
        net = stack(3, "online", SIZES)
        plans = plans_for(net, RATE, transforms=lambda s=share: (GRASP(Fixed(s), "magnitude"),))
        learner = RuleLearner(net, plans)
        found = moved(net, learner, x, y)["0.synapse.weight"]
        changed[share] = found
        counts = learner.states["0"]["transforms"]["0"]
        assert int(counts["steps"][0]) == STEPS
        assert int(counts["issued"][0]) <= share * int(counts["dense"][0])
        learner.learn(x, y, nn.functional.cross_entropy)
        assert int(learner.states["0"]["transforms"]["0"]["steps"][0]) == 2 * STEPS
    plain = moved(n := stack(3, "online", SIZES), RuleLearner(n, plans_for(n, RATE)), x, y)
    assert float((plain["0.synapse.weight"] - changed[1.0]).abs().max()) < 1e-12
    assert 0 < int((changed[0.1] != 0).sum()) < int((changed[1.0] != 0).sum())


def test_a_rule_of_numpy_arrays_is_that_of_torch() -> None:
    rng, rule = np.random.default_rng(0), hdlif_rule(0.5, decay=(0.3, 0.6, 0.9))
    weight, out = rng.normal(size=(3, 4)), []
    for kind in (np.asarray, torch.as_tensor):
        state, total = rule.init(kind(weight), batch=2), 0
        draw = np.random.default_rng(1)
        for _ in range(3):
            margin = draw.normal(size=(2, 3))
            factors = Factors(
                kind(draw.normal(size=(2, 4))), kind(draw.normal(size=(2, 3))), kind(margin),
                spikes=kind(np.maximum(margin, 0)),
            )  # fmt: skip
            delta, state = rule.update(factors, state, kind(weight))
            total = total + np.asarray(delta["weight"].dense())
        out.append(total)
    assert np.abs(out[0] - out[1]).max() < 1e-15
    assert np.abs(out[0]).min() > 0


def test_decays_of_steps_may_be_an_array() -> None:
    given = np.array([0.5, 0.25])
    assert FiringMasked(given) == FiringMasked((0.5, 0.25))  # type: ignore[arg-type]


def test_excess_is_its_own_derivative() -> None:
    x = np.array([-1.0, 0.0, 2.0])
    e = Excess()
    assert e.first(x).tolist() == [0, 0, 1]
    assert e.smooth(x).tolist() == [0, 0, 2]
    assert e.second(x).tolist() == [0, 0, 0]


def learner(net: HDStack, name: str = "0") -> Callable[[], Any]:
    return lambda: RuleLearner(net, {name: hdlif_rule(0.1)})


def beyond() -> None:
    rule = hdlif_rule(0.1, decay=(0.5,))
    one = np.ones((1, 1))
    factors = Factors(one, one, one, spikes=one)
    _, state = rule.update(factors, rule.init(one), one)
    rule.update(factors, state, one)


def bent() -> None:
    net = stack(0, "online", SIZES)
    plans = plans_for(net, RATE, transforms=lambda: (GRASP(Fixed(0.1), "pred_decrease"),))
    RuleLearner(net, plans).learn(*samples(0), nn.functional.cross_entropy)


LAYER = nn.Linear(2, 2)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "rank1": (lambda: hdlif_rule(0.1, trace="rank1"), r"'rank1' \(OTTT's\): a spike sets the memb"),
    "trace": (lambda: hdlif_rule(0.1, trace="x"), r"\('synapse', 'instant'\), got 'x'"),
    "decay": (lambda: FiringMasked((0.5, 1.5)), r"decay in \[0, 1\], got \(0.5, 1.5\)"),
    "beyond": (beyond, "at most 1 steps, got step 2"),
    "spikes": (
        lambda: FiringMasked(0.5).update(
            Factors(np.ones((1, 1))), FiringMasked(0.5).init(np.ones((1, 1)))
        ),
        "expected Factors.spikes",
    ),
    "name": (learner(stack(0, "online", SIZES), "7"), r"one of the layers \('0', '1'\)"),
    "quantised": (learner(HDStack(hmdf(2, 2, 2, norm=False))), "got latent ones of 1.5bit"),
    "norm": (learner(HDStack(hmdf(2, 2, 2, weights="fp"))), "no norm behind the weights"),
    "conv": (learner(HDStack(HDLayer(QuantConv2d(1, 1, 1), HDLIF(2)))), "got QuantConv2d"),
    "other": (learner(HDStack(nn.ReLU())), "got ReLU"),
    "mode": (learner(HDStack(HDLayer(LAYER, HDLIF(2, grad_mode="trace")))), "not in trace mode"),
    "shape": (
        lambda: learner(HDStack(HDLayer(LAYER, HDLIF(2))))().learn(
            torch.ones(2, 2), torch.ones(2), nn.functional.mse_loss
        ),
        r"\(time, batch, N_i\), got \(2, 2\)",
    ),
    "curvature": (bent, "curvature"),
    "loihi": (lambda: loihi_form(hdlif_rule(0.1)), "no Loihi form of it is written"),
    "integers": (
        lambda: fixed_plan("w", hdlif_rule(0.1), 1.0, error_max=1.0), "got .*FiringMasked|per-syn",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_remedy(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(GraspError, match=message):
        call()

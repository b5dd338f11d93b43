"""`ottt_for`, `decolle_for`, `etlp_for`, `sltt_for` against autograd on the whole network.

`TorchNetwork` runs with a surrogate; between steps everything is detached but what the rule says is
alive: the current and membrane of one population (and its adaptive threshold, for ETLP), never a
spike that resets or recurs. With learning rate 1 and the sum over the sequence, what a plan adds is
minus the gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import plastic_cases as cases
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, smooth_l1_loss

from grasp_plugin import build, quantise
from grasp_plugin.backends.torch import TorchNetwork
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning import (
    Accumulate,
    BurnIn,
    Late,
    Learning,
    decolle_for,
    etlp_for,
    ottt_for,
    sltt_for,
)
from grasp_plugin.learning.exact_trace import exact_trace
from grasp_plugin.learning.recipes import late_steps
from grasp_plugin.learning.signals import teaching_event
from grasp_plugin.learning.traces import (
    AdaptiveThreshold,
    CurrentExponential,
    Exponential,
    Instant,
    SynapticExponential,
)
from grasp_plugin.network.weights import Conv
from grasp_plugin.neurons.surrogate import FastSigmoid, Sigmoid, Surrogate, Triangular

log = logging.getLogger(__name__)
STEPS, BATCH, OUT = 25, 3, cases.OUT
Losses = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]  # one loss a population
ALIF = {"theta": 0.4, "rho": 0.85, "n_ref": 2}
LI = {"node": "LI", "reset": None}


def spike_of(surrogate: Surrogate) -> Callable[[Tensor], Tensor]:
    """H forward, the surrogate backward."""

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return (x > 0).to(x.dtype)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0] * surrogate.first(ctx.saved_tensors[0])

    return Spike.apply  # type: ignore[no-any-return]


class Graph:
    """The network's autograd graph with the leak of one population alive."""

    def __init__(self, net: Any, surrogate: Surrogate, *, thresholds: bool = False) -> None:
        self.net, self.thresholds = net, thresholds
        self.module = TorchNetwork(net, spike=spike_of(surrogate))
        self.parameters: dict[str, Tensor] = {}
        for i, k in enumerate(net.projections):
            self.parameters[k.name] = getattr(self.module, f"weight_{i}")
        for i, b in enumerate(net.biases):
            self.parameters[b.name] = getattr(self.module, f"bias_{i}")

    def gradients(self, spikes: Any, losses: Losses, *, memory: bool = True) -> dict[str, Any]:
        """d sum_t losses[p] / d(what ends at p), every population in its turn alive."""
        out = {}
        for p in self.net.populations:
            mine = [k.name for k in (*self.net.projections, *self.net.biases) if k.target == p.name]
            total = self._run(spikes, losses, p if memory else None, p.name)
            found = torch.autograd.grad(total, [self.parameters[n] for n in mine])
            out |= dict(zip(mine, (g.numpy() for g in found), strict=True))
        return {n: self._shared(n, g) for n, g in out.items()}

    def _run(self, spikes: Any, losses: Losses, alive: Any, judged: str) -> Tensor:
        given = {n: torch.tensor(x).reshape(len(x), BATCH, -1) for n, x in spikes.items()}
        state, total = self.module.initial_state(BATCH), torch.zeros(()).double()
        for t in range(STEPS):
            output, new, margin = self.module.step(t, {n: x[t] for n, x in given.items()}, state)
            total = total + losses(t, output)[judged]
            state = {
                "populations": {
                    n: {k: x.detach() for k, x in s.items()} for n, s in new["populations"].items()
                },
                "past": {n: [x.detach() for x in xs] for n, xs in new["past"].items()},
            }
            if alive is not None:
                kept = self._kept(alive, new["populations"][alive.name], margin[alive.name])
                state["populations"][alive.name] |= kept
        return total

    def _kept(self, p: Any, new: dict[str, Tensor], margin: Tensor) -> dict[str, Tensor]:
        """The alive part of a population's state, as if its reset had been detached."""
        s, v = new["s"].detach(), new["v"]
        v_th = torch.tensor(p.v_th)
        raised = new["adapt"] if p.adaptive else 0.0
        if p.reset in ("value", "refractory1"):
            v = (margin + v_th + raised) * (1 - s)
        elif p.reset == "subtract-immediate":
            v = margin + v_th + raised - s * v_th
        assert torch.allclose(v, new["v"])
        if not self.thresholds:
            if p.reset in ("value", "refractory1", "subtract-immediate") and p.adaptive:
                raise NotImplementedError
            return {"u": new["u"], "v": v}
        slope = torch.tensor(p.theta / p.rho)  # the spike in A alive, in the reset detached
        return {"u": new["u"], "v": v, "adapt": new["adapt"] + slope * (new["s"] - s)}

    def _shared(self, name: str, gradient: Any) -> Any:
        """A convolution's bias: summed over the neurons that share it."""
        bias = next((b for b in self.net.biases if b.name == name), None)
        if bias is None:
            return gradient
        convs = [k.weight for k in self.net.into(bias.target) if isinstance(k.weight, Conv)]
        if not convs:
            return gradient
        channels = gradient.reshape(convs[0].out_shape[0], -1)
        return np.broadcast_to(channels.sum(axis=1, keepdims=True), channels.shape).ravel()


def added(net: Any, learning: Learning, spikes: Any, target: Any) -> dict[str, Any]:
    """What the plans add over the sequence, the weights at rest meanwhile."""
    plans = cases.behind(learning, Accumulate(STEPS))
    with build(net, "torch", plans=plans) as session:
        session.learn(spikes, target)
        after = session.weights()
    first = net.weights() | {b.name: b.value for b in net.biases}
    return {n: w - first[n] for n, w in after.items()}


def spikes_for(net: Any) -> dict[str, Any]:
    rng = np.random.default_rng(6)
    return {
        n: (rng.random((STEPS, BATCH, *shape)) < 0.35).astype(float)
        for n, shape in net.inputs.items()
    }


def check(name: str, got: dict[str, Any], want: dict[str, Any], tol: float = 1e-12) -> None:
    errors = {n: float(abs(got[n] + want[n]).max()) for n in got}
    sizes = {n: float(abs(w).max()) for n, w in want.items()}
    log.info("%s: %.1e of %.2f..%.2f", name, max(errors.values()), min(sizes.values()),
             max(sizes.values()))  # fmt: skip
    assert max(errors.values()) < tol, errors
    assert min(sizes[n] for n in got) > 1e-4, sizes


LABELS = np.array([2, 0, 3])
NETS: dict[str, Callable[[Any], Any]] = {
    "dense with a skip": cases.deep,
    "loops and delays": lambda rng: cases.looped(rng),
    "convolutions": cases.convolution,
    "hard reset": lambda rng: cases.deep(rng, reset="value"),
    "refractory1": lambda rng: cases.deep(rng, reset="refractory1"),
    "subtract-immediate": lambda rng: cases.deep(rng, reset="subtract-immediate"),
    "current": lambda rng: cases.looped(rng, du=0.6, v_th=1.4),
    "current and refractory1": lambda rng: cases.deep(rng, du=0.6, v_th=1.4, reset="refractory1"),
    "adaptive": lambda rng: cases.looped(rng, **ALIF),
    "readout without spikes": lambda rng: cases.deep(rng, readout=LI),
    "no memory": lambda rng: cases.deep(rng, dv=1.0),
}


def each(net: Any, loss: Tensor) -> dict[str, Tensor]:
    return {p.name: loss for p in net.populations}


@pytest.mark.parametrize("name", NETS)
def test_ottt_is_autograd_with_one_leak_alive(name: str) -> None:
    net = NETS[name](np.random.default_rng(3))
    spikes = spikes_for(net)
    labels = torch.tensor(LABELS)
    graph = Graph(net, Sigmoid(4.0))
    want = graph.gradients(spikes, lambda t, o: each(net, cross_entropy(o["o"], labels)))
    got = added(net, ottt_for(net, OUT, 1.0), spikes, LABELS)
    if name == "loops and delays":  # o -> h -> o: nothing but the undelayed way down counts
        assert set(got) == set(want)
    check(name, got, want)


@pytest.mark.parametrize("name", ["dense with a skip", "convolutions", "hard reset"])
def test_sltt_is_autograd_with_no_leak_alive(name: str) -> None:
    net = NETS[name](np.random.default_rng(3))
    spikes, labels = spikes_for(net), torch.tensor(LABELS)
    want = Graph(net, Sigmoid(4.0)).gradients(
        spikes, lambda t, o: each(net, cross_entropy(o["o"], labels)), memory=False
    )
    check(name, added(net, sltt_for(net, OUT, 1.0), spikes, LABELS), want)
    other = added(net, ottt_for(net, OUT, 1.0), spikes, LABELS)
    assert max(abs(other[n] + want[n]).max() for n in other) > 1e-2


@pytest.mark.parametrize("name", [n for n in NETS if n != "readout without spikes"])
def test_decolle_is_autograd_of_the_local_loss(name: str) -> None:
    """Only the population's own filter alive; SmoothL1 of its own fixed readout."""
    net, classes = NETS[name](np.random.default_rng(3)), 5
    spikes = spikes_for(net)
    learning = decolle_for(net, classes, 1.0)
    target = np.random.default_rng(7).normal(size=(STEPS, BATCH, classes))
    fixed = {
        p: s.init(net[p].size, torch.zeros(1).double())  # type: ignore[union-attr]
        for p, s in learning.signals.items()
    }

    def losses(t: int, output: dict[str, Tensor]) -> dict[str, Tensor]:
        out = {}
        for p, state in fixed.items():
            y = output[p] @ state["readout"].T + state["bias"]
            out[p] = smooth_l1_loss(y, torch.tensor(target[t]))
        return out

    want = Graph(net, FastSigmoid(10.0)).gradients(spikes, losses)
    check(name, added(net, learning, spikes, target), want)


ETLP_NETS = ["loops and delays", "convolutions", "hard reset", "adaptive", "dense with a skip"]


@pytest.mark.parametrize("name", ETLP_NETS)
def test_etlp_is_autograd_of_the_linear_pseudo_loss_at_events(name: str) -> None:
    """-<Bf y*, S> for hidden, <S_o - y*, S_o> with the error held for the output, at events."""
    net = NETS[name](np.random.default_rng(3))
    spikes = spikes_for(net)
    learning = etlp_for(net, OUT, 1.0, probability=0.4)
    like = torch.zeros(1).double()
    hot = torch.eye(OUT).double()[torch.tensor(LABELS)]
    feedback = {
        p: s.init(net[p].size, like)["feedback"]
        for p, s in learning.signals.items() if p != "o"
    }  # fmt: skip
    events = []

    def losses(t: int, output: dict[str, Tensor]) -> dict[str, Tensor]:
        event = teaching_event(0, torch.tensor([t]), 0.4, like)[0]
        events.append(float(event))
        out = {p: -event * (output[p] * (hot @ b.T)).sum() for p, b in feedback.items()}
        return {**out, "o": event * (output["o"] * (output["o"].detach() - hot)).sum()}

    surrogate = Triangular(0.3 / 0.9**2, 0.9)
    graph = Graph(net, surrogate, thresholds=name == "adaptive")
    want = graph.gradients(spikes, losses)
    check(name, added(net, learning, spikes, LABELS), want)
    assert 0.2 < np.mean(events) < 0.6


def test_etlps_official_knob_is_not_the_gradient_where_neurons_are_refractory() -> None:
    net = NETS["adaptive"](np.random.default_rng(3))
    spikes = spikes_for(net)
    exact = added(net, etlp_for(net, OUT, 1.0, probability=0.4), spikes, LABELS)
    other = added(net, etlp_for(net, OUT, 1.0, probability=0.4, official=True), spikes, LABELS)
    ratio = {n: abs(other[n] / 0.9 - exact[n]).max() / abs(exact[n]).max() for n in exact}
    log.info("official times 1 / thr against exact: %s", ratio)
    assert max(ratio.values()) > 1e-3


@pytest.mark.parametrize("wrong", ["rank1", "no current"])
def test_a_trace_that_is_not_exact_is_seen_not_to_be(wrong: str) -> None:
    """The comparison with autograd can fail."""
    name = {"rank1": "hard reset", "no current": "current"}[wrong]
    net = NETS[name](np.random.default_rng(3))
    spikes, labels = spikes_for(net), torch.tensor(LABELS)
    want = Graph(net, Sigmoid(4.0)).gradients(
        spikes, lambda t, o: each(net, cross_entropy(o["o"], labels))
    )
    plain = ottt_for(net, OUT, 1.0)
    plans = {n: replace(p, trace=Exponential(0.8)) for n, p in plain.plans.items()}  # type: ignore[type-var]
    got = added(net, replace(plain, plans=plans), spikes, LABELS)
    error = max(float(abs(got[n] + want[n]).max()) for n in got)
    log.info("%s: off by %.2f", wrong, error)
    assert error > 1e-2


# What the recipes choose


@pytest.mark.parametrize(
    ("neurons", "expected"),
    [
        ({}, Exponential(0.8)),
        ({"dv": 1.0}, Instant()),
        ({"du": 0.25}, CurrentExponential(0.8, 0.75)),
        ({"reset": "value"}, SynapticExponential(0.8, True)),
        ({"reset": "refractory1"}, SynapticExponential(0.8, True, None, True)),
        ({"reset": "value", "du": 0.25}, SynapticExponential(0.8, True, 0.75)),
        ({"dv": np.array([0.5, 0.25])}, SynapticExponential((0.5, 0.75), False)),
        ({"reset": None, "node": "LI"}, Exponential(0.8)),
        ({"reset": "subtract-immediate"}, Exponential(0.8)),
        ({"theta": 0.3, "rho": 0.5}, Exponential(0.8)),
    ],
)
def test_the_trace_that_a_population_needs(neurons: dict[str, Any], expected: Any) -> None:
    got = exact_trace(cases.population("p", 2, **neurons))
    assert type(got) is type(expected)
    assert vars(got).keys() == vars(expected).keys()
    for key, value in vars(expected).items():
        assert np.allclose(getattr(got, key) or 0, value or 0, atol=1e-15), key


def test_an_adaptive_threshold_is_followed_if_asked() -> None:
    p = cases.population("p", 2, theta=0.3, rho=0.5)
    assert exact_trace(p, adaptive=True) == AdaptiveThreshold(0.8, 0.5, 0.3)
    for change in ({"du": 0.5}, {"reset": "value"}):
        with pytest.raises(Refused, match=r"p: expected an adaptive threshold.*DECOLLE"):
            exact_trace(cases.population("p", 2, theta=0.3, rho=0.5, **change), adaptive=True)


def test_a_per_synapse_trace_is_logged_by_name_and_rank1_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = cases.two_layers(np.random.default_rng(0), reset="value")
    with caplog.at_level(logging.INFO, "grasp_plugin"):
        decolle_for(net, 3, 0.1)
    said = [r.getMessage() for r in caplog.records]
    assert any(m.startswith("h: per-synapse") and "reset 'value'" in m for m in said), said
    for recipe in (decolle_for, etlp_for, ottt_for):
        with pytest.raises(Refused, match=r"h: expected a per-synapse trace, got 'rank1'.*auto"):
            recipe(net, OUT, 0.1, trace="rank1")


def test_plans_signals_and_lateness_of_a_network(rng: Any) -> None:
    net = cases.deep(rng)
    learning = ottt_for(net, OUT, 0.1, pipelined=True, frozen=["b->o", "bb"])
    assert set(learning.plans) == {"in->a", "a->b", "a->o", "ba"}
    assert set(learning.signals) == {"a", "b", "o"}
    assert late_steps(net, "o") == {"a": 2, "b": 1, "o": 0}
    after = {n: getattr(p, "transforms", ()) for n, p in learning.plans.items()}
    assert after == {"in->a": (Late(2),), "ba": (Late(2),), "a->b": (Late(1),), "a->o": ()}
    burnt = decolle_for(net, 3, 0.1, burn_in=9)
    assert all(p.transforms == (BurnIn(9),) for p in burnt.plans.values())  # type: ignore[attr-defined]
    assert len({s.seed for s in burnt.signals.values()}) == 3  # type: ignore[union-attr]


def test_what_recipes_refuse(rng: Any) -> None:
    net = cases.two_layers(rng)
    li = cases.network([cases.population("o", OUT, **LI)], [cases.dense(rng, "in->o", (OUT, 9))])
    with pytest.raises(Refused, match="network: expected a spiking population"):
        decolle_for(li, 3, 0.1)
    for recipe in (etlp_for, ottt_for, sltt_for):
        with pytest.raises(Invalid, match=r"expected one output population with 7 neurons.*'o': 4"):
            recipe(net, 7, 0.1)
    for recipe in (decolle_for, etlp_for, ottt_for):
        with pytest.raises(Invalid, match="h->z: expected a projection or bias, one of"):
            recipe(net, OUT, 0.1, frozen=["h->z"])
        with pytest.raises(Invalid, match="h: expected a float population, got Loihi integers"):
            recipe(quantise(net), OUT, 0.1)
    uneven = replace(
        net, populations=(replace(net["h"], v_th=np.linspace(0.5, 1, cases.HIDDEN)), net["o"])
    )
    with pytest.raises(Invalid, match="h: expected one threshold > 0"):
        etlp_for(uneven, OUT, 0.1)

"""GRASP with curvature on Lava: M d is worked out where the signal is made, and sent along."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import plastic_cases as cases
import pytest

from grasp_plugin import build, quantise
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning import (
    GRASP,
    Learning,
    Plan,
    decolle_for,
    etlp_for,
    ottt_for,
    scheduled,
)
from grasp_plugin.learning.budget import Budget, Fixed, Marginal, Sharpness
from grasp_plugin.learning.local_curvature import KnownDirection
from grasp_plugin.learning.losses import CrossEntropy
from grasp_plugin.neurons.surrogate import Boxcar

pytestmark = pytest.mark.lava
log = logging.getLogger(__name__)
OUT = cases.OUT
BUDGETS: list[Budget] = [Fixed(0.1), Marginal(0.1), Sharpness(0.1)]
COUNTS = ("issued", "dense", "dense_nz", "steps", "products")


def two(**neurons: Any) -> Any:
    return cases.two_layers(np.random.default_rng(0), **neurons)


def spikes(steps: int = 200) -> Any:
    return (np.random.default_rng(1).random((steps, cases.IN)) < 0.4).astype(float)


RULES: dict[str, tuple[Any, Callable[[Any], Learning]]] = {
    "decolle": (two(), lambda n: decolle_for(n, 3, 0.01)),
    "decolle, dropout and noise": (
        two(n_ref=2), lambda n: decolle_for(n, 3, 0.01, dropout=0.3, feedback_noise=0.5),
    ),
    "decolle, cross-entropy": (two(), lambda n: decolle_for(n, 3, 0.01, loss=CrossEntropy())),
    "etlp": (two(), lambda n: etlp_for(n, OUT, 0.01, probability=0.4)),
    "etlp, refractory": (two(n_ref=2), lambda n: etlp_for(n, OUT, 0.01, probability=0.4)),
}  # fmt: skip


def ran(net: Any, learning: Learning, backend: str, steps: int = 200) -> tuple[Any, Any]:
    """(weights, transforms' states) after a sequence of as many steps."""
    with build(net, backend, plans=learning) as session:
        session.learn(spikes(steps), 1)
        return session.weights(), session.transforms()


def compared(net: Any, learning: Learning, others: tuple[str, ...] = ("torch", "lava")) -> Any:
    """Asserts equal weights and counters on all back ends; the weights on fused."""
    want, states = ran(net, learning, "fused")
    for backend in others:
        got, found = ran(net, learning, backend)
        gap = cases.gap([got], [want])
        log.info("%s: %.1e", backend, gap)
        assert gap < 1e-12
        for name, state in states.items():
            for at in state:
                assert {c: int(found[name][at][c][0]) for c in COUNTS} == {
                    c: int(state[at][c][0]) for c in COUNTS
                }, (backend, name)
    return want


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: type(b).__name__)
@pytest.mark.parametrize("score", ["pred_decrease", "abs_gHg"])
@pytest.mark.parametrize("rule", ["decolle", "etlp"])
def test_the_same_synapses_with_curvature_on_every_back_end(
    rule: str, score: str, budget: Budget
) -> None:
    net, learn = RULES[rule]
    compared(net, scheduled(learn(net), GRASP(budget, score)))


@pytest.mark.parametrize("rule", RULES)
def test_the_curvature_that_is_sent_is_that_of_the_network(rule: str) -> None:
    """Other losses, events, dropout and refractoriness; and it does change what is written."""
    net, learn = RULES[rule]
    bent = compared(net, scheduled(learn(net), GRASP(Fixed(0.1), "abs_gHg")), ("lava",))
    plain, _ = ran(net, scheduled(learn(net), GRASP(Fixed(0.1), "magnitude")), "fused")
    assert cases.gap([bent], [plain]) > 1e-4


@pytest.mark.parametrize("readout", [None, {"node": "LI", "reset": None}], ids=["spikes", "LI"])
def test_back_propagation_at_the_readout_itself(readout: Any) -> None:
    net = two(readout=readout)
    learning = ottt_for(net, OUT, 0.05, pipelined=True)
    only = ["h->o", "bo"]
    for score in ("pred_decrease", "abs_gHg"):
        compared(net, scheduled(learning, GRASP(Sharpness(0.2), score), only=only))


def test_sharpness_alone_asks_for_curvature_and_is_noted() -> None:
    net, learn = RULES["decolle"]
    learning = scheduled(learn(net), GRASP(Sharpness(0.1), "magnitude", series=32))
    states = [ran(net, learning, backend, 50)[1] for backend in ("fused", "lava")]
    for name in learning.plans:
        want, got = (s[name]["0"]["sharpness"] for s in states)
        assert np.allclose(got, want, rtol=1e-9, atol=0)
        assert np.ptp(want) > 0


@pytest.mark.parametrize("rule", ["decolle", "etlp", "etlp, refractory"])
def test_integers_write_the_same_bits_as_fused(rule: str) -> None:
    net, learn = RULES[rule]
    learning = learn(net)
    integers = quantise(net, plastic=list(learning.plans))
    for grasp in (GRASP(Fixed(0.1), "abs_gHg"), GRASP(Sharpness(0.1), "pred_decrease")):
        want, _ = ran(integers, scheduled(learning, grasp), "fused", 100)
        got, _ = ran(integers, scheduled(learning, grasp), "lava", 100)
        assert cases.gap([got], [want]) == 0
        assert max(cases.moved(integers, want).values()) > 1


def test_only_some_plans_ask() -> None:
    """Into the same population: one with curvature, one without; one population not at all."""
    net, learn = RULES["decolle"]
    learning = scheduled(learn(net), GRASP(Fixed(0.2), "abs_gHg"), only=["in->h"])
    learning = scheduled(learning, GRASP(Fixed(0.2), "magnitude"), only=["bh", "bo"])
    compared(net, learning)


# What Lava cannot send


def bad(kind: str) -> tuple[Any, Learning]:
    net, grasp = two(), GRASP(Fixed(0.1))
    if kind == "hidden ottt":
        return net, scheduled(ottt_for(net, OUT, 0.05, pipelined=True), grasp)
    if kind == "sharpness of hidden ottt":
        learning = ottt_for(net, OUT, 0.05, pipelined=True)
        return net, scheduled(learning, GRASP(Sharpness(0.1), "magnitude"))
    if kind == "convolution":
        net = cases.convolution(np.random.default_rng(0))
    if kind == "per synapse":
        return net, scheduled(decolle_for(net, 3, 0.05, trace="synapse"), grasp)
    only = [k.name for k in net.projections] if kind == "convolution" else None
    learning = scheduled(decolle_for(net, 3, 0.05), grasp, only=only)
    if kind == "surrogates":
        plan: Any = learning.plans["bh"]
        other = Plan(replace(plan.rule, surrogate=Boxcar(0.5)), plan.transforms)
        return net, replace(learning, plans={**learning.plans, "bh": other})
    if kind in ("full", "fd_smooth", "diag"):
        return net, scheduled(decolle_for(net, 3, 0.05), GRASP(curvature=kind))
    return net, learning


WHY = {
    "hidden ottt": r"in->h: expected a signal that closes its own loss .*below the readout",
    "sharpness of hidden ottt": r"in->h: expected a signal that closes its own loss",
    "convolution": r"in->h: expected dense weights for GRASP's curvature",
    "per synapse": r"in->h: expected a rank-1 trace",
    "surrogates": r"bh: expected the surrogate of 'in->h', which ends at 'h' too",
    "full": r"in->h: expected curvature 'gn' .*got 'full'",
    "fd_smooth": r"in->h: expected curvature 'gn' .*got 'fd_smooth'",
    "diag": r"in->h: expected curvature 'gn' .*got 'diag'",
}


@pytest.mark.parametrize("kind", WHY)
def test_what_cannot_be_sent_is_refused_by_name(kind: str) -> None:
    net, learning = bad(kind)
    with pytest.raises(Refused, match=WHY[kind]) as caught:
        build(net, "lava", plans=learning)
    assert "score='magnitude'" in caught.value.remedy
    assert "fused" in caught.value.remedy


def test_a_known_direction_serves_multiples_of_its_error_only() -> None:
    rng = np.random.default_rng(2)
    d, root = rng.normal(size=(1, 6)), rng.normal(size=(6, 6))
    bent = d @ root @ root.T
    known = KnownDirection(d, bent, 7)
    assert known.macs == 7
    assert np.array_equal(known(d), bent)
    assert np.allclose(known(-2.5 * d), -2.5 * bent, rtol=1e-14)
    assert np.array_equal(known(0 * d), 0 * bent)
    with pytest.raises(Invalid, match="another direction"):
        known(d + 1e-6)
    with pytest.raises(Invalid, match="expected kind 'gn'"):
        known(d, "full")
    silent = KnownDirection(0 * d, 0 * d)
    assert np.array_equal(silent(0 * d), 0 * d)
    with pytest.raises(Invalid, match="another direction"):
        silent(d)


def test_a_local_signal_below_back_propagation_is_not_late() -> None:
    """It is made where its population spikes: no `Late` is needed, and none may be said."""
    net = two()
    local, top = decolle_for(net, OUT, 0.01), ottt_for(net, OUT, 0.01)
    below, above = ("in->h", "bh"), ("h->o", "bo")
    plans = {n: local.plans[n] for n in below} | {n: top.plans[n] for n in above}
    signals = {"h": local.signals["h"], "o": top.signals["o"]}
    learning = Learning(plans, signals, OUT, "o")
    compared(net, scheduled(learning, GRASP(Fixed(0.2), "pred_decrease")))
    pipelined = ottt_for(net, OUT, 0.05, pipelined=True).plans
    wrong = {n: Plan(plans[n], pipelined[n].transforms) for n in below}  # type: ignore[attr-defined]
    with pytest.raises(Refused, match=r"in->h: expected no Late in the plan.*got Late\(1\)"):
        build(net, "lava", plans=replace(learning, plans={**plans, **wrong}))

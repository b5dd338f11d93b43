"""GRASP in integers: the same writes on Lava and fused, bit for bit, weights and counts."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import plastic_cases as cases
import pytest

from grasp_plugin import build, quantise
from grasp_plugin.learning import GRASP, decolle_for, etlp_for, ottt_for, scheduled
from grasp_plugin.learning.budget import Fixed, Marginal
from grasp_plugin.learning.states import leaves

pytestmark = pytest.mark.lava
log = logging.getLogger(__name__)
OUT = cases.OUT

MAGNITUDE, PRICE = GRASP(Fixed(0.1), "magnitude"), GRASP(Marginal(0.1), "magnitude")
BENT = GRASP(Fixed(0.1), "pred_decrease", series=16)
CHANGE = GRASP(Fixed(0.02), "change")
CASES: dict[str, tuple[Any, Any, GRASP]] = {
    "decolle": (cases.looped, lambda n: decolle_for(n, 3, 0.4), MAGNITUDE),
    "decolle, burn-in": (
        cases.two_layers, lambda n: decolle_for(n, 3, 0.4, burn_in=15), MAGNITUDE,
    ),
    "decolle, changes": (cases.two_layers, lambda n: decolle_for(n, 3, 0.4), CHANGE),
    "decolle, price": (cases.two_layers, lambda n: decolle_for(n, 3, 0.4), PRICE),
    "decolle, random rows": (
        cases.two_layers, lambda n: decolle_for(n, 3, 0.4), GRASP(Fixed(0.3), "random", "row"),
    ),
    "decolle, convolutions": (
        cases.convolution, lambda n: decolle_for(n, 3, 0.2, frozen=["bh"]), MAGNITUDE,
    ),
    "decolle, curvature": (cases.two_layers, lambda n: decolle_for(n, 3, 0.4), BENT),
    "etlp": (cases.looped, lambda n: etlp_for(n, OUT, 0.05, probability=0.4), MAGNITUDE),
    "etlp, curvature": (cases.looped, lambda n: etlp_for(n, OUT, 0.05, probability=0.4), BENT),
    "ottt": (cases.deep, lambda n: ottt_for(n, OUT, 0.02, pipelined=True), MAGNITUDE),
    "ottt, price": (cases.deep, lambda n: ottt_for(n, OUT, 0.02, pipelined=True), PRICE),
    "ottt, convolutions": (
        cases.convolution, lambda n: ottt_for(n, OUT, 0.02, pipelined=True, frozen=["bh"]),
        MAGNITUDE,
    ),
    "ottt, convolutions, changes": (
        cases.convolution, lambda n: ottt_for(n, OUT, 0.02, pipelined=True, frozen=["bh"]),
        CHANGE,
    ),
}  # fmt: skip


def learned(name: str, backend: str) -> tuple[list[Any], dict[str, Any], Any]:
    """(weights after sequences of 60 and 33 steps, states of GRASP by plan, counts of clipping)."""
    make, learn, grasp = CASES[name]
    net = make(np.random.default_rng(3))
    learning = scheduled(learn(net), grasp)
    integers = quantise(net, plastic=list(learning.plans))
    rng, kept = np.random.default_rng(5), []
    with build(integers, backend, plans=learning, seed=7) as session:
        for steps in (60, 33):
            spikes = (rng.random((steps, *net.inputs["in"])) < 0.3).astype(float)
            on = (rng.random(steps) < 0.8).astype(float)
            session.learn(spikes, rng.random((steps, learning.classes)), mask=on)
            kept.append(session.weights())
        held = {n: dict(leaves(s)) for n, s in states(session).items()}
        moved = cases.moved(integers, kept[-1])
        clipped = session.clipped()  # type: ignore[attr-defined]
    log.info("%s on %s moved %s", name, backend, moved)
    assert max(moved.values()) >= 2
    return kept, held, clipped


def states(session: Any) -> dict[str, Any]:
    if hasattr(session, "_steps"):
        return {n: s.transforms for n, s in session._steps.synapses.items()}
    return {n: m.learning().transforms for n, m in session._synapses().items()}


@pytest.mark.parametrize("name", CASES)
def test_the_same_writes_on_lava_and_fused(name: str) -> None:
    fused, lava = learned(name, "fused"), learned(name, "lava")
    assert cases.gap(fused[0], lava[0]) == 0
    assert fused[2] == lava[2]
    for plan, state in fused[1].items():
        assert state["steps"][0] == 93
        assert state["issued"][0] >= state["changed"][0]
        for what, value in state.items():
            assert np.array_equal(value, lava[1][plan][what], equal_nan=True), (plan, what)
    share = {n: float(s["issued"][0] / s["dense"][0]) for n, s in fused[1].items()}
    log.info("%s: writes %s", name, {n: f"{v:.3f}" for n, v in share.items()})
    assert sum(int(s["changed"][0]) for s in fused[1].values()) > 0

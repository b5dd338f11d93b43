"""Postponed updates = the step-by-step rule: the weights, W x and W^T d, at every step."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from grasp_plugin.errors import Refused
from grasp_plugin.learning import BurnIn, EProp, Factors, Late, Plan, ThreeFactor, decolle, ottt
from grasp_plugin.learning.postponed import APART, STEPS, Modes, Postponed, modes_of
from grasp_plugin.learning.traces import (
    AdaptiveThreshold,
    Average,
    CurrentExponential,
    DoubleExponential,
    Exponential,
    Instant,
    SynapticExponential,
)

log = logging.getLogger(__name__)
N_O, N_I = 11, 17
TRACES = [
    Instant(), *(Exponential(k) for k in (0.0, 1e-4, 0.5, 0.875, 0.95, 0.999, 1.0)), Average(0.9),
    DoubleExponential(0.97, 0.92), DoubleExponential(0.0, 0.9, 2.0, 1.0, 1.0),
    DoubleExponential(1.0, 0.5, gain_p=0.3), CurrentExponential(0.9, 0.7),
    CurrentExponential(0.8, 0.0),
]  # fmt: skip


def gaps(
    rule: Any, steps: int, *, rate: float = 0.05, share: float = 1.0, modes: Modes | None = None,
    read: tuple[int, ...] = (), rests: tuple[int, ...] = (), silent: range = range(0),
) -> tuple[float, float]:  # fmt: skip
    """Largest difference, over steps, of (what is read: W x, W^T d; the weights at `read`)."""
    rng = np.random.default_rng(3)
    w = rng.normal(size=(N_O, N_I))
    held, state = Postponed(w, modes or modes_of(rule, "w")), rule.init(w)
    products, weights = [0.0], [0.0]
    for s in range(steps):
        if s in rests:
            held.rest()
            state = rule.init(w)
        x = (rng.random(N_I) < rate) * (s not in silent) * rng.normal(1.0, 0.1, N_I)
        error, probe = rng.normal(size=N_O) * (rng.random(N_O) < share), rng.normal(size=N_O)
        products.append(abs(held.gather(x) - w @ x).max())
        products.append(abs(held.back(probe) - probe @ w).max())
        delta, state = rule.update(Factors(x[None], signal=error[None]), state, w)
        inner = state["rule"] if isinstance(rule, Plan) else state
        held.add(delta["weight"], x, inner["trace"])
        w = w + delta["weight"].dense()
        if s in read:
            weights.append(abs(held.settle() - w).max())
    weights.append(abs(held.settle() - w).max())
    return max(products), max(weights)


@pytest.mark.parametrize("share", [1.0, 0.1])
@pytest.mark.parametrize("trace", TRACES, ids=str)
def test_as_step_by_step(trace: Any, share: float) -> None:
    """Many bases, two fillings of the history, a rest, and a silence longer than both."""
    rule = ThreeFactor(trace, None, 0.02)
    silent = range(300, 300 + STEPS + 50)
    for rate in (0.05, 0.9):
        products, weights = gaps(rule, 200, rate=rate, share=share, read=(20, 21, 150))
        log.info("%s: %.1e, %.1e", trace, products, weights)
        assert weights < 1e-12
        assert products < 1e-11
    products, weights = gaps(rule, 900, share=share, read=(290, 500), rests=(120,), silent=silent)
    assert weights < 5e-12
    assert products < 5e-11


def test_burn_in_passes() -> None:
    rule = Plan(ThreeFactor(Exponential(0.9), None, 0.02), (BurnIn(40),))
    assert gaps(rule, 200, read=(30, 60))[1] < 1e-12


@pytest.mark.parametrize("wrong", [Modes((0.87,)), Modes((0.0,)), Modes((1.0,))])
def test_a_wrong_decay_does_not_match(wrong: Modes) -> None:
    assert gaps(ThreeFactor(Exponential(0.875), None, 0.02), 200, modes=wrong)[1] > 1e-3
    two = ThreeFactor(DoubleExponential(0.97, 0.92), None, 0.02)
    right = modes_of(two, "w")
    assert gaps(two, 200, modes=replace(right, coupling=right.coupling * 1.01))[1] > 1e-6


def test_weights_replaced_in_between_keep_the_traces() -> None:
    rule, rng = ThreeFactor(Exponential(0.9), None, 0.1), np.random.default_rng(0)
    w = rng.normal(size=(N_O, N_I))
    held, state = Postponed(w, modes_of(rule, "w")), rule.init(w)
    for s in range(100):
        x, error = (rng.random(N_I) < 0.1) * 1.0, rng.normal(size=(1, N_O))
        delta, state = rule.update(Factors(x[None], signal=error), state, w)
        held.add(delta["weight"], x, state["trace"])
        w = w + delta["weight"].dense()
        if s == 50:
            w = rng.normal(size=w.shape)
            held.replace(w)
    assert abs(held.settle() - w).max() < 1e-12


def test_the_weights_given_are_not_changed() -> None:
    w = np.asfortranarray(np.ones((2, 3)))
    held = Postponed(w, Modes((0.0,)))
    held.columns += 1
    assert np.array_equal(w, np.ones((2, 3)))


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (None, "a ThreeFactor rule in float.*got NoneType"),
        (Plan(ottt(0.1), (Late(1),)), "without transforms that see single steps.*got Late"),
        (ottt(0.1, reset="value"), "a trace for each input.*got SynapticExponential"),
        (ThreeFactor(SynapticExponential(0.5), None, 0.1), "got SynapticExponential"),
        (ThreeFactor(AdaptiveThreshold(0.5, 0.5, 0.1), None, 0.1), "got AdaptiveThreshold"),
        (EProp(ThreeFactor(Exponential(0.5), None, 0.1), 0.5), "ThreeFactor rule.*got EProp"),
        (ThreeFactor(Exponential((0.5, 0.6)), None, 0.1), "one decay for all inputs"),
        (decolle(0.1, alpha=0.9, beta=0.9 + APART / 2), "decays at least 0.001 apart"),
    ],
)
def test_what_cannot_wait(plan: Any, reason: str) -> None:
    with pytest.raises(Refused, match=f"w: expected .*{reason}.*Use PlasticDense"):
        modes_of(plan, "w")

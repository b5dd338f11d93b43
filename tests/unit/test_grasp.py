"""GRASP over every rule: what it writes, what it leaves alone, and how many."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from grasp_cases import BUDGETS, RULES, learned, network, outer, spied, spikes, with_grasp

from grasp_plugin import build
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning import decolle, decolle_for, etlp_for, scheduled
from grasp_plugin.learning.budget import (
    Budget,
    Every,
    Fixed,
    Given,
    Marginal,
    Sharpness,
)
from grasp_plugin.learning.chosen import Sparse
from grasp_plugin.learning.deltas import Delta, Full
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.online import OnlineLearner
from grasp_plugin.learning.rule import Factors, Plan
from grasp_plugin.learning.scores import Separable
from grasp_plugin.learning.selection import Pairs
from grasp_plugin.learning.states import State, leaves
from grasp_plugin.learning.transforms import Late
from grasp_plugin.learning.worth import RankOne
from grasp_plugin.training.rule_optimizer import RuleOptimizer

log = logging.getLogger(__name__)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("score", ["magnitude", "abs_gHg", "random"])
def test_g1_all_writes_are_the_rule_itself(rule: str, score: str) -> None:
    """Every synapse with a gradient and a positive score is written as the rule writes it."""
    plain = RULES[rule](network(), 3, 0.01)
    everything = with_grasp(plain, GRASP(Fixed(1.0), score))
    wanted, found = learned(plain), learned(everything)
    start = network().weights()
    for name, value in wanted.items():
        if score == "abs_gHg":  # 0 where M d = 0: nothing to gain by that score
            same = found[name] == value
            assert np.mean(same) > 0.3
            continue
        assert np.abs(value - start[name]).max() > 1e-6
        assert np.array_equal(found[name], value)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", ["fused", "torch", "lava"])
def test_the_same_synapses_on_every_back_end(rule: str, backend: str) -> None:
    if backend == "lava":
        pytest.importorskip("lava")
    options = {"pipelined": True} if rule == "ottt" else {}
    plain = RULES[rule](network(), 3, 0.01, **options)
    learning = with_grasp(plain, GRASP(Fixed(0.05), "magnitude"))
    reference, found = learned(learning), learned(learning, backend)
    for name, value in reference.items():
        assert np.abs(found[name] - value).max() < 1e-12


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("score", ["pred_decrease", "magnitude", "random"])
def test_g6_g7_only_what_is_counted_is_written(rule: str, budget: Budget, score: str) -> None:
    seen, meter = spied(RULES[rule](network(), 3, 0.01), GRASP(budget, score))
    counted = 0
    for chosen in seen:
        mask, dense = chosen.picked.mask(), chosen.dense()
        assert not dense[~mask].any()
        factors = chosen.scale * chosen.left[:, None] * chosen.right
        assert np.array_equal(dense[mask], factors[mask])
        counted += int(mask.sum())
    assert meter["issued"][0] == counted > 0
    assert meter["steps"][0] == len(seen)
    assert meter["dense"][0] == 120 * len(seen)
    assert meter["dense_nz"][0] >= counted


def test_g11_nothing_is_issued_without_a_teaching_event() -> None:
    seen, _ = spied(etlp_for(network(), 3, 0.01, probability=0.1), GRASP(Fixed(0.5)), 200)
    assert all(not c.picked.size for c in seen if not c.left.any())
    assert 0 < sum(c.picked.size > 0 for c in seen) < 60


@pytest.mark.parametrize("granularity", ["row", "column"])
def test_granularity(granularity: str) -> None:
    seen, _ = spied(decolle_for(network(), 3, 0.01), GRASP(Fixed(0.3), granularity=granularity))
    for chosen in seen:
        mask = chosen.picked.mask()
        axis = 1 if granularity == "row" else 0
        assert np.array_equal(mask.any(axis=axis), mask.all(axis=axis))
        assert mask.any(axis=axis).sum() <= 4
    assert any(c.picked.size for c in seen)


def test_curvature_of_a_network_is_double_backward() -> None:
    """What OnlineLearner hands to GRASP is the Gauss-Newton operator, here for DECOLLE by jvp."""
    net = network()
    learning = decolle_for(net, 3, 1.0)
    seen: list[Factors] = []

    class Keep(GRASP):
        def update(self, delta: Delta, state: State, weight: Any, **extras: Any) -> Any:
            seen.append(extras["factors"])
            return super().update(delta, state, weight, **extras)

    with build(net, "torch", plans=with_grasp(learning, Keep())) as session:
        session.learn(spikes(5), 1)
    learner = OnlineLearner(net, learning)
    signal = learning.signals["hidden"]
    fixed = signal.init(10, torch.zeros(1, dtype=torch.float64))  # type: ignore[union-attr]
    factors = next(f for f in seen if f.membrane.shape[1] == 10)
    slope = learner.rules["input->hidden"].surrogate.first(factors.membrane)  # type: ignore[attr-defined]
    u = torch.randn(1, 10, dtype=torch.float64)
    y = factors.spikes @ fixed["readout"].T + fixed["bias"]
    inside = ((y - torch.tensor([[0.0, 1.0, 0.0]])).abs() < 1).double() / 3  # of SmoothL1
    assert factors.curvature is not None
    wanted = slope * ((inside * ((slope * u) @ fixed["readout"].T)) @ fixed["readout"])
    assert torch.allclose(factors.curvature(u), wanted, rtol=1e-12, atol=1e-16)
    assert wanted.abs().max() > 1e-8


def test_g12_magnitude_is_the_limit_of_the_predicted_decrease() -> None:
    rng = np.random.default_rng(0)
    d, p = rng.normal(size=20), rng.random(30)
    m = np.diag(rng.random(20))
    factors = Factors(pre=p[None], curvature=lambda u: u @ m)
    picks = {}
    for score in ("pred_decrease", "magnitude"):
        grasp = GRASP(Fixed(0.05), score)
        delta, _ = grasp.update(
            outer(d, p, 1e-9), grasp.init(np.zeros((20, 30))), np.zeros((20, 30)), factors=factors
        )
        picks[score] = delta["weight"].picked.mask()
    assert np.array_equal(picks["pred_decrease"], picks["magnitude"])
    steep = GRASP(Fixed(0.05), "pred_decrease")
    delta, _ = steep.update(
        outer(d, p, 0.3), steep.init(np.zeros((20, 30))), np.zeros((20, 30)), factors=factors
    )
    assert not np.array_equal(delta["weight"].picked.mask(), picks["magnitude"])


def test_g4_scores_add_up_to_the_quadratic_decrease() -> None:
    rng = np.random.default_rng(1)
    d, p, eta = rng.normal(size=6), rng.random(5), 0.2
    root = rng.normal(size=(6, 6))
    m = root @ root.T
    grasp = GRASP(score="pred_decrease")
    scores = grasp.scores(RankOne(outer(d, p, eta)["weight"]), lambda u: u @ m)
    assert isinstance(scores, Separable)
    g = np.outer(d, p)
    step = -eta * g
    h_step = np.outer(m @ (step @ p), p)
    decrease = -(np.sum(g * step) + 0.5 * np.sum(step * h_step))
    assert np.isclose(np.sum(np.outer(scores.a, scores.q)), decrease, rtol=1e-12)


def test_g8_the_price_holds_the_budget() -> None:
    rng, budget, state = np.random.default_rng(2), Marginal(0.02), Marginal(0.02).init()
    issued = []
    for _ in range(3000):
        a, q = rng.normal(size=100) ** 2 * rng.random(), rng.random(80) ** 2
        picked, state = budget.choose(Separable(a, q), state)
        issued.append(picked.size)
    share = np.mean(issued[500:]) / 8000
    log.info("share of writes %.4f of 0.02", share)
    assert abs(share / 0.02 - 1) < 0.05


def test_g8_a_higher_price_never_buys_more() -> None:
    rng = np.random.default_rng(3)
    scores = Separable(rng.normal(size=40), rng.random(30))
    counts = [
        Marginal(0.1).choose(scores, {"log_price": np.full(1, c)})[0].size
        for c in np.linspace(-8, 2, 30)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_g10_permuted_neurons_are_permuted_choices_and_seeds_repeat() -> None:
    rng = np.random.default_rng(4)
    d, p, order = rng.normal(size=9), rng.random(7), rng.permutation(9)
    w = np.zeros((9, 7))
    grasp, factors = GRASP(Fixed(0.2), "magnitude"), Factors(p[None])
    one, _ = grasp.update(outer(d, p), grasp.init(w), w, factors=factors)
    two, _ = grasp.update(outer(d[order], p), grasp.init(w), w, factors=factors)
    assert np.array_equal(one["weight"].dense()[order], two["weight"].dense())
    masks = []
    for seed in (1, 1, 2):
        grasp = GRASP(Fixed(0.2), "random", seed=seed)
        delta, _ = grasp.update(outer(d, p), grasp.init(w), w, factors=factors)
        masks.append(delta["weight"].picked.mask())
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


def test_random_choices_are_uniform() -> None:
    d, p, w = np.array([1.0, 0.0, 5.0]), np.array([1.0, 9.0, 0.0, 2.0]), np.zeros((3, 4))
    grasp = GRASP(Fixed(2 / 12), "random")
    state, hits = grasp.init(w), np.zeros((3, 4))
    for _ in range(3000):
        delta, state = grasp.update(outer(d, p), state, w, factors=Factors(p[None]))
        hits += delta["weight"].picked.mask()
    alive = np.outer(d != 0, p != 0)
    assert not hits[~alive].any()
    assert np.allclose(hits[alive] / 3000, 2 / 6, atol=0.03)


def test_scheduled_names_an_unknown_plan() -> None:
    with pytest.raises(Invalid, match="expected a plan"):
        scheduled(decolle_for(network(), 3, 0.1), GRASP(), only=["nowhere"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GRASP(score="sharp"), Invalid, "expected score in"),
        (lambda: GRASP(granularity="cell"), Invalid, "expected granularity in"),
        (lambda: Fixed(0.0), Invalid, "expected a share"),
        (lambda: Sharpness(0.1, "down"), Invalid, "expected direction in"),
        (
            lambda: GRASP().update(
                outer(np.ones(2), np.ones(2)), GRASP().init(np.zeros((2, 2))), np.zeros((2, 2)),
                factors=Factors(np.ones((1, 2))),
            ),
            Invalid, "expected Factors.curvature",
        ),
        (lambda: GRASP(block=(0, 1)), Invalid, "expected block"),
        (lambda: GRASP(curvature="hessian"), Invalid, "expected curvature in"),
        (lambda: Every(0), Invalid, "steps >= 1"),
        (lambda: Given(()), Invalid, "counts >= 0"),
        (lambda: Sharpness(0.1, follows="loss"), Invalid, "expected follows in"),
        (
            lambda: GRASP().update(
                {"weight": Full(np.ones((2, 2)))}, GRASP().init(np.zeros((2, 2))), np.zeros((2, 2)),
                factors=Factors(np.ones((1, 2)), curvature=lambda u: u),
            ),
            Refused, "a sum",
        ),
        (
            lambda: GRASP().update(
                {"weight": Sparse(np.ones(1), Pairs(*[np.zeros(1, int)] * 2, (2, 2)), 0)},
                GRASP().init(np.zeros((2, 2))), np.zeros((2, 2)), factors=Factors(np.ones((1, 2))),
            ),
            Refused, "a rule's own delta",
        ),
    ],
)  # fmt: skip
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_counts_and_small_shares_last_over_sequences() -> None:
    """A share of less than one write a step is owed; the count goes on with the next sequence."""
    learning = with_grasp(decolle_for(network(), 3, 0.01), GRASP(Fixed(0.004), "magnitude"))
    for backend in ("fused", "torch"):
        with build(network(), backend, plans=learning) as session:
            issued = []
            for _ in range(2):
                session.learn(spikes(50), 1)
                state = session._steps._state if backend == "fused" else session.online.state  # type: ignore[attr-defined]
                meter = state["plans"]["input->hidden"]["transforms"]["0"]
                issued.append((int(meter["issued"][0]), int(meter["steps"][0])))
        assert [steps for _, steps in issued] == [50, 100]
        assert 40 <= issued[1][0] <= 48  # 0.48 a step, where there is a gradient


def test_late_deltas_of_chosen_synapses_are_plain_arrays() -> None:
    """State holds arrays at its leaves, also while a chosen delta waits."""
    rng = np.random.default_rng(0)
    for score in ("magnitude", "random"):
        plan = Plan(decolle(0.1), (GRASP(Fixed(0.3), score), Late(2)))
        w = rng.normal(size=(4, 5))
        state, made, out = plan.init(w), [], []
        bare = Plan(plan.rule, plan.transforms[:1])
        plain = bare.init(w)
        for _ in range(6):
            f = Factors(rng.random((1, 5)), rng.normal(size=(1, 4)), rng.normal(size=(1, 4)))
            delta, state = plan.update(f, state, w)
            wanted, plain = bare.update(f, plain, w)
            out.append(delta["weight"].dense())
            made.append(wanted["weight"].dense())
            assert all(isinstance(v, np.ndarray) for _, v in leaves(state))
        assert np.allclose(out[2:], made[:-2], rtol=1e-14, atol=0)
        assert not np.any(out[:2])


def test_grasp_in_a_rule_optimizer_round_trips() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 5, dtype=torch.float64))
    rule = replace(decolle(0.1), bias=None)
    optimizer = RuleOptimizer([("w", weight)], {"w": Plan(rule, (GRASP(Fixed(0.2), "magnitude"),))})
    for _ in range(3):
        row = torch.rand(1, 5, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
        optimizer.step({"w": Factors(row[0], row[1], row[1], curvature=lambda u: u)})
    before = optimizer.state_dict()
    optimizer.load_state_dict(before)
    assert int(optimizer.state_dict()["rules"]["w"]["transforms"]["0"]["issued"][0]) > 0

"""The options of GRASP: kinds of delta, blocks, time-based budgets, batches, series, curvature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from grasp_cases import RULES, network, outer, spied, spikes

from grasp_plugin import build
from grasp_plugin.learning import decolle_for, etlp_for, scheduled
from grasp_plugin.learning.budget import (
    Every,
    Everything,
    Fixed,
    Given,
    NonZero,
    RandomSteps,
    Sharpness,
)
from grasp_plugin.learning.deltas import Outer, PerSynapse
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.rule import Factors
from grasp_plugin.learning.scores import Separable, Table
from grasp_plugin.learning.spec import Learning
from grasp_plugin.learning.worth import gradient_of


def gradients(rng: np.random.Generator, batch: int = 3) -> dict[str, Any]:
    """Deltas of every kind with eta = 0.3, and their gradients (N_o, N_i) = (6, 5)."""
    d, p = rng.normal(size=(batch, 6)), rng.random((batch, 5))
    e = rng.random((batch, 6, 5))
    return {
        "one": Outer(d[:1], p[:1], -0.3), "batch": Outer(d, p, -0.3),
        "per synapse": PerSynapse(d, e, -0.3),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["one", "batch", "per synapse"])
def test_scores_of_every_kind_of_delta_are_those_of_the_formed_hessian(kind: str) -> None:
    """H V = sum_b (M_b V p_b) p_b^T, formed here as a matrix over all weights."""
    rng = np.random.default_rng(11)
    part = gradients(rng)[kind]
    batch = part.left.shape[0]
    roots = rng.normal(size=(batch, 6, 6))
    m = roots @ roots.transpose(0, 2, 1)
    e = part.eligibility if kind == "per synapse" else np.repeat(part.right[:, None], 6, axis=1)
    jacobian = np.zeros((batch, 6, 6, 5))
    for o in range(6):
        jacobian[:, o, o] = e[:, o]  # dU_o / dw_oi = e_oi
    flat = jacobian.reshape(batch, 6, 30)
    hessian = np.einsum("bou,bop,bpv->uv", flat, m, flat)
    g = (part.dense() / -0.3).ravel()
    bent = g * (hessian @ g)
    wanted = {
        "pred_decrease": 0.3 * g * g - 0.5 * 0.09 * bent, "abs_gHg": abs(bent), "magnitude": g * g,
    }  # fmt: skip

    def bend(u: np.ndarray) -> np.ndarray:
        return np.einsum("bop,bp->bo", m, u)

    for score, r in wanted.items():
        scores = GRASP(score=score, rho=0.07).scores(gradient_of(part), bend)
        found = scores.r if isinstance(scores, Table) else np.outer(scores.a, scores.q)  # type: ignore[attr-defined]
        assert np.allclose(found.ravel(), r, rtol=1e-10, atol=1e-14)
        size = np.sqrt(g @ g)
        assert scores.sharpness == pytest.approx(0.07 * size + 0.07**2 * bent.sum() / 2 / size**2)
        assert scores.gradient == pytest.approx(size)


def test_a_separable_choice_is_that_of_the_table() -> None:
    """Ties too: a and q have repeated and zero entries."""
    rng = np.random.default_rng(12)
    for trial in range(30):
        a, q = rng.integers(-2, 4, 9).astype(float), rng.integers(0, 4, 7).astype(float)
        one, all_ = Separable(a, q), Table(np.outer(a, q))
        for k in (0, 1, 5, 20, 63):
            if k:
                assert one.least(one.top(k)) == all_.least(all_.top(k))
            assert one.top(k).size == all_.top(k).size
            scored = np.sort(np.outer(a, q)[one.top(k).mask()])
            assert np.array_equal(scored, np.sort(all_.r[all_.top(k).mask()]))
        for tau in (0.0, 1.0, 3.0):
            assert np.array_equal(one.above(tau).mask(), all_.above(tau).mask())
        for share in (0.3, 1.0):
            assert np.array_equal(one.covering(share).mask(), all_.covering(share).mask())
        assert one.everything().mask().all()
        block = (int(rng.integers(1, 5)), int(rng.integers(1, 5)))
        assert np.array_equal(
            np.outer(one.in_blocks(block).a, one.in_blocks(block).q), all_.in_blocks(block).r  # type: ignore[attr-defined]
        )  # fmt: skip
        del trial


@pytest.mark.parametrize("score", ["magnitude", "random"])
def test_blocks_are_written_whole(score: str) -> None:
    rng = np.random.default_rng(13)
    d, p, w = rng.normal(size=10), rng.random(11), np.zeros((10, 11))
    grasp = GRASP(Fixed(0.3), score, "block", block=(4, 3))
    delta, _ = grasp.update(outer(d, p), grasp.init(w), w, factors=Factors(p[None]))
    mask = delta["weight"].picked.mask()
    blocks = [mask[r : r + 4, c : c + 3] for r in (0, 4, 8) for c in (0, 3, 6, 9)]
    assert all(b.all() or not b.any() for b in blocks)
    assert sum(b.all() for b in blocks) == 3
    if score == "magnitude":
        g = np.outer(d, p) ** 2
        sums = [g[r : r + 4, c : c + 3].sum() for r in (0, 4, 8) for c in (0, 3, 6, 9)]
        assert {i for i, b in enumerate(blocks) if b.all()} == set(np.argsort(sums)[-3:])


def test_time_based_budgets() -> None:
    rng = np.random.default_rng(14)
    scores = Separable(rng.random(5), rng.random(4))
    counts: dict[str, list[int]] = {}
    for budget in (Every(4), RandomSteps(0.25, 3), Given((3, 0, 20)), NonZero(), Everything()):
        state = budget.init()
        chosen = []
        for _ in range(400):
            picked, state = budget.choose(scores, state)
            chosen.append(picked.size)
        counts[type(budget).__name__] = chosen
    assert counts["Every"] == [0, 0, 0, 20] * 100
    assert 70 < sum(n == 20 for n in counts["RandomSteps"]) < 130
    assert set(counts["RandomSteps"]) == {0, 20}
    assert counts["Given"][:6] == [3, 0, 20, 3, 0, 20]
    assert set(counts["NonZero"]) == set(counts["Everything"]) == {20}
    with_zero = Separable(np.array([0.0, 1.0]), np.array([1.0, 0.0, 2.0]))
    assert NonZero().choose(with_zero, {})[0].size == 2
    assert Everything().choose(with_zero, {})[0].size == 6


@pytest.mark.parametrize("rule", RULES)
def test_batches_are_scheduled_on_torch(rule: str) -> None:
    """With all synapses the batched rule itself; with a few, only those; one sample as on fused."""
    learning = RULES[rule](network(), 3, 0.05)
    x = np.stack([spikes(40, seed) for seed in range(4)], axis=1)

    def trained(plans: Learning, samples: np.ndarray) -> dict[str, np.ndarray]:
        with build(network(), "torch", plans=plans) as session:
            session.learn(samples, np.arange(samples.shape[1]) % 3)
            return session.weights()

    plain = trained(learning, x)
    for budget in (NonZero(), Everything()):
        found = trained(scheduled(learning, GRASP(budget, "magnitude")), x)
        assert all(np.array_equal(found[n], plain[n]) for n in plain)
    some = trained(scheduled(learning, GRASP(Fixed(0.05), "pred_decrease")), x)
    start = network().weights()
    for name, value in some.items():
        assert 0 < np.mean(value != start[name])
        assert np.abs(value - plain[name]).max() > 1e-6
    one = scheduled(learning, GRASP(Fixed(0.05), "pred_decrease"))
    assert all(
        np.allclose(v, trained(one, x[:, :1])[n], rtol=1e-10, atol=1e-14)
        for n, v in learned_samples(one, x[:, :1]).items()
    )


def learned_samples(learning: Learning, x: np.ndarray) -> dict[str, np.ndarray]:
    with build(network(), "fused", plans=learning) as session:
        session.learn(x, np.arange(x.shape[1]) % 3)
        return session.weights()


def test_everything_counts_idle_writes() -> None:
    seen, meter = spied(etlp_for(network(), 3, 0.01, probability=0.1), GRASP(Everything()), 50)
    assert meter["issued"][0] == meter["dense"][0] == 120 * 50
    assert meter["dense_nz"][0] < 120 * 20
    assert all(c.picked.size == 120 for c in seen)


def test_series_keep_the_last_steps() -> None:
    grasp = GRASP(Sharpness(0.1), "magnitude", series=16)
    seen, state = spied(decolle_for(network(), 3, 0.01), grasp, 40)
    last = [seen[t].picked.size for t in range(24, 40)]
    order = np.arange(24, 40) % 16
    assert state["k"][order].tolist() == last
    assert np.all(np.isfinite(state["sharpness"]))
    assert np.all(state["gradient"] > 0)
    seen, state = spied(decolle_for(network(), 3, 0.01), GRASP(Fixed(0.1), "magnitude"), 5)
    assert "k" not in state


@pytest.mark.parametrize("kind", ["gn", "full", "fd_smooth", "diag"])
@pytest.mark.parametrize("rule", RULES)
def test_every_curvature_runs_over_every_rule(rule: str, kind: str) -> None:
    grasp = GRASP(Fixed(0.05), "abs_gHg", curvature=kind)
    seen, state = spied(RULES[rule](network(), 3, 0.05), grasp, 30)
    assert 0 < state["issued"][0] <= 6 * 30
    assert state["overhead"][0] > 0
    assert sum(c.picked.size for c in seen) == state["issued"][0] == state["products"][0]

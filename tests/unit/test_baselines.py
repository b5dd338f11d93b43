"""What each policy writes: which rows, at which steps, and how much."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from grasp_plugin import build
from grasp_plugin.errors import Invalid
from grasp_plugin.learning import decolle_for, scheduled
from grasp_plugin.learning.baselines import (
    POLICIES,
    columns_only,
    dense,
    error_triggered,
    every,
    magnitude,
    nonzero,
    random_k,
    random_steps,
    rows_only,
)
from grasp_plugin.learning.deltas import Outer
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.rule import Factors
from grasp_plugin.network.presets import etlp_network

log = logging.getLogger(__name__)
N_O, N_I, SHARE = 20, 30, 0.1


def factors(steps: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Errors and traces; every seventh step has no error, some traces are 0."""
    rng = np.random.default_rng(seed)
    d = rng.normal(size=(steps, N_O))
    d[::7] = 0
    return list(zip(d, rng.random((steps, N_I)) * (rng.random((steps, N_I)) < 0.8), strict=True))


def written(policy: GRASP, pairs: list[Any]) -> np.ndarray:
    """(steps, N_o, N_i) of booleans."""
    weight = np.zeros((N_O, N_I))
    state, masks = policy.init(weight), []
    for d, p in pairs:
        delta = {"weight": Outer(d[None], p[None], -0.1)}
        out, state = policy.update(delta, state, weight, factors=Factors(p[None]))
        mask = out["weight"].picked.mask()
        assert np.array_equal(out["weight"].dense(), np.where(mask, np.outer(-0.1 * d, p), 0))
        masks.append(mask)
    assert int(state["issued"][0]) == np.sum(masks)
    return np.array(masks)


PAIRS = factors(200)
ALIVE = np.array([np.outer(d, p) != 0 for d, p in PAIRS])


def test_dense_and_nonzero() -> None:
    assert written(dense(), PAIRS).all()
    assert np.array_equal(written(nonzero(), PAIRS), ALIVE)


def test_magnitude_writes_the_largest() -> None:
    for mask, (d, p) in zip(written(magnitude(SHARE), PAIRS), PAIRS, strict=True):
        g = np.abs(np.outer(d, p))
        assert mask.sum() == (60 if d.any() else 0)
        assert not mask.any() or g[mask].min() >= g[~mask].max()


def test_random_k_writes_as_many_and_repeats_by_its_seed() -> None:
    one = written(random_k(SHARE, 3), PAIRS)
    assert np.array_equal(one.sum((1, 2)), written(magnitude(SHARE), PAIRS).sum((1, 2)))
    assert not (one & ~ALIVE).any()
    assert np.array_equal(one, written(random_k(SHARE, 3), PAIRS))
    assert not np.array_equal(one, written(random_k(SHARE, 4), PAIRS))


def test_error_triggered_writes_the_rows_with_the_largest_errors() -> None:
    pairs = factors(3000)
    masks = written(error_triggered(SHARE), pairs)
    assert np.array_equal(masks.any(2), masks.all(2))
    for mask, (d, _) in zip(masks, pairs, strict=True):
        rows = mask.all(1)
        assert not rows.any() or rows.all() or abs(d)[rows].min() > abs(d)[~rows].max()
    share = masks[500:].mean()
    log.info("error-triggered share %.4f of %.4f", share, SHARE)
    assert abs(share / SHARE - 1) < 0.05
    assert len(set(masks.any(2).sum(1))) > 3  # a threshold, not a number of rows


def test_time_based_policies() -> None:
    for steps in (1, 4):
        due = np.arange(200) % steps == steps - 1
        assert np.array_equal(written(every(steps), PAIRS), ALIVE & due[:, None, None])
    pairs = factors(2000)
    masks = written(random_steps(0.25, 1), pairs)
    alive = np.array([np.outer(d, p) != 0 for d, p in pairs])
    steps = masks.any((1, 2))
    assert np.array_equal(masks, alive & steps[:, None, None])
    assert abs(steps.sum() / alive.any((1, 2)).sum() - 0.25) < 0.03
    assert not np.array_equal(steps, written(random_steps(0.25, 2), pairs).any((1, 2)))


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_and_columns_are_whole_and_the_largest(axis: int) -> None:
    policy, count = ((rows_only, 2), (columns_only, 3))[axis]
    for mask, (d, p) in zip(written(policy(SHARE), PAIRS), PAIRS, strict=True):
        lines = mask.any(1 - axis)
        assert np.array_equal(lines, mask.all(1 - axis))
        assert lines.sum() == (count if d.any() else 0)
        size = np.abs((d, p)[axis])
        assert not lines.any() or size[lines].min() > size[~lines].max()


@pytest.mark.parametrize("name", POLICIES)
def test_policies_by_share(name: str) -> None:
    pairs = [(d, p) for d, p in factors(4000) if d.any()]
    share = float(written(POLICIES[name](0.05, 7), pairs).mean())
    alive = float(np.mean([np.outer(d, p) != 0 for d, p in pairs]))
    log.info("%s: %.4f", name, share)
    wanted = {"dense": 1.0, "nonzero": alive}.get(name, 0.05)
    if name in ("every", "random_steps"):
        wanted *= alive
    assert abs(share / wanted - 1) < (0.1 if name == "random_steps" else 0.05)
    assert not POLICIES[name](0.05, 7).bends


def test_the_same_writes_on_every_back_end() -> None:
    pytest.importorskip("lava")
    network = etlp_network(12, 10, 3, theta=0.0, n_ref=0)
    spikes = (np.random.default_rng(0).random((25, 12)) < 0.4) * 2.0
    for name, policy in POLICIES.items():
        learning = scheduled(decolle_for(network, 3, 0.01), policy(0.2, 1))
        learned = {}
        for backend in ("fused", "torch", "lava"):
            with build(network, backend, plans=learning) as session:
                session.learn(spikes, 1)
                learned[backend] = session.weights()
        for weight, value in learned["fused"].items():
            for backend in ("torch", "lava"):
                assert np.abs(learned[backend][weight] - value).max() < 1e-12, name


def test_bad_input() -> None:
    with pytest.raises(Invalid, match="expected a share"):
        magnitude(0.0)
    with pytest.raises(Invalid, match="steps >= 1"):
        every(0)
    policy, weight = error_triggered(0.1), np.zeros((N_O, N_I))
    batch = {"weight": Outer(np.ones((2, N_O)), np.ones((2, N_I)), -0.1)}
    with pytest.raises(Invalid, match="expected batch 1"):
        policy.update(batch, policy.init(weight), weight, factors=Factors(np.ones((2, N_I))))

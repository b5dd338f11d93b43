"""Selection over an outer product is brute force over the product, without the product."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from grasp_plugin.errors import Invalid
from grasp_plugin.learning import selection_kernels as kernels
from grasp_plugin.learning.selection import above, covering, top, write_picked

ROW = arrays(np.float64, st.integers(1, 12), elements=st.floats(-4, 4))
COLUMN = arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 4))
TIED_ROW = arrays(np.float64, st.integers(1, 12), elements=st.sampled_from([-1.0, 0.0, 1.0, 2.0]))
TIED_COLUMN = arrays(np.float64, st.integers(1, 12), elements=st.sampled_from([0.0, 1.0, 2.0]))


@settings(max_examples=300, deadline=None)
@given(st.one_of(ROW, TIED_ROW), st.one_of(COLUMN, TIED_COLUMN), st.integers(0, 160))
def test_top_k_is_brute_force(a: np.ndarray, q: np.ndarray, k: int) -> None:
    """As many as asked for of the positive scores, and none outside scores higher than one in."""
    score = np.outer(a, q)
    picked = top(a, q, k)
    mask = picked.mask()
    assert picked.size == mask.sum() == min(k, int((score > 0).sum()))
    if mask.any() and not mask.all():
        assert score[mask].min() >= score[~mask].max()


@settings(max_examples=300, deadline=None)
@given(st.one_of(ROW, TIED_ROW), st.one_of(COLUMN, TIED_COLUMN), st.floats(0, 16))
def test_above_is_brute_force(a: np.ndarray, q: np.ndarray, tau: float) -> None:
    assert np.array_equal(above(a, q, tau).mask(), np.outer(a, q) > tau)


@settings(max_examples=300, deadline=None)
@given(st.one_of(ROW, TIED_ROW), st.one_of(COLUMN, TIED_COLUMN), st.floats(0.01, 1))
def test_covering_holds_the_share_and_no_more(a: np.ndarray, q: np.ndarray, share: float) -> None:
    score = np.maximum(np.outer(a, q), 0)
    mask = covering(a, q, share).mask()
    assert score[mask].sum() >= share * score.sum() * (1 - 1e-12)
    if mask.any():
        least = score[mask].min()
        assert score[score > least].sum() < share * score.sum() * (1 + 1e-12)
    assert not (mask & (score == 0)).any() or score.sum() == 0


def test_a_large_layer_matches_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    a, q = rng.normal(size=300), rng.random(400) ** 2
    score = np.outer(a, q)
    for k in (1, 2400, 50_000):
        assert np.array_equal(top(a, q, k).mask(), score >= np.sort(score.ravel())[-k])


def test_only_picked_weights_are_written() -> None:
    rng = np.random.default_rng(1)
    w = rng.normal(size=(30, 40))
    left, right = rng.normal(size=30), rng.normal(size=40)
    picked = top(left**2, right**2, 100)
    after = w.copy()
    assert write_picked(after, left, right, -0.5, picked) == 100
    mask = picked.mask()
    assert np.array_equal(after[~mask], w[~mask])
    assert np.array_equal(after[mask], (w + -0.5 * left[:, None] * right)[mask])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top(np.ones(2), np.ones(2), -1), "expected k >= 0"),
        (lambda: top(np.array([np.nan]), np.ones(2), 1), "finite vectors"),
        (lambda: top(np.ones(2), -np.ones(2), 1), "q >= 0"),
        (lambda: above(np.ones(2), np.ones(2), -1.0), "tau >= 0"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        call()  # type: ignore[operator]


@settings(max_examples=300, deadline=None)
@given(arrays(np.float64, st.integers(0, 40), elements=st.floats(-1e300, 1e300)))
def test_falling_is_a_stable_sort(values: np.ndarray) -> None:
    assert np.array_equal(kernels.falling(values), np.argsort(-values, kind="stable"))


def test_falling_where_values_share_their_upper_bits_or_are_equal() -> None:
    rng = np.random.default_rng(2)
    for values in (
        1 + rng.random(500) * 1e-12, -1 - rng.random(500) * 1e-12, np.zeros(300),
        rng.choice([-0.0, 0.0], 300), rng.integers(-3, 3, 999) * 1.0, rng.normal(size=3000),
    ):  # fmt: skip
        assert np.array_equal(kernels.falling(values), np.argsort(-values, kind="stable"))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("k", [1, 60, 700, 1200])
def test_writes_are_the_same_numbers_in_either_order_of_memory(order: str, k: int) -> None:
    """Rows that are passed whole and rows of which little is written."""
    rng = np.random.default_rng(3)
    w = np.asarray(rng.normal(size=(30, 40)), order=order)  # type: ignore[call-overload]
    left, right = rng.normal(size=30), rng.random(40)
    picked = top(left**2, right**2, k)
    wanted = np.where(picked.mask(), w + np.outer(-0.1 * left, right), w)
    assert write_picked(w, left, right, -0.1, picked) == k
    assert np.array_equal(w, wanted)

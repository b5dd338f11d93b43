"""Surrogates: first = d smooth, second = d first, by autograd and by finite differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from grasp_plugin.errors import Invalid
from grasp_plugin.neurons.surrogate import (
    Arctan,
    Boxcar,
    FastSigmoid,
    Sigmoid,
    Surrogate,
    Triangular,
)

ALL = [
    FastSigmoid(10.0), FastSigmoid(2.0), Boxcar(0.5), Boxcar(0.5, closed_left=False),
    Triangular(0.3, 1.0), Triangular(0.075, 2.0), Sigmoid(4.0), Arctan(2.0),
]  # fmt: skip
GRID = np.linspace(-3, 3, 602)  # 0, +-0.5, +-1 and +-2 are not on it: no kink is


def derivative(function: Any, x: np.ndarray) -> np.ndarray:
    t = torch.tensor(x, requires_grad=True)
    out = function(t).sum()
    return torch.autograd.grad(out, t)[0].numpy() if out.requires_grad else np.zeros_like(x)


@pytest.mark.parametrize("surrogate", ALL, ids=repr)
def test_first_and_second_equal_autograd(surrogate: Surrogate) -> None:
    np.testing.assert_allclose(
        surrogate.first(GRID), derivative(surrogate.smooth, GRID), rtol=1e-13, atol=1e-15
    )
    np.testing.assert_allclose(
        surrogate.second(GRID), derivative(surrogate.first, GRID), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("surrogate", ALL, ids=repr)
def test_first_and_second_equal_finite_differences(surrogate: Surrogate) -> None:
    h = 1e-6
    for function, exact in (
        (surrogate.smooth, surrogate.first),
        (surrogate.first, surrogate.second),
    ):
        slope = (function(GRID + h) - function(GRID - h)) / (2 * h)
        np.testing.assert_allclose(exact(GRID), slope, atol=2e-7)


@pytest.mark.parametrize("surrogate", ALL, ids=repr)
def test_numpy_equals_torch_and_keeps_the_dtype(surrogate: Surrogate) -> None:
    for name in ("first", "second", "smooth"):
        function = getattr(surrogate, name)
        got = function(torch.tensor(GRID)).numpy()
        np.testing.assert_allclose(got, function(GRID), rtol=1e-14, atol=3e-16)
        assert function(GRID.astype(np.float32)).dtype == np.float32
        assert function(torch.tensor(GRID, dtype=torch.float32)).dtype == torch.float32


def test_by_hand() -> None:
    x = np.array([-0.5, -0.25, 0.0, 0.5, 0.75])
    assert FastSigmoid(10.0).first(x).tolist() == pytest.approx(
        [1 / 36, 4 / 49, 1, 1 / 36, 4 / 289]
    )
    assert FastSigmoid(10.0).second(np.array([1e-12]))[0] == pytest.approx(-20)
    assert Boxcar(0.5).first(x).tolist() == [1, 1, 1, 1, 0]
    assert Boxcar(0.5, closed_left=False).first(x).tolist() == [0, 1, 1, 1, 0]
    assert Triangular(0.3, 0.5).first(x).tolist() == pytest.approx([0, 0.15, 0.3, 0, 0])
    assert Triangular(0.3, 0.5).second(x).tolist() == pytest.approx([0, 0.6, 0, 0, 0])
    sg = 1 / (1 + math.exp(-2))
    assert Sigmoid(4.0).first(x)[3] == pytest.approx(4 * sg * (1 - sg))
    assert Arctan(2.0).first(x)[2] == 1


def test_far_from_threshold_nothing_overflows() -> None:
    far = np.array([-1e4, 1e4])  # warnings are errors in this suite
    assert Sigmoid(4.0).first(far).tolist() == [0, 0]
    assert Sigmoid(4.0).smooth(far).tolist() == [0, 1]


@pytest.mark.parametrize("kind", [FastSigmoid, Boxcar, Triangular, Sigmoid, Arctan])
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_width_or_slope_that_is_not_positive_is_named(kind: Any, bad: float) -> None:
    with pytest.raises(Invalid, match=kind.__name__):
        kind(bad)

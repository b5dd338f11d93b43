"""Weights: convolution as a matrix = torch, and the algebra of composed paths."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from grasp_plugin.network import weights as W
from grasp_plugin.network.weights import Conv

CONVS = {
    "plain": ((2, 6, 7), (3, 2, 3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "stride": ((2, 7, 9), (4, 2, 3, 3), (2, 3), ((0, 0), (0, 0)), (1, 1), 1),
    "padding": ((2, 5, 6), (3, 2, 3, 3), (1, 1), ((2, 2), (1, 1)), (1, 1), 1),
    "dilation": ((1, 9, 9), (2, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (2, 3), 1),
    "non-square": ((1, 10, 12), (4, 1, 3, 5), (1, 1), ((0, 0), (2, 2)), (1, 1), 1),
    "groups": ((4, 6, 6), (6, 2, 3, 2), (1, 2), ((1, 1), (0, 0)), (1, 1), 2),
    "same, even kernel": ((1, 8, 8), (2, 1, 4, 4), (1, 1), ((1, 2), (1, 2)), (1, 1), 1),
    "1d": ((3, 11), (5, 3, 4), (2,), ((1, 1),), (2,), 1),
}


@pytest.mark.parametrize("name", CONVS)
def test_conv_matrix_equals_torch(name: str, rng: np.random.Generator) -> None:
    in_shape, kernel_shape, stride, padding, dilation, groups = CONVS[name]
    conv = Conv(rng.normal(size=kernel_shape), in_shape, stride, padding, dilation, groups)
    x = torch.as_tensor(rng.normal(size=(2, *in_shape)))
    pads = [n for pair in reversed(padding) for n in pair]
    operation = torch.nn.functional.conv1d if len(stride) == 1 else torch.nn.functional.conv2d
    expected = operation(
        torch.nn.functional.pad(x, pads), torch.as_tensor(conv.kernel), stride=stride,
        dilation=dilation, groups=groups,
    )  # fmt: skip
    assert tuple(expected.shape[1:]) == conv.out_shape
    found = W.apply(conv, x.reshape(2, -1).numpy())
    assert np.max(np.abs(found - expected.reshape(2, -1).numpy())) < 1e-12


def forms(rng: np.random.Generator) -> dict[str, W.Weight]:
    dense = rng.normal(size=(6, 8))
    conv = Conv(rng.normal(size=(3, 2, 2, 2)), (2, 2, 2), (1, 1), ((1, 0), (0, 1)), (1, 1))
    return {"dense": dense, "sparse": sp.csr_matrix(dense * (dense > 0.8)), "conv": conv}


@pytest.mark.parametrize("form", ["dense", "sparse", "conv"])
def test_scaling_and_masking(form: str, rng: np.random.Generator) -> None:
    weight = forms(rng)[form]
    full = W.to_dense(weight)
    rows, columns = rng.uniform(1, 2, full.shape[0]), rng.uniform(1, 2, full.shape[1])
    keep = rng.random(full.shape[0]) < 0.5
    assert np.allclose(W.to_dense(W.scale_rows(weight, rows)), rows[:, None] * full)
    assert np.allclose(W.to_dense(W.scale_columns(weight, columns)), full * columns)
    assert np.allclose(W.to_dense(W.mask_rows(weight, keep)), full * keep[:, None])
    assert np.allclose(W.to_dense(W.add(weight, weight)), 2 * full)
    changed = W.with_values(weight, W.values(weight) * 3)
    assert np.allclose(W.to_dense(changed), 3 * full)


def test_a_convolution_stays_one_under_a_channel_gain(rng: np.random.Generator) -> None:
    conv = forms(rng)["conv"]
    assert isinstance(conv, Conv)
    per_channel = np.repeat([1.0, 2.0, 3.0], int(np.prod(conv.out_shape[1:])))
    assert isinstance(W.scale_rows(conv, per_channel), Conv)
    assert not isinstance(W.scale_rows(conv, rng.uniform(1, 2, per_channel.size)), Conv)


def test_identity_leaves_the_other_factor(rng: np.random.Generator) -> None:
    for weight in forms(rng).values():
        assert W.compose(weight, W.identity(weight.shape[1])) is weight
        assert W.compose(W.identity(weight.shape[0]), weight) is weight
    assert W.is_identity(W.identity(3))
    assert not W.is_identity(2 * W.identity(3))
    assert not W.is_identity(np.eye(3))


def test_composition(rng: np.random.Generator) -> None:
    first = forms(rng)
    for a in first.values():
        second = rng.normal(size=(4, a.shape[0]))
        assert np.allclose(W.to_dense(W.compose(second, a)), second @ W.to_dense(a))

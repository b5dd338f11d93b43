"""Gradient and curvature of every loss are autograd's."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, hessian

from grasp_plugin.learning.losses import MSE, CrossEntropy, Loss, SmoothL1, Weighted

LOSSES = {
    "smooth l1": SmoothL1(),
    "mse": MSE(),
    "cross-entropy": CrossEntropy(),
    "ottt": Weighted(((0.95, CrossEntropy()), (0.05, MSE()))),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("batch", [1, 6])
def test_gradient_and_curvature_are_autograd(loss: Loss, batch: int) -> None:
    g = torch.Generator().manual_seed(batch)
    y = 2 * torch.randn(batch, 5, generator=g, dtype=torch.float64)
    target = torch.eye(5, dtype=torch.float64)[torch.arange(batch) % 5]
    mask = (torch.arange(batch) % 3 != 1).double()[:, None]
    v = torch.randn(batch, 5, generator=g, dtype=torch.float64)

    def value(logits: torch.Tensor) -> torch.Tensor:
        return loss.value(logits, target, mask)

    assert (loss.gradient(y, target, mask) - grad(value)(y)).abs().max() < 1e-15
    wanted = torch.einsum("bcde,de->bc", hessian(value)(y), v)
    found = loss.curvature(y, target, v, mask)
    assert (found - wanted).abs().max() < 1e-15
    assert wanted.abs().max() > 1e-3
    assert (v * found).sum() >= 0

"""SECA: channel attention that is shared over time, before the neuron."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grasp_plugin.errors import Invalid


class SECA(nn.Module):
    """y = x sigmoid(Conv1d_k(GAP(x))), the same weights at every step.

    GAP is the mean over space; without space it is x itself. In the paper's block it stands after
    BatchNorm ("I"), or takes the sum of the block's input and its convolution ("II").

    Args:
        kernel: k, odd; weights (k,), no bias. Cost: k parameters, k C multiplications a step.
        x: (batch, channel) or (batch, channel, height, width).

    Raises:
        Invalid: an even or non-positive kernel.

    References:
        specs/hmdf.md 3: the released `resnet.py` (ECAAttention).

    Example:
        >>> SECA(3)(torch.zeros(2, 4)).shape
        torch.Size([2, 4])
    """

    def __init__(self, kernel: int = 5, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise Invalid("SECA", f"expected an odd kernel, got {kernel}", "Pass 3 or 5")
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(2).mean(2) if x.dim() > 2 else x
        gate = torch.sigmoid(self.conv(mean[:, None, :])[:, 0, :])
        return x * gate.reshape(*gate.shape, *[1] * (x.dim() - 2))

"""1-bit and 1.5-bit weights and 4-bit spikes, with straight-through gradients.

    1bit      W_q = mean|W| sign(W)       mean per output channel; sign(0) = 1
              dL/dW = dL/dW_q where |W| <= 1, else 0
    1.5bit    W_q in {-alpha, 0, alpha}: alpha sign(W) where |W| > d, else 0
              d = 0.7 mean|W|,  alpha = mean(|W| : |W| > d), both of the whole tensor
              dL/dW = dL/dW_q where |W| < 1, else 0
    fp        W_q = W
    4bit      Q(s) of `neurons.hdlif`;  dL/ds = dL/dQ, also where Q saturates

The scales are constants to the gradient.

References:
    specs/hmdf.md 3: the released `resnet.py` (BinaryConv, TwnQuantizer) and `modules.py`.
Departures:
    sign(0) = 1, so that one bit is enough. Latent weights start as torch's own layers do; the
    released code starts all of them in [0, 0.001), of one sign, and leaves the rest to BatchNorm.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from grasp_plugin.errors import Invalid
from grasp_plugin.neurons import hdlif

BITS = ("fp", "1bit", "1.5bit")


class _Through(torch.autograd.Function):
    """`value` forward; the gradient goes to `latent`, times `mask`."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        del latent
        ctx.masked = mask is not None
        if mask is not None:
            ctx.save_for_backward(mask)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.saved_tensors[0] if ctx.masked else grads[0], None, None


def quantised_spikes(s: Tensor) -> Tensor:
    """Q(s), straight through."""
    out: Tensor = _Through.apply(s, hdlif.quantised(s.detach()), None)
    return out


def parts(weight: Tensor, bits: str) -> tuple[Tensor, Tensor]:
    """(kernel, scale) with W_q = scale * kernel.

    Args:
        weight: latent [N_o, ...]; bits: one of BITS.

    Returns:
        kernel like weight, in {-1, 1}, {-1, 0, 1} or itself; scale (N_o,).

    Raises:
        Invalid: unknown bits.
    """
    w = weight.detach()
    channels = w.shape[0]
    if bits == "fp":
        return w, w.new_ones(channels)
    size = w.abs()
    if bits == "1bit":
        return torch.where(w >= 0, 1.0, -1.0).to(w.dtype), size.flatten(1).mean(1)
    if bits != "1.5bit":
        raise Invalid("weights", f"expected one of {BITS}, got {bits!r}", "Pass one of them")
    there = size > 0.7 * size.mean()
    alpha = (size * there).sum() / there.sum().clamp(min=1)
    return torch.sign(w) * there, alpha.expand(channels).clone()


def quantised_weight(weight: Tensor, bits: str) -> Tensor:
    """W_q of latent weights, straight through.

    Raises:
        Invalid: unknown bits.
    """
    if bits == "fp":
        return weight
    kernel, scale = parts(weight, bits)
    size = weight.detach().abs()
    mask = (size <= 1 if bits == "1bit" else size < 1).to(weight.dtype)
    value = kernel * scale.reshape(-1, *[1] * (weight.dim() - 1))
    out: Tensor = _Through.apply(weight, value, mask)
    return out


def _check(bits: str) -> str:
    if bits not in BITS:
        raise Invalid("weights", f"expected one of {BITS}, got {bits!r}", "Pass one of them")
    return bits


class QuantLinear(nn.Linear):
    """y = W_q x + b with the weights of the module above.

    Args:
        in_features, out_features, bias: as nn.Linear; no bias unless asked for.
        weights: "fp", "1bit" or "1.5bit".

    Raises:
        Invalid: unknown weights.

    Example:
        >>> layer = QuantLinear(3, 2, weights="1.5bit")
        >>> sorted(set(parts(layer.weight, layer.bits)[0].flatten().tolist())) != []
        True
    """

    def __init__(
        self, in_features: int, out_features: int, *, weights: str = "1bit", bias: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__(in_features, out_features, bias, dtype=dtype)
        self.bits = _check(weights)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, quantised_weight(self.weight, self.bits), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weights={self.bits!r}"


class QuantConv2d(nn.Conv2d):
    """A convolution without bias whose weights are those of the module above.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as nn.Conv2d.
        weights: "fp", "1bit" or "1.5bit".

    Raises:
        Invalid: unknown weights.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, weights: str = "1bit",
        stride: int = 1, padding: int = 0, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, bias=False, dtype=dtype
        )
        self.bits = _check(weights)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(x, quantised_weight(self.weight, self.bits), None)
        return out

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weights={self.bits!r}"

"""Stateless NIR nodes -> torch layers: the inverse of `_layers`."""

from __future__ import annotations

from typing import Any, cast

import nir
import numpy as np
import torch
from torch import nn
from torch.nn.utils import skip_init

from grasp_plugin.adapters._layers import Scale
from grasp_plugin.errors import Refused


def tensor(value: Any, dtype: torch.dtype) -> torch.Tensor:
    """A float64 array as a tensor of `dtype`, rounded once."""
    return torch.as_tensor(np.array(value, dtype=np.float64)).to(dtype)


def layer_to_torch(
    name: str, node: nir.NIRNode, shape: tuple[int, ...], dtype: torch.dtype
) -> nn.Module:
    """The torch layer of a stateless node whose input has `shape`, batch axis not counted.

    Raises:
        Refused: a node or option that no torch layer expresses exactly.
    """
    if isinstance(node, (nir.Linear, nir.Affine)):
        return _linear(name, node, dtype)
    if isinstance(node, (nir.Conv1d, nir.Conv2d)):
        return _conv(node, shape, dtype)
    if isinstance(node, (nir.AvgPool2d, nir.SumPool2d)):
        return _pool(name, node)
    if isinstance(node, nir.Flatten):
        start, end = int(node.start_dim), int(node.end_dim)
        return nn.Flatten(start + (start >= 0), end + (end >= 0))
    if isinstance(node, nir.Scale):
        return Scale(tensor(np.broadcast_to(node.scale, shape), dtype))
    raise Refused(
        name,
        f"expected a layer that torch has, got {type(node).__name__}",
        "Run the graph on grasp_plugin's own back ends instead",
    )


def _blank(kind: type[nn.Module], *args: Any, **kwargs: Any) -> Any:
    """A layer without its random initialisation, so that no random number is drawn."""
    return skip_init(kind, *args, **kwargs)  # type: ignore[no-untyped-call]


def _filled(layer: Any, weight: Any, bias: Any, dtype: torch.dtype) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(tensor(weight, dtype))
        if bias is not None:
            layer.bias.copy_(tensor(bias, dtype))
    return cast(nn.Module, layer)


def _linear(name: str, node: Any, dtype: torch.dtype) -> nn.Module:
    weight = np.asarray(node.weight)
    if weight.ndim != 2:
        raise Refused(
            name, f"expected a weight [out, in], got the shape {weight.shape}", "Use one matrix"
        )
    out, size = weight.shape
    bias = getattr(node, "bias", None)
    if bias is not None:
        bias = np.broadcast_to(bias, (out,))
    layer = _blank(nn.Linear, size, out, bias=bias is not None, dtype=dtype)
    return _filled(layer, weight, bias, dtype)


def _ints(value: Any, count: int) -> tuple[int, ...]:
    return tuple(int(v) for v in np.broadcast_to(np.asarray(value), (count,)))


def _conv(node: Any, shape: tuple[int, ...], dtype: torch.dtype) -> nn.Module:
    weight = np.asarray(node.weight)
    axes = weight.ndim - 2
    padding = node.padding if isinstance(node.padding, str) else _ints(node.padding, axes)
    layer = _blank(
        nn.Conv1d if axes == 1 else nn.Conv2d,
        shape[0],
        weight.shape[0],
        weight.shape[2:],
        stride=_ints(node.stride, axes),
        padding=padding,
        dilation=_ints(node.dilation, axes),
        groups=int(node.groups),
        dtype=dtype,
    )
    return _filled(layer, weight, np.broadcast_to(node.bias, weight.shape[:1]), dtype)


def _pool(name: str, node: Any) -> nn.Module:
    kernel, stride, padding = (_ints(v, 2) for v in (node.kernel_size, node.stride, node.padding))
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise Refused(
            name,
            f"expected a padding of at most half the kernel {kernel}, got {padding}",
            "torch cannot pool with more; use a smaller padding",
        )
    divisor = 1 if isinstance(node, nir.SumPool2d) else None
    window, step, pad = ((a, b) for a, b in (kernel, stride, padding))
    return nn.AvgPool2d(window, step, pad, divisor_override=divisor)

"""Stateless torch layers <-> NIR nodes, in float64; what NIR cannot say is refused by name.

    Linear     y = W x (+ b)                    -> Linear, or Affine with a bias
    Conv1d/2d  cross-correlation, zero padding  -> Conv1d, Conv2d (a missing bias is written as 0)
    AvgPool2d  mean over the window, padded zeros counted   -> AvgPool2d
    AvgPool2d(divisor_override=1), LPPool2d(norm_type=1)    -> SumPool2d
    Flatten(start, end)                         -> Flatten(start - a, end - a), a axes before
    BatchNorm in evaluation mode   y = g (x - m) / sqrt(v + eps) + b   -> a diagonal Affine or Conv

`LPPool2d(norm_type=1)` is sign(m) |m| k with the mean m of k values: the sum, for any sign, to
rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nir
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from grasp_plugin.adapters._signals import Layer
from grasp_plugin.errors import Refused

Array = npt.NDArray[np.float64]
OURS = __name__
"""Where our own torch modules come from, which the tracer keeps whole."""


class Scale(nn.Module):
    """y = scale * x, elementwise; `scale` has the shape of one sample."""

    scale: torch.Tensor

    def __init__(self, scale: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input * self.scale


def array(tensor: Any) -> Array:
    """A float64 copy, outside torch."""
    return torch.as_tensor(tensor).detach().cpu().to(torch.float64).numpy().copy()


def broadcast(name: str, what: str, value: Any, shape: tuple[int, ...]) -> Array:
    """`value` in the shape of the layer, as torch broadcasts it against (batch, *shape)."""
    values = array(value)
    try:
        if values.ndim == len(shape) + 1 and values.shape[0] == 1:
            values = values[0]
        return np.broadcast_to(values, shape).astype(np.float64)
    except ValueError:
        raise Refused(
            name,
            f"expected {what} that broadcasts to the layer's shape {shape}, got {values.shape}",
            "Use a scalar or one value per neuron",
        ) from None


def typed(
    node: nir.NIRNode, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> nir.NIRNode:
    """Set the node's types from the traced shapes: NIR's own inference is wrong for some convs."""
    node.input_type = {"input": np.array(input_shape)}
    node.output_type = {"output": np.array(output_shape)}
    return node


def layer_to_nir(layer: Layer) -> nir.NIRNode:
    """The NIR node of a stateless layer.

    Raises:
        Refused: a layer, or an option of it, that NIR cannot express.
    """
    for kind, convert in _TO_NIR.items():
        if isinstance(layer.module, kind) and type(layer.module).forward is kind.forward:
            return typed(convert(layer), layer.input_shape, layer.output_shape)
    kind_name = type(layer.module).__name__
    pooling = "Use AvgPool2d, or sum pooling" if "Pool" in kind_name else "Use a layer NIR knows"
    raise refused(layer, "a layer that NIR can express", kind_name, pooling)


def refused(layer: Layer, expected: str, got: str, remedy: str) -> Refused:
    return Refused(layer.name, f"expected {expected}, got {got}", remedy)


def _linear(layer: Layer) -> nir.NIRNode:
    module: Any = layer.module
    if len(layer.input_shape) != 1:
        raise refused(
            layer,
            "a vector per sample",
            f"the shape {layer.input_shape}, of which Linear maps the last axis alone"
            if layer.input_shape
            else "a single number, so the sample has no batch axis (or no time axis)",
            "Put a Flatten before it, or give the sample of one step, (batch, ...), to a model"
            " without a time loop"
            if layer.input_shape
            else "Give the sample all its axes: (batch, ...), or (time, batch, ...) for a time"
            " loop",
        )
    if module.bias is None:
        return nir.Linear(weight=array(module.weight))
    return nir.Affine(weight=array(module.weight), bias=array(module.bias))


def _conv(layer: Layer) -> nir.NIRNode:
    module: Any = layer.module
    if module.padding_mode != "zeros":
        raise refused(layer, "padding_mode='zeros'", repr(module.padding_mode), "Pad with zeros")
    axes = len(module.kernel_size)
    if len(layer.input_shape) != axes + 1:
        raise refused(
            layer, "channels and space per sample", str(layer.input_shape), "Add a batch axis"
        )
    bias = np.zeros(module.out_channels) if module.bias is None else array(module.bias)
    padding = _padding(layer)
    common = {"weight": array(module.weight), "groups": int(module.groups), "bias": bias}
    if axes == 1:
        return nir.Conv1d(
            input_shape=int(layer.input_shape[1]),
            stride=int(module.stride[0]),
            padding=padding[0],
            dilation=int(module.dilation[0]),
            **common,
        )
    return nir.Conv2d(
        input_shape=(int(layer.input_shape[1]), int(layer.input_shape[2])),
        stride=tuple(int(s) for s in module.stride),
        padding=padding,
        dilation=tuple(int(d) for d in module.dilation),
        **common,
    )


def _padding(layer: Layer) -> tuple[int, ...]:
    module: Any = layer.module
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    if module.padding != "same":
        return tuple(int(p) for p in module.padding)
    spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if any(span % 2 for span in spans):
        raise refused(
            layer,
            "padding='same' that pads both sides alike",
            f"the even kernel {module.kernel_size}",
            "Use an odd kernel or explicit padding",
        )
    return tuple(span // 2 for span in spans)


def _pair(value: Any) -> npt.NDArray[np.int64]:
    return np.array([int(v) for v in (value if isinstance(value, tuple) else (value, value))])


def _avg_pool(layer: Layer) -> nir.NIRNode:
    module: Any = layer.module
    padded = bool(np.any(_pair(module.padding)))
    if module.ceil_mode:
        raise refused(layer, "ceil_mode=False", "True", "Pad the input instead")
    if padded and not module.count_include_pad and module.divisor_override is None:
        raise refused(layer, "count_include_pad=True", "False", "Count the padding, or remove it")
    if module.divisor_override not in (None, 1):
        raise refused(
            layer, "no divisor_override", str(module.divisor_override), "Scale the next weights"
        )
    kind = nir.AvgPool2d if module.divisor_override is None else nir.SumPool2d
    return kind(
        kernel_size=_pair(module.kernel_size),
        stride=_pair(module.stride),
        padding=_pair(module.padding),
    )


def _lp_pool(layer: Layer) -> nir.NIRNode:
    module: Any = layer.module
    if module.norm_type != 1 or module.ceil_mode:
        raise refused(
            layer,
            "norm_type=1 and ceil_mode=False",
            f"norm_type={module.norm_type}, ceil_mode={module.ceil_mode}",
            "Use AvgPool2d",
        )
    stride = module.kernel_size if module.stride is None else module.stride
    return nir.SumPool2d(
        kernel_size=_pair(module.kernel_size), stride=_pair(stride), padding=np.array([0, 0])
    )


def _flatten(layer: Layer) -> nir.NIRNode:
    module: Any = layer.module
    axes = len(layer.input_shape) + layer.lead
    start, end = module.start_dim % axes - layer.lead, module.end_dim % axes - layer.lead
    if start < 0:
        raise refused(
            layer,
            f"start_dim >= {layer.lead}",
            str(module.start_dim),
            "Leave the batch and time axes alone",
        )
    return nir.Flatten(
        input_type={"input": np.array(layer.input_shape)},
        start_dim=start,
        end_dim=-1 if end == len(layer.input_shape) - 1 else end,
    )


def batch_norm(layer: Layer) -> tuple[Array, Array]:
    """Gain and offset per channel of a batch norm in evaluation mode: y = gain x + offset."""
    module: Any = layer.module
    if module.running_mean is None or module.running_var is None:
        raise refused(
            layer,
            "running statistics",
            "track_running_stats=False, so the batch is normalised by itself",
            "Track running statistics",
        )
    gain = 1.0 / np.sqrt(array(module.running_var) + module.eps)
    if module.weight is not None:
        gain = gain * array(module.weight)
    offset = -array(module.running_mean) * gain
    if module.bias is not None:
        offset = offset + array(module.bias)
    return gain, offset


def _batch_norm(layer: Layer) -> nir.NIRNode:
    gain, offset = batch_norm(layer)
    diagonal = np.diag(gain)
    shape = layer.input_shape
    if len(shape) == 1:
        return nir.Affine(weight=diagonal, bias=offset)
    if len(shape) == 2:
        return nir.Conv1d(shape[1], diagonal[:, :, None], 1, 0, 1, 1, offset)
    return nir.Conv2d((shape[1], shape[2]), diagonal[:, :, None, None], 1, 0, 1, 1, offset)


def fold_batch_norm(node: nir.NIRNode, layer: Layer) -> nir.NIRNode:
    """The node before a batch norm with gain and offset worked in: W <- gain W, b <- gain b + c."""
    gain, offset = batch_norm(layer)
    weight = node.weight * gain.reshape((-1,) + (1,) * (node.weight.ndim - 1))
    if isinstance(node, nir.Linear):
        folded: nir.NIRNode = nir.Affine(weight=weight, bias=offset)
        return typed(folded, layer_shape(node, "input"), layer_shape(node, "output"))
    node.weight, node.bias = weight, node.bias * gain + offset
    return node


def layer_shape(node: nir.NIRNode, side: str) -> tuple[int, ...]:
    types = node.input_type if side == "input" else node.output_type
    return tuple(int(n) for n in types[side])


def _scale(layer: Layer) -> nir.NIRNode:
    module: Any = layer.module
    return nir.Scale(scale=broadcast(layer.name, "a scale", module.scale, layer.input_shape))


_TO_NIR: dict[type[nn.Module], Callable[[Layer], nir.NIRNode]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.AvgPool2d: _avg_pool,
    nn.LPPool2d: _lp_pool,
    nn.Flatten: _flatten,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Scale: _scale,
}

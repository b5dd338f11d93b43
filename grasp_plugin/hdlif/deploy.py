"""From a trained stack of torch layers to plain arrays that run on Lava."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from grasp_plugin.errors import Refused
from grasp_plugin.hdlif.layer import HDLayer
from grasp_plugin.hdlif.neuron import HDLIF
from grasp_plugin.hdlif.quantisers import QuantLinear, parts
from grasp_plugin.network.hdlif import Deployed, GradedLayer, check_stack
from grasp_plugin.network.weights import Array
from grasp_plugin.neurons.hdlif import CODE_STEP, TOP_CODE


def deploy(net: nn.Module, *, prefix: str = "layer") -> Deployed:
    """A stack of `HDLayer`s, with an nn.Linear at the end or not, as arrays in float64.

    BatchNorms take their running statistics, as in eval mode, and are folded with the weights'
    scale: g = alpha gamma / sqrt(var + eps), c = (b - mu) gamma / sqrt(var + eps) + beta. A Mem-BN
    makes lambda, g and c differ by step and neuron.

    Args:
        net: nn.Sequential (`HDStack`), or one HDLayer; prefix: names are layer1, layer2, ...

    Raises:
        Refused: convolutions, attention (its gate needs all channels at once, which no spike
            carries: run that part on the host, or train without), other modules.

    Example:
        >>> from grasp_plugin.hdlif import HDStack, hdlif_compressed
        >>> made = deploy(HDStack(hdlif_compressed(3, 2, 4), nn.Linear(2, 2)))
        >>> made.layers[0].kernel.shape, made.readout[0].shape
        ((2, 3), (2, 2))
    """
    modules = list(net) if isinstance(net, nn.Sequential) else [net]
    readout = None
    if modules and type(modules[-1]) is nn.Linear:
        last: Any = modules.pop()
        bias = torch.zeros(last.out_features) if last.bias is None else last.bias
        readout = _array(last.weight), _array(bias)
    layers = [_layer(f"{prefix}{k}", module) for k, module in enumerate(modules, start=1)]
    return Deployed(check_stack(layers), readout)


def _layer(name: str, module: nn.Module) -> GradedLayer:
    if not isinstance(module, HDLayer):
        raise Refused(
            name, f"expected an HDLayer, got {type(module).__name__}",
            "Deploy HDLayers and one nn.Linear behind them",
        )  # fmt: skip
    if not isinstance(module.synapse, nn.Linear):
        raise Refused(
            name, f"expected a linear layer, got {type(module.synapse).__name__}",
            "Unroll the convolution into a linear layer",
        )  # fmt: skip
    if module.attention is not None:
        raise Refused(
            name, "expected no attention, got SECA: its gate needs all channels at once, which no "
            "spike carries", "Run that layer on the host, or train without it",
        )  # fmt: skip
    linear, neuron = module.synapse, module.neuron
    bits = linear.bits if isinstance(linear, QuantLinear) else "fp"
    kernel, scale = parts(linear.weight, bits)
    gain, offset = _array(scale), np.zeros(linear.out_features)
    if linear.bias is not None:
        offset = _array(linear.bias)
    if module.norm is not None:
        gain, offset = _normed(name, module.norm, gain, offset)
    decay, theta, gain, offset = _by_step(neuron, gain, offset)
    return GradedLayer(
        name, _array(kernel), bits, neuron.steps, decay, theta, gain, offset, neuron.parallel,
        CODE_STEP if neuron.spikes == "4bit" else None, TOP_CODE,
    )  # fmt: skip


def _normed(name: str, norm: Any, gain: Array, offset: Array) -> tuple[Array, Array]:
    if norm.running_var is None:
        raise Refused(
            name, "expected running statistics in the norm, got none", "Use track_running_stats"
        )
    steep = 1 / np.sqrt(_array(norm.running_var) + norm.eps)
    shift = np.zeros_like(steep)
    if norm.weight is not None:
        steep, shift = steep * _array(norm.weight), _array(norm.bias)
    return gain * steep, (offset - _array(norm.running_mean)) * steep + shift


def _by_step(neuron: HDLIF, gain: Array, offset: Array) -> tuple[Array, ...]:
    """(decay, theta, gain, offset) as rows, a Mem-BN folded in."""
    rows = 1 if neuron.shared else neuron.steps
    decay = np.array([[float(neuron.decay(t).detach())] for t in range(rows)])
    theta = np.array([[float(neuron.theta(t).detach())] for t in range(rows)])
    if neuron.mem_norms is None:
        return decay, theta, gain[None], offset[None]
    folded: list[Any] = [m.folded() for m in neuron.mem_norms]  # type: ignore[operator]
    steep, more = (np.stack([_array(pair[k]) for pair in folded]) for k in (0, 1))
    return decay * steep, theta, steep * gain, steep * offset + more


def _array(value: Any) -> Array:
    return np.asarray(value.detach().double().cpu().numpy()).copy()

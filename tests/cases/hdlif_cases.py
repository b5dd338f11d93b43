"""Networks of HD-LIF layers that several test files share."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from grasp_plugin.hdlif import HDLIF, HDLayer, HDStack
from grasp_plugin.hdlif.training import accumulate

DOUBLE = torch.float64
SIZES = (7, 24, 24, 24, 4)
STEPS, BATCH = 8, 5


def spread(neuron: HDLIF, seed: int) -> HDLIF:
    """A decay and threshold of their own for every step."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in neuron.parameters(recurse=False):
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype))
    return neuron


def stack(
    seed: int, grad_mode: str = "bptt", sizes: tuple[int, ...] = SIZES, gain: float = 1.7,
    steps: int = STEPS, **options: Any,
) -> HDStack:  # fmt: skip
    """Dense HD-LIF layers with weights N(0, gain^2 / N_i), and a linear read-out."""
    g = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for k, (ins, outs) in enumerate(pairwise(sizes)):
        linear = nn.Linear(ins, outs, bias=False, dtype=DOUBLE)
        with torch.no_grad():
            linear.weight.copy_(gain / ins**0.5 * torch.randn(outs, ins, generator=g, dtype=DOUBLE))
        last = k == len(sizes) - 2
        neuron = HDLIF(steps, grad_mode=grad_mode, dtype=DOUBLE, **options)
        layers.append(linear if last else HDLayer(linear, spread(neuron, 100 * seed + k)))
    return HDStack(*layers)


def samples(seed: int, steps: int = STEPS, size: int = SIZES[0]) -> tuple[Tensor, Tensor]:
    """(x (time, batch, N_i), y (batch,))."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(steps, BATCH, size, generator=g, dtype=DOUBLE)
    return x, torch.randint(0, SIZES[-1], (BATCH,), generator=g)


def gradients(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Of the time-averaged cross-entropy, by parameter."""
    net.zero_grad()
    accumulate(net, x, y, nn.functional.cross_entropy)
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def weights(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of weights alone."""
    return {n: g for n, g in found.items() if n.endswith("weight")}


def worst(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two sets of gradients."""
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max()) for n in a)

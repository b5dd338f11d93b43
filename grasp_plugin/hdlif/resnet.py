"""ResNet-18 of HD-LIF neurons for 32 x 32 images, one step at a time.

Pre-activation: out = conv2(act2(conv1(act1(x)))) + skip(x), each convolution with its BatchNorm.
Graded spikes enter convolutions only; the skip adds currents. Where the shape changes the skip is a
1 x 1 convolution of act1's spikes. First convolution and classifier are fp32, without a neuron.

References:
    specs/hmdf.md 3, 5; the released `resnet.py` gives the shapes, which its published parameter and
    operation counts confirm.
Departures:
    That the 1 x 1 convolution takes spikes, not currents, is our reading of "spikes enter
    convolutions"; it changes no count.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from grasp_plugin.errors import Invalid
from grasp_plugin.hdlif.attention import SECA
from grasp_plugin.hdlif.neuron import HDLIF, State
from grasp_plugin.hdlif.quantisers import QuantConv2d

WIDTHS = (64, 128, 256, 512)


class ResNet18(nn.Module):
    """`forward(x, state=None) -> (logits, state)`, x (batch, 3, 32, 32), logits (batch, classes).

    Args:
        classes, steps: C, T.
        weights: "fp", "1bit" or "1.5bit" of all convolutions but the first.
        spikes, grad_mode: as in `HDLIF`.
        parallel: the second neuron of every block without memory (the paper's 50 %).
        mem_bn: a normalised membrane in every neuron that has one.
        seca: None, "I" (attention after BatchNorm) or "II" (on the sum of the block's current and
            its convolution, where they have one shape).
        widths: channels of the four stages.

    Raises:
        Invalid: an unknown option.

    Example:
        >>> with torch.device("meta"):
        ...     out, _ = ResNet18(100, 4)(torch.zeros(1, 3, 32, 32))
        >>> out.shape
        torch.Size([1, 100])
    """

    def __init__(
        self, classes: int, steps: int, *, weights: str = "1.5bit", spikes: str = "float",
        grad_mode: str = "online", parallel: bool = False, mem_bn: bool = False,
        seca: str | None = None, widths: tuple[int, ...] = WIDTHS,
    ) -> None:  # fmt: skip
        super().__init__()
        if seca not in (None, "I", "II"):
            raise Invalid("ResNet18", f"expected seca None, 'I' or 'II', got {seca!r}", "Pass one")
        common: dict[str, Any] = {"spikes": spikes, "grad_mode": grad_mode}

        def neuron(channels: int, second: bool = False) -> HDLIF:
            alone = parallel and second
            norm = channels if mem_bn and not alone else None
            return HDLIF(steps, parallel=alone, mem_bn=norm, **common)

        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0])
        )
        blocks, below = [], widths[0]
        for stage, width in enumerate(widths):
            for first in (True, False):
                stride = 2 if first and stage else 1
                neurons = neuron(below), neuron(width, True)
                blocks.append(_Block(below, width, stride, weights, neurons, seca))
                below = width
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Linear(below, classes)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        out: Tensor = self.stem(x)
        after: State = {}
        for k, block in enumerate(self.blocks):
            out, after[str(k)] = block(out, None if state is None else state[str(k)])
        pooled = functional.adaptive_avg_pool2d(out, 1).flatten(1)
        return self.classifier(pooled), after


class _Block(nn.Module):
    """The block of the module's equation."""

    def __init__(
        self, below: int, width: int, stride: int, weights: str, neurons: tuple[HDLIF, HDLIF],
        seca: str | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.act1, self.act2 = neurons
        self.conv1 = _convolution(below, width, 3, stride, weights)
        self.conv2 = _convolution(width, width, 3, 1, weights)
        self.skip: nn.Module | None = None
        if below != width or stride != 1:
            self.skip = _convolution(below, width, 1, stride, weights)
        self.attention = None if seca is None else nn.ModuleList((SECA(), SECA()))
        self.sums = (seca == "II" and self.skip is None, seca == "II")

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        first, second = (None, None) if state is None else (state["act1"], state["act2"])
        spikes, first = self.act1(x, first)
        hidden = self._attended(0, x, self.conv1(spikes))
        more, second = self.act2(hidden, second)
        out = self._attended(1, hidden, self.conv2(more))
        skip = x if self.skip is None else self.skip(spikes)
        return out + skip, {"act1": first, "act2": second}

    def _attended(self, k: int, current: Tensor, convolved: Tensor) -> Tensor:
        if self.attention is None:
            return convolved
        out: Tensor = self.attention[k](current + convolved if self.sums[k] else convolved)
        return out


def _convolution(below: int, width: int, size: int, stride: int, weights: str) -> nn.Sequential:
    return nn.Sequential(
        QuantConv2d(below, width, size, weights=weights, stride=stride, padding=size // 2),
        nn.BatchNorm2d(width),
    )


def meta_resnet18(**options: Any) -> tuple[ResNet18, Tensor]:
    """A ResNet18 without numbers and an image for it: shapes only, for counting.

    Args:
        options: of `ResNet18`, with classes and steps.
    """
    with torch.device("meta"):
        return ResNet18(**options).eval(), torch.zeros(1, 3, 32, 32)

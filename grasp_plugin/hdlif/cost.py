"""What a network costs: parameter bytes, neuron operations, synaptic operations, bytes moved.

    parameters    sum over convolutions and linear layers of weights and biases; no BatchNorm, no
                  neuron. As published: 4 bytes fp, 0.25 "1-bit", 0.375 "1.5-bit". Truly packed:
                  4, 1/8 and 1/4 (two bits hold a ternary weight). MB = 10^6 bytes.
    NOPs          T (1 MUL + 2 ADD) a neuron; T (1 ADD) a parallel one
    SOPs          sum over events (inputs that are not 0) of their weights that are not 0
    bytes moved   messages: events x payload bits / 8;  weights: SOPs x packed bits / 8;
                  state: a membrane read and written, 4 bytes each, a step of a neuron with memory

The published energy is SOPs x 0.9 pJ, divided by 8 for 4-bit spikes; here the pJ of an operation is
an argument. Published SOP counts cannot be checked: the authors' counter was not found.

References:
    specs/hmdf.md 8: the released `utils.py`, `main_inf.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from grasp_plugin.errors import Invalid
from grasp_plugin.hdlif.layer import HDLayer
from grasp_plugin.hdlif.neuron import HDLIF
from grasp_plugin.hdlif.quantisers import QuantConv2d, QuantLinear, parts

PUBLISHED_BYTES = {"fp": 4.0, "1bit": 0.25, "1.5bit": 0.375}
PACKED_BYTES = {"fp": 4.0, "1bit": 0.125, "1.5bit": 0.25}
STATE_BYTES = 4
Weighted = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class ParameterBytes:
    """Bytes of all weights, as the paper charges them and as they pack."""

    count: int
    published: float
    packed: float


def parameter_bytes(net: nn.Module) -> ParameterBytes:
    """Of every convolution and linear layer of a module; a bias is fp.

    Example:
        >>> parameter_bytes(QuantLinear(80, 10, weights="1bit"))
        ParameterBytes(count=800, published=200.0, packed=100.0)
    """
    count, published, packed = 0, 0.0, 0.0
    for m in net.modules():
        if isinstance(m, Weighted):
            bias = 0 if m.bias is None else m.bias.numel()
            bits, size = _bits(m), m.weight.numel()
            count += size + bias
            published += size * PUBLISHED_BYTES[bits] + bias * PUBLISHED_BYTES["fp"]
            packed += size * PACKED_BYTES[bits] + bias * PACKED_BYTES["fp"]
    return ParameterBytes(count, published, packed)


@dataclass(frozen=True)
class NeuronOps:
    """Multiplications and additions of all neurons over T steps of one sample."""

    muls: int
    adds: int

    @property
    def total(self) -> int:
        """NOPs."""
        return self.muls + self.adds


def neuron_ops(net: nn.Module, x: Tensor, steps: int) -> NeuronOps:
    """NOPs of a sample by the module's formula, with the neurons that one step runs.

    Args:
        net: `net(x_t, state=None) -> (out, state)`; may be on the meta device.
        x: one step (batch, ...), of which batch 1 is counted; steps: T.
    """
    neurons: list[tuple[HDLIF, int]] = []

    def seen(module: nn.Module, _: Any, result: Any) -> None:
        out = result[0] if isinstance(result, tuple) else result
        neuron: Any = module.neuron if isinstance(module, HDLayer) else module
        neurons.append((neuron, out[0].numel()))

    _watched(net, (HDLIF, HDLayer), seen, lambda copied: copied(x[:1]))
    muls = sum(0 if n.parallel else size for n, size in neurons)
    adds = sum(size if n.parallel else 2 * size for n, size in neurons)
    return NeuronOps(steps * muls, steps * adds)


@dataclass(frozen=True)
class LayerTraffic:
    """What one layer of weights took in over all samples and steps.

    Args:
        name: of the module.
        events: inputs that were not 0.
        payload_bits: of an event: 1 if all were 1, 4 if all were codes of `neurons.hdlif`, else 32.
        sops: events times the weights that are not 0.
        message_bytes, weight_bytes: moved.
    """

    name: str
    events: int
    payload_bits: int
    sops: int
    message_bytes: float
    weight_bytes: float


@dataclass(frozen=True)
class Traffic:
    """Counts of a run, in all (`samples` of them).

    Args:
        state_bytes: of membranes read and written.
    """

    samples: int
    layers: tuple[LayerTraffic, ...]
    ops: NeuronOps
    state_bytes: int

    @property
    def events(self) -> int:
        """Of all layers."""
        return sum(layer.events for layer in self.layers)

    @property
    def sops(self) -> int:
        """Of all layers."""
        return sum(layer.sops for layer in self.layers)

    @property
    def payload_bits(self) -> float:
        """Mean of all events; 0 without any."""
        total = sum(layer.events * layer.payload_bits for layer in self.layers)
        return total / self.events if self.events else 0.0

    @property
    def bytes_moved(self) -> float:
        """Messages, weights and state."""
        moved = sum(layer.message_bytes + layer.weight_bytes for layer in self.layers)
        return moved + self.state_bytes

    def energy_mj(
        self, pj_per_sop: float, *, pj_per_mul: float = 0, pj_per_add: float = 0
    ) -> float:
        """Of all samples, from your own constants [pJ per operation]; nothing else is charged."""
        return 1e-9 * (
            self.sops * pj_per_sop + self.ops.muls * pj_per_mul + self.ops.adds * pj_per_add
        )


def measure(net: nn.Module, x: Tensor) -> Traffic:
    """Run samples on a copy in eval mode and count.

    Args:
        net: `net(x_t, state=None) -> (out, state)`; x: (time, batch, ...).

    Raises:
        Invalid: no steps, or no samples.
    """
    if x.dim() < 2 or not x.shape[0] * x.shape[1]:
        raise Invalid("x", f"expected (time, batch, ...), got {tuple(x.shape)}", "Add the axes")
    counts: dict[nn.Module, _Count] = {}

    def seen(module: nn.Module, given: Any, _: Any) -> None:
        counts.setdefault(module, _Count()).add(module, given[0])

    def run(copied: nn.Module) -> None:
        state = None
        for step in x:
            _, state = copied(step, state)
        for name, m in copied.named_modules():
            if m in counts:
                counts[m].name = name

    _watched(net, Weighted, seen, run)
    ops = neuron_ops(net, x[0], len(x))
    samples = x.shape[1]
    layers = tuple(c.row(m) for m, c in counts.items())
    total = NeuronOps(samples * ops.muls, samples * ops.adds)
    return Traffic(samples, layers, total, 2 * STATE_BYTES * total.muls)


class _Count:
    """Running counts of one layer."""

    def __init__(self) -> None:
        self.name, self.events, self.sops, self.bits = "", 0, 0.0, 1

    def add(self, module: Any, x: Tensor) -> None:
        there = (x != 0).double()
        weight = module.weight.detach()
        kernel = parts(weight, _bits(module))[0] if _bits(module) != "fp" else weight
        used = (kernel != 0).double()
        if isinstance(module, nn.Linear):
            self.sops += float((there @ used.T).sum())
        else:
            self.sops += float(
                functional.conv2d(
                    there, used, None, module.stride, module.padding, module.dilation, module.groups
                ).sum()
            )
        self.events += int(there.sum())
        self.bits = max(self.bits, _payload_bits(x))

    def row(self, module: nn.Module) -> LayerTraffic:
        sops = round(self.sops)
        return LayerTraffic(
            self.name, self.events, self.bits, sops, self.events * self.bits / 8,
            sops * PACKED_BYTES[_bits(module)],
        )  # fmt: skip


def _payload_bits(x: Tensor) -> int:
    values = x[x != 0]
    if bool((values == 1).all()):
        return 1
    codes = 4 * values
    coded = bool(((codes == codes.round()) & (codes > 0) & (codes <= 15)).all())
    return 4 if coded else 32


def _bits(module: nn.Module) -> str:
    return module.bits if isinstance(module, (QuantLinear, QuantConv2d)) else "fp"


def _copied(net: nn.Module) -> nn.Module:
    """A copy in eval mode that forms every current in its synapse: trace mode does not."""
    out = copy.deepcopy(net).eval()
    for m in out.modules():
        if isinstance(m, HDLIF) and m.grad_mode == "trace":
            m.grad_mode = "online"
    return out


def _watched(
    net: nn.Module, kinds: tuple[type[nn.Module], ...], seen: Callable[..., None],
    run: Callable[[nn.Module], Any],
) -> None:  # fmt: skip
    """Run a copy with a forward hook on every module of some kinds."""
    copied = _copied(net)
    for m in copied.modules():
        if isinstance(m, kinds):
            m.register_forward_hook(seen)
    with torch.no_grad():
        run(copied)

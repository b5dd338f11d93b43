"""The networks of `benchmarks/hmdf.py`: inputs-128-128-10, a neuron model, a gradient, an alphabet.

All have a BatchNorm on every current (but the three without a norm, whose weights start as
N(0, 1.7^2 / N_i)), a decay and a threshold for each layer and step, trained, 0.5 at first, and a
linear read-out at every step. Neuron models:

    LIF          sends 1 where m > theta, then v = m - theta there (reset by subtraction, detached);
                 triangle surrogate of width 1
    graded LIF   the same neuron and reset, but it sends max(m - theta, 0) as HD-LIF does: what the
                 alphabet of the spikes is worth without HD-LIF's reset and gradient
    HD-LIF       `grasp_plugin.hdlif`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grasp_plugin.hdlif import HDLIF, SECA, HDLayer, QuantLinear
from grasp_plugin.hdlif.cost import NeuronOps
from grasp_plugin.hdlif.quantisers import quantised_spikes
from grasp_plugin.neurons.surrogate import Triangular

HIDDEN, CLASSES, GAIN = (128, 128), 10, 1.7


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Args:
        neuron: "lif", "graded" or "hdlif".
        mode: "online", "bptt", "trace" or "random" (one random step of an online network).
        weights, spikes: as in `grasp_plugin.hdlif`; "binary" spikes of the LIF.
        parallel: of the second layer; norm: BatchNorm on currents.
        extras: Mem-BN and SECA.
    """

    name: str
    neuron: str
    mode: str
    weights: str = "fp"
    spikes: str = "float"
    parallel: bool = False
    norm: bool = True
    extras: bool = False

    @property
    def bptt(self) -> bool:
        return self.mode == "bptt"


METHODS = (
    Method("LIF + surrogate, online", "lif", "online", spikes="binary"),
    Method("LIF + surrogate, BPTT", "lif", "bptt", spikes="binary"),
    Method("graded LIF, online", "graded", "online"),
    Method("graded LIF, BPTT", "graded", "bptt"),
    Method("HD-LIF, online", "hdlif", "online"),
    Method("HD-LIF, random step", "hdlif", "random"),
    Method("HD-LIF, BPTT", "hdlif", "bptt"),
    Method("LIF, 1.5 bit, online", "lif", "online", "1.5bit", "binary"),
    Method("graded LIF, 1.5 bit, 4-bit spikes, online", "graded", "online", "1.5bit", "4bit"),
    Method("EM-PF (reconstructed), online", "hdlif", "online", "1bit"),
    Method("HM-DF, 1.5 bit, online", "hdlif", "online", "1.5bit"),
    Method("HD-LIF, 1.5 bit, 4-bit spikes, online", "hdlif", "online", "1.5bit", "4bit"),
    Method("  the same, 50 % parallel", "hdlif", "online", "1.5bit", "4bit", parallel=True),
    Method("  the same, Mem-BN + SECA", "hdlif", "online", "1.5bit", "4bit", extras=True),
    Method("HD-LIF without norm, online", "hdlif", "online", norm=False),
    Method("HD-LIF without norm, traces", "hdlif", "trace", norm=False),
    Method("HD-LIF without norm, BPTT", "hdlif", "bptt", norm=False),
)
COMPRESSED = METHODS[11]


class LIF(nn.Module):
    """The two LIFs of the module: `forward(x, state) -> (out, state)` as an `HDLIF`."""

    def __init__(self, steps: int, graded: bool, spikes: str, online: bool) -> None:
        super().__init__()
        self.decay_logit = nn.Parameter(torch.zeros(steps))
        self.theta_logit = nn.Parameter(torch.zeros(steps))
        self.graded, self.spikes, self.online = graded, spikes, online

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        v, t = (torch.zeros_like(x), 0) if state is None else state
        v = v.detach() if self.online else v
        m = torch.sigmoid(self.decay_logit[t]) * v + x
        theta = torch.sigmoid(self.theta_logit[t])
        fired = (m > theta).to(x.dtype).detach()
        if self.graded:
            out = (m - theta) * fired
            out = quantised_spikes(out) if self.spikes == "4bit" else out
        else:
            out = _Spike.apply(m - theta)
        return out, (m - theta.detach() * fired, t + 1)


class _Spike(torch.autograd.Function):
    """H(x), with the triangle of height and width 1 for a derivative."""

    shape = Triangular(1.0, 1.0)

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * _Spike.shape.first(ctx.saved_tensors[0])


class Layer(nn.Module):
    """Weights, norm and a LIF, with the face of an `HDLayer`."""

    def __init__(self, synapse: nn.Module, neuron: LIF, norm: nn.Module) -> None:
        super().__init__()
        self.synapse, self.norm, self.neuron = synapse, norm, neuron

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.neuron(self.norm(self.synapse(x)), state)


class Net(nn.Sequential):
    """Two layers and a read-out: `forward(x, state=None) -> (logits, state)`."""

    def forward(self, x: Tensor, state: Any = None) -> Any:
        after = []
        for k, layer in enumerate(list(self)[:-1]):
            x, held = layer(x, None if state is None else state[k])
            after.append(held)
        return self[-1](x), after


def network(method: Method, inputs: int, steps: int, seed: int) -> Net:
    """A network of the method; the seed sets its weights."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for k, outs in enumerate(HIDDEN):
        linear = QuantLinear(inputs, outs, weights=method.weights, bias=not method.norm)
        norm = nn.BatchNorm1d(outs) if method.norm else None
        if norm is None:
            nn.init.normal_(linear.weight, 0.0, GAIN / inputs**0.5)
        if method.neuron == "hdlif":
            alone = method.parallel and k == 1
            mode = {"random": "online"}.get(method.mode, method.mode)
            neuron = HDLIF(
                steps, grad_mode=mode, spikes=method.spikes, parallel=alone,
                mem_bn=outs if method.extras else None,
            )  # fmt: skip
            layers.append(HDLayer(linear, neuron, norm, SECA() if method.extras else None))
        else:
            lif = LIF(steps, method.neuron == "graded", method.spikes, not method.bptt)
            layers.append(Layer(linear, lif, norm or nn.Identity()))
        inputs = outs
    return Net(*layers, nn.Linear(inputs, CLASSES))


def lif_ops(steps: int) -> NeuronOps:
    """NOPs of a sample through the two layers of a LIF: 1 MUL and 2 ADD a neuron and step."""
    return NeuronOps(steps * sum(HIDDEN), 2 * steps * sum(HIDDEN))

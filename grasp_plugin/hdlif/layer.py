"""Weights, normalisation, attention and neuron as one layer, and layers in a row."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.hdlif.neuron import HDLIF, State
from grasp_plugin.hdlif.quantisers import QuantLinear, quantised_weight


class HDLayer(nn.Module):
    """I = attention(norm(W_q x + b)), then the neuron.

    `forward(x, state=None) -> (out, state)`, as `HDLIF`. With a neuron in trace mode the gradient
    of W and b is

        dL/dW = sum_b g_b e_b    e_t = lambda_t (1 - chi_{t-1}) e_{t-1} + x_t    (batch, N_o, N_i)

    with g the gradient at W_q x + b of this step; that of theta, lambda and x is the online one.
    For a single or the last spiking layer dL/dW, summed over the steps, is BPTT's.

    Args:
        synapse: nn.Linear, QuantLinear, nn.Conv2d or QuantConv2d.
        neuron: an `HDLIF`.
        norm: BatchNorm or None; attention: `SECA` or None.

    Raises:
        Invalid: a neuron that is no HDLIF or keeps its own state; a norm that is no BatchNorm.
        Refused: trace mode with a convolution, attention, mem_bn, or a norm in training mode or
            without running statistics, whose gain differs from step to step.

    References:
        specs/hmdf.md 4.1, item 5.

    Example:
        >>> layer = HDLayer(nn.Linear(3, 2), HDLIF(4, grad_mode="trace"))
        >>> out, state = layer(torch.ones(1, 3))
        >>> state["trace"].shape
        torch.Size([1, 2, 3])
    """

    def __init__(
        self,
        synapse: nn.Module,
        neuron: HDLIF,
        norm: nn.Module | None = None,
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(neuron, HDLIF) or neuron.init_hidden:
            raise Invalid(
                "HDLayer", f"expected an HDLIF without init_hidden, got {neuron}", "Pass one"
            )
        if norm is not None and not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            raise Invalid(
                "HDLayer", f"expected a BatchNorm or None, got {type(norm).__name__}", "Pass one"
            )
        self.synapse, self.norm, self.attention, self.neuron = synapse, norm, attention, neuron
        if neuron.grad_mode == "trace":
            self._check_trace()

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        tracing = self.neuron.grad_mode == "trace"
        more: State = {}
        if tracing:
            if self.norm is not None and (self.norm.training or self.norm.running_var is None):
                raise _no_trace(
                    "a norm by the statistics of a step", "Call norm.eval(), with "
                    "track_running_stats, or leave it out",
                )  # fmt: skip
            current, more = self._traced(x, state)
        else:
            current = self.synapse(x)
        if self.norm is not None:
            current = self.norm(current)
        if self.attention is not None:
            current = self.attention(current)
        out, after = self.neuron.advance(current, state)
        return out, {**after, **more}

    def _check_trace(self) -> None:
        if not isinstance(self.synapse, nn.Linear):
            raise _no_trace(type(self.synapse).__name__, "Use nn.Linear, or grad_mode='online'")
        if self.attention is not None:
            raise _no_trace("attention", "Leave it out, or use grad_mode='online'")
        if self.neuron.mem_norms is not None:
            raise _no_trace("mem_bn", "Leave it out, or use grad_mode='online'")

    def _traced(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The current, with a gradient by traces, and the traces after this step."""
        linear: Any = self.synapse
        bits = linear.bits if isinstance(linear, QuantLinear) else "fp"
        with torch.no_grad():
            trace = x.detach()[:, None, :].expand(-1, linear.out_features, -1)
            ones = torch.ones_like(trace[:, :, 0])
            if state is not None and not self.neuron.parallel:
                keep = self.neuron.decay(int(state["t"])) * (state["margin"] <= 0).to(x.dtype)
                trace = torch.addcmul(trace, keep[:, :, None], state["trace"])
                ones = keep * state["ones"] + ones
        weight = quantised_weight(linear.weight, bits)
        current: Tensor = _Traced.apply(x, weight, linear.bias, trace, ones)
        return current, {"trace": trace, "ones": ones}


class _Traced(torch.autograd.Function):
    """W x + b whose gradient in W and b meets traces in place of x and 1."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, trace: Tensor, ones: Tensor
    ) -> Tensor:
        ctx.save_for_backward(weight, trace, ones)
        ctx.biased = bias is not None
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        g, (weight, trace, ones) = grads[0], ctx.saved_tensors
        by_weight = torch.einsum("bo,boi->oi", g, trace)
        return g @ weight, by_weight, (g * ones).sum(0) if ctx.biased else None, None, None


def _no_trace(what: str, remedy: str) -> Refused:
    return Refused(
        "HDLayer", f"expected a plain linear layer for grad_mode='trace', got {what}: the trace "
        "of a synapse would not be exact", remedy,
    )  # fmt: skip


class HDStack(nn.Sequential):
    """Modules in a row, one step at a time: `forward(x, state=None) -> (out, state)`.

    `HDLayer`s and bare `HDLIF`s have a state, all others are plain maps of this step.

    Example:
        >>> net = HDStack(HDLayer(nn.Linear(3, 2), HDLIF(4)), nn.Linear(2, 5))
        >>> out, state = net(torch.ones(1, 3))
        >>> out, state = net(torch.ones(1, 3), state)
        >>> out.shape, sorted(state)
        (torch.Size([1, 5]), ['0'])
    """

    def forward(self, x: Tensor, state: State | None = None) -> Any:
        after: State = {}
        for name, module in self.named_children():
            if isinstance(module, (HDLayer, HDLIF)):
                x, after[name] = module(x, None if state is None else state[name])
            else:
                x = module(x)
        return x, after

"""OTTT in a user's own snnTorch or Norse module and loop: traced layers, one forward per step.

    y[t]        = op(s[t]; W) + b            op: linear, conv1d or conv2d; value as without traces
    dL[t]/ds[t] = op^T g                     g = dL[t]/dy[t], of this step alone
    dL[t]/dW    = g against a[t]             a[t] = lambda a[t-1] + s[t], accumulating, no graph
    dL[t]/db    = c[t] sum g                 c[t] = lambda c[t-1] + 1

Summed over t this is autograd on the graph where this layer's leak alone is alive: exact for one
leak per layer and a reset that subtracts, with any linear map between layer and neuron that is the
same at every step. `learning.ottt` is the same rule on explicit factors.

References:
    specs/online-rules.md 3.1 (equations), 3.2 (knobs), 3.6 (one forward), 6 (resets). Xiao et al.,
    NeurIPS 2022, arXiv:2210.04195; the authors' code runs op twice and has no licence: not copied.
Departures:
    lambda is the decay of the neuron that the layer feeds; in the authors' code all share one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.rule import Factors, Trace
from grasp_plugin.learning.states import State
from grasp_plugin.training.ottt_wiring import Entry, Given, arrange
from grasp_plugin.training.ottt_wiring import detach as detach

log = logging.getLogger(__name__)
Module = TypeVar("Module", bound=nn.Module)


def with_traces(
    module: Module,
    decay: Given | Mapping[str, Given] | None = None,
    *,
    first_layer_trace: str | None = None,
    readout_trace: str | None = None,
    bias_trace: str | None = None,
    official: bool = False,
) -> Module:
    """Give every Linear, Conv1d and Conv2d of a module the OTTT gradient, in place.

    Parameters, their names and the optimizers that hold them stay as they are. Call the module
    once per step, take a loss per step, and call `reset_traces` before each sequence. The states
    of snnTorch's and Norse's neurons are detached as they enter a step; pass others through
    `detach`. A layer takes its decay from the next neuron in the order of registration; the first
    step with a gradient checks that order on the graph. A layer after the last neuron is taken to
    be memoryless.

    Args:
        module: changed in place; `without_traces` undoes it.
        decay: lambda, () per step, where it cannot be read: one for all layers that feed a neuron,
            or by layer name (0.0: memoryless). A `learning.traces.Trace` of shape (batch, N_i) is
            taken as it is, such as for a neuron of second order.
        first_layer_trace: "exact": a[t] | "official": s[t].
        readout_trace: "exact": s[t] | "official": a[t], with the decay of the neuron before.
        bias_trace: "exact": c[t] | "official": 1.
        official: the default of the three knobs above.

    Returns:
        The module; if it is itself a layer, the same object too.

    Raises:
        Invalid: no layer; an unknown layer name or knob; a decay outside [0, 1].
        Refused: where no decay is given: no neuron; a neuron but Leaky, LIFBoxCell and LIBoxCell;
            a learnable or per-neuron decay, a learnable threshold, state_quant; a module that is
            not known. A hard reset, unless a `Trace` is given. A layer registered twice. At the
            first step: a neuron fed by other layers than the order says, or through an operation
            that may differ from step to step.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.Flatten(), nn.Linear(2, 2))
        >>> with_traces(net, {"0": 0.5, "2": 0.0})[0]
        TracedLinear(in_features=3, out_features=2, bias=True, trace=Exponential(decay=0.5))
    """
    knobs = {"first": first_layer_trace, "readout": readout_trace, "bias": bias_trace}
    for knob, choice in knobs.items():
        knobs[knob] = choice = choice or ("official" if official else "exact")
        if choice not in ("exact", "official"):
            label = (
                "bias_trace" if knob == "bias" else f"{knob}{'_layer' * (knob == 'first')}_trace"
            )
            options = "'exact' or 'official'"
            raise Invalid("with_traces", f"expected {label} {options}, got {choice!r}", "Pass one")
    spots, neurons = arrange(module, decay, tuple(kind for pair in _TRACED for kind in pair))
    plans = [(spot, *spot.traces(knobs)) for spot in spots]  # refuse before anything is changed
    without_traces(module)
    for spot, trace, bias in plans:
        spot.layer.__class__ = next(new for old, new in _TRACED if type(spot.layer) is old)
        spot.layer.start(spot.name if spot.ordered else "", trace, bias)
        log.info("%s (%s): trace %s, bias %s", spot.name, spot.role, trace, bias)
    for name, neuron in neurons:
        entry = Entry(name, tuple(s.name for s in spots if s.ordered and s.after is neuron))
        entry.handle = neuron.register_forward_pre_hook(entry, with_kwargs=True)
    return module


def without_traces(module: Module) -> Module:
    """Undo `with_traces`, in place: plain layers, no traces, states no longer detached."""
    for m in module.modules():
        if isinstance(m, Traced):
            plain: Any = next(old for old, new in _TRACED if type(m) is new)
            m.__class__ = plain
            for key in ("label", "trace", "bias_trace", "memory", "seen"):
                delattr(m, key)
        for hook in list(m._forward_pre_hooks.values()):
            if isinstance(hook, Entry):
                hook.handle.remove()
    return module


def reset_traces(module: nn.Module) -> None:
    """Zero the traces of every traced layer; call it before each sequence."""
    for m in module.modules():
        if isinstance(m, Traced):
            m.memory, m.seen = None, None


class _Op(torch.autograd.Function):
    """value op(x; W) + b, dx = op^T g, dW = g against the trace, db = c sum g."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, trace: Tensor, c: Tensor, m: Any
    ) -> Tensor:
        ctx.save_for_backward(weight, trace, c)
        ctx.conv, ctx.label = m.conv(), m.label
        if ctx.conv is None:
            return functional.linear(x, weight, bias)
        convolve = functional.conv1d if weight.ndim == 3 else functional.conv2d
        return convolve(x, weight, bias, *ctx.conv)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, trace, c = ctx.saved_tensors
        g = g.to(weight.dtype)
        dx = dw = db = None
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        if ctx.conv is None:
            dx = g @ weight if to_x else None
            rows = g.reshape(-1, g.shape[-1])
            dw = rows.T @ trace.reshape(-1, trace.shape[-1]) if to_weight else None
            db = c * rows.sum(0) if to_bias else None
        else:
            stride, pad, dilation, groups = ctx.conv
            still = [0] * len(stride)
            dx, dw, _ = torch.ops.aten.convolution_backward(
                g, trace, weight, None, stride, pad, dilation, False, still, groups,
                [to_x, to_weight, False],
            )  # fmt: skip
            db = c * g.sum((0, *range(2, g.ndim))) if to_bias else None
        return dx, dw, db, None, None, None


class Traced(nn.Module):
    """What the traced layers share: the trace of the input (as the input), c (), and no graph."""

    weight: Tensor
    label: str  # the layer's name where its neuron is to be checked, else ""
    trace: Trace
    bias_trace: Trace
    memory: State | None
    seen: tuple[Any, ...] | None

    def start(self, label: str, trace: Trace, bias_trace: Trace) -> None:
        self.label, self.trace, self.bias_trace = label, trace, bias_trace
        self.memory = self.seen = None

    def conv(self) -> tuple[Any, ...] | None:
        """(stride, padding, dilation, groups) of a convolution."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        trace, c = self.advance(x)
        y: Tensor = _Op.apply(x, self.weight, self.bias, trace, c, self)
        return y

    @torch.no_grad()
    def advance(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(a[t] in the shape of x, c[t] ()); the state goes on."""
        seen = (tuple(x.shape), str(x.device))
        if self.seen not in (None, seen):
            raise Invalid(
                self.label or type(self).__name__,
                f"expected input of shape and device {self.seen} as in the step before, got {seen}",
                "Call reset_traces(module) before each sequence",
            )
        flat = x.detach().to(self.weight.dtype).reshape(x.shape[0], -1)
        one = flat.new_ones(1, 1)
        old = self.memory
        if old is None:
            start = self.trace.init(flat[:1], batch=x.shape[0])
            old = {"weight": start, "bias": self.bias_trace.init(one)}
        a, weight = self.trace.update(Factors(flat), old["weight"])
        c, bias = self.bias_trace.update(Factors(one), old["bias"])
        self.memory, self.seen = {"weight": weight, "bias": bias}, seen
        return a.reshape(x.shape), c.reshape(())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, trace={self.trace}"


class TracedLinear(Traced, nn.Linear):
    """nn.Linear with the gradient of OTTT."""


class _TracedConv(Traced):
    def conv(self) -> tuple[Any, ...]:
        m: Any = self
        return m.stride, self._pads()[1], m.dilation, m.groups

    def _pads(self) -> tuple[list[int], list[int]]:
        """What to pad outside of the convolution, and its own padding."""
        m: Any = self
        pairs: list[int] = list(m._reversed_padding_repeated_twice)
        low, high = pairs[::2], pairs[1::2]
        if m.padding_mode != "zeros":
            return pairs, [0] * len(low)
        more = [n for a, b in zip(low, high, strict=True) for n in (0, b - a)]
        return (more if any(more) else []), low[::-1]

    def forward(self, x: Tensor) -> Tensor:
        m: Any = self
        if x.ndim < self.weight.ndim:
            return self.forward(x[None])[0]
        pads = self._pads()[0]
        if pads:  # linear and the same at every step, so the trace may come after it
            x = functional.pad(x, pads, "constant" if m.padding_mode == "zeros" else m.padding_mode)
        return super().forward(x)


class TracedConv1d(_TracedConv, nn.Conv1d):
    """nn.Conv1d with the gradient of OTTT."""


class TracedConv2d(_TracedConv, nn.Conv2d):
    """nn.Conv2d with the gradient of OTTT."""


_TRACED = (
    (nn.Linear, TracedLinear), (nn.Conv1d, TracedConv1d), (nn.Conv2d, TracedConv2d),
)  # fmt: skip

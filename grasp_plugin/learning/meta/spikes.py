"""Spike functions for autograd, with the surrogates of `neurons.surrogate`.

    spike(sigma)         forward H(x), backward sigma'(x), second backward sigma''(x)
    smooth_twin(sigma)   forward sigma(x): a function whose derivatives are its own

`spike` is sigma less its value, in torch's own operations, so that `torch.func` maps and
differentiates it as often as asked. The twin is for finite differences, which see no slope in H.

Example:
    >>> import torch
    >>> from grasp_plugin.neurons.surrogate import FastSigmoid
    >>> x = torch.tensor([-0.1, 0.1], requires_grad=True)
    >>> y = spike(FastSigmoid(10.0))(x)
    >>> y.detach(), torch.autograd.grad(y.sum(), x)
    (tensor([0., 1.]), (tensor([0.2500, 0.2500]),))
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from grasp_plugin.neurons.lif import heaviside
from grasp_plugin.neurons.surrogate import Surrogate

Spike = Callable[[Tensor], Tensor]


def spike(surrogate: Surrogate) -> Spike:
    """H(x) whose derivatives are those of `surrogate.smooth`, elementwise in x's dtype."""

    def call(x: Tensor) -> Tensor:
        soft: Tensor = surrogate.smooth(x)
        hard: Tensor = heaviside(x.detach())
        return hard + (soft - soft.detach())  # exactly H: the bracket is 0

    return call


def smooth_twin(surrogate: Surrogate) -> Spike:
    """`surrogate.smooth` itself, elementwise in x's dtype."""

    def call(x: Tensor) -> Tensor:
        out: Tensor = surrogate.smooth(x)
        return out

    return call

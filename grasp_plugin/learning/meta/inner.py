"""What one step of adaptation is: phi -> phi', without touching phi.

    Gradient    phi' = phi - a grad_phi L(f_phi(x), y)        SGD with a step size a

`order` 2 keeps the step's graph, so that phi' can be differentiated through its gradient; order 1
takes the gradient as a constant, dphi'/dphi = 1. Rules and plans: `training.meta_plan.PlanStep`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Params = dict[str, Tensor]
Run = Callable[[Mapping[str, Tensor], Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class Inner(ABC):
    """A step of adaptation."""

    @abstractmethod
    def step(
        self, run: Run, phi: Params, sizes: Mapping[str, Tensor], x: Tensor, y: Tensor, order: int
    ) -> Params:
        """phi'.

        Args:
            run: (all parameters, x) -> logits.
            phi: all parameters by name.
            sizes: step sizes a of those that adapt, () or of their shape.
            x, y: support inputs (time, sample, neuron...) and labels (sample,).
            order: 2 or 1.
        """


@dataclass(frozen=True)
class Gradient(Inner):
    """Gradient descent on a torch loss of (logits (sample, class), labels (sample,)).

    Args:
        loss: a mean over samples; None: the learner's in `MAML`, cross-entropy elsewhere.
        mapped: use `torch.func.grad`, which `torch.func.vmap` maps over tasks, in place of
            `torch.autograd.grad`, which takes any `autograd.Function`. The step is the same.
        one_by_one: a step of the size a for each sample in turn, as on Lava, in place of one for
            the mean over all.
    """

    loss: Loss | None = None
    mapped: bool = False
    one_by_one: bool = False

    def step(
        self, run: Run, phi: Params, sizes: Mapping[str, Tensor], x: Tensor, y: Tensor, order: int
    ) -> Params:
        parts = [slice(i, i + 1) for i in range(len(y))] if self.one_by_one else [slice(None)]
        for part in parts:
            phi = self._once(run, phi, sizes, x[:, part], y[part], order)
        return phi

    def _once(
        self, run: Run, phi: Params, sizes: Mapping[str, Tensor], x: Tensor, y: Tensor, order: int
    ) -> Params:
        loss = functional.cross_entropy if self.loss is None else self.loss
        # order 1: neither what adapts nor the rest keeps a graph, or grad's would lead to the rest
        still = phi if order == 2 else {name: value.detach() for name, value in phi.items()}

        def value(part: Params) -> Tensor:
            return loss(run({**still, **part}, x), y)

        own = {name: still[name] for name in sizes}
        gradient = torch.func.grad(value)(own) if self.mapped else _gradient(value, own, order)
        return phi | {name: phi[name] - a * gradient[name] for name, a in sizes.items()}


def _gradient(value: Callable[[Params], Tensor], own: Params, order: int) -> Params:
    """d value / d own; a parameter without requires_grad (frozen, or under no_grad) is a leaf."""
    with torch.enable_grad():
        leaves = {k: v if v.requires_grad else v.detach().requires_grad_() for k, v in own.items()}
        found = torch.autograd.grad(value(leaves), list(leaves.values()), create_graph=order == 2)
    return dict(zip(leaves, found, strict=True))

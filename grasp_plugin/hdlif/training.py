"""Loops over the steps of a sample: accumulated, at every step, or at one random step.

    accumulate    grad of 1/T sum_t L(out_t, y); one optimizer step a batch is the caller's
    every_step    backward and optimizer step at every t: T updates a batch (the paper)
    random_step   t* ~ U{1..T}: forward to t*, backward there, the rest is not simulated

Where neurons are online or trace, accumulate takes each step's gradient at once and keeps no graph.
With parameters that stand still, the mean over t* of random_step's gradient is accumulate's.

References:
    specs/hmdf.md 3 (random back-propagation), 4.1 item 7, 9 item 4; released `main.py`.
Departures:
    The paper's own loop is every_step; accumulate, whose learning rate compares with BPTT's, is
    what we recommend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.hdlif.neuron import HDLIF

Loss = Callable[[Tensor, Tensor], Tensor]


def accumulate(
    net: nn.Module, x: Tensor, y: Tensor, loss: Loss, *, bptt: bool | None = None
) -> float:
    """Add the gradient of the time-averaged loss to the parameters' `.grad`; return the loss.

    Args:
        net: `net(x_t, state) -> (out_t, state)`, such as an `HDStack`.
        x: (time, batch, ...); y: the target of every step; loss: a mean over the batch.
        bptt: keep the graph over all steps; None: if a neuron of `net` is in bptt mode.

    Raises:
        Invalid: no steps.
        Refused: bptt=False with neurons in bptt mode.
    """
    steps = _steps(x)
    if bptt is False:
        _need_online(net, "accumulate")
    state: Any = None
    if not _online(net) if bptt is None else bptt:
        total = torch.zeros(())
        for t in range(steps):
            out, state = net(x[t], state)
            total = total + loss(out, y) / steps
        total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach())
    value = 0.0
    for t in range(steps):
        out, state = net(x[t], state)
        part = loss(out, y) / steps
        part.backward()  # type: ignore[no-untyped-call]
        value += float(part.detach())
    return value


def every_step(
    net: nn.Module, x: Tensor, y: Tensor, loss: Loss, optimizer: torch.optim.Optimizer
) -> float:
    """The paper's loop: zero_grad, backward and step at every t; returns the mean loss.

    Raises:
        Invalid: no steps.
        Refused: neurons in bptt mode, whose graph an update in mid-sample would break.
    """
    steps, state, value = _steps(x), None, 0.0
    _need_online(net, "every_step")
    for t in range(steps):
        out, state = net(x[t], state)
        optimizer.zero_grad()
        part = loss(out, y)
        part.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        value += float(part.detach()) / steps
    return value


def random_step(
    net: nn.Module, x: Tensor, y: Tensor, loss: Loss, *, at: int | None = None,
    generator: torch.Generator | None = None,
) -> float:  # fmt: skip
    """Add the gradient of L(out_t*, y) at one step t*; return that loss.

    Args:
        at: t*, from 0; None: drawn evenly with `generator`.

    Raises:
        Invalid: no steps, or `at` outside of them.
        Refused: neurons in bptt mode: the steps before t* are run without a graph.
    """
    steps = _steps(x)
    _need_online(net, "random_step")
    chosen = int(torch.randint(steps, (), generator=generator)) if at is None else at
    if not 0 <= chosen < steps:
        raise Invalid("random_step", f"expected at in 0..{steps - 1}, got {at}", "Leave it out")
    state = None
    with torch.no_grad():
        for t in range(chosen):
            _, state = net(x[t], state)
    out, _ = net(x[chosen], state)
    value = loss(out, y)
    value.backward()  # type: ignore[no-untyped-call]
    return float(value.detach())


def _steps(x: Tensor) -> int:
    if x.dim() < 2 or not len(x):
        raise Invalid("x", f"expected (time, batch, ...), got {tuple(x.shape)}", "Add the axes")
    return len(x)


def _online(net: nn.Module) -> bool:
    """No neuron keeps a graph from step to step."""
    return all(m.grad_mode != "bptt" or m.parallel for m in net.modules() if isinstance(m, HDLIF))


def _need_online(net: nn.Module, by: str) -> None:
    if not _online(net):
        raise Refused(
            by, "expected neurons with grad_mode 'online' or 'trace', got 'bptt'",
            "Make them online, or use accumulate, which keeps their graph",
        )  # fmt: skip

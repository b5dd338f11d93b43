"""What a model must be to be adapted, found out by running it once.

    logits    one tensor (sample, class), finite
    from rest the same output twice; no buffer goes on from one call to the next
    used      the loss depends on every parameter that is to adapt

A buffer goes on if it is saved with the module and a call changes it (BatchNorm's running mean), or
if a second call with the same input changes it again. snnTorch's `mem`, where the last call's
membrane is left and nothing reads it, is neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.meta.checks import finite
from grasp_plugin.learning.meta.inner import Loss, Params, Run


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """The model's buffers are afterwards what and as they were, whatever is run."""
    held = dict(model.named_buffers())
    begun = _values(model)
    try:
        yield
    finally:
        for name, value in begun.items():
            path, _, leaf = name.rpartition(".")
            owner = model.get_submodule(path)
            if getattr(owner, leaf) is not held[name]:
                setattr(owner, leaf, held[name])
            if not _same(held[name], value):
                with torch.no_grad():
                    held[name].copy_(value)


def check_runs(logits: Run, model: nn.Module, x: Tensor) -> int:
    """The number of classes.

    Args:
        logits: (parameters, x) -> logits of the model. x: inputs (time, sample, neuron...).

    Raises:
        Invalid: something else than finite logits (sample, class).
        Refused: a second call gives another output, or a buffer goes on from one to the next.
    """
    theta = {name: value.detach() for name, value in model.named_parameters()}
    begun = _values(model)
    with torch.no_grad():
        first = logits(theta, x)
        _check_logits(model, first, x)
        once = _values(model)
        again = logits(theta, x)
    if not torch.equal(first, again):
        raise Refused(
            type(model).__name__, "expected the same output for the same input, got another at the "
            "second call: a state or a random number is carried over",
            "Start from rest in every call (snnTorch: init_hidden=False), without dropout",
        )  # fmt: skip
    saved, twice = model.state_dict(), _values(model)
    for name, value in twice.items():
        goes_on = not _same(once.get(name), value)
        if goes_on or (name in saved and not _same(begun.get(name), value)):
            raise Refused(
                name, "expected a buffer that a call does not change, got another value after it, "
                "which the next task would begin with",
                "Call model.eval(), or use a norm without running statistics (LayerNorm, or "
                "track_running_stats=False)",
            )  # fmt: skip
    return int(first.shape[1])


def check_used(
    logits: Run, loss: Loss, model: nn.Module, adapted: Sequence[str], x: Tensor, y: Tensor
) -> None:
    """Refuse a parameter that is to adapt and has no gradient.

    Args:
        loss: of the inner step. adapted: names. x, y: as for `MAML.adapt`.

    Raises:
        Invalid: names the parameter, or the loss if it is not one number.
    """
    theta: Params = {name: value.detach() for name, value in model.named_parameters()}
    theta |= {name: theta[name].requires_grad_() for name in adapted}
    with torch.enable_grad():
        value = loss(logits(theta, x), y)
    if value.shape != ():
        raise Invalid("loss", f"expected a mean over samples (), got {tuple(value.shape)}", "Mean")
    found: Sequence[Tensor | None] = [None] * len(adapted)
    if value.requires_grad:
        found = torch.autograd.grad(value, [theta[name] for name in adapted], allow_unused=True)
    for name, gradient in zip(adapted, found, strict=True):
        if gradient is None:
            raise Invalid(
                name, "expected a parameter that the inner loss depends on, got one without a "
                "gradient", "Leave it out of adapt, or use it (a spike needs a surrogate)",
            )  # fmt: skip


def _check_logits(model: nn.Module, out: object, x: Tensor) -> None:
    got = type(out).__name__
    if isinstance(out, Tensor):
        if out.dim() == 2 and len(out) == x.shape[1] and out.is_floating_point():
            finite(f"logits of {type(model).__name__}", out, "Check the model's parameters")
            return
        got = f"{tuple(out.shape)} of {out.dtype}"
    raise Invalid(
        type(model).__name__, f"expected logits ({x.shape[1]} samples, class) of inputs "
        f"{tuple(x.shape)}, got {got}", "Pass run=lambda model, x: ... that returns them",
    )  # fmt: skip


def _values(model: nn.Module) -> Params:
    return {name: value.detach().clone() for name, value in model.named_buffers()}


def _same(one: Tensor | None, other: Tensor) -> bool:
    """Equal, NaN to NaN."""
    if one is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())

"""What `MAML` and `Tasks` refuse in what they are given, before anything is run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from grasp_plugin.checks import is_whole
from grasp_plugin.errors import Invalid
from grasp_plugin.learning.meta.grids import Grid

LEARN = ("none", "parameter", "entry")
Grids = Grid | Mapping[str, Grid] | None


def whole(name: str, value: Any, least: int) -> int:
    """A whole number.

    Raises:
        Invalid: it is none, or less than `least`.
    """
    if not is_whole(value, least):
        raise Invalid(name, f"expected a whole number >= {least}, got {value!r}", "Correct it")
    return int(value)


def one_of(name: str, value: Any, options: Sequence[Any]) -> None:
    """Refuse what is not among the options.

    Raises:
        Invalid: names the options.
    """
    if value not in options:
        listed = ", ".join(repr(option) for option in options)
        raise Invalid(name, f"expected one of {listed}, got {value!r}", "Pick one")


def adapted_names(known: Sequence[str], adapt: Collection[str] | None) -> tuple[str, ...]:
    """The parameters that adapt; None: all.

    Raises:
        Invalid: none, a text in place of a list, an unknown name, or one twice.
    """
    if isinstance(adapt, str):
        raise Invalid("adapt", f"expected a list of names, got {adapt!r}", f"Pass [{adapt!r}]")
    names = tuple(known) if adapt is None else tuple(adapt)
    if not names:
        raise Invalid("adapt", "expected something to adapt, got no parameter", "Name one or more")
    _known("adapt", names, known)
    for name in names:
        if names.count(name) > 1:
            raise Invalid(name, "expected each name once in adapt, got it twice", "Drop one")
    return names


def grids(name: str, given: Grids, known: Sequence[str]) -> Grids:
    """A grid for all parameters, or by name.

    Raises:
        Invalid: not a `Grid`, a mapping to grids or None; a name of no parameter.
    """
    parts = list(given.values()) if isinstance(given, Mapping) else [given]
    for part in parts:
        if not isinstance(part, Grid) and given is not None:
            raise Invalid(
                name, f"expected a Grid, a mapping of names to Grids, or None, got "
                f"{type(part).__name__}", "Pass e.g. Grid(8, 7)",
            )  # fmt: skip
    if isinstance(given, Mapping):
        _known(name, given, known)
    return given


def step_sizes(given: Any, adapted: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """The step size to begin with, by the name of what adapts.

    Raises:
        Invalid: a name of no parameter, one that adapts without a size, or a size that is not one
            finite number >= 0.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(adapted, _size("step_size", given))
    _known("step_size", given, known)
    for name in adapted:
        if name not in given:
            raise Invalid(
                name, f"expected a step size for all that adapts, got those of {', '.join(given)}",
                "Add it to step_size",
            )  # fmt: skip
    return {name: _size(name, given[name]) for name in adapted}


def _size(name: str, value: Any) -> float:
    try:
        size = math.nan if getattr(value, "ndim", 0) or isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        size = math.nan
    if not 0 <= size < math.inf:
        raise Invalid(name, f"expected a finite step size >= 0, got {value!r}", "Pass e.g. 0.1")
    return size


def _known(where: str, names: Collection[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise Invalid(
                str(name), f"expected a parameter of the model, one of {', '.join(known)}, got "
                f"{name!r} in {where}", "Check the name against model.named_parameters()",
            )  # fmt: skip


def samples(x: Any, y: Any, names: tuple[str, str], axes: tuple[str, ...]) -> Tensor:
    """The labels in int64, if they and the inputs are samples.

    Args:
        x, y: inputs and labels. names: theirs, for messages.
        axes: of inputs before the neurons', such as ("time", "sample"); labels have no time.

    Raises:
        Invalid: no tensors, another number of axes, none of something, inputs with NaN or infinity,
            labels of another type than integers.
    """
    for name, value in zip(names, (x, y), strict=True):
        if not isinstance(value, Tensor):
            raise Invalid(
                name, f"expected a tensor, got {type(value).__name__}",
                "Pass torch.as_tensor(...), or four arrays to Tasks.of",
            )  # fmt: skip
    time = axes.index("time")
    labelled = tuple(n for i, n in enumerate(x.shape[: len(axes)]) if i != time)
    if x.dim() <= len(axes) or tuple(y.shape) != labelled:
        without = ", ".join(axis for axis in axes if axis != "time")
        raise Invalid(
            names[0], f"expected ({', '.join(axes)}, neuron...) and labels ({without}), got "
            f"{tuple(x.shape)} and {tuple(y.shape)}", f"Time is axis {time}",
        )  # fmt: skip
    if not x.numel():
        raise Invalid(
            names[0], f"expected one or more of each of {', '.join(axes)} and neuron, got "
            f"{tuple(x.shape)}", "Add some",
        )  # fmt: skip
    finite(names[0], x)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise Invalid(names[1], f"expected integer labels, got {y.dtype}", "Pass class indices")
    out: Tensor = y.long()
    return out


def finite(name: str, x: Tensor, remedy: str = "Remove them") -> None:
    """Refuse NaN and infinity.

    Raises:
        Invalid: says how many entries there are.
    """
    if math.isfinite(float(x.detach().sum())):  # tens of times faster than to look at each
        return
    bad = x.numel() - int(torch.isfinite(x.detach()).sum())
    if bad:
        raise Invalid(name, f"expected finite numbers, got {bad} NaN or infinite", remedy)


def labels(name: str, y: Tensor, classes: int) -> None:
    """Refuse labels without a logit.

    Raises:
        Invalid: names the least or the largest.
    """
    low, high = (int(v) for v in torch.aminmax(y))
    if low < 0 or high >= classes:
        raise Invalid(
            name, f"expected labels in 0..{classes - 1}, the model's logits, got "
            f"{low if low < 0 else high}", "Number the classes of a task from 0",
        )  # fmt: skip


def dtype(name: str, x: Tensor, model: nn.Module) -> None:
    """Refuse floating-point inputs in another dtype than the model's parameters.

    Raises:
        Invalid: names both.
    """
    own = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if x.is_floating_point() and own and x.dtype not in own:
        listed = ", ".join(sorted(str(kind) for kind in own))
        raise Invalid(
            name, f"expected {listed}, as the parameters of {type(model).__name__}, got {x.dtype}",
            f"Pass .to({listed.split(', ')[0]}), of the inputs or the Tasks",
        )  # fmt: skip

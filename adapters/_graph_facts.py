"""Facts about the nodes of an fx graph whose values are known."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import fx, nn

from grasp_plugin.adapters._signals import VALUE


def bound_arguments(
    module: nn.Module, args: list[Any], kwargs: dict[str, Any]
) -> list[tuple[str, Any]]:
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    return list(bound.arguments.items())


def renamed(twin: nn.Module) -> dict[str, str]:
    """Module path -> node name, for the layers of our own step graphs."""
    names = {}
    for path, module in twin.named_modules():
        prefix = f"{path}." if path else ""
        for inner, name in getattr(module, "node_names", {}).items():
            names[f"{prefix}{inner}"] = f"{prefix}{name}"
    return names


def ancestor_calls(output: fx.Node) -> set[fx.Node]:
    """The module calls that the returned values depend on."""
    found, waiting = {output}, [output]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return {node for node in found if node.op == "call_module"}


def swaps_first_axes(node: fx.Node) -> bool:
    """True for a transposition of axes 0 and 1, from the shapes and strides of its value."""
    before, after = node.args[0].meta[VALUE], node.meta[VALUE]  # type: ignore[union-attr]
    if not isinstance(before, torch.Tensor) or before.ndim < 2:
        return False
    swapped = before.transpose(0, 1)
    return bool(swapped.shape == after.shape and swapped.stride() == after.stride())


def in_training(node: fx.Node) -> bool:
    arguments = dict(zip(("input", "p", "training"), node.args, strict=False)) | dict(node.kwargs)
    return bool(arguments.get("training", True)) and bool(arguments.get("p", 0.5) != 0)

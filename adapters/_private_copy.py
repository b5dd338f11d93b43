"""A copy of the caller's model to run, so that the model itself stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def private_copy(model: nn.Module) -> nn.Module:
    """A deep copy with the neurons at rest; tensors with a gradient history are detached."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for held in (*module._buffers.values(), *_tensors(module.__dict__)):
            if isinstance(held, torch.Tensor) and not held.is_leaf:
                memo[id(held)] = held.detach().clone()
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        reset = getattr(module, "reset_mem", None)
        if callable(reset):
            reset()
    return twin


def _tensors(attributes: dict[str, Any]) -> Iterator[torch.Tensor]:
    for value in attributes.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, torch.Tensor):
                yield item

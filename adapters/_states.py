"""What may be done to a hidden state between two calls of its neuron: name it, not change it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from grasp_plugin.adapters._signals import VALUE, State
from grasp_plugin.errors import Refused


def state_part(node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """A part of a state tuple, a state put together again, or a fact such as its size.

    Raises:
        Refused: any operation that may change the state.
    """
    state = next(x for x in (*args, *kwargs.values()) if isinstance(x, State))
    value = node.meta[VALUE]
    if args and args[0] is state:
        whole = node.args[0].meta[VALUE]  # type: ignore[union-attr]
        if node.target in (getattr, operator.getitem):
            part = _part(state, whole, args[1])
            if part is not None:
                return part
        if node.target == "_replace" and _replaces_nothing(state, whole, kwargs):
            return state
        if isinstance(value, (bool, int, str, torch.Size, torch.dtype, torch.device)):
            return value
    raise refused_state(state, f"{operation(node)}")


def refused_state(state: State, got: str) -> Refused:
    return Refused(
        state.leaf,
        f"expected the state as the neuron returned it, got {got}",
        "Hand the state on unchanged: NIR neurons have no operation on it between steps. Add"
        " inputs to the current instead",
    )


def rejoined(value: Any) -> Any:
    """A state tuple made anew of all its parts, in order, is that state."""
    if isinstance(value, list) and value and all(isinstance(x, State) for x in value):
        whole = [State(x.leaf, x.call, x.index) for x in value]
        if len(set(whole)) == 1 and [x.part for x in value] == list(range(len(value))):
            return whole[0]
    return value


def operation(node: fx.Node) -> str:
    """The operation of a node as a person would write it."""
    target: Any = node.target
    if target is getattr:
        return f".{node.args[1]}"
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return f"{name}()"


def _part(state: State, whole: Any, key: Any) -> State | None:
    fields = list(getattr(whole, "_fields", ()))
    if not isinstance(whole, tuple):
        everything = key is Ellipsis or (isinstance(key, slice) and key == slice(None))
        return state if everything else None
    if key in fields:
        key = fields.index(key)
    if isinstance(key, bool) or not isinstance(key, int) or state.part is not None:
        return None
    return State(state.leaf, state.call, state.index, key % len(whole))


def _replaces_nothing(state: State, whole: Any, kwargs: dict[str, Any]) -> bool:
    return all(value == _part(state, whole, field) for field, value in kwargs.items())

"""What a forward pass does behind the trace's back: neurons' states and weights that it changes,
and sums in place of which an older name is read later."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from grasp_plugin.adapters._signals import VALUE, Framework
from grasp_plugin.errors import Refused


@dataclass
class _Left:
    tensor: torch.Tensor
    version: int
    value: torch.Tensor


class StateWatch:
    """Checks that each call of a neuron that keeps its state finds it as the last call left it."""

    def __init__(self) -> None:
        self._left: dict[str, dict[str, _Left]] = {}

    def before(self, path: str, module: nn.Module, given: set[str]) -> None:
        """Compare the states that are not `given` to this call with those of `after`.

        Raises:
            Refused: the forward pass assigned, reset or changed one in between.
        """
        left = self._left.get(path)
        for name, now in _states(module).items():
            if name in given:
                continue
            kept = not bool(now.any()) if left is None else _is_left(now, left[name])
            if not kept:
                raise Refused(
                    path,
                    f"expected the state as the neuron left it, got a {name!r} that the forward"
                    " pass changed",
                    "Leave the state to the neuron between steps; to start from rest, reset it"
                    " before the first step",
                )

    def after(self, path: str, module: nn.Module) -> None:
        self._left[path] = {
            name: _Left(now, now._version, now.clone()) for name, now in _states(module).items()
        }


def _states(module: nn.Module) -> dict[str, torch.Tensor]:
    """snnTorch keeps a neuron's state in buffers that are not saved."""
    names = sorted(module._non_persistent_buffers_set)
    return {n: held for n in names if (held := module._buffers.get(n)) is not None}


def _is_left(now: torch.Tensor, left: _Left) -> bool:
    """True for the tensor itself, or its detached alias, unwritten."""
    return (
        now.data_ptr() == left.tensor.data_ptr()
        and now._version == left.version
        and _same_values(now, left.value)
    )


def refuse_changed(model: nn.Module, twin: nn.Module, framework: Framework) -> None:
    """Compare the weights, and the neurons' parameters, before and after the trace.

    Raises:
        Refused: the forward pass changes one, so it has no single value.
    """
    after = dict(twin.named_modules())
    for path, module in model.named_modules():
        buffers = module._buffers if framework.is_neuron(module) else {}
        for name, held in {**module._parameters, **buffers}.items():
            if held is None or name in module._non_persistent_buffers_set:
                continue
            now: Any = getattr(after[path], name, None)
            if not isinstance(now, torch.Tensor) or not _same_values(held, now):
                raise Refused(
                    path or type(model).__name__,
                    f"expected a forward pass that leaves {name!r} as it is, got one that"
                    " changes it",
                    "Change it outside forward, before the conversion",
                )


def _same_values(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return bool(((left == right) | ((left != left) & (right != right))).all())


def refuse_stale(graph: fx.Graph) -> None:
    """Refuse `a += b` where the old `a`, or a view of it, is read later: it would be a + b there.

    Raises:
        Refused: such a reader.
    """
    place = {node: k for k, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        left = node.args[0] if node.target is operator.iadd else None
        if not isinstance(left, fx.Node) or not isinstance(left.meta[VALUE], torch.Tensor):
            continue
        following = _following(node)
        for other in graph.nodes:
            if other in following or not _overlap(other.meta.get(VALUE), left.meta[VALUE]):
                continue
            if any(place[user] > place[node] and not _is_view(user, other) for user in other.users):
                raise Refused(
                    node.name,
                    f"expected the left side of += to be read no more, got another use of"
                    f" {left.name!r} after it, which sees the sum",
                    "Write a = a + b",
                )


def _following(node: fx.Node) -> set[fx.Node]:
    found, waiting = {node}, [node]
    while waiting:
        for user in waiting.pop().users:
            if user not in found:
                found.add(user)
                waiting.append(user)
    return found


def _is_view(user: fx.Node, of: fx.Node) -> bool:
    """True for a node that only names some of the memory, and so is checked by itself."""
    mine, its = user.meta.get(VALUE), of.meta[VALUE]
    return isinstance(mine, torch.Tensor) and _storage(mine) == _storage(its)


def _storage(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _overlap(one: Any, other: torch.Tensor) -> bool:
    """True if two tensors share an element in memory."""
    if not isinstance(one, torch.Tensor) or not one.numel() or not other.numel():
        return False
    if _storage(one) != _storage(other):
        return False
    if one.dtype != other.dtype:
        return True
    marks = torch.zeros(other.untyped_storage().nbytes() // other.element_size(), dtype=torch.bool)
    marks.as_strided(other.shape, other.stride(), other.storage_offset()).fill_(True)
    return bool(marks.as_strided(one.shape, one.stride(), one.storage_offset()).any())

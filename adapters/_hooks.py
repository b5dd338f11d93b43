"""Forward hooks may look, not touch: the graph is made of weights and neurons without them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules import module as _everywhere
from torch.utils._pytree import tree_flatten, tree_map

from grasp_plugin.adapters._fx import absent_arguments
from grasp_plugin.adapters._private_copy import private_copy
from grasp_plugin.adapters._signals import VALUE
from grasp_plugin.errors import GraspError, Invalid, Refused

SCALES = (1.0, 1e3)
"""Of the random values that hooks are tried on, for hooks that clip."""


def check_hooks(model: nn.Module, inputs: dict[str, Any], graph: fx.Graph, twin: nn.Module) -> None:
    """Refuse hooks that change a value.

    Each hooked module that the trace kept whole, and the model, runs on random values. What a hook
    does to parameters (weight_norm, prune) is no such change: they are read after it.

    Raises:
        Invalid: a hook that cannot run.
        Refused: a hook that changes inputs, outputs or the state of a neuron; any global hook.
    """
    if _everywhere._global_forward_hooks or _everywhere._global_forward_pre_hooks:
        raise Refused(
            "torch.nn.Module",
            "expected no global forward hooks, got some, which run on every module of the process",
            "Remove them for the conversion",
        )
    if _hooked([model]):
        given = inputs | absent_arguments(model, inputs)
        _check(type(model).__name__, model, False, *_by_position(model, given))
    seen: set[str] = set()
    for node in graph.nodes:
        path = str(node.target)
        if node.op != "call_module" or path in seen:
            continue
        seen.add(path)
        leaf = twin.get_submodule(path)
        if _hooked(list(leaf.modules())):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta[VALUE])
            _check(path, leaf, True, tuple(args), dict(kwargs))


def _hooked(modules: list[nn.Module]) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def _by_position(model: nn.Module, given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as a caller passes them, so that hooks find them where they expect them."""
    names = list(inspect.signature(model.forward).parameters)
    leading = list(takewhile(given.__contains__, names))
    return tuple(given[n] for n in leading), {n: x for n, x in given.items() if n not in leading}


@torch.no_grad()
def _check(
    name: str, module: nn.Module, inside: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    watched = private_copy(module)
    for part in watched.modules() if inside else [watched]:
        for hooks, flags, before in (
            (part._forward_pre_hooks, part._forward_pre_hooks_with_kwargs, True),
            (part._forward_hooks, part._forward_hooks_with_kwargs, False),
        ):
            for key, hook in hooks.items():
                hooks[key] = _watch(name, hook, before, key in flags)
    for scale in SCALES:
        values = tree_map(lambda x, s=scale: _random(x, s), (args, kwargs))
        try:
            watched(*values[0], **values[1])
        except GraspError:
            raise
        except Exception as error:
            raise Invalid(
                name,
                f"expected hooks that run on values of the sample's shape, got"
                f" {type(error).__name__}: {error}",
                "Remove the hook",
            ) from error


def _watch(name: str, hook: Callable[..., Any], before: bool, keywords: bool) -> Callable[..., Any]:
    """The hook, refused once it changes a value; `before` for a pre-hook."""

    def watched(module: nn.Module, *given: Any) -> Any:
        old = tree_map(_copy, (given, _states(module)))
        result = hook(module, *given)
        kept = _equal(old, (given, _states(module)))
        if result is not None:
            replaced = old[0] if before and keywords else old[0][0] if before else old[0][-1]
            bare = before and not keywords and not isinstance(result, tuple)
            kept = kept and _equal((result,) if bare else result, replaced)
        if not kept:
            raise Refused(
                name,
                "expected hooks that change no value, got a forward hook or pre-hook that does",
                "Remove the hook, or write what it does into the forward pass",
            )
        return result

    return watched


def _states(module: nn.Module) -> dict[str, Any]:
    """snnTorch keeps a neuron's state in buffers that are not saved."""
    return {name: module._buffers.get(name) for name in sorted(module._non_persistent_buffers_set)}


def _equal(left: Any, right: Any) -> bool:
    a, b = tree_flatten(left), tree_flatten(right)
    return a[1] == b[1] and all(_same(x, y) for x, y in zip(a[0], b[0], strict=True))


def _same(x: Any, y: Any) -> bool:
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        return x is y or (type(x) is type(y) and bool(x == y))
    return x.shape == y.shape and x.dtype == y.dtype and torch.allclose(x, y, 0, 0, equal_nan=True)


def _random(value: Any, scale: float) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(value.shape, generator=generator)).to(value)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value

"""fx tracing with values: every proxy knows the tensor that it stands for.

The forward pass runs once on the caller's sample while fx records it, so shapes, the length of
`range(x.shape[0])` and the output size of every layer are concrete. The caller's model is copied
first and stays as it was.
"""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from nirtorch.torch_tracer import NIRTorchTracer
from torch import fx, nn
from torch.fx.node import map_aggregate

from grasp_plugin.errors import GraspError, Invalid, Refused

VALUE = "value"


class ValueProxy(fx.Proxy):
    """A proxy whose shape, length, dtype and iteration are those of its value."""

    @property
    def _value(self) -> Any:
        return self.node.meta[VALUE]

    @property
    def shape(self) -> Any:
        return self._value.shape

    @property
    def ndim(self) -> Any:
        return self._value.ndim

    @property
    def dtype(self) -> Any:
        return self._value.dtype

    @property
    def device(self) -> Any:
        return self._value.device

    @property
    def is_sparse(self) -> Any:
        return self._value.is_sparse

    def size(self, *args: int) -> Any:
        return self._value.size(*args)

    def dim(self) -> Any:
        return self._value.dim()

    def item_at(self, index: Any) -> Any:
        """`self[index]`; fx installs its operators at run time, where mypy cannot see them."""
        return operator.getitem(cast(Any, self), index)

    def __len__(self) -> int:
        return len(self._value)

    def __iter__(self) -> Iterator[Any]:
        return iter([self.item_at(index) for index in range(len(self._value))])

    def __bool__(self) -> bool:
        if isinstance(self._value, torch.Tensor):
            raise Refused(
                self.node.name,
                "expected a forward pass with the same operations for every input, got a branch"
                " on the value of a tensor",
                "Remove the data-dependent branch from the forward pass",
            )
        return bool(self._value)


class ValueTracer(NIRTorchTracer):  # type: ignore[misc]
    """Traces one model on one sample; `steps` repeats a one-step model with its state handed on.

    Args:
        is_leaf: the modules to keep whole besides those of `torch.nn`.
        inputs: the forward arguments that carry signals, by name, with their tensors.
        steps: 0 traces the forward pass once; n > 0 calls it n times, the call at step t getting
            `input[t]`, and (where forward has an argument `state`) the state of the call before.
    """

    def __init__(
        self,
        is_leaf: Callable[[nn.Module], bool],
        inputs: dict[str, torch.Tensor],
        steps: int = 0,
    ) -> None:
        super().__init__(())
        self._is_leaf = is_leaf
        self._inputs = inputs
        self._steps = steps
        self._evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._is_leaf(m)

    def proxy(self, node: fx.Node) -> ValueProxy:
        return ValueProxy(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter(obj)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val

    def create_node(self, kind: str, target: Any, *rest: Any, **more: Any) -> fx.Node:
        node: fx.Node = super().create_node(kind, target, *rest, **more)
        if kind == "get_attr":
            node.meta[VALUE] = _attribute(self.root, target)
        return node

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self._evaluating:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *rest: Any,
        **more: Any,
    ) -> fx.Proxy:
        proxy: fx.Proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        proxy.node.meta[VALUE] = self._evaluate(kind, target, args, kwargs)
        return proxy

    def _evaluate(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        args = map_aggregate(args, _value_of)
        kwargs = map_aggregate(kwargs, _value_of)
        outer, self._evaluating = self._evaluating, True
        try:
            if kind == "placeholder":
                return self._inputs[target]
            if kind == "call_module":
                return self.root.get_submodule(target)(*args, **kwargs)
            if kind == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            if kind == "call_function":
                return target(*args, **kwargs)
            return _attribute(self.root, target)
        finally:
            self._evaluating = outer

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        root = self.root
        signals: dict[str, Any] = {
            name: self.create_proxy("placeholder", name, (), {}) for name in self._inputs
        }
        parameters = inspect.signature(root.forward).parameters
        stateful = "state" in parameters
        absent = {
            name: None
            for name, parameter in parameters.items()
            if name not in signals
            and parameter.default is inspect.Parameter.empty
            and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        }

        def output(result: Any) -> Any:
            if stateful and isinstance(result, ValueProxy) and isinstance(result._value, tuple):
                return result.item_at(0)
            return result[0] if stateful and isinstance(result, tuple) else result

        def once() -> Any:
            return output(root_fn(root, **signals, **absent))

        def unrolled() -> Any:
            results: list[Any] = []
            state: dict[str, Any] = {}
            for step in range(self._steps):
                now = {name: x[step] for name, x in signals.items()}
                result = root_fn(root, **now, **{**absent, **state})
                results.append(output(result))
                if stateful:
                    state = {"state": result[1]}
            return results

        return (unrolled if self._steps else once), []


def _value_of(arg: Any) -> Any:
    return arg.node.meta[VALUE] if isinstance(arg, fx.Proxy) else arg


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def trace(
    model: nn.Module,
    sample: dict[str, torch.Tensor],
    is_leaf: Callable[[nn.Module], bool],
    steps: int = 0,
) -> tuple[fx.Graph, nn.Module]:
    """Trace a copy of `model`; returns the fx graph (values in `meta`) and the copy.

    Raises:
        Invalid: the forward pass cannot run on `sample`, or does what fx cannot record.
        Refused: it branches on data.
    """
    twin = private_copy(model)
    inputs = {
        name: torch.stack([x.detach()] * steps) if steps else x.detach().clone()
        for name, x in sample.items()
    }
    tracer = ValueTracer(is_leaf, inputs, steps)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tracer.trace(twin)
    except GraspError:
        raise
    except Exception as error:
        raise Invalid(
            type(model).__name__,
            f"expected a forward pass that runs on the sample under torch.fx, got"
            f" {type(error).__name__}: {error}",
            "Check the sample's shape (batch first, or time and batch first), give every forward"
            " argument without default a tensor, and keep Python side effects out of forward",
        ) from error
    return graph, twin


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

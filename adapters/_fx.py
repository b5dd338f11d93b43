"""fx tracing with values: every proxy knows the tensor that it stands for.

The forward pass runs once on the caller's sample while fx records it, so shapes, the length of
`range(x.shape[0])` and the output size of every layer are concrete. The caller's model is copied
first and stays as it was.
"""

from __future__ import annotations

import inspect
import operator
import warnings
from collections.abc import Callable, Container, Iterator
from typing import Any, cast

import torch
from nirtorch.torch_tracer import NIRTorchTracer
from torch import fx, nn
from torch.fx.node import map_aggregate

from grasp_plugin.adapters._private_copy import private_copy
from grasp_plugin.adapters._side_effects import StateWatch, refuse_changed, refuse_stale
from grasp_plugin.adapters._signals import VALUE, Framework
from grasp_plugin.errors import GraspError, Invalid, Refused


class ValueProxy(fx.Proxy):
    """A proxy whose shape, length, dtype and iteration are those of its value."""

    def __init__(self, node: fx.Node, tracer: Any) -> None:
        if not isinstance(node, fx.Node):  # type(state)(...) in a forward pass
            raise Refused(
                "forward",
                "expected a class by its name, got type(x)(...) of a traced value",
                "Name the class that is to be made",
            )
        super().__init__(node, tracer)

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

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise Refused(
                self.node.name,
                f"expected a forward pass that assigns nothing to a tensor, got .{name} = ...",
                "Compute a new tensor instead",
            )
        super().__setattr__(name, value)

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
        framework: says which modules to keep whole, and which of them are neurons.
        inputs: the forward arguments that carry signals, by name, with their tensors.
        steps: 0 traces the forward pass once; n > 0 calls it n times, the call at step t getting
            `input[t]`, and (where forward has an argument `state`) the state of the call before.
    """

    def __init__(
        self,
        framework: Framework,
        inputs: dict[str, torch.Tensor],
        steps: int = 0,
    ) -> None:
        super().__init__(())
        self._framework = framework
        self._watch = StateWatch()
        self._inputs = inputs
        self._steps = steps
        self._evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._framework.is_leaf(m)

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
        if isinstance(target, type) and issubclass(target, tuple):  # a NamedTuple of values
            node.meta[VALUE] = fx.node.map_arg(node.args, lambda arg: arg.meta[VALUE])
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
        said = args, kwargs
        if kind == "call_function" and not args:
            said = _first_by_position(kwargs)
        proxy: fx.Proxy = super().create_proxy(kind, target, *said, *rest, **more)
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
                return self._call(target, args, kwargs)
            if kind == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            if kind == "call_function":
                return target(*args, **kwargs)
            return _attribute(self.root, target)
        finally:
            self._evaluating = outer

    def _call(self, path: str, args: Any, kwargs: Any) -> Any:
        module = self.root.get_submodule(path)
        if not (self._framework.keeps_state and self._framework.is_neuron(module)):
            return module(*args, **kwargs)
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        self._watch.before(path, module, {name for name, x in given.items() if x is not None})
        output = module(*args, **kwargs)
        self._watch.after(path, module)
        return output

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        root = self.root
        signals: dict[str, Any] = {
            name: self.create_proxy("placeholder", name, (), {}) for name in self._inputs
        }
        stateful = "state" in inspect.signature(root.forward).parameters
        absent = absent_arguments(root, signals)

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


def absent_arguments(model: nn.Module, given: Container[str]) -> dict[str, None]:
    """None for each forward argument without default that no tensor is given for."""
    return {
        name: None
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if name not in given
        and parameter.default is inspect.Parameter.empty
        and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    }


def _first_by_position(kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """torch.flatten(input=x, start_dim=1) as torch.flatten(x, start_dim=1)."""
    first = next((key for key in ("input", "tensors") if key in kwargs), None)
    if first is None:
        return (), kwargs
    return (kwargs[first],), {key: value for key, value in kwargs.items() if key != first}


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
    framework: Framework,
    steps: int = 0,
) -> tuple[fx.Graph, nn.Module]:
    """Trace a copy of `model`; returns the fx graph (values in `meta`) and the copy.

    Floating inputs are replaced by random ones, so that what the forward pass adds to a state or a
    weight shows even if the caller's sample is zero.

    Raises:
        Invalid: the forward pass cannot run on `sample`, or does what fx cannot record.
        Refused: it branches on data, or changes states or weights.
    """
    twin = private_copy(model)
    inputs = {name: _lively(x, steps) for name, x in sample.items()}
    tracer = ValueTracer(framework, inputs, steps)
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
    refuse_stale(graph)
    refuse_changed(model, twin, framework)
    return graph, twin


def _lively(x: torch.Tensor, steps: int) -> torch.Tensor:
    shape = (steps, *x.shape) if steps else x.shape
    if not x.is_floating_point():
        return x.detach().expand(shape).clone()
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator).to(x)

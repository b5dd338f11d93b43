"""The meaning of each operation in an fx graph: signals, states, constants, or refused by name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from grasp_plugin.adapters._graph_facts import (
    ancestor_calls,
    bound_arguments,
    in_training,
    renamed,
    swaps_first_axes,
)
from grasp_plugin.adapters._recorder import Recorder
from grasp_plugin.adapters._signals import (
    BATCH,
    TIME_FIRST,
    TIME_SECOND,
    VALUE,
    Bundle,
    Framework,
    NeedsTime,
    Signal,
    Stack,
    State,
    input_source,
    say_sources,
)
from grasp_plugin.adapters._states import operation, rejoined, state_part
from grasp_plugin.errors import Refused

_ADD = {operator.add, operator.iadd, torch.add, "add"}
_SWAP = {torch.transpose, torch.permute, torch.swapaxes, "transpose", "permute", "swapaxes"}
_RESHAPE = {torch.flatten, torch.reshape, "flatten", "view", "reshape"}
_SAME = {"contiguous", "clone", "detach", "detach_", "to", "float", "double", "cpu", "cuda",
         torch.clone, torch.detach}  # fmt: skip
_ZEROS = {torch.zeros_like, torch.empty_like, "new_zeros"}
_READS = {"item()", "tolist()", "numpy()", "equal()", "allclose()", "is_nonzero()"}
_DROPOUT = {functional.dropout, functional.dropout1d, functional.dropout2d}
_BYPASS = (nn.Identity, nn.modules.dropout._DropoutNd)


def interpret(
    graph: fx.Graph, twin: nn.Module, framework: Framework, leads: dict[str, tuple[str, ...]]
) -> Recorder:
    """Record every layer call of `graph`; inputs that need a time axis are found by retrying."""
    leads = {input_source(name): lead for name, lead in leads.items()}
    while True:
        try:
            return _Interpreter(graph, twin, framework, leads).run()
        except NeedsTime as found:
            again = [name for name in found.inputs if name in leads]
            if again or not found.inputs:
                raise Refused(
                    again[0] if again else "model",
                    "expected layers that act on whole samples, got an index on the batch axis or"
                    " on a second time axis",
                    "Index the time axis only: x[t] for (time, batch, ...)",
                ) from None
            leads.update(dict.fromkeys(found.inputs, found.lead))


class _Interpreter:
    def __init__(
        self,
        graph: fx.Graph,
        twin: nn.Module,
        framework: Framework,
        leads: dict[str, tuple[str, ...]],
    ) -> None:
        self.graph = graph
        self.twin = twin
        self.framework = framework
        self.leads = leads
        self.recorder = Recorder(framework)
        self.means: dict[fx.Node, Any] = {}
        self.renamed = renamed(twin)

    def run(self) -> Recorder:
        actions: dict[str, Callable[[fx.Node], Any]] = {
            "placeholder": self._placeholder,
            "get_attr": lambda node: node.meta[VALUE],
            "call_module": self._module,
            "call_function": self._operation,
            "call_method": self._operation,
            "output": self._output,
        }
        for node in self.graph.nodes:
            self.means[node] = actions[node.op](node)
        self.recorder.returned = {self._path(node) for node in ancestor_calls(node)}
        return self.recorder

    def _path(self, node: fx.Node) -> str:
        return self.renamed.get(str(node.target), str(node.target))

    def _meaning(self, arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return self.means[arg]
        if isinstance(arg, dict):
            return {key: self._meaning(value) for key, value in arg.items()}
        if isinstance(arg, (list, tuple)):
            return [self._meaning(item) for item in arg]
        return arg

    def _placeholder(self, node: fx.Node) -> Signal:
        name = input_source(str(node.target))
        lead = self.leads.get(name, BATCH)
        shape = tuple(node.meta[VALUE].shape)
        self.recorder.add_input(name, shape, lead)
        return Signal(frozenset({(name, None)}), lead)

    def _module(self, node: fx.Node) -> Any:
        module = self.twin.get_submodule(str(node.target))
        path = self._path(node)
        args = [self._meaning(arg) for arg in node.args]
        kwargs = {key: self._meaning(value) for key, value in node.kwargs.items()}
        if self.framework.is_neuron(module):
            return self._neuron(node, path, module, args, kwargs)
        if len(args) != 1 or kwargs:
            raise self._refused(node, f"{type(module).__name__} with one input", "several")
        if isinstance(module, _BYPASS):
            return args[0]
        if not isinstance(node.meta[VALUE], torch.Tensor):
            raise self._refused(node, "layers with one output", f"a {type(module).__name__}")
        return self._layer(node, path, module, args[0])

    def _layer(self, node: fx.Node, path: str, module: nn.Module, value: Any) -> Any:
        signal = self._signal(node, value, allow_zero=True)
        has_parameters = next(module.parameters(), next(module.buffers(), None)) is not None
        if not has_parameters and not signal.sources:
            return node.meta[VALUE]
        source = node.args[0]
        shape = source.meta[VALUE].shape if isinstance(source, fx.Node) else node.meta[VALUE].shape
        shapes = tuple(shape), tuple(node.meta[VALUE].shape)
        return self.recorder.call(path, module, signal, shapes, shared=not has_parameters)

    def _neuron(
        self, node: fx.Node, path: str, module: nn.Module, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        bound = bound_arguments(module, args, kwargs)
        signal = self._signal(node, bound[0][1], allow_zero=True)
        timed = self.framework.is_timed(module)
        if timed and signal.lead == BATCH:
            raise NeedsTime(self.recorder.roots(signal.sources), TIME_FIRST)
        if signal.lead != (TIME_FIRST if timed else BATCH):
            raise self._refused(
                node,
                f"{type(module).__name__} on one step" + (", time axis first" if timed else ""),
                f"the axes {signal.lead}",
            )
        output = node.meta[VALUE]
        spikes = output[0] if isinstance(output, tuple) else output
        source = node.args[0]
        shape = source.meta[VALUE].shape if isinstance(source, fx.Node) else spikes.shape
        shapes = tuple(shape), tuple(spikes.shape)
        result = self.recorder.call(path, module, signal, shapes, shared=False)
        call = len(self.recorder.layers[path].calls) - 1
        for state_name, state in bound[1:] or [("state", None)]:
            index = self.framework.state_output(module, state_name)
            self.recorder.check_state(path, call, index, rejoined(state))
        return Bundle(path, call, result) if isinstance(output, tuple) else result

    def _operation(self, node: fx.Node) -> Any:
        args = [self._meaning(arg) for arg in node.args]
        kwargs = {key: self._meaning(value) for key, value in node.kwargs.items()}
        target = node.target
        if not any(_carries(value) for value in (*args, *kwargs.values())):
            return self._constant(node)
        if not args:
            raise self._refused(node, "the tensor as first argument", operation(node))
        if isinstance(target, type) and issubclass(target, tuple):
            return args
        if target in _SAME:
            return self._same(node, args[0])
        if target in _DROPOUT and not in_training(node):
            return args[0]
        if target in _ZEROS:
            return torch.zeros_like(node.meta[VALUE])
        if any(isinstance(value, State) for value in (*args, *kwargs.values())):
            return state_part(node, args, kwargs)
        if target is operator.getitem:
            return self._getitem(node, args[0], args[1])
        return self._on_signal(node, args, kwargs)

    def _constant(self, node: fx.Node) -> Any:
        """The value, unless it was written over a tensor that stands for zero elsewhere."""
        value, target = node.meta[VALUE], str(node.target)
        in_place = node.op == "call_method" and target.endswith("_") and target[-2] != "_"
        if in_place and isinstance(value, torch.Tensor) and bool(value.any()):
            raise self._refused(node, "constants that are not changed in place", operation(node))
        return value

    def _on_signal(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        target = node.target
        if target in _ADD and len(args) == 2 and not kwargs:
            return self._add(node, args[0], args[1])
        if target is torch.stack or target == "stack":
            axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            return Stack(tuple(args[0]), axis)
        if target in (torch.sum, "sum") and isinstance(args[0], Stack):
            axis = args[1] if len(args) > 1 else kwargs.get("dim")
            if axis == args[0].axis:
                return self._sum(node, args[0].items)
        if target in _RESHAPE:
            return self._reshape(node, args[0])
        if target in _SWAP and swaps_first_axes(node):
            return self._swap(node, args[0])
        if target is functional.avg_pool2d:
            return self._layer(node, "avg_pool2d", nn.AvgPool2d(*args[1:], **kwargs), args[0])
        fact = isinstance(node.meta[VALUE], (bool, int, str, torch.Size, torch.dtype, torch.device))
        if fact and operation(node) not in _READS:
            return node.meta[VALUE]
        raise self._refused(node, "layers, sums, flattening and time loops", operation(node))

    def _signal(self, node: fx.Node, value: Any, allow_zero: bool = False) -> Signal:
        if isinstance(value, Bundle):
            raise self._refused(
                node,
                f"the spikes of {value.leaf!r}",
                "its output tuple (spikes and states together)",
            )
        if isinstance(value, State):
            raise self._refused(
                node, "spikes or currents", f"the hidden state of {value.leaf!r} as a signal"
            )
        if isinstance(value, Stack):
            return self.recorder.series(value.items, value.axis)
        if isinstance(value, Signal):
            return value
        if allow_zero and isinstance(value, torch.Tensor) and not value.any():
            return Signal(frozenset(), BATCH)
        raise self._refused(node, "a signal that comes from the input", "a constant")

    def _add(self, node: fx.Node, left: Any, right: Any) -> Any:
        for one, other in ((left, right), (right, left)):
            if isinstance(one, (int, float)) and one == 0:
                return other
        return self._sum(node, (left, right))

    def _sum(self, node: fx.Node, items: tuple[Any, ...]) -> Signal:
        signals = [self._signal(node, item, allow_zero=True) for item in items]
        signals = [signal for signal in signals if signal.sources]
        sources = [source for signal in signals for source in signal.sources]
        if len({signal.lead for signal in signals}) != 1:
            raise self._refused(
                node, "summands with the same axes", "one with and one without time"
            )
        if len(set(sources)) != len(sources):
            raise self._refused(
                node,
                "every source once in a sum (NIR edges have no multiplicity)",
                " + ".join(say_sources([source]) for source in sources),
            )
        for arg in node.args:
            if isinstance(arg, fx.Node) and not isinstance(self.means[arg], Stack):
                shape = getattr(node.args[0], "meta", node.meta)[VALUE].shape
                if arg.meta[VALUE].shape != shape:
                    raise self._refused(
                        node, f"summands of one shape {tuple(shape)}", "broadcasting"
                    )
        return Signal(frozenset(sources), signals[0].lead)

    def _getitem(self, node: fx.Node, value: Any, index: Any) -> Any:
        if isinstance(value, (list, tuple, dict)):
            return value[index]
        if isinstance(value, Bundle):
            if isinstance(index, int):
                index %= len(node.args[0].meta[VALUE])  # type: ignore[union-attr]
                return value.signal if index == 0 else State(value.leaf, value.call, index)
            raise self._refused(node, "one output of a neuron", f"index {index}")
        signal = self._signal(node, value)
        batch_first = isinstance(index, (list, tuple)) and list(index[:1]) == [slice(None)]
        step = index[1] if batch_first and len(index) == 2 else index
        lead = TIME_SECOND if batch_first else TIME_FIRST
        if not isinstance(step, int):
            raise self._refused(node, "x[t] with one whole number t", f"index {index}")
        if signal.lead == BATCH:
            raise NeedsTime(self.recorder.roots(signal.sources), lead)
        if signal.lead != lead:
            raise self._refused(node, f"an index on the time axis of {signal.lead}", str(index))
        steps = node.args[0].meta[VALUE].shape[lead.index("time")]  # type: ignore[union-attr]
        return self.recorder.at_step(signal, step % steps)

    def _reshape(self, node: fx.Node, value: Any) -> Any:
        signal = self._signal(node, value)
        lead = len(signal.lead)
        before = tuple(node.args[0].meta[VALUE].shape)  # type: ignore[union-attr]
        after = tuple(node.meta[VALUE].shape)
        if before == after:
            return signal
        if node.target in (torch.flatten, "flatten"):
            given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False))
            dims: dict[str, Any] = {"start_dim": 0, "end_dim": -1, **given, **node.kwargs}
            return self._layer(node, "flatten", nn.Flatten(**dims), signal)
        if after[:lead] != before[:lead] or len(after) != lead + 1:
            raise self._refused(
                node, "a reshape that flattens all features of a sample", f"{before} to {after}"
            )
        return self._layer(node, "flatten", nn.Flatten(lead), signal)

    def _swap(self, node: fx.Node, value: Any) -> Signal:
        """Batch first to time first, or back."""
        signal = self._signal(node, value)
        if signal.lead == BATCH:
            raise NeedsTime(self.recorder.roots(signal.sources), TIME_SECOND)
        return Signal(signal.sources, TIME_FIRST if signal.lead == TIME_SECOND else TIME_SECOND)

    def _same(self, node: fx.Node, value: Any) -> Any:
        before, after = node.args[0].meta[VALUE], node.meta[VALUE]  # type: ignore[union-attr]
        if torch.promote_types(before.dtype, after.dtype) != after.dtype:
            raise self._refused(
                node, "a cast that keeps every value", f"{before.dtype} to {after.dtype}"
            )
        return value

    def _output(self, node: fx.Node) -> None:
        self.recorder.set_outputs(self._meaning(node.args[0]))

    def _refused(self, node: fx.Node, expected: str, got: str) -> Refused:
        target = str(node.target) if node.op == "call_module" else node.name
        return Refused(
            target,
            f"expected {expected}, got {got}",
            "Rewrite the forward pass with modules that NIR can express, or move this operation"
            " out of the model",
        )


def _carries(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_carries(item) for item in value)
    return isinstance(value, (Signal, State, Bundle, Stack))

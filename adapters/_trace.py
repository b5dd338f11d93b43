"""From a model to layers and edges: what the values of a forward pass mean for NIR.

A tensor that carries a signal is a set of sources whose sum it is; a source is a node and the
step of the time loop that it was computed in. The calls of one module over the steps of a loop
are one node, and all steps must agree. A source of the step before is a recurrence: its edge is
*delayed*, so the target sees what the source sent one step ago, and nothing at the first step.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from grasp_plugin.adapters._agree import agree
from grasp_plugin.adapters._fx import trace
from grasp_plugin.adapters._hooks import check_hooks
from grasp_plugin.adapters._interpret import interpret
from grasp_plugin.adapters._model_checks import check_model
from grasp_plugin.adapters._signals import TIME_FIRST, Framework, Traced
from grasp_plugin.errors import Invalid

UNROLLED = 3
"""Steps to call a one-step model for: a recurrence over one step shows, one over two is refused."""


class _Single(nn.Module):
    """A lone layer, given a name."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, module)

    def forward(self, input: torch.Tensor) -> Any:
        return self.get_submodule(self.name)(input)


class _SingleWithState(_Single):
    def forward(self, input: torch.Tensor, state: Any = None) -> Any:
        return self.get_submodule(self.name)(input, state)


def trace_model(model: nn.Module, sample: Any, framework: Framework) -> Traced:
    """The layers and edges of `model`, from one run of a private copy on `sample`.

    A model with its own time loop (it indexes the time axis, uses layers that do, or calls a
    neuron several times) is traced as it is; any other is called for three steps, its state handed
    on, so that recurrences show (and those over more than one step are found out).

    Raises:
        Invalid: the sample does not fit the model.
        Refused: an operation, or a wiring over time, that NIR cannot say.
    """
    if not isinstance(model, nn.Module):
        raise Invalid(
            "model",
            f"expected a torch.nn.Module, got {type(model).__name__}",
            "Pass the module itself",
        )
    check_model(model, framework)
    if framework.is_leaf(model):
        stateful = "state" in inspect.signature(model.forward).parameters
        wrapper = _SingleWithState if stateful else _Single
        model = wrapper(type(model).__name__.lower(), model)
    inputs = _bind(model, sample)
    graph, twin = trace(model, inputs, framework)
    check_hooks(model, inputs, graph, twin)
    recorder = interpret(graph, twin, framework, {})
    if not recorder.has_time_loop:
        unrolled = trace(model, inputs, framework, steps=UNROLLED)
        recorder = interpret(*unrolled, framework, dict.fromkeys(inputs, TIME_FIRST))
    return agree(recorder)


def _bind(model: nn.Module, sample: Any) -> dict[str, torch.Tensor]:
    """The sample's tensors by forward argument; arguments without tensor keep their default.

    NumPy arrays are taken in the dtype of the model.
    """
    parameters = list(inspect.signature(model.forward).parameters.values())
    names = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    if isinstance(sample, (torch.Tensor, np.ndarray)):
        given = dict(zip(names[:1], [sample], strict=True))
    elif isinstance(sample, Mapping):
        given = dict(sample)
    elif isinstance(sample, Sequence) and len(sample) <= len(names):
        given = dict(zip(names, sample, strict=False))
    else:
        given = {}
    tensors: dict[str, Any] = {n: _tensor(x, model) for n, x in given.items() if x is not None}
    bad = [n for n, x in tensors.items() if n not in names or not isinstance(x, torch.Tensor)]
    if bad or not tensors:
        raise Invalid(
            "sample",
            f"expected a tensor, or one tensor per forward argument of {names},"
            f" got {type(sample).__name__}" + (f" with {bad} unusable" if bad else ""),
            "Pass one time step's input, batch axis first",
        )
    if any(x.ndim == 0 for x in tensors.values()):
        raise Invalid("sample", "expected a batch axis, got a 0-d tensor", "Add a batch axis")
    if any(x.is_meta for x in tensors.values()):
        raise Invalid("sample", "expected values, got a meta tensor", "Pass torch.zeros(...)")
    return tensors


def _tensor(value: Any, model: nn.Module) -> Any:
    """A numeric array as a tensor in the model's dtype; anything else as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        return value
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    return torch.from_numpy(value.copy()).to(next(dtypes, torch.get_default_dtype()))

"""NIR -> Norse, exact or refused: one step of the graph with Norse's cells.

    LIF      v <- v + dt/tau (v_leak - v + r x)     -> LIFBoxCell, r worked into the weights before
    IF       v <- v + r x                           -> IAFCell, likewise
    CubaLIF  u <- (1 - dt/tau_syn) u + g x,  g = (dt/tau_syn) w_in r;
             v <- v + dt/tau_mem (v_leak - v + u)   -> LIFCell, g likewise
    LI, CubaLI                                      -> LIBoxCell, LICell

Resets: "value" everywhere; "subtract-immediate" for LIF alone (`reset_subtract` of LIFBoxCell).

References:
    Norse 1.1.0, the equations in the docstrings of `norse.torch.module`; no Norse code is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nir
import norse.torch as norse
import torch
from torch import nn

from grasp_plugin.adapters._from_nir import tensor
from grasp_plugin.adapters._step_graph import Choices, Neuron, StepGraph, build, full, ratio
from grasp_plugin.errors import Refused


def to_norse(
    graph: nir.NIRGraph,
    dt: float | None = None,
    reset: str | Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> StepGraph:
    """The graph as a module of Norse cells: `out, state = module(x, state=None)`.

    Args:
        graph: any NIR graph; it is not changed.
        dt: s a step; by default from the hints.
        reset: one of `hints.RESETS`, or a mapping of node name to one ("*" for the others); by
            default from the hints.
        dtype: of all parameters; by default torch's default dtype. Parameters are computed in
            float64 and rounded once. Cells hold theirs outside `parameters()`, so a later
            `module.to(dtype)` does not reach them.

    Raises:
        MissingChoice: dt, reset or the delay of a loop is said by neither caller nor hints.
        Refused: what Norse cannot do exactly: the other resets, dt > tau, a gain with no weights
            to take it, I, Threshold, Delay.

    Example:
        >>> import nir, numpy as np, torch
        >>> one = np.ones(2)
        >>> lif = nir.LIF(tau=1e-2 * one, r=one, v_leak=0 * one, v_threshold=0.1 * one)
        >>> net = to_norse(nir.NIRGraph.from_list(lif), dt=1e-3, reset="value")
        >>> net(torch.full((1, 2), 1.5))[0].detach()
        tensor([[1., 1.]])
    """
    return build(graph, dt, reset, dtype, _neuron)


def _neuron(
    name: str,
    node: Any,
    shape: tuple[int, ...],
    choices: Choices,
    dtype: torch.dtype,
) -> Neuron:
    def value(field: str) -> torch.Tensor:
        given = getattr(node, field)
        return tensor(full(0.0 if given is None else given, shape), dtype)

    if not isinstance(node, (nir.LIF, nir.IF, nir.CubaLIF, nir.LI, nir.CubaLI)):
        raise Refused(
            name,
            f"expected LIF, IF, CubaLIF, LI or CubaLI, got {type(node).__name__}",
            "Use grasp_plugin's own back ends",
        )
    spiking: dict[str, Any] = {}
    if isinstance(node, (nir.LIF, nir.IF, nir.CubaLIF)):
        spiking = {"v_th": value("v_threshold"), "v_reset": value("v_reset")}
        if _reset(name, node, choices) == "subtract-immediate":
            spiking["reset_method"] = norse.reset_subtract
    r = full(node.r, shape)
    if isinstance(node, nir.IF):
        return Neuron(norse.IAFCell(norse.IAFParameters(**spiking)), _run, r)
    dt = choices.dt_of(name, node)
    cuba = isinstance(node, (nir.CubaLIF, nir.CubaLI))
    leak = ratio(name, "tau_mem" if cuba else "tau", node, shape, choices)
    membrane = {"tau_mem_inv": tensor(leak / dt, dtype), "v_leak": value("v_leak")}
    if not cuba:
        box: nn.Module = (
            norse.LIFBoxCell(norse.LIFBoxParameters(**membrane, **spiking), dt=dt)
            if spiking
            else norse.LIBoxCell(norse.LIBoxParameters(**membrane), dt=dt)
        )
        return Neuron(box, _run, r)
    leak_syn = ratio(name, "tau_syn", node, shape, choices)
    membrane["tau_syn_inv"] = tensor(leak_syn / dt, dtype)
    cell: nn.Module = (
        norse.LIFCell(norse.LIFParameters(**membrane, **spiking), dt=dt)
        if spiking
        else norse.LICell(norse.LIParameters(**membrane), dt=dt)
    )
    return Neuron(cell, _run, leak_syn * full(node.w_in, shape) * r)


def _reset(name: str, node: nir.NIRNode, choices: Choices) -> str:
    reset = choices.reset_of(name, node)
    allowed = ("value", "subtract-immediate") if isinstance(node, nir.LIF) else ("value",)
    if reset not in allowed:
        raise Refused(
            name,
            f"expected a reset of {allowed} for {type(node).__name__} in Norse, got {reset!r}",
            "Use to_snntorch, or grasp_plugin's own back ends",
        )
    return reset


def _run(module: nn.Module, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
    output, following = module(x, state)
    return output, following

"""NIR -> snnTorch, exact or refused: one step of the graph with snnTorch's neurons.

    LIF, IF   m <- (1 - dt/tau) m + g x,  g = (dt/tau) r       -> Leaky(beta = 1 - dt/tau)
    CubaLIF   g = (dt/tau_syn) w_in (dt/tau_mem) r             -> Synaptic(alpha, beta)

snnTorch has no input gain: where g is not 1 it is worked into the weights before the neuron.

| reset              | LIF, IF                              | CubaLIF                          |
|--------------------|--------------------------------------|----------------------------------|
| value              | Leaky zero                           | Synaptic zero, reset_delay=False |
| subtract-delayed   | Leaky subtract                       | Synaptic subtract                |
| snntorch-nodelay   | Leaky subtract, reset_delay=False    | Synaptic the same                |
| refractory1        | RLeaky zero with V = 0 (no feedback) | Synaptic zero                    |
| none               | Leaky none                           | Synaptic none                    |
| subtract-immediate | refused                              | refused                          |

Recurrent weights are layers of the step graph, not of the neuron, so RLeaky comes back as Leaky
with a layer `<name>.w_rec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nir
import numpy as np
import snntorch as snn
import torch
from torch import nn

from grasp_plugin.adapters._from_nir import tensor
from grasp_plugin.adapters._step_graph import Choices, Neuron, StepGraph, build, full, ratio
from grasp_plugin.errors import Refused
from grasp_plugin.network.hints import read_hints

_OPTIONS: dict[str, tuple[str, bool]] = {
    "subtract-delayed": ("subtract", True),
    "snntorch-nodelay": ("subtract", False),
    "refractory1": ("zero", True),
    "value": ("zero", False),
    "none": ("none", True),
}


def to_snntorch(
    graph: nir.NIRGraph,
    dt: float | None = None,
    reset: str | Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> StepGraph:
    """The graph as a module of snnTorch neurons: `out, state = module(x, state=None)`.

    Args:
        graph: any NIR graph; it is not changed.
        dt: s a step; by default from the hints.
        reset: one of `hints.RESETS`, or a mapping of node name to one ("*" for the others); by
            default from the hints.
        dtype: of all parameters; by default torch's default dtype. Parameters are computed in
            float64 and rounded once.

    Raises:
        MissingChoice: dt, reset or the delay of a loop is said by neither caller nor hints.
        Refused: what snnTorch cannot do exactly: v_leak or v_reset other than 0, dt > tau, a gain
            with no weights to take it, LI, CubaLI, I, Threshold, Delay.

    Example:
        >>> import nir, numpy as np, torch
        >>> one = np.ones(2)
        >>> lif = nir.LIF(tau=1e-3 * one, r=10 * one, v_leak=0 * one, v_threshold=one)
        >>> net = to_snntorch(nir.NIRGraph.from_list(lif), dt=1e-4, reset="value")
        >>> net(torch.full((1, 2), 1.5))[0]
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
    if not isinstance(node, (nir.LIF, nir.IF, nir.CubaLIF)):
        raise Refused(
            name,
            f"expected LIF, IF or CubaLIF, got {type(node).__name__}, which snnTorch lacks",
            "Use to_norse, or grasp_plugin's own back ends",
        )
    reset = choices.reset_of(name, node)
    if reset not in _OPTIONS:
        raise Refused(
            name,
            f"expected a reset of {', '.join(_OPTIONS)}, got {reset!r}",
            "Use to_norse, or grasp_plugin's own back ends",
        )
    for field in ("v_leak", "v_reset"):
        value = getattr(node, field, None)
        if value is not None and np.any(np.asarray(value) != 0):
            raise Refused(
                name,
                f"expected {field}=0, which is all that snnTorch has, got"
                f" {float(np.ravel(value)[0]):g}",
                "Shift the voltages, or use to_norse",
            )
    threshold = full(node.v_threshold, shape)
    if np.any(threshold < 0) and reset != "none":
        raise Refused(
            name,
            f"expected v_threshold >= 0, got {threshold.min():g}: snnTorch resets a neuron at rest"
            " above its threshold",
            "Use grasp_plugin's own back ends",
        )
    return _make(name, node, shape, choices, dtype, reset)


def _make(
    name: str, node: Any, shape: tuple[int, ...], choices: Choices, dtype: torch.dtype, reset: str
) -> Neuron:
    mechanism, delay = _OPTIONS[reset]
    common: dict[str, Any] = {
        "threshold": tensor(full(node.v_threshold, shape), dtype),
        "reset_mechanism": mechanism,
        "reset_delay": delay,
    }
    r = full(node.r, shape)
    if isinstance(node, nir.IF):
        leak, gain = np.zeros(shape), r
    else:
        field = "tau" if isinstance(node, nir.LIF) else "tau_mem"
        leak = ratio(name, field, node, shape, choices)
        gain = leak * r
    beta = tensor(1.0 - leak, dtype)
    if isinstance(node, nir.CubaLIF):
        leak_syn = ratio(name, "tau_syn", node, shape, choices)
        gain = leak_syn * full(node.w_in, shape) * leak * r
        alpha = tensor(1.0 - leak_syn, dtype)
        return Neuron(snn.Synaptic(alpha=alpha, beta=beta, **common), _run, gain)
    if reset == "refractory1":
        return Neuron(
            snn.RLeaky(beta=beta, all_to_all=False, V=tensor(0.0, dtype), learn_recurrent=False,
                       **common), _run, gain)  # fmt: skip
    if reset in ("value", "none"):  # either delay gives the same spikes: keep the original's
        common["reset_delay"] = bool(read_hints(node).get("snntorch_reset_delay", True))
    return Neuron(snn.Leaky(beta=beta, **common), _run, gain)


def _run(module: nn.Module, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
    """One step from an explicit state; snnTorch emits float32 spikes whatever its input is."""
    if state is None:
        count = 1 if isinstance(module, snn.Leaky) else 2
        state = tuple(torch.zeros_like(x) for _ in range(count))
    spikes, *rest = module(x, *state)
    following = (spikes, *rest) if isinstance(module, snn.RLeaky) else tuple(rest)
    return spikes.to(x.dtype), following

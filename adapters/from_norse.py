"""Norse -> NIR, exact: Norse steps by forward Euler already, so only names and units change.

With x the input, z = H(v - v_th) strict, then v <- v_reset (or v - v_th) where z:

    LIFBoxCell     v <- v + dt/tau (x + v_leak - v)                      -> LIF(tau, r=1)
    LIFCell, LIF   i <- i + x;  v <- v + dt/tau_mem (v_leak - v + i);
                   i <- (1 - dt/tau_syn) i                               -> CubaLIF
    LIFRecurrent(Cell)   the same with x <- W_in x + W_rec z[t-1]        -> w_in, CubaLIF, w_rec
    LICell, LI / LIBoxCell   as LIFCell / LIFBoxCell, no spike, output v -> CubaLI / LI
    LILinearCell   LICell after W_in                                     -> w_in, CubaLI
    IAFCell, IAF   v <- v + x                                            -> IF(r=1)

The voltage of LIFCell sees the jump of i before its decay. With u = i + x that is
u[t] = (1 - dt/tau_syn) u[t-1] + x[t], NIR's Euler current with w_in = tau_syn/dt and r = 1.

Initial state (Norse and `network.discretise` agree): i = 0; v = v_leak, or v_reset for IAFCell.

References:
    Norse 1.1.0, the equations in the docstrings of `norse.torch.module.{lif,lif_box,...}`;
    checked spike for spike in tests/parity. No Norse code is used here (LGPL-3.0).
Departures:
    from norse.torch.to_nir: times in s for any dt; scalars broadcast; v_reset and the reset method
    kept; w_in = tau_syn/dt; LICell, LIFRecurrentCell and RecurrentSequential exported.
"""

from __future__ import annotations

import math
from typing import Any

import nir
import norse.torch as norse
import numpy as np
import torch
from norse.torch.functional.threshold import threshold
from norse.torch.module.snn import SNN, SNNRecurrent
from torch import nn

from grasp_plugin.adapters._assemble import Block, to_graph
from grasp_plugin.adapters._layers import OURS, Array, array, broadcast, typed
from grasp_plugin.adapters._signals import Framework, Layer
from grasp_plugin.errors import Refused
from grasp_plugin.network.hints import write_hints

RESET_OF = {norse.reset_value: "value", norse.reset_subtract: "subtract-immediate"}
_CONTAINERS = (norse.Lift, norse.SequentialState, norse.RecurrentSequential)
_RECURRENT = (norse.LIFRecurrentCell, norse.LIFRecurrent)
_CUBA = (norse.LIFCell, norse.LIF, *_RECURRENT)
_KNOWN = (
    *_CUBA, norse.LIFBoxCell, norse.LICell, norse.LI, norse.LILinearCell, norse.LIBoxCell,
    norse.IAFCell, norse.IAF,
)  # fmt: skip


def from_norse(model: nn.Module, sample: Any, dt: float = 1e-3) -> nir.NIRGraph:
    """The NIR graph of a Norse model.

    Args:
        model: the neurons above with the layers of `_layers`, sums, Lift, SequentialState,
            RecurrentSequential (one output module) or a forward(x, state=None) -> (out, state)
            of your own; it is not changed.
        sample: the input of one step, (batch, ...), for models of cells; (time, batch, ...) with
            two steps or more for modules with a time axis (LIF, LI, Lift, ...). A tensor or
            NumPy array; only its shape and type matter.
        dt: time step in s; every cell's own dt must equal it.

    Returns:
        A graph of nodes named by module path (`<name>.w_in`, `<name>.w_rec` for the weights of a
        recurrent cell) with hints (`network.hints`) on it and on every neuron.

    Raises:
        Invalid: the sample does not fit the model.
        Refused: what NIR cannot say: LSNN, AdEx, Izhikevich, refractory cells, unknown layers,
            operations on a hidden state, hooks that change values, ...

    Example:
        >>> import norse.torch, torch
        >>> net = norse.torch.SequentialState(torch.nn.Linear(3, 2), norse.torch.LIFCell())
        >>> sorted(from_norse(net, torch.zeros(1, 3)).nodes)
        ['0', '1', 'input', 'output']
    """
    return to_graph(model, sample, dt, FRAMEWORK, _neuron)


def _is_neuron(module: nn.Module) -> bool:
    ours = type(module).__module__.startswith("norse.")
    return (ours and type(module) not in _CONTAINERS) or isinstance(module, _KNOWN)


def _is_leaf(module: nn.Module) -> bool:
    origin = type(module).__module__
    library = origin.startswith("torch.nn") and not isinstance(module, nn.Sequential)
    return library or _is_neuron(module) or origin == OURS


FRAMEWORK = Framework(
    name="norse",
    known=_KNOWN,
    check=lambda name, module: _check(name, module),
    is_leaf=_is_leaf,
    is_neuron=_is_neuron,
    is_timed=lambda module: isinstance(module, (SNN, SNNRecurrent)),
    state_output=lambda module, argument: 1 if argument == "state" else -1,
    keeps_state=False,
)


def _neuron(layer: Layer, dt: float) -> Block:
    module: Any = layer.module
    shape = layer.output_shape
    if not isinstance(module, (norse.IAFCell, norse.IAF)) and not math.isclose(
        float(module.dt), dt, rel_tol=1e-9
    ):
        raise Refused(
            layer.name,
            f"expected the cell's dt to equal dt={dt:g} s, got {float(module.dt):g}",
            f"Pass dt={float(module.dt):g}, or construct the cell with dt={dt:g}",
        )
    node = typed(_dynamics(layer, dt), shape, shape)
    hints: dict[str, Any] = {"dt_s": dt, "source": "norse", "norse_module": type(module).__name__}
    if hasattr(node, "v_threshold"):
        hints |= {"reset": _reset_of(layer.name, module), "comparator": ">"}
    write_hints(node, **hints)
    block = Block({"": node})
    if isinstance(module, (*_RECURRENT, norse.LILinearCell)):
        block.nodes["w_in"] = _weights(layer, module.input_weights, layer.input_shape)
        block.edges.append(("w_in", ""))
        block.entry = "w_in"
    if isinstance(module, _RECURRENT):
        block.nodes["w_rec"] = _weights(layer, module.recurrent_weights, shape)
        block.edges += [("", "w_rec"), ("w_rec", "")]
        block.delayed = [("", "w_rec")]
    return block


def _dynamics(layer: Layer, dt: float) -> nir.NIRNode:
    module: Any = layer.module
    ones = np.ones(layer.output_shape)
    if isinstance(module, (norse.IAFCell, norse.IAF)):
        return nir.IF(r=ones, v_threshold=_value(layer, "v_th"), v_reset=_value(layer, "v_reset"))
    tau, v_leak = _tau(layer, "tau_mem_inv"), _value(layer, "v_leak")
    if isinstance(module, norse.LIBoxCell):
        return nir.LI(tau=tau, r=ones, v_leak=v_leak)
    if isinstance(module, norse.LIFBoxCell):
        return nir.LIF(
            tau=tau,
            r=ones,
            v_leak=v_leak,
            v_threshold=_value(layer, "v_th"),
            v_reset=_value(layer, "v_reset"),
        )
    tau_syn = _tau(layer, "tau_syn_inv")
    if isinstance(module, _CUBA):
        return nir.CubaLIF(
            tau_syn=tau_syn,
            tau_mem=tau,
            r=ones,
            v_leak=v_leak,
            v_threshold=_value(layer, "v_th"),
            v_reset=_value(layer, "v_reset"),
            w_in=tau_syn / dt,
        )
    return nir.CubaLI(tau_syn=tau_syn, tau_mem=tau, r=ones, v_leak=v_leak, w_in=tau_syn / dt)


def _value(layer: Layer, name: str) -> Array:
    module: Any = layer.module
    values = broadcast(layer.name, name, getattr(module.p, name), layer.output_shape)
    if not np.all(np.isfinite(values)):
        raise Refused(layer.name, f"expected a finite {name}, got NaN or inf", "Check its training")
    return values.copy()


def _tau(layer: Layer, name: str) -> Array:
    inverse = _value(layer, name)
    if np.any(inverse <= 0):
        raise Refused(
            layer.name,
            f"expected {name} > 0 (in 1/s), got {inverse.min():g}",
            "Use IAFCell for a neuron without leak",
        )
    return 1.0 / inverse


def _check(name: str, module: Any) -> None:
    if hasattr(module.p, "v_th"):
        _check_threshold(name, module)
        _reset_of(name, module)


def _check_threshold(name: str, module: Any) -> None:
    p = module.p
    probe = torch.tensor([-2.0, -1e-3, -1e-12, 0.0, 1e-12, 1e-3, 2.0], dtype=torch.float64)
    try:
        with torch.no_grad():
            spikes = threshold(probe, p.method, torch.as_tensor(p.alpha))
        strict = torch.equal(spikes.to(torch.float64), (probe > 0).to(torch.float64))
    except (ValueError, TypeError):
        strict = False
    if not strict:
        raise Refused(
            name,
            f"expected a threshold method that spikes for v > v_th and only then, got {p.method!r}",
            "Use method='super'",
        )


def _reset_of(name: str, module: Any) -> str:
    method = getattr(module.p, "reset_method", norse.reset_value)
    if method not in RESET_OF:
        raise Refused(
            name,
            f"expected reset_value or reset_subtract, got {getattr(method, '__name__', method)}",
            "Use norse.torch.reset_value or norse.torch.reset_subtract",
        )
    return RESET_OF[method]


def _weights(layer: Layer, weight: torch.Tensor, shape: tuple[int, ...]) -> nir.Linear:
    """The weights as stored: autapses=False cleared the diagonal when the cell was made."""
    if len(shape) != 1:
        raise Refused(
            layer.name, f"expected a vector per sample, got the shape {shape}", "Flatten it first"
        )
    return typed(nir.Linear(weight=array(weight)), shape, layer.output_shape)

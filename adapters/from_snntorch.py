"""snnTorch -> NIR, exact: forward Euler, parameters in float64, the reset rule kept as a hint.

With m the membrane, x the input, t = threshold, H(z) = 1 for z > 0 (strict):

    Leaky, RLeaky        m <- beta m + x                       -> LIF, or IF where beta = 1
    Synaptic, RSynaptic  i <- alpha i + x;  m <- beta m + i    -> CubaLIF
    Lapicque             m <- (1 - D/(RC)) m + (D/C) x         -> LIF
    s = H(m - t), then the reset

    NIR by forward Euler:  LIF      v <- (1 - dt/tau) v + (dt/tau) r x
                           CubaLIF  i <- (1 - dt/tau_syn) i + (dt/tau_syn) w_in x
                                    v <- (1 - dt/tau_mem) v + (dt/tau_mem) r i
    so  tau = dt/(1 - beta),  r = tau/dt,  tau_syn = dt/(1 - alpha),  w_in = tau_syn/dt

| reset_mechanism | reset_delay | Leaky              | RLeaky, Synaptic   | Lapicque, RSynaptic |
|-----------------|-------------|--------------------|--------------------|---------------------|
| subtract        | True        | subtract-delayed   | subtract-delayed   | subtract-delayed    |
| subtract        | False       | snntorch-nodelay   | snntorch-nodelay   | -                   |
| zero            | True        | value              | refractory1        | refractory1         |
| zero            | False       | value              | value              | -                   |
| none            | either      | none               | none               | none                |

(Lapicque has no reset_delay; RSynaptic with reset_delay=False cannot run in snnTorch 1.0.0.)

References:
    snnTorch 1.0.0, `snntorch/_neurons/{leaky,rleaky,synaptic,rsynaptic,lapicque}.py`
Departures:
    from snntorch.export_nir: any dt; float64; scalars broadcast to the layer; beta clamped to
    [0, 1] as in the forward pass; the reset rule recorded; no skip connection lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nir
import numpy as np
import snntorch as snn
import torch
from torch import nn

from grasp_plugin.adapters._assemble import Block, to_graph
from grasp_plugin.adapters._layers import OURS, Array, array, broadcast, layer_to_nir, typed
from grasp_plugin.adapters._signals import Framework, Layer
from grasp_plugin.errors import Refused
from grasp_plugin.network.hints import write_hints

NO_LEAK = 2.0**100
"""dt/tau of a neuron without leak is 1/NO_LEAK: 1 - 1/NO_LEAK is 1, and gains stay exact."""

_KNOWN = (snn.Leaky, snn.RLeaky, snn.Synaptic, snn.RSynaptic, snn.Lapicque)
_RULES = {
    ("subtract", True): "subtract-delayed",
    ("subtract", False): "snntorch-nodelay",
    ("zero", True): "refractory1",
    ("zero", False): "value",
    ("none", True): "none",
    ("none", False): "none",
}


def from_snntorch(model: nn.Module, sample: Any, dt: float = 1e-4) -> nir.NIRGraph:
    """The NIR graph of a snnTorch model.

    Args:
        model: Leaky, RLeaky, Synaptic, RSynaptic or Lapicque neurons with the layers of
            `_layers`, sums, and time loops or one step per call; it is not changed. Weights and
            decays are read as stored, learnable or not. A recurrence must be inside the model:
            spikes that the caller hands back as an argument are an input of the graph. A
            one-step forward must not call `utils.reset`.
        sample: the input of one step, (batch, ...); (time, batch, ...) with two steps or more if
            the model loops over time itself. A tuple, list or dict for several inputs. A tensor or
            NumPy array; only its shape and type matter.
        dt: time step in s. snnTorch has none: it fixes the unit of tau, not the spikes.

    Returns:
        A graph of nodes named by module path (`<name>.w_rec` for recurrent weights,
        `<name>.scale` for graded spikes) with hints (`network.hints`) on it and on every neuron.

    Raises:
        Invalid: the sample does not fit the model.
        Refused: what NIR cannot say: inhibition, state_quant, max pooling, unknown layers,
            operations on a hidden state, hooks that change values, ...

    Example:
        >>> import snntorch, torch
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 2), snntorch.Leaky(beta=0.9, init_hidden=True)
        ... )
        >>> graph = from_snntorch(net, torch.zeros(1, 3))
        >>> sorted(graph.nodes)
        ['0', '1', 'input', 'output']
    """
    with _registry_apart():
        return to_graph(model, sample, dt, FRAMEWORK, _neuron)


@contextmanager
def _registry_apart() -> Iterator[None]:
    """`snntorch.utils.reset` in a forward pass resets every live neuron: keep ours to ourselves."""
    live = snn.SpikingNeuron.instances
    snn.SpikingNeuron.instances = []
    try:
        yield
    finally:
        snn.SpikingNeuron.instances = live


def _is_neuron(module: nn.Module) -> bool:
    return type(module).__module__.startswith("snntorch.") or isinstance(module, snn.SpikingNeuron)


def _is_leaf(module: nn.Module) -> bool:
    library = type(module).__module__.startswith("torch.nn") and not isinstance(
        module, nn.Sequential
    )
    return library or _is_neuron(module) or type(module).__module__ == OURS


def _state_output(module: nn.Module, argument: str) -> int:
    """Outputs are (spk, mem) or (spk, syn, mem)."""
    synaptic = isinstance(module, (snn.Synaptic, snn.RSynaptic))
    return {"spk": 0, "syn": 1, "mem": 2 if synaptic else 1}.get(argument, -1)


FRAMEWORK = Framework(
    name="snntorch",
    known=_KNOWN,
    check=lambda name, module: _reset_options(name, module),
    is_leaf=_is_leaf,
    is_neuron=_is_neuron,
    is_timed=lambda module: False,
    state_output=_state_output,
    keeps_state=True,
)


def _neuron(layer: Layer, dt: float) -> Block:
    module: Any = layer.module
    kind = type(module).__name__
    mechanism, delay = _reset_options(layer.name, module)
    rule = _RULES[mechanism, delay]
    if kind == "Leaky" and mechanism == "zero":
        rule = "value"
    threshold = broadcast(layer.name, "threshold", module.threshold, layer.output_shape)
    _check_threshold(layer, threshold, rule, delay)
    node = _dynamics(layer, dt, threshold)
    write_hints(
        node,
        reset=rule,
        comparator=">",
        dt_s=dt,
        source="snntorch",
        snntorch_module=kind,
        snntorch_reset_mechanism=mechanism,
        snntorch_reset_delay=int(delay),
    )
    return _with_scale_and_recurrence(layer, typed(node, layer.output_shape, layer.output_shape))


def _refuse_options(name: str, module: Any) -> None:
    for option in ("inhibition", "state_quant"):
        if getattr(module, option):
            raise Refused(
                name, f"expected {option}=False, got {getattr(module, option)}", "Turn it off"
            )
    probe = torch.tensor([-2.0, -1e-3, -1e-12, 0.0, 1e-12, 1e-3, 2.0] * 4, dtype=torch.float64)
    with torch.no_grad():
        spikes = module.spike_grad(probe.clone())
    if not torch.equal(spikes.to(torch.float64), (probe > 0).to(torch.float64)):
        raise Refused(
            name,
            "expected a spike_grad that spikes for z > 0 and only then, got another function",
            "Use a surrogate with a Heaviside forward pass, such as snntorch.surrogate.atan()",
        )


def _reset_options(name: str, module: Any) -> tuple[str, bool]:
    """(reset_mechanism, reset_delay), once the module's three records of the former agree."""
    _refuse_options(name, module)
    functions = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
    used = functions.get(getattr(module.state_function, "__name__", ""), "another function")
    codes = {code: option for option, code in module.reset_dict.items()}
    records = (module.reset_mechanism, codes.get(int(module.reset_mechanism_val)), used)
    if len(set(records)) != 1:
        raise Refused(
            name,
            "expected one reset mechanism, got reset_mechanism, reset_mechanism_val and"
            f" state_function saying {records}: it was assigned, or loaded, after construction",
            "Construct the neuron with the reset_mechanism that it is to use",
        )
    delay = bool(getattr(module, "reset_delay", True))
    if isinstance(module, snn.RSynaptic) and not delay:
        raise Refused(
            name,
            "expected reset_delay=True, got False, with which RSynaptic cannot run in"
            " snnTorch 1.0.0",
            "Use reset_delay=True",
        )
    return used, delay


def _check_threshold(layer: Layer, threshold: Array, rule: str, delay: bool) -> None:
    """snnTorch takes m > t for 'spiked last step', which for t < 0 also holds at rest."""
    module = layer.module
    harmless = rule == "none" or (isinstance(module, snn.Leaky) and rule == "value" and delay)
    if not np.all(np.isfinite(threshold)) or (np.any(threshold < 0) and not harmless):
        raise Refused(
            layer.name,
            f"expected a threshold that is finite and not negative, got {threshold.min()}",
            "Use thresholds >= 0",
        )


def _dynamics(layer: Layer, dt: float, threshold: Array) -> nir.NIRNode:
    module: Any = layer.module
    zeros = np.zeros(layer.output_shape)
    if isinstance(module, snn.Lapicque):
        return _lapicque(layer, dt, threshold)
    leak = _leak(layer, "beta")
    if isinstance(module, (snn.Synaptic, snn.RSynaptic)):
        leak_syn = _leak(layer, "alpha")
        return nir.CubaLIF(
            tau_syn=dt / leak_syn,
            tau_mem=dt / leak,
            r=1.0 / leak,
            v_leak=zeros,
            v_threshold=threshold,
            v_reset=zeros.copy(),
            w_in=1.0 / leak_syn,
        )
    if np.all(leak == 1.0 / NO_LEAK):
        return nir.IF(r=np.ones(layer.output_shape), v_threshold=threshold, v_reset=zeros)
    return nir.LIF(
        tau=dt / leak, r=1.0 / leak, v_leak=zeros, v_threshold=threshold, v_reset=zeros.copy()
    )


def _leak(layer: Layer, name: str) -> Array:
    """dt/tau = 1 - decay, with the decay clamped to [0, 1] as in the forward pass."""
    decay = broadcast(layer.name, name, getattr(layer.module, name), layer.output_shape)
    if np.any(np.isnan(decay)):
        raise Refused(layer.name, f"expected a number for {name}, got NaN", "Check its training")
    return np.maximum(1.0 - np.clip(decay, 0.0, 1.0), 1.0 / NO_LEAK)


def _lapicque(layer: Layer, dt: float, threshold: Array) -> nir.LIF:
    """m <- (1 - D/(RC)) m + (D/C) x, so tau = dt RC/D and r = R."""
    module: Any = layer.module
    shape = layer.output_shape
    step, resistance, capacity = (
        broadcast(layer.name, name, getattr(module, name), shape)
        for name in ("time_step", "R", "C")
    )
    with np.errstate(all="ignore"):
        tau = dt * resistance * capacity / step
    if not np.all(np.isfinite(tau)) or np.any(tau <= 0) or np.any(resistance <= 0):
        raise Refused(
            layer.name,
            f"expected R > 0 and a finite R*C/time_step > 0, got R={array(module.R)},"
            f" C={array(module.C)}",
            "Choose 0 < beta < 1, or R and C above zero",
        )
    zeros = np.zeros(shape)
    return nir.LIF(tau=tau, r=resistance, v_leak=zeros, v_threshold=threshold, v_reset=zeros.copy())


def _with_scale_and_recurrence(layer: Layer, node: nir.NIRNode) -> Block:
    """Graded spikes are scaled after the neuron, before they leave it or come back to it."""
    module: Any = layer.module
    block = Block({"": node})
    shape = layer.output_shape
    factor = broadcast(layer.name, "graded_spikes_factor", module.graded_spikes_factor, shape)
    if np.any(factor == 0) or not np.all(np.isfinite(factor)):
        raise Refused(
            layer.name, "expected a graded_spikes_factor other than 0, got 0 or NaN", "Use 1.0"
        )
    if np.any(factor != 1):
        block.nodes["scale"] = typed(nir.Scale(scale=factor.copy()), shape, shape)
        block.edges.append(("", "scale"))
        block.exit = "scale"
    if isinstance(module, (snn.RLeaky, snn.RSynaptic)) and (
        module.all_to_all or bool(torch.as_tensor(module.recurrent.V).any())
    ):
        block.nodes["w_rec"] = _recurrent_weights(layer)
        block.edges += [(block.exit, "w_rec"), ("w_rec", "")]
        block.delayed = [(block.exit, "w_rec")]
    return block


def _recurrent_weights(layer: Layer) -> nir.NIRNode:
    module: Any = layer.module
    recurrent = module.recurrent
    shape = layer.output_shape
    if module.all_to_all:
        return layer_to_nir(Layer(f"{layer.name}.w_rec", recurrent, shape, shape, 1))
    values = broadcast(layer.name, "V", recurrent.V, shape).copy()
    if len(shape) == 1:
        return typed(nir.Linear(weight=np.diag(values)), shape, shape)
    return typed(nir.Scale(scale=values), shape, shape)

"""From a snnTorch or Norse module to a `Network`, and trained weights back into the module.

A projection's NIR nodes bear the paths of the module's layers, so its weight W and the bias b of
its target population go back to

    node         layer                         holds
    <path>       nn.Linear, nn.Conv1d/2d       weight = W / gain, bias = b / gain
    <path>.w_rec snnTorch's `recurrent`        weight = W / gain
                 Norse's `recurrent_weights`   = W / gain
    <path>.w_in  Norse's `input_weights`       = W / gain

where gain is the factor that the neuron's equation multiplies its input by. What was folded out of
two layers with weights (a pooling and a Linear, say) has no such place and is refused. Where
several layers add up to one bias, the first that is not frozen takes the whole change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grasp_plugin.errors import Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.discretise import discretise
from grasp_plugin.network.network import Bias, Network, Projection
from grasp_plugin.network.weights import Array

OWN = {"w_rec": ("recurrent", "recurrent_weights"), "w_in": ("input_weights",)}
"""By the suffix of a NIR node: the attributes of a neuron module that are its weights."""
CLOSE = 1e-5  # of the largest weight: what a float32 module may lose


def network_of(model: nn.Module, sample: Any, dt: float | None = None) -> Network:
    """The network of a snnTorch or Norse module.

    Args:
        sample: input of one step, (batch, ...).
        dt: seconds a step; None: the adapter's default.

    Raises:
        Refused: no sample; a module of neither framework; what the adapter or NIR cannot express.
    """
    if sample is None:
        raise Refused(
            type(model).__name__, "expected a sample input to trace the module with, got none",
            "Pass sample=..., the input of one step (batch, ...)",
        )  # fmt: skip
    graph = _adapter(model)(model, sample, **({} if dt is None else {"dt": dt}))
    return discretise(graph)


def _adapter(model: nn.Module) -> Callable[..., Any]:
    homes = {
        kind.__module__.partition(".")[0]
        for module in model.modules() for kind in type(module).__mro__
    }  # fmt: skip
    if "snntorch" in homes:
        from grasp_plugin.adapters.from_snntorch import from_snntorch

        return from_snntorch
    if "norse" in homes:
        from grasp_plugin.adapters.from_norse import from_norse

        return from_norse
    raise Refused(
        type(model).__name__, "expected a module with snnTorch or Norse neurons, got none of them",
        "Convert it to a Network yourself (NIR and discretise) and pass that",
    )  # fmt: skip


def frozen_in(network: Network, module: nn.Module) -> frozenset[str]:
    """The projections and biases whose layers all have requires_grad = False.

    A projection or bias without a layer of the module's, such as one that only a batch norm makes,
    is not among them.
    """
    weights = {
        k.name: [p for n in k.nodes if (p := _weight_of(n, module)) is not None]
        for k in network.projections
    }
    biases = {b.name: _bias_holders(b.target, network, module) for b in network.biases}
    return frozenset(
        name for name, held in {**weights, **biases}.items()
        if held and not any(p.requires_grad for p in held)
    )  # fmt: skip


@torch.no_grad()
def write_back(
    network: Network, names: Sequence[str], module: nn.Module, sample: Any, dt: float | None = None
) -> None:
    """Write the projections and biases named into the module, which is then the network.

    Args:
        network: trained; made from such a module.
        names: projections and biases that were trained.
        sample, dt: as for `network_of`.

    Raises:
        Refused: a weight has no single place, or the module would be another network; the module
            is left as it was.
    """
    before = network_of(module, sample, dt)
    _same_outline(network, before)
    old = {name: value.clone() for name, value in module.state_dict().items()}
    try:
        for k in network.projections:
            if k.name in names:
                _write(_place(k, network, module), _unscaled(k, network), k.name)
        for b in network.biases:
            if b.name in names:
                _write_bias(b, network, before, module)
        _check_same(network, network_of(module, sample, dt), names)
    except BaseException:
        module.load_state_dict(old)
        raise


def _same_outline(network: Network, other: Network) -> None:
    mine, theirs = (
        [*(f"{k.name} {k.weight.shape}" for k in n.projections), *(b.name for b in n.biases)]
        for n in (network, other)
    )
    if mine != theirs:
        raise Refused(
            "module", f"expected a module with {', '.join(mine)}, got {', '.join(theirs)}",
            "Pass a module of the kind that the network was made from",
        )  # fmt: skip


def _place(k: Projection, network: Network, module: nn.Module) -> Tensor:
    """The parameter that holds a projection's weights."""
    others = [o.name for o in network.projections if o is not k and set(o.nodes) & set(k.nodes)]
    found = [(n, p) for n in k.nodes if (p := _weight_of(n, module)) is not None]
    passed = [n for n in k.nodes if _weight_of(n, module) is None and not _is_flatten(n, module)]
    if len(found) != 1 or passed or others:
        raise Refused(
            k.name, f"expected one layer that holds its weights alone, got {', '.join(k.nodes)}"
            + (f", shared with {', '.join(others)}" if others else ""),
            "Use trainer.network(): the folded layers cannot be told apart again",
        )  # fmt: skip
    return found[0][1]


def _weight_of(node: str, module: nn.Module) -> Tensor | None:
    layer = _layer_of(node, module)
    if isinstance(layer, Tensor):
        return layer
    known = isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))
    return layer.weight if known else None


def _layer_of(node: str, module: nn.Module) -> Any:
    """The layer of a NIR node's name, or the parameter where that is one; None: there is none."""
    path, _, suffix = node.rpartition(".")
    layers = dict(module.named_modules())
    if node in layers or path not in layers:
        return layers.get(node)
    return next((v for a in OWN.get(suffix, ()) if (v := getattr(layers[path], a, None)) is not None
                 ), None)  # fmt: skip


def _is_flatten(node: str, module: nn.Module) -> bool:
    return isinstance(_layer_of(node, module), nn.Flatten)


def _unscaled(k: Projection, network: Network) -> Array:
    """The weights without the target's gain."""
    scaled: Array = W.values(W.scale_rows(k.weight, 1.0 / network[k.target].gain))
    return scaled


def _write(parameter: Tensor, value: Array, name: str) -> None:
    if parameter.shape != value.shape:
        raise Refused(
            name, f"expected weights of the layer's shape {tuple(parameter.shape)}, got "
            f"{value.shape}", "Use trainer.network()",
        )  # fmt: skip
    parameter.copy_(torch.as_tensor(value))


def _write_bias(b: Bias, network: Network, before: Network, module: nn.Module) -> None:
    """The first layer with a bias into the target that is not frozen takes the sum's change."""
    (old,) = (o for o in before.biases if o.name == b.name)
    holders = _bias_holders(b.target, network, module)
    holders = [h for h in holders if h.requires_grad] or holders
    if not holders:
        raise Refused(b.name, "expected a layer that holds the bias, got none", "Freeze this bias")
    change = (b.value - old.value) / network[b.target].gain
    size = holders[0].numel()
    by_channel = change.reshape(size, -1) if change.size % size == 0 else change[:0, None]
    if len(by_channel) != size or not np.allclose(by_channel, by_channel[:, :1]):
        raise Refused(
            b.name, f"expected one bias for each of {size} channels, got more", "Freeze this bias"
        )
    holders[0] += torch.as_tensor(by_channel[:, 0]).to(holders[0])


def _bias_holders(target: str, network: Network, module: nn.Module) -> list[Tensor]:
    """The biases of the layers into a population, in order."""
    layers = (_layer_of(node, module) for k in network.into(target) for node in k.nodes)
    return [
        layer.bias for layer in layers
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) and layer.bias is not None
    ]  # fmt: skip


def _check_same(network: Network, now: Network, names: Sequence[str]) -> None:
    """The module is the network now, to a float32's rounding."""
    want, got = _arrays(network), _arrays(now)
    for name, value in want.items():
        scale = float(np.abs(value).max(initial=0.0))
        if not np.allclose(got[name], value, rtol=CLOSE, atol=CLOSE * scale):
            if name in names:
                remedy = "Use trainer.network(): a layer such as a batch norm is folded into it"
            else:
                remedy = "It is not trained: pass the module that the trainer was made from"
            raise Refused(name, "expected the module to be the trained network, got other values",
                          remedy)  # fmt: skip


def _arrays(network: Network) -> Mapping[str, Array]:
    out: dict[str, Array] = {k.name: W.values(k.weight) for k in network.projections}
    out |= {b.name: b.value for b in network.biases}
    for p in network.populations:
        out |= {f"{p.name}.{key}": getattr(p, key) for key in ("du", "dv", "v_th", "drive", "gain")}
    return out

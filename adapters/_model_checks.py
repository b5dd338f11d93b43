"""What makes a model unfit for tracing, refused by name before anything runs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from grasp_plugin.adapters._signals import Framework
from grasp_plugin.errors import Invalid, Refused

_HOMES = {"snntorch": ("snnTorch", "from_snntorch"), "norse": ("Norse", "from_norse")}
_CONTAINERS = {"Lift", "SequentialState", "RecurrentSequential"}  # Norse's, for any layers
_WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module",
             "OptimizedModule": "_orig_mod"}  # fmt: skip


def check_model(model: nn.Module, framework: Framework) -> None:
    """Refuse what cannot be traced or read, before anything runs.

    Raises:
        Invalid: parameters without values (lazy, on the meta device).
        Refused: a wrapper, another framework's neurons, training mode, an unknown neuron.
    """
    for path, module in model.named_modules():
        name = path or type(model).__name__
        _refuse_wrapped(name, module)
        _refuse_without_values(name, module)
        _refuse_other_framework(name, module, framework)
        _refuse_training(name, module)
        _refuse_patched(name, module, model, framework)
    _check_neurons(model, framework)


def other_adapter(module: nn.Module, framework: Framework) -> str | None:
    """The adapter that a neuron of the other framework belongs to; None for any other module."""
    for kind in type(module).__mro__:
        home = kind.__module__.partition(".")[0]
        if home in _HOMES and home != framework.name and kind.__name__ not in _CONTAINERS:
            return _HOMES[home][1]
    return None


def _refuse_wrapped(name: str, module: nn.Module) -> None:
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise Refused(
            name,
            f"expected a Python module, got TorchScript ({kind})",
            "Pass the module that it was traced or scripted from",
        )
    inside = _WRAPPERS.get(kind)
    if inside is not None and isinstance(getattr(module, inside, None), nn.Module):
        raise Refused(
            name,
            f"expected the module itself, got {kind} around it",
            f"Pass .{inside} of it: model.{inside}",
        )


def _refuse_without_values(name: str, module: nn.Module) -> None:
    for key, held in (*module._parameters.items(), *module._buffers.items()):
        if held is None:
            continue
        if is_lazy(held):
            raise Invalid(
                name,
                f"expected a {key} with values, got a lazy layer that has never run",
                "Run the model once on a sample before, and train it",
            )
        if held.is_meta:
            raise Invalid(
                name,
                f"expected a {key} with values, got a tensor on the meta device",
                "Call model.to_empty(device='cpu') and load its weights first",
            )


def _refuse_other_framework(name: str, module: nn.Module, framework: Framework) -> None:
    other = other_adapter(module, framework)
    if other is not None:
        mine, theirs = _HOMES[framework.name][0], _HOMES[other.removeprefix("from_")][0]
        raise Refused(
            name,
            f"expected neurons of {mine}, got {type(module).__name__} of {theirs}",
            f"Convert the model with {other}",
        )


def _refuse_training(name: str, module: nn.Module) -> None:
    drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    norms = isinstance(module, nn.modules.batchnorm._BatchNorm)
    if module.training and (drops or norms):
        raise Refused(
            name,
            f"expected {type(module).__name__} in evaluation mode, got training mode",
            "Call model.eval() first",
        )


def _refuse_patched(name: str, module: nn.Module, model: nn.Module, framework: Framework) -> None:
    """A forward assigned to a module; containers inside the model are traced through theirs."""
    if "forward" in vars(module) and (module is model or framework.is_leaf(module)):
        raise Refused(
            name,
            f"expected the forward of {type(module).__name__}, got another assigned to the module",
            "Delete it (del module.forward), or write what it does into a module of your own",
        )


def _check_neurons(model: nn.Module, framework: Framework) -> None:
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if framework.is_neuron(module) and not path.startswith(inside or "\0"):
            inside = (*inside, f"{path}.")
            if type(module) not in framework.known:
                names = ", ".join(kind.__name__ for kind in framework.known)
                raise Refused(
                    path,
                    f"expected one of {names}, got {type(module).__name__}",
                    "Use a neuron of that list, as it is (not a subclass)",
                )
            framework.check(path, module)

"""Which neuron a layer of a user's module feeds, its decay, and the check of that on the graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor, nn

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.rule import Trace
from grasp_plugin.learning.traces import Exponential, Instant

log = logging.getLogger(__name__)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
Given = float | Trace
_LINEAR_OPS = (
    "View Alias UnsafeView ReshapeAlias Permute Transpose T Unsqueeze Squeeze Expand Clone ToCopy "
    "Select Slice Cat Stack Add Sub Neg Sum Mean ConstantPadNd AvgPool2D AdaptiveAvgPool2D "
    "UpsampleNearest1D UpsampleNearest2D UpsampleBilinear2D"
).split()
_CONTAINERS = ("sequential", "lift", "regularization", "encode", "receptive_field", "snn", "conv")


def detach(state: Any) -> Any:
    """A nested state (tuples, named tuples, lists, dicts of tensors) with no graph in it."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, dict):
        return {key: detach(value) for key, value in state.items()}
    if isinstance(state, (tuple, list)):
        parts = [detach(value) for value in state]
        named = isinstance(state, tuple) and type(state) is not tuple
        return type(state)(*parts) if named else type(state)(parts)
    return state


# --- the gradient ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Spot:
    """A layer, the neurons around it, and what the caller says of its trace."""

    name: str
    layer: Any
    role: str  # "first", "hidden" or "readout"
    before: nn.Module | None
    after: nn.Module | None
    given: Given | None
    ordered: bool  # placed by the order of registration, so to be checked

    def traces(self, knobs: Mapping[str, str | None]) -> tuple[Trace, Trace]:
        """(of the weight, of the bias)."""
        if self.role == "readout":
            official = knobs["readout"] == "official" and self.before is not None
            return (self._of(self.before) if official else Instant()), Instant()
        exact = self._of(self.after)
        weight = Instant() if self.role == "first" and knobs["first"] == "official" else exact
        return weight, Instant() if knobs["bias"] == "official" else exact

    def _of(self, neuron: Any) -> Trace:
        """The trace that is exact below a neuron, or the caller's."""
        if isinstance(self.given, Trace):
            if self.given.rank_one:
                return self.given
            self._refuse(f"a trace of shape (batch, N_i), got {self.given}: per synapse")
        if neuron is not None and _is_hard(neuron):
            self._refuse(
                f"a reset that subtracts, got {_kind(neuron)} with a hard reset, which makes the"
                " trace of the input inexact",
                "Train with reset_mechanism='subtract' (snnTorch) or reset_subtract (Norse), or use"
                " the per-synapse trace of learning.ottt(reset='value')",
            )
        return Exponential(self._read(neuron) if self.given is None else float(self.given))

    def _read(self, neuron: Any) -> float:
        kind = _kind(neuron)
        if kind == "Leaky":
            value = neuron.beta.clamp(0, 1)
        elif kind in ("LIFBoxCell", "LIBoxCell"):
            value = neuron.dt * neuron.p.tau_mem_inv
        else:
            self._refuse(f"Leaky, LIFBoxCell or LIBoxCell, got {kind}: not one exponential filter")
        if value.requires_grad or any(p.requires_grad for p in neuron.parameters(recurse=False)):
            self._refuse(f"a neuron without learnable parameters, got {kind} with one: no trace")
        if kind == "Leaky" and neuron.state_quant:
            self._refuse("a membrane that is not rounded, got Leaky with state_quant")
        if value.min() != value.max():
            self._refuse(f"one decay for the layer, got {value.numel()} in {kind}: one per neuron")
        number = float(value.max())
        return number if kind == "Leaky" else 1 - number

    def _refuse(self, reason: str, remedy: str = "") -> NoReturn:
        remedy = remedy or f"Change the neuron, or pass decay={{{self.name!r}: a number or Trace}}"
        raise Refused(self.name, f"expected {reason}", remedy)


def _kind(module: nn.Module) -> str | None:
    """The framework's name of a neuron, None if it is none; imports no framework."""
    for c in type(module).__mro__:
        norse = c.__module__.startswith("norse.torch.module.")
        if norse and c.__module__.rpartition(".")[2] not in _CONTAINERS:
            return c.__name__
        if c.__module__.startswith("snntorch._neurons."):
            return c.__name__
    return None


def _is_hard(neuron: Any) -> bool:
    if (_kind(neuron) or "").startswith("LIF") and getattr(neuron, "p", None) is not None:  # Norse
        method = getattr(neuron.p, "reset_method", None)
        return getattr(method, "__name__", "") != "reset_subtract"
    return bool(getattr(neuron, "reset_mechanism", "") == "zero")


def arrange(
    module: nn.Module, decay: Any, kinds: tuple[type, ...] = LAYERS
) -> tuple[list[Spot], list[tuple[str, nn.Module]]]:
    """The layers (of exactly these kinds) with their places, and the neurons, as registered."""
    given: Mapping[str, Given] = decay if isinstance(decay, Mapping) else {}
    neurons = [(n, m) for n, m in module.named_modules() if _kind(m)]
    inner = tuple(f"{n}." for n, _ in neurons)
    spots: list[Spot] = []
    before: nn.Module | None = None
    pending: list[tuple[str, nn.Module]] = []

    def place(after: nn.Module | None) -> None:
        for name, layer in pending:
            mine = given.get(name, None if isinstance(decay, Mapping) else decay)
            readout = after is None and name not in given
            first = not spots or (before is None and after is not None)
            role = "readout" if readout else "first" if first else "hidden"
            spots.append(Spot(name, layer, role, before, after, mine, name not in given))
        pending.clear()

    for name, m in module.named_modules():
        if type(m) in kinds and (not name.startswith(inner) or name in given):
            pending.append((name, m))
        elif _kind(m):
            place(m)
            before = m
    place(None)
    _check_arranged(module, spots, given, inner)
    return spots, neurons


def _check_arranged(
    module: nn.Module, spots: list[Spot], given: Mapping[str, Given], inner: tuple[str, ...]
) -> None:
    names = [s.name for s in spots]
    if not spots:
        found = type(module).__name__
        raise Invalid(found, "expected Linear, Conv1d or Conv2d layers, got none", "Pass a model")
    for name in given:
        if name not in names:
            raise Invalid("with_traces", f"expected layers in {names}, got {name!r}", "Mend decay")
    everywhere = [
        n for n, m in module.named_modules(remove_duplicate=False) for s in spots if m is s.layer
    ]
    twice = sorted(set(everywhere) - set(names))
    if twice:
        raise Refused(
            twice[0], "expected a layer that is registered and called once per step, got the same"
            " layer under two names", "Give each place a layer of its own",
        )  # fmt: skip
    open_ = [s.name for s in spots if s.ordered]
    remedy = f"Pass decay={{name: a number, 0.0 if memoryless}} for each of {names}"
    if open_ and not any(s.after for s in spots):
        raise Refused(open_[0], "expected a neuron of snnTorch or Norse after it, got none", remedy)
    for name, m in module.named_modules():
        known = type(m).__module__.startswith(("torch.nn", "norse.")) or _kind(m)
        leaf = not any(m.children()) and not name.startswith(inner)
        if open_ and leaf and not known and name not in names:
            reason = f"modules of torch, snnTorch or Norse, got {type(m).__name__}: is it a neuron?"
            raise Refused(name, f"expected {reason}", remedy)
    owned = {id(p) for s in spots for p in s.layer.parameters()}
    rest = [n for n, p in module.named_parameters() if p.requires_grad and id(p) not in owned]
    if rest:
        log.warning("no trace, so the gradient of each step alone: %s; freeze or accept", rest)


class Entry:
    """Hook of a neuron: its states enter detached, and the first step checks what feeds it."""

    handle: Any

    def __init__(self, name: str, layers: tuple[str, ...]) -> None:
        self.name, self.layers, self.checked = name, layers, False

    def __call__(self, neuron: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else next(v for k, v in kwargs.items() if k.startswith("input"))
        if not self.checked and x.grad_fn is not None:
            self.check(x)
            self.checked = True
        for key, held in list(neuron.named_buffers(recurse=False)):
            if held.grad_fn is not None:
                setattr(neuron, key, held.detach())
        rest = {k: v if k.startswith("input") else detach(v) for k, v in kwargs.items()}
        return (*args[:1], *(detach(a) for a in args[1:])), rest

    def check(self, x: Tensor) -> None:
        """What feeds the neuron is what the order of registration says, through linear maps."""
        found, twice = _reached(x.grad_fn)
        for layer in self.layers:
            if found.get(layer):
                raise Refused(
                    layer, f"expected a linear map, the same at every step, between it and"
                    f" {self.name}, got {found[layer]}", f"Pass decay={{{layer!r}: a number}} to"
                    " accept a trace that is not exact",
                )  # fmt: skip
        clean = {layer for layer, odd in found.items() if not odd}
        wrong = sorted((clean - {*self.layers}) | ({*self.layers} - found.keys()) | twice)
        if wrong:
            raise Refused(
                wrong[0], f"expected {list(self.layers)}, each once, to feed {self.name} directly,"
                f" as registered; the graph says {sorted(clean)}, more than once {sorted(twice)}",
                "Register layers and neurons in the order in which they run, or pass"
                " decay={name: a number} for each of these layers",
            )  # fmt: skip


def _reached(top: Any) -> tuple[dict[str, str], set[str]]:
    """Traced layers right below, each with an operation that may not be linear and constant."""
    found: dict[str, str] = {}
    nodes: dict[str, Any] = {}
    twice: set[str] = set()
    waiting, seen = [(top, "")], set()
    while waiting:
        node, odd = waiting.pop()
        if node is None or (node, odd) in seen:
            continue
        seen.add((node, odd))
        kind = type(node).__name__
        if kind == "_OpBackward":
            if node.label:
                found[node.label] = found.get(node.label) or odd
                if nodes.setdefault(node.label, node) is not node:
                    twice.add(node.label)
            continue
        name = kind.partition("Backward")[0]
        factors = [getattr(node, key, None) for key in ("_saved_self", "_saved_other")]
        scaled = name in ("Mul", "Div") and not any(f is not None and f.ndim for f in factors)
        odd = odd or ("" if scaled or name in _LINEAR_OPS else kind)
        waiting += [(below, odd) for below, _ in node.next_functions]
    return found, twice

"""Are the fields of one NIR node well formed? What `validate` and the file reader share.

Fields are given as a file stores them: arrays, numbers and text by name. Every check raises
`Invalid` with the culprit, what was expected and got, and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import nir
import numpy as np

from grasp_plugin.errors import Invalid

MAX_ELEMENTS = 2**31 - 1
"""More elements than this in one signal or parameter count as a broken file."""
_MAX_WINDOW = 2**16  # stride, padding, dilation, kernel of a pool

TIME_FIELDS = ("tau", "tau_syn", "tau_mem", "delay")
_SAME_SHAPE: dict[str, tuple[str, ...]] = {
    "Delay": ("delay",),
    "Scale": ("scale",),
    "Threshold": ("threshold",),
    "I": ("r",),
    "IF": ("r", "v_threshold", "v_reset"),
    "LI": ("tau", "r", "v_leak"),
    "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    "CubaLI": ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
    "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
}
_CONV = ("input_shape", "weight", "stride", "padding", "dilation", "groups", "bias")
_POOL = ("kernel_size", "stride", "padding")
FIELDS: dict[str, tuple[str, ...]] = {
    **_SAME_SHAPE,
    "Input": ("shape",),
    "Output": ("shape",),
    "Affine": ("weight", "bias"),
    "Linear": ("weight",),
    "Conv1d": _CONV,
    "Conv2d": _CONV,
    "SumPool2d": _POOL,
    "AvgPool2d": _POOL,
    "Flatten": ("input_type", "start_dim", "end_dim"),
    "NIRGraph": ("nodes", "edges"),
}
"""The fields of each NIR 1.0.8 primitive, as a file names them."""
OPTIONAL = frozenset({"v_reset", "w_in", "input_shape", "input_type", "start_dim", "end_dim"})
"""Fields that may be missing: NIR (or its older files) has a default for them."""


def at(where: str, node: str) -> str:
    """How messages name a node: `net.nir, node 'a.b'`; the graph itself is `net.nir`."""
    return f"{where}, node {show(node)}" if node else where


def show(value: Any) -> str:
    """A value for a message: printable whatever it holds, and short."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    text = " ".join(text.encode("utf8", "backslashreplace").decode("utf8").split())
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def options(names: Iterable[str], got: str) -> str:
    """`one of A, B, C`, with the likeliest first if `got` looks like a slip of the pen."""
    listed = sorted(names)
    close = difflib.get_close_matches(got[:80], listed, n=1)
    hint = f"did you mean {show(close[0])}? " if close else ""
    more = f", ... ({len(listed)} in all)" if len(listed) > 24 else ""
    return f"{hint}it can be one of {', '.join(map(_plain, listed[:24]))}{more}"


def _plain(name: str) -> str:
    return show(name)[1:-1] if name.isprintable() else show(name)


def check_type(kind: str, culprit: str) -> None:
    """Raise `Invalid` unless `kind` is a NIR primitive."""
    if kind not in FIELDS:
        raise Invalid(
            culprit,
            f"expected a NIR 1.0 node type, got {show(kind)}",
            f"Rewrite the node with NIR's primitives: {options(FIELDS, kind)}",
        )


def fields_of(node: nir.NIRNode) -> dict[str, Any]:
    """The fields of a node as a file stores them (`shape` for Input and Output), None included."""
    kind = type(node).__name__
    if kind in ("Input", "Output"):
        types, key = getattr(node, f"{kind.lower()}_type", None), kind.lower()
        return {"shape": types.get(key) if isinstance(types, Mapping) else types}
    fields = {name: vars(node)[name] for name in FIELDS[kind] if name in vars(node)}
    if kind == "Flatten" and isinstance(fields.get("input_type"), Mapping):
        fields["input_type"] = fields["input_type"].get("input")
    return fields


def check_fields(kind: str, fields: Mapping[str, Any], culprit: str) -> None:
    """Raise `Invalid` unless the fields (as a file stores them) make a sound node of this type."""
    check_names(kind, fields, culprit)
    present = {name: value for name, value in fields.items() if value is not None}
    if kind in ("Input", "Output"):
        check_shape(present["shape"], culprit, "shape")
    elif kind in _SAME_SHAPE:
        _check_neuron(present, culprit)
    elif kind in ("Affine", "Linear"):
        _check_dense(present, culprit)
    elif kind in ("Conv1d", "Conv2d"):
        _check_conv(present, culprit, rank=int(kind[-2]))
    elif kind in ("SumPool2d", "AvgPool2d"):
        for name, least in (("kernel_size", 1), ("stride", 1), ("padding", 0)):
            integers(present[name], culprit, name, least=least, counts=(1, 2))
    elif kind == "Flatten":
        _check_flatten(present, culprit)


def check_names(kind: str, fields: Mapping[str, Any], culprit: str) -> None:
    """Raise `Invalid` if a field of this type is unknown, or missing (or None) without default."""
    for name in fields:
        if name not in FIELDS[kind]:
            raise Invalid(
                culprit,
                f"{kind} has no field {show(name)}",
                f"Remove it or rename it: {options(FIELDS[kind], str(name))}",
            )
    for name in FIELDS[kind]:
        if fields.get(name) is None and name not in OPTIONAL:
            raise Invalid(
                culprit,
                f"expected the field {name!r} of {kind}, got none",
                _REMEDIES.get((kind, name), f"Write {name!r} into the node and save it again"),
            )


_REMEDIES = {
    ("Input", "shape"): "Give the Input the shape of one sample at one time step, without batch",
    ("Output", "shape"): "Give the Output the shape of one sample at one time step, without batch",
    ("Affine", "bias"): "Write zeros, or use Linear, which has no bias",
    ("Conv1d", "bias"): "Write zeros of shape (C_out,): NIR's convolutions always have a bias",
    ("Conv2d", "bias"): "Write zeros of shape (C_out,): NIR's convolutions always have a bias",
}


def numbers(value: Any, culprit: str, field: str, infinite: bool = False) -> np.ndarray[Any, Any]:
    """The field as an array of real, finite numbers, at least one; `infinite` lets +inf pass.

    Raises:
        Invalid: for text, bool, complex, objects, masked or empty arrays, NaN and inf.
    """
    try:
        array = np.asarray(value)
    except Exception as error:
        raise Invalid(
            culprit, f"{field} is no array: {error}", "Convert it with .detach().cpu().numpy()"
        ) from error
    if array.dtype.kind not in "fiu" or isinstance(value, np.ma.MaskedArray):
        got = f"dtype {array.dtype}" + (f" ({show(value)})" if array.ndim == 0 else "")
        got = "a masked array" if isinstance(value, np.ma.MaskedArray) else got
        remedy = f"Store {field} as floats"
        if field == "bias" and array.dtype.kind == "b":
            remedy = "A bias of False is no bias: store zeros, or use Linear"
        raise Invalid(culprit, f"expected real numbers in {field}, got {got}", remedy)
    if not 0 < array.size <= MAX_ELEMENTS:
        raise Invalid(
            culprit,
            f"expected 1 to {MAX_ELEMENTS} values in {field}, got shape {array.shape}",
            "Check the program that wrote it",
        )
    if array.dtype.kind == "f":
        bad = np.isnan(array) | (array < 0 if infinite else True) & np.isinf(array)
        if bad.any():
            allowed = "numbers or inf" if infinite else "finite numbers"
            raise Invalid(
                culprit,
                f"expected {allowed} in {field}, got {show(array[bad][0])}"
                f" ({int(bad.sum())} of {array.size} values)",
                "Look for a training run that diverged, or a division by zero on export",
            )
    return array


def integers(
    value: Any,
    culprit: str,
    field: str,
    least: int,
    counts: tuple[int, ...],
    most: int = _MAX_WINDOW,
) -> tuple[int, ...]:
    """The field as integers in [least, most]; `counts` lists how many there may be."""
    array = numbers(value, culprit, field)
    if array.dtype.kind not in "iu":
        raise Invalid(
            culprit,
            f"expected integers in {field}, got dtype {array.dtype}",
            f"Store {field} as integers",
        )
    if array.ndim > 1 or array.size not in counts:
        raise Invalid(
            culprit,
            f"expected {' or '.join(map(str, counts))} value(s) in {field},"
            f" got shape {array.shape}",
            f"Store {field} as a number or a flat list",
        )
    values = tuple(int(entry) for entry in array.reshape(-1))
    if min(values) < least or max(values) > most:
        raise Invalid(
            culprit,
            f"expected {field} from {least} to {most}, got {show(values)}",
            f"Correct {field}",
        )
    return values


def check_shape(value: Any, culprit: str, field: str) -> tuple[int, ...]:
    """The field as the shape of a signal: 1 to 8 positive integers of a sane product."""
    shape = integers(value, culprit, field, least=1, counts=tuple(range(1, 9)), most=MAX_ELEMENTS)
    count = 1
    for size in shape:
        count *= size
    if count > MAX_ELEMENTS:
        raise Invalid(
            culprit,
            f"expected at most {MAX_ELEMENTS} elements, got {field} {shape}",
            "Check the shape: it is that of one sample at one time step",
        )
    return shape


def _check_neuron(fields: Mapping[str, Any], culprit: str) -> None:
    shapes: dict[tuple[int, ...], str] = {}
    for name, value in fields.items():
        tau = name.startswith("tau")
        array = numbers(value, culprit, name, infinite=tau)
        if array.size > 1:
            shapes.setdefault(array.shape, name)
        worst = array.min()
        if (tau and worst <= 0) or (name == "delay" and worst < 0):
            raise Invalid(
                culprit,
                f"expected {name} {'>' if tau else '>='} 0, got {show(worst)}",
                f"Correct {name}: it is a time"
                + (" constant; one from a decay above 1 means growth" if tau else ""),
            )
    if len(shapes) > 1:
        got = ", ".join(f"{name} {shape}" for shape, name in shapes.items())
        raise Invalid(
            culprit,
            f"expected one shape for all parameters, got {got}",
            "Give all parameters the shape of the layer, or a single value",
        )


def _check_dense(fields: Mapping[str, Any], culprit: str) -> None:
    weight = numbers(fields["weight"], culprit, "weight")
    if weight.ndim < 2:
        raise Invalid(
            culprit,
            f"expected a weight (..., out, in) of rank 2 or more, got shape {weight.shape}",
            "Store the weight as a matrix (out, in)",
        )
    if "bias" in fields:
        _check_bias(fields["bias"], weight.shape[:-1], culprit)


def _check_bias(value: Any, expected: tuple[int, ...], culprit: str) -> None:
    bias = numbers(value, culprit, "bias")
    if bias.shape != expected:
        raise Invalid(
            culprit,
            f"expected a bias of shape {expected} to match the weight, got {bias.shape}",
            "Store one bias per output (zeros for none)",
        )


def _check_conv(fields: Mapping[str, Any], culprit: str, rank: int) -> None:
    weight = numbers(fields["weight"], culprit, "weight")
    if weight.ndim != rank + 2:
        raise Invalid(
            culprit,
            f"expected a weight (C_out, C_in/groups, {'H, W' if rank == 2 else 'N'}),"
            f" got shape {weight.shape}",
            f"Use Conv{rank}d with a weight of rank {rank + 2}",
        )
    (groups,) = integers(fields["groups"], culprit, "groups", least=1, counts=(1,))
    if weight.shape[0] % groups:
        raise Invalid(
            culprit,
            f"expected a number of output channels divisible by groups {groups},"
            f" got {weight.shape[0]}",
            "Correct groups or the weight",
        )
    _check_bias(fields["bias"], weight.shape[:1], culprit)
    counts = (1,) if rank == 1 else (1, 2)
    windows = {
        name: integers(fields[name], culprit, name, least=1, counts=counts)
        for name in ("stride", "dilation")
    }
    padding = fields["padding"]
    if isinstance(padding, str):
        if padding not in ("same", "valid") or (padding == "same" and max(windows["stride"]) > 1):
            raise Invalid(
                culprit,
                f"expected padding 'valid', numbers, or 'same' with stride 1,"
                f" got {show(padding)} with stride {windows['stride']}",
                "Write the padding as numbers",
            )
        windows["padding"] = (0,)
    else:
        windows["padding"] = integers(padding, culprit, "padding", least=0, counts=counts)
    if "input_shape" in fields:
        size = integers(
            fields["input_shape"], culprit, "input_shape", 1, (rank,), most=MAX_ELEMENTS
        )
        _check_fits(weight.shape[2:], size, padding, windows, culprit)


def _check_fits(
    kernel: tuple[int, ...],
    size: tuple[int, ...],
    padding: Any,
    windows: Mapping[str, tuple[int, ...]],
    culprit: str,
) -> None:
    if isinstance(padding, str) and padding == "same":
        return
    for axis, (length, taps) in enumerate(zip(size, kernel, strict=True)):
        pad = windows["padding"][axis % len(windows["padding"])]
        dilation = windows["dilation"][axis % len(windows["dilation"])]
        if length + 2 * pad < dilation * (taps - 1) + 1:
            raise Invalid(
                culprit,
                f"expected an input that holds the kernel, got input_shape {size} with padding"
                f" {windows['padding']} for a kernel {kernel} with dilation {windows['dilation']}",
                "Correct input_shape (the spatial size, without channels) or the kernel",
            )


def _check_flatten(fields: Mapping[str, Any], culprit: str) -> None:
    ends = [fields.get("start_dim", 1), fields.get("end_dim", -1)]
    start, end = (
        integers(value, culprit, name, least=-8, counts=(1,), most=8)[0]
        for value, name in zip(ends, ("start_dim", "end_dim"), strict=True)
    )
    if "input_type" not in fields:
        return
    rank = len(check_shape(fields["input_type"], culprit, "input_type"))
    first, last = (dim + rank if dim < 0 else dim for dim in (start, end))
    if not 0 <= first <= last < rank:
        raise Invalid(
            culprit,
            f"expected start_dim <= end_dim within {rank} dimension(s),"
            f" got start_dim {start}, end_dim {end}",
            "NIR has no batch axis: to flatten everything, start_dim is 0 and end_dim is -1",
        )

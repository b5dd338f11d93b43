"""The explicit state of a rule: a nested dict of arrays that the caller holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from array_api_compat import array_namespace, device

from grasp_plugin.errors import Invalid

Array = Any  # a NumPy array or torch tensor
State = dict[str, Any]  # nested, arrays at the leaves


def counter(like: Array) -> Array:
    """A step counter at 0 (1,), int64, beside `like`."""
    xp = array_namespace(like)
    return xp.zeros((1,), dtype=xp.int64, device=device(like))


def zeros(weight: Array, *shape: int) -> Array:
    """Zeros of a shape with weight's dtype, beside it."""
    return array_namespace(weight).zeros(shape, dtype=weight.dtype, device=device(weight))


def leaves(state: State, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """(dotted name, array) of every leaf of a nested dict, in order."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def with_leaves(state: State, arrays: dict[str, Array], prefix: str = "") -> State:
    """The same nested dict with the arrays that `leaves` names.

    Raises:
        Invalid: an array is missing.
    """
    out: State = {}
    for key, value in state.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            out[key] = with_leaves(value, arrays, f"{name}.")
        elif name in arrays:
            out[key] = arrays[name]
        else:
            raise Invalid(name, "expected this array in the state, got none", "Save it again")
    return out


def check_finite(state: State, *, node: str, step: int) -> None:
    """Refuse a state with NaN or infinity; call it before the step's weights are kept.

    Raises:
        Invalid: names the node, the step, the trace and how many entries are not finite.
    """
    for name, value in leaves(state):
        xp = array_namespace(value)
        if xp.isdtype(value.dtype, "real floating"):
            bad = int(xp.sum(xp.astype(~xp.isfinite(value), xp.int64)))
            if bad:
                raise Invalid(
                    node,
                    f"expected finite traces, got {bad} entries of {name!r} at step {step} that "
                    "are NaN or infinite",
                    "Go on from the weights of the step before, with a smaller learning rate or "
                    "input without NaN",
                )

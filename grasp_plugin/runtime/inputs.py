"""What a session is fed: checked, and as (time, batch, size) in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network.network import Network

Floats = npt.NDArray[np.float64]
Spikes: TypeAlias = "npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]"


def as_batches(network: Network, spikes: Spikes) -> tuple[dict[str, Floats], bool]:
    """Every input as (time, batch, size) float64, and whether the caller gave a batch axis.

    Raises:
        Invalid: a wrong name, shape or value.
    """
    given: Mapping[str, npt.NDArray[Any]]
    if isinstance(spikes, Mapping):
        given = spikes
    else:
        if len(network.inputs) != 1:
            raise Invalid(
                "spikes",
                f"expected a mapping with inputs {', '.join(network.inputs)}, got one array",
                "Pass {name: array}",
            )
        given = {next(iter(network.inputs)): spikes}
    if set(given) != set(network.inputs):
        raise Invalid(
            "spikes",
            f"expected inputs {', '.join(sorted(network.inputs))}, got {', '.join(sorted(given))}",
            "Name every input once",
        )
    out: dict[str, Floats] = {}
    batched: set[bool] = set()
    for name, shape in network.inputs.items():
        array = _as_array(name, given[name])
        has_batch = array.ndim == len(shape) + 2
        lead = array.ndim - len(shape)
        if lead not in (1, 2) or array.shape[lead:] != tuple(shape):
            raise Invalid(
                name,
                f"expected (time, neuron...) or (time, batch, neuron...) with neurons "
                f"{tuple(shape)}, got {array.shape}",
                "Check the axes: time comes first",
            )
        check_numbers(name, array)
        if array.shape[0] < 1 or (has_batch and array.shape[1] < 1):
            raise Invalid(
                name, f"expected at least one step and sample, got {array.shape}",
                "Pass an input that is not empty",
            )  # fmt: skip
        batch = array.shape[1] if has_batch else 1
        out[name] = array.reshape(array.shape[0], batch, -1).astype(np.float64)
        batched.add(has_batch)
    if len({a.shape[:2] for a in out.values()}) != 1 or len(batched) != 1:
        shapes = {name: a.shape for name, a in given.items()}
        raise Invalid("spikes", f"expected one time and batch size, got {shapes}", "Pad the inputs")
    return out, batched.pop()


def _as_array(name: str, given: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged; a tensor with a gradient
        raise Invalid(
            name, f"expected an array of numbers, got {type(given).__name__}: {error}",
            "Pass a NumPy array (of a tensor: tensor.detach().cpu().numpy())",
        ) from error  # fmt: skip


def check_numbers(name: str, array: npt.NDArray[Any]) -> None:
    """Refuse what is no number, NaN and infinity.

    Raises:
        Invalid: says how many they are, and where the first is.
    """
    if array.dtype.kind not in "biuf":
        raise Invalid(name, f"expected numbers, got {array.dtype}", "Convert the array")
    bad = ~np.isfinite(array)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise Invalid(
            name, f"expected finite numbers, got {int(bad.sum())} of {array.size} that are NaN or "
            f"infinite, the first {array[at]} at index {at} (time first)", "Mend the input",
        )  # fmt: skip


def require_whole_numbers(network: Network, inputs: Mapping[str, Floats]) -> None:
    """Integers take integers.

    Raises:
        Refused: a fraction where the network is in Loihi integers.
    """
    if network.precision != "loihi":
        return
    for name, array in inputs.items():
        if np.any(array != np.round(array)):
            raise Refused(
                name,
                f"expected whole numbers on Loihi, got {array[array != np.round(array)][0]}",
                "Encode the input as spikes or counts, or run in float",
            )

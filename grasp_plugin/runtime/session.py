"""`Session` and `Recording`: one interface for every back end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from grasp_plugin.errors import Invalid, Refused, RunFailed
from grasp_plugin.network.network import Network, Population

Floats = npt.NDArray[np.float64]
Spikes: TypeAlias = "npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]"


@dataclass(frozen=True, eq=False)
class Recording:
    """What a run produced, by population; index t is the network's step t for every population.

    Args:
        spikes: (time, [batch,] neuron...); 0 and 1 for spiking populations, the membrane for others
            (dequantised to the network's float units where the run was in integers).
        membrane: the membrane after the step (after its reset), same shapes; only if asked for.
        margin: distance of the membrane to the threshold in force, same shapes; torch only.
        saturated: entries (time, batch, neuron) at which an integer membrane was at its 24-bit
            limit, by population; only populations where that happened.
        outputs: NIR output node -> population.
    """

    spikes: dict[str, Floats]
    outputs: dict[str, str]
    membrane: dict[str, Floats] = field(default_factory=dict)
    margin: dict[str, Floats] = field(default_factory=dict)
    saturated: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Floats:
        """The record of a population, or of the population that an output node shows."""
        return self.spikes[self.outputs.get(name, name)]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k} {v.shape}" for k, v in self.spikes.items())
        return f"Recording({shapes})"


class Session(ABC):
    """A network that has been built for one back end; a context manager.

    `run` starts from rest each time. After `close` every call raises `RunFailed`.
    """

    network: Network

    def __init__(self, network: Network) -> None:
        self.network = network
        self._closed = False

    def run(
        self, spikes: Spikes, record: tuple[str, ...] = (), progress: bool = False
    ) -> Recording:
        """Run the network from rest on an input.

        Args:
            spikes: (time, neuron...) or (time, batch, neuron...); for a network with several inputs
                a mapping of input name to such an array, all with the same time and batch.
            record: any of "membrane" and, on torch, "margin".
            progress: show a progress bar.

        Raises:
            Invalid: wrong shape, NaN, or an unknown input or record.
            RunFailed: the session is closed, or the back end failed.
        """
        if self._closed:
            raise RunFailed("session", "expected an open session, got a closed one", "Build again")
        inputs, batched = as_batches(self.network, spikes)
        unknown = set(record) - set(self.records())
        if unknown:
            raise Invalid(
                ", ".join(sorted(unknown)),
                f"expected records among {self.records()}, got {tuple(record)}",
                "Leave it out or use another back end",
            )
        recording = self._run(inputs, record, progress)
        return recording if batched else _unbatched(recording)

    @abstractmethod
    def records(self) -> tuple[str, ...]:
        """What `run(record=...)` can keep beside the spikes."""

    @abstractmethod
    def _run(
        self, inputs: dict[str, Floats], record: tuple[str, ...], progress: bool
    ) -> Recording: ...

    @abstractmethod
    def weights(self) -> dict[str, Floats]:
        """The weights in force now, by projection, as `Network.with_weights` takes them."""

    @abstractmethod
    def state(self) -> dict[str, dict[str, Floats]]:
        """u and v of every population after the last run, (batch, neuron...), in float units.

        v includes the voltage that v = 0 stands for (the NIR node's v_reset).
        """

    def close(self) -> None:
        """Release what the session holds; safe to call twice."""
        self._closed = True

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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
        array = np.asarray(given[name])
        has_batch = array.ndim == len(shape) + 2
        if array.shape[array.ndim - len(shape) :] != tuple(shape) or array.ndim - len(
            shape
        ) not in (
            1,
            2,
        ):
            raise Invalid(
                name,
                f"expected (time, neuron...) or (time, batch, neuron...) with neurons "
                f"{tuple(shape)}, got {array.shape}",
                "Check the axes: time comes first",
            )
        if array.dtype.kind not in "biuf" or not np.all(np.isfinite(array)):
            raise Invalid(name, f"expected finite numbers, got {array.dtype}", "Remove NaN and inf")
        if array.shape[0] < 1 or (has_batch and array.shape[1] < 1):
            raise Invalid(name, f"expected at least one step and sample, got {array.shape}", "Add")
        batch = array.shape[1] if has_batch else 1
        out[name] = array.reshape(array.shape[0], batch, -1).astype(np.float64)
        batched.add(has_batch)
    if len({a.shape[:2] for a in out.values()}) != 1 or len(batched) != 1:
        shapes = {name: a.shape for name, a in given.items()}
        raise Invalid("spikes", f"expected one time and batch size, got {shapes}", "Pad the inputs")
    return out, batched.pop()


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


def in_float_units(p: Population, v: Any) -> Floats:
    """A membrane of `p`, float or in integers of 1 / (64 scale), as the voltage of the NIR node."""
    scale = 1.0 if p.scale is None else 64.0 * p.scale
    return np.asarray(v, np.float64) / scale + p.v_offset


def _unbatched(recording: Recording) -> Recording:
    def first(arrays: dict[str, Floats]) -> dict[str, Floats]:
        return {name: array[:, 0] for name, array in arrays.items()}

    return Recording(
        first(recording.spikes),
        recording.outputs,
        first(recording.membrane),
        first(recording.margin),
        recording.saturated,
    )

"""`Session` and `Recording`: one interface for every back end."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from grasp_plugin.errors import Invalid, Refused, RunFailed
from grasp_plugin.network.network import Network, Population
from grasp_plugin.runtime.checkpoint import load_arrays, save_arrays

if TYPE_CHECKING:
    from typing_extensions import Self

Floats = npt.NDArray[np.float64]
Spikes: TypeAlias = "npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]"


@dataclass(frozen=True, eq=False)
class Recording:
    """What a run produced, by population; index t is the network's step t for every population.

    Args:
        spikes: (time, [batch,] neuron...); 0 and 1 for spiking populations, the membrane for others
            (dequantised to the network's float units where the run was in integers).
        membrane: the membrane after the step (after its reset), same shapes; only if asked for.
        margin: distance of the membrane to the threshold in force, same shapes, 1 where there are
            no spikes; torch and fused only.
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


class Closing:
    """A context manager that refuses calls once it is closed."""

    _closed = False

    def _require_open(self) -> None:
        if self._closed:
            raise RunFailed("session", "expected an open session, got a closed one", "Build again")

    def close(self) -> None:
        """Release what the session holds; safe to call twice."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Session(Closing, ABC):
    """A network that has been built for one back end; a context manager.

    `run` starts from rest unless told to resume. After `close` every call raises `RunFailed`.
    """

    network: Network

    def __init__(self, network: Network) -> None:
        self.network = network
        self.steps = 0  # network steps since rest
        self._batch = 0

    def run(
        self,
        spikes: Spikes,
        record: tuple[str, ...] = (),
        progress: bool = False,
        resume: bool = False,
    ) -> Recording:
        """Run the network on an input, from rest or from where the last run ended.

        Args:
            spikes: (time, neuron...) or (time, batch, neuron...); for a network with several inputs
                a mapping of input name to such an array, all with the same time and batch.
            record: any of "membrane" and, on torch and fused, "margin".
            progress: show a progress bar.
            resume: go on from the state that the last run or `load` left; two runs then equal one
                run on both inputs, bit for bit. The batch must be the same.

        Raises:
            Invalid: wrong shape, NaN, or an unknown input or record.
            RunFailed: the session is closed, or the back end failed.
        """
        self._require_open()
        inputs, batched = as_batches(self.network, spikes)
        batch = next(iter(inputs.values())).shape[1]
        if resume and self.steps and batch != self._batch:
            raise Invalid(
                "spikes", f"expected the batch of {self._batch} to resume, got {batch}", "Run anew"
            )
        if not resume or not self.steps:
            self.steps, self._batch = 0, batch
            self._rest(batch)
        unknown = set(record) - set(self.records())
        if unknown:
            raise Invalid(
                ", ".join(sorted(unknown)),
                f"expected records among {self.records()}, got {tuple(record)}",
                "Leave it out or use another back end",
            )
        recording = self._run(inputs, record, progress)
        self.steps += next(iter(inputs.values())).shape[0]
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

    @abstractmethod
    def _rest(self, batch: int) -> None:
        """Put the state of `batch` samples to rest."""

    @abstractmethod
    def _state_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that a resumed run needs beside weights and step count."""

    @abstractmethod
    def _set_state_arrays(self, arrays: dict[str, npt.NDArray[Any]], batch: int) -> None: ...

    @abstractmethod
    def _set_weights(self, weights: dict[str, npt.NDArray[Any]]) -> None: ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, state and step count to one file (safetensors and JSON, no pickle).

        The file is complete or the old one is left: it is moved into place when it is written.

        Raises:
            Invalid: the folder cannot be written.
            RunFailed: the session is closed.
        """
        self._require_open()
        arrays = {f"weights/{name}": value for name, value in self.weights().items()}
        if self.steps:
            arrays |= {f"state/{name}": value for name, value in self._state_arrays().items()}
        facts = {"network": self._fingerprint(), "steps": self.steps, "batch": self._batch}
        save_arrays(path, arrays, facts)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take up what `save` wrote on this back end and network; `run(..., resume=True)` goes on.

        Raises:
            Invalid: not a checkpoint, or one of another back end or network.
            RunFailed: the session is closed.
        """
        self._require_open()
        arrays, facts = load_arrays(path)
        expected = self._fingerprint()
        if facts.get("network") != expected:
            raise Invalid(
                str(path),
                f"expected a checkpoint of {expected}, got one of {facts.get('network')}",
                "Load it into a session of the network and back end that saved it",
            )
        self._set_weights(_below("weights/", arrays))
        self.steps, self._batch = int(facts["steps"]), int(facts["batch"])
        if self.steps:
            self._set_state_arrays(_below("state/", arrays), self._batch)

    def _fingerprint(self) -> list[str]:
        """Back end, precision, populations and projections, as text."""
        network = self.network
        return [
            f"{type(self).__name__} {network.precision} dt {network.dt_s}",
            *(
                f"{p.name} {p.node} {p.shape} {p.reset}" + (" adaptive" if p.adaptive else "")
                for p in network.populations
            ),
            *(f"{k.name} {tuple(k.weight.shape)}" for k in network.projections),
        ]


def _below(prefix: str, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


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
    return np.asarray(v, np.float64) / membrane_lsbs(p) + p.v_offset


def membrane_lsbs(p: Population) -> float:
    """Units of a population's membrane in one float unit."""
    return 1.0 if p.scale is None else 64.0 * p.scale


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

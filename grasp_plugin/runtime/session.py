"""`Session` and `Recording`: one interface for every back end."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from grasp_plugin.errors import Invalid, RunFailed
from grasp_plugin.network.network import Network, Population
from grasp_plugin.runtime.checkpoint import load_arrays, other_checkpoint, save_arrays
from grasp_plugin.runtime.inputs import Floats as Floats
from grasp_plugin.runtime.inputs import Spikes as Spikes
from grasp_plugin.runtime.inputs import as_batches as as_batches
from grasp_plugin.runtime.inputs import require_whole_numbers as require_whole_numbers

if TYPE_CHECKING:
    from typing_extensions import Self


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
        """The record of a population, or of the population that an output node shows.

        Raises:
            Invalid: neither of them, named with those that there are.
        """
        population = self.outputs.get(name, name)
        if population not in self.spikes:
            known = ", ".join(dict.fromkeys((*self.outputs, *self.spikes)))
            raise Invalid(
                str(name), f"expected an output or population, one of {known}, got {name!r}",
                "Check the name against print(network)",
            )  # fmt: skip
        return self.spikes[population]

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
        if isinstance(record, str):
            raise Invalid(
                "record", f"expected a tuple of names, got the string {record!r}",
                f"Pass ({record!r},)",
            )  # fmt: skip
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

    def learn(self, *_: Any, **__: Any) -> NoReturn:
        """Only a `LearningSession` learns.

        Raises:
            Invalid: always.
        """
        raise Invalid(
            "session", "expected plans to learn by, got a session that was built without",
            "Pass plans=..., e.g. build(network, plans=ottt_for(network, classes, 0.1))",
        )  # fmt: skip

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
            raise other_checkpoint(path, expected, facts, "network", "learning")
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

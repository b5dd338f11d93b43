"""`LearningSession`: a network that learns while it runs, the same on every back end."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.losses import one_hot
from grasp_plugin.learning.spec import Learning
from grasp_plugin.learning.states import State, leaves, with_leaves
from grasp_plugin.network.network import Network
from grasp_plugin.network.weights import Array
from grasp_plugin.runtime.checkpoint import load_arrays, other_checkpoint, save_arrays
from grasp_plugin.runtime.session import (
    Closing,
    Floats,
    Recording,
    Session,
    Spikes,
    as_batches,
)


@dataclass(frozen=True, eq=False)
class LearningRecord:
    """What a network said while it learned: no measure of accuracy, since the target of a sequence
    shapes the steps after the first. For that see `accuracy.prequential`.

    Args:
        logits: (time, [batch,] classes), from the readout population, before each step's update.
        rates: mean output a step by population, over time, batch and neurons.
    """

    logits: Floats
    rates: dict[str, float]

    @property
    def predicted(self) -> Array:
        """The class with the largest sum of logits over time, ([batch,])."""
        return np.asarray(self.logits.sum(axis=0).argmax(axis=-1))

    def __repr__(self) -> str:
        rates = ", ".join(f"{name} {rate:.3f}" for name, rate in self.rates.items())
        return f"LearningRecord(logits {self.logits.shape}, rates {rates})"


class LearningSession(Closing, ABC):
    """A network with plans, built for one back end; a context manager.

    `learn` runs a sequence from rest and changes the weights as it goes; `run` runs without
    learning, with the weights in force. Weights, random readouts, the counters of their random
    numbers and lasting transforms go on from one call to the next; traces do not. On "torch" the
    samples of a batch run together, and their updates are summed over it by ETLP, and averaged
    where the loss is a mean (DECOLLE, OTTT: B times less for each sample than one by one); on
    "lava" and "fused" they run one after another, each with the weights that the one before left,
    as on a chip.

    Args:
        network: what was built.
        learning: plans by projection or bias, signals by population.
    """

    def __init__(self, network: Network, learning: Learning) -> None:
        self.network, self.learning = network, learning
        self.steps = 0  # steps of learning so far

    def learn(
        self, spikes: Spikes, target: Any, *, mask: Any = None, progress: bool = False
    ) -> LearningRecord:
        """Run a sequence from rest, learning at every step.

        Args:
            spikes: as for `Session.run`: (time, [batch,] neuron...).
            target: a label for each sample, integer () or (batch,); or a target for each step,
                (time, [batch,] classes), such as one-hot rows.
            mask: (time, [batch]), 0 where there is no target and nothing is learned; None: all 1.
            progress: show a progress bar.

        Raises:
            Invalid: a wrong shape or value, a label out of range, or an update that is not finite,
                which is not made. The weights are then those of the last good step; on "lava",
                where each layer learns in its own time, each projection's own last good step.
            RunFailed: the session is closed.
        """
        self._require_open()
        inputs, batched = as_batches(self.network, spikes)
        steps, batch = next(iter(inputs.values())).shape[:2]
        targets = _targets(target, steps, batch, self.learning.classes, batched)
        masks = _masks(mask, steps, batch, batched)
        logits, sums = self._learn(inputs, targets, masks, progress)
        self.steps += steps
        size = {p.name: steps * batch * p.size for p in self.network.populations}
        rates = {name: float(total) / size[name] for name, total in sums.items()}
        return LearningRecord(logits if batched else logits[:, 0], rates)

    @abstractmethod
    def _learn(
        self, inputs: dict[str, Floats], target: Floats, mask: Floats, progress: bool
    ) -> tuple[Floats, dict[str, float]]:
        """(logits (time, batch, classes), sum of outputs by population)."""

    def run(
        self,
        spikes: Spikes,
        record: tuple[str, ...] = (),
        progress: bool = False,
        resume: bool = False,
    ) -> Recording:
        """Run from rest without learning; as `Session.run`, which alone can resume.

        Raises:
            Invalid: as `Session.run`; resume=True.
            RunFailed: the session is closed, or the back end failed.
        """
        self._require_open()
        if resume:
            raise self._rests("resume=True")
        with self._runner() as session:
            return session.run(spikes, record=record, progress=progress)

    @abstractmethod
    def _runner(self) -> Session:
        """A session that runs the network with the weights in force."""

    def state(self) -> NoReturn:
        """A learning session keeps no membranes: each sequence starts from rest.

        Raises:
            Invalid: always.
        """
        raise self._rests("state()")

    def records(self) -> tuple[str, ...]:
        """What `run(record=...)` can keep beside the spikes."""
        with self._runner() as session:
            return session.records()

    def _rests(self, asked: str) -> Invalid:
        return Invalid(
            "session", f"expected a session without plans for {asked}, got one that learns, whose "
            "sequences all start from rest", "Use build(session.learned(), backend) for it",
        )  # fmt: skip

    @abstractmethod
    def weights(self) -> dict[str, Array]:
        """The weights in force, by projection or bias that has a plan."""

    @abstractmethod
    def _set_weights(self, weights: dict[str, Array]) -> None: ...

    @abstractmethod
    def _memory(self) -> dict[str, Array]:
        """What lasts between sequences beside the weights, as flat arrays by dotted name."""

    @abstractmethod
    def _set_memory(self, arrays: dict[str, Array]) -> None: ...

    def transforms(self) -> dict[str, State]:
        """The states of the transforms that last, such as `GRASP`'s counts, by plan.

        Each is {place in the plan, from "0": nested dict of NumPy arrays}, copied, and as before
        step 0 where nothing was learned yet. Plans without such a transform are left out.
        """
        return {name: _copied(state) for name, state in self._lasting().items()}

    @abstractmethod
    def _lasting(self) -> dict[str, State]:
        """What `transforms` copies."""

    @abstractmethod
    def _set_lasting(self, states: dict[str, State]) -> None:
        """Take up states of the same structure; their arrays are given away."""

    def learned(self) -> Network:
        """The network with the weights in force, for `to_nir` (integers: `dequantise` it first)."""
        return self.network.with_weights(self.weights())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, readouts, counters and lasting states to one file, whole or not at all.

        Raises:
            Invalid: the folder cannot be written.
            RunFailed: the session is closed.
        """
        self._require_open()
        arrays = {f"weights/{name}": value for name, value in self.weights().items()}
        arrays |= {f"memory/{name}": value for name, value in self._memory().items()}
        arrays |= {f"transforms/{name}": value for name, value in leaves(self.transforms())}
        save_arrays(path, arrays, {"learning": self._fingerprint(), "steps": self.steps})

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take up what `save` wrote with the same network and plans, on any batch size.

        Raises:
            Invalid: not a checkpoint, or one of another back end, plan, or shape of network.
            RunFailed: the session is closed.
        """
        self._require_open()
        arrays, facts = load_arrays(path)
        if facts.get("learning") != self._fingerprint():
            raise other_checkpoint(path, self._fingerprint(), facts, "learning", "network")
        parts: dict[str, dict[str, Array]] = {"weights": {}, "memory": {}, "transforms": {}}
        for name, value in arrays.items():
            kind, _, rest = name.partition("/")
            parts[kind][rest] = value
        expected = {name: value.shape for name, value in self.weights().items()}
        found = {name: value.shape for name, value in parts["weights"].items()}
        if found != expected:
            raise Invalid(
                str(path), f"expected a checkpoint of weights {expected}, got {found}",
                "Load it into a session with the same network",
            )  # fmt: skip
        lasting = with_leaves(self.transforms(), parts["transforms"])
        self._set_weights(parts["weights"])
        self._set_memory(parts["memory"])
        self._set_lasting(lasting)
        self.steps = int(facts["steps"])

    def _fingerprint(self) -> list[str]:
        plans = [f"{name}: {plan}" for name, plan in sorted(self.learning.plans.items())]
        signals = [f"{name}: {s}" for name, s in sorted(self.learning.signals.items())]
        return [f"{type(self).__name__} {self.network.precision}", *plans, *signals]


def lasting_of(plan: Any, state: State) -> State:
    """The states of a plan's lasting transforms, by their place in it; `state` is the plan's."""
    transforms = enumerate(getattr(plan, "transforms", ()))
    return {str(i): state["transforms"][str(i)] for i, t in transforms if t.lasting}


def placed(plan: Any, state: State | None) -> State:
    """{place: state} of a plan's one lasting transform, whose state a fixed plan holds bare."""
    places = [str(i) for i, t in enumerate(getattr(plan, "transforms", ())) if t.lasting]
    return {places[0]: state} if state else {}


def with_states(state: State, lasting: State) -> State:
    """A plan's state with others for the transforms that `lasting` names."""
    return {**state, "transforms": {**state["transforms"], **lasting}}


def _copied(state: State) -> State:
    return {k: _copied(v) if isinstance(v, dict) else np.array(v) for k, v in state.items()}


def _targets(target: Any, steps: int, batch: int, classes: int, batched: bool) -> Floats:
    """Targets as (time, batch, classes)."""
    given = np.asarray(target)
    if given.ndim <= 1:
        labels = given.reshape(-1)
        if labels.shape != (batch,):
            raise Invalid(
                "target", f"expected a label for each of {batch} samples, got {given.shape}",
                "Pass one integer a sample, or (time, [batch,] classes)",
            )  # fmt: skip
        rows = one_hot(labels, classes, np.zeros(1), node="target")
        return np.broadcast_to(rows, (steps, batch, classes))
    full = given if batched else given[:, None]
    if full.shape != (steps, batch, classes) or given.dtype.kind not in "biuf":
        raise Invalid(
            "target", f"expected ({steps}, {batch}, {classes}) (time, batch, class), got "
            f"{full.shape} of {given.dtype}", "Check the axes: time comes first",
        )  # fmt: skip
    if not np.all(np.isfinite(full)):
        raise Invalid("target", "expected finite targets, got NaN or infinity", "Mask the steps")
    return full.astype(np.float64)


def _masks(mask: Any, steps: int, batch: int, batched: bool) -> Floats:
    """Masks as (time, batch, 1)."""
    if mask is None:
        return np.ones((steps, batch, 1))
    given = np.asarray(mask, dtype=np.float64)
    full = given[:, None] if given.ndim == 1 else given
    bounded = np.all((full >= 0) & (full <= 1))
    if full.shape not in ((steps, batch), (steps, 1)) or not bounded:
        raise Invalid(
            "mask", f"expected 0 to 1 in ({steps},) or ({steps}, {batch}), got {given.shape}"
            f"{'' if bounded else ' with others'}", "Pass 0 or 1 for each step (and sample)",
        )  # fmt: skip
    return np.broadcast_to(full, (steps, batch))[:, :, None]

"""Prequential accuracy of a network that learns: each block of samples is a test before a lesson.

    for each block of samples:  1. classify it with learning off, with the weights so far
                                2. learn from it

So no sample is judged after it was learned from, nor while: within a sequence, the label of a
sample already shapes the outputs that follow it, and a prediction read there is too good.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from grasp_plugin.backends.build import build
from grasp_plugin.data.samples import Samples
from grasp_plugin.errors import Invalid
from grasp_plugin.learning.signals import RandomReadout
from grasp_plugin.learning.spec import Learning
from grasp_plugin.network.network import Network
from grasp_plugin.network.weights import Array
from grasp_plugin.runtime.learning import LearningSession
from grasp_plugin.runtime.session import Recording, Spikes, as_batches


@dataclass(frozen=True)
class Curve:
    """Accuracy by the number of samples learned from, shares in [0, 1].

    Args:
        label: what the legend calls it.
        samples, accuracy: samples learned before a block was tested, and the block's accuracy.
        sizes: samples of each block.
        held_samples, held_out: the same of samples that are never learned from.
    """

    label: str
    samples: tuple[int, ...] = ()
    accuracy: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()
    held_samples: tuple[int, ...] = ()
    held_out: tuple[float, ...] = ()

    @property
    def learned(self) -> int:
        """Samples learned from so far."""
        return self.samples[-1] + self.sizes[-1] if self.samples else 0

    def tested(self, accuracy: float, size: int) -> Curve:
        """With one block more."""
        return replace(
            self, samples=(*self.samples, self.learned), accuracy=(*self.accuracy, accuracy),
            sizes=(*self.sizes, size),
        )  # fmt: skip

    def held(self, accuracy: float) -> Curve:
        """With one measurement more on held-out samples."""
        return replace(
            self, held_samples=(*self.held_samples, self.learned),
            held_out=(*self.held_out, accuracy),
        )  # fmt: skip

    def mean(self, samples: int) -> float:
        """Accuracy over the last blocks that hold at least `samples` samples."""
        taken, right = 0, 0.0
        for accuracy, size in zip(reversed(self.accuracy), reversed(self.sizes), strict=True):
            if taken >= samples:
                break
            taken, right = taken + size, right + accuracy * size
        return right / taken if taken else float("nan")


def predicted(network: Network, learning: Learning, recording: Recording) -> Array:
    """The class of each sample ([batch,]) of a run without learning, as learning would read it.

    The largest sum over time of the readout population's outputs, or of its random readout's.
    """
    population = network[learning.readout]
    output = recording.spikes[population.name]
    flat = output.reshape(*output.shape[: output.ndim - len(population.shape)], population.size)
    total = flat.sum(axis=0)
    signal = learning.signals.get(population.name)
    if isinstance(signal, RandomReadout):
        state = signal.init(population.size, np.zeros(1))
        total = total @ state["readout"].T + len(flat) * state["bias"]
    return np.asarray(total.argmax(axis=-1))


def accuracy(
    session: LearningSession, spikes: Spikes, labels: Array, *, measure_on: str | None = None
) -> float:
    """Share of the samples that the session classifies rightly with learning off.

    Args:
        spikes: (time, sample, neuron...).
        labels: (sample,).
        measure_on: another back end to run the weights in force on, such as "fused", which gives
            Lava's spikes in less time; None: the session's own.
    """
    if measure_on is None:
        recording = session.run(spikes)
    else:
        with build(session.learned(), backend=measure_on) as other:
            recording = other.run(spikes)
    said = predicted(session.network, session.learning, recording)
    return float(np.mean(said == labels))


def prequential(
    session: LearningSession,
    spikes: Array,
    labels: Array,
    curve: Curve,
    *,
    block: int = 20,
    held_out: Samples | None = None,
    every: int = 5,
    learn: bool = True,
    measure_on: str | None = None,
) -> Iterator[Curve]:
    """Test, then learn, through a stream of samples once, yielding the curve after each block.

    Args:
        spikes, labels: (time, sample, neuron...) and (sample,), in the order of the stream.
        curve: what to go on from, at first `Curve("name")`; the last one yielded has it all.
        block: samples classified with the same weights before they are learned from.
        held_out: (spikes, labels) that are only ever measured: now, after every `every` blocks and
            at the end.
        learn: False measures the same blocks and learns nothing.
        measure_on: as for `accuracy`.

    Raises:
        Invalid: no samples, labels that do not match them, block < 1, or as `learn`.
    """
    inputs, _ = as_batches(session.network, spikes)
    count = next(iter(inputs.values())).shape[1]
    if np.shape(labels) != (count,) or count < 1 or min(block, every) < 1:
        raise Invalid(
            "labels", f"expected samples, a label for each, block and every >= 1, got {count} "
            f"samples, labels {np.shape(labels)}, block {block} and every {every}",
            "Pass (time, sample, neuron...)",
        )  # fmt: skip
    if held_out is not None and not curve.held_samples:
        curve = curve.held(accuracy(session, *held_out, measure_on=measure_on))
    for number, first in enumerate(range(0, count, block), 1):
        part = slice(first, first + block)
        now, truth = spikes[:, part], labels[part]
        share = accuracy(session, now, truth, measure_on=measure_on)
        if learn:
            _learn(session, now, truth)
        curve = curve.tested(share, len(truth))
        if held_out is not None and (number % every == 0 or first + block >= count):
            curve = curve.held(accuracy(session, *held_out, measure_on=measure_on))
        yield curve


def _learn(session: LearningSession, spikes: Array, labels: Any) -> None:
    """One sample after another on every back end: torch would learn from a batch at once."""
    for sample in range(len(labels)):
        one = slice(sample, sample + 1)
        session.learn(spikes[:, one], labels[one])

"""The tasks and networks of the GRASP study: streams of spikes, and one network for each rule.

    digits     scikit-learn's 8 x 8 digits as Bernoulli spikes, rate 0.5 x pixel a step; 15 steps
    nmnist     N-MNIST, 2 x 9 x 9 (blocks of 4 x 4 pixels), 20 steps of 15 ms
    spoken     Free Spoken Digit Dataset, 32 mel bands up and down (`data.fsdd`), 25 steps of 20 ms

Splits are fixed, the same for every seed: test samples are never learned or tuned on. A seed sets
the order of the samples and, for digits, their spikes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from _digits import shuffled_digits

from grasp_plugin.learning import Learning, decolle_for, etlp_for, ottt_for
from grasp_plugin.network.network import Network, Population, Projection
from grasp_plugin.network.presets import decolle_network

CLASSES, HIDDEN = 10, 64
NMNIST, SPOKEN = "nmnist-train800.zip", "fsdd-4speakers.zip"
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Part:
    """Samples of every seed: spikes (S, n, T, N_in) uint8 and labels (S, n)."""

    x: Array
    labels: Array


@dataclass(frozen=True, eq=False)
class Task:
    """A stream to learn and what is measured on.

    Args:
        parts: "train", "validation", "test"; with drift also "turned" (to learn) and "turned_test".
        first: steps of a sample before anything is written.
    """

    name: str
    parts: dict[str, Part]
    first: int

    @property
    def inputs(self) -> int:
        return int(self.parts["train"].x.shape[3])


# --- data -----------------------------------------------------------------------------------------


def digits(seeds: int, steps: int = 15, train: int = 900, passes: int = 1) -> Task:
    """897 images to learn from at most, 300 to tune on, 600 to test; the sensor turns by 90 degrees
    for the last 300 that are learned.

    Raises:
        Invalid: scikit-learn is not installed.
    """
    images, labels, order = shuffled_digits()
    cut = {"train": order[900:][:train], "validation": order[600:900], "test": order[:600]}
    images = images.reshape(-1, 8, 8) / 16

    def part(name: str, turned: bool = False, most: int | None = None) -> Part:
        again, mixed = 1 if turned else passes, name == "train"
        return _stacked([_bernoulli(s, images, labels, cut[name], steps, turned, mixed, again, most)
                         for s in range(seeds)])  # fmt: skip

    parts = {name: part(name) for name in cut}
    parts |= {"turned": part("train", True, 300), "turned_test": part("test", True)}
    return Task("digits", parts, steps // 4)


def _bernoulli(
    seed: int, images: Array, labels: Array, which: Array, steps: int, turned: bool, mixed: bool,
    passes: int, most: int | None,
) -> tuple[Array, Array]:  # fmt: skip
    rng = np.random.default_rng((seed, int(turned), int(which[0])))
    if mixed:
        which = np.concatenate([rng.permutation(which) for _ in range(passes)])[:most]
    seen = np.rot90(images, axes=(1, 2)) if turned else images
    rate = 0.5 * seen[which].reshape(len(which), 1, -1)
    return (rng.random((len(which), steps, rate.shape[2])) < rate).astype(np.uint8), labels[which]


def nmnist(seeds: int, data: Path, steps: int = 20, train: int = 480, passes: int = 3) -> Task:
    """480 recordings to learn from, three times; 120 to tune on, 200 to test, by id."""
    from grasp_plugin.data.nmnist import load_nmnist, to_frames

    recordings = load_nmnist(data / NMNIST)
    frames = np.stack([to_frames(one, steps=steps, pool=2) for one in recordings])
    wide = np.pad(frames, [(0, 0)] * 3 + [(0, 1)] * 2)  # 17 -> 18 blocks of 2 pixels
    x = wide.reshape(len(frames), steps, 2, 9, 2, 9, 2).max((4, 6)).reshape(len(frames), steps, -1)
    labels = np.array([one.label for one in recordings])
    order = np.random.default_rng(0).permutation(len(x))
    cut = {"train": order[320:][:train], "validation": order[200:320], "test": order[:200]}
    return Task("nmnist", _cut(seeds, x, labels, cut, passes), steps // 4)


def spoken(seeds: int, data: Path, steps: int = 25, train: int = 800) -> Task:
    """Index 10 to 29 of each digit and speaker to learn from, 5 to 9 to tune on, 0 to 4 to test."""
    from grasp_plugin.data.fsdd import load_fsdd, to_spikes

    recordings = load_fsdd(data / SPOKEN, indices=range(30))
    x = np.stack([to_spikes(one, steps, 32, 0.02) for one in recordings])
    labels = np.array([one.label for one in recordings])
    index = np.array([one.index for one in recordings])
    low = {"train": 10, "validation": 5, "test": 0}
    high = {"train": 30, "validation": 10, "test": 5}
    cut = {n: np.flatnonzero((index >= low[n]) & (index < high[n])) for n in low}
    cut["train"] = np.random.default_rng(0).permutation(cut["train"])[:train]
    return Task("spoken", _cut(seeds, x, labels, cut), steps // 4)


def _cut(
    seeds: int, x: Array, labels: Array, cut: dict[str, Array], passes: int = 1
) -> dict[str, Part]:
    """The same recordings for every seed; those to learn from in the seed's order."""
    parts = {}
    for name, which in cut.items():
        orders = [which] * seeds
        if name == "train":
            draws = [np.random.default_rng(s) for s in range(seeds)]
            orders = [np.concatenate([d.permutation(which) for _ in range(passes)]) for d in draws]
        parts[name] = _stacked([(x[w], labels[w]) for w in orders])
    return parts


def _stacked(pairs: list[tuple[Array, Array]]) -> Part:
    return Part(np.stack([x for x, _ in pairs]), np.stack([y for _, y in pairs]))


# --- networks -------------------------------------------------------------------------------------


def decolle_made(inputs: int, seed: int) -> tuple[Network, Learning]:
    """Two layers of 64 neurons, each with a random readout."""
    network = decolle_network(
        [inputs, HIDDEN, HIDDEN], alpha=0.8, beta=0.7, alpha_rp=0.65, seed=seed
    )
    return network, decolle_plans(network, seed)


def decolle_plans(network: Network, seed: int) -> Learning:
    """What learns a network of `decolle_made`, or one with other thresholds."""
    return decolle_for(network, CLASSES, 1.0, amplitude=2.0, seed=1000 * seed)


def etlp_made(inputs: int, seed: int) -> tuple[Network, Learning]:
    """64 leaky neurons and a readout; a teaching event at every step.

    ETLP's own network has an adaptive threshold, hence a trace for each synapse; a fixed threshold
    and one decay leave a trace of rank 1. Hidden weights learn at a tenth of the readout's rate:
    nothing but the surrogate's support ends the push of a label on a hidden neuron.
    """
    network = layers([inputs, HIDDEN, CLASSES], seed)
    learning = etlp_for(network, CLASSES, 1.0, probability=1.0, seed=1000 * seed)
    plans: dict[str, Any] = dict(learning.plans)
    plans["input->layer1"] = replace(plans["input->layer1"], learning_rate=0.1)
    return network, replace(learning, plans=plans)


def ottt_made(inputs: int, seed: int) -> tuple[Network, Learning]:
    """Two layers of 64 leaky neurons and a readout."""
    network = layers([inputs, HIDDEN, HIDDEN, CLASSES], seed)
    return network, ottt_for(network, CLASSES, 1.0)


def layers(sizes: Sequence[int], seed: int) -> Network:
    """Layers of leaky neurons with subtractive reset, and memoryless linear outputs."""
    rng = np.random.default_rng(seed)
    last = len(sizes) - 1
    names = ["input", *(f"layer{k}" for k in range(1, last)), "readout"]
    gains = [2.0, *[2.5] * (last - 2), 0.5]
    populations, projections = [], []
    for k, (n_i, n_o) in enumerate(pairwise(sizes)):
        hidden = k < last - 1
        populations.append(_leaky(names[k + 1], n_o, 0.2 if hidden else 1.0, hidden))
        weight = gains[k] * rng.normal(size=(n_o, n_i)) / np.sqrt(n_i)
        name = f"{names[k]}->{names[k + 1]}"
        projections.append(Projection(name, names[k], names[k + 1], weight))
    return Network(
        tuple(populations), tuple(projections), (), {"input": (sizes[0],)}, {"out": "readout"}, 1e-3
    )


def _leaky(name: str, size: int, leak: float, spiking: bool) -> Population:
    one, zero = np.ones(size), np.zeros(size)
    node, reset = ("LIF", "subtract-delayed") if spiking else ("LI", None)
    return Population(name, (size,), node, reset, one, leak * one, one, zero, zero, one, zero)


RULES: dict[str, Callable[[int, int], tuple[Network, Learning]]] = {
    "decolle": decolle_made, "etlp": etlp_made, "ottt": ottt_made,
}  # fmt: skip

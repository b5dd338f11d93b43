"""What the learning examples 04 to 07 share: networks from scratch, recordings, pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np

from grasp_plugin import Discretisation, discretise
from grasp_plugin.accuracy import Curve
from grasp_plugin.data.nmnist import SIZE, Recording, load_nmnist, to_frames
from grasp_plugin.data.samples import Samples
from grasp_plugin.network import Network
from grasp_plugin.plot import figure, learning_curves

DATA = Path(__file__).resolve().parent / "data"
STEPS, DT_S, POOL = 30, 0.01, 2
PIXELS = (2, 17, 17)  # polarity, y, x
KEEP = 0.9  # of the membrane, a step


def neurons(count: int, keep: float = KEEP) -> nir.LIF:
    """Leaky neurons with threshold 1 whose inputs add to the membrane as they are."""
    tau, gain = DT_S / (1 - keep), 1 / (1 - keep)
    full = np.ones(count)
    return nir.LIF(tau * full, gain * full, 0 * full, v_threshold=full, v_reset=0 * full)


def membranes(count: int, keep: float = KEEP) -> nir.LI:
    """Leaky neurons without a threshold, to read a class from."""
    full = np.ones(count)
    return nir.LI(DT_S / (1 - keep) * full, full / (1 - keep), 0 * full)


def layers(rng: np.random.Generator, shape: Sequence[int], *stack: tuple[Any, float]) -> Network:
    """A stack of dense layers, as NIR and then in discrete time; resets subtract the threshold.

    Args:
        shape: of the input.
        stack: (neurons, gain): weights are drawn from gain U(-1, 1) / sqrt(inputs).
    """
    shape = np.array(shape)
    nodes: dict[str, Any] = {"input": nir.Input(shape)}
    if len(shape) > 1:
        nodes["flatten"] = nir.Flatten({"input": shape}, 0, -1)
    below = int(np.prod(shape))
    for number, (cells, gain) in enumerate(stack, 1):
        size = len(cells.tau)
        weight = gain * rng.uniform(-1, 1, (size, below)) / np.sqrt(below)
        nodes |= {f"w{number}": nir.Linear(weight), f"layer{number}": cells}
        below = size
    nodes["output"] = nir.Output(np.array([below]))
    graph = nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False)
    return discretise(graph, Discretisation(dt_s=DT_S, reset="subtract-delayed"))


def nmnist(part: str, degrees: float = 0.0, source: Path | None = None) -> Samples:
    """N-MNIST: 80 recordings to learn from ("train") or 140 held out ("test"), and labels.

    Spikes (time, sample, polarity, y, x): 30 steps of 10 ms, 17 x 17 pixels.

    Args:
        degrees: by how much the sensor is turned.
        source: a larger N-MNIST, of which "train" is all but the held-out recordings.
    """
    ids = json.loads((DATA / "nmnist_split.json").read_text())
    if source is None or part == "test":
        recordings = load_nmnist(DATA / "nmnist_subset.zip", ids=ids[part])
    else:
        recordings = [one for one in load_nmnist(source, part="Train") if one.id not in ids["test"]]
    recordings = [turned(one, degrees) for one in recordings]
    frames = [to_frames(one, steps=STEPS, pool=POOL) for one in recordings]
    labels = np.array([one.label for one in recordings])
    return np.stack(frames, axis=1).astype(np.float64), labels


def turned(recording: Recording, degrees: float) -> Recording:
    """The recording as a sensor sees it that has turned; what leaves the sensor is lost."""
    angle, middle = np.deg2rad(degrees), (SIZE - 1) / 2
    x, y = recording.x - middle, recording.y - middle
    x, y = (
        np.rint(np.cos(angle) * x - np.sin(angle) * y + middle).astype(int),
        np.rint(np.sin(angle) * x + np.cos(angle) * y + middle).astype(int),
    )
    on = (x >= 0) & (x < SIZE) & (y >= 0) & (y < SIZE)
    return Recording(
        recording.id, recording.label, x[on], y[on], recording.p[on], recording.t_us[on]
    )


def stream(samples: Samples, passes: int, rng: np.random.Generator, shift: int = 1) -> Samples:
    """The samples again and again, in a new order each time, moved by up to `shift` pixels.

    Classes come in rounds, each once in a round, so that none is forgotten for long.
    """
    spikes, labels = samples
    order = np.concatenate([rounds(labels, rng) for _ in range(passes)])
    if not shift:
        return spikes[:, order], labels[order]
    out = np.empty((len(spikes), len(order), *spikes.shape[2:]))
    for place, sample in enumerate(order):
        move = tuple(rng.integers(-shift, shift + 1, 2))
        out[:, place] = np.roll(spikes[:, sample], move, axis=(-2, -1))
    return out, labels[order]


def rounds(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order in which each class is spread evenly: one of each in a round, if all are as many."""
    places = np.empty(len(labels))
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        places[mine] = (rng.permutation(len(mine)) + rng.random(len(mine))) / len(mine)
    return np.argsort(places)


def picture(panels: dict[str, Sequence[Curve]], path: Path, title: str, classes: int = 10) -> None:
    """Accuracy over time, a panel for each entry, saved as PNG."""
    drawn, axes = figure(1, len(panels), width=max(7.0, 4.0 * len(panels)), height=4.0)
    for axis, (name, curves) in zip(axes[0], panels.items(), strict=True):
        learning_curves(axis, curves, chance=1 / classes)
        axis.set_title(name, fontsize="medium")
        axis.legend(loc="upper left", fontsize="small", framealpha=0.9)
    axes[0, 0].set_ylabel("accuracy (%)")
    drawn.suptitle(title, fontsize="medium")
    drawn.savefig(path, dpi=130)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"

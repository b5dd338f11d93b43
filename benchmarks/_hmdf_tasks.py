"""The data of `benchmarks/hmdf.py`, as (time, sample, input) and labels.

nmnist    N-MNIST, 2 x 17 x 17 (blocks of 2 x 2 pixels), 8 steps of 37.5 ms, spikes 0 and 1
digits    scikit-learn's 8 x 8 digits by direct coding: the image at each of 4 steps, its 16
          grey levels as codes of 4 bits (the brightest two are one), in quarters
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _digits import shuffled_digits
from torch import Tensor

from grasp_plugin.data.nmnist import load_nmnist, to_frames

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "data"
SUBSET, SPLIT = EXAMPLES / "nmnist_subset.zip", EXAMPLES / "nmnist_split.json"


@dataclass(frozen=True, eq=False)
class Samples:
    """x (time, sample, input) float32, y (sample,)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, which: Tensor) -> Samples:
        return Samples(self.x[:, which], self.y[which])


@dataclass(frozen=True, eq=False)
class Task:
    """What to train and to measure on; the input's codes go up to input_top, worth input_step."""

    name: str
    train: Samples
    test: Samples
    input_step: float
    input_top: int

    @property
    def steps(self) -> int:
        return len(self.train.x)

    @property
    def inputs(self) -> int:
        return int(self.train.x.shape[2])

    def held_out(self) -> tuple[Samples, Samples]:
        """The first four fifths of the training samples, and the last: to tune on."""
        cut = len(self.train) * 4 // 5
        order = torch.arange(len(self.train))
        return self.train.take(order[:cut]), self.train.take(order[cut:])


def nmnist(data: Path, steps: int = 8) -> Task:
    """Recordings of `data` but the 140 test ids of the subset, by id; and those."""
    test = set(json.loads(SPLIT.read_text())["test"])
    train = [one for one in load_nmnist(data) if one.id not in test]
    parts = []
    for recordings in (train, load_nmnist(SUBSET, ids=test)):
        frames = np.stack([to_frames(one, steps=steps, pool=2) for one in recordings])
        x = torch.from_numpy(frames.reshape(len(frames), steps, -1)).float().transpose(0, 1)
        parts.append(Samples(x.contiguous(), torch.tensor([one.label for one in recordings])))
    return Task("nmnist", *parts, 1.0, 1)


def digits(steps: int = 4) -> Task:
    """1197 images to train on, 600 to test, the same for every seed.

    Raises:
        Invalid: scikit-learn is not installed.
    """
    images, labels, order = shuffled_digits()
    codes = torch.from_numpy(np.minimum(images, 15) * 0.25).float()
    parts = [
        Samples(codes[which].expand(steps, -1, -1), torch.from_numpy(labels[which]).long())
        for which in (order[600:], order[:600])
    ]
    return Task("digits", *parts, 0.25, 15)

"""The tasks, models and methods of the meta-learning study.

    task     Double N-MNIST (`data.double_nmnist`), 5 ways, 1 or 5 shots, 2 x 8 x 16 inputs, 20
             steps
    SNN      256-128-5, `learning.meta.Stack`: leaky neurons, subtractive reset, membrane readout
    ANN      256-128-5, ReLU on the mean of the frames over time; as many weights, no biases

Every class and recording of the test part is seen in testing alone; step sizes and numbers of
steps of the controls are chosen on the validation part.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grasp_plugin.data.double_nmnist import load_double_nmnist
from grasp_plugin.data.episodes import FewShot
from grasp_plugin.learning.meta import MAML, Gradient, Stack, Tasks, spike
from grasp_plugin.learning.meta.grids import grid_of
from grasp_plugin.neurons.surrogate import FastSigmoid

WAYS, QUERIES, SIDE, STEPS, LEAST, HIDDEN = 5, 5, 8, 20, 3, 128
INPUTS = 2 * SIDE * 2 * SIDE
KEEP, GAIN, SLOPE = 0.9, 2.0, 4.0
ARCHIVE = "nmnist-train800.zip"


@dataclass(frozen=True)
class Method:
    """A way to come to five new classes.

    Args:
        name: in the tables.
        model: "snn" or "ann".
        meta: "maml", "pretrain" (a classifier of the training classes) or "none".
        order, adapt: of MAML; adapt "all" or "head".
        one_by_one: an inner step for each sample in turn, as on Lava.
        bits, rounding: of parameters, before and after every inner step; 32: float.
        onward: meta-train on from the float network of "MAML" with the same seed, where rounding
            from the first batch on costs more (seen on validation tasks).
    """

    name: str
    model: str = "snn"
    meta: str = "maml"
    order: int = 2
    adapt: str = "all"
    one_by_one: bool = False
    bits: int = 32
    rounding: str = "nearest"
    onward: bool = False


METHODS = (
    Method("MAML"),
    Method("FOMAML", order=1),
    Method("ANIL", adapt="head"),
    Method("ANIL, one by one", adapt="head", one_by_one=True),
    Method("no meta-training", meta="none"),
    Method("fine-tuning from pre-training", meta="pretrain"),
    Method("ANN, MAML", model="ann"),
    Method("ANN, no meta-training", model="ann", meta="none"),
)
GRIDS = ((8, "nearest"), (4, "nearest"), (4, "stochastic"), (2, "stochastic"))
PRECISIONS = (
    Method("MAML, 32 bits", onward=True),
    *(Method(f"MAML, {bits} bits, {how}", bits=bits, rounding=how, onward=True)
      for bits, how in GRIDS),
    *(Method(f"no meta-training, {bits} bits, {how}", meta="none", bits=bits, rounding=how)
      for bits, how in GRIDS),
)  # fmt: skip


class Dense(nn.Module):
    """The ANN: W_2 relu(W_1 x), x the mean of the frames over time."""

    def __init__(self, sizes: tuple[int, ...], gain: float) -> None:
        super().__init__()
        for i, (below, above) in enumerate(pairwise(sizes), 1):
            weight = torch.empty(above, below).uniform_(-1, 1) * (gain / below**0.5)
            self.register_parameter(f"weight_{i}", nn.Parameter(weight))
        self.top = len(sizes) - 1

    def forward(self, x: Tensor) -> Tensor:
        s = x.flatten(2).mean(0) * 4  # to about 1
        for i in range(1, self.top):
            s = torch.relu(s @ getattr(self, f"weight_{i}").T)
        out: Tensor = s @ getattr(self, f"weight_{self.top}").T
        return out


def model_of(method: Method, outputs: int = WAYS) -> Any:
    """A model with random weights, from torch's generator."""
    sizes = (INPUTS, HIDDEN, outputs)
    if method.model == "ann":
        return Dense(sizes, GAIN)
    return Stack(sizes, keep=KEEP, gain=GAIN, spikes=spike(FastSigmoid(SLOPE)))


def learner_of(method: Method, model: nn.Module, **options: Any) -> MAML:
    """MAML over a model, with the method's order, mask and grids; step sizes learned."""
    head = f"weight_{len(list(model.parameters()))}"
    chosen: dict[str, Any] = {
        "order": method.order, "mapped": True, "learn": "parameter",
        "adapt": [head] if method.adapt == "head" else None,
        "inner": Gradient(mapped=True, one_by_one=method.one_by_one),
    }  # fmt: skip
    if method.bits < 32:
        grids = {
            name: grid_of(method.bits, value, rounding=method.rounding, spread=3.0)
            for name, value in model.named_parameters()
        }
        chosen |= {"outer_grid": grids, "inner_grid": grids}
    return MAML(model, **(chosen | options))


def source_of(data: Path, steps: int = STEPS) -> FewShot:
    """Double N-MNIST from a folder that holds the archive, or from an archive itself."""
    path = data / ARCHIVE if data.is_dir() else data
    return load_double_nmnist(path, steps=steps, side=SIDE, least=LEAST)


def tasks_of(
    source: FewShot, part: str, seed: int, count: int, shots: int, queries: int = QUERIES
) -> Tasks:
    """Tasks for measuring: the same for every method."""
    rng = np.random.default_rng([seed, shots])
    return Tasks.of(source.batch(part, rng, count, ways=WAYS, shots=shots, queries=queries))

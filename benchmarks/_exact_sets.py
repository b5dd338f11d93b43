"""Digits and spoken digits by exact gradients and by surrogate-gradient BPTT, five seeds each.

    digits    scikit-learn's 8 x 8 digits, one spike a pixel at 20 ms (1 - p / 16); 64-100-10
    spoken    Free Spoken Digit Dataset, changes of loudness in 32 mel bands; 64-128-10

    nice -n 19 python benchmarks/_exact_sets.py [--data FOLDER] [--task digits spoken]
        [--delays no yes]

Both methods: the same starting weights (scaled until hidden neurons spike once a sample), order of
samples, batch of 32, Adam at a rate that falls by 0.95 an epoch, with and without delays, which
learn at DELAY_RATE times that rate. Rate and loss (first spikes of spiking outputs, or max V of
outputs that do not spike), and for BPTT the slope of the surrogate, are the best of a grid on
validation samples, of two seeds that are not reported. The test accuracy is that of the last epoch;
that of a run in which a neuron ran away, over 1024 spikes a sample, is 0.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _digits import shuffled_digits
from _exact_bptt import Grid, GridLayer, classes_of, compiled_loop, loss_of, trains
from _exact_store import Store
from _exact_tasks import padded, random_weights
from torch import Tensor
from tqdm import tqdm

from grasp_plugin.data.fsdd import load_fsdd, to_spikes
from grasp_plugin.errors import Refused
from grasp_plugin.learning.exact.function import Guard
from grasp_plugin.learning.exact.layers import LeakyReadout, SpikeTimeLayer
from grasp_plugin.learning.exact.losses import (
    first_spikes,
    ttfs_cross_entropy,
    voltage_cross_entropy,
)

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
BATCH, DECAY, DELAY_RATE, GDOT_MIN = 32, 0.95, 10.0, 1e-4
SEEDS, TUNING_SEEDS = (1, 2, 3, 4, 5), (101, 102)
RATES, LOSSES, SLOPES = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1), ("first", "vmax"), (10.0, 40.0)
KEYS = ("part", "task", "delays", "method", "loss", "lr", "slope", "seed", "epochs")
FIGURES = ("test", "validation", "cpu_s")
Array = Any
Split = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Set:
    """A data set as padded times (sample, input, spike) [ms] and labels, by split.

    Args:
        longest_ms: delays begin uniform in 0..longest. dt_ms: of BPTT.
    """

    name: str
    splits: dict[str, Split]
    hidden: int
    t_end: float
    longest_ms: float
    dt_ms: float
    epochs: int
    tuning_epochs: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        return (self.splits["train"][0].shape[1], self.hidden, 10)


def digits() -> Set:
    """600 images to test on, 300 to tune on, 897 to learn from."""
    images, labels, order = shuffled_digits()
    times = np.where(images > 0, 20.0 * (1 - images / 16), np.inf)[:, :, None]
    cut = {"train": order[900:], "validation": order[600:900], "test": order[:600]}
    return Set("digits", _split(times, labels, cut), 100, 60.0, 5.0, 1.0, 40, 10)


def spoken(data: Path = DATA) -> Set:
    """Recordings 15 to 49 of each digit and speaker to learn from, 10 to 14 to tune, 0 to 9."""
    recordings = load_fsdd(data / "fsdd-4speakers.zip")
    events = []
    for one in recordings:
        step, channel = np.nonzero(to_spikes(one))
        events.append((channel, 10.0 * step))
    index = np.array([one.index for one in recordings])
    low, high = (
        {"train": 15, "validation": 10, "test": 0},
        {"train": 50, "validation": 15, "test": 10},
    )
    cut = {n: np.flatnonzero((index >= low[n]) & (index < high[n])) for n in low}
    labels = np.array([one.label for one in recordings])
    return Set("spoken", _split(padded(events, 64), labels, cut), 128, 500.0, 40.0, 5.0, 20, 5)


SETS: dict[str, Callable[[], Set]] = {"digits": digits, "spoken": spoken}


def _split(times: Array, labels: Array, cut: dict[str, Array]) -> dict[str, Split]:
    return {
        n: (torch.from_numpy(times[w]), torch.from_numpy(labels[w].astype(np.int64)))
        for n, w in cut.items()
    }


# --- one network and how it answers, for both methods ---------------------------------------------


def start(task: Set, seed: int, delays: bool) -> tuple[list[Array], list[Array | None]]:
    """Weights and delays that both methods begin with."""
    rng = np.random.default_rng(seed)
    times = task.splits["train"][0][:64].numpy()
    late = [rng.uniform(0, task.longest_ms, pair[::-1]) for pair in itertools.pairwise(task.sizes)]
    weights = random_weights(times, task.sizes, task.t_end, seed)
    return list(weights), [d if delays else None for d in late]


class Exact(torch.nn.Module):
    """Spike times from layer to layer."""

    def __init__(self, task: Set, seed: int, delays: bool, loss: str, slope: float) -> None:
        super().__init__()
        del slope
        weights, late = start(task, seed, delays)
        options: dict[str, Any] = {
            "t_end_ms": task.t_end, "delays": "delay" if delays else (), "dtype": torch.float64,
        }  # fmt: skip
        ins, hidden, outs = task.sizes
        guard = Guard(gdot_min_per_ms=GDOT_MIN)
        self.one = SpikeTimeLayer(ins, hidden, guard=guard, **options)
        self.two: Any = (
            LeakyReadout(hidden, outs, **options)
            if loss == "vmax"
            else SpikeTimeLayer(hidden, outs, guard=guard, **options)
        )
        with torch.no_grad():
            for layer, w, d in zip((self.one, self.two), weights, late, strict=True):
                layer.weight.copy_(torch.from_numpy(w))
                if d is not None:
                    layer.get_parameter("delay").copy_(torch.from_numpy(d))
        self.kind, self.t_end = loss, task.t_end

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Of a batch."""
        out = self.two(self.one(x))
        if self.kind == "vmax":
            loss: Tensor = voltage_cross_entropy(out.v_max, y)
        else:
            loss = ttfs_cross_entropy(first_spikes(out), y, t_end_ms=self.t_end)
        return loss

    @torch.no_grad()
    def right(self, x: Tensor, y: Tensor) -> Tensor:
        """Which samples are told."""
        out = self.two(self.one(x))
        if self.kind == "vmax":
            told: Tensor = out.v_max.argmax(1) == y
        else:
            first = first_spikes(out)
            told = (first.argmin(1) == y) & torch.isfinite(first).any(1)
        return told

    def project_(self) -> None:
        self.one.project_()
        self.two.project_()


class Stepped(torch.nn.Module):
    """The same on a grid, with a surrogate."""

    def __init__(self, task: Set, seed: int, delays: bool, loss: str, slope: float) -> None:
        super().__init__()
        weights, late = start(task, seed, delays)
        self.grid, self.kind = Grid(task.dt_ms, task.t_end, slope), loss
        theta = math.inf if loss == "vmax" else 1.0
        self.one = GridLayer(weights[0], late[0], self.grid, compiled_loop)
        self.two = GridLayer(weights[1], late[1], self.grid, compiled_loop, theta)

    def _out(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = self.two(self.one(trains(x, self.grid))[0])
        return out

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Of a batch."""
        return loss_of(self.kind, self._out(x), y, self.grid.dt)

    @torch.no_grad()
    def right(self, x: Tensor, y: Tensor) -> Tensor:
        """Which samples are told."""
        return classes_of(self.kind, self._out(x), self.grid.dt) == y

    def project_(self) -> None:
        for layer in (self.one, self.two):
            if hasattr(layer, "delay"):
                with torch.no_grad():
                    layer.delay.clamp_(min=0.0)


METHODS: dict[str, Any] = {"exact": Exact, "BPTT": Stepped}


# --- training -------------------------------------------------------------------------------------


def fit(net: Any, task: Set, seed: int, epochs: int, lr: float) -> None:
    """Train in place."""
    own = dict(net.named_parameters())
    late = [p for n, p in own.items() if n.endswith("delay")]
    groups = [{"params": [p for n, p in own.items() if n.endswith("weight")], "lr": lr}]
    groups += [{"params": late, "lr": DELAY_RATE * lr}] if late else []
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, DECAY)
    x, y = task.splits["train"]
    for epoch in tqdm(range(epochs), desc=f"{type(net).__name__} {task.name}", leave=False):
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        for index in torch.split(torch.randperm(len(x), generator=generator), BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(net.loss(x[index], y[index]))
            optimizer.step()
            net.project_()
        schedule.step()


def accuracy(net: Any, split: Split) -> float:
    """Of a split, 100 samples at a time."""
    parts = [net.right(x, y) for x, y in zip(*(torch.split(t, 100) for t in split), strict=True)]
    return float(torch.cat(parts).double().mean())


def run(
    store: Store, part: str, task: Set, delays: bool, method: str, choice: dict[str, Any], seed: int
) -> dict[str, float]:
    """One training, from the file or made."""
    epochs = task.tuning_epochs if part == "tune" else task.epochs

    def call() -> dict[str, float]:
        began = time.process_time()
        net = METHODS[method](task, seed, delays, choice["loss"], choice["slope"])
        try:
            fit(net, task, seed, epochs, choice["lr"])
        except Refused:  # more than 1024 spikes of a neuron in a sample: the run has failed
            none = 0.0 if part == "test" else math.nan
            return {"test": none, "validation": 0.0, "cpu_s": time.process_time() - began}
        spent = time.process_time() - began
        test = accuracy(net, task.splits["test"]) if part == "test" else math.nan
        validation = accuracy(net, task.splits["validation"])
        return {"test": test, "validation": validation, "cpu_s": spent}

    return store.make(call, part=part, task=task.name, delays=delays, method=method, seed=seed,
                      epochs=epochs, **choice)  # fmt: skip


def tuned(store: Store, task: Set, delays: bool, method: str) -> dict[str, Any]:
    """The best loss, rate and slope on the validation samples, mean of two seeds."""
    slopes = SLOPES if method == "BPTT" else (0.0,)
    grid = [
        dict(zip(("loss", "lr", "slope"), values, strict=True))
        for values in itertools.product(LOSSES, RATES, slopes)
    ]
    scores = [
        np.mean(
            [run(store, "tune", task, delays, method, c, s)["validation"] for s in TUNING_SEEDS]
        )
        for c in tqdm(grid, desc=f"tuning {method} {task.name}")
    ]
    return grid[int(np.argmax(scores))]


def store_of(results: Path) -> Store:
    """The file of accuracies."""
    return Store(results / "exact_sets.csv", KEYS, FIGURES)


def train_all(
    results: Path,
    data: Path = DATA,
    names: tuple[str, ...] = tuple(SETS),
    delayed: tuple[str, ...] = ("no", "yes"),
) -> Store:
    """Tuning and seeds of every task, with and without delays, by both methods."""
    store = store_of(results)
    for name in names:
        task = spoken(data) if name == "spoken" else digits()
        for delays, method in itertools.product([d == "yes" for d in delayed], METHODS):
            best = tuned(store, task, delays, method)
            for seed in tqdm(SEEDS, desc=f"{method} {name}"):
                run(store, "test", task, delays, method, best, seed)
    return store


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with fsdd-4speakers.zip")
    parser.add_argument("--task", nargs="+", choices=tuple(SETS), default=tuple(SETS))
    parser.add_argument("--delays", nargs="+", choices=("no", "yes"), default=("no", "yes"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = ROOT / "benchmarks" / "results"
    train_all(out, options.data, tuple(options.task), tuple(options.delays))

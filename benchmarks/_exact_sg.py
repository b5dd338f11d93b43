"""Yin-Yang by surrogate-gradient BPTT: the baseline of `benchmarks/exact.py`.

The networks, starting weights, encoding, optimiser, decay and batch of `_exact_train` on a time
grid (`_exact_bptt`, its compiled loop, T = 50 ms). Learning rate, slope of the surrogate and the
loss (first spikes of spiking outputs, or max V of outputs that do not spike) are the best of a grid
on the validation set after a few epochs; fewer epochs than the exact runs, as stated by each row.

    nice -n 19 python benchmarks/_exact_sg.py
"""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import Any

import _exact_train as exact
import numpy as np
import torch
from _exact_bptt import Grid, GridLayer, classes_of, compiled_loop, loss_of, trains
from _exact_store import Store
from torch import Tensor
from tqdm import tqdm

T_END = 50.0
RATES, SLOPES, LOSSES = (5e-3, 1e-2), (10.0, 40.0, 100.0), ("first", "vmax")
TUNING_EPOCHS, TUNING_SEED, EPOCHS, SEEDS, DECAY = 4, 100, 30, (1, 2, 3, 4, 5), 0.95
COARSE, FINE = 1.0, 0.1
KEYS = ("part", "model", "dt_ms", "loss", "lr", "slope", "seed", "epochs")
FIGURES = ("test", "validation", "cpu_s")
RESULTS = Path(__file__).resolve().parent / "results"
NETS = Path(__file__).resolve().parents[1] / "bench_out" / "exact"

Nets = tuple[GridLayer, GridLayer]


def layers_for(model: exact.Model, seed: int, grid: Grid, loss: str) -> Nets:
    """The starting network of the exact run of that seed, on a grid."""
    start = exact.arrays_of(*exact.layers_for(model, seed))
    theta = 1.0 if loss == "first" else float("inf")
    one = GridLayer(start["w1"], start.get("d1"), grid, compiled_loop)
    return one, GridLayer(start["w2"], start.get("d2"), grid, compiled_loop, theta)


@torch.no_grad()
def accuracy(nets: Nets, loss: str, data: tuple[Tensor, Tensor]) -> float:
    """Of a network on its grid."""
    one, two = nets
    out = two(one(trains(data[0], one.grid))[0])
    return float((classes_of(loss, out, one.grid.dt) == data[1]).double().mean())


def fit(model: exact.Model, seed: int, epochs: int, grid: Grid, loss: str, lr: float) -> Nets:
    """A trained network."""
    x, y = exact.encode("train")
    one, two = layers_for(model, seed, grid, loss)
    groups: list[dict[str, Any]] = [{"params": [one.weight, two.weight], "lr": lr}]
    if model.delays:
        groups.append({"params": [one.delay, two.delay], "lr": 4 * lr})
    optimizer = torch.optim.Adam(groups, fused=True)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, DECAY)
    for epoch in tqdm(range(epochs), desc=f"BPTT {model.name} {grid.dt:g} ms", leave=False):
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(x), generator=generator)
        for index in torch.split(order, exact.BATCH):
            out = two(one(trains(x[index], grid))[0])
            optimizer.zero_grad()
            torch.autograd.backward(loss_of(loss, out, y[index], grid.dt))
            optimizer.step()
            if model.delays:
                with torch.no_grad():
                    one.delay.clamp_(min=0.0)
                    two.delay.clamp_(min=0.0)
        schedule.step()
    return one, two


def run(
    part: str, model: exact.Model, seed: int, epochs: int, dt: float, choice: dict[str, Any],
    store: Store, nets: Path,
) -> dict[str, float]:  # fmt: skip
    """One training, from the file or made; those of part "test" keep their network."""
    grid = Grid(dt, T_END, choice["slope"])

    def call() -> dict[str, float]:
        began = time.process_time()
        made = fit(model, seed, epochs, grid, choice["loss"], choice["lr"])
        spent = time.process_time() - began

        def score(split: str) -> float:
            return accuracy(made, choice["loss"], exact.encode(split))

        if part == "test":
            nets.mkdir(parents=True, exist_ok=True)
            arrays = {f"w{k}": layer.weight.detach().numpy() for k, layer in enumerate(made, 1)}
            arrays |= {f"d{k}": layer.delay.detach().numpy() for k, layer in enumerate(made, 1)
                       if model.delays}  # fmt: skip
            name = f"bptt_{model.name.replace(' ', '_')}_{dt:g}_{seed}.npz"
            np.savez(nets / name, **arrays, loss=choice["loss"])
        return {
            "test": score("test") if part == "test" else math.nan,
            "validation": score("validation"), "cpu_s": spent,
        }  # fmt: skip

    return store.make(
        call, part=part, model=model.name, dt_ms=dt, seed=seed, epochs=epochs, **choice
    )


def tuned(model: exact.Model, store: Store, nets: Path) -> dict[str, Any]:
    """The best learning rate, slope and loss on the validation set."""
    grid = [
        dict(zip(("loss", "lr", "slope"), values, strict=True))
        for values in itertools.product(LOSSES, RATES, SLOPES)
    ]
    found = [
        run("tune", model, TUNING_SEED, TUNING_EPOCHS, COARSE, choice, store, nets)["validation"]
        for choice in tqdm(grid, desc=f"tuning BPTT {model.name}")
    ]
    return grid[int(np.argmax(found))]


def train_all(results: Path = RESULTS, nets: Path = NETS) -> Store:
    """Tuning, then the seeds at 1 ms, then one at 0.1 ms of the wide network."""
    store = Store(results / "exact_bptt.csv", KEYS, FIGURES)
    best = {}
    for model in exact.MODELS[:2]:
        best[model.name] = tuned(model, store, nets)
        for seed in tqdm(SEEDS, desc="seeds"):
            run("test", model, seed, EPOCHS, COARSE, best[model.name], store, nets)
    wide = exact.MODELS[0]
    run("test", wide, SEEDS[0], EPOCHS // 2, FINE, best[wide.name], store, nets)
    return store


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_all()

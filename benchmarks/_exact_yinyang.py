"""The Yin-Yang trainings of `benchmarks/exact.py`, by themselves, to be left in the background.

    nice -n 19 python benchmarks/_exact_yinyang.py

A run that was stopped goes on from the last ten epochs. A network that is in the file of accuracies
but not in its folder is trained again, and must come out the same.
"""

from __future__ import annotations

from pathlib import Path

import _exact_train as exact
import torch
from _exact_store import Store
from tqdm import tqdm

RESULTS = Path(__file__).resolve().parent / "results"
NETS = Path(__file__).resolve().parents[1] / "bench_out" / "exact"


def store(results: Path = RESULTS) -> Store:
    """The file of test accuracies."""
    return Store(results / "exact_yinyang.csv", exact.KEYS, exact.FIGURES)


def train_all(results: Path = RESULTS, nets: Path = NETS) -> Store:
    """Every network and seed that is not there yet."""
    runs = store(results)
    for model, seed in tqdm(exact.plan(), desc="Yin-Yang"):
        key = {"model": model.name, "seed": seed, "epochs": exact.EPOCHS}
        known = runs.get(**key)
        if known is None or not exact.net_file(nets, model, seed).is_file():
            made = exact.train(model, seed, exact.EPOCHS, nets)
            known = runs.make(lambda m=made: m, **key)  # type: ignore[misc]
            if known["test"] != made["test"]:
                raise RuntimeError(f"{key}: {made['test']} now, {known['test']} in {runs.path}")
    return runs


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_all()

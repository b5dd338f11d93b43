"""The Yin-Yang trainings of `benchmarks/exact.py`, by themselves, to be left in the background.

    nice -n 19 python benchmarks/_exact_yinyang.py [--model "5-30-3 W+d" ...]

A run that was stopped goes on from the last ten epochs. A network that is in the file of accuracies
but not in its folder is trained again, and must come out the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _exact_train as exact
import torch
from _exact_store import Store
from tqdm import tqdm

RESULTS = Path(__file__).resolve().parent / "results"
NETS = Path(__file__).resolve().parents[1] / "bench_out" / "exact"
NAMES = tuple(model.name for model in exact.MODELS)


def store(results: Path = RESULTS) -> Store:
    """The file of test accuracies."""
    return Store(results / "exact_yinyang.csv", exact.KEYS, exact.FIGURES)


def train_all(results: Path = RESULTS, nets: Path = NETS, names: tuple[str, ...] = NAMES) -> Store:
    """Every network and seed that is not there yet."""
    runs = store(results)
    wanted = [(model, seed) for model, seed in exact.plan() if model.name in names]
    for model, seed in tqdm(wanted, desc="Yin-Yang"):
        key = {"model": model.name, "seed": seed, "epochs": exact.EPOCHS}
        known = runs.get(**key)
        if known is None or not exact.net_file(nets, model, seed).is_file():
            made = exact.train(model, seed, exact.EPOCHS, nets)
            known = runs.make(lambda m=made: m, **key)  # type: ignore[misc]
            if known["test"] != made["test"]:
                raise RuntimeError(f"{key}: {made['test']} now, {known['test']} in {runs.path}")
    return runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=NAMES, default=NAMES)
    torch.set_num_threads(1)
    train_all(names=tuple(parser.parse_args().model))

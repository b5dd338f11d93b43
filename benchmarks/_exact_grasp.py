"""GRASP over exact gradients: Yin-Yang 5-30-3 with delays at a share of the writes.

    nice -n 19 python benchmarks/_exact_grasp.py

Each of the four parameters (weights and delays of both layers) has a plan: the exact gradient, a
policy, Adam. One update a batch of 32; the rate is constant, the best of RATES on the validation
set, of a seed that is not reported, for each policy and share. Delays learn four times as fast.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _exact_train as exact
import numpy as np
from _exact_store import Store
from tqdm import tqdm

from grasp_plugin.learning.baselines import dense, magnitude, random_k
from grasp_plugin.learning.budget import Fixed
from grasp_plugin.learning.exact.episode import ExactGradient
from grasp_plugin.learning.exact.episode_learner import EpisodeLearner, run_stack
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.meter import UpdateMeter
from grasp_plugin.learning.optimise import Adam
from grasp_plugin.learning.rule import Plan

SHARES, RATES, SEEDS, TUNING_SEED = (0.05, 0.1, 0.2), (5e-3, 1e-2, 2e-2), (1, 2, 3, 4, 5), 101
EPOCHS, TUNING_EPOCHS = 12, 5
POLICIES: dict[str, Callable[[float], GRASP]] = {
    "dense": lambda share: dense(),
    "magnitude": magnitude,
    "pred_decrease": lambda share: GRASP(Fixed(share)),
    "random": random_k,
}
KEYS = ("part", "policy", "share", "lr", "seed", "epochs")
FIGURES = ("test", "validation", "writes", "cpu_s")
Array = Any


def store(results: Path) -> Store:
    """The file of accuracies."""
    return Store(results / "exact_grasp.csv", KEYS, FIGURES)


def learner_of(policy: str, share: float, lr: float, seed: int) -> EpisodeLearner:
    """The network of `_exact_train` at its start, with a plan for each parameter."""
    pair = exact.layers_for(exact.MODELS[1], seed)
    plans = {}
    for k in (1, 2):
        for name in ("weight", "delay"):
            rate = lr * exact.RATES[name]
            transforms = (POLICIES[policy](share), Adam(rate, rule_rate=rate))
            plans[f"layer{k}.{name}"] = Plan(ExactGradient(name, rate), transforms)
    return EpisodeLearner(
        [layer.snapshot() for layer in pair], plans, t_end_ms=exact.T_END,
        gdot_min_per_ms=exact.GDOT_MIN,
    )  # fmt: skip


def accuracy(learner: EpisodeLearner, split: str) -> float:
    """Of the stack as it is."""
    x, y = (t.numpy() for t in exact.encode(split))
    first = run_stack(learner.stack, x, exact.T_END)[-1].times[:, :, 0]
    return float(((first.argmin(1) == y) & np.isfinite(first).any(1)).mean())


def train(policy: str, share: float, lr: float, seed: int, part: str) -> dict[str, float]:
    """One network."""
    began = time.process_time()
    learner = learner_of(policy, share, lr, seed)
    x, y = (t.numpy() for t in exact.encode("train"))
    epochs = TUNING_EPOCHS if part == "tune" else EPOCHS
    for epoch in tqdm(range(epochs), desc=f"{policy} {share:g}", leave=False):
        order = np.random.default_rng((seed, epoch)).permutation(len(x))
        for index in np.array_split(order, len(x) // exact.BATCH):
            learner.learn(x[index], y[index])
    return {
        "test": accuracy(learner, "test") if part == "test" else math.nan,
        "validation": accuracy(learner, "validation"),
        "writes": UpdateMeter(learner).read().total.share, "cpu_s": time.process_time() - began,
    }  # fmt: skip


def train_all(results: Path) -> Store:
    """Every policy, share and seed that is not there yet."""
    runs = store(results)
    cases = [("dense", 1.0)] + [(p, s) for s in SHARES[::-1] for p in list(POLICIES)[1:]]

    def run(part: str, policy: str, share: float, lr: float, seed: int) -> dict[str, float]:
        epochs = TUNING_EPOCHS if part == "tune" else EPOCHS
        return runs.make(
            lambda: train(policy, share, lr, seed, part), part=part, policy=policy, share=share,
            lr=lr, seed=seed, epochs=epochs,
        )  # fmt: skip

    for policy, share in tqdm(cases, desc="GRASP over exact gradients"):
        found = [run("tune", policy, share, lr, TUNING_SEED)["validation"] for lr in RATES]
        best = RATES[int(np.argmax(found))]
        for seed in SEEDS:
            run("test", policy, share, best, seed)
    return runs


def summary(runs: Store) -> list[dict[str, Any]]:
    """By policy and share: mean test accuracy, and its paired difference from dense with 95 %."""
    by: dict[tuple[str, str], dict[str, Any]] = {}
    for row in runs.rows(part="test"):
        by.setdefault((row["policy"], row["share"]), {})[row["seed"]] = row
    base = by.get(("dense", "1.0"), {})
    out = []
    for (policy, share), rows in by.items():
        both = [s for s in rows if s in base]
        gap = np.array([100 * (rows[s]["test"] - base[s]["test"]) for s in both])
        error = 2.776 * gap.std(ddof=1) / math.sqrt(len(gap)) if len(gap) == 5 else math.nan
        out.append({
            "policy": policy, "share": share, "seeds": len(rows),
            "writes %": round(100 * float(np.mean([r["writes"] for r in rows.values()])), 2),
            "test %": round(100 * float(np.mean([r["test"] for r in rows.values()])), 2),
            "minus dense": round(float(gap.mean()), 2) if len(gap) else math.nan,
            "95 %": round(error, 2), "lr": next(iter(rows.values()))["lr"],
        })  # fmt: skip
    return out


if __name__ == "__main__":
    train_all(Path(__file__).resolve().parent / "results")

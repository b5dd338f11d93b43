"""The saving of GRASP in Loihi's integers: 8-bit weights, stochastic rounding, float beside it.

    python benchmarks/_grasp_fixed.py [--out <folder>] [--seeds 3] [--samples 400] [--rules ottt]

scikit-learn's digits, 10 steps a sample, one pass, a write at every step: the cases, policies and
rates of `_grasp_fixed_runs`. A policy has the best of three learning rates by the accuracy on the
validation samples, with the first seed; in integers the other seeds are run at it alone.
That Lava gives the same integer weights, bit for bit, is shown on a few samples for each rule and
policy. A finished run is a row of `grasp_fixed.csv` and is not made again.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import _grasp_tasks as tasks
import numpy as np
import torch
from _grasp_fixed_runs import CASES, POLICIES, in_float, learned, rates, same_on_lava
from _grasp_report import interval, percent
from tabulate import tabulate
from tqdm import tqdm

SEEDS, SAMPLES, STEPS = 3, 400, 10
TUNED = 1  # seeds on which a learning rate is chosen
FIELDS = (
    "rule", "precision", "policy", "samples", "lr", "seed", "accuracy_validation", "accuracy_test",
    "writes", "writes_per_nz", "changed", "clipped", "clipped_weights", "clipped_errors",
    "clipped_traces", "at_limit", "lava_equals_fused",
)  # fmt: skip
SHOWN = ("writes", "changed", "of_all", "clipped", "at_limit")
Rows = list[dict[str, str]]


def run(
    out: Path, seeds: int = SEEDS, samples: int = SAMPLES, rules: Iterable[str] = tuple(CASES)
) -> Rows:
    """Make what is missing of `grasp_fixed.csv`; all its rows."""
    path = out / "grasp_fixed.csv"
    rows = read(path)
    task = tasks.digits(seeds, STEPS, samples)
    for rule in rules:
        for policy in POLICIES:
            if not _where(rows, rule, "lava", policy, samples):
                same = {"lava_equals_fused": int(same_on_lava(task, rule, policy))}
                lr = rates(rule, policy)[-1]
                _append(path, rows, [_row(rule, "lava", samples, policy, lr, 0, same)])
        wanted = [(p, lr, s) for p in POLICIES for lr in rates(rule, p) for s in range(seeds)]
        missing = [k for k in wanted if not _done(rows, rule, "float", samples, *k)]
        if missing:
            made = in_float(task, rule, missing)
            _append(path, rows, [_row(rule, "float", samples, *k, found) for k, found in made])
    plan = [(rule, policy) for rule in rules for policy in POLICIES]
    for part in (range(min(TUNED, seeds)), range(TUNED, seeds)):
        for rule, policy, lr, seed in tqdm(list(_left(rows, plan, part, samples)), "in integers"):
            found = learned(task, rule, policy, lr, seed)
            _append(path, rows, [_row(rule, "integers", samples, policy, lr, seed, found)])
    return rows


def _left(
    rows: Rows, plan: Sequence[tuple[str, str]], seeds: range, samples: int
) -> Iterator[tuple[str, str, float, int]]:
    """Runs in integers that are missing; past the tuned seeds at the best rate alone."""
    for seed in seeds:
        for rule, policy in plan:
            tried = rates(rule, policy)
            if seed >= TUNED:
                tried = [best(_where(rows, rule, "integers", policy, samples))]
            for lr in tried:
                if not _done(rows, rule, "integers", samples, policy, lr, seed):
                    yield rule, policy, lr, seed


def best(rows: Rows) -> float:
    """The learning rate with the best mean validation accuracy over the tuned seeds."""
    found: dict[float, list[float]] = {}
    for r in rows:
        if int(r["seed"]) < TUNED:
            found.setdefault(float(r["lr"]), []).append(float(r["accuracy_validation"]))
    return max(sorted(found), key=lambda lr: np.mean(found[lr]))


def _row(
    rule: str, precision: str, samples: int, policy: str, lr: float, seed: int,
    found: dict[str, Any],
) -> dict[str, str]:  # fmt: skip
    texts = {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in found.items()}
    key = {"rule": rule, "precision": precision, "policy": policy, "samples": str(samples),
           "lr": f"{lr:g}", "seed": str(seed)}  # fmt: skip
    return {**dict.fromkeys(FIELDS, ""), **key, **texts}


def _where(rows: Rows, rule: str, precision: str, policy: str, samples: int) -> Rows:
    wanted = (rule, precision, policy, str(samples))
    return [r for r in rows if (r["rule"], r["precision"], r["policy"], r["samples"]) == wanted]


def _done(
    rows: Rows, rule: str, precision: str, samples: int, policy: str, lr: float, seed: int
) -> bool:
    at = (f"{lr:g}", str(seed))
    return any((r["lr"], r["seed"]) == at for r in _where(rows, rule, precision, policy, samples))


def read(path: Path) -> Rows:
    """All rows; none without the file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _append(path: Path, rows: Rows, lines: Rows) -> None:
    rows += lines
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerows(lines)


# --- the table ------------------------------------------------------------------------------------


def table(rows: Rows) -> str:
    """Markdown: accuracy in float and in integers, writes, and what rounding and limits did."""
    seeds = {r["seed"] for r in rows if r["precision"] == "integers"}
    samples = max((r["samples"] for r in rows), key=int, default=str(SAMPLES))
    proofs = [r["lava_equals_fused"] for r in rows if r["precision"] == "lava"]
    lines = [_line(rows, rule, policy, int(samples)) for rule in CASES for policy in POLICIES]
    legend = (
        f"Digits, {samples} samples once, {STEPS} steps each. Test accuracy in %, mean ± 95 % "
        f"interval over up to {len(seeds)} paired seeds, at the learning rate (lr) that is best on "
        "the validation samples of the first; `!`: at an end of those tried. - float, - dense: "
        "difference of integers to it, in points, of the same seeds. Writes: issued, in % of all "
        "synapses and steps; changed: those that changed a weight, in % of the issued and of "
        "all, since the others round to nothing. Clipped: writes that met a weight's limit, in % "
        "of the issued. At limit: weights there at the end. Weights on Lava and `fused` were "
        "equal, bit for bit, in "
        f"{sum(map(int, proofs))} of {len(proofs)} rules and policies tried."
    )
    return f"{legend}\n\n" + str(tabulate(
        [line for line in lines if line], tablefmt="github", disable_numparse=True,
        headers=["rule", "policy", "float", "integers", "- float", "- dense", "writes", "changed",
                 "of all", "clipped", "at limit", "lr float", "lr integers"],
    ))  # fmt: skip


def _line(rows: Rows, rule: str, policy: str, samples: int) -> list[str]:
    """One line of the table; empty where runs in integers are missing."""
    pairs = (("integers", policy), ("integers", "dense"), ("float", policy))
    made = [_where(rows, rule, precision, name, samples) for precision, name in pairs]
    if not all(made):
        return []
    own, dense, real = ([dict(r) for r in _chosen(m)] for m in made)
    mine, theirs, floats = (
        {r["seed"]: float(r["accuracy_test"]) for r in m} for m in (own, dense, real)
    )
    against, beside = (
        percent(*interval(np.array([mine[s] - o[s] for s in sorted(set(mine) & set(o))])), True)
        for o in (theirs, floats)
    )
    for r in own:
        r["of_all"] = str(float(r["writes"]) * float(r["changed"]))
    shown = [float(np.mean([float(r[n]) for r in own])) for n in SHOWN]
    return [
        rule, policy, percent(*interval(np.array(list(floats.values())))),
        percent(*interval(np.array(list(mine.values())))),
        beside, "" if policy == "dense" else against,
        *(f"{100 * mean:.3g}" for mean in shown),
        _rate(real, rule, policy), _rate(own, rule, policy),
    ]  # fmt: skip


def _chosen(rows: Rows) -> Rows:
    """The rows of the best learning rate."""
    lr = best(rows)
    return [r for r in rows if float(r["lr"]) == lr]


def _rate(rows: Rows, rule: str, policy: str) -> str:
    lr, tried = float(rows[0]["lr"]), rates(rule, policy)
    return f"{lr:g}{'!' * (lr in (tried[0], tried[-1]))}"


def quick() -> dict[str, float | bool]:
    """OTTT on 100 digits in integers, dense and 10 % of the writes, and 10 % in Lava too."""
    task = tasks.digits(1, STEPS, 100)
    dense, some = (learned(task, "ottt", p, 1e-2, 0) for p in ("dense", "magnitude 10 %"))
    return {
        "fixed_accuracy_dense": float(dense["accuracy_test"]),
        "fixed_accuracy_grasp": float(some["accuracy_test"]),
        "fixed_writes_share": float(some["writes"]),
        "fixed_changed_share": float(some["changed"]),
        "lava_equals_fused": same_on_lava(task, "ottt", "magnitude 10 %", 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--rules", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.quick:
        print(quick())
        return
    print(table(run(given.out, given.seeds, given.samples, given.rules)))


if __name__ == "__main__":
    main()

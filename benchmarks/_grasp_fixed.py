"""The saving of GRASP in Loihi's integers: 8-bit weights, stochastic rounding, float beside it.

    python benchmarks/_grasp_fixed.py [--out <folder>] [--seeds 5] [--rules ottt] [--policies dense]

scikit-learn's digits, 897 images twice, 10 steps each, a write at every step, tested on 600 others:
the cases and policies of `_grasp_fixed_runs`. Every policy, dense and float too, has the learning
rate of a ladder (1, 2, 5, 10 ...) that is best on the validation images with two seeds, looked for
until its neighbours on both sides are worse; it is reported with other seeds. That Lava gives the
same integer weights, bit for bit, is shown on a few samples for each rule and policy at that rate.
A finished run is a row of `grasp_fixed.csv` and is not made again.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import _grasp_tasks as tasks
import numpy as np
import torch
from _grasp_fixed_runs import (
    CASES,
    LADDER,
    POLICIES,
    SAME_AS_DENSE,
    in_float,
    learned,
    policies,
    same_on_lava,
)
from _grasp_report import interval, percent
from tabulate import tabulate
from tqdm import tqdm

SEEDS, SAMPLES, PASSES, STEPS = 5, 897, 2, 10
TUNED = 2  # seeds on which a learning rate is chosen: 0 and 1; those reported come after them
FIELDS = (
    "rule", "precision", "policy", "samples", "lr", "seed", "accuracy_validation", "accuracy_test",
    "writes", "writes_per_nz", "changed", "clipped", "clipped_weights", "clipped_errors",
    "clipped_traces", "at_limit", "lava_equals_fused",
)  # fmt: skip
SHOWN = ("writes", "writes_per_nz", "changed", "of_all", "at_limit")
PRECISIONS = {"integers": learned, "float": in_float}
Rows = list[dict[str, str]]


class Study:
    """The rows of `grasp_fixed.csv`, and the runs that it lacks.

    Args:
        path: of the file.
        seeds: how many are reported.
        samples, passes: images to learn from, and how often.
    """

    def __init__(self, path: Path, seeds: int, samples: int, passes: int) -> None:
        self.path, self.samples = path, samples * passes
        self.rows = [r for r in read(path) if r["samples"] == str(self.samples)]
        self.reported = range(TUNED, TUNED + seeds)
        self.task = tasks.digits(TUNED + seeds, STEPS, samples, passes)
        self.bar = tqdm(desc="runs", unit="run")

    def make(self, rule: str, precision: str, policy: str) -> None:
        """All runs of one line of the table."""
        lr = self.rate(rule, precision, policy)
        for seed in self.reported:
            self.run(rule, precision, policy, lr, seed)
        if precision == "integers" and not where(self.rows, rule, "lava", policy):
            same = same_on_lava(self.task, rule, policy, lr)
            self._append(rule, "lava", policy, lr, 0, {"lava_equals_fused": int(same)})

    def rate(self, rule: str, precision: str, policy: str) -> float:
        """The best learning rate, with both neighbours tried."""
        if policy in SAME_AS_DENSE:
            return self.rate(rule, precision, "dense")
        near = {LADDER.index(CASES[rule].rate)}
        while True:
            for i in sorted(near):
                for seed in range(TUNED):
                    self.run(rule, precision, policy, LADDER[i], seed)
            top = LADDER.index(best(where(self.rows, rule, precision, policy)))
            wanted = {i for i in (top - 1, top + 1) if 0 <= i < len(LADDER)}
            if wanted <= near:
                return LADDER[top]
            near |= wanted

    def run(self, rule: str, precision: str, policy: str, lr: float, seed: int) -> None:
        """One run, if it is not there."""
        made = where(self.rows, rule, precision, policy)
        if not any((r["lr"], r["seed"]) == (f"{lr:g}", str(seed)) for r in made):
            found = PRECISIONS[precision](self.task, rule, policy, lr, seed)
            self._append(rule, precision, policy, lr, seed, found)
        self.bar.update()

    def _append(
        self, rule: str, precision: str, policy: str, lr: float, seed: int, found: dict[str, Any]
    ) -> None:
        texts = {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in found.items()}
        key = {"rule": rule, "precision": precision, "policy": policy,
               "samples": str(self.samples), "lr": f"{lr:g}", "seed": str(seed)}  # fmt: skip
        row = {**dict.fromkeys(FIELDS, ""), **key, **texts}
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if new:
                writer.writeheader()
            writer.writerow(row)


def run(
    out: Path, seeds: int = SEEDS, samples: int = SAMPLES, passes: int = PASSES,
    rules: Iterable[str] = tuple(CASES), names: Iterable[str] = tuple(POLICIES),
) -> Rows:  # fmt: skip
    """Make what is missing of `grasp_fixed.csv`; its rows."""
    study = Study(out / "grasp_fixed.csv", seeds, samples, passes)
    for policy in names:
        for rule in rules:
            if policy in policies(rule):
                study.make(rule, "integers", policy)
    for rule in rules:
        study.make(rule, "float", "dense")
    study.bar.close()
    return study.rows


def best(rows: Rows) -> float:
    """The learning rate with the best mean validation accuracy over the tuning seeds."""
    found: dict[float, list[float]] = {}
    for r in rows:
        if int(r["seed"]) < TUNED:
            found.setdefault(float(r["lr"]), []).append(float(r["accuracy_validation"]))
    return max(sorted(found), key=lambda lr: np.mean(found[lr]))


def where(rows: Rows, rule: str, precision: str, policy: str) -> Rows:
    """The rows of one line of the table."""
    wanted = (rule, precision, policy)
    return [r for r in rows if (r["rule"], r["precision"], r["policy"]) == wanted]


def read(path: Path) -> Rows:
    """All rows; none without the file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- the table ------------------------------------------------------------------------------------


def table(rows: Rows) -> str:
    """Markdown: accuracy in float and in integers, writes, and what rounding and limits did."""
    proofs = [r["lava_equals_fused"] for r in rows if r["precision"] == "lava"]
    seeds = {r["seed"] for r in rows if r["precision"] != "lava" and int(r["seed"]) >= TUNED}
    lines = [_line(rows, rule, precision, policy) for rule in CASES for policy in POLICIES
             for precision in ("float", "integers")]  # fmt: skip
    legend = (
        f"Digits, {SAMPLES} images {PASSES} times, {STEPS} steps each; 600 others to test. Test "
        f"accuracy in %, mean ± 95 % interval over {len(seeds)} paired seeds, at the learning rate "
        f"(lr) that is best on the validation images with {TUNED} other seeds; `!`: its neighbours "
        "were not all tried. changes: all writes that do not round to nothing; change: the largest "
        "of them; hidden: the readout wherever it has a gradient, and a share of the layer below "
        "by magnitude. - dense: difference to dense writing in integers, in points, of the "
        "same seeds. Writes: issued, in % of all synapses and steps; of live: in % of those whose "
        "integer error and trace are not 0; changed: those that changed a weight, in % of the "
        "issued, since the others round to nothing, and of all. At limit: weights there at the "
        f"end. Weights on Lava and `fused` were equal, bit for bit, in {sum(map(int, proofs))} of "
        f"{len(proofs)} rules and policies tried."
    )
    return f"{legend}\n\n" + str(tabulate(
        [line for line in lines if line], tablefmt="github", disable_numparse=True,
        headers=["rule", "policy", "accuracy", "- dense", "writes", "of live", "changed", "of all",
                 "at limit", "lr"],
    ))  # fmt: skip


def _line(rows: Rows, rule: str, precision: str, policy: str) -> list[str]:
    """One line of the table; empty where reported runs are missing."""
    made, dense = where(rows, rule, precision, policy), where(rows, rule, "integers", "dense")
    tuned = where(rows, rule, precision, "dense") if policy in SAME_AS_DENSE else made
    if not (made and dense and tuned):
        return []
    own, other = _chosen(made, tuned), _chosen(dense, dense)
    mine, theirs = ({r["seed"]: float(r["accuracy_test"]) for r in m} for m in (own, other))
    shared = sorted(set(mine) & set(theirs))
    if len(shared) < max(2, len(theirs)):
        return []
    against = percent(*interval(np.array([mine[s] - theirs[s] for s in shared])), True)
    for r in own if precision == "integers" else []:
        r["of_all"] = str(float(r["writes"]) * float(r["changed"]))
        if policy == "dense":
            r["writes_per_nz"] = ""  # it writes those without a gradient too
    shown = [[float(r[name]) for r in own if r.get(name)] for name in SHOWN]
    return [
        rule, policy + " in float" * (precision == "float"),
        percent(*interval(np.array(list(mine.values())))),
        "" if (precision, policy) == ("integers", "dense") else against,
        *(f"{100 * float(np.mean(v)):.3g}" if v else "" for v in shown), _rate(tuned),
    ]  # fmt: skip


def _chosen(rows: Rows, tuned: Rows) -> Rows:
    """Copies of the reported rows at the best learning rate."""
    lr = best(tuned)
    return [dict(r) for r in rows if float(r["lr"]) == lr and int(r["seed"]) >= TUNED]


def _rate(tuned: Rows) -> str:
    lr, tried = best(tuned), [float(r["lr"]) for r in tuned if int(r["seed"]) < TUNED]
    return f"{lr:g}{'!' * (lr in (min(tried), max(tried)))}"


def quick() -> dict[str, float | bool]:
    """OTTT on 100 digits in integers: dense, all changes alone, 10 % of the writes; Lava too."""
    task, lr = tasks.digits(1, STEPS, 100), 1e-2
    names = ("dense", "changes", "magnitude 10 %")
    dense, same, some = (learned(task, "ottt", p, lr, 0) for p in names)
    return {
        "fixed_accuracy_dense": float(dense["accuracy_test"]),
        "fixed_accuracy_changes": float(same["accuracy_test"]),
        "fixed_accuracy_grasp": float(some["accuracy_test"]),
        "fixed_changes_share": float(same["writes"]),
        "fixed_writes_share": float(some["writes"]),
        "lava_equals_fused": all(same_on_lava(task, "ottt", p, lr, 2) for p in names[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--passes", type=int, default=PASSES)
    parser.add_argument("--rules", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--policies", nargs="*", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.quick:
        print(quick())
        return
    print(table(run(given.out, given.seeds, given.samples, given.passes, given.rules,
                    given.policies)))  # fmt: skip


if __name__ == "__main__":
    main()

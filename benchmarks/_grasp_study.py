"""The GRASP study: every rule, task, policy, share of writes, learning rate and seed.

    python benchmarks/_grasp_study.py --data <folder> --out <folder> [--device cuda --budget-s 500]

A chunk is a rule on a task: all its runs advance side by side (`_grasp_runs`). The first pass has
every policy and records the k_t that the sharpness asked for; the second runs its two controls, the
same k_t shuffled in time and their mean at every step, with the same weights, samples and learning
rate. Rows of a finished pass are appended to `grasp.csv`; a chunk whose rows are there is not run
again. After digits the sensor turns by 90 degrees and learning goes on for 300 samples; each block
of 50 is measured before it is learned.

The learning rate of a policy and share is the best of five by the mean validation accuracy over
seeds; `_grasp_report` does the statistics.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _grasp_tasks as tasks
import numpy as np
import torch
from _grasp_policies import Policy, Run
from _grasp_runs import Engine
from tqdm import tqdm

SEEDS = 5
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
RECORDED = "sharp_more_mag"
POLICIES = (
    Policy("random_k", grain="random"),
    Policy("magnitude"),
    Policy("abs_gHg", "abs_gHg"),
    Policy("pred_decrease", "pred_decrease"),
    Policy("marginal", "pred_decrease", control="marginal"),
    Policy("error_rows", "error", "row", "marginal"),
    Policy("every_m", grain="all", control="every"),
    Policy("random_steps", grain="all", control="sometimes"),
    Policy("rows", grain="row"),
    Policy("columns", grain="column"),
    Policy("blocks", grain="block"),
    Policy("sharp_more", "pred_decrease", control="more"),
    Policy("sharp_more_mag", control="more"),
    Policy("sharp_fewer_mag", control="fewer"),
    Policy("gradient_mag", control="gradient"),
)
DENSE = Policy("dense", grain="all")
COVERAGE = Policy("coverage", "pred_decrease", control="coverage")
CONTROLS = ("shuffled_mag", "constant_mag")
RATES = {
    "decolle": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "etlp": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "ottt": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
}
FASTER = ("random_k", "every_m", "random_steps")  # few writes of no choice: three times the rates
ORDER = [(r, t) for t in ("digits", "nmnist", "spoken") for r in ("decolle", "etlp", "ottt")]
FIELDS = (
    "rule", "task", "pass", "policy", "share", "lr", "seed", "writes", "writes_per_nz",
    "steps", "accuracy_validation", "accuracy_test",
    "drift_before", "drift_after", "drift_prequential",
)  # fmt: skip


def first_pass(rates: Sequence[float], seeds: int, shares: Sequence[float]) -> list[Run]:
    """Every policy at every share; dense once, coverage by tau."""
    pairs = [(p, s) for p in POLICIES for s in shares]
    pairs += [(DENSE, 1.0), (COVERAGE, 0.5), (COVERAGE, 0.9)]
    faster = {p.name: 3.0 if p.name in FASTER else 1.0 for p, _ in pairs}
    return [Run(p, s, faster[p.name] * lr, seed)
            for p, s in pairs for lr in rates for seed in range(seeds)]  # fmt: skip


def controls(engine: Engine, logs: Sequence[Any], rng: Any) -> tuple[list[Run], list[Any]]:
    """The second pass: for every recorded run its k_t shuffled, and constant at their mean.

    Args:
        logs: for each stretch of the stream, k (step, recorded run, L).
    """
    recorded = [engine.runs[i] for i in engine.recorded.tolist()]
    runs = [Run(Policy(name, control="given"), r.share, r.lr, r.seed)
            for name in CONTROLS for r in recorded]  # fmt: skip
    given = []
    for k in logs:
        shuffled = k[rng.permutation(len(k))]
        due = np.floor(k.mean(0) * np.arange(1, len(k) + 1)[:, None, None] + 1e-9)
        constant = np.diff(due, axis=0, prepend=0)
        given.append(np.concatenate([shuffled, constant], 1).astype(np.int32))
    return runs, given


# --- a pass ---------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Device time: how long a step takes, and what is left of the budget (s)."""

    budget_s: float
    began: float = field(default_factory=time.perf_counter)
    ms_per_step: float = 2.0

    def left(self) -> float:
        return self.budget_s - (time.perf_counter() - self.began)

    def fits(self, steps: int) -> bool:
        """With a third on top, for measuring and for starting."""
        return 1.3e-3 * self.ms_per_step * steps < self.left()


@dataclass(eq=False)
class Pass:
    """One set of runs through a task: learn, measure, drift.

    Args:
        given: for each stretch of the stream (train, turned), k of the controls, or nothing.
    """

    task: tasks.Task
    engine: Engine
    clock: Clock
    samples: int
    given: Sequence[Any] = ()
    logs: list[dict[str, Any]] = field(default_factory=list)

    def run(self, bar: Any) -> dict[str, Any]:
        """By column, an array over runs (R,) or (R, L)."""
        parts = self.task.parts
        out: dict[str, Any] = {}
        self._stream("train", self.samples, 0)
        began, steps = time.perf_counter(), self.samples * parts["train"].x.shape[2]
        self._learn(self.samples, bar)
        self.clock.ms_per_step = 1e3 * (time.perf_counter() - began) / steps
        self._log()
        counts = self.engine.scheduler.counts
        out |= {name: c.clone().cpu().numpy() for name, c in counts.items()}
        out["steps"] = np.full(len(self.engine.runs), int(self.engine.scheduler.step))
        for name in ("validation", "test"):
            out[f"accuracy_{name}"] = self._measure(name)
        return out | self._drift(bar) if "turned" in parts else out

    def _drift(self, bar: Any) -> dict[str, Any]:
        part = self.task.parts["turned"]
        out = {"drift_before": self._measure("turned_test")}
        total = min(part.x.shape[1], self.samples)
        self._stream("turned", total, 1)
        blocks, size = [], 50
        for start in range(0, total, size):
            stop = min(start + size, total)
            seen = self.engine.accuracy(part.x[:, start:stop], part.labels[:, start:stop])
            blocks.append((stop - start) * seen)
            self._learn(stop - start, bar)
        self._log()
        out["drift_prequential"] = sum(blocks) / total
        return out | {"drift_after": self._measure("turned_test")}

    def _stream(self, name: str, samples: int, stretch: int) -> None:
        part = self.task.parts[name]
        if len(self.given):
            self.engine.scheduler.give(self.given[stretch])
        self.engine.load(part.x[:, :samples], part.labels[:, :samples], tasks.CLASSES)

    def _learn(self, samples: int, bar: Any) -> None:
        """In blocks of 25, waiting for the device after each, so that the bar tells the truth."""
        for start in range(0, samples, 25):
            now = min(25, samples - start)
            self.engine.learn(now)
            if self.engine.device.startswith("cuda"):
                torch.cuda.synchronize()
            bar.update(now)
            if self.clock.left() < 0:
                raise TimeoutError

    def _log(self) -> None:
        self.logs.append({n: v.cpu().numpy() for n, v in self.engine.log.items()})

    def _measure(self, name: str) -> Any:
        return self.engine.accuracy(self.task.parts[name].x, self.task.parts[name].labels)


def rows(rule: str, task: str, number: int, engine: Engine, found: dict[str, Any]) -> list[Any]:
    """Found columns as rows of the CSV file; writes are summed over projections."""
    dense = (engine.scheduler.rows * engine.scheduler.columns).cpu().numpy()
    out = []
    for i, run in enumerate(engine.runs):
        issued, alive, steps = found["issued"][i], found["dense_nz"][i], int(found["steps"][i])
        row = {
            "rule": rule, "task": task, "pass": number, "policy": run.policy.name,
            "share": run.share, "lr": f"{run.lr:g}", "seed": run.seed, "steps": steps,
            "writes": f"{issued.sum() / (steps * dense.sum()):.6g}",
            "writes_per_nz": f"{issued.sum() / max(int(alive.sum()), 1):.6g}",
        }  # fmt: skip
        row |= {n: f"{found[n][i]:.6g}" for n in FIELDS[10:] if n in found}
        out.append(row)
    return out


# --- the study ------------------------------------------------------------------------------------


@dataclass
class Study:
    """Chunks in the order of their worth, resumed from the CSV file.

    Args:
        data: folder with the archives of `_grasp_tasks`; out: where the CSV file is.
        seeds, shares: how many and which; rates: learning rates, None: the rule's own.
        samples: at most so many are learned, None: all.
        say: where lines of progress go.
    """

    data: Path
    out: Path
    device: str
    clock: Clock
    seeds: int = SEEDS
    shares: Sequence[float] = SHARES
    rates: Sequence[float] | None = None
    samples: int | None = None
    say: Callable[[str], Any] = tqdm.write

    @property
    def path(self) -> Path:
        return self.out / "grasp.csv"

    def run(self, chunks: Sequence[tuple[str, str]]) -> None:
        """Run what is missing, as long as there is time."""
        self.out.mkdir(parents=True, exist_ok=True)
        loaded: dict[str, tasks.Task] = {}
        for rule, name in chunks:
            done = self._done(rule, name)
            if done >= {"1", "2"}:
                continue
            if name not in loaded:
                loaded[name] = self.task(name)
            if not self.clock.fits(2 * self._steps(loaded[name])):
                self.say(f"{rule} {name}: left out, {self.clock.left():.0f} s are left")
                continue
            try:
                self._chunk(rule, loaded[name], done)
            except TimeoutError:
                self.say(f"{rule} {name}: no time left, its unfinished pass is not kept")
                return

    def task(self, name: str) -> tasks.Task:
        if name == "digits":
            return tasks.digits(self.seeds)
        return {"nmnist": tasks.nmnist, "spoken": tasks.spoken}[name](self.seeds, self.data)

    def _steps(self, task: tasks.Task) -> int:
        learned = [p.x.shape for n, p in task.parts.items() if n in ("train", "turned")]
        most = self.samples or 10**9
        return sum(min(shape[1], most) * shape[2] for shape in learned)

    def _done(self, rule: str, task: str) -> set[str]:
        if not self.path.exists():
            return set()
        with self.path.open(newline="") as file:
            found = csv.DictReader(file)
            return {r["pass"] for r in found if (r["rule"], r["task"]) == (rule, task)}

    def _chunk(self, rule: str, task: tasks.Task, done: set[str]) -> None:
        runs = first_pass(self.rates or RATES[rule], self.seeds, self.shares)
        made = self._pass(rule, task, 1, runs, done, recorded=(RECORDED,))
        self._keep_traces(rule, task.name, made)
        rng = np.random.default_rng(0)
        runs, given = controls(made.engine, [log["k"] for log in made.logs], rng)
        del made.engine
        self._pass(rule, task, 2, runs, done, given=given)

    def _pass(
        self, rule: str, task: tasks.Task, number: int, runs: list[Run], done: set[str],
        given: Sequence[Any] = (), recorded: Sequence[str] = (),
    ) -> Pass:  # fmt: skip
        began = time.perf_counter()
        engine = Engine(runs, lambda seed: tasks.RULES[rule](task.inputs, seed), first=task.first,
                        device=self.device, recorded=recorded)  # fmt: skip
        samples = min(task.parts["train"].x.shape[1], self.samples or 10**9)
        work = Pass(task, engine, self.clock, samples, given)
        turned = task.parts["turned"].x.shape[1] if "turned" in task.parts else 0
        total = samples + min(turned, samples)
        with tqdm(total=total, desc=f"{rule} {task.name} pass {number}", unit="sample") as bar:
            found = work.run(bar)
        if str(number) not in done:
            self._append(rows(rule, task.name, number, engine, found))
        seconds = time.perf_counter() - began
        self.say(f"{rule} {task.name} pass {number}: {len(runs)} runs, "
                 f"{self.clock.ms_per_step:.2f} ms a step, {seconds:.0f} s")  # fmt: skip
        return work

    def _append(self, lines: list[Any]) -> None:
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, restval="")
            if new:
                writer.writeheader()
            writer.writerows(lines)

    def _keep_traces(self, rule: str, task: str, made: Pass) -> None:
        """k, sharpness and loss over time of one run (share 2 %, seed 0, each learning rate)."""
        path = self.out / "grasp_traces.npz"
        held = dict(np.load(path)) if path.exists() else {}
        share = min(self.shares, key=lambda s: abs(s - 0.02))
        for place, i in enumerate(made.engine.recorded.tolist()):
            run = made.engine.runs[i]
            if (run.share, run.seed) == (share, 0):
                for name, log in made.logs[0].items():
                    held[f"{rule}/{task}/{run.lr:g}/{name}"] = log[:, place]
        np.savez_compressed(path, **held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("."), help="folder with the archives")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--budget-s", type=float, default=1e9, help="stop after so many seconds")
    parser.add_argument("--chunks", nargs="*", help="such as decolle/digits; all by default")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--samples", type=int, help="learn at most so many (for trials)")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--rates", type=float, nargs="*")
    given = parser.parse_args()
    study = Study(given.data, given.out, given.device, Clock(given.budget_s), given.seeds,
                  given.shares, given.rates, given.samples)  # fmt: skip
    chunks = ORDER
    if given.chunks:
        chunks = [(rule, task) for rule, _, task in (c.partition("/") for c in given.chunks)]
    study.run(chunks)
    from _grasp_report import report

    print(report(study.path, study.out))


if __name__ == "__main__":
    main()

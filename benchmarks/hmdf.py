"""HD-LIF neurons (EM-PF, HM-DF, HD-LIF) beside LIF: accuracy, memory, cost, and what Lava makes.

    python benchmarks/hmdf.py [--quick] [--data FOLDER] [--epochs N] [--seeds N]

1. Published parameter bytes and neuron operations of ResNet-18, recomputed from its layers.
2. Folding: codes of random layers, torch against whole numbers.
3. Training memory against T, exact counts: peak of live tensors, elements that autograd saves.
4. Cosine of online gradients with BPTT's.
5. Accuracy on N-MNIST (recordings of FOLDER, 140 test ids) and on scikit-learn's digits by direct
   coding: `_hmdf_nets` has the methods. The learning rate is the best of three on the last fifth
   of the training samples, one seed; then five seeds train on all and are measured on the test
   samples. Beside it CPU time of an epoch (one thread), operations and events of one test sample
   (means), and bytes of parameters.
6. A trained network on Lava, in float and in integers.

These are small networks: no result of the paper is reproduced, and its SOPs cannot be, since the
counter that made them is not public. Finished runs are rows of `results/hmdf*.csv` and are not made
again. `--quick` trains four methods on digits for a few epochs, writes nothing, takes under 50 s
and ends with one line of JSON. Needs the extras lava and plot, and scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import _hmdf_deploy as deployed
import _hmdf_tasks as tasks
import _hmdf_train as training
import numpy as np
import torch
from _exact_store import Store
from _hmdf_nets import COMPRESSED, METHODS, Method
from _hmdf_tasks import Task
from tqdm import tqdm

from grasp_plugin.hdlif.deploy import deploy
from grasp_plugin.report import table

RESULTS = Path(__file__).resolve().parent / "results"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "nmnist-train800.zip"
EPOCHS, SEEDS, TUNING_SEED = 15, 5, 100
LENGTHS = (4, 16, 64)
KEYS = ("task", "method", "part", "lr", "seed", "epochs", "samples")
QUICK = (METHODS[0], METHODS[2], METHODS[4], COMPRESSED)
MEMORY = (METHODS[0], METHODS[1], METHODS[4], METHODS[5], METHODS[6], METHODS[15])
Rows = list[dict[str, Any]]


def show(title: str, rows: Rows) -> None:
    """A table of rows that share their columns."""
    print(f"\n{title}")
    print(table([[_short(v) for v in row.values()] for row in rows], list(rows[0]), "g"))


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def memory(methods: tuple[Method, ...], inputs: int) -> tuple[Rows, dict[str, float]]:
    """Peaks and saved elements at each T; growth of the saved elements by mode."""
    rows, growth = [], {}
    for method in tqdm(methods, desc="memory"):
        peaks = [training.peak_kb(method, inputs, n) for n in LENGTHS]
        row: dict[str, Any] = {"method": method.name}
        row |= {f"peak kB, T = {n}": round(v, 1) for n, v in zip(LENGTHS, peaks, strict=True)}
        if method.mode != "random":
            saved = [training.saved_elements(method, inputs, n) for n in LENGTHS]
            row |= {f"saved, T = {n}": v for n, v in zip(LENGTHS, saved, strict=True)}
            growth[method.name] = saved[-1] / saved[0]
        else:
            row |= {f"saved, T = {n}": "-" for n in LENGTHS}
        rows.append(row)
    return rows, growth


def tuned(store: Store, task: Task, method: Method, epochs: int, bar: Any) -> float:
    """The best learning rate on the held-out samples."""
    fit, held = task.held_out()
    found = {}
    for lr in training.RATES:
        bar.set_postfix_str(f"{task.name}, {method.name}, tuning {lr:g}")
        made = store.make(
            lambda lr=lr: training.run(method, fit, held, lr, TUNING_SEED, epochs),  # type: ignore[misc]
            task=task.name, method=method.name, part="tuning", lr=lr, seed=TUNING_SEED,
            epochs=epochs, samples=len(fit),
        )  # fmt: skip
        found[lr] = made["accuracy"]
        bar.update()
    return max(found, key=lambda lr: found[lr])


def compare(
    store: Store, times: Store, task: Task, methods: tuple[Method, ...], epochs: int, seeds: int,
    tune: bool,
) -> Rows:  # fmt: skip
    """One row a method: accuracies of all seeds, and what a sample costs (mean of the seeds)."""
    rows = []
    total = len(methods) * (seeds + (len(training.RATES) if tune else 0))
    with tqdm(total=total, desc=task.name) as bar:
        for method in methods:
            lr = tuned(store, task, method, epochs, bar) if tune else training.RATES[1]
            runs = []
            for seed in range(seeds):
                bar.set_postfix_str(f"{task.name}, {method.name}, seed {seed}")
                runs.append(store.make(
                    lambda seed=seed, lr=lr, method=method: training.run(  # type: ignore[misc]
                        method, task.train, task.test, lr, seed, epochs),
                    task=task.name, method=method.name, part="test", lr=lr, seed=seed,
                    epochs=epochs, samples=len(task.train),
                ))  # fmt: skip
                bar.update()
            rounds = 3 if tune else 1
            cpu = times.make(
                lambda method=method, rounds=rounds: {  # type: ignore[misc]
                    "cpu_s": training.epoch_cpu_s(method, task.train, rounds)},
                task=task.name, method=method.name, samples=len(task.train),
            )  # fmt: skip
            rows.append(summary(method, lr, runs, cpu["cpu_s"]))
    return rows


def summary(
    method: Method, lr: float, runs: list[dict[str, float]], cpu_s: float
) -> dict[str, Any]:
    """Means over seeds, with the standard deviation of the accuracy."""
    mean = {name: float(np.mean([r[name] for r in runs])) for name in runs[0]}
    values = [100 * r["accuracy"] for r in runs]
    return {
        "method": method.name, "lr": lr, "test %": round(float(np.mean(values)), 2),
        "sd": round(float(np.std(values, ddof=1)), 2) if len(values) > 1 else "-",
        "epoch CPU s": round(cpu_s, 2), "kSOPs": round(mean["sops"] / 1e3, 1),
        "NOPs": int(mean["muls"] + mean["adds"]), "events": int(mean["events"]),
        "bits an event": round(mean["payload_bits"], 1),
        "kB as published": round(mean["published_kb"], 1),
        "kB packed": round(mean["packed_kb"], 1),
    }  # fmt: skip


def plot(results: dict[str, Rows], store: Store, path: Path) -> None:
    """Mean, standard deviation and every seed's accuracy, by task and method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(11, 5.5), sharey=True,
                                   constrained_layout=True, squeeze=False)  # fmt: skip
    for ax, (name, rows) in zip(axes[0], results.items(), strict=True):
        for k, row in enumerate(rows):
            seeds = store.rows(task=name, method=row["method"], part="test", lr=row["lr"])
            values = [100 * r["accuracy"] for r in seeds]
            sd = np.std(values, ddof=1) if len(values) > 1 else 0.0
            ax.errorbar(np.mean(values), k, xerr=sd, fmt="s", color="0.4", capsize=3)
            ax.plot(values, np.full(len(values), k), ".", color="C0", alpha=0.6)
        ax.set(title=name, xlabel="test accuracy (%)")
        ax.set_yticks(range(len(rows)), [row["method"].strip() for row in rows])
        ax.grid(axis="x", alpha=0.3)
    axes[0][0].invert_yaxis()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def on_lava(task: Task, epochs: int, most: int) -> tuple[float, int]:
    """Trains the compressed network, runs it everywhere; (share of codes that differ, by how much).

    The share is of each layer on the same input; the table's is of the last layer, end to end.
    """
    net = training.train(COMPRESSED, task.train, training.RATES[1], 0, epochs)
    show(f"{task.name}: {COMPRESSED.name}, last hidden layer", deployed.on_lava(net, task, most))
    show("Utilisation, packed", deployed.utilisation(net))
    layers = deploy(torch.nn.Sequential(*net).double()).layers
    return deployed.code_mismatch(layers, task)


def counts(quick: bool) -> dict[str, Any]:
    """Parts 1 to 4: their tables, and the headline's figures."""
    sizes, ops = deployed.published()
    show("ResNet-18, CIFAR-100: parameters", sizes)
    show("ResNet-18, 32 x 32, T = 4: neuron operations", ops)
    mismatches, codes, negative = deployed.fold_mismatches()
    print(f"\nFolded: {mismatches} of {codes} codes differ ({negative} negative gains)")
    rows, growth = memory(MEMORY, 64)
    show("Memory of one batch of 64, 64-128-128-10", rows)
    cosines = training.cosines(3 if quick else 20)
    show("Cosine of weight gradients with BPTT's, HD-LIF without norm, by layer",
         [{"mode": m, "first": c[0], "second": c[1], "read-out": c[2]}
          for m, c in cosines.items()])  # fmt: skip
    return {
        "params_mb": [row["recomputed MB"] for row in sizes],
        "params_mb_packed": [row["truly packed MB"] for row in sizes],
        "nops_m": [row["recomputed M"] for row in ops],
        "activation_growth_t4_t64": growth[METHODS[4].name],
        "activation_growth_t4_t64_bptt": round(growth[METHODS[6].name], 2),
        "fold_mismatches": mismatches,
        "fold_codes": codes,
    }


def experiment(work: list[Task], options: argparse.Namespace, out: Path) -> int:
    """Part 5: its tables and picture; returns the number of epochs."""
    quick = options.quick
    epochs, seeds = (4, 1) if quick else (options.epochs, options.seeds)
    store = Store(out / "hmdf.csv", KEYS, training.FIGURES)
    times = Store(out / "hmdf_epochs.csv", ("task", "method", "samples"), ("cpu_s",))
    methods = QUICK if quick else METHODS
    results = {t.name: compare(store, times, t, methods, epochs, seeds, not quick) for t in work}
    for task in work:
        title = f"{task.name}: {len(task.train)} to train on, {len(task.test)} to measure on"
        show(f"{title}, {epochs} epochs, {seeds} seeds", results[task.name])
    plot(results, store, out / "hmdf.png")
    return int(epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA if DATA.is_file() else tasks.SUBSET,
                        help="N-MNIST as a folder or zip")  # fmt: skip
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="under 50 s, writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    headline = counts(options.quick)
    work = [tasks.digits()] if options.quick else [tasks.nmnist(options.data), tasks.digits()]
    with tempfile.TemporaryDirectory() as scratch:
        epochs = experiment(work, options, Path(scratch) if options.quick else options.out)
    found = [on_lava(task, epochs, 60 if options.quick else 140) for task in work]
    headline["fixed_code_mismatch"] = round(max(share for share, _ in found), 5)
    headline["fixed_code_largest_gap"] = max(gap for _, gap in found)
    print(json.dumps(headline))


if __name__ == "__main__":
    main()

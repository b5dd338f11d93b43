"""Meta-learning in torch, adaptation in a few shots: accuracy, precision, writes, cost.

    python benchmarks/meta.py [--quick] [--data FOLDER] [--only cost accuracy precision deploy ...]

1. cost: second-order identity, finite differences of the smooth twin, time and memory of a step
   beside plain autograd loops, Lava beside torch (`_meta_checks`)
2. accuracy: 5-way 1- and 5-shot Double N-MNIST, held-out classes and recordings: MAML, FOMAML,
   ANIL, no meta-training, fine-tuning from pre-training, an ANN (`_meta_train`)
3. precision: MAML at one shot that goes on from two thirds of its batches with parameters of 32, 8,
   4 and 2 bits, beside the control without meta-training
4. deploy: SOEL in the head of the ANIL networks, float and Loihi's integers, with GRASP's share of
   the writes (`_meta_deploy`)

FOLDER holds `nmnist-train800.zip` (800 recordings of N-MNIST). Results are in
`benchmarks/results/meta_*.csv`; a row that is there is not run again. Meta-trained networks are
kept in `bench_out/meta`, which part 4 needs. The last line is one JSON object; its intervals are
over tasks, means over seeds. Needs the extra plot.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import _meta_checks as checks
import _meta_deploy as deploy
import _meta_train as train
import torch
from _exact_store import Store
from _meta_tasks import METHODS, PRECISIONS, QUERIES, Method, source_of, tasks_of

from grasp_plugin.data.episodes import FewShot
from grasp_plugin.report import table

HERE = Path(__file__).resolve().parent
RESULTS, NETS = HERE / "results", HERE.parent / "bench_out" / "meta"
DATA = HERE.parents[1] / "shared" / "data"
SMALL = HERE.parent / "examples" / "data" / "nmnist_subset.zip"
PARTS = ("cost", "accuracy", "precision", "deploy")
KEYS = ("method", "shots", "iterations", "seed")
ITERATIONS, LONGER, SEEDS = 2400, 3600, (1, 2, 3)
Rows = list[dict[str, Any]]


def show(title: str, rows: Rows) -> None:
    """A table of rows that share their columns."""
    print(f"\n{title}")
    if rows:
        print(table([[_short(v) for v in row.values()] for row in rows], list(rows[0])))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_cost(rounds: int) -> dict[str, Any]:
    """The four figures of the last line, and the table of times and memory."""
    cost = checks.step_cost(rounds)
    names = ("mapped", "by task", "plain")
    rows = [{"step": n, "CPU ms": cost[f"{n} ms"], "peak MB": cost[f"{n} MB"]} for n in names]
    show("A second-order step, 8 tasks, 256-128-5, 20 steps", rows)
    return {
        "second_order_identity_error": checks.identity_error(),
        "smooth_twin_fd_error": checks.smooth_error(),
        "step_time_ratio_plain_loops": round(cost["time_ratio"], 2),
        "step_memory_ratio_plain_loops": round(cost["memory_ratio"], 2),
        "lava_vs_torch_error": checks.lava_error(),
    }


def run_methods(
    store: Store, methods: tuple[Method, ...], source: FewShot, shots: tuple[int, ...],
    iterations: int, seeds: tuple[int, ...], nets: Path, count: int, queries: int = QUERIES,
) -> None:  # fmt: skip
    """A row for each method and number of shots.

    What adapts sample by sample is trained at one shot only: it just goes on, see `run_deploy`.
    """
    for seed, shot, method in product(seeds, shots, methods):
        if method.one_by_one and shot > 1:
            continue
        store.make(
            lambda m=method, k=shot, s=seed: train.run(  # type: ignore[misc]
                m, source, k, iterations, s, nets, count, queries
            ),
            method=method.name, shots=shot, iterations=iterations, seed=seed,
        )  # fmt: skip
    show("Held-out classes and recordings, % of queries (mean, half of its 95 % interval)",
         store.rows(iterations=iterations))  # fmt: skip


def run_deploy(
    store: Store, source: FewShot, nets: Path, count: int, iterations: int, seed: int,
    shots_of: tuple[int, ...] = (1, 5), queries: int = QUERIES,
) -> None:  # fmt: skip
    """SOEL in the head, float and integers, all shares."""
    cases = [(m, shots) for m in METHODS if m.name.startswith("ANIL") for shots in shots_of]
    for method, shots in cases:
        trained = 1 if method.one_by_one else shots
        maml = train.loaded(nets, method, trained, iterations, seed)
        if maml is None:
            path = train.net_file(nets, method, trained, iterations, seed)
            print(f"not run: {method.name}, {shots} shot: no {path.name} (part accuracy makes it)")
            continue
        tasks = tasks_of(source, "test", seed, count, shots, queries)
        for precision in ("float", "loihi"):
            for share in deploy.SHARES if method.one_by_one else (1.0,):
                store.make(
                    lambda p=precision, s=share, k=shots, o=maml, t=tasks, m=method: deploy.deploy(  # type: ignore[misc]
                        o, t, p, s, k, one_by_one=m.one_by_one
                    ),
                    network=method.name, iterations=iterations, seed=seed, precision=precision,
                    share=share, shots=shots, tasks=count,
                )  # fmt: skip
    show("SOEL in a frozen network's head, with GRASP's share of the writes", store.rows())


def plot(store: Store, path: Path) -> None:
    """Accuracy of every method, with its interval."""
    from grasp_plugin.plot import figure

    rows = sorted(over_seeds(store), key=lambda r: (r["shots"], r["accuracy"]))
    drawn, axes = figure(1, 1, width=8.0, height=0.32 * len(rows) + 1.2)
    axis = axes[0, 0]
    names = [f"{r['method']}, {r['shots']} shot" for r in rows]
    axis.barh(names, [r["accuracy"] for r in rows], xerr=[r["half_width"] for r in rows],
              color=["C0" if r["shots"] == "1" else "C1" for r in rows])  # fmt: skip
    axis.axvline(20, color="k", lw=0.8, ls=":")
    axis.set_xlabel("held-out accuracy (%), 5 ways, with 95 % intervals; dotted: chance")
    drawn.savefig(path, dpi=130)


def over_seeds(store: Store) -> Rows:
    """The mean of each method's seeds: accuracy, half of the interval over a seed's tasks."""
    names = ("method", "shots", "iterations")
    out = []
    for key in dict.fromkeys(tuple(r[n] for n in names) for r in store.rows()):
        own = store.rows(**dict(zip(names, key, strict=True)))
        mean = {n: sum(r[n] for r in own) / len(own) for n in ("accuracy", "half_width")}
        out.append(dict(zip(names, key, strict=True)) | mean | {"seeds": len(own)})
    return out


def headline(stores: tuple[Store, Store]) -> dict[str, Any]:
    """Accuracies of all rows that are there, with their number of seeds."""
    return {
        "accuracy": {
            f"{r['method']}, {r['shots']} shot, {r['iterations']} batches": [
                round(r["accuracy"], 1), round(r["half_width"], 1), r["seeds"]
            ]
            for store in stores for r in over_seeds(store)
        }
    }  # fmt: skip


def quick(out: Path) -> dict[str, Any]:
    """Everything small: 20 iterations on the recordings of the repository, a few tasks."""
    last = run_cost(2)
    source = source_of(SMALL)
    store = Store(out / "meta_accuracy.csv", KEYS, train.FIGURES)
    methods = tuple(m for m in METHODS if m.name in ("MAML", "ANIL, one by one"))
    run_methods(store, methods, source, (1,), 20, (1,), out, 50, 2)
    writes = Store(out / "meta_writes.csv", deploy.KEYS, deploy.FIGURES)
    run_deploy(writes, source, out, 5, 20, 1, (1,), 2)
    return last


def full(
    out: Path, data: Path, parts: list[str], iterations: int, longer: int, shots: tuple[int, ...],
    seeds: tuple[int, ...],
) -> dict[str, Any]:  # fmt: skip
    """The parts asked for."""
    last = run_cost(7) if "cost" in parts else {}
    accuracy = Store(out / "meta_accuracy.csv", KEYS, train.FIGURES)
    precision = Store(out / "meta_precision.csv", KEYS, train.FIGURES)
    source = source_of(data) if set(parts) - {"cost"} else None
    if "accuracy" in parts and source:
        run_methods(accuracy, METHODS, source, shots, iterations, seeds, NETS, 300)
        plot(accuracy, out / "meta_accuracy.png")
    if "precision" in parts and source:
        run_methods(precision, PRECISIONS, source, (1,), longer, seeds, NETS, 300)
    if "deploy" in parts and source:
        writes = Store(out / "meta_writes.csv", deploy.KEYS, deploy.FIGURES)
        run_deploy(writes, source, NETS, 100, iterations, seeds[0])
    return last | headline((accuracy, precision))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", type=Path, default=DATA, help="a folder with nmnist-train800.zip")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of meta-training")
    parser.add_argument("--longer", type=int, default=LONGER, help="of the precision part")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5], help="of the accuracy part")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            last = quick(Path(folder))
    else:
        last = full(
            RESULTS, arguments.data, arguments.only, arguments.iterations, arguments.longer,
            tuple(arguments.shots), tuple(arguments.seeds),
        )  # fmt: skip
    print(json.dumps(last))


if __name__ == "__main__":
    main()

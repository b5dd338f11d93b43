"""Exact event-driven gradients: how exact, how accurate, how fast, how much memory traffic.

    python benchmarks/exact.py [--quick] [--data FOLDER] [--only errors cost traffic yinyang ...]

1. errors: gradients of random networks against finite differences, and identities (`_exact_errors`)
2. cost: CPU time and memory of a training step beside surrogate-gradient BPTT (`_exact_cost`)
3. traffic: bytes moved beside time-stepped BPTT, from counters, by workload (`_exact_traffic`)
4. yinyang: test accuracy of six networks, five seeds (`_exact_train`; about an hour)
5. bptt: the surrogate-gradient baseline on Yin-Yang (`_exact_sg`)
6. deploy: the trained networks on Lava's grid, float and integer (`_exact_deploy`)
7. noise: the trained networks under jitter, noise and rounding (`_exact_noise`), and pictures
8. sets: digits and spoken digits, by both methods (`_exact_sets`)
9. grasp: a share of the writes (`_exact_grasp`)

Results are in `benchmarks/results/exact_*.csv`; a run that was stopped goes on. The trained
networks are kept in `bench_out/exact`; cost and traffic take those of seed 1. FOLDER may hold
`mnist_train.npz` (x: images, y: digits); without it that workload is left out.
The last line is one JSON object. Needs the extra plot.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _exact_cost as cost
import _exact_deploy as deploy
import _exact_grasp as few
import _exact_noise as noise
import _exact_sets as sets
import _exact_sg as sg
import _exact_tasks as tasks
import _exact_traffic as traffic
import _exact_train as exact
import _exact_yinyang as yinyang
import numpy as np
import torch
from _exact_errors import errors
from _exact_store import Store
from tqdm import tqdm

from grasp_plugin.report import table

RESULTS, NETS = yinyang.RESULTS, yinyang.NETS
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PARTS = (
    "errors",
    "cost",
    "traffic",
    "yinyang",
    "bptt",
    "deploy",
    "noise",
    "plots",
    "sets",
    "grasp",
)
PUBLISHED = (  # specs/exact-gradients.md 11.2; mark: run = recomputed by us, read = in a repository
    ("EventProp 5-200-3, 100 epochs, 10 seeds", "98.10 +- 0.18", "run, their networks"),
    ("DelGrad 4-30-3 W, one network", "96.7", "read"),
    ("DelGrad 4-30-3 W + axonal delays, one network", "97.5", "read"),
    ("DelGrad 4-30-3 W + synaptic delays, one network", "98.2", "read"),
    ("ANN 4-30-3", "97.6 +- 1.5", "read"),
)
Rows = list[dict[str, Any]]


def show(title: str, rows: Rows) -> None:
    """A table of rows that share their columns."""
    print(f"\n{title}")
    if rows:
        print(table([[_short(v) for v in row.values()] for row in rows], list(rows[0])))


def _given(figures: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Figures that are there already, for a store."""
    return lambda: figures


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# --- the parts ------------------------------------------------------------------------------------


def run_errors(store: Store, networks: int) -> None:
    """Worst errors by class."""
    done = store.rows(networks=networks)
    if not any(row["kind"] == "skipped" for row in done):
        found = errors(networks, lambda seeds: tqdm(seeds, desc="errors"))
        flat = [(kind, what, e) for kind in ("fd", "identity") for what, e in found[kind].items()]
        flat += [("engine", "compiled - oracle", found["engine"])]
        flat += [("skipped", "differences", float(found["skipped"]))]
        for kind, what, worst in flat:
            store.make(_given({"worst": worst}), kind=kind, what=what, networks=networks)
    show("Worst relative error, max(1, |x|) below", store.rows(networks=networks))


def run_cost(
    store: Store, works: list[tuple[tasks.Workload, tuple[float, ...]]], rounds: int
) -> None:
    """Time and memory of each workload's training step; works: with the time steps of BPTT."""
    for work, steps in tqdm(works, desc="cost"):
        mine = store.rows(workload=work.name, batch=len(work.times))
        if len(mine) < 1 + 2 * len(steps):
            for row in cost.compare(work, steps, rounds):
                key = {name: row[name] for name in cost.KEYS}
                store.make(_given(row), **key)
    title = "A training step, CPU ms a sample and bytes; ratio above 1: exact is cheaper"
    show(title, store.rows())


def run_traffic(store: Store, works: list[tasks.Workload]) -> None:
    """Traffic ratios of each workload, time step and schedule."""
    for work in tqdm(works, desc="traffic"):
        counted = None
        for dt in work.steps_ms:
            for schedule in ("neuron", "scatter"):
                key = dict(zip(traffic.KEYS, (work.name, dt, schedule, work.t_end, len(work.times)),
                               strict=True))  # fmt: skip
                if store.get(**key) is None:
                    counted = counted or traffic.count(work)
                    found = traffic.ratios(work, dt, schedule, counted)
                    store.make(_given(found), **key)
    show("Memory traffic of time-stepped BPTT / ours, above 1: we move less", store.rows())


def summarise(store: Store, names: tuple[str, ...]) -> Rows:
    """Mean, standard deviation and number of seeds by the keys `names`."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    spent: dict[tuple[Any, ...], list[float]] = {}
    for row in store.rows():
        if not np.isnan(row["test"]):
            key = tuple(row[n] for n in names)
            groups.setdefault(key, []).append(100 * row["test"])
            spent.setdefault(key, []).append(row.get("cpu_s", math.nan))
    return [
        {**dict(zip(names, key, strict=True)), "test %": round(float(np.mean(v)), 2),
         "sd": round(float(np.std(v, ddof=1)), 2) if len(v) > 1 else "-", "seeds": len(v),
         "cpu s": "-" if np.isnan(spent[key]).any()
         else f"{min(spent[key]):.0f} to {max(spent[key]):.0f}"}
        for key, v in groups.items()
    ]  # fmt: skip


def run_deploy(out: Path, nets: Path) -> None:
    """The trained networks that are in `nets` on the grid; means over seeds."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in deploy.deploy_all(out, nets).rows():
        if not np.isnan(row["test"]):
            groups.setdefault((row["model"], row["precision"], row["dt_ms"]), []).append(row)
    show("On Lava's grid, means over seeds (%)", [
        {**dict(zip(("model", "precision", "dt_ms"), key, strict=True)), "seeds": len(rows)}
        | {name: round(100 * float(np.mean([r[name] for r in rows])), 2)
           for name in deploy.FIGURES}
        | {"worst seed": round(100 * min(r["test"] - r["event"] for r in rows), 2)}
        for key, rows in groups.items()
    ])  # fmt: skip


def run_noise(out: Path, nets: Path) -> Store:
    """All networks that are in `nets` under all noise."""
    store = Store(out / "exact_noise.csv", noise.KEYS, noise.FIGURES)
    cases = [
        ("exact", m, s, exact.net_file(nets, m, s))
        for m, s in exact.plan() if m.name in deploy.DEPLOYED
    ]  # fmt: skip
    cases += [
        (f"BPTT {sg.COARSE:g} ms", m, s,
         nets / f"bptt_{m.name.replace(' ', '_')}_{sg.COARSE:g}_{s}.npz")
        for m in exact.MODELS[:2] for s in sg.SEEDS
    ]  # fmt: skip
    for method, model, seed, path in tqdm([c for c in cases if c[3].is_file()], desc="noise"):
        net = noise.Net.load(path, bptt=method != "exact")
        for kind, level in noise.sweep(net):
            store.make(
                lambda n=net, k=kind, v=level, s=seed: noise.measure(n, k, v, s),  # type: ignore[misc]
                method=method, model=model.name, seed=seed, kind=kind, level=level,
            )  # fmt: skip
    return store


def run_plots(out: Path, nets: Path, store: Store) -> None:
    """The pictures, of the networks of seed 1."""
    import _exact_plots as plots

    plots.noise(store, out / "exact_noise.png")
    for model, call, name in (
        (exact.MODELS[1], plots.delays, "exact_delays.png"),
        (exact.MODELS[1], plots.spikes, "exact_spikes.png"),
    ):
        path = exact.net_file(nets, model, 1)
        if path.is_file():
            with np.load(path) as file:
                call({key: file[key] for key in file.files}, out / name)


# --- all of it ------------------------------------------------------------------------------------


def start_nets(nets: Path) -> dict[str, dict[str, Any]]:
    """Yin-Yang networks for cost and traffic: trained where there are some of seed 1."""
    out = {}
    for model in exact.MODELS[:2]:
        path = exact.net_file(nets, model, 1)
        if path.is_file():
            with np.load(path) as file:
                out[model.name] = {key: file[key] for key in file.files}
    return out


def some(calls: Any) -> list[tasks.Workload]:
    """The workloads whose data is there."""
    made = [call() for call in tqdm(calls, desc="workloads")]
    return [work for work in made if work is not None]


class Stores:
    """The CSV files of the first three parts."""

    def __init__(self, out: Path) -> None:
        self.errors = Store(out / "exact_errors.csv", ("kind", "what", "networks"), ("worst",))
        self.cost = Store(out / "exact_cost.csv", cost.KEYS, cost.FIGURES)
        self.traffic = Store(out / "exact_traffic.csv", traffic.KEYS, traffic.FIGURES)


def headline(stores: Stores) -> dict[str, Any]:
    """What the last line says in every mode, of all rows that are there; None: none yet."""
    worst = {
        kind: max((row["worst"] for row in stores.errors.rows(kind=kind)), default=None)
        for kind in ("fd", "identity")
    }
    ratio: dict[str, dict[str, float]] = {}
    for row in stores.cost.rows():
        if row["dt_ms"] == "1.0":
            ratio.setdefault(f"{row['workload']}, batch {row['batch']}", {})[
                row["method"].split()[1]
            ] = round(row["ratio"], 2)
    state: dict[str, dict[str, float]] = {}
    for row in stores.traffic.rows():
        if row["dt_ms"] == "1.0":
            state.setdefault(row["workload"], {})[row["schedule"]] = round(row["state"], 2)
    return {
        "fd_worst_relative_error": worst["fd"], "identity_worst_error": worst["identity"],
        "time_ratio_bptt_dt1ms": ratio, "state_traffic_ratio": state,
    }  # fmt: skip


def quick(out: Path, data: Path) -> dict[str, Any]:
    """Everything small: one network trained for a few epochs, two workloads timed."""
    stores = Stores(out)
    run_errors(stores.errors, 4)
    began, model, epochs = time.perf_counter(), exact.MODELS[1], 5
    trained = exact.train(model, 1, epochs, out)
    seconds = time.perf_counter() - began
    net = exact.net_file(out, model, 1)
    with np.load(net) as file:
        nets = {model.name: {key: file[key] for key in file.files}}
    works = some(tasks.workloads(nets, data, 4))
    timed = tasks.yinyang(model.name, nets[model.name], exact.BATCH)
    run_cost(stores.cost, [(timed, (1.0,))], 3)
    run_traffic(stores.traffic, works)
    last = headline(stores)
    last["yinyang_accuracy_after_s"] = {
        "model": model.name, "epochs": epochs, "accuracy": trained["test"],
        "seconds": round(seconds, 1), "cpu_s": round(trained["cpu_s"], 1),
    }  # fmt: skip
    return last


def full(out: Path, nets: Path, data: Path, parts: list[str]) -> dict[str, Any]:
    """The parts asked for, in the order of PARTS."""
    stores = Stores(out)
    if "errors" in parts:
        run_errors(stores.errors, 60)
    if "yinyang" in parts:
        yinyang.train_all(out, nets)
    if "bptt" in parts:
        sg.train_all(out, nets)
    if "cost" in parts or "traffic" in parts:
        works = some(tasks.workloads(start_nets(nets), data, exact.BATCH))
        timed = [(w, w.steps_ms if w.name.startswith("Yin") else w.steps_ms[:2]) for w in works]
        if "cost" in parts:
            run_cost(stores.cost, timed, 5)
        if "traffic" in parts:
            run_traffic(stores.traffic, works)
    last = headline(stores)
    rows = summarise(yinyang.store(out), ("model", "epochs"))
    show("Yin-Yang, exact gradients, test accuracy", rows)
    show("Published", [dict(zip(("what", "test %", "mark"), p, strict=True)) for p in PUBLISHED])
    last["yinyang_test_percent"] = {row["model"]: row["test %"] for row in rows}
    grid = Store(out / "exact_bptt.csv", sg.KEYS, sg.FIGURES)
    show("Yin-Yang, surrogate-gradient BPTT, test accuracy",
         summarise(grid, ("model", "dt_ms", "loss", "lr", "slope", "epochs")))  # fmt: skip
    if "deploy" in parts:
        run_deploy(out, nets)
    if "noise" in parts or "plots" in parts:
        found = run_noise(out, nets)
        show("Under noise", summarise(found, ("method", "model", "kind", "level")))
        if "plots" in parts:
            run_plots(out, nets, found)
    others = sets.train_all(out, data) if "sets" in parts else sets.store_of(out)
    show("Digits and spoken digits, test accuracy",
         summarise(others, ("task", "delays", "method", "loss", "lr", "epochs")))  # fmt: skip
    written = few.train_all(out) if "grasp" in parts else few.store(out)
    show("GRASP over exact gradients, Yin-Yang 5-30-3 W+d", few.summary(written))
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", type=Path, default=DATA, help="folder with mnist_train.npz")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        with tempfile.TemporaryDirectory() as scratch:
            last = quick(Path(scratch), options.data)
    else:
        last = full(RESULTS, NETS, options.data, options.only)
    print(json.dumps(last))


if __name__ == "__main__":
    main()

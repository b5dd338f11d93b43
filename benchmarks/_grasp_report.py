"""Statistics, tables and the plot of `grasp.csv`.

    python benchmarks/_grasp_report.py <grasp.csv> [--out <folder>]

A curve takes, for each share, the learning rate with the best mean validation accuracy over seeds,
and reports test accuracy there: the mean over paired seeds with a 95 % interval (Student's t). A
difference is that of the same seed's two runs. Intervals are not corrected for their number.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student
from tabulate import tabulate

Array = np.ndarray[Any, np.dtype[Any]]
NAMES = {
    "magnitude": "magnitude", "abs_gHg": "curvature, g Hg", "pred_decrease": "predicted decrease",
    "marginal": "marginal price", "sharp_more": "sharper: more, pred. decrease",
    "sharp_more_mag": "sharper: more", "sharp_fewer_mag": "sharper: fewer",
    "gradient_mag": "k by gradient",
    "shuffled_mag": "that k_t, shuffled", "constant_mag": "its mean k",
    "rows": "rows", "columns": "columns", "blocks": "blocks 8 x 8", "error_rows": "error-triggered",
    "every_m": "every m-th step", "random_steps": "random steps", "random_k": "random synapses",
    "coverage": "coverage",
}  # fmt: skip
DRAWN = {
    "magnitude": "C0", "pred_decrease": "C3", "abs_gHg": "C1", "sharp_more_mag": "C2",
    "marginal": "C4", "rows": "C5", "error_rows": "C8", "random_steps": "C7", "random_k": "k",
}  # fmt: skip
PRIORITY = (("pred_decrease", "magnitude"), ("abs_gHg", "magnitude"))
DYNAMIC = (
    ("sharp_more_mag", "shuffled_mag"), ("sharp_more_mag", "constant_mag"),
    ("sharp_more_mag", "magnitude"), ("sharp_fewer_mag", "magnitude"),
    ("gradient_mag", "magnitude"),
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A policy at a share and its best learning rate.

    Args:
        lr: the rate; edge: True if it is the largest or smallest that was tried.
        test: test accuracy by seed (S,); writes: mean share of N_o N_i; columns: others, by seed.
    """

    lr: float
    edge: bool
    writes: float
    test: Array
    columns: dict[str, Array]


Curves = dict[str, dict[float, Point]]  # by policy, by share


def read(path: Path) -> dict[tuple[str, str], Curves]:
    """Curves by (rule, task). Controls take the learning rate of the runs that they copy."""
    grouped: Any = defaultdict(lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list))))
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            place = grouped[row["rule"], row["task"]][row["policy"]][float(row["share"])]
            place[float(row["lr"])].append(row)
    out = {}
    for key, policies in grouped.items():
        curves = {p: {s: _best(by_lr) for s, by_lr in sorted(shares.items())}
                  for p, shares in policies.items()}  # fmt: skip
        for name in ("shuffled_mag", "constant_mag"):
            for share in curves.get(name, {}):
                lr = curves["sharp_more_mag"][share].lr
                curves[name][share] = _point(policies[name][share], lr)
        out[key] = curves
    return out


def _best(by_lr: dict[float, list[dict[str, str]]]) -> Point:
    means = {lr: np.mean([float(r["accuracy_validation"]) for r in rows])
             for lr, rows in by_lr.items()}  # fmt: skip
    return _point(by_lr, max(sorted(means), key=lambda lr: means[lr]))


def _point(by_lr: dict[float, list[dict[str, str]]], lr: float) -> Point:
    rows = sorted(by_lr[lr], key=lambda r: int(r["seed"]))
    names = [n for n, v in rows[0].items() if n.startswith(("drift", "writes")) and v]
    columns = {n: np.array([float(r[n]) for r in rows]) for n in names}
    test = np.array([float(r["accuracy_test"]) for r in rows])
    return Point(lr, lr in (min(by_lr), max(by_lr)), float(columns["writes"].mean()), test, columns)


# --- statistics -----------------------------------------------------------------------------------


def interval(values: Array) -> tuple[float, float]:
    """(mean, half width of the 95 % interval by Student's t) of paired seeds."""
    n = len(values)
    if n < 2:
        return float(values.mean()), float("nan")
    return float(values.mean()), float(student.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5)


def enough(curve: dict[float, Point], dense: Point, within: float = 0.01) -> float | None:
    """The smallest share whose mean paired difference to dense is at least -within."""
    good = [s for s, p in curve.items() if (p.test - dense.test).mean() >= -within]
    return min(good, default=None)


def area(curve: dict[float, Point], low: float = 0.005, high: float = 0.2) -> Array:
    """Mean accuracy over log writes between low and high, by seed (S,); ends go on level."""
    points = sorted(curve.values(), key=lambda p: p.writes)
    x = np.log([max(p.writes, 1e-9) for p in points])
    grid = np.linspace(np.log(low), np.log(high), 200)
    return np.array([np.interp(grid, x, [p.test[s] for p in points]).mean()
                     for s in range(len(points[0].test))])  # fmt: skip


def differences(curves: Curves, one: str, other: str) -> dict[float, Array]:
    """Paired differences of test accuracy by share (S,)."""
    shares = sorted(set(curves.get(one, {})) & set(curves.get(other, {})))
    return {s: curves[one][s].test - curves[other][s].test for s in shares}


# --- tables ---------------------------------------------------------------------------------------


def percent(mean: float, half: float, sign: bool = False) -> str:
    """In percent (or points, with a sign)."""
    return f"{100 * mean:{'+' if sign else ''}.1f} ± {100 * half:.1f}"


def report(path: Path, out: Path) -> str:
    """Write `grasp.md` and `grasp.png`; the text of the former."""
    study = read(path)
    text = ["# GRASP: accuracy against writes", "", *_legend()]
    for (rule, task), curves in study.items():
        text += ["", f"## {rule} on {task}", "", _accuracies(curves)]
        if any("drift_after" in p.columns for p in curves["dense"].values()):
            text += ["", "After the sensor turned:", "", _drift(curves)]
    text += ["", "## (a) Which: curvature against magnitude at the same k_t", "",
             _ablation(study, PRIORITY)]  # fmt: skip
    text += ["", "## (b) How many: k_t by sharpness against controls, magnitude order", "",
             _ablation(study, DYNAMIC)]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "grasp.md").write_text("\n".join(text) + "\n")
    plot(study, out / "grasp.png")
    return "\n".join(text)


def _markdown(lines: list[list[str]], headers: list[str]) -> str:
    return str(tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True))


def _legend() -> list[str]:
    return [
        "Test accuracy in %, mean ± 95 % interval over paired seeds, at the learning rate that is "
        "best on the validation samples; `!`: the best rate is at an end of those tried; in "
        "brackets: synapses written, in % of N_o N_i, where not the share asked for.",
        "Enough: the smallest share within one point of dense. Area: mean over log writes.",
    ]


def _accuracies(curves: Curves) -> str:
    dense = curves["dense"][1.0]
    shares = sorted({s for n, c in curves.items() if n in NAMES and n != "coverage" for s in c})
    lines = [["dense", *[""] * len(shares), f"{percent(*interval(dense.test))}{'!' * dense.edge}",
              _nz(dense)]]  # fmt: skip
    for name, label in NAMES.items():
        curve = curves.get(name)
        if not curve:
            continue
        if name == "coverage":
            lines += [[f"coverage {s:g}", *[""] * len(shares), _cell(p, None), ""]
                      for s, p in curve.items()]  # fmt: skip
            continue
        found = enough(curve, dense)
        cells = [_cell(curve[s], s) if s in curve else "" for s in shares]
        least = "-" if found is None else f"{100 * found:g} %"
        lines.append([label, *cells, percent(*interval(area(curve))), least])
    return _markdown(lines, ["policy", *[f"{100 * s:g} %" for s in shares], "area", "enough"])


def _nz(dense: Point) -> str:
    return f"({100 / dense.columns['writes_per_nz'].mean():.0f} % of gradients are not 0)"


def _cell(p: Point, share: float | None) -> str:
    off = share is None or abs(p.writes / share - 1) > 0.1
    return percent(*interval(p.test)) + "!" * p.edge + (f" ({100 * p.writes:.2g})" if off else "")


def _drift(curves: Curves) -> str:
    lines = []
    for name in ("dense", *NAMES):
        for share, p in curves.get(name, {}).items():
            if name != "dense" and share not in (0.02, 0.1):
                continue
            if "drift_after" in p.columns:
                lines.append([NAMES.get(name, name), f"{100 * share:g} %", *(
                    percent(*interval(p.columns[f"drift_{c}"]))
                    for c in ("before", "prequential", "after"))])  # fmt: skip
    return _markdown(lines, ["policy", "share", "before", "while it learns", "after 300"])


def _ablation(study: dict[tuple[str, str], Curves], pairs: Iterable[tuple[str, str]]) -> str:
    """Points of accuracy by share, and their mean over shares."""
    lines: list[list[str]] = []
    shares: Sequence[float] = []
    for (rule, task), curves in study.items():
        for one, other in pairs:
            found = differences(curves, one, other)
            if not found:
                continue
            shares = shares or list(found)
            pooled = np.mean(list(found.values()), axis=0)
            cells = [percent(*interval(found[s]), sign=True) if s in found else "" for s in shares]
            lines.append([rule, task, f"{NAMES[one]} - {NAMES[other]}", *cells,
                          percent(*interval(pooled), sign=True)])  # fmt: skip
    return _markdown(lines, ["rule", "task", "difference in points",
                         *[f"{100 * s:g} %" for s in shares], "mean"])  # fmt: skip


# --- the plot -------------------------------------------------------------------------------------


def plot(study: dict[tuple[str, str], Curves], path: Path) -> None:
    """Accuracy against writes with intervals: a row for each task, a column for each rule."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rules, names = (list(dict.fromkeys(k[i] for k in study)) for i in range(2))
    figure, axes = pyplot.subplots(
        len(names), len(rules), figsize=(1 + 3.6 * len(rules), 0.9 + 2.8 * len(names)),
        squeeze=False, sharex=True, sharey="row", constrained_layout=True,
    )  # fmt: skip
    for i, task in enumerate(names):
        for j, rule in enumerate(rules):
            axis = axes[i][j]
            axis.set_title(f"{rule.upper()}, {task}", fontsize=10)
            if (rule, task) in study:
                _panel(axis, study[rule, task])
        axes[i][0].set_ylabel("test accuracy, %")
    for axis in axes[-1]:
        axis.set_xlabel("synapses written, % of all")
    handles, labels = max(
        (a.get_legend_handles_labels() for a in axes.flat), key=lambda h: len(h[0])
    )
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(5, 2 * len(rules)),
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _panel(axis: Any, curves: Curves) -> None:
    mean, half = interval(curves["dense"][1.0].test)
    axis.axhline(100 * mean, color="0.4", lw=1, label="dense (100 %)")
    axis.axhspan(100 * (mean - half), 100 * (mean + half), color="0.9", lw=0)
    for name, colour in DRAWN.items():
        points = sorted(curves.get(name, {}).values(), key=lambda p: p.writes)
        if points:
            found = 100 * np.array([interval(p.test) for p in points])
            x = [100 * p.writes for p in points]
            axis.errorbar(x, found[:, 0], found[:, 1], marker="o",
                          ms=3, lw=1.2, elinewidth=0.7, color=colour, label=NAMES[name],
                          )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axis.minorticks_off()
    axis.grid(lw=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    print(report(given.csv, given.out or given.csv.parent))


if __name__ == "__main__":
    main()

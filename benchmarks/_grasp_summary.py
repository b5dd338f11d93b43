"""The GRASP study in two small tables: enough writes, and what curvature and dynamic k add."""

from __future__ import annotations

from typing import Any

import numpy as np
from _grasp_report import Curves, area, differences, enough, interval, percent
from tabulate import tabulate

Study = dict[tuple[str, str], Curves]
SHOWN = (("magnitude", 0.02), ("magnitude", 0.05), ("magnitude", 0.1), ("rows", 0.1),
         ("random_k", 0.1))  # fmt: skip
LEAST = ("magnitude", "pred_decrease")
QUESTIONS = {
    "predicted decrease - magnitude": ("pred_decrease", "magnitude"),
    "g Hg - magnitude": ("abs_gHg", "magnitude"),
    "k by sharpness - the same k, shuffled": ("sharp_more_mag", "shuffled_mag"),
    "k by sharpness - its mean": ("sharp_more_mag", "constant_mag"),
}
LABELS = {"magnitude": "magnitude", "rows": "rows", "random_k": "random",
          "pred_decrease": "predicted decrease"}  # fmt: skip
TASKS = {"digits": "digits", "nmnist": "N-MNIST", "spoken": "spoken"}


def summary(study: Study) -> str:
    """Both tables as markdown."""
    return "\n\n".join((accuracies(study), questions(study)))


def accuracies(study: Study) -> str:
    """Accuracy at some shares, and the smallest share within one point of dense, by policy."""
    lines = []
    for (rule, task), curves in study.items():
        dense = curves["dense"][1.0]
        cells = [percent(*interval(curves[p][s].test)) for p, s in SHOWN]
        least = [enough(curves[p], dense) for p in LEAST]
        lines.append([rule.upper(), TASKS[task], percent(*interval(dense.test)), *cells,
                      *("-" if n is None else f"{100 * n:g} %" for n in least)])  # fmt: skip
    headers = ["rule", "task", "dense", *(f"{LABELS[p]} {100 * s:g} %" for p, s in SHOWN),
               *(f"enough: {LABELS[p]}" for p in LEAST)]  # fmt: skip
    return _markdown(lines, headers)


def questions(study: Study) -> str:
    """Points of accuracy, mean over the six shares: by rule and task, and over all of them."""
    lines: list[list[str]] = []
    every: dict[str, list[float]] = {q: [] for q in QUESTIONS}
    for (rule, task), curves in study.items():
        cells = []
        for question, (one, other) in QUESTIONS.items():
            pooled = np.mean(list(differences(curves, one, other).values()), axis=0)
            every[question].append(float(pooled.mean()))
            cells.append(percent(*interval(pooled), sign=True))
        lines.append([rule.upper(), TASKS[task], *cells])
    last = [percent(*interval(np.array(v)), sign=True) for v in every.values()]
    lines.append(["all", "", *last])
    return _markdown(lines, ["rule", "task", *QUESTIONS])


def best(study: Study) -> dict[str, Any]:
    """By rule and task, the policy with the largest area under accuracy over log writes."""
    out = {}
    for key, curves in study.items():
        areas = {p: float(area(c).mean()) for p, c in curves.items() if len(c) > 2}
        out["/".join(key)] = max(areas, key=lambda p: areas[p])
    return out


def _markdown(lines: list[list[str]], headers: list[str]) -> str:
    return str(tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True))

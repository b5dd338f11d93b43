"""What GRASP is worth: accuracy against synaptic writes, its cost, and what its parts add.

    python benchmarks/grasp.py --data <folder> [--device cuda] [--out benchmarks/results]
    python benchmarks/grasp.py --quick

1. The study (`_grasp_study`): {DECOLLE, ETLP, OTTT} x {digits, N-MNIST, spoken digits}, policies at
   0.5 to 20 % of the writes x learning rates x 5 paired seeds, one sample at a time, thousands of
   runs side by side. It takes about ten minutes on one H200; on a CPU, days. Every finished part is
   kept in `grasp.csv` and not made again. `<folder>` holds `nmnist-train800.zip` (recordings of
   N-MNIST's training part) and `fsdd-4speakers.zip` (Free Spoken Digit Dataset); digits come with
   scikit-learn.
2. The same saving in Loihi's integers (`_grasp_fixed`): `grasp_fixed.csv`.
3. CPU time of a step in which 2 % of the synapses are written (`_grasp_cpu`), against the dense
   update in NumPy and stock Lava's `LearningDense`, and the largest error of the closed-form
   Hessian-vector product.
4. A small task on the `fused` back end: DECOLLE on 500 digits, all synapses or 5 % of them.

`--quick` makes 3 and 4 only, at 1000 x 1000. `--report` makes the tables and pictures anew from the
files. The last line is one JSON object of figures that were measured in this run.

Needs the extras lava and plot, and scikit-learn.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _grasp_cpu as cpu
import _grasp_tasks as tasks
import numpy as np
import torch

from grasp_plugin import build
from grasp_plugin.learning import GRASP, Learning, UpdateMeter, decolle_for, scheduled
from grasp_plugin.learning.budget import Budget, Everything, Fixed
from grasp_plugin.report import table

RESULTS = Path(__file__).resolve().parent / "results"
SMALL_SHARE, SMALL_SAMPLES, SMALL_RATE = 0.05, 500, 0.01


def small_task(budget: Budget) -> dict[str, float]:
    """DECOLLE learns 500 digits once on `fused`: test accuracy and share of writes.

    The network is the study's, 64-64-64; 100 images that it has not learned are classified.
    """
    task = tasks.digits(1, train=SMALL_SAMPLES)
    network, _ = tasks.decolle_made(task.inputs, 0)
    plans: Learning = decolle_for(network, tasks.CLASSES, SMALL_RATE, amplitude=2.0, burn_in=3)
    plans = scheduled(plans, GRASP(budget, "pred_decrease"))
    train, test = (task.parts[name] for name in ("train", "test"))
    with build(network, "fused", plans=plans) as session:
        session.learn(train.x[0].swapaxes(0, 1).astype(float), train.labels[0])
        share = UpdateMeter(session).read().total.share
        learned = session.learned()
    frozen = decolle_for(learned, tasks.CLASSES, 0.0, amplitude=2.0)
    with build(learned, "fused", plans=frozen) as session:
        few = test.x[0, :100].swapaxes(0, 1).astype(float)
        record = session.learn(few, test.labels[0, :100], mask=np.zeros(few.shape[:2]))
    accuracy = float(np.mean(record.predicted == test.labels[0, :100]))
    return {"accuracy": accuracy, "share": float(share)}


def measured(quick: bool) -> dict[str, Any]:
    """Parts 3 and 4, printed as tables; the figures of the last line."""
    found, updates, projections = cpu.figures(quick)
    for title, rows in (
        ("Update and write, CPU ms a step", updates),
        ("In Lava beside stock LearningDense, CPU ms a step", projections),
    ):
        cells = [[f"{v:.3g}" if isinstance(v, float) else v for v in r.values()] for r in rows]
        print(f"\n{title}\n{table(cells, list(rows[0]))}")
    dense, some = small_task(Everything()), small_task(Fixed(SMALL_SHARE))
    print(f"\nDECOLLE on {SMALL_SAMPLES} digits, fused: all synapses {dense['accuracy']:.2f}, "
          f"{100 * some['share']:.1f} % of the writes {some['accuracy']:.2f}")  # fmt: skip
    small = {
        "accuracy_dense": dense["accuracy"], "accuracy_grasp": some["accuracy"],
        "writes_share": some["share"],
    }  # fmt: skip
    return {k: float(f"{v:.4g}") for k, v in {**found, **small}.items()}


def study(given: Any) -> None:
    """Parts 1 and 2: what is missing of the two files, then their tables and pictures."""
    from _grasp_fixed import read as read_fixed
    from _grasp_fixed import run
    from _grasp_fixed import table as fixed_table
    from _grasp_report import read, report
    from _grasp_study import ORDER, Clock, Study
    from _grasp_summary import summary

    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "grasp.csv"
    if not given.report:
        Study(given.data, given.out, given.device, Clock(given.budget_s)).run(ORDER)
    details = report(path, given.out)
    short = f"# What GRASP is worth\n\n{summary(read(path))}\n\n## In Loihi's integers\n\n"
    short += fixed_table(
        read_fixed(given.out / "grasp_fixed.csv") if given.report else run(given.out)
    )
    (given.out / "grasp.md").write_text(f"{short}\n\n{details}\n")
    print(short)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="parts 3 and 4 at 1000 x 1000")
    parser.add_argument("--report", action="store_true", help="tables from the files, no study")
    parser.add_argument("--data", type=Path, default=Path("."), help="folder with the archives")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget-s", type=float, default=1e9, help="seconds for the study")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.quick:
        study(given)
    print(json.dumps(measured(given.quick)))


if __name__ == "__main__":
    main()

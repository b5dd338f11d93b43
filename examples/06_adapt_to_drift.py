"""A trained network meets a sensor that has turned, and adapts to it on Lava.

    python examples/06_adapt_to_drift.py [--out demo_out] [--degrees 30]

`models/nmnist_recurrent.nir` was trained in snnTorch on upright digits. After 40 recordings its
sensor is turned, all that follow are seen askew, and accuracy drops. Learning stays switched on
throughout, a recording at a time: nobody tells the network that anything has changed.

* no learning: what a frozen network would do from there on.
* DECOLLE: the recurrent layer by its own random readout. The ten output neurons are the network's,
  with a meaning that must last, so they learn from their own error (`OutputError`) and the class is
  read from them.
* ETLP, OTTT: as in 04, in all dense layers.

The convolution does not learn here, so its spikes are computed once, on Lava, and the rest of the
network is cut out as a network of its own. The lines are 140 recordings that neither training nor
adaptation has seen, turned as the sensor is, measured as in 04.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from _learning import DATA, nmnist, percent, stream

from grasp_plugin import build, discretise
from grasp_plugin.accuracy import Curve, accuracy, prequential
from grasp_plugin.adapters import read_nir
from grasp_plugin.data.samples import Samples
from grasp_plugin.learning import Learning, decolle_for, etlp_for, ottt_for
from grasp_plugin.learning.signals import OutputError
from grasp_plugin.network import Network
from grasp_plugin.neurons.surrogate import Sigmoid
from grasp_plugin.plot import figure, learning_curves
from grasp_plugin.report import table

CLASSES, BEFORE = 10, 40  # recordings before the drift
FRONT, OUTPUT = "1", "7"  # populations of the model: after the convolution, and the last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--degrees", type=float, default=30.0, help="that the sensor turns")
    parser.add_argument("--passes", type=int, default=3, help="through 80 turned recordings")
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)

    # 1. The trained network in two: a front that stays as it is, and dense layers that learn.
    network = discretise(read_nir(DATA.parent / "models" / "nmnist_recurrent.nir"))
    dense = after(network, FRONT)
    with build(network, backend="lava") as session:

        def seen(part: str, degrees: float) -> Samples:
            spikes, labels = nmnist(part, degrees)
            return session.run(spikes)[FRONT], labels

        upright, turned = (seen("test", d) for d in (0.0, arguments.degrees))
        rng = np.random.default_rng(0)
        calm = stream(seen("train", 0.0), 1, rng, shift=0)
        askew = stream(seen("train", arguments.degrees), arguments.passes, rng, shift=0)
    calm = calm[0][:, :BEFORE], calm[1][:BEFORE]

    # 2. The rules, and none. 3. Before the drift, the drift, and after it, in one session each.
    curves, rows = [], []
    for name, learning in rules(dense).items():
        began = time.perf_counter()
        learn = name != "no learning"
        with build(dense, backend="lava", plans=learning) as session:
            how = {"learn": learn, "measure_on": "fused"}
            *_, curve = prequential(session, *calm, Curve(name), held_out=upright, **how)
            before = curve.held_out[-1]
            curve = curve.held(accuracy(session, *turned, measure_on="fused"))
            dropped = curve.held_out[-1]
            *_, curve = prequential(session, *askew, curve, held_out=turned, every=2, **how)
            back = accuracy(session, *upright, measure_on="fused")
        seconds = time.perf_counter() - began
        curves.append(curve)
        rows.append([name, percent(before), percent(dropped), percent(curve.held_out[-1]),
                     percent(back), f"{seconds:.0f} s"])  # fmt: skip
        print(f"{name}: {seconds:.0f} s")

    # 4. What came of it.
    print()
    print(table(rows, ["rule", "upright\nbefore", "turned\nat once", "turned\nadapted",
                       "upright\nafter", "time"]))  # fmt: skip
    path = arguments.out / "06_adapt_to_drift.png"
    draw(curves, arguments.degrees, path)
    print(f"wrote {path}")


def after(network: Network, front: str) -> Network:
    """The network behind a population, whose spikes become its input."""
    kept = tuple(p for p in network.populations if p.name != front)
    names = [p.name for p in kept]
    return replace(
        network,
        populations=kept,
        projections=tuple(k for k in network.projections if k.target in names),
        biases=tuple(b for b in network.biases if b.target in names),
        inputs={front: network[front].shape},
    )


def rules(network: Network) -> dict[str, Learning]:
    local = decolle_for(network, CLASSES, 1e-3, amplitude=1.0, surrogate=Sigmoid(4.0))
    signals = {**local.signals, OUTPUT: OutputError(CLASSES, probability=1.0)}
    decolle = Learning(local.plans, signals, CLASSES, OUTPUT)
    return {
        "no learning": decolle,
        "DECOLLE": decolle,
        "ETLP": etlp_for(network, CLASSES, learning_rate=1e-4, probability=0.5),
        "OTTT": ottt_for(network, CLASSES, learning_rate=3e-4, pipelined=True),
    }


def draw(curves: list[Curve], degrees: float, path: Path) -> None:
    drawn, axes = figure(1, 1, width=8.0, height=4.4)
    axis = axes[0, 0]
    learning_curves(axis, curves, chance=1 / CLASSES)
    axis.axvline(BEFORE, color="#555555", linewidth=1.0)
    axis.annotate(f"sensor turned by {degrees:g}°", (BEFORE, 22), (5, 0), fontsize="small",
                  textcoords="offset points", color="#333333")  # fmt: skip
    axis.set_ylabel("accuracy (%)")
    axis.set_title("Adapting on Lava; lines: held out, dots: each block before it is learned",
                   fontsize="medium")  # fmt: skip
    axis.legend(loc="lower right", fontsize="small", framealpha=0.9, bbox_to_anchor=(1, 0.13))
    drawn.savefig(path, dpi=130)


if __name__ == "__main__":
    main()

"""Learn on Lava from scratch: three published online rules, one sample at a time.

    python examples/04_learn_on_lava.py [--out demo_out] [--passes 8] [--data N-MNIST]

Random networks see N-MNIST digits as spikes, one recording after another. At each step of 10 ms, as
the spikes pass, every synapse is changed by what it can see at that step: there is no backward pass
in time, no batch, no optimiser. The three rules differ in where their error signal comes from:

* DECOLLE (Kaiser et al. 2020): each layer has a fixed random readout of its own and learns to make
  that readout right. It needs no output layer: the class is read from the last layer's readout.
* ETLP (Quintana et al. 2024): at random moments, a teacher sends the label through a fixed random
  matrix to the hidden neurons, and the output neurons compare themselves with it.
* OTTT (Xiao et al. 2022): the loss of the step, back through the layers at that step. On Lava the
  error travels a step a layer, so updates come as late as that (`pipelined`).

Dots are blocks of 20 recordings, classified before they are learned from. The lines are 140
recordings that are never learned from, with learning off; to measure, the weights are run on the
fused back end, which gives Lava's spikes faster. The rates were chosen on other recordings of
N-MNIST's training set, which appear nowhere here. `--data` learns from a larger N-MNIST, as a zip
or folder.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from _learning import layers, membranes, neurons, nmnist, percent, picture, stream

from grasp_plugin import build
from grasp_plugin.accuracy import Curve, prequential
from grasp_plugin.learning import decolle_for, etlp_for, ottt_for
from grasp_plugin.report import table

PIXELS, CLASSES, HIDDEN = (2, 17, 17), 10, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--passes", type=int, default=8, help="through the recordings")
    parser.add_argument("--data", type=Path, help="a larger N-MNIST than the 80 of the repository")
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)

    # 1. What to learn from, and what only to measure on.
    train = nmnist("train", source=arguments.data)
    spikes, labels = stream(train, arguments.passes, np.random.default_rng(0))
    held_out = nmnist("test")
    print(f"{len(labels)} recordings to learn from, {len(held_out[1])} held out")

    # 2. Networks with random weights: 128 spiking neurons, and for two rules ten membranes on top.
    # A regression on the membrane, as ETLP's output does, starts best from next to nothing.
    hidden, top = neurons(HIDDEN), membranes(CLASSES)
    alone = layers(np.random.default_rng(0), PIXELS, (hidden, 2.5))
    quiet = layers(np.random.default_rng(0), PIXELS, (hidden, 2.5), (top, 0.1))
    pair = layers(np.random.default_rng(0), PIXELS, (hidden, 2.5), (top, 1.0))

    # 3. A `Learning` says what learns from what: one call a rule.
    runs = {
        "DECOLLE": (alone, decolle_for(alone, CLASSES, learning_rate=0.1, amplitude=1.0)),
        "ETLP": (quiet, etlp_for(quiet, CLASSES, learning_rate=3e-5, probability=0.5)),
        "OTTT": (pair, ottt_for(pair, CLASSES, learning_rate=2e-4, pipelined=True)),
    }

    # 4. Build on Lava, and learn while it runs.
    curves, rows = [], []
    for name, (network, learning) in runs.items():
        began = time.perf_counter()
        with build(network, backend="lava", plans=learning) as session:
            steps = prequential(
                session, spikes, labels, Curve(name), held_out=held_out, measure_on="fused"
            )
            *_, curve = steps
        seconds = time.perf_counter() - began
        curves.append(curve)
        shares = [curve.held_out[0], curve.held_out[-1], curve.mean(160)]
        rows.append([name, learning.readout, *map(percent, shares), f"{seconds:.0f} s"])
        print(f"{name}: {seconds:.0f} s")

    # 5. What came of it.
    print()
    print(table(rows, ["rule", "class from", "held out\nbefore", "after",
                       "last 160\nbefore learned", "time"]))  # fmt: skip
    path = arguments.out / "04_learn_on_lava.png"
    title = "Learning N-MNIST from scratch on Lava, one recording at a time"
    picture({"lines: held out; dots: before learning": curves}, path, title)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()

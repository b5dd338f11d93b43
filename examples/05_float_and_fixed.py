"""The same learning run on Lava twice: in floating point, and in Loihi's integers.

    python examples/05_float_and_fixed.py [--out demo_out] [--passes 5]

Everything is as in 04: the same initial network, recordings, order, rules and learning rates. In
fixed point, weights have 8 bits, traces 7, errors 8, and what an update does not fill is rounded up
by chance, as on the chip. The scale of each rule's error follows from the network's scale, so
nothing is tuned a second time.

`quantise(network, plastic=...)` makes room for what will learn: weights may change sign and grow to
twice the largest before they meet their limit. The last column counts how often that, or another
limit, was met.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from _learning import layers, membranes, neurons, nmnist, percent, picture, stream

from grasp_plugin import build, quantise
from grasp_plugin.accuracy import Curve, prequential
from grasp_plugin.data.samples import Samples
from grasp_plugin.learning import Learning, decolle_for, etlp_for, ottt_for
from grasp_plugin.network import Network
from grasp_plugin.report import table

PIXELS, CLASSES, HIDDEN = (2, 17, 17), 10, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--passes", type=int, default=5, help="through the 80 recordings")
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)
    samples = stream(nmnist("train"), arguments.passes, np.random.default_rng(0))
    held_out = nmnist("test")
    # A regression on the membrane, as ETLP's output does, starts best from next to nothing.
    hidden, top = neurons(HIDDEN), membranes(CLASSES)
    alone = layers(np.random.default_rng(0), PIXELS, (hidden, 2.5))
    quiet = layers(np.random.default_rng(0), PIXELS, (hidden, 2.5), (top, 0.1))
    pair = layers(np.random.default_rng(0), PIXELS, (hidden, 2.5), (top, 1.0))
    runs = {
        "DECOLLE": (alone, decolle_for(alone, CLASSES, learning_rate=0.1, amplitude=1.0)),
        "ETLP": (quiet, etlp_for(quiet, CLASSES, learning_rate=3e-5, probability=0.5)),
        "OTTT": (pair, ottt_for(pair, CLASSES, learning_rate=2e-4, pipelined=True)),
    }
    panels, rows = {}, []
    for name, (network, learning) in runs.items():
        integers = quantise(network, plastic=list(learning.plans))
        panels[name] = []
        for precision, version in (("float", network), ("fixed point", integers)):
            curve, facts = learned(precision, version, learning, samples, held_out)
            panels[name].append(curve)
            rows.append([name, precision, percent(curve.held_out[0]), percent(curve.held_out[-1]),
                         percent(curve.mean(160)),
                         *facts])  # fmt: skip
            print(f"{name}, {precision}: {facts[0]}")
    print()
    print(table(rows, ["rule", "Lava", "held out\nbefore", "after",
                       "last 160\nbefore learned", "time", "limits met\ntraces", "errors",
                       "weights"]))  # fmt: skip
    path = arguments.out / "05_float_and_fixed.png"
    picture(panels, path, "The same learning run on Lava in float and in fixed point: held-out "
            "accuracy (lines), blocks before learning (dots)")  # fmt: skip
    print(f"wrote {path}")


def learned(
    label: str, network: Network, learning: Learning, samples: Samples, held_out: Samples
) -> tuple[Curve, list[str | int]]:
    """The curve of one run, its time, and how often a limit was met."""
    began = time.perf_counter()
    with build(network, backend="lava", plans=learning) as session:
        *_, curve = prequential(
            session, *samples, Curve(label), held_out=held_out, every=4, measure_on="fused"
        )
        met = list(session.clipped().values())  # type: ignore[attr-defined]
    kinds = ("traces", "errors", "weights")
    counts: list[str | int] = [sum(one[kind] for one in met) for kind in kinds]
    return curve, [f"{time.perf_counter() - began:.0f} s", *(counts if met else "---")]


if __name__ == "__main__":
    main()

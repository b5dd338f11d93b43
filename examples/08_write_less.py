"""Learn on Lava and write few synapses: GRASP beside every synapse, and beside random ones.

    python examples/08_write_less.py [--out demo_out] [--passes 3]

The network, recordings and rule are those of 04 (DECOLLE, 128 neurons, 73,984 synapses, from
scratch). The rule asks for a change of every synapse at each step of 10 ms. `GRASP` is put behind
it, chooses some of these changes, and the others are never made:

* every synapse: the rule itself, counted.
* GRASP, 5 %: at each step the twentieth of all synapses whose change lowers the loss most, by a
  quadratic model of it (`pred_decrease`), which takes one product with the curvature.
* random, 5 %: as many, drawn from those that have a gradient. It is the control: fewer writes are
  smaller steps, so it is also run with 1 / 5 % = 20 times the learning rate.
* rows only, 10 %: all synapses of 12 or 13 neurons, those with the largest gradients; whole neurons
  are what a Loihi core can gate.
* Sharpness, 5 %: as GRASP, but the number k_t of writes goes with the sharpness of the loss, five
  percent in the mean.

`UpdateMeter` counts what was written, and what was spent on choosing. Many changes of the rule are
zeros, where an input or the surrogate is silent; the fair comparison is with the rule that leaves
those out ("without zeros"). To measure, the weights are run on the fused back end, as in 04. One
seed: the last lines of the output say what can be told from it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _learning import PIXELS, STEPS, layers, neurons, nmnist, percent, stream

from grasp_plugin import build
from grasp_plugin.accuracy import Curve, prequential
from grasp_plugin.data.samples import Samples
from grasp_plugin.learning import GRASP, Learning, UpdateMeter, Updates, decolle_for, scheduled
from grasp_plugin.learning.baselines import dense, random_k, rows_only
from grasp_plugin.learning.budget import Fixed, Sharpness
from grasp_plugin.learning.losses import SmoothL1
from grasp_plugin.network import Network
from grasp_plugin.plot import STYLES, figure, learning_curves, schedule_figure
from grasp_plugin.report import table
from grasp_plugin.runtime.learning import LearningSession

CLASSES, HIDDEN, HELD_OUT, RATE, SHARE = 10, 128, 140, 0.1, 0.05
SHOWN = 10  # recordings in the second picture
ALL, CHOSEN, DRAWN, RAISED, DYNAMIC = (
    "every synapse", "GRASP, 5 %", "random, 5 %", "random, 5 %, rate x 20", "Sharpness, 5 %",
)  # fmt: skip
COMPARED = (ALL, DRAWN, RAISED, DYNAMIC)  # with GRASP at a fixed share


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Args:
        writes: at each held-out measurement, so far.
        steps: of the run whose k_t varies: its `Series`, and the loss of the same steps (time,).
    """

    curve: Curve
    writes: Sequence[int]
    updates: Updates
    seconds: float
    steps: Any = None

    @property
    def held(self) -> float:
        """Mean of the held-out measurements after the first: steadier than the last alone."""
        return float(np.mean(self.curve.held_out[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--passes", type=int, default=3, help="through the 80 recordings")
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)

    # 1. As in 04: what to learn from, what only to measure on, and a network with random weights.
    samples = stream(nmnist("train"), arguments.passes, np.random.default_rng(0))
    held_out = nmnist("test")
    print(f"{len(samples[1])} recordings to learn from, {len(held_out[1])} held out")
    network = layers(np.random.default_rng(0), PIXELS, (neurons(HIDDEN), 2.5))

    # 2. A scheduler behind the rule is one call, `scheduled`. 3. Learn on Lava, and count.
    outcomes = {}
    for name, (grasp, times) in schedules().items():
        rule = decolle_for(network, CLASSES, learning_rate=times * RATE, amplitude=1.0)
        outcomes[name] = learned(name, network, scheduled(rule, grasp), samples, held_out)
        print(f"{name}: {outcomes[name].seconds:.0f} s")

    # 4. What came of it, in tables, pictures and words.
    print(f"\n{accuracies(outcomes)}\n\n{costs(outcomes)}\n")
    paths = [arguments.out / f"08_write_less{part}.png" for part in ("", "_steps")]
    draw(outcomes, paths[0])
    draw_steps(outcomes[DYNAMIC], paths[1])
    print("\n".join([*seen(outcomes), *seen_of_steps(outcomes[DYNAMIC])]))
    print("\n".join(f"wrote {path}" for path in paths))


def schedules() -> dict[str, tuple[GRASP, float]]:
    """(what chooses the synapses, in how many times the learning rate) by name."""
    return {
        ALL: (dense(), 1),
        CHOSEN: (GRASP(Fixed(SHARE), "pred_decrease"), 1),
        DRAWN: (random_k(SHARE), 1),
        RAISED: (random_k(SHARE), 1 / SHARE),
        "rows only, 10 %": (rows_only(2 * SHARE), 1),
        DYNAMIC: (GRASP(Sharpness(SHARE), "pred_decrease", series=SHOWN * STEPS), 1),
    }


def learned(
    name: str, network: Network, learning: Learning, samples: Samples, held_out: Samples
) -> Outcome:
    """One run on Lava, its writes read off as it goes."""
    began = time.perf_counter()
    with build(network, backend="lava", plans=learning) as session:
        meter, writes = UpdateMeter(session), [0]
        for curve in prequential(
            session, *samples, Curve(name), held_out=held_out, every=2, measure_on="fused"
        ):
            if len(curve.held_out) > len(writes):
                writes.append(meter.read().total.issued)
        done = Outcome(curve, writes, meter.read().total, time.perf_counter() - began)
        if name != DYNAMIC:
            return done
        loss = losses(session, samples[0][:, :SHOWN], samples[1][:SHOWN])
        (plan,) = learning.plans
        return replace(done, steps=(meter.series(plan), loss))


def losses(session: LearningSession, spikes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Learns from some recordings more, and gives DECOLLE's loss at each of their steps."""
    logits = session.learn(spikes, labels).logits  # (time, sample, class)
    targets, loss = np.eye(CLASSES)[labels], SmoothL1()
    return np.array([
        loss.value(logits[step, sample][None], targets[sample][None])
        for sample in range(len(labels)) for step in range(len(logits))
    ])  # fmt: skip


def accuracies(outcomes: dict[str, Outcome]) -> str:
    rows = []
    for name, one in outcomes.items():
        shares = one.curve.held_out[0], one.held, one.curve.held_out[-1], one.curve.mean(160)
        rows.append([name, *map(percent, shares), f"{one.seconds:.0f} s"])
    return table(rows, ["written", "held out\nbefore", "while\nlearning", "after",
                        "last 160\nbefore learned", "time"])  # fmt: skip


def costs(outcomes: dict[str, Outcome]) -> str:
    """Writes, and operations with those of choosing, against the rule with and without zeros."""
    rows = []
    for name, one in outcomes.items():
        u = one.updates
        operations = u.work.operations
        rows.append([name, f"{u.issued / 1e6:.1f}", percent(u.share), percent(u.share_nz),
                     f"{u.work.overhead / 1e6:.1f}",
                     percent(operations / u.dense_work.operations),
                     percent(operations / u.dense_nz_work.operations)])  # fmt: skip
    return table(rows, ["written", "writes\n(millions)", "of all\nsynapses", "without\nzeros",
                        "to choose\n(millions)", "operations\nof all",
                        "without\nzeros"])  # fmt: skip


def draw(outcomes: dict[str, Outcome], path: Path) -> None:
    """Accuracy over samples, and the same over the synapses written."""
    drawn, axes = figure(1, 2, width=10.0, height=4.6)
    over_time, over_writes = axes[0]
    learning_curves(over_time, [one.curve for one in outcomes.values()], chance=1 / CLASSES)
    over_time.set_ylabel("accuracy (%)")
    over_time.set_title("lines: held out; dots: before learning", fontsize="medium")
    for one, (colour, marker, line) in zip(outcomes.values(), STYLES, strict=False):
        share = 100 * np.array(one.curve.held_out[1:])
        over_writes.plot(one.writes[1:], share, line, color=colour, marker=marker, markersize=4)
    over_writes.set_xscale("log")
    over_writes.set_xlabel("synapses written so far")
    over_writes.set_title("held out, by what it took", fontsize="medium")
    over_writes.grid(alpha=0.25)
    over_writes.sharey(over_time)
    over_time.set_ylim(0, 80)
    drawn.suptitle("Learning N-MNIST from scratch on Lava with fewer writes", fontsize="medium")
    drawn.legend(*over_time.get_legend_handles_labels(), loc="outside lower center", ncols=3,
                 fontsize="small")  # fmt: skip
    drawn.savefig(path, dpi=130)


def draw_steps(one: Outcome, path: Path) -> None:
    """k_t, sharpness and loss of the last recordings."""
    series, loss = one.steps
    title = f"Sharpness budget on Lava: the last {SHOWN} recordings, {STEPS} steps each"
    schedule_figure({DYNAMIC: series}, str(path), loss={DYNAMIC: loss}, title=title,
                    synapses=one.updates.dense // one.updates.steps)  # fmt: skip


def seen(outcomes: dict[str, Outcome]) -> list[str]:
    """What the first two tables say, in words that follow the figures."""
    grasp = outcomes[CHOSEN]
    error = np.sqrt(grasp.held * (1 - grasp.held) / HELD_OUT)
    gaps = {other: 100 * (grasp.held - outcomes[other].held) for other in COMPARED}
    said = ", ".join(
        f"{abs(gap):.1f} {'above' if gap > 0 else 'below'} {other!r}" for other, gap in gaps.items()
    )
    lines = [
        f"Held out, mean while learning: {CHOSEN!r} is, in points,\n{said}.",
        f"One seed, {HELD_OUT} recordings held out: the standard error is about {percent(error)}, "
        "and\na gap of less than twice that says nothing.",
    ]
    if gaps[RAISED] < 200 * error:
        lines.append(
            "Against random synapses at the larger rate, which cost less to choose, GRASP shows\n"
            "no advantage in this run."
        )
    u = grasp.updates
    spent = percent(u.work.operations / u.dense_nz_work.operations)
    return [
        *lines,
        f"{percent(1 - u.dense_nz / u.dense)} of the rule's changes are zeros: of the others, "
        f"GRASP writes {percent(u.share_nz)}, for {spent} of their operations.",
    ]


def seen_of_steps(one: Outcome) -> list[str]:
    """What k_t followed, in words that follow the figures."""
    series, loss = one.steps
    share = (series.k * one.updates.steps / one.updates.dense).reshape(SHOWN, STEPS)
    begins, ends = share[:, : STEPS // 3].mean(), share[:, -STEPS // 3 :].mean()
    by_gradient, by_loss = (
        np.corrcoef(series.sharpness, other)[0, 1] for other in (series.gradient, loss)
    )
    lines = [
        f"Sharpness budget: {percent(begins)} written in the first third of a recording, "
        f"{percent(ends)} in the last;",
        f"sharpness correlates with |gradient| by {by_gradient:+.2f}, with the loss by "
        f"{by_loss:+.2f}.",
    ]
    if by_gradient > 0.95:
        lines.append("So |gradient| would have set k_t much the same, without a curvature.")
    return lines


if __name__ == "__main__":
    main()

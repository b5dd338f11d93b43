"""Meta-train in torch, adapt on Lava: five classes that the network never saw, from a few shots.

    python examples/09_adapt_in_few_shots.py [--out demo_out] [--tasks 6]
    python examples/09_adapt_in_few_shots.py --train 1500 --data nmnist-train800.zip

Two N-MNIST recordings side by side are a number of two digits: 100 classes (Double N-MNIST). A
network of 256-128-5 was meta-trained on tasks of five classes out of 64, so that a step of gradient
descent in its last layer for each sample tells them apart (ANIL, second order); then it was written
as NIR with what is plastic, by which rule and at what rate. `--train` does it anew, in minutes, on
recordings that are in none of the tasks below.

Here the file is read back and built on Lava: the body frozen, the head plastic by SOEL, a delta
rule that skips small errors. Each task has five of 20 other classes, made of other recordings. A
shot is one sample of each class, shown once; each sample changes the head as it ends. To measure,
the weights are run on the fused back end, which gives Lava's spikes faster. The control is a
network with a random body, whose head starts at zero, adapted in the same way.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from grasp_plugin import build, discretise, quantise
from grasp_plugin.adapters import read_nir, write_nir
from grasp_plugin.data.double_nmnist import load_double_nmnist
from grasp_plugin.data.nmnist import load_nmnist
from grasp_plugin.learning import UpdateMeter, soel_for
from grasp_plugin.learning.baselines import nonzero
from grasp_plugin.learning.meta import MAML, Gradient, Stack, Tasks, spike
from grasp_plugin.learning.soel import last_steps, learning_of
from grasp_plugin.network import Network
from grasp_plugin.network.meta_hints import MetaHints, read_meta, write_meta
from grasp_plugin.network.to_nir import to_nir
from grasp_plugin.neurons.surrogate import FastSigmoid
from grasp_plugin.plot import figure
from grasp_plugin.report import table

HERE = Path(__file__).resolve().parent
SUBSET, SPLIT = HERE / "data" / "nmnist_subset.zip", HERE / "data" / "nmnist_split.json"
MODEL = HERE / "models" / "meta" / "double_nmnist.nir"
WAYS, SHOTS, QUERIES, STEPS, SIDE, LEAST, HIDDEN = 5, 5, 5, 20, 8, 3, 128
SIZES = (2 * SIDE * 2 * SIDE, HIDDEN, WAYS)
OPTIONS = {"steps": STEPS, "side": SIDE, "least": LEAST}
PLAIN_RATE = 6e-4  # of the control: best of 5e-5, 2e-4, 6e-4, 2e-3, 0.02, 0.2 on other tasks
HEAD = "layer1->layer2"


def stack() -> Stack:
    """The network, with random weights."""
    return Stack(SIZES, keep=0.9, gain=2.0, spikes=spike(FastSigmoid(4.0)))


def meta_train(archive: Path, iterations: int, path: Path) -> None:
    """ANIL on all recordings but those held out, and the file with its hints."""
    held_out = set(json.loads(SPLIT.read_text())["test"])
    own = [one.id for one in load_nmnist(archive, part="Train") if one.id not in held_out]
    source = load_double_nmnist(archive, ids={"train": own}, part="Train", **OPTIONS)
    torch.manual_seed(1)
    net, rng = stack(), np.random.default_rng(1)
    inner = Gradient(mapped=True, one_by_one=True)  # the head learns as it will on Lava
    maml = MAML(
        net, inner=inner, adapt=["weight_2"], step_size=0.14, learn="parameter", mapped=True
    )
    adam = torch.optim.Adam(maml.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    for _ in tqdm(range(iterations), desc="meta-training"):
        tasks = Tasks.of(source.batch("train", rng, 8, ways=WAYS, shots=1, queries=QUERIES))
        adam.zero_grad()
        maml(tasks).backward()
        torch.nn.utils.clip_grad_norm_(maml.parameters(), 5.0)
        adam.step()
        schedule.step()
    network = net.network()
    graph = to_nir(network)
    (node,) = (name for k in network.projections if k.name == HEAD for name in k.nodes)
    eta = float(maml.step_sizes()["weight_2"].detach())
    write_meta(graph, MetaHints("anil", {node: eta}, "soel", {"error_threshold": 0.05}, ways=WAYS))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nir(graph, path)
    print(f"wrote {path}, {path.stat().st_size / 1000:.0f} kB")


def adapted(network: Network, learning: Any, backend: str, task: Any) -> tuple[list[float], float]:
    """(share right before and after each shot, writes a shot) on one task."""
    x, y, query_x, query_y = (np.asarray(part)[0] for part in task)
    x, query_x = (v.reshape(*v.shape[:2], -1).astype(float) for v in (x, query_x))
    with build(network, backend, plans=learning) as session:
        meter, curve = UpdateMeter(session), [right(network, query_x, query_y)]
        for shot in range(SHOTS):
            for i in range(shot, len(y), SHOTS):  # one sample of each class
                session.learn(x[:, i], int(y[i]), mask=last_steps(STEPS))
            curve.append(right(session.learned(), query_x, query_y))
        return curve, meter.read().total.issued / SHOTS


def right(network: Network, x: Any, y: Any) -> float:
    """Share of samples whose class has the highest membrane at the end."""
    with build(network, "fused") as session:
        out = session.run(x).spikes["layer2"][-1]
    return float((out.argmax(1) == y).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--tasks", type=int, default=6, help="of five classes each")
    parser.add_argument("--train", type=int, metavar="ITERATIONS", help="meta-train anew, first")
    parser.add_argument("--data", type=Path, default=SUBSET, help="N-MNIST to meta-train on")
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    path = MODEL
    if arguments.train:
        path = arguments.out / MODEL.name
        meta_train(arguments.data, arguments.train, path)

    # 1. The network as NIR, and what it says of itself.
    graph = read_nir(path)
    meta, network = read_meta(graph), discretise(graph)
    print(f"{path.name}: {meta.algo}, order {meta.order}; plastic: {', '.join(meta.plastic)} by "
          f"{meta.rule}, {dict(meta.rule_parameters)}")  # fmt: skip

    # 2. Tasks of classes and recordings that are in none that it was trained on.
    ids = json.loads(SPLIT.read_text())["test"]
    source = load_double_nmnist(SUBSET, ids={"test": ids}, **OPTIONS)
    rng = np.random.default_rng(0)
    tasks = [source.batch("test", rng, 1, ways=WAYS, shots=SHOTS, queries=QUERIES)
             for _ in range(arguments.tasks)]  # fmt: skip

    # 3. Frozen body, plastic head: in float, in integers, and without meta-training.
    learning = learning_of(network, meta, WAYS, transforms=(nonzero(),))
    integers = quantise(network, plastic=list(learning.plans), growth=4.0)
    torch.manual_seed(0)
    plain = stack().network()
    plain = plain.with_weights({HEAD: np.zeros_like(plain.weights()[HEAD])})  # better than random
    untrained = soel_for(plain, WAYS, PLAIN_RATE, transforms=(nonzero(),))
    runs = {
        "meta-trained, Lava float": (network, learning, "lava"),
        "meta-trained, Lava fixed point": (integers, learning, "lava"),
        "random body, Lava float": (plain, untrained, "lava"),
    }
    rows, curves = [], {}
    for name, (version, plans, backend) in runs.items():
        began = time.perf_counter()
        found = [adapted(version, plans, backend, task) for task in tqdm(tasks, desc=name)]
        curves[name] = np.array([curve for curve, _ in found])
        means = [f"{100 * share:.1f} %" for share in curves[name].mean(0)]
        writes = np.mean([count for _, count in found])
        seconds = time.perf_counter() - began
        rows.append([name, *means, f"{writes:.0f}", f"{seconds:.0f} s"])

    # 4. What came of it.
    print()
    shots = [f"shot {i}" for i in range(1, SHOTS + 1)]
    print(table(rows, ["network", "before", *shots, "writes a shot", "time"]))
    picture(curves, arguments.out / "09_adapt_in_few_shots.png")


def picture(curves: dict[str, Any], path: Path) -> None:
    """Mean over tasks, with its 95 % interval."""
    drawn, axes = figure(1, 1, width=7.0, height=4.0)
    axis = axes[0, 0]
    for name, values in curves.items():
        half = 196 * values.std(0) / max(1, len(values) - 1) ** 0.5
        axis.errorbar(range(SHOTS + 1), 100 * values.mean(0), half, marker="o", capsize=3,
                      label=name)  # fmt: skip
    axis.axhline(100 / WAYS, color="k", lw=0.8, ls=":", label="chance")
    axis.set_xlabel("shots (samples of each class seen)")
    axis.set_ylabel("accuracy (%)")
    axis.set_title("Five classes the network never saw, learned on Lava", fontsize="medium")
    axis.legend(fontsize="small")
    drawn.savefig(path, dpi=130)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()

"""What online rules reach on N-MNIST beside backpropagation through time, and what memory it takes.

    python benchmarks/nmnist_rules.py --data <N-MNIST folder or zip> [--quick]

One network (578-128-128-10: two layers of leaky neurons with subtractive reset that first fire in
5 % of the steps, and a memoryless linear readout; 30 steps of 10 ms) is trained by DECOLLE, ETLP,
OTTT, SLTT (`OnlineTrainer`, an update at every step) and BPTT (autograd over all steps, one update
a batch, cross-entropy of the readout summed over time). All start from the same weights, see the
same batches in the same order (moved by up to one pixel), for as many epochs, with Adam and a
learning rate that falls along a cosine. The learning rate is the best of three on the last fifth of
the training ids, by the mean of two seeds; then five seeds train on all of them and are measured on
the 140 test ids of `examples/data/nmnist_split.json`. DECOLLE's class is read from the random
readout of its last hidden layer; the network's readout stays untrained. In as many epochs BPTT
makes a thirtieth of the updates and takes a third of the time, and 20 epochs are too few for it; so
all are measured after three times the epochs too ("x3"), with the learning rate found at one.

Every finished run is a row of `results/nmnist_rules.csv` and is not made again; delete the file to
start over. Memory is the peak of live tensors over one batch beyond the input, counted exactly.
`--quick` trains one seed for twelve epochs on the 80 recordings of the subset, writes nothing
and ends with one line of JSON.

Needs the extra plot.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from _live_bytes import LiveBytes
from torch import Tensor, nn
from tqdm import tqdm

from grasp_plugin import Discretisation, Network, discretise
from grasp_plugin.backends.torch import TorchNetwork
from grasp_plugin.data.nmnist import load_nmnist, to_frames
from grasp_plugin.learning import Learning, decolle_for, etlp_for, ottt_for, sltt_for
from grasp_plugin.learning.losses import CrossEntropy
from grasp_plugin.neurons.surrogate import FastSigmoid, Sigmoid, Surrogate
from grasp_plugin.report import table
from grasp_plugin.training.trainer import OnlineTrainer

ROOT = Path(__file__).resolve().parents[1]
SUBSET = ROOT / "examples" / "data" / "nmnist_subset.zip"
SPLIT = ROOT / "examples" / "data" / "nmnist_split.json"
RESULTS = Path(__file__).resolve().parent / "results"
STEPS, SIZES, CLASSES, BATCH, BETA, RATE = 30, (578, 128, 128, 10), 10, 32, 0.9, 0.05
EPOCHS, SEEDS, TUNING_SEEDS = 20, 5, (100, 101)
FIELDS = ("part", "method", "lr", "seed", "epochs", "recordings", "value", "seconds")

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Method:
    """A way to train: the rule with a learning rate of 1, and Adam's learning rates to try."""

    name: str
    rates: tuple[float, ...]
    learning: Callable[[Network], Learning] | None = None  # None: BPTT

    def tuning_runs(self) -> int:
        return len(self.rates) * len(TUNING_SEEDS)


METHODS = (
    Method("BPTT", (1e-3, 3e-3, 1e-2)),
    Method("OTTT", (3e-4, 1e-3, 3e-3), lambda n: ottt_for(n, CLASSES, 1.0)),
    Method("SLTT", (3e-4, 1e-3, 3e-3), lambda n: sltt_for(n, CLASSES, 1.0)),
    Method(
        "DECOLLE", (3e-4, 1e-3, 3e-3),
        lambda n: decolle_for(
            n, CLASSES, 1.0, amplitude=10.0, loss=CrossEntropy(), surrogate=FastSigmoid(5.0)
        ),
    ),
    # 100 Hz of teaching events, the authors' rate, is one in every step of 10 ms
    Method("ETLP", (3e-4, 1e-3, 3e-3), lambda n: etlp_for(n, CLASSES, 1.0, probability=1.0)),
)  # fmt: skip


# --- data -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frames:
    """Recordings as spikes (recording, time, 578), uint8, and labels (recording,)."""

    spikes: Tensor
    labels: Tensor

    def __getitem__(self, index: Any) -> Frames:
        return Frames(self.spikes[index], self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int = 70) -> Batches:
        pairs = zip(torch.split(self.spikes, size), torch.split(self.labels, size), strict=True)
        return [(x.transpose(0, 1), y) for x, y in pairs]

    def epoch(self, seed: int, epoch: int) -> Batches:
        """Batches in a random order, each recording moved by up to one pixel."""
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(self), generator=generator)
        return [(_moved(x, generator), y) for x, y in self[order].batches(BATCH)]


def _moved(x: Tensor, generator: torch.Generator) -> Tensor:
    steps, batch = x.shape[:2]
    image = nn.functional.pad(x.reshape(steps, batch, 2, 17, 17), (1, 1, 1, 1))
    shifts = torch.randint(0, 3, (batch, 2), generator=generator).tolist()
    parts = [image[:, k, :, dy : dy + 17, dx : dx + 17] for k, (dy, dx) in enumerate(shifts)]
    return torch.stack(parts, 1).flatten(2)


def load(data: Path) -> tuple[Frames, Frames]:
    """Recordings to train on and the test recordings; without overlap."""
    test = set(json.loads(SPLIT.read_text())["test"])
    train = [one for one in load_nmnist(data) if one.id not in test]
    parts = []
    for recordings in (train, load_nmnist(SUBSET, ids=test)):
        frames = [torch.from_numpy(to_frames(one, steps=STEPS, pool=2)) for one in recordings]
        labels = torch.tensor([one.label for one in recordings])
        parts.append(Frames(torch.stack(frames).flatten(2), labels))
    return parts[0], parts[1]


# --- the network ----------------------------------------------------------------------------------


def network(seed: int, probe: Tensor) -> Network:
    """Normal weights, each layer's scaled so that it fires in RATE of the steps of `probe`."""
    rng = np.random.default_rng(seed)
    nodes: dict[str, Any] = {"in": nir.Input(np.array([SIZES[0]]))}
    for k, (n_i, n_o) in enumerate(pairwise(SIZES)):
        nodes[f"w{k}"] = nir.Linear(rng.normal(0, 1 / np.sqrt(n_i), (n_o, n_i)))
        if n_o != CLASSES:
            leak = 1 - BETA
            values = (np.full(n_o, v) for v in (1e-2 / leak, 1 / leak, 0.0, 1.0, 0.0))
            nodes[f"n{k}"] = nir.LIF(*values)
    nodes["out"] = nir.Output(np.array([CLASSES]))
    graph = nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False)
    net = discretise(graph, Discretisation(dt_s=1e-2, reset="subtract-delayed"))
    for projection in net.projections:
        if net[projection.target].spiking:
            net = _at_rate(net, projection.name, probe)
    return net


def _at_rate(net: Network, name: str, probe: Tensor) -> Network:
    weight, target = net.weights()[name], name.partition("->")[2]
    low, high = 1e-2, 1e2
    for _ in range(16):
        middle = (low * high) ** 0.5
        trial = net.with_weights({name: weight * middle})
        with torch.no_grad():
            out, _ = TorchNetwork(trial, torch.float32)({"in": probe.float()})
        low, high = (low, middle) if float(out[target].mean()) > RATE else (middle, high)
    return trial


# --- training -------------------------------------------------------------------------------------


class Spike(torch.autograd.Function):
    """H(x) with a surrogate's derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * ctx.surrogate.first(x), None


class Bptt:
    """Backpropagation through time with the face of `OnlineTrainer` that is used here."""

    def __init__(self, net: Network, lr: float) -> None:
        slope = Sigmoid(4.0)
        self.module = TorchNetwork(net, torch.float32, lambda x: Spike.apply(x, slope))
        (self.out,) = set(net.outputs.values())
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr)

    def _logits(self, x: Tensor) -> Tensor:
        outputs, _ = self.module({"in": x.float()})
        return torch.sum(outputs[self.out], 0)

    def fit(self, batches: Batches, epochs: int) -> None:
        for x, y in batches:
            loss = nn.functional.cross_entropy(self._logits(x), y)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, batches: Batches) -> float:
        right = sum(int((self._logits(x).argmax(1) == y).sum()) for x, y in batches)
        return right / sum(len(y) for _, y in batches)


def trainer(method: Method, net: Network, lr: float) -> Any:
    if method.learning is None:
        return Bptt(net, lr)
    return OnlineTrainer(net, method.learning, optimizer=lambda p: torch.optim.Adam(p, lr))


def accuracy(
    method: Method, lr: float, seed: int, epochs: int, train: Frames, measured: Frames
) -> float:
    """Train once from the seed's weights; the share of `measured` that is right."""
    net = network(seed, train.spikes[:100].transpose(0, 1))
    learner = trainer(method, net, lr)
    for epoch in range(epochs):
        for group in learner.optimizer.param_groups:
            group["lr"] = lr * (1 + np.cos(np.pi * epoch / epochs)) / 2
        learner.fit(train.epoch(seed, epoch), 1)
    return float(learner.evaluate(measured.batches()))


# --- memory ---------------------------------------------------------------------------------------


def peak_mb(method: Method, net: Network, steps: int) -> float:
    """Peak of live tensors while one batch of `steps` steps is learned, in MB."""
    learner = trainer(method, net, 1e-3)
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(steps, BATCH, SIZES[0], generator=generator) < 0.08).to(torch.float32)
    y = torch.arange(BATCH) % CLASSES
    with LiveBytes() as live:
        learner.fit([(x, y)], 1)
    return float(live.peak / 1e6)


# --- runs, resumed --------------------------------------------------------------------------------


@dataclass
class Runs:
    """The rows of a CSV file; a run that has one is not made again."""

    path: Path

    def __post_init__(self) -> None:
        self.rows: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    def make(self, call: Callable[[], float], **key: Any) -> float:
        """The row's value, from the file or by `call`, which is then written down."""
        for row in self.rows:
            if all(row[k] == str(v) for k, v in key.items()):
                return float(row["value"])
        start = time.perf_counter()
        value = call()
        seconds = f"{time.perf_counter() - start:.1f}"
        row = {k: str(v) for k, v in key.items()} | {"value": str(value), "seconds": seconds}
        self.rows.append(row)
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        return value


def tuned(method: Method, runs: Runs, train: Frames, epochs: int, bar: tqdm[Any]) -> float:
    """The learning rate that is best on the last fifth of the training ids."""
    cut = len(train) * 4 // 5  # neighbours share a writer, so the last ids, not every fifth
    fit, held_out = train[:cut], train[cut:]
    means = {}
    for lr in method.rates:
        values = []
        for seed in TUNING_SEEDS:
            bar.set_postfix_str(f"{method.name} tuning {lr:g}")
            key = {"part": "tuning", "method": method.name, "lr": lr, "seed": seed,
                   "epochs": epochs, "recordings": len(fit)}  # fmt: skip
            call = lambda: accuracy(method, lr, seed, epochs, fit, held_out)  # noqa: B023, E731
            values.append(runs.make(call, **key))
            bar.update()
        means[lr] = float(np.mean(values))
    return max(means, key=lambda lr: means[lr])


def experiment(
    runs: Runs, train: Frames, test: Frames, epochs: int, seeds: int, tune: bool
) -> dict[str, dict[str, Any]]:
    """By method: learning rate and test accuracies."""
    spans = {"": epochs, " x3": 3 * epochs} if tune else {"": epochs}
    total = sum(seeds * len(spans) + (m.tuning_runs() if tune else 0) for m in METHODS)
    out: dict[str, dict[str, Any]] = {}
    with tqdm(total=total, desc="runs") as bar:
        for method in METHODS:
            lr = method.rates[len(method.rates) // 2]
            lr = tuned(method, runs, train, epochs, bar) if tune else lr
            for suffix, span in spans.items():
                name, values = method.name + suffix, []
                for seed in range(seeds):
                    bar.set_postfix_str(f"{name} seed {seed}")
                    key = {"part": "test", "method": name, "lr": lr, "seed": seed,
                           "epochs": span, "recordings": len(train)}  # fmt: skip
                    call = lambda: accuracy(method, lr, seed, span, train, test)  # noqa: B023, E731
                    values.append(runs.make(call, **key))
                    bar.update()
                out[name] = {"lr": lr, "accuracy": values}
    return dict(sorted(out.items(), key=lambda item: item[0].endswith("x3")))


def memory(runs: Runs, lengths: tuple[int, ...], train: Frames) -> dict[str, list[float]]:
    """By method: peak MB at each length."""
    net = network(0, train.spikes[:100].transpose(0, 1))
    out: dict[str, list[float]] = {}
    for method in tqdm(METHODS, desc="memory"):
        for steps in lengths:
            key = {"part": f"MB at {steps} steps", "method": method.name, "lr": "", "seed": "",
                   "epochs": "", "recordings": BATCH}  # fmt: skip
            value = runs.make(lambda: peak_mb(method, net, steps), **key)  # noqa: B023
            out.setdefault(method.name, []).append(value)
    return out


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Mean, standard deviation and every seed's accuracy, by method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.5), constrained_layout=True)
    for k, result in enumerate(results.values()):
        values = 100 * np.array(result["accuracy"])
        axes.bar(k, values.mean(), yerr=values.std(ddof=1) if len(values) > 1 else None,
                 width=0.6, color="0.8", capsize=4)  # fmt: skip
        axes.plot(k + np.linspace(-0.15, 0.15, len(values)), values, "o", color="C0", ms=4)
    axes.set_xticks(range(len(results)), list(results))
    axes.set(ylabel="test accuracy (%)", ylim=(0, 100), title="N-MNIST, the same network")
    axes.axhline(100 / CLASSES, ls=":", color="0.5")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def report(
    results: dict[str, dict[str, Any]], peaks: dict[str, list[float]], lengths: tuple[int, ...]
) -> dict[str, Any]:
    """Prints the tables; the headline figures as one object."""
    rows: list[list[str]] = []
    headline: dict[str, dict[str, float]] = {}
    for name, result in results.items():
        values = np.array(result["accuracy"])
        best = np.mean(results["BPTT x3" if name.endswith(" x3") else "BPTT"]["accuracy"])
        sd = f"{100 * values.std(ddof=1):.1f}" if len(values) > 1 else "-"
        rows.append([name, f"{result['lr']:g}", f"{100 * values.mean():.1f}", sd,
                     f"{100 * (values.mean() - best):+.1f}"])  # fmt: skip
        headline[name] = {"accuracy": round(float(values.mean()), 4)}
        if name in peaks:
            headline[name]["memory_ratio"] = round(peaks[name][-1] / peaks[name][0], 3)
    print(table(rows, ("method", "lr", "test accuracy %", "sd", "minus BPTT")))
    print()
    ratio = f"{lengths[-1]} / {lengths[0]}"
    rows = [[name, *(f"{v:.2f}" for v in mb), f"{mb[-1] / mb[0]:.3f}"]
            for name, mb in peaks.items()]  # fmt: skip
    print(table(rows, ("peak MB at steps", *(str(n) for n in lengths), ratio)))
    return headline


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=SUBSET, help="N-MNIST as a folder or zip")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one seed, a few epochs, no tuning")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        quick, out = options.quick, Path(scratch) if options.quick else options.out
        epochs, seeds = (12, 1) if quick else (options.epochs, options.seeds)
        lengths = (20, 80) if quick else (50, 200, 1000)
        train, test = load(SUBSET if quick else options.data)
        print(f"{len(train)} recordings to train on, {len(test)} to measure on, {epochs} epochs")
        runs = Runs(out / "nmnist_rules.csv")
        peaks = memory(runs, lengths, train)
        results = experiment(runs, train, test, epochs, seeds, tune=not quick)
        plot(results, out / "nmnist_rules.png")
        headline = report(results, peaks, lengths)
        if not quick:
            print(f"wrote {out / 'nmnist_rules.csv'} and .png")
    print(json.dumps(headline))


if __name__ == "__main__":
    main()

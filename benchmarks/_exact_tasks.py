"""Spike times of the workloads of `benchmarks/exact.py`, and a network for each.

Real inputs; of these networks only the one for Yin-Yang is trained. The others' weights are random
and scaled, layer by layer, so that a hidden neuron spikes as often as is stated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import _exact_train as exact
import numpy as np

from grasp_plugin.data.fsdd import load_fsdd, to_spikes
from grasp_plugin.data.nmnist import load_nmnist
from grasp_plugin.learning.exact import Parameters, run_layer

Array = Any
ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "data"
RATE = 1.0  # spikes a hidden neuron and sample


@dataclass(frozen=True, eq=False)
class Workload:
    """times (sample, input, spike) [ms]; weights and delays (None: none) of each layer."""

    name: str
    times: Array
    labels: Array
    weights: tuple[Array, ...]
    delays: tuple[Array | None, ...]
    t_end: float
    steps_ms: tuple[float, ...]  # time steps to compare with
    note: str = ""

    def parameters(self) -> list[Parameters]:
        """The layers for the engine."""
        return [Parameters(w, d) for w, d in zip(self.weights, self.delays, strict=True)]

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.weights[0].shape[1], *(len(w) for w in self.weights))


def padded(events: list[tuple[Array, Array]], inputs: int) -> Array:
    """(source, time) of each sample as padded times (sample, input, spike), at least one wide."""
    width = max(int(np.bincount(source, minlength=1).max(initial=1)) for source, _ in events)
    out = np.full((len(events), inputs, width), np.inf)
    for b, (source, time) in enumerate(events):
        order = np.argsort(source, kind="stable")
        source, time = source[order], time[order]
        first = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=inputs))])
        out[b, source, np.arange(len(source)) - first[source]] = time
    return out


def random_weights(times: Array, sizes: tuple[int, ...], t_end: float, seed: int = 0) -> Any:
    """N(0.5, 1) times what makes a neuron of each layer spike RATE times on average."""
    rng, weights = np.random.default_rng(seed), []
    for ins, outs in pairwise(sizes):
        base, low, high = rng.normal(0.5, 1.0, (outs, ins)), 1e-3, 30.0
        for _ in range(12):
            middle = (low * high) ** 0.5
            run = run_layer(times, Parameters(base * middle), t_end, capacity=5000)
            low, high = (middle, high) if run.counts.mean() < RATE else (low, middle)
        weights.append(base * middle)
        times = run.times
    return tuple(weights)


def yinyang(name: str, net: dict[str, Array], samples: int) -> Workload:
    """Test samples through a network of `_exact_train`, whose answers come before 35 ms."""
    x, y = exact.encode("test")
    weights, delays = (net["w1"], net["w2"]), (net.get("d1"), net.get("d2"))
    return Workload(f"Yin-Yang {name}", x.numpy()[:samples], y.numpy()[:samples], weights, delays,
                    40.0, (1.0, 0.1), "trained")  # fmt: skip


def latency_digits(path: Path, samples: int) -> Workload | None:
    """MNIST: one spike a pixel that is not black, 20 ms (1 - p / 255); None: no file."""
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        x, y = arrays["x"][:samples].reshape(-1, 784), arrays["y"][:samples]
    times = np.where(x > 0, 20.0 * (1 - x / 255.0), np.inf)[:, :, None]
    sizes = (784, 350, 10)
    return _random("MNIST latency", times, y, sizes, 60.0, (1.0, 0.1), "20 ms (1 - p / 255)")


def nmnist(samples: int) -> Workload:
    """N-MNIST at 17 x 17 pixels: every event at its own time."""
    recordings = load_nmnist(EXAMPLES / "nmnist_subset.zip")
    chosen = recordings[:: max(len(recordings) // samples, 1)][:samples]
    events = []
    for one in chosen:
        x, y = one.x.astype(int) // 2, one.y.astype(int) // 2
        events.append(((one.p.astype(int) * 17 + y) * 17 + x, one.t_us / 1e3))
    labels = np.array([one.label for one in chosen])
    return _random("N-MNIST", padded(events, 578), labels, (578, 128, 10), 320.0, (10.0, 1.0, 0.1),
                   "every event")  # fmt: skip


def digits_spoken(samples: int) -> Workload:
    """Spoken digits: changes of loudness in 32 mel bands, found every 10 ms."""
    spoken = load_fsdd(EXAMPLES / "fsdd_subset.zip")
    chosen = spoken[:: max(len(spoken) // samples, 1)][:samples]
    events = []
    for one in chosen:
        step, channel = np.nonzero(to_spikes(one))
        events.append((channel, 10.0 * step))
    labels = np.array([one.label for one in chosen])
    return _random("spoken digits", padded(events, 64), labels, (64, 128, 10), 500.0,
                   (10.0, 1.0, 0.1), "on a grid of 10 ms")  # fmt: skip


def _random(
    name: str, times: Array, labels: Array, sizes: tuple[int, ...], t_end: float,
    steps: tuple[float, ...], note: str,
) -> Workload:  # fmt: skip
    weights = random_weights(times, sizes, t_end)
    delays = (None,) * len(weights)
    return Workload(name, times, labels.astype(np.int64), weights, delays, t_end, steps, note)


def workloads(
    nets: dict[str, dict[str, Array]], data: Path, samples: int
) -> list[Callable[[], Workload | None]]:
    """One call for each workload; nets: Yin-Yang networks by name."""
    calls: list[Callable[[], Workload | None]] = [
        lambda name=name, net=net: yinyang(name, net, samples)  # type: ignore[misc]
        for name, net in nets.items()
    ]
    calls.append(lambda: latency_digits(data / "mnist_train.npz", samples))
    calls.append(lambda: digits_spoken(samples))
    calls.append(lambda: nmnist(samples))
    return calls

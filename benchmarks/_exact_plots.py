"""Pictures of `benchmarks/exact.py`: accuracy under noise, learned delays, spikes."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import _exact_train as exact
import matplotlib
import numpy as np
from _exact_store import Store

from grasp_plugin.learning.exact import Parameters, run_layer

matplotlib.use("Agg")
from matplotlib import pyplot

Array = Any
PANELS = {
    "input jitter": "jitter of input spikes, sd (ms)",
    "weight noise": "weight noise, sd / weight",
    "threshold noise": "threshold noise, sd / threshold",
    "weight bits": "bits of a weight",
}
CLASS_NAMES = ("yang", "yin", "dot")


def noise(store: Store, path: Path) -> None:
    """Mean test accuracy over seeds, and each seed's, by method, network and kind of noise."""
    figure, axes = pyplot.subplots(1, 4, figsize=(14, 3.8), sharey=True, constrained_layout=True)
    cases = sorted({(row["method"], row["model"]) for row in store.rows()})
    for axis, (kind, label) in zip(axes, PANELS.items(), strict=True):
        for color, (method, model) in enumerate(cases):
            _curve(axis, store, (method, model, kind), f"C{color}")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[3].invert_xaxis()
    axes[0].set(ylabel="test accuracy (%)", ylim=(30, 101))
    axes[0].legend(fontsize=8, loc="lower left")
    figure.suptitle("Yin-Yang, trained without noise; dots: seeds")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _curve(axis: Any, store: Store, case: tuple[str, str, str], color: str) -> None:
    method, model, kind = case
    by_level = defaultdict(list)
    for row in store.rows(method=method, model=model):
        if row["kind"] == kind or (row["kind"] == "none" and kind != "weight bits"):
            by_level[float(row["level"])].append(100 * row["test"])
    levels = sorted(by_level)
    if not levels:
        return
    axis.plot(levels, [np.mean(by_level[v]) for v in levels], color=color,
              label=f"{method}, {model}", ls="--" if method != "exact" else "-")  # fmt: skip
    for level in levels:
        axis.plot([level] * len(by_level[level]), by_level[level], ".", color=color, alpha=0.5)


def delays(net: dict[str, Array], path: Path) -> None:
    """Delays before and after training, by layer, and how each moved."""
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
    for axis, layer in zip(axes, ("d1", "d2"), strict=False):
        most = net[layer].max()
        bins = np.linspace(0, most, 31)
        axis.hist(net[f"start_{layer}"].ravel(), bins, alpha=0.5, label="start", color="0.5")
        axis.hist(net[layer].ravel(), bins, histtype="step", lw=2, label="learned", color="C0")
        axis.set(xlabel="delay (ms)", ylabel="synapses",
                 title=("input to hidden", "hidden to output")[layer == "d2"])  # fmt: skip
        axis.legend()
    for layer, color in (("1", "C0"), ("2", "C1")):
        axes[2].plot(net[f"w{layer}"].ravel(), net[f"d{layer}"].ravel(), ".", color=color, ms=5,
                     label=("input to hidden", "hidden to output")[layer == "2"])  # fmt: skip
    axes[2].set(xlabel="weight (thresholds)", ylabel="delay (ms)", title="after training")
    axes[2].legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def spikes(net: dict[str, Array], path: Path) -> None:
    """Spikes of one test sample of each class, before and after training."""
    x, y = (t.numpy() for t in exact.encode("test"))
    chosen = [int(np.nonzero(y == c)[0][0]) for c in range(3)]
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 6), sharex=True, constrained_layout=True)
    for row, prefix in enumerate(("start_", "")):
        hidden, out = _spikes(net, prefix, x[chosen])
        for k, axis in enumerate(axes[row]):
            _raster(axis, x[chosen[k], :, 0], hidden[k], out[k, :, 0])
            when = "before" if prefix else "after"
            axis.set_title(f"{when} training, a sample of {CLASS_NAMES[k]}")
    for axis in axes[1]:
        axis.set_xlabel("time (ms)")
    for axis in axes[:, 0]:
        axis.set_ylabel("hidden neuron")
    axes[0, 0].legend(fontsize=8, loc="upper right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _spikes(net: dict[str, Array], prefix: str, times: Array) -> tuple[Array, Array]:
    out = []
    for k in (1, 2):
        layer = Parameters(net[f"{prefix}w{k}"], net.get(f"{prefix}d{k}"))
        times = run_layer(times, layer, exact.T_END).times
        out.append(times)
    return out[0], out[1]


def _raster(axis: Any, inputs: Array, hidden: Array, first: Array) -> None:
    size = len(hidden)
    axis.plot(inputs, np.full(len(inputs), -0.06 * size), "k^", ms=5, label="input")
    neuron, spike = np.nonzero(np.isfinite(hidden))
    axis.plot(hidden[neuron, spike], neuron, "|", color="0.3", ms=6, label="hidden")
    for c, t in enumerate(first):
        if np.isfinite(t):
            axis.axvline(t, color=f"C{c}", label=f"output {CLASS_NAMES[c]}")
    axis.set_ylim(-0.12 * size, size)
    axis.set_xlim(0, 40)

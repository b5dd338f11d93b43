"""Trained Yin-Yang networks under what hardware does to them, without training on it.

    input jitter     every input spike moves by N(0, sigma) ms, kept >= 0
    all jitter       hidden spikes too, after they were emitted (exact networks only)
    weight noise     every weight times 1 + N(0, sigma)
    threshold noise  every hidden neuron's threshold times 1 + N(0, sigma), at least 0.05 (the
                     baseline's outputs have no threshold)
    weight bits      weights rounded to that many bits, one scale a layer
    grid             an exact network stepped at that dt [ms], delays rounded

Each is the test accuracy, mean of DRAWS draws of the noise. `timing` is the standard deviation of
the label's output's first spike over those draws, and for grids its RMS distance from the event
simulation's [ms], where both spike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _exact_sg as sg
import _exact_train as exact
import numpy as np
import torch
from _exact_bptt import Grid, GridLayer, classes_of, compiled_loop, trains

from grasp_plugin.learning.exact import Parameters, run_layer

Array = Any
DRAWS = 5
SWEEP: dict[str, tuple[float, ...]] = {
    "input jitter": (0.25, 0.5, 1.0, 2.0),
    "all jitter": (0.25, 0.5, 1.0, 2.0),
    "weight noise": (0.02, 0.05, 0.1, 0.2),
    "threshold noise": (0.02, 0.05, 0.1, 0.2),
    "weight bits": (8, 6, 5, 4, 3),
    "grid": (0.1, 0.5, 1.0),
}
ONCE = ("weight bits", "grid")  # no draws
KEYS = ("method", "model", "seed", "kind", "level")
FIGURES = ("test", "timing")


@dataclass(frozen=True, eq=False)
class Net:
    """A trained network: weights and delays of two layers; bptt: on a grid of 1 ms."""

    weights: tuple[Array, Array]
    delays: tuple[Array | None, Array | None]
    thetas: tuple[Array, Array]
    bptt: bool = False
    loss: str = "first"

    @classmethod
    def load(cls, path: Path, *, bptt: bool = False) -> Net:
        """From a file of `_exact_train` or `_exact_sg`."""
        with np.load(path) as file:
            net = {name: file[name] for name in file.files}
        thetas = tuple(net.get(f"theta{k}", np.ones(len(net[f"w{k}"]))) for k in (1, 2))
        return cls((net["w1"], net["w2"]), (net.get("d1"), net.get("d2")), thetas, bptt,
                   str(net.get("loss", "first")))  # fmt: skip


@dataclass(frozen=True, eq=False)
class Answer:
    """Class of each sample (-1: none), first spikes (sample, 3) or None."""

    classes: Array
    first: Array | None


def by_events(net: Net, times: Array, jitter: float = 0.0, rng: Any = None) -> Answer:
    """The network in continuous time; jitter: of hidden spikes."""
    for k in range(2):
        layer = Parameters(net.weights[k], net.delays[k], theta=net.thetas[k])
        times = run_layer(times, layer, exact.T_END).times
        if k == 0 and jitter:
            times = moved(times, jitter, rng)
    first = times[:, :, 0]
    classes = np.where(np.isfinite(first).any(1), first.argmin(1), -1)
    return Answer(classes, first)


def on_grid(net: Net, times: Array, dt: float) -> Answer:
    """The network stepped at dt, 100 samples at a time; exact networks' delays rounded to it."""
    parts = [_on_grid(net, times[k : k + 100], dt, sg.T_END) for k in range(0, len(times), 100)]
    first = [part.first for part in parts if part.first is not None]
    classes = np.concatenate([part.classes for part in parts])
    return Answer(classes, np.concatenate(first) if first else None)


@torch.no_grad()
def _on_grid(net: Net, times: Array, dt: float, t_end: float) -> Answer:
    grid, out = Grid(dt, t_end), (trains(torch.from_numpy(times), Grid(dt, t_end)), torch.empty(0))
    for k in range(2):
        theta = torch.from_numpy(net.thetas[k]).float()
        weight = torch.from_numpy(np.asarray(net.weights[k], np.float32)) / theta[:, None]
        delay = net.delays[k]
        late = delay
        if delay is not None and not net.bptt:  # the baseline interpolates, as it was trained
            late = np.rint(delay / dt) * dt
        silent = net.loss == "vmax" and k == 1
        layer = GridLayer(weight, late, grid, compiled_loop, float("inf") if silent else 1.0)
        out = layer(out[0])
    classes = classes_of(net.loss, out, dt).numpy()
    if net.loss == "vmax":
        return Answer(classes, None)
    first = torch.cumprod(1 - out[0], dim=0).sum(0).double().numpy()
    return Answer(classes, np.where(first < grid.steps, first * dt, np.inf))


def moved(times: Array, sigma: float, rng: Any) -> Array:
    """Spike times with jitter."""
    out = np.abs(times + sigma * rng.normal(size=times.shape))
    return np.where(np.isfinite(times), out, np.inf)


def noisy(net: Net, kind: str, level: float, rng: Any) -> Net:
    """The network with other weights or thresholds."""
    if kind == "weight noise":
        one, two = (w * (1 + level * rng.normal(size=w.shape)) for w in net.weights)
        return replace(net, weights=(one, two))
    if kind == "threshold noise":
        hidden = np.maximum(1 + level * rng.normal(size=net.thetas[0].shape), 0.05)
        return replace(net, thetas=(hidden, net.thetas[1]))
    if kind == "weight bits":
        one, two = (_rounded(w, int(level)) for w in net.weights)
        return replace(net, weights=(one, two))
    return net


def _rounded(weight: Array, bits: int) -> Array:
    scale = np.abs(weight).max() / (2 ** (bits - 1) - 1)
    return np.rint(weight / scale) * scale


def answer(net: Net, kind: str, level: float, times: Array, rng: Any) -> Answer:
    """The network under noise."""
    changed = noisy(net, kind, level, rng)
    if kind in ("input jitter", "all jitter"):
        times = moved(times, level, rng)
    if kind == "grid":
        return on_grid(changed, times, level)
    if net.bptt:
        return on_grid(changed, times, sg.COARSE)
    return by_events(changed, times, level if kind == "all jitter" else 0.0, rng)


def measure(net: Net, kind: str, level: float, seed: int) -> dict[str, float]:
    """Accuracy and timing at one level of one kind of noise; kind "none": as trained."""
    x, y = (t.numpy() for t in exact.encode("test"))
    draws = 1 if kind in (*ONCE, "none") else DRAWS
    found = [
        answer(net, kind, level, x, np.random.default_rng(1000 * seed + draw))
        for draw in range(draws)
    ]
    accuracy = np.mean([(a.classes == y).mean() for a in found])
    return {"test": float(accuracy), "timing": _timing(net, kind, found, x, y)}


def _timing(net: Net, kind: str, found: list[Answer], x: Array, y: Array) -> float:
    if found[0].first is None or kind == "none":
        return float("nan")
    rows = np.arange(len(y))
    own = np.array([a.first[rows, y] for a in found if a.first is not None])
    if kind in ONCE:
        exact_times = by_events(net, x).first
        own = np.stack([own[0], exact_times[rows, y]])  # type: ignore[index]
    spoke = np.isfinite(own).all(0)
    if not spoke.any():
        return float("nan")
    own = own[:, spoke]
    if kind in ONCE:
        return float(np.sqrt(np.mean((own[0] - own[1]) ** 2)))
    return float(own.std(0, ddof=1).mean())


def sweep(net: Net) -> list[tuple[str, float]]:
    """What is measured of a network."""
    kinds = [k for k in SWEEP if not (net.bptt and k in ("all jitter", "grid"))]
    return [("none", 0.0)] + [(kind, level) for kind in kinds for level in SWEEP[kind]]

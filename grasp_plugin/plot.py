"""Pictures where a person would rather look than read; needs the extra `plot` (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from grasp_plugin.accuracy import Curve
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.meter import Series
from grasp_plugin.learning.updates import Reading, Updates
from grasp_plugin.network.network import Network
from grasp_plugin.verify import Verification

MAX_NEURONS = 60  # per raster: more cannot be told apart


def figure(rows: int, columns: int, width: float = 10.0, height: float = 2.2) -> tuple[Any, Any]:
    """A figure without a display and its axes (rows, columns).

    Raises:
        Refused: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Refused(
            "plot", "expected matplotlib, got none", "pip install 'grasp-plugin[plot]'"
        ) from error
    drawn = Figure(figsize=(width, height * rows), layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn, drawn.subplots(rows, columns, squeeze=False)


def busiest(spikes: Any) -> Any:
    """Indices of the `MAX_NEURONS` neurons that spike most, in order; spikes (time, neuron)."""
    counts = np.asarray(spikes).sum(axis=0)
    return np.sort(np.argsort(-counts, kind="stable")[:MAX_NEURONS])


def raster(axis: Any, spikes: Any, colour: str = "k", size: float = 4.0, **options: Any) -> None:
    """Spikes (time, neuron) as dots; choose the neurons with `busiest`."""
    steps, neurons = np.nonzero(np.asarray(spikes) > 0)
    axis.scatter(steps, neurons, s=size, c=colour, linewidths=0, **options)
    axis.set_xlim(-0.5, len(spikes) - 0.5)


def verification_figure(network: Network, result: Verification, path: str) -> None:
    """First sample, busiest neurons: spikes of torch, Lava float and Lava fixed, or membranes.

    Where they disagree a red ring is drawn. Saved as PNG.
    """
    names = [p.name for p in network.populations]
    drawn, axes = figure(len(names), 1)
    runs = [
        ("torch", "#888888", 26.0),
        ("lava float", "#1f77b4", 9.0),
        ("lava fixed", "#000000", 2.0),
    ]
    for axis, name in zip(axes[:, 0], names, strict=True):
        traces = {
            label: _first_sample(result.recordings[label].spikes[name])
            for label, _, _ in runs
            if label in result.recordings
        }
        if network[name].spiking:
            shown = busiest(traces["torch"])
            traces = {label: trace[:, shown] for label, trace in traces.items()}
            for label, colour, size in runs:
                if label in traces:
                    raster(axis, traces[label], colour, size, label=label)
            for other in list(traces)[1:]:
                wrong = traces[other] != traces["torch"]
                steps, neurons = np.nonzero(wrong)
                axis.scatter(
                    steps, neurons, s=40, facecolors="none", edgecolors="r", linewidths=0.8
                )
        else:
            for (label, colour, _), style in zip(runs, ("-", "--", ":"), strict=True):
                if label in traces:
                    axis.plot(traces[label][:, :8], style, color=colour, linewidth=1.0)
        axis.set_ylabel(name)
    axes[-1, 0].set_xlabel(f"step ({network.dt_s} s)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if handles:
        drawn.legend(handles, labels, loc="outside upper right", ncols=3)
    drawn.savefig(path, dpi=120)


def _first_sample(array: Any) -> Any:
    """(time, batch, neuron...) -> (time, neuron) of sample 0."""
    return np.asarray(array)[:, 0].reshape(len(array), -1)


# Okabe and Ito's colours, told apart by the colour-blind, and by marker and line in grey
STYLES = (
    ("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"),
    ("#E69F00", "v", "-"), ("#56B4E9", "P", "--"), ("#555555", "x", ":"),
)  # fmt: skip


def learning_curves(axis: Any, curves: Sequence[Curve], chance: float | None = None) -> None:
    """Accuracy over time on one axis, a line for each curve.

    Held-out accuracy where it was measured, as a line with markers, over the accuracy of each block
    before it was learned, as faint dots; else the mean of blocks of about 100 samples.

    Args:
        chance: accuracy of a guess, drawn as a line.
    """
    for curve, (colour, marker, line) in zip(curves, cycle(STYLES), strict=False):
        blocks = 100 * np.asarray(curve.accuracy)
        axis.plot(curve.samples, blocks, ".", color=colour, alpha=0.3, markersize=5)
        if curve.held_samples:
            x, y = np.asarray(curve.held_samples), 100 * np.asarray(curve.held_out)
        else:
            x, y = _smooth(curve)
        axis.plot(
            x, y, line, color=colour, marker=marker, markersize=4, linewidth=1.6, label=curve.label
        )
    if chance is not None:
        axis.axhline(100 * chance, color="#888888", linewidth=0.8, linestyle=(0, (2, 2)))
        axis.annotate(
            "chance", (1.0, 100 * chance), (-3, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", fontsize="small", color="#666666",
        )  # fmt: skip
    axis.set_ylim(0, 102)
    axis.set_xlabel("samples learned from")
    axis.grid(alpha=0.25)


def _smooth(curve: Curve, window: int = 100) -> tuple[Any, Any]:
    """Means over the last blocks that hold `window` samples."""
    sizes = np.asarray(curve.sizes)
    right = np.cumsum(np.asarray(curve.accuracy) * sizes)
    ends = np.cumsum(sizes)
    first = np.searchsorted(ends, ends - window, side="right")
    before = np.where(first > 0, right[first - 1], 0.0)
    taken = ends - np.where(first > 0, ends[first - 1], 0)
    return np.asarray(curve.samples), 100 * (right - before) / taken


def learning_figure(
    curves: Sequence[Curve], path: str, *, chance: float | None = None, title: str = ""
) -> None:
    """Accuracy over time of one run or several, saved as PNG.

    Raises:
        Refused: matplotlib is not installed.
    """
    drawn, axes = figure(1, 1, width=7.0, height=4.2)
    axis = axes[0, 0]
    learning_curves(axis, curves, chance)
    held = any(curve.held_samples for curve in curves)
    axis.set_ylabel("accuracy (%)")
    axis.set_title(title, fontsize="medium")
    if len(curves) == 1:
        axis.plot([], [], ".", color=STYLES[0][0], alpha=0.5, label="each block, before learning")
        axis.lines[1].set_label("held out, learning off" if held else "mean of 100 samples")
    above_chance = (1.0, 0.16)
    axis.legend(loc="lower right", bbox_to_anchor=above_chance, fontsize="small", framealpha=0.9)
    drawn.savefig(path, dpi=150)


def schedule_figure(
    runs: Mapping[str, Series],
    path: str,
    *,
    loss: Mapping[str, Any] | None = None,
    synapses: int | None = None,
    title: str = "",
) -> None:
    """Writes a step, sharpness and loss over the last steps of one plan or several, saved as PNG.

    The sharpness is drawn on a logarithmic axis, unless it is negative somewhere, and |gradient| in
    its place where it is not known.

    Args:
        runs: by label, from `UpdateMeter.series`.
        loss: by label, the loss of each step up to the last, (time,), such as that of
            `LearningRecord.logits`; entries before the first step shown are left out.
        synapses: N_o N_i, for the share of writes on the right.

    Raises:
        Invalid: a loss of fewer steps than the series, or of an unknown run.
        Refused: matplotlib is not installed.
    """
    losses = {label: _last(runs, label, given) for label, given in (loss or {}).items()}
    known = any(np.isfinite(run.sharpness).any() for run in runs.values())
    name, key = ("sharpness", "sharpness") if known else ("|gradient|", "gradient")
    rows = [
        (r"writes a step, $k_t$", {label: run.k for label, run in runs.items()}),
        (name, {label: getattr(run, key) for label, run in runs.items()}),
        ("loss", losses),
    ][: 3 if losses else 2]
    drawn, axes = figure(len(rows), 1, width=7.0, height=1.9)
    for axis, (name, lines) in zip(axes[:, 0], rows, strict=True):
        for label, (colour, _, line) in zip(runs, cycle(STYLES), strict=False):
            if label in lines:
                axis.plot(
                    runs[label].step, lines[label], line, color=colour, linewidth=1.2, label=label
                )
        axis.set_ylabel(name)
        axis.grid(alpha=0.25)
        axis.sharex(axes[0, 0])
        axis.label_outer()
    if not any(np.any(line < 0) for line in rows[1][1].values()):
        axes[1, 0].set_yscale("log", nonpositive="mask")
    axes[0, 0].set_ylim(bottom=0)
    if synapses:
        right = axes[0, 0].secondary_yaxis(
            "right", functions=(lambda k: 100 * k / synapses, lambda s: s * synapses / 100)
        )
        right.set_ylabel("of all (%)")
    axes[-1, 0].set_xlabel("step of learning")
    axes[0, 0].set_title(title, fontsize="medium")
    if len(runs) > 1:
        drawn.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right",
                     ncols=min(len(runs), 4), fontsize="small")  # fmt: skip
    drawn.savefig(path, dpi=150)


def _last(runs: Mapping[str, Series], label: str, given: Any) -> Any:
    """The entries of a loss that belong to a run's steps."""
    if label not in runs:
        raise Invalid(
            "schedule_figure", f"expected a loss of {', '.join(runs)}, got one of {label!r}",
            "Label both alike",
        )  # fmt: skip
    size, values = len(runs[label].step), np.asarray(given, float).reshape(-1)
    if len(values) < size:
        raise Invalid(
            "schedule_figure", f"expected a loss of {size} steps for {label!r}, got {len(values)}",
            "Pass the loss of each step, or keep a shorter series",
        )  # fmt: skip
    return values[len(values) - size :]


def writes_figure(readings: Mapping[str, Reading], path: str, *, title: str = "") -> None:
    """Writes of one run or several against the dense rule's, by plan and in total, saved as PNG.

    A marker for each run's writes, with their share of the dense rule's; a line at what the dense
    rule writes, a dotted one at the same without idle writes. Plans that are not counted are left
    out.

    Args:
        readings: by label, from `UpdateMeter`.

    Raises:
        Refused: matplotlib is not installed.
    """
    names = list(dict.fromkeys(n for r in readings.values() for n, u in r.plans.items() if u))
    names.append("total")
    drawn, axes = figure(1, 1, width=7.0, height=1.2 + 0.16 * len(names) * (1 + len(readings)))
    axis, width = axes[0, 0], 0.8 / len(readings)
    for i, (reading, style) in enumerate(zip(readings.values(), cycle(STYLES), strict=False)):
        for row, name in enumerate(names):
            update = reading.total if name == "total" else reading.plans.get(name)
            if update is not None:
                _writes(axis, update, row - 0.4 + i * width, width, style)
    for label, (colour, marker, _) in zip(readings, cycle(STYLES), strict=False):
        axis.plot([], [], marker, color=colour, label=label)
    axis.plot([], [], "-", color="#444444", label="dense rule")
    axis.plot([], [], ":", color="#444444", label="dense, no idle writes")
    axis.set_xscale("log")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(alpha=0.25, axis="x")
    axis.set_xlabel("synapses written")
    axis.set_title(title, fontsize="medium")
    drawn.legend(loc="outside lower center", ncols=3, fontsize="small")
    drawn.savefig(path, dpi=150)


def _writes(
    axis: Any, update: Updates, low: float, width: float, style: tuple[str, str, str]
) -> None:
    """One marker, its share, and the two lines, between low and low + width."""
    middle = low + width / 2
    axis.plot(update.issued, middle, style[1], color=style[0], markersize=5)
    axis.annotate(
        f"{100 * update.share:.3g} %", (update.issued, middle), (6, 0),
        textcoords="offset points", va="center", fontsize="x-small",
    )  # fmt: skip
    for writes, line in ((update.dense, "-"), (update.dense_nz, ":")):
        axis.vlines(writes, low, low + width, "#444444", line, linewidth=1.4)

"""Pictures where a person would rather look than read; needs the extra `plot` (matplotlib)."""

from __future__ import annotations

from typing import Any

import numpy as np

from grasp_plugin.errors import Refused
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

"""The main job: trained networks, real recordings, Lava in float and in Loihi integers.

    python examples/03_run_on_lava.py [--out demo_out] [--samples 140]

Takes the networks of `models/` (made by the scripts 01 and 02 in snnTorch and Norse), runs them in
the framework they come from, on torch, on Lava float and on Lava fixed point, on the test split of
N-MNIST that training never saw, and prints accuracy and mismatching spikes of each. Writes a
raster, a membrane plot and the table into the output folder. `make demo` runs this.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from grasp_plugin import build, dequantise, discretise, quantise
from grasp_plugin.adapters.nir_file import read_nir
from grasp_plugin.data.nmnist import load_nmnist, to_frames
from grasp_plugin.network.error import layer_errors
from grasp_plugin.network.hints import read_hints
from grasp_plugin.plot import busiest, figure, raster
from grasp_plugin.report import table

HERE = Path(__file__).resolve().parent
STEPS, DT_S, POOL = 30, 0.01, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--samples", type=int, default=140, help="test recordings to run, at most")
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)
    frames, labels = test_split(arguments.samples)
    print(f"{len(labels)} N-MNIST recordings of the test split, {STEPS} steps of {DT_S} s\n")
    rows: list[list[Any]] = []
    errors: list[list[Any]] = []
    for path in sorted((HERE / "models").glob("nmnist_*.nir")):
        started = time.perf_counter()
        result = run_everywhere(path, frames)
        rows += accuracy_rows(path.stem, result, labels)
        errors += error_rows(path.stem, result)
        draw(path.stem, result, frames, arguments.out)
        print(f"{path.name}: {time.perf_counter() - started:.1f} s")
    text = "\n\n".join(
        [
            table(rows, ["network", "run", "accuracy", "spikes", "mismatches", "against"]),
            table(
                errors,
                ["network", "population", "Lava process", "scale", "membrane error\npredicted",
                 "found", "rms v", "saturated"],
            ),
        ]
    )  # fmt: skip
    print(f"\n{text}\n")
    (arguments.out / "table.txt").write_text(text + "\n")
    print(f"wrote {arguments.out}/table.txt and a raster and membrane plot for each network")


def test_split(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (time, batch, polarity, y, x) and labels of recordings that training never saw."""
    ids = json.loads((HERE / "data" / "nmnist_split.json").read_text())["test"]
    step = max(1, len(ids) // samples)
    recordings = load_nmnist(HERE / "data" / "nmnist_subset.zip", ids=ids[::step][:samples])
    frames = np.stack([to_frames(r, steps=STEPS, pool=POOL) for r in recordings], axis=1)
    return frames.astype(np.float64), np.array([r.label for r in recordings])


def run_everywhere(path: Path, frames: np.ndarray) -> dict[str, Any]:
    """The network in its framework, on torch, Lava float, dequantised and Lava fixed."""
    graph = read_nir(path)
    network = discretise(graph)
    fixed = quantise(network)
    source = str(read_hints(graph).get("source"))
    runs = {f"{source} (float32)": framework_run(graph, source, frames)}
    for label, target, backend in (
        ("torch", network, "torch"),
        ("Lava float", network, "lava"),
        ("dequantised", dequantise(fixed), "torch"),
        ("Lava fixed", fixed, "lava"),
    ):
        with build(target, backend=backend) as session:
            runs[label] = session.run(frames, record=("membrane",))
    return {"network": network, "fixed": fixed, "runs": runs, "frames": frames}


def framework_run(graph: Any, source: str, frames: np.ndarray) -> np.ndarray:
    """Output spikes (time, batch, class) of the framework's own modules, in float32."""
    import torch

    if source == "norse":
        from grasp_plugin.adapters.to_norse import to_norse as to_framework
    else:
        from grasp_plugin.adapters.to_snntorch import to_snntorch as to_framework
    module, state, kept = to_framework(graph), None, []
    with torch.no_grad():
        for frame in torch.as_tensor(frames, dtype=torch.float32):
            out, state = module(frame, state)
            kept.append(out)
    return torch.stack(kept).numpy().astype(np.float64)


def outputs(result: dict[str, Any], label: str) -> np.ndarray:
    run = result["runs"][label]
    return run if isinstance(run, np.ndarray) else run[next(iter(run.outputs))]


def accuracy_rows(name: str, result: dict[str, Any], labels: np.ndarray) -> list[list[Any]]:
    first = next(iter(result["runs"]))
    against = {first: None, "torch": first, "Lava float": "torch", "dequantised": "torch",
               "Lava fixed": "dequantised"}  # fmt: skip
    rows = []
    for label in result["runs"]:
        spikes = outputs(result, label)
        accuracy = float(np.mean(spikes.sum(axis=0).argmax(axis=1) == labels))
        other = against[label]
        wrong = "-" if other is None else differing(result, label, other)
        row = [name, label, f"{100 * accuracy:.1f} %", int(spikes.sum()), wrong, other or "-"]
        rows.append(row)
    return rows


def differing(result: dict[str, Any], label: str, other: str) -> str:
    """Differing entries in all populations, or at the output where only that is known."""
    first, second = result["runs"][label], result["runs"][other]
    if isinstance(second, np.ndarray):
        return f"{int(np.sum(outputs(result, label) != second))} (output)"
    wrong = sum(int(np.sum(first.spikes[n] != second.spikes[n])) for n in first.spikes)
    return f"{wrong} (all layers)"


def error_rows(name: str, result: dict[str, Any]) -> list[list[Any]]:
    from grasp_plugin.network.lowering import lava_process

    network, fixed, runs = result["network"], result["fixed"], result["runs"]
    (source,) = network.inputs
    frames = result["frames"]
    sources = {source: frames.reshape(*frames.shape[:2], -1)}
    sources |= {n: s.reshape(*s.shape[:2], -1) for n, s in runs["torch"].spikes.items()}
    return [
        [name, e.name, lava_process(fixed[e.name], "loihi"), e.scale, e.predicted, e.found, e.rms_v,
         runs["Lava fixed"].saturated.get(e.name, 0)]
        for e in layer_errors(network, fixed, sources)
    ]  # fmt: skip


def draw(name: str, result: dict[str, Any], frames: np.ndarray, folder: Path) -> None:
    """Raster and membranes of the first sample."""
    network, runs = result["network"], result["runs"]
    names = [p.name for p in network.populations]
    styles = [("torch", "#999999", 26.0), ("Lava float", "#1f77b4", 9.0), ("Lava fixed", "k", 2.0)]
    drawn, axes = figure(len(names) + 1, 1)
    first = frames[:, 0].reshape(len(frames), -1)
    raster(axes[0, 0], first[:, busiest(first)], "#2ca02c")
    axes[0, 0].set_ylabel("input")
    for axis, population in zip(axes[1:, 0], names, strict=True):
        shown = busiest(runs["torch"].spikes[population][:, 0].reshape(STEPS, -1))
        for label, colour, size in styles:
            spikes = runs[label].spikes[population][:, 0].reshape(STEPS, -1)
            raster(axis, spikes[:, shown], colour, size, label=label)
        axis.set_ylabel(population)
    axes[-1, 0].set_xlabel(f"step of {DT_S} s")
    axes[1, 0].legend(loc="upper right", ncols=3, fontsize="small")
    drawn.suptitle(f"{name}: spikes of the first test recording, busiest neurons")
    drawn.savefig(folder / f"{name}_raster.png", dpi=120)

    drawn, axes = figure(len(names), 1)
    lines = [("torch", "-", "#999999", 4.0), ("Lava float", "-", "#1f77b4", 1.5),
             ("Lava fixed", ":", "k", 1.0)]  # fmt: skip
    for axis, population in zip(axes[:, 0], names, strict=True):
        one = runs["torch"].spikes[population][:, 0].reshape(STEPS, -1).sum(axis=0).argmax()
        for label, line, colour, width in lines:
            trace = runs[label].membrane[population][:, 0].reshape(STEPS, -1)[:, one]
            axis.plot(trace, line, color=colour, linewidth=width, label=label)
        axis.set_ylabel(f"v, {population}[{one}]")
    axes[0, 0].legend(loc="upper right", ncols=3, fontsize="small")
    axes[-1, 0].set_xlabel(f"step of {DT_S} s")
    drawn.suptitle(f"{name}: membrane after the step, busiest neuron of each population")
    drawn.savefig(folder / f"{name}_membrane.png", dpi=120)


if __name__ == "__main__":
    main()

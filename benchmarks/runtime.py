"""What runs a Lava graph, and how fast: stock Lava, in one process, fused, and plain loops.

    python benchmarks/runtime.py [--quick] [--out bench_out]

Chains of layers (dense weights, leaky integrate-and-fire neurons) of several depths and sizes, in
float and Loihi integers, and the convolutional N-MNIST network of `examples/models`. Every figure
of one row is measured in one call of this script, one runtime after another. CPU time counts all OS
processes of a runtime; ratios are stock Lava's CPU time over that runtime's. The floor is the
time this machine needs to stream the weights that active inputs touch, at the bandwidth measured
at the start. The last line is one JSON object of the headline figures.

Needs the extras lava, snntorch, plot and bench (psutil).
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import psutil

from grasp_plugin import Discretisation, build, discretise, lava_session, quantise
from grasp_plugin.network import weights as W
from grasp_plugin.network.network import Network
from grasp_plugin.network.schedule import arrival_steps
from grasp_plugin.report import table
from grasp_plugin.runtime.lava_import import kept_logging, require_lava

BETA = 0.9
ROOT = Path(__file__).resolve().parents[1]
RUNTIMES = ("stock", "inprocess", "fused", "numpy", "torch", "snntorch")


def chain(layers: int, size: int, seed: int = 0) -> Network:
    """`layers` x (Linear, LIF) of `size` neurons; about 5 to 15 % of them spike in a step."""
    rng = np.random.default_rng(seed)
    nodes: dict[str, Any] = {"in": nir.Input(np.array([size]))}
    for k in range(layers):
        weight = rng.normal(0.5 / size, 1.0 / np.sqrt(size), (size, size))
        nodes[f"w{k}"] = nir.Linear(weight)
        nodes[f"n{k}"] = nir.LIF(
            *(np.full(size, v) for v in (1e-3 / (1 - BETA), 1 / (1 - BETA), 0.0, 0.6, 0.0))
        )
    nodes["out"] = nir.Output(np.array([size]))
    names = list(nodes)
    graph = nir.NIRGraph(nodes, list(pairwise(names)), type_check=False)
    return discretise(graph, Discretisation(dt_s=1e-3, reset="value"))


class Clock:
    """Wall and CPU seconds of this process and its children, and their memory."""

    def __init__(self) -> None:
        self._me = psutil.Process()

    def cpu(self) -> float:
        total = time.process_time()
        for child in self._me.children(recursive=True):
            try:
                total += sum(child.cpu_times()[:2])
            except psutil.NoSuchProcess:
                continue
        return total

    def memory_mb(self) -> float:
        rss = [p.memory_info().rss for p in (self._me, *self._me.children(recursive=True))]
        return sum(rss) / 2**20

    def time(self, call: Callable[[], Any], repeat: int = 1) -> tuple[float, float, Any]:
        gc.collect()
        wall, cpu = time.perf_counter(), self.cpu()
        for _ in range(repeat):
            out = call()
        return (time.perf_counter() - wall) / repeat, (self.cpu() - cpu) / repeat, out


def lava_program(network: Network, spikes: np.ndarray) -> tuple[Any, Any, dict[str, Any], str]:
    """The network as a Lava program between a Source and Sinks; (process, config, sinks, tag)."""
    require_lava()
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source

    from grasp_plugin.processes.network.models import lay_out

    tag = "fixed_pt" if network.precision == "loihi" else "floating_pt"
    with kept_logging():
        layout = lay_out(network)
        steps = len(spikes)
        source = Source(data=spikes.T.astype(np.int32 if tag == "fixed_pt" else float))
        sinks = {}
        for _, port in layout.taps:
            source.s_out.connect(port)
        last = network.populations[-1]
        sinks[last.name] = Sink(shape=(last.size,), buffer=steps)
        layout.neurons[last.name].s_out.connect(sinks[last.name].a_in)
    return source, Loihi2SimCfg(select_tag=tag), sinks, tag


def run_lava(network: Network, spikes: np.ndarray, runtime: str, clock: Clock) -> dict[str, Any]:
    process, config, sinks, _ = lava_program(network, spikes)
    start, _, session = clock.time(lambda: lava_session(process, config, runtime=runtime))
    before = clock.memory_mb()
    with session:
        session.run(1)  # the first step includes what is done once
        wall, cpu, _ = clock.time(lambda: session.run(len(spikes) - 1))
        memory = clock.memory_mb()
        ((name, sink),) = sinks.items()
        late = arrival_steps(network)[name]
        out = np.asarray(sink.data.get())[:, late:].T
    return {"wall": wall, "cpu": cpu, "start": start, "memory": max(memory, before), "out": out,
            "steps": len(spikes) - 1}  # fmt: skip


def run_session(network: Network, spikes: np.ndarray, backend: str, clock: Clock) -> dict[str, Any]:
    start, _, session = clock.time(lambda: build(network, backend=backend))
    (shape,) = network.inputs.values()
    shaped = spikes.reshape(len(spikes), *shape)
    with session:
        session.run(shaped[:2])  # compile
        repeat = 1 if spikes.shape[1] >= 1000 else 20
        wall, cpu, recording = clock.time(lambda: session.run(shaped), repeat)
        out = recording.spikes[network.populations[-1].name]
    return {"wall": wall, "cpu": cpu, "start": start, "memory": clock.memory_mb(), "out": out,
            "steps": len(spikes)}  # fmt: skip


def numpy_loop(network: Network, spikes: np.ndarray) -> np.ndarray:
    """The plain event-driven loop one would write by hand: rows of active inputs, summed."""
    from grasp_plugin.neurons.lif_fixed import step_fixed

    rows = [np.ascontiguousarray(W.to_dense(k.weight).T) for k in network.projections]
    fixed = network.precision == "loihi"
    kind = np.int64 if fixed else np.float64
    states = [{key: np.zeros(p.size, kind) for key in "uvs"} for p in network.populations]
    out = np.empty((len(spikes), network.populations[-1].size))
    for t in range(len(spikes)):
        s = spikes[t] > 0
        for k, (p, w) in enumerate(zip(network.populations, rows, strict=True)):
            a = w[s].sum(axis=0)
            if fixed:
                exp = network.projections[k].weight_exp
                a = a << exp if exp > 0 else a >> -exp
                y, states[k] = step_fixed(
                    a, states[k], du=p.du, dv=p.dv, v_th=p.v_th, drive=p.drive, reset="value"
                )
                s = y > 0
            else:
                v = (1 - p.dv) * states[k]["v"] + a
                s = v > p.v_th
                v[s] = 0
                states[k]["v"] = v
        out[t] = s
    return out


def torch_loop(network: Network, spikes: np.ndarray) -> Callable[[], Any]:
    """One dense product a layer and step, float32, one thread."""
    import torch

    torch.set_num_threads(1)
    w = [torch.as_tensor(W.to_dense(k.weight), dtype=torch.float32) for k in network.projections]
    theta = [torch.as_tensor(p.v_th, dtype=torch.float32) for p in network.populations]
    x = torch.as_tensor(spikes, dtype=torch.float32)

    def run() -> Any:
        with torch.no_grad():
            v = [torch.zeros(len(t)) for t in theta]
            for t in range(len(x)):
                s = x[t]
                for k in range(len(w)):
                    v[k] = BETA * v[k] + w[k] @ s
                    s = (v[k] > theta[k]).float()
                    v[k] = v[k] * (1 - s)
            return s

    return run


def snntorch_loop(network: Network, spikes: np.ndarray) -> Callable[[], Any]:
    """snnTorch's own modules, one call a layer and step."""
    import snntorch as snn
    import torch

    x = torch.as_tensor(spikes, dtype=torch.float32)[:, None]
    layers = []
    for k, p in zip(network.projections, network.populations, strict=True):
        linear = torch.nn.Linear(p.size, p.size, bias=False)
        linear.weight.data = torch.as_tensor(W.to_dense(k.weight), dtype=torch.float32)
        theta = float(p.v_th[0])
        layers.append((linear, snn.Leaky(BETA, threshold=theta, reset_mechanism="zero")))

    def run() -> Any:
        with torch.no_grad():
            memory = [neuron.init_leaky() for _, neuron in layers]
            for t in range(len(x)):
                s = x[t]
                for k, (linear, neuron) in enumerate(layers):
                    s, memory[k] = neuron(linear(s), memory[k])
            return s

    return run


def bandwidth() -> float:
    """Bytes a second at which this machine reads a large array once."""
    data = np.ones(2**25)
    best = min(_timed(data.sum) for _ in range(5))
    return data.nbytes / best


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def floor_s(network: Network, spikes: np.ndarray, per_second: float) -> float:
    """Seconds to stream the weights that active inputs touch."""
    with build(network, backend="fused") as session:
        (shape,) = network.inputs.values()
        recording = session.run(spikes.reshape(len(spikes), *shape))
    touched = 0
    weight_bytes = 2 if network.precision == "loihi" else 8
    for k in network.projections:
        source = spikes if k.source in network.inputs else recording.spikes[k.source]
        fan_out = W.to_sparse(k.weight).getnnz(axis=0)
        touched += int((source.reshape(len(spikes), -1) > 0).sum(axis=0) @ fan_out)
    return touched * weight_bytes / per_second


def measure(name: str, network: Network, spikes: np.ndarray, per_second: float,
            runtimes: tuple[str, ...]) -> dict[str, Any]:  # fmt: skip
    clock, results = Clock(), {}
    floats = network.precision == "float"
    for runtime in runtimes:
        if runtime in ("stock", "inprocess"):
            kind = "supervised" if runtime == "stock" else "inprocess"
            results[runtime] = run_lava(network, spikes, kind, clock)
        elif runtime == "fused":
            results[runtime] = run_session(network, spikes, "fused", clock)
        else:
            call = {
                "numpy": lambda: numpy_loop(network, spikes),
                "torch": torch_loop(network, spikes) if floats else None,
                "snntorch": snntorch_loop(network, spikes) if floats else None,
            }[runtime]
            if call is not None:
                call()
                wall, cpu, out = clock.time(call, 1 if spikes.shape[1] >= 1000 else 5)
                results[runtime] = {"wall": wall, "cpu": cpu, "start": 0.0, "steps": len(spikes),
                                    "memory": clock.memory_mb(), "out": out}  # fmt: skip
    reference = results["inprocess"]["out"]
    same = all(
        np.array_equal(r["out"][: len(reference)], reference[: len(r["out"])])
        for key, r in results.items()
        if key in ("stock", "fused", "numpy") and key in results
    )
    return {
        "name": name,
        "precision": network.precision,
        "results": results,
        "same": same,
        "rate": float(reference.mean()),
        "floor": floor_s(network, spikes, per_second),
    }


def cases(quick: bool) -> list[tuple[str, int, int, int]]:
    """(name, layers, size, steps)"""
    if quick:
        grid = [(2, 10), (2, 100), (4, 100), (2, 1000), (4, 1000)]
        return [(f"{layers}x{n}", layers, n, 60 if n == 1000 else 150) for layers, n in grid]
    grid = [(layers, n) for layers in (2, 4, 8) for n in (10, 100, 1000)]
    return [(f"{layers}x{n}", layers, n, 200) for layers, n in grid]


def cpu_ms(row: dict[str, Any], runtime: str) -> float | None:
    if runtime not in row["results"]:
        return None
    r = row["results"][runtime]
    return 1e3 * max(r["cpu"], 1e-6) / r["steps"]


def ratio(row: dict[str, Any], runtime: str) -> float:
    return float(cpu_ms(row, "stock") or 0) / float(cpu_ms(row, runtime) or np.nan)


def report(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        cells: list[Any] = [row["name"], row["precision"], f"{100 * row['rate']:.1f} %"]
        for runtime in RUNTIMES:
            r = row["results"].get(runtime)
            if r is None:
                cells.append("-")
                continue
            cells.append(f"{cpu_ms(row, runtime):.3g} / {1e3 * r['wall'] / r['steps']:.3g}")
        fused, stock = row["results"]["fused"], row["results"]["stock"]
        floor = 1e3 * row["floor"] / fused["steps"]
        cells += [f"{(cpu_ms(row, 'fused') or 0) / floor:.3g}" if floor else "-",
                  f"{stock['start']:.2f} / {row['results']['inprocess']['start']:.2f}",
                  f"{stock['memory']:.0f} / {fused['memory']:.0f}",
                  "yes" if row["same"] else "NO"]  # fmt: skip
        lines.append(cells)
    headers = ["network", "numbers", "rate", *(f"{r}\nCPU / wall ms" for r in RUNTIMES),
               "fused over\nfloor", "start s\nstock / inproc", "MB\nstock / fused",
               "same"]  # fmt: skip
    return table(lines, headers)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from grasp_plugin.plot import figure

    drawn, axes = figure(1, 2, height=4.5)
    for axis, precision in zip(axes[0], ("float", "loihi"), strict=True):
        mine = [r for r in rows if r["precision"] == precision]
        for runtime in RUNTIMES:
            points = [
                (i, cpu_ms(r, runtime)) for i, r in enumerate(mine) if runtime in r["results"]
            ]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", label=runtime, markersize=4)
        axis.set_yscale("log")
        axis.set_xticks(range(len(mine)), [r["name"] for r in mine], rotation=45, fontsize=8)
        axis.set_title("float" if precision == "float" else "Loihi integers")
        axis.set_ylabel("CPU ms a step, all processes")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    drawn.savefig(path, dpi=120)


def var_get_ms(size: int = 1000) -> float:
    """Milliseconds to read size x size weights from a program in one process."""
    require_lava()
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.dense.process import Dense

    with kept_logging():
        dense = Dense(weights=np.ones((size, size)))
    with lava_session(dense, Loihi2SimCfg(select_tag="floating_pt")) as session:
        session.run(1)
        return 1e3 * min(_timed(dense.weights.get) for _ in range(5))


def demo_network() -> tuple[Network, np.ndarray]:
    from grasp_plugin.adapters import read_nir
    from grasp_plugin.data.nmnist import load_nmnist, to_frames

    split = json.loads((ROOT / "examples" / "data" / "nmnist_split.json").read_text())
    recording = load_nmnist(ROOT / "examples" / "data" / "nmnist_subset.zip", split["test"][:1])[0]
    frames = to_frames(recording, steps=30, pool=2)
    network = discretise(read_nir(ROOT / "examples" / "models" / "nmnist_conv.nir"))
    return network, frames.reshape(len(frames), -1).astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and steps, under 50 s")
    parser.add_argument("--out", type=Path, default=Path("bench_out"))
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)
    per_second = bandwidth()
    rng = np.random.default_rng(1)
    rows = []
    for name, layers, size, steps in cases(arguments.quick):
        network = chain(layers, size)
        spikes = (rng.random((steps, size)) < 0.1).astype(float)
        for target in (network, quantise(network)):
            rows.append(measure(name, target, spikes, per_second, RUNTIMES))
    if not arguments.quick:
        network, spikes = demo_network()
        for target in (network, quantise(network)):
            run = ("stock", "inprocess", "fused")
            rows.append(measure("nmnist_conv", target, spikes, per_second, run))
    text = report(rows)
    print(text)
    (arguments.out / "runtime.txt").write_text(text + "\n")
    draw(rows, arguments.out / "runtime.png")
    small = [r for r in rows if r["name"].endswith(("x10", "x100"))]
    large = [r for r in rows if r["name"].endswith("x1000")]
    numpy_rows = [r for r in rows if "numpy" in r["results"]]
    headline = {
        "cpu_ratio_inprocess_median": float(np.median([ratio(r, "inprocess") for r in rows])),
        "cpu_ratio_fused_n100_median": float(np.median([ratio(r, "fused") for r in small])),
        "cpu_ratio_fused_n1000_min": float(min(ratio(r, "fused") for r in large)),
        "fused_vs_numpy_min": float(
            min((cpu_ms(r, "numpy") or 0) / (cpu_ms(r, "fused") or 1) for r in numpy_rows)
        ),
        "bit_identical": all(r["same"] for r in rows),
        "var_get_1000x1000_ms": var_get_ms(),
    }
    print(json.dumps(headline))


if __name__ == "__main__":
    main()

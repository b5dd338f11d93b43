"""torch = Lava float, and dequantised float = Lava fixed, spike for spike, for every topology."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from grasp_plugin import Discretisation, build, dequantise, discretise, quantise
from grasp_plugin.network.hints import RESETS

pytestmark = pytest.mark.lava
DT = 1e-3
STEPS, BATCH = 120, 3


def out(shape: Any) -> nir.Output:
    return nir.Output(np.atleast_1d(shape))


def graphs(rng: np.random.Generator, make: Any) -> dict[str, nir.NIRGraph]:
    """One graph a topology; random weights, so that nothing ties."""

    def linear(o: int, i: int, scale: float = 0.6) -> nir.Linear:
        return nir.Linear(rng.normal(size=(o, i)) * scale)

    def affine(o: int, i: int) -> nir.Affine:
        return nir.Affine(rng.normal(size=(o, i)) * 0.6, rng.normal(size=o) * 0.3)

    def conv2(o: int, i: int, k: int, stride: int, pad: int, groups: int = 1) -> nir.Conv2d:
        weight = rng.normal(size=(o, i // groups, k, k)) * 1.5 + 0.6
        return nir.Conv2d(None, weight, stride, pad, 1, groups, rng.normal(size=o) * 0.1)

    def graph(nodes: dict[str, Any], *edges: str) -> nir.NIRGraph:
        return nir.NIRGraph(nodes, [tuple(e.split(">")) for e in edges], type_check=False)

    found = {}
    for kind in ("LIF", "CubaLIF", "IF", "Threshold"):
        found[f"dense-{kind}"] = graph(
            {"i": nir.Input(np.array([12])), "a": affine(20, 12), "n": make(kind, (20,)),
             "b": affine(8, 20), "m": make(kind, (8,)), "o": out(8)},
            "i>a", "a>n", "n>b", "b>m", "m>o",
        )  # fmt: skip
    for kind in ("LI", "CubaLI", "I"):
        found[f"readout-{kind}"] = graph(
            {"i": nir.Input(np.array([12])), "a": affine(20, 12), "n": make("LIF", (20,)),
             "b": affine(8, 20), "m": make(kind, (8,)), "o": out(8)},
            "i>a", "a>n", "n>b", "b>m", "m>o",
        )  # fmt: skip
    found["recurrent"] = graph(
        {"i": nir.Input(np.array([12])), "a": linear(20, 12), "n": make("LIF", (20,)),
         "w": affine(20, 20), "b": linear(8, 20), "m": make("LIF", (8,)), "o": out(8)},
        "i>a", "a>n", "n>w", "w>n", "n>b", "b>m", "m>o",
    )  # fmt: skip
    found["self-loop"] = graph(
        {"i": nir.Input(np.array([5])), "n": make("LIF", (5,)), "o": out(5)}, "i>n", "n>n", "n>o"
    )
    found["skip"] = graph(
        {"i": nir.Input(np.array([12])), "a": linear(20, 12), "n": make("LIF", (20,)),
         "b": linear(20, 20), "m": make("LIF", (20,)), "c": linear(8, 20), "k": make("LIF", (8,)),
         "s": linear(8, 12), "o": out(8)},
        "i>a", "a>n", "n>b", "b>m", "m>c", "n>c", "c>k", "i>s", "s>k", "k>o",
    )  # fmt: skip
    found["conv2d"] = graph(
        {"i": nir.Input(np.array([2, 7, 9])), "a": conv2(4, 2, 3, 2, 1),
         "n": make("LIF", (4, 4, 5)), "p": nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]),
         np.array([0, 0])), "c": conv2(4, 4, 2, 1, 0, groups=2), "m": make("LIF", (4, 1, 1)),
         "f": nir.Flatten(np.array([4, 1, 1]), 0, -1), "d": affine(3, 4), "k": make("LIF", (3,)),
         "o": out(3)},
        "i>a", "a>n", "n>p", "p>c", "c>m", "m>f", "f>d", "d>k", "k>o",
    )  # fmt: skip
    found["conv1d"] = graph(
        {"i": nir.Input(np.array([2, 16])),
         "a": nir.Conv1d(16, rng.normal(size=(3, 2, 5)), 2, 2, 1, 1, rng.normal(size=3) * 0.2),
         "n": make("CubaLIF", (3, 8)), "s": nir.Scale(rng.uniform(0.5, 2, (3, 8))),
         "f": nir.Flatten(np.array([3, 8]), 0, -1), "d": linear(4, 24), "k": make("LIF", (4,)),
         "o": out(4)},
        "i>a", "a>n", "n>s", "s>f", "f>d", "d>k", "k>o",
    )  # fmt: skip
    found["sumpool"] = graph(
        {"i": nir.Input(np.array([2, 6, 6])),
         "p": nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([1, 1])),
         "n": make("LIF", (2, 4, 4)), "o": out((2, 4, 4))},
        "i>p", "p>n", "n>o",
    )  # fmt: skip
    delays = rng.integers(0, 4, 20) * DT
    found["delays"] = graph(
        {"i": nir.Input(np.array([12])), "a": linear(20, 12), "n": make("LIF", (20,)),
         "z": nir.Delay(delays), "b": affine(8, 20), "y": nir.Delay(np.full(8, 2 * DT)),
         "m": make("LIF", (8,)), "o": out(8)},
        "i>a", "a>n", "n>z", "z>b", "b>y", "y>m", "m>o",
    )  # fmt: skip
    found["delayed-recurrence"] = graph(
        {"i": nir.Input(np.array([12])), "a": linear(20, 12), "n": make("LIF", (20,)),
         "z": nir.Delay(delays), "w": linear(20, 20), "o": out(20)},
        "i>a", "a>n", "n>z", "z>w", "w>n", "n>o",
    )  # fmt: skip
    found["two-in-two-out"] = graph(
        {"i": nir.Input(np.array([6])), "j": nir.Input(np.array([5])), "a": linear(9, 6),
         "b": linear(9, 5), "n": make("LIF", (9,)), "c": linear(4, 9), "m": make("LI", (4,)),
         "o": out(9), "q": out(4)},
        "i>a", "j>b", "a>n", "b>n", "n>c", "c>m", "n>o", "m>q",
    )  # fmt: skip
    inner = graph(
        {"in": nir.Input(np.array([9])), "n": make("LIF", (9,)), "w": linear(9, 9), "out": out(9)},
        "in>n", "n>w", "w>n", "n>out",
    )  # fmt: skip
    found["nested"] = graph(
        {"i": nir.Input(np.array([6])), "a": linear(9, 6), "sub": inner, "c": linear(4, 9),
         "m": make("LIF", (4,)), "o": out(4)},
        "i>a", "a>sub", "sub>c", "c>m", "m>o",
    )  # fmt: skip
    found["leak-and-reset-voltage"] = graph(
        {"i": nir.Input(np.array([12])), "a": affine(20, 12),
         "n": make("LIF", (20,), v_leak=0.1, v_reset=-0.2), "b": affine(8, 20),
         "m": make("CubaLIF", (8,), v_leak=1.8, v_threshold=1.0, v_reset=0.3), "o": out(8)},
        "i>a", "a>n", "n>b", "b>m", "m>o",
    )  # fmt: skip
    found["graded-loop"] = graph(
        {"i": nir.Input(np.array([6])), "a": linear(9, 6), "n": make("LIF", (9,)),
         "b": linear(4, 9), "m": make("LI", (4,)), "c": linear(9, 4), "o": out(4)},
        "i>a", "a>n", "n>b", "b>m", "m>c", "c>n", "m>o",
    )  # fmt: skip
    found["linear-output"] = graph(
        {"i": nir.Input(np.array([6])), "a": linear(9, 6), "n": make("LIF", (9,)),
         "b": affine(4, 9), "o": out(4)},
        "i>a", "a>n", "n>b", "b>o",
    )  # fmt: skip
    return found


NAMES = (
    "dense-LIF", "dense-CubaLIF", "dense-IF", "dense-Threshold", "readout-LI", "readout-CubaLI",
    "readout-I", "recurrent", "self-loop", "skip", "conv2d", "conv1d", "sumpool", "delays",
    "delayed-recurrence", "two-in-two-out", "nested", "leak-and-reset-voltage", "graded-loop",
    "linear-output",
)  # fmt: skip
LOOPS = {"graded-loop": "each"}


def network_of(name: str, rng: np.random.Generator, make: Any, reset: str) -> Any:
    graph = graphs(rng, make)[name]
    return discretise(graph, Discretisation(dt_s=DT, reset=reset, loop=LOOPS.get(name)))


def spikes_for(network: Any, rng: np.random.Generator, p: float = 0.3) -> dict[str, Any]:
    return {
        name: (rng.random((STEPS, BATCH, *shape)) < p).astype(float)
        for name, shape in network.inputs.items()
    }


def run(network: Any, backend: str, spikes: Any) -> Any:
    with build(network, backend=backend) as session:
        return session.run(spikes)


def mismatches(network: Any, first: Any, second: Any) -> dict[str, int]:
    out = {}
    for p in network.populations:
        a, b = first.spikes[p.name], second.spikes[p.name]
        close = a == b if p.spiking else np.isclose(a, b, rtol=1e-9, atol=1e-9)
        out[p.name] = int(np.sum(~close))
    return out


def test_the_table_is_complete(rng: Any, make_neuron: Any) -> None:
    assert set(graphs(rng, make_neuron)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_lava_float_equals_torch(name: str, rng: Any, make_neuron: Any) -> None:
    network = network_of(name, rng, make_neuron, "value")
    spikes = spikes_for(network, rng)
    reference = run(network, "torch", spikes)
    assert mismatches(network, reference, run(network, "lava", spikes)) == dict.fromkeys(
        (p.name for p in network.populations), 0
    )
    for p in network.populations:  # silent or saturated layers would prove nothing
        rate = reference.spikes[p.name].mean()
        assert not p.spiking or 0.003 < rate < 0.97, (p.name, rate)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", ["dense-LIF", "dense-CubaLIF", "recurrent", "conv2d", "skip"])
def test_every_reset(name: str, reset: str, rng: Any, make_neuron: Any) -> None:
    network = network_of(name, rng, make_neuron, reset)
    spikes = spikes_for(network, rng)
    reference = run(network, "torch", spikes)
    found = run(network, "lava", spikes)
    assert not any(mismatches(network, reference, found).values())
    other = "value" if reset != "value" else "subtract-delayed"
    rng = np.random.default_rng(1)
    wrong = run(network_of(name, rng, make_neuron_of(rng), other), "torch", spikes)
    assert any(mismatches(network, reference, wrong).values())  # the rule matters here


def make_neuron_of(rng: np.random.Generator) -> Any:
    spec = sys.modules[[m for m in sys.modules if m.endswith("conftest")][-1]]
    return lambda kind, shape, **fixed: spec.neuron(kind, shape, rng, **fixed)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("graded-loop", "readout-I", "dense-IF")]
)
def test_fixed_equals_dequantised(name: str, reset: str, rng: Any, make_neuron: Any) -> None:
    """Equal but where truncation decides: a first difference lies within its bound.

    Truncation toward zero takes below one LSB of u and of v a step, so the membrane is off by less
    than (1 / du + 1) / dv LSBs. Where there are none at all: test_22_configurations.
    """
    if name == "leak-and-reset-voltage" and reset.startswith(("subtract", "snntorch")):
        return  # v_reset != 0 with a subtraction is refused, see test_discretise
    network = network_of(name, rng, make_neuron, reset)
    integers = quantise(_fast(network))
    rough = dequantise(integers)
    spikes = spikes_for(network, rng)
    with build(rough, backend="torch") as session:
        forecast = session.run(spikes, record=("margin",))
    found = run(integers, "lava", spikes)
    first = {}
    for p in integers.populations:
        a, b = forecast.spikes[p.name], found.spikes[p.name]
        bound = (1 / rough[p.name].du.min() + 1) / rough[p.name].dv.min() / (64 * p.scale)
        if not p.spiking:
            assert first or np.max(np.abs(a - b)) < bound, p.name
        elif (a != b).any() and p.name not in found.saturated:
            t = int(np.argwhere(a != b)[0][0])
            if t < min(first.values(), default=STEPS):  # later ones may follow from earlier ones
                margins = np.abs(forecast.margin[p.name][t])[(a != b)[t]]
                assert margins.min() < bound, (p.name, t, margins)
            first[p.name] = t
        assert np.mean(a != b) < 0.01 or p.name in found.saturated or not p.spiking


def _fast(network: Any) -> Any:
    """The same network with membrane decays of at most 0.9 a step."""
    from dataclasses import replace

    populations = tuple(
        p if p.node in ("Output", "Threshold") else replace(p, dv=np.maximum(p.dv, 0.1))
        for p in network.populations
    )
    return replace(network, populations=populations)


def test_five_samples_in_one_graph_equal_five_runs(rng: Any, make_neuron: Any) -> None:
    network = network_of("delayed-recurrence", rng, make_neuron, "refractory1")
    spikes = (rng.random((60, 5, 12)) < 0.3).astype(float)
    with build(network, backend="lava") as session:
        together = session.run(spikes)
        for b in range(5):
            alone = session.run(spikes[:, b])
            for name in together.spikes:
                assert np.array_equal(together.spikes[name][:, b], alone.spikes[name])


@pytest.mark.parametrize("precision", ["float", "fixed"])
def test_membranes_and_state_agree(precision: str, rng: Any, make_neuron: Any) -> None:
    network = network_of("leak-and-reset-voltage", rng, make_neuron, "value")
    spikes = spikes_for(network, rng)
    target = network
    if precision == "fixed":
        target = quantise(_fast(network))
        network = dequantise(target)
    with build(network, backend="torch") as torch, build(target, backend="lava") as lava:
        a = torch.run(spikes, record=("membrane",))
        b = lava.run(spikes, record=("membrane",))
        for p in network.populations:
            close = 1e-9 if precision == "float" else 100 / (64 * target[p.name].scale)
            assert np.allclose(a.membrane[p.name], b.membrane[p.name], atol=close, rtol=0)
            for key in ("u", "v"):
                first, second = torch.state()[p.name][key], lava.state()[p.name][key]
                assert first.shape == (BATCH, *p.shape)
                assert np.allclose(first, second, atol=close, rtol=0)


STOCK = """
import sys
import numpy as np
from grasp_plugin import discretise, quantise
from grasp_plugin.adapters.nir_file import read_nir
from grasp_plugin.adapters.to_lava import to_lava
from grasp_plugin.runtime.lava_import import require_lava


def main(folder):
    require_lava()
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source

    network = discretise(read_nir(f"{folder}/net.nir"))
    spikes = np.load(f"{folder}/spikes.npy")
    out = {}
    for tag, target in (("floating_pt", network), ("fixed_pt", quantise(network))):
        process = to_lava(target)
        latency = process.latency()
        length = len(spikes) + latency
        data = np.zeros((spikes.shape[1], length))
        data[:, : len(spikes)] = spikes.T
        source = Source(data=data.astype(int) if tag == "fixed_pt" else data)
        sink = Sink(shape=(8,), buffer=length)
        source.s_out.connect(process.input())
        process.output().connect(sink.a_in)
        sink.run(RunSteps(num_steps=length), Loihi2SimCfg(select_tag=tag))
        out[tag] = sink.data.get()[:, latency:].T
        sink.stop()
    np.savez(f"{folder}/out.npz", **out)


if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.parametrize("name", ["recurrent", "leak-and-reset-voltage"])
def test_hierarchical_process_on_stock_lava(
    name: str, tmp_path: Path, rng: Any, make_neuron: Any
) -> None:
    """`to_lava` in a program of the user's own, on Lava's own multi-process runtime."""
    from grasp_plugin import to_nir
    from grasp_plugin.adapters.nir_file import write_nir

    network = network_of(name, rng, make_neuron, "value")
    write_nir(to_nir(network), tmp_path / "net.nir")
    spikes = (rng.random((50, 12)) < 0.3).astype(float)
    np.save(tmp_path / "spikes.npy", spikes)
    (tmp_path / "program").mkdir()
    script = tmp_path / "program" / "stock.py"
    script.write_text(STOCK)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "out.npz") as stock:
        ours = run(network, "lava", spikes)
        fixed = run(quantise(network), "lava", spikes)
        assert np.array_equal(stock["floating_pt"], ours["o"])
        assert np.array_equal(stock["fixed_pt"], fixed["o"])
        assert stock["floating_pt"].sum() > 0


def test_a_wrong_tag_is_an_error_not_a_hang(rng: Any, make_neuron: Any) -> None:
    from grasp_plugin.adapters.to_lava import to_lava
    from grasp_plugin.runtime.lava_import import require_lava

    require_lava()
    from lava.magma.core.run_configs import Loihi2SimCfg

    process = to_lava(network_of("dense-LIF", rng, make_neuron, "value"))
    with pytest.raises(AssertionError, match="fixed_pt"):
        process.compile(Loihi2SimCfg(select_tag="fixed_pt"))

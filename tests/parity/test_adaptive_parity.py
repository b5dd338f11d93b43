"""Adaptive populations: ETLP's and DECOLLE's neurons, and the same spikes on every back end.

torch = fused = Lava in float spike for spike; Lava = fused in integers bit for bit.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grasp_plugin import build, dequantise, quantise
from grasp_plugin.network.hints import RESETS
from grasp_plugin.network.network import Network, Population, Projection
from grasp_plugin.neurons import adaptive
from grasp_plugin.runtime.lava_import import require_lava

_spec = importlib.util.spec_from_file_location(
    "lava_parity_cases", Path(__file__).with_name("test_lava_parity.py")
)
assert _spec is not None
assert _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

STEPS, BATCH, INPUTS, HIDDEN, OUTPUTS = 320, 2, 12, 20, 6
FLOAT = ["torch", "fused", pytest.param("lava", marks=pytest.mark.lava)]


def population(name: str, n: int, reset: str | None, **fields: Any) -> Population:
    zeros = np.zeros(n)
    values = {"du": np.ones(n), "dv": np.full(n, 0.1), "v_th": np.ones(n), "drive": zeros,
              "v_init": zeros, "gain": np.ones(n), "v_offset": zeros} | fields  # fmt: skip
    return Population(name, (n,), "LIF" if reset else "LI", reset, **values)


def recurrent(rng: Any, reset: str, **fields: Any) -> Network:
    """Input -> recurrent adaptive -> adaptive -> read-out; random weights, decays, thresholds."""

    def adapting(name: str, n: int) -> Population:
        values = {"du": rng.uniform(0.4, 1, n), "dv": rng.uniform(0.05, 0.3, n),
                  "v_th": rng.uniform(0.5, 1.2, n), "rho": rng.uniform(0.6, 0.98, n),
                  "theta": rng.uniform(0, 0.5, n), "n_ref": rng.integers(0, 4, n)}  # fmt: skip
        return population(name, n, reset, **(values | {k: v[:n] for k, v in fields.items()}))

    def weight(out: int, source: int, scale: float, mean: float = 0.1) -> Any:
        return rng.normal(size=(out, source)) * scale + mean

    return Network(
        (adapting("h", HIDDEN), adapting("o", OUTPUTS), population("r", 3, None)),
        (Projection("i->h", "i", "h", weight(HIDDEN, INPUTS, 0.4)),
         Projection("h->h", "h", "h", weight(HIDDEN, HIDDEN, 0.3), 1),
         Projection("h->o", "h", "o", weight(OUTPUTS, HIDDEN, 0.3, 0.0), 2),
         Projection("o->r", "o", "r", weight(3, OUTPUTS, 1.0))),
        (), {"i": (INPUTS,)}, {"out": "r"}, 1e-3,
    )  # fmt: skip


def plain(network: Network, *fields: str) -> Network:
    """The network with some of rho, theta, n_ref of all populations set to zero."""
    return replace(
        network,
        populations=tuple(
            replace(p, **{f: np.zeros_like(getattr(p, f)) for f in fields})
            for p in network.populations
        ),
    )


def spikes_for(rng: Any, p: float = 0.3) -> Any:
    return (rng.random((STEPS, BATCH, INPUTS)) < p).astype(float)


def run(network: Network, backend: str, spikes: Any, *record: str) -> Any:
    with build(network, backend=backend) as session:
        return session.run(spikes, record=record)


def alif_by_hand(w: Any, w_rec: Any, x: Any, n_ref: int, **parameters: Any) -> Any:
    state, out, active = adaptive.alif_init(np.zeros((BATCH, HIDDEN))), [], []
    for t in range(STEPS):
        a = x[t] @ w.T + state["s"] @ w_rec.T
        s, state, _, on = adaptive.alif_step(a, state, n_ref=n_ref, **parameters)
        out.append(s)
        active.append(on)
    return np.stack(out), np.stack(active)


@pytest.mark.parametrize("backend", FLOAT)
@pytest.mark.parametrize("n_ref", [0, 5])
def test_etlp_neuron_is_a_population(backend: str, n_ref: int, rng: Any) -> None:
    """`alif_step` with recurrence; tau_a, thr, n_ref of spec 2.2, a theta at which it spikes."""
    decay, rho, theta, thr = rng.uniform(0.8, 0.99, HIDDEN), float(np.exp(-0.1)), 0.5, 1.0
    w, w_rec = (
        rng.normal(size=(HIDDEN, INPUTS)) * 0.5 + 0.1,
        rng.normal(size=(HIDDEN, HIDDEN)) * 0.3,
    )
    hidden = population(
        "h", HIDDEN, "subtract-delayed", dv=1 - decay, rho=np.full(HIDDEN, rho),
        theta=np.full(HIDDEN, theta), n_ref=np.full(HIDDEN, n_ref),
    )  # fmt: skip
    network = Network(
        (hidden,), (Projection("i", "i", "h", w), Projection("h", "h", "h", w_rec, 1)), (),
        {"i": (INPUTS,)}, {"out": "h"},
    )  # fmt: skip
    x = spikes_for(rng)
    expected, active = alif_by_hand(w, w_rec, x, n_ref, decay=decay, rho=rho, theta=theta, thr=thr)
    assert 0.02 < expected.mean() < 0.5
    assert active.all() == (n_ref == 0)
    assert np.array_equal(run(network, backend, x)["h"], expected)
    for wrong in ("theta", "n_ref") if n_ref else ("theta",):
        assert (run(plain(network, wrong), backend, x)["h"] != expected).any()


@pytest.mark.parametrize("backend", FLOAT)
@pytest.mark.parametrize("dyadic", [True, False])
def test_decolle_neuron_is_a_population(backend: str, dyadic: bool, rng: Any) -> None:
    """`decolle_step` = CuBa LIF with delay 1, v_th = -b, theta = (1 - alpha_rp) w_rp, and gain."""
    alpha, beta, alpha_rp, w_rp = (0.9375, 0.875, 0.75, 0.5) if dyadic else (0.97, 0.92, 0.65, 0.4)
    w, bias = rng.normal(size=(HIDDEN, INPUTS)), rng.normal(size=HIDDEN) * 0.1
    if dyadic:
        w, bias = np.round(w * 64) / 64, (np.round(bias * 64) + 0.5) / 64
    gain = (1 - alpha) * (1 - beta)
    hidden = population(
        "h", HIDDEN, "none", du=np.full(HIDDEN, 1 - beta), dv=np.full(HIDDEN, 1 - alpha),
        v_th=-bias, gain=np.full(HIDDEN, gain), rho=np.full(HIDDEN, alpha_rp),
        theta=np.full(HIDDEN, (1 - alpha_rp) * w_rp),
    )  # fmt: skip
    network = Network((hidden,), (Projection("i", "i", "h", gain * w, 1),), (), {"i": (INPUTS,)},
                      {"out": "h"})  # fmt: skip
    x = spikes_for(rng)
    state, expected, membrane = adaptive.decolle_init(np.zeros((BATCH, HIDDEN))), [], []
    for t in range(STEPS):
        s, state, u = adaptive.decolle_step(
            x[t] @ w.T, state, alpha=alpha, beta=beta, alpha_rp=alpha_rp, w_rp=w_rp, bias=bias
        )
        expected.append(s)
        membrane.append(u)
    assert np.min(np.abs(membrane)) > 1e-9  # no ties
    assert 0.02 < np.mean(expected) < 0.7
    assert np.array_equal(run(network, backend, x)["h"], np.stack(expected))
    assert (run(plain(network, "theta"), backend, x)["h"] != np.stack(expected)).any()
    if backend != "lava":
        margin = run(network, backend, x, "margin").margin["h"]
        assert np.allclose(margin, np.stack(membrane), rtol=0, atol=1e-12)


@pytest.mark.lava
@pytest.mark.parametrize("reset", RESETS)
def test_float_is_the_same_everywhere(reset: str, rng: Any) -> None:
    network, x = recurrent(rng, reset), spikes_for(rng)
    first = run(network, "torch", x, "membrane", "margin")
    for backend in ("fused", "lava"):
        found = run(network, backend, x, "membrane")
        assert not any(cases.mismatches(network, first, found).values()), backend
        for name, v in first.membrane.items():
            assert np.allclose(v, found.membrane[name], rtol=1e-9, atol=1e-9), (backend, name)
    for name in ("h", "o"):
        assert 0.01 < first[name].mean() < 0.6
    assert ((first.margin["h"] > 0) & (first["h"] == 0)).any()  # refractory ones
    for wrong in ("theta", "n_ref", "rho"):
        other = run(plain(network, wrong), "torch", x)
        assert all((other[name] != first[name]).any() for name in ("h", "o")), wrong


@pytest.mark.lava
@pytest.mark.parametrize("reset", RESETS)
def test_integers_equal_lava_bit_for_bit(reset: str, rng: Any) -> None:
    network, x = recurrent(rng, reset), spikes_for(rng)
    fixed = quantise(network)
    with build(fixed, backend="lava") as a, build(fixed, backend="fused") as b:
        first, second = (session.run(x, record=("membrane",)) for session in (a, b))
        assert first.saturated == second.saturated
        for p in fixed.populations:
            assert np.array_equal(first.spikes[p.name], second.spikes[p.name]), p.name
            assert np.array_equal(first.membrane[p.name], second.membrane[p.name]), p.name
            for key in ("u", "v"):
                assert np.array_equal(a.state()[p.name][key], b.state()[p.name][key]), p.name
    assert 0.01 < first["h"].mean() < 0.6
    for wrong in ("theta", "n_ref"):
        assert (run(plain(fixed, wrong), "fused", x)["h"] != first["h"]).any()
    rough = run(dequantise(fixed), "torch", x)
    assert np.mean(rough["h"][:20] != first["h"][:20]) < 0.02  # the forecast holds at first


@pytest.mark.parametrize("where", [
    ("torch", "float"), ("fused", "float"), ("fused", "loihi"),
    pytest.param(("lava", "float"), marks=pytest.mark.lava),
    pytest.param(("lava", "loihi"), marks=pytest.mark.lava),
], ids=str)  # fmt: skip
def test_resumed_equals_uninterrupted(where: tuple[str, str], rng: Any, tmp_path: Path) -> None:
    backend, precision = where
    network = recurrent(rng, "subtract-delayed", n_ref=np.full(HIDDEN, 7))
    network = quantise(network) if precision == "loihi" else network
    x = spikes_for(rng)[:80]
    with build(network, backend=backend) as session:
        whole = session.run(x, record=("membrane",))
    for cut in (2, 37):  # shorter than the pipeline, and in the middle
        with build(network, backend=backend) as session:
            a = session.run(x[:cut], record=("membrane",))
            session.save(tmp_path / "state.ckpt")
        with build(network, backend=backend) as session:
            session.load(tmp_path / "state.ckpt")
            b = session.run(x[cut:], record=("membrane",), resume=True)
            again = session.run(x[:cut])
        for name in whole.spikes:
            for what in ("spikes", "membrane"):
                parts = [getattr(r, what)[name] for r in (a, b)]
                assert np.array_equal(np.concatenate(parts), getattr(whole, what)[name]), name
            assert np.array_equal(again.spikes[name], a.spikes[name])


def on_ports(network: Network, x: Any, own: frozenset[str]) -> dict[str, dict[str, Any]]:
    """Every neuron port of a Lava run on x (time, input): population -> port -> (Lava step, N)."""
    require_lava()
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source

    from grasp_plugin.backends.lava import model_class
    from grasp_plugin.network.schedule import arrival_steps
    from grasp_plugin.processes.network.models import lay_out
    from grasp_plugin.runtime.inprocess import InProcessRuntime

    fixed = network.precision == "loihi"
    length = len(x) + max(arrival_steps(network).values())
    data = np.zeros((x.shape[1], length), np.int32 if fixed else float)
    data[:, : len(x)] = x.T
    layout, source = lay_out(network, own), Source(data=data)
    for _, port in layout.taps:
        source.s_out.connect(port)
    sinks: dict[str, dict[str, Any]] = {}
    for name, process in layout.neurons.items():
        sinks[name] = {}
        for port in process.out_ports:
            sink = sinks[name][port.name] = Sink(shape=port.shape, buffer=length)
            port.connect(sink.a_in)
    recorders = [sink for ports in sinks.values() for sink in ports.values()]
    processes = [*layout.processes(), source, *recorders]
    tag = "fixed_pt" if fixed else "floating_pt"
    classes = {p: model_class(p, tag) for p in processes}
    config = Loihi2SimCfg(select_tag=tag, exception_proc_model_map=classes)
    runtime = InProcessRuntime(source.compile(config), source)
    source.run(RunSteps(num_steps=length))
    out = {n: {port: np.asarray(runtime.model_of(s).data, float).T for port, s in ports.items()}
           for n, ports in sinks.items()}  # fmt: skip
    runtime.stop()
    return out


@pytest.mark.lava
@pytest.mark.parametrize("precision", ["float", "loihi"])
@pytest.mark.parametrize("reset", ["subtract-delayed", "value"])
def test_margin_and_active_ports(precision: str, reset: str, rng: Any) -> None:
    from grasp_plugin.network.schedule import arrival_steps

    network, x = recurrent(rng, reset), spikes_for(rng)[:, :1]
    if precision == "loihi":
        network = quantise(network)
    expected = run(network, "fused", x, "margin", "membrane")
    ports = on_ports(network, x[:, 0], frozenset())
    for p in network.populations:
        first = arrival_steps(network)[p.name]
        lsbs = 1.0 if p.scale is None else 64 * p.scale
        mine = {k: v[first : first + STEPS] for k, v in ports[p.name].items()}
        assert set(mine) == {"s_out", "margin_out"} | ({"active_out"} if p.spiking else set())
        assert all(not v[:first].any() for v in ports[p.name].values())  # before the onset
        if not p.spiking:
            assert np.array_equal(mine["margin_out"], mine["s_out"])
            continue
        found = mine["margin_out"] / lsbs
        assert np.allclose(found, expected.margin[p.name][:, 0], rtol=1e-9, atol=1e-9)
        assert precision == "float" or np.array_equal(found, expected.margin[p.name][:, 0])
        silent = _silent(expected[p.name][:, 0], p.n_ref)
        assert np.array_equal(mine["active_out"], 1 - silent)
        assert silent.any()


def _silent(spikes: Any, n_ref: Any) -> Any:
    """1 in the n_ref steps after each spike."""
    out = np.zeros_like(spikes)
    for t, n in np.argwhere(spikes):
        out[t + 1 : t + 1 + n_ref[n], n] = 1
    return out


@pytest.mark.lava
@pytest.mark.parametrize("precision", ["float", "loihi"])
@pytest.mark.parametrize("name", ["dense-LIF", "dense-CubaLIF", "dense-Threshold", "recurrent"])
@pytest.mark.parametrize("reset", ["value", "refractory1"])
def test_own_neurons_equal_stock_ones(
    name: str, precision: str, reset: str, rng: Any, make_neuron: Any, monkeypatch: Any
) -> None:
    """`lay_out(own=...)`: ResetLIF in place of Lava's LIF and LIFRefractory, same spikes and v."""
    require_lava()
    from grasp_plugin.processes.leaky.process import LeakyReadout, ResetLIF
    from grasp_plugin.processes.network import models

    network = cases.network_of(name, rng, make_neuron, reset)
    uniform = [replace(p, dv=np.full(p.size, p.dv[0])) for p in network.populations]
    network = replace(network, populations=tuple(uniform))
    spikes = cases.spikes_for(network, rng)
    network = quantise(network) if precision == "loihi" else network
    stock = run(network, "lava", spikes, "membrane")
    own = frozenset(p.name for p in network.populations)
    kinds = {type(p) for p in models.lay_out(network, own).neurons.values()}
    assert kinds <= {ResetLIF, LeakyReadout}
    monkeypatch.setattr(models, "lay_out", partial(models.lay_out, own=own))
    ours = run(network, "lava", spikes, "membrane")
    for p in network.populations:
        assert np.array_equal(stock.spikes[p.name], ours.spikes[p.name]), p.name
        assert stock.spikes[p.name].any()
        if (
            reset == "value" and p.node != "Threshold"
        ):  # memoryless, and LIFRefractory, keep other v
            assert np.array_equal(stock.membrane[p.name], ours.membrane[p.name]), p.name


@pytest.mark.lava
@pytest.mark.parametrize("precision", ["float", "loihi"])
@pytest.mark.parametrize("runtime", ["inprocess", "supervised"])
def test_as_processes_of_a_users_program(precision: str, runtime: str, rng: Any) -> None:
    """`to_lava` and `FusedNetwork`, by Lava's own discovery, in one process and on its runtime."""
    require_lava()
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source

    from grasp_plugin import lava_session
    from grasp_plugin.adapters import to_lava
    from grasp_plugin.processes.fused.process import FusedNetwork

    network, steps = replace(recurrent(rng, "value"), outputs={"out": "o"}), 60
    network = quantise(network) if precision == "loihi" else network
    x = spikes_for(rng)[:steps, 0]
    expected = run(network, "fused", x)["o"]
    for process in (to_lava(network), FusedNetwork(network=network)):
        whole = isinstance(process, FusedNetwork)
        late = 0 if whole else process.latency()
        data = np.zeros((INPUTS, steps + late), np.int32 if precision == "loihi" else float)
        data[:, :steps] = x.T
        source, sink = Source(data=data), Sink(shape=(OUTPUTS,), buffer=steps + late)
        source.s_out.connect(process.s_in if whole else process.input())
        (process.s_out if whole else process.output()).connect(sink.a_in)
        tag = "fixed_pt" if precision == "loihi" else "floating_pt"
        config = Loihi2SimCfg(select_tag=tag)
        with lava_session(process, config, runtime=runtime, stall_s=60) as session:
            session.run(steps + late)
            assert np.array_equal(sink.data.get()[:, late:].T, expected)
    assert expected.any()

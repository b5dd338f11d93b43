"""Adaptive thresholds and refractory counts: equations, checks, integers and NIR hints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch

from grasp_plugin import Discretisation, build, dequantise, discretise, quantise, to_nir
from grasp_plugin.adapters.nir_file import read_nir, write_nir
from grasp_plugin.errors import GraspError, Invalid, Refused
from grasp_plugin.network.convert import with_choices
from grasp_plugin.network.hints import RESETS, read_hints, write_hints
from grasp_plugin.network.limits import core_use
from grasp_plugin.network.lowering import lava_process
from grasp_plugin.network.naive import naive_scaling
from grasp_plugin.network.network import Network, Population
from grasp_plugin.network.packed import PackedState, advance, pack
from grasp_plugin.neurons import kernels, lif
from grasp_plugin.neurons.lif_fixed import check_registers, margin_step_fixed, step_fixed
from grasp_plugin.report import describe, info_text

DT = 1e-3


def plain(make: Any, rng: Any, kind: str = "LIF", reset: str = "subtract-delayed") -> Network:
    nodes = {"i": nir.Input(np.array([6])), "a": nir.Linear(rng.normal(size=(9, 6)) + 0.3),
             "n": make(kind, (9,)), "b": nir.Linear(rng.normal(size=(4, 9))),
             "m": make("LI", (4,)), "o": nir.Output(np.array([4]))}  # fmt: skip
    edges = [tuple(e.split(">")) for e in "i>a a>n n>b b>m m>o".split()]
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    return discretise(graph, Discretisation(dt_s=DT, reset=reset))


def adapted(network: Network, name: str = "n", **fields: Any) -> Network:
    """The network with rho 0.9, theta 0.4, n_ref 2 in one population, or with what is given."""
    n = network[name].size
    values = {"rho": np.full(n, 0.9), "theta": np.full(n, 0.4), "n_ref": np.full(n, 2)} | fields
    return replace(
        network,
        populations=tuple(
            replace(p, **values) if p.name == name else p for p in network.populations
        ),
    )


def random_fields(rng: Any, n: int) -> dict[str, Any]:
    return {"rho": rng.uniform(0.5, 1, n), "theta": rng.uniform(0, 1, n),
            "n_ref": rng.integers(0, 4, n)}  # fmt: skip


def test_left_out_is_not_adaptive(make_neuron: Any, rng: Any) -> None:
    network = plain(make_neuron, rng)
    p = network["n"]
    assert not p.adaptive
    assert p.rho.shape == p.theta.shape == p.n_ref.shape == (9,)
    assert p.n_ref.dtype.kind == "i"
    assert "adaptive" not in str(network)
    for change in ({"theta": np.full(9, 0.1)}, {"n_ref": np.eye(9, dtype=int)[0]}):
        assert replace(p, **change).adaptive
    assert not replace(p, rho=np.full(9, 0.5)).adaptive
    assert "n: LIF (9,), reset subtract-delayed, adaptive" in str(adapted(network))


def test_the_step_by_hand() -> None:
    """thr 1, no leak, input 2: A = 0, 0.5, 0.75, ...; two silent steps after each spike."""
    state: Any = {"u": 0.0, "v": 0.0, "s": 0.0, "adapt": 0.0, "wait": 0.0}
    found = []
    for _ in range(6):
        ready = lif.ready(state)
        s, state, margin = lif.step(
            2.0, state, du=1.0, dv=1.0, v_th=1.0, drive=0.0, reset="none", rho=0.5, theta=0.5,
            n_ref=2,
        )  # fmt: skip
        found.append((s, margin, state["adapt"], state["wait"], ready))
    assert found == [
        (1, 1.0, 0.0, 2, 1),
        (0, 0.5, 0.5, 1, 0),
        (0, 0.75, 0.25, 0, 0),
        (1, 0.875, 0.125, 2, 1),
        (0, 0.4375, 0.5625, 1, 0),
        (0, 0.71875, 0.28125, 0, 0),
    ]


@pytest.mark.parametrize("reset", RESETS)
def test_a_step_that_never_adapts_is_the_plain_step(reset: str, rng: Any) -> None:
    x = {key: rng.normal(size=(3, 50)) for key in ("u", "v")}
    x["s"] = (rng.random((3, 50)) < 0.5).astype(float)
    zero = np.zeros((3, 50))
    parameters = {"du": 0.3, "dv": 0.1, "v_th": rng.normal(size=50), "drive": 0.1, "reset": reset}
    a = rng.normal(size=(3, 50))
    out, state, margin = lif.step(a, x, **parameters)
    more = {**x, "adapt": zero, "wait": zero}
    again, state_2, margin_2 = lif.step(a, more, **parameters, rho=0.5, theta=0.0, n_ref=0)
    assert set(state) == {"u", "v", "s"}
    assert set(state_2) == {"u", "v", "s", "adapt", "wait"}
    assert np.array_equal(out, again)
    assert np.array_equal(margin, margin_2)
    assert all(np.array_equal(state[key], state_2[key]) for key in state)


@pytest.mark.parametrize("reset", RESETS)
def test_numpy_equals_torch_and_gradients_pass(reset: str, rng: Any) -> None:
    inputs = rng.normal(size=(60, 20)) + 0.5

    def run(convert: Any, spike: Any) -> tuple[Any, Any]:
        a = convert(inputs)
        state = {key: a[0] * 0 for key in ("u", "v", "s", "adapt", "wait")}
        fields = {key: convert(value) for key, value in random_fields(rng_(), 20).items()}
        out = []
        for t in range(60):
            s, state, _ = lif.step(
                a[t], state, du=0.5, dv=0.2, v_th=0.7, drive=0.0, reset=reset, spike=spike, **fields
            )
            out.append(s)
        return a, out

    def rng_() -> Any:
        return np.random.default_rng(3)

    def as_tensor(x: Any) -> Any:
        return torch.tensor(np.asarray(x, float), requires_grad=True)

    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return lif.heaviside(x)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0]

    _, first = run(np.asarray, lif.heaviside)
    a, second = run(as_tensor, Slope.apply)
    assert np.array_equal(np.stack(first), torch.stack(second).detach().numpy())
    assert 0.02 < np.mean(first) < 0.6
    torch.stack(second).sum().backward()
    assert torch.isfinite(a.grad).all()
    assert a.grad.abs().sum() > 0


def test_the_integer_step_by_hand() -> None:
    def step(adapt: int, s: int, v: int, wait: int, theta: int, drho: int = 2048) -> Any:
        one = np.ones(1, np.int64)
        state = {"u": 0 * one, "v": v * one, "s": s * one, "adapt": adapt * one, "wait": wait * one}
        out, new, margin = margin_step_fixed(
            0 * one, state, du=4095 * one, dv=0 * one, v_th=10 * one, drive=0 * one, reset="none",
            drho=drho, theta=theta, n_ref=3,
        )  # fmt: skip
        return int(out[0]), int(margin[0]), int(new["adapt"][0]), int(new["wait"][0])

    assert step(101, 0, 1000, 0, 7) == (1, 1000 - 640 - 50, 50, 3)  # truncated toward zero
    assert step(101, 1, 1000, 2, 7) == (0, 1000 - 640 - 57, 57, 1)  # refractory, margin the same
    assert step(101, 1, 690, 0, 7) == (0, 690 - 640 - 57, 57, 0)
    assert step(2**23 - 1, 1, 0, 0, 2**23 - 1, 0)[2] == 2**23 - 1  # A saturates
    assert step(4095, 0, 0, 0, 0, 4095)[2] == 0


@pytest.mark.parametrize("reset", RESETS)
def test_compiled_integers_agree_with_the_array_step_at_the_limits(reset: str, rng: Any) -> None:
    n = 4000
    state = {"u": rng.integers(-(2**23), 2**23, n), "v": rng.integers(-(2**23), 2**23, n),
             "s": rng.integers(0, 2, n), "adapt": rng.integers(0, 2**23, n),
             "wait": rng.integers(0, 3, n)}  # fmt: skip
    a = rng.integers(-(2**18), 2**18, n)
    du, dv, drho = rng.integers(0, 4096, (3, n))
    v_th, drive = rng.integers(0, 131072, n), rng.integers(-4096, 4096, n) << 7
    theta, n_ref = rng.integers(0, 2**23, n), rng.integers(0, 64, n)
    out, new, margin = margin_step_fixed(
        a, state, du=du, dv=dv, v_th=v_th, drive=drive, reset=reset, drho=drho, theta=theta,
        n_ref=n_ref,
    )  # fmt: skip
    kept = {key: value.copy() for key, value in state.items()}
    found = np.empty(n, np.int64)
    parameters = np.stack([du, dv, v_th, drive, drho, theta, n_ref])
    kernels.adaptive_fixed(
        0, n, a, kept["u"], kept["v"], kept["s"], kept["adapt"], kept["wait"], parameters,
        kernels.RESET_CODES[reset], found,
    )  # fmt: skip
    assert np.array_equal(found, margin)
    assert np.array_equal(kept["s"], out)
    for key, value in new.items():
        assert np.array_equal(kept[key], value), key
    assert 0.02 < out.mean() < 0.5
    plain_out, plain_state = step_fixed(a, state, du=du, dv=dv, v_th=v_th, drive=drive, reset=reset)
    assert set(plain_state) == {"u", "v", "s"}
    assert (plain_out != out).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rho": np.full(9, 1.2)}, r"rho in 0\.\.1, got 1\.2"),
     ({"rho": np.full(9, -0.1)}, "rho"),
     ({"theta": np.full(9, -0.5)}, "theta >= 0, got -0.5"),
     ({"n_ref": np.full(9, -1)}, "n_ref >= 0, got -1"),
     ({"n_ref": np.full(9, 2.0)}, "integers in n_ref, got float64"),
     ({"theta": np.ones(8)}, r"theta of shape \(9,\)"),
     ({"theta": np.full(9, np.nan)}, "finite theta"),
     ({"theta": 0.5}, "theta as an array"),
     ({"reset": None}, "expected spikes")],
)  # fmt: skip
def test_what_is_wrong_is_named(change: Any, message: str, make_neuron: Any, rng: Any) -> None:
    network = plain(make_neuron, rng)
    with pytest.raises(Invalid, match=message) as caught:
        adapted(network, **change)
    assert caught.value.node == "n"


@pytest.mark.parametrize(
    ("field", "value"), [("rho", 4096), ("theta", 2**23), ("theta", 0.5), ("n_ref", 64)]
)
def test_registers(field: str, value: Any) -> None:
    with pytest.raises(Refused, match=field):
        check_registers("n3", **{field: value})


def test_integers_and_back(make_neuron: Any, rng: Any) -> None:
    network = adapted(plain(make_neuron, rng), **random_fields(rng, 9))
    fixed = quantise(network)
    p, q, back = network["n"], fixed["n"], dequantise(fixed)["n"]
    assert q.adaptive
    assert q.rho.dtype == q.theta.dtype == q.n_ref.dtype == np.int64
    assert np.abs(back.rho - p.rho).max() <= 0.5 / 4096
    assert np.abs(back.theta - p.theta).max() <= 0.5 / (64 * q.scale)
    assert np.array_equal(back.n_ref, p.n_ref)
    other, again = fixed["m"], dequantise(fixed)["m"]
    assert not other.adaptive
    assert not again.rho.any()
    assert np.array_equal(quantise(dequantise(fixed))["n"].rho, q.rho)
    with pytest.raises(Refused, match=r"n_ref in 0\.\.63") as caught:
        quantise(adapted(network, n_ref=np.full(9, 64)))
    assert caught.value.node == "n"


def test_a_large_rise_makes_the_scale_smaller(make_neuron: Any, rng: Any) -> None:
    network = plain(make_neuron, rng, reset="none")
    least = quantise(network)["n"].scale
    large = quantise(adapted(network, theta=np.full(9, 1e4)))["n"]
    assert large.scale < least
    assert large.theta.max() < 2**23
    with pytest.raises(Refused, match="theta"):
        quantise(adapted(network, theta=np.full(9, 1e9)))


def test_plain_populations_are_quantised_as_before(make_neuron: Any, rng: Any) -> None:
    network = plain(make_neuron, rng)
    fixed, both = quantise(network), quantise(adapted(network, theta=np.zeros(9)))
    for key in ("du", "dv", "v_th", "drive"):
        assert np.array_equal(getattr(fixed["n"], key), getattr(both["n"], key))
    assert fixed["n"].scale == both["n"].scale


@pytest.mark.parametrize("kind", ["LIF", "CubaLIF", "IF", "Threshold"])
@pytest.mark.parametrize("uniform", [True, False])
def test_nir_round_trip(
    kind: str, uniform: bool, make_neuron: Any, rng: Any, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    network = plain(make_neuron, rng, kind, "none" if kind == "Threshold" else "value")
    network = adapted(network, **({} if uniform else random_fields(rng, 9)))
    with caplog.at_level(logging.WARNING):
        graph = to_nir(network)
    assert "other tools read it without" in caplog.text
    assert type(graph.nodes["n"]).__name__ == kind
    hints = read_hints(graph.nodes["n"])
    assert (hints["theta"], hints["n_ref"]) == (0.4, 2) if uniform else len(hints["theta"]) == 9
    writers: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "ours": (write_nir, read_nir), "nir": (lambda g, p: nir.write(p, g), read_nir)
    }  # fmt: skip
    spikes = (rng.random((100, 2, 6)) < 0.4).astype(float)
    for name, (write, read) in writers.items():
        write(graph, tmp_path / f"{name}.nir")
        again = discretise(read(tmp_path / f"{name}.nir"))
        for field in ("rho", "theta", "n_ref"):
            assert np.array_equal(getattr(again["n"], field), getattr(network["n"], field)), field
            assert not getattr(again["m"], field).any()
        with build(network, backend="torch") as a, build(again, backend="torch") as b:
            first, second = a.run(spikes)["n"], b.run(spikes)["n"]
        assert np.array_equal(first, second)
        assert first.any()


def test_plain_networks_get_no_hints(make_neuron: Any, rng: Any, caplog: Any) -> None:
    graph = to_nir(plain(make_neuron, rng))
    assert not {"rho", "theta", "n_ref"} & set(read_hints(graph.nodes["n"]))
    assert not caplog.text


def test_hints_in_other_steps_or_shapes_are_refused(make_neuron: Any, rng: Any) -> None:
    graph = to_nir(adapted(plain(make_neuron, rng, reset="value")))
    with pytest.raises(Refused, match=r"dt_s = 0\.001"):
        discretise(graph, Discretisation(dt_s=5e-4))
    with pytest.raises(Refused, match=r"dt_s = 0\.001"):
        with_choices(graph, Discretisation(dt_s=5e-4))
    with_choices(graph, Discretisation(dt_s=DT))
    for field, value in (("theta", [1.0, 2.0]), ("n_ref", 1.5), ("rho", "x"), ("rho", 1.5)):
        before = read_hints(graph.nodes["n"])[field]
        write_hints(graph.nodes["n"], **{field: value})
        with pytest.raises(Invalid, match=field) as caught:
            discretise(graph)
        assert caught.value.node == "n"
        write_hints(graph.nodes["n"], **{field: before})


@pytest.mark.parametrize("framework", ["snntorch", "norse"])
def test_frameworks_do_not_get_half_of_it(framework: str, make_neuron: Any, rng: Any) -> None:
    pytest.importorskip(framework)
    from grasp_plugin import adapters

    graph = to_nir(adapted(plain(make_neuron, rng, reset="value")))
    with pytest.raises(Refused, match="fixed threshold") as caught:
        getattr(adapters, f"to_{framework}")(graph)
    assert caught.value.node == "n"


def test_reports_say_so(make_neuron: Any, rng: Any) -> None:
    network = adapted(plain(make_neuron, rng, reset="value"))
    facts = describe(network)
    assert {p["name"]: p["adaptive"] for p in facts["populations"]} == {"n": True, "m": False}
    assert "value, adaptive" in info_text("x", facts)
    assert lava_process(network["n"], "float") == lava_process(network["n"], "loihi") == "ResetLIF"
    assert lava_process(plain(make_neuron, rng, reset="value")["n"], "float") == "LIF"
    with pytest.raises(Refused, match="no such neuron"):
        naive_scaling(network)
    more = [row.neuron_bytes for row in core_use(network)]
    assert more[0] > next(row.neuron_bytes for row in core_use(plain(make_neuron, rng)))


def test_margins_of_fused_equal_torch(make_neuron: Any, rng: Any) -> None:
    network = adapted(plain(make_neuron, rng, "CubaLIF"), **random_fields(rng, 9))
    spikes = (rng.random((80, 2, 6)) < 0.4).astype(float)
    with build(network, backend="torch") as a, build(network, backend="fused") as b:
        first = a.run(spikes, record=("membrane", "margin"))
        second = b.run(spikes, record=("margin",))
        assert second.membrane == {}
        both = b.run(spikes, record=("margin", "membrane"))
    for p in network.populations:
        assert np.allclose(first.margin[p.name], second.margin[p.name], rtol=1e-9, atol=1e-9)
        assert np.array_equal(both.margin[p.name], second.margin[p.name])
        assert np.allclose(first.membrane[p.name], both.membrane[p.name], rtol=1e-9, atol=1e-9)
    fixed = quantise(network)
    with build(fixed, backend="fused") as c, build(dequantise(fixed), backend="torch") as d:
        whole, rough = c.run(spikes, record=("margin",)), d.run(spikes, record=("margin",))
    scale = 64 * fixed["n"].scale
    assert np.allclose(whole.margin["n"] * scale, np.round(whole.margin["n"] * scale), atol=1e-6)
    assert np.array_equal(whole.margin["n"] > 0, whole["n"] > 0) is False  # refractory ones differ
    close = np.abs(whole.margin["n"] - rough.margin["n"])[:5]
    assert close.max() < 200 / scale


def test_margin_arrays_are_checked(make_neuron: Any, rng: Any) -> None:
    packed = pack(plain(make_neuron, rng))
    x = np.ones((5, 6))
    for wrong in (np.empty((4, 13)), np.empty((5, 13), np.float32), np.empty((13, 5)).T):
        with pytest.raises(Invalid, match="margin"):
            advance(packed, PackedState(packed), x, margin=wrong)
    right = np.full((5, 13), np.nan)
    advance(packed, PackedState(packed), x, margin=right)
    assert np.isfinite(right).all()


def test_state_keys_of_plain_networks_stay(make_neuron: Any, rng: Any, tmp_path: Path) -> None:
    network = plain(make_neuron, rng)
    spikes = np.ones((5, 6))
    for backend, keys in (("torch", {"u", "v", "s"}), ("fused", {"u", "v", "s", "history"})):
        with build(network, backend=backend) as session:
            session.run(spikes)
            found = {key.rpartition("/")[2] for key in session._state_arrays()}
            assert found == keys
            session.save(tmp_path / "plain.ckpt")
        with build(adapted(network), backend=backend) as session:
            with pytest.raises(GraspError, match="adaptive"):
                session.load(tmp_path / "plain.ckpt")
            session.run(spikes)
            found = {key.rpartition("/")[2] for key in session._state_arrays()}
            assert found == keys | {"adapt", "wait"}


def test_a_population_made_by_hand() -> None:
    one, zero = np.ones(2), np.zeros(2)
    p = Population("n", (2,), "LIF", "value", one, one, one, zero, zero, one, zero)
    assert not p.adaptive
    assert Population("n", (2,), "LIF", "value", one, one, one, zero, zero, one, zero,
                      theta=one).adaptive  # fmt: skip

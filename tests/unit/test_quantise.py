"""Integers: scales, exponents, ranges, and nothing clipped in silence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nir
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from grasp_plugin import Discretisation, build, dequantise, discretise, quantise, to_nir
from grasp_plugin.backends.torch import TorchNetwork
from grasp_plugin.errors import GraspError, Invalid, Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.limits import BYTES_PER_CORE, core_use, fits
from grasp_plugin.network.naive import naive_scaling
from grasp_plugin.network.network import Network, Population, Projection
from grasp_plugin.network.quantise import integers


def network_of(weight: Any, theta: float = 1.0, beta: float = 0.9, reset: str = "value",
               bias: Any = None, **lif: float) -> Any:  # fmt: skip
    n, i = weight.shape
    values = {"tau": 1e-3 / (1 - beta), "r": 1 / (1 - beta), "v_leak": 0.0, "v_threshold": theta,
              "v_reset": 0.0} | lif  # fmt: skip
    node = nir.LIF(**{k: np.full(n, v) for k, v in values.items()})
    linear = nir.Linear(weight) if bias is None else nir.Affine(weight, bias)
    nodes = {"i": nir.Input(np.array([i])), "w": linear, "n": node, "o": nir.Output(np.array([n]))}
    graph = nir.NIRGraph(nodes, [("i", "w"), ("w", "n"), ("n", "o")], type_check=False)
    return discretise(graph, Discretisation(dt_s=1e-3, reset=reset))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.floats(1e-3, 1e3), st.floats(1e-2, 1e2),
    st.sampled_from([-1, 0, 1]), st.integers(0, 1000),
)  # fmt: skip
def test_every_integer_fits_its_register(
    n: int, i: int, size: float, theta: float, sign: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(n, i)) * size
    weight = sign * np.abs(weight) if sign else weight
    network = network_of(weight, theta * size, bias=rng.normal(size=n) * size)
    try:
        fixed = quantise(network)
    except GraspError as refused:
        if refused.node != "n":
            raise
        return
    p, (k,), (b,) = fixed["n"], fixed.projections, fixed.biases
    w = W.values(k.weight)
    mixed = w.min() < 0 < w.max()
    assert np.abs(w).max() <= (254 if mixed else 255)
    assert not mixed or np.all(w % 2 == 0)
    assert np.all(b.value % 2 == 0)
    assert np.abs(b.value).max() <= 254
    assert -8 <= k.weight_exp <= 7
    assert -8 <= b.weight_exp <= 7
    assert 0 <= p.v_th.min() <= p.v_th.max() <= 131071
    worst = np.abs(w).sum(axis=1) * 2.0**k.weight_exp + np.abs(b.value) * 2.0**b.weight_exp
    assert worst.max() * 64 / ((p.du.min() + 1) / 4096) < 2**23 * 1.01
    rough = dequantise(fixed)
    step = (2 if mixed else 1) * 2.0**k.weight_exp / p.scale
    exact = W.values(network.projections[0].weight)
    assert np.abs(W.values(rough.projections[0].weight) - exact).max() <= step / 2 * (1 + 1e-9)
    assert 0 <= (network["n"].v_th - rough["n"].v_th).min()
    assert (network["n"].v_th - rough["n"].v_th).max() < 1 / p.scale


def test_the_studys_formulas_by_hand() -> None:
    weight = np.array([[0.5, -1.0], [0.25, 1.0]])
    fixed = quantise(network_of(weight, theta=4.0, beta=0.9))
    p, (k,) = fixed["n"], fixed.projections
    e = k.weight_exp
    assert p.scale == 254 * 2.0**e / 1.0
    expected = 2 * np.round(weight * p.scale / 2 ** (e + 1))
    assert np.array_equal(k.weight, expected)
    assert p.v_th.tolist() == [int(4.0 * p.scale)] * 2
    assert p.du.tolist() == [4095] * 2
    assert p.dv.tolist() == [410] * 2
    reach = max(8 * 4.0, 1.0 / 0.1)  # eight thresholds, or all inhibition at once for ever
    assert 64 * p.scale * reach <= 2**23 < 64 * (2 * p.scale) * reach  # the largest e


def test_single_sign_weights_keep_eight_bits() -> None:
    fixed = quantise(network_of(np.array([[0.3, 1.0]]), theta=2.0))
    assert W.values(fixed.projections[0].weight).max() == 255
    value, exponent = integers(np.array([0.5, 1.0]), 255.0, 255)
    assert (value.tolist(), exponent) == ([128, 255], 0)


def test_what_cannot_fit_is_refused() -> None:
    with pytest.raises(Refused, match=r"n: .*v_th|n: .*headroom") as caught:
        quantise(network_of(np.array([[1e-7, -1e-7]]), theta=1e4))
    assert caught.value.node == "n"
    with pytest.raises(Refused, match="unsigned"):
        quantise(network_of(np.ones((1, 2)), theta=0.1, v_reset=0.5))
    with pytest.raises(Invalid, match="once"):
        quantise(quantise(network_of(np.ones((1, 2)))))
    with pytest.raises(Invalid, match="float"):
        dequantise(network_of(np.ones((1, 2))))
    with pytest.raises(Invalid, match="input_max"):
        quantise(network_of(np.ones((1, 2))), input_max=0.0)
    with pytest.raises(Refused, match="dequantise"):
        TorchNetwork(quantise(network_of(np.ones((1, 2)))))
    with pytest.raises(Refused, match="dequantise"):
        to_nir(quantise(network_of(np.ones((1, 2)))))


def test_the_range_of_u_counts_every_input() -> None:
    """520 synapses of the largest weight would wrap u and change its sign."""
    wide = quantise(network_of(np.ones((1, 2000)), theta=100.0))
    (k,) = wide.projections
    assert int(np.abs(W.values(k.weight)).sum()) * 2**k.weight_exp * 64 < 2**23
    counts = quantise(network_of(np.ones((1, 100)), theta=10.0), input_max=50.0)
    assert counts["n"].scale < quantise(network_of(np.ones((1, 100)), theta=10.0))["n"].scale


def test_a_membrane_that_feeds_a_population_is_refused() -> None:
    nodes = {"i": nir.Input(np.array([3])), "li": nir.LI(*np.ones((3, 3))),
             "w": nir.Linear(np.eye(3)),
             "n": nir.IF(np.ones(3), np.ones(3)), "o": nir.Output(np.array([3]))}  # fmt: skip
    edges = [("i", "li"), ("li", "w"), ("w", "n"), ("n", "o")]
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    with pytest.raises(Refused, match=r"li: .*membrane"):
        quantise(discretise(graph, Discretisation(dt_s=1e-3, reset="value")))


def test_more_headroom_less_scale_but_never_fewer_weight_bits() -> None:
    network = network_of(np.random.default_rng(0).normal(size=(4, 5)), theta=3.0)
    scales = [quantise(network, headroom=h)["n"].scale for h in (1, 8, 64)]
    assert scales == sorted(scales, reverse=True)
    tiny = network_of(np.random.default_rng(0).normal(size=(4, 5)) * 1e-2, theta=30.0)
    assert np.abs(W.values(quantise(tiny).projections[0].weight)).max() >= 100


def test_naive_scaling_is_the_old_one() -> None:
    network = network_of(np.array([[0.5, -0.25]]), theta=1.0, beta=0.9)
    old = naive_scaling(network)
    assert old["n"].v_th.tolist() == [131071 >> 9]
    assert old["n"].dv.tolist() == [409]
    assert W.values(old.projections[0].weight).tolist() == [[128, -64]]
    for other in (network_of(np.ones((1, 2)), bias=np.ones(1)),
                  network_of(np.ones((1, 2)), reset="none")):  # fmt: skip
        with pytest.raises(Refused, match="old converter"):
            naive_scaling(other)


def test_fit_report() -> None:
    small = core_use(network_of(np.ones((10, 20))))
    assert [(r.neurons, r.synapses, r.cores) for r in small] == [(10, 200, 1)]
    assert fits(network_of(np.ones((10, 20)))) == (True, 1)
    (large,) = core_use(network_of(np.ones((600, 2000))))
    assert large.cores > 1
    assert large.utilisation <= 1
    assert large.synapse_bytes > BYTES_PER_CORE
    network = network_of(np.ones((2, 3)))
    crowd = replace(network, provenance={})
    assert core_use(crowd) == core_use(network)


@pytest.mark.parametrize("growth", [1.0, 2.0, 16.0])
@pytest.mark.parametrize("sign", [1, 0], ids=["one sign", "mixed"])
def test_plastic_weights_are_even_and_have_room(growth: float, sign: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 9))
    network = network_of(np.abs(weight) if sign else weight)
    name = network.projections[0].name
    q = quantise(network, plastic=[name], growth=growth)
    values, k = q.weights()[name], q.projections[0]
    assert not np.any(values % 2)
    assert np.abs(values).max() <= 254 / growth + 1
    unit = 2.0**k.weight_exp / float(q["n"].scale or 1)
    assert 254 * unit >= growth * np.abs(network.weights()[name]).max() * 0.99
    assert np.abs(dequantise(q).weights()[name] - network.weights()[name]).max() <= unit * 1.001


def test_plastic_names_and_growth_are_checked() -> None:
    network = network_of(np.ones((2, 2)))
    with pytest.raises(Invalid, match="expected a projection or bias"):
        quantise(network, plastic=["nowhere"])
    with pytest.raises(Invalid, match="expected growth >= 1"):
        quantise(network, growth=0.5)


def linear_readout(inputs: int, outputs: int = 3, tau: float = 0.0) -> Network:
    """inputs -> leaky integrators with weights like those of a fresh layer; tau 0: no memory."""
    one, zero = np.ones(outputs), np.zeros(outputs)
    leak = one if not tau else one / tau
    p = Population("out", (outputs,), "LI", None, one, leak, one, zero, zero, one, zero)
    weight = np.random.default_rng(0).normal(size=(outputs, inputs)) / np.sqrt(inputs)
    k = Projection("w", "in", "out", weight)
    return Network((p,), (k,), (), {"in": (inputs,)}, {"o": "out"}, 1e-3)


def last_output(network: Any, value: int, steps: int = 1) -> Any:
    """The membranes, in LSBs, after steps of all inputs spiking, every weight at `value`."""
    (k,) = network.projections
    learned = replace(network, projections=(replace(k, weight=np.full(k.weight.shape, value)),))
    with build(learned, "fused") as session:
        membranes = session.run(np.ones((steps, 1, k.weight.shape[1]))).spikes["out"]
    return np.round(membranes[-1, 0] * 64 * float(network["out"].scale or 1))


@pytest.mark.parametrize("inputs", [3, 64, 1000])
@pytest.mark.parametrize("growth", [1.0, 4.0, 64.0])
@pytest.mark.parametrize("value", [254, -256])
def test_currents_of_learned_weights_never_wrap(inputs: int, growth: float, value: int) -> None:
    q = quantise(linear_readout(inputs), plastic=["w"], growth=growth)
    (k,) = q.projections
    assert np.all(last_output(q, value) == value * inputs * 2.0**k.weight_exp * 64)
    assert growth * np.abs(k.weight).max() > 100  # all eight bits are there


def test_a_leaky_readout_has_room_for_its_memory_too() -> None:
    q = quantise(linear_readout(64, tau=10.0), plastic=["w"])
    found = last_output(q, 254, 100)
    one = 254 * 64 * 2.0 ** q.projections[0].weight_exp * 64
    assert np.all(found > 9.8 * one)
    assert np.all(found < 2**23 - 1)


def test_room_for_the_first_weights_alone_lets_learned_ones_wrap() -> None:
    """What `room` is for: the current of the largest weights comes out with the wrong sign."""
    q = quantise(linear_readout(64), plastic=["w"], growth=4.0, room=1.0)
    assert np.all(last_output(q, 48) < 0)


@pytest.mark.parametrize("inputs", [1000, 1500, 3000, 5000])
@pytest.mark.parametrize("growth", [1.0, 4.0])
def test_learned_weights_that_could_wrap_a_current_are_said_to(
    caplog: pytest.LogCaptureFixture, inputs: int, growth: float
) -> None:
    """Between 1024 inputs and those that take bits of the first weights, too."""
    q = quantise(linear_readout(inputs), plastic=["w"], growth=growth)
    unit = 2.0 ** q.projections[0].weight_exp * 64
    wraps = bool(np.any(last_output(q, 254) != 254 * inputs * unit))
    assert wraps == (inputs > 1024)
    assert ("out: its plastic weights may grow" in caplog.text) == wraps


def test_no_room_without_fewer_bits_is_said_and_names_the_population(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wide = linear_readout(5000)
    q = quantise(wide, plastic=["w"], growth=1.0)
    assert "out: its plastic weights may grow" in caplog.text
    assert np.abs(q.projections[0].weight).max() >= 127
    caplog.clear()
    quantise(linear_readout(64), plastic=["w"])
    quantise(wide)
    assert not caplog.text


def test_a_room_that_is_asked_for_is_kept_or_refused() -> None:
    network = linear_readout(64)
    scales = [float(quantise(network, room=r)["out"].scale or 0) for r in (1, 2, 16)]
    assert scales == [scales[0], scales[0] / 2, scales[0] / 16]
    assert quantise(network)["out"].scale == scales[0]
    with pytest.raises(Refused, match=r"out: .*got none"):
        quantise(network, room=1e9)
    with pytest.raises(Invalid, match="expected room >= 1"):
        quantise(network, room=0.5)


@pytest.mark.parametrize("call", [quantise, dequantise, to_nir])
@pytest.mark.parametrize("kind", ["graph", "path", "none"])
def test_what_is_no_network_is_named(call: Any, kind: str) -> None:
    ports = {"i": nir.Input(np.array([1])), "o": nir.Output(np.array([1]))}
    graph = nir.NIRGraph(ports, [("i", "o")], type_check=False)
    given: Any = {"graph": graph, "path": "x.nir", "none": None}[kind]
    name = type(given).__name__
    with pytest.raises(Invalid, match=f"^network: expected a Network, got {name}") as caught:
        call(given)
    assert "discretise(graph)" in caught.value.remedy


@pytest.mark.parametrize("form", ["dense", "sparse", "convolution"])
@pytest.mark.parametrize("plastic", [(), ("w",)], ids=["fixed", "plastic"])
def test_neurons_whose_weights_all_round_to_zero_are_counted(
    caplog: pytest.LogCaptureFixture, form: str, plastic: tuple[str, ...]
) -> None:
    """One large weight takes the range of all: the others, not those that are 0, are lost."""
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.5, 1.0, (5, 4)) * rng.choice([-1, 1], (5, 4))
    weight[1], weight[3, 2] = 0.0, 1e4
    network = linear_readout(4, 5)
    made: Any = {"dense": weight, "sparse": sp.csr_matrix(weight)}.get(form)
    if form == "convolution":
        made = W.Conv(weight[:, :, None], (4, 1), (1,), ((0, 0),), (1,))
    network = replace(network, projections=(replace(network.projections[0], weight=made),))
    quantise(network, plastic=plastic)
    what = "output channels" if form == "convolution" else "neurons of out"
    assert f"w: all weights of 3 of 5 {what} round to 0" in caplog.text
    caplog.clear()
    values = W.values(made).copy()
    values[np.abs(values) == 1e4] = 0.7
    quantise(network.with_weights({"w": values}), plastic=plastic)
    assert not caplog.text


def test_a_projection_that_rounds_to_zero_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    weight = np.random.default_rng(0).normal(size=(3, 4))
    network = network_of(weight)
    with pytest.raises(Invalid, match=r"^i->n: .*all 12 of them rounded to 0.*smaller growth"):
        quantise(network, plastic=["i->n"], growth=1e9)
    assert np.any(quantise(network, plastic=["i->n"], growth=16.0).weights()["i->n"])
    (k,) = network.projections
    tiny = replace(k, name="tiny", weight=k.weight * 1e-5)
    with pytest.raises(Invalid, match=r"^tiny: "):
        quantise(replace(network, projections=(k, tiny)))
    nothing = replace(k, name="nothing", weight=k.weight * 0)
    quantise(replace(network, projections=(k, nothing)))  # as a head that is to learn
    assert not caplog.text
    quantise(network_of(weight, bias=np.full(3, 1e-6)))
    assert "bias->n: all of its 3 biases round to 0" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "text"),
    [({"room": "x"}, "room: expected room >= 1"), ({"growth": None}, "growth: expected"),
     ({"headroom": 0}, "headroom: expected headroom"), ({"plastic": "i->n"}, "plastic: .*names"),
     ({"input_max": "1"}, "i: expected input_max > 0"),
     ({"input_max": {"j": 1.0}}, "j: expected input_max for an input, one of i")],
    ids=str,
)  # fmt: skip
def test_arguments_are_checked(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(Invalid, match=f"^{text}"):
        quantise(network_of(np.ones((2, 2))), **wrong)

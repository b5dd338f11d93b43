"""Every neuron and reset of both frameworks on Lava: 22 configurations, four negative controls.

Nets 20 -> 64 -> 10, 500 steps, Bernoulli(0.3) input; snnTorch beta 0.9, alpha 0.6, threshold 1;
Norse dt 1e-3 s, tau_mem 10 ms, tau_syn 5 ms. The framework's own module, in float32 and float64,
against Lava float: 0 mismatching spikes in both layers. Then Lava fixed against the dequantised
network: 0 at membrane decays of 0.5 and 0.9.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from grasp_plugin import Discretisation, build, dequantise, discretise, quantise
from grasp_plugin.network.error import layer_errors

pytestmark = pytest.mark.lava
STEPS, SIZES = 500, (20, 64, 10)


def snn_layer(kind: str, n: int, reset: str, delay: bool) -> Any:
    import snntorch as snn

    options: dict[str, Any] = {
        "reset_mechanism": reset, "reset_delay": delay, "init_hidden": True
    }  # fmt: skip
    if kind == "Leaky":
        return snn.Leaky(0.9, **options)
    if kind == "Synaptic":
        return snn.Synaptic(0.6, 0.9, **options)
    if kind == "RLeaky":
        return snn.RLeaky(0.9, linear_features=n, **options)
    return snn.RSynaptic(0.6, 0.9, linear_features=n, **options)


SNNTORCH = {
    "Leaky zero delay": ("Leaky", "zero", True, False),
    "Leaky zero no delay": ("Leaky", "zero", False, False),
    "Leaky zero bias": ("Leaky", "zero", True, True),
    "Leaky subtract delay": ("Leaky", "subtract", True, False),
    "Leaky subtract delay bias": ("Leaky", "subtract", True, True),
    "Leaky subtract no delay": ("Leaky", "subtract", False, False),
    "Synaptic zero delay": ("Synaptic", "zero", True, False),
    "Synaptic zero no delay": ("Synaptic", "zero", False, False),
    "Synaptic subtract delay": ("Synaptic", "subtract", True, False),
    "RLeaky zero delay": ("RLeaky", "zero", True, False),
    "RLeaky zero no delay": ("RLeaky", "zero", False, False),
    "RLeaky subtract delay": ("RLeaky", "subtract", True, False),
    "RSynaptic zero delay": ("RSynaptic", "zero", True, False),
    "RSynaptic subtract delay": ("RSynaptic", "subtract", True, False),
}
NORSE: dict[str, tuple[str, dict[str, float], bool]] = {
    "LIFBoxCell": ("LIFBoxCell", {"v_leak": 0.0, "v_reset": 0.0, "v_th": 0.3}, False),
    "LIFBoxCell bias": ("LIFBoxCell", {"v_leak": 0.0, "v_reset": 0.0, "v_th": 0.3}, True),
    "LIFBoxCell leak": ("LIFBoxCell", {"v_leak": 0.1, "v_reset": -0.2, "v_th": 0.3}, False),
    "LIFBoxCell reset bias": ("LIFBoxCell", {"v_leak": 0.0, "v_reset": 0.05, "v_th": 0.3}, True),
    "LIFBoxCell subtract": ("LIFBoxCell", {"v_leak": 0.0, "v_reset": 0.0, "v_th": 0.3}, False),
    "LIFCell": ("LIFCell", {"v_leak": 0.0, "v_reset": 0.0, "v_th": 0.5}, False),
    "LIFCell leak": ("LIFCell", {"v_leak": 0.1, "v_reset": -0.1, "v_th": 0.5}, False),
    "IAFCell": ("IAFCell", {"v_th": 1.0}, False),
}


def norse_layer(name: str) -> Any:
    import norse.torch as norse

    kind, values, _ = NORSE[name]
    inverse = {"tau_mem_inv": 100.0, "tau_syn_inv": 200.0}
    parameters = {key: torch.tensor(value) for key, value in values.items()}
    if kind == "IAFCell":
        return norse.IAFCell(norse.IAFParameters(**parameters))
    if kind == "LIFCell":
        taus = {key: torch.tensor(value) for key, value in inverse.items()}
        return norse.LIFCell(norse.LIFParameters(**parameters, **taus))
    if name.endswith("subtract"):
        from norse.torch.functional.reset import reset_subtract

        parameters["reset_method"] = reset_subtract  # type: ignore[assignment]
    parameters["tau_mem_inv"] = torch.tensor(100.0)
    return norse.LIFBoxCell(norse.LIFBoxParameters(**parameters))


def linear(o: int, i: int, bias: bool, scale: float) -> nn.Linear:
    layer = nn.Linear(i, o, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(o, i) * scale)
        if bias:
            layer.bias.copy_(torch.randn(o) * 0.1 * scale)
    return layer


def bernoulli(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return (torch.rand(STEPS, 1, SIZES[0], generator=generator) < 0.3).to(dtype)


def model_of(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """(sequential, function running it step by step and giving both layers' spikes)."""
    torch.manual_seed(3)
    a, b, c = SIZES
    if name in SNNTORCH:
        kind, reset, delay, bias = SNNTORCH[name]
        layers = [
            linear(b, a, bias, 0.3), snn_layer(kind, b, reset, delay), linear(c, b, bias, 0.2),
            snn_layer(kind, c, reset, delay),
        ]  # fmt: skip
        model = nn.Sequential(*layers).to(dtype)
    else:
        import norse.torch as norse

        bias = NORSE[name][2]
        scale = 0.3 if NORSE[name][0] == "IAFCell" else 1.0
        layers = [
            linear(b, a, bias, scale), norse_layer(name), linear(c, b, bias, scale),
            norse_layer(name),
        ]  # fmt: skip
        model = norse.SequentialState(*layers).to(dtype)
    return model.eval(), name in SNNTORCH


def framework_spikes(model: Any, is_snntorch: bool, x: torch.Tensor) -> list[np.ndarray]:
    """Spikes (time, neuron) of layers 1 and 3, from the framework's own modules."""
    kept: list[list[torch.Tensor]] = [[], []]
    layers = list(model.children())
    states: list[Any] = [None, None]
    with torch.no_grad():
        for t in range(len(x)):
            value = x[t]
            for i in range(2):
                value = layers[2 * i](value.to(x.dtype))  # snnTorch spikes are float32 always
                if is_snntorch:
                    value = layers[2 * i + 1](value)
                    if "spk" in dict(layers[2 * i + 1].named_buffers()):
                        layers[2 * i + 1].spk = value.to(x.dtype)  # what its recurrence reads
                else:
                    value, states[i] = layers[2 * i + 1](value, states[i])
                kept[i].append(value[0])
    return [torch.stack(k).double().numpy() for k in kept]


def graph_of(model: Any, is_snntorch: bool, x: torch.Tensor) -> Any:
    from grasp_plugin.adapters.from_norse import from_norse
    from grasp_plugin.adapters.from_snntorch import from_snntorch

    return from_snntorch(model, x[0]) if is_snntorch else from_norse(model, x[0], 1e-3)


def need(name: str) -> None:
    pytest.importorskip("snntorch" if name in SNNTORCH else "norse")


def lava_of(name: str, dtype: torch.dtype) -> tuple[list[np.ndarray], Any, np.ndarray]:
    model, is_snntorch = model_of(name, torch.float32)
    x = bernoulli(dtype)
    graph = graph_of(model, is_snntorch, x.float())
    model = model.to(dtype)
    expected = framework_spikes(model, is_snntorch, x)
    return expected, discretise(graph), x[:, 0].double().numpy()


def layers_of(network: Any) -> list[str]:
    return [p.name for p in sorted(network.populations, key=lambda p: -p.size)]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", [*SNNTORCH, *NORSE])
def test_framework_equals_lava_float(name: str, dtype: torch.dtype) -> None:
    need(name)
    expected, network, x = lava_of(name, dtype)
    with build(network, backend="lava") as session:
        found = session.run(x)
    for layer, spikes in zip(layers_of(network), expected, strict=True):
        assert 0.01 < spikes.mean() < 0.9, (layer, spikes.mean())
        assert int(np.sum(found.spikes[layer] != spikes)) == 0, layer


CONTROLS = {
    "Leaky subtract delay": "value",
    "Leaky subtract no delay": "subtract-immediate",
    "Synaptic zero delay": "value",
}


@pytest.mark.parametrize("name", CONTROLS)
def test_wrong_reset_differs(name: str) -> None:
    need(name)
    expected, network, x = lava_of(name, torch.float64)
    wrong = replace(
        network, populations=tuple(replace(p, reset=CONTROLS[name]) for p in network.populations)
    )
    with build(wrong, backend="lava") as session:
        found = session.run(x)
    for layer, spikes in zip(layers_of(network), expected, strict=True):
        assert np.sum(found.spikes[layer] != spikes) > 0


def test_bias_without_its_schedule_differs() -> None:
    """A bias that acts before the input arrives (Lava's `bias_mant`) changes the spikes."""
    need("Leaky zero bias")
    expected, network, x = lava_of("Leaky zero bias", torch.float64)
    early = {b.target: b.value for b in network.biases}
    padded = np.concatenate([np.zeros((1, SIZES[0])), x])  # the bias runs one step ahead
    with build(network, backend="lava") as session:
        found = session.run(padded)
    assert early
    for layer, spikes in zip(layers_of(network), expected, strict=True):
        assert np.sum(found.spikes[layer][1:] != spikes) > 0


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_fixed_equals_dequantised(beta: float) -> None:
    need("Leaky zero delay")
    _, network, x = lava_of("Leaky zero delay", torch.float64)
    network = replace(
        network,
        populations=tuple(replace(p, dv=np.full(p.size, 1 - beta)) for p in network.populations),
    )
    fixed = quantise(network)
    with build(fixed, backend="lava") as session:
        found = session.run(x)
    with build(dequantise(fixed), backend="torch") as session:
        forecast = session.run(x)
    for layer in layers_of(network):
        assert forecast.spikes[layer].sum() > 100
        assert int(np.sum(found.spikes[layer] != forecast.spikes[layer])) == 0


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99])
def test_membrane_error_is_as_predicted(beta: float) -> None:
    """Within 15 %, N = 100, p = 0.2, 200 neurons, 600 steps, no spikes."""
    import nir

    rng = np.random.default_rng(5)
    size = 200
    weights = nir.Linear(rng.normal(size=(size, 100)) * 0.1)
    leak = nir.LI(*(np.full(size, v) for v in (1e-3 / (1 - beta), 1 / (1 - beta), 0.0)))
    graph = nir.NIRGraph(
        {
            "i": nir.Input(np.array([100])),
            "w": weights,
            "n": leak,
            "o": nir.Output(np.array([size])),
        },
        [("i", "w"), ("w", "n"), ("n", "o")],
        type_check=False,
    )
    network = discretise(graph, Discretisation(dt_s=1e-3))
    x = (rng.random((600, 1, 100)) < 0.2).astype(float)
    fixed = quantise(network)
    (row,) = layer_errors(network, fixed, {"i": x, "n": np.zeros((600, 1, size))})
    assert abs(row.predicted / row.found - 1) < 0.15
    delta = 2.0 ** fixed.projections[0].weight_exp * 2 / row.scale
    n, p = 100, 0.2
    spec = delta / 12**0.5 * np.sqrt(n * p * (1 - p) / (1 - beta**2) + n * (p / (1 - beta)) ** 2)
    assert abs(spec / row.found - 1) < 0.3  # the study's own formula, steady state from step 0
    with build(fixed, backend="lava") as a, build(network, backend="torch") as b:
        lava, exact = a.run(x)["n"], b.run(x)["n"]
    assert abs(np.sqrt(np.mean((lava - exact) ** 2)) / row.found - 1) < 1e-6

"""snnTorch and Norse against every back end, Lava included: the same outputs, every step."""

from __future__ import annotations

from typing import Any

import framework_cases as cases
import numpy as np
import pytest
import torch

from grasp_plugin import Discretisation, build, discretise
from grasp_plugin.errors import Refused
from grasp_plugin.network.hints import read_hints


def _cases(framework: str) -> dict[str, Any]:
    try:
        return getattr(cases, f"{framework}_cases")()
    except ModuleNotFoundError:
        return {}


ALL = [(f, name) for f in ("snntorch", "norse") for name in _cases(f)]


def export(framework: str, name: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """The model's graph, an input and the framework's own output."""
    import grasp_plugin.adapters as adapters

    pytest.importorskip(framework)
    torch.manual_seed(seed)
    model, shape = _cases(framework)[name]()
    model = cases.promoted(model.eval().to(dtype))
    x = cases.inputs(shape, dtype)
    convert = getattr(adapters, f"from_{framework}")
    graph = convert(model, cases.sample_of(name, x))
    return graph, x, cases.run(model, x, name in cases.TIMED)


def outputs_of(
    graph: Any, x: torch.Tensor, policy: Discretisation | None = None, backend: str = "torch"
) -> Any:
    with build(discretise(graph, policy), backend=backend) as session:
        return session.run(x.to(torch.float64).numpy())["output"]


BACKENDS = ["torch", "fused", pytest.param("lava", marks=pytest.mark.lava)]
# loops through two layers with one step of delay
FASTER_THAN_LAVA = ("feedback", "RecurrentSequential-two")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("framework", "name"), ALL)
def test_every_back_end_gives_the_same_output(framework, name, backend, dtype):
    graph, x, expected = export(framework, name, dtype)
    if backend == "lava" and name in FASTER_THAN_LAVA:
        with pytest.raises(Refused, match="loop='each'"):
            outputs_of(graph, x, backend=backend)
        return
    got = outputs_of(graph, x, backend=backend)
    expected = expected.to(torch.float64).numpy()
    assert got.shape == expected.shape
    spiking = set(np.unique(expected)) <= {0.0, 1.0}
    if spiking:
        assert 0.005 < expected.mean() < 0.99, "a case that neither rests nor fires always"
        assert np.count_nonzero(got != expected) == 0
    else:
        tolerance = 1e-5 if dtype == torch.float32 else 1e-6  # Norse keeps dt tau in float32
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("framework", "name", "wrong"),
    [
        ("snntorch", "Leaky-subtract-delay", "value"),
        ("snntorch", "Leaky-subtract-delay", "subtract-immediate"),
        ("snntorch", "Leaky-subtract-nodelay", "subtract-delayed"),
        ("snntorch", "Leaky-subtract-nodelay", "subtract-immediate"),
        ("snntorch", "Leaky-none-delay", "value"),
        ("snntorch", "Synaptic-zero-delay", "value"),
        ("snntorch", "Synaptic-zero-nodelay", "refractory1"),
        ("snntorch", "RLeaky-zero-delay", "value"),
        ("snntorch", "RSynaptic-subtract-delay", "value"),
        ("snntorch", "Lapicque-zero-delay", "value"),
        ("norse", "LIFBoxCell-subtract", "value"),
        ("norse", "LIFBoxCell-subtract", "subtract-delayed"),
        ("norse", "LIFBoxCell", "subtract-immediate"),
        ("norse", "LIFCell", "refractory1"),
    ],
)
def test_a_wrong_reset_shows(framework, name, wrong):
    graph, x, expected = export(framework, name, torch.float64)
    got = outputs_of(graph, x, Discretisation(reset=wrong))
    assert np.count_nonzero(got != expected.to(torch.float64).numpy()) > 0


def test_a_wrong_dt_shows():
    graph, x, expected = export("norse", "LIFBoxCell", torch.float64)
    assert np.any(outputs_of(graph, x, Discretisation(dt_s=5e-4)) != expected.numpy())


def test_dt_is_a_unit_for_snntorch():
    pytest.importorskip("snntorch")
    from grasp_plugin.adapters import from_snntorch

    torch.manual_seed(0)
    model, shape = _cases("snntorch")["Synaptic-vectors"]()
    x = cases.inputs(shape, torch.float32)
    one, two = (outputs_of(from_snntorch(model, x[0], dt), x) for dt in (1e-4, 3e-3))
    np.testing.assert_array_equal(one, two)


def test_the_wrong_feedback_delay_shows():
    graph, x, expected = export("snntorch", "feedback", torch.float64)
    assert read_hints(graph)["loop"] == "lif2->lif1"
    got = outputs_of(graph, x, Discretisation(loop="each"))
    assert np.any(got != expected.numpy())

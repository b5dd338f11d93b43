"""Shared by all tests: random graphs and the marker for what needs Lava."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import nir
import numpy as np
import pytest

from grasp_plugin.runtime.lava_import import have_lava


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lava: needs lava-nc (Python 3.10)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if have_lava():
        return
    for item in items:
        if item.get_closest_marker("lava"):
            item.add_marker(pytest.mark.skip(reason="needs lava-nc, which is not installed here"))


def neuron(kind: str, shape: tuple[int, ...], rng: np.random.Generator, **fixed: float) -> Any:
    """A NIR neuron with random per-neuron parameters (seconds); keywords fix some."""
    ranges = {
        "tau": (4e-3, 3e-2), "tau_mem": (4e-3, 3e-2), "tau_syn": (2e-3, 1e-2), "r": (3.0, 8.0),
        "v_leak": (0.0, 0.0), "v_threshold": (0.5, 1.5), "v_reset": (0.0, 0.0), "w_in": (1.0, 4.0),
        "threshold": (0.2, 0.8),
    }  # fmt: skip
    fields = {
        "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
        "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
        "IF": ("r", "v_threshold", "v_reset"),
        "LI": ("tau", "r", "v_leak"),
        "CubaLI": ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
        "I": ("r",),
        "Threshold": ("threshold",),
    }[kind]
    values = {
        name: np.full(shape, fixed[name]) if name in fixed else rng.uniform(*ranges[name], shape)
        for name in fields
    }
    if kind in ("IF", "I"):
        values["r"] = rng.uniform(0.1, 0.3, shape)
    return getattr(nir, kind)(**values)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.fixture
def chain(rng: np.random.Generator) -> Callable[..., nir.NIRGraph]:
    """chain(*nodes, shape=(n,)): Input -> nodes -> Output, named in0, n0, n1, ..., out0."""

    def make(*nodes: Any, shape: tuple[int, ...], extra: Any = ()) -> nir.NIRGraph:
        named = {"in0": nir.Input(np.array(shape))}
        named |= {f"n{i}": node for i, node in enumerate(nodes)}
        order = [*named, "out0"]
        edges = [*pairwise(order), *extra]
        last = nodes[-1].output_type["output"]
        named["out0"] = nir.Output(None if last is None else np.array(last))
        return nir.NIRGraph(named, edges, type_check=False)

    return make


@pytest.fixture
def make_neuron(rng: np.random.Generator) -> Callable[..., Any]:
    return lambda kind, shape, **fixed: neuron(kind, shape, rng, **fixed)

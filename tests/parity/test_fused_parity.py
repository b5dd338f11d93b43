"""fused = torch spike for spike in float; fused = Lava bit for bit in Loihi's integers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grasp_plugin import build, quantise
from grasp_plugin.errors import Refused
from grasp_plugin.network.hints import RESETS

_spec = importlib.util.spec_from_file_location(
    "lava_parity_cases", Path(__file__).with_name("test_lava_parity.py")
)
assert _spec is not None
assert _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)


def networks(reset: str, rng: Any, make_neuron: Any) -> Any:
    for name in cases.NAMES:
        try:
            yield name, cases.network_of(name, rng, make_neuron, reset)
        except Refused:
            if name != "leak-and-reset-voltage":  # refused by design with a subtraction
                raise


@pytest.mark.parametrize("reset", RESETS)
def test_float_equals_torch(reset: str, rng: Any, make_neuron: Any) -> None:
    for name, network in networks(reset, rng, make_neuron):
        spikes = cases.spikes_for(network, rng)
        with build(network, backend="torch") as a, build(network, backend="fused") as b:
            first = a.run(spikes, record=("membrane",))
            second = b.run(spikes, record=("membrane",))
            assert not any(cases.mismatches(network, first, second).values()), name
            for p in network.populations:
                u, v = first.membrane[p.name], second.membrane[p.name]
                assert np.allclose(u, v, rtol=1e-9, atol=1e-9), (name, p.name)
                for key in ("u", "v"):
                    x, y = a.state()[p.name][key], b.state()[p.name][key]
                    assert np.allclose(x, y, rtol=1e-9, atol=1e-9), (name, p.name, key)


@pytest.mark.lava
@pytest.mark.parametrize("reset", RESETS)
def test_integers_equal_lava_bit_for_bit(reset: str, rng: Any, make_neuron: Any) -> None:
    for name, network in networks(reset, rng, make_neuron):
        if name == "graded-loop":
            continue  # a membrane that feeds a population is refused in integers
        fixed = quantise(network)
        spikes = cases.spikes_for(network, rng)
        with build(fixed, backend="lava") as a, build(fixed, backend="fused") as b:
            first = a.run(spikes, record=("membrane",))
            second = b.run(spikes, record=("membrane",))
            assert first.saturated == second.saturated
            for p in network.populations:
                assert np.array_equal(first.spikes[p.name], second.spikes[p.name]), (name, p.name)
                assert np.array_equal(first.membrane[p.name], second.membrane[p.name]), name
                for key in ("u", "v"):
                    assert np.array_equal(a.state()[p.name][key], b.state()[p.name][key]), name


def test_negative_exponents_and_wrapping_agree_with_the_array_step(rng: Any) -> None:
    """Registers at their limits: the compiled scalar step = `lif_fixed.step_fixed`."""
    from grasp_plugin.neurons import kernels
    from grasp_plugin.neurons.lif_fixed import step_fixed

    for reset in [*RESETS, None]:
        a = rng.integers(-(2**18), 2**18, 4000)
        u, v = rng.integers(-(2**23), 2**23, (2, 4000))
        s = rng.integers(0, 2, 4000)
        du, dv = rng.integers(0, 4096, (2, 4000))
        v_th, drive = rng.integers(0, 131072, 4000), rng.integers(-4096, 4096, 4000) << 7
        out, state = step_fixed(
            a, {"u": u, "v": v, "s": s}, du=du, dv=dv, v_th=v_th, drive=drive, reset=reset
        )
        code = kernels.RESET_CODES[reset]
        columns = np.stack([a, u, v, s, du, dv, v_th, drive], axis=1).tolist()
        found = np.array([kernels.neuron_fixed(*row, code) for row in columns])
        assert np.array_equal(found[:, 0], out), reset
        assert np.array_equal(found[:, 1], state["u"]), reset
        assert np.array_equal(found[:, 2], state["v"]), reset


def test_work_is_event_driven(rng: Any, make_neuron: Any) -> None:
    """A silent input touches no synapse: poisoned weights do no harm until their source speaks."""
    network = cases.network_of("dense-LIF", rng, make_neuron, "value")
    from grasp_plugin.network.packed import PackedState, advance, pack

    packed = pack(network)
    dense = packed.arrays[6]
    first = packed.arrays[3][0]
    row = slice(first[6] + 3 * first[3], first[6] + 4 * first[3])  # the weights of input 3
    dense[row] = np.nan
    x = np.ones((20, 12))
    x[:, 3] = 0
    out, _, _ = advance(packed, PackedState(packed), x)
    assert np.isfinite(out).all()
    x[10, 3] = 1
    _, membrane, _ = advance(packed, PackedState(packed), x, membrane=True)
    assert np.isfinite(membrane[:10]).all()
    assert np.isnan(membrane[10:]).any()

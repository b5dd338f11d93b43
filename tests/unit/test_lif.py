"""The neuron step: trajectories worked out by hand, NumPy = torch, integers as Lava's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network.hints import RESETS
from grasp_plugin.neurons import lif
from grasp_plugin.neurons.lif_fixed import check_registers, step_fixed, wrap

# beta = 1/2, threshold 1, input 1.5 at steps 0 and 1, then 0.25: exact in binary
INPUT = [1.5, 1.5, 0.25, 0.25, 0.25]
HAND = {  # (spikes, membrane after the step), by paper and pencil
    "value": ([1, 1, 0, 0, 0], [0, 0, 0.25, 0.375, 0.4375]),
    "subtract-immediate": ([1, 1, 0, 0, 0], [0.5, 0.75, 0.625, 0.5625, 0.53125]),
    "subtract-delayed": ([1, 1, 0, 0, 0], [1.5, 1.25, -0.125, 0.1875, 0.34375]),
    "snntorch-nodelay": ([1, 1, 0, 0, 0], [0.5, 0.75, 0.625, 0.5625, 0.53125]),
    "refractory1": ([1, 0, 0, 0, 0], [0, 0, 0.25, 0.375, 0.4375]),
    "none": ([1, 1, 1, 0, 0], [1.5, 2.25, 1.375, 0.9375, 0.71875]),
}


def run(reset: str | None, xp: Any = np, inputs: list[float] = INPUT, du: float = 1.0) -> Any:
    one = np.array([1.0]) if xp is np else torch.tensor([1.0], dtype=torch.float64)
    state = {"u": one * 0, "v": one * 0, "s": one * 0}
    spikes, membranes = [], []
    for x in inputs:
        out, state, _ = lif.step(
            one * x, state, du=one * du, dv=one * 0.5, v_th=one, drive=one * 0, reset=reset
        )
        spikes.append(float(out[0]))
        membranes.append(float(state["v"][0]))
    return spikes, membranes


@pytest.mark.parametrize("reset", RESETS)
def test_by_hand(reset: str) -> None:
    spikes, membranes = run(reset)
    assert (spikes, membranes) == ([float(s) for s in HAND[reset][0]], HAND[reset][1])


def test_nodelay_needs_twice_the_threshold_after_a_reset_that_stays_above() -> None:
    spikes, membranes = run("snntorch-nodelay", inputs=[2.5, 1.0, 0.0])
    assert spikes == [1, 0, 0]  # 2.5 -> 1.5 left; 0.75 + 1 = 1.75 < 2; 0.875
    assert membranes == [1.5, 1.75, 0.875]
    assert run("subtract-immediate", inputs=[2.5, 1.0, 0.0])[0] == [1, 1, 0]


def test_synaptic_filter_by_hand() -> None:
    _, membranes = run(None, inputs=[1.0, 0.0, 0.0], du=0.5)
    assert membranes == [1.0, 1.0, 0.75]  # u = 1, 0.5, 0.25


@pytest.mark.parametrize("reset", [*RESETS, None])
def test_numpy_equals_torch(reset: str | None, rng: np.random.Generator) -> None:
    inputs = rng.normal(size=50).tolist()
    assert run(reset, np, inputs) == run(reset, torch, inputs)


def test_a_tie_is_no_spike() -> None:
    assert run("value", inputs=[1.0])[0] == [0]


def test_unknown_reset_is_named() -> None:
    with pytest.raises(Invalid, match="sideways"):
        run("sideways")


def test_integer_wrap_flips_the_sign() -> None:
    u = np.array([516, 520, 1040]) * 254 << 6
    assert wrap(u).tolist()[:2] == [8388096, -8324096]
    assert wrap(np.array([-(2**23)])).tolist() == [2**23]


def test_integer_step_by_hand() -> None:
    def step(a: int, u: int, v: int, du: int, dv: int) -> tuple[int, int]:
        _, state = step_fixed(
            np.array([a]), {"u": np.array([u]), "v": np.array([v]), "s": np.array([0])},
            du=np.array([du]), dv=np.array([dv]), v_th=np.array([131071]), drive=np.array([7]),
            reset="none",
        )  # fmt: skip
        return int(state["u"][0]), int(state["v"][0])

    assert step(3, 0, 0, 4095, 0) == (192, 199)
    assert step(0, 1000, -1001, 2047, 2048) == (500, -500 + 500 + 7)  # truncation toward zero
    assert step(0, 4096, 0, 0, 0) == (4095, 4102)  # du = 0 still decays by 1 / 4096
    assert step(0, 0, 2**23 - 2, 4095, 0)[1] == 2**23 - 1  # v saturates


@pytest.mark.parametrize(
    ("field", "value"),
    [("du", 4096), ("dv", -5), ("dv", 4096), ("v_th", 2_000_000), ("drive", 5000), ("drive_exp", 8),
     ("v_th", 100.0), ("dv", 0.1)],
)  # fmt: skip
def test_registers_refuse_what_lava_lets_pass(field: str, value: Any) -> None:
    with pytest.raises(Refused) as caught:
        check_registers("n3", **{field: value})
    assert caught.value.node == "n3"
    assert field in str(caught.value)

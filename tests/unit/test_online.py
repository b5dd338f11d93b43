"""The pieces of the online loop: Late, Accumulate, kernels, convolutions, signals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from grasp_plugin.backends.learning_torch import conv_transposed
from grasp_plugin.backends.live_weights import LiveWeights
from grasp_plugin.learning import (
    Accumulate,
    BurnIn,
    Factors,
    Full,
    Late,
    Outer,
    PerSynapse,
    Plan,
    fixed_kernels,
    kernels,
)
from grasp_plugin.learning.convolved import Convolved, SharedBias, conv_back, patches
from grasp_plugin.learning.counter_random import uniform, uniform_on_arrays
from grasp_plugin.learning.deltas import is_finite
from grasp_plugin.learning.online import third_factor
from grasp_plugin.learning.rule import ThreeFactor
from grasp_plugin.learning.signals import Backpropagation, OutputError, Projection, RandomReadout
from grasp_plugin.learning.traces import CurrentExponential, Exponential, Instant
from grasp_plugin.network.network import Network, Population
from grasp_plugin.network.network import Projection as Synapses
from grasp_plugin.network.packed import PackedState, advance, pack
from grasp_plugin.network.weights import Conv, to_dense, with_values

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=60, deadline=None)


def total(rule: Any, steps: list[Factors], w: Any, flush: bool = True) -> Any:
    """w with every delta of a sequence, and with those that `Late` still holds."""
    state = rule.init(w)
    for factors in steps:
        delta, state = rule.update(factors, state, w)
        w = w + delta["weight"].dense()
    if flush and isinstance(rule.transforms[-1], Late):
        last = len(rule.transforms) - 1
        for held in rule.transforms[-1].pending(state["transforms"][str(last)]):
            w = w + held["weight"].dense()
    return w


def stream(rng: Any, steps: int, batch: int = 1, sizes: tuple[int, int] = (4, 3)) -> list[Factors]:
    out, into = sizes
    return [
        Factors(pre=rng.normal(size=(batch, into)), signal=rng.normal(size=(batch, out)))
        for _ in range(steps)
    ]


@few
@given(seed=seeds, steps=st.integers(1, 12), late=st.integers(1, 6), batch=st.integers(1, 3))
def test_late_then_flushed_is_the_same_total(seed: int, steps: int, late: int, batch: int) -> None:
    """Where weights do not feed back, only when a delta is made changes."""
    rng = np.random.default_rng(seed)
    rule, w = ThreeFactor(Exponential(0.7), None, 0.3), rng.normal(size=(4, 3))
    given_ = stream(rng, steps, batch)
    want = total(Plan(rule, (BurnIn(0),)), given_, w)
    plan = Plan(rule, (Late(late),))
    assert np.allclose(total(plan, given_, w), want, atol=1e-12, rtol=0)
    cut = total(plan, given_, w, flush=False)
    assert np.allclose(
        cut, total(Plan(rule, (BurnIn(0),)), given_[: max(0, steps - late)], w), atol=1e-12, rtol=0
    )


@few
@given(seed=seeds, every=st.integers(1, 7), times=st.integers(1, 4), rest=st.integers(0, 6))
def test_accumulate_makes_whole_blocks_only(seed: int, every: int, times: int, rest: int) -> None:
    rng = np.random.default_rng(seed)
    rule, w = ThreeFactor(Exponential(0.7), None, 0.3), rng.normal(size=(4, 3))
    given_ = stream(rng, every * times + rest % every)
    want = total(Plan(rule, (BurnIn(0),)), given_[: every * times], w)
    assert np.allclose(total(Plan(rule, (Accumulate(every),)), given_, w), want, atol=1e-12, rtol=0)


@few
@given(
    seed=seeds, sizes=st.tuples(st.integers(1, 9), st.integers(1, 40)),
    share=st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]), order=st.sampled_from("CF"),
)  # fmt: skip
def test_adding_an_outer_product_in_place_is_adding_it(
    seed: int, sizes: tuple[int, int], share: float, order: str
) -> None:
    """For any sparsity of either side, in C and Fortran order."""
    rng = np.random.default_rng(seed)
    left = rng.normal(size=(1, sizes[0])) * (rng.random(sizes[0]) < share)
    right = rng.normal(size=(1, sizes[1])) * (rng.random(sizes[1]) < rng.choice([share, 1.0]))
    w = np.array(rng.normal(size=sizes), order=order)  # type: ignore[call-overload]
    want = w + Outer(left, right, -0.3).dense()
    held = w
    kernels.add_delta(w, {"weight": Outer(left, right, -0.3)})
    assert held is w
    assert np.allclose(w, want, atol=1e-14, rtol=0)


@few
@given(seed=seeds, kind=st.sampled_from(["batch", "synapse", "full", "bias", "scale array"]))
def test_other_deltas_are_added_too(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(3, 4)), rng.normal(size=(3, 5))
    w: Any = rng.normal(size=(4, 5))
    delta: Any = Outer(left, right, 0.5)
    if kind == "synapse":
        delta = PerSynapse(left, rng.normal(size=(3, 4, 5)), -2.0)
    elif kind == "full":
        delta = Full(rng.normal(size=(4, 5)))
    elif kind == "bias":
        w, delta = rng.normal(size=4), Outer(left, right[:, :1], 0.5)
    elif kind == "scale array":
        delta = Outer(left[:1], right[:1], np.array([0.25]))
    want = w + delta.dense().reshape(w.shape)
    kernels.add_delta(w, {"weight": delta})
    assert np.allclose(w, want, atol=1e-13, rtol=0)


@few
@given(seed=seeds, share=st.sampled_from([0.0, 0.1, 1.0]), order=st.sampled_from("CF"))
def test_gather_is_the_product(seed: int, share: float, order: str) -> None:
    rng = np.random.default_rng(seed)
    w = np.array(rng.normal(size=(5, 17)), order=order)  # type: ignore[call-overload]
    x = rng.normal(size=17) * (rng.random(17) < share)
    assert np.allclose(kernels.gather(w, x), w @ x, atol=1e-13, rtol=0)
    whole = rng.integers(-200, 200, (5, 17)).astype(np.int16)
    counts = (rng.random(17) < share).astype(np.int64)
    assert np.array_equal(kernels.gather(whole, counts), whole.astype(np.int64) @ counts)


@few
@given(seed=seeds, step=st.integers(0, 2**20), shift=st.integers(0, 10))
def test_a_fixed_write_is_the_same_in_either_memory_order(seed: int, step: int, shift: int) -> None:
    rng = np.random.default_rng(seed)
    w = 2 * rng.integers(-120, 120, (4, 6)).astype(np.int16)
    y, x = rng.integers(-128, 128, 4), rng.integers(-127, 128, 6)
    key, c, f = fixed_kernels.key(seed, step, 3), w.copy(order="C"), w.copy(order="F")
    clipped = [fixed_kernels.write(m, y, x, shift, -256, 254, key) for m in (c, f)]
    assert np.array_equal(c, f)
    assert clipped[0] == clipped[1]
    change = np.clip(w + np.outer(y, x) / 2**shift, -256, 254)
    assert np.all(abs(c - change) <= 2)  # to the even number below or above


def test_the_compiled_words_are_those_of_uniform() -> None:
    """One hash, compiled and on arrays, on NumPy and torch."""
    for seed, step in ((0, 1), (12345, 99), (-3, 2**28)):
        words = uniform(seed, np.array([4 * step]), 5, np.zeros(1)) * 2**24
        mixed = fixed_kernels.key(seed, step, 0)
        with np.errstate(over="ignore"):
            mine = [
                int(fixed_kernels.mix(np.uint32(mixed + np.uint32(i) * fixed_kernels.GOLDEN))) >> 8
                for i in range(5)
            ]
        assert mine == words.astype(np.int64).tolist()
        for dtype in (torch.float64, torch.float32):
            other = uniform(seed, torch.tensor([4 * step]), 5, torch.zeros(1, dtype=dtype)) * 2**24
            assert mine == other.long().tolist()


@few
@given(seed=st.integers(-(2**40), 2**40), step=st.integers(0, 2**40), size=st.integers(0, 70))
def test_compiled_numbers_are_those_on_arrays(seed: int, step: int, size: int) -> None:
    """Bit for bit, in NumPy's and torch's float32 and float64."""
    for kind, other in ((np.float32, torch.float32), (np.float64, torch.float64)):
        got = uniform(seed, np.array([step]), size, np.zeros(1, kind))
        want = uniform_on_arrays(seed, np.array([step]), size, np.zeros(1, kind))
        assert got.dtype == want.dtype == kind
        assert np.array_equal(got, want)
        tensor = uniform(seed, torch.tensor([step]), size, torch.zeros(1, dtype=other))
        assert np.array_equal(got, tensor.numpy())


GEOMETRIES = [
    Conv(np.zeros((3, 2, 3, 2)), (2, 7, 6), (2, 1), ((1, 0), (0, 2)), (1, 2)),
    Conv(np.zeros((2, 1, 2, 3)), (1, 5, 8), (3, 2), ((0, 1), (2, 0)), (2, 1)),
    Conv(np.zeros((4, 3, 3)), (3, 9), (2,), ((1, 1),), (2,)),
    Conv(np.zeros((2, 2, 1, 1)), (2, 3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1)),
]


@pytest.mark.parametrize("geometry", range(len(GEOMETRIES)))
def test_a_convolution_learns_as_autograd_says_and_carries_errors_back(
    geometry: int, rng: Any
) -> None:
    """Delta of the kernel, and W^T of an error, against torch and against the matrix."""
    conv = GEOMETRIES[geometry]
    conv = with_values(conv, rng.normal(size=conv.kernel.shape))
    x, left = rng.normal(size=(3, conv.shape[1])), rng.normal(size=(3, conv.shape[0]))
    kernel = torch.tensor(conv.kernel, requires_grad=True)
    pads = [n for low_high in reversed(conv.padding) for n in low_high]
    given_ = torch.tensor(x, requires_grad=True)
    padded = functional.pad(given_.reshape(3, *conv.in_shape), pads)
    operation = functional.conv2d if len(conv.in_shape) == 3 else functional.conv1d
    y = operation(padded, kernel, stride=conv.stride, dilation=conv.dilation).reshape(3, -1)
    (y * torch.tensor(left)).sum().backward()
    rule = Convolved(ThreeFactor(Instant(), None, -1.0), conv)
    matrix = conv.kernel.reshape(len(conv.kernel), -1)
    delta, _ = rule.update(Factors(x, signal=left), rule.init(matrix, batch=3), matrix)
    assert kernel.grad is not None
    assert given_.grad is not None
    got = delta["weight"].dense().reshape(conv.kernel.shape)
    assert np.allclose(got, kernel.grad.numpy(), atol=1e-12, rtol=0)
    want = given_.grad.numpy()
    assert np.allclose(left @ to_dense(conv), want, atol=1e-12, rtol=0)
    back = [conv_back(conv.kernel, patches(conv), row, conv.shape[1]) for row in left]
    assert np.allclose(np.stack(back), want, atol=1e-12, rtol=0)
    there = conv_transposed(conv, torch.tensor(conv.kernel), torch.tensor(left))
    assert np.allclose(there.numpy(), want, atol=1e-12, rtol=0)


def test_a_shared_bias_gets_the_sum_of_its_channel(rng: Any) -> None:
    rule = SharedBias(ThreeFactor(Instant(), None, -1.0), 3)
    w, left = np.zeros((12, 1)), rng.normal(size=(2, 12))
    delta, _ = rule.update(Factors(np.ones((2, 1)), signal=left), rule.init(w, batch=2), w)
    want = np.repeat(left.sum(axis=0).reshape(3, 4).sum(axis=1), 4)
    assert np.allclose(delta["weight"].dense()[:, 0], want, atol=1e-13, rtol=0)


def test_live_weights_are_what_the_compiled_step_reads(rng: Any) -> None:
    """A write to a dense matrix, a kernel or a bias changes the next step's membrane."""
    conv = GEOMETRIES[0]
    conv = with_values(conv, rng.normal(size=conv.kernel.shape))
    size = conv.shape[0]
    one = {k: np.ones(size) for k in ("du", "dv", "v_th", "gain")}
    zero = {k: np.zeros(size) for k in ("drive", "v_init", "v_offset")}
    p = Population("o", conv.out_shape, "I", None, **one, **zero)
    square = Synapses("y->o", "y", "o", rng.normal(size=(size, 5)))
    net = Network((p,), (Synapses("x->o", "x", "o", conv), square), (),
                  {"x": conv.in_shape, "y": (5,)}, {"out": "o"})  # fmt: skip
    packed = pack(net)
    live = LiveWeights(net, packed)
    x = rng.normal(size=(1, conv.shape[1] + 5))
    for name in ("x->o", "y->o"):
        live.arrays[name] += rng.normal(size=live.arrays[name].shape)
        live.written(name)
    kernel, matrix = live.arrays["x->o"], live.arrays["y->o"]
    out, _, _ = advance(packed, PackedState(packed), x)
    want = to_dense(with_values(conv, kernel)) @ x[0, :-5] + matrix @ x[0, -5:]
    assert np.allclose(out[0], want, atol=1e-12, rtol=0)


SIGNALS = {
    "readout": RandomReadout(3, 0.7, dropout=0.2, seed=4),
    "label": Projection(3, 0.5, seed=1, matrix_seed=2),
    "error": Projection(3, 0.5, source="error", seed=1),
    "output": OutputError(3, 0.5, seed=1),
    "loss": Backpropagation(),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_masked_step_has_no_error_but_counts(name: str, rng: Any) -> None:
    """mask 0: the third factor is 0; random numbers go on as if it were 1; torch = NumPy."""
    signal, batch = SIGNALS[name], 3
    output, target = rng.random((batch, 3)), rng.random((batch, 3))
    states = [signal.init(3, np.zeros(1)) if hasattr(signal, "init") else {} for _ in range(2)]
    like = torch.zeros(1).double()
    there = signal.init(3, like) if hasattr(signal, "init") else {}
    seen = 0.0
    for t in range(20):
        on = float(t % 2)
        options: Any = {"network_output": output}
        with_mask, states[0] = third_factor(
            signal, output, target, np.full((batch, 1), on), states[0], **options
        )
        without, states[1] = third_factor(
            signal, output, target, np.ones((batch, 1)), states[1], **options
        )
        assert np.array_equal(with_mask, without * on)
        other, there = third_factor(
            signal, torch.tensor(output), torch.tensor(target),
            torch.full((batch, 1), on).double(), there, network_output=torch.tensor(output),
        )  # fmt: skip
        assert np.allclose(other.numpy(), with_mask, atol=1e-14, rtol=0)
        seen += float(abs(with_mask).sum())
    assert seen > 0


def test_a_current_trace_is_the_response_of_a_current_and_a_membrane(rng: Any) -> None:
    """And is symmetric in its two decays."""
    s = (rng.random((30, 1, 4)) < 0.3).astype(float)
    one, other = CurrentExponential(0.9, 0.4), CurrentExponential(0.4, 0.9)
    w = np.zeros((2, 4))
    a, b, u, v = one.init(w), other.init(w), np.zeros((1, 4)), np.zeros((1, 4))
    for x in s:
        u = 0.4 * u + x
        v = 0.9 * v + u
        (got, a), (swapped, b) = one.update(Factors(x), a), other.update(Factors(x), b)
        assert np.allclose(got, v, atol=1e-14, rtol=0)
        assert np.allclose(swapped, v, atol=1e-12, rtol=0)


@pytest.mark.parametrize("part", ["left", "right", "scale"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_delta_with_one_bad_entry_is_not_finite(part: str, bad: float) -> None:
    parts: Any = {"left": np.ones((1, 3)), "right": np.ones((1, 4)), "scale": np.ones(1)}
    assert is_finite({"weight": Outer(**parts)})
    parts[part].flat[0] = bad
    assert not is_finite({"weight": Outer(**parts)})

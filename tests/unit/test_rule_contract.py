"""What every rule, transform and plan must do: one table, one suite."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from grasp_plugin.errors import Invalid
from grasp_plugin.learning import (
    Accumulate,
    BurnIn,
    Factors,
    Outer,
    Plan,
    Rule,
    ThreeFactor,
    check_finite,
    decolle,
    etlp,
    etlp_output,
    ottt,
    sltt,
)
from grasp_plugin.learning.losses import one_hot
from grasp_plugin.learning.states import leaves
from grasp_plugin.learning.traces import Average, Exponential
from grasp_plugin.neurons.surrogate import Sigmoid

TAU = (20.0, 50.0, 5.0, 11.0)
RULES = {
    "decolle": lambda: decolle(0.1),
    "decolle boxcar": lambda: decolle(0.1, surrogate="boxcar"),
    "decolle burn-in": lambda: decolle(0.1, burn_in=3),
    "decolle per input": lambda: decolle(0.1, alpha=(0.9, 0.8, 0.7)),
    "etlp": lambda: etlp(0.1),
    "etlp factorised": lambda: etlp(0.1, theta=0.0),
    "etlp per neuron": lambda: etlp(0.1, theta=0.0, tau_v_ms=TAU),
    "etlp official": lambda: etlp(0.1, tau_v_ms=TAU, thr=0.5, official=True),
    "etlp e-prop": lambda: etlp(0.1, low_pass_ms=20.0),
    "etlp output": lambda: etlp_output(0.1, tau_o_ms=30.0),
    "ottt": lambda: ottt(0.1),
    "ottt first official": lambda: ottt(0.1, layer="first", official=True),
    "ottt readout": lambda: ottt(0.1, layer="readout"),
    "ottt hard reset": lambda: ottt(0.1, reset="value"),
    "ottt accumulated": lambda: Plan(ottt(0.1), (BurnIn(1), Accumulate(4))),
    "plan in a plan": lambda: Plan(Plan(ottt(0.1), (BurnIn(2),)), (BurnIn(1),)),
    "sltt": lambda: sltt(0.1, slope=3.0),
    "averaging trace": lambda: ThreeFactor(Average(0.8), Sigmoid(), 0.1),
}
RANK_ONE = [
    "decolle", "decolle boxcar", "decolle per input", "etlp factorised", "etlp output", "ottt",
    "ottt first official", "ottt readout", "sltt", "averaging trace",
]  # fmt: skip
N_O, N_I, BATCH, STEPS = 4, 3, 2, 12


@pytest.fixture(params=list(RULES))
def rule(request: pytest.FixtureRequest) -> Rule:
    return RULES[request.param]()


def inputs(batch: int = BATCH, steps: int = STEPS, xp: Any = np) -> Iterator[Factors]:
    rng = np.random.default_rng(4)
    for _ in range(steps):
        fields = {
            "pre": (rng.random((batch, N_I)) < 0.5) * 1.0,
            "signal": rng.normal(size=(batch, N_O)),
            "membrane": rng.normal(size=(batch, N_O)) * 0.4,
            "spikes": (rng.random((batch, N_O)) < 0.3) * 1.0,
            "active": (rng.random((batch, N_O)) < 0.8) * 1.0,
        }
        yield Factors(**{k: xp.asarray(v) for k, v in fields.items()})


def weights(xp: Any = np) -> Any:
    return xp.asarray(np.random.default_rng(1).normal(size=(N_O, N_I)))


def run(rule: Rule, xp: Any = np, batch: int = BATCH) -> tuple[list[Any], dict[str, Any]]:
    weight = weights(xp)
    state, out = rule.init(weight, batch=batch), []
    for factors in inputs(batch, xp=xp):
        delta, state = rule.update(factors, state, weight)
        out.append([delta["weight"].dense(), delta.get("bias", weight[:, 0] * 0)])
    return out, state


def test_every_rule_writes_something(rule: Rule) -> None:
    assert max(abs(d).max() for step in run(rule)[0] for d in step) > 1e-4


def test_numpy_equals_torch(rule: Rule) -> None:
    a, state = run(rule)
    b, other = run(rule, torch)
    for step, other_step in zip(a, b, strict=True):
        for x, y in zip(step, other_step, strict=True):
            np.testing.assert_allclose(x, y.numpy(), rtol=1e-12, atol=1e-15)
    for (name, x), (same, y) in zip(leaves(state), leaves(other), strict=True):
        assert name == same
        np.testing.assert_allclose(x, y.numpy(), rtol=1e-12, atol=1e-15)


def test_state_is_a_nested_dict_of_arrays_of_constant_shape(rule: Rule) -> None:
    for xp, kind in ((np, np.ndarray), (torch, torch.Tensor)):
        first = rule.init(weights(xp), batch=BATCH)
        _, last = run(rule, xp)
        assert isinstance(first, dict)
        shapes = [(n, v.shape, v.dtype) for n, v in leaves(first)]
        assert [(n, v.shape, v.dtype) for n, v in leaves(last)] == shapes
        assert all(isinstance(v, kind) for _, v in leaves(last))


def test_float32_stays_float32(rule: Rule) -> None:
    weight = weights().astype(np.float32)
    state = rule.init(weight, batch=BATCH)
    for f in inputs():
        single = Factors(**{k: v.astype(np.float32) for k, v in vars(f).items() if v is not None})
        delta, state = rule.update(single, state, weight)
    assert delta["weight"].dense().dtype == np.float32
    assert all(v.dtype in (np.float32, np.int64) for _, v in leaves(state))


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_update_is_pure(rule: Rule, xp: Any) -> None:
    weight = weights(xp)
    state = rule.init(weight, batch=BATCH)
    for factors in inputs(xp=xp):
        before = pickle.dumps((vars(factors), state, weight))
        delta, new = rule.update(factors, state, weight)
        again, new_again = rule.update(factors, state, weight)
        assert pickle.dumps((vars(factors), state, weight)) == before
        assert (delta["weight"].dense() == again["weight"].dense()).all()
        for (_, x), (_, y) in zip(leaves(new), leaves(new_again), strict=True):
            assert (x == y).all()
        state = new


def test_unknown_extras_are_ignored(rule: Rule) -> None:
    weight, factors = weights(), next(inputs())
    state = rule.init(weight, batch=BATCH)
    a, _ = rule.update(factors, state, weight)
    b, _ = rule.update(factors, state, weight, nobody_knows_this=1)
    assert (a["weight"].dense() == b["weight"].dense()).all()


def test_comparable_hashable_printable_picklable(rule: Rule, request: Any) -> None:
    name = request.node.callspec.params["rule"]
    twin = RULES[name]()
    assert rule == twin
    assert hash(rule) == hash(twin)
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert repr(rule) == repr(twin)
    assert "0x" not in repr(rule)
    others = [make() for other, make in RULES.items() if other != name]
    assert rule not in others


def test_frozen(rule: Rule) -> None:
    with pytest.raises(AttributeError):
        rule.anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list(RULES))
def test_batch_one_is_rank_one_where_the_trace_is(name: str) -> None:
    rule, weight, rank = RULES[name](), weights(), 0
    state = rule.init(weight)
    for factors in inputs(batch=1):
        delta, state = rule.update(factors, state, weight)
        dense = delta["weight"].dense()
        if name in RANK_ONE:
            assert isinstance(delta["weight"], Outer)
        rank = max(rank, int(np.linalg.matrix_rank(dense)))
    if name in RANK_ONE:
        assert rank == 1
    elif name in ("etlp", "etlp official", "etlp per neuron", "ottt hard reset"):
        assert rank > 1


def test_a_batch_is_the_sum_of_its_rows(rule: Rule) -> None:
    weight = weights()
    whole = rule.init(weight, batch=BATCH)
    rows = [rule.init(weight) for _ in range(BATCH)]
    for factors in inputs():
        delta, whole = rule.update(factors, whole, weight)
        total = weight * 0
        for n in range(BATCH):
            one = Factors(**{k: v[n : n + 1] for k, v in vars(factors).items() if v is not None})
            part, rows[n] = rule.update(one, rows[n], weight)
            total = total + part["weight"].dense()
        np.testing.assert_allclose(delta["weight"].dense(), total, atol=1e-14)


def test_under_torch_func(rule: Rule) -> None:
    """vmap over tasks = a loop; jvp through the weights' use of the signal = finite difference."""
    weight = weights(torch)
    state = rule.init(weight, batch=BATCH)
    for factors in inputs(xp=torch):
        last = factors
        _, before = rule.update(factors, state, weight)
        state = before

    def dense(signal: torch.Tensor) -> torch.Tensor:
        fields = {**vars(last), "signal": signal}
        return rule.update(Factors(**fields), state, weight)[0]["weight"].dense()

    tasks = torch.stack([last.signal, 2 * last.signal, -last.signal])
    loop = torch.stack([dense(t) for t in tasks])
    assert torch.allclose(torch.func.vmap(dense)(tasks), loop, atol=1e-15, rtol=1e-13)
    _, tangent = torch.func.jvp(dense, (last.signal,), (last.signal,))
    finite = (dense(1.5 * last.signal) - dense(0.5 * last.signal)).detach()
    assert torch.allclose(tangent, finite, atol=1e-13)  # linear in the signal
    gradient = torch.func.grad(lambda s: dense(s).square().sum())(last.signal)
    h, probe = 1e-6, torch.ones_like(last.signal)
    up, down = (dense(last.signal + k * h * probe).square().sum() for k in (1, -1))
    assert float((gradient * probe).sum()) == pytest.approx(float(up - down) / (2 * h), abs=1e-7)


def test_traces_that_differ_by_a_hair() -> None:
    accumulate, average = Exponential(0.75), Average(0.75)
    a, b = accumulate.init(weights()), average.init(weights())
    for factors in inputs(batch=1):
        x, a = accumulate.update(factors, a)
        y, b = average.update(factors, b)
        np.testing.assert_allclose(0.25 * x, y, rtol=1e-14)
    assert x.max() > 1 > y.max() > 0


def test_accumulate_sums_and_starts_again() -> None:
    plain, summed = ottt(0.1), Plan(ottt(0.1), (Accumulate(4),))
    for n in (0, 1):
        a, b = run(plain)[0], run(summed)[0]
        for end in (4, 8, 12):
            want = sum(step[n] for step in a[end - 4 : end])
            np.testing.assert_allclose(b[end - 1][n], want, atol=1e-15)
            assert not any(step[n].any() for step in b[end - 4 : end - 1])


def test_transforms_see_factors_and_rule() -> None:
    seen = {}

    class Spy(BurnIn):
        def update(self, delta: Any, state: Any, weight: Any, **extras: Any) -> Any:
            seen.update(extras)
            return super().update(delta, state, weight, **extras)

    plan, factors = Plan(ottt(0.1), (Spy(0),)), next(inputs())
    plan.update(factors, plan.init(weights(), batch=BATCH), weights(), mine=3)
    assert seen["factors"] is factors
    assert seen["rule"] == ottt(0.1)
    assert seen["mine"] == 3


def test_nan_in_a_trace_is_named_with_layer_and_step(rule: Rule) -> None:
    _, state = run(rule)
    check_finite(state, node="hidden", step=3)
    name, value = next(((n, v) for n, v in leaves(state) if v.dtype.kind == "f"), (None, None))
    if name is None:  # sltt and the readout of ottt have no memory that could hold a NaN
        assert not list(leaves(state))
        return
    value[...] = math.nan
    with pytest.raises(Invalid, match=r"hidden: .*NaN") as caught:
        check_finite(state, node="hidden", step=31)
    assert f"{value.size} entries of {name!r} at step 31" in str(caught.value)
    assert "smaller learning rate" in str(caught.value)


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_labels_out_of_range_are_named(xp: Any) -> None:
    like = xp.asarray([0.0])
    assert one_hot(xp.asarray([2, 0]), 3, like).tolist() == [[0, 0, 1], [1, 0, 0]]
    for bad in (3, -1):
        with pytest.raises(Invalid, match=f"labels in 0..2, got {bad} at position 1"):
            one_hot(xp.asarray([2, bad]), 3, like)
    with pytest.raises(Invalid, match="integer labels"):
        one_hot(xp.asarray([0.5]), 3, like)


def test_missing_factors_are_named() -> None:
    rule, weight = ottt(0.1), weights()
    state = rule.init(weight)
    with pytest.raises(Invalid, match=r"ottt hidden: expected Factors.membrane"):
        rule.update(Factors(np.ones((1, N_I)), signal=np.ones((1, N_O))), state, weight)
    with pytest.raises(Invalid, match=r"Factors.direct"):
        rule.update(Factors(np.ones((1, N_I))), state, weight)
    with pytest.raises(Invalid, match="steps >= 1, got 0"):
        Accumulate(0)

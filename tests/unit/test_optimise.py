"""Lazy optimisers are torch's on the synapses that are written, and leave all others alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from grasp_plugin import build
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning import decolle, decolle_for, etlp_for, ottt_for, scheduled
from grasp_plugin.learning.budget import Fixed
from grasp_plugin.learning.chosen import Chosen, Sparse
from grasp_plugin.learning.deltas import Delta, Full, Outer, PerSynapse
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.optimise import SGD, Adam, Adamax, Lazy, Momentum
from grasp_plugin.learning.rule import Factors, Plan
from grasp_plugin.learning.selection import Pairs, Picked, top
from grasp_plugin.learning.states import leaves
from grasp_plugin.learning.transforms import Late
from grasp_plugin.network.presets import etlp_network
from grasp_plugin.training.rule_optimizer import RuleOptimizer

SHAPE, STEPS = (7, 9), 50
LAZY: dict[str, Callable[..., Lazy]] = {"momentum": Momentum, "adam": Adam, "adamax": Adamax}
DENSE: dict[str, tuple[Any, Callable[[list[torch.Tensor]], torch.optim.Optimizer]]] = {
    "sgd": (SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (Momentum(0.1, 0.8), lambda p: torch.optim.SGD(p, 0.1, 0.8)),
    "nesterov": (
        Momentum(0.1, 0.8, True), lambda p: torch.optim.SGD(p, 0.1, 0.8, nesterov=True)
    ),
    "adam": (Adam(0.01, 0.8, 0.95), lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.95))),
    "adamax": (Adamax(0.01, 0.8, 0.95), lambda p: torch.optim.Adamax(p, 0.01, (0.8, 0.95))),
    "adamax of DECOLLE": (
        Adamax(0.01, 0.0, 0.95), lambda p: torch.optim.Adamax(p, 0.01, (0.0, 0.95))
    ),
}  # fmt: skip


def gradients(steps: int = STEPS, seed: int = 0) -> list[np.ndarray]:
    """Of different sizes, with zeros."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.integers(-3, 2, (steps, 1, 1))
    return list(rng.normal(size=(steps, *SHAPE)) * sizes * (rng.random((steps, *SHAPE)) < 0.8))


def some(rng: np.random.Generator, k: int = 11) -> Pairs:
    flat = rng.choice(SHAPE[0] * SHAPE[1], k, replace=False)
    return Pairs(flat // SHAPE[1], flat % SHAPE[1], SHAPE)


def sparse(g: np.ndarray, pairs: Pairs, weight: Any = None) -> Delta:
    like = np.zeros(1) if weight is None else weight
    return {"weight": Sparse(-g[pairs.rows, pairs.columns], pairs, like)}


def assert_close(found: Any, wanted: Any, relative: float) -> None:
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert np.abs(found - wanted).max() <= relative * np.abs(wanted).max()


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_with_all_synapses_it_is_torchs(name: str, kind: str) -> None:
    ours, made = DENSE[name]
    start = np.random.default_rng(1).normal(size=SHAPE)
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = made([p])
    w: Any = start.copy() if kind == "numpy" else torch.tensor(start)
    state = ours.init(w)
    for t, g in enumerate(gradients(), start=1):
        p.grad = torch.tensor(g)
        optimizer.step()
        delta, state = ours.update({"weight": Full(_as(-g, w))}, state, w)
        w = w + delta["weight"].dense()
        assert type(w) is type(_as(g, w))
        assert_close(w, p.detach(), 1e-14)
        assert int(state["step"][0]) == t


def _as(g: np.ndarray, like: Any) -> Any:
    return g if isinstance(like, np.ndarray) else torch.tensor(g, dtype=like.dtype)


def test_with_some_synapses_adam_is_torchs_sparse_adam() -> None:
    """eps nearly 0, for torch's is added elsewhere."""
    rng = np.random.default_rng(2)
    w = rng.normal(size=SHAPE)
    p = torch.nn.Parameter(torch.tensor(w))
    optimizer = torch.optim.SparseAdam([p], 0.01, (0.8, 0.95), 1e-30)
    adam = Adam(0.01, 0.8, 0.95, 1e-30)
    state = adam.init(w)
    for t in range(STEPS):
        g, pairs = rng.normal(size=SHAPE), some(rng, 0 if t == 5 else 11)
        index = np.stack([pairs.rows, pairs.columns])
        p.grad = torch.sparse_coo_tensor(
            torch.tensor(index), torch.tensor(g[pairs.rows, pairs.columns]), SHAPE,
            check_invariants=False,
        )  # fmt: skip
        optimizer.step()
        delta, state = adam.update(sparse(g, pairs), state, w)
        delta["weight"].add_to(w)
        assert_close(w, p.detach(), 1e-12)
    theirs = optimizer.state[p]
    assert_close(state["mean"], theirs["exp_avg"], 1e-12)
    assert_close(state["square"], theirs["exp_avg_sq"], 1e-12)


def test_adamax_coordinate_by_coordinate() -> None:
    rng, w = np.random.default_rng(3), np.zeros(SHAPE)
    adamax = Adamax(0.01, 0.8, 0.95)
    state = adamax.init(w)
    one: dict[tuple[int, int], tuple[float, float, float]] = {}  # (w, m, u)
    for t in range(1, STEPS + 1):
        g, pairs = rng.normal(size=SHAPE), some(rng)
        delta, state = adamax.update(sparse(g, pairs), state, w)
        delta["weight"].add_to(w)
        for at in zip(pairs.rows.tolist(), pairs.columns.tolist(), strict=True):
            value, m, u = one.get(at, (0.0, 0.0, 0.0))
            m = 0.8 * m + 0.2 * float(g[at])
            u = max(0.95 * u, abs(float(g[at])) + 1e-8)
            one[at] = value - 0.01 / (1 - 0.8**t) * m / u, m, u
    wanted = np.zeros((3, *SHAPE))
    for at, values in one.items():
        wanted[(slice(None), *at)] = values
    for found, right in zip((w, state["mean"], state["largest"]), wanted, strict=True):
        assert_close(found, right, 1e-13)


@pytest.mark.parametrize("name", LAZY)
@pytest.mark.parametrize("catch_up", [False, True])
def test_g6_all_others_keep_every_bit(name: str, catch_up: bool) -> None:
    rng, w = np.random.default_rng(4), np.random.default_rng(5).normal(size=SHAPE)
    optimiser = LAZY[name](catch_up=catch_up)
    state, touched = optimiser.init(w), 0
    arrays = len(optimiser.moments) + catch_up
    for g in gradients():
        pairs = some(rng)
        before = {k: v.copy() for k, v in state.items()} | {"w": w.copy()}
        delta, state = optimiser.update(sparse(g, pairs), state, w)
        delta["weight"].add_to(w)
        touched += 2 * 11 * arrays
        for key, value in {**state, "w": w}.items():
            if value.shape == SHAPE:
                assert np.array_equal(value[~pairs.mask()], before[key][~pairs.mask()])
        assert int(state["touched"][0]) == touched
        assert all(isinstance(v, np.ndarray) for _, v in leaves(state))


@pytest.mark.parametrize("name", LAZY)
def test_caught_up_moments_are_those_of_a_dense_optimiser_that_saw_zeros(name: str) -> None:
    rng, w = np.random.default_rng(6), np.zeros(SHAPE)
    lazy, dense = LAZY[name](catch_up=True), LAZY[name]()
    one, other = lazy.init(w), dense.init(w)
    moved = False
    for g in gradients():
        pairs = some(rng)
        g = np.where(g == 0, 1.0, g)
        delta, one = lazy.update(sparse(g, pairs), one, w)
        full, other = dense.update({"weight": Full(-g * pairs.mask())}, other, w)
        for key in lazy.moments:
            at = pairs.rows, pairs.columns
            assert_close(one[key][at], other[key][at], 1e-12)
            moved |= not np.allclose(one[key], other[key])
        assert_close(delta["weight"].values, full["weight"].value[at], 1e-12)
        assert np.any(full["weight"].value[~pairs.mask()]) or int(one["step"][0]) == 1
        assert not np.any(delta["weight"].dense()[~pairs.mask()])
    assert moved  # where it was not touched, it is not yet caught up


def test_a_chosen_delta_is_its_sparse_one_and_waits_in_late() -> None:
    rng, w = np.random.default_rng(7), np.zeros(SHAPE)
    d, p = rng.normal(size=7), rng.random(9)
    picked = top(d * d, p * p, 12)
    assert isinstance(picked, Picked)
    adam = Adam()
    made = []
    for part in (chosen := Chosen(d, p, -1.0, picked, w), chosen.sparse()):
        delta, _ = adam.update({"weight": part}, adam.init(w), w)
        assert np.array_equal(delta["weight"].picked.mask(), picked.mask())
        made.append(delta["weight"].dense())
    assert np.array_equal(*made)
    late = Late(1)
    _, waiting = late.update(delta, late.init(w), w)
    out, _ = late.update(delta, waiting, w)
    assert np.array_equal(out["weight"].dense(), made[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kind_of_delta_keeps_its_kind(dtype: torch.dtype) -> None:
    left, right = torch.randn(2, 7, dtype=dtype), torch.rand(2, 9, dtype=dtype)
    w = torch.zeros(SHAPE, dtype=dtype)
    per_synapse = PerSynapse(left, torch.rand(2, *SHAPE, dtype=dtype), -1.0)
    for part in (Outer(left, right, -1.0), per_synapse, Full(torch.randn(SHAPE, dtype=dtype))):
        delta, state = Momentum(0.5, 0.0).update({"weight": part}, Momentum(0.5, 0.0).init(w), w)
        assert delta["weight"].dense().dtype == dtype
        assert torch.equal(delta["weight"].dense(), 0.5 * part.dense())
        assert state["touched"] == [2 * 63]


def test_the_rules_own_rate_is_taken_out() -> None:
    """So that GRASP sees the size of the step that is made, and moments are of the gradient."""
    rng, w = np.random.default_rng(8), np.zeros(SHAPE)
    g = rng.normal(size=SHAPE)
    for made in (SGD, Momentum, Adam, Adamax):
        plain, scaled = made(0.1), made(0.1, rule_rate=0.01)
        one, _ = plain.update({"weight": Full(-g), "bias": -g[:, 0]}, plain.init(w), w)
        two, _ = scaled.update(
            {"weight": Full(-0.01 * g), "bias": -0.01 * g[:, 0]}, scaled.init(w), w
        )
        assert_close(one["weight"].dense(), two["weight"].dense(), 1e-14)
        assert_close(one["bias"], -0.1 * g[:, 0], 1e-15)
        assert_close(two["bias"], -0.1 * g[:, 0], 1e-15)


def test_a_state_handed_in_is_given_away() -> None:
    """The price of O(k): not for torch.func, nor to go back to."""
    w = np.zeros(SHAPE)
    momentum = Momentum()
    old = momentum.init(w)
    delta, new = momentum.update({"weight": Full(np.ones(SHAPE))}, old, w)
    assert new["buffer"] is old["buffer"]
    again, _ = momentum.update({"weight": Full(np.ones(SHAPE))}, old, w)
    assert not np.array_equal(again["weight"].dense(), delta["weight"].dense())

    def inner(weight: torch.Tensor) -> torch.Tensor:
        state = momentum.init(weight)
        changed, _ = momentum.update({"weight": Full(-2 * weight)}, state, weight)
        return torch.as_tensor(changed["weight"].dense()).sum()

    with pytest.raises(Refused, match="without a graph"):
        torch.func.grad(inner)(torch.ones(SHAPE))
    with pytest.raises(Refused, match="without a graph"):
        inner(torch.ones(SHAPE, requires_grad=True))


def test_what_is_not_finite_moves_no_moment() -> None:
    w = np.zeros(SHAPE)
    g = np.ones(SHAPE)
    g[2, 3] = np.nan
    adam = Adam()
    state = adam.init(w)
    delta, after = adam.update({"weight": Full(g)}, state, w)
    assert np.isnan(delta["weight"].dense()).sum() == 1
    assert after is state
    assert not state["mean"].any()


CASES = [
    (decolle_for, "sgd", True), (decolle_for, "momentum", True), (decolle_for, "adam", True),
    (decolle_for, "adamax", True), (decolle_for, "adam", False), (etlp_for, "adam", True),
    (etlp_for, "adamax", False), (ottt_for, "adamax", True), (ottt_for, "momentum", False),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "name", "select"), CASES)
def test_the_same_weights_on_every_back_end(
    rule: Callable[..., Any], name: str, select: bool
) -> None:
    """Adam's step has the relative rounding of g, so eps must be above g's rounding."""
    pytest.importorskip("lava")
    network = etlp_network(12, 10, 3, theta=0.0, n_ref=0)
    options = {"pipelined": True} if rule is ottt_for else {}
    made = {"sgd": SGD(0.01), "momentum": Momentum(0.01), "adam": Adam(eps=1e-6)}
    made["adamax"] = Adamax(eps=1e-6)
    optimiser = made[name]
    first = (GRASP(Fixed(0.05), "magnitude"),) if select else ()
    learning = scheduled(rule(network, 3, 1.0, **options), *first, optimiser)
    spikes = (np.random.default_rng(0).random((60, 12)) < 0.4) * 2.0
    learned, counts = {}, {}
    for backend in ("fused", "torch", "lava"):
        with build(network, backend, plans=learning) as session:
            for _ in range(2):  # the moments outlive a sequence
                session.learn(spikes, 1)
            learned[backend] = session.weights()
            state = _plan_state(session, backend)
        counts[backend] = {k: int(v[0]) for k, v in state.items() if v.shape == (1,)}
    for weight in learned["fused"]:
        start = network.weights().get(weight)
        assert start is None or np.abs(learned["fused"][weight] - start).max() > 1e-6
        for backend in ("torch", "lava"):
            assert np.abs(learned[backend][weight] - learned["fused"][weight]).max() < 1e-12
    assert counts["fused"] == counts["torch"] == counts["lava"]
    assert counts["fused"]["step"] == 120
    assert (counts["fused"]["touched"] > 0) == (name != "sgd")


def _plan_state(session: Any, backend: str) -> Any:
    """The optimiser's state on the input weights."""
    if backend == "lava":
        state = session._graph.plastic["input->hidden"].state
    elif backend == "fused":
        state = session._steps._state["plans"]["input->hidden"]
    else:
        state = session.online.state["plans"]["input->hidden"]
    return next(s for s in reversed([*state["transforms"].values()]) if "touched" in s)


def test_in_a_rule_optimizer() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 5, dtype=torch.float64))
    plan = Plan(decolle(1.0), (GRASP(Fixed(0.2), "magnitude"), Adam(0.01)))
    optimizer = RuleOptimizer([("w", weight)], {"w": plan})
    start = weight.detach().clone()
    for _ in range(3):
        row = torch.rand(1, 5, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
        optimizer.step({"w": Factors(row[0], row[1], row[1])})
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    assert 0 < int((weight != start).sum()) <= 12
    assert int(saved["rules"]["w"]["transforms"]["1"]["step"][0]) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(-1.0), "learning_rate >= 0"),
        (lambda: Adam(float("nan")), "learning_rate >= 0"),
        (lambda: Momentum(rule_rate=0.0), "rule_rate > 0"),
        (lambda: Momentum(0.1, 1.0), r"expected momentum in \[0, 1\)"),
        (lambda: Adam(b1=1.0), r"expected b1 in \[0, 1\)"),
        (lambda: Adamax(b2=-0.1), r"expected b2 in \[0, 1\)"),
        (lambda: Adam(eps=0.0), "expected eps > 0"),
        (lambda: Adamax(eps=float("inf")), "expected eps > 0"),
    ],
)
def test_bad_input(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        make()

"""GRASP in Loihi's integers: which synapses, by what score, and the same bits as the dense rule."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import plastic_cases as cases
import pytest

from grasp_plugin import build, quantise
from grasp_plugin.errors import Refused
from grasp_plugin.learning import (
    GRASP,
    Accumulate,
    BurnIn,
    Factors,
    Late,
    Plan,
    ThreeFactor,
    decolle_for,
    ottt_for,
    scheduled,
)
from grasp_plugin.learning.budget import (
    Budget,
    Coverage,
    Everything,
    Fixed,
    Marginal,
    NonZero,
    Sharpness,
)
from grasp_plugin.learning.fixed import FixedSynapses
from grasp_plugin.learning.fixed_plan import FixedPlan, fixed_plan
from grasp_plugin.learning.rule import Rule
from grasp_plugin.learning.states import leaves
from grasp_plugin.learning.traces import CurrentExponential, Exponential, Instant
from grasp_plugin.network import weights as W
from grasp_plugin.network.weights import Conv

log = logging.getLogger(__name__)
UNIT, WORD = 1 / 64, 2**32
ALL = [Fixed(1.0), NonZero(), Everything()]
CONV = Conv(np.zeros((3, 2, 2, 2)), (2, 4, 3), (1, 1), ((0, 0), (0, 1)), (1, 1))


def bare(trace: Any = None, rate: float = 0.05) -> ThreeFactor:
    return ThreeFactor(trace or Exponential(0.875), None, rate, name="w")


def plan_of(*transforms: Any, trace: Any = None, rate: float = 0.05) -> FixedPlan:
    plan = Plan(bare(trace, rate), transforms)
    return fixed_plan("w", plan, UNIT, error_max=1.5, rate_max=1.0, seed=3)


def given(steps: int = 60, inputs: int = 9, outputs: int = 7) -> tuple[Any, Any]:
    rng = np.random.default_rng(2)
    return (rng.random((steps, inputs)) < 0.2).astype(float), rng.normal(size=(steps, outputs)) / 3


def start(shape: tuple[int, int], order: Any = "C") -> Any:
    rng = np.random.default_rng(5)
    return np.array(2 * rng.integers(-20, 20, shape), np.int16, order=order)


def factors(x: Any, d: Any) -> Factors:
    return Factors(x[None], signal=d[None], curvature=lambda u, kind="gn": 0.3 * u)


def run(plan: FixedPlan, order: Any = "C", conv: Conv | None = None) -> FixedSynapses:
    shape = (9, 7) if conv is None else conv.shape[::-1]
    pre, error = given(60, *shape)
    kernel = (7, 9) if conv is None else (len(conv.kernel), conv.kernel[0].size)
    s = FixedSynapses(plan, start(kernel, order), conv)
    for x, d in zip(pre, error, strict=True):
        s.step(factors(x, d))
    s.flush()
    return s


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("late", [0, 3])
@pytest.mark.parametrize("budget", ALL, ids=str)
def test_all_writes_are_the_dense_rule_bit_for_bit(budget: Budget, late: int, order: Any) -> None:
    after = (Late(late),) if late else ()
    for trace in (None, Instant(), CurrentExponential(0.9, 0.5)):
        for score in ("magnitude", "random", "change"):
            dense = run(plan_of(BurnIn(5), *after, trace=trace), order)
            some = run(plan_of(BurnIn(5), GRASP(budget, score), *after, trace=trace), order)
            assert np.array_equal(some.weights, dense.weights)
            assert some.clipped == dense.clipped
            assert np.abs(dense.weights - start((7, 9))).max() > 10


@pytest.mark.parametrize("score", ["magnitude", "change"])
@pytest.mark.parametrize("budget", ALL, ids=str)
def test_all_writes_of_a_convolution_are_the_dense_rule(budget: Budget, score: str) -> None:
    dense = run(plan_of(rate=0.02), conv=CONV)
    some = run(plan_of(GRASP(budget, score), rate=0.02), conv=CONV)
    assert np.array_equal(some.weights, dense.weights)
    assert np.abs(dense.weights - start((3, 8))).max() > 10


@pytest.mark.parametrize("conv", [None, CONV], ids=["dense", "convolution"])
@pytest.mark.parametrize("rate", [0.05, 0.002])
def test_what_rounds_to_nothing_is_never_issued_by_change(rate: float, conv: Conv | None) -> None:
    """All changes are the dense rule bit for bit; the counts beside them are those of all."""
    after = (BurnIn(5), GRASP(NonZero(), "change"), Late(2))
    changes = run(plan_of(*after, rate=rate), conv=conv).transforms
    live = run(plan_of(BurnIn(5), GRASP(NonZero(), "magnitude"), Late(2), rate=rate), conv=conv)
    known = live.transforms
    assert changes is not None
    assert known is not None
    assert np.array_equal(run(plan_of(*after, rate=rate), conv=conv).weights, live.weights)
    assert changes["issued"][0] == changes["changed"][0] == known["changed"][0] > 0
    assert changes["issued"][0] < known["issued"][0]
    for name in ("dense", "dense_nz", "steps", "dense_products", "dense_nz_products"):
        assert changes[name] == known[name]
    assert changes["products"] == known["dense_nz_products"]
    assert changes["overhead"] >= known["overhead"] + (conv is None)


@pytest.mark.parametrize("late", [0, 3])
@pytest.mark.parametrize("edge", [254, -256])
@pytest.mark.parametrize("conv", [None, CONV], ids=["dense", "convolution"])
def test_what_meets_its_limit_is_never_issued_by_change(
    conv: Conv | None, edge: int, late: int
) -> None:
    """At the limits, too, all changes are the dense rule, and every issued write is a change."""
    begun = np.full_like(start((7, 9) if conv is None else (3, 8)), edge)
    made = {}
    for score in ("change", "magnitude"):
        plan = plan_of(GRASP(NonZero(), score), *((Late(late),) if late else ()), rate=0.3)
        s = made[score] = FixedSynapses(plan, begun.copy(), conv)
        for x, d in zip(*given(60, *((9, 7) if conv is None else conv.shape[::-1])), strict=True):
            s.step(factors(x, d))
        s.flush()
    assert np.array_equal(made["change"].weights, made["magnitude"].weights)
    counts, known = made["change"].transforms, made["magnitude"].transforms
    assert counts is not None
    assert known is not None
    assert counts["issued"][0] == counts["changed"][0] == known["changed"][0] > 0
    assert made["magnitude"].clipped["weights"] > 0


class Spy(GRASP):
    """Keeps what it picked; `seen` is a class attribute, since GRASP is frozen."""

    seen: Any = []  # noqa: RUF012

    def update(self, delta: Any, state: Any, weight: Any, **extras: Any) -> Any:
        out = super().update(delta, state, weight, **extras)
        self.seen.append((out[0]["weight"].picked, delta["weight"], extras["factors"]))
        return out


@pytest.fixture
def seen() -> list[Any]:
    Spy.seen = []
    return Spy.seen  # type: ignore[no-any-return]


CHOICES = [
    GRASP(Fixed(0.1), "magnitude"), GRASP(Fixed(0.2), "random"), GRASP(Fixed(0.3), "pred_decrease"),
    GRASP(Fixed(0.3), "magnitude", "row"), GRASP(Fixed(0.3), "random", "block", (2, 3)),
    GRASP(Sharpness(0.1), "error", "row"), GRASP(Fixed(0.01), "change"),
]  # fmt: skip


@pytest.mark.parametrize("conv", [None, CONV], ids=["dense", "convolution"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("grasp", CHOICES, ids=str)
def test_picked_synapses_change_as_the_dense_rule_changes_them(
    grasp: GRASP, order: Any, conv: Conv | None, seen: list[Any]
) -> None:
    if conv is not None and (grasp.bends or grasp.score == "error"):
        return  # refused, see below
    spy = Spy(**vars(grasp))
    shape = (7, 9) if conv is None else (3, 8)
    pre, error = given(60, *((9, 7) if conv is None else conv.shape[::-1]))
    some = FixedSynapses(plan_of(spy, rate=0.1), start(shape, order), conv)
    dense = FixedSynapses(plan_of(rate=0.1), start(shape, order), conv)
    issued = changed = differ = 0
    for x, d in zip(pre, error, strict=True):
        before = some.weights.copy()
        dense.weights[...] = before
        some.step(factors(x, d)), dense.step(factors(x, d))
        mask = seen[-1][0].mask()
        assert np.array_equal(some.weights[mask], dense.weights[mask])
        assert np.array_equal(some.weights[~mask], before[~mask])
        issued, changed = issued + mask.sum(), changed + np.sum(some.weights != before)
        differ += int(np.sum(some.weights != dense.weights))
    assert some.transforms is not None
    assert int(some.transforms["issued"][0]) == issued > 0
    assert int(some.transforms["changed"][0]) == changed > 0
    assert changed <= issued
    assert differ > 0


# A reference in plain Python: traces, errors, selection and writes


def mix(x: int) -> int:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * factor % WORD
    return x ^ (x >> 16)


def word(seed: int, step: int, stream: int, index: int) -> int:
    return mix((mix(mix(4 * step + stream) ^ seed) + index * 0x9E3779B9) % WORD)


def best(a: list[float], q: list[float], k: int) -> list[tuple[int, int]]:
    """The k pairs of largest a_o q_i > 0; ties by the rank of the row, then of the column."""
    rows = sorted(range(len(a)), key=lambda o: -a[o])
    columns = sorted(range(len(q)), key=lambda i: -q[i])
    pairs = [(o, i) for o in rows for i in columns if a[o] * q[i] > 0]
    return sorted(pairs, key=lambda oi: -a[oi[0]] * q[oi[1]])[:k]


def most_changed(add: dict[tuple[int, int], int], x: Any, y: Any, k: int) -> list[tuple[int, int]]:
    """The k pairs of largest |y_o x_i add_oi| > 0; ties by row, then by column."""
    worth = {(o, i): abs(y[o] * x[i] * change) for (o, i), change in add.items()}
    return sorted((oi for oi in worth if worth[oi]), key=lambda oi: (-worth[oi], oi))[:k]


def reference(
    p: FixedPlan, share: float, w: Any, pre: Any, error: Any, score: str = "magnitude"
) -> tuple[Any, int, int]:
    """(weights, writes issued, writes that changed) with a fixed share, no late."""
    weights = [[int(v) for v in row] for row in w]
    x, owed, issued, changed = [0] * len(w[0]), 0.0, 0, 0
    for step, (spikes, d) in enumerate(zip(pre, error, strict=True), 1):
        for i, s in enumerate(spikes):
            noise = word(p.seed, step, 1, i) % 4096
            x[i] = min(127, (x[i] * p.decays[0] + noise) // 4096 + p.impulses[0] * int(s))
        y = [0] * len(d)
        for o, value in enumerate(d if step > p.burn_in else ()):
            raw = -p.y_scale * value + (word(p.seed, step, 0, o) >> 8) / 2**24
            y[o] = min(127, max(-128, int(np.floor(raw))))
        owed += share * w.size
        k = int(owed + 1e-9)
        owed -= k
        add, half = {}, 2 ** (p.shift + 1)
        for o, i in np.ndindex(len(y), len(x)):
            noise = word(p.seed, step, 3, o * len(x) + i) % half
            to = weights[o][i] + 2 * ((x[i] * y[o] + noise) // half)
            add[o, i] = min(254, max(-256, to)) - weights[o][i]
        picked = best([(-v / p.y_scale) ** 2 for v in y], [(p.gain * v) ** 2 for v in x], k)
        for o, i in picked if score == "magnitude" else most_changed(add, x, y, k):
            weights[o][i] += add[o, i]
            issued, changed = issued + 1, changed + (add[o, i] != 0)
    return np.array(weights), issued, changed


@pytest.mark.parametrize("rate", [0.2, 0.005])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("score", ["magnitude", "change"])
def test_the_integers_are_those_of_a_reference_in_plain_python(
    score: str, share: float, rate: float
) -> None:
    plan = plan_of(BurnIn(10), GRASP(Fixed(share), score), rate=rate)
    pre, error = given()
    want, issued, changed = reference(plan, share, start((7, 9)), pre, error, score)
    s = run(plan)
    assert s.transforms is not None
    assert np.array_equal(s.weights, want)
    assert int(s.transforms["issued"][0]) == issued
    assert int(s.transforms["changed"][0]) == changed
    assert s.transforms["steps"][0] == 60
    assert np.any(want != start((7, 9)))
    log.info("share %.2f, rate %.3f: %d issued, %d changed", share, rate, issued, changed)


def test_scores_are_in_the_units_of_the_float_rule(seen: list[Any]) -> None:
    """eta d p of the integers is the change of a weight, in float units; g x is near the trace."""
    for trace in (Exponential(0.875), CurrentExponential(0.9, 0.5), Instant()):
        plan = plan_of(Spy(Fixed(0.3), "magnitude"), trace=trace)
        s = FixedSynapses(plan, start((7, 9)))
        rule, weight = plan.rule, np.zeros((7, 9))
        state, off, size = rule.init(weight), [], []
        for x, d in zip(*given(), strict=True):
            s.step(factors(x, d))
            delta, state = rule.update(factors(x, d), state, weight)
            part = seen[-1][1]
            y = -part.left[0] * plan.y_scale
            assert np.allclose(y, np.round(y), atol=1e-9)
            wrote = np.outer(y, part.right[0] / plan.gain) * UNIT / 2**plan.shift
            assert np.allclose(part.dense(), wrote, rtol=1e-12, atol=1e-15)
            off.append(part.dense() - delta["weight"].dense())
            size.append(delta["weight"].dense())
        error = np.sqrt(np.mean(np.square(off)) / np.mean(np.square(size)))
        log.info("%s: off by %.3f of the float delta", trace, error)
        assert error < 0.1


@pytest.mark.parametrize("trace", [Exponential(0.875), CurrentExponential(0.9, 0.5)], ids=str)
@pytest.mark.parametrize("score", ["magnitude", "pred_decrease"])
def test_the_choice_is_nearly_that_of_floats(score: str, trace: Any, seen: list[Any]) -> None:
    rng = np.random.default_rng(7)
    pre = (rng.random((80, 60)) < 0.15).astype(float)
    error, share = rng.normal(size=(80, 40)) / 3, 0.05
    spy = Spy(Fixed(share), score)
    plan = plan_of(spy, trace=trace, rate=0.02)
    s = FixedSynapses(plan, np.zeros((40, 60), np.int16))
    floats = Plan(plan.rule, (GRASP(Fixed(share), score),))
    weight, shares = np.zeros((40, 60)), []
    state = floats.init(weight)
    for x, d in zip(pre, error, strict=True):
        s.step(factors(x, d))
        delta, state = floats.update(factors(x, d), state, weight)
        wanted, found = delta["weight"].picked.mask(), seen[-1][0].mask()
        if wanted.any():
            shares.append((wanted & found).sum() / wanted.sum())
    log.info("%s, %s: %.3f of the choice is that of floats", score, trace, np.mean(shares))
    assert np.mean(shares) > 0.9


@pytest.mark.parametrize("score", ["magnitude", "pred_decrease", "random"])
def test_budgets_hold(score: str) -> None:
    rng = np.random.default_rng(1)
    budgets = {
        "fixed": (Fixed(0.05), 0.01), "marginal": (Marginal(0.05), 0.15),
        "sharp": (Sharpness(0.05, follows="gradient"), 0.15), "few": (Fixed(1 / 1000), 0.05),
    }  # fmt: skip
    for name, (budget, tolerance) in budgets.items():
        s = FixedSynapses(plan_of(GRASP(budget, score), rate=0.02), np.zeros((20, 30), np.int16))
        for _ in range(800):
            x = (rng.random(30) < 0.3).astype(float)
            s.step(factors(x, rng.normal(size=20) / 3))
        assert s.transforms is not None
        share = float(s.transforms["issued"][0] / s.transforms["dense"][0])
        log.info("%s, %s: %.4f of %.4f", score, name, share, budget.share)  # type: ignore[attr-defined]
        assert share == pytest.approx(budget.share, rel=tolerance)  # type: ignore[attr-defined]


def test_the_choice_is_made_at_the_step_of_the_error_and_kept_while_it_waits(
    seen: list[Any],
) -> None:
    pre, error = given()
    plain = FixedSynapses(plan_of(Spy(Fixed(0.1), "magnitude"), rate=0.2), start((7, 9)))
    late = FixedSynapses(plan_of(Spy(Fixed(0.1), "magnitude"), Late(3), rate=0.2), start((7, 9)))
    history = []
    for t, (x, d) in enumerate(zip(pre, error, strict=True)):
        wrote = plain.step(factors(x, d)), late.step(factors(x, d))
        assert np.array_equal(seen[-1][0].mask(), seen[-2][0].mask())
        history.append((plain.weights.copy(), wrote[0]))
        assert np.array_equal(late.fresh, plain.weights)
        if t >= 3:
            assert np.array_equal(late.weights, history[t - 3][0])
            assert wrote[1] == history[t - 3][1]
    late.flush()
    assert np.array_equal(late.weights, plain.weights)
    one, two = (dict(leaves(s.transforms or {})) for s in (plain, late))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert one["changed"][0] > 0


def test_its_state_outlives_a_rest_and_nothing_is_issued_in_burn_in() -> None:
    s = FixedSynapses(plan_of(BurnIn(8), GRASP(Fixed(0.004), "magnitude")), start((7, 9)))
    assert FixedSynapses(plan_of(), start((7, 9))).transforms is None
    assert s.transforms is not None
    pre, error = given()
    for _ in range(2):
        s.rest()
        for t, (x, d) in enumerate(zip(pre, error, strict=True)):
            issued = int(s.transforms["issued"][0])
            s.step(factors(x, d))
            assert t >= 8 or int(s.transforms["issued"][0]) == issued
        s.flush()
    assert s.transforms["steps"][0] == 120
    assert 0 < s.transforms["issued"][0] <= 0.004 * 63 * 120


# In a network


def integers(net: Any, learning: Any) -> Any:
    return quantise(net, plastic=list(learning.plans))


@pytest.mark.parametrize("learn", [decolle_for, ottt_for])
@pytest.mark.parametrize("score", ["magnitude", "random"])
def test_all_writes_in_a_network_are_the_dense_rule(learn: Any, score: str) -> None:
    net = cases.deep(np.random.default_rng(3))
    plain = learn(net, cases.OUT, 0.05)
    x = (np.random.default_rng(4).random((80, cases.IN)) < 0.3).astype(float)
    kept = []
    for learning in (plain, scheduled(plain, GRASP(Fixed(1.0), score))):
        with build(integers(net, learning), "fused", plans=learning) as session:
            session.learn(x, 1)
            kept.append(session.weights())
    assert cases.gap(kept[:1], kept[1:]) == 0
    assert max(cases.moved(integers(net, plain), kept[0]).values()) >= 2


def test_curvature_in_integers_is_that_of_the_weights_in_float_units(seen: list[Any]) -> None:
    """OTTT, in -> a -> b -> o and a -> o: M e from margins and weights, by hand."""
    net = cases.deep(np.random.default_rng(3), readout={"node": "LI", "reset": None})
    frozen = ["a->b", "b->o", "a->o", "ba", "bb"]
    learning = ottt_for(net, cases.OUT, 0.02, frozen=frozen)
    learning = scheduled(learning, Spy(Fixed(0.1), "pred_decrease"))
    whole = integers(net, learning)
    w = {
        k.name: np.array(W.values(k.weight)) * 2.0**k.weight_exp / whole[k.target].scale
        for k in whole.projections
    }
    x = (np.random.default_rng(4).random((30, cases.IN)) < 0.3).astype(float)
    with build(whole, "fused", plans=learning) as session:
        kept: list[dict[str, Any]] = []
        steps = session._steps  # type: ignore[attr-defined]
        step = steps.step
        steps.step = lambda seen_, *more: (kept.append({"seen": seen_}), step(seen_, *more))[1]
        session.learn(x, 1)
    slope = learning.plans["in->a"].rule.surrogate.first  # type: ignore[attr-defined]
    checked = 0
    for entry, (_, part, given_) in zip(kept, seen, strict=True):
        margin = entry["seen"].margin
        e = learning.plans["in->a"].rule.error(given_)  # type: ignore[attr-defined]
        a, b = slope(margin["a"]), slope(margin["b"])
        top = (a * e) @ w["a->o"].T + (b * ((a * e) @ w["a->b"].T)) @ w["b->o"].T
        p = np.exp(margin["o"] - margin["o"].max())
        p /= p.sum()
        back = p * top - p * (p * top).sum()
        wanted = a * (back @ w["a->o"] + (b * (back @ w["b->o"])) @ w["a->b"])
        got = given_.curvature(part.left)
        assert np.allclose(got, wanted, rtol=1e-9, atol=1e-15)
        assert np.allclose(given_.curvature(e), wanted, rtol=1e-9, atol=1e-15)
        checked += np.abs(wanted).max() > 1e-6
        assert given_.curvature.macs > 0
    assert checked > 10


@pytest.mark.parametrize("budget", [Fixed(0.1), Marginal(0.1), Coverage(0.5), Sharpness(0.1)])
@pytest.mark.parametrize("score", ["pred_decrease", "abs_gHg", "magnitude", "error", "change"])
@pytest.mark.parametrize("curvature", ["gn", "full", "fd_smooth", "diag"])
def test_every_choice_runs(score: str, budget: Budget, curvature: str) -> None:
    net = cases.two_layers(np.random.default_rng(3))
    grasp = GRASP(budget, score, curvature=curvature, series=8)
    learning = scheduled(decolle_for(net, 3, 0.4), grasp)
    x = (np.random.default_rng(4).random((25, cases.IN)) < 0.3).astype(float)
    with build(integers(net, learning), "fused", plans=learning) as session:
        session.learn(x, 1)
        state = session._steps.synapses["in->h"].transforms  # type: ignore[attr-defined]
    assert 0 < state["issued"][0] < state["dense"][0]
    assert np.all(np.isfinite(state["sharpness"]))


REFUSED: list[tuple[Rule, str]] = [
    (Plan(bare(), (Accumulate(3),)), "expected BurnIn, GRASP or Late in fixed point, got Accum"),
    (Plan(bare(), (GRASP(), GRASP())), "expected BurnIn, then one GRASP, then Late, got GRASP, GR"),
    (Plan(bare(), (Late(1), GRASP())), "then Late, got Late, GRASP"),
    (Plan(bare(), (GRASP(), BurnIn(1))), "then Late, got GRASP, BurnIn"),
]


@pytest.mark.parametrize(("plan", "message"), REFUSED)
def test_refused(plan: Rule, message: str) -> None:
    with pytest.raises(Refused, match=message):
        fixed_plan("w", plan, UNIT, error_max=1.0)


@pytest.mark.parametrize(
    "grasp", [GRASP(), GRASP(Fixed(0.1), "error"), GRASP(Sharpness(0.1), "magnitude")], ids=str
)
def test_a_convolution_has_no_factors(grasp: GRASP) -> None:
    with pytest.raises(Refused, match="a sum has no factors and no curvature"):
        FixedSynapses(plan_of(grasp), start((3, 8)), CONV)
    net = cases.convolution(np.random.default_rng(0))
    learning = scheduled(decolle_for(net, 3, 0.2, frozen=["bh"]), grasp)
    with pytest.raises(Refused, match=r"in->h: .*Use score='magnitude' or 'random'"):
        build(integers(net, learning), "fused", plans=learning)


def test_a_convolution_counts_every_product(seen: list[Any]) -> None:
    s = run(plan_of(Spy(Fixed(0.2), "magnitude"), rate=0.02), conv=CONV)
    assert s.transforms is not None
    positions = CONV.shape[0] // 3
    assert s.transforms["products"][0] == 60 * positions * 24
    assert s.transforms["issued"][0] <= 0.2 * 60 * 24
    for picked, part, _ in seen:
        best_ = np.sort(np.abs(part.value), axis=None)[-picked.size :] if picked.size else []
        assert np.allclose(np.sort(np.abs(part.value[picked.mask()])), best_)


def test_a_rule_that_learns_nothing_writes_nothing() -> None:
    for conv in (None, CONV):
        s = run(plan_of(GRASP(Fixed(0.5), "magnitude"), rate=0.0), conv=conv)
        assert s.transforms is not None
        assert s.transforms["issued"][0] == 0
    still = replace(plan_of(GRASP(Everything(), "magnitude")), y_scale=0.0)
    assert np.array_equal(run(still).weights, start((7, 9)))

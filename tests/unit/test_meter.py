"""`UpdateMeter`: what it reads is what was written, and what the dense rule would have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plastic_cases as cases
import pytest

from grasp_plugin import build, quantise
from grasp_plugin.errors import Invalid
from grasp_plugin.learning import (
    GRASP,
    Plan,
    Transform,
    UpdateMeter,
    Updates,
    decolle_for,
    etlp_for,
    ottt_for,
    scheduled,
)
from grasp_plugin.learning.budget import (
    Budget,
    Coverage,
    Every,
    Everything,
    Fixed,
    Given,
    Marginal,
    NonZero,
    RandomSteps,
    Sharpness,
)
from grasp_plugin.learning.deltas import Delta
from grasp_plugin.learning.meter import Series
from grasp_plugin.learning.optimise import Adam, Momentum
from grasp_plugin.learning.spec import Learning
from grasp_plugin.learning.states import State
from grasp_plugin.learning.updates import Reading, Work
from grasp_plugin.network.network import Network
from grasp_plugin.network.presets import etlp_network
from grasp_plugin.plot import schedule_figure, writes_figure

RULES: dict[str, Callable[..., Learning]] = {
    "decolle": decolle_for, "etlp": etlp_for, "ottt": ottt_for,
}  # fmt: skip
BUDGETS = [
    Fixed(0.1), Marginal(0.1), Coverage(0.5), Sharpness(0.1, follows="gradient"), Every(3),
    RandomSteps(0.3), Given((3, 0, 20)), NonZero(),
]  # fmt: skip


def network() -> Network:
    return etlp_network(12, 10, 3, theta=0.0, n_ref=0)


def spikes(steps: int = 40, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((steps, 12)) < 0.4) * 2.0


class Kept(Transform):
    """Keeps the last delta that passed."""

    last: Any = None

    def init(self, weight: Any, *, batch: int = 1) -> State:
        return {}

    def update(self, delta: Delta, state: State, weight: Any, **extras: Any) -> tuple[Delta, State]:
        self.last = delta["weight"]
        return delta, state


def changes(learning: Learning, steps: int = 40) -> dict[str, list[tuple[int, int, int]]]:
    """(weights that a step changed, writes that it was metered, those too small for any bit of
    their weight), by plan and step; on fused, float64."""
    found: dict[str, list[tuple[int, int, int]]] = {name: [] for name in learning.plans}
    kept = {name: Kept() for name in learning.plans}
    plans = {n: Plan(p.rule, (*p.transforms, kept[n])) for n, p in learning.plans.items()}  # type: ignore[attr-defined]
    with build(network(), "fused", plans=replace(learning, plans=plans)) as session:
        meter, inner = UpdateMeter(session), session._steps  # type: ignore[attr-defined]
        step = inner.step

        def watched(*given: Any) -> None:
            weights, before = session.weights(), meter.read()
            step(*given)
            after = meter.since(before)
            for name, new in session.weights().items():
                counted, delta = after[name], kept[name].last.dense()
                assert counted is not None
                assert counted.steps == 1
                lost = (delta != 0) & (weights[name] + delta == weights[name])
                changed = np.count_nonzero(new - weights[name])
                found[name].append((changed, counted.issued, np.count_nonzero(lost)))

        inner.step = watched
        session.learn(spikes(steps), 1)
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("score", ["magnitude", "pred_decrease", "random"])
def test_g7_the_meter_counts_the_weights_that_changed(
    rule: str, budget: Budget, score: str
) -> None:
    """Every write with a gradient changes its weight, but for those below its last bit."""
    found = changes(scheduled(RULES[rule](network(), 3, 0.05), GRASP(budget, score)))
    triples = [triple for plan in found.values() for triple in plan]
    assert all(changed == issued - lost for changed, issued, lost in triples)
    assert sum(changed for changed, _, _ in triples) >= 10
    if rule != "ottt":  # whose errors fall to 1e-25
        assert not any(lost for _, _, lost in triples)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "grasp",
    [GRASP(Everything(), "magnitude"), GRASP(Fixed(0.2), "magnitude", "row"),
     GRASP(Fixed(0.2), "magnitude", "column"), GRASP(Fixed(0.2), "random", "block", block=(4, 3)),
     GRASP(Marginal(0.3), "error", "row")],
    ids=str,
)  # fmt: skip
def test_g7_idle_writes_are_counted_and_change_nothing(rule: str, grasp: GRASP) -> None:
    found = changes(scheduled(RULES[rule](network(), 3, 0.05), grasp))
    triples = [triple for plan in found.values() for triple in plan]
    assert all(changed + lost <= issued for changed, issued, lost in triples)
    assert any(changed for changed, _, _ in triples)
    if grasp.granularity in ("weight", "row"):  # silent inputs
        assert any(0 < changed + lost < issued for changed, issued, lost in triples)


def read(learning: Learning, backend: str = "fused", steps: int = 40, **given: Any) -> Reading:
    with build(given.pop("net", network()), backend, plans=learning, **given) as session:
        session.learn(spikes(steps), 1)
        return UpdateMeter(session).read()


@pytest.mark.parametrize("rule", RULES)
def test_the_dense_rule_scheduled_is_its_own_baseline(rule: str) -> None:
    plain = RULES[rule](network(), 3, 0.05)
    full = read(scheduled(plain, GRASP(Everything(), "magnitude"))).total
    live = read(scheduled(plain, GRASP(NonZero(), "magnitude"))).total
    assert full.share == 1
    assert full.issued == full.dense == full.products == full.dense_products
    assert live.share_nz == 1
    assert live.issued == live.dense_nz == live.products == live.dense_nz_products < live.dense
    assert replace(full.work, overhead=0) == full.dense_work
    assert replace(live.work, overhead=0) == live.dense_nz_work
    assert full.dense_nz_work == live.dense_nz_work
    assert full.overhead > 0


def test_nothing_would_have_been_written_in_burn_in() -> None:
    learning = scheduled(decolle_for(network(), 3, 0.05, burn_in=10), GRASP(NonZero(), "magnitude"))
    assert read(learning, steps=10).total.dense_nz == 0
    total = read(learning, steps=30).total
    assert total.dense_nz == total.issued > 0


def test_optimiser_state_is_counted_by_its_own_counter() -> None:
    """2 k s: one array of Momentum, two of Adam, three with the steps of the last use."""
    plain = decolle_for(network(), 3, 1.0)
    for optimiser, arrays in ((Momentum(0.1), 1), (Adam(0.01), 2), (Adam(0.01, catch_up=True), 3)):
        learning = scheduled(plain, GRASP(Fixed(0.05), "magnitude"), optimiser)
        for update in read(learning).plans.values():
            assert update is not None
            assert update.touched == 2 * arrays * update.issued > 0
            assert update.dense_touched == 2 * arrays * update.dense
            assert update.work.accesses == 2 * (1 + arrays) * update.issued
            assert update.dense_nz_work.accesses == 2 * (1 + arrays) * update.dense_nz


def test_batches_save_writes_and_no_products() -> None:
    """On torch, 3 samples at once for 7 steps, then 1 for 5: only the last forms few products."""
    learning = scheduled(etlp_for(network(), 3, 0.05), GRASP(Fixed(0.05), "pred_decrease"))
    x = np.stack([spikes(7, seed) for seed in range(3)], axis=1)
    with build(network(), "torch", plans=learning) as session:
        meter = UpdateMeter(session)
        session.learn(x, np.arange(3))
        batch = meter.read()
        session.learn(spikes(5), 1)
        one = meter.since(batch)
    for name, size in (("input->hidden", 120), ("hidden->hidden", 100)):
        first, last = batch[name], one[name]
        assert first is not None
        assert last is not None
        assert (first.steps, first.dense, first.dense_products) == (7, 7 * size, 21 * size)
        assert first.products == 2 * 21 * size  # and again for H g
        assert first.dense_nz_products == first.dense_products
        assert (last.steps, last.dense, last.dense_products) == (5, 5 * size, 5 * size)
        assert last.products == last.issued <= size
        assert last.dense_nz_products == last.dense_nz


@pytest.mark.parametrize("precision", ["float", "loihi"])
def test_kernels_form_every_position(precision: str) -> None:
    """A weight that positions share is one write and a product for each, in floats and integers."""
    net = cases.convolution(np.random.default_rng(3))
    learning = scheduled(decolle_for(net, 3, 0.1), GRASP(Fixed(0.03), "magnitude"), only=["in->h"])
    x = (np.random.default_rng(4).random((10, 2, 7, 6)) < 0.4).astype(float)
    if precision == "loihi":  # which refuses a bias that positions share
        learning = replace(
            learning, plans={n: p for n, p in learning.plans.items() if "b" not in n}
        )
        net = quantise(net, plastic=list(learning.plans))
    with build(net, "fused", plans=learning) as session:
        session.learn(x, 1)
        update = UpdateMeter(session).read()["in->h"]
        size = session.weights()["in->h"].size
    assert update is not None
    positions = net["h"].size // net["h"].shape[0]
    assert (update.steps, update.dense) == (10, 10 * size)
    assert update.products == update.dense_products == 10 * size * positions
    assert update.dense_nz_products == update.dense_products
    assert 0 < update.issued <= 0.03 * 10 * size


def test_phases_add_up() -> None:
    learning = scheduled(decolle_for(network(), 3, 0.05), GRASP(Fixed(0.05), "magnitude"))
    with build(network(), "fused", plans=learning) as session:
        meter = UpdateMeter(session)
        assert meter.read().total.issued == 0
        assert math.isnan(meter.read().total.share)
        assert math.isnan(meter.read().total.share_nz)
        session.learn(spikes(20), 1)
        first = meter.read()
        session.learn(spikes(30), 2)
        second, both = meter.since(first), meter.read()
    for name, update in both.plans.items():
        one, two = first[name], second[name]
        assert one is not None
        assert two is not None
        assert update is not None
        assert (one.steps, two.steps, update.steps) == (20, 30, 50)
        assert one.issued + two.issued == update.issued
        assert one.overhead + two.overhead == update.overhead
    assert both.total.issued == sum(u.issued for u in both.plans.values() if u)
    with pytest.raises(Invalid, match="expected a reading of up to 20 steps"):
        first.since(both)
    with pytest.raises(Invalid, match="expected a reading of"):
        first.since(Reading({"input->hidden": None}))


def test_a_plan_without_a_scheduler_is_not_counted_as_zero() -> None:
    learning = decolle_for(network(), 3, 0.05)
    only = scheduled(learning, GRASP(Fixed(0.05), "magnitude"), only=["input->hidden"])
    reading = read(only)
    assert reading["hidden->hidden"] is None
    assert "hidden->hidden" in reading.uncounted
    assert "input->hidden" not in reading.uncounted
    assert reading.since(reading)["hidden->hidden"] is None
    counted = reading["input->hidden"]
    assert counted is not None
    assert replace(reading.total, name="input->hidden") == counted
    rows = {str(row["name"]): row for row in reading.table()}
    assert rows["hidden->hidden"]["issued"] is None
    assert rows["total"]["issued"] == counted.issued
    with (
        build(network(), "fused", plans=learning) as session,
        pytest.raises(Invalid, match="expected a scheduler"),
    ):
        UpdateMeter(session)


def test_the_table() -> None:
    reading = read(scheduled(decolle_for(network(), 3, 0.05), GRASP(Fixed(0.05), "magnitude")))
    *rows, total = reading.table()
    assert [row["name"] for row in rows] == list(reading.plans)
    assert total["dense"] == sum(int(row["dense"] or 0) for row in rows)
    assert total["issued/dense"] == reading.total.share
    assert total["weight accesses"] == total["accesses"] == 2 * reading.total.issued
    assert total["dense accesses"] == 2 * reading.total.dense
    text = str(reading)
    assert "input->hidden" in text
    assert "dense_nz operations" in text
    assert "changed" not in text  # nothing to say in float


def test_work_by_hand() -> None:
    work = Work(writes=3, state=12, products=5, overhead=7)
    assert work.accesses == 18
    assert work.operations == 12
    # 3 weights and 6 entries of state read, as many written; 12 operations
    assert work.energy(read_j=1.0, write_j=10.0, mac_j=100.0) == 9 * 1 + 9 * 10 + 12 * 100
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(Invalid, match="expected write_j"):
            work.energy(read_j=1.0, write_j=bad, mac_j=1.0)


def test_integers_count_the_writes_that_rounding_left() -> None:
    net = quantise(network(), plastic=list(network().weights()))
    grasp = GRASP(Fixed(0.05), "magnitude")
    reading = read(scheduled(etlp_for(network(), 3, 0.05), grasp), net=net)
    assert reading.total.changed is not None
    assert 0 < reading.total.changed < reading.total.issued
    later = reading.since(reading).total
    assert (later.changed, later.issued) == (0, 0)


def test_the_last_steps_in_order(tmp_path: Path) -> None:
    learning = decolle_for(network(), 3, 0.05)
    grasp = GRASP(Sharpness(0.05, follows="gradient"), "magnitude", series=16)
    found = changes(scheduled(learning, grasp))["input->hidden"]
    with build(network(), "fused", plans=scheduled(learning, grasp)) as session:
        meter = UpdateMeter(session)
        session.learn(spikes(10), 1)
        assert meter.series("input->hidden").step.tolist() == list(range(10))
        session.learn(spikes(40), 1)
        series = meter.series("input->hidden")
        with pytest.raises(Invalid, match="keeps a series"):
            meter.series("nowhere")
    assert series.step.tolist() == list(range(34, 50))
    assert series.k.shape == series.sharpness.shape == series.gradient.shape == (16,)
    with build(network(), "fused", plans=scheduled(learning, grasp)) as session:
        session.learn(spikes(40), 1)
        last = UpdateMeter(session).series("input->hidden")
    assert last.k.tolist() == [issued for _, issued, _ in found[24:]]


def test_figures_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    steps = np.arange(5, 30)
    series = Series(steps, steps % 4.0, np.full(25, np.nan), np.ones(25))
    schedule_figure({"a": series}, str(tmp_path / "k.png"), loss={"a": np.ones(40)}, synapses=120)
    with pytest.raises(Invalid, match="expected a loss of 25 steps"):
        schedule_figure({"a": series}, str(tmp_path / "k.png"), loss={"a": np.ones(24)})
    with pytest.raises(Invalid, match="expected a loss of a, got one of 'b'"):
        schedule_figure({"a": series}, str(tmp_path / "k.png"), loss={"b": np.ones(25)})
    counts = dict.fromkeys(("touched", "dense_touched", "dense_nz_touched", "overhead"), 0)
    update = Updates("x", 1, 2, 100, 20, products=2, dense_products=100, dense_nz_products=20,
                     **counts)  # fmt: skip
    writes_figure({"a": Reading({"x": update, "y": None})}, str(tmp_path / "w.png"))
    assert (tmp_path / "k.png").stat().st_size > 5000
    assert (tmp_path / "w.png").stat().st_size > 5000

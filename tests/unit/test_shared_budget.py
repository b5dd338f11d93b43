"""One price for the writes of several projections."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plastic_cases as cases
import pytest

from grasp_plugin import build, quantise
from grasp_plugin.errors import GraspError, Invalid, Refused
from grasp_plugin.learning import (
    GRASP,
    Factors,
    Learning,
    Outer,
    decolle_for,
    etlp_for,
    ottt_for,
    scheduled,
)
from grasp_plugin.learning.budget import Fixed, Shared
from grasp_plugin.learning.scores import Separable
from grasp_plugin.learning.shared_budget import Holder, SharedPrice, moved

log = logging.getLogger(__name__)
BACKENDS = ("fused", "torch", pytest.param("lava", marks=pytest.mark.lava))
NET = cases.two_layers(np.random.default_rng(0))
DEEP = cases.deep(np.random.default_rng(0))
COUNTS = ("issued", "dense", "dense_nz", "steps")


def spikes(steps: int = 200) -> Any:
    return (np.random.default_rng(1).random((steps, cases.IN)) < 0.4).astype(float)


def shared(learning: Learning, share: float = 0.1, score: str = "magnitude") -> Learning:
    return scheduled(learning, GRASP(Shared(share), score))


class Market:
    """Holders with random scores of a scale of their own, and the price between them."""

    def __init__(
        self, shapes: list[tuple[int, int]], shares: list[float], arrivals: list[int]
    ) -> None:
        self.shapes, self.budgets = shapes, [Shared(share) for share in shares]
        rows = zip(shapes, shares, arrivals, strict=True)
        self.price = SharedPrice(
            tuple(Holder(str(i), "0", a * n[0] * n[1], at) for i, (n, a, at) in enumerate(rows)),
            0.05,
        )
        self.state = self.price.start()
        self.plans: Any = {
            str(i): {"transforms": {"0": {"budget": b.init()}}} for i, b in enumerate(self.budgets)
        }

    def step(self, scores: list[Any]) -> list[int]:
        """Writes of every holder at a step."""
        sizes = []
        for i, (budget, r) in enumerate(zip(self.budgets, scores, strict=True)):
            held = self.plans[str(i)]["transforms"]["0"]
            picked, new = budget.choose(r, held["budget"])
            self.plans[str(i)] = {"transforms": {"0": {"budget": new}}}
            sizes.append(picked.size)
        self.state, self.plans = self.price.step(self.state, self.plans)
        return sizes

    @property
    def log_price(self) -> float:
        return self.price.price(self.plans)


def random_scores(rng: Any, shapes: Any, scales: Any) -> list[Any]:
    return [
        Separable(s * rng.normal(size=n[0]) ** 2 * rng.random(), rng.random(n[1]) ** 2)
        for n, s in zip(shapes, scales, strict=True)
    ]


@pytest.mark.parametrize("arrivals", [[1, 1, 1], [1, 2, 4]], ids=["together", "apart"])
def test_the_total_share_is_held_and_goes_where_it_is_worth_most(arrivals: list[int]) -> None:
    rng, shapes, shares = (
        np.random.default_rng(0),
        [(60, 40), (30, 60), (20, 20)],
        [0.03, 0.05, 0.1],
    )
    market = Market(shapes, shares, arrivals)
    issued = [market.step(random_scores(rng, shapes, (1.0, 1.0, 1e-4))) for _ in range(1500)]
    writes = np.array(issued[500:])
    total = writes.sum(axis=1).mean() / market.price.wanted
    each = writes.mean(axis=0) / [h.wanted for h in market.price.holders]
    log.info("total %.4f of its share, each %s", total, each)
    assert abs(total - 1) < 0.05
    assert each[2] < 0.01
    assert each[0] > 1


def table(*values: float) -> Separable:
    return Separable(np.array(values), np.ones(1))


def test_the_first_price_is_the_largest_of_the_least_scores_taken() -> None:
    """In numbers; without lag, then with one of a step."""
    market = Market([(4, 1), (4, 1)], [0.5, 0.25], [1, 1])
    assert market.step([table(0, 0, -1, 0), table(0, 0, 0, 0)]) == [0, 0]
    assert market.log_price == -math.inf
    assert market.step([table(9, 8, 7, 6), table(5, 4, 3, 2)]) == [2, 1]  # round(share N)
    assert market.log_price == math.log(8)
    assert market.step([table(9, 8.5, 7, 6), table(50, 40, 30, 7.9)]) == [2, 3]  # above 8 only
    assert market.log_price == math.log(8) + 0.05 * (5 / 3 - 1)
    late = Market([(4, 1), (4, 1)], [0.5, 0.25], [1, 2])
    assert late.step([table(9, 8, 7, 6), table(5, 4, 3, 2)]) == [2, 1]
    assert late.log_price == -math.inf  # on its way
    assert late.step([table(1, 1, 1, 1), table(1, 1, 1, 1)]) == [2, 1]
    assert late.log_price == math.log(8)
    assert late.step([table(9, 9, 9, 9), table(9, 9, 9, 9)]) == [4, 4]
    assert late.log_price == math.log(8)  # moved by 3 / 3 - 1
    late.plans = late.price.end(late.state, late.plans)
    assert late.log_price == math.log(8) + 0.05 * (8 / 3 - 1)


def test_a_holder_whose_share_is_below_one_write_still_names_a_price() -> None:
    market = Market([(4, 1)], [0.1], [1])
    assert market.step([table(9, 8, 7, 6)]) == [0]
    assert market.log_price == math.log(9)


def test_moved() -> None:
    assert moved(-math.inf, 3, 0.0, 2.0, 0.1) == -math.inf
    assert moved(-math.inf, 3, 2.0, 2.0, 0.1) == math.log(2)
    assert moved(1.0, 3, 7.0, 2.0, 0.1) == 1.0 + 0.1 * 0.5


def test_a_price_that_nobody_moves_is_named() -> None:
    grasp, w = GRASP(Shared(0.5), "magnitude"), np.zeros((2, 2))
    delta, state = {"weight": Outer(np.ones((1, 2)), np.ones((1, 2)), -0.1)}, grasp.init(w)
    _, state = grasp.update(delta, state, w, factors=Factors(np.ones((1, 2))))
    with pytest.raises(Invalid, match="expected a price that is moved after every step"):
        grasp.update(delta, state, w, factors=Factors(np.ones((1, 2))))


LEARN: dict[str, tuple[Any, Any]] = {
    "decolle, two layers": (NET, lambda: shared(decolle_for(NET, 3, 0.01))),
    "decolle, curvature": (NET, lambda: shared(decolle_for(NET, 3, 0.01), score="abs_gHg")),
    "decolle, three layers and a skip": (DEEP, lambda: shared(decolle_for(DEEP, 3, 0.01))),
    "etlp": (NET, lambda: shared(etlp_for(NET, cases.OUT, 0.02, probability=0.3))),
    "some share": (
        NET, lambda: scheduled(
            scheduled(decolle_for(NET, 3, 0.01), GRASP(Shared(0.2), "magnitude"), only=["h->o"]),
            GRASP(Shared(0.05), "magnitude"), only=["in->h", "bo"],
        ),
    ),
}  # fmt: skip


def ran(net: Any, learning: Learning, backend: str) -> tuple[Any, Any]:
    """(weights, transforms' states) after sequences of other lengths, 1 the shortest."""
    with build(net, backend, plans=learning) as session:
        for steps, label in ((1, 0), (200, 1), (3, 2)):
            session.learn(spikes(steps), label)
        return session.weights(), session.transforms()


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("name", LEARN)
def test_the_same_synapses_at_the_same_price_on_every_back_end(name: str, backend: str) -> None:
    net, learn = LEARN[name]
    want, states = ran(net, learn(), "fused")
    got, found = ran(net, learn(), backend)
    gap = cases.gap([got], [want])
    log.info("%s on %s: %.1e", name, backend, gap)
    assert gap < 1e-12
    prices = set()
    for plan, state in states.items():
        for count in COUNTS:
            assert int(found[plan]["0"][count][0]) == int(state["0"][count][0])
        for one in (found, states):
            prices.add(round(float(one[plan]["0"]["budget"]["log_price"][0]), 9))
    assert len(prices) == 1
    assert math.isfinite(prices.pop())
    counts = [int(s["0"]["issued"][0]) for s in states.values()]
    assert min(counts) > 0
    assert sum(counts) < 0.25 * sum(int(s["0"]["dense"][0]) for s in states.values())


def test_the_order_of_holders_changes_nothing() -> None:
    learning = LEARN["decolle, three layers and a skip"][1]()
    want, _ = ran(DEEP, learning, "fused")
    for seed in range(4):
        names = list(np.random.default_rng(seed).permutation(list(learning.plans)))
        other = replace(learning, plans={str(n): learning.plans[n] for n in names})
        assert cases.gap([ran(DEEP, other, "fused")[0]], [want]) == 0


def test_a_shared_price_is_not_a_price_for_each() -> None:
    """Two holders that share differ from two that do not know of each other."""
    want, _ = ran(NET, shared(decolle_for(NET, 3, 0.01)), "fused")
    alone = {}
    for name in ("in->h", "h->o"):
        learning = scheduled(
            decolle_for(NET, 3, 0.01), GRASP(Shared(0.1), "magnitude"), only=[name]
        )
        alone[name] = ran(NET, learning, "fused")[0][name]
    assert all(np.abs(alone[n] - want[n]).max() > 1e-4 for n in alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resumed_session_goes_on_at_the_price_that_was_saved(
    backend: str, tmp_path: Path
) -> None:
    learning = LEARN["decolle, three layers and a skip"][1]()
    with build(DEEP, backend, plans=learning) as session:
        session.learn(spikes(50), 1)
        session.save(tmp_path / "kept")
        session.learn(spikes(30), 2)
        want = session.weights()
    with build(DEEP, backend, plans=learning) as session:
        session.learn(spikes(20), 0)  # to be forgotten
        session.load(tmp_path / "kept")
        session.learn(spikes(30), 2)
        assert cases.gap([session.weights()], [want]) == 0


def two_kinds(second: GRASP) -> Learning:
    learning = scheduled(decolle_for(NET, 3, 0.01), GRASP(Shared(0.1), "magnitude"), only=["in->h"])
    return scheduled(learning, second, only=["h->o"])


WRONG: dict[str, tuple[Any, Any, type[GraspError], str]] = {
    "gain": (
        NET, lambda: two_kinds(GRASP(Shared(0.1, gain=0.1), "magnitude")), Invalid,
        "h->o: expected the score and gain of all that share a price",
    ),
    "score": (
        NET, lambda: two_kinds(GRASP(Shared(0.1), "abs_gHg")), Invalid,
        "h->o: expected the score and gain of all that share a price",
    ),
    "rows": (
        NET, lambda: two_kinds(GRASP(Shared(0.1), "magnitude", "row")), Refused,
        "h->o: expected granularity 'weight' for a shared price, got 'row'",
    ),
    "integers": (
        quantise(NET, plastic=["in->h", "h->o", "bh", "bo"]),
        lambda: shared(decolle_for(NET, 3, 0.01)), Refused,
        "in->h: expected a float network for a shared price, got Loihi integers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_share_is_named(kind: str) -> None:
    net, learn, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        build(net, "fused", plans=learn())


def test_a_share_is_checked() -> None:
    with pytest.raises(Invalid, match="expected a share"):
        Shared(0.0)


@pytest.mark.lava
def test_lava_refuses_a_price_for_late_updates() -> None:
    learning = shared(ottt_for(NET, cases.OUT, 0.05, pipelined=True))
    with pytest.raises(Refused, match=r"in->h: expected updates that come with their step .*Late"):
        build(NET, "lava", plans=learning)
    top = scheduled(
        ottt_for(NET, cases.OUT, 0.05, pipelined=True), GRASP(Shared(0.1), "magnitude"),
        only=["h->o", "bo"],
    )  # fmt: skip
    want, _ = ran(NET, top, "fused")
    assert cases.gap([ran(NET, top, "lava")[0]], [want]) < 1e-12


def test_others_are_not_disturbed() -> None:
    """A projection with a budget of its own, beside holders of a shared price."""
    base = decolle_for(NET, 3, 0.01)
    own = scheduled(base, GRASP(Fixed(0.1), "magnitude"), only=["h->o", "bo"])
    both = scheduled(own, GRASP(Shared(0.1), "magnitude"), only=["in->h"])
    want, got = ran(NET, own, "fused")[1], ran(NET, both, "fused")[1]
    assert int(got["h->o"]["0"]["dense"][0]) == int(want["h->o"]["0"]["dense"][0])
    assert int(got["h->o"]["0"]["issued"][0]) > 0

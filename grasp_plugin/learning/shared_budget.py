"""One price for the writes of several projections: how `budget.Shared` moves it.

    c = exp(log c)                                             in force, the same for all holders
    k_i = #{r_i > c}                                           writes of holder i at this step
    log c <- log c + gain (sum_i k_i / sum_i share_i N_i - 1)

Before there is a price, holder i takes its round(share_i N_i) best, and the first price is the
largest of the holders' least scores taken: log c <- log max_i least_i.

What the holders report of step t moves the price of step t + 1 + lag. lag is by how many steps the
holders' populations lie apart on Lava, where each projection takes a step and the first one learns
from step t + lag while the last one still learns from step t; the same everywhere, so that all back
ends write the same synapses. Sums and maxima are exact, so the order of holders does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.budget import SETTLED, Shared
from grasp_plugin.learning.deltas import Array
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.rule import Plan
from grasp_plugin.learning.spec import Learning
from grasp_plugin.learning.states import State
from grasp_plugin.network.network import Network
from grasp_plugin.network.schedule import arrival_steps


def moved(log_price: float, taken: int, least: float, wanted: float, gain: float) -> float:
    """log c after the reports of one step.

    Args:
        log_price: log c before; -inf: there is no price yet.
        taken: sum of all holders' writes.
        least: the largest of the least scores that holders without a price took; 0: none did.
        wanted: sum of share N_o N_i over all holders.
        gain: of the price.
    """
    if math.isfinite(log_price):
        return log_price + gain * (taken / wanted - 1)
    return math.log(least) if least > 0 else log_price


@dataclass(frozen=True)
class Holder:
    """A projection or bias that writes at the shared price.

    Args:
        plan: its name.
        at: its GRASP's place among the plan's transforms.
        wanted: share N_o N_i.
        arrival: steps by which its population lies behind the input on Lava.
    """

    plan: str
    at: str
    wanted: float
    arrival: int = 0


@dataclass(frozen=True)
class SharedPrice:
    """The price of a `Learning`, as pure functions on the states of its plans.

    Args:
        holders: all that share it.
        gain: of the price.

    State:
        taken, least: reports that are under way, oldest first, (up to lag,).
    """

    holders: tuple[Holder, ...]
    gain: float

    @property
    def lag(self) -> int:
        """Steps that a report is under way, beyond the one to the next step."""
        arrivals = [h.arrival for h in self.holders]
        return max(arrivals) - min(arrivals)

    @property
    def wanted(self) -> float:
        """Writes a step of all holders together."""
        return math.fsum(h.wanted for h in self.holders)

    def start(self) -> State:
        """No report is under way."""
        return {"taken": np.zeros(0, np.int64), "least": np.zeros(0)}

    def step(self, state: State, plans: State) -> tuple[State, State]:
        """(the state, the plans' states with the price of the next step in them) after a step."""
        reports = [report(plans[h.plan], h.at) for h in self.holders]
        taken = np.append(state["taken"], sum(k for k, _ in reports))
        least = np.append(state["least"], max(r for _, r in reports))
        arrived = taken.size - self.lag
        if arrived > 0:
            price = self.after(self.price(plans), taken[:arrived], least[:arrived])
            taken, least = taken[arrived:], least[arrived:]
        else:
            price = self.price(plans)
        return {"taken": taken, "least": least}, self.told(plans, price)

    def end(self, state: State, plans: State) -> State:
        """The plans' states after a sequence, when every report has arrived."""
        return self.told(plans, self.after(self.price(plans), state["taken"], state["least"]))

    def price(self, plans: Mapping[str, Any]) -> float:
        """log c in force."""
        first = self.holders[0]
        return float(_budget(plans[first.plan], first.at)["log_price"][0])

    def after(self, log_price: float, taken: Array, least: Array) -> float:
        """log c after the reports of some steps, in order."""
        for k, r in zip(taken, least, strict=True):
            log_price = moved(log_price, int(k), float(r), self.wanted, self.gain)
        return log_price

    def told(self, plans: State, log_price: float) -> State:
        """The plans' states with a price."""
        new = {h.plan: with_price(plans[h.plan], h.at, log_price) for h in self.holders}
        return {**plans, **new}


def _budget(plan_state: State, at: str) -> State:
    return plan_state["transforms"][at]["budget"]  # type: ignore[no-any-return]


def report(plan_state: State, at: str) -> tuple[int, float]:
    """(writes, least score taken without a price) of a holder's last step."""
    budget = _budget(plan_state, at)
    return max(0, int(budget["taken"][0])), float(budget["least"][0])


def with_price(plan_state: State, at: str, log_price: float) -> State:
    """A plan's state with a price for its next step, and its report taken."""
    transforms = plan_state["transforms"]
    budget = {
        **_budget(plan_state, at), "log_price": np.full(1, log_price),
        "taken": np.full(1, SETTLED), "least": np.zeros(1),
    }  # fmt: skip
    return {**plan_state, "transforms": {**transforms, at: {**transforms[at], "budget": budget}}}


def shared_price(
    network: Network, learning: Learning, weights: Mapping[str, Any]
) -> SharedPrice | None:
    """The price that plans with a `Shared` budget share; None where there is none.

    Args:
        weights: by plan.

    Raises:
        Invalid: holders with another gain or score than the first.
        Refused: another granularity than single weights; Loihi's integers.
    """
    found = [
        (name, str(i), t)
        for name, plan in learning.plans.items() if isinstance(plan, Plan)
        for i, t in enumerate(plan.transforms)
        if isinstance(t, GRASP) and isinstance(t.budget, Shared)
    ]  # fmt: skip
    if not found:
        return None
    arrival, targets = _arrivals(network), {k.name: k.target for k in network.projections}
    targets |= {b.name: b.target for b in network.biases}
    first: Any = found[0][2]
    holders = []
    for name, at, grasp in found:
        _check(name, grasp, first, network)
        budget: Any = grasp.budget
        size = math.prod(np.shape(weights[name]))
        holders.append(Holder(name, at, budget.share * size, arrival.get(targets[name], 0)))
    return SharedPrice(tuple(holders), first.budget.gain)


def _check(name: str, grasp: GRASP, first: GRASP, network: Network) -> None:
    ours: tuple[Any, Any] = grasp.score, grasp.budget.gain  # type: ignore[attr-defined]
    theirs: tuple[Any, Any] = first.score, first.budget.gain  # type: ignore[attr-defined]
    if ours != theirs:
        raise Invalid(
            name, f"expected the score and gain of all that share a price, {theirs}, got {ours}",
            "Give all of them the same",
        )  # fmt: skip
    if grasp.granularity != "weight":
        raise Refused(
            name, f"expected granularity 'weight' for a shared price, got {grasp.granularity!r}",
            "A price is that of one write; use a budget for each projection",
        )  # fmt: skip
    if network.precision == "loihi":
        raise Refused(
            name, "expected a float network for a shared price, got Loihi integers",
            "Use a budget for each projection, such as Marginal",
        )  # fmt: skip


def _arrivals(network: Network) -> dict[str, int]:
    """`arrival_steps`; none where the network is too fast for Lava, which will not run it."""
    try:
        return arrival_steps(network)
    except Refused:
        return {}

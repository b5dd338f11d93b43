"""How many synapses to write at a step: rules for k_t over separable scores r_oi = a_o q_i.

    Fixed(share)               k_t = share N_o N_i
    Marginal(share)            k_t = #{r > c}: writes whose predicted decrease is above their price;
                               log c moves so that the mean share of writes is `share`
    Coverage(tau)              the least k_t with  sum_{top k} r >= tau sum max(r, 0)
    Sharpness(share, ...)      k_t = share N_o N_i (s / mean s)^{+-1}, from a tenth to ten times it

`direction` of `Sharpness`: "more" (sharper: more writes) or "fewer"; the abstract of GRASP does not
say which. Each is a pair init / choose on an explicit state, as rules are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.selection import Picked, above, covering, top
from grasp_plugin.network.weights import Array


@dataclass(frozen=True, eq=False)
class Scores:
    """What a budget sees of a step.

    Args:
        a, q: (N_o,), (N_i,): score of synapse (o, i) is a_o q_i.
        sharpness: of the instantaneous loss, a number; None where no curvature is at hand.
    """

    a: Array
    q: Array
    sharpness: float | None = None

    @property
    def size(self) -> int:
        return int(self.a.size * self.q.size)


class Budget(ABC):
    """A rule for k_t."""

    @abstractmethod
    def init(self) -> dict[str, Array]:
        """The state before step 0, arrays (1,)."""

    @abstractmethod
    def choose(self, scores: Scores, state: dict[str, Array]) -> tuple[Picked, dict[str, Array]]:
        """The synapses to write at this step, and the state after it."""


def _share(name: str, share: float) -> None:
    if not 0 < share <= 1:
        raise Invalid(name, f"expected a share in (0, 1], got {share}", "Pass writes / synapses")


@dataclass(frozen=True)
class Fixed(Budget):
    """k_t = share N_o N_i at every step; what is left of a whole number waits for the next."""

    share: float

    def __post_init__(self) -> None:
        _share("Fixed", self.share)

    def init(self) -> dict[str, Array]:
        return {"owed": np.zeros(1)}

    def choose(self, scores: Scores, state: dict[str, Array]) -> tuple[Picked, dict[str, Array]]:
        owed = float(state["owed"][0]) + self.share * scores.size
        k = math.floor(owed + 1e-9)
        return top(scores.a, scores.q, k), {"owed": np.full(1, owed - k)}


@dataclass(frozen=True)
class Marginal(Budget):
    """Write where the predicted decrease exceeds the price c of a write.

    log c <- log c + gain (k / (share N_o N_i) - 1)

    Maximises sum r - c k; one price serves any number of projections. The mean of k over T steps is
    off its aim by (log c_T - log c_0) / (gain T) of it, whatever the scores do.
    """

    share: float
    gain: float = 0.05

    def __post_init__(self) -> None:
        _share("Marginal", self.share)

    def init(self) -> dict[str, Array]:
        return {"log_price": np.full(1, -math.inf)}

    def choose(self, scores: Scores, state: dict[str, Array]) -> tuple[Picked, dict[str, Array]]:
        wanted = self.share * scores.size
        log_price = float(state["log_price"][0])
        if not math.isfinite(log_price):  # the first step with an error sets the scale
            best = float(scores.a.max(initial=0.0) * scores.q.max(initial=0.0))
            if best <= 0:
                return top(scores.a, scores.q, 0), state
            picked = top(scores.a, scores.q, round(wanted))
            log_price = math.log(_least(scores, picked) or best)
            return picked, {"log_price": np.full(1, log_price)}
        picked = above(scores.a, scores.q, math.exp(log_price))
        new = log_price + self.gain * (picked.size / wanted - 1)
        return picked, {"log_price": np.full(1, new)}


def _least(scores: Scores, picked: Picked) -> float:
    """The smallest score that was picked."""
    rows = np.flatnonzero(picked.counts)
    if not rows.size:
        return 0.0
    return float((scores.a[rows] * scores.q[picked.order[picked.counts[rows] - 1]]).min())


@dataclass(frozen=True)
class Coverage(Budget):
    """The fewest writes that make the share tau of the whole predicted decrease."""

    tau: float

    def __post_init__(self) -> None:
        _share("Coverage", self.tau)

    def init(self) -> dict[str, Array]:
        return {}

    def choose(self, scores: Scores, state: dict[str, Array]) -> tuple[Picked, dict[str, Array]]:
        return covering(scores.a, scores.q, self.tau), state


@dataclass(frozen=True)
class Sharpness(Budget):
    """k_t moves with the sharpness s of the loss about its running mean.

    Args:
        share: the mean share of writes aimed at.
        direction: "more": k_t ~ s / mean s;  "fewer": k_t ~ mean s / s.
        memory: of the running mean, per step.
    """

    share: float
    direction: str = "more"
    memory: float = 0.99

    def __post_init__(self) -> None:
        _share("Sharpness", self.share)
        if self.direction not in ("more", "fewer"):
            raise Invalid(
                "Sharpness", f"expected direction 'more' or 'fewer', got {self.direction!r}", "Pick"
            )

    def init(self) -> dict[str, Array]:
        return {"mean": np.zeros(1), "weight": np.zeros(1)}

    def choose(self, scores: Scores, state: dict[str, Array]) -> tuple[Picked, dict[str, Array]]:
        if scores.sharpness is None:
            raise Invalid(
                "Sharpness", "expected a curvature for the sharpness, got none",
                "Learn through OnlineLearner, or pass Factors(curvature=...)",
            )  # fmt: skip
        s, m = scores.sharpness, self.memory
        mean = m * float(state["mean"][0]) + (1 - m) * s
        weight = m * float(state["weight"][0]) + (1 - m)
        ratio = s * weight / mean if mean > 0 else 1.0
        factor = ratio if self.direction == "more" else 1 / max(ratio, 1e-12)
        k = self.share * scores.size * min(max(factor, 0.1), 10.0)
        new: dict[str, Any] = {"mean": np.full(1, mean), "weight": np.full(1, weight)}
        return top(scores.a, scores.q, round(min(k, scores.size))), new

"""How many synapses to write at a step: rules for k_t over the scores r of all synapses.

    Fixed(share)               k_t = share N_o N_i
    Marginal(share)            k_t = #{r > c}: writes whose predicted decrease is above their price;
                               log c moves so that the mean share of writes is `share`
    Coverage(tau)              the least k_t with  sum_{top k} r >= tau sum max(r, 0)
    Sharpness(share, ...)      k_t = share N_o N_i (s / mean s)^{+-1}, from a tenth to ten times it
    Given(counts)              k_t from a list: a control for the ones above
    Shared(share)              as Marginal, at one price for all projections that have it

    Every(n)                   all with r > 0 at every n-th step, none in between
    RandomSteps(share)         all with r > 0 at steps drawn at random (SLTT-K)
    NonZero()                  all with r > 0
    Everything()               all: the rule itself

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
from grasp_plugin.learning.counter_random import uniform
from grasp_plugin.learning.scores import Scores, Selection
from grasp_plugin.network.weights import Array

BudgetState = dict[str, Array]
SETTLED = -1  # writes of a step that have been reported


class Budget(ABC):
    """A rule for k_t."""

    @property
    def bends(self) -> bool:
        """True if it needs the sharpness of the loss."""
        return False

    @abstractmethod
    def init(self) -> BudgetState:
        """The state before step 0, arrays (1,)."""

    @abstractmethod
    def choose(self, scores: Scores, state: BudgetState) -> tuple[Selection, BudgetState]:
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

    def init(self) -> BudgetState:
        return {"owed": np.zeros(1)}

    def choose(self, scores: Scores, state: BudgetState) -> tuple[Selection, BudgetState]:
        owed = float(state["owed"][0]) + self.share * scores.size
        k = math.floor(owed + 1e-9)
        return scores.top(k), {"owed": np.full(1, owed - k)}


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

    def init(self) -> BudgetState:
        return {"log_price": np.full(1, -math.inf)}

    def choose(self, scores: Scores, state: BudgetState) -> tuple[Selection, BudgetState]:
        wanted = self.share * scores.size
        log_price = float(state["log_price"][0])
        if not math.isfinite(log_price):  # the first step with an error sets the scale
            best = scores.least(scores.top(1))
            if best <= 0:
                return scores.top(0), state
            picked = scores.top(round(wanted))
            log_price = math.log(scores.least(picked) or best)
            return picked, {"log_price": np.full(1, log_price)}
        picked = scores.above(math.exp(log_price))
        new = log_price + self.gain * (picked.size / wanted - 1)
        return picked, {"log_price": np.full(1, new)}


@dataclass(frozen=True)
class Shared(Budget):
    """Write where the score exceeds a price that all projections with this budget share.

    log c <- log c + gain (sum k / sum share N_o N_i - 1)     sums over the projections

    So writes go where they are worth most, and `share` of all synapses are written in the mean.
    `learning.shared_budget` says how the price begins and moves; `OnlineLearner`, and on Lava
    `BudgetScheduler`, move it once per step for all.

    State:
        log_price: log c in force; -inf: none yet.
        taken, least: what was written at this step, and the least score taken without a price.

    Raises:
        Invalid: a share outside (0, 1]; a step whose writes nobody has reported.
    """

    share: float
    gain: float = 0.05

    def __post_init__(self) -> None:
        _share("Shared", self.share)

    def init(self) -> BudgetState:
        return {
            "log_price": np.full(1, -math.inf), "taken": np.full(1, SETTLED), "least": np.zeros(1),
        }  # fmt: skip

    def choose(self, scores: Scores, state: BudgetState) -> tuple[Selection, BudgetState]:
        if int(state["taken"][0]) != SETTLED:
            raise Invalid(
                "Shared", "expected a price that is moved after every step, got none",
                "Learn through OnlineLearner or build(..., plans=...), or use Marginal",
            )  # fmt: skip
        log_price, least = float(state["log_price"][0]), 0.0
        if math.isfinite(log_price):
            picked = scores.above(math.exp(min(log_price, 700.0)))
        else:
            picked = scores.top(round(self.share * scores.size))
            least = scores.least(picked) or scores.least(scores.top(1))
        taken = np.full(1, picked.size)
        return picked, {**state, "taken": taken, "least": np.full(1, least)}


@dataclass(frozen=True)
class Coverage(Budget):
    """The fewest writes that make the share tau of the whole predicted decrease."""

    tau: float

    def __post_init__(self) -> None:
        _share("Coverage", self.tau)

    def init(self) -> BudgetState:
        return {}

    def choose(self, scores: Scores, state: BudgetState) -> tuple[Selection, BudgetState]:
        return scores.covering(self.tau), state


@dataclass(frozen=True)
class Sharpness(Budget):
    """k_t moves with the sharpness s of the loss about its running mean.

    Args:
        share: the mean share of writes aimed at.
        direction: "more": k_t ~ s / mean s;  "fewer": k_t ~ mean s / s.
        memory: of the running mean, per step.
        follows: "sharpness", or "gradient": s = |g|, which needs no curvature. A synapse sees no
            loss; |g| is what it has of it.

    Raises:
        Invalid: a share outside (0, 1], another direction, another thing to follow.
    """

    share: float
    direction: str = "more"
    memory: float = 0.99
    follows: str = "sharpness"

    def __post_init__(self) -> None:
        _share("Sharpness", self.share)
        for name, options in (
            ("direction", ("more", "fewer")), ("follows", ("sharpness", "gradient")),
        ):  # fmt: skip
            if getattr(self, name) not in options:
                raise Invalid(
                    "Sharpness", f"expected {name} in {options}, got {getattr(self, name)!r}",
                    "Pick one",
                )  # fmt: skip

    @property
    def bends(self) -> bool:
        return self.follows == "sharpness"

    def init(self) -> BudgetState:
        return {"mean": np.zeros(1), "weight": np.zeros(1)}

    def choose(self, scores: Scores, state: BudgetState) -> tuple[Selection, BudgetState]:
        s = scores.sharpness if self.bends else scores.gradient
        if s is None:
            raise Invalid(
                "Sharpness", "expected a curvature for the sharpness, got none",
                "Learn through OnlineLearner, or pass Factors(curvature=...)",
            )  # fmt: skip
        m = self.memory
        mean = m * float(state["mean"][0]) + (1 - m) * s
        weight = m * float(state["weight"][0]) + (1 - m)
        ratio = s * weight / mean if mean > 0 else 1.0
        factor = ratio if self.direction == "more" else 1 / max(ratio, 1e-12)
        k = self.share * scores.size * min(max(factor, 0.1), 10.0)
        new: dict[str, Any] = {"mean": np.full(1, mean), "weight": np.full(1, weight)}
        return scores.top(round(min(k, scores.size))), new


@dataclass(frozen=True)
class Given(Budget):
    """k_t = counts[t], from the beginning again when they are used up.

    The control of a dynamic budget: the counts that it chose, shuffled in time.
    """

    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", tuple(self.counts))
        if not self.counts or min(self.counts) < 0:
            raise Invalid("Given", f"expected counts >= 0, got {self.counts[:5]}", "Pass some")

    def init(self) -> BudgetState:
        return {"step": np.zeros(1, np.int64)}

    def choose(self, scores: Scores, state: BudgetState) -> tuple[Selection, BudgetState]:
        step = int(state["step"][0])
        return scores.top(self.counts[step % len(self.counts)]), {"step": state["step"] + 1}


@dataclass(frozen=True)
class Every(Budget):
    """All synapses with a gradient at steps n - 1, 2n - 1, ..., none in between."""

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise Invalid("Every", f"expected steps >= 1, got {self.steps}", "Pass steps >= 1")

    def init(self) -> BudgetState:
        return {"step": np.zeros(1, np.int64)}

    def choose(self, scores: Scores, state: BudgetState) -> tuple[Selection, BudgetState]:
        step = state["step"] + 1
        due = int(step[0]) % self.steps == 0
        return (scores.above(0.0) if due else scores.top(0)), {"step": step}


@dataclass(frozen=True)
class RandomSteps(Budget):
    """All synapses with a gradient at steps that are drawn with probability `share`.

    References:
        SLTT-K, Meng et al., ICCV 2023: back-propagation at K random steps of a sequence. Here each
        step is drawn by itself, so that a stream needs no known length.
    """

    share: float
    seed: int = 0

    def __post_init__(self) -> None:
        _share("RandomSteps", self.share)

    def init(self) -> BudgetState:
        return {"step": np.zeros(1, np.int64)}

    def choose(self, scores: Scores, state: BudgetState) -> tuple[Selection, BudgetState]:
        due = float(uniform(self.seed, state["step"], 1, np.zeros(1))[0]) < self.share
        return (scores.above(0.0) if due else scores.top(0)), {"step": state["step"] + 1}


@dataclass(frozen=True)
class NonZero(Budget):
    """All synapses with a score above 0: the dense rule without its idle writes."""

    def init(self) -> BudgetState:
        return {}

    def choose(self, scores: Scores, state: BudgetState) -> tuple[Selection, BudgetState]:
        return scores.above(0.0), state


@dataclass(frozen=True)
class Everything(Budget):
    """All synapses at every step, those without a gradient too: the dense rule."""

    def init(self) -> BudgetState:
        return {}

    def choose(self, scores: Scores, state: BudgetState) -> tuple[Selection, BudgetState]:
        return scores.everything(), state

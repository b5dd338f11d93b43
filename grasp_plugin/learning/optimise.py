"""Lazy optimisers: moments of the synapses that a delta writes, and of no others.

They follow a rule, or an update scheduler such as `GRASP`, in a `Plan`:

    g = -delta / rule_rate                          of the synapses in the delta; others: nothing

    SGD        step = eta g
    Momentum   b <- mu b + g                        step = eta b, or eta (g + mu b) (Nesterov)
    Adam       m <- m + (1 - b1) (g - m)            step = eta m^ / (sqrt(v^) + eps)
               v <- b2 v + (1 - b2) g^2             m^ = m / (1 - b1^t), v^ = v / (1 - b2^t)
    Adamax     m as Adam's                          step = eta m^ / u
               u <- max(b2 u, |g| + eps)

    delta <- -step

t counts steps, not the writes of a synapse, as in torch.optim.SparseAdam. A `Chosen` or `Sparse`
delta costs O(k) for its k synapses, and the moments of all others keep every bit; any other delta
holds all synapses. With catch_up = True, moments are first taken to where a gradient of zero in the
n steps since their last use had brought them (b mu^n, m b1^n, v b2^n, u b2^n). The weight stays
where it was meanwhile, unlike that of a dense optimiser, which goes on moving by its momentum.

Give the rule learning_rate = 1, so that delta = -g. GRASP's score "pred_decrease" takes the rule's
learning rate for the size of the step; to let it see a smaller one, give it to the rule and to
`rule_rate` here.

Moments are changed in place, or O(k) would be N_o N_i: the state handed in is given away (donated,
as JAX calls it), and must not be used again. For the same reason, and as they are NumPy arrays
beside weights of any kind, these are not for torch.func (MAML) or autograd.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, ClassVar

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.chosen import Chosen, Sparse
from grasp_plugin.learning.deltas import Array, Delta, Full, scaled
from grasp_plugin.learning.rule import Transform
from grasp_plugin.learning.states import State

Moments = tuple[Array, ...]
At = tuple[Array, Array] | EllipsisType  # of a weight [N_o, N_i]


@dataclass(frozen=True)
class SGD(Transform):
    """delta <- learning_rate delta / rule_rate: no moments, and no state but its counts.

    Args:
        learning_rate: eta, in units of the weights by those of the gradient.
        rule_rate: the rule's own learning rate.

    State:
        step: steps so far; touched: 0, for there are no moments. int64 (1,).

    Raises:
        Invalid: a rate that is not finite, a learning rate < 0, rule_rate <= 0.
    """

    lasting: ClassVar[bool] = True
    learning_rate: float
    rule_rate: float = 1.0

    def __post_init__(self) -> None:
        _rates(self, self.learning_rate, self.rule_rate)

    def init(self, weight: Array, *, batch: int = 1) -> State:
        return {"step": np.zeros(1, np.int64), "touched": np.zeros(1, np.int64)}

    def update(
        self, delta: Delta, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        after = {**state, "step": state["step"] + 1}
        return scaled(delta, self.learning_rate / self.rule_rate), after


class Lazy(Transform):
    """An optimiser with moments; see the module's equations.

    A bias in the delta (of a bare rule with a bias; the learner gives each bias a plan of its own)
    makes a plain step, learning_rate delta / rule_rate, without moments. A delta with NaN or
    infinity passes as it is and moves no moment: its caller refuses it.

    State:
        (a moment's name): NumPy float64 [N_o, N_i], changed in place.
        last: with catch_up: the step of each synapse's last use, int64 [N_o, N_i], likewise.
        step: steps so far; touched: entries of those arrays read and written so far, 2 k s for k
            synapses and s arrays, `last` among them. int64 (1,).

    Raises:
        Refused: a delta that carries a graph of autograd.
    """

    lasting: ClassVar[bool] = True
    moments: ClassVar[tuple[str, ...]]
    learning_rate: float
    rule_rate: float
    catch_up: bool

    @abstractmethod
    def decays(self) -> tuple[float, ...]:
        """What each moment is multiplied by at a gradient of zero."""

    @abstractmethod
    def moved(self, g: Array, old: Moments, step: int) -> tuple[Array, Moments]:
        """(the step / learning_rate, the moments after it) of some synapses, at step 1, 2, ..."""

    def init(self, weight: Array, *, batch: int = 1) -> State:
        shape = tuple(weight.shape)
        state: State = {name: np.zeros(shape) for name in self.moments}
        if self.catch_up:
            state["last"] = np.zeros(shape, np.int64)
        return {**state, "step": np.zeros(1, np.int64), "touched": np.zeros(1, np.int64)}

    def update(
        self, delta: Delta, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        part = delta["weight"]
        values, at = _entries(part)
        if not np.all(np.isfinite(values)):
            return delta, state
        step = int(state["step"][0]) + 1
        old = self._seen(state, at, step)
        change, new = self.moved(values / -self.rule_rate, old, step)
        for name, value in zip(self.moments, new, strict=True):
            state[name][at] = value
        if self.catch_up:
            state["last"][at] = step
        arrays = len(self.moments) + self.catch_up
        after = {
            **state, "step": state["step"] + 1,
            "touched": state["touched"] + 2 * values.size * arrays,
        }  # fmt: skip
        rest = {k: v for k, v in delta.items() if k != "weight"}
        out = scaled(rest, self.learning_rate / self.rule_rate)
        return {**out, "weight": _with(part, -self.learning_rate * change)}, after

    def _seen(self, state: State, at: At, step: int) -> Moments:
        """The moments of some synapses as the step finds them."""
        old = tuple(state[name][at] for name in self.moments)
        if not self.catch_up:
            return old
        missed = step - 1 - state["last"][at]
        return tuple(m * beta**missed for m, beta in zip(old, self.decays(), strict=True))


@dataclass(frozen=True)
class Momentum(Lazy):
    """Heavy ball, or Nesterov's: b <- mu b + g; step eta b, or eta (g + mu b).

    Args:
        learning_rate: eta. momentum: mu. nesterov: which of the two.
        catch_up, rule_rate: see the module.

    Raises:
        Invalid: rates as `SGD`; mu outside [0, 1).

    References:
        torch.optim.SGD(momentum=, nesterov=), dampening 0.
    """

    moments: ClassVar[tuple[str, ...]] = ("buffer",)
    learning_rate: float = 1.0
    momentum: float = 0.9
    nesterov: bool = False
    catch_up: bool = False
    rule_rate: float = 1.0

    def __post_init__(self) -> None:
        _rates(self, self.learning_rate, self.rule_rate)
        _below_one(self, momentum=self.momentum)

    def decays(self) -> tuple[float, ...]:
        return (self.momentum,)

    def moved(self, g: Array, old: Moments, step: int) -> tuple[Array, Moments]:
        buffer = self.momentum * old[0] + g
        return (g + self.momentum * buffer if self.nesterov else buffer), (buffer,)


@dataclass(frozen=True)
class _Averaged(Lazy):
    """What Adam and Adamax share: two moments, each with its decay."""

    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    catch_up: bool = False
    rule_rate: float = 1.0

    def __post_init__(self) -> None:
        _rates(self, self.learning_rate, self.rule_rate)
        _below_one(self, b1=self.b1, b2=self.b2)
        _positive(self, self.eps)

    def decays(self) -> tuple[float, ...]:
        return self.b1, self.b2


@dataclass(frozen=True)
class Adam(_Averaged):
    """m <- m + (1 - b1)(g - m), v <- b2 v + (1 - b2) g^2; step eta m^ / (sqrt(v^) + eps).

    The step is as good as g is relative to itself: where a g far below others is what is left of a
    sum, back ends differ by more than their rounding, unless eps is above it.

    Args:
        learning_rate: eta. b1, b2, eps: no unit; of the gradient: eps.
        catch_up, rule_rate: see the module.

    Raises:
        Invalid: rates as `SGD`; b1 or b2 outside [0, 1); eps <= 0.

    References:
        Kingma & Ba, ICLR 2015, algorithm 1. https://arxiv.org/abs/1412.6980
        torch.optim.SparseAdam, for a step count that all synapses share.

    Departures:
        SparseAdam adds eps to the root of v itself; here it is added to that of v^, as in the paper
        and torch.optim.Adam.
    """

    moments: ClassVar[tuple[str, ...]] = ("mean", "square")

    def moved(self, g: Array, old: Moments, step: int) -> tuple[Array, Moments]:
        mean = old[0] + (1 - self.b1) * (g - old[0])
        square = self.b2 * old[1] + (1 - self.b2) * g * g
        root = np.sqrt(square) / math.sqrt(1 - self.b2**step)
        return mean / (1 - self.b1**step) / (root + self.eps), (mean, square)


@dataclass(frozen=True)
class Adamax(_Averaged):
    """m <- m + (1 - b1)(g - m), u <- max(b2 u, |g| + eps); step eta m^ / u.

    The authors of DECOLLE and of ETLP train with it; DECOLLE's with b1 = 0.

    Args:
        learning_rate: eta. b1, b2, eps: no unit; of the gradient: eps.
        catch_up, rule_rate: see the module.

    Raises:
        Invalid: as `Adam`.

    References:
        Kingma & Ba, ICLR 2015, algorithm 2; eps as torch.optim.Adamax has it.
    """

    moments: ClassVar[tuple[str, ...]] = ("mean", "largest")
    learning_rate: float = 2e-3

    def moved(self, g: Array, old: Moments, step: int) -> tuple[Array, Moments]:
        mean = old[0] + (1 - self.b1) * (g - old[0])
        largest = np.maximum(self.b2 * old[1], np.abs(g) + self.eps)
        return mean / (1 - self.b1**step) / largest, (mean, largest)


def _entries(part: Any) -> tuple[Array, At]:
    """(values, where they are in the weight) of a delta: (k,), or [N_o, N_i] for all."""
    if isinstance(part, (Chosen, Sparse)):
        sparse = part.sparse()
        return sparse.values, (sparse.picked.rows, sparse.picked.columns)
    dense = part.dense()
    if isinstance(dense, np.ndarray):
        return np.asarray(dense, np.float64), ...
    if dense.requires_grad:
        raise Refused(
            "optimiser", "expected a delta without a graph of autograd, got one",
            "Learn under torch.no_grad(), or use plain rules where a gradient passes through",
        )  # fmt: skip
    return dense.cpu().numpy().astype(np.float64), ...


def _with(part: Any, values: Array) -> Sparse | Full:
    """A delta on the same synapses, in the same kind of array."""
    if isinstance(part, (Chosen, Sparse)):
        return Sparse(values, part.picked.pairs(), part.like)
    like = part.value if isinstance(part, Full) else part.left
    if isinstance(like, np.ndarray):
        return Full(values.astype(like.dtype))
    return Full(like.new_tensor(values))


def _rates(of: Transform, learning_rate: float, rule_rate: float) -> None:
    if not (0 <= learning_rate < math.inf and 0 < rule_rate < math.inf):
        raise Invalid(
            type(of).__name__, "expected a learning_rate >= 0 and a rule_rate > 0, both finite, "
            f"got {learning_rate} and {rule_rate}", "Pass rule_rate = the rule's learning_rate",
        )  # fmt: skip


def _below_one(of: Transform, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise Invalid(
                type(of).__name__, f"expected {name} in [0, 1), got {value}", "Pass a decay"
            )


def _positive(of: Transform, eps: float) -> None:
    if not 0 < eps < math.inf:
        raise Invalid(type(of).__name__, f"expected eps > 0, got {eps}", "Pass 1e-8, for example")

"""Plastic synapses in integers: the state that `learning.fixed_plan`'s equations move.

With a `GRASP` in the plan the step's error chooses the synapses to write, and each of them is
written by the random word that the dense rule would use, so that it changes bit for bit as there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.learning import fixed_kernels as kernels
from grasp_plugin.learning.convolved import patches
from grasp_plugin.learning.counter_random import uniform
from grasp_plugin.learning.deltas import Array, Full, Outer
from grasp_plugin.learning.fixed_plan import (
    TRACE_MAX,
    W_MAX,
    W_MIN,
    Y_MAX,
    Y_MIN,
    FixedPlan,
    refuse_bent_sums,
)
from grasp_plugin.learning.rounded import Rounded
from grasp_plugin.learning.rule import Factors
from grasp_plugin.learning.scores import Selection
from grasp_plugin.learning.states import State
from grasp_plugin.learning.worth import gradient_of
from grasp_plugin.network.weights import Conv

PRODUCTS = ("products", "dense_products", "dense_nz_products")


class Write(NamedTuple):
    """A step's write: y (N_o,), x (N_i,), the rounding's step, and which synapses; None: all."""

    y: Array
    x: Array
    draws: int
    picked: Selection | None


class FixedSynapses:
    """The integer state of one plastic projection, changed in place.

    Args:
        plan: from `fixed_plan`.
        weights: int [N_o, N_i], any memory order; a kernel as [C_out, C_in prod(K)]. Written in
            place.
        conv: the geometry, if it is a kernel: its weights get the sum over positions, rounded once.

    Attributes:
        clipped: counts of traces, errors and weights that met their limit.
        fresh: the weights with the writes that are under way, which carry errors down.
        transforms: with a `GRASP`, its state, and `changed`, int64 (1,): how many of the issued
            writes changed a weight, since most round to nothing; else None. Outlives `rest`.

    Raises:
        Refused: a `GRASP` over a convolution whose score or budget needs more than the sums.
    """

    def __init__(self, plan: FixedPlan, weights: Array, conv: Conv | None = None) -> None:
        self.plan, self.weights = plan, weights
        shape: tuple[int, int] = weights.shape if conv is None else conv.shape
        self.outputs, self.inputs = shape
        self._patches = None if conv is None else patches(conv)
        if conv is not None:
            refuse_bent_sums(plan.name, plan.grasp)
        self.clipped = {"traces": 0, "errors": 0, "weights": 0}
        self.draws = 0  # steps of rounding so far; goes on between sequences
        self.transforms: State | None = None
        if plan.grasp is not None:
            self.transforms = {**plan.grasp.init(weights), "changed": np.zeros(1, np.int64)}
        self.rest()

    def rest(self) -> None:
        """All traces at zero; weights, counts, the rounding and `transforms` go on."""
        self.x = [np.zeros(self.inputs, np.int64) for _ in self.plan.decays]
        self.steps = 0
        self.waiting: deque[Write] = deque()
        self.fresh = self.weights.copy() if self.plan.late else self.weights

    def trace(self, pre: Array) -> Array:
        """Advance the traces by one step with the inputs (N_i,) and return x (N_i,)."""
        self.steps += 1
        self.draws += 1
        spikes = pre.astype(np.int64)
        if not self.x:
            return spikes * self.plan.impulses[0]
        for i, decay in enumerate(self.plan.decays):
            key = kernels.key(self.plan.seed, self.draws, 1 + i)
            self.clipped["traces"] += kernels.decay(
                self.x[i], decay, self.plan.impulses[i], spikes, key, TRACE_MAX
            )
        return self.x[0].copy() if len(self.x) == 1 else self.x[0] - self.x[1]

    def error(self, factors: Factors) -> Array:
        """y (N_o,), from the factors of this step, (1, N) each."""
        if self.steps <= self.plan.burn_in:
            return np.zeros(self.outputs, np.int64)
        wanted = -self.plan.y_scale * self.plan.rule.error(factors)[0]
        if not np.isfinite(wanted).all():
            raise Invalid(
                self.plan.name, "expected finite errors, got NaN or infinity at step "
                f"{self.steps - 1}", "Go on from the weights kept, with a smaller learning rate",
            )  # fmt: skip
        draw = uniform(self.plan.seed, np.array([self.draws * 4]), wanted.size, wanted)
        rounded = np.floor(wanted + draw)
        y = np.minimum(np.maximum(rounded, Y_MIN), Y_MAX)
        self.clipped["errors"] += int(np.count_nonzero(y != rounded))
        return y.astype(np.int64)

    def pick(self, y: Array, x: Array, factors: Factors) -> Selection | None:
        """The synapses to write at this step; None: all. Advances `transforms`.

        A score with curvature takes M d for M e, e the float error: d is e in integers, and M is
        known along e alone where the layers above have gone on. The score "change" rounds first,
        by the random words of the write.
        """
        plan, state = self.plan, self.transforms
        if plan.grasp is None or state is None:
            return None
        d = -y / plan.y_scale if plan.y_scale else np.zeros(self.outputs)
        if self._patches is None:
            left = d[None]
            part: Outer | Full = Outer(left, plan.gain * x[None], -plan.rule.learning_rate)
            if factors.curvature is not None:
                error = plan.rule.error(factors)
                factors = replace(factors, curvature=_along(factors.curvature, left, error))
        else:
            scale = plan.gain / plan.y_scale if plan.y_scale else 0.0
            part = Full(scale * self._sums(y, x))  # -gradient: a step of size 1
            factors = replace(factors, curvature=None)
        extras: dict[str, Any] = {"factors": factors}
        if plan.grasp.score == "change":
            extras["gradient"] = Rounded(gradient_of(part), self._worth(y, x))
        delta, after = plan.grasp.update({"weight": part}, state, self.weights, **extras)
        if self._patches is not None:  # every position's product was formed
            more = (len(self._patches) - 1) * self.weights.size
            after |= {name: after[name] + more for name in PRODUCTS}
        self.transforms = {**after, "changed": state["changed"]}
        picked: Selection = delta["weight"].picked
        return picked

    def step(self, factors: Factors) -> bool:
        """Traces, error and write of one step, the write `plan.late` steps late; True if any."""
        x = self.trace(factors.pre[0])
        y = self.error(factors)
        entry = Write(y, x, self.draws, self.pick(y, x, factors))
        self.waiting.append(entry)
        if self.plan.late:
            self._write(self.fresh, entry)
        if len(self.waiting) <= self.plan.late:
            return False
        entry = self.waiting.popleft()
        self._write(self.weights, entry)
        return bool(entry.y.any()) and (entry.picked is None or entry.picked.size > 0)

    def flush(self) -> None:
        """Make the writes that are under way, at the end of a sequence."""
        while self.waiting:
            self._write(self.weights, self.waiting.popleft())

    def _worth(self, y: Array, x: Array) -> Array:
        """|gradient x change| of every synapse, [N_o, N_i], in units of the loss.

        The change is what is left of a write at the limits of its weight as it will be then.
        """
        plan = self.plan
        sums = np.multiply.outer(y, x) if self._patches is None else self._sums(y, x)
        added = 2 * kernels.changes(sums, plan.shift, kernels.key(plan.seed, self.draws, 3))
        changes = np.clip(self.fresh + added, W_MIN, W_MAX) - self.fresh
        per = plan.gain / plan.y_scale if plan.y_scale else 0.0  # gradient for one unit of y x
        unit = plan.rule.learning_rate * per * 2.0**plan.shift  # float per weight unit
        worth: Array = abs(unit * per) * np.abs(sums * changes)
        return worth

    def _sums(self, y: Array, x: Array) -> Array:
        """sum over positions of y x, [C_out, C_in prod(K)]."""
        sums: Array = y.reshape(len(self.weights), -1) @ np.append(x, 0)[self._patches]
        return sums

    def _write(self, weights: Array, entry: Write) -> None:
        y, x, draws, picked = entry
        limits = self.plan.shift, W_MIN, W_MAX, kernels.key(self.plan.seed, draws, 3)
        changed, shared = 0, self._patches is not None
        if picked is None and shared:
            clipped = kernels.write_sums(weights, self._sums(y, x), *limits)
        elif picked is None:
            clipped = kernels.write(weights, y, x, *limits)
        elif shared:
            clipped, changed = kernels.write_picked_sums(weights, self._sums(y, x), picked, *limits)
        else:
            clipped, changed = kernels.write_picked(weights, y, x, picked, *limits)
        if weights is self.weights:
            self.clipped["weights"] += clipped
            if self.transforms is not None:
                total = self.transforms["changed"] + changed
                self.transforms = {**self.transforms, "changed": total}


def _along(curvature: Callable[..., Array], left: Array, error: Array) -> Callable[..., Array]:
    """The curvature, with the float error in place of its integer form `left`."""

    def product(u: Any, kind: str = "gn") -> Array:
        return curvature(error if u is left else u, kind)

    product.macs = getattr(curvature, "macs", 0)  # type: ignore[attr-defined]
    return product

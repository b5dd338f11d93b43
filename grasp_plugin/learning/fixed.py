"""Plastic synapses in integers: the state that `learning.fixed_plan`'s equations move."""

from __future__ import annotations

from collections import deque

import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.learning import fixed_kernels as kernels
from grasp_plugin.learning.convolved import patches
from grasp_plugin.learning.counter_random import uniform
from grasp_plugin.learning.fixed_plan import TRACE_MAX, W_MAX, W_MIN, Y_MAX, Y_MIN, FixedPlan
from grasp_plugin.learning.rule import Array, Factors
from grasp_plugin.network.weights import Conv


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
    """

    def __init__(self, plan: FixedPlan, weights: Array, conv: Conv | None = None) -> None:
        self.plan, self.weights = plan, weights
        shape: tuple[int, int] = weights.shape if conv is None else conv.shape
        self.outputs, self.inputs = shape
        self._patches = None if conv is None else patches(conv)
        self.clipped = {"traces": 0, "errors": 0, "weights": 0}
        self.draws = 0  # steps of rounding so far; goes on between sequences
        self.rest()

    def rest(self) -> None:
        """All traces at zero; weights, counts and the rounding go on."""
        self.x = [np.zeros(self.inputs, np.int64) for _ in self.plan.decays]
        self.steps = 0
        self.waiting: deque[tuple[Array, Array, int]] = deque()
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
        if not np.all(np.isfinite(wanted)):
            raise Invalid(
                self.plan.name, "expected finite errors, got NaN or infinity at step "
                f"{self.steps - 1}", "Go on from the weights kept, with a smaller learning rate",
            )  # fmt: skip
        draw = uniform(self.plan.seed, np.array([self.draws * 4]), wanted.size, wanted)
        y = np.floor(wanted + draw).astype(np.int64)
        self.clipped["errors"] += int(np.sum((y < Y_MIN) | (y > Y_MAX)))
        return np.clip(y, Y_MIN, Y_MAX)

    def step(self, factors: Factors) -> bool:
        """Traces, error and write of one step, the write `plan.late` steps late; True if any."""
        x = self.trace(factors.pre[0])
        entry = self.error(factors), x, self.draws
        self.waiting.append(entry)
        if self.plan.late:
            self._write(self.fresh, *entry)
        if len(self.waiting) <= self.plan.late:
            return False
        y, x, draws = self.waiting.popleft()
        self._write(self.weights, y, x, draws)
        return bool(y.any())

    def flush(self) -> None:
        """Make the writes that are under way, at the end of a sequence."""
        while self.waiting:
            self._write(self.weights, *self.waiting.popleft())

    def _write(self, weights: Array, y: Array, x: Array, draws: int) -> None:
        key = kernels.key(self.plan.seed, draws, 3)
        if self._patches is None:
            clipped = kernels.write(weights, y, x, self.plan.shift, W_MIN, W_MAX, key)
        else:
            sums = y.reshape(len(weights), -1) @ np.append(x, 0)[self._patches]
            clipped = kernels.write_sums(weights, sums, self.plan.shift, W_MIN, W_MAX, key)
        if weights is self.weights:
            self.clipped["weights"] += clipped

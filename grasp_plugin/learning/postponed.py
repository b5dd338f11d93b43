"""Updates that wait until their weight is read: a step visits only the inputs that spike.

A rule with traces of shape (N_i,) adds e[s] t_j[s] to column j of W at every step s, e = -eta d
(N_o,). Between two spikes of input j its trace decays on its own,

    t_j[s] = sum_m a_jm k_m^(s - s_j)          a_jm: what input j's last spike left at step s_j

so that all updates of the column from s_j up to step n are two rows of one sum over time,

    w_j += sum_m a_jm k_m^(base - s_j) (G_m[n] - G_m[s_j])
    G_m[n] = sum_{base <= s < n} k_m^(s - base) e[s]

The column is settled so when its input spikes, just before it is read for W pre and its trace
jumps. The weights are those of the step-by-step rule up to rounding. Modes m, decays k:

    trace                          modes              amplitudes
    Instant                        0                  t
    Exponential, Average           k                  t
    DoubleExponential              alpha, beta        p - c q, c q     c = g_p / (beta - alpha)
    CurrentExponential             k, b               p - c q, c q     c = b / (b - k)

The two rows nearly cancel once k^(n - base) is small, so a new base begins before it falls below
`SMALLEST`: at most 1 / SMALLEST times the rounding of G. A gap over several bases is a sum over
them. G is kept for `STEPS` steps; then all columns are settled at once: one pass over the matrix,
of which a step bears 1 / STEPS (at 1000 x 1000 some 8 us of 0.14 ms).
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from grasp_plugin.errors import Refused
from grasp_plugin.learning.deltas import Array, Outer, number
from grasp_plugin.learning.kernels import jit
from grasp_plugin.learning.rule import Plan, Rule, ThreeFactor, Trace
from grasp_plugin.learning.states import State
from grasp_plugin.learning.traces import (
    Average,
    CurrentExponential,
    DoubleExponential,
    Exponential,
    Instant,
)
from grasp_plugin.learning.transforms import BurnIn

STEPS = 256  # of history
SMALLEST = 1e-2  # k^(n - base) within one base
NEGLIGIBLE = 1e-30  # what is left of a trace that counts as forgotten
APART = 1e-3  # of two decays, so that c stays small


@dataclass(frozen=True)
class Modes:
    """How a trace decays between spikes.

    Args:
        decays: k_m, one or two.
        coupling: c of the second mode.
    """

    decays: tuple[float, ...]
    coupling: float = 0.0


def modes_of(plan: Rule | None, name: str) -> Modes:
    """The modes of a plan whose updates can wait.

    Raises:
        Refused: no `ThreeFactor` rule, a transform other than `BurnIn`, a trace for each synapse, a
            decay for each input, or two decays closer than `APART`.
    """
    transforms = plan.transforms if isinstance(plan, Plan) else ()
    rule = plan.rule if isinstance(plan, Plan) else plan
    other = [type(t).__name__ for t in transforms if not isinstance(t, BurnIn)]
    if other:
        raise _refused(name, "a plan without transforms that see single steps", ", ".join(other))
    if not isinstance(rule, ThreeFactor):
        raise _refused(name, "a ThreeFactor rule in float", type(rule).__name__)
    return _modes(rule.trace, name)


def _modes(trace: Trace, name: str) -> Modes:
    if isinstance(trace, Instant):
        return Modes((0.0,))
    if isinstance(trace, (Exponential, Average)):
        return Modes((_one(trace.decay, name),))
    if isinstance(trace, DoubleExponential):
        outer, inner = _one(trace.alpha, name), _one(trace.beta, name)
        gain = 1 - outer if trace.gain_p is None else trace.gain_p
    elif isinstance(trace, CurrentExponential):
        outer, inner = _one(trace.decay, name), _one(trace.current, name)
        gain = inner
    else:
        raise _refused(name, "a trace for each input", type(trace).__name__)
    if abs(inner - outer) < APART:
        raise _refused(name, f"decays at least {APART} apart", f"{outer} and {inner}")
    return Modes((outer, inner), gain / (inner - outer))


def _one(decay: Any, name: str) -> float:
    if isinstance(decay, float):
        return decay
    raise _refused(name, "one decay for all inputs", "one for each")


def _refused(name: str, expected: str, got: str) -> Refused:
    return Refused(
        name, f"expected {expected} for postponed updates, got {got}",
        "Use PlasticDense, which leaving it out of postponed does",
    )  # fmt: skip


@jit
def _settle(j, now, columns, last, amplitudes, decays, lengths, history):
    """Column j with all updates before step `now`, and its amplitudes at `now`."""
    start = last[j]
    if start == now:
        return
    last[j] = now
    w = columns[j]
    for m in range(decays.size):
        a, k = amplitudes[m, j], decays[m]
        if a == 0:
            continue
        at = start
        while at < now:
            base = at - at % lengths[m]
            reached = k ** (base - start)
            if reached < NEGLIGIBLE:
                break
            end = min(base + lengths[m], now)
            factor, new, old = a * reached, history[m, end], history[m, at]
            if at > base:
                for o in range(w.size):
                    w[o] += factor * (new[o] - old[o])
            else:
                for o in range(w.size):
                    w[o] += factor * new[o]
            at = end
        left = k ** (now - start)
        amplitudes[m, j] = a * left if left > NEGLIGIBLE else 0.0


@jit
def _settle_all(now, columns, last, amplitudes, decays, lengths, history):
    for j in range(last.size):
        _settle(j, now, columns, last, amplitudes, decays, lengths, history)


@jit
def _gather(x, out, now, columns, last, amplitudes, decays, lengths, history):
    """out = W x, the columns of inputs that are not zero settled on the way."""
    out[:] = 0
    for j in range(x.size):
        y = x[j]
        if y != 0:
            _settle(j, now, columns, last, amplitudes, decays, lengths, history)
            w = columns[j]
            for o in range(out.size):
                out[o] += y * w[o]


@jit
def _advance(
    pre, t, q, coupling, error, scale, now, columns, last, amplitudes, decays, lengths, history
):  # fmt: skip
    """The jump of the traces of inputs that spike, then G[now + 1]."""
    for j in range(pre.size):
        if pre[j] != 0:
            _settle(j, now, columns, last, amplitudes, decays, lengths, history)
            amplitudes[0, j] = t[j]
            if decays.size > 1:
                amplitudes[1, j] = coupling * q[j]
                amplitudes[0, j] -= coupling * q[j]
    for m in range(decays.size):
        at = now % lengths[m]
        factor, new, old = scale * decays[m] ** at, history[m, now + 1], history[m, now]
        if at > 0:
            for o in range(error.size):
                new[o] = old[o] + factor * error[o]
        else:
            for o in range(error.size):
                new[o] = factor * error[o]


class Postponed:
    """The weights of one projection, N_o x N_i floats kept by input, and updates under way.

    Args:
        weights: (N_o, N_i), copied.
        modes: of the plan's trace, from `modes_of`.

    Memory beside the weights: `STEPS` + 1 times N_o floats for each mode.
    """

    def __init__(self, weights: Array, modes: Modes) -> None:
        rows, inputs = weights.shape
        self.columns = np.array(weights.T, order="C", dtype=np.float64)
        self.coupling = modes.coupling
        self.now = 0
        count = len(modes.decays)
        self._last = np.zeros(inputs, np.int64)
        self._amplitudes = np.zeros((count, inputs))
        self._decays = np.array(modes.decays)
        self._lengths = np.array([_length(k) for k in modes.decays])
        self._history = np.zeros((count, STEPS + 1, rows))

    def gather(self, x: Array) -> Array:
        """W x (N_o,) with the weights that the last step left."""
        out = np.empty(self.columns.shape[1])
        _gather(x, out, self.now, self.columns, *self._waiting())
        return out

    def back(self, error: Array) -> Array:
        """W^T error (N_i,): the settled part, and what waits, which is a product with G."""
        out = self.columns @ error
        _, _, decays, lengths, history = self._waiting()
        rows = (history[:, : self.now + 1] @ error)[:, :, None]
        _settle_all(
            self.now, out.reshape(-1, 1), self._last.copy(), self._amplitudes.copy(), decays,
            lengths, rows,
        )  # fmt: skip
        return out

    def add(self, delta: Outer, pre: Array, trace: State) -> None:
        """W += delta, in time.

        Args:
            delta: scale e (x) t of one sample.
            pre: the input of the step (N_i,).
            trace: the trace's state after the step.
        """
        t = delta.right[0]
        _advance(
            pre, t, trace["q"][0] if self._decays.size > 1 else t, self.coupling, delta.left[0],
            number(delta.scale), self.now, self.columns, *self._waiting(),
        )  # fmt: skip
        self.now += 1
        if self.now == STEPS:
            self.settle()
            self.now = 0
            self._last[:] = 0

    def settle(self) -> Array:
        """Make all updates that wait; the weights (N_o, N_i), a view."""
        _settle_all(self.now, self.columns, *self._waiting())
        return self.columns.T

    def replace(self, weights: Array) -> None:
        """Other weights (N_o, N_i) in place of those settled; the traces go on."""
        self.settle()
        self.columns[...] = weights.T

    def rest(self) -> None:
        """Settle, and forget the traces."""
        self.settle()
        self.now = 0
        self._last[:] = 0
        self._amplitudes[:] = 0

    def _waiting(self) -> tuple[Array, ...]:
        return self._last, self._amplitudes, self._decays, self._lengths, self._history


def _length(decay: float) -> int:
    """Steps of one base: k^length >= SMALLEST."""
    if decay in (0.0, 1.0):
        return STEPS if decay else 1
    return max(1, min(STEPS, math.floor(math.log(SMALLEST) / math.log(decay))))

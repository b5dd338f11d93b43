"""What a rule changes: deltas of weights by their factors, formed only when asked.

A delta is a dict: "weight" holds one of `Outer`, `PerSynapse`, `Full` (all with `dense()`,
[N_o, N_i]), "bias" an array [N_o] where the rule has one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace

Array = Any  # a NumPy array or torch tensor
Delta = dict[str, Any]
TINY, HUGE = 1e-200, 1e200  # squares that neither underflow nor overflow


@dataclass(frozen=True, eq=False)
class Outer:
    """scale * left^T right, never formed until asked: rank <= batch.

    Args:
        left: (batch, N_o); right: (batch, N_i); scale: a number or (1,).
    """

    left: Array
    right: Array
    scale: Array

    def dense(self) -> Array:
        return self.scale * (self.left.T @ self.right)

    def bound(self) -> float:
        """At least the largest |entry|; infinite or NaN if a factor is."""
        bound = abs(number(self.scale)) * size(self.left) * size(self.right)
        return _within(bound, self.left)

    def scaled(self, by: Array) -> Outer:
        return replace(self, scale=self.scale * by)


@dataclass(frozen=True, eq=False)
class PerSynapse:
    """scale * sum_b left[b, o] eligibility[b, o, i]: a trace for each synapse, not of low rank.

    Args:
        left: (batch, N_o); eligibility: (batch, N_o, N_i); scale: a number or (1,).
    """

    left: Array
    eligibility: Array
    scale: Array

    def dense(self) -> Array:
        xp = array_namespace(self.left)
        by_neuron = xp.permute_dims(self.eligibility, (1, 0, 2))
        return self.scale * (self.left.T[:, None, :] @ by_neuron)[:, 0, :]

    def bound(self) -> float:
        """At least the largest |entry|; infinite or NaN if a factor is."""
        bound = abs(number(self.scale)) * size(self.left) * size(self.eligibility)
        return _within(bound, self.left)

    def scaled(self, by: Array) -> PerSynapse:
        return replace(self, scale=self.scale * by)


@dataclass(frozen=True, eq=False)
class Full:
    """A delta that has no factors any more, such as a sum over time: value, or scale * value.

    Args:
        value: (N_o, N_i); scale: minus the step size, a number, of a gradient; None: not known.
    """

    value: Array
    scale: float | None = None

    def dense(self) -> Array:
        return self.value if self.scale is None else self.scale * self.value

    def bound(self) -> float:
        """At least the largest |entry|; infinite or NaN if one is."""
        return size(self.value) * abs(1.0 if self.scale is None else self.scale)

    def scaled(self, by: Array) -> Full:
        return Full(self.dense() * by)


def scaled(delta: Delta, by: Array) -> Delta:
    """Every entry of a delta times a number (or an array of shape (1,))."""
    return {k: v.scaled(by) if hasattr(v, "scaled") else v * by for k, v in delta.items()}


def _within(bound: float, like: Array) -> float:
    """bound, or infinity where it does not fit like's dtype."""
    if bound < 6e4:  # fits the smallest dtype
        return bound
    return bound if bound <= float(array_namespace(like).finfo(like.dtype).max) else math.inf


def size(value: Array) -> float:
    """The 2-norm of an array, or its sum of magnitudes: either is at least the largest |entry|,
    and the product of two arrays' sizes at least the largest |sum over the batch|."""
    if isinstance(value, np.ndarray) and value.dtype == np.float64:
        squares = float(np.vdot(value, value))  # several times faster than the sum
        if TINY < squares < HUGE:
            return math.sqrt(squares)
    return float(abs(value).sum())


def number(value: Array) -> float:
    """A number, or an array of one, as float."""
    return float(value if isinstance(value, (int, float)) else value.reshape(-1)[0])


def is_finite(delta: Delta) -> bool:
    """False if the delta holds NaN or infinity, or its factors could overflow when multiplied.

    One sum over each factor: the product of their sizes bounds every entry.
    """
    return all(math.isfinite(v.bound() if hasattr(v, "bound") else size(v)) for v in delta.values())

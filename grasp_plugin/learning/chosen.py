"""Deltas of some synapses only: what update schedulers pass on.

Chosen   of a rank-1 delta, as its two factors and a selection      batch 1
Sparse   of any delta, as one number for each synapse
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from grasp_plugin.learning.deltas import Array, size
from grasp_plugin.learning.selection import Pairs, Picked, write_picked


@dataclass(frozen=True, eq=False)
class Chosen:
    """scale left right^T at the picked synapses, 0 elsewhere; batch 1.

    Args:
        left: (N_o,); right: (N_i,); scale: a number; picked: which. NumPy float64.
        like: an array whose kind and dtype `dense` returns.
    """

    left: Array
    right: Array
    scale: float
    picked: Picked | Pairs
    like: Array

    def dense(self) -> Array:
        out = np.zeros((self.left.size, self.right.size))
        self.add_to(out)
        return _as(out, self.like)

    def add_to(self, weights: Array) -> int:
        """weights += this, in place, the picked ones only; returns how many were written."""
        return write_picked(weights, self.left, self.right, self.scale, self.picked)

    def sparse(self) -> Sparse:
        """The same, one number for each synapse."""
        pairs = self.picked.pairs()
        values = self.scale * self.left[pairs.rows] * self.right[pairs.columns]
        return Sparse(values, pairs, self.like)

    def scaled(self, by: Array) -> Chosen:
        return replace(self, scale=self.scale * float(np.asarray(by).reshape(-1)[0]))

    def to_state(self) -> dict[str, Array]:
        """As a dict of arrays, for a delta that waits in a state."""
        picked = {k: v for k, v in vars(self.picked).items() if isinstance(v, np.ndarray)}
        return {"left": self.scale * self.left, "right": self.right, "like": self.like, **picked}

    def bound(self) -> float:
        """At least the largest |entry|; infinite or NaN if a factor is."""
        return abs(self.scale) * size(self.left) * size(self.right)


@dataclass(frozen=True, eq=False)
class Sparse:
    """values[n] at synapse (rows[n], columns[n]), 0 elsewhere.

    Args:
        values: (k,), NumPy float64; picked: which, each once.
        like: an array whose kind and dtype `dense` returns.
    """

    values: Array
    picked: Pairs
    like: Array

    def dense(self) -> Array:
        out = np.zeros(self.picked.shape)
        self.add_to(out)
        return _as(out, self.like)

    def add_to(self, weights: Array) -> int:
        """weights += this, in place, the picked ones only; returns how many were written."""
        weights[self.picked.rows, self.picked.columns] += self.values
        return self.picked.size

    def sparse(self) -> Sparse:
        """Itself."""
        return self

    def scaled(self, by: Array) -> Sparse:
        return replace(self, values=self.values * float(np.asarray(by).reshape(-1)[0]))

    def to_state(self) -> dict[str, Array]:
        """As a dict of arrays, for a delta that waits in a state."""
        picked = {"rows": self.picked.rows, "columns": self.picked.columns}
        return {
            "values": self.values, "shape": np.array(self.picked.shape), "like": self.like, **picked
        }  # fmt: skip

    def bound(self) -> float:
        """At least the largest |entry|; infinite or NaN if one is."""
        return size(self.values)


def from_state(state: Mapping[str, Array]) -> Chosen | Sparse:
    """What `to_state` made."""
    if "values" in state:
        rows, columns = int(state["shape"][0]), int(state["shape"][1])
        pairs = Pairs(state["rows"], state["columns"], (rows, columns))
        return Sparse(state["values"], pairs, state["like"])
    left, right = state["left"], state["right"]
    if "counts" in state:
        picked: Picked | Pairs = Picked(state["counts"], state["order"])
    else:
        picked = Pairs(state["rows"], state["columns"], (left.size, right.size))
    return Chosen(left, right, 1.0, picked, state["like"])


def _as(out: Array, like: Array) -> Array:
    """A NumPy array as like's kind and dtype, on its device."""
    return out.astype(like.dtype) if isinstance(like, np.ndarray) else like.new_tensor(out)

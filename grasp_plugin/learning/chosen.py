"""A delta of some synapses only: what update schedulers pass on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from grasp_plugin.learning.selection import Pairs, Picked, write_picked

Array = Any  # a NumPy array or torch tensor


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
        if isinstance(self.like, np.ndarray):
            return out.astype(self.like.dtype)
        return self.like.new_tensor(out)

    def add_to(self, weights: Array) -> int:
        """weights += this, in place, the picked ones only; returns how many were written."""
        return write_picked(weights, self.left, self.right, self.scale, self.picked)

    def scaled(self, by: Array) -> Chosen:
        return replace(self, scale=self.scale * float(np.asarray(by).reshape(-1)[0]))

    def to_state(self) -> dict[str, Array]:
        """As a dict of arrays, for a delta that waits in a state."""
        picked = {k: v for k, v in vars(self.picked).items() if k != "shape"}
        return {"left": self.scale * self.left, "right": self.right, "like": self.like, **picked}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Chosen:
        """What `to_state` made."""
        left, right = state["left"], state["right"]
        if "counts" in state:
            picked: Picked | Pairs = Picked(state["counts"], state["order"])
        else:
            picked = Pairs(state["rows"], state["columns"], (left.size, right.size))
        return cls(left, right, 1.0, picked, state["like"])

    def bound(self) -> float:
        """At least the largest |entry|; infinite or NaN if a factor is."""
        return float(np.abs(self.left).sum() * np.abs(self.right).sum() * abs(self.scale))

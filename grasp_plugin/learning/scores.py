"""What each synapse's write is worth at a step, and how many, and which, to take by it.

    Separable   score_oi = a_o q_i, batch 1       every selection without an N_o x N_i array
    Table       any scores [N_o, N_i]             batches, per-synapse traces

Both answer the same questions (`top`, `above`, `covering`, `some`) and break ties by row and then
by column, so that the two agree wherever both apply. `in_blocks` sums scores over blocks of
synapses that are written together; `spread` turns chosen blocks back into synapses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from grasp_plugin.learning import selection
from grasp_plugin.learning.selection import Pairs, Picked
from grasp_plugin.network.weights import Array

Selection = Picked | Pairs
Block = tuple[int, int]


class Scores(ABC):
    """Scores of all synapses of a projection at one step; only positive ones are ever taken.

    Attributes:
        shape: (N_o, N_i).
        sharpness: of the instantaneous loss, a number; None where nothing asked for it.
        gradient: |g|, a number.
    """

    shape: tuple[int, int]
    sharpness: float | None
    gradient: float

    @property
    def size(self) -> int:
        """N_o N_i."""
        return self.shape[0] * self.shape[1]

    @abstractmethod
    def top(self, k: int) -> Selection:
        """The k largest."""

    @abstractmethod
    def above(self, tau: float) -> Selection:
        """All above tau >= 0."""

    @abstractmethod
    def covering(self, share: float) -> Selection:
        """The fewest that hold `share` of the sum of all positive ones."""

    @abstractmethod
    def some(self, k: int, seed: int) -> Selection:
        """k of the positive ones at random, all equally likely."""

    @abstractmethod
    def least(self, picked: Selection) -> float:
        """The smallest score among the picked; 0 if none is."""

    @abstractmethod
    def in_blocks(self, block: Block) -> Scores:
        """Sums over blocks of (rows, columns); the last of a line may be smaller."""

    def everything(self) -> Selection:
        """All synapses, whatever their score."""
        return Picked(np.full(self.shape[0], self.shape[1]), np.arange(self.shape[1]))


@dataclass(frozen=True, eq=False)
class Separable(Scores):
    """Scores a_o q_i.

    Args:
        a: (N_o,), any sign; q: (N_i,), not negative.
    """

    a: Array
    q: Array
    sharpness: float | None = None
    gradient: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.a.size, self.q.size

    def top(self, k: int) -> Selection:
        return selection.top(self.a, self.q, k)

    def above(self, tau: float) -> Selection:
        return selection.above(self.a, self.q, tau)

    def covering(self, share: float) -> Selection:
        return selection.covering(self.a, self.q, share)

    def some(self, k: int, seed: int) -> Selection:
        alive = np.flatnonzero(self.a > 0), np.flatnonzero(self.q > 0)
        return selection.some(*alive, k, self.shape, seed)

    def least(self, picked: Selection) -> float:
        if isinstance(picked, Pairs):
            worth = self.a[picked.rows] * self.q[picked.columns]
        else:
            rows = np.flatnonzero(picked.counts)
            worth = self.a[rows] * self.q[picked.order[picked.counts[rows] - 1]]
        return float(worth.min(initial=np.inf)) if worth.size else 0.0

    def in_blocks(self, block: Block) -> Scores:
        a, q = (_sums(v, n, 0) for v, n in zip((self.a, self.q), block, strict=True))
        return Separable(a, q, self.sharpness, self.gradient)


@dataclass(frozen=True, eq=False)
class Table(Scores):
    """Scores as an array.

    Args:
        r: [N_o, N_i].
    """

    r: Array
    sharpness: float | None = None
    gradient: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        rows, columns = self.r.shape
        return rows, columns

    def top(self, k: int) -> Selection:
        k = min(k, int(np.count_nonzero(self.r > 0)))
        if not k:
            return self._where(np.zeros(self.shape, bool))
        tau = np.partition(self.r, self.r.size - k, axis=None)[self.r.size - k]
        taken = self.r > tau
        tied = np.flatnonzero(self.r == tau)[: k - int(taken.sum())]
        taken.reshape(-1)[tied] = True
        return self._where(taken)

    def above(self, tau: float) -> Selection:
        return self._where(self.r > tau)

    def covering(self, share: float) -> Selection:
        falling = np.sort(self.r[self.r > 0])[::-1]
        if not falling.size:
            return self.top(0)
        sums = np.cumsum(falling)
        last = min(int(np.searchsorted(sums, share * sums[-1])), falling.size - 1)
        return self._where(self.r >= falling[last])

    def some(self, k: int, seed: int) -> Selection:
        alive = np.flatnonzero(self.r > 0)
        take = min(k, alive.size)
        draw = np.random.default_rng(seed).choice(alive, take, replace=False, shuffle=False)
        return Pairs(draw // self.shape[1], draw % self.shape[1], self.shape)

    def least(self, picked: Selection) -> float:
        pairs = picked.pairs()
        worth = self.r[pairs.rows, pairs.columns]
        return float(worth.min()) if worth.size else 0.0

    def in_blocks(self, block: Block) -> Scores:
        r = _sums(_sums(self.r, block[0], 0), block[1], 1)
        return Table(r, self.sharpness, self.gradient)

    def _where(self, taken: Array) -> Pairs:
        rows, columns = np.nonzero(taken)
        return Pairs(rows, columns, self.shape, self.r.size)


def _sums(values: Array, width: int, axis: int) -> Array:
    """Sums of `width` neighbours along an axis."""
    if width == 1:
        return values
    return np.add.reduceat(values, np.arange(0, values.shape[axis], width), axis=axis)


def spread(picked: Selection, block: Block, shape: tuple[int, int]) -> Selection:
    """The synapses of chosen blocks, for a projection of shape (N_o, N_i)."""
    if block == (1, 1):
        return picked
    height, width = block
    if isinstance(picked, Pairs):
        inside = np.indices(block).reshape(2, -1)
        rows = (picked.rows[:, None] * height + inside[0]).ravel()
        columns = (picked.columns[:, None] * width + inside[1]).ravel()
        real = (rows < shape[0]) & (columns < shape[1])
        return Pairs(rows[real], columns[real], shape, picked.compared)
    widths = np.minimum(width, shape[1] - picked.order * width)
    first = np.repeat(picked.order * width - (np.cumsum(widths) - widths), widths)
    counts = np.concatenate([[0], np.cumsum(widths)])[picked.counts]
    rows = np.arange(shape[0]) // height
    return Picked(counts[rows], np.arange(shape[1]) + first, picked.compared)

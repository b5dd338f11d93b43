"""A holder's end of a shared price where messages take steps, as on Lava.

A price that is sent at Lava step s is meant for network step s - first, `first` the step at which
the first holder begins; a holder that begins `price_wait` steps later keeps it so long. Its report
of a network step waits for those of the last holder, so that all of a step arrive together.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from grasp_plugin.learning.deltas import Array
from grasp_plugin.learning.shared_budget import SharedPrice


@dataclass(frozen=True)
class Place:
    """Where a holder stands.

    Args:
        at: its GRASP's place among the plan's transforms.
        slot: its place among the holders.
        holders: how many share the price.
        price_wait, report_wait: steps that a price and a report wait here.
    """

    at: str
    slot: int
    holders: int
    price_wait: int
    report_wait: int


def place_of(price: SharedPrice, plan: str) -> Place | None:
    """The place of a plan among the holders of a price; None if it is not one."""
    arrivals = [h.arrival for h in price.holders]
    for slot, h in enumerate(price.holders):
        if h.plan == plan:
            return Place(
                h.at, slot, len(arrivals), h.arrival - min(arrivals), max(arrivals) - h.arrival
            )
    return None


class Post:
    """Prices and reports under way at one holder."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._prices: deque[float] = deque()
        self._reports: deque[tuple[int, float]] = deque()

    def rest(self) -> None:
        """Before a new sequence."""
        self._prices.clear()
        self._reports.clear()

    def price(self, arrived: float) -> float:
        """log c for this step of the holder, from the one that has just arrived."""
        self._prices.append(arrived)
        if len(self._prices) > self.place.price_wait:
            return self._prices.popleft()
        return -np.inf

    def report(self, taken: int, least: float) -> Array:
        """What to send at this step: (taken, least) of every holder, zeros but for this one.

        Args:
            taken, least: of this step; both 0 where nothing is learned.

        Returns:
            (2 holders,); the sum over holders is the table of all.
        """
        out = np.zeros((self.place.holders, 2))
        self._reports.append((taken, least))
        if len(self._reports) > self.place.report_wait:
            out[self.place.slot] = self._reports.popleft()
        return out.ravel()

"""`UpdateMeter`: what learning wrote and what that took, read off the counts of schedulers.

    writes        issued = sum_t k_t                 dense: N_o N_i a step; dense_nz: without zeros
    weights       2 writes                           accesses: each weight is read and written
    state         2 writes s                         accesses, s arrays of an optimiser's moments
    products      of an error and a trace            issued (batch 1, rank 1), else all of them
    overhead      multiplications and comparisons spent on choosing

Nothing is estimated: issued, products and overhead are `GRASP`'s own counts, and accesses to state
those of the lazy optimisers in `learning.optimise`. Two rules that were not run are set beside
them: the dense rule, which writes every synapse at every step, and the same without its idle
writes, the fair one where surrogates have compact support and inputs are silent. Where a gradient
is a sum (over a batch, or the positions of a kernel) it is formed in full, so that fewer writes
save no products. The arithmetic of an optimiser's step is not counted, in any of the three.

A step that was refused for NaN or infinity is counted and was not made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.spec import Learning
from grasp_plugin.learning.states import State, leaves
from grasp_plugin.learning.updates import Reading, Row, Updates
from grasp_plugin.network.weights import Array


class Scheduled(Protocol):
    """What is metered: a `LearningSession`, as far as its counts go."""

    learning: Learning

    def transforms(self) -> dict[str, State]:
        """By plan, the states of its lasting transforms, by their place."""


class UpdateMeter:
    """Reads a session's counts: of all its learning so far, and what a checkpoint brought with it.

        meter = UpdateMeter(session)
        before = meter.read()
        session.learn(spikes, label)
        meter.since(before).total.share  # str() of a reading is its table

    Args:
        session: with a `GRASP` in one plan at least. To count the dense rule, schedule
            `GRASP(Everything(), "magnitude")`, which writes what it writes.

    Raises:
        Invalid: no plan has a scheduler.
    """

    def __init__(self, session: Scheduled) -> None:
        self._session = session
        if len(self.read().uncounted) == len(session.learning.plans):
            raise Invalid(
                "UpdateMeter", "expected a scheduler, which counts, in one plan at least, got none",
                "Pass scheduled(learning, GRASP(...)) when building",
            )  # fmt: skip

    def read(self) -> Reading:
        """The counts now."""
        states = self._session.transforms()
        plans = self._session.learning.plans
        return Reading({name: _updates(name, states.get(name, {})) for name in plans})

    def since(self, earlier: Reading) -> Reading:
        """What was counted since `earlier`, as `Reading.since`."""
        return self.read().since(earlier)

    def table(self) -> list[Row]:
        """As `Reading.table`, of the counts now."""
        return self.read().table()

    def series(self, name: str) -> Series:
        """k, sharpness and |g| of a plan's last steps.

        Raises:
            Invalid: an unknown plan, or one whose `GRASP` keeps no series.
        """
        scheduler = _scheduler(self._session.transforms().get(name, {}))
        if scheduler is None or "k" not in scheduler:
            raise Invalid(
                name, "expected a plan whose scheduler keeps a series, got none",
                "Pass GRASP(series=n), n steps",
            )  # fmt: skip
        steps, size = int(scheduler["steps"][0]), scheduler["k"].size
        step = np.arange(max(0, steps - size), steps)
        at = step % size
        return Series(step, *(scheduler[key][at] for key in ("k", "sharpness", "gradient")))

    def __str__(self) -> str:
        return str(self.read())


@dataclass(frozen=True, eq=False)
class Series:
    """The last steps of a scheduler, oldest first; all arrays (n,).

    Args:
        step: since the first step of learning.
        k: synapses written.
        sharpness: of the loss, in its unit; NaN where not known.
        gradient: |g|, in units of the loss by the weight.
    """

    step: Array
    k: Array
    sharpness: Array
    gradient: Array


def _scheduler(states: State) -> State | None:
    """The state that holds a scheduler's counts."""
    return next((s for s in states.values() if "issued" in s), None)


def _updates(name: str, states: State) -> Updates | None:
    counts = _scheduler(states)
    if counts is None:
        return None
    optimisers = [s for s in states.values() if "touched" in s]
    arrays = sum(v.ndim == 2 for s in optimisers for _, v in leaves(s))
    dense, live = int(counts["dense"][0]), int(counts["dense_nz"][0])
    own = ("steps", "issued", "products", "dense_products", "dense_nz_products", "overhead")
    return Updates(
        name, dense=dense, dense_nz=live, **{key: int(counts[key][0]) for key in own},
        touched=sum(int(s["touched"][0]) for s in optimisers),
        dense_touched=2 * arrays * dense, dense_nz_touched=2 * arrays * live,
        changed=int(counts["changed"][0]) if "changed" in counts else None,
    )  # fmt: skip

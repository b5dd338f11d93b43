"""What learning wrote and what that took: counts of one plan, their sums, and their tables.

See `learning.meter`, which reads them off a session.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tabulate import tabulate

from grasp_plugin.errors import Invalid

Row = dict[str, str | int | float | None]


@dataclass(frozen=True)
class Work:
    """What updates take.

    Args:
        writes: weights written, each read before.
        state: entries of an optimiser's state read and written.
        products: of an error and a trace.
        overhead: multiplications and comparisons spent on choosing.
    """

    writes: int
    state: int
    products: int
    overhead: int = 0

    @property
    def accesses(self) -> int:
        """Reads and writes of memory, 2 writes + state."""
        return 2 * self.writes + self.state

    @property
    def operations(self) -> int:
        """Arithmetic, overhead included."""
        return self.products + self.overhead

    def energy(self, *, read_j: float, write_j: float, mac_j: float) -> float:
        """Joules: E = read_j reads + write_j writes + mac_j operations.

        A model and no measurement; its constants (J an access or operation) are the caller's.
        Operations of the overhead are taken as costly as a multiplication.

        Raises:
            Invalid: a constant that is negative or not finite.
        """
        for name, value in (("read_j", read_j), ("write_j", write_j), ("mac_j", mac_j)):
            if not 0 <= value < math.inf:
                raise Invalid("energy", f"expected {name} >= 0 J, got {value}", "Pass joules")
        return (read_j + write_j) * self.accesses / 2 + mac_j * self.operations


@dataclass(frozen=True)
class Updates:
    """The counts of one projection or bias, or of several in total.

    Args:
        name: of the plan.
        steps: of learning, those of each sample where samples run one after another.
        issued: synapses written.
        dense: what the dense rule would have written, N_o N_i a step.
        dense_nz: the same without the synapses whose gradient was zero.
        touched, dense_touched, dense_nz_touched: accesses to the optimiser's state, its own count
            and 2 s times dense and dense_nz; s: its arrays [N_o, N_i].
        products, dense_products, dense_nz_products: of an error and a trace.
        overhead: multiplications and comparisons spent on choosing.
        changed: how many of the issued writes changed a weight, counted in integers only, where
            most round to nothing; else None.
    """

    name: str
    steps: int
    issued: int
    dense: int
    dense_nz: int
    touched: int
    dense_touched: int
    dense_nz_touched: int
    products: int
    dense_products: int
    dense_nz_products: int
    overhead: int
    changed: int | None = None

    @property
    def share(self) -> float:
        """issued / dense; NaN before the first step."""
        return self.issued / self.dense if self.dense else math.nan

    @property
    def share_nz(self) -> float:
        """issued / dense_nz; NaN without any gradient."""
        return self.issued / self.dense_nz if self.dense_nz else math.nan

    @property
    def work(self) -> Work:
        """What was spent."""
        return Work(self.issued, self.touched, self.products, self.overhead)

    @property
    def dense_work(self) -> Work:
        """What the dense rule would have spent."""
        return Work(self.dense, self.dense_touched, self.dense_products)

    @property
    def dense_nz_work(self) -> Work:
        """What the dense rule would have spent without its idle writes."""
        return Work(self.dense_nz, self.dense_nz_touched, self.dense_nz_products)

    def row(self) -> Row:
        """The counts, ratios and totals by name, JSON-ready; NaN as None."""
        own, full, live = self.work, self.dense_work, self.dense_nz_work
        return {
            "name": self.name, "steps": self.steps, "dense": self.dense, "dense_nz": self.dense_nz,
            "issued": self.issued, "changed": self.changed,
            "issued/dense": _number(self.share), "issued/dense_nz": _number(self.share_nz),
            "weight accesses": 2 * self.issued, "state accesses": self.touched,
            "products": self.products, "overhead": self.overhead,
            "accesses": own.accesses, "dense accesses": full.accesses,
            "dense_nz accesses": live.accesses, "operations": own.operations,
            "dense operations": full.operations, "dense_nz operations": live.operations,
        }  # fmt: skip


COUNTED = tuple(f.name for f in fields(Updates) if f.name not in ("name", "changed"))


@dataclass(frozen=True)
class Reading:
    """All counts at one moment.

    Args:
        plans: by projection or bias with a plan; None: it has no scheduler, so that its writes are
            not counted.
    """

    plans: Mapping[str, Updates | None]

    def __getitem__(self, name: str) -> Updates | None:
        return self.plans[name]

    @property
    def total(self) -> Updates:
        """The sum over what is counted, the steps apart, which all plans take together.

        See `uncounted` for what is not in it.
        """
        counted = [u for u in self.plans.values() if u is not None]
        changed = [u.changed for u in counted if u.changed is not None]
        sums = {name: sum(getattr(u, name) for u in counted) for name in COUNTED}
        return Updates(
            "total",
            **sums | {"steps": max((u.steps for u in counted), default=0)},
            changed=sum(changed) if changed and len(changed) == len(counted) else None,
        )

    @property
    def uncounted(self) -> tuple[str, ...]:
        """The plans without a scheduler."""
        return tuple(name for name, u in self.plans.items() if u is None)

    def since(self, earlier: Reading) -> Reading:
        """What was counted after an earlier reading: one phase of learning.

        Raises:
            Invalid: not an earlier reading of the same session.
        """
        if {n: u is None for n, u in self.plans.items()} != {
            n: u is None for n, u in earlier.plans.items()
        }:
            raise Invalid(
                "UpdateMeter", f"expected a reading of {', '.join(self.plans)}, got one of "
                f"{', '.join(earlier.plans)}", "Pass what `read` gave for the same session",
            )  # fmt: skip
        return Reading({n: _difference(u, earlier.plans[n]) for n, u in self.plans.items()})

    def table(self) -> list[Row]:
        """A row for each plan, None throughout where nothing is counted, and one for the total."""
        names = self.total.row()
        return [
            dict.fromkeys(names) | {"name": name} if u is None else u.row()
            for name, u in self.plans.items()
        ] + [names]

    def __str__(self) -> str:
        rows = self.table()
        shown = [k for k in rows[-1] if k != "name" and any(r[k] is not None for r in rows)]
        lines = [[key, *(_text(row[key]) for row in rows)] for key in shown]
        heads = ["", *(str(row["name"]) for row in rows)]
        align = ("left", *["right"] * len(rows))
        return str(tabulate(lines, heads, "simple", disable_numparse=True, colalign=align))


def _difference(now: Updates | None, before: Updates | None) -> Updates | None:
    if now is None or before is None:
        return None
    counts: dict[str, Any] = {key: getattr(now, key) - getattr(before, key) for key in COUNTED}
    if counts["steps"] < 0:
        raise Invalid(
            now.name, f"expected a reading of up to {now.steps} steps, got one of {before.steps}",
            "Read again after loading a checkpoint",
        )  # fmt: skip
    known = now.changed is not None and before.changed is not None
    changed = now.changed - before.changed if known else None  # type: ignore[operator]
    return Updates(now.name, **counts, changed=changed)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _text(value: str | int | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"

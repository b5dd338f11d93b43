"""N-way K-shot episodes from recordings, with parts that share no class and no recording.

A class has one slot or more, each a pool of recordings; a sample of the class is one recording from
each slot, side by side along the last axis. An episode draws

    N classes of the part (of one group, where classes have groups), labelled 0..N-1 in drawn order
    every pool of theirs in two, at random: one to support from, one to query from
    K support and Q query samples a class, no recording twice in a slot of a class

so that no recording of the support comes again in the query, in whatever class. Pools of a part
must share no recording for that, which `FewShot` sees to. It compares rows, not their content: two
rows with the same data are two recordings to it.

References:
    Vinyals et al., NeurIPS 2016 (episodes); specs/meta-learning.md 4 (what public meta-sets share
    between their parts) and M12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from numbers import Real
from typing import Any

import numpy as np

from grasp_plugin.checks import is_whole
from grasp_plugin.errors import Invalid

Array = np.ndarray[Any, np.dtype[Any]]
Name = Any  # of a class, pool or group; hashable
PARTS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Part:
    """The classes of one part of a meta-split.

    Args:
        slots: by class, the name of the pool of each slot; as many slots in every class. Classes
            may share pools.
        pools: by name, recordings, as row numbers of `FewShot.recordings`; none in two pools.
        groups: by class, such as the speaker; empty: classes mix freely.
    """

    slots: Mapping[Name, tuple[Name, ...]]
    pools: Mapping[Name, tuple[int, ...]]
    groups: Mapping[Name, Name] = field(default_factory=dict)

    @property
    def recordings(self) -> frozenset[int]:
        """All that any pool holds."""
        return frozenset(r for pool in self.pools.values() for r in pool)


@dataclass(frozen=True, eq=False)
class Episode:
    """Which recordings a task is made of.

    Args:
        classes: (way,) drawn; support, query: (sample, slot) recordings; support_y, query_y:
            (sample,) labels.
    """

    classes: tuple[Name, ...]
    support: Array
    support_y: Array
    query: Array
    query_y: Array


@dataclass(frozen=True, eq=False)
class FewShot:
    """Recordings as spikes with a meta-split.

    Args:
        recordings: (recording, time, neuron...), numbers, e.g. uint8; one neuron axis or more.
        parts: "train", "valid" and "test", or some of them.

    Raises:
        Invalid: recordings that are no such array; two parts share a class or a recording; or as
            `check_part`.
    """

    recordings: Array
    parts: Mapping[str, Part]

    def __post_init__(self) -> None:
        array = isinstance(self.recordings, np.ndarray)
        if not array or self.recordings.ndim < 3 or self.recordings.dtype.kind not in "buif":
            got = type(self.recordings).__name__
            if array:
                got = f"{self.recordings.dtype} of shape {self.recordings.shape}"
            raise Invalid(
                "recordings", f"expected numbers (recording, time, neuron...) in an array, got "
                f"{got}", "Pass np.stack(...) of them, with an axis of 1 for a single neuron",
            )  # fmt: skip
        for name, part in self.parts.items():
            check_part(name, part, len(self.recordings))
        check_disjoint(self.parts)

    def batch(
        self, part: str, rng: np.random.Generator, count: int, *, ways: int = 5, shots: int = 1,
        queries: int = 10,
    ) -> tuple[Array, Array, Array, Array]:  # fmt: skip
        """`count` episodes as arrays, for `learning.meta.Tasks.of`.

        Returns:
            support (task, time, sample, neuron...), its labels (task, sample), query and labels.

        Raises:
            Invalid: an unknown part, a count that is no integer from 1 on, or as `draw`.
        """
        check_count("count", count)
        if part not in self.parts:
            raise Invalid(part, f"expected one of {', '.join(self.parts)}, got {part!r}", "Pick")
        drawn = [draw(self.parts[part], rng, ways, shots, queries) for _ in range(count)]
        return (
            np.stack([self.samples(e.support) for e in drawn]),
            np.stack([e.support_y for e in drawn]),
            np.stack([self.samples(e.query) for e in drawn]),
            np.stack([e.query_y for e in drawn]),
        )

    def samples(self, rows: Array) -> Array:
        """(time, sample, neuron...) of recordings (sample, slot), slots along the last axis."""
        found = [self.recordings[rows[:, slot]] for slot in range(rows.shape[1])]
        return np.swapaxes(np.concatenate(found, axis=-1), 0, 1)


def check_part(name: str, part: Part, count: int) -> None:
    """Refuse a part from which no episode can be drawn as the module promises.

    Args:
        name: of the part. count: of recordings; rows are 0 .. count - 1.

    Raises:
        Invalid: a class without slots, with fewer or more than the first, or with a pool that is
            not there; a row that is no integer in range; a row twice, in one pool or in two.
    """
    size = None
    for own, pools in part.slots.items():
        given = len(pools) if isinstance(pools, (tuple, list)) else 0
        size = given if size is None else size
        if not given or given != size:
            raise Invalid(
                f"{name}, class {own!r}", f"expected {size or 1} names of pools in a tuple, as "
                f"many as in every class, got {pools!r}", "Give all classes as many slots",
            )  # fmt: skip
        for pool in pools:
            if pool not in part.pools:
                raise Invalid(
                    f"{name}, class {own!r}", f"expected pools of the part, {_some(part.pools)}, "
                    f"got {pool!r}", "Add the pool, or rename the slot",
                )  # fmt: skip
    _check_rows(name, part, count)


def _check_rows(name: str, part: Part, count: int) -> None:
    owner: dict[int, Name] = {}
    for pool, rows in part.pools.items():
        for row in rows:
            if not is_whole(row, 0) or row >= count:
                raise Invalid(
                    f"{name}, pool {pool!r}", f"expected recordings in 0..{count - 1}, got {row!r}",
                    "Number them as rows of `recordings`",
                )  # fmt: skip
            if row in owner:
                raise Invalid(
                    f"{name}, pool {pool!r}", f"expected each recording once in a part, got "
                    f"{row} again, after pool {owner[int(row)]!r}", "Remove it from one: it would "
                    "be in support and query of an episode",
                )  # fmt: skip
            owner[int(row)] = pool


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no integer from `least` on.

    Raises:
        Invalid: names it.
    """
    if not is_whole(value, least):
        raise Invalid(name, f"expected an integer from {least} on, got {value!r}", "Correct it")


def _some(names: Mapping[Name, Any]) -> str:
    """A few of the names, for a message."""
    return ", ".join([repr(n) for n in names][:5]) + (", ..." if len(names) > 5 else "")


def check_disjoint(parts: Mapping[str, Part]) -> None:
    """Refuse parts that share a class or a recording.

    Raises:
        Invalid: names both parts and what they share.
    """
    for (one, a), (two, b) in combinations(parts.items(), 2):
        both: dict[str, Any] = {
            "class": set(a.slots) & set(b.slots),
            "recording": a.recordings & b.recordings,
        }
        for what, shared in both.items():
            if shared:
                raise Invalid(
                    f"{one}, {two}", f"expected parts that share no {what}, got {len(shared)} in "
                    f"both, such as {next(iter(shared))!r}", "Split anew",
                )  # fmt: skip


def draw(
    part: Part, rng: np.random.Generator, ways: int = 5, shots: int = 1, queries: int = 10
) -> Episode:
    """One episode.

    Args:
        part: of a `FewShot`, which has checked it.
        ways, shots, queries: N classes, K support and Q query samples a class.

    Raises:
        Invalid: a number that is no integer from 1 on, fewer classes (in every group) than ways, or
            a pool with fewer recordings than shots + queries.
    """
    for name, value in (("ways", ways), ("shots", shots), ("queries", queries)):
        check_count(name, value)
    classes = _classes(part, rng, ways)
    needed = dict.fromkeys(pool for c in classes for pool in part.slots[c])
    halves = {name: _halves(part, name, rng, shots, queries) for name in needed}
    rows: tuple[list[Array], list[Array]] = ([], [])
    for name in classes:
        for which, count in enumerate((shots, queries)):
            picked = [
                rng.choice(halves[pool][which], count, replace=False) for pool in part.slots[name]
            ]
            rows[which].append(np.stack(picked, axis=1))
    labels = np.arange(ways)
    return Episode(
        classes,
        np.concatenate(rows[0]), np.repeat(labels, shots),
        np.concatenate(rows[1]), np.repeat(labels, queries),
    )  # fmt: skip


def _classes(part: Part, rng: np.random.Generator, ways: int) -> tuple[Name, ...]:
    groups: dict[Name, list[Name]] = {}
    for name in part.slots:
        groups.setdefault(part.groups.get(name), []).append(name)
    large = [members for members in groups.values() if len(members) >= ways]
    if not large:
        most = max((len(members) for members in groups.values()), default=0)
        raise Invalid(
            "draw", f"expected {ways} classes or more{' in a group' if part.groups else ''}, got "
            f"{most}", "Lower ways",
        )  # fmt: skip
    members = large[int(rng.integers(len(large)))]
    return tuple(members[int(i)] for i in rng.choice(len(members), ways, replace=False))


def _halves(
    part: Part, name: Name, rng: np.random.Generator, shots: int, queries: int
) -> tuple[Array, Array]:
    """A pool's recordings to support from and to query from."""
    pool = rng.permutation(np.asarray(part.pools[name]))
    if len(pool) < shots + queries:
        raise Invalid(
            f"pool {name}", f"expected {shots} + {queries} recordings or more, got {len(pool)}",
            "Lower shots or queries",
        )  # fmt: skip
    cut = round(len(pool) * shots / (shots + queries))
    cut = min(max(cut, shots), len(pool) - queries)
    return pool[:cut], pool[cut:]


def shares(
    items: Sequence[Any], sizes: Sequence[float], rng: np.random.Generator, what: str = "shares"
) -> list[list[Any]]:
    """Items dealt at random in proportion to `sizes`, none left out; each share in their order.

    Args:
        what: the items are, for the message.

    Raises:
        Invalid: a size that is no number above 0, or a share that would be empty.
    """
    if not all(isinstance(size, Real) and 0 < size < np.inf for size in sizes) or not len(sizes):
        raise Invalid("sizes", f"expected numbers above 0, got {sizes!r}", "Correct them")
    order = rng.permutation(len(items))
    ends = np.round(np.cumsum(sizes) / np.sum(sizes) * len(items)).astype(int)
    parts = np.split(order, ends[:-1])
    if any(len(part) == 0 for part in parts):
        raise Invalid(
            what, f"expected something for each of {tuple(sizes)}, got {len(items)} items",
            "Use more data or fewer parts",
        )  # fmt: skip
    return [[items[i] for i in sorted(part)] for part in parts]

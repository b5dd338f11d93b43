"""N-way K-shot episodes from recordings, with parts that share no class and no recording.

A class has one slot or more, each a pool of recordings; a sample of the class is one recording from
each slot, side by side along the last axis. An episode draws

    N classes of the part (of one group, where classes have groups), labelled 0..N-1 in drawn order
    every pool of theirs in two, at random: one to support from, one to query from
    K support and Q query samples a class, no recording twice in a slot of a class

so that no recording of the support comes again in the query, in whatever class.

References:
    Vinyals et al., NeurIPS 2016 (episodes); specs/meta-learning.md 4 (what public meta-sets share
    between their parts) and M12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid

Array = np.ndarray[Any, np.dtype[Any]]
Name = Any  # of a class, pool or group; hashable
PARTS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Part:
    """The classes of one part of a meta-split.

    Args:
        slots: by class, the name of the pool of each slot; as many slots in every class.
        pools: by name, recordings, as row numbers of `FewShot.recordings`.
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
        recordings: (recording, time, neuron...), e.g. uint8.
        parts: "train", "valid" and "test", or some of them.

    Raises:
        Invalid: two parts share a class or a recording, or a recording does not exist.
    """

    recordings: Array
    parts: Mapping[str, Part]

    def __post_init__(self) -> None:
        check_disjoint(self.parts)
        for name, part in self.parts.items():
            missing = [r for r in part.recordings if not 0 <= r < len(self.recordings)]
            if missing:
                raise Invalid(
                    name, f"expected recordings in 0..{len(self.recordings) - 1}, got {missing[0]}",
                    "Number them as rows of `recordings`",
                )  # fmt: skip

    def batch(
        self, part: str, rng: np.random.Generator, count: int, *, ways: int = 5, shots: int = 1,
        queries: int = 10,
    ) -> tuple[Array, Array, Array, Array]:  # fmt: skip
        """`count` episodes as arrays, for `learning.meta.Tasks.of`.

        Returns:
            support (task, time, sample, neuron...), its labels (task, sample), query and labels.

        Raises:
            Invalid: an unknown part, or as `draw`.
        """
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
        ways, shots, queries: N classes, K support and Q query samples a class.

    Raises:
        Invalid: a number below 1, fewer classes (in every group) than ways, or a pool with fewer
            recordings than shots + queries.
    """
    if min(ways, shots, queries) < 1:
        raise Invalid("draw", f"expected numbers from 1 on, got {ways}, {shots}, {queries}", "Mend")
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
    items: Sequence[Any], sizes: Sequence[float], rng: np.random.Generator
) -> list[list[Any]]:
    """Items dealt at random in proportion to `sizes`, none left out; each share in their order.

    Raises:
        Invalid: a share that would be empty.
    """
    order = rng.permutation(len(items))
    ends = np.round(np.cumsum(sizes) / np.sum(sizes) * len(items)).astype(int)
    parts = np.split(order, ends[:-1])
    if any(len(part) == 0 for part in parts):
        raise Invalid(
            "shares", f"expected something for each of {tuple(sizes)}, got {len(items)} items",
            "Use more data or fewer parts",
        )  # fmt: skip
    return [[items[i] for i in sorted(part)] for part in parts]

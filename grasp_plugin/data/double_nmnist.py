"""Double N-MNIST: two N-MNIST recordings side by side, 100 classes of two digits, in three parts.

Made from N-MNIST as the user has it (see `data.nmnist`); a sample has 2 polarities, `side` rows and
2 `side` columns. Classes "00" to "99" are split 64 / 16 / 20, recordings in the same proportion.

References:
    Stewart & Neftci, NCE 2(4) 044002, 2022; torchneuromorphic doublenmnist (GPL-3, not copied): the
    numbers 64 / 16 / 20 are MultiDigitMNIST's.
Departures:
    Which classes fall in which part is drawn by a seed (MultiDigitMNIST's list is not used), and no
    recording is in two parts, where the public set splits N-MNIST's own train and test parts only.
    Pixels are binned to `side`, not cut.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral

import numpy as np

from grasp_plugin.data.episodes import PARTS, Array, FewShot, Part, check_count, shares
from grasp_plugin.data.nmnist import SIZE, Recording, bins, load_nmnist
from grasp_plugin.errors import Invalid

SHARES = (64, 16, 20)
NAMES = tuple(f"{i}{j}" for i in range(10) for j in range(10))


def load_double_nmnist(
    source: str | os.PathLike[str],
    *,
    steps: int = 30,
    side: int = 8,
    duration_s: float = 0.3,
    least: int = 1,
    seed: int = 0,
    ids: Mapping[str, Collection[int]] | None = None,
    part: str | None = None,
) -> FewShot:
    """The 100 classes with their parts.

    Args:
        source, part: as `load_nmnist`.
        steps: frames of duration_s / steps each. side: rows, and half of the columns.
        least: events that make a spike.
        seed: of the split of classes and recordings.
        ids: by part ("train", "valid", "test"), the file numbers of its recordings, each once;
            None: those in `source` are dealt to all three. Classes are split by the seed in either
            case.

    Raises:
        Invalid: as `load_nmnist`, also for a file number that is not in `source`; an unknown part,
            or none; a file number that is no integer, or twice in a part; a recording in two parts;
            a part with fewer than two recordings (one to support from, one to query from) of a
            digit in its classes; as `frames`.
    """
    if ids is not None:
        _check_ids(ids)
    wanted = None if ids is None else {number for own in ids.values() for number in own}
    recordings = load_nmnist(source, ids=wanted, part=part)
    rng = np.random.default_rng(seed)
    named = dict(zip(PARTS, shares(NAMES, SHARES, rng), strict=True))
    if ids is None:
        rows = _dealt(recordings, rng)
    else:
        at = {r.id: row for row, r in enumerate(recordings)}
        rows = {name: [at[number] for number in sorted(own)] for name, own in ids.items()}
    parts = {name: _part(name, named[name], own, recordings) for name, own in rows.items()}
    return FewShot(frames(recordings, steps, side, duration_s, least), parts)


def _check_ids(ids: Mapping[str, Collection[int]]) -> None:
    if not ids:
        raise Invalid("ids", f"expected some of {', '.join(PARTS)}, got no part", "Add one")
    for name, own in ids.items():
        if name not in PARTS:
            raise Invalid(name, f"expected one of {', '.join(PARTS)}, got {name!r}", "Rename it")
        for number, times in Counter(own).items():
            if not isinstance(number, Integral):
                raise Invalid(
                    f"ids, {name}", f"expected file numbers, got {number!r}", "Pass integers"
                )
            if times > 1:
                raise Invalid(
                    f"ids, {name}", f"expected each file number once, got {number} {times} times",
                    "Remove the repeats",
                )  # fmt: skip


def _part(
    name: str, classes: Sequence[str], rows: Sequence[int], recordings: Sequence[Recording]
) -> Part:
    """The pools of all digits, of which those in `classes` must hold two recordings or more."""
    pools = {
        str(digit): tuple(row for row in rows if recordings[row].label == digit)
        for digit in range(10)
    }
    for digit in sorted(set("".join(classes))):
        if len(pools[digit]) < 2:
            raise Invalid(
                f"{name}, digit {digit}", f"expected two recordings or more, one to support from "
                f"and one to query from, got {len(pools[digit])}", "Add recordings of it",
            )  # fmt: skip
    return Part({c: (c[0], c[1]) for c in classes}, pools)


def _dealt(recordings: Sequence[Recording], rng: np.random.Generator) -> dict[str, list[int]]:
    """Rows by part, every digit in the same proportion."""
    out: dict[str, list[int]] = {name: [] for name in PARTS}
    for digit in range(10):
        rows = [row for row, r in enumerate(recordings) if r.label == digit]
        for name, own in zip(PARTS, shares(rows, SHARES, rng, f"digit {digit}"), strict=True):
            out[name] += own
    return out


def frames(
    recordings: Sequence[Recording], steps: int, side: int, duration_s: float = 0.3, least: int = 1
) -> Array:
    """Binary frames (recording, time, 2, side, side), pixel x in column x side // 34.

    With `side` 34 or 17 they are those of `nmnist.to_frames`.

    Raises:
        Invalid: an argument out of range.
    """
    for name, value in (("steps", steps), ("side", side), ("least", least)):
        check_count(name, value)
    if side > SIZE or not 0 < duration_s < np.inf:
        raise Invalid(
            "frames", f"expected side in 1..{SIZE} and a duration in s, got {side}, {duration_s}",
            "Correct them",
        )  # fmt: skip
    out = np.zeros((len(recordings), steps, 2, side, side), np.uint8)
    for row, r in enumerate(recordings):
        at = bins(r.t_us, duration_s / steps)
        keep = at < steps
        counts = np.zeros(out.shape[1:], np.int32)
        y, x = (v[keep].astype(np.int64) * side // SIZE for v in (r.y, r.x))
        np.add.at(counts, (at[keep], r.p[keep], y, x), 1)
        out[row] = counts >= least
    return out

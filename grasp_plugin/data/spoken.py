"""Spoken digits as few-shot tasks: N digits of one speaker, other speakers in other parts.

A class is (speaker, digit), and the classes of an episode are of one speaker, so that what is new
in the test part is the voice, and with `digits` the words too. Spikes are those of `data.fsdd`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from grasp_plugin.data.episodes import PARTS, FewShot, Part
from grasp_plugin.data.fsdd import load_fsdd, to_spikes
from grasp_plugin.errors import Invalid


def load_spoken(
    source: str | os.PathLike[str],
    speakers: Mapping[str, Collection[str]],
    *,
    digits: Mapping[str, Collection[int]] | None = None,
    steps: int = 50,
    bands: int = 16,
) -> FewShot:
    """Tasks from FSDD.

    Args:
        source: as `load_fsdd`.
        speakers: by part ("train", "valid", "test"), a list of who is in it; nobody is in two.
        digits: by part, a list of which digits, for every part of `speakers`; None: all ten in
            each.
        steps, bands: as `to_spikes`: (recording, steps, 2 bands).

    Raises:
        Invalid: as `load_fsdd`; an unknown part, no part, or one without a list of speakers or of
            digits; a speaker in two parts, or one without recordings.
    """
    _check_lists("speakers", speakers, ())
    if digits is not None:
        _check_lists("digits", digits, tuple(speakers))
    everyone = [name for group in speakers.values() for name in group]
    if len(set(everyone)) < len(everyone):
        raise Invalid("speakers", f"expected each in one part, got {everyone}", "Remove one")
    recordings = load_fsdd(source, speakers=everyone)
    rows: dict[tuple[str, int], list[int]] = {}
    for row, spoken in enumerate(recordings):
        rows.setdefault((spoken.speaker, spoken.label), []).append(row)
    parts = {}
    for part, group in speakers.items():
        wanted = range(10) if digits is None else digits[part]
        missing = [(s, d) for s in group for d in wanted if (s, d) not in rows]
        if missing:
            raise Invalid(
                str(source), f"expected recordings of all asked for, got none of {missing[0]}",
                "Leave the speaker or digit out",
            )  # fmt: skip
        own = [(s, d) for s in group for d in wanted]
        parts[part] = Part({c: (c,) for c in own}, {c: tuple(rows[c]) for c in own},
                           {c: c[0] for c in own})  # fmt: skip
    spikes = np.stack([to_spikes(one, steps=steps, bands=bands) for one in recordings])
    return FewShot(spikes, parts)


def _check_lists(name: str, given: Mapping[str, Collection[object]], needed: Sequence[str]) -> None:
    """Refuse what is not a list by part, for all `needed` parts and for one or more."""
    missing = [part for part in needed if part not in given]
    if missing or not given:
        wanted = missing[0] if missing else f"some of {', '.join(PARTS)}"
        raise Invalid(
            name, f"expected a list for {wanted}, got lists for {', '.join(given) or 'no part'}",
            "Add it",
        )  # fmt: skip
    for part, items in given.items():
        if part not in PARTS:
            raise Invalid(part, f"expected one of {', '.join(PARTS)}, got {part!r}", "Rename it")
        if isinstance(items, (str, bytes)) or not isinstance(items, Collection) or not len(items):
            raise Invalid(
                f"{name}, {part}", f"expected a list of one or more, got {items!r}",
                "Pass a list, of one if need be",
            )  # fmt: skip

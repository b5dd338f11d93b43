"""N-MNIST from files the user has: recordings of an event camera that looks at MNIST digits.

N-MNIST (Orchard et al. 2015, CC BY-SA 4.0) is 34 x 34 pixels, two polarities, about 0.31 s a
recording. The files are `<part>/<digit>/<id>.bin` with part Train or Test, in a folder or a zip;
an event is 5 bytes:

    byte 0   byte 1   byte 2, bit 7   bits 6-0 of byte 2, byte 3, byte 4
    x        y        polarity        time in us, big-endian (23 bits)

Nothing is downloaded. A subset is in `examples/data/nmnist_subset.zip` of the repository; the whole
set is published by its authors at garrickorchard.com/datasets/n-mnist.

References:
    Orchard, Jayawant, Cohen, Thakor: Converting static image datasets to spiking neuromorphic
    datasets using saccades. Frontiers in Neuroscience 9, 437 (2015).
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid

SIZE = 34
"""Pixels along each side."""
WHERE = (
    "Use examples/data/nmnist_subset.zip of the repository, or obtain N-MNIST (Orchard et al. 2015)"
    " from its authors: garrickorchard.com/datasets/n-mnist, files Train.zip and Test.zip"
)
_NAME = re.compile(r"(?:^|.*/)(?:(Train|Test)/)?(\d)/(\d{1,6})\.bin$")
_EVENT_BYTES = 5
_MAX_BYTES = 2**24  # a recording has about 20 kB
_OVERFLOW_Y = 240  # events of this y move the clock on, see `_decode`
_OVERFLOW_US = 2**13

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Recording:
    """One recording; the arrays have one entry per event.

    | symbol        | argument | unit | shape   |
    |---------------|----------|------|---------|
    | file number   | id       | -    | ()      |
    | digit         | label    | -    | ()      |
    | column, row   | x, y     | px   | (event) |
    | 1 for brighter, 0 for darker | p | - | (event) |
    | time          | t_us     | us   | (event), never falling |
    """

    id: int
    label: int
    x: Array
    y: Array
    p: Array
    t_us: Array


def load_nmnist(
    source: str | os.PathLike[str],
    ids: Iterable[int] | None = None,
    part: str | None = None,
) -> list[Recording]:
    """Read recordings from a folder or a zip file, in the order of their ids.

    Args:
        source: a folder or zip that holds `<digit>/<id>.bin` files, at any depth.
        ids: the file numbers to read; None reads all.
        part: "Train" or "Test", needed only where `source` holds both.

    Raises:
        Invalid: no such folder or zip, no recordings in it, an id that is missing, or a file that
            is damaged; the message names the file and says where N-MNIST is obtained.

    Example:
        >>> load_nmnist("no such folder")
        Traceback (most recent call last):
        grasp_plugin.errors.Invalid: no such folder: expected a folder or zip of N-MNIST, got...
    """
    path = Path(source)
    if path.is_dir():
        return _select(_list_folder(path), path, ids, part, lambda name: (path / name).read_bytes())
    if not path.is_file():
        raise Invalid(
            str(path), "expected a folder or zip of N-MNIST, got no file of that name", WHERE
        )
    try:
        with zipfile.ZipFile(path) as archive:
            large = [info for info in archive.infolist() if info.file_size > _MAX_BYTES]
            if large:
                raise _damaged(f"{path}, {large[0].filename}", f"{large[0].file_size} bytes")
            return _select(archive.namelist(), path, ids, part, archive.read)
    except Invalid:
        raise
    except Exception as error:  # zipfile raises a dozen types for damaged archives
        raise _damaged(str(path), f"{type(error).__name__}: {error}") from error


def _list_folder(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*.bin")]


def _damaged(culprit: str, got: str) -> Invalid:
    return Invalid(culprit, f"expected an N-MNIST recording, got {got}", f"Copy it again. {WHERE}")


def _select(
    names: list[str],
    path: Path,
    ids: Iterable[int] | None,
    part: str | None,
    read: Callable[[str], bytes],
) -> list[Recording]:
    found: dict[int, tuple[str, int]] = {}
    for name in sorted(names):
        match = _NAME.match(name)
        if match is None or (part is not None and match[1] not in (part, None)):
            continue
        number = int(match[3])
        if number in found:
            raise Invalid(
                str(path),
                f"expected one recording of id {number}, got {found[number][0]} and {name}",
                "Pass part='Train' or part='Test'",
            )
        found[number] = name, int(match[2])
    if not found:
        raise Invalid(str(path), "expected files <digit>/<id>.bin, got none", WHERE)
    wanted = sorted(found) if ids is None else sorted({int(number) for number in ids})
    missing = [number for number in wanted if number not in found]
    if missing:
        raise Invalid(
            str(path),
            f"expected all ids asked for, got {len(wanted) - len(missing)} of {len(wanted)}"
            f" (without {missing[:5]}{'...' if len(missing) > 5 else ''})",
            f"Pass ids that are there. {WHERE}",
        )
    recordings = []
    for number in wanted:
        name, label = found[number]
        recordings.append(_decode(_bytes(read, name, path), number, label, f"{path}, {name}"))
    return recordings


def _bytes(read: Callable[[str], bytes], name: str, path: Path) -> bytes:
    try:
        return read(name)
    except Exception as error:
        raise _damaged(f"{path}, {name}", f"{type(error).__name__}: {error}") from error


def _decode(content: bytes, number: int, label: int, culprit: str) -> Recording:
    """Bytes to events. Rows above the sensor (y = 240) are no events: each adds 2^13 us to the
    times after it."""
    if not content or len(content) % _EVENT_BYTES or len(content) > _MAX_BYTES:
        raise _damaged(culprit, f"{len(content)} bytes, not a multiple of {_EVENT_BYTES} above 0")
    raw = np.frombuffer(content, np.uint8).reshape(-1, _EVENT_BYTES).astype(np.int64)
    t_us = (raw[:, 2] & 0x7F) << 16 | raw[:, 3] << 8 | raw[:, 4]
    overflow = raw[:, 1] == _OVERFLOW_Y
    t_us = (t_us + _OVERFLOW_US * np.cumsum(overflow))[~overflow]
    raw = raw[~overflow]
    if len(raw) == 0 or raw[:, :2].max() >= SIZE or (np.diff(t_us) < 0).any():
        what = "no events" if len(raw) == 0 else f"events outside of {SIZE} x {SIZE} pixels"
        if len(raw) and raw[:, :2].max() < SIZE:
            what = "times that run backwards"
        raise _damaged(culprit, what)
    x, y = (raw[:, axis].astype(np.uint8) for axis in (0, 1))
    return Recording(number, label, x, y, (raw[:, 2] >> 7).astype(np.uint8), t_us)


def bins(t_us: Array, dt_s: float) -> Array:
    """The frame k of each event, int64 (event), with k dt <= t < (k + 1) dt.

    An event at an edge is in the frame that begins there: one that lies within 1e-9 dt below an
    edge is taken to lie on it, since dt and the quotient are rounded.

    Args:
        t_us: (event), in us. dt_s: length of a frame, in s.
    """
    frame: Array = np.floor(t_us / (1e6 * dt_s) + 1e-9).astype(np.int64)
    return frame


def to_frames(
    recording: Recording,
    steps: int | None = None,
    dt_s: float | None = None,
    duration_s: float = 0.3,
    pool: int = 1,
    least: int = 1,
) -> Array:
    """Binary spike frames of a recording.

        frame[k, p, y, x] = 1 if pixel (x, y) or its block of pool x pool pixels had at least
        `least` events of polarity p with k dt <= t < (k + 1) dt

    Events after `duration_s` are left out.

    Args:
        recording: the events.
        steps: number of frames; dt is then duration_s / steps. Give this or `dt_s`.
        dt_s: time step in s; the number of frames is duration_s / dt_s, rounded.
        duration_s: length of the sequence in s.
        pool: side of the square of pixels that make one, a divisor of 34.
        least: events that make a spike.

    Returns:
        uint8, shape (time, 2, 34 / pool, 34 / pool).

    Raises:
        Invalid: both or neither of `steps` and `dt_s`, or an argument out of range.
    """
    if (steps is None) == (dt_s is None):
        raise Invalid(
            "to_frames",
            f"expected one of steps and dt_s, got {steps} and {dt_s}",
            "Pass either steps=... or dt_s=...",
        )
    if not 0 < duration_s < np.inf or not (dt_s is None or 0 < dt_s <= duration_s):
        raise Invalid(
            "to_frames",
            f"expected 0 < dt_s <= duration_s, got dt_s {dt_s}, duration_s {duration_s}",
            "Pass times in seconds",
        )
    count = round(duration_s / dt_s) if dt_s is not None else steps
    if not isinstance(count, int) or count < 1 or least < 1:
        raise Invalid(
            "to_frames",
            f"expected steps and least to be integers from 1 on, got {count} and {least}",
            "Correct them",
        )
    if pool < 1 or SIZE % pool:
        raise Invalid("to_frames", f"expected pool to divide {SIZE}, got {pool}", "Pass 1, 2 or 17")
    side = SIZE // pool
    frame = bins(recording.t_us, dt_s if dt_s is not None else duration_s / count)
    keep = frame < count
    index = (frame[keep], recording.p[keep], recording.y[keep] // pool, recording.x[keep] // pool)
    counts = np.zeros((count, 2, side, side), np.int32)
    np.add.at(counts, index, 1)
    return (counts >= least).astype(np.uint8)

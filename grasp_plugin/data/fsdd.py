"""The Free Spoken Digit Dataset from files the user has, and spikes of a small cochlea.

FSDD (Jackson et al., CC BY-SA 4.0) is spoken digits at 8 kHz, mono, 16 bit. The files are
`<digit>_<speaker>_<index>.wav` in a folder or a zip, at any depth. Nothing is downloaded. A subset
is in `examples/data/fsdd_subset.zip` of the repository; the whole set is at
github.com/Jakobovski/free-spoken-digit-dataset.

Spikes: the sound's energy in bands that are evenly spaced in mel, as cochlear places are nearly,
and in each band a spike wherever the loudness has risen, or fallen, by a fixed step: a cochlea that
reports changes, without any training.
"""

from __future__ import annotations

import io
import os
import re
import wave
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid

RATE_HZ = 8000
WHERE = (
    "Use examples/data/fsdd_subset.zip of the repository, or obtain FSDD from "
    "github.com/Jakobovski/free-spoken-digit-dataset"
)
_NAME = re.compile(r"(?:^|.*/)(\d)_([A-Za-z]+)_(\d{1,4})\.wav$")
_MAX_BYTES = 2**22  # a recording has about 7 kB

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Spoken:
    """One spoken digit.

    | symbol            | argument | unit | shape    |
    |-------------------|----------|------|----------|
    | digit             | label    | -    | ()       |
    | who said it       | speaker  | -    | ()       |
    | which time        | index    | -    | ()       |
    | sound in [-1, 1)  | sound    | -    | (sample) |
    """

    label: int
    speaker: str
    index: int
    sound: Array


def load_fsdd(
    source: str | os.PathLike[str],
    speakers: Collection[str] | None = None,
    indices: Collection[int] | None = None,
) -> list[Spoken]:
    """Read recordings, ordered by digit, speaker and index.

    Args:
        source: a folder or zip that holds `<digit>_<speaker>_<index>.wav` files, at any depth.
        speakers: names to read; None reads all.
        indices: indices to read; None reads all.

    Raises:
        Invalid: no such folder or zip, no recordings asked for in it, or a damaged file; the
            message names the file and says where FSDD is obtained.

    Example:
        >>> load_fsdd("no such folder")
        Traceback (most recent call last):
        grasp_plugin.errors.Invalid: no such folder: expected a folder or zip of FSDD, got...
    """
    path = Path(source)
    if path.is_dir():
        names = [file.relative_to(path).as_posix() for file in path.rglob("*.wav")]
        chosen = _chosen(names, path, speakers, indices)
        return [_decode((path / name).read_bytes(), f"{path}, {name}", key) for key, name in chosen]
    if not path.is_file():
        raise Invalid(
            str(path), "expected a folder or zip of FSDD, got no file of that name", WHERE
        )
    try:
        with zipfile.ZipFile(path) as archive:
            chosen = _chosen(archive.namelist(), path, speakers, indices)
            for _, name in chosen:
                if archive.getinfo(name).file_size > _MAX_BYTES:
                    raise _damaged(f"{path}, {name}", "a file far too large")
            return [_decode(archive.read(name), f"{path}, {name}", key) for key, name in chosen]
    except Invalid:
        raise
    except Exception as error:  # zipfile raises a dozen types for damaged archives
        raise _damaged(str(path), f"{type(error).__name__}: {error}") from error


def _damaged(culprit: str, got: str) -> Invalid:
    return Invalid(culprit, f"expected an FSDD recording, got {got}", f"Copy it again. {WHERE}")


_Key = tuple[int, str, int]


def _chosen(
    names: list[str],
    path: Path,
    speakers: Collection[str] | None,
    indices: Collection[int] | None,
) -> list[tuple[_Key, str]]:
    found: dict[_Key, str] = {}
    for name in sorted(names):
        match = _NAME.match(name)
        if match is None:
            continue
        key = int(match[1]), match[2], int(match[3])
        if (speakers is None or key[1] in speakers) and (indices is None or key[2] in indices):
            if key in found:
                raise Invalid(
                    str(path), f"expected one recording of {key}, got {found[key]} and {name}",
                    "Remove one",
                )  # fmt: skip
            found[key] = name
    if not found:
        raise Invalid(str(path), "expected files <digit>_<speaker>_<index>.wav, got none", WHERE)
    return sorted(found.items())


def _decode(content: bytes, culprit: str, key: _Key) -> Spoken:
    try:
        with wave.open(io.BytesIO(content)) as file:
            form = file.getframerate(), file.getnchannels(), file.getsampwidth()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise _damaged(culprit, f"{type(error).__name__}: {error}") from error
    if form != (RATE_HZ, 1, 2) or len(raw) < 2 or len(raw) % 2:
        raise _damaged(culprit, f"{form} (rate, channels, bytes) and {len(raw)} bytes of sound")
    sound = np.frombuffer(raw, "<i2").astype(np.float64) / 2**15
    return Spoken(key[0], key[1], key[2], sound)


def loudness(sound: Array, bands: int = 32, dt_s: float = 0.01, floor_db: float = 40.0) -> Array:
    """Loudness of a sound in mel bands, relative to its loudest moment.

    e[k, m] = sum_f M[m, f] |FFT(window x[k])[f]|^2,    window: Hann, 2 dt long, moved by dt
    l[k, m] = max(0, 1 + 10 log10(e[k, m] / max e) / floor_db)

    Args:
        sound: (sample), at 8 kHz.
        bands: number of mel bands from 100 Hz to 4 kHz.
        dt_s: time step in s.
        floor_db: what is this much softer than the loudest counts as silence.

    Returns:
        float64, shape (time, bands), in [0, 1].

    Raises:
        Invalid: an argument out of range, or a sound shorter than a window.
    """
    hop = round(dt_s * RATE_HZ)
    if bands < 1 or hop < 16 or floor_db <= 0:
        raise Invalid(
            "loudness", f"expected bands >= 1, dt_s >= 0.002, floor_db > 0, got {bands}, {dt_s}, "
            f"{floor_db}", "Correct them",
        )  # fmt: skip
    if len(sound) < 2 * hop:
        raise Invalid("sound", f"expected {2 * hop} samples or more, got {len(sound)}", "Pad it")
    frames = np.lib.stride_tricks.sliding_window_view(sound, 2 * hop)[::hop]
    size = max(512, 2 * hop)
    power = np.abs(np.fft.rfft(frames * np.hanning(2 * hop), size)) ** 2
    energy = power @ _mel_bands(bands, size).T
    most = energy.max(initial=0.0)
    if most == 0:
        return np.zeros_like(energy)
    level = 1 + 10 * np.log10(np.maximum(energy / most, 1e-30)) / floor_db
    return np.asarray(np.maximum(0.0, level))


def _mel_bands(bands: int, size: int) -> Array:
    """Triangles [bands, frequency] whose corners are evenly spaced in mel."""

    def mel(hz: float) -> float:
        return 2595 * float(np.log10(1 + hz / 700))

    corners = 700 * (10 ** (np.linspace(mel(100.0), mel(RATE_HZ / 2), bands + 2) / 2595) - 1)
    f = np.fft.rfftfreq(size, 1 / RATE_HZ)
    low, peak, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    return np.asarray(
        np.clip(np.minimum((f - low) / (peak - low), (high - f) / (high - peak)), 0, 1)
    )


def to_spikes(
    spoken: Spoken,
    steps: int = 50,
    bands: int = 32,
    dt_s: float = 0.01,
    rise: float = 0.1,
) -> Array:
    """Spikes where a band's loudness has risen or fallen by `rise` since its last spike.

    The reference of a band follows its loudness in whole steps of `rise`; a step up is a spike of
    the first half of the channels, a step down one of the second.

    Args:
        spoken: the recording; what lies beyond `steps` is left out, what is missing is silence.
        steps, bands, dt_s: as `loudness`.
        rise: in units of the loudness, (0, 1].

    Returns:
        uint8, shape (steps, 2 bands).

    Raises:
        Invalid: `rise` or `steps` out of range, or as `loudness`.
    """
    if not 0 < rise <= 1 or steps < 1:
        raise Invalid(
            "to_spikes", f"expected 0 < rise <= 1 and steps >= 1, got {rise} and {steps}", "Correct"
        )
    level = loudness(spoken.sound, bands, dt_s)[:steps]
    level = np.concatenate([level, np.zeros((steps - len(level), bands))])
    out = np.zeros((steps, 2 * bands), np.uint8)
    reference = np.zeros(bands)
    for k, now in enumerate(level):
        up, down = now - reference >= rise, reference - now >= rise
        out[k, :bands], out[k, bands:] = up, down
        reference += rise * np.trunc((now - reference) / rise + 1e-9 * np.sign(now - reference))
    return out

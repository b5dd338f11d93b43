"""Omniglot from files the user has: drawn characters as spikes, split by alphabet or at random.

Omniglot (Lake et al. 2015, MIT) is 105 x 105 drawings, 20 of each character, as
`<alphabet>/<character>/<id>.png` in a folder or a zip. Nothing is downloaded; the files are at
github.com/brendenlake/omniglot, python/images_background.zip. Reading PNG needs Pillow, which the
extra "plot" brings.

    d = share of ink in a cell of the image;   s[t] = floor(d (t + 1)) - floor(d t)

so that a cell spikes as often as it is dark, evenly, at most once a step.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from grasp_plugin.data.episodes import PARTS, Array, FewShot, Part, check_count, shares
from grasp_plugin.errors import Invalid, Refused

SIZE = 105
WHERE = "Obtain it from github.com/brendenlake/omniglot, python/images_background.zip"
_NAME = re.compile(r"(?:^|.*/)([^/]+)/(character\d+)/(\d{4}_\d{2})\.png$")
_MAX_BYTES = 2**20  # a drawing has about 300 bytes


def load_omniglot(
    source: str | os.PathLike[str],
    *,
    steps: int = 20,
    side: int = 15,
    gain: float = 3.0,
    by_alphabet: bool = False,
    shares_of: tuple[float, float, float] = (64, 16, 20),
    seed: int = 0,
) -> FewShot:
    """Every character as a class, its drawings as spikes (recording, steps, 1, side, side).

    Args:
        steps: of the spike trains. side: cells along each side, a divisor of 105.
        gain: ink is multiplied by it, and kept to 1, since lines are thin.
        by_alphabet: whole alphabets to each part, in place of characters of all.
        shares_of: sizes of train, valid and test. seed: of the split.

    Raises:
        Invalid: no such file, no drawings in it, a drawing twice (as where images_background and
            images_background_small1 lie side by side), a damaged file, an argument out of range.
        Refused: Pillow is not installed.
    """
    check_count("steps", steps)
    check_count("side", side)
    if SIZE % side or not 0 < gain < np.inf:
        raise Invalid(
            "load_omniglot", f"expected a side that divides {SIZE} and gain > 0, got {side}, "
            f"{gain}", "Pass side 5, 7, 15, 21 or 35",
        )  # fmt: skip
    if len(shares_of) != len(PARTS):
        raise Invalid(
            "shares_of", f"expected sizes of {', '.join(PARTS)}, got {shares_of!r}", "Pass three"
        )
    names, images = _read(Path(source))
    rng = np.random.default_rng(seed)
    classes = list(dict.fromkeys((alphabet, character) for alphabet, character, _ in names))
    grouped = list(dict.fromkeys(a for a, _ in classes)) if by_alphabet else classes
    what = "alphabets" if by_alphabet else "characters"
    own = [set(share) for share in shares(grouped, shares_of, rng, what)]
    parts = {}
    for part, mine in zip(PARTS, own, strict=True):
        chosen = [c for c in classes if (c[0] if by_alphabet else c) in mine]
        pools = {c: tuple(i for i, n in enumerate(names) if n[:2] == c) for c in chosen}
        parts[part] = Part({c: (c,) for c in chosen}, pools)
    return FewShot(ink_spikes(images, steps, side, gain), parts)


def ink_spikes(ink: Array, steps: int, side: int, gain: float = 1.0) -> Array:
    """The module's code, from ink (drawing, 105, 105) in 0, 1: uint8 (drawing, steps, 1, s, s)."""
    cell = SIZE // side
    d = ink.reshape(len(ink), side, cell, side, cell).mean(axis=(2, 4))
    d = np.minimum(gain * d, 1.0)[:, None, None]
    t = np.arange(steps)[None, :, None, None, None]
    out: Array = (np.floor(d * (t + 1)) - np.floor(d * t)).astype(np.uint8)
    return out


def _read(path: Path) -> tuple[list[tuple[str, str, str]], Array]:
    """(alphabet, character, id) of each drawing, in order, and ink (drawing, 105, 105)."""
    if path.is_dir():
        found = [file.relative_to(path).as_posix() for file in path.rglob("*.png")]
        return _decoded(found, lambda name: (path / name).read_bytes(), path)
    if not path.is_file():
        raise Invalid(str(path), "expected a folder or zip of Omniglot, got no such file", WHERE)
    try:
        with zipfile.ZipFile(path) as archive:
            if any(info.file_size > _MAX_BYTES for info in archive.infolist()):
                raise Invalid(str(path), "expected small drawings, got a large file", WHERE)
            return _decoded(archive.namelist(), archive.read, path)
    except (zipfile.BadZipFile, EOFError, OSError, KeyError) as error:
        raise Invalid(str(path), f"expected a zip of Omniglot, got {error}", WHERE) from error


def _decoded(
    found: list[str], read: Callable[[str], bytes], path: Path
) -> tuple[list[tuple[str, str, str]], Array]:
    matched = sorted((m.groups(), m.string) for m in map(_NAME.match, found) if m)
    if not matched:
        raise Invalid(str(path), "expected <alphabet>/<character>/<id>.png, got none", WHERE)
    for (key, one), (again, two) in pairwise(matched):
        if key == again:
            raise Invalid(
                str(path), f"expected each drawing once, got {key[2]} of {key[0]}/{key[1]} as "
                f"{one} and as {two}", "Remove one of the two folders: images_background_small1 "
                "and 2 are parts of images_background",
            )  # fmt: skip
    images = np.stack([_ink(read(name), f"{path}, {name}") for _, name in matched])
    return [(key[0], key[1], key[2]) for key, _ in matched], images


def _ink(content: bytes, culprit: str) -> Array:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise Refused(
            "Omniglot", "expected Pillow to read PNG with, got none", "pip install pillow"
        ) from error
    try:
        with Image.open(io.BytesIO(content)) as image:
            grey = np.asarray(image.convert("L"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise Invalid(culprit, f"expected a PNG image, got {error}", f"Copy it. {WHERE}") from error
    if grey.shape != (SIZE, SIZE):
        raise Invalid(culprit, f"expected {SIZE} x {SIZE} pixels, got {grey.shape}", WHERE)
    dark: Array = (grey < 128).astype(np.uint8)
    return dark

"""A file is read by a child process first, since the HDF5 library can crash or never return.

Seen with h5py 3.16: a flipped byte in an object header ends the process, another in a heap of text
never returns. So a file that this process has not met yet is first read by a child under a time
limit; a child that dies or does not return means a damaged file. Files that `write_nir` made in
this process are known by their digest.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import mmap
import subprocess
import sys
from pathlib import Path

from grasp_plugin.errors import Invalid

_log = logging.getLogger(__name__)

DAMAGED = "The file is damaged or was not finished: copy or export it again"
PROBE_SECONDS = 15.0
"""A file gets this long to be read, and one second more for every 4 MB."""
_HEAP = b"GCOL\1\0\0\0"  # HDF5 format specification, "global heap"

_known: set[bytes] = set()


def remember(file: Path) -> None:
    """The file was made by this process: it needs no probe."""
    _known.add(_digest(file))


def _digest(file: Path) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(2**20):
            digest.update(block)
    return digest.digest()


def probe(file: Path, where: str) -> None:
    """Raise `Invalid` if reading the file would crash this process or never end."""
    if not _heaps_are_sound(file):
        raise Invalid(where, "expected text in whole HDF5 heaps, got a broken one", DAMAGED)
    digest = _digest(file)
    if digest in _known:
        return
    limit = PROBE_SECONDS + file.stat().st_size / 4e6
    got = _child_reads(str(file.resolve()), limit)
    if got:
        raise Invalid(where, f"HDF5 cannot read it: the library {got}", DAMAGED)
    _known.add(digest)


_PROBE = """
import sys
from pathlib import Path
import h5py
from grasp_plugin.adapters import _nir_read
file = Path(sys.argv[1])
try:
    with h5py.File(file, "r") as handle:
        _nir_read._Reader("probe", file).file(handle)
except Exception:
    pass
"""


def _child_reads(file: str, limit: float) -> str:
    """What went wrong when a child process read the file, empty if it came back."""
    command = _child_command()
    if command is None:
        return ""
    try:
        run = subprocess.run(
            [*command, file],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"did not come back within {limit:.0f} s"
    except OSError as error:  # no process to be had: read without the probe
        _log.info("no probe of %s: %s", file, error)
        return ""
    # an exit status of 1 is an environment in which the child cannot start, not a broken file
    return "" if run.returncode in (0, 1) else f"crashed (status {run.returncode})"


@functools.cache
def _child_command() -> list[str] | None:
    if not sys.executable or getattr(sys, "frozen", False):
        return None  # an application with Python inside: no interpreter to start
    paths = f"import sys; sys.path[:] = {[str(Path(p).resolve()) for p in sys.path]!r}"
    return [sys.executable, "-c", f"{paths}\n{_PROBE}"]


def _heaps_are_sound(file: Path) -> bool:
    """False if a global heap (where HDF5 keeps text) is broken: the HDF5 library then loops for
    ever over an object of no size, or allocates what the heap claims to be its size.

    A heap is _HEAP, its size (8 bytes), then objects: index (2), references (2), 0 (4), size (8),
    and for any index but 0, which is free space, that many bytes in blocks of 8.
    """
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_HEAP)
        while start >= 0:
            end = start + int.from_bytes(data[start + 8 : start + 16], "little")
            if not start + 16 <= end <= len(data):
                return False
            place = start + 16
            while place + 16 <= end:
                index = int.from_bytes(data[place : place + 2], "little")
                size = int.from_bytes(data[place + 8 : place + 16], "little")
                place += size if index == 0 else 16 + (size + 7) // 8 * 8
                if (index == 0 and size < 16) or place > end:
                    return False
            start = data.find(_HEAP, start + 8)
    return True

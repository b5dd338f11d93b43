"""Import Lava where it is used, say what to do where it is not there, and undo its side effects."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from grasp_plugin.errors import Refused


def have_lava() -> bool:
    """True if lava-nc is installed for this Python (it is not imported to find out)."""
    try:
        return importlib.util.find_spec("lava.magma") is not None
    except ModuleNotFoundError:
        return False


def require_lava(module: str = "lava.magma.core.process.process") -> ModuleType:
    """Import a module of Lava.

    Raises:
        Refused: Lava or greenlet is not installed for this Python; the remedy says how.
    """
    for package, name in (("lava.magma", "lava-nc"), ("greenlet", "greenlet")):
        try:
            found = importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            version = ".".join(str(n) for n in sys.version_info[:2])
            raise Refused(
                "backend 'lava'",
                f"expected the package {name}, got none on Python {version}",
                "Install it on Python 3.10: pip install 'grasp-plugin[lava]'",
            )
    with kept_logging(), _kept_start_method():
        return importlib.import_module(module)


@contextmanager
def _kept_start_method() -> Iterator[None]:
    """Importing Lava sets multiprocessing's start method, and fails where one is set already."""
    original = multiprocessing.set_start_method
    multiprocessing.set_start_method = lambda *args, **kwargs: None
    try:
        yield
    finally:
        multiprocessing.set_start_method = original


@contextmanager
def kept_logging() -> Iterator[None]:
    """Keep the root logger's handlers and level: every Lava Process adds a handler to it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)

"""Import Lava where it is used, on Python 3.10 to 3.13, and undo its side effects.

lava-nc 0.10 is pinned to Python below 3.11 and NumPy below 2, and Lava is archived. What stands in
the way on newer versions is little, and is put right here, in memory, without touching its files:

* Python 3.11+ refuses the unhashable default `ByteEncoder()` of `lava.magma.compiler.var_model`;
* NumPy 2.1+ has no `np.reshape(newshape=...)`, which `ReshapePort` uses.

On 3.11 and later the user installs it knowingly, since pip respects the pin:

    pip install --ignore-requires-python --no-deps lava-nc==0.10.0
    pip install asteval networkx scikit-learn greenlet

Importing Lava also sets multiprocessing's start method, and every Lava Process adds a handler to
the root logger; neither survives here.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import logging
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from grasp_plugin.errors import Refused

INSTALL = (
    "On Python 3.10: pip install 'grasp-plugin[lava]'. On 3.11 and later: pip install "
    "--ignore-requires-python --no-deps lava-nc==0.10.0; pip install asteval networkx "
    "scikit-learn greenlet"
)


def have_lava() -> bool:
    """True if lava-nc and greenlet are installed (they are not imported to find out)."""
    return _found("lava.magma") and _found("greenlet")


def _found(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def require_lava(module: str = "lava.magma.core.process.process") -> ModuleType:
    """Import a module of Lava, after mending what newer Pythons and NumPys need.

    Raises:
        Refused: Lava or greenlet is not installed, or its import fails; the remedy says what to do.
    """
    for package, name in (("lava.magma", "lava-nc"), ("greenlet", "greenlet")):
        if not _found(package):
            version = ".".join(str(n) for n in sys.version_info[:2])
            raise Refused(
                "backend 'lava'",
                f"expected the package {name}, got none on Python {version}",
                INSTALL,
            )
    try:
        with kept_logging(), _kept_start_method():
            with _hashable_byte_encoder():
                importlib.import_module("lava.magma.compiler.var_model")
            _mend_reshape(importlib.import_module("lava.magma.core.process.ports.ports"))
            return importlib.import_module(module)
    except ImportError as error:
        raise Refused(
            "backend 'lava'", f"expected Lava to import, got {type(error).__name__}: {error}",
            f"Install what is missing. {INSTALL}",
        ) from error  # fmt: skip


@contextmanager
def _hashable_byte_encoder() -> Iterator[None]:
    """Let dataclasses accept Lava's default `ByteEncoder()`, as Python 3.10 did."""
    if sys.version_info < (3, 11) or "lava.magma.compiler.var_model" in sys.modules:
        yield
        return
    original: Any = dataclasses.dataclass

    def patched(cls: type | None = None, /, **options: Any) -> Any:
        if cls is None:
            return lambda c: patched(c, **options)
        if cls.__name__ == "ByteEncoder":
            options["unsafe_hash"] = True
        return original(cls, **options)

    dataclasses.dataclass = patched
    try:
        yield
    finally:
        dataclasses.dataclass = original


def _mend_reshape(ports: Any) -> None:
    """Give ReshapePort a reshape that every NumPy has."""
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":
        return

    def reshaped(shape: tuple[int, ...]) -> Callable[[Any], Any]:
        return functools.partial(_reshape, shape)

    ports.ReshapePort.get_transform_func_fwd = lambda self: reshaped(self.shape)
    ports.ReshapePort.get_transform_func_bwd = lambda self: reshaped(self.old_shape)


def _reshape(shape: tuple[int, ...], data: Any) -> Any:
    return np.reshape(data, shape)


@contextmanager
def _kept_start_method() -> Iterator[None]:
    """Importing Lava sets multiprocessing's start method, and fails where one is set already."""
    original = multiprocessing.set_start_method
    multiprocessing.set_start_method = lambda *args, **kwargs: None
    try:
        yield
    finally:
        multiprocessing.set_start_method = original


def forget_processes(processes: Iterable[Any]) -> None:
    """Take ended Processes and their Vars out of Lava's global lists, which keep them for ever.

    Nothing in Lava reads those lists after a Process is made; the objects themselves stay usable.
    """
    require_lava()
    from lava.magma.core.process.process import ProcessServer
    from lava.magma.core.process.variable import VarServer

    processes = list(processes)
    gone = {id(p) for p in processes}
    servers: Any = ProcessServer(), VarServer()
    servers[0].processes[:] = [p for p in servers[0].processes if id(p) not in gone]
    servers[1].vars[:] = [v for v in servers[1].vars if id(v.process) not in gone]


@contextmanager
def kept_logging() -> Iterator[None]:
    """Keep the handlers of the root logger and of Lava's own, and the root's level.

    Every Lava Process adds a handler to the root logger, every compilation one to its own.
    """
    root = logging.getLogger()
    before, level = {name: list(log.handlers) for name, log in _loggers()}, root.level
    try:
        yield
    finally:
        for name, log in _loggers():
            log.handlers[:] = before.get(name, [])
        root.setLevel(level)


def _loggers() -> list[tuple[str, logging.Logger]]:
    found = [("", logging.getLogger())]
    for name, log in list(logging.Logger.manager.loggerDict.items()):
        if name.startswith("lava.") and isinstance(log, logging.Logger):
            found.append((name, log))
    return found

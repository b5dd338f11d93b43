"""`.nir` files: read with every fault named, written whole or not at all.

`nir.read` stops at asserts, skips type_check=False in nested graphs, and some published files make
it fail; `nir.write` leaves half a file behind when it fails. `read_nir` reads HDF5 itself, checks
every field before it builds NIR's own node objects, and turns each failure into one `Invalid` that
names the file, the node, what was expected and got, and the remedy. `write_nir` writes the layout
of `nir.write` beside the target and moves it into place when it is complete.

Time unit. A NIR file says nothing about its unit: snnTorch, Norse and Lava's converter write
seconds, others milliseconds. In this package a graph in memory is in seconds. On reading, the
caller's `time_unit` counts first, then the hint in the graph's metadata, then seconds are assumed,
but refused if a time constant or delay is above 1 s. Milliseconds are converted in `tau`,
`tau_syn`, `tau_mem` and `delay`, which become float64. Nothing else is converted: gains are free of
time in NIR's LI, LIF, CubaLI and CubaLIF; in I and IF, `r` is a gain per unit of time by the
equation (dv/dt = r I), but exporters write 1 there whatever their unit, so `r` is left as stored
and the hint `read_notes` says so.

What the graph's hints hold after reading: `time_unit` ("s"), `source_time_unit`, `nir_version` (or
"none"), and `read_notes` where something was filled in.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np

from grasp_plugin.adapters._nir_probe import DAMAGED, remember
from grasp_plugin.adapters._nir_read import read_file
from grasp_plugin.errors import Invalid
from grasp_plugin.network.fields import OPTIONAL, TIME_FIELDS, at, fields_of, show
from grasp_plugin.network.hints import KEY, read_hints, write_hints
from grasp_plugin.network.validate import validate

__all__ = ["read_nir", "validate", "write_nir"]

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())

_PER_SECOND = {"s": 1.0, "ms": 1000.0}


def read_nir(path: str | os.PathLike[str], time_unit: str | None = None) -> nir.NIRGraph:
    """Read a `.nir` file; the graph's times are in seconds.

    Args:
        path: the file.
        time_unit: "s" or "ms", the unit of the times in the file; None takes the file's own hint,
            or seconds if no time constant and no delay is above 1.

    Returns:
        The graph, built without NIR's type inference, with hints (see the module).

    Raises:
        Invalid: whatever is wrong with the file, as the only exception.
    """
    _check_unit(time_unit)
    file = _existing(path)
    where = _printable(file.name)
    graph, version, notes = read_file(file, where)
    validate(graph, where)
    return _in_seconds(graph, where, time_unit, version, notes)


def _is_unit(time_unit: Any) -> bool:
    return isinstance(time_unit, str) and time_unit in _PER_SECOND


def _check_unit(time_unit: Any) -> None:
    if time_unit is not None and not _is_unit(time_unit):
        raise Invalid(
            "time_unit", f"expected 's', 'ms' or None, got {show(time_unit)}", "Pass one of them"
        )


def _path(path: Any) -> Path:
    try:
        return Path(path)
    except TypeError as error:
        raise Invalid(
            "path", f"expected a file name, got {type(path).__name__}", "Pass a str or a Path"
        ) from error


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _existing(path: Any) -> Path:
    """The path, if it is an HDF5 file that can be opened."""
    file = _path(path)
    name = _printable(str(file))
    try:
        if not file.exists():
            raise Invalid(name, "expected a .nir file, got no file of that name", "Check the path")
        if not file.is_file():
            kind = "a folder" if file.is_dir() else "something that is no file"
            raise Invalid(name, f"expected a .nir file, got {kind}", "Name the file itself")
        if file.stat().st_size == 0:
            raise Invalid(name, "expected a .nir file, got an empty file", DAMAGED)
        with file.open("rb") as handle:
            head = handle.read(8)
        if not h5py.is_hdf5(file):
            raise Invalid(
                name,
                f"expected an HDF5 file, got one that starts with {show(head)}",
                "NIR files are HDF5, as nir.write makes them: export the network again",
            )
    except (OSError, ValueError) as error:
        if isinstance(error, Invalid):
            raise
        raise Invalid(
            name, f"the file cannot be opened: {error}", "Check the path and its permissions"
        ) from error
    return file


def _in_seconds(
    graph: nir.NIRGraph, where: str, time_unit: str | None, version: str, notes: list[str]
) -> nir.NIRGraph:
    hint = read_hints(graph).get("time_unit")
    if time_unit is None and hint is not None and not _is_unit(hint):
        raise Invalid(
            where,
            f"expected the time unit in the metadata to be 's' or 'ms', got {show(hint)}",
            "Pass time_unit='s' or 'ms'",
        )
    unit = time_unit or hint
    if unit is None:
        _refuse_long_times(graph, where)
        unit = "s"
    if unit != "s":
        _convert(graph, 1.0, _PER_SECOND[unit])
        rates = [path for path, node in _walk(graph) if isinstance(node, nir.I | nir.IF)]
        if rates:
            notes.append(f"r is per unit of time and was left as stored: {', '.join(rates)}")
    for note in notes:
        _log.info("%s: %s", where, note)
    hints = {"time_unit": "s", "source_time_unit": unit, "nir_version": version}
    if notes:
        hints["read_notes"] = "; ".join(notes)
    write_hints(graph, **hints)
    return graph


def _refuse_long_times(graph: nir.NIRGraph, where: str) -> None:
    for path, node in _walk(graph):
        for name in TIME_FIELDS:
            values = np.asarray(getattr(node, name, 0.0))
            long = values[np.isfinite(values) & (values > 1.0)]
            if long.size:
                raise Invalid(
                    at(where, path),
                    f"{name} is {show(long.max())}: expected seconds at most 1, as NIR files do"
                    " not say their unit",
                    "Pass time_unit='ms' if these are milliseconds, time_unit='s' if seconds",
                )


def _walk(graph: nir.NIRGraph, prefix: str = "") -> Iterator[tuple[str, nir.NIRNode]]:
    for name, node in graph.nodes.items():
        if isinstance(node, nir.NIRGraph):
            yield from _walk(node, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", node


def _convert(graph: nir.NIRGraph, factor: float, divisor: float) -> None:
    """Times of a graph of our own making (just read, or a copy) times factor / divisor."""
    for _, node in _walk(graph):
        for name in TIME_FIELDS:
            if name in vars(node):
                setattr(node, name, np.asarray(getattr(node, name), np.float64) * factor / divisor)


def write_nir(
    graph: nir.NIRGraph,
    path: str | os.PathLike[str],
    time_unit: str = "s",
    compression: str | int | None = "gzip",
) -> None:
    """Write a graph to a `.nir` file, whole or not at all.

    The file is written beside the target under a temporary name, flushed to disk, and moved into
    place, so a failure leaves an older file as it was. What `nir.write` cannot store is stored all
    the same: parameters without dimensions, a `Conv2d.input_shape` of None (left out: `read_nir`
    takes such a file, `nir.read` does not), metadata of None (left out). The file says its time
    unit in the graph's metadata.

    Args:
        graph: the graph, in seconds unless its hints say otherwise. It is not altered.
        path: the file to write or replace; its folder must exist.
        time_unit: "s" or "ms", the unit of the times in the file. Converted times are float64
            (from seconds to milliseconds and back is exact to one unit in the last place).
        compression: h5py's compression of the arrays; None for none.

    Raises:
        Invalid: the graph is malformed, holds what HDF5 cannot store, or the file cannot be
            written.
    """
    _check_unit(time_unit)
    target = Path(os.path.realpath(_path(path)))
    validate(graph, "graph")
    hint = read_hints(graph).get("time_unit", "s")
    if time_unit is None or not _is_unit(hint):
        raise Invalid(
            "graph" if time_unit else "time_unit",
            f"expected a time unit 's' or 'ms', got {show(hint if time_unit else None)}",
            "Pass time_unit='s', and set the hint time_unit of the graph to the unit it is in",
        )
    scale = (_PER_SECOND[time_unit], _PER_SECOND[hint])
    content = _to_dict(graph, "graph", scale)
    content["metadata"][KEY] = {**content["metadata"].get(KEY, {}), "time_unit": time_unit}

    def fill(handle: h5py.File) -> None:
        handle.create_dataset("version", data=nir.version, dtype=h5py.string_dtype())
        _store(handle.create_group("node"), content, "graph", compression)

    _replace(target, fill)


def _to_dict(node: nir.NIRNode, path: str, scale: tuple[float, float]) -> dict[str, Any]:
    """The node as nested dicts of text, integers and arrays, times scaled, without any None."""
    kind = type(node).__name__
    result: dict[str, Any] = {"type": kind, "metadata": dict(node.metadata or {})}
    if isinstance(node, nir.NIRGraph):
        nodes = {
            name: _to_dict(inner, f"{path}.{name}", scale) for name, inner in node.nodes.items()
        }
        return result | {"nodes": nodes, "edges": [tuple(edge) for edge in node.edges]}
    for name, value in fields_of(node).items():
        if value is None and name in OPTIONAL:
            continue
        if name in TIME_FIELDS and scale[0] != scale[1]:
            value = np.asarray(value, np.float64) * scale[0] / scale[1]
        result[name] = value if isinstance(value, str) else np.asarray(value)
    return result


def _store(
    group: h5py.Group, content: Mapping[Any, Any], path: str, compression: str | int | None
) -> None:
    for name, value in content.items():
        if not isinstance(name, str) or not name or name == "." or "/" in name or "\0" in name:
            raise Invalid(
                at(path, "") if isinstance(name, str) else path,
                f"expected a name that HDF5 can store (text without '/'), got {show(name)}",
                "Rename the node or metadata key",
            )
        inner = f"{path}.{name}"
        if isinstance(value, Mapping):
            if value or name != "metadata":
                _store(group.create_group(name, track_order=True), value, inner, compression)
        elif value is not None:
            _store_value(group, name, value, inner, compression)


def _store_value(
    group: h5py.Group, name: str, value: Any, path: str, compression: str | int | None
) -> None:
    try:
        if isinstance(value, str):
            group.create_dataset(name, data=value, dtype=h5py.string_dtype())
            return
        array = np.asarray(value)
        if array.dtype.kind == "U":
            group.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype())
        elif array.dtype.kind in "biufc":
            how = {"compression": compression} if array.ndim and array.size else {}
            group.create_dataset(name, data=array, **how)
        else:
            raise TypeError(f"no way to store {type(value).__name__} of dtype {array.dtype}")
    except Exception as error:
        raise Invalid(
            path,
            f"expected text, numbers, or arrays and dicts of them, got {show(value)}"
            f" ({type(error).__name__}: {error})",
            "Remove it or convert it",
        ) from error


def _replace(target: Path, fill: Callable[[h5py.File], None]) -> None:
    """Create `target` by a temporary file in its folder, or leave everything as it was."""
    name = _printable(str(target))
    if target.is_dir() or not target.parent.is_dir():
        got = "a folder" if target.is_dir() else f"no folder {show(str(target.parent))}"
        raise Invalid(name, f"expected a file name in a folder, got {got}", "Check the path")
    temporary = target.parent / f".{secrets.token_hex(8)}.nir.tmp"
    try:
        with h5py.File(temporary, "x") as handle:
            fill(handle)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        remember(temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except Invalid:
        raise
    except Exception as error:
        raise Invalid(
            name,
            f"the file cannot be written: {type(error).__name__}: {show(str(error))}",
            "Check the folder's permissions and the space on the disk",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entry to disk, on systems where a folder can be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

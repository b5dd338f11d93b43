"""HDF5 to NIR nodes, for `nir_file`: our own reader, behind the probe of `_nir_probe`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np

from grasp_plugin.adapters._nir_probe import DAMAGED, probe
from grasp_plugin.errors import Invalid
from grasp_plugin.network.fields import at, check_fields, check_names, check_type, show
from grasp_plugin.network.validate import MAX_DEPTH, check_edges

_log = logging.getLogger(__name__)

MAX_BYTES = 2**31
"""A file whose arrays unpack to more than this is taken for a broken one."""
MAX_WORDS = 2**20
"""An array of more words of text (such as names in edges) is taken for a broken one."""
# HDF5 format specification, "global heap ID": how text of any length is kept in an array
_TEXT_ENTRY = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])


def read_file(file: Path, where: str) -> tuple[nir.NIRGraph, str, list[str]]:
    """The graph in a file as stored, the NIR version that wrote it ("none"), and notes.

    Raises:
        Invalid: for everything that can be wrong with it.
    """
    try:
        probe(file, where)
        with h5py.File(file, "r") as handle:
            return _Reader(where, file).file(handle)
    except Invalid:
        raise
    except Exception as error:
        raise Invalid(
            where, f"HDF5 reading failed: {type(error).__name__}: {show(str(error))}", DAMAGED
        ) from error


class _Reader:
    """Reads one file. Each group is visited once and each byte is counted, so that links in a
    circle, and arrays that unpack to nonsense, end in a message."""

    def __init__(self, where: str, path: Path) -> None:
        self.where = where
        self.path = path
        self.bytes = 0
        self.groups: set[Any] = set()
        self.filled: list[str] = []

    def file(self, handle: h5py.File) -> tuple[nir.NIRGraph, str, list[str]]:
        entries = dict(self.entries(handle, self.where))
        version = self.version(entries.get("version"))
        try:
            root = entries.get("node")
            if not isinstance(root, h5py.Group):
                raise Invalid(
                    self.where,
                    f"expected a group 'node', got {show(sorted(entries))}",
                    "The file holds no NIR graph, or was not finished: export it again",
                )
            graph = self.node(root, "", 0)
        except Invalid as error:
            if _is_old(version):
                raise _old_format(error, version) from error
            raise
        if not isinstance(graph, nir.NIRGraph):
            raise Invalid(
                self.where,
                f"expected a NIRGraph, got a single node of type {type(graph).__name__}",
                "Put the node into a NIRGraph between an Input and an Output",
            )
        notes = []
        if self.filled:
            notes.append(f"v_reset was missing and is zero: {', '.join(self.filled)}")
        if _is_old(version):
            notes.append(f"the file's version, {version}, is of an old NIR format")
        return graph, version, notes

    def version(self, item: Any) -> str:
        if item is None:
            return "none"
        value = self.value(item, at(self.where, "version"), "version")
        if not isinstance(value, str):
            raise Invalid(at(self.where, "version"), f"expected text, got {show(value)}", DAMAGED)
        return value

    def entries(self, group: h5py.Group, culprit: str) -> Iterator[tuple[str, Any]]:
        """The members of a group by name; only plain links, and no group twice."""
        if group.id in self.groups:
            raise Invalid(culprit, "the group contains itself, or is linked twice", DAMAGED)
        self.groups.add(group.id)
        for name in group:
            if not isinstance(name, str) or not _is_text(name):
                raise Invalid(culprit, f"the name {name!a} is no valid text", DAMAGED)
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise Invalid(
                    culprit,
                    f"expected {show(name)} in the file itself, got a {type(link).__name__}",
                    "Copy what it points to into the file",
                )
            yield name, group[name]

    def node(self, group: h5py.Group, path: str, depth: int) -> nir.NIRNode:
        culprit = at(self.where, path)
        if depth > MAX_DEPTH:
            raise Invalid(culprit, f"graphs are nested more than {MAX_DEPTH} deep", DAMAGED)
        entries = dict(self.entries(group, culprit))
        if "type" not in entries:
            remedy = "Each node needs a 'type'; if the file was not finished, export it again"
            raise Invalid(
                culprit, f"expected a field 'type', got only {show(sorted(entries))}", remedy
            )
        kind = self.value(entries.pop("type"), culprit, "type")
        check_type(kind if isinstance(kind, str) else show(kind), culprit)
        metadata = self.metadata(entries.pop("metadata", None), culprit)
        if kind == "NIRGraph":
            return self.graph(entries, path, depth, metadata)
        check_names(kind, entries, culprit)
        fields = {name: self.value(item, culprit, name) for name, item in entries.items()}
        check_fields(kind, fields, culprit)
        if "v_reset" not in fields and hasattr(getattr(nir, kind), "v_reset"):
            self.filled.append(path)
        return _build(kind, fields, metadata, culprit)

    def graph(
        self, entries: dict[str, Any], path: str, depth: int, metadata: dict[str, Any]
    ) -> nir.NIRGraph:
        culprit = at(self.where, path)
        check_names("NIRGraph", entries, culprit)
        table = entries["nodes"]
        if not isinstance(table, h5py.Group):
            raise Invalid(culprit, "expected 'nodes' to be a group, got an array", DAMAGED)
        nodes = {}
        for name, item in self.entries(table, culprit):
            inner = f"{path}.{name}" if path else name
            if not isinstance(item, h5py.Group):
                raise Invalid(at(self.where, inner), "expected a group, got an array", DAMAGED)
            nodes[name] = self.node(item, inner, depth + 1)
        edges = self.edges(entries["edges"], culprit)
        types = {name: type(node).__name__ for name, node in nodes.items()}
        check_edges(types, edges, self.where, path)
        return nir.NIRGraph(nodes, edges, metadata=metadata, type_check=False)

    def edges(self, item: Any, culprit: str) -> list[tuple[str, str]]:
        table = self.value(item, culprit, "edges")
        table = table if isinstance(table, np.ndarray) else np.asarray(table)
        if table.size == 0:
            return []
        if table.dtype.kind != "U" or table.ndim != 2 or table.shape[1] != 2:
            got = f"shape {table.shape}, dtype {table.dtype}"
            old = "; numbers are an old NIR format" if table.dtype.kind in "iuf" else ""
            raise Invalid(
                culprit,
                f"expected edges as text of shape (n, 2), got {got}{old}",
                "Export the network again with nir 1.0 or newer",
            )
        return [(str(source), str(target)) for source, target in table]

    def metadata(self, item: Any, culprit: str, depth: int = 0) -> dict[str, Any]:
        if item is None:
            return {}
        if not isinstance(item, h5py.Group) or depth > MAX_DEPTH:
            got = "too many nested ones" if isinstance(item, h5py.Group) else "an array"
            raise Invalid(culprit, f"expected metadata as a group, got {got}", DAMAGED)
        return {
            name: self.metadata(value, culprit, depth + 1)
            if isinstance(value, h5py.Group)
            else _plain(self.value(value, culprit, f"metadata {name!r}"))
            for name, value in self.entries(item, culprit)
        }

    def value(self, item: Any, culprit: str, field: str) -> Any:
        """A dataset as text, an array of text, or an array of numbers in native byte order."""
        if not isinstance(item, h5py.Dataset):
            raise Invalid(culprit, f"expected {field} to be an array, got a group", DAMAGED)
        try:
            self.check_size(item, culprit, field)
            self.check_text(item, culprit, field)
            return _decoded(item)
        except Invalid:
            raise
        except Exception as error:
            raise Invalid(
                culprit,
                f"{field} cannot be read: {type(error).__name__}: {show(str(error))}",
                DAMAGED,
            ) from error

    def check_size(self, item: h5py.Dataset, culprit: str, field: str) -> None:
        if item.shape is None or item.is_virtual or item.external:
            what = "no value" if item.shape is None else "a reference to another file"
            raise Invalid(culprit, f"expected a value in {field}, got {what}", DAMAGED)
        sizes = [int(np.prod(shape, dtype=object)) for shape in (item.shape, item.chunks or ())]
        self.bytes += max(sizes) * item.dtype.itemsize
        if self.bytes > MAX_BYTES or (item.dtype.hasobject and max(sizes) > MAX_WORDS):
            raise Invalid(
                culprit,
                f"expected at most {MAX_BYTES} bytes of arrays and {MAX_WORDS} words of text,"
                f" got {field} of shape {item.shape}",
                DAMAGED,
            )

    def check_text(self, item: h5py.Dataset, culprit: str, field: str) -> None:
        """HDF5 allocates the length that an entry claims, up to 4 GiB, before it looks further."""
        offset = item.id.get_offset() if item.dtype.hasobject else None
        if offset is None or item.file.userblock_size:
            return
        with self.path.open("rb") as handle:
            handle.seek(offset)
            raw = handle.read(item.size * _TEXT_ENTRY.itemsize)
        lengths = np.frombuffer(raw, _TEXT_ENTRY, len(raw) // _TEXT_ENTRY.itemsize)["length"]
        longest = int(lengths.max(initial=0))
        if longest > self.path.stat().st_size:
            raise Invalid(
                culprit, f"{field} claims text of {longest} bytes, more than the file", DAMAGED
            )


def _is_text(name: str) -> bool:
    try:
        name.encode("utf8")
    except UnicodeEncodeError:
        return False
    return True


def _decoded(item: h5py.Dataset) -> Any:
    text = h5py.check_string_dtype(item.dtype) is not None
    value = item[()]
    if not text:
        array = np.asarray(value)
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if isinstance(value, np.ndarray):
        words = [entry if isinstance(entry, str) else entry.decode("utf8") for entry in value.flat]
        return np.array(words, dtype=np.str_).reshape(value.shape)
    return value if isinstance(value, str) else bytes(value).decode("utf8")


def _plain(value: Any) -> Any:
    """Metadata scalars as Python values where that loses nothing."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        plain = value.item()
        return plain if np.asarray(plain).dtype == value.dtype else value[()]
    return value


def _build(kind: str, fields: dict[str, Any], metadata: dict[str, Any], culprit: str) -> Any:
    """NIR's node from checked fields: one shape for all parameters, integers as Python's."""
    values = {name: _counts(name, value, kind) for name, value in fields.items()}
    if kind in ("Input", "Output"):
        values = {f"{kind.lower()}_type": {kind.lower(): fields["shape"]}}
    elif kind == "Flatten":
        values["input_type"] = {"input": fields.get("input_type")}
    elif kind in ("Conv1d", "Conv2d"):
        values.setdefault("input_shape", None)
    elif not ({"weight", "kernel_size"} & fields.keys()):
        shape = np.broadcast_shapes(*(value.shape for value in fields.values()))
        values = {
            name: value if value.shape == shape else np.broadcast_to(value, shape).copy()
            for name, value in fields.items()
        }
    try:
        node = getattr(nir, kind)(**values, metadata=metadata)
    except Exception as error:
        raise Invalid(
            culprit, f"nir cannot build this {kind}: {error}", "Compare its fields with NIR's"
        ) from error
    if "w_in" in values:
        node.w_in = values["w_in"]  # nir multiplies by ones, which may change the dtype
    return node


def _counts(name: str, value: Any, kind: str) -> Any:
    single = name in ("groups", "start_dim", "end_dim") or (kind, name) == ("Conv1d", "input_shape")
    window = name in ("stride", "padding", "dilation", "input_shape", "kernel_size")
    if isinstance(value, str) or not (single or window):
        return value
    if single or value.ndim == 0:
        return int(value.reshape(-1)[0])
    return tuple(int(entry) for entry in value) if kind in ("Conv1d", "Conv2d") else value


def _is_old(version: str) -> bool:
    """Before 0.3; `0.1.dev247` is what a checkout without tags calls itself, and says no age."""
    found = re.match(r"v?(\d+)\.(\d+)", version)
    return found is not None and ".dev" not in version and (int(found[1]), int(found[2])) < (0, 3)


def _old_format(error: Invalid, version: str) -> Invalid:
    return Invalid(
        error.node,
        f"{error.reason} (the file's version, {show(version)}, is of an old NIR format)",
        f"{error.remedy}, or read it with that version of nir and write it with a newer one",
    )

"""`.nir` files: every primitive survives the round trip, every broken file ends in `Invalid`."""

from __future__ import annotations

import io
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from grasp_plugin.adapters import _nir_probe
from grasp_plugin.adapters.nir_file import read_nir, validate, write_nir
from grasp_plugin.errors import Invalid
from grasp_plugin.network.fields import FIELDS
from grasp_plugin.network.hints import KEY, read_hints, write_hints

ROOT = Path(__file__).resolve().parents[2]
TEXT = h5py.string_dtype()
HINTS = f"node/metadata/{KEY}"
READ_HINTS = {"time_unit", "source_time_unit", "nir_version", "read_notes"}


def arr(*values: float, dtype: Any = np.float64) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=dtype)


def shape(*sizes: int) -> np.ndarray[Any, Any]:
    return np.array(sizes)


def lif(n: int = 3, dtype: Any = np.float64) -> nir.LIF:
    one = np.ones(n, dtype)
    return nir.LIF(one * 0.02, one * 2, one * 0.25, one * 1.5, v_reset=one * -0.5)


def chain(*nodes: tuple[str, nir.NIRNode], size: Any = None) -> nir.NIRGraph:
    """input -> nodes -> output, shapes unchecked."""
    size = shape(3) if size is None else size
    table = {"input": nir.Input(size), **dict(nodes), "output": nir.Output(size)}
    names = list(table)
    return nir.NIRGraph(table, list(pairwise(names)), {}, type_check=False)


def conv2d(**changes: Any) -> nir.Conv2d:
    rng = np.random.default_rng(1)
    fields: dict[str, Any] = {
        "input_shape": (8, 9),
        "weight": rng.normal(size=(4, 1, 3, 5)).astype(np.float32),
        "stride": (2, 1),
        "padding": (0, 2),
        "dilation": 1,
        "groups": 2,
        "bias": rng.normal(size=4),
    }
    return nir.Conv2d(**{**fields, **changes})


def conv1d(**changes: Any) -> nir.Conv1d:
    fields: dict[str, Any] = {
        "input_shape": 20,
        "weight": np.arange(24.0).reshape(4, 2, 3),
        "stride": 2,
        "padding": 1,
        "dilation": 1,
        "groups": 1,
        "bias": np.arange(4.0),
    }
    return nir.Conv1d(**{**fields, **changes})


def nested() -> nir.NIRGraph:
    w_rec = nir.Affine(np.arange(9.0).reshape(3, 3), arr(1, 2, 3))
    nodes = {
        "input": nir.Input(shape(3)),
        "lif": lif(),
        "w_rec": w_rec,
        "output": nir.Output(shape(3)),
    }
    edges = [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")]
    return nir.NIRGraph(nodes, edges, {"what": "recurrent"}, type_check=False)


PRIMITIVES: dict[str, Callable[[], nir.NIRNode]] = {
    "affine": lambda: nir.Affine(np.arange(6, dtype=np.int8).reshape(2, 3), arr(1, 2)),
    "affine_f16": lambda: nir.Affine(np.ones((2, 3), np.float16), np.ones(2, np.float32)),
    "affine_batch": lambda: nir.Affine(np.ones((5, 2, 3)), np.ones((5, 2))),
    "linear": lambda: nir.Linear(np.arange(6.0).reshape(2, 3)),
    "scale": lambda: nir.Scale(arr(0.5, 2.0)),
    "scale_0d": lambda: nir.Scale(np.array(0.5)),
    "conv1d": conv1d,
    "conv1d_same": lambda: conv1d(stride=1, padding="same", input_shape=None),
    "conv2d": conv2d,
    "conv2d_valid": lambda: conv2d(padding="valid", stride=1, dilation=(2, 1)),
    "conv2d_no_shape": lambda: conv2d(input_shape=None),
    "sumpool": lambda: nir.SumPool2d(shape(2, 3), shape(2, 2), shape(0, 1)),
    "avgpool": lambda: nir.AvgPool2d(shape(2, 2), shape(2, 2), shape(0, 0)),
    "avgpool_int": lambda: nir.AvgPool2d(2, 2, 0),
    "flatten": lambda: nir.Flatten({"input": shape(2, 3, 4)}, 0, -1),
    "flatten_some": lambda: nir.Flatten({"input": shape(2, 3, 4)}, 1, 2),
    "flatten_no_type": lambda: nir.Flatten({"input": None}, 0, -1),
    "delay": lambda: nir.Delay(arr(0.0, 0.001, 0.5)),
    "threshold": lambda: nir.Threshold(arr(1.0, 2.0)),
    "i": lambda: nir.I(arr(1.0, 2.0)),
    "if": lambda: nir.IF(arr(1.0, 2.0), arr(1.0, 1.0), arr(-0.5, 0.0)),
    "if_default_reset": lambda: nir.IF(arr(1.0, 2.0), arr(1.0, 1.0)),
    "li": lambda: nir.LI(arr(0.01, np.inf), arr(1, 2, dtype=np.int64), arr(0.0, 0.1)),
    "lif": lif,
    "lif_f32": lambda: lif(4, np.float32),
    "lif_0d": lambda: nir.LIF(*(np.array(x) for x in (0.01, 1.0, 0.0, 1.0))),
    "lif_2d": lambda: nir.LIF(*(np.full((2, 3), x) for x in (0.01, 1.0, 0.0, 1.0))),
    "cubali": lambda: nir.CubaLI(arr(0.01), arr(0.02), arr(1.0), arr(0.0), arr(3.0)),
    "cubalif": lambda: nir.CubaLIF(
        *(arr(x, x) for x in (0.01, 0.02, 1.0, 0.0, 1.0)), w_in=arr(2.0, 3.0)
    ),
    "nested": nested,
    "nested_twice": lambda: chain(("inner", nested())),
}


def same(a: Any, b: Any) -> bool:
    """Equal in kind, dtype, shape and every value."""
    if isinstance(a, dict):
        return (
            isinstance(b, dict)
            and a.keys() == b.keys()
            and all(same(v, b[k]) for k, v in a.items())
        )
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


def assert_same_graph(a: nir.NIRGraph, b: nir.NIRGraph) -> None:
    assert set(a.edges) == set(b.edges)
    assert a.nodes.keys() == b.nodes.keys()
    assert same(without_read_hints(a), without_read_hints(b))
    for name, node in a.nodes.items():
        other = b.nodes[name]
        assert type(node) is type(other)
        if isinstance(node, nir.NIRGraph):
            assert_same_graph(node, other)
            continue
        assert same(dict(node.metadata), dict(other.metadata)), name
        for field in vars(node).keys() - {"metadata", "output_type"}:
            assert same(vars(node)[field], vars(other)[field]), (name, field)


def without_read_hints(graph: nir.NIRGraph) -> dict[str, Any]:
    hints = {k: v for k, v in graph.metadata.get(KEY, {}).items() if k not in READ_HINTS}
    rest = {k: v for k, v in graph.metadata.items() if k != KEY}
    return {**rest, KEY: hints} if hints else rest


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRIMITIVES)
def test_round_trip_of_each_primitive(name: str, tmp_path: Path) -> None:
    node = PRIMITIVES[name]()
    node.metadata = {"note": f"metadata of {name}", "nested": {"list": arr(1, 2, 3), "n": 7}}
    graph = chain((name, node))
    write_nir(graph, tmp_path / "net.nir")
    assert_same_graph(graph, read_nir(tmp_path / "net.nir"))


def test_all_primitives_are_covered() -> None:
    kinds = {type(make()).__name__ for make in PRIMITIVES.values()} | {"Input", "Output"}
    assert kinds == set(FIELDS)


def test_what_nir_probes_is_what_was_written(tmp_path: Path) -> None:
    skip = {"conv2d_no_shape", "conv1d_same", "flatten_no_type"}
    for name in PRIMITIVES.keys() - skip:
        graph = chain((name, PRIMITIVES[name]()))
        write_nir(graph, tmp_path / "net.nir")
        again = nir.read(tmp_path / "net.nir", type_check=False)
        assert type(again.nodes[name]) is type(graph.nodes[name])


@pytest.mark.parametrize("name", sorted(PRIMITIVES.keys() - {"avgpool_int"}))
def test_files_of_nir_itself_are_read(name: str, tmp_path: Path) -> None:
    graph = chain((name, PRIMITIVES[name]()))
    graph.metadata = {"a": 1.5, "deep": {"text": "x"}}
    path = tmp_path / "net.nir"
    try:
        nir.write(path, graph)
    except TypeError:
        pytest.skip("nir.write itself cannot store this one")
    assert_same_graph(graph, read_nir(path))


def test_metadata_of_every_kind(tmp_path: Path) -> None:
    graph = chain(("lif", lif()))
    metadata = {
        "text": "µ-é",
        "empty": "",
        "int": 3,
        "float": 0.1,
        "bool": True,
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "bools": np.array([True, False]),
        "words": np.array(["a", "bcd"]),
        "float32": np.float32(0.5),
        "complex": 1 + 2j,
        "nothing": np.zeros(0),
        "deep": {"deeper": {"x": 1}, "void": {}},
    }
    graph.nodes["lif"].metadata = {**metadata, "none": None}
    graph.metadata = dict(metadata)
    write_nir(graph, tmp_path / "net.nir")
    again = read_nir(tmp_path / "net.nir")
    assert same(again.nodes["lif"].metadata, metadata)
    assert same(without_read_hints(again), metadata)


def test_writing_alters_nothing_and_reading_twice_is_reading_once(tmp_path: Path) -> None:
    graph = chain(("lif", lif()), ("nested", nested()))
    before = pickle.dumps(graph)
    validate(graph, "graph")
    write_nir(graph, tmp_path / "a.nir", time_unit="ms")
    assert pickle.dumps(graph) == before
    write_nir(graph, tmp_path / "b.nir")
    first = read_nir(tmp_path / "b.nir")
    write_nir(first, tmp_path / "c.nir")
    second = read_nir(tmp_path / "c.nir")
    assert_same_graph(first, second)
    assert same(first.metadata, second.metadata)


def test_scalars_beside_vectors_are_broadcast(tmp_path: Path) -> None:
    write_nir(chain(("lif", lif(3))), tmp_path / "net.nir")
    with h5py.File(tmp_path / "net.nir", "a") as handle:
        node = handle["node/nodes/lif"]
        del node["tau"], node["r"]
        node["tau"], node["r"] = np.float32(0.5), np.ones(1)
    node = read_nir(tmp_path / "net.nir").nodes["lif"]
    assert node.tau.tolist() == [0.5] * 3
    assert node.tau.dtype == np.float32
    assert node.r.shape == (3,)


def test_big_endian_numbers_become_native(tmp_path: Path) -> None:
    graph = chain(("w", nir.Linear(np.ones((2, 3), dtype=">f4"))))
    write_nir(graph, tmp_path / "net.nir")
    weight = read_nir(tmp_path / "net.nir").nodes["w"].weight
    assert weight.dtype == np.dtype("f4")
    assert weight.dtype.isnative


finite = st.floats(-1e6, 1e6, width=32)
parameter = hnp.arrays(np.float64, 3, elements=finite)
tau = hnp.arrays(np.float64, 3, elements=st.floats(1e-6, 1e3))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    taus=st.tuples(tau, tau),
    values=st.tuples(parameter, parameter, parameter, parameter),
    weight=hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.uint16]),
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=4),
    ).filter(lambda a: np.isfinite(a).all()),
    meta=st.dictionaries(
        st.text("abcxyz_µ ", min_size=1),
        st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.booleans()),
        max_size=3,
    ),
    names=st.lists(
        st.text(min_size=1, max_size=8).filter(
            lambda s: s not in (".", "input", "output") and "/" not in s and "\0" not in s
        ),
        min_size=2,
        max_size=2,
        unique=True,
    ),
)
def test_round_trip_of_anything(tmp_path: Path, taus, values, weight, meta, names) -> None:  # type: ignore[no-untyped-def]
    try:
        "".join(names).encode("utf8")
    except UnicodeEncodeError:
        return
    neuron = nir.CubaLIF(*taus, *values[:3], v_reset=values[3], w_in=values[0])
    graph = chain((names[0], nir.Linear(weight)), (names[1], neuron))
    neuron.metadata = meta
    write_nir(graph, tmp_path / "net.nir")
    assert_same_graph(graph, read_nir(tmp_path / "net.nir"))


# --- time units ----------------------------------------------------------------------------------


def in_ms() -> nir.NIRGraph:
    cuba = nir.CubaLIF(*(arr(x) for x in (5.0, 20.0, 1.0, 0.0, 1.0)))
    li = nir.LI(arr(np.inf), arr(1.0), arr(0.0))
    delay, integrator = nir.Delay(arr(3.0)), nir.IF(arr(1.0), arr(1.0))
    inner = chain(("li", li), size=shape(1))
    return chain(("cuba", cuba), ("delay", delay), ("if", integrator), ("in", inner), size=shape(1))


def test_milliseconds_are_asked_about_and_converted(tmp_path: Path) -> None:
    path = tmp_path / "ms.nir"
    nir.write(path, in_ms())
    with pytest.raises(Invalid, match=r"ms\.nir, node 'cuba': tau_syn is 5\.0.*time_unit='ms'"):
        read_nir(path)
    graph = read_nir(path, time_unit="ms")
    assert graph.nodes["cuba"].tau_syn.tolist() == [0.005]
    assert graph.nodes["cuba"].tau_mem.tolist() == [0.02]
    assert graph.nodes["delay"].delay.tolist() == [0.003]
    assert np.isinf(graph.nodes["in"].nodes["li"].tau).all()
    assert graph.nodes["if"].r.tolist() == [1.0]
    hints = read_hints(graph)
    assert hints["time_unit"] == "s"
    assert hints["source_time_unit"] == "ms"
    assert hints["nir_version"] == nir.version
    assert "r is per unit of time and was left as stored: if" in hints["read_notes"]
    assert read_nir(path, time_unit="s").nodes["cuba"].tau_mem.tolist() == [20.0]


def test_the_hint_of_the_file_counts_and_the_caller_overrides(tmp_path: Path) -> None:
    graph = chain(("lif", lif()))
    write_nir(graph, tmp_path / "ms.nir", time_unit="ms")
    with h5py.File(tmp_path / "ms.nir") as handle:
        assert handle["node/nodes/lif/tau"][()].tolist() == [20.0] * 3
        assert handle[f"node/metadata/{KEY}/time_unit"][()] == b"ms"
    again = read_nir(tmp_path / "ms.nir")
    assert again.nodes["lif"].tau == pytest.approx(0.02, rel=3e-16)
    assert read_hints(again)["source_time_unit"] == "ms"
    assert read_nir(tmp_path / "ms.nir", time_unit="s").nodes["lif"].tau.tolist() == [20.0] * 3
    slow = chain(("lif", lif()))
    slow.nodes["lif"].tau = arr(5, 5, 5)
    write_nir(slow, tmp_path / "slow.nir")
    assert read_nir(tmp_path / "slow.nir").nodes["lif"].tau.tolist() == [5.0] * 3


def test_a_graph_in_memory_that_is_in_ms(tmp_path: Path) -> None:
    graph = in_ms()
    write_hints(graph, time_unit="ms")
    write_nir(graph, tmp_path / "s.nir")
    assert read_nir(tmp_path / "s.nir").nodes["cuba"].tau_mem.tolist() == [0.02]


@pytest.mark.parametrize("unit", ["us", 3, "S", b"ms", ["s"]])
def test_unknown_time_unit(unit: Any, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"time_unit.*expected 's', 'ms' or None"):
        read_nir(tmp_path / "net.nir", time_unit=unit)
    with pytest.raises(Invalid, match="time_unit"):
        write_nir(chain(("lif", lif())), tmp_path / "net.nir", time_unit=unit)


def test_unknown_time_unit_in_the_metadata(tmp_path: Path) -> None:
    graph = chain(("lif", lif()))
    write_nir(graph, tmp_path / "net.nir")
    with h5py.File(tmp_path / "net.nir", "a") as handle:
        group = handle[f"node/metadata/{KEY}"]
        del group["time_unit"]
        group.create_dataset("time_unit", data="min", dtype=TEXT)
    with pytest.raises(Invalid, match=r"net\.nir: expected the time unit.*'min'"):
        read_nir(tmp_path / "net.nir")
    assert read_nir(tmp_path / "net.nir", time_unit="s").nodes["lif"].tau.tolist() == [0.02] * 3
    for wrong in ("min", np.ones(2)):
        write_hints(graph, time_unit=wrong)
        with pytest.raises(Invalid, match="graph: expected a time unit"):
            write_nir(graph, tmp_path / "other.nir")


def test_old_files_lack_v_reset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nir.write(tmp_path / "old.nir", chain(("lif", lif())))
    with h5py.File(tmp_path / "old.nir", "a") as handle:
        del handle["node/nodes/lif/v_reset"], handle["version"]
        handle["version"] = "0.2.0"
    with caplog.at_level(logging.INFO):
        graph = read_nir(tmp_path / "old.nir")
    assert graph.nodes["lif"].v_reset.tolist() == [0.0] * 3
    notes = read_hints(graph)["read_notes"]
    assert "v_reset was missing and is zero: lif" in notes
    assert "0.2.0, is of an old NIR format" in notes
    assert "v_reset was missing" in caplog.text


def test_no_version_is_accepted(tmp_path: Path) -> None:
    write_nir(chain(("lif", lif())), tmp_path / "net.nir")
    with h5py.File(tmp_path / "net.nir", "a") as handle:
        del handle["version"]
    assert read_hints(read_nir(tmp_path / "net.nir"))["nir_version"] == "none"


# --- broken files --------------------------------------------------------------------------------

Mutation = Callable[[h5py.File], None]


def rich() -> nir.NIRGraph:
    """One graph with all that the mutations below need."""
    nodes = {
        "input": nir.Input(shape(2, 8, 9)),
        "conv": conv2d(),
        "conv1": conv1d(),
        "pool": nir.AvgPool2d(shape(2, 2), shape(2, 2), shape(0, 0)),
        "flat": nir.Flatten({"input": shape(4, 2, 2)}, 0, -1),
        "fc": nir.Affine(np.ones((3, 16)), np.ones(3)),
        "lif": lif(),
        "cuba": PRIMITIVES["cubalif"](),
        "delay": nir.Delay(arr(0, 0.001, 0)),
        "sub": nested(),
        "output": nir.Output(shape(3)),
    }
    names = list(nodes)
    edges = list(pairwise(names))
    return nir.NIRGraph(nodes, edges, {"about": "corpus"}, type_check=False)


def put(where: str, value: Any, **how: Any) -> Mutation:
    def change(handle: h5py.File) -> None:
        if where in handle:
            del handle[where]
        if value is not None or how:
            handle.create_dataset(where, data=value, **how)

    return change


def field(where: str, value: Any, **how: Any) -> Mutation:
    return put(f"node/nodes/{where}", value, **how)


def edges(change: Callable[[list[tuple[str, str]]], Any], **how: Any) -> Mutation:
    def apply(handle: h5py.File) -> None:
        old = [(a.decode(), b.decode()) for a, b in handle["node/edges"][()]]
        del handle["node/edges"]
        handle.create_dataset("node/edges", data=change(old), **how)

    return apply


def text(where: str, value: str) -> Mutation:
    return field(where, value, dtype=TEXT)


def loop(handle: h5py.File) -> None:
    handle["node/nodes/loop"] = handle["node"]


def deep(handle: h5py.File) -> None:
    group = handle["node/nodes"]
    for _ in range(60):
        group = group.create_group("in")
        group.create_dataset("type", data="NIRGraph", dtype=TEXT)
        group.create_dataset("edges", data=[("a", "b")])
        group = group.create_group("nodes")


def soft(handle: h5py.File) -> None:
    del handle["node/nodes/lif/tau"]
    handle["node/nodes/lif/tau"] = h5py.SoftLink("/node/nodes/lif/r")


def external(handle: h5py.File) -> None:
    del handle["node/nodes/lif/tau"]
    handle["node/nodes/lif/tau"] = h5py.ExternalLink("other.h5", "/tau")


def raw_file(handle: h5py.File) -> None:
    del handle["node/nodes/lif/tau"]
    handle["node/nodes/lif"].create_dataset(
        "tau", (3,), "f8", external=[("other.raw", 0, h5py.h5f.UNLIMITED)]
    )


def opaque(handle: h5py.File) -> None:
    del handle["node/nodes/lif/tau"]
    handle["node/nodes/lif"].create_dataset("tau", data=np.void(b"abc"))


def reference(handle: h5py.File) -> None:
    del handle["node/nodes/lif/tau"]
    handle["node/nodes/lif"].create_dataset("tau", data=handle["node"].ref, dtype=h5py.ref_dtype)


def ragged(handle: h5py.File) -> None:
    del handle["node/nodes/lif/tau"]
    made = handle["node/nodes/lif"].create_dataset("tau", (3,), h5py.vlen_dtype(np.float64))
    made[0] = [1.0, 2.0]


def huge(handle: h5py.File) -> None:
    del handle["node/nodes/fc/weight"]
    handle["node/nodes/fc"].create_dataset("weight", (2**31, 2**31), "f8", chunks=(64, 64))


def huge_chunk(handle: h5py.File) -> None:
    del handle["node/nodes/fc/weight"]
    handle["node/nodes/fc"].create_dataset(
        "weight", (3, 16), "f8", chunks=(2**14, 2**14), maxshape=(None, None), compression="gzip"
    )


def many_big(handle: h5py.File) -> None:
    for name, size in (("a", 2**20), ("b", 2**31 - 2**20)):
        handle["node/metadata"].create_dataset(name, (size,), "u1", chunks=(1024,))


def many_words(handle: h5py.File) -> None:
    del handle["node/edges"]
    handle["node"].create_dataset("edges", (2**26, 2), TEXT, chunks=(1024, 2))


def metadata_loop(handle: h5py.File) -> None:
    handle["node/metadata/again"] = handle["node/metadata"]


def no_value(handle: h5py.File) -> None:
    del handle["node/nodes/lif/tau"]
    handle["node/nodes/lif"].create_dataset("tau", data=h5py.Empty("f8"))


def array_node(handle: h5py.File) -> None:
    handle["node/nodes/extra"] = np.ones(3)


def group_field(handle: h5py.File) -> None:
    del handle["node/nodes/lif/tau"]
    handle.create_group("node/nodes/lif/tau")


def nodes_array(handle: h5py.File) -> None:
    del handle["node/nodes"]
    handle["node/nodes"] = np.ones(3)


def nodes_empty(handle: h5py.File) -> None:
    del handle["node/nodes"]
    handle.create_group("node/nodes")


def node_single(handle: h5py.File) -> None:
    handle.move("node/nodes/lif", "lif")
    del handle["node"]
    handle.move("lif", "node")


def node_metadata_array(handle: h5py.File) -> None:
    handle["node/nodes/lif/metadata"] = np.ones(3)


def bad_name(handle: h5py.File) -> None:
    handle.copy("node/nodes/lif", b"node/nodes/l\xffif")


def bad_version(handle: h5py.File) -> None:
    del handle["version"]
    handle["version"] = np.bytes_(b"1.\xff\xfe")


def drop(where: str) -> Mutation:
    return put(f"node/nodes/{where}", None)


def kill(where: str) -> Mutation:
    return put(where, None)


def without_node(kind: str) -> Mutation:
    def change(handle: h5py.File) -> None:
        del handle[f"node/nodes/{kind}"]
        old = [(a.decode(), b.decode()) for a, b in handle["node/edges"][()]]
        del handle["node/edges"]
        handle["node/edges"] = [edge for edge in old if kind not in edge]

    return change


def both(*changes: Mutation) -> Mutation:
    def change(handle: h5py.File) -> None:
        for one in changes:
            one(handle)

    return change


NAN, INF = np.nan, np.inf
# name: (mutation, text that the message must hold)
CORPUS: dict[str, tuple[Mutation, str]] = {
    # the file and the graph
    "no node group": (kill("node"), "group 'node'"),
    "node is an array": (put("node", np.ones(3)), "group 'node'"),
    "node without type": (kill("node/type"), "'type'"),
    "single node file": (node_single, "single node of type LIF"),
    "graph without edges field": (kill("node/edges"), "'edges'"),
    "graph without nodes field": (kill("node/nodes"), "'nodes'"),
    "nodes is an array": (nodes_array, "'nodes' to be a group"),
    "empty node table": (nodes_empty, "empty graph"),
    "graph with type_check field": (put("node/type_check", True), "'type_check'"),
    "version is a group": (
        both(kill("version"), lambda f: f.create_group("version")),
        "version",
    ),
    "version is a number": (put("version", 1.0), "version"),
    "version is no text": (bad_version, "version"),
    "group in itself": (loop, "contains itself"),
    "nested too deep": (deep, "deep"),
    "metadata is an array": (put("node/metadata", np.ones(2)), "metadata"),
    "metadata of a node is an array": (node_metadata_array, "'lif': expected metadata"),
    "too many bytes": (many_big, "bytes"),
    "too many words": (many_words, "words"),
    "hints are no group": (both(kill(f"node/metadata/{KEY}"), put(HINTS, "x", dtype=TEXT)), KEY),
    "hints of a node are an array": (field(f"lif/metadata/{KEY}", np.ones(2)), f"'lif'.*{KEY}"),
    "time unit is an array": (put(f"{HINTS}/time_unit", np.ones(2)), "time unit"),
    "metadata in a circle": (metadata_loop, "contains itself"),
    # nodes
    "type unknown": (text("lif/type", "LIFF"), "did you mean 'LIF'"),
    "type Identity": (text("lif/type", "Identity"), "'Identity'"),
    "type of another library": (text("lif/type", "Leaky"), "'Leaky'"),
    "type empty": (text("lif/type", ""), "NIR 1.0 node type"),
    "type is a number": (field("lif/type", 3), "NIR 1.0 node type"),
    "type is a list": (field("lif/type", ["LIF", "LI"]), "NIR 1.0 node type"),
    "type in lower case": (text("lif/type", "lif"), "NIR 1.0 node type"),
    "type missing": (drop("lif/type"), "'lif': expected a field 'type'"),
    "node of the table is an array": (array_node, "'extra'"),
    "node name is no text": (bad_name, "no valid text"),
    "node empty": (lambda f: f.create_group("node/nodes/empty"), "'empty'"),
    # fields
    "field missing": (drop("lif/tau"), "'lif': expected the field 'tau'"),
    "field unknown": (field("lif/foo", 1.0), "no field 'foo'"),
    "field misspelt": (field("lif/vthreshold", arr(1, 1, 1)), "did you mean 'v_threshold'"),
    "field of old nir": (field("cuba/tau", arr(1, 1)), "no field 'tau'"),
    "field is a group": (group_field, "'lif': expected tau to be an array"),
    "field has no value": (no_value, "'lif': expected a value in tau"),
    "field is text": (text("lif/tau", "0.02"), "real numbers in tau"),
    "field is a list of text": (field("lif/tau", ["a", "b", "c"]), "real numbers in tau"),
    "field is bool": (field("lif/r", np.ones(3, bool)), "real numbers in r"),
    "field is complex": (field("lif/r", np.ones(3, complex)), "real numbers in r"),
    "field is opaque": (opaque, "'lif'"),
    "field is a reference": (reference, "'lif'"),
    "field is ragged": (ragged, "'lif'"),
    "field is a compound": (field("lif/r", np.zeros(3, [("a", "f8")])), "'lif'"),
    "field is empty": (field("lif/r", np.zeros(0)), "'lif': expected 1 to"),
    "field is a soft link": (soft, "SoftLink"),
    "field is in another file": (external, "ExternalLink"),
    "field is in a raw file": (raw_file, "another file"),
    "field of absurd size": (huge, "'fc': expected at most"),
    "field of absurd chunks": (huge_chunk, "'fc': expected at most"),
    # numbers
    "nan in weight": (field("fc/weight", np.full((3, 16), NAN)), "'fc'.*nan"),
    "inf in weight": (field("fc/weight", np.full((3, 16), INF)), "'fc'.*inf"),
    "one nan among many": (
        field("lif/v_threshold", arr(1, NAN, 1)),
        r"'lif'.*nan \(1 of 3",
    ),
    "nan in tau": (field("lif/tau", arr(0.1, NAN, 0.1)), "'lif'.*tau"),
    "minus inf in tau": (field("lif/tau", arr(0.1, -INF, 0.1)), "'lif'.*tau"),
    "inf in r": (field("lif/r", arr(INF, 1, 1)), "'lif'.*finite numbers in r"),
    "inf in v_leak": (field("lif/v_leak", arr(INF, 1, 1)), "'lif'.*v_leak"),
    "inf in w_in": (field("cuba/w_in", arr(INF, 1)), "'cuba'.*w_in"),
    "inf in delay": (field("delay/delay", arr(INF, 0, 0)), "'delay'"),
    "tau negative": (field("lif/tau", arr(0.1, -0.1, 0.1)), "tau > 0, got -0.1"),
    "tau zero": (field("lif/tau", arr(0.1, 0.0, 0.1)), "tau > 0"),
    "tau_syn negative": (field("cuba/tau_syn", arr(-1, 0.1)), "tau_syn > 0"),
    "tau_mem negative": (field("cuba/tau_mem", arr(-1, 0.1)), "tau_mem > 0"),
    "delay negative": (field("delay/delay", arr(-1, 0, 0)), "delay >= 0"),
    "delay long": (
        both(kill(f"node/metadata/{KEY}/time_unit"), field("delay/delay", arr(2, 0, 0))),
        "'delay'.*time_unit",
    ),
    "tau long": (
        both(kill(f"node/metadata/{KEY}/time_unit"), field("lif/tau", arr(20, 20, 20))),
        "'lif': tau is 20.0.*time_unit",
    ),
    # shapes
    "shapes differ": (field("lif/r", np.ones(4)), "'lif': expected one shape"),
    "shapes differ by rank": (field("lif/r", np.ones((3, 1))), "'lif': expected one shape"),
    "w_in of another shape": (field("cuba/w_in", np.ones(5)), "'cuba': expected one shape"),
    "weight a vector": (field("fc/weight", np.ones(16)), "'fc'.*rank 2"),
    "weight a number": (field("fc/weight", 1.0), "'fc'.*rank 2"),
    "bias too long": (field("fc/bias", np.ones(7)), r"'fc'.*shape \(3,\)"),
    "bias a matrix": (field("fc/bias", np.ones((3, 1))), "'fc'.*bias"),
    "bias False": (field("fc/bias", False), "'fc'.*bool.*Linear"),
    "bias missing": (drop("fc/bias"), "'fc'.*'bias'.*Linear"),
    "input without shape": (drop("input/shape"), "'input'.*'shape'"),
    "input shape empty": (field("input/shape", np.zeros(0, int)), "'input'"),
    "input shape of floats": (field("input/shape", arr(2.5, 8, 9)), "'input': expected integers"),
    "input shape negative": (field("input/shape", shape(-1, 8, 9)), "'input'"),
    "input shape zero": (field("input/shape", shape(0)), "'input'"),
    "input shape a matrix": (field("input/shape", np.ones((2, 2), int)), "'input'"),
    "input shape absurd": (field("input/shape", shape(10**6, 10**6)), "'input'.*elements"),
    "input shape beyond int": (field("input/shape", np.array([2**63], np.uint64)), "'input'"),
    "input shape text": (text("input/shape", "3"), "'input'"),
    "output without shape": (drop("output/shape"), "'output'.*'shape'"),
    "output shape negative": (field("output/shape", shape(-3)), "'output'"),
    # convolutions, pooling, flatten
    "conv weight of rank 3": (field("conv/weight", np.ones((4, 1, 3))), "'conv'.*C_out"),
    "conv1d weight of rank 4": (field("conv1/weight", np.ones((4, 2, 3, 3))), "'conv1'.*C_out"),
    "conv bias of another shape": (field("conv/bias", np.ones(3)), "'conv'.*bias"),
    "conv bias missing": (drop("conv/bias"), "'conv'.*'bias'.*zeros"),
    "conv groups do not divide": (field("conv/groups", 3), "'conv'.*groups 3"),
    "conv groups zero": (field("conv/groups", 0), "'conv'.*groups"),
    "conv groups a float": (field("conv/groups", 1.0), "'conv'.*integers in groups"),
    "conv stride zero": (field("conv/stride", shape(0, 1)), "'conv'.*stride"),
    "conv stride negative": (field("conv/stride", -1), "'conv'.*stride"),
    "conv stride of three": (field("conv/stride", shape(1, 1, 1)), "'conv'.*stride"),
    "conv1d stride of two": (field("conv1/stride", shape(1, 1)), "'conv1'.*stride"),
    "conv padding negative": (field("conv/padding", shape(-1, 0)), "'conv'.*padding"),
    "conv padding absurd": (field("conv/padding", 2**40), "'conv'.*padding"),
    "conv padding unknown": (text("conv/padding", "full"), "'conv'.*'full'"),
    "conv padding same, strided": (text("conv/padding", "same"), "'conv'.*stride 1"),
    "conv dilation zero": (field("conv/dilation", 0), "'conv'.*dilation"),
    "conv dilation a float": (field("conv/dilation", 1.5), "'conv'.*dilation"),
    "conv kernel larger than input": (field("conv/input_shape", shape(1, 9)), "'conv'.*kernel"),
    "conv input_shape of three": (field("conv/input_shape", shape(2, 8, 9)), "'conv'"),
    "conv1d input_shape negative": (field("conv1/input_shape", -4), "'conv1'"),
    "pool kernel zero": (field("pool/kernel_size", shape(0, 2)), "'pool'.*kernel_size"),
    "pool kernel of three": (field("pool/kernel_size", shape(2, 2, 2)), "'pool'.*kernel_size"),
    "pool stride missing": (drop("pool/stride"), "'pool'.*'stride'"),
    "pool stride text": (text("pool/stride", "2"), "'pool'.*stride"),
    "pool padding negative": (field("pool/padding", shape(-1, 0)), "'pool'.*padding"),
    "flatten start beyond rank": (field("flat/start_dim", 5), "'flat'.*start_dim"),
    "flatten end before start": (
        both(field("flat/start_dim", 2), field("flat/end_dim", 0)),
        "'flat'.*start_dim",
    ),
    "flatten start a float": (field("flat/start_dim", 0.5), "'flat'.*start_dim"),
    "flatten input type negative": (field("flat/input_type", shape(-4, 2)), "'flat'"),
    # edges
    "edge to nowhere": (edges(lambda e: [*e, ("lif", "ghost")]), "'ghost', which does not exist"),
    "edge from nowhere": (edges(lambda e: [*e, ("liff", "lif")]), "did you mean 'lif'"),
    "edge twice": (edges(lambda e: [*e, e[0]]), "twice"),
    "edge into an input": (edges(lambda e: [*e, ("lif", "input")]), "into an Input"),
    "edge out of an output": (edges(lambda e: [*e, ("output", "lif")]), "out of an Output"),
    "edges empty": (edges(lambda e: []), "edge into the Output"),
    "output unfed": (edges(lambda e: e[:-1]), "edge into the Output"),
    "edges of three": (edges(lambda e: [(*one, "x") for one in e]), "shape"),
    "edges flat": (edges(lambda e: e[0]), "shape"),
    "edges one text": (edges(lambda e: "input-lif"), "edges as text"),
    "edges of numbers": (edges(lambda e: [(0, 1), (1, 2)]), "old NIR format"),
    "edges no text": (edges(lambda e: np.array([[b"\xff\xfe", b"a"]])), "edges"),
    "edges a group": (
        both(kill("node/edges"), lambda f: f.create_group("node/edges")),
        "edges",
    ),
    "no input": (without_node("input"), "at least one Input"),
    "no output": (without_node("output"), "at least one Output"),
    # nested graphs
    "nested: tau negative": (field("sub/nodes/lif/tau", arr(-1, 1, 1)), "'sub.lif'"),
    "nested: edge to nowhere": (field("sub/edges", [("input", "zz")]), "'sub'.*'zz'"),
    "nested: no input": (
        both(drop("sub/nodes/input"), field("sub/edges", [("lif", "output")])),
        "'sub': expected at least one Input",
    ),
    "nested: no edges field": (drop("sub/edges"), "'sub'.*'edges'"),
    "nested: weight nan": (field("sub/nodes/w_rec/weight", np.full((3, 3), NAN)), "'sub.w_rec'"),
    "nested: type unknown": (text("sub/nodes/lif/type", "RLeaky"), "'sub.lif'.*'RLeaky'"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "good.nir"
    write_nir(rich(), path)
    assert read_nir(path).nodes.keys() == rich().nodes.keys()
    return path.read_bytes()


def fault_of(path: Path) -> Invalid | None:
    try:
        validate(read_nir(path), path.name)
    except Invalid as error:
        return error
    return None


def refused(path: Path, match: str | None = None) -> Invalid:
    with pytest.raises(Invalid, match=match) as caught:
        read_nir(path)
    assert type(caught.value) is Invalid
    assert path.name in str(caught.value)
    assert caught.value.node
    assert caught.value.reason
    assert caught.value.remedy
    str(caught.value).encode("utf8")
    return caught.value


@pytest.mark.parametrize("name", CORPUS)
def test_broken_file(name: str, good: bytes, tmp_path: Path) -> None:
    change, match = CORPUS[name]
    path = tmp_path / "broken.nir"
    path.write_bytes(good)
    with h5py.File(path, "a") as handle:
        change(handle)
    _nir_probe.remember(path)  # sound HDF5, only bad NIR: no probe needed
    refused(path, f"(?s){match}")


def test_the_corpus_is_large_and_its_messages_distinct() -> None:
    assert len(CORPUS) >= 60


def test_truncated_anywhere(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.nir"
    for length in [*range(0, 600, 97), *range(600, len(good), len(good) // 20)]:
        path.write_bytes(good[:length])
        refused(path)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    flips=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
    )
)
def test_flipped_bytes(good: bytes, tmp_path: Path, flips: list[tuple[float, int]]) -> None:
    changed = bytearray(good)
    for place, value in flips:
        changed[int(place * len(good))] = value
    path = tmp_path / "flipped.nir"
    path.write_bytes(changed)
    fault = fault_of(path)  # None: a flip inside a weight, say, leaves a good file
    assert fault is None or path.name in str(fault)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(junk=st.binary(max_size=200), keep=st.booleans())
def test_junk(junk: bytes, keep: bool, tmp_path: Path) -> None:
    path = tmp_path / "junk.nir"
    path.write_bytes((b"\x89HDF\r\n\x1a\n" if keep else b"") + junk)
    refused(path)


def test_text_that_claims_gigabytes(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "claims.nir"
    path.write_bytes(good)
    with h5py.File(path) as handle:
        offset = handle["node/nodes/lif/type"].id.get_offset()
    for length in (2**31, 2**32 - 1):
        path.write_bytes(good[:offset] + length.to_bytes(4, "little") + good[offset + 4 :])
        refused(path, f"'lif': type claims text of {length} bytes")


def test_a_heap_without_end(good: bytes, tmp_path: Path) -> None:
    """HDF5 1.14 loops for ever over the zeros behind the heap if it is a little too long."""
    place = good.find(b"GCOL")
    path = tmp_path / "heap.nir"
    for size in (0x107F, 0, 2**40):
        path.write_bytes(good[: place + 8] + size.to_bytes(8, "little") + good[place + 16 :])
        refused(path, "HDF5 heaps")


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import os; os.abort()", "crashed"),
        ("import time; time.sleep(60)", "did not come back within"),
    ],
)
def test_the_library_crashes_or_hangs(
    code: str, what: str, good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "killer.nir"
    path.write_bytes(good + what.encode())  # bytes behind the end change nothing but the digest
    monkeypatch.setattr(_nir_probe, "PROBE_SECONDS", 1.0)
    monkeypatch.setattr(_nir_probe, "_child_command", lambda: [sys.executable, "-S", "-c", code])
    refused(path, what)
    monkeypatch.setattr(_nir_probe, "_child_command", lambda: None)
    assert read_nir(path).nodes.keys() == rich().nodes.keys()
    monkeypatch.setattr(_nir_probe, "_child_command", lambda: ["no such program"])
    path.write_bytes(good + b"other")
    assert read_nir(path).nodes.keys() == rich().nodes.keys()


def test_no_file_folder_empty_text(tmp_path: Path) -> None:
    refused(tmp_path / "missing.nir", "no file of that name")
    refused(tmp_path, "a folder")
    (tmp_path / "empty.nir").write_bytes(b"")
    refused(tmp_path / "empty.nir", "empty file")
    (tmp_path / "text.nir").write_text("{'nodes': []}")
    refused(tmp_path / "text.nir", "HDF5")
    long = tmp_path / ("folder" * 20) / "deep.nir"
    refused(long, "no file of that name")
    os.symlink(tmp_path / "nowhere", tmp_path / "link.nir")
    refused(tmp_path / "link.nir", "no file")
    with h5py.File(tmp_path / "other.nir", "w") as handle:
        handle["weights"] = np.ones(3)
    refused(tmp_path / "other.nir", r"group 'node', got \['weights'\]")
    for wrong in (None, 3, io.BytesIO(b"")):
        with pytest.raises(Invalid, match="expected a file name"):
            read_nir(wrong)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match=r"a.x00b"):
        read_nir("a\0b")


@pytest.mark.skipif(os.name != "posix", reason="pipes in the file system")
def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nir")
    refused(tmp_path / "pipe.nir", "no file")


def test_old_format_says_so(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "old.nir"
    path.write_bytes(good)
    with h5py.File(path, "a") as handle:
        put("version", "0.0.1", dtype=TEXT)(handle)
        text("lif/type", "NIRUnit")(handle)
    refused(path, r"old NIR format.*read it with that version")


def real_files() -> list[Path]:
    folder = Path(os.environ.get("GRASP_NIR_FILES", ROOT.parent / "shared" / "data" / "nir"))
    return sorted(folder.glob("*.nir")) if folder.is_dir() else []


@pytest.mark.skipif(not real_files(), reason="no folder of .nir files (GRASP_NIR_FILES)")
def test_files_from_the_wild(tmp_path: Path) -> None:
    read = 0
    for path in real_files():
        if fault_of(path) is not None:
            refused(path)
            continue
        read += 1
        graph = read_nir(path)
        write_nir(graph, tmp_path / "again.nir")
        assert_same_graph(graph, read_nir(tmp_path / "again.nir"))
    assert read or len(real_files()) < 8


# --- graphs in memory ----------------------------------------------------------------------------


def changed(node: nir.NIRNode, **fields: Any) -> nir.NIRGraph:
    for name, value in fields.items():
        setattr(node, name, value)
    return chain(("node", node))


class Custom(nir.LIF):
    """A node type of somebody's own."""


def own_nodes(nodes: Any, edges: Any) -> nir.NIRGraph:
    graph = chain(("node", lif()))
    graph.nodes, graph.edges = nodes, edges
    return graph


def inside_itself() -> nir.NIRGraph:
    graph = chain(("node", lif()))
    graph.nodes["self"] = graph
    return graph


MEMORY: dict[str, tuple[Callable[[], Any], str]] = {
    "not a graph": (lambda: {"nodes": {}}, "expected a nir.NIRGraph, got dict"),
    "a single node": (lif, "got LIF"),
    "none": (lambda: None, "NoneType"),
    "subclass": (lambda: changed(Custom(*[arr(1)] * 4)), "'node'.*Custom"),
    "identity": (lambda: changed(nir.ir.graph.Identity({"input": shape(1)})), "'node'"),
    "node is none": (lambda: own_nodes({"a": None}, []), "'a'.*NoneType"),
    "nodes a list": (lambda: own_nodes([1], []), "dict of nodes"),
    "node name a number": (lambda: own_nodes({1: lif()}, []), "names that are text"),
    "edges none": (lambda: own_nodes(chain(("a", lif())).nodes, None), "list of edges"),
    "edge a word": (lambda: own_nodes(chain(("a", lif())).nodes, ["ab"]), "edges"),
    "edge of numbers": (lambda: own_nodes(chain(("a", lif())).nodes, [(1, 2)]), "edges"),
    "contains itself": (inside_itself, "deep"),
    "tau negative": (lambda: changed(lif(), tau=arr(-1, 1, 1)), "'node'.*tau > 0"),
    "tau none": (lambda: changed(lif(), tau=None), "'node'.*'tau'"),
    "tau text": (lambda: changed(lif(), tau="x"), "'node'.*real numbers"),
    "tau objects": (lambda: changed(lif(), tau=np.array([None] * 3)), "'node'.*object"),
    "tau masked": (lambda: changed(lif(), tau=np.ma.masked_equal(arr(1, 2), 1)), "masked"),
    "tau ragged": (lambda: changed(lif(), tau=[[1.0], [1.0, 2.0]]), "'node'.*tau"),
    "shapes": (lambda: changed(lif(), r=np.ones(2)), "'node': expected one shape"),
    "bias": (lambda: chain(("node", nir.Affine(np.ones((3, 5)), np.ones(7)))), "'node'.*bias"),
    "metadata": (lambda: changed(lif(), metadata=[1]), "'node': expected metadata"),
    "input": (lambda: chain(("node", lif()), size={"input": None, "output": None}), "shape"),
    "hints": (lambda: changed(lif(), metadata={KEY: "x"}), f"'node'.*{KEY}"),
    "conv padding": (lambda: changed(conv2d(), padding="SAME"), "'node'.*'SAME'"),
}


@pytest.mark.parametrize("name", MEMORY)
def test_broken_graph_in_memory(name: str, tmp_path: Path) -> None:
    make, match = MEMORY[name]
    with pytest.raises(Invalid, match=f"(?s){match}") as caught:
        validate(make(), "my net")
    assert "my net" in str(caught.value)
    target = tmp_path / "net.nir"
    with pytest.raises(Invalid):
        write_nir(make(), target)
    assert list(tmp_path.iterdir()) == []


def test_plain_numbers_and_tensors_are_accepted(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    graph = changed(lif(), tau=torch.full((3,), 0.5, dtype=torch.float32), r=2, v_leak=[0, 0, 0])
    write_nir(graph, tmp_path / "net.nir")
    node = read_nir(tmp_path / "net.nir").nodes["node"]
    assert node.tau.dtype == np.float32
    assert node.r.tolist() == [2] * 3
    learning = changed(lif(), tau=torch.ones(3, requires_grad=True))
    with pytest.raises(Invalid, match=r"'node': tau is no array.*detach"):
        validate(learning)


def test_checks_hold_without_asserts(tmp_path: Path) -> None:
    code = (
        "import nir, numpy as np\n"
        "from grasp_plugin.adapters.nir_file import validate\n"
        "f = np.ones\n"
        "nodes = {'i': nir.Input(np.array([2])), 'n': nir.LIF(f(2), f(3), f(2), f(2)),\n"
        "         'o': nir.Output(np.array([2]))}\n"
        "validate(nir.NIRGraph(nodes, [('i', 'n'), ('n', 'o')], {}, type_check=False), 'net')\n"
    )
    run = subprocess.run(
        [sys.executable, "-O", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "Invalid: net, node 'n': expected one shape" in run.stderr


# --- writing -------------------------------------------------------------------------------------


def unwritable() -> nir.NIRGraph:
    graph = chain(("aa", lif()), ("lif", lif()))
    graph.nodes["lif"].metadata = {"function": print}
    return graph


WRITE: dict[str, tuple[Callable[[], nir.NIRGraph], str]] = {
    "object in metadata": (unwritable, r"graph\.nodes\.lif\.metadata\.function.*built-in"),
    "none in a list": (lambda: changed(lif(), metadata={"a": [None]}), r"node\.metadata\.a"),
    "nul in text": (lambda: changed(lif(), metadata={"a": "x\0y"}), r"node\.metadata\.a"),
    "number as key": (lambda: changed(lif(), metadata={1: 2}), "name that HDF5 can store"),
    "slash in a key": (lambda: changed(lif(), metadata={"a/b": 2}), "'a/b'"),
    "slash in a name": (lambda: chain(("a/b", lif())), "'a/b'"),
    "dot as name": (lambda: chain((".", lif())), "HDF5"),
}


@pytest.mark.parametrize("name", WRITE)
def test_failing_write_leaves_the_old_file(name: str, tmp_path: Path) -> None:
    make, match = WRITE[name]
    path = tmp_path / "net.nir"
    write_nir(chain(("lif", lif())), path)
    old = path.read_bytes()
    with pytest.raises(Invalid, match=match):
        write_nir(make(), path)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.nir"]


@pytest.mark.parametrize("failing", ["os.replace", "os.fsync", "h5py.File"])
def test_failing_disk_leaves_the_old_file(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.nir"
    write_nir(chain(("lif", lif())), path)
    old = path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(failing, fail)
    with pytest.raises(Invalid, match=r"net\.nir.*cannot be written.*No space left"):
        write_nir(rich(), path)
    monkeypatch.undo()
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.nir"]


def test_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.nir"
    write_nir(chain(("lif", lif())), path)
    old = path.read_bytes()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_nir(rich(), path)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.nir"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    graph = chain(("lif", lif()))
    with pytest.raises(Invalid, match="no folder"):
        write_nir(graph, tmp_path / "missing" / "net.nir")
    with pytest.raises(Invalid, match="a folder"):
        write_nir(graph, tmp_path)
    with pytest.raises(Invalid, match="expected a file name"):
        write_nir(graph, 3)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match=r"compression|filter"):
        write_nir(graph, tmp_path / "net.nir", compression="no such")
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real" / "net.nir", tmp_path / "link.nir")
    write_nir(chain(("lif", lif())), tmp_path / "link.nir")
    assert (tmp_path / "link.nir").is_symlink()
    assert (tmp_path / "real" / "net.nir").is_file()
    assert read_nir(tmp_path / "link.nir").nodes["lif"].tau.tolist() == [0.02] * 3

"""The command line as a stranger meets it: verbs, exit states, JSON, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from grasp_plugin.__main__ import main
from grasp_plugin.adapters.nir_file import read_nir, write_nir
from grasp_plugin.network.hints import read_hints


@pytest.fixture
def model(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A conv -> LIF -> matrix -> CubaLIF net without a single hint."""
    nodes = {
        "in": nir.Input(np.array([1, 5, 5])),
        "conv": nir.Conv2d((5, 5), rng.normal(size=(2, 1, 3, 3)) + 0.3, 1, 0, 1, 1, np.zeros(2)),
        "lif": nir.LIF(*(np.full((2, 3, 3), v) for v in (0.01, 10.0, 0.0, 1.0, 0.0))),
        "flat": nir.Flatten(np.array([2, 3, 3]), 0, -1),
        "fc": nir.Linear(rng.normal(size=(4, 18)) + 0.2),
        "cuba": nir.CubaLIF(*(np.full(4, v) for v in (0.005, 0.01, 10.0, 0.0, 1.0, 0.0, 1.0))),
        "out": nir.Output(np.array([4])),
    }
    order = list(nodes)
    path = tmp_path / "net.nir"
    write_nir(nir.NIRGraph(nodes, list(pairwise(order)), type_check=False), path)
    np.save(tmp_path / "x.npy", rng.random((30, 2, 1, 5, 5)) < 0.4)
    return path


CHOICES = ["--dt", "1e-3", "--reset", "value"]


def call(capsys: Any, *argv: Any) -> tuple[int, str, str]:
    status = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return status, out, err


def test_info(model: Path, capsys: Any) -> None:
    status, out, _ = call(capsys, "info", model, *CHOICES)
    assert status == 0
    for word in ("conv", "cuba", "LIF", "Loihi 2", "estimates", "fits one chip"):
        assert word in out


def test_info_json_and_a_bad_file_among_good_ones(model: Path, capsys: Any) -> None:
    bad = model.with_name("bad.nir")
    bad.write_bytes(model.read_bytes()[:900])
    status, out, _ = call(capsys, "info", bad, model, model.with_name("no.nir"), "--json", *CHOICES)
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 2
    assert [line["status"] for line in lines] == ["invalid", "converts", "invalid"]
    assert all(set(line) >= {"file", "status", "node", "reason", "remedy"} for line in lines)
    assert lines[1]["populations"][0]["lava_fixed"] == "LIF"


def test_what_is_missing_is_asked_for_by_name(model: Path, capsys: Any) -> None:
    status, out, _ = call(capsys, "info", model, "--json")
    line = json.loads(out)
    assert (status, line["status"]) == (2, "refused")
    assert "dt_s" in line["reason"] or "reset" in line["reason"]
    assert line["node"] in ("lif", "cuba")


@pytest.mark.parametrize("precision", ["float", "fixed"])
@pytest.mark.parametrize(
    "backend", ["torch", "fused", pytest.param("lava", marks=pytest.mark.lava)]
)
def test_run(model: Path, capsys: Any, backend: str, precision: str) -> None:
    target = model.with_name("out.npz")
    argv = ["run", model, "--input", model.with_name("x.npy"), "--output", target, "--backend",
            backend, "--precision", precision, "--membrane", *CHOICES]  # fmt: skip
    status, _, err = call(capsys, *argv)
    if (backend, precision) == ("torch", "fixed"):
        assert status == 2
        assert "--backend lava" in err
        assert not target.exists()
        return
    assert status == 0
    with np.load(target) as arrays:
        assert set(arrays.files) == {"lif", "cuba", "lif.membrane", "cuba.membrane"}
        assert arrays["lif"].shape == (30, 2, 2, 3, 3)
        assert arrays["cuba"].shape == (30, 2, 4)
        assert set(np.unique(arrays["lif"])) == {0, 1}


@pytest.mark.lava
def test_verify(model: Path, capsys: Any) -> None:
    picture = model.with_name("v.png")
    argv = ["verify", model, "--input", model.with_name("x.npy"), *CHOICES]
    status, out, _ = call(capsys, *argv, "--plot", picture)
    assert status == 0
    assert "the same network" in out
    assert picture.stat().st_size > 5000
    status, out, _ = call(capsys, *argv, "--json")
    facts = json.loads(out)
    assert facts["same"] is True
    rows = {row["name"]: row for row in facts["populations"]}
    assert rows["lif"]["float_mismatches"] == 0
    assert rows["lif"]["spikes"] > 0
    assert rows["lif"]["fixed_mismatches"] == 0
    assert rows["lif"]["naive_vs_float"] >= rows["lif"]["fixed_vs_float"]
    error = rows["lif"]["error"]
    assert 0.7 < error["predicted"] / error["found"] < 1.4


@pytest.mark.lava
def test_verify_says_1_where_lava_differs(
    model: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grasp_plugin.backends import lava

    honest = lava._Graph.recorded

    def broken(self: Any, name: str) -> Any:
        out = honest(self, name).copy()
        out[0, 12] = 1 - out[0, 12]
        return out

    monkeypatch.setattr(lava._Graph, "recorded", broken)
    argv = ["verify", model, "--input", model.with_name("x.npy"), *CHOICES]
    status, out, _ = call(capsys, *argv)
    assert status == 1
    assert "DIFFERS" in out


def test_convert(model: Path, capsys: Any) -> None:
    target = model.with_name("ms.nir")
    status, _, _ = call(
        capsys, "convert", model, target, "--to-unit", "ms", "--reset", "lif=value", "--reset",
        "subtract-delayed", "--dt", "1e-3",
    )  # fmt: skip
    assert status == 0
    graph = read_nir(target)
    assert read_hints(graph.nodes["lif"])["reset"] == "value"
    assert read_hints(graph.nodes["cuba"])["reset"] == "subtract-delayed"
    assert np.allclose(graph.nodes["lif"].tau, 0.01)
    assert call(capsys, "info", target)[0] == 0  # nothing left to ask
    status, _, err = call(capsys, "convert", model, target, "--reset", "fc=value")
    assert status == 2
    assert "fc" in err


def test_convert_flattens(model: Path, capsys: Any, tmp_path: Path) -> None:
    shape = np.array([3])
    inner = nir.NIRGraph({"in": nir.Input(shape), "n": nir.IF(np.ones(3), np.ones(3)),
                          "out": nir.Output(shape)}, [("in", "n"), ("n", "out")])  # fmt: skip
    graph = nir.NIRGraph({"i": nir.Input(shape), "sub": inner, "o": nir.Output(shape)},
                         [("i", "sub"), ("sub", "o")])  # fmt: skip
    write_nir(graph, tmp_path / "a.nir")
    assert call(capsys, "convert", tmp_path / "a.nir", tmp_path / "b.nir", "--flatten")[0] == 0
    flat = read_nir(tmp_path / "b.nir")
    assert set(flat.nodes) == {"i", "sub.n", "o"}
    assert sorted(flat.edges) == [("i", "sub.n"), ("sub.n", "o")]


@pytest.mark.parametrize(
    "change",
    [
        {"--input": "missing.npy"}, {"--input": "text.npy"}, {"--input": "wrong.npy"},
        {"--output": "no/such/folder/out.npz"}, {"--reset": "sideways"}, {"--dt": "-1"},
        {"--dt": "nan"}, {"--reset": "nobody=value"}, {"--dt": "1"},
    ],
)  # fmt: skip
def test_bad_calls_end_in_status_2_and_leave_nothing(
    model: Path, capsys: Any, change: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    Path("text.npy").write_text("hello")
    np.save("wrong.npy", np.ones((4, 9)))
    options = {"--input": "x.npy", "--output": "out.npz", "--backend": "torch", "--dt": "1e-3",
               "--reset": "value"} | change  # fmt: skip
    before = set(Path().iterdir())
    status, out, err = call(capsys, "run", model, *(a for pair in options.items() for a in pair))
    assert (status, out) == (2, "")
    assert err.startswith("grasp: ")
    assert len(err.strip().splitlines()) == 1
    assert set(Path().iterdir()) == before


def test_a_failed_run_leaves_the_old_output(model: Path, capsys: Any) -> None:
    target = model.with_name("out.npz")
    target.write_bytes(b"precious")
    argv = [
        "run",
        model,
        "--input",
        model.with_name("x.npy"),
        "--output",
        target,
        "--backend",
        "torch",
    ]
    assert call(capsys, *argv)[0] == 2  # no dt, no reset
    assert target.read_bytes() == b"precious"


def test_optimised_python_checks_the_same(model: Path) -> None:
    script = (
        "import sys; from grasp_plugin.__main__ import main;"
        f"sys.exit(main(['info', {str(model)!r}, '--dt', '1e-3', '--reset', 'sideways']))"
    )
    done = subprocess.run([sys.executable, "-O", "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "sideways" in done.stderr


def test_module_entry_point() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "grasp_plugin", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "verify" in done.stdout

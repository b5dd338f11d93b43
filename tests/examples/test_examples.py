"""The README's code and the examples run as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "examples").is_dir(), reason="needs a checkout")


@pytest.mark.lava
def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("snntorch")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    exec(compile(blocks[0], "README.md", "exec"), space)
    recording = space["recording"]
    assert recording["1"].shape == (100, 8)  # type: ignore[index]
    assert (tmp_path / "model.nir").is_file()
    exec(compile(blocks[1], "README.md", "exec"), space)
    assert space["curve"].accuracy[-1] > 0.6  # type: ignore[attr-defined]
    assert (tmp_path / "learned.nir").is_file()
    exec(compile(blocks[2], "README.md", "exec"), space)
    assert len(space["history"]) == 2  # type: ignore[arg-type]
    exec(compile(blocks[3], "README.md", "exec"), space)
    assert 0.03 < space["meter"].read().total.share < 0.08  # type: ignore[attr-defined]
    exec(compile(blocks[4], "README.md", "exec"), space)
    assert (space["decided"] == space["labels"].numpy()).mean() > 0.95  # type: ignore[attr-defined]
    exec(compile(blocks[5], "README.md", "exec"), space)
    assert (space["decided"] == space["labels"].numpy()).mean() > 0.95  # type: ignore[attr-defined]


@pytest.mark.lava
def test_demo_on_a_few_recordings(tmp_path: Path) -> None:
    """`make demo` in small: framework = torch = Lava float in every network."""
    for module in ("snntorch", "norse", "matplotlib"):
        pytest.importorskip(module)
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "03_run_on_lava.py"), "--samples", "5",
         "--out", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=200, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = (tmp_path / "out" / "table.txt").read_text().splitlines()
    networks = sorted(p.stem for p in (ROOT / "examples" / "models").glob("*.nir"))
    assert networks
    for name in networks:
        for run in ("torch", "Lava float"):
            (row,) = [r for r in rows if r.startswith(name) and f"  {run}  " in r]
            assert re.search(r"  0 \((output|all layers)\)", row), row
        for kind in ("raster", "membrane"):
            assert (tmp_path / "out" / f"{name}_{kind}.png").stat().st_size > 10_000


@pytest.mark.lava
@pytest.mark.parametrize(
    ("script", "rows"),
    [
        ("04_learn_on_lava", ("DECOLLE", "ETLP", "OTTT")),
        ("05_float_and_fixed", ("DECOLLE  float", "DECOLLE  fixed point", "OTTT     fixed point")),
        ("06_adapt_to_drift", ("no learning", "DECOLLE", "ETLP", "OTTT")),
        ("07_spoken_digits", ("feedforward", "recurrent", "recurrent, adaptive")),
        ("08_write_less", ("every synapse", "GRASP, 5 %", "random, 5 %", "Sharpness, 5 %")),
    ],
)
def test_learning_examples_in_small(script: str, rows: tuple[str, ...], tmp_path: Path) -> None:
    """One pass: a row for each run, with accuracies, and a picture."""
    pytest.importorskip("matplotlib")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{script}.py"), "--passes", "1",
         "--out", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for row in rows:
        assert re.search(rf"^{re.escape(row)} .*\d\.\d %.*\d\.\d %", done.stdout, re.M), done.stdout
    assert (tmp_path / "out" / f"{script}.png").stat().st_size > 10_000

"""Meta-learning's part of the README runs as written, and its example in small."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.lava
def test_readme_block_on_meta_learning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (block,) = [b for b in blocks if "MetaHints" in b]
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    text = block.replace("examples/data", str(ROOT / "examples" / "data"))
    exec(compile(text.replace("range(40)", "range(3)"), "README.md", "exec"), space)
    assert space["decided"].shape == space["labels"][0].shape  # type: ignore[attr-defined, index]
    assert (tmp_path / "meta.nir").is_file()
    before, after = space["network"], space["session"]
    head = "layer1->layer2"
    change = after.weights()[head] - before.weights()[head]  # type: ignore[attr-defined]
    assert abs(change).max() > 1e-3


@pytest.mark.lava
def test_few_shots_in_small(tmp_path: Path) -> None:
    """One task: a row for each network, and the committed one learns."""
    pytest.importorskip("matplotlib")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "09_adapt_in_few_shots.py"), "--tasks", "1",
         "--out", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    shares = {}
    for name in ("meta-trained, Lava float", "meta-trained, Lava fixed point",
                 "random body, Lava float"):  # fmt: skip
        row = re.search(rf"^{name} +(.*)$", done.stdout, re.M)
        assert row is not None, done.stdout
        shares[name] = [float(v) for v in re.findall(r"(\d+\.\d) %", row[1])]
        assert len(shares[name]) == 6
    assert shares["meta-trained, Lava float"][-1] > shares["meta-trained, Lava float"][0] + 20
    assert (tmp_path / "out" / "09_adapt_in_few_shots.png").stat().st_size > 10_000

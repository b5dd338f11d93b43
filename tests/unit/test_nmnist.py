"""The N-MNIST loader, on the committed subset and on files that are damaged."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grasp_plugin.data.nmnist import Recording, load_nmnist, to_frames
from grasp_plugin.errors import Invalid

ROOT = Path(__file__).resolve().parents[2]
SUBSET = ROOT / "examples" / "data" / "nmnist_subset.zip"
SPLIT = ROOT / "examples" / "data" / "nmnist_split.json"
needs_subset = pytest.mark.skipif(not SUBSET.exists(), reason="needs a checkout")


def event(x: int, y: int, p: int, t_us: int) -> bytes:
    return bytes([x, y]) + (p << 23 | t_us).to_bytes(3, "big")


def folder(root: Path, **files: bytes) -> Path:
    for name, content in files.items():
        digit, number = name.strip("_").split("_")
        path = root / "Train" / digit / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def recording(*events: tuple[int, int, int, int]) -> Recording:
    x, y, p, t = (np.array(column) for column in zip(*events, strict=True))
    return Recording(1, 5, x, y, p, t)


@needs_subset
def test_the_committed_subset() -> None:
    recordings = load_nmnist(SUBSET)
    split = json.loads(SPLIT.read_text())
    assert sorted(split["train"] + split["test"]) == [one.id for one in recordings]
    assert set(split["train"]).isdisjoint(split["test"])
    labels = {one.id: one.label for one in recordings}
    for part, each in (("train", 8), ("test", 14)):
        count = np.bincount([labels[number] for number in split[part]])
        assert count.tolist() == [each] * 10
    for one in recordings:
        assert len(one.x) == len(one.y) == len(one.p) == len(one.t_us) > 500
        assert one.x.max() < 34
        assert one.y.max() < 34
        assert set(one.p) == {0, 1}
        assert 0 <= one.t_us[0] <= one.t_us[-1] < 320_000
        assert (np.diff(one.t_us) >= 0).all()
    assert SUBSET.stat().st_size < 4_000_000


@needs_subset
def test_folder_and_zip_are_the_same(tmp_path: Path) -> None:
    ids = json.loads(SPLIT.read_text())["train"][:3]
    with zipfile.ZipFile(SUBSET) as archive:
        archive.extractall(tmp_path)
    for a, b in zip(load_nmnist(SUBSET, ids), load_nmnist(tmp_path, ids), strict=True):
        assert (a.id, a.label) == (b.id, b.label)
        for name in ("x", "y", "p", "t_us"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_events_by_hand(tmp_path: Path) -> None:
    content = event(3, 4, 1, 5) + event(33, 0, 0, 70_000) + event(0, 33, 1, 2**23 - 1)
    (one,) = load_nmnist(folder(tmp_path, _7_00042=content))
    assert (one.id, one.label) == (42, 7)
    assert one.x.tolist() == [3, 33, 0]
    assert one.y.tolist() == [4, 0, 33]
    assert one.p.tolist() == [1, 0, 1]
    assert one.t_us.tolist() == [5, 70_000, 2**23 - 1]


def test_overflow_marks_move_the_clock(tmp_path: Path) -> None:
    content = event(1, 1, 1, 10) + event(0, 240, 0, 10) + event(2, 2, 0, 20)
    (one,) = load_nmnist(folder(tmp_path, _0_1=content))
    assert one.x.tolist() == [1, 2]
    assert one.t_us.tolist() == [10, 8192 + 20]


def test_ids_select_and_sort(tmp_path: Path) -> None:
    one = event(1, 1, 1, 1)
    folder(tmp_path, _0_00003=one, _1_00001=one, _2_00002=one)
    assert [r.id for r in load_nmnist(tmp_path)] == [1, 2, 3]
    assert [r.label for r in load_nmnist(tmp_path, ids=[3, 1, 1])] == [1, 0]
    assert [r.id for r in load_nmnist(tmp_path / "Train")] == [1, 2, 3]
    with pytest.raises(Invalid, match=r"got 1 of 3 \(without \[8, 9\]\).*garrickorchard"):
        load_nmnist(tmp_path, ids=[1, 8, 9])


def test_two_parts_need_a_choice(tmp_path: Path) -> None:
    one = event(1, 1, 1, 1)
    folder(tmp_path, _0_00001=one)
    (tmp_path / "Test" / "5").mkdir(parents=True)
    (tmp_path / "Test" / "5" / "00001.bin").write_bytes(one)
    with pytest.raises(Invalid, match=r"id 1, got Test/5.*part='Test'"):
        load_nmnist(tmp_path)
    assert load_nmnist(tmp_path, part="Test")[0].label == 5
    assert load_nmnist(tmp_path, part="Train")[0].label == 0


def test_nothing_there_says_where_to_get_it(tmp_path: Path) -> None:
    for missing in (tmp_path / "no", tmp_path / "no.zip"):
        with pytest.raises(Invalid, match=r"no(\.zip)?: expected a folder.*garrickorchard"):
            load_nmnist(missing)
    with pytest.raises(Invalid, match=r"<digit>/<id>\.bin.*nmnist_subset\.zip"):
        load_nmnist(tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "0 bytes"),
        (event(1, 1, 1, 1)[:-1], "4 bytes"),
        (event(1, 1, 1, 1) + b"x", "6 bytes"),
        (event(34, 1, 1, 1), "outside of 34 x 34"),
        (event(1, 200, 1, 1), "outside of 34 x 34"),
        (event(1, 1, 1, 9) + event(1, 1, 1, 8), "run backwards"),
        (event(1, 240, 1, 9), "no events"),
    ],
)
def test_damaged_recording(content: bytes, what: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=rf"Train/3/00007\.bin: .*{what}.*Copy it again"):
        load_nmnist(folder(tmp_path, _3_00007=content))


def test_damaged_zip(tmp_path: Path) -> None:
    path = tmp_path / "n.zip"
    path.write_bytes(b"PK nonsense")
    with pytest.raises(Invalid, match=r"n\.zip: .*BadZipFile"):
        load_nmnist(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Train/1/00001.bin", event(1, 1, 1, 1) * 400)
    good = path.read_bytes()
    assert len(load_nmnist(path)[0].x) == 400
    for length in range(0, len(good), 3):
        path.write_bytes(good[:length])
        with pytest.raises(Invalid, match=r"n\.zip"):
            load_nmnist(path)
    broken = bytearray(good)
    broken[52] ^= 0xFF
    path.write_bytes(broken)
    with pytest.raises(Invalid, match=r"n\.zip"):
        load_nmnist(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Train/1/00001.bin", bytes(2**25))
    with pytest.raises(Invalid, match=r"33554432 bytes"):
        load_nmnist(path)


def test_frames_by_hand() -> None:
    one = recording((0, 0, 1, 0), (1, 1, 1, 9_999), (2, 3, 0, 10_000), (33, 33, 1, 29_999))
    frames = to_frames(one, steps=3, duration_s=0.03)
    assert frames.shape == (3, 2, 34, 34)
    assert frames.dtype == np.uint8
    expected = {(0, 1, 0, 0), (0, 1, 1, 1), (1, 0, 3, 2), (2, 1, 33, 33)}
    assert set(zip(*(axis.tolist() for axis in np.nonzero(frames)), strict=True)) == expected
    np.testing.assert_array_equal(frames, to_frames(one, dt_s=0.01, duration_s=0.03))


def test_frames_are_binary_pooled_and_end() -> None:
    one = recording((0, 0, 1, 0), (1, 1, 1, 1), (4, 0, 1, 2), (0, 0, 1, 30_000))
    frames = to_frames(one, steps=3, duration_s=0.03, pool=2)
    assert frames.shape == (3, 2, 17, 17)
    assert frames.sum() == 2
    assert frames[0, 1, 0, 0] == frames[0, 1, 0, 2] == 1
    assert to_frames(one, steps=3, duration_s=0.03, pool=2, least=2).sum() == 1


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({}, "one of steps and dt_s"),
        ({"steps": 3, "dt_s": 0.1}, "one of steps and dt_s"),
        ({"steps": 0}, "integers from 1 on"),
        ({"steps": 2.5}, "integers from 1 on"),
        ({"steps": 3, "least": 0}, "integers from 1 on"),
        ({"dt_s": -0.1}, "0 < dt_s"),
        ({"dt_s": 1.0}, "0 < dt_s"),
        ({"steps": 3, "duration_s": float("nan")}, "duration_s"),
        ({"steps": 3, "pool": 3}, "pool to divide 34, got 3"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], what: str) -> None:
    with pytest.raises(Invalid, match=what):
        to_frames(recording((0, 0, 1, 0)), **arguments)

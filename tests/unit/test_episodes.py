"""Few-shot episodes: what parts and support and query share, namely nothing (M12)."""

from __future__ import annotations

import zipfile
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from few_shot_cases import DATA, drawings

from grasp_plugin.data.double_nmnist import frames, load_double_nmnist
from grasp_plugin.data.episodes import FewShot, Part, check_disjoint, draw, shares
from grasp_plugin.data.nmnist import Recording, bins, load_nmnist, to_frames
from grasp_plugin.data.omniglot import SIZE, ink_spikes, load_omniglot
from grasp_plugin.data.spoken import load_spoken
from grasp_plugin.errors import Invalid
from grasp_plugin.learning.meta import Tasks


@pytest.fixture(scope="module")
def double() -> FewShot:
    return load_double_nmnist(DATA / "nmnist_subset.zip", steps=4, side=3)


def assert_disjoint(source: FewShot) -> None:
    for one, two in combinations(source.parts.values(), 2):
        assert not set(one.slots) & set(two.slots)
        assert not one.recordings & two.recordings


def test_m12_double_nmnist(double: FewShot) -> None:
    assert_disjoint(double)
    parts = double.parts
    assert [len(parts[name].slots) for name in ("train", "valid", "test")] == [64, 16, 20]
    assert sum(len(p.recordings) for p in parts.values()) == len(double.recordings) == 220
    recordings = load_nmnist(DATA / "nmnist_subset.zip")
    for part in parts.values():
        for digit, pool in part.pools.items():
            assert {recordings[r].label for r in pool} == {int(str(digit))}


def test_m12_support_and_query_share_no_recording(double: FewShot) -> None:
    rng = np.random.default_rng(0)
    recordings = load_nmnist(DATA / "nmnist_subset.zip")
    for _ in range(50):
        e = draw(double.parts["train"], rng, 5, 2, 4)
        assert not set(e.support.ravel()) & set(e.query.ravel())
        assert e.support.shape == (10, 2)
        assert e.query.shape == (20, 2)
        for rows, labels in ((e.support, e.support_y), (e.query, e.query_y)):
            for pair, label in zip(rows, labels, strict=True):
                name = "".join(str(recordings[r].label) for r in pair)
                assert name == e.classes[label]
        assert len(set(e.classes)) == 5
        assert set(e.classes) <= set(double.parts["train"].slots)


def test_a_double_sample_is_its_two_recordings_side_by_side(double: FewShot) -> None:
    arrays = double.batch("train", np.random.default_rng(1), 2, ways=3, shots=1, queries=2)
    assert [a.shape for a in arrays] == [(2, 4, 3, 2, 3, 6), (2, 3), (2, 4, 6, 2, 3, 6), (2, 6)]
    rows = np.array([[5, 9]])
    sample = double.samples(rows)[:, 0]
    assert np.array_equal(sample[..., :3], double.recordings[5])
    assert np.array_equal(sample[..., 3:], double.recordings[9])
    tasks = Tasks.of(arrays)
    assert len(tasks) == 2
    assert tasks.support_x.dtype == torch.float32


def test_frames_by_hand() -> None:
    one = Recording(1, 0, *(np.array(v) for v in ([0, 16, 17, 33], [0, 0, 33, 33], [0, 1, 1, 1],
                                                  [0, 99_999, 150_000, 400_000])))  # fmt: skip
    got = frames([one], steps=3, side=2)
    wanted = np.zeros((1, 3, 2, 2, 2), np.uint8)
    wanted[0, 0, 0, 0, 0] = wanted[0, 0, 1, 0, 0] = wanted[0, 1, 1, 1, 1] = 1
    assert np.array_equal(got, wanted)
    with pytest.raises(Invalid):
        frames([one], steps=3, side=35)


def test_events_at_edges_are_in_the_frame_that_begins_there() -> None:
    """As `to_frames` has them, and as integers say, for any length and number of frames."""
    us = np.arange(30) * 10_000
    zero = np.zeros(30, np.uint8)
    one = Recording(1, 0, zero, zero, zero, us)
    assert frames([one], steps=30, side=1)[0, :, 0, 0, 0].tolist() == [1] * 30
    for duration_us, steps in ((300_000, 7), (7_000, 25), (100_000, 70), (313_320, 33)):
        edges = [-(-k * duration_us // steps) for k in range(steps)]  # rounded up
        t = np.unique([*edges, *(max(0, e - 1) for e in edges)])
        assert np.array_equal(bins(t, duration_us / 1e6 / steps), t * steps // duration_us)


@pytest.mark.parametrize("steps", [20, 30])
def test_frames_are_those_of_to_frames(steps: int) -> None:
    recordings = load_nmnist(DATA / "nmnist_subset.zip")[:40]
    for side in (34, 17):
        wanted = [to_frames(r, steps=steps, pool=34 // side, least=2) for r in recordings]
        assert np.array_equal(frames(recordings, steps, side, least=2), np.stack(wanted))


def test_classes_that_draw_twice_from_a_pool_share_nothing_with_the_query() -> None:
    """Double N-MNIST's "33": support and query are apart, though a sample may be one twice."""
    slots = {a + b: (a, b) for a in "345" for b in "345"}
    part = Part(slots, {"3": (0, 1, 2), "4": (3, 4, 5, 6), "5": (7, 8, 9)})
    source = FewShot(np.zeros((10, 2, 3)), {"train": part})
    rng, twice = np.random.default_rng(0), 0
    for _ in range(200):
        e = draw(source.parts["train"], rng, 5, 1, 2)
        assert not set(e.support.ravel()) & set(e.query.ravel())
        twice += int((e.query[:, 0] == e.query[:, 1]).sum())
    assert twice > 0


def test_the_same_seed_gives_the_same_split_and_episodes(double: FewShot) -> None:
    again = load_double_nmnist(DATA / "nmnist_subset.zip", steps=4, side=3)
    other = load_double_nmnist(DATA / "nmnist_subset.zip", steps=4, side=3, seed=1)
    assert list(again.parts["test"].slots) == list(double.parts["test"].slots)
    assert list(other.parts["test"].slots) != list(double.parts["test"].slots)
    one, two = (s.batch("test", np.random.default_rng(2), 1, queries=2) for s in (again, double))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_recordings_by_id_keep_the_classes_of_the_seed(double: FewShot) -> None:
    numbers = sorted(r.id for r in load_nmnist(DATA / "nmnist_subset.zip"))
    archive, options = DATA / "nmnist_subset.zip", {"steps": 4, "side": 3}
    mine: Any = {"train": numbers[:150], "test": numbers[150:]}
    source = load_double_nmnist(archive, ids=mine, **options)
    assert_disjoint(source)
    assert list(source.parts) == ["train", "test"]
    assert list(source.parts["test"].slots) == list(double.parts["test"].slots)
    recordings = load_nmnist(archive)
    assert {recordings[r].id for r in source.parts["test"].recordings} == set(numbers[150:])
    with pytest.raises(Invalid, match="share no recording"):
        load_double_nmnist(archive, ids={"train": numbers, "test": numbers[:50]}, **options)
    with pytest.raises(Invalid, match="expected one of train"):
        load_double_nmnist(archive, ids={"training": numbers}, **options)


def test_overlapping_parts_are_refused_and_named() -> None:
    one = Part({"a": ("p",)}, {"p": (0, 1)})
    with pytest.raises(Invalid, match="share no class, got 1 in both, such as 'a'"):
        check_disjoint({"train": one, "test": Part({"a": ("q",)}, {"q": (2, 3)})})
    with pytest.raises(Invalid, match="train, test: expected parts that share no recording"):
        FewShot(np.zeros((4, 2, 3)), {"train": one, "test": Part({"b": ("q",)}, {"q": (1, 3)})})
    with pytest.raises(Invalid, match=r"recordings in 0\.\.0, got 1"):
        FewShot(np.zeros((1, 2, 3)), {"train": one})


def test_what_draw_and_shares_refuse() -> None:
    part, rng = Part({"a": ("p",)}, {"p": (0, 1)}), np.random.default_rng(0)
    for arguments, message in (
        ((2, 1, 1), "expected 2 classes or more, got 1"),
        ((1, 1, 2), r"pool p: expected 1 \+ 2 recordings"),
        ((0, 1, 1), "ways: expected an integer from 1 on, got 0"),
    ):
        with pytest.raises(Invalid, match=message):
            draw(part, rng, *arguments)
    with pytest.raises(Invalid, match="shares: expected something for each"):
        shares([1], (1, 1), rng)
    wrong: Any = ((1, -1), (1, np.nan), (1, "1"), ())
    for sizes in wrong:
        with pytest.raises(Invalid, match="sizes: expected numbers above 0"):
            shares([1, 2, 3], sizes, rng)
    with pytest.raises(Invalid, match="expected one of train"):
        FewShot(np.zeros((2, 2, 3)), {"train": part}).batch("valid", rng, 1)


@pytest.mark.parametrize("by_alphabet", [False, True])
def test_m12_omniglot(tmp_path: Path, by_alphabet: bool) -> None:
    options: Any = {"by_alphabet": by_alphabet, "shares_of": (2, 1, 1), "side": 5, "steps": 4}
    source = load_omniglot(drawings(tmp_path / "o.zip"), **options)
    assert_disjoint(source)
    assert source.recordings.shape == (48, 4, 1, 5, 5)
    assert sum(len(p.slots) for p in source.parts.values()) == 12
    alphabets = [{c[0] for c in part.slots} for part in source.parts.values()]
    shared = any(a & b for a, b in combinations(alphabets, 2))
    assert shared != by_alphabet
    draw(source.parts["train"], np.random.default_rng(0), 2, 1, 3)


def test_ink_spikes_are_as_many_as_the_ink_and_evenly_spaced() -> None:
    ink = np.zeros((1, SIZE, SIZE), np.uint8)
    ink[0, :21, :21], ink[0, :21, 21:28] = 1, 1  # a full cell, and a third of the next
    out = ink_spikes(ink, 9, 5)
    assert out[0, :, 0, 0, 0].tolist() == [1] * 9
    assert out[0, :, 0, 0, 1].sum() == 3
    assert out[0, :, 0, 1:].sum() == 0


def test_omniglot_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="brendenlake/omniglot"):
        load_omniglot(tmp_path / "missing.zip")
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(Invalid, match="brendenlake/omniglot"):
        load_omniglot(tmp_path / "bad.zip")
    folder = tmp_path / "im" / "A" / "character01"
    folder.mkdir(parents=True)
    with pytest.raises(Invalid, match="got none"):
        load_omniglot(tmp_path / "im")
    (folder / "0001_01.png").write_bytes(b"no png")
    pytest.importorskip("PIL")
    with pytest.raises(Invalid, match="expected a PNG image"):
        load_omniglot(tmp_path / "im")
    with pytest.raises(Invalid, match="a side that divides"):
        load_omniglot(tmp_path / "im", side=4)


def test_m12_spoken_digits() -> None:
    archive = DATA / "fsdd_subset.zip"
    with zipfile.ZipFile(archive) as z:
        names = sorted({n.split("_")[1] for n in z.namelist() if n.endswith(".wav")})
    who = {"train": names[:1], "test": names[1:2]}
    source = load_spoken(archive, who, digits={"train": range(5), "test": range(5, 10)}, steps=4,
                         bands=4)  # fmt: skip
    assert_disjoint(source)
    assert source.recordings.shape[1:] == (4, 8)
    e = draw(source.parts["test"], np.random.default_rng(0), 5, 1, 2)
    assert {c[0] for c in e.classes} == set(names[1:2])  # type: ignore[index]
    with pytest.raises(Invalid, match="each in one part"):
        load_spoken(archive, {"train": names[:1], "test": names[:1]})
    with pytest.raises(Invalid, match="expected one of train"):
        load_spoken(archive, {"training": names[:1]})
    with pytest.raises(Invalid):
        load_spoken(archive, {"train": ["nobody"]})

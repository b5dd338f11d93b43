"""What few-shot data refuses: leaks between support and query, and bad arguments, by name."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few_shot_cases import DATA, drawings

from grasp_plugin.data.double_nmnist import load_double_nmnist
from grasp_plugin.data.episodes import FewShot, Part
from grasp_plugin.data.nmnist import load_nmnist
from grasp_plugin.data.omniglot import load_omniglot
from grasp_plugin.data.spoken import load_spoken
from grasp_plugin.errors import Invalid

SUBSET, FSDD = DATA / "nmnist_subset.zip", DATA / "fsdd_subset.zip"
SMALL: Any = {"steps": 4, "side": 3}
POOLS: Any = {"p": (0, 1, 2), "q": (3, 4)}
X = np.zeros((5, 2, 3), np.uint8)


@pytest.mark.parametrize(
    ("slots", "pools", "message"),
    [
        ({"a": ("p",)}, {"p": (0, 1, 0)}, "train, pool 'p': expected each recording once.*got 0"),
        ({"a": ("p",)}, {"p": (0, 1), "q": (2, 1)}, "train, pool 'q': .*got 1 again, after pool"),
        ({"a": ("p",), "b": ("r",)}, POOLS, "train, class 'b': .*'p', 'q', got 'r'"),
        ({"a": ("p",), "b": ("p", "q")}, POOLS, "train, class 'b': expected 1 names"),
        ({"a": ()}, POOLS, "train, class 'a': expected 1 names"),
        ({"a": ("p",), "b": ()}, POOLS, "train, class 'b'"),
        ({"a": "pq"}, POOLS, "train, class 'a': .*got 'pq'"),
        ({"a": ("p",)}, {"p": (0, 1.0)}, r"train, pool 'p': expected recordings in 0..4, got 1.0"),
        ({"a": ("p",)}, {"p": (0, True)}, "got True"),
        ({"a": ("p",)}, {"p": (0, 5)}, "got 5"),
        ({"a": ("p",)}, {"p": (0, -1)}, "got -1"),
    ],
)
def test_parts_from_which_no_episode_can_be_drawn(slots: Any, pools: Any, message: str) -> None:
    FewShot(X, {"test": Part({"a": ("p",), "b": ("q",)}, POOLS)})
    with pytest.raises(Invalid, match=message):
        FewShot(X, {"train": Part(slots, pools)})


@pytest.mark.parametrize(
    ("recordings", "message"),
    [
        (list(X), "got list"),
        (X[:, :, 0], r"got uint8 of shape \(5, 2\)"),
        (X.astype(str), "got <U"),
    ],
)
def test_recordings_that_are_no_array_with_neurons(recordings: Any, message: str) -> None:
    with pytest.raises(Invalid, match=f"recordings: expected numbers .*{message}"):
        FewShot(recordings, {"train": Part({"a": ("p",)}, POOLS)})


@pytest.mark.parametrize("name", ["count", "ways", "shots", "queries"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "1", True])
def test_counts_of_a_batch(name: str, value: Any) -> None:
    source = FewShot(X, {"train": Part({"a": ("p",)}, POOLS)})
    options: Any = {"count": 1, "ways": 1, "shots": 1, "queries": 1}
    source.batch("train", np.random.default_rng(0), **options)
    with pytest.raises(Invalid, match=f"{name}: expected an integer from 1 on, got {value!r}"):
        source.batch("train", np.random.default_rng(0), **options | {name: value})


def numbers(digits: range = range(10), least: int = 0) -> list[int]:
    """Of the subset's recordings of some digits, from the `least`-th of each on."""
    found = load_nmnist(SUBSET)
    return [n for d in digits for n in [r.id for r in found if r.label == d][least:]]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (lambda: {"train": numbers() + numbers()[:1]}, "ids, train: expected each .* 2 times"),
        (lambda: {"train": numbers(range(1, 10))}, "train, digit 0: expected two .*got 0"),
        (lambda: {"test": numbers(range(9)) + numbers(range(9, 10), -1)}, "test, digit 9: .*got 1"),
        (lambda: {"train": []}, "train, digit 0"),
        (lambda: {}, "ids: expected some of train, valid, test, got no part"),
        (lambda: {"train": [*numbers(), 999_999]}, r"without \[999999\]"),
        (lambda: {"train": [1.5]}, "ids, train: expected file numbers, got 1.5"),
        (lambda: {"train": "12"}, "ids, train: expected file numbers, got '1'"),
    ],
)
def test_what_double_nmnist_refuses_of_ids(ids: Any, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        load_double_nmnist(SUBSET, ids=ids(), **SMALL)


def test_double_nmnist_names_the_digit_of_which_there_is_too_little(tmp_path: Path) -> None:
    """Dealt to three parts: two recordings of a digit are too few, and so are five."""
    few = "(valid|test), digit 7: expected two recordings or more, .* got 1"
    for count, message in ((2, "digit 7: expected something"), (5, few)):
        mine = {*numbers(range(7)), *numbers(range(8, 10)), *numbers(range(7, 8))[:count]}
        with zipfile.ZipFile(SUBSET) as old, zipfile.ZipFile(tmp_path / "n.zip", "w") as new:
            for name in old.namelist():
                if name.endswith(".bin") and int(Path(name).stem) in mine:
                    new.writestr(name, old.read(name))
        with pytest.raises(Invalid, match=message):
            load_double_nmnist(tmp_path / "n.zip", **SMALL)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 1.5}, {"steps": 0}, {"side": 35}, {"side": 2.0}, {"least": 0}, {"duration_s": 0.0}],
)
def test_what_frames_refuse(wrong: Any) -> None:
    with pytest.raises(Invalid, match="expected"):
        load_double_nmnist(SUBSET, **SMALL | wrong)


def test_omniglot_refuses_a_drawing_that_lies_in_two_folders(tmp_path: Path) -> None:
    """Such as images_background beside images_background_small1, both of 0394_01."""
    with zipfile.ZipFile(drawings(tmp_path / "one.zip")) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as new:
        for name, image in content.items():
            new.writestr(name, image)
        new.writestr(
            "small1/Abc1/character02/1002_03.png", content["im/Abc1/character02/1002_03.png"]
        )
    load_omniglot(tmp_path / "one.zip", side=5, steps=4)
    with pytest.raises(
        Invalid, match="each drawing once, got 1002_03 of Abc1/character02"
    ) as found:
        load_omniglot(tmp_path / "two.zip", side=5, steps=4)
    for path in ("im/Abc1/character02/1002_03.png", "small1/Abc1/character02/1002_03.png"):
        assert path in found.value.reason
    assert "Remove one of the two folders" in found.value.remedy


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shares_of": (2, 1)}, r"shares_of: expected sizes of train, valid, test, got \(2, 1\)"),
        ({"shares_of": (2, 1, 0)}, "sizes: expected numbers above 0"),
        ({"shares_of": (9, 1, 1), "by_alphabet": True}, "alphabets: expected something for each"),
        ({"steps": 1.5}, "steps: expected an integer"),
        ({"side": 5.0}, "side: expected an integer"),
        ({"gain": np.nan}, "gain > 0"),
    ],
)
def test_what_omniglot_refuses(tmp_path: Path, wrong: Any, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        load_omniglot(drawings(tmp_path / "o.zip"), **{"side": 5, "steps": 4} | wrong)


@pytest.mark.parametrize(
    ("speakers", "digits", "message"),
    [
        ({"train": ["george"], "test": ["jackson"]}, {"train": [0, 1]},
         "digits: expected a list for test, got lists for train"),
        ({"train": "george"}, None, "speakers, train: expected a list .*got 'george'"),
        ({"train": ["george"]}, {"train": 5}, "digits, train: expected a list .*got 5"),
        ({"train": ["george"]}, {"train": []}, "digits, train: expected a list of one or more"),
        ({"train": ["george"], "test": []}, None, "speakers, test: expected a list of one"),
        ({"train": ["george"]}, {"training": [1], "train": [1]}, "training: expected one of"),
        ({}, None, "speakers: expected a list for some of train, valid, test, got .*no part"),
    ],
)  # fmt: skip
def test_what_spoken_digits_refuse(speakers: Any, digits: Any, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        load_spoken(FSDD, speakers, digits=digits)

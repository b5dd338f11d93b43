"""The Yin-Yang generator against the published arrays, where they are, and against its recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from grasp_plugin.data.yinyang import DOT, SPLITS, YANG, YIN, class_of, load_yinyang, yinyang
from grasp_plugin.errors import Invalid

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_bit_identical_to_the_published_arrays(split: str) -> None:
    file = SHARED / f"yinyang_{split}.npz"
    if not file.is_file():
        pytest.skip(f"no {file}")
    x, y = load_yinyang(split)
    with np.load(file) as published:
        assert np.array_equal(x, published["x"])
        assert np.array_equal(y, published["y"])


def test_known_figures_of_the_published_sets() -> None:
    x, y = load_yinyang("test")
    assert np.bincount(y).tolist() == [350, 316, 334]
    assert x.shape == (1000, 4)
    first, _ = yinyang(1, SPLITS["train"][1])
    assert first[0, :2] == pytest.approx([0.68030754, 0.45049925], abs=5e-9)


def test_every_point_is_in_the_disc_and_of_its_class() -> None:
    x, y = yinyang(300, 7)
    assert (np.hypot(x[:, 0] - 0.5, x[:, 1] - 0.5) <= 0.5).all()
    assert [class_of(a, b) for a, b in x[:, :2].tolist()] == y.tolist()
    assert np.array_equal(x[:, 2:], 1 - x[:, :2])


@pytest.mark.parametrize(
    ("point", "wanted"),
    [((0.75, 0.5), DOT), ((0.25, 0.5), DOT), ((0.5, 0.9), YIN), ((0.5, 0.1), YANG),
     ((0.25, 0.35), YIN), ((0.75, 0.65), YANG)],
)  # fmt: skip
def test_classes_of_known_points(point: tuple[float, float], wanted: int) -> None:
    assert class_of(*point) == wanted


def test_refuses_what_does_not_exist() -> None:
    with pytest.raises(Invalid, match="train, validation, test"):
        load_yinyang("all")
    with pytest.raises(Invalid, match="1 or more"):
        yinyang(0, 1)

"""The Yin-Yang data set, drawn from its published recipe: nothing to download.

Points of a disc (centre (1/2, 1/2), radius 1/2) in three classes: 0 yang, 1 yin, 2 dot. A shallow
model reaches about 64 %. The published sets are 5 000 points of seed 42 to train on, 1 000 of seed
41 to validate and 1 000 of seed 40 to test; `yinyang` gives the same numbers, bit by bit.

References:
    Kriener, Goeltz, Petrovici: The Yin-Yang dataset. NICE 2022.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid

SPLITS = {"train": (5000, 42), "validation": (1000, 41), "test": (1000, 40)}
"""By name: number of points, seed."""
YANG, YIN, DOT = 0, 1, 2
R_BIG, R_SMALL = 0.5, 0.1

Array = np.ndarray[Any, np.dtype[Any]]


def class_of(x: float, y: float) -> int:
    """The class of a point of the disc.

    With d_r, d_l the distances from (3/4, 1/2) and (1/4, 1/2): a dot where one is below 1/10; else
    yin where d_r <= 1/10, or 1/10 < d_l <= 1/4, or y > 1/2 and d_r > 1/4.
    """
    right = math.sqrt((x - 1.5 * R_BIG) ** 2 + (y - R_BIG) ** 2)
    left = math.sqrt((x - 0.5 * R_BIG) ** 2 + (y - R_BIG) ** 2)
    if right < R_SMALL or left < R_SMALL:
        return DOT
    half = 0.5 * R_BIG
    yin = right <= R_SMALL or R_SMALL < left <= half or (y > R_BIG and right > half)
    return YIN if yin else YANG


def yinyang(size: int, seed: int) -> tuple[Array, Array]:
    """Points and classes.

    Args:
        size: number of points; seed: of NumPy's legacy generator, which the recipe fixes.

    Returns:
        features (size, 4): x, y, 1 - x, 1 - y in [0, 1]; labels (size,), int64.

    Raises:
        Invalid: size below 1.

    Example:
        >>> x, y = yinyang(1, 42)
        >>> x.round(4).tolist(), y.tolist()
        ([[0.6803, 0.4505, 0.3197, 0.5495]], [2])
    """
    if size < 1:
        raise Invalid("size", f"expected 1 or more, got {size}", "Raise it")
    rng = np.random.RandomState(seed)
    points, labels = np.empty((size, 2)), np.empty(size, np.int64)
    for k in range(size):
        labels[k] = goal = int(rng.randint(3))
        while True:
            x, y = rng.rand(2) * 2.0 * R_BIG
            if math.hypot(x - R_BIG, y - R_BIG) <= R_BIG and class_of(x, y) == goal:
                break
        points[k] = x, y
    return np.concatenate([points, 1.0 - points], axis=1), labels


def load_yinyang(split: str) -> tuple[Array, Array]:
    """The published "train", "validation" or "test" set, as `yinyang`.

    Raises:
        Invalid: another name.
    """
    if split not in SPLITS:
        raise Invalid("split", f"expected one of {', '.join(SPLITS)}, got {split!r}", "Choose one")
    return yinyang(*SPLITS[split])

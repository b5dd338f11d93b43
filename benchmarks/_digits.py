"""scikit-learn's 8 x 8 digits, as every benchmark splits them."""

from __future__ import annotations

from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid


def shuffled_digits() -> tuple[Any, Any, Any]:
    """(images (1797, 64) in 0..16, labels (1797,), a fixed order of them: the first 600 are tests).

    Raises:
        Invalid: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise Invalid(
            "digits", "expected scikit-learn, got none", "pip install scikit-learn"
        ) from error
    images, labels = load_digits(return_X_y=True)
    return images, labels, np.random.default_rng(0).permutation(len(images))

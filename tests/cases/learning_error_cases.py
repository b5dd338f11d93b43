"""A network that learns, for tests of what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import plastic_cases as cases
import pytest

from grasp_plugin import build, quantise
from grasp_plugin.learning import (
    ThreeFactor,
    decolle_for,
)
from grasp_plugin.learning.traces import Exponential

OUT = cases.OUT
lava = pytest.param("lava", marks=pytest.mark.lava)
BACKENDS = ("torch", "fused", lava)
NET = cases.two_layers(np.random.default_rng(0))
INTEGERS = quantise(NET, plastic=["in->h", "h->o", "bh", "bo"])
SPIKES = (np.random.default_rng(1).random((20, cases.IN)) < 0.4).astype(float)
RULE = ThreeFactor(Exponential(0.8), None, 0.1, name="mine")


def made(backend: str = "fused", net: Any = NET, learning: Any = None, **options: Any) -> Any:
    return build(net, backend, plans=learning or decolle_for(NET, 3, 0.05), **options)

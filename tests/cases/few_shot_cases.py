"""Files of few-shot data, and a network that adapts, for the tests of few-shot learning."""

from __future__ import annotations

import io
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from grasp_plugin.data.omniglot import SIZE
from grasp_plugin.network.discretise import Discretisation, discretise
from grasp_plugin.network.network import Network

DATA = Path(__file__).resolve().parents[2] / "examples" / "data"


def drawings(path: Path, alphabets: int = 4, characters: int = 3, each: int = 4) -> Path:
    """A zip in Omniglot's layout, with random ink."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for a in range(alphabets):
            for c in range(characters):
                for k in range(each):
                    ink = (rng.random((SIZE, SIZE)) < 0.5).astype(np.uint8) * 255
                    out = io.BytesIO()
                    image.fromarray(ink).save(out, "PNG")
                    archive.writestr(f"im/Abc{a}/character{c:02}/{a}{c:03}_{k:02}.png",
                                     out.getvalue())  # fmt: skip
    return path


def with_biases(inputs: int, hidden: int, ways: int) -> nir.NIRGraph:
    """Nodes w1, layer1 (LIF), w2 and layer2 (LI): layer2's weight node is an Affine."""
    rng = np.random.default_rng(0)
    one, some = np.ones(hidden), np.ones(ways)
    nodes: dict[str, Any] = {
        "input": nir.Input(np.array([inputs])),
        "w1": nir.Linear(rng.uniform(-1, 1, (hidden, inputs))),
        "layer1": nir.LIF(0.1 * one, 10 * one, 0 * one, 0.7 * one, v_reset=0 * one),
        "w2": nir.Affine(rng.uniform(-1, 1, (ways, hidden)), rng.uniform(-0.1, 0.1, ways)),
        "layer2": nir.LI(0.1 * some, 10 * some, 0 * some),
        "output": nir.Output(np.array([ways])),
    }
    return nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False)


def discretised(graph: nir.NIRGraph) -> Network:
    return discretise(graph, Discretisation(dt_s=0.01, reset="subtract-delayed"))

"""Small models in files for the command line, and a call of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np

from grasp_plugin.__main__ import main
from grasp_plugin.adapters.nir_file import write_nir

CLASSES, STEPS, SIDE = 3, 12, 4
CHOICES = ["--dt", "1e-3", "--reset", "subtract-delayed"]


def lif(*shape: int, **more: Any) -> nir.LIF:
    one = np.ones(shape)
    return nir.LIF(0.01 * one, 10 * one, 0 * one, v_threshold=one, v_reset=0 * one, **more)


def write(path: Path, nodes: dict[str, Any]) -> Path:
    """The nodes in a row, as a .nir file."""
    write_nir(nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False), path)
    return path


def write_convolution(path: Path, rng: np.random.Generator) -> Path:
    """A convolution whose channels share a bias, below a dense layer."""
    return write(path, {
        "in": nir.Input(np.array([1, SIDE, SIDE])),
        "conv": nir.Conv2d((SIDE, SIDE), 0.6 * rng.normal(size=(2, 1, 3, 3)), 1, 0, 1, 1,
                           np.full(2, 0.1)),
        "c": lif(2, 2, 2),
        "flat": nir.Flatten(np.array([2, 2, 2]), 0, -1),
        "w": nir.Linear(rng.normal(size=(CLASSES, 8))),
        "o": lif(CLASSES),
        "out": nir.Output(np.array([CLASSES])),
    })  # fmt: skip


def call(capsys: Any, *argv: Any) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of `grasp` with these arguments."""
    status = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return status, out, err

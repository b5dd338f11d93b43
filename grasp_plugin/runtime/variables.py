"""Read and write a Var of a ProcessModel, whole and at memory speed."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.utils.sparse import find
from scipy.sparse import csr_matrix


def read_var(model: Any, name: str, shape: tuple[int, ...]) -> Any:
    """A Var of a model as float64 in its declared shape (csr: values; str: ASCII codes)."""
    value = getattr(model, name)
    if isinstance(value, str):
        return np.frombuffer(value.encode("ascii"), np.uint8).astype(np.float64)
    if isinstance(value, csr_matrix):
        return np.asarray(find(value, explicit_zeros=True)[2], np.float64)
    out = np.array(value, dtype=np.float64)
    return out.reshape(shape) if out.size == np.prod(shape) else out


def write_var(model: Any, name: str, value: Any, idx: Any = None) -> None:
    """Write a Var: arrays in place (scalars broadcast; a wrong shape raises), others anew."""
    old = getattr(model, name)
    if isinstance(old, str):
        setattr(model, name, bytes(np.asarray(value, np.uint8).tolist()).decode("ascii"))
    elif isinstance(old, csr_matrix):
        rows, cols, _ = find(old, explicit_zeros=True)
        data = np.asarray(value, old.dtype).ravel()
        setattr(model, name, csr_matrix((data, (rows, cols)), old.shape))
    elif isinstance(old, np.ndarray):
        new = np.asarray(value)
        if idx is not None:
            old[idx] = new
        else:
            old[...] = new.reshape(old.shape) if new.size == old.size else new
    else:
        setattr(model, name, type(old)(np.asarray(value).item()))
    model.on_var_update()

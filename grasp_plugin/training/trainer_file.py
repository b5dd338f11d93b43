"""Checkpoints of `OnlineTrainer`: torch's format without pickled code, whole or not at all."""

from __future__ import annotations

import io
import os
import secrets
from pathlib import Path
from typing import Any

import torch

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.states import leaves

FORMAT = "grasp_plugin trainer 1"


def write_state(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write nested dicts of tensors and numbers, beside the target and then into its place.

    Raises:
        Invalid: the file cannot be written; an older one is left as it was.
    """
    target, stream = Path(path), io.BytesIO()
    torch.save({"format": FORMAT, **state}, stream)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(stream.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise Invalid(str(target), f"cannot be written: {error.strerror}", "Check the folder") \
            from error  # fmt: skip
    finally:
        temporary.unlink(missing_ok=True)


def read_state(path: str | os.PathLike[str], like: dict[str, Any]) -> dict[str, Any]:
    """What `write_state` wrote, if it has the plans, names and shapes of `like`.

    Raises:
        Invalid: no such file, a damaged one, or one of another trainer.
    """
    source = Path(path)
    if not source.is_file():
        raise Invalid(str(source), "expected a checkpoint file, got none", "Check the path")
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file: zipfile, pickle and torch raise a dozen types
        raise Invalid(str(source), f"expected a checkpoint, got {type(error).__name__}: {error}",
                      "Take an older one") from error  # fmt: skip
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise Invalid(str(source), f"expected the format {FORMAT!r}, got another file", "Check it")
    for part in ("made by", "weights", "signals", "optimizer"):
        expected, got = _outline(part, like[part]), _outline(part, found.get(part))
        if expected != got:
            raise Invalid(
                str(source), f"expected a checkpoint of {_difference(part, expected, got)}",
                "Load it into a trainer of the same network, plans and optimizer",
            )  # fmt: skip
    return found


def _outline(part: str, value: Any) -> Any:
    """What must agree: all of the plans, the shapes of tensors, the optimizer's groups."""
    if part == "made by" or value is None:
        return value
    if part == "optimizer":
        return [group["params"] for group in value["param_groups"]]
    return {name: tuple(tensor.shape) for name, tensor in leaves(value)}


def _difference(part: str, expected: Any, got: Any) -> str:
    """What differs between two outlines, expected and got."""
    if isinstance(expected, dict) and isinstance(got, dict):
        expected, got = ([f"{n} {shape}" for n, shape in o.items()] for o in (expected, got))
    if not isinstance(expected, list) or not isinstance(got, list):
        return f"{part} {expected}, got one of {got}"
    here = "; ".join(str(line) for line in expected if line not in got)
    there = "; ".join(str(line) for line in got if line not in expected)
    return f"{part} {here or 'without more'}, got one of {there or 'none of it'}"


def on_device(state: dict[str, Any], device: str) -> dict[str, Any]:
    """Nested dicts of tensors, moved."""
    return {
        k: on_device(v, device) if isinstance(v, dict) else v.to(device) for k, v in state.items()
    }

"""Checkpoints without pickle: arrays in safetensors, everything else as JSON inside the same file.

One file holds a flat dict of arrays and a JSON header. It is written beside its target, flushed to
disk and moved into place, so that a kill at any moment leaves the last good file.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grasp_plugin.errors import Invalid

FORMAT = "grasp_plugin checkpoint 1"
Arrays = dict[str, npt.NDArray[Any]]


def save_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, npt.NDArray[Any]],
    facts: Mapping[str, Any],
) -> None:
    """Write arrays and JSON-ready facts, whole or not at all.

    Raises:
        Invalid: the folder does not exist, or a fact is no JSON.
    """
    from safetensors.numpy import save

    target = Path(path)
    try:
        header = json.dumps({"format": FORMAT, **facts}, sort_keys=True)
    except TypeError as error:
        raise Invalid(str(target), f"expected facts that JSON can hold, got {error}", "Convert") \
            from error  # fmt: skip
    data = save(
        {name: np.ascontiguousarray(a) for name, a in arrays.items()}, metadata={"facts": header}
    )
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise Invalid(str(target), f"cannot be written: {error.strerror}", "Check the folder") \
            from error  # fmt: skip
    finally:
        temporary.unlink(missing_ok=True)


def load_arrays(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, Any]]:
    """Read what `save_arrays` wrote.

    Raises:
        Invalid: no such file, another format, or a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    source = Path(path)
    if not source.is_file():
        raise Invalid(str(source), "expected a checkpoint file, got none", "Check the path")
    try:
        with safe_open(source, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, json.JSONDecodeError, OSError, ValueError) as error:
        raise Invalid(str(source), f"expected a checkpoint, got {error}", "Take an older one") \
            from error  # fmt: skip
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise Invalid(str(source), f"expected the format {FORMAT!r}, got another file", "Check it")
    return arrays, facts


def other_checkpoint(
    path: Any, expected: Sequence[str], facts: Mapping[str, Any], key: str, other: str
) -> Invalid:
    """The error of a checkpoint whose lines of `facts[key]` are not those expected.

    Args:
        other: the key of the other kind of session's checkpoints.
    """
    found = facts.get(key)
    remedy = "Load it into a session built as the one that saved it"
    if found is None:
        kinds = {"network": "a session that runs", "learning": "a session that learns (plans=...)"}
        got = f"one of {kinds[other]}" if other in facts else "another kind of file"
        return Invalid(str(path), f"expected a checkpoint of {kinds[key]}, got {got}", remedy)
    here = [line for line in expected if line not in found]
    there = [line for line in found if line not in expected]
    if not here and not there:
        here, there = [f"the order {', '.join(expected)}"], [", ".join(found)]
    return Invalid(
        str(path), f"expected a checkpoint of {'; '.join(here) or 'nothing more'}, got one of "
        f"{'; '.join(there) or 'none of it'}", remedy,
    )  # fmt: skip

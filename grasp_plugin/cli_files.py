"""What the command line writes, checked before the work, and errors in terms of its options."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from grasp_plugin.errors import GraspError, Invalid, Refused

OPTIONS = {
    "dt_s": "dt", "reset": "reset", "time_unit": "time_unit", "scheme": "scheme",
    "integrator": "integrator", "loop": "loop", "backend": "backend", "growth": "growth",
    "classes": "classes", "frozen": "frozen", "learning_rate": "lr",
}  # fmt: skip
"""Arguments of the library, and where the command line keeps the option for them."""
_ARGUMENT = re.compile(rf"\b({'|'.join(OPTIONS)})=('?)([\w.-]+)\2|\bdt_s\b(?!=)")


def check_target(path: str) -> None:
    """Refuse a file that could not be written after hours of work.

    Raises:
        Invalid: a folder, or a file in a folder that does not exist.
    """
    target = Path(path).resolve()
    if target.is_dir():
        raise Invalid(path, "expected a file to write, got a folder", "Add a file name")
    if not target.parent.is_dir():
        raise Invalid(path, "expected a folder that exists, got none", "Make it first")


def check_picture(path: str) -> None:
    """Refuse a picture that could not be drawn.

    Raises:
        Invalid: as `check_target`; a suffix that matplotlib does not write.
        Refused: matplotlib is not installed.
    """
    check_target(path)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise Refused(
            "--plot", "expected matplotlib, got none", "pip install 'grasp-plugin[plot]'"
        ) from error
    known, suffix = FigureCanvasAgg.get_supported_filetypes(), Path(path).suffix
    if suffix[1:].lower() not in known:
        raise Invalid(
            path, f"expected a picture's suffix, one of {', '.join(f'.{k}' for k in sorted(known))}"
            f", got {suffix or 'none'}", "Name it .png",
        )  # fmt: skip


def write_arrays(path: str, arrays: dict[str, Any]) -> None:
    """An .npz with any names as keys, written whole or not at all.

    Raises:
        Invalid: it cannot be written.
    """
    check_target(path)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.save(stream, np.asanyarray(array), allow_pickle=False)
        os.replace(temporary, target)
    except OSError as error:
        raise Invalid(path, f"cannot be written: {error.strerror}", "Check the folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def in_options(error: GraspError, arguments: Any) -> GraspError:
    """The error with a remedy that names the options of the verb, not the library's arguments."""

    def option(found: re.Match[str]) -> str:
        name, value = found[1] or "dt_s", found[3]
        if not hasattr(arguments, OPTIONS[name]):
            return found[0]
        spelled = "--" + OPTIONS[name].replace("_", "-")
        return spelled if value is None else f"{spelled} {value}"

    plain = Refused if isinstance(error, Refused) else Invalid
    return plain(error.node, error.reason, _ARGUMENT.sub(option, error.remedy))

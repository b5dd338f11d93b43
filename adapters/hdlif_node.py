"""`HDLIF`, a NIR node of our own for HD-LIF neurons, and how NIR's reader is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from grasp_plugin.errors import Invalid, Refused


@dataclass(eq=False)
class HDLIF(nir.NIRNode):  # type: ignore[misc]
    """m = decay v + gain I + offset;  s = max(m - theta, 0);  v = min(m, theta);  sends Q(s) or s.

    Rows (R, N) or (R, 1) are one a step of a sample of `steps`, or one for all; before each sample
    v is 0. Everything is dimensionless; there is no time unit. Pass all by keyword.

    Args:
        decay, theta, gain, offset: as in `network.hdlif.GradedLayer`.
        steps, top: integers; parallel: 0 or 1; code_step: 0 for float spikes.

    Raises:
        Invalid: a parameter is missing, or gain is not (R, N).
    """

    decay: Any = None
    theta: Any = None
    gain: Any = None
    offset: Any = None
    steps: Any = None
    parallel: Any = 0
    code_step: Any = 0.0
    top: Any = 15

    def __post_init__(self) -> None:
        for name in ("decay", "theta", "gain", "offset", "steps"):
            if getattr(self, name) is None:
                raise Invalid("HDLIF", f"expected {name}, got none", "Pass it by keyword")
        if np.ndim(self.gain) != 2:
            raise Invalid("HDLIF", f"expected gain (R, N), got {np.shape(self.gain)}", "Add a row")
        size = np.array([np.shape(self.gain)[1]])
        self.input_type = {"input": size}
        self.output_type = {"output": size.copy()}


def register_nir_extensions() -> None:
    """Let `nir.read` know the node HDLIF; safe to call twice.

    NIR has no interface for this: its own names in `nir.ir` are added to. Nothing calls it for you.
    `read_nir` of this package reads NIR's own nodes only.

    Raises:
        Refused: a NIR without the list of nodes that its reader looks into.
    """
    known = getattr(nir.ir, "__all_ir", None)
    if not isinstance(known, list):
        raise Refused(
            "nir", f"expected the list nir.ir.__all_ir, got {type(known).__name__}",
            "Use from_hdlif(..., exact=False), which needs NIR's own nodes alone",
        )  # fmt: skip
    nir.ir.HDLIF = HDLIF
    if "HDLIF" not in known:
        known.append("HDLIF")

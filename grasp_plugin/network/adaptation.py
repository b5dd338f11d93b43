"""Adaptive thresholds and refractory counts of populations: what is allowed, and their NIR hints.

NIR has no such neuron. A file holds the stock node (LIF, CubaLIF, ...) and, in its hints, `rho`,
`theta` and `n_ref` of `Population`: one number, or a list with one a neuron in C order. Tools that
do not know the hints read the neuron without adaptation.
"""

from __future__ import annotations

import logging
from typing import Any

import nir
import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network.hints import read_hints, seconds
from grasp_plugin.neurons.lif_fixed import check_registers

Population = Any  # network.network.Population, which calls this module

log = logging.getLogger(__name__)
FIELDS = ("rho", "theta", "n_ref")


def check_adaptation(p: Population, precision: str) -> None:
    """Raise unless rho, theta and n_ref of a population are sound.

    Raises:
        Invalid: a wrong type or range, or adaptation without spikes.
        Refused: Loihi integers that do not fit their registers.
    """
    for field in FIELDS:
        if not isinstance(getattr(p, field), np.ndarray):
            raise Invalid(
                p.name,
                f"expected {field} as an array ({p.size},), got {type(getattr(p, field)).__name__}",
                f"Pass np.full({p.size}, value)",
            )
    if p.n_ref.dtype.kind not in "iu":
        raise Invalid(
            p.name, f"expected integers in n_ref, got {p.n_ref.dtype}", "Pass whole steps as int"
        )
    for field, most in (("rho", 1.0), ("theta", np.inf), ("n_ref", np.inf)):
        value = getattr(p, field)
        most = np.inf if precision == "loihi" else most
        if value.size and (value.min() < 0 or value.max() > most):
            wanted = f"in 0..{most:g}" if np.isfinite(most) else ">= 0"
            raise Invalid(
                p.name,
                f"expected {field} {wanted}, got {value.min():.6g}..{value.max():.6g}",
                "rho is what is left a step later, theta a rise a spike, n_ref a count of steps",
            )
    if p.adaptive and not p.spiking:
        raise Invalid(
            p.name,
            f"expected spikes where theta or n_ref is not 0, got a {p.node} without",
            "Leave theta and n_ref out, or give the population a reset rule",
        )
    if p.adaptive and precision == "loihi":
        check_registers(p.name, rho=p.rho, theta=p.theta, n_ref=p.n_ref)


def adaptation_hints(p: Population) -> dict[str, Any]:
    """rho, theta, n_ref for the node's hints, with a warning; empty where not adaptive."""
    if not p.adaptive:
        return {}
    log.warning(
        "%s: rho, theta and n_ref are written as hints of the %s node: other tools read it without "
        "its adaptive threshold and refractory steps", p.name, p.node,
    )  # fmt: skip
    return {field: _short(getattr(p, field).tolist()) for field in FIELDS}


def adaptation_of(name: str, node: nir.NIRNode, size: int, dt_s: float | None) -> dict[str, Any]:
    """rho, theta, n_ref (size,) from a node's hints; empty if it has none.

    Raises:
        Invalid: a hint that is not one number or one a neuron.
        Refused: another step than the one the hints count in.
    """
    hints = read_hints(node)
    if not has_adaptation(node):
        return {}
    refuse_other_step(name, node, dt_s)
    out = {}
    for field in FIELDS:
        value = np.asarray(hints.get(field, 0))
        kinds = "iu" if field == "n_ref" else "iuf"
        if value.dtype.kind not in kinds or value.size not in (1, size):
            raise Invalid(
                name,
                f"expected the hint {field} as one {'integer' if kinds == 'iu' else 'number'} or "
                f"{size}, got {value.dtype} {value.shape}",
                "Write the file again with to_nir",
            )
        kind = np.int64 if field == "n_ref" else np.float64
        out[field] = np.broadcast_to(value.ravel(), (size,)).astype(kind)
    return out


def has_adaptation(node: nir.NIRNode) -> bool:
    """True if a node's hints make it adaptive."""
    hints = read_hints(node)
    return "theta" in hints or "n_ref" in hints


def refuse_other_step(name: str, node: nir.NIRNode, dt_s: float | None) -> None:
    """Raise `Refused` where an adaptive node would be read with another dt than it was written."""
    own = read_hints(node).get("dt_s")
    if has_adaptation(node) and own is not None and dt_s is not None:
        own = seconds(f"{name}, hint dt_s", own, "Write it as a number of seconds")
        if not np.isclose(own, dt_s, rtol=1e-6, atol=0):
            raise Refused(
                name,
                f"expected dt_s = {own:g}, the step that its rho and n_ref count in, got {dt_s:g}",
                "Keep dt_s, or change rho, n_ref and dt_s in the node's hints",
            )


def _short(values: list[Any]) -> Any:
    return values[0] if len(set(values)) == 1 else values

"""The choices that NIR leaves open and `discretise` needs: `Discretisation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grasp_plugin.errors import Invalid
from grasp_plugin.network import loops
from grasp_plugin.network.hints import RESETS, seconds

SCHEMES = {
    "euler": "decay 1 - dt/tau, gain dt/tau (snnTorch, Norse)",
    "exponential": "decay exp(-dt/tau), gain 1 - exp(-dt/tau)",
    "exponential-euler-gain": "decay exp(-dt/tau), gain dt/tau",
}
INTEGRATORS = {
    "per-step": "IF and I add r * input each step (snnTorch, Norse, sinabs)",
    "physical": "IF and I add dt * r * input each step",
}
SOURCE_DT_S = {"snntorch": 1e-4, "norse": 1e-3}


@dataclass(frozen=True)
class Discretisation:
    """How a graph in continuous time becomes steps. A field left None is read from the hints.

    Args:
        dt_s: seconds a step; by default the graph's hint, else the preset of `source`.
        reset: one of `hints.RESETS` for all spiking nodes, or a mapping of node name to reset with
            "*" for the others.
        scheme: one of `SCHEMES`.
        integrator: one of `INTEGRATORS`, for IF and I.
        loop: for loops through several populations, "each" (every projection inside a loop takes
            one step) or the feedback edges ((source, target), ...) that take one step while the
            others take none. A population's projection onto itself always takes one step.
        source: "snntorch" (dt 1e-4 s), "norse" (dt 1e-3 s) or "nir" (no preset).

    Raises:
        Invalid: an unknown name or a dt that is not positive and finite.
    """

    dt_s: float | None = None
    reset: str | Mapping[str, str] | None = None
    scheme: str = "euler"
    integrator: str = "per-step"
    loop: str | tuple[tuple[str, str], ...] | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        one_of("scheme", self.scheme, SCHEMES)
        one_of("integrator", self.integrator, INTEGRATORS)
        if self.source is not None:
            one_of("source", self.source, {**SOURCE_DT_S, "nir": 0.0})
        given = self.reset.values() if isinstance(self.reset, Mapping) else [self.reset]
        for reset in given:
            if reset is not None:
                one_of("reset", reset, RESETS)
        loops.check_choice(self.loop)
        if self.dt_s is not None:
            seconds("dt_s", self.dt_s, "Pass e.g. 1e-3")


def one_of(field: str, value: Any, options: Mapping[str, Any]) -> None:
    """Raise `Invalid` unless the value is one of the names."""
    if not isinstance(value, str) or value not in options:
        raise Invalid(field, f"expected one of {', '.join(options)}, got {value!r}", "Pick one")


def require_policy(value: object) -> None:
    """Raise `Invalid` unless the value is a `Discretisation`."""
    if not isinstance(value, Discretisation):
        raise Invalid(
            "policy",
            f"expected a Discretisation, got {type(value).__name__}",
            "Pass Discretisation(dt_s=..., reset=...)",
        )

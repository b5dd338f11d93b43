"""Exact gradients as a `Rule`, on the clock of episodes: GRASP and all other transforms apply.

    ExactGradient("weight", eta)     delta = -eta dL/dw of one layer, once a batch of episodes

`episode_learner.EpisodeLearner` runs layers and gives every plan what its layer saw; on Lava
`deployed.Deployed` does. NumPy and Numba only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.deltas import Delta, Full
from grasp_plugin.learning.exact.engine import THETA_LEAST, Parameters
from grasp_plugin.learning.rule import Factors, Plan, Rule
from grasp_plugin.learning.states import State
from grasp_plugin.network.weights import Array

DELAYS = ("delay", "axonal", "dendritic")
TRAINED = ("weight", *DELAYS, "theta", "beta", "v_reset", "bias")


@dataclass(frozen=True, eq=False)
class Episode(Factors):
    """What the synapses of a layer may see when a batch of episodes is over.

    Args:
        pre: padded times of what reached them (batch, N_i, spikes).
        gradients: dL/d(parameter) by its name, of the layer, at its own spikes.
        curvature: (V, kind) -> H V, both [N_o, N_i], of the parameter that the plan trains.
    """

    gradients: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ExactGradient(Rule):
    """delta = -eta dL/dp, p one parameter of one layer; vectors (N,) as [N, 1].

    Args:
        parameter: one of TRAINED.
        learning_rate: eta [unit of p squared / loss]; 1 before an optimiser of `optimise`.

    Raises:
        Invalid: another name; factors that are no `Episode`.
    """

    parameter: str = "weight"
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.parameter not in TRAINED:
            raise Invalid(
                "ExactGradient", f"expected one of {TRAINED}, got {self.parameter!r}", "Pick"
            )

    def init(self, weight: Array, *, batch: int = 1) -> State:
        return {}

    def update(
        self, factors: Factors, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        if not isinstance(factors, Episode) or factors.gradients is None:
            raise Invalid(
                "ExactGradient", f"expected an Episode with gradients, got {type(factors)}",
                "Learn through EpisodeLearner",
            )  # fmt: skip
        gradient = np.asarray(factors.gradients[self.parameter], float)
        return {"weight": Full(as_matrix(gradient), -self.learning_rate)}, state


def as_matrix(value: Array) -> Array:
    """A parameter as plans see it: [N_o, N_i], vectors as [N, 1]."""
    return value.reshape(len(value), -1)


def plan_of(plans: Mapping[str, Rule], name: str) -> tuple[int, str]:
    """(layer from 0, parameter) of a plan's name such as "layer1.delay".

    Raises:
        Invalid: a name of another form, a plan that is no `Rule`, or the gradient of another
            parameter.
    """
    layer, _, parameter = name.partition(".")
    number = layer.removeprefix("layer")
    if parameter not in TRAINED or not number.isdecimal() or not isinstance(plans[name], Rule):
        raise Invalid(
            name, f"expected a Rule named 'layer1.weight' or so, of {TRAINED}, got "
            f"{type(plans[name]).__name__}", "Name the layer, a dot, and the parameter",
        )  # fmt: skip
    core = _core(plans[name])
    if isinstance(core, ExactGradient) and core.parameter != parameter:
        raise Invalid(
            name, f"expected the gradient of {parameter!r}, got that of {core.parameter!r}",
            f"Pass ExactGradient({parameter!r})",
        )  # fmt: skip
    return int(number) - 1, parameter


def _core(plan: Rule) -> Rule:
    return plan.rule if isinstance(plan, Plan) else plan


def moved(p: Parameters, parameter: str, delta: Delta, most: float = np.inf) -> Parameters:
    """The layer after a delta, with delays kept in 0..most [ms] and thresholds above rest."""
    value = np.array(getattr(p, parameter), float)
    part, matrix = delta["weight"], as_matrix(value)
    if hasattr(part, "add_to"):
        part.add_to(matrix)  # only what is written: a view of value
    else:
        matrix += part.dense()
    if parameter in DELAYS:
        value = np.clip(value, 0.0, most)
    if parameter == "theta":
        value = np.maximum(value, np.maximum(np.asarray(p.v_reset, float), 0.0) + THETA_LEAST)
    return with_value(p, parameter, value)


def with_value(p: Parameters, parameter: str, value: Array) -> Parameters:
    """The layer with another value of one parameter."""
    changed: dict[str, Any] = {parameter: value}
    return replace(p, **changed)

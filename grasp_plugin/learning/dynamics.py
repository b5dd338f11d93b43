"""What a network's plans were made from, and whether another network is still it.

The trace, the surrogate and the signal of a plan are exact for the neurons that they were made
from: `dv`, `du`, the threshold, the reset and the number of neurons. Weights may change, and a
network may be quantised, up to

    |dv - dv'|, |du - du'|, |rho - rho'| <= 1 / 4096,   |v_th - v_th'| <= 1 / S,
    |theta - theta'| <= 1 / (64 S)                       S: weight LSBs per float unit

between a float network and its Loihi integers; two float ones agree to `CLOSE` of the larger.

A pooling or a convolution that is folded into a dense matrix shares its weights between synapses
and has none outside its windows. A plan knows neither: it learns every entry for itself. That is
warned of, from the values alone: a matrix of two nodes or more with each value twice or oftener.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.network.network import Network, Population, Projection
from grasp_plugin.network.scales import DECAY_ONE
from grasp_plugin.network.weights import Array

CLOSE = 1e-5  # what a file or module in float32 may lose
NAMES = ("du", "dv", "v_th", "rho", "theta")


@dataclass(frozen=True, eq=False)
class Dynamics:
    """A population's neurons, in float units.

    Args:
        size: number of neurons.
        reset: as `Population.reset`.
        values: by name in `NAMES`, (size,).
        steps: by name, a step of the register it is stored in; zeros for a float network.
    """

    size: int
    reset: str | None
    values: Mapping[str, Array] = field(repr=False)
    steps: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Made:
    """What plans were made from.

    Args:
        populations: by name.
        tied: the dense projections with a pooling or convolution folded in.
    """

    populations: Mapping[str, Dynamics]
    tied: frozenset[str] = frozenset()


def made_from(network: Network) -> Made:
    """What plans for a network are made from."""
    populations = {p.name: _dynamics(p) for p in network.populations}
    return Made(populations, tied_in(network))


def tied_in(network: Network) -> frozenset[str]:
    """The dense projections of a float network whose synapses share weights, by their values."""
    if network.precision != "float":
        return frozenset()
    return frozenset(k.name for k in network.projections if _tied(k))


def _tied(k: Projection) -> bool:
    if len(k.nodes) < 2 or not isinstance(k.weight, np.ndarray):
        return False
    held = k.weight[k.weight != 0]
    return bool(1 < np.unique(held).size <= held.size // 2)


def warn_of_tied(network: Network, learn: Collection[str], made: Made | None) -> None:
    """Warn of plans that untie shared weights, and fill in synapses that the layers lack."""
    tied = tied_in(network) | (frozenset() if made is None else made.tied)
    for k in network.projections:
        if k.name in tied and k.name in learn:
            warnings.warn(
                f"{k.name}: expected a layer of free weights to learn, got the nodes "
                f"{', '.join(k.nodes)} folded into a dense matrix, with a pooling or convolution "
                "among them by its values: every entry learns for itself, also those that were 0, "
                "and the layers cannot be told apart again. Freeze it (frozen=...), or learn it "
                "in its own framework.", UserWarning, stacklevel=2,
            )  # fmt: skip


def check_dynamics(network: Network, made: Made) -> None:
    """Refuse plans that were made for other neurons than the network's.

    Populations that either of the two lacks are left out.

    Raises:
        Invalid: names the population and both values.
    """
    for p in network.populations:
        if p.name in made.populations:
            _compare(p.name, made.populations[p.name], _dynamics(p))


def _dynamics(p: Population) -> Dynamics:
    if p.scale is None:
        return Dynamics(
            p.size, p.reset, {n: getattr(p, n) for n in NAMES}, dict.fromkeys(NAMES, 0.0)
        )
    scale, fine, register = float(p.scale), 64.0 * float(p.scale), 1.0 / DECAY_ONE
    rho = (DECAY_ONE - p.rho) / DECAY_ONE if p.adaptive else np.zeros(p.size)
    values = {
        "du": (p.du + 1) / DECAY_ONE, "dv": p.dv / DECAY_ONE, "v_th": p.v_th / scale, "rho": rho,
        "theta": p.theta / fine,
    }  # fmt: skip
    steps = {"du": register, "dv": register, "v_th": 1 / scale, "rho": register, "theta": 1 / fine}
    return Dynamics(p.size, p.reset, values, steps)


def _compare(name: str, made: Dynamics, now: Dynamics) -> None:
    if made.size != now.size:
        raise _other(name, "size", made.size, now.size)
    if made.reset != now.reset:
        raise _other(name, "reset", repr(made.reset), repr(now.reset))
    for key in NAMES:
        if key == "v_th" and made.reset is None:
            continue  # no spikes: no threshold
        if key == "rho" and not (np.any(made.values["theta"]) and np.any(now.values["theta"])):
            continue  # nothing rises
        a, b = np.asarray(made.values[key], float), np.asarray(now.values[key], float)
        room = max(made.steps[key], now.steps[key])
        beyond = np.abs(a - b) > room * (1 + CLOSE) + CLOSE * np.maximum(np.abs(a), np.abs(b))
        if np.any(beyond):
            at = int(np.flatnonzero(beyond)[0])
            where = key if np.all(beyond) else f"{key} of neuron {at}"
            raise _other(name, where, f"{a[at]:.6g}", f"{b[at]:.6g}")


def _other(name: str, what: str, made: Any, now: Any) -> Invalid:
    return Invalid(
        name, f"expected the population that the plans were made for, with {what} {made}, got one "
        f"with {what} {now}: its traces and signals would be another network's",
        "Make the plans from this network, or from the float network that it was quantised from",
    )  # fmt: skip

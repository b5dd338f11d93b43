"""The scale S of a population on Loihi integers: the largest for which all that it holds fits.

    v_th S <= 131071          64 S x < 2^23  for x = |u|, the |v| that must not saturate, theta
    w_int = w S / 2^e         e in -8..7, the least that holds `growth` times the largest weight

Weights that learn drive more than they first did. |u| is then asked for at their limits,

    64 (sum_plastic 256 2^e x_max + sum_others |w_int| 2^e x_max) / du < 2^23

Source: Lava 0.10 (lava/proc/lif, dense, utils/weightutils), see `neurons.lif_fixed`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NoReturn

import numpy as np

from grasp_plugin.errors import Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.network import Bias, Population, Projection
from grasp_plugin.network.weights import Array, Weight
from grasp_plugin.neurons.lif_fixed import UV_MAX

log = logging.getLogger(__name__)
V_TH_MAX = 131071
DECAY_ONE = 4096
MIXED_MAX, SINGLE_MAX = 254, 255
PLASTIC_MAX = 256  # the largest |w_int| that learning reaches
EXPONENTS = range(-8, 8)


def integers(values: Array, scale: float, limit: int, growth: float = 1.0) -> tuple[Array, int]:
    """(integers, exponent) with values ~ integers 2^exponent / scale, and room to grow.

    limit 254 gives even integers (mixed signs), 255 any (one sign). The exponent is the least that
    fits and that loses nothing when Lava shifts the accumulated sum: -1 for even integers, else 0.
    """
    largest = float(np.max(np.abs(values), initial=0.0)) * scale * growth
    exact_shift = -1 if limit == MIXED_MAX else 0
    exponent = exact_shift
    if largest > 0:
        exponent = max(exact_shift, int(np.ceil(np.log2(largest / limit) - 1e-12)))
    step = 2 if limit == MIXED_MAX else 1
    return (step * np.round(values * scale / (step * 2.0**exponent))).astype(np.int64), exponent


def weight_limit(weight: Weight) -> int:
    """254 for mixed signs, 255 where all weights have one sign."""
    values = W.values(weight)
    mixed = values.size > 0 and values.min() < 0 < values.max()
    return MIXED_MAX if mixed else SINGLE_MAX


@dataclass(frozen=True, eq=False)
class FanIn:
    """A float population and all that drives it.

    Args:
        population: its parameters, (N,) each.
        projections, biases: those into it.
        maxima: by input, the largest absolute value it sends a step; 1 for what is not in it.
        grows: by plastic projection or bias, how many times its largest weight a weight can hold.
    """

    population: Population
    projections: tuple[Projection, ...]
    biases: tuple[Bias, ...]
    maxima: Mapping[str, float]
    grows: Mapping[str, float]

    @property
    def learns(self) -> bool:
        names = [k.name for k in self.projections] + [b.name for b in self.biases]
        return any(name in self.grows for name in names)

    def grown(self, name: str, values: Array) -> float:
        """The largest |weight| of a projection or bias that must fit."""
        return float(np.max(np.abs(values), initial=0.0)) * self.grows.get(name, 1.0)

    @cached_property
    def largest(self) -> list[tuple[float, int]]:
        """(largest |weight| that must fit, limit of its integers) of all that is not 0."""
        found = [
            (
                self.grown(k.name, W.values(k.weight)),
                MIXED_MAX if k.name in self.grows else weight_limit(k.weight),
            )
            for k in self.projections
        ]
        found += [(self.grown(b.name, b.value), MIXED_MAX) for b in self.biases]
        return [entry for entry in found if entry[0] > 0]

    def current(self, drive: Array) -> float:
        """The largest current that a drive (N,) at every step builds up, du as in its register."""
        du = np.clip(np.round(DECAY_ONE * self.population.du), 1, DECAY_ONE) / DECAY_ONE
        return float(np.max(drive / du, initial=0.0))

    def drives(self) -> tuple[Array, Array]:
        """The most that all inputs together can add to, and take from, each neuron in a step."""
        up, down = np.zeros(self.population.size), np.zeros(self.population.size)
        for k in self.projections:
            for side, sign in ((up, 1), (down, -1)):
                side += self._applied(k, np.maximum(sign * W.values(k.weight), 0.0))
        for b in self.biases:
            up += np.maximum(b.value, 0.0)
            down += np.maximum(-b.value, 0.0)
        return up, down

    def learned(self, scale: float) -> float:
        """The largest |u| at an S with every plastic weight at its limit, in LSBs of u."""

        def values(name: str, given: Array) -> Array:
            if name not in self.grows:
                return np.abs(given) * scale
            exponent = integers(given, scale, MIXED_MAX, self.grows[name])[1]
            return np.full(given.shape, PLASTIC_MAX * 2.0**exponent)

        drive = np.zeros(self.population.size)
        for k in self.projections:
            drive += self._applied(k, values(k.name, W.values(k.weight)))
        for b in self.biases:
            drive += values(b.name, b.value)
        return 64 * self.current(drive)

    def _applied(self, k: Projection, values: Array) -> Array:
        inputs = np.full(k.weight.shape[1], self.maxima.get(k.source, 1.0))
        return W.apply(W.with_values(k.weight, values), inputs)


def scale_of(fan: FanIn, headroom: float | None, room: float | None) -> float:
    """S with the room and the headroom wanted, or with less where S would cost bits of the weights.

    Headroom goes first: a membrane saturates, a current wraps. headroom, room: as `quantise`.

    Raises:
        Refused: no S fits.
    """
    p = fan.population
    up, down = fan.drives()
    memory = min(1.0 / max(float(p.dv.min()), 1e-9), 256.0)
    current = (room or 1.0) * fan.current(up + down)
    unchecked = fan.current(down if p.reset in ("value", "refractory1") else up + down)
    reaches = _reaches(p, headroom, memory, current, unchecked)
    largest = max((fan.grown(k.name, W.values(k.weight)) for k in fan.projections), default=0.0)
    learns = room is None and fan.learns
    times = () if not learns else (memory, 1.0) if p.reset in (None, "none") else (1.0,)
    for part, reach in product((*times, 0.0), reaches):
        bounds = _bounds(p, current, reach)
        scale = _largest(fan, bounds, part)
        if scale and (largest * scale >= MIXED_MAX / 2 or (learns and not largest)):
            break
    if not scale:
        _refused(fan, bounds)
    if learns and fan.learned(scale) >= UV_MAX:
        log.warning(
            "%s: its plastic weights may grow until a current wraps at 2^23 and changes its sign; "
            "room for that would cost them bits: pass room to quantise, or less growth", p.name,
        )  # fmt: skip
    return scale


def _reaches(
    p: Population, headroom: float | None, memory: float, current: float, unchecked: float
) -> list[float]:
    """The |v| that must not saturate, the best first."""
    threshold = float(np.max(p.v_th + p.theta, initial=0.0))
    if p.reset in (None, "none"):
        return [current * memory]
    if headroom is not None:
        return [headroom * threshold, threshold]
    worst = unchecked * memory
    return [min(max(worst, 8 * threshold), 64 * threshold), 8 * threshold, threshold]


def _scales(fan: FanIn) -> list[float]:
    """S for which the largest weight fills its register, one an exponent, falling."""
    thresholds = float(np.max(np.abs(fan.population.v_th)))
    value, limit = max(fan.largest, default=(max(thresholds, 1.0), MIXED_MAX))
    return [limit * 2.0**exponent / value for exponent in reversed(EXPONENTS)]


def _largest(fan: FanIn, bounds: Mapping[str, tuple[float, float]], times: float) -> float | None:
    """The largest S for which everything fits, `times` the current of learned weights too."""
    for scale in _scales(fan):
        fits = all(value * scale <= most for value, most in bounds.values()) and all(
            value * scale <= limit * 2.0 ** max(EXPONENTS) for value, limit in fan.largest
        )
        if fits and (not times or times * fan.learned(scale) < UV_MAX):
            return scale
    return None


def _refused(fan: FanIn, bounds: Mapping[str, tuple[float, float]]) -> NoReturn:
    worst = max(bounds, key=lambda key: bounds[key][0] / bounds[key][1])
    value, most = bounds[worst]
    raise Refused(
        fan.population.name,
        f"expected a scale that fits Loihi, got none: {worst} needs {value * _scales(fan)[-1]:.4g} "
        f"of at most {most} even with weight exponent {min(EXPONENTS)}",
        "Rescale the weights and thresholds of this population, or run in float",
    )


def _bounds(p: Population, current: float, reach: float) -> dict[str, tuple[float, float]]:
    """What grows with S, per unit of S, and the most it may be.

    Args:
        current: the largest |u|.
        reach: the |v| that must not saturate.
    """
    if np.any(p.v_th < 0):
        raise Refused(
            p.name,
            f"expected v_threshold >= v_reset on Loihi, got {p.v_th.min():.6g} above it",
            "Loihi thresholds are unsigned; run in float",
        )
    return {
        "v (headroom)": (reach * 64, float(UV_MAX)),
        "v_th": (float(np.max(p.v_th, initial=0.0)), V_TH_MAX + 0.999),
        "u (sum of |w|)": (current * 64, UV_MAX - 1.0),
        "theta": (float(np.max(p.theta, initial=0.0)) * 64, UV_MAX - 1.0),
        "drive": (float(np.max(np.abs(p.drive), initial=0.0)) * 64, 4095 * 2.0**7),
        "v_init": (float(np.max(np.abs(p.v_init), initial=0.0)) * 64, UV_MAX - 1.0),
    }

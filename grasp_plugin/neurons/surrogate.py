"""Surrogate derivatives, in place of that of the spike H(x), x = membrane - threshold.

    class            first sigma'(x)                     smooth sigma(x), its primitive
    FastSigmoid(k)   1 / (k |x| + 1)^2                   x / (k |x| + 1)
    Boxcar(w)        1 if |x| <= w else 0                clip(x, -w, w)
    Triangular(h, w) h max(0, 1 - |x| / w)               h x (1 - |x| / 2w), constant beyond w
    Sigmoid(k)       k sg(kx) (1 - sg(kx))               sg(kx),  sg(x) = 1 / (1 + exp(-x))
    Arctan(k)        k/2 / (1 + (pi k x / 2)^2)          atan(pi k x / 2) / pi + 1/2

`second` is the derivative of `first` wherever it exists; at a kink (0, +-w) it is the mean of the
two one-sided derivatives at 0 and 0 outside, and Boxcar's is 0 everywhere. None of these functions
calls H, so they serve a learning rule that sees only the membrane. `smooth` is the forward
function to use in finite differences: with H itself they lose all curvature.

References: FastSigmoid k = 10 and Boxcar w = 1/2: Kaiser et al., Front. Neurosci. 14:424, 2020
(decolle/base_model.py:25-53; the paper has the boxcar). Triangular h = 0.3: Quintana et al., 2024
(ETLP models.py:8-30). Sigmoid k = 4: Xiao et al., NeurIPS 2022 (surrogate.py:361-376).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from grasp_plugin.errors import Invalid

Array = Any  # a NumPy array or torch tensor


class Surrogate(ABC):
    """A derivative for the spike function; elementwise, in x's own dtype."""

    @abstractmethod
    def first(self, x: Array) -> Array:
        """sigma'(x)."""

    @abstractmethod
    def second(self, x: Array) -> Array:
        """sigma''(x)."""

    @abstractmethod
    def smooth(self, x: Array) -> Array:
        """A primitive of sigma'."""


def _positive(name: str, **fields: float) -> None:
    for field, value in fields.items():
        if not 0 < value < math.inf:
            raise Invalid(name, f"expected {field} > 0, got {value}", f"Pass a positive {field}")


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """sigma'(x) = 1 / (k |x| + 1)^2, k = `slope` (dimensionless).

    Raises:
        Invalid: slope <= 0.
    """

    slope: float = 10.0

    def __post_init__(self) -> None:
        _positive("FastSigmoid", slope=self.slope)

    def first(self, x: Array) -> Array:
        return 1 / (self.slope * abs(x) + 1) ** 2

    def second(self, x: Array) -> Array:
        sign = array_namespace(x).sign(x)
        return -2 * self.slope * sign / (self.slope * abs(x) + 1) ** 3

    def smooth(self, x: Array) -> Array:
        return x / (self.slope * abs(x) + 1)


@dataclass(frozen=True)
class Boxcar(Surrogate):
    """sigma'(x) = 1 on [-w, w], w = `half_width`; on (-w, w] with `closed_left=False`.

    Raises:
        Invalid: half_width <= 0.
    """

    half_width: float = 0.5
    closed_left: bool = True

    def __post_init__(self) -> None:
        _positive("Boxcar", half_width=self.half_width)

    def first(self, x: Array) -> Array:
        left = x >= -self.half_width if self.closed_left else x > -self.half_width
        xp = array_namespace(x)
        return xp.astype(left & (x <= self.half_width), x.dtype)

    def second(self, x: Array) -> Array:
        return array_namespace(x).zeros_like(x)

    def smooth(self, x: Array) -> Array:
        return array_namespace(x).clip(x, -self.half_width, self.half_width)


@dataclass(frozen=True)
class Triangular(Surrogate):
    """sigma'(x) = h max(0, 1 - |x| / w), h = `height`, w = `half_width`.

    Raises:
        Invalid: height or half_width <= 0.
    """

    height: float = 0.3
    half_width: float = 1.0

    def __post_init__(self) -> None:
        _positive("Triangular", height=self.height, half_width=self.half_width)

    def first(self, x: Array) -> Array:
        inside = array_namespace(x).clip(abs(x) / self.half_width, None, 1.0)
        return self.height * (1 - inside)

    def second(self, x: Array) -> Array:
        xp = array_namespace(x)
        inside = xp.astype(abs(x) < self.half_width, x.dtype)
        return -self.height / self.half_width * xp.sign(x) * inside

    def smooth(self, x: Array) -> Array:
        x = array_namespace(x).clip(x, -self.half_width, self.half_width)
        return self.height * x * (1 - abs(x) / (2 * self.half_width))


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """sigma'(x) = k sg(kx) (1 - sg(kx)), k = `slope`.

    Raises:
        Invalid: slope <= 0.
    """

    slope: float = 4.0

    def __post_init__(self) -> None:
        _positive("Sigmoid", slope=self.slope)

    def first(self, x: Array) -> Array:
        e = array_namespace(x).exp(-self.slope * abs(x))  # sg (1 - sg), exact in the tails
        return self.slope * e / (1 + e) ** 2

    def second(self, x: Array) -> Array:
        return -self.slope * self.first(x) * array_namespace(x).tanh(x * (self.slope / 2))

    def smooth(self, x: Array) -> Array:
        return (1 + array_namespace(x).tanh(x * (self.slope / 2))) / 2  # exp would overflow


@dataclass(frozen=True)
class Arctan(Surrogate):
    """sigma'(x) = k/2 / (1 + (pi k x / 2)^2), k = `slope`.

    Raises:
        Invalid: slope <= 0.
    """

    slope: float = 2.0

    def __post_init__(self) -> None:
        _positive("Arctan", slope=self.slope)

    def first(self, x: Array) -> Array:
        return self.slope / 2 / (1 + (math.pi / 2 * self.slope * x) ** 2)

    def second(self, x: Array) -> Array:
        z = math.pi / 2 * self.slope * x
        return -(math.pi / 2) * self.slope**2 * z / (1 + z**2) ** 2

    def smooth(self, x: Array) -> Array:
        return array_namespace(x).atan(math.pi / 2 * self.slope * x) / math.pi + 0.5

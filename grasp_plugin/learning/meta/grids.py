"""Fixed-point parameters: rounded forward, straight through backward.

    Q(x) = s clip(R(x / (s 2^-f)) 2^-f, -2^(w-1-f), 2^(w-1-f) - 2^-f)
    R    nearest: ties to even;   stochastic: floor(x) + [U[0, 1) < x - floor(x)], whose mean is x
    dQ/dx = 1 inside the range, 0 where x saturates

w / f = 16/15, 8/7, 4/3, 2/1 fill [-s, s) with 2^w values; 3/1 fills [-2s, 2s).

References:
    specs/meta-learning.md 1.2; kennetms/snn_maml utils.py:194-248 (qtorch's FixedPoint).
Departures:
    The gradient is not rounded too; a grid may be scaled, by a power of two to stay one of
    fixed-point numbers, since layers differ in the size of their weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from grasp_plugin.errors import Invalid

ROUNDINGS = ("nearest", "stochastic")


@dataclass(frozen=True)
class Grid:
    """A fixed-point grid.

    Args:
        symbol  argument  unit  shape
        w       word      bits  ()
        f       fraction  bits  ()
        s       scale     -     ()
        R       rounding  -     "nearest" or "stochastic" (torch's default generator; under vmap
                                every task draws its own)

    Raises:
        Invalid: word < 2 or fraction < 0 or not whole; scale <= 0; an unknown rounding.

    Example:
        >>> Grid(4, 3)(torch.tensor([0.07, 0.3, 2.0, -2.0]))
        tensor([ 0.1250,  0.2500,  0.8750, -1.0000])
    """

    word: int
    fraction: int
    scale: float = 1.0
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        whole = all(isinstance(n, Integral) for n in (self.word, self.fraction))
        if not whole or self.word < 2 or self.fraction < 0 or not 0 < self.scale < math.inf:
            raise Invalid(
                "Grid", f"expected whole word >= 2 and fraction >= 0, and scale > 0, got "
                f"{self.word}, {self.fraction}, {self.scale}", "Pass e.g. Grid(8, 7)",
            )  # fmt: skip
        if self.rounding not in ROUNDINGS:
            raise Invalid(
                "Grid", f"expected rounding in {ROUNDINGS}, got {self.rounding!r}", "Pick"
            )

    @property
    def step(self) -> float:
        """The distance of two values."""
        return self.scale * 2.0**-self.fraction

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the largest value."""
        top = self.scale * 2.0 ** (self.word - 1 - self.fraction)
        return -top, top - self.step

    def __call__(self, x: Tensor) -> Tensor:
        """Q(x), in x's dtype and shape; what is on the grid stays as it is."""
        low, high = self.limits
        scaled = x.detach() / self.step
        whole = torch.round(scaled) if self.rounding == "nearest" else _either(scaled)
        value = (whole * self.step).clamp(low, high)
        through = x.clamp(low - self.step / 2, high + self.step / 2)
        return value + (through - through.detach())


def _either(scaled: Tensor) -> Tensor:
    """The whole number below or above, so that the mean is `scaled`; whole numbers stay."""
    low = torch.floor(scaled)
    wide = torch.promote_types(scaled.dtype, torch.float32)  # a draw as coarse as x would be biased
    up = torch.rand_like(scaled, dtype=wide) < scaled - low
    return low + up.to(scaled.dtype)


def grid_of(bits: int, weight: Tensor, *, rounding: str = "nearest", spread: float = 4.0) -> Grid:
    """The grid of `bits` whose range is the power of two above `spread` root mean squares.

    Raises:
        Invalid: as `Grid`; weights that are all zero or not finite.
    """
    size = spread * float(weight.detach().square().mean().sqrt())
    if not 0 < size < math.inf:
        raise Invalid("grid_of", f"expected weights of some size, got {size}", "Pass a Grid")
    return Grid(bits, bits - 1, 2.0 ** math.ceil(math.log2(size)), rounding)

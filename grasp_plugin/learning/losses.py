"""Losses of one step, with their gradients: no autograd runs in an online rule.

All arrays (batch, classes); everything is dimensionless.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from grasp_plugin.errors import Invalid

Array = Any  # a NumPy array or torch tensor


class Loss(ABC):
    """A loss of logits y and target, with m = `mask` (batch, 1): 0 where there is no target."""

    @abstractmethod
    def value(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        """The scalar loss."""

    @abstractmethod
    def gradient(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        """dL/dy (batch, classes), with the mean's 1/B in it."""

    @abstractmethod
    def curvature(self, y: Array, target: Array, v: Array, mask: Array = 1.0) -> Array:
        """(d^2 L / dy^2) v (batch, classes), Lambda v of `learning.curvature`; L is convex in y."""


@dataclass(frozen=True)
class SmoothL1(Loss):
    """L = mean over B C of d^2 / 2 if |d| < 1 else |d| - 1/2,   d = m (y - target)."""

    def value(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        xp = array_namespace(y)
        d = (y - target) * mask
        return xp.mean(xp.where(abs(d) < 1, d * d / 2, abs(d) - 0.5))

    def gradient(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        xp, d = array_namespace(y), (y - target) * mask
        one = xp.ones_like(d)
        return xp.minimum(xp.maximum(d, -one), one) * mask / math.prod(y.shape)

    def curvature(self, y: Array, target: Array, v: Array, mask: Array = 1.0) -> Array:
        inside = array_namespace(y).astype(abs((y - target) * mask) < 1, y.dtype)
        return inside * mask * mask * v / math.prod(y.shape)


@dataclass(frozen=True)
class MSE(Loss):
    """L = mean over B C of d^2 (without the 1/2), d = m (y - target)."""

    def value(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        d = (y - target) * mask
        return array_namespace(y).mean(d * d)

    def gradient(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        return 2 * (y - target) * mask * mask / math.prod(y.shape)

    def curvature(self, y: Array, target: Array, v: Array, mask: Array = 1.0) -> Array:
        return 2 * mask * mask * v / math.prod(y.shape)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """L = -1/B sum_b m_b sum_c target_bc log softmax(y_b)_c."""

    def value(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        xp = array_namespace(y)
        shifted = y - xp.max(y, axis=1, keepdims=True)
        log_p = shifted - xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True))
        return -xp.sum(mask * target * log_p) / y.shape[0]

    def gradient(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        xp = array_namespace(y)
        e = xp.exp(y - xp.max(y, axis=1, keepdims=True))
        p = e / xp.sum(e, axis=1, keepdims=True)
        return mask * (p * xp.sum(target, axis=1, keepdims=True) - target) / y.shape[0]

    def curvature(self, y: Array, target: Array, v: Array, mask: Array = 1.0) -> Array:
        xp = array_namespace(y)
        e = xp.exp(y - xp.max(y, axis=1, keepdims=True))
        p = e / xp.sum(e, axis=1, keepdims=True)
        spread = p * (v - xp.sum(p * v, axis=1, keepdims=True))
        return mask * xp.sum(target, axis=1, keepdims=True) * spread / y.shape[0]


@dataclass(frozen=True)
class Weighted(Loss):
    """L = sum_k c_k L_k, from pairs (c_k, L_k)."""

    terms: tuple[tuple[float, Loss], ...]

    def value(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        return sum(c * loss.value(y, target, mask) for c, loss in self.terms)

    def gradient(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        return sum(c * loss.gradient(y, target, mask) for c, loss in self.terms)

    def curvature(self, y: Array, target: Array, v: Array, mask: Array = 1.0) -> Array:
        return sum(c * loss.curvature(y, target, v, mask) for c, loss in self.terms)


def one_hot(labels: Array, classes: int, like: Array, *, node: str = "labels") -> Array:
    """Labels (batch,) as rows of 0 and 1 (batch, classes), in like's dtype.

    Raises:
        Invalid: a label outside 0..classes-1 (named with its place), or not an integer.
    """
    xp = array_namespace(like)
    labels = xp.asarray(labels, device=device(like))
    if not xp.isdtype(labels.dtype, "integral"):
        raise Invalid(node, f"expected integer labels, got {labels.dtype}", "Pass class indices")
    for place, label in enumerate(labels.tolist()):
        if not 0 <= label < classes:
            raise Invalid(
                node,
                f"expected labels in 0..{classes - 1}, got {label} at position {place}",
                f"Raise classes (now {classes}) or mend the label",
            )
    hot = labels[:, None] == xp.arange(classes, device=device(like))[None, :]
    return xp.astype(hot, like.dtype)


def ottt_loss(steps: int, mse_share: float = 0.0) -> Loss:
    """((1 - m) CE + m MSE) / T, m = `mse_share`, T = `steps`: OTTT's loss of one step."""
    terms = ((1 - mse_share) / steps, CrossEntropy()), (mse_share / steps, MSE())
    return Weighted(terms if mse_share else terms[:1])

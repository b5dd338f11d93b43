"""A rule over the shared weights of a convolution: the rule of a matrix, on patches.

    delta_kernel[o, k] = sum_{b, p} left[b, o, p] patch[b, p, k]

p runs over output positions, k over (input channel, *kernel offset); a patch is the trace seen
through one position. Rank-1 traces only: the trace is kept once for each input, not for each patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from grasp_plugin.errors import Refused
from grasp_plugin.learning.deltas import Array, Delta, Outer
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.rule import Factors, Plan, Rule, ThreeFactor
from grasp_plugin.learning.states import State
from grasp_plugin.network.weights import Conv


@dataclass(frozen=True, eq=False)
class Convolved(Rule):
    """`rule` for a convolution. Weight and delta are [C_out, C_in prod(K)], the kernel as a matrix.

    Factors as for the matrix over flattened neurons: pre (batch, C_in prod(S)), the others
    (batch, C_out prod(S')).

    Raises:
        Refused: groups; a per-synapse trace; a rule that is no `ThreeFactor`.
    """

    rule: Rule
    conv: Conv

    def __post_init__(self) -> None:
        inner = self.rule.rule if isinstance(self.rule, Plan) else self.rule
        if not isinstance(inner, ThreeFactor) or not inner.trace.rank_one or self.conv.groups != 1:
            raise Refused(
                "Convolved",
                f"expected a rank-1 trace and one group, got {inner}, {self.conv.groups} groups",
                "Use a subtractive reset, or dense weights",
            )
        object.__setattr__(self, "_patches", patches(self.conv))

    def init(self, weight: Array, *, batch: int = 1) -> State:
        if not isinstance(self.rule, Plan):
            return self.rule.init(self._as_matrix(weight), batch=batch)
        state = self.rule.init(weight, batch=batch)
        return {**state, "rule": self.rule.rule.init(self._as_matrix(weight), batch=batch)}

    def update(
        self, factors: Factors, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        return _update(self, factors, state, self._as_matrix(weight), weight, **extras)

    def shared(self, outer: Outer) -> Outer:
        """The delta of the matrix, summed over the synapses that share a weight."""
        xp, positions = array_namespace(outer.right), self._patches.shape[0]  # type: ignore[attr-defined]
        batch, channels = outer.left.shape[0], self.conv.kernel.shape[0]
        left = xp.reshape(outer.left, (batch, channels, positions))
        left = xp.reshape(xp.permute_dims(left, (0, 2, 1)), (batch * positions, channels))
        padded = xp.concat([outer.right, xp.zeros_like(outer.right[:, :1])], axis=1)
        index = xp.asarray(self._patches.ravel(), device=device(padded))  # type: ignore[attr-defined]
        right = xp.reshape(xp.take(padded, index, axis=1), (batch * positions, -1))
        return Outer(left, right, outer.scale)

    def curvature(self, product: Callable[..., Array]) -> Callable[..., Array]:
        """M in the coordinates of a shared delta: u is (batch * positions, C_out)."""
        positions = self._patches.shape[0]  # type: ignore[attr-defined]

        def shared(u: Array, kind: str = "gn") -> Array:
            xp, channels = array_namespace(u), u.shape[1]
            by_position = xp.reshape(u, (-1, positions, channels))
            neurons = xp.permute_dims(by_position, (0, 2, 1))
            bent = product(xp.reshape(neurons, (-1, channels * positions)), kind)
            bent = xp.reshape(bent, (-1, channels, positions))
            return xp.reshape(xp.permute_dims(bent, (0, 2, 1)), u.shape)

        return shared

    def _as_matrix(self, weight: Array) -> Array:
        """Something of the shape that the matrix over neurons would have, without its memory."""
        xp = array_namespace(weight)
        return xp.broadcast_to(weight[:1, :1], self.conv.shape)


@dataclass(frozen=True)
class SharedBias(Rule):
    """`rule` of a bias that all neurons of a channel share: delta summed over positions.

    Raises:
        Refused: a scheduler of writes, which would write it for some of the neurons.
    """

    rule: Rule
    channels: int

    def __post_init__(self) -> None:
        if any(isinstance(t, GRASP) for t in getattr(self.rule, "transforms", ())):
            raise Refused(
                "SharedBias", "expected every neuron of a channel to get the same bias, got GRASP, "
                "which may write some of them", "Leave this bias's plan without GRASP",
            )  # fmt: skip

    def init(self, weight: Array, *, batch: int = 1) -> State:
        return self.rule.init(weight, batch=batch)

    def update(
        self, factors: Factors, state: State, weight: Array, **extras: Any
    ) -> tuple[Delta, State]:
        return _update(self, factors, state, weight, weight, **extras)

    def shared(self, outer: Outer) -> Outer:
        """The delta of single neurons, summed over those that share a bias."""
        xp, shape = array_namespace(outer.left), outer.left.shape
        by_channel = xp.reshape(outer.left, (shape[0], self.channels, -1))
        total = xp.sum(by_channel, axis=2, keepdims=True)
        left = xp.reshape(xp.broadcast_to(total, by_channel.shape), shape)
        return Outer(left, outer.right, outer.scale)


def _update(
    own: Convolved | SharedBias,
    factors: Factors,
    state: State,
    seen: Array,
    weight: Array,
    **extras: Any,
) -> tuple[Delta, State]:
    """The rule on `seen`, its delta shared, then the plan's transforms on the shared delta."""
    plan = own.rule if isinstance(own.rule, Plan) else Plan(own.rule)
    inner = state["rule"] if isinstance(own.rule, Plan) else state
    delta, inner = plan.rule.update(factors, inner, seen, **extras)
    delta = {**delta, "weight": own.shared(delta["weight"])}
    if not isinstance(own.rule, Plan):
        return delta, inner
    if isinstance(own, Convolved) and factors.curvature is not None:
        factors = replace(factors, curvature=own.curvature(factors.curvature))
    delta, after = plan.pass_on(delta, factors, state["transforms"], weight, **extras)
    return delta, {"rule": inner, "transforms": after}


def core_of(rule: Rule) -> Rule:
    """The plan inside a `Convolved` or `SharedBias`, or the rule itself."""
    return rule.rule if isinstance(rule, (Convolved, SharedBias)) else rule


def patches(conv: Conv) -> Any:
    """(output positions, C_in prod(K)) indices into a flat input; prod(in) where it is padding."""
    spatial_in, spatial_out = conv.in_shape[1:], conv.out_shape[1:]
    offsets = list(product(*(range(k) for k in conv.kernel.shape[2:])))
    flat = np.full((math.prod(spatial_out), conv.in_shape[0], len(offsets)), -1, np.int64)
    grid = np.indices(spatial_out).reshape(len(spatial_out), -1)
    for j, offset in enumerate(offsets):
        where = [
            g * stride + k * step - low
            for g, stride, k, step, (low, _) in zip(
                grid, conv.stride, offset, conv.dilation, conv.padding, strict=True
            )
        ]
        inside = np.all(
            [(w >= 0) & (w < n) for w, n in zip(where, spatial_in, strict=True)], axis=0
        )
        place = np.ravel_multi_index([w[inside] for w in where], spatial_in)
        for c in range(conv.in_shape[0]):
            flat[inside, c, j] = c * math.prod(spatial_in) + place
    flat = flat.reshape(len(flat), -1)
    return np.where(flat < 0, math.prod(conv.in_shape), flat)


def conv_back(kernel: Array, places: Any, error: Array, inputs: int) -> Array:
    """W^T error of a convolution for one sample: (C_out prod(S'),) -> (inputs,)."""
    matrix = kernel.reshape(len(kernel), -1)
    back = np.zeros(inputs + 1)
    np.add.at(back, places, error.reshape(len(matrix), -1).T @ matrix)
    return np.asarray(back[:-1])

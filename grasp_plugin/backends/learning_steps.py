"""One step of learning, in place, on the arrays that the compiled network step reads.

`FloatSteps` and `FixedSteps` differ in what a plan is: a `Rule` on floats, `FixedSynapses` on
integers. Signals are floats in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from grasp_plugin.backends.live_weights import LiveWeights
from grasp_plugin.learning.convolved import conv_back, patches
from grasp_plugin.learning.deltas import Delta
from grasp_plugin.learning.fixed import FixedSynapses
from grasp_plugin.learning.fixed_plan import fixed_plans
from grasp_plugin.learning.kernels import add_delta
from grasp_plugin.learning.network_curvature import StepCurvature
from grasp_plugin.learning.online import OnlineLearner
from grasp_plugin.learning.spec import Learning, Seen
from grasp_plugin.learning.states import State
from grasp_plugin.network.network import Network
from grasp_plugin.network.weights import Array, Conv


class FloatSteps:
    """The plans of a float network.

    Args:
        network, learning: what learns.
        live: its weights, written in place.
    """

    def __init__(self, network: Network, learning: Learning, live: LiveWeights) -> None:
        self.learner = OnlineLearner(network, learning, self._below)
        self._live = live
        self._plastic = {n: live.arrays[n] for n in learning.plans}
        self._back = _Back()
        self._state = self.learner.init(self._plastic, 1)

    @property
    def signals(self) -> State:
        """Fixed matrices and counters of the signals, by population."""
        return self._state["signals"]  # type: ignore[no-any-return]

    @signals.setter
    def signals(self, value: State) -> None:
        self._state = {**self._state, "signals": value}

    @property
    def plans(self) -> State:
        """States of the plans, by plan."""
        return self._state["plans"]  # type: ignore[no-any-return]

    @plans.setter
    def plans(self, value: State) -> None:
        self._state = {**self._state, "plans": value}

    def rest(self) -> None:
        """Before a new sequence."""
        self._state = self.learner.rest(self._state, self._plastic, 1)

    def step(self, seen: Seen, target: Array, mask: Array, t: int) -> None:
        """Learn from step t."""
        deltas, self._state = self.learner.step(seen, target, mask, self._state, self._live.arrays)
        self.learner.check(deltas, self._state, t)
        for name, delta in deltas.items():
            self._add(name, delta)

    def flush(self) -> None:
        """At the end of a sequence: the updates, and reports to a price, that come late."""
        for name, held in self.learner.pending(self._state).items():
            for delta in held:
                self._add(name, delta)
        self._state = self.learner.ended(self._state)

    def _add(self, name: str, delta: Delta) -> None:
        if add_delta(self._plastic[name], delta):
            self._live.written(name)

    def _below(self, name: str, weight: Array, error: Array) -> Any:
        return self._back(name, self.learner.projections[name].weight, weight, error)


class FixedSteps:
    """The plans of a network in Loihi's integers.

    Args:
        network, learning, live: as `FloatSteps`.
        options: error_max, rate_max and seed of `fixed_plans`.
    """

    def __init__(
        self, network: Network, learning: Learning, live: LiveWeights, options: Mapping[str, Any]
    ) -> None:
        self.learner = OnlineLearner(network, learning, self._below)
        self._live = live
        plans = fixed_plans(network, learning, **options)
        self.synapses = {
            name: FixedSynapses(plan, _matrix(live.arrays[name]), self._conv(name))
            for name, plan in plans.items()
        }
        self._bent = [  # the plans that ask for the curvature, or note the sharpness
            name for name, plan in plans.items()
            if plan.grasp is not None and (plan.grasp.bends or plan.grasp.series)
        ]  # fmt: skip
        self._back = _Back()
        self.signals: State = self.learner.initial_signals(np.zeros(1))

    def rest(self) -> None:
        """Before a new sequence."""
        for synapses in self.synapses.values():
            synapses.rest()

    def step(self, seen: Seen, target: Array, mask: Array, t: int) -> None:
        """Learn from step t."""
        weights = {**self._live.arrays, **{n: s.fresh for n, s in self.synapses.items()}}
        before, learner = self.signals, self.learner
        thirds, self.signals = learner.third_factors(seen, target, mask, before, weights)
        factors = {name: learner.factors(name, seen, thirds) for name in self.synapses}
        if self._bent:
            bent = StepCurvature(
                learner.network, learner.learning, seen, target, mask, self._in_float(weights),
                before, self.signals, thirds,
            )  # fmt: skip
            for name in self._bent:
                plan = learner.learning.plans[name]
                curvature = bent.of(learner.target_of(name), plan, factors[name])
                factors[name] = replace(factors[name], curvature=curvature)
        for name, synapses in self.synapses.items():
            if synapses.step(factors[name]):
                self._live.written(name)

    def _in_float(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Copies of the weights that carry an error down, as they are at this step, in float."""
        return {name: weights[name] * self._unit(name) for name in self.learner.carriers}

    def _unit(self, name: str) -> float:
        """Float per weight unit."""
        k = self.learner.projections[name]
        return 2.0**k.weight_exp / float(self.learner.network[k.target].scale or 1.0)

    def flush(self) -> None:
        """At the end of a sequence: the writes that come late."""
        for synapses in self.synapses.values():
            synapses.flush()
        for name in self.synapses:
            self._live.written(name)

    def _conv(self, name: str) -> Conv | None:
        k = self.learner.projections.get(name)
        return k.weight if k is not None and isinstance(k.weight, Conv) else None

    def _below(self, name: str, weight: Array, error: Array) -> Any:
        shape = self.learner.projections[name].weight
        return self._back(name, shape, weight, error) * self._unit(name)


class _Back:
    """W^T error of one sample, (1, N_o) -> (1, N_i); keeps the index of a convolution's patches."""

    def __init__(self) -> None:
        self._patches: dict[str, Array] = {}

    def __call__(self, name: str, shape: Any, weight: Array, error: Array) -> Array:
        if not isinstance(shape, Conv):
            return np.asarray(error @ weight)
        if name not in self._patches:
            self._patches[name] = patches(shape)
        back = conv_back(weight, self._patches[name], error[0], shape.shape[1])
        return np.asarray(back[None])


def _matrix(weight: Array) -> Array:
    return weight if weight.ndim == 2 else weight.reshape(len(weight), -1)

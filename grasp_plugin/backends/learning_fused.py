"""Learning on the `fused` back end: the compiled step of `network.packed`, then the learner's step.

Weights are written where the compiled step reads them. One sample after another, without Lava.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from grasp_plugin.backends.fused import FusedSession
from grasp_plugin.backends.learning_steps import FixedSteps, FloatSteps
from grasp_plugin.backends.live_weights import LiveWeights
from grasp_plugin.learning.spec import Learning, Seen, may_rest
from grasp_plugin.learning.states import State, leaves, with_leaves
from grasp_plugin.network.network import Network
from grasp_plugin.network.packed import PackedState, advance, pack
from grasp_plugin.network.weights import Array
from grasp_plugin.runtime.learning import LearningSession, lasting_of, placed, with_states
from grasp_plugin.runtime.session import (
    Floats,
    Session,
    in_float_units,
    require_whole_numbers,
)


class FusedLearning(LearningSession):
    """`build(network, backend="fused", plans=...)`, float or Loihi integers.

    Args:
        options: for integers: error_max, rate_max and seed of `learning.fixed_plan.fixed_plans`.
    """

    def __init__(self, network: Network, learning: Learning, **options: Any) -> None:
        super().__init__(network, learning)
        self._packed = pack(network)
        live = LiveWeights(network, self._packed)
        self._live = live
        self._steps: FloatSteps | FixedSteps
        if network.precision == "loihi":
            self._steps = FixedSteps(network, learning, live, options)
        else:
            if options:
                raise TypeError(f"expected options in integers only, got {', '.join(options)}")
            self._steps = FloatSteps(network, learning, live)
        self._learner = self._steps.learner
        self._plastic = {n: live.arrays[n] for n in learning.plans}

    def clipped(self) -> dict[str, dict[str, int]]:
        """In integers, by plan: how many traces, errors and weights met their limit so far."""
        if isinstance(self._steps, FloatSteps):
            return {}
        return {name: dict(s.clipped) for name, s in self._steps.synapses.items()}

    def _learn(
        self, inputs: dict[str, Floats], target: Floats, mask: Floats, progress: bool
    ) -> tuple[Floats, dict[str, float]]:
        from tqdm import tqdm

        require_whole_numbers(self.network, inputs)
        x = np.concatenate([inputs[name] for name in self._packed.input_slices], axis=2)
        steps, batch = x.shape[:2]
        logits = np.empty(target.shape)
        sums = dict.fromkeys((p.name for p in self.network.populations), 0.0)
        with tqdm(total=steps * batch, disable=not progress, desc="learn", leave=False) as bar:
            for b in range(batch):
                forward = PackedState(self._packed)
                self._steps.rest()
                for t in range(steps):
                    seen = self._advance(forward, x[t, b])
                    logits[t, b] = self._learner.logits(seen.output, self._steps.signals)[0]
                    self._steps.step(seen, target[t, b][None], mask[t, b][None], t)
                    for name, value in seen.output.items():
                        sums[name] += float(value.sum())
                    bar.update()
                self._steps.flush()
        return logits, sums

    def _advance(self, forward: PackedState, x: Array) -> Seen:
        """One step of the network, and what the learner may see of it, in float units."""
        t, packed = forward.step, self._packed
        margin = np.empty((1, packed.neurons), packed.v_init.dtype)
        ready = (forward.wait <= 0).astype(np.float64)[None]
        cleared = 1.0 - forward.s[None]
        out, _, _ = advance(packed, forward, x[None], margin=margin)
        output: dict[str, Array] = {}
        margins: dict[str, Array] = {}
        for p in self.network.populations:
            mine = packed.slices[p.name]
            spikes, value = out[:, mine], margin[:, mine]
            output[p.name] = spikes.astype(np.float64) if p.spiking else in_float_units(p, spikes)
            margins[p.name] = value / (1.0 if p.scale is None else 64.0 * p.scale)
        active = {
            p.name: (ready * cleared if p.reset == "refractory1" else ready)[
                :, packed.slices[p.name]
            ]
            for p in self.network.populations
            if may_rest(p)
        }
        return Seen(self._pre(forward, t), output, margins, active)

    def _pre(self, forward: PackedState, t: int) -> Mapping[str, Array]:
        """What reaches the synapses of each plan at step t, from the compiled step's history."""
        pre, packed, learner = {}, self._packed, self._learner
        for name in learner.rules:
            if name in learner.biases:
                pre[name] = np.full((1, 1), float(t >= learner.biases[name].onset_steps))
                continue
            k = learner.projections[name]
            row = forward.history[(t - k.min_delay) % packed.depth] * (t >= k.min_delay)
            if k.source in packed.input_slices:
                part = packed.input_slices[k.source]
            else:
                own = packed.slices[k.source]
                part = slice(packed.inputs + own.start, packed.inputs + own.stop)
            pre[name] = row[None, part]
        return pre

    def _runner(self) -> Session:
        return FusedSession(self.learned())

    def weights(self) -> dict[str, Array]:
        return {name: np.array(weight, order="C") for name, weight in self._plastic.items()}

    def _set_weights(self, weights: dict[str, Array]) -> None:
        for name, value in weights.items():
            self._plastic[name][...] = value
            self._live.written(name)

    def _memory(self) -> dict[str, Array]:
        out = dict(leaves(self._steps.signals))
        if isinstance(self._steps, FixedSteps):
            out |= {f"draws/{n}": np.array([s.draws]) for n, s in self._steps.synapses.items()}
        return out

    def _set_memory(self, arrays: dict[str, Array]) -> None:
        self._steps.signals = with_leaves(self._steps.signals, arrays)
        if isinstance(self._steps, FixedSteps):
            for name, synapses in self._steps.synapses.items():
                synapses.draws = int(arrays[f"draws/{name}"][0])

    def _lasting(self) -> dict[str, State]:
        plans, steps = self.learning.plans.items(), self._steps
        if isinstance(steps, FixedSteps):
            held = {n: placed(p, steps.synapses[n].transforms) for n, p in plans}
        else:
            held = {n: lasting_of(p, steps.plans[n]) for n, p in plans}
        return {name: state for name, state in held.items() if state}

    def _set_lasting(self, states: dict[str, State]) -> None:
        for name, state in states.items():
            if isinstance(self._steps, FixedSteps):
                self._steps.synapses[name].transforms = next(iter(state.values()))
            else:
                plans = self._steps.plans
                self._steps.plans = {**plans, name: with_states(plans[name], state)}

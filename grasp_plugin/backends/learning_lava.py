"""Learning on the `lava` back end: a compiled graph of neurons, plastic connections and signals."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from grasp_plugin.backends.lava import LavaSession, connected_parts, model_class
from grasp_plugin.backends.plastic_layout import PlasticLayout
from grasp_plugin.errors import Refused
from grasp_plugin.learning.rule import Plan
from grasp_plugin.learning.shared_budget import with_price
from grasp_plugin.learning.signals import RandomReadout
from grasp_plugin.learning.spec import Learning
from grasp_plugin.learning.states import State, leaves, with_leaves
from grasp_plugin.learning.transforms import Accumulate
from grasp_plugin.network.network import Network
from grasp_plugin.network.weights import Array
from grasp_plugin.runtime.lava_import import forget_processes, kept_logging, require_lava
from grasp_plugin.runtime.learning import LearningSession, lasting_of, placed, with_states
from grasp_plugin.runtime.session import (
    Floats,
    Session,
    in_float_units,
    require_whole_numbers,
)


class LavaLearning(LearningSession):
    """`build(network, backend="lava", plans=...)`, float or Loihi integers.

    Args:
        postponed: dense projections in float whose updates wait until their input spikes
            (`PostponedDense`, the fastest), by name, or True for all that learn. The weights are
            those of postponed=False up to rounding; a network that magnifies rounding, by loops or
            a spike at the edge of its threshold, shows it.
        options: for integers: error_max, rate_max and seed of `learning.fixed_plan.fixed_plans`.

    Raises:
        Refused: Lava is not installed, or cannot express the network or a plan.
    """

    def __init__(
        self,
        network: Network,
        learning: Learning,
        *,
        postponed: bool | Collection[str] = False,
        **options: Any,
    ) -> None:
        super().__init__(network, learning)
        require_lava()
        if options and network.precision == "float":
            got = ", ".join(options)
            raise TypeError(f"expected no options but postponed for a float network, got {got}")
        self._options = {"postponed": postponed, **options}
        self._graph = self._compiled(1)  # refuse at build time what cannot be laid out

    def _compiled(self, steps: int) -> _LearningGraph:
        with kept_logging():
            return _LearningGraph(self.network, self.learning, steps, self._options)

    def _learn(
        self, inputs: dict[str, Floats], target: Floats, mask: Floats, progress: bool
    ) -> tuple[Floats, dict[str, float]]:
        from tqdm import tqdm

        require_whole_numbers(self.network, inputs)
        steps, batch = target.shape[:2]
        self._require_whole_sequence(steps)
        if self._graph.steps != steps:
            kept = self.weights(), self._memory(), self.clipped()
            lasting = self.transforms()
            self._graph.stop()
            self._graph = self._compiled(steps)
            self._set_weights(kept[0])
            self._set_memory(kept[1])
            for name, model in self._synapses().items():
                model.learning().clipped = kept[2][name]
            self._set_lasting(lasting)
        logits = np.empty(target.shape)
        sums = dict.fromkeys((p.name for p in self.network.populations), 0.0)
        for b in tqdm(range(batch), disable=not progress, desc="learn", leave=False):
            sample = {name: array[:, b] for name, array in inputs.items()}
            try:
                logits[:, b], out = self._graph.run(sample, target[:, b], mask[:, b])
            except BaseException:
                self._graph.steps = 0  # its runtime is dead: the next sequence compiles anew
                raise
            for name, value in out.items():
                sums[name] += float(value.sum())
        return logits, sums

    def _require_whole_sequence(self, steps: int) -> None:
        """Accumulating below a late signal is exact only if the weights rest until the end."""
        late = self._graph.layout.late
        for name, plan in self.learning.plans.items():
            every = [t.steps for t in getattr(plan, "transforms", ()) if isinstance(t, Accumulate)]
            target = self._graph.layout.learner.target_of(name)
            if isinstance(plan, Plan) and every and late[target] and every[0] != steps:
                raise Refused(
                    name, f"expected Accumulate({steps}), the whole sequence, since the error "
                    f"comes {late[target]} steps late on Lava, got Accumulate({every[0]})",
                    "Accumulate over the sequence, or use Late",
                )  # fmt: skip

    def _runner(self) -> Session:
        return LavaSession(self.learned())

    def weights(self) -> dict[str, Array]:
        return {
            name: np.array(model.weights).reshape(self._shape_of(name))
            for name, model in self._graph.plastic.items()
            if name in self.learning.plans
        }

    def _shape_of(self, name: str) -> tuple[int, ...]:
        return np.shape(self._graph.layout.learner.weights()[name])

    def _set_weights(self, weights: dict[str, Array]) -> None:
        for name, value in weights.items():
            live = self._graph.plastic[name].weights
            live[...] = value.reshape(live.shape)

    def _memory(self) -> dict[str, Array]:
        state = {name: model.state for name, model in self._graph.signals.items()}
        out = dict(leaves(state))
        for name, model in self._synapses().items():
            out[f"draws/{name}"] = np.array([model.learning().draws])
        return out

    def _synapses(self) -> dict[str, Any]:
        """The models of plastic projections in integers."""
        fixed = self.network.precision == "loihi"
        return {n: m for n, m in self._graph.plastic.items() if fixed and m.plan is not None}

    def clipped(self) -> dict[str, dict[str, int]]:
        """In integers, by plan: how many traces, errors and weights met their limit so far."""
        return {name: dict(m.learning().clipped) for name, m in self._synapses().items()}

    def _set_memory(self, arrays: dict[str, Array]) -> None:
        for name, model in self._graph.signals.items():
            model.state = with_leaves(model.state, arrays, f"{name}.")
        for name, model in self._synapses().items():
            model.learning().draws = int(arrays[f"draws/{name}"][0])

    def _lasting(self) -> dict[str, State]:
        synapses = self._synapses()
        held = {
            name: placed(plan, synapses[name].learning().transforms)
            if name in synapses
            else lasting_of(plan, self._plan_state(name))
            for name, plan in self.learning.plans.items()
        }
        return {name: state for name, state in held.items() if state}

    def _set_lasting(self, states: dict[str, State]) -> None:
        synapses = self._synapses()
        for name, state in states.items():
            if name in synapses:
                synapses[name].learning().transforms = next(iter(state.values()))
            else:  # `rest` keeps what lasts of it
                self._graph.plastic[name].state = with_states(self._plan_state(name), state)

    def _plan_state(self, name: str) -> State:
        """The state of a float plan; that of before step 0, if it has none yet."""
        return self._graph.plastic[name].plan_state()  # type: ignore[no-any-return]

    def close(self) -> None:
        if not self._closed:
            self._graph.stop()
        super().close()


class _LearningGraph:
    """One compiled Lava graph for sequences of `steps`."""

    def __init__(
        self, network: Network, learning: Learning, steps: int, options: dict[str, Any]
    ) -> None:
        from lava.magma.core.run_configs import Loihi2SimCfg
        from lava.proc.io.sink import RingBuffer as Sink
        from lava.proc.io.source import RingBuffer as Source

        from grasp_plugin.runtime.inprocess import InProcessRuntime

        self.network, self.learning, self.steps = network, learning, steps
        self.layout = PlasticLayout(network, learning, **options)
        self.length = steps + max(self.layout.arrival.values()) + max(self.layout.late.values())
        kind = np.int32 if network.precision == "loihi" else np.float64
        self._sources = {
            name: Source(data=np.zeros((network.size_of(name), self.length), kind))
            for name in network.inputs
        }
        for name, port in self.layout.base.taps:
            self._sources[name].s_out.connect(port)
        self._teachers = {
            name: Source(data=np.zeros((learning.classes + 1, self.length)))
            for name in self.layout.signals
        }
        self._sinks = {
            p.name: Sink(shape=(p.size,), buffer=self.length) for p in network.populations
        }
        for name, sink in self._sinks.items():
            self.layout.base.neurons[name].s_out.connect(sink.a_in)
        for name, process in self.layout.signals.items():
            self._teachers[name].s_out.connect(process.target_in)
        self._logits = None
        if isinstance(learning.signals.get(learning.readout), RandomReadout):
            self._logits = Sink(shape=(learning.classes,), buffer=self.length)
            self.layout.signals[learning.readout].logits_out.connect(self._logits.a_in)
        fed = {name for name, _ in self.layout.base.taps}
        processes = [
            *self.layout.processes(), *self._sinks.values(), *self._teachers.values(),
            *(s for n, s in self._sources.items() if n in fed),
            *([self._logits] if self._logits is not None else []),
        ]  # fmt: skip
        self._processes = processes
        tag = "fixed_pt" if network.precision == "loihi" else "floating_pt"
        models = {p: model_class(p, tag) for p in processes}
        for p in (*self._teachers.values(), *([self._logits] if self._logits is not None else [])):
            models[p] = model_class(p, "floating_pt")  # targets and logits are floats in both
        config = Loihi2SimCfg(select_tag=tag, exception_proc_model_map=models)
        self._runtimes: list[Any] = []
        self._first: list[Any] = []
        self._models: dict[int, Any] = {}
        for part in connected_parts(processes):
            runtime = InProcessRuntime(part[0].compile(config), part[0])
            self._runtimes.append(runtime)
            self._first.append(part[0])
            self._models |= {id(p): runtime.model_of(p) for p in part}
        self.plastic = {n: self._models[id(p)] for n, p in self.layout.plastic.items()}
        self.signals = {n: self._models[id(p)] for n, p in self.layout.signals.items()}
        self.scheduler = self._models.get(id(self.layout.scheduler))
        self._rest = self._take()

    def _stateful(self) -> list[tuple[Any, str]]:
        from grasp_plugin.backends.lava import ABSOLUTE, STATE

        return [
            (self._models[id(p)], name)
            for p in self.layout.base.processes()
            for name in sorted(self._models[id(p)].var_id_to_var_map.values())
            if name in STATE and name != ABSOLUTE
        ]

    def _take(self) -> list[Array]:
        return [np.array(getattr(model, name)) for model, name in self._stateful()]

    def run(
        self, sample: dict[str, Floats], target: Floats, mask: Floats
    ) -> tuple[Floats, dict[str, Floats]]:
        """Learn on one sample from rest: (logits (time, C), outputs (time, N) by population)."""
        from lava.magma.core.run_conditions import RunSteps

        for (model, name), value in zip(self._stateful(), self._rest, strict=True):
            setattr(model, name, value.copy())
        for model in (*self.plastic.values(), *self.signals.values(), *self._priced()):
            model.rest()
            model.window = self.steps
        for name, source in self._sources.items():
            if id(source) in self._models:
                _fill(self._models[id(source)].data, sample[name], 0)
        taught = np.concatenate([target, mask], axis=1)
        for name, source in self._teachers.items():
            _fill(self._models[id(source)].data, taught, self.layout.arrival[name])
        for process in self._first:
            process.run(RunSteps(num_steps=self.length))
        self._keep_price()
        out = {n: self._recorded(sink, n) for n, sink in self._sinks.items()}
        for p in self.network.populations:
            if not p.spiking:
                out[p.name] = in_float_units(p, out[p.name])
        if self._logits is not None:
            return self._recorded(self._logits, self.learning.readout), out
        return out[self.learning.readout], out

    def _priced(self) -> list[Any]:
        """The scheduler's model, with the price that its holders kept from the last sequence."""
        price = self.layout.learner.price
        if price is None:
            return []
        states = {h.plan: self.plastic[h.plan].plan_state() for h in price.holders}
        self.scheduler.log_price = price.price(states)  # type: ignore[union-attr]
        return [self.scheduler]

    def _keep_price(self) -> None:
        """The price after the last report of a sequence, for the holders to keep."""
        price = self.layout.learner.price
        if price is not None:
            for h in price.holders:
                model = self.plastic[h.plan]
                model.state = with_price(model.plan_state(), h.at, self.scheduler.log_price)  # type: ignore[union-attr]

    def _recorded(self, sink: Any, population: str) -> Floats:
        """(time, ...) of the network's steps of a population."""
        first = self.layout.arrival[population]
        data = np.asarray(self._models[id(sink)].data, np.float64)
        return data[:, first : first + self.steps].T

    def stop(self) -> None:
        for runtime in self._runtimes:
            runtime.stop()
        forget_processes(self._processes)


def _fill(data: Array, values: Floats, first: int) -> None:
    """Put values (time, n) into a source's data (n, Lava step) from step `first` on."""
    data[...] = 0
    data[:, first : first + len(values)] = values.T

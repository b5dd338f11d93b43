"""Exact gradients on a running Lava graph: DelayDense and neurons, and an `ExactLearner` beside."""

from __future__ import annotations

from typing import Any

import numpy as np

from grasp_plugin.backends.lava import ABSOLUTE, STATE, model_class
from grasp_plugin.errors import Invalid
from grasp_plugin.learning.exact.deployed import Deployed
from grasp_plugin.learning.exact.engine import Parameters
from grasp_plugin.learning.spec import Learning
from grasp_plugin.learning.states import State
from grasp_plugin.network.network import Network
from grasp_plugin.network.weights import Array
from grasp_plugin.runtime.lava_import import forget_processes, kept_logging, require_lava
from grasp_plugin.runtime.session import Closing

GRADED_BITS = 24  # an input may send two spikes in a step


class ExactLavaLearning(Closing):
    """Learn weights, delays and thresholds of a stack on Lava, float or Loihi integers.

    Args:
        network: `adapters.from_exact.to_network(layers, dt_ms)`; for integers `quantise` of it,
            with plastic = its projections and some growth.
        stack: the layers [ms], all of which spike; they are not changed.
        options: of `Deployed`: t_end_ms, train, rates, batch, adam, plans, most_steps, ...

    Raises:
        Refused: Lava is not installed; what `Deployed` and `ExactLearner` refuse.

    Example:
        >>> from grasp_plugin.adapters.from_exact import to_network
        >>> stack = [Parameters(np.full((2, 3), 4.0), delay=np.ones((2, 3)))]
        >>> with ExactLavaLearning(to_network(stack, 1.0), stack, t_end_ms=30.0) as session:
        ...     losses, first = session.learn(np.zeros((1, 3, 1)), np.array([1]))
    """

    def __init__(self, network: Network, stack: list[Parameters], **options: Any) -> None:
        require_lava()
        self.network = network
        self.learner = Deployed(stack, network, **options)
        self.steps = int(np.ceil(self.learner.t_end / self.learner.dt - 1e-9))
        with kept_logging():
            self._build()

    def _build(self) -> None:
        from lava.magma.core.run_configs import Loihi2SimCfg
        from lava.proc.io.source import RingBuffer as Source

        from grasp_plugin.processes.exact.process import ExactLearner
        from grasp_plugin.runtime.inprocess import InProcessRuntime

        fixed, length = self.network.precision == "loihi", self.steps + 1
        kind = np.int32 if fixed else np.float64
        (inputs,) = (self.network.size_of(name) for name in self.network.inputs)
        self.source = Source(data=np.zeros((inputs, length), kind))
        self.teacher = Source(data=np.zeros((2, length)))
        self.process = ExactLearner(learner=self.learner)
        self.source.s_out.connect(self.process.s_in_0)
        self.teacher.s_out.connect(self.process.teach_in)
        self.synapses: list[Any] = []
        self.neurons: list[Any] = []
        self._connect(fixed)
        self._parts = [*self.synapses, *self.neurons, self.process]
        self._processes = [self.source, self.teacher, *self._parts]
        tag = "fixed_pt" if fixed else "floating_pt"
        models = {p: model_class(p, tag) for p in self._processes}
        models[self.teacher] = model_class(self.teacher, "floating_pt")
        config = Loihi2SimCfg(select_tag=tag, exception_proc_model_map=models)
        self._runtime = InProcessRuntime(self.process.compile(config), self.process)
        self._rest = [(m, name, np.array(getattr(m, name))) for m, name in self._stateful()]

    def _connect(self, fixed: bool) -> None:
        """source -> DelayDense -> neurons -> ..., and the learner's ports to them."""
        from lava.proc.dense.process import DelayDense
        from lava.utils.weightutils import SignMode

        from grasp_plugin.processes.network.models import neuron_process

        learner, out = self.learner, self.source.s_out
        own = frozenset(p.name for p in self.network.populations if "theta" in learner.train)
        held = zip(self.network.populations, self.network.projections, learner.written(),
                   strict=True)  # fmt: skip
        for k, (p, projection, written) in enumerate(held, start=1):
            options: dict[str, Any] = {"num_message_bits": GRADED_BITS if k == 1 else 0}
            if fixed:
                options |= {"weight_exp": projection.weight_exp, "sign_mode": SignMode.MIXED}
            synapse = DelayDense(
                weights=written.weight.astype(np.int32 if fixed else float),
                delays=written.delay.astype(int), max_delay=learner.most, **options,
            )  # fmt: skip
            neuron = neuron_process(p, self.network.precision, 1, own)
            out.connect(synapse.s_in)
            synapse.a_out.connect(neuron.a_in)
            neuron.s_out.connect(getattr(self.process, f"s_in_{k}"))
            if "weight" in learner.train or learner.bump:
                getattr(self.process, f"weights_{k}").connect_var(synapse.weights)
            if "delay" in learner.train:
                getattr(self.process, f"delays_{k}").connect_var(synapse.delays)
            if "theta" in learner.train:
                getattr(self.process, f"theta_{k}").connect_var(neuron.vth)
            self.synapses.append(synapse)
            self.neurons.append(neuron)
            out = neuron.s_out

    def _stateful(self) -> list[tuple[Any, str]]:
        return [
            (self.model(p), name)
            for p in self._parts
            for name in sorted(self.model(p).var_id_to_var_map.values())
            if name in STATE and name != ABSOLUTE
        ]

    def model(self, process: Any) -> Any:
        """The ProcessModel of one of `synapses`, `neurons` or of `process`."""
        return self._runtime.model_of(process)

    def learn(self, times: Array, labels: Array) -> tuple[Array, Array]:
        """One episode a sample, in order, from rest; parameters move at the end of each batch.

        Args:
            times: input spikes (batch, N_i, k) [ms], inf for none; rounded up to the grid.
            labels: (batch,) integers.

        Returns:
            loss (batch,) and the outputs' first spikes (batch, classes) [ms].

        Raises:
            Invalid: shapes that do not fit.
            RunFailed: the session is closed, or a model raised.
        """
        from lava.magma.core.run_conditions import RunSteps

        self._require_open()
        given, classes = np.asarray(labels), len(self.learner.layers[-1].weight)
        if given.shape != np.shape(times)[:1] or np.any((given < 0) | (given >= classes)):
            raise Invalid(
                "labels", f"expected one of 0..{classes - 1} for each of {np.shape(times)[:1]}, "
                f"got {given.shape}", "Pass integers",
            )  # fmt: skip
        grid = self._on_grid(times)
        losses, first = np.empty(len(given)), np.empty((len(given), classes))
        source, teacher, model = (self.model(p) for p in (self.source, self.teacher, self.process))
        for b, label in enumerate(given):
            for owner, name, value in self._rest:
                setattr(owner, name, value.copy())
            model.rest()
            source.data[...] = grid[b].T
            teacher.data[0], teacher.data[1] = label, 0
            teacher.data[1, self.steps] = 1
            self.process.run(RunSteps(num_steps=self.steps + 1))
            losses[b], first[b] = model.loss[0], model.first
        return losses, first

    def _on_grid(self, times: Array) -> Array:
        """(batch, step, N_i): a spike at t stands at ceil(t / dt)."""
        given = np.asarray(times, float)
        out = np.zeros((len(given), self.steps + 1, given.shape[1]))
        b, n, k = np.nonzero(np.isfinite(given))
        step = np.ceil(given[b, n, k] / self.learner.dt - 1e-9).astype(int)
        inside = step < self.steps
        np.add.at(out, (b[inside], step[inside], n[inside]), 1)
        return out

    @property
    def learning(self) -> Learning:
        """What learns: the plans, by "layer1.weight", ..."""
        return self.learner.learning

    def transforms(self) -> dict[str, State]:
        """By plan, the states of its transforms by their place; for `UpdateMeter`."""
        return self.learner.transforms()

    def parameters(self) -> list[Parameters]:
        """The float shadows as they are now, in ms."""
        return list(self.learner.layers)

    def close(self) -> None:
        if not self._closed:
            self._runtime.stop()
            forget_processes(self._processes)
        super().close()

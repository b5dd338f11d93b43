"""HD-LIF layers that learn on Lava in float: plastic connections, local readouts, any transform.

    source -> PlasticDense -> GradedHDLIF -> PlasticDense -> ...
                  ^  ^            | margin       ^
                  |  +------------+              |
                  +- LearningSignal <- s_out     +- ...

Each layer learns from a fixed random readout of its own spikes (DECOLLE's signal), by
`learning.hdlif.hdlif_rule` and transforms such as `GRASP`, in the step in which it fires. The
weights are those of `hdlif.rules.RuleLearner` with the same readouts, sample by sample.

OTTT's signal, the loss through the layers above, is not laid out here: on Lava it would come as
many steps late as there are connections in between. `RuleLearner` has it. Integers are refused: a
trace for each synapse has no form in Loihi's learning engine (`learning.loihi`, `fixed_plan`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from grasp_plugin.backends.hdlif import neuron_process
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.rule import Rule
from grasp_plugin.learning.signals import RandomReadout
from grasp_plugin.network.hdlif import GradedLayer, check_stack
from grasp_plugin.network.weights import Array
from grasp_plugin.runtime.lava_import import forget_processes, kept_logging, require_lava
from grasp_plugin.runtime.session import Closing


class HDLIFLearning(Closing):
    """A context manager; `learn` runs samples and changes the weights at every step.

    Args:
        layers: in float, bits "fp", gain 1 (no norm).
        plans: by layer, of its weights; the others stand still.
        readouts: by layer; each layer with a plan needs one. All have the same classes.

    Raises:
        Refused: Lava is not installed; integers; quantised weights or gains; a plan without a
            readout, or a readout of another kind.
        Invalid: a name that no layer has; layers that do not chain; readouts of other classes.

    Example:
        >>> from grasp_plugin.learning.hdlif import hdlif_rule
        >>> one, half = np.ones((1, 2)), np.full((1, 1), 0.5)
        >>> layer = GradedLayer("a", np.eye(2), "fp", 3, half, half, one, 0 * one)
        >>> plans, readouts = {"a": hdlif_rule(0.1, decay=0.5)}, {"a": RandomReadout(2)}
        >>> with HDLIFLearning([layer], plans, readouts) as session:
        ...     logits = session.learn(np.ones((3, 1, 2)), np.eye(2)[:1])
        >>> logits.shape
        (1, 2)
    """

    def __init__(
        self, layers: Any, plans: Mapping[str, Rule], readouts: Mapping[str, RandomReadout]
    ) -> None:
        self.layers: list[GradedLayer] = check_stack(layers)
        self.plans, self.readouts = dict(plans), dict(readouts)
        self._check()
        require_lava()
        self.steps = self.layers[0].steps
        self.classes = next(iter(self.readouts.values())).classes
        with kept_logging():
            self._build()

    def _check(self) -> None:
        names = [layer.name for layer in self.layers]
        for name in (*self.plans, *self.readouts):
            if name not in names:
                raise Invalid(name, f"expected one of the layers {names}", "Pass such names")
        for name, plan in self.plans.items():
            if not isinstance(self.readouts.get(name), RandomReadout):
                got = type(self.readouts.get(name)).__name__
                raise Refused(
                    name, f"expected a RandomReadout beside the plan {plan}, got {got}: the error "
                    "of layers above comes late on Lava", "Pass one, or use RuleLearner",
                )  # fmt: skip
        classes = {name: readout.classes for name, readout in self.readouts.items()}
        if len(set(classes.values())) > 1:
            raise Invalid("readouts", f"expected the same classes, got {classes}", "Use one number")
        if not self.plans:
            raise Invalid("plans", "expected a plan of one layer at least, got none", "Pass one")
        for layer in self.layers:
            plain = (
                isinstance(layer, GradedLayer) and layer.bits == "fp" and np.all(layer.gain == 1)
            )
            if not plain:
                raise Refused(
                    layer.name, "expected float layers of fp weights with gain 1, got others: a "
                    "rule writes the weights that a synapse holds", "Use weights='fp', no norm",
                )  # fmt: skip

    def _build(self) -> None:
        from lava.magma.core.run_configs import Loihi2SimCfg
        from lava.proc.io.sink import RingBuffer as Sink
        from lava.proc.io.source import RingBuffer as Source

        from grasp_plugin.backends.lava import model_class
        from grasp_plugin.processes.hdlif.models import PyGradedHDLIFFloat
        from grasp_plugin.runtime.inprocess import InProcessRuntime

        self._length = self.steps + len(self.layers)
        self._source = Source(data=np.zeros((self.layers[0].kernel.shape[1], self._length)))
        self._synapses: dict[str, Any] = {}
        self._neurons: dict[str, Any] = {}
        self._signals: dict[str, Any] = {}
        self._teachers: dict[str, Any] = {}
        out = self._source.s_out
        for phase, layer in enumerate(self.layers, start=1):
            out = self._add(phase, layer, out)
        self._logits = Sink(shape=(self.classes,), buffer=self._length)
        self._signals[self._last[0]].logits_out.connect(self._logits.a_in)
        groups = (self._synapses, self._neurons, self._signals, self._teachers)
        self._processes = [self._source, self._logits, *(p for g in groups for p in g.values())]
        own = list(self._neurons.values())
        models = {
            p: PyGradedHDLIFFloat if p in own else model_class(p, "floating_pt")
            for p in self._processes
        }
        config = Loihi2SimCfg(select_tag="floating_pt", exception_proc_model_map=models)
        self._runtime = InProcessRuntime(self._source.compile(config), self._source)

    def _add(self, phase: int, layer: GradedLayer, below: Any) -> Any:
        """Lay out a layer behind the port `below`; returns the port of its spikes."""
        from lava.proc.io.source import RingBuffer as Source

        from grasp_plugin.processes.plastic.process import PlasticDense
        from grasp_plugin.processes.signal.process import LearningSignal

        name, neuron = layer.name, neuron_process(layer, phase)
        synapse = PlasticDense(
            weights=layer.kernel.astype(float), plan=self.plans.get(name), first_step=phase,
            name=name,
        )  # fmt: skip
        below.connect(synapse.s_in)
        synapse.a_out.connect(neuron.a_in)
        neuron.margin_out.connect(synapse.margin_in)
        neuron.margin_out.connect(synapse.post_in)
        self._synapses[name], self._neurons[name] = synapse, neuron
        if name in self.readouts:
            signal = LearningSignal(
                signal=self.readouts[name], neurons=len(layer.kernel), classes=self.classes,
                first_step=phase,
            )  # fmt: skip
            teacher = Source(data=np.zeros((self.classes + 1, self._length)))
            neuron.s_out.connect(signal.s_in)
            teacher.s_out.connect(signal.target_in)
            signal.signal_out.connect(synapse.signal_in)
            self._signals[name], self._teachers[name] = signal, teacher
            self._last = name, phase
        return neuron.s_out

    def learn(self, x: Array, target: Array) -> Array:
        """Samples in order, each from rest; the weights move at every step.

        Args:
            x: (T, batch, N_i); target: (batch, classes), the same at every step.

        Returns:
            The last readout's logits, summed over time (batch, classes).

        Raises:
            Invalid: another shape.
            RunFailed: the session is closed, or a model raised.
        """
        from lava.magma.core.run_conditions import RunSteps

        self._require_open()
        given, wanted = np.asarray(x, float), np.asarray(target, float)
        expected = (self.steps, len(wanted), self.layers[0].kernel.shape[1])
        if given.shape != expected or wanted.shape[1:] != (self.classes,):
            raise Invalid(
                "x, target", f"expected {expected} and (batch, {self.classes}), got {given.shape} "
                f"and {wanted.shape}", "Pass (time, batch, N_i) and (batch, classes)",
            )  # fmt: skip
        out = np.empty(wanted.shape)
        model, first = self._runtime.model_of, self._last[1]
        for b in range(len(wanted)):
            for group in (self._synapses, self._signals):
                for process in group.values():
                    model(process).rest()
                    model(process).window = self.steps
            for process in self._neurons.values():
                model(process).age[0] = 0
            data = model(self._source).data
            data[:, : self.steps], data[:, self.steps :] = given[:, b].T, 0
            for process in self._teachers.values():
                model(process).data[:-1], model(process).data[-1] = wanted[b][:, None], 1
            self._source.run(RunSteps(num_steps=self._length))
            logits = np.asarray(model(self._logits).data)
            out[b] = logits[:, first : first + self.steps].sum(1)
        return out

    def weights(self) -> dict[str, Array]:
        """By layer [N_o, N_i], as they are now."""
        return {n: np.array(self._runtime.model_of(p).weights) for n, p in self._synapses.items()}

    def learned(self) -> list[GradedLayer]:
        """The layers with the weights as they are now."""
        held = self.weights()
        return [replace(layer, kernel=held[layer.name]) for layer in self.layers]

    def transforms(self, name: str) -> Any:
        """The state of a layer's plan, such as the counts of a `GRASP`."""
        return self._runtime.model_of(self._synapses[name]).plan_state()

    def close(self) -> None:
        if not self._closed:
            self._runtime.stop()
            forget_processes(self._processes)
        super().close()

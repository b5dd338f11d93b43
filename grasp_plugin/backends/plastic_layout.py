"""A network with plans as Lava Processes: plastic connections, signals, and the ports between.

    population with a signal     ResetLIF / LeakyReadout: they send the margin too
    projection with a plan       PlasticDense or PlasticConv, behind a DelayLine if it waits
    bias with a plan             OnsetSource -> PlasticDense
    signal                       LearningSignal; below the top of a `Backpropagation`: `back_out`
    the rest                     as `processes.network.models` lays it out

The error of the output reaches a population `arrival[output] - arrival[population]` steps after the
spike that it judges, since each connection takes a step. A plan there says so with `Late`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from grasp_plugin.backends.plastic_curvature import bending, bending_rules
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.convolved import Convolved, SharedBias
from grasp_plugin.learning.fixed_plan import fixed_plans
from grasp_plugin.learning.network_curvature import products
from grasp_plugin.learning.online import OnlineLearner
from grasp_plugin.learning.price_post import Place, place_of
from grasp_plugin.learning.recipes import late_steps
from grasp_plugin.learning.rule import Plan, Rule
from grasp_plugin.learning.signals import Backpropagation, Projection
from grasp_plugin.learning.spec import Learning, carries_error, may_rest
from grasp_plugin.learning.transforms import Accumulate, Late
from grasp_plugin.network.network import Bias, Network
from grasp_plugin.network.network import Projection as Synapses
from grasp_plugin.network.schedule import arrival_steps, extra_delay
from grasp_plugin.network.weights import Conv


class PlasticLayout:
    """The Processes of a network that learns, created and connected.

    Args:
        network: float, or integers.
        learning: plans and signals.
        postponed: projections that become a `PostponedDense`, or True: all that learn.
        options: for integers, those of `fixed_plans`.

    Raises:
        Refused: what Lava's timing or this layout cannot express, named.
    """

    def __init__(
        self,
        network: Network,
        learning: Learning,
        *,
        postponed: bool | Collection[str] = False,
        **options: Any,
    ) -> None:
        from grasp_plugin.processes.network.models import (
            Layout,
            add_bias,
            add_synapses,
            neuron_process,
        )

        self.network, self.learning = network, learning
        self.learner = OnlineLearner(network, learning)
        self.arrival = arrival_steps(network)
        self.late = self._lateness()
        self.bends = bending_rules(self.learner)
        self.fixed = network.precision == "loihi"
        self.postponed = self._waiting(postponed)
        self._integers = fixed_plans(network, learning, **options) if self.fixed else {}
        own = frozenset(learning.signals)
        self.plastic: dict[str, Any] = {}
        self.signals: dict[str, Any] = {}
        self.base = Layout()
        for p in network.populations:
            process = neuron_process(p, network.precision, self.arrival[p.name], own)
            self.base.neurons[p.name] = process
        for k in network.projections:
            if self._is_plastic(k):
                self._add_plastic(k)
            else:
                entry, exit_port = add_synapses(network, k, self.arrival, self.base)
                exit_port.connect(self.base.neurons[k.target].a_in)
                self._feed(k.source, entry)
        for b in network.biases:
            if b.name in learning.plans:
                self._add_plastic_bias(b)
            else:
                add_bias(network, b, self.arrival[b.target], self.base)
        self._add_signals()
        self.scheduler = self._scheduler()

    def processes(self) -> list[Any]:
        own = [*self.plastic.values(), *self.signals.values()]
        return [*self.base.processes(), *own, *([self.scheduler] if self.scheduler else [])]

    def _waiting(self, asked: bool | Collection[str]) -> frozenset[str]:
        """The projections whose updates are postponed.

        Raises:
            Invalid: one that does not learn.
            Refused: integers, or a convolution.
        """
        learn = {k.name: k for k in self.network.projections if k.name in self.learning.plans}
        names = frozenset(() if asked is False else learn if asked is True else asked)
        for name in sorted(names):
            if name not in learn:
                known = f"expected a projection that learns, of {sorted(learn)}, got another"
                raise Invalid(name, known, "Pass postponed=True or names of these")
            if self.fixed or isinstance(learn[name].weight, Conv):
                got = "integers" if self.fixed else "a convolution"
                raise Refused(
                    name, f"expected dense weights in float for postponed updates, got {got}",
                    "Leave its name out of postponed",
                )  # fmt: skip
        return names

    def _lateness(self) -> dict[str, int]:
        """By population, how late its signal comes: only an error that goes down takes steps."""
        signals = self.learning.signals
        below = [p for p, s in signals.items() if isinstance(s, Backpropagation)]
        late = late_steps(self.network, self.learning.readout) if below else {}
        return {p.name: late[p.name] if p.name in below else 0 for p in self.network.populations}

    def _is_plastic(self, k: Synapses) -> bool:
        """It learns, or it carries an error down."""
        return k.name in self.learning.plans or carries_error(k, self.learning)

    def _options(self, name: str, target: str) -> dict[str, Any]:
        signal, late = self.learning.signals[target], self.late[target]
        passes = isinstance(signal, Backpropagation) and self.network[target].spiking
        plan = self.learning.plans.get(name)
        if plan is not None:
            plan = _in_time(name, self.learner.rules[name], late)
        return {
            "plan": replace(self._integers[name], late=0) if plan and self.fixed else plan,
            "first_step": self.arrival[target],
            "late": late,
            "surrogate": signal.surrogate if passes else None,  # type: ignore[union-attr]
            "uses_active": may_rest(self.network[target]),
            "curvature_macs": self._macs(target) if bending(self.learning.plans.get(name)) else 0,
            "holder": self._place(name, target),
            "name": name,
        }

    def _place(self, name: str, target: str) -> Place | None:
        """Where a plan stands among those that share a price.

        Raises:
            Refused: it learns later than the step that it judges.
        """
        place = None if self.learner.price is None else place_of(self.learner.price, name)
        transforms = getattr(self.learning.plans.get(name), "transforms", ())
        if place and (self.late[target] or any(isinstance(t, Late) for t in transforms)):
            raise Refused(
                name, "expected updates that come with their step for a shared price on Lava, got "
                f"a signal {self.late[target]} steps late, or Late: the price would be another",
                "Give it a budget of its own, such as Marginal, or use backend='fused'",
            )  # fmt: skip
        return place

    def _scheduler(self) -> Any:
        """The Process that moves a shared price, connected; None where nothing shares one."""
        from grasp_plugin.processes.scheduler.process import BudgetScheduler

        price = self.learner.price
        if price is None:
            return None
        scheduler = BudgetScheduler(price=price)
        for holder in price.holders:
            process = self.plastic[holder.plan]
            scheduler.price_out.connect(process.price_in)
            process.taken_out.connect(scheduler.taken_in)
        return scheduler

    def _macs(self, population: str) -> int:
        return products(self.network, self.learning, self.network.weights(), population)

    def _scale(self, k: Synapses | Bias) -> dict[str, Any]:
        scale = self.network[k.target].scale
        return {"weight_exp": k.weight_exp, "scale": scale} if self.fixed else {}

    def _add_plastic(self, k: Synapses) -> None:
        from grasp_plugin.processes.leaky.process import DelayLine
        from grasp_plugin.processes.plastic.process import PlasticConv, PlasticDense
        from grasp_plugin.processes.postponed.process import PostponedDense

        options = self._options(k.name, k.target)
        if k.name in self.postponed:
            process: Any = PostponedDense(weights=k.weight, **options)
        elif isinstance(k.weight, Conv):
            process = PlasticConv(conv=k.weight, **options, **self._scale(k))
        else:
            process = PlasticDense(weights=k.weight, **options, **self._scale(k))
        entry, wait = process.s_in, int(np.min(extra_delay(k, self.arrival)))
        if wait:
            line = DelayLine(shape=(self.network.size_of(k.source),), delay=wait)
            line.s_out.connect(process.s_in)
            self.base.others.append(line)
            entry = line.s_in
        self._feed(k.source, entry)
        self._connect(k.name, k.target, process)

    def _feed(self, source: str, entry: Any) -> None:
        if source in self.network.inputs:
            self.base.taps.append((source, entry))
        else:
            self.base.neurons[source].s_out.connect(entry)

    def _add_plastic_bias(self, b: Bias) -> None:
        from grasp_plugin.processes.leaky.process import OnsetSource
        from grasp_plugin.processes.plastic.process import PlasticDense

        source = OnsetSource(onset=self.arrival[b.target] + b.onset_steps - 1)
        options = self._options(b.name, b.target) | self._scale(b)
        process = PlasticDense(weights=b.value[:, None], **options)
        source.s_out.connect(process.s_in)
        self.base.others.append(source)
        self._connect(b.name, b.target, process)

    def _connect(self, name: str, target: str, process: Any) -> None:
        neurons = self.base.neurons[target]
        process.a_out.connect(neurons.a_in)
        neurons.margin_out.connect(process.margin_in)
        if self.network[target].spiking:
            neurons.s_out.connect(process.post_in)
        if may_rest(self.network[target]):
            neurons.active_out.connect(process.active_in)
        self.plastic[name] = process

    def _add_signals(self) -> None:
        from grasp_plugin.processes.signal.process import LearningSignal

        for name, signal in self.learning.signals.items():
            mine = [self.plastic[n] for n in self.plastic if self._target(n) == name]
            if isinstance(signal, Backpropagation) and name != self.learning.readout:
                for upper in self._above(name):
                    for process in mine:
                        upper.back_out.connect(process.signal_in)
                continue
            if isinstance(signal, Projection) and signal.source == "error":
                raise Refused(
                    name, "expected a projected label, got a projected error (e-prop), whose "
                    "output lies steps behind on Lava", "Use source='label', or backend='fused'",
                )  # fmt: skip
            p = self.network[name]
            unit = 1.0 if p.spiking or p.scale is None else 1 / (64.0 * p.scale)
            process = LearningSignal(
                signal=signal, neurons=p.size, classes=self.learning.classes,
                first_step=self.arrival[name], unit=unit, bends=self.bends.get(name),
                margin_unit=1.0 if p.scale is None else 64.0 * p.scale,
            )  # fmt: skip
            self.base.neurons[name].s_out.connect(process.s_in)
            for synapses in mine:
                process.signal_out.connect(synapses.signal_in)
            if name in self.bends:
                self._connect_curvature(name, process)
            self.signals[name] = process

    def _connect_curvature(self, population: str, signal: Any) -> None:
        """Margins to a signal, and M d from it to the synapses that ask for it."""
        neurons = self.base.neurons[population]
        neurons.margin_out.connect(signal.margin_in)
        if may_rest(self.network[population]):
            neurons.active_out.connect(signal.active_in)
        for name, process in self.plastic.items():
            if self._target(name) == population and bending(self.learning.plans.get(name)):
                signal.bent_out.connect(process.bent_in)

    def _target(self, plastic: str) -> str:
        return self.learner.target_of(plastic)

    def _above(self, name: str) -> list[Any]:
        """The plastic Processes that carry an error down to a population."""
        return [
            self.plastic[k.name]
            for k in self.network.projections
            if k.source == name and carries_error(k, self.learning)
        ]


def _in_time(name: str, plan: Rule, late: int) -> Rule:
    """The plan without the `Late` that Lava's own timing is.

    Raises:
        Refused: the signal is late and the plan does not say so, or the other way round.
    """
    if isinstance(plan, (Convolved, SharedBias)):
        return replace(plan, rule=_in_time(name, plan.rule, late))
    transforms = plan.transforms if isinstance(plan, Plan) else ()
    if late and any(isinstance(t, Accumulate) for t in transforms):
        return plan
    said = sum(t.steps for t in transforms if isinstance(t, Late))
    if said != late:
        wanted = f"Late({late})" if late else "no Late"
        remedy = "Build it with ottt_for(..., pipelined=True), accumulate over the sequence"
        raise Refused(
            name, f"expected {wanted} in the plan, since the error comes {late} steps late on "
            f"Lava, got Late({said})",
            f"{remedy if late else 'Leave Late out'}, or use backend='fused'",
        )  # fmt: skip
    if not isinstance(plan, Plan) or not late:
        return plan
    rest = tuple(t for t in transforms if not isinstance(t, Late))
    return Plan(plan.rule, rest) if rest else plan.rule

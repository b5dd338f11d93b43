"""`decolle_for`, `etlp_for`, `ottt_for`, `sltt_for`: a whole network's `Learning` in one call.

Each gives every projection and bias between learning populations the rule's plan, with the trace
that is exact for the population it ends at (`exact_trace`), and each population its signal.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.dynamics import made_from
from grasp_plugin.learning.exact_trace import decay_of, exact_trace
from grasp_plugin.learning.losses import CrossEntropy, Loss, SmoothL1
from grasp_plugin.learning.rule import Plan, Rule, ThreeFactor, Trace, Transform, check_rate
from grasp_plugin.learning.signals import (
    Backpropagation,
    OutputError,
    Projection,
    RandomReadout,
    check_classes,
)
from grasp_plugin.learning.spec import Learning, Signal
from grasp_plugin.learning.traces import (
    AdaptiveThreshold,
    Exponential,
    Instant,
)
from grasp_plugin.learning.transforms import L1, BurnIn, Late
from grasp_plugin.network.network import Network, Population, require_network
from grasp_plugin.network.schedule import arrival_steps
from grasp_plugin.neurons.surrogate import (
    FastSigmoid,
    Sigmoid,
    Surrogate,
    Triangular,
)

log = logging.getLogger(__name__)


def decolle_for(
    network: Network,
    classes: int,
    learning_rate: float,
    *,
    surrogate: Surrogate | None = None,
    loss: Loss | None = None,
    amplitude: float = 0.5,
    dropout: float | None = None,
    feedback_noise: float = 0.0,
    burn_in: int = 0,
    trace: str = "auto",
    frozen: Collection[str] = (),
    seed: int = 0,
    official: bool = False,
) -> Learning:
    """DECOLLE in a whole network: each spiking population learns from a random readout of its own.

    The class is read from the last population's readout. Decays are the network's own; the authors'
    neuron is `neurons` with a current, a delay of one step and an adaptive threshold.

    Args:
        learning_rate: eta, in units of the network's weights.
        surrogate: of the membrane minus the threshold; None: the authors' FastSigmoid(10).
        loss: local loss; None: SmoothL1.
        amplitude, dropout, feedback_noise, seed: of the readouts, see `RandomReadout`; population
            i gets seed + i.
        burn_in: steps without update.
        trace: see `exact_trace`.
        frozen: projections and biases that do not learn.
        official: half of the spikes dropped on the way to the readout, unless dropout is given.

    Raises:
        Invalid: no Network; an unknown frozen name; classes or a learning rate that are none.
        Refused: no spiking population.

    Warns:
        UserWarning: when it is built, if a pooling or convolution that is folded into a dense
            matrix learns: its shared weights learn each for themselves, and zeros too. Freeze it,
            or learn it in its own framework.

    References:
        As `decolle`.

    Departures:
        The class is read from the sum of logits over time; the authors take the mode of each
        step's class. Dropout is off where the class is read. The trace is that of the network's
        own neuron.
    """
    require_network(network)
    check_classes("classes", classes)
    check_rate("learning_rate", learning_rate)
    populations = [p for p in network.populations if p.spiking]
    if not populations:
        raise Refused("network", "expected a spiking population, got none", "Add one")
    if dropout is None:
        dropout = 0.5 if official else 0.0
    signals: dict[str, Signal] = {
        p.name: RandomReadout(
            classes, amplitude, loss or SmoothL1(), dropout, feedback_noise, seed + i
        )
        for i, p in enumerate(populations)
    }
    after = (BurnIn(burn_in),) if burn_in else ()
    plans: dict[str, Rule] = {}
    for p in populations:
        rule = ThreeFactor(
            exact_trace(p, trace), surrogate or FastSigmoid(10.0), learning_rate, name="decolle"
        )
        plans |= _into(network, p, rule, after, frozen)
    return Learning(plans, signals, classes, populations[-1].name, made_from(network))


def etlp_for(
    network: Network,
    classes: int,
    learning_rate: float,
    *,
    probability: float = 0.1,
    trace: str = "auto",
    l1: float = 0.0,
    frozen: Collection[str] = (),
    seed: int = 0,
    official: bool = False,
) -> Learning:
    """ETLP in a whole network: hidden populations learn from the projected label, outputs from
    their error, both at random teaching events.

    psi = 0.3 / thr^2 max(0, 1 - |V - A| / thr), thr the population's v_th.

    Args:
        learning_rate: eta.
        probability: of a teaching event in a step.
        trace: see `exact_trace`; follows an adaptive threshold.
        l1: lambda_1 of hidden weights, see `etlp`.
        frozen: projections and biases that do not learn.
        seed: of the feedback matrices (population i: seed + i) and of the events (seed).
        official: psi without the chain factor 1 / thr, and not masked by refractoriness.

    Raises:
        Invalid: the output has not one neuron a class, or v_th <= 0 or not the same for all.
        Refused: as `exact_trace`.

    Warns:
        UserWarning: as `decolle_for`.

    References:
        As `etlp`.

    Departures:
        The authors' output fires from the membrane of the step before; here it is the network's
        own population.
    """
    top = output_of(network, classes)
    check_rate("learning_rate", learning_rate)
    signals: dict[str, Signal] = {}
    plans: dict[str, Rule] = {}
    for i, p in enumerate(network.populations):
        if p.name == top:
            signals[top] = OutputError(classes, probability, seed)
        elif p.spiking:
            signals[p.name] = Projection(classes, probability, seed=seed, matrix_seed=seed + 1 + i)
        else:
            continue
        rule = ThreeFactor(
            _masked(exact_trace(p, trace, adaptive=True), official), _triangle(p, official),
            learning_rate, name="etlp",
        )  # fmt: skip
        after = (L1(learning_rate * l1),) if l1 and p.name != top else ()
        plans |= _into(network, p, rule, after, frozen)
    return Learning(plans, signals, classes, top, made_from(network))


def _masked(trace: Trace, official: bool) -> Trace:
    if official and isinstance(trace, AdaptiveThreshold):
        return AdaptiveThreshold(trace.decay, trace.rho, trace.theta, masked=False)
    return trace


def _triangle(p: Population, official: bool) -> Surrogate | None:
    if not p.spiking:
        return None
    thr = float(p.v_th[0])
    if thr <= 0 or np.any(p.v_th != thr):
        raise Invalid(
            p.name, f"expected one threshold > 0, got {p.v_th.min()}..{p.v_th.max()}",
            "Give the population one v_threshold",
        )  # fmt: skip
    return Triangular(0.3 / thr if official else 0.3 / thr**2, thr)


def ottt_for(
    network: Network,
    classes: int,
    learning_rate: float,
    *,
    loss: Loss | None = None,
    slope: float = 4.0,
    memory: bool = True,
    trace: str = "auto",
    pipelined: bool = False,
    frozen: Collection[str] = (),
    official: bool = False,
) -> Learning:
    """OTTT in a whole network: the loss of each step, back through the layers at that step.

    Args:
        learning_rate: eta.
        loss: of the output (spikes or membrane) at each step; None: cross-entropy, without the
            authors' 1 / T (`losses.ottt_loss(T)` has it).
        slope: of the sigmoid surrogate.
        memory: False: no traces (SLTT).
        trace: see `exact_trace`.
        pipelined: updates come as late as they do on Lava, where each connection takes a step
            (`Late`); without it, Lava refuses a hidden layer.
        frozen: projections and biases that do not learn.
        official: no trace in the first layer, none in biases, and in a memoryless readout that of
            the population before it (see `ottt`).

    Raises:
        Invalid: the output has not one neuron a class.
        Refused: as `exact_trace`.

    Warns:
        UserWarning: as `decolle_for`.

    References:
        As `ottt`.
    """
    top = output_of(network, classes)
    check_rate("learning_rate", learning_rate)
    signal = Backpropagation(loss or CrossEntropy(), Sigmoid(slope))
    plans: dict[str, Rule] = {}
    late = late_steps(network, top) if pipelined else {}
    for p in network.populations:
        after = (Late(late[p.name]),) if late.get(p.name) else ()
        rule = ThreeFactor(
            exact_trace(p, trace) if memory else Instant(),
            Sigmoid(slope) if p.spiking else None, learning_rate, name="ottt",
        )  # fmt: skip
        plans |= _into(network, p, rule, after, frozen, official and memory)
    signals: dict[str, Signal] = {p.name: signal for p in network.populations}
    return Learning(plans, signals, classes, top, made_from(network))


def sltt_for(network: Network, classes: int, learning_rate: float, **options: Any) -> Learning:
    """SLTT in a whole network: `ottt_for` without traces; options are its."""
    return ottt_for(network, classes, learning_rate, memory=False, **options)


def scheduled(
    learning: Learning, *transforms: Transform, only: Collection[str] | None = None
) -> Learning:
    """The same learning with transforms behind every rule (in front of its `Late`), e.g. `GRASP`.

    Args:
        only: the plans that get them; None: all.

    Raises:
        Invalid: an unknown name.
    """
    for name in names_of("only", only or ()):
        if name not in learning.plans:
            raise Invalid(
                name, f"expected a plan, one of {', '.join(learning.plans)}, got none", "Check it"
            )
    plans: dict[str, Rule] = {}
    for name, plan in learning.plans.items():
        if only is not None and name not in only:
            plans[name] = plan
            continue
        rule, given = (plan.rule, plan.transforms) if isinstance(plan, Plan) else (plan, ())
        early = tuple(t for t in given if not isinstance(t, Late))
        late = tuple(t for t in given if isinstance(t, Late))
        plans[name] = Plan(rule, (*early, *transforms, *late))
    return replace(learning, plans=plans)


def names_of(argument: str, given: Collection[str]) -> Collection[str]:
    """The names given, unless they are one string, which would be taken letter by letter.

    Raises:
        Invalid: a string.
    """
    if isinstance(given, str):
        raise Invalid(
            argument, f"expected a list of names, got the string {given!r}", f"Pass [{given!r}]"
        )
    return given


def late_steps(network: Network, top: str) -> dict[str, int]:
    """By how many steps the error of `top` reaches each population late on Lava."""
    arrival = arrival_steps(network)
    return {p.name: max(0, arrival[top] - arrival[p.name]) for p in network.populations}


def output_of(network: Network, classes: int) -> str:
    """The name of the only output population, of `classes` neurons.

    Raises:
        Invalid: none, several, or another size.
    """
    require_network(network)
    check_classes("classes", classes)
    names = list(dict.fromkeys(network.outputs.values()))
    if len(names) != 1 or network[names[0]].size != classes:
        sizes = {name: network[name].size for name in names}
        raise Invalid(
            "network", f"expected one output population with {classes} neurons, got {sizes}",
            "Pass classes to match the network's output",
        )  # fmt: skip
    return names[0]


def _into(
    network: Network, p: Population, rule: ThreeFactor, after: tuple[Transform, ...],
    frozen: Collection[str], official: bool = False,
) -> dict[str, Rule]:  # fmt: skip
    """The plan for every projection and bias into `p`; `official` as in `ottt_for`."""

    def plan(trace: Trace) -> Rule:
        own = ThreeFactor(trace, rule.surrogate, rule.learning_rate, name=rule.name)
        return Plan(own, after) if after else own

    out: dict[str, Rule] = {}
    for k in network.into(p.name):
        trace = rule.trace
        if official and k.source in network.inputs:
            trace = Instant()
        elif official and rule.trace == Instant():
            trace = Exponential(decay_of(1 - network[k.source].dv))
        out[k.name] = plan(trace)
    for b in network.biases:
        if b.target == p.name:
            out[b.name] = plan(Instant() if official else rule.trace)
    known = {k.name for k in network.projections} | {b.name for b in network.biases}
    for name in names_of("frozen", frozen):
        if name not in known:
            raise Invalid(
                name, f"expected a projection or bias, one of {', '.join(sorted(known))}",
                "Check the name against print(network)",
            )  # fmt: skip
        out.pop(name, None)
    return out

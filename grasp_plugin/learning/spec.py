"""What learns in a network and from what, what a back end shows of a step, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.deltas import Array
from grasp_plugin.learning.dynamics import Made, check_dynamics, warn_of_tied
from grasp_plugin.learning.rule import Plan, Rule, ThreeFactor, check_rate
from grasp_plugin.learning.signals import (
    Backpropagation,
    OutputError,
    Projection,
    RandomReadout,
    check_classes,
)
from grasp_plugin.learning.transforms import Late
from grasp_plugin.network.network import Network, Population, require_network
from grasp_plugin.network.network import Projection as Synapses
from grasp_plugin.network.weights import Conv

Signal = RandomReadout | Projection | OutputError | Backpropagation


@dataclass(frozen=True)
class Learning:
    """What learns in a network, and from what.

    Args:
        plans: by projection or bias name: a `Rule`, usually a `Plan`.
        signals: by population: `RandomReadout`, `Projection`, `OutputError` or `Backpropagation`.
            Every target of a plan has one; so has, for `Backpropagation`, everything above it.
        classes: number of classes, C.
        readout: the population that the class is read from; its random readout's logits if it has
            one, else its own C outputs.
        made_from: the populations that the plans were made for, see `dynamics`; filled in by
            `decolle_for` and the others, so that plans of another network are refused. None: not
            known, nothing is compared.
    """

    plans: Mapping[str, Rule]
    signals: Mapping[str, Signal]
    classes: int
    readout: str
    made_from: Made | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a back end shows the learner at step t.

    Args:
        pre: by plan, what reaches the synapses at this step (batch, N_i); ones for a bias.
        output: by population, spikes, or the membrane where it does not spike (batch, N).
        margin: by population, membrane minus the threshold in force (batch, N).
        active: by population that `may_rest`, 0 where it is refractory (batch, N).
    """

    pre: Mapping[str, Array]
    output: Mapping[str, Array]
    margin: Mapping[str, Array]
    active: Mapping[str, Array] = field(default_factory=dict)


def may_rest(p: Population) -> bool:
    """True if a neuron may be held silent for steps after a spike, and so carry no error down."""
    return p.reset == "refractory1" or bool(np.any(p.n_ref))


def check(network: Network, learning: Learning) -> None:
    """Refuse a `Learning` that does not fit a network.

    Raises:
        Invalid: no plan; a learning rate below 0; an unknown name; a plan without a signal; a
            signal of another number of classes; plans that were made for other neurons.
        Refused: weights, delays or signals that the learner cannot express.

    Warns:
        UserWarning: a plan for a pooling or convolution that is folded into a dense matrix.
    """
    require_network(network)
    check_classes("classes", learning.classes)
    if not learning.plans:
        raise Invalid(
            "plans", "expected something left to learn, got no plans", "Freeze fewer projections "
            "and biases, or build without plans to run only",
        )  # fmt: skip
    _check_plans(network, learning)
    _check_signals(network, learning)
    if learning.made_from is not None:
        check_dynamics(network, learning.made_from)
    warn_of_tied(network, learning.plans, learning.made_from)


def targets_of(network: Network) -> dict[str, str]:
    """By projection and bias, the population that it ends at."""
    biases = {b.name: b.target for b in network.biases}
    return {k.name: k.target for k in network.projections} | biases


def _check_plans(network: Network, learning: Learning) -> None:
    names = {k.name: k for k in network.projections}
    targets = targets_of(network)
    for name, rule in learning.plans.items():
        if name not in targets:
            raise Invalid(
                name, f"expected a plan on a projection or bias, one of {', '.join(targets)}, got "
                f"{name!r}", "Check the name against print(network)",
            )  # fmt: skip
        if not isinstance(rule, Rule):
            raise Invalid(name, f"expected a Rule or Plan, got {type(rule).__name__}", "Pass one")
        if targets[name] not in learning.signals:
            raise Invalid(
                name, f"expected a signal for its target {targets[name]!r}, got none",
                f"Pass signals={{{targets[name]!r}: ...}}",
            )  # fmt: skip
        _check_plan(name, names.get(name), rule)


def _check_signals(network: Network, learning: Learning) -> None:
    populations, targets = {p.name for p in network.populations}, targets_of(network)
    for p in (*learning.signals, learning.readout):
        if p not in populations:
            raise Invalid(
                p, f"expected a signal on a population, one of {', '.join(sorted(populations))}",
                "Check the name against print(network)",
            )  # fmt: skip
    readout = learning.signals.get(learning.readout)
    size = network[learning.readout].size
    if not isinstance(readout, RandomReadout) and size != learning.classes:
        raise Invalid(
            learning.readout, f"expected {learning.classes} outputs to read a class from, got "
            f"{size}", "Name another readout population, or give it a RandomReadout",
        )  # fmt: skip
    for k in network.projections:
        _check_carrier(k, learning)
    for p, signal in learning.signals.items():
        _check_signal(p, signal, learning)
    for name in learning.plans:
        _check_reached(targets[name], network, learning)


def _check_signal(p: str, signal: Signal, learning: Learning) -> None:
    if isinstance(signal, Projection) and signal.v_reg:
        raise Refused(p, f"expected v_reg = 0 in a network, got {signal.v_reg}", "Leave it out")
    classes = getattr(signal, "classes", learning.classes)
    if classes != learning.classes:
        raise Invalid(
            p, f"expected a signal of {learning.classes} classes, got one of {classes}",
            "Give all signals the same classes",
        )  # fmt: skip


def _check_reached(p: str, network: Network, learning: Learning) -> None:
    """No error that a population waits for ends at a population with another kind of signal.

    A population with nothing above it has no error, and learns nothing.
    """
    if not isinstance(learning.signals[p], Backpropagation) or p == learning.readout:
        return
    above, ends = [p], []
    for q in above:  # grows while it is gone through
        for k in network.projections:
            if k.source != q or k.min_delay or k.target in above:
                continue
            if carries_error(k, learning):
                above.append(k.target)
            else:
                ends.append(k.target)
    begins = isinstance(learning.signals.get(learning.readout), Backpropagation)
    if (ends and learning.readout not in above) or (learning.readout in above and not begins):
        raise Refused(
            p, "expected a way for the error from the readout down to it, through populations with "
            f"Backpropagation, got one that ends at {', '.join(ends)}",
            "Give every population up to the readout a Backpropagation signal, or no plan here",
        )  # fmt: skip


def carries_error(k: Synapses, learning: Learning) -> bool:
    """True if the error of a projection's target goes down through it within the step."""
    at_once = k.min_delay == 0 and k.source in learning.signals
    return at_once and isinstance(learning.signals.get(k.target), Backpropagation)


def _check_carrier(k: Synapses, learning: Learning) -> None:
    if not carries_error(k, learning):
        return
    if not isinstance(k.weight, (np.ndarray, Conv)):
        raise Refused(
            k.name, f"expected dense weights or a convolution to carry an error down, got "
            f"{type(k.weight).__name__}", "Store them dense (network.weights.to_dense)",
        )  # fmt: skip
    if isinstance(k.weight, Conv) and k.weight.groups != 1:
        raise Refused(
            k.name, f"expected a convolution of one group to carry an error down, got "
            f"{k.weight.groups}", "Store it dense (network.weights.to_dense)",
        )  # fmt: skip
    if np.ndim(k.delay_steps):
        raise Refused(
            k.name, "expected one delay for all synapses that carry an error down, got one each",
            "Use one delay",
        )  # fmt: skip


def _check_plan(name: str, k: Any, rule: Rule) -> None:
    inner = rule
    while isinstance(inner, Plan):
        inner = inner.rule
    if isinstance(inner, ThreeFactor):
        check_rate(name, inner.learning_rate)
    transforms = getattr(rule, "transforms", ())
    if any(isinstance(t, Late) for t in transforms[:-1]):
        raise Invalid(name, "expected Late as the last transform, got others behind it", "Reorder")
    if k is None:
        return
    if not isinstance(k.weight, (np.ndarray, Conv)):
        raise Refused(
            name, f"expected dense weights or a convolution, got {type(k.weight).__name__}",
            "Store them dense (network.weights.to_dense)",
        )  # fmt: skip
    if np.ndim(k.delay_steps):
        raise Refused(
            name, "expected one delay for all synapses that learn, got one each", "Use one delay"
        )
    if isinstance(inner, ThreeFactor) and inner.bias is not None:
        raise Invalid(
            name, "expected a rule without its own bias, since in a network a bias has a plan of "
            "its own", "Pass replace(rule, bias=None) and a plan for the bias",
        )  # fmt: skip

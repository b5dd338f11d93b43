"""SOEL: the error-triggered delta rule on a last layer, what a meta-trained network adapts by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.losses import CrossEntropy, Loss
from grasp_plugin.learning.recipes import exact_trace, output_of
from grasp_plugin.learning.rule import Array, Factors, Plan, Rule, ThreeFactor, Transform
from grasp_plugin.learning.signals import Backpropagation
from grasp_plugin.learning.spec import Learning
from grasp_plugin.network.meta_hints import MetaHints
from grasp_plugin.network.network import Network
from grasp_plugin.neurons.surrogate import FastSigmoid


@dataclass(frozen=True)
class Soel(ThreeFactor):
    """A three-factor rule that leaves out neurons whose error is small.

    E[t]  = signal[t] post[t] active[t] + direct[t]           dL/dmembrane, as `ThreeFactor`
    E~    = E where B |E| > th, else 0                        th = `error_threshold`
    dW[t] = -eta sum_b E~[t]_b (x) trace[t]_b                 [C, N_i]

    B is the size of the batch, whose 1/B the loss of a mean has put into E, so that a sample
    triggers alone as it does in a batch. At th = 0, with the loss at the last step alone, dW is the
    step of gradient descent in the last layer's weights, to the last bit of rounding.

    Args:
        th  error_threshold  -  (), of the error of one sample
        and those of `ThreeFactor`

    Raises:
        Invalid: a threshold that is negative or not finite.

    References:
        Stewart & Neftci, NCE 2(4) 044002, 2022; nmi-lab/snn_maml plasticity_rules.py:198-295
        (Apache-2.0, not copied), th = 0.05.
    Departures:
        The authors' E is taken at the spikes; here at the membrane, and for a spiking last layer
        `surrogate` is in it. Their Loihi variant (train_lava.py:259, one error per 20 steps, for
        the target neuron alone) is another rule; its stock string is in specs/meta-learning.md 9.
    """

    error_threshold: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.error_threshold < np.inf:
            raise Invalid(
                "Soel", f"expected error_threshold >= 0, got {self.error_threshold}", "Raise it"
            )

    def error(self, factors: Factors) -> Array:
        """E~ (batch, N_o)."""
        error = super().error(factors)
        fires = abs(error) * error.shape[0] > self.error_threshold
        return error * array_namespace(error).astype(fires, error.dtype)


def soel_for(
    network: Network,
    classes: int,
    learning_rate: float,
    *,
    error_threshold: float = 0.05,
    loss: Loss | None = None,
    transforms: tuple[Transform, ...] = (),
) -> Learning:
    """A frozen body with a plastic head: the projections and biases into the output learn by SOEL.

    The loss is of the output at each step with a mask of 1; `last_steps` makes the mask.

    Args:
        learning_rate: eta, of one sample.
        error_threshold: th.
        loss: None: cross-entropy of the output (a membrane, or spikes).
        transforms: behind the rule of every projection, e.g. (GRASP(...),); not of biases.

    Raises:
        Invalid: the network has not one output of `classes` neurons.
        Refused: as `exact_trace`.
    """
    top = network[output_of(network, classes)]
    surrogate = FastSigmoid(10.0) if top.spiking else None
    rule = Soel(
        exact_trace(top), surrogate, learning_rate, name="soel", error_threshold=error_threshold
    )
    head: Rule = Plan(rule, transforms) if transforms else rule
    plans: dict[str, Rule] = {k.name: head for k in network.into(top.name)}
    plans |= {b.name: rule for b in network.biases if b.target == top.name}
    signal = Backpropagation(loss or CrossEntropy(), FastSigmoid(10.0))
    return Learning(plans, {top.name: signal}, classes, top.name)


def learning_of(
    network: Network, meta: MetaHints, classes: int, *, transforms: tuple[Transform, ...] = ()
) -> Learning:
    """`soel_for` as the hints of a meta-trained network ask for it.

    Args:
        network: discretised from the graph that `meta` was read from, float or quantised.
        classes: of the new task, the network's outputs.
        transforms: as `soel_for`.

    Raises:
        Refused: what is plastic is not the head alone, or a step size for each synapse.
        Invalid: as `MetaHints.rate_of` and `soel_for`.
    """
    rates = meta.rate_of(network)
    threshold = float(meta.rule_parameters.get("error_threshold", 0.0))
    eta = next(iter(rates.values()))
    learning = soel_for(network, classes, 0.0, error_threshold=threshold, transforms=transforms)
    own = {name for name in learning.plans if name in {k.name for k in network.projections}}
    if set(rates) != own:
        raise Refused(
            ", ".join(sorted(set(rates) ^ own)), f"expected the projections into the output to be "
            f"plastic and no other, {sorted(own)}, got {sorted(rates)}",
            "Adapt the head alone (ANIL), or give plans to build(network, plans=...) yourself",
        )  # fmt: skip
    if any(np.ndim(rate) or rate != eta for rate in rates.values()):
        raise Refused(
            next(iter(rates)), "expected one step size for the head, got one for each synapse or "
            "several", "Learn one (MAML(learn='parameter'))",
        )  # fmt: skip
    return soel_for(network, classes, float(eta), error_threshold=threshold, transforms=transforms)


def last_steps(steps: int, window: int | None = None) -> Array:
    """The mask (steps,) for `LearningSession.learn`: 1 at the last step of each window, else 0.

    Args:
        window: steps; None: one window, the whole sequence.

    Raises:
        Invalid: a window that does not divide the sequence.
    """
    window = steps if window is None else window
    if window < 1 or steps % window:
        raise Invalid(
            "last_steps", f"expected a window that divides {steps}, got {window}", "Choose another"
        )
    mask = np.zeros(steps)
    mask[window - 1 :: window] = 1
    return mask

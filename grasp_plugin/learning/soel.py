"""SOEL: the error-triggered delta rule on a last layer, what a meta-trained network adapts by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from grasp_plugin.checks import is_real
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.deltas import Array
from grasp_plugin.learning.dynamics import made_from
from grasp_plugin.learning.exact_trace import exact_trace
from grasp_plugin.learning.losses import CrossEntropy, Loss
from grasp_plugin.learning.recipes import output_of
from grasp_plugin.learning.rule import Factors, Plan, Rule, ThreeFactor, Transform, check_rate
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
    step of gradient descent in the last layer's weights, up to rounding, for a last layer that does
    not spike, or whose reset and adaptive threshold are detached: the trace leaves out that a
    weight also moves the layer's earlier spikes.

    Args:
        th  error_threshold  -  (), of the error of one sample
        and those of `ThreeFactor`

    Raises:
        Invalid: a threshold that is no number, negative or not finite.

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
        super().__post_init__()
        _check_number("Soel", "error_threshold", self.error_threshold)

    def error(self, factors: Factors) -> Array:
        """E~ (batch, N_o)."""
        error = super().error(factors)
        fires = abs(error) * error.shape[0] > self.error_threshold
        return error * array_namespace(error).astype(fires, error.dtype)


def _check_number(culprit: str, name: str, value: float) -> None:
    if not is_real(value, 0.0):
        raise Invalid(culprit, f"expected {name} >= 0, got {value!r}", "Pass a finite number")


def soel_for(
    network: Network,
    classes: int,
    learning_rate: float,
    *,
    error_threshold: float = 0.05,
    loss: Loss | None = None,
    transforms: tuple[Transform, ...] = (),
    bias: bool = True,
) -> Learning:
    """A frozen body with a plastic head: the projections and biases into the output learn by SOEL.

    The loss is of the output at each step with a mask of 1; `last_steps` makes the mask.

    Args:
        learning_rate: eta, of one sample.
        error_threshold: th.
        loss: None: cross-entropy of the output (a membrane, or spikes).
        transforms: behind the rule of every projection, e.g. (GRASP(...),); not of biases.
        bias: False: the biases into the output keep their values.

    Raises:
        Invalid: the network has not one output of `classes` neurons, or a learning rate or
            threshold that is no number, negative or not finite.
        Refused: as `exact_trace`.
    """
    check_rate("soel_for", learning_rate)
    top = network[output_of(network, classes)]
    surrogate = FastSigmoid(10.0) if top.spiking else None
    rule = Soel(
        exact_trace(top), surrogate, learning_rate, name="soel", error_threshold=error_threshold
    )
    head: Rule = Plan(rule, transforms) if transforms else rule
    plans: dict[str, Rule] = {k.name: head for k in network.into(top.name)}
    if bias:
        plans |= {b.name: rule for b in network.biases if b.target == top.name}
    signal = Backpropagation(loss or CrossEntropy(), FastSigmoid(10.0))
    return Learning(plans, {top.name: signal}, classes, top.name, made_from(network))


def learning_of(
    network: Network, meta: MetaHints, classes: int, *, transforms: tuple[Transform, ...] = ()
) -> Learning:
    """`soel_for` as the hints of a meta-trained network ask for it.

    A `Learning` says nothing of how often the samples are shown, so `meta.inner_steps` is left to
    the caller, with `last_steps` as the mask of each `session.learn`:

        meta-trained one by one    inner_steps passes through the support set, one sample a call
        meta-trained on a batch    inner_steps calls with the whole support set, where the back end
                                   takes a batch; eta is then that of the mean over the batch

    Either is what meta-training by `learning.meta.Gradient` did, at th = 0 and a head as `Soel` has
    it; showing each sample inner_steps times in a row is neither.

    Args:
        network: float, discretised from the graph that `meta` was read from. What is returned is
            for its integers too, `quantise(network, plastic=list(learning.plans))`.
        classes: of the new task, the network's outputs; as many as `meta.ways`.
        transforms: as `soel_for`.

    Raises:
        Refused: what is plastic is not the head alone, or a step size for each synapse.
        Invalid: other classes than ways; as `MetaHints.rate_of` and `soel_for`.
    """
    if meta.ways != classes:
        raise Invalid(
            "classes", f"expected the {meta.ways} ways of meta-training, got {classes}", "Pass "
            "classes=meta.ways, or soel_for(...) to use the network for another number",
        )  # fmt: skip
    rates = meta.rate_of(network)
    own = {k.name for k in network.into(output_of(network, classes))}
    if set(rates) != own:
        raise Refused(
            ", ".join(sorted(set(rates) ^ own)), f"expected the projections into the output to be "
            f"plastic and no other, {sorted(own)}, got {sorted(rates)}",
            "Adapt the head alone (ANIL), or give plans to build(network, plans=...) yourself",
        )  # fmt: skip
    eta = next(iter(rates.values()))
    if any(np.ndim(rate) or rate != eta for rate in rates.values()):
        raise Refused(
            next(iter(rates)), "expected one step size for the head, got one for each synapse or "
            "several", "Learn one (MAML(learn='parameter'))",
        )  # fmt: skip
    threshold = float(meta.rule_parameters.get("error_threshold", 0.0))
    return soel_for(
        network, classes, float(eta), error_threshold=threshold, transforms=transforms,
        bias=meta.bias,
    )  # fmt: skip


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

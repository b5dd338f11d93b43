"""The local rule of HD-LIF neurons: error where the neuron fires, times a trace for each synapse.

    dW    = -eta sum_b (dL[t]/ds chi[t]) e[t]            chi = 1 where m > theta, else 0
    e[t]  = lambda_t (1 - chi[t-1]) e[t-1] + x[t]        (batch, N_o, N_i)

It is the gradient itself, without a surrogate, for one spiking layer and for the last one of
several (`grasp_plugin.hdlif.neuron`). It is a `ThreeFactor`, so signals and transforms combine:

    DECOLLE    its signal (`signals.RandomReadout`) in place of dL/ds: exact for the local loss.
               Its own trace is that of its own neuron, two filters of the input; it is not used.
    OTTT       its signal, the loss at this step through the layers above. Its trace of rank 1,
               (batch, N_i), is refused: a spike sets v to a constant, which ends what the neuron
               remembers of every input, so that the trace is the neuron's own.
    GRASP      any budget, and scores without a curvature; with one where the factors hold it.

References:
    specs/hmdf.md 4.1, item 5. Not in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.deltas import Array
from grasp_plugin.learning.rule import Factors, Rule, ThreeFactor, Trace
from grasp_plugin.learning.states import State, counter, zeros
from grasp_plugin.learning.traces import Decay, Instant, freeze
from grasp_plugin.neurons.surrogate import Surrogate

TRACES = ("synapse", "instant", "rank1")


@dataclass(frozen=True)
class Excess(Surrogate):
    """s* = max(x, 0) and its derivative, x = m - theta: the neuron's own, no surrogate.

    At x = 0 the derivative is 0; the second one is 0 everywhere.
    """

    def first(self, x: Array) -> Array:
        return array_namespace(x).astype(x > 0, x.dtype)

    def second(self, x: Array) -> Array:
        return array_namespace(x).zeros_like(x)

    def smooth(self, x: Array) -> Array:
        return array_namespace(x).clip(x, 0, None)


@dataclass(frozen=True)
class FiringMasked(Trace):
    """e[t] = lambda_t (1 - chi[t-1]) e[t-1] + x[t]: forgotten where the neuron fired.

    Args:
        symbol  argument  unit  shape
        lambda  decay     -     () or (T,): one a step of a sample

    Raises:
        Invalid: decay outside [0, 1]; Factors.spikes is missing; a step beyond T.
    """

    decay: Decay
    rank_one: ClassVar[bool] = False

    def __post_init__(self) -> None:
        freeze(self, "decay")

    def init(self, weight: Array, *, batch: int = 1) -> State:
        trace = zeros(weight, batch, *weight.shape)
        return {"e": trace, "fired": trace[:, :, 0], "step": counter(weight)}

    def update(self, factors: Factors, state: State) -> tuple[Array, State]:
        decay = self.decay
        if isinstance(decay, tuple):
            step = int(state["step"][0])
            if step >= len(decay):
                raise Invalid(
                    "FiringMasked", f"expected at most {len(decay)} steps, got step {step + 1}",
                    "Begin each sample with a fresh state",
                )  # fmt: skip
            decay = decay[step]
        e = decay * (1 - state["fired"])[:, :, None] * state["e"] + factors.pre[:, None, :]
        spikes = factors.need("spikes", "FiringMasked")
        fired = array_namespace(spikes).astype(spikes > 0, spikes.dtype)
        return e, {"e": e, "fired": fired, "step": state["step"] + 1}


def hdlif_rule(
    learning_rate: float, *, decay: Decay = 0.5, trace: str = "synapse", parallel: bool = False
) -> Rule:
    """The rule of one layer of HD-LIF neurons; equations in the module.

    Args:
        learning_rate: eta, (), no unit.
        decay: lambda, () or one a step.
        trace: "synapse": e[t], exact; "instant": x[t], the paper's online gradient.
        parallel: neurons without memory, for which x[t] is exact.

    Returns:
        A rule of the weights in W x. Give it spikes before they are quantised or after: it asks
        only whether they are 0, which a code of 0 hides where the excess was below half a code; so
        pass `Factors.spikes` from max(m - theta, 0).

    Raises:
        Invalid: an unknown trace, or a decay outside [0, 1].
        Refused: trace = "rank1".

    Example:
        >>> hdlif_rule(0.1, decay=(0.5, 0.6)).trace, hdlif_rule(0.1, parallel=True).trace
        (FiringMasked(decay=(0.5, 0.6)), Instant())
    """
    if trace not in TRACES:
        raise Invalid("hdlif_rule", f"expected trace in {TRACES[:2]}, got {trace!r}", "Pass one")
    if trace == "rank1" and not parallel:
        raise Refused(
            "hdlif_rule", "expected a trace for each synapse, got 'rank1' (OTTT's): a spike sets "
            "the membrane to the threshold and ends what the neuron remembers, so that the trace "
            "differs by neuron", "Pass trace='synapse', or 'instant' to leave memory out",
        )  # fmt: skip
    kept: Trace = Instant() if parallel or trace == "instant" else FiringMasked(decay)
    return ThreeFactor(kept, Excess(), learning_rate, kept, name="hdlif")

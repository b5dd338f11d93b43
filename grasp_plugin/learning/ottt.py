"""OTTT: online training through time, and SLTT, which is OTTT without the trace."""

from __future__ import annotations

import logging

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.rule import Rule, ThreeFactor, Trace
from grasp_plugin.learning.traces import Decay, Exponential, Instant, SynapticExponential
from grasp_plugin.neurons.surrogate import Sigmoid

log = logging.getLogger(__name__)
EXACT_RESETS = ("subtract-delayed", "subtract-immediate", "snntorch-nodelay", "none")


def ottt(
    learning_rate: float,
    *,
    decay: Decay = 0.5,
    layer: str = "hidden",
    reset: str = "subtract-immediate",
    trace: str = "auto",
    first_layer_trace: str | None = None,
    readout_trace: str | None = None,
    bias_trace: str | None = None,
    slope: float = 4.0,
    official: bool = False,
) -> Rule:
    """The OTTT rule of one layer: back-propagated error of this step times the input's trace.

    u[t] = lambda (u[t-1] - V_th s[t-1]) + W s_in[t] + b
    a[t] = lambda a[t-1] + s_in[t]             (accumulating: no 1 - lambda)
    dW   = -eta sum_b g[t] outer a[t]          g = dL[t]/ds sigma'(u - V_th)
    db   = -eta sum_b g[t] c[t]                c[t] = lambda c[t-1] + 1

    Exact for the graph in which this layer's leak alone carries gradient through time. The signal
    is `signals.Backpropagation`. Updating at each step is OTTT_O; behind `Accumulate(T)` it is
    OTTT_A.

    Args:
        symbol  argument           unit  shape
        eta     learning_rate      -     ()
        lambda  decay              -     () per step; (N_o,) takes the per-synapse trace
                layer              -     "hidden", "first" or "readout" (memoryless, linear)
                reset              -     as in `neurons.lif`
                trace              -     "rank1", "synapse", or "auto": what the reset needs
                first_layer_trace  -     "exact": a[t] | "official": s_in[t]
                readout_trace      -     "exact": s_in[t] | "official": a[t]
                bias_trace         -     "exact": c[t] | "official": 1
                slope              -     () of the sigmoid surrogate
                official           -     bool: the default of the three knobs above

    Raises:
        Invalid: an unknown layer, trace or knob; a decay outside [0, 1].
        Refused: trace = "rank1" where the reset or a decay per neuron needs one per synapse;
            reset = "refractory1" and unknown resets, for which no exact trace is written here.

    References:
        Xiao et al., NeurIPS 2022, arXiv:2210.04195. Authors' code (no licence, not copied):
        modules/neuron.py:62-120, models/spiking_vgg.py:59-88. Surrogate: surrogate.py:361-376.

    Departures:
        The authors' first layer has no trace, their readout has one although it has no memory,
        and their biases have none; each is a knob, and `official` sets all three. For a hard
        reset (not in the paper) the trace is e_ji <- lambda (1 - s_j) e_ji + s_i.

    Example:
        >>> from grasp_plugin.learning import ottt
        >>> ottt(0.1, layer="first", official=True).trace, ottt(0.1, reset="value").trace
        (Instant(), SynapticExponential(decay=0.5, hard_reset=True, current=None, refractory=False))
    """
    default = "official" if official else "exact"
    knobs = {
        "first_layer_trace": first_layer_trace or default,
        "readout_trace": readout_trace or default,
        "bias_trace": bias_trace or default,
    }
    _check("layer", layer, ("hidden", "first", "readout"))
    _check("trace", trace, ("auto", "rank1", "synapse"))
    for name, choice in knobs.items():
        _check(name, choice, ("exact", "official"))
    if layer == "readout":
        filter_ = Instant() if knobs["readout_trace"] == "exact" else _trace(decay, reset, trace)
        return ThreeFactor(filter_, None, learning_rate, Instant(), name="ottt readout")
    no_trace = layer == "first" and knobs["first_layer_trace"] == "official"
    filter_ = Instant() if no_trace else _trace(decay, reset, trace)
    bias = Instant() if knobs["bias_trace"] == "official" else _trace(decay, reset, trace)
    return ThreeFactor(filter_, Sigmoid(slope), learning_rate, bias, name=f"ottt {layer}")


def sltt(learning_rate: float, *, layer: str = "hidden", slope: float = 4.0) -> Rule:
    """OTTT without memory, lambda_trace = 0: dW = -eta sum_b g[t] outer s_in[t].

    Args:
        learning_rate: eta, (), no unit.
        layer: "hidden", "first" or "readout" (linear, so without surrogate).
        slope: (), of the sigmoid surrogate.

    Raises:
        Invalid: an unknown layer.

    References:
        Meng et al., ICCV 2023 (qymeng94/SLTT, no licence, not copied).
    """
    _check("layer", layer, ("hidden", "first", "readout"))
    surrogate = None if layer == "readout" else Sigmoid(slope)
    return ThreeFactor(Instant(), surrogate, learning_rate, Instant(), name=f"sltt {layer}")


def _check(name: str, got: str, options: tuple[str, ...]) -> None:
    if got not in options:
        raise Invalid("ottt", f"expected {name} in {options}, got {got!r}", "Pass one of them")


def _trace(decay: Decay, reset: str, choice: str) -> Trace:
    """The trace that is exact for this reset and decay, or a refusal."""
    hard = reset == "value"
    if not hard and reset not in EXACT_RESETS:
        raise Refused(
            "ottt", f"expected reset in {(*EXACT_RESETS, 'value')}, got {reset!r}: no trace that "
            "is exact for it is known here", "Train with one of these resets",
        )  # fmt: skip
    per_neuron = not isinstance(decay, (float, int))
    if not (hard or per_neuron) and choice != "synapse":
        return Exponential(decay)
    why = "a hard reset" if hard else "a decay per neuron"
    if choice == "rank1":
        raise Refused(
            "ottt", f"expected a per-synapse trace, got 'rank1': {why} makes the rank-1 trace "
            "inexact", "Pass trace='synapse' or 'auto'",
        )  # fmt: skip
    if choice == "auto":
        log.info("ottt: per-synapse trace (batch, N_o, N_i), as %s needs it", why)
    return SynapticExponential(decay, hard_reset=hard)

"""Which trace is exact for a population's synapses."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.ottt import EXACT_RESETS as SUBTRACTIVE
from grasp_plugin.learning.rule import Trace
from grasp_plugin.learning.traces import (
    AdaptiveThreshold,
    CurrentExponential,
    Decay,
    Exponential,
    Instant,
    SynapticExponential,
)
from grasp_plugin.network.network import Population

log = logging.getLogger(__name__)


def exact_trace(p: Population, trace: str = "auto", *, adaptive: bool = False) -> Trace:
    """What the membrane of `p` remembers of an input: dm[t]/dW for an unchecked synapse.

    du = dv = 1          s                     `Instant`
    du = 1               leak alone            `Exponential`
    du < 1               current and leak      `CurrentExponential`
    reset to a value, or a decay that differs between neurons    `SynapticExponential`
    `adaptive`: through the adaptive threshold too               `AdaptiveThreshold`

    Subtractive resets, and an adaptive threshold unless `adaptive`, count as detached.

    Args:
        p: the postsynaptic population, float.
        trace: "rank1", "synapse", or "auto": what it needs (a per-synapse trace is logged).
        adaptive: follow the gradient through the adaptive threshold, as ETLP does.

    Raises:
        Invalid: a population in Loihi integers.
        Refused: "rank1" where it is not exact; an adaptive threshold with a current or a hard
            reset, for which no trace is written here.
    """
    if trace not in ("auto", "rank1", "synapse"):
        raise Invalid(
            p.name, f"expected trace 'auto', 'rank1' or 'synapse', got {trace!r}", "Pass one"
        )
    if p.reset not in (None, *SUBTRACTIVE, "value", "refractory1"):
        raise Refused(p.name, f"expected a known reset, got {p.reset!r}", "See hints.RESETS")
    if p.scale is not None:
        raise Invalid(p.name, "expected a float population, got Loihi integers", "dequantise first")
    keep, current = decay_of(1 - p.dv), decay_of(1 - p.du)
    hard = p.reset in ("value", "refractory1")
    if adaptive and np.any(getattr(p, "theta", 0)):
        return _adaptive(p, keep, hard or current != 0)
    per_neuron = not (isinstance(keep, float) and isinstance(current, float))
    if keep == 0 and current == 0:
        return Instant()
    if not (hard or per_neuron) and trace != "synapse":
        return Exponential(keep) if current == 0 else CurrentExponential(keep, current)
    why = f"reset {p.reset!r}" if hard else "a decay for each neuron"
    if trace == "rank1":
        raise Refused(
            p.name, f"expected a per-synapse trace, got 'rank1': {why} makes a rank-1 trace "
            "inexact", "Pass trace='auto' or 'synapse', or discretise with a subtractive reset",
        )  # fmt: skip
    if trace == "auto":
        log.warning("%s: per-synapse trace (batch, N_o, N_i), as %s needs it", p.name, why)
    return SynapticExponential(
        keep, hard, None if current == 0 else current, p.reset == "refractory1"
    )


def _adaptive(p: Population, keep: Decay, other: bool) -> Trace:
    rho, theta = (np.unique(getattr(p, name)) for name in ("rho", "theta"))
    if other or len(rho) > 1 or len(theta) > 1:
        raise Refused(
            p.name, "expected an adaptive threshold with one rho and theta, no current and a "
            "subtractive reset, got another", "Use DECOLLE, which does not follow the threshold",
        )  # fmt: skip
    return AdaptiveThreshold(keep, float(rho[0]), float(theta[0]))


def decay_of(values: Any) -> Decay:
    """A number, or a tuple where neurons differ."""
    return float(values[0]) if np.all(values == values[0]) else tuple(float(v) for v in values)

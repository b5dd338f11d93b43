"""Exact gradients at observed spikes: of a grid, of integers or of a chip, not of the engine.

Given are spike times alone. Currents, adaptation and membranes follow from them and the parameters
(the equations of `oracle`), so no membrane is read out; then the adjoint runs as ever.

What the gradient is. On a grid of step dt the observed time is the event's, rounded up. The result
is the event-time gradient, dt_k/dp = (...) / gdot, with all times at their rounded places and gdot
at the threshold: exact for the continuous model that crosses there, off by O(dt) for the one that
crosses a little earlier, and a straight-through estimate for the rounding itself, whose own
derivative is 0. Delays that were rounded get the gradient at the rounded delay.

An observed spike that the model cannot have, because its V lies more than `slack` below the
threshold or falls, gets no gradient: its time is taken as given (Goeltz et al. 2021 do the same).

Count times in steps (all numbers whole) where spikes and arrivals coincide: in ms rounding would
decide which was first. An own spike precedes arrivals at its time, as on the grid.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.exact.arrivals import merge
from grasp_plugin.learning.exact.engine import (
    LayerGradients,
    Parameters,
    Run,
    _axonal,
    _measures,
    layer_gradients,
)
from grasp_plugin.learning.exact.flow import decays, jit
from grasp_plugin.learning.exact.kernels import arrange, longest_sample
from grasp_plugin.learning.exact.traffic import Traffic
from grasp_plugin.network.weights import Array


@jit
def _observe(arrivals, layer, clock, counts, spikes, slack, log):
    """Fill log (3, spikes) with (t, I-, a-), I- = NaN where the model has no such spike."""
    first, time, source, _, _, _, _, _ = arrivals
    w, delay, shift, theta, beta, v_reset, bias = layer
    tau_m, tau_s, tau_a, t_end = clock
    longest = longest_sample(first)
    when, order = np.empty(longest), np.empty(longest, np.int64)
    size = impossible = np.int64(0)
    for n in range(shift.size):
        late = delay[n] if delay.size else time[:0]
        for b in range(first.size - 1):
            if counts[b, n] == 0:
                continue
            count = arrange(
                first[b], first[b + 1], time, source, shift[n], late, t_end, when, order
            )
            x, i, a, t, k = -bias[n], 0.0, 0.0, 0.0, 0
            for s in range(counts[b, n]):
                at = spikes[b, n, s]
                while True:
                    arrives = k < count and when[k] < at
                    stop = when[k] if arrives else at
                    em, es, ka = decays(stop - t, tau_m, tau_s)
                    x, i, a, t = x * em + i * ka, i * es, a * math.exp(-(stop - t) / tau_a), stop
                    if not arrives:
                        break
                    i += w[n, source[order[k]]]
                    k += 1
                drive, top = i + bias[n], theta[n] + a
                rises = (drive - top) / tau_m + a / tau_a > 0.0
                log[0, size], log[1, size], log[2, size] = at, i, a
                if not (rises and x + bias[n] > top - slack):
                    log[1, size] = np.nan
                    impossible += 1
                size += 1
                x, a = v_reset[n] - bias[n], a + beta[n]
    return impossible


def observed_run(
    inputs: Array, spikes: Array, parameters: Parameters, t_end: float, *, slack: float
) -> tuple[Run, int]:
    """The `Run` of a layer whose spikes were observed, for `layer_gradients`.

    Args:
        inputs, spikes: padded times (batch, N_i, k), (batch, N_o, k), ascending, inf for none, in
            the unit of the parameters' time constants and delays and of t_end.
        slack: how far below the threshold V may be at an observed spike, in its units.

    Returns:
        The run, and how many spikes the model cannot have.

    Raises:
        Invalid: shapes that do not fit the weights; times that are negative or NaN.
    """
    outs, ins = np.shape(parameters.weight)
    if np.ndim(inputs) != 3 or np.shape(inputs)[1] != ins or np.shape(spikes)[1:2] != (outs,):
        raise Invalid(
            "spikes", f"expected (batch, {ins}, k) and (batch, {outs}, k), got "
            f"{np.shape(inputs)} and {np.shape(spikes)}", "Pass padded times",
        )  # fmt: skip
    given = np.ascontiguousarray(spikes, float)
    counts = np.isfinite(given).sum(axis=2)
    layer, clock = parameters.compiled(), parameters.clock(t_end)
    arrivals = merge(inputs, _axonal(parameters), clock.t_end, clock[:3])
    log = np.empty((3, int(counts.sum())))
    impossible = _observe(arrivals, layer, clock, counts, given, float(slack), log)
    run = Run(
        given, counts, log, _measures(len(given), 0), inputs, parameters, t_end,
        Traffic(arrivals=arrivals.time.size, spikes=log.shape[1]),
    )  # fmt: skip
    return run, int(impossible)


@dataclass(frozen=True)
class Found:
    """Gradients of each layer, first to last; impossible and clamped: counts of spikes."""

    layers: list[LayerGradients]
    impossible: int
    clamped: int


def observed_gradients(
    stack: list[Parameters],
    times: list[Array],
    d_out: Array,
    t_end: float,
    *,
    slack: float = 0.1,
    gdot_min: float = 0.0,
) -> Found:
    """All gradients of a feed-forward stack at its observed spikes.

    Args:
        stack: layers, all in one unit of time (see the module).
        times: padded spike times of the inputs and of every layer, (batch, N, k) each.
        d_out: dL/dt of the last layer's spikes (batch, N, k).
        t_end: end of the episode.
        slack: as `observed_run`; gdot_min: as gdot_min_per_ms of `layer_gradients`.

    Raises:
        Invalid: what `observed_run` raises.
    """
    found: list[LayerGradients] = []
    impossible, error = 0, np.where(np.isfinite(times[-1]), d_out, 0.0)
    for p, below, own in zip(stack[::-1], times[-2::-1], times[:0:-1], strict=True):
        run, lost = observed_run(below, own, p, t_end, slack=slack)
        out = layer_gradients(run, error, gdot_min_per_ms=gdot_min)
        error = np.where(np.isfinite(below), out.times, 0.0)
        found.append(out)
        impossible += lost
    clamped = sum(g.traffic.clamped for g in found)
    return Found(found[::-1], impossible, clamped)


def in_steps(p: Parameters, dt_ms: float, delay: Array) -> Parameters:
    """The layer with time counted in steps, its delays [N_o, N_i] whole numbers of them."""
    taus: dict[str, Any] = {
        name: float(getattr(p, name)) / dt_ms
        for name in ("tau_mem_ms", "tau_syn_ms", "tau_adapt_ms")
    }
    return replace(p, delay=np.asarray(delay, float), axonal=None, dendritic=None, **taus)

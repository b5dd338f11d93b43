"""Engine B, forwards: each neuron walks the sorted arrivals with its state in registers.

The equations are those of `oracle`, for one feed-forward layer and a batch. All arrays float64.
Inner loops take arrays one by one: Numba counts references at each read of a tuple's field.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from grasp_plugin.learning.exact.arrivals import sort_by
from grasp_plugin.learning.exact.crossing import next_spike, peak_time
from grasp_plugin.learning.exact.flow import decays, jit, voltage_integral
from grasp_plugin.network.weights import Array

NO_KINK = np.int64(-1)


class Layer(NamedTuple):
    """Parameters: w [N_o, N_i]; delay [N_o, N_i] ms or (0, 0) for none; the rest (N_o,).

    shift is the dendritic delay [ms]. theta = inf: the neuron does not spike.
    """

    w: Array
    delay: Array
    shift: Array
    theta: Array
    beta: Array
    v_reset: Array
    bias: Array


class Clock(NamedTuple):
    """Time constants of the layer and end of the episode [ms]."""

    tau_m: float
    tau_s: float
    tau_a: float
    t_end: float


class Cell(NamedTuple):
    """The numbers of one neuron; b is its bias."""

    tau_m: float
    tau_s: float
    tau_a: float
    t_end: float
    theta: float
    beta: float
    v_reset: float
    b: float


class Measures(NamedTuple):
    """Read-outs (batch, N_o), or (0, 0) where none are asked for.

    v_end = V(T), integral = int V dt, v_max = max V at t_max; kink: the arrival (index in its
    batch's order) at which the maximum is a kink, -1 if it is smooth; slope: V' before it.
    """

    v_end: Array
    integral: Array
    v_max: Array
    t_max: Array
    slope: Array
    kink: Array


@jit
def cell_of(n, layer, clock):
    """The numbers of neuron n."""
    return Cell(
        clock.tau_m, clock.tau_s, clock.tau_a, clock.t_end,
        layer.theta[n], layer.beta[n], layer.v_reset[n], layer.bias[n],
    )  # fmt: skip


@jit
def arrange(lo, hi, time, source, shift, delay, t_end, when, order):
    """Fill when and order with the arrivals at one neuron, all delays added; their number.

    Args:
        lo, hi: the sample's arrivals; delay: (N_i,) of this neuron, or (0,).
    """
    count = np.int64(0)
    delayed = delay.size > 0
    for k in range(lo, hi):
        t = time[k] + shift
        if delayed:
            t += delay[source[k]]
        if t <= t_end:
            when[count], order[count] = t, k
            count += 1
    if delayed:
        sort_by(when, order, np.int64(0), count)
    return count


@jit
def _walk(cell, count, when, order, shared, w, source, em_of, es_of, ka_of, ea_of, spikes):
    """One neuron, one sample: spikes[:, k] = (t, I-, a-) of its k-th spike.

    Args:
        shared: the intervals between arrivals are those of em_of, es_of, ka_of, ea_of.

    Returns (spikes, solves); spikes past the width of `spikes` are counted, not kept.
    """
    tau_m, tau_s, tau_a = cell.tau_m, cell.tau_s, cell.tau_a
    vth = cell.theta - cell.b
    x, i, a, t = -cell.b, 0.0, 0.0, 0.0
    fired = solves = np.int64(0)
    table = False
    if cell.b == 0.0 and count > 0:  # at rest up to the first arrival
        t = when[0]
    for k in range(count + 1):
        stop = when[k] if k < count else cell.t_end
        while True:
            d = stop - t
            if k == count and a == 0.0 and x < vth and i <= vth and vth > 0.0:
                return fired, solves  # no peak can reach it: x_peak = I(u*) < i
            if table:
                j = order[k]
                em, es, ka, ea = em_of[j], es_of[j], ka_of[j], ea_of[j]
            elif d > 0.0:
                em, es, ka = decays(d, tau_m, tau_s)
                ea = math.exp(-d / tau_a) if a != 0.0 else 1.0
            else:
                em, es, ka, ea = 1.0, 1.0, 0.0, 1.0
            x_end, i_end = x * em + i * ka, i * es
            if d <= 0.0:
                break
            u, solved = next_spike(x, i, a, vth, d, x_end, i_end, a * ea, tau_m, tau_s, tau_a)
            solves += solved
            if u < 0.0 or fired > spikes.shape[1]:
                break
            at = min(max(t + u, np.nextafter(t, np.inf)), stop)
            i *= math.exp(-(at - t) / tau_s)
            a *= math.exp(-(at - t) / tau_a)
            if fired < spikes.shape[1]:
                spikes[0, fired], spikes[1, fired], spikes[2, fired] = at, i, a
            fired += 1
            x, a, t, table = cell.v_reset - cell.b, a + cell.beta, at, False
        x, i, a, t = x_end, i_end, a * ea, stop
        if k < count:
            i += w[source[order[k]]]
        table = shared and k + 1 < count
    return fired, solves


@jit
def _measure(cell, count, when, order, w, source, spikes, fired):
    """(V(T), int V dt, max V, t_max, slope before a kink, its arrival), spikes being known."""
    tau_m, tau_s, b = cell.tau_m, cell.tau_s, cell.b
    x, i, t, total = -b, 0.0, 0.0, 0.0
    v_max, t_max, slope, kink = 0.0, 0.0, 0.0, NO_KINK
    k = s = 0
    while True:
        own = s < fired and (k >= count or spikes[0, s] <= when[k])
        at = spikes[0, s] if own else (when[k] if k < count else cell.t_end)
        em, es, ka = decays(at - t, tau_m, tau_s)
        if i > x:
            u = peak_time(x, i, tau_m, tau_s)
            top = b + i * math.exp(-u / tau_s)
            if u < at - t and top > v_max:
                v_max, t_max, slope, kink = top, t + u, 0.0, NO_KINK
        total += voltage_integral(at - t, x, i, b, tau_m, tau_s, em, es, ka)
        x, i, t = x * em + i * ka, i * es, at
        if b + x > v_max:
            v_max, t_max, slope, kink = b + x, t, (i - x) / tau_m, NO_KINK
            if k < count and not own:
                kink = order[k]
        if own:
            x = cell.v_reset - b
            s += 1
        elif k < count:
            i += w[source[order[k]]]
            k += 1
        else:
            return b + x, total, v_max, t_max, slope, kink


@jit
def _grown(log, size):
    """A log of at least `size` columns with the same contents."""
    if size <= log.shape[1]:
        return log
    out = np.empty((3, 2 * size))
    for row in range(3):
        for k in range(log.shape[1]):
            out[row, k] = log[row, k]
    return out


@jit
def longest_sample(first):
    """The most arrivals of a sample."""
    longest = np.int64(0)
    for b in range(first.size - 1):
        longest = max(longest, first[b + 1] - first[b])
    return longest


@jit
def forward(arrivals, layer, clock, capacity, out):
    """The spikes of a layer over a batch.

    Returns:
        counts (batch, N_o); log (3, >= spikes) of (t, I-, a-) in order (neuron, sample, spike);
        spikes; arrivals walked; solves.
    """
    first, time, source, _, em, es, ka, ea = arrivals
    w, delay, shift, _, _, _, _ = layer
    neurons, batch, longest = shift.size, first.size - 1, longest_sample(first)
    counts = np.zeros((batch, neurons), np.int64)
    log, spikes = np.empty((3, 64)), np.empty((3, capacity))
    when, order = np.empty(longest), np.empty(longest, np.int64)
    size = walked = solves = np.int64(0)
    for n in range(neurons):
        cell, row = cell_of(n, layer, clock), w[n]
        late = delay[n] if delay.size else time[:0]
        for b in range(batch):
            count = arrange(
                first[b], first[b + 1], time, source, shift[n], late, clock.t_end, when, order
            )
            if count == 0 and cell.b == 0.0:
                continue
            fired, solved = _walk(
                cell, count, when, order, late.size == 0, row, source, em, es, ka, ea, spikes
            )
            walked += count
            solves += solved
            counts[b, n] = fired
            kept = min(fired, capacity)
            log = _grown(log, size + kept)
            for k in range(kept):
                log[0, size], log[1, size], log[2, size] = spikes[0, k], spikes[1, k], spikes[2, k]
                size += 1
            if out.v_end.size:
                found = _measure(cell, count, when, order, row, source, spikes, kept)
                out.v_end[b, n], out.integral[b, n], out.v_max[b, n] = found[:3]
                out.t_max[b, n], out.slope[b, n], out.kink[b, n] = found[3:]
    return counts, log, size, walked, solves

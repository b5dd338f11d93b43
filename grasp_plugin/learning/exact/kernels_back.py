"""Engine B, backwards: each neuron walks its arrivals and own spikes from the last to the first.

The equations are those of `oracle`; the arrivals are sorted again rather than kept.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from grasp_plugin.learning.exact.flow import adjoint_flow, decays, jit, tau_integrals
from grasp_plugin.learning.exact.kernels import NO_KINK, arrange, cell_of, longest_sample
from grasp_plugin.network.weights import Array

CLAMPED, TANGENT, WALKED, SWEPT = 0, 1, 2, 3  # the counters of a backward pass
SHIFT, THETA, BETA, V_RESET, BIAS, TAU_M, TAU_S, TAU_A = range(8)  # columns of Sums.rows


class Sums(NamedTuple):
    """Gradients, added to: w, delay [N_o, N_i] (delay (0, 0): none), error (arrivals,) and
    rows (N_o, 8), one column for each parameter of a neuron."""

    w: Array
    delay: Array
    error: Array
    rows: Array


class Seeds(NamedTuple):
    """What the loss says: times (spikes,), in the log's order; v_end, integral, v_max
    (batch, N_o), or (0, 0) for none."""

    times: Array
    v_end: Array
    integral: Array
    v_max: Array


class Seed(NamedTuple):
    """The same at one neuron and sample: c = dL/d int V dt; top = dL/dV_max, of a maximum at t_max,
    with slope V' before it if it is the arrival `kink`."""

    c: float
    v_end: float
    top: float
    t_max: float
    slope: float
    kink: np.int64


@jit
def _replay(cell, count, when, order, w, source, log, s0, s1, starts):
    """starts[:, m] = (V - b, I) after the first m events of a neuron, as they happened."""
    x, i, t, k, s = -cell.b, 0.0, 0.0, 0, s0
    starts[0, 0], starts[1, 0] = x, i
    for m in range(1, count + s1 - s0 + 1):
        own = s < s1 and (k >= count or log[0, s] <= when[k])
        at = log[0, s] if own else when[k]
        em, es, ka = decays(at - t, cell.tau_m, cell.tau_s)
        x, i, t = x * em + i * ka, i * es, at
        if own:
            x, i = cell.v_reset - cell.b, log[1, s]
            s += 1
        else:
            i += w[source[order[k]]]
            k += 1
        starts[0, m], starts[1, m] = x, i


@jit
def _add_taus(u, gap, x, i, pv, pi, c, cell, row):
    """An interval of length u that begins `gap` after the event that left V - b = x, I = i."""
    if gap > 0.0:
        em, es, ka = decays(gap, cell.tau_m, cell.tau_s)
        x, i = x * em + i * ka, i * es
    em, es, ka = decays(u, cell.tau_m, cell.tau_s)
    d_m, d_s = tau_integrals(u, x, i, pv, pi, c, cell.tau_m, cell.tau_s, em, es, ka)
    row[TAU_M] += d_m
    row[TAU_S] += d_s


@jit
def _own_spike(cell, current, adapt, pv, pa, c, error, since, gdot_min, row, stats):
    """The jump at a spike, backwards. Returns (p_V, p_a). since: time to the next own spike.

    current = NaN: the spike was observed (`observed`) and is not the model's: its time is given, so
    V after it depends on nothing before.
    """
    if current != current:
        row[V_RESET] += pv
        row[BETA] += pa
        return 0.0, pa
    before, drive = cell.theta + adapt, current + cell.b
    gdot = (drive - before) / cell.tau_m + adapt / cell.tau_a
    if gdot < gdot_min:
        gdot = gdot_min
        stats[CLAMPED] += 1
    if gdot <= 0.0:
        stats[TANGENT] += 1
        return pv, pa
    e = error - pv * (drive - cell.v_reset) / cell.tau_m + pa * cell.beta / cell.tau_a
    e += c * (before - cell.v_reset)
    row[TAU_A] += pa * (adapt + cell.beta) * since / (cell.tau_a * cell.tau_a)
    row[V_RESET] += pv
    row[BETA] += pa
    row[THETA] += e / gdot
    return -e / gdot, pa + e / gdot


@jit
def _last_error(s0, s1, errors):
    """The last spike of s0..s1-1 with an error; s0 - 1 if there is none."""
    s = s1 - 1
    while s >= s0 and errors[s] == 0.0:
        s -= 1
    return s


@jit
def _sweep(
    cell, seed, k, s0, s, t, shared, when, order, w, source, em_of, es_of, ka_of, log, errors,
    gdot_min, want_taus, starts, dw, dd, error, row, stats,
):  # fmt: skip
    """One neuron, one sample, down to 0 from t, where s is the last spike, k the last arrival."""
    tau_m, tau_s, c = cell.tau_m, cell.tau_s, seed.c
    pv, pi, pa, pending = seed.v_end, 0.0, 0.0, seed.top != 0.0
    last, since = -1, t
    while True:
        t_arrival = when[k] if k >= 0 else -1.0
        event = max(t_arrival, log[0, s] if s >= s0 else 0.0)
        at = max(event, seed.t_max) if pending else event
        u = t - at
        if shared and last == k + 1 and k >= 0 and at == t_arrival:
            j = order[last]
            em, es, ka = em_of[j], es_of[j], ka_of[j]
        else:
            em, es, ka = decays(u, tau_m, tau_s)
        if pa != 0.0:
            pa *= math.exp(-u / cell.tau_a)
        row[BIAS] += (pv - c * tau_m) * (1.0 - em) + c * u
        if want_taus:
            m = k + 1 + s - s0 + 1
            _add_taus(u, at - event, starts[0, m], starts[1, m], pv, pi, c, cell, row)
        pv, pi = adjoint_flow(pv, pi, c, tau_m, tau_s, em, es, ka)
        t, last = at, -1
        if k >= 0 and at == t_arrival:
            j = order[k]
            m = source[j]
            moved = w[m] * (pi / tau_s - pv / tau_m)
            if seed.kink == j:
                moved += seed.top * seed.slope
            dw[m] += pi
            error[j] += moved
            row[SHIFT] += moved
            if dd.size:
                dd[m] += moved
            stats[WALKED] += 1
            last = k
            k -= 1
        elif pending and at == seed.t_max:
            pv += seed.top
            pending = False
        elif s >= s0:
            pv, pa = _own_spike(
                cell, log[1, s], log[2, s], pv, pa, c, errors[s], since - t, gdot_min, row, stats
            )
            since = t
            s -= 1
        else:
            return


@jit
def _seed_of(b, n, seeds, peak):
    if seeds.v_end.size == 0:
        return Seed(0.0, 0.0, 0.0, 0.0, 0.0, NO_KINK)
    top = seeds.v_max[b, n]
    kink = peak.kink[b, n] if top != 0.0 else NO_KINK
    return Seed(
        seeds.integral[b, n], seeds.v_end[b, n], top, peak.t_max[b, n], peak.slope[b, n], kink
    )


@jit
def backward(arrivals, layer, clock, counts, log, seeds, peak, gdot_min, want_taus, sums):
    """Add the gradients of a batch to sums. Returns the counters."""
    first, time, source, _, em, es, ka, _ = arrivals
    w, delay, shift, _, _, _, _ = layer
    dw, dd, error, rows = sums
    errors = seeds.times
    batch, neurons = counts.shape
    longest, stats = longest_sample(first), np.zeros(4, np.int64)
    when, order = np.empty(longest), np.empty(longest, np.int64)
    starts = np.empty((2, longest + log.shape[1] + 1 if want_taus else 0))
    s0 = s1 = np.int64(0)
    for n in range(neurons):
        cell, w_n, dw_n, row = cell_of(n, layer, clock), w[n], dw[n], rows[n]
        late = delay[n] if delay.size else time[:0]
        dd_n = dd[n] if delay.size else time[:0]
        for b in range(batch):
            s0, s1 = s1, s1 + counts[b, n]
            seed, s, t = _seed_of(b, n, seeds, peak), s1 - 1, clock.t_end
            if seed.c == 0.0 and seed.v_end == 0.0 and seed.top == 0.0:
                s = _last_error(s0, s1, errors)
                if s < s0:
                    continue
                t = log[0, s]
            k = arrange(
                first[b], first[b + 1], time, source, shift[n], late, clock.t_end, when, order
            ) - 1  # fmt: skip
            while k >= 0 and when[k] >= t and t < clock.t_end:
                k -= 1
            if want_taus:
                _replay(cell, k + 1, when, order, w_n, source, log, s0, s + 1, starts)
            _sweep(
                cell, seed, k, s0, s, t, late.size == 0, when, order, w_n, source, em, es, ka,
                log, errors, gdot_min, want_taus, starts, dw_n, dd_n, error, row, stats,
            )  # fmt: skip
            stats[SWEPT] += 1
    return stats

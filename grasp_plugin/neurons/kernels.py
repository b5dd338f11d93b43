"""The equations of `neurons.lif` and `lif_fixed` as one compiled loop over a packed network.

A packed network (see `network.packed`) holds all neurons in one axis, in evaluation order, and
all synapses as rows of outgoing weights, so that only the rows of sources that are not zero are
touched: per step the work is the number of active synapses, not the number of synapses.

Every function is compiled by Numba on first use and cached on disk. No fast-math: sums and products
are IEEE, in the order written.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import numba
import numpy as np

RESET_CODES = {
    None: 0, "value": 1, "subtract-delayed": 2, "subtract-immediate": 3, "snntorch-nodelay": 4,
    "refractory1": 5, "none": 6,
}  # fmt: skip
UV_MAX = 2**23

jit = numba.njit(cache=True, nogil=True, inline="never")


@jit
def gather(t, depth, history, synapses, dense, data, target, indptr, active, acc):
    """acc[targets] += weights of all active sources of one projection.

    synapses: (source start, sources, target start, targets, delay, exponent, offset, is_dense).
    Dense rows lie in `dense[offset:]`, one a source; sparse ones in `data`, `target`, by `indptr`.
    active: scratch for source numbers. Sources are added in ascending order.
    """
    start, sources, first, targets, delay, offset = (
        synapses[0], synapses[1], synapses[2], synapses[3], synapses[4], synapses[6],
    )  # fmt: skip
    row = history[(t - delay) % depth]
    count, binary = 0, True
    for j in range(sources):
        x = row[start + j]
        if x != 0:
            active[count] = j
            count += 1
            binary = binary and x == 1
    if not synapses[7]:
        for c in range(count):
            j = active[c]
            x = row[start + j]
            for k in range(indptr[offset + j], indptr[offset + j + 1]):
                acc[first + target[k]] += data[k] * x
    elif binary:
        add_rows(dense, offset, targets, active, count, acc[first : first + targets])
    else:
        for c in range(count):
            j = active[c]
            x = row[start + j]
            at = offset + j * targets
            for i in range(targets):
                acc[first + i] += dense[at + i] * x


@jit
def add_rows(dense, offset, targets, active, count, acc):
    """acc += the rows `active[:count]`, four at a time, in their order."""
    c = 0
    while c + 4 <= count:
        p = dense[offset + active[c] * targets : offset + (active[c] + 1) * targets]
        q = dense[offset + active[c + 1] * targets : offset + (active[c + 1] + 1) * targets]
        r = dense[offset + active[c + 2] * targets : offset + (active[c + 2] + 1) * targets]
        s = dense[offset + active[c + 3] * targets : offset + (active[c + 3] + 1) * targets]
        for i in range(targets):
            acc[i] = acc[i] + p[i] + q[i] + r[i] + s[i]
        c += 4
    while c < count:
        p = dense[offset + active[c] * targets : offset + (active[c] + 1) * targets]
        for i in range(targets):
            acc[i] += p[i]
        c += 1


@jit
def membrane_float(a, u, v, s, du, dv, v_th, drive, reset):
    """`lif.step` for one neuron up to the spike: (u, m, threshold in force)."""
    u = (1 - du) * u + a
    m = (1 - dv) * v + u + drive
    threshold = v_th
    if reset == 2:
        m = m - s * v_th
    elif reset == 5:
        m = (1 - s) * m
    elif reset == 4 and v - v_th > 0:
        threshold = v_th * 2.0
    return u, m, threshold


@jit
def after_spike(m, spike, thr, reset):
    """v after the step."""
    if reset == 1 or reset == 5:
        return m - spike * m
    if reset == 3 or reset == 4:
        return m - spike * thr
    return m


@jit
def neuron_float(a, u, v, s, du, dv, v_th, drive, reset):
    """`lif.step` for one neuron: (output, u, v, margin), the margin of reset None being m."""
    u, m, threshold = membrane_float(a, u, v, s, du, dv, v_th, drive, reset)
    if reset == 0:
        return m, u, m, m
    margin = m - threshold
    spike = 1.0 if margin > 0 else 0.0
    return spike, u, after_spike(m, spike, v_th, reset), margin


@jit
def truncated(x, decay):
    """x (4096 - decay) / 4096 toward zero."""
    product = x * (4096 - decay)
    return -((-product) >> 12) if product < 0 else product >> 12


@jit
def membrane_fixed(a, u, v, s, du, dv, v_th, drive, reset):
    """`lif_fixed.step_fixed` for one neuron up to the spike: (u, m, threshold in force)."""
    u = truncated(u, du + 1) + (a << 6)
    if u > UV_MAX:
        u = u - 2 * UV_MAX
    elif u <= -UV_MAX:
        u = u + 2 * UV_MAX
    threshold = v_th << 6
    m = truncated(v, dv) + u + drive
    if reset == 2:
        m = m - s * threshold
    m = min(max(m, 1 - UV_MAX), UV_MAX - 1)
    if reset == 5 and s > 0:
        m = 0
    elif reset == 4 and v > threshold:
        threshold = 2 * threshold
    return u, m, threshold


@jit
def neuron_fixed(a, u, v, s, du, dv, v_th, drive, reset):
    """`lif_fixed.step_fixed` for one neuron: (output, u, v, margin), as `neuron_float`."""
    u, m, threshold = membrane_fixed(a, u, v, s, du, dv, v_th, drive, reset)
    if reset == 0:
        return m, u, m, m
    margin = m - threshold
    spike = 1 if margin > 0 else 0
    return spike, u, after_spike(m, spike, v_th << 6, reset), margin


@jit
def adaptive_float(start, end, acc, u, v, s, adapt, wait, parameters, reset, margin):
    """`lif.step` for all neurons of an adaptive population, in place."""
    for n in range(start, end):
        adapt[n] = parameters[4, n] * adapt[n] + parameters[5, n] * s[n]
        u[n], m, threshold = membrane_float(
            acc[n], u[n], v[n], s[n], parameters[0, n], parameters[1, n], parameters[2, n],
            parameters[3, n], reset,
        )  # fmt: skip
        margin[n] = m - (threshold + adapt[n])
        s[n] = 1.0 if margin[n] > 0 and wait[n] <= 0 else 0.0
        wait[n] = parameters[6, n] if s[n] > 0 else max(wait[n] - 1, 0)
        v[n] = after_spike(m, s[n], parameters[2, n], reset)


@jit
def adaptive_fixed(start, end, acc, u, v, s, adapt, wait, parameters, reset, margin):
    """`adaptive_float` in Loihi's integers."""
    for n in range(start, end):
        raised = truncated(adapt[n], parameters[4, n]) + s[n] * parameters[5, n]
        adapt[n] = min(raised, UV_MAX - 1)
        u[n], m, threshold = membrane_fixed(
            acc[n], u[n], v[n], s[n], parameters[0, n], parameters[1, n], parameters[2, n],
            parameters[3, n], reset,
        )  # fmt: skip
        margin[n] = m - (threshold + adapt[n])
        s[n] = 1 if margin[n] > 0 and wait[n] <= 0 else 0
        wait[n] = parameters[6, n] if s[n] > 0 else max(wait[n] - 1, 0)
        v[n] = after_spike(m, s[n], parameters[2, n] << 6, reset)


@jit
def advance_float(
    t0, x, out, membrane, margin, history, u, v, s, adapt, wait, parameters, resets, populations,
    synapses, biases, bias_value, dense, data, target, indptr,
):  # fmt: skip
    """Run len(x) steps from step t0.

    x: inputs (time, input neurons); out, membrane and margin: (time, neurons), the latter two may
    be empty, (0, 0); history: (depth, input neurons + neurons), zero before the first step;
    u, v, s, adapt, wait: (neurons,); parameters: (7, neurons), du, dv, v_th, drive, rho, theta,
    n_ref; populations: (start, end, first synapse, last, first bias, last, adaptive) each.
    """
    depth, inputs = history.shape[0], x.shape[1]
    acc, active = np.zeros(u.size), np.zeros(history.shape[1], np.int64)
    distance = np.zeros(u.size)
    keep = margin.shape[0] > 0
    for step in range(x.shape[0]):
        t = t0 + step
        now = history[t % depth]
        now[:inputs] = x[step]
        for p in range(populations.shape[0]):
            start, end = populations[p, 0], populations[p, 1]
            acc[start:end] = 0
            for k in range(populations[p, 2], populations[p, 3]):
                if t >= synapses[k, 4]:
                    gather(
                        t, depth, history, synapses[k], dense, data, target, indptr, active, acc
                    )  # fmt: skip
            for b in range(populations[p, 4], populations[p, 5]):
                if t >= biases[b, 0]:
                    acc[start:end] += bias_value[biases[b, 1] : biases[b, 1] + end - start]
            if populations[p, 6]:
                adaptive_float(
                    start, end, acc, u, v, s, adapt, wait, parameters, resets[p], distance
                )
                for n in range(start, end):
                    now[inputs + n] = s[n]
                    out[step, n] = s[n]
                continue
            for n in range(start, end):
                y, u[n], v[n], far = neuron_float(
                    acc[n], u[n], v[n], s[n], parameters[0, n], parameters[1, n],
                    parameters[2, n], parameters[3, n], resets[p],
                )  # fmt: skip
                s[n] = y
                now[inputs + n] = y
                out[step, n] = y
                if keep:
                    distance[n] = far
        if membrane.shape[0]:
            membrane[step] = v
        if keep:
            margin[step] = distance


@jit
def shifted(value, exponent):
    """value 2^exponent as Lava shifts the accumulated sum (floor for negative exponents)."""
    return value << exponent if exponent > 0 else value >> -exponent


@jit
def advance_fixed(
    t0, x, out, membrane, margin, history, u, v, s, adapt, wait, parameters, resets, populations,
    synapses, biases, bias_value, dense, data, target, indptr, saturated,
):  # fmt: skip
    """`advance_float` in Loihi's integers; counts membranes at their limit in `saturated`."""
    depth, inputs = history.shape[0], x.shape[1]
    acc, part = np.zeros(u.size, np.int64), np.zeros(u.size, np.int32)  # int32 as in Lava
    active, distance = np.zeros(history.shape[1], np.int64), np.zeros(u.size, np.int64)
    keep = margin.shape[0] > 0
    for step in range(x.shape[0]):
        t = t0 + step
        now = history[t % depth]
        now[:inputs] = x[step]
        for p in range(populations.shape[0]):
            start, end = populations[p, 0], populations[p, 1]
            acc[start:end] = 0
            for k in range(populations[p, 2], populations[p, 3]):
                if t >= synapses[k, 4]:
                    part[start:end] = 0
                    gather(
                        t, depth, history, synapses[k], dense, data, target, indptr, active, part
                    )  # fmt: skip
                    for n in range(start, end):
                        acc[n] += shifted(np.int64(part[n]), synapses[k, 5])
            for b in range(populations[p, 4], populations[p, 5]):
                if t >= biases[b, 0]:
                    for n in range(start, end):
                        acc[n] += shifted(bias_value[biases[b, 1] + n - start], biases[b, 2])
            if populations[p, 6]:
                adaptive_fixed(
                    start, end, acc, u, v, s, adapt, wait, parameters, resets[p], distance
                )
                for n in range(start, end):
                    now[inputs + n] = s[n]
                    out[step, n] = s[n]
                    saturated[p] += abs(v[n]) >= UV_MAX - 1
                continue
            for n in range(start, end):
                y, u[n], v[n], far = neuron_fixed(
                    acc[n], u[n], v[n], s[n], parameters[0, n], parameters[1, n],
                    parameters[2, n], parameters[3, n], resets[p],
                )  # fmt: skip
                s[n] = y
                now[inputs + n] = y
                out[step, n] = y
                if keep:
                    distance[n] = far
                if abs(v[n]) >= UV_MAX - 1:
                    saturated[p] += 1
        if membrane.shape[0]:
            membrane[step] = v
        if keep:
            margin[step] = distance

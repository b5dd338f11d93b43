"""`neurons.hdlif` over all steps and samples of a layer, as one compiled loop.

Only inputs that are not 0 are read. Sums are taken in the order of the inputs: where the weights
are -1, 0 and 1 and the inputs codes, every order gives the same number, bit for bit.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import numpy as np

from grasp_plugin.neurons.kernels import jit
from grasp_plugin.neurons.lif_fixed import UV_MAX

LIMIT = UV_MAX - 1


@jit
def layer_float(x, kernel, decay, theta, gain, offset, parallel, q, top, out):
    """out[t, b] = what a layer sends; kernel (N_i, N_o); rows (R, N_o); q = 0: float spikes."""
    steps, batch, inputs = x.shape
    size = kernel.shape[1]
    z, v = np.empty(size), np.empty(size)
    for b in range(batch):
        v[:] = 0.0
        for t in range(steps):
            z[:] = 0.0
            for i in range(inputs):
                value = x[t, b, i]
                if value != 0.0:
                    for n in range(size):
                        z[n] += kernel[i, n] * value
            d, h = t % decay.shape[0], t % theta.shape[0]
            g, c = t % gain.shape[0], t % offset.shape[0]
            for n in range(size):
                m = gain[g, n] * z[n] + offset[c, n]
                if not parallel:
                    m = decay[d, n] * v[n] + m
                s = 0.0
                v[n] = m
                if m > theta[h, n]:
                    s = m - theta[h, n]
                    v[n] = theta[h, n]
                if q > 0.0:
                    s = min(np.rint(s / q), top) * q
                out[t, b, n] = s


@jit
def layer_fixed(x, kernel, dv, vth, bias, act_shift, mult, shift, parallel, top, out):
    """The same in integers; returns how many membranes stood at their limit."""
    steps, batch, inputs = x.shape
    size = kernel.shape[1]
    z, v = np.empty(size, np.int64), np.empty(size, np.int64)
    saturated = 0
    for b in range(batch):
        v[:] = 0
        for t in range(steps):
            z[:] = 0
            for i in range(inputs):
                value = x[t, b, i]
                if value != 0:
                    for n in range(size):
                        z[n] += 2 * kernel[i, n] * value
            d, h = t % dv.shape[0], t % vth.shape[0]
            for n in range(size):
                m = (z[n] << act_shift[n]) + bias[n]
                if not parallel:
                    product = v[n] * (4096 - dv[d, n])
                    m += (product >> 12) if product >= 0 else -((-product) >> 12)
                m = min(max(m, -LIMIT), LIMIT)
                if m == LIMIT or m == -LIMIT:
                    saturated += 1
                s = max(m - vth[h, n], 0)
                v[n] = min(m, vth[h, n])
                code = (s * mult[n] + (1 << (shift[n] - 1))) >> shift[n]
                out[t, b, n] = min(code, top)
    return saturated

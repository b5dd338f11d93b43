"""Padded spike times to arrivals in order of time, once per layer and batch, and back.

Padded spike times are (batch, neuron, spike) [ms], inf where there is no spike. Arrivals lie one
sample after the other; their number is that of the spikes, not of the padding.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.exact.flow import decays, jit
from grasp_plugin.network.weights import Array

INSERTION_BELOW = 64  # arrivals that are sorted by plain insertion


class Arrivals(NamedTuple):
    """Presynaptic spikes in order of arrival, dendritic and synaptic delays not yet added.

    Args:
        first: (batch + 1,), where each sample begins.
        time, source, slot: (A,), time [ms], presynaptic neuron, flat index in the padded times.
        em, es, ka, ea: (A,), e^{-u/tau_m}, e^{-u/tau_s}, kappa(u), e^{-u/tau_a} of the interval u
            since the arrival before, shared by all neurons of the layer.
    """

    first: Array
    time: Array
    source: Array
    slot: Array
    em: Array
    es: Array
    ka: Array
    ea: Array


@jit
def sort_by(keys, order, lo, hi):
    """Sort keys[lo:hi] and order[lo:hi] with it: insertion where few, else Shell's gaps first."""
    gap = 1
    while (hi - lo) > INSERTION_BELOW and 3 * gap < (hi - lo) // 3:
        gap = 3 * gap + 1
    while gap >= 1:
        for k in range(lo + gap, hi):
            key, item, j = keys[k], order[k], k - gap
            while j >= lo and keys[j] > key:
                keys[j + gap], order[j + gap] = keys[j], order[j]
                j -= gap
            keys[j + gap], order[j + gap] = key, item
        gap //= 3


@jit
def _merge(times, axonal, t_end):
    """(first, time, slot, their number, faults): the spikes that arrive by t_end, sorted."""
    batch, sources, width = times.shape
    first = np.zeros(batch + 1, np.int64)
    time, slot = np.empty(times.size), np.empty(times.size, np.int64)
    at = faults = np.int64(0)
    for b in range(batch):
        for m in range(sources):
            for k in range(width):
                t = times[b, m, k]
                if not t >= 0.0:
                    faults += 1
                elif t + axonal[m] <= t_end:
                    time[at] = t + axonal[m]
                    slot[at] = (b * sources + m) * width + k
                    at += 1
        first[b + 1] = at
        lo = first[b]
        sort_by(time, slot, lo, at)
    return first, time, slot, at, faults


@jit
def _tables(first, time, tau_m, tau_s, tau_a):
    em, es = np.ones(time.size), np.ones(time.size)
    ka, ea = np.ones(time.size), np.ones(time.size)
    for b in range(first.size - 1):
        for k in range(first[b] + 1, first[b + 1]):
            u = time[k] - time[k - 1]
            em[k], es[k], ka[k] = decays(u, tau_m, tau_s)
            ea[k] = math.exp(-u / tau_a)
    return em, es, ka, ea


@jit
def _copy_padded(counts, flat, padded, out):
    """padded (batch, neuron, spike) <-> flat (neuron, sample, spike); out: into padded."""
    at = 0
    for n in range(counts.shape[1]):
        for b in range(counts.shape[0]):
            for k in range(counts[b, n]):
                if out:
                    padded[b, n, k] = flat[at]
                else:
                    flat[at] = padded[b, n, k]
                at += 1


def to_padded(counts: Array, time: Array, width: int) -> Array:
    """Spikes in order (neuron, sample, spike) as padded times (batch, neuron, width)."""
    out = np.full((*counts.shape, width), np.inf)
    _copy_padded(counts, np.ascontiguousarray(time), out, True)
    return out


def from_padded(counts: Array, padded: Array) -> Array:
    """The entries of padded (batch, neuron, spike) that are spikes, in order of the log."""
    out = np.empty(int(counts.sum()))
    _copy_padded(counts, out, padded, False)
    return out


def merge(times: Array, axonal: Array, t_end: float, taus: tuple[float, float, float]) -> Arrivals:
    """The arrivals of padded spike times, sorted in each sample.

    Args:
        times: (batch, neuron, spike); axonal: (neuron,) delays [ms] >= 0.
        t_end: later arrivals are left out; taus: tau_m, tau_s, tau_a of the receiving layer.

    Raises:
        Invalid: a time that is negative or NaN.
    """
    first, time, slot, count, faults = _merge(np.ascontiguousarray(times, float), axonal, t_end)
    if faults:
        raise Invalid(
            "times",
            f"expected spike times >= 0 ms, inf for none, got {faults} negative or NaN",
            "Shift the times, pad with inf",
        )
    time, slot = time[:count].copy(), slot[:count].copy()
    source = slot // max(times.shape[2], 1) % max(times.shape[1], 1)
    return Arrivals(first, time, source, slot, *_tables(first, time, *taus))

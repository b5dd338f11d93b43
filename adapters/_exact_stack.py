"""A stack of exact spike-time layers as plain arrays, and its delays in whole steps of a grid."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.exact import Parameters
from grasp_plugin.network.weights import Array

SLACK = 0.499  # of a step: what rounding may take below 0 or above the most
SWEEPS = 3  # over the hidden layers; a shift moves the delays on both sides


def stack_of(layers: Any) -> list[Parameters]:
    """Layers, first to last, as `Parameters`.

    Args:
        layers: `SpikeTimeLayer`s, the last may be a `LeakyReadout`; or `Parameters` of such.

    Raises:
        Invalid: no layer, shapes that do not chain, or a read-out before the end.
    """
    stack = [x if isinstance(x, Parameters) else x.snapshot() for x in layers]
    if not stack:
        raise Invalid("layers", "expected at least one layer, got none", "Pass the layers")
    for k, (below, above) in enumerate(pairwise(stack), start=1):
        outs, ins = np.shape(below.weight)[0], np.shape(above.weight)[1]
        if outs != ins:
            raise Invalid(
                f"layer {k + 1}", f"expected {outs} inputs, got {ins}", "Pass layers in order"
            )
        if not spiking(below):
            raise Invalid(
                f"layer {k}", "expected spikes below the last layer, got a read-out", "Reorder"
            )
    return stack


def spiking(p: Parameters) -> bool:
    """False for a read-out (theta = inf).

    Raises:
        Invalid: a layer of both kinds.
    """
    finite = np.isfinite(np.asarray(p.theta, float))
    if np.any(finite) != np.all(finite):
        raise Invalid("theta", "expected all finite or all inf, got both", "Split the layer")
    return bool(np.all(finite))


def row(value: Any, size: int) -> Array:
    """A number, array or None (0) as (size,) float64."""
    out: Array = np.zeros(size) + np.asarray(0.0 if value is None else value, float)
    return out


def total_delay(p: Parameters) -> Array:
    """Synaptic + axonal + dendritic delay [N_o, N_i] in ms."""
    outs, ins = np.shape(p.weight)
    delay = np.zeros((outs, ins)) if p.delay is None else np.asarray(p.delay, float)
    out: Array = delay + row(p.axonal, ins)[None, :] + row(p.dendritic, outs)[:, None]
    return out


def without_threshold(p: Parameters) -> Parameters:
    """The layer with theta = 1 and theta in its weights, beta, V_r and b: the same spike times.

    (V, theta, beta, V_r, b, w) -> s (...) changes no spike time; s = 1 / theta.
    """
    outs = np.shape(p.weight)[0]
    s = 1.0 / row(p.theta, outs)
    return replace(
        p, weight=np.asarray(p.weight, float) * s[:, None], theta=np.ones(outs),
        beta=row(p.beta, outs) * s, v_reset=row(p.v_reset, outs) * s, bias=row(p.bias, outs) * s,
    )  # fmt: skip


def steps_of_delays(
    stack: list[Parameters], dt_ms: float, *, gauge: bool, most: int | None
) -> tuple[list[Array], list[Array]]:
    """Delays in steps, D = round(d / dt), and the shift of each neuron's spikes.

    With `gauge` a hidden neuron n may spike delta_n later: (d_in + delta, d_out - delta) leaves all
    that follows unchanged. delta minimises the rounding, sum w^2 (d / dt - D)^2, and keeps every D
    in 0..most. A bias acts from t = 0 and not from the arrivals on: such a neuron stays.

    Args:
        most: the largest D; None: no limit.

    Returns:
        [N_o, N_i] integers by layer; delta (N_o,) [ms] by layer, 0 in the last.

    Raises:
        Refused: a delay outside 0..most, with the dt that would fit.
    """
    delays = [total_delay(p) / dt_ms for p in stack]
    used = [np.asarray(p.weight) != 0 for p in stack]
    shifts = [np.zeros(len(d)) for d in delays]
    top = np.inf if most is None else float(most)
    for _ in range(SWEEPS if gauge else 0):
        for k in range(len(stack) - 1):
            biased = row(stack[k].bias, len(delays[k])) != 0
            for n in np.flatnonzero(~biased):
                into, out = used[k][n], used[k + 1][:, n]
                delta = _shift(
                    delays[k][n][into], delays[k + 1][:, n][out],
                    np.asarray(stack[k].weight)[n][into],
                    np.asarray(stack[k + 1].weight)[:, n][out], top,
                )  # fmt: skip
                delays[k][n] += delta
                delays[k + 1][:, n] -= delta
                shifts[k][n] += delta
    whole = []
    for k, (delay, there) in enumerate(zip(delays, used, strict=True), start=1):
        steps = np.round(delay).astype(np.int64)
        _refuse_outside(f"layer {k}", steps[there], dt_ms, most, gauge)
        whole.append(np.where(there, steps, np.clip(steps, 0, most)))
    return whole, [s * dt_ms for s in shifts]


def _shift(into: Array, out: Array, w_in: Array, w_out: Array, top: float) -> float:
    """delta of one neuron, in steps: the least rounding, as near to 0 as the range allows."""
    if not into.size or not out.size:
        return 0.0
    lo = max(-into.min(), out.max() - top) - SLACK
    hi = min(out.min(), top - into.max()) + SLACK
    if lo > hi:
        return float(lo + hi) / 2  # no shift fits: refused once rounded
    y, w = np.concatenate([into, -out]), np.concatenate([w_in, w_out]) ** 2
    edges = np.sort((0.5 - y) % 1.0)  # where one of them begins to round to the next step
    ends = np.append(edges[1:], edges[0] + 1)
    middle = (edges + ends) / 2
    residual = y[None, :] + middle[:, None]
    residual -= np.round(residual)
    best = np.clip(middle - residual @ w / w.sum(), edges, ends)
    best = np.concatenate([best, [0.0]])
    error = y[None, :] + best[:, None]
    cost = (error - np.round(error)) ** 2 @ w
    choices = (best[:, None] + np.arange(-1, 2)).ravel()
    costs = np.where((choices >= lo) & (choices <= hi), np.repeat(cost, 3), np.inf)
    if not np.isfinite(costs).any():
        return float(np.clip(0.0, lo, hi))
    near = costs <= costs.min() * (1 + 1e-9) + 1e-15
    return float(choices[near][np.argmin(np.abs(choices[near]))])


def _refuse_outside(name: str, steps: Array, dt_ms: float, most: int | None, gauge: bool) -> None:
    if steps.size and (steps.min() < 0 or (most is not None and steps.max() > most)):
        limit = "" if most is None else f"..{most}"
        shift = "" if gauge else "Pass gauge=True to shift hidden neurons, or "
        fits = "" if most is None else f"take dt_ms >= {steps.max() * dt_ms / most:.3g}, "
        raise Refused(
            name,
            f"expected delays of 0{limit} steps of {dt_ms:g} ms, got {steps.min()}..{steps.max()}",
            f"{shift}clip the delays in training, {fits}or pass most_steps=None (float only)",
        )

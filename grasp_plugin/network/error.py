"""How far the integers are from the float network: predicted, and found on a real input.

Membranes are compared without spikes and resets (a spike makes two nearby membranes incomparable):
each population is driven by the same input spikes, once with its float and once with its integer
parameters. The prediction needs no run: for neuron i with inputs j that spike with mean p_j and
variance q_j a step, rounding errors D_ij = what_ij - w_ij, and h the membrane's response to a unit
input,

    sigma_v(t)^2 = sum_j D_ij^2 q_j sum_{s<=t} h_s^2
                   + ((sum_j D_ij p_j + bias error) H_t + (mean input) (Hhat_t - H_t))^2

with H_t = sum_{s<=t} h_s for the float and Hhat_t for the rounded decays,
averaged over t and i; inputs are taken as white and independent. Where the D_ij are independent and
uniform in +-Delta/2 this is, on average,

    (Delta/sqrt 12) sqrt(N p (1-p)/(1-beta^2) + N (p/(1-beta))^2)

for a LIF (du = 1, t -> inf: sum h = 1/(1-beta), sum h^2 = 1/(1-beta^2)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from grasp_plugin.network import weights as W
from grasp_plugin.network.network import Bias, Network, Population, Projection
from grasp_plugin.network.quantise import DECAY_ONE, weight_limit
from grasp_plugin.network.weights import Array
from grasp_plugin.neurons.lif_fixed import UV_MAX, integrate_fixed


@dataclass(frozen=True)
class LayerError:
    """One population's quantisation.

    Args:
        name: the population.
        scale: weight LSBs per float unit.
        exponents: weight exponents of its projections.
        at_limit: share of weights at the largest integer.
        worst_v: largest membrane that all inputs firing at once could reach, over 2^23; above 1
            the membrane may saturate.
        predicted: rms error of the membrane, in float units.
        found, rms_v: what a run found, and the rms of the float membrane; None without a run.
    """

    name: str
    scale: float
    exponents: tuple[int, ...]
    at_limit: float
    worst_v: float
    predicted: float
    found: float | None = None
    rms_v: float | None = None


ASSUMED_RATE, ASSUMED_STEPS = 0.1, 200  # where there is no run to take them from


def layer_errors(
    network: Network, fixed: Network, sources: Mapping[str, Array] | None = None
) -> list[LayerError]:
    """Predicted and, with a run, found membrane error of every population.

    Args:
        network, fixed: the float network and `quantise` of it.
        sources: output of every input and population, (time, batch, size), from a torch recording.
            Without it the prediction takes spikes with probability 0.1 over 200 steps.
    """
    out = []
    for p in network.populations:
        q, into = fixed[p.name], network.into(p.name)
        into_fixed = fixed.into(p.name)
        pairs = zip(network.biases, fixed.biases, strict=True)
        biases = [(b, bq) for b, bq in pairs if b.target == p.name]
        row = LayerError(
            name=p.name,
            scale=float(q.scale or 1.0),
            exponents=tuple(k.weight_exp for k in into_fixed),
            at_limit=_at_limit(into_fixed),
            worst_v=_worst_membrane(p, into, float(q.scale or 1.0)),
            predicted=_predicted(p, q, into, into_fixed, biases, sources),
        )
        if sources is not None:
            exact = _free_run(network, p, into, sources)
            rough = _free_run(fixed, q, into_fixed, sources) / (64.0 * float(q.scale or 1.0))
            row = replace(
                row,
                found=float(np.sqrt(np.mean((rough - exact) ** 2))),
                rms_v=float(np.sqrt(np.mean(exact**2))),
            )
        out.append(row)
    return out


def _free_run(
    network: Network, p: Population, into: tuple[Projection, ...], sources: Mapping[str, Array]
) -> Array:
    """Membrane (time, batch, size) without spikes, in the network's own arithmetic."""
    steps, batch = next(iter(sources.values())).shape[:2]
    whole = network.precision == "loihi"
    kind = np.int64 if whole else np.float64
    a: Array = np.zeros((steps, batch, p.size), kind)
    for k in into:
        x = sources[k.source]
        x = np.round(x).astype(np.int64) if whole else x
        for delay in np.unique(k.delay_steps):
            weight = k.weight
            if np.ndim(k.delay_steps):
                weight = np.where(k.delay_steps == delay, W.to_dense(weight), 0)
            y = np.asarray(W.apply(weight, x)).astype(kind)
            if whole:
                y = _shifted(y, k.weight_exp)
            a[delay:] += y[: steps - delay]
    for b in network.biases:
        if b.target == p.name:
            value = b.value.astype(kind)
            a[b.onset_steps :] += _shifted(value, b.weight_exp) if whole else value
    return _filtered(p, a, whole)


def _filtered(p: Population, a: Array, whole: bool) -> Array:
    v = np.broadcast_to(p.v_init, a.shape[1:]).astype(a.dtype)
    u, out = np.zeros_like(a[0]), np.empty_like(a)
    for t in range(len(a)):
        if whole:
            drive = p.drive << p.drive_exp
            u, v = integrate_fixed(a[t], u, v, du=p.du, dv=p.dv, drive=drive)
        else:
            u = (1 - p.du) * u + a[t]
            v = (1 - p.dv) * v + u + p.drive
        out[t] = v
    return out


def _shifted(value: Array, exponent: int) -> Array:
    return value << exponent if exponent > 0 else value >> -exponent


def _at_limit(into: tuple[Projection, ...]) -> float:
    total = sum(W.values(k.weight).size for k in into)
    full = sum(int(np.sum(np.abs(W.values(k.weight)) >= weight_limit(k.weight))) for k in into)
    return full / total if total else 0.0


def _worst_membrane(p: Population, into: tuple[Projection, ...], scale: float) -> float:
    total = np.zeros(p.size)
    for k in into:
        absolute = W.with_values(k.weight, np.abs(W.values(k.weight)))
        total += W.apply(absolute, np.ones(absolute.shape[1]))
    reach = total / p.du / np.maximum(p.dv, 1e-12)
    return float(np.max(reach, initial=0.0) * 64 * scale / UV_MAX)


def response(du: Array, dv: Array, steps: int) -> tuple[Array, Array]:
    """sum h and sum h^2 of the membrane's response to a unit input, up to each of `steps`."""
    u, v = np.ones_like(du), np.ones_like(dv)
    total, square = [v], [v**2]
    for _ in range(steps - 1):
        u = (1 - du) * u
        v = (1 - dv) * v + u
        total.append(total[-1] + v)
        square.append(square[-1] + v**2)
    return np.stack(total), np.stack(square)


def _predicted(
    p: Population,
    q: Population,
    into: tuple[Projection, ...],
    into_fixed: tuple[Projection, ...],
    biases: list[tuple[Bias, Bias]],
    sources: Mapping[str, Array] | None,
) -> float:
    steps = ASSUMED_STEPS if sources is None else next(iter(sources.values())).shape[0]
    total, square = response(p.du, p.dv, steps)
    rounded, _ = response((q.du + 1) / DECAY_ONE, q.dv / DECAY_ONE, steps)
    variance, mean, offset = np.zeros_like(total), np.zeros(p.size), np.zeros(p.size)
    for k, kq in zip(into, into_fixed, strict=True):
        if sources is None:
            rate = np.full(k.weight.shape[1], ASSUMED_RATE)
            spread = rate * (1 - rate)
        else:
            x = sources[k.source].reshape(-1, sources[k.source].shape[-1])
            rate, spread = x.mean(axis=0), x.var(axis=0)
        rounded_weight = W.values(kq.weight) * (2.0**kq.weight_exp / float(q.scale or 1.0))
        off = W.to_sparse(W.with_values(k.weight, rounded_weight - W.values(k.weight)))
        variance += off.multiply(off) @ spread * square
        offset += off @ rate
        mean += np.asarray(W.apply(k.weight, rate))
    for b, bq in biases:
        mean += b.value
        offset += bq.value * (2.0**bq.weight_exp / float(q.scale or 1.0)) - b.value
    bias = offset * total + mean * (rounded - total)
    return float(np.sqrt(np.mean(variance + bias**2)))

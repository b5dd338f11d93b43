"""Float `Network` -> the same network on Loihi integers, and back.

Per population a scale S (weight LSBs per float unit; membranes carry 64 S):

    mixed signs   w_int = 2 round(w S / 2^(e+1)), |w_int| <= 254
    one sign      w_int = round(w S / 2^e),       |w_int| <= 255
    v_th = floor(v_th S) <= 131071;  du = round(4096 du) - 1;  dv = round(4096 dv), both 0..4095
    drive mantissa * 2^exp = drive S 64, 13 bits signed, exponent 0..7
    theta = round(theta S 64) < 2^23;  rho = round(4096 (1 - rho)) in 0..4095;  n_ref <= 63

All projections and biases into a population share S and have their own exponent e in -8..7. S is
the largest for which thresholds, drive, exponents, the range of u (it wraps with a sign flip beyond
2^23) and the headroom of v (it saturates at 2^23 / (64 S)) fit. Headroom is what the membrane could
be driven to if all inputs that a reset does not check came at once, within 8 to 64 thresholds (as
raised by one spike where they adapt); a larger S makes thresholds finer, never weights. No
parameter is clipped: what does not fit makes S smaller, and no S at all is refused. A membrane that
saturates all the same is counted by the Lava session (`Recording.saturated`). All weights of a
projection are rounded to one step: where that takes all non-zero weights of a neuron, a warning
says so; where it takes all of the projection, that is an error.

Weights that learn drive more than they first did. S is then the largest for which u still fits with
every plastic weight at its limit 256 2^e,

    64 (sum_plastic 256 2^e x_max + sum_others |w_int| 2^e x_max) / du < 2^23

or, where that would cost bits of the weights (above about 1024 inputs without synaptic memory), for
which the first weights fit `room` times; a warning then names the population.

Source: Lava 0.10 (lava/proc/lif, dense, utils/weightutils), see `neurons.lif_fixed`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from grasp_plugin.checks import is_real
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.network import (
    Bias,
    Network,
    Population,
    Projection,
    require_network,
)
from grasp_plugin.network.scales import DECAY_ONE as DECAY_ONE
from grasp_plugin.network.scales import MIXED_MAX, FanIn, scale_of
from grasp_plugin.network.scales import integers as integers
from grasp_plugin.network.scales import weight_limit as weight_limit
from grasp_plugin.network.weights import Array, Conv, Weight
from grasp_plugin.neurons.lif_fixed import check_registers

log = logging.getLogger(__name__)


def quantise(
    network: Network,
    input_max: float | Mapping[str, float] = 1.0,
    headroom: float | None = None,
    plastic: Collection[str] = (),
    growth: float = 2.0,
    room: float | None = None,
) -> Network:
    """The network on Loihi integers.

    Args:
        network: precision "float".
        input_max: largest absolute value an input sends a step (1 for spikes), for the range check
            of u; one value or one an input.
        headroom: thresholds that the membrane can hold; by default from the weights, as above.
            Where it would cost bits of the weights, less is used.
        plastic: projections and biases that will learn: their weights may change sign and grow.
        growth: how many times the largest weight a plastic weight can hold; every doubling costs a
            bit of its precision. A layer that starts near zero needs much more than 2.
        room: how many times what the first weights can drive a current, and the membrane of an LI,
            can hold. None: with plastic weights, all that these can drive at their limits, or 1
            where that would cost bits of the weights (a warning says so); without, 1. A number is
            kept even if it costs bits.

    Returns:
        A `Network` of precision "loihi"; `Population.scale` holds S.

    Raises:
        Refused: a population for which no scale fits; a membrane (LI, CubaLI, I) that feeds another
            population, since its graded value has another scale than a spike.
        Invalid: the network is in integers already, an input_max or headroom is not positive,
            growth or room is below 1, a name is unknown, or a projection's weights all round to 0.
    """
    require_network(network)
    _check_numbers(growth, room, headroom)
    _check_network(network, plastic)
    grows = dict.fromkeys(plastic, growth)
    maxima = _input_maxima(network, input_max)
    populations, projections, biases = [], {}, {}
    for p in network.populations:
        into = network.into(p.name)
        mine = [b for b in network.biases if b.target == p.name]
        scale = scale_of(FanIn(p, into, tuple(mine), maxima, grows), headroom, room)
        populations.append(_population(p, scale))
        for k in into:
            projections[k.name] = _projection(k, scale, grows.get(k.name))
        for b in mine:
            biases[b.name] = _bias(b, scale, grows.get(b.name, 1.0))
    return replace(
        network,
        populations=tuple(populations),
        projections=tuple(projections[k.name] for k in network.projections),
        biases=tuple(biases[b.name] for b in network.biases),
        precision="loihi",
    )


def dequantise(network: Network) -> Network:
    """The float network that the integers stand for: a fast, valid forecast of the integer run.

    w = w_int 2^e / S, v_th / S, theta / (64 S), decays / 4096; truncation of u, v and A is not
    modelled.

    Raises:
        Invalid: the network is in float already.
    """
    require_network(network)
    if network.precision != "loihi":
        raise Invalid("network", "expected Loihi integers, got float", "Pass quantise(network)")
    scale = {p.name: float(p.scale or 1.0) for p in network.populations}
    populations = []
    for p in network.populations:
        fine = 64.0 * scale[p.name]
        populations.append(
            replace(
                p,
                du=(p.du + 1) / DECAY_ONE,
                dv=p.dv / DECAY_ONE,
                v_th=p.v_th / scale[p.name],
                drive=p.drive * 2.0**p.drive_exp / fine,
                v_init=p.v_init / fine,
                scale=None,
                drive_exp=0,
                rho=(DECAY_ONE - p.rho) / DECAY_ONE if p.adaptive else np.zeros(p.size),
                theta=p.theta / fine,
            )
        )

    def floats(weight: Weight, exponent: int, target: str) -> Weight:
        return W.with_values(weight, W.values(weight) * (2.0**exponent / scale[target]))

    return replace(
        network,
        populations=tuple(populations),
        projections=tuple(
            replace(k, weight=floats(k.weight, k.weight_exp, k.target), weight_exp=0)
            for k in network.projections
        ),
        biases=tuple(
            replace(b, value=b.value * (2.0**b.weight_exp / scale[b.target]), weight_exp=0)
            for b in network.biases
        ),
        precision="float",
    )


def _check_numbers(growth: float, room: float | None, headroom: float | None) -> None:
    for name, given in (("growth", growth), ("room", 1.0 if room is None else room)):
        if not is_real(given, 1.0):
            raise Invalid(name, f"expected {name} >= 1, got {given!r}", "Pass 2 or more")
    if headroom is not None and (not is_real(headroom, 0.0) or headroom == 0):
        raise Invalid("headroom", f"expected headroom > 0, got {headroom!r}", "Pass e.g. 8")


def _check_network(network: Network, plastic: Collection[str]) -> None:
    known = [*(k.name for k in network.projections), *(b.name for b in network.biases)]
    if isinstance(plastic, str):
        raise Invalid("plastic", f"expected names, got {plastic!r}", f"Pass [{plastic!r}]")
    for name in plastic:
        if name not in known:
            raise Invalid(
                str(name),
                f"expected a projection or bias, one of {', '.join(known)}, got {name!r}",
                "Check the name",
            )
    if network.precision != "float":
        raise Invalid("network", "expected float precision, got integers", "Quantise once")
    for k in network.projections:
        if k.source not in network.inputs and not network[k.source].spiking:
            raise Refused(
                k.source,
                f"expected spikes into {k.target} on Loihi, got the membrane of a "
                f"{network[k.source].node}",
                "Read the membrane out only, or run in float",
            )


def _input_maxima(network: Network, given: float | Mapping[str, float]) -> dict[str, float]:
    values = dict(given) if isinstance(given, Mapping) else dict.fromkeys(network.inputs, given)
    for name in values:
        if name not in network.inputs:
            raise Invalid(
                str(name),
                f"expected input_max for an input, one of {', '.join(network.inputs)}, got "
                f"{name!r}",
                "Check the name",
            )
    for name in network.inputs:
        value = values.setdefault(name, 1.0)
        if not is_real(value, 0.0) or value == 0:
            raise Invalid(name, f"expected input_max > 0, got {value!r}", "Pass the largest input")
    return values


def _population(p: Population, scale: float) -> Population:
    fine = 64.0 * scale
    largest = float(np.max(np.abs(p.drive), initial=0.0)) * fine
    exponent = max(0, int(np.ceil(np.log2(largest / 4095)))) if largest > 0 else 0
    out = replace(
        p,
        du=np.clip(np.round(DECAY_ONE * p.du) - 1, 0, 4095).astype(np.int64),
        dv=np.clip(np.round(DECAY_ONE * p.dv), 0, 4095).astype(np.int64),
        v_th=np.floor(p.v_th * scale).astype(np.int64),
        drive=np.round(p.drive * fine / 2.0**exponent).astype(np.int64),
        v_init=np.round(p.v_init * fine).astype(np.int64),
        scale=scale,
        drive_exp=exponent,
        rho=np.clip(np.round(DECAY_ONE * (1 - p.rho)), 0, 4095).astype(np.int64),
        theta=np.round(p.theta * fine).astype(np.int64),
    )
    check_registers(
        p.name, du=out.du, dv=out.dv, v_th=out.v_th, drive=out.drive, drive_exp=exponent
    )
    return out if out.adaptive else replace(out, rho=np.zeros(p.size, np.int64))


def _bias(b: Bias, scale: float, growth: float) -> Bias:
    value, exponent = integers(b.value, scale, MIXED_MAX, growth)
    if np.any(b.value) and not np.any(value):
        log.warning("%s: all of its %d biases round to 0", b.name, np.count_nonzero(b.value))
    return replace(b, value=value, weight_exp=exponent)


def _projection(k: Projection, scale: float, growth: float | None) -> Projection:
    limit = weight_limit(k.weight) if growth is None else MIXED_MAX
    value, exponent = integers(W.values(k.weight), scale, limit, growth or 1.0)
    out = replace(k, weight=W.with_values(k.weight, value), weight_exp=exponent)
    least = 2.0**exponent / scale * (1.0 if limit == MIXED_MAX else 0.5)
    _check_lost(k, out, least)
    return out


def _check_lost(k: Projection, fixed: Projection, least: float) -> None:
    """Say where all weights of a neuron round to 0; refuse where all of a projection do.

    Args:
        least: the weights up to here round to 0.
    """
    lost = _connected(k.weight) & ~_connected(fixed.weight)
    if not np.any(lost):
        return
    if not np.any(W.values(fixed.weight)):
        values = W.values(k.weight)
        raise Invalid(
            k.name,
            f"expected weights that Loihi integers can hold, got all {np.count_nonzero(values)} of "
            f"them rounded to 0: the largest is {np.abs(values).max():.3g}, and all up to "
            f"{least:.3g} become 0",
            f"Take a smaller growth, room or input_max, rescale what else drives {k.target} (all "
            "that does has one scale), leave the projection out, or run in float",
        )
    which = "output channels" if isinstance(k.weight, Conv) else f"neurons of {k.target}"
    log.warning(
        "%s: all weights of %d of %d %s round to 0 (those up to %.3g do): drop the outliers that "
        "take up the range, rescale the neurons, or take a smaller growth or room",
        k.name, np.count_nonzero(lost), lost.size, which, least,
    )  # fmt: skip


def _connected(weight: Weight) -> Array:
    """By neuron, of a convolution by output channel: any weight that is not 0?"""
    if isinstance(weight, np.ndarray | Conv):
        values = W.values(weight)
        return np.asarray(np.any(values.reshape(len(values), -1) != 0, axis=1))
    return np.diff(sp.csr_matrix(weight != 0).indptr) > 0

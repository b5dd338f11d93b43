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
saturates all the same is counted by the Lava session (`Recording.saturated`).

Source: Lava 0.10 (lava/proc/lif, dense, utils/weightutils), see `neurons.lif_fixed`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.network import Bias, Network, Population, Projection
from grasp_plugin.network.weights import Array, Weight
from grasp_plugin.neurons.lif_fixed import UV_MAX, check_registers

V_TH_MAX = 131071
DECAY_ONE = 4096
MIXED_MAX, SINGLE_MAX = 254, 255
EXPONENTS = range(-8, 8)


def quantise(
    network: Network,
    input_max: float | Mapping[str, float] = 1.0,
    headroom: float | None = None,
    plastic: Collection[str] = (),
    growth: float = 2.0,
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

    Returns:
        A `Network` of precision "loihi"; `Population.scale` holds S.

    Raises:
        Refused: a population for which no scale fits; a membrane (LI, CubaLI, I) that feeds another
            population, since its graded value has another scale than a spike.
        Invalid: the network is in integers already, an input_max is not positive, growth is below
            1, or a plastic name is unknown.
    """
    if not 1 <= growth < np.inf:
        raise Invalid("growth", f"expected growth >= 1, got {growth}", "Pass 2 or more")
    known = {k.name for k in network.projections} | {b.name for b in network.biases}
    for name in plastic:
        if name not in known:
            raise Invalid(name, f"expected a projection or bias, one of {', '.join(known)}", "Fix")
    grows = dict.fromkeys(plastic, growth)
    if network.precision != "float":
        raise Invalid("network", "expected float precision, got integers", "Quantise once")
    maxima = _input_maxima(network, input_max)
    for k in network.projections:
        if k.source not in network.inputs and not network[k.source].spiking:
            raise Refused(
                k.source,
                f"expected spikes into {k.target} on Loihi, got the membrane of a "
                f"{network[k.source].node}",
                "Read the membrane out only, or run in float",
            )
    populations, projections, biases = [], {}, {}
    for p in network.populations:
        into = network.into(p.name)
        mine = [b for b in network.biases if b.target == p.name]
        scale = _scale_with_headroom(p, into, mine, maxima, headroom, grows)
        populations.append(_population(p, scale))
        for k in into:
            projections[k.name] = _projection(k, scale, grows.get(k.name))
        for b in mine:
            value, exponent = integers(b.value, scale, MIXED_MAX, grows.get(b.name, 1.0))
            biases[b.name] = replace(b, value=value, weight_exp=exponent)
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


def integers(values: Array, scale: float, limit: int, growth: float = 1.0) -> tuple[Array, int]:
    """(integers, exponent) with values ~ integers 2^exponent / scale, and room to grow.

    limit 254 gives even integers (mixed signs), 255 any (one sign). The exponent is the least that
    fits and that loses nothing when Lava shifts the accumulated sum: -1 for even integers, else 0.
    """
    largest = float(np.max(np.abs(values), initial=0.0)) * scale * growth
    exact_shift = -1 if limit == MIXED_MAX else 0
    exponent = exact_shift
    if largest > 0:
        exponent = max(exact_shift, int(np.ceil(np.log2(largest / limit) - 1e-12)))
    step = 2 if limit == MIXED_MAX else 1
    return (step * np.round(values * scale / (step * 2.0**exponent))).astype(np.int64), exponent


def weight_limit(weight: Weight) -> int:
    """254 for mixed signs, 255 where all weights have one sign."""
    values = W.values(weight)
    mixed = values.size > 0 and values.min() < 0 < values.max()
    return MIXED_MAX if mixed else SINGLE_MAX


def _input_maxima(network: Network, given: float | Mapping[str, float]) -> dict[str, float]:
    values = dict(given) if isinstance(given, Mapping) else dict.fromkeys(network.inputs, given)
    for name in network.inputs:
        value = float(values.setdefault(name, 1.0))
        if not (np.isfinite(value) and value > 0):
            raise Invalid(name, f"expected input_max > 0, got {value}", "Pass the largest input")
    return values


def _scale_with_headroom(
    p: Population,
    into: tuple[Projection, ...],
    biases: list[Bias],
    maxima: Mapping[str, float],
    headroom: float | None,
    grows: Mapping[str, float],
) -> float:
    """S with the headroom wanted, or with less where S would cost bits of the weights."""
    up, down = _drives(p, into, biases, maxima)
    current = float(np.max((up + down) / np.maximum(p.du, 1.0 / DECAY_ONE), initial=0.0))
    memory = min(1.0 / max(float(p.dv.min()), 1e-9), 256.0)
    threshold = float(np.max(p.v_th + p.theta, initial=0.0))
    if p.reset in (None, "none"):
        reaches = [current * memory]
    elif headroom is not None:
        reaches = [headroom * threshold, threshold]
    else:
        unchecked = down if p.reset in ("value", "refractory1") else up + down
        worst = float(np.max(unchecked / np.maximum(p.du, 1.0 / DECAY_ONE), initial=0.0)) * memory
        reaches = [min(max(worst, 8 * threshold), 64 * threshold), 8 * threshold, threshold]
    largest = max((float(np.max(np.abs(W.values(k.weight)), initial=0.0)) for k in into), default=0)
    for reach in reaches:
        scale = _scale(p, into, biases, _bounds(p, current, reach), grows)
        if largest * scale >= MIXED_MAX / 2:
            break
    return scale


def _drives(
    p: Population, into: tuple[Projection, ...], biases: list[Bias], maxima: Mapping[str, float]
) -> tuple[Array, Array]:
    """The most that all inputs together can add to, and take from, each neuron in a step."""
    up, down = np.zeros(p.size), np.zeros(p.size)
    for k in into:
        inputs = np.full(k.weight.shape[1], maxima.get(k.source, 1.0))
        for side, sign in ((up, 1), (down, -1)):
            part = W.with_values(k.weight, np.maximum(sign * W.values(k.weight), 0.0))
            side += W.apply(part, inputs)
    for b in biases:
        up += np.maximum(b.value, 0.0)
        down += np.maximum(-b.value, 0.0)
    return up, down


def _scale(
    p: Population,
    into: tuple[Projection, ...],
    biases: list[Bias],
    bounds: Mapping[str, tuple[float, float]],
    grows: Mapping[str, float],
) -> float:
    """The largest S for which everything fits."""
    largest = [
        (
            float(np.max(np.abs(W.values(k.weight)), initial=0.0)) * grows.get(k.name, 1.0),
            MIXED_MAX if k.name in grows else weight_limit(k.weight),
        )
        for k in into
    ]
    largest += [
        (float(np.max(np.abs(b.value), initial=0.0)) * grows.get(b.name, 1.0), MIXED_MAX)
        for b in biases
    ]
    largest = [entry for entry in largest if entry[0] > 0]
    reference = max(largest, default=(max(float(np.max(np.abs(p.v_th))), 1.0), MIXED_MAX))
    for exponent in reversed(EXPONENTS):
        scale = reference[1] * 2.0**exponent / reference[0]
        if all(value * scale <= most for value, most in bounds.values()) and all(
            value * scale <= limit * 2.0 ** max(EXPONENTS) for value, limit in largest
        ):
            return scale
    worst = max(bounds, key=lambda key: bounds[key][0] / bounds[key][1])
    value, most = bounds[worst]
    raise Refused(
        p.name,
        f"expected a scale that fits Loihi, got none: {worst} needs {value * scale:.4g} of at most "
        f"{most} even with weight exponent {min(EXPONENTS)}",
        "Rescale the weights and thresholds of this population, or run in float",
    )


def _bounds(p: Population, current: float, reach: float) -> dict[str, tuple[float, float]]:
    """What grows with S, per unit of S, and the most it may be.

    Args:
        current: the largest |u|.
        reach: the |v| that must not saturate.
    """
    if np.any(p.v_th < 0):
        raise Refused(
            p.name,
            f"expected v_threshold >= v_reset on Loihi, got {p.v_th.min():.6g} above it",
            "Loihi thresholds are unsigned; run in float",
        )
    return {
        "v (headroom)": (reach * 64, float(UV_MAX)),
        "v_th": (float(np.max(p.v_th, initial=0.0)), V_TH_MAX + 0.999),
        "u (sum of |w|)": (current * 64, UV_MAX - 1.0),
        "theta": (float(np.max(p.theta, initial=0.0)) * 64, UV_MAX - 1.0),
        "drive": (float(np.max(np.abs(p.drive), initial=0.0)) * 64, 4095 * 2.0**7),
        "v_init": (float(np.max(np.abs(p.v_init), initial=0.0)) * 64, UV_MAX - 1.0),
    }


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


def _projection(k: Projection, scale: float, growth: float | None) -> Projection:
    limit = weight_limit(k.weight) if growth is None else MIXED_MAX
    value, exponent = integers(W.values(k.weight), scale, limit, growth or 1.0)
    return replace(k, weight=W.with_values(k.weight, value), weight_exp=exponent)

"""HD-LIF layers on whole inputs: folded exactly, then rounded to Loihi's integers.

The neuron is positively homogeneous: (v, theta, c, s) times a number changes no spike. So a layer
runs on whole inputs z = sum K code, in units of u = |g| q_in, with q_in the worth of a code below:

    K' = sign(g) K     theta' = theta / u     c' = c / u     s' = s* / u         code = Q(s' u / q)

which is exact (`fold`). In integers (`to_fixed`) one LSB of a neuron is u / 2^F:

    vth = round(theta' 2^F)    bias = round(c' 2^F)    dv = round(4096 (1 - lambda))
    q_mult / 2^q_shift = u / (q 2^F),  q_mult of 15 bits     act_shift = F - 1: weights are +-2

F is the most bits, for each neuron, with which no input can take its membrane to the 24-bit limit:

    2^F (max theta' + (top_in sum_i |K_i| + |c'|) min(T, 1 / (1 - max lambda))) < 2^23

Rounding moves codes that lie within an LSB or so of the next one.

References:
    specs/hmdf.md 11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network.hdlif import BITS, GradedLayer, check_input, check_stack, row
from grasp_plugin.network.limits import (
    BYTES_AXON,
    BYTES_NEURON,
    BYTES_PER_CORE,
    NEURONS_PER_CORE,
    CoreUse,
)
from grasp_plugin.network.weights import Array
from grasp_plugin.neurons import hdlif
from grasp_plugin.neurons.lif_fixed import UV_MAX, check_registers

MULT_BITS, MOST_SHIFT = 15, 30
MOST_CODE = 127  # of an 8-bit message
WIDE_BYTES = 8  # gain and code multiplier of a neuron: assumed


@dataclass(frozen=True, eq=False)
class Folded:
    """A layer in units of its own: the module's exact form on whole inputs.

    Args:
        kernel: K' (N_o, N_i), int8; unit: u (N_o,).
        decay: (R, 1), or (1, N_o) of a Mem-BN that all steps share; theta: theta' (R, N_o);
            offset: c' (N_o,).
        ratio: u / q (N_o,).
    """

    kernel: Array
    unit: Array
    decay: Array
    theta: Array
    offset: Array
    ratio: Array


def fold(layer: GradedLayer, input_step: float = 1.0) -> Folded:
    """The layer on whole inputs.

    Args:
        input_step: q_in, what one code of its input is worth.

    Raises:
        Refused: codes beyond 8-bit messages, fp weights, float spikes, a folded Mem-BN that differs
            by step, or a channel with gain 0.

    Example:
        >>> one = np.ones((1, 1))
        >>> layer = GradedLayer("a", np.array([[1, -1]]), "1bit", 4, one / 2, one / 2, -2 * one,
        ...                     one, code_step=0.25)
        >>> folded = fold(layer, 0.25)
        >>> folded.kernel.tolist(), folded.theta.tolist(), folded.offset.tolist()
        ([[-1, 1]], [[1.0]], [2.0])
    """
    most = f"codes of 8-bit messages, up to {MOST_CODE}"
    reasons = (
        (layer.top > MOST_CODE, most, f"{layer.top}", "Use fewer levels"),
        (layer.bits == "fp", "1-bit or 1.5-bit weights", "fp weights", "Train with 1.5-bit ones"),
        (layer.code_step is None, "4-bit spikes", "float spikes", "Train with spikes='4bit'"),
        (layer.mem_bn, "one gain for all steps", "Mem-BN, whose gain differs by step, so that the "
         "membrane has no unit of its own", "Run in float, or train without mem_bn"),
        (bool(np.any(layer.gain == 0)), "gains that are not 0", "0", "Remove these channels"),
    )  # fmt: skip
    for wrong, expected, got, remedy in reasons:
        if wrong:
            raise Refused(layer.name, f"expected {expected} for whole numbers, got {got}", remedy)
    gain = np.asarray(layer.gain, float)[0]
    unit = np.abs(gain) * input_step
    kernel = (np.sign(gain)[:, None] * layer.kernel).astype(np.int8)
    return Folded(
        kernel, unit, np.asarray(layer.decay, float), np.asarray(layer.theta, float) / unit,
        np.asarray(layer.offset, float)[0] / unit, unit / float(layer.code_step or 1.0),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class FixedLayer:
    """One layer in integers; the equations are `neurons.hdlif.step_fixed`'s.

    Args:
        kernel: (N_o, N_i) int8, -1, 0 and 1, of `bits`.
        dv: as `Folded.decay`, 12 bits; vth: (R, N_o), 24 bits; bias: (N_o,), 24 bits.
        q_mult, q_shift, act_shift: (N_o,).
        unit: (N_o,), what 2^(act_shift + 1) LSBs are worth in float.
        input_step, code_step: what one code is worth, received and sent.
        input_top, top: the largest code received and sent.
    """

    name: str
    kernel: Array
    bits: str
    steps: int
    dv: Array
    vth: Array
    bias: Array
    act_shift: Array
    q_mult: Array
    q_shift: Array
    unit: Array
    parallel: bool
    input_step: float
    code_step: float
    input_top: int
    top: int


def to_fixed(
    layers: list[GradedLayer], *, input_step: float = 1.0, input_top: int = 1,
    fraction_bits: int = 12,
) -> list[FixedLayer]:  # fmt: skip
    """Layers on Loihi's integers, by the equations of the module.

    Args:
        input_step, input_top: what one of the input's codes is worth, and the largest of them: 1
            and 1 for spikes of 0 and 1; 0.25 and 15 for codes of 4 bits in quarters.
        fraction_bits: F is not above this.

    Raises:
        Refused: what `fold` refuses; a threshold, bias or decay that does not fit its register.
        Invalid: fraction_bits outside 1..16, input_top outside 1..127, a step that is not positive.
    """
    if not 1 <= fraction_bits <= 16:
        raise Invalid("fraction_bits", f"expected 1..16, got {fraction_bits}", "Pass e.g. 12")
    if not 0 < input_step < np.inf:
        raise Invalid("input_step", f"expected a step > 0, got {input_step}", "Pass e.g. 0.25")
    if not 1 <= input_top <= MOST_CODE:
        raise Invalid("input_top", f"expected 1..{MOST_CODE}, got {input_top}", "Pass e.g. 15")
    out = []
    for layer in check_stack(layers):
        out.append(_fixed(layer, fold(layer, input_step), input_step, input_top, fraction_bits))
        input_step, input_top = out[-1].code_step, out[-1].top
    return out


def _fraction_bits(layer: GradedLayer, folded: Folded, top: int, most: int) -> Array:
    """F (N_o,), by the module's bound.

    Raises:
        Refused: a neuron without a single one.
    """
    keep = 0.0 if layer.parallel else min(float(folded.decay.max()), 1.0)
    steps = layer.steps if keep >= 1 else min(layer.steps, 1 / (1 - keep))
    into = top * np.abs(folded.kernel.astype(int)).sum(1) + np.abs(folded.offset)
    bound = np.abs(folded.theta).max(0) + into * steps + 1
    bits = np.floor(np.log2((UV_MAX - 1) / bound)).astype(np.int64)
    if bits.min() < 1:
        n = int(bits.argmin())
        raise Refused(
            layer.name, f"expected a membrane below 2^22 inputs, got up to {bound[n]:.3g} in "
            f"channel {n}, whose gain is {layer.gain[0, n]:.3g}",
            "Remove channels of such small gain, or raise them",
        )  # fmt: skip
    out: Array = np.minimum(bits, most)
    return out


def _fixed(
    layer: GradedLayer, folded: Folded, input_step: float, input_top: int, most: int
) -> FixedLayer:
    bits = _fraction_bits(layer, folded, input_top, most)
    dv = np.round(4096 * (1 - folded.decay)).astype(np.int64)
    if not layer.parallel:
        check_registers(layer.name, dv=dv)
    ratio = folded.ratio / 2.0**bits
    shift = np.minimum(np.floor(np.log2((2**MULT_BITS - 1) / ratio)), MOST_SHIFT).astype(np.int64)
    mult = np.round(ratio * 2.0**shift).astype(np.int64)
    if shift.min() < 1 or mult.min() < 1:
        raise Refused(
            layer.name, f"expected codes of 2^-{MOST_SHIFT} to 2^14 a LSB, got "
            f"{ratio.min():.3g}..{ratio.max():.3g}", "Rescale the layer",
        )  # fmt: skip
    vth = np.round(folded.theta * 2.0**bits).astype(np.int64)
    bias = np.round(folded.offset * 2.0**bits).astype(np.int64)
    return FixedLayer(
        layer.name, folded.kernel, layer.bits, layer.steps, dv, vth, bias, bits - 1, mult, shift,
        folded.unit, layer.parallel, input_step, float(layer.code_step or 1.0), input_top,
        layer.top,
    )  # fmt: skip


def run_fixed(layers: list[FixedLayer], x: Array) -> tuple[dict[str, Array], dict[str, int]]:
    """The codes that each layer sends (time, batch, N), int64; the reference in NumPy.

    Args:
        x: the input's codes (time, batch, N_i), integers, time <= T.

    Returns:
        (codes by layer, by layer how many membranes stood at their 24-bit limit).

    Raises:
        Invalid: floats, another shape, no step, or more than T.
    """
    check_input(layers[0], x, "integral")
    out, saturated = {}, {}
    for layer in layers:
        a = 2 * (x.astype(np.int64) @ layer.kernel.T.astype(np.int64))
        state, sent, count = hdlif.init(a[0]), [], 0
        for t in range(len(x)):
            vth = row(layer.vth, t)
            code, state, margin = hdlif.step_fixed(
                a[t], state, dv=row(layer.dv, t), vth=vth, bias=layer.bias,
                act_shift=layer.act_shift, q_mult=layer.q_mult, q_shift=layer.q_shift,
                top=layer.top, parallel=layer.parallel,
            )  # fmt: skip
            count += int(np.sum(np.abs(margin + vth) >= UV_MAX - 1))
            sent.append(code)
        out[layer.name] = x = np.stack(sent)
        if count:
            saturated[layer.name] = count
    return out, saturated


def hdlif_use(layers: Any) -> list[CoreUse]:
    """The estimate of `network.limits` with packed weights: 1 bit, 2 bits (ternary) or 32 (fp).

    A neuron has, beside what is assumed of a LIF, a gain and a code multiplier. Rows of weights
    begin at whole bytes.
    """
    rows = []
    for layer in check_stack(layers):
        outs, ins = layer.kernel.shape
        synapse_bytes = outs * -(-ins * BITS[layer.bits] // 8)
        neuron_bytes = outs * (BYTES_NEURON + WIDE_BYTES)
        cores = max(1, -(-outs // NEURONS_PER_CORE))
        while (synapse_bytes + neuron_bytes) / cores + ins * BYTES_AXON > BYTES_PER_CORE:
            if cores >= outs or ins * BYTES_AXON >= BYTES_PER_CORE:
                break
            cores += 1
        total = synapse_bytes + neuron_bytes + cores * ins * BYTES_AXON
        rows.append(
            CoreUse(
                layer.name, outs, outs * ins, synapse_bytes, ins * BYTES_AXON * cores,
                neuron_bytes, cores, total / (cores * BYTES_PER_CORE),
            )
        )  # fmt: skip
    return rows

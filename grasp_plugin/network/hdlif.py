"""Layers of HD-LIF neurons as plain arrays in float, and their reference run.

x are the spikes of the layer below, whole or graded:

    I = g (K x) + c     m = lambda_t v + I     s* = max(m - theta_t, 0)     v = min(m, theta_t)

K holds -1, 0 and 1 (or any numbers), so that a BatchNorm and the scale of the weights are in g, c.
`hdlif_fixed` has the same in Loihi's integers.

References:
    specs/hmdf.md 2, 11.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network.weights import Array
from grasp_plugin.neurons import hdlif

BITS = {"fp": 32, "1bit": 1, "1.5bit": 2}  # of a weight as it packs


@dataclass(frozen=True, eq=False)
class GradedLayer:
    """One layer in float; rows (R, ...) are one a step of a sample, or one for all (R = 1).

    Args:
        symbol    argument    unit          shape
                  name        of the layer
        K         kernel      -             (N_o, N_i); whole numbers -1, 0, 1 unless bits is "fp"
                  bits        "fp", "1bit" or "1.5bit"
        T         steps       -             of a sample; the membrane is at rest before each
        lambda    decay       -             (R, 1) or (R, N_o)
        theta     theta       -             (R, 1)
        g, c      gain, offset -            (R, N_o); R = T: a folded Mem-BN
                  parallel    bool: no memory
        q         code_step   -             what is sent are whole multiples of it up to `top`;
                                            None: float spikes

    Raises:
        Invalid: shapes that do not fit, values that are not finite, bits that the kernel is not, or
            steps, code_step or top that are not positive.
    """

    name: str
    kernel: Array
    bits: str
    steps: int
    decay: Array
    theta: Array
    gain: Array
    offset: Array
    parallel: bool = False
    code_step: float | None = None
    top: int = hdlif.TOP_CODE

    def __post_init__(self) -> None:
        if np.ndim(self.kernel) != 2:
            raise Invalid(
                self.name, f"expected a kernel (N_o, N_i), got {np.shape(self.kernel)}",
                "Pass a matrix",
            )  # fmt: skip
        if self.steps < 1 or self.top < 1 or not (self.code_step is None or self.code_step > 0):
            raise Invalid(
                self.name, f"expected steps and top >= 1, code_step > 0 or None, got {self.steps}, "
                f"{self.top} and {self.code_step}", "Pass T, 15 and 0.25, say",
            )  # fmt: skip
        outs = np.shape(self.kernel)[0]
        for field, wide in (("decay", (1, outs)), ("theta", (1,)), ("gain", (outs,)),
                            ("offset", (outs,))):  # fmt: skip
            value = np.asarray(getattr(self, field))
            if (
                value.ndim != 2
                or value.shape[0] not in (1, self.steps)
                or value.shape[1] not in wide
            ):
                raise Invalid(
                    self.name, f"expected {field} of shape (1 or {self.steps}, "
                    f"{' or '.join(map(str, wide))}), got {value.shape}",
                    "Pass a row a step, or one",
                )  # fmt: skip
        for field in ("kernel", "decay", "theta", "gain", "offset"):
            if not np.all(np.isfinite(getattr(self, field))):
                raise Invalid(
                    self.name, f"expected finite {field}, got NaN or infinity", "Check it"
                )
        allowed = {"1bit": (-1, 1), "1.5bit": (-1, 0, 1)}
        if self.bits not in BITS or not (
            self.bits == "fp" or np.isin(self.kernel, allowed[self.bits]).all()
        ):
            raise Invalid(
                self.name, f"expected a kernel of bits {self.bits!r}, one of {tuple(BITS)}, got "
                f"values in {np.min(self.kernel):g}..{np.max(self.kernel):g}",
                "Pass bits='fp', or signs with the scale in gain",
            )  # fmt: skip

    @property
    def mem_bn(self) -> bool:
        """Do gain or offset differ by step, as a Mem-BN that is folded in has them?"""
        return len(self.gain) > 1 or len(self.offset) > 1


def row(values: Any, t: int) -> Any:
    """The row of step t (from 0)."""
    return values[t if len(values) > 1 else 0]


def check_stack(layers: Any) -> list[Any]:
    """Layers in order, `GradedLayer` or `FixedLayer`.

    Raises:
        Invalid: no layer, mixed kinds, a name twice, shapes that do not chain, or different T.
    """
    stack = list(layers)
    names = [layer.name for layer in stack]
    if len(set(names)) < len(names):
        raise Invalid("layers", f"expected a name for each, got {names}", "Rename one")
    if not stack or len({type(layer) for layer in stack}) != 1:
        raise Invalid("layers", "expected layers of one kind, got none or several", "Pass them")
    for below, above in pairwise(stack):
        if above.kernel.shape[1] != below.kernel.shape[0]:
            raise Invalid(
                above.name, f"expected {below.kernel.shape[0]} inputs, got {above.kernel.shape[1]}",
                "Pass layers in order",
            )  # fmt: skip
        if above.steps != below.steps:
            raise Invalid(
                above.name, f"expected {below.steps} steps, got {above.steps}", "Use one T"
            )
    return stack


def check_input(first: Any, x: Any, kind: str) -> None:
    """x is (time, batch, N_i) of a dtype of `kind` ("integral", "real floating"), time in 1..T.

    Raises:
        Invalid: it is not.
    """
    steps, ins = first.steps, first.kernel.shape[1]
    fits = x.ndim == 3 and x.shape[2] == ins and 1 <= x.shape[0] <= steps
    if not fits or not array_namespace(x).isdtype(x.dtype, kind):
        raise Invalid(
            first.name, f"expected {kind} (1..{steps}, batch, {ins}), got {x.dtype} "
            f"{tuple(x.shape)}", "Pass (time, batch, N_i) of that kind",
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Deployed:
    """Spiking layers, and the linear read-out behind them, which stays on the host.

    Args:
        layers: for `backends.hdlif.build_hdlif`, `network.hdlif_fixed.to_fixed` and
            `adapters.from_hdlif`.
        readout: (weight [C, N], bias [C]), or None.
    """

    layers: list[GradedLayer]
    readout: tuple[Array, Array] | None

    def logits(self, sent: Array) -> Array:
        """Read-out of the last layer's spikes (time, batch, N), summed over time: (batch, C).

        Raises:
            Refused: a stack without a read-out.
        """
        if self.readout is None:
            raise Refused("readout", "expected a linear layer at the end, got none", "Add one")
        weight, bias = self.readout
        out: Array = sent.sum(0) @ weight.T + len(sent) * bias
        return out


def run_float(layers: list[GradedLayer], x: Any) -> dict[str, Any]:
    """What each layer sends (time, batch, N), for NumPy and torch arrays; the reference.

    Args:
        x: (time, batch, N_i) floats, time <= T; the layers' numbers are taken in x's dtype.

    Raises:
        Invalid: integers, another shape, no step, or more than T.
    """
    check_input(layers[0], x, "real floating")
    xp, out = array_namespace(x), {}
    for layer in layers:
        arrays = [xp.asarray(getattr(layer, n), dtype=x.dtype, device=device(x))
                  for n in ("kernel", "decay", "theta", "gain", "offset")]  # fmt: skip
        sent, state = [], None
        for t in range(x.shape[0]):
            kernel, decay, theta, gain, offset = arrays[0], *(row(a, t) for a in arrays[1:])
            z = x[t] @ kernel.T
            state = state or hdlif.init(z)
            s, state, _ = hdlif.step(
                z, state, decay=decay, theta=theta, gain=gain, offset=offset,
                parallel=layer.parallel,
            )  # fmt: skip
            q = layer.code_step
            sent.append(s if q is None else hdlif.quantised(s, q, layer.top))
        out[layer.name] = x = xp.stack(sent)
    return out

"""Learning rules as Loihi's learning engine states them: sums of products, traces and y ports.

    dw = sum_i m_i 2^e_i D_i F_i1 F_i2 ...     D in {u0, x0};  F in {x1, x2, y1, y2, y3, t}

`loihi_form` gives the strings and trace constants of a rule, `LoihiForm.y_ports` what its y ports
carry; `backends.loihi` makes a stock Lava connection of them. Batch 1. Nothing here imports Lava.

Timing. Input of network step t enters the connection at Lava step t and x1 at once; `Dense` hands
it on a step later, so the neuron computes step t, and its error meets the connection, at Lava step
t + `delay`. Learning at Lava step n changes what inputs from n + 1 on do, so that the update of
network step t is first felt at network step t + `delay` + 1: with delay 1, a step later than in a
loop that updates before the next step.

Scales. With P = the widths of the factors added up (7 each trace, 9 the tag; a dependency has none)

    float tag   product = m 2^e D F...         and each y arrives times exp(-t_epoch / 65535)
    fixed tag   product = m 2^e D F... 2^-max(0, P + 4 - 15)           as nengo-loihi has the chip

so that x1*y1 shrinks by 2^-3, t*y1 by 2^-5, and x0*y1 not at all: a form whose products differ in
width is right in one tag only, which is why `loihi_form` asks for the precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from array_api_compat import array_namespace, device

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.deltas import Array
from grasp_plugin.learning.etlp import EProp
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.loihi_gates import RowGate, columns_by_x0, row_gate
from grasp_plugin.learning.loihi_traces import Term, draft, name_of, unknown
from grasp_plugin.learning.rule import Plan, Rule, ThreeFactor, Trace
from grasp_plugin.learning.traces import AdaptiveThreshold, Decay, SynapticExponential
from grasp_plugin.learning.transforms import Accumulate, BurnIn

Y_TAU = 65535  # steps; Lava's fixed decay of the y traces of a three-factor rule
WIDTH = {"x1": 7, "x2": 7, "y1": 7, "y2": 7, "y3": 7, "t": 9}  # bits
EXPONENTS = (-7, 8)


@dataclass(frozen=True)
class Product:
    """m 2^e D F...: mantissa in -8..7, exponent in -7..8, symbols such as ("u0", "x1", "y1")."""

    mantissa: int
    exponent: int
    symbols: tuple[str, ...]

    def __str__(self) -> str:
        m, e = abs(self.mantissa), self.exponent
        literal = [str(m)] * (m != 1) + [f"2^{e}"] * (e != 0)
        return "-" * (self.mantissa < 0) + "*".join((*literal, *self.symbols))

    @property
    def factor(self) -> float:
        """m 2^e, by which the float tag multiplies the symbols."""
        return self.mantissa * 2.0**self.exponent

    @property
    def shift(self) -> int:
        """Bits that the fixed tag loses: max(0, sum of widths + 4 - 15)."""
        return max(0, sum(WIDTH.get(s, 0) for s in self.symbols) + 4 - 15)


@dataclass(frozen=True)
class LoihiForm:
    """A rule for Loihi's learning engine; made by `loihi_form`.

    Args:
        weight, tag: the products of dw and dt.
        x1_tau, x2_tau: steps; 0: the trace is not kept. x1_impulse, x2_impulse: no unit.
        scale: what `y_ports` multiplies the error by: the part of the learning rate that no
            literal holds, 1 if all of it is m 2^e.
        trace: the trace that this is a form of.
        target: "lava" (signed y) or "loihi" (y2 = max(y, 0), y3 = max(-y, 0)).
        precision: "float" or "fixed", the tag for which the products' sizes are right.
        delay: Lava steps from an input's arrival to that of its network step's error.
        burn_in: steps in which the host sends an error of 0.
        t_epoch: steps. Always 1, as Lava keeps only the y of an epoch's last step.
        rows: what the sender of y passes its error through before `y_ports`; None: nothing.
    """

    weight: tuple[Product, ...]
    tag: tuple[Product, ...]
    scale: float
    trace: Trace
    target: str
    precision: str
    delay: int = 1
    burn_in: int = 0
    x1_tau: float = 0.0
    x1_impulse: float = 0.0
    x2_tau: float = 0.0
    x2_impulse: float = 0.0
    t_epoch: int = 1
    rows: RowGate | None = None

    @property
    def dw(self) -> str:
        return _text(self.weight)

    @property
    def dt(self) -> str | None:
        return _text(self.tag) if self.tag else None

    @property
    def y_factor(self) -> float:
        """What Lava's float tag multiplies every y by; 1 in the fixed tag, which rounds it away."""
        return math.exp(-self.t_epoch / Y_TAU) if self.precision == "float" else 1.0

    def scales(self) -> dict[str, tuple[float, int]]:
        """For each product (m 2^e, s): the float tag's factor; the fixed tag's is m 2^(e - s)."""
        return {str(p): (p.factor, p.shift) for p in (*self.weight, *self.tag)}

    def y_ports(
        self, error: Array, *, psi: Array | None = None, spikes: Array | None = None
    ) -> dict[str, Array]:
        """What the y ports carry at Lava step t + delay; ports that are not named carry 0.

        The y factor is divided out. In the fixed tag the caller rounds, within -128..127.

        Args:
            error: d[t] = dL/dmembrane, `rule.error(factors)` (N_o,); 0 during burn-in, and where
                `rows` has set it to 0.
            psi: `AdaptiveThreshold` only: dS/dmembrane (N_o,), times `active` where it is masked.
            spikes: `SynapticExponential` with a hard reset only: S[t] (N_o,).

        Raises:
            Invalid: psi or spikes are needed and missing.
        """
        y, one = error * (self.scale / self.y_factor), 1 / self.y_factor
        split = self.target == "loihi"
        out = {"y2": (abs(y) + y) / 2, "y3": (abs(y) - y) / 2} if split else {"y1": y}
        gate = "y1" if split else "y2"
        if isinstance(self.trace, AdaptiveThreshold):
            out[gate] = _given("psi", psi) * (self.trace.theta * one)
            if not split:
                out["y3"] = out[gate] + (1 - self.trace.rho) * one
        if isinstance(self.trace, SynapticExponential):
            kept = 1 - _given("spikes", spikes) if self.trace.hard_reset else error * 0 + 1
            out[gate] = (1 - _beside(self.trace.decay, error) * kept) * one
        return out


def loihi_form(
    rule: Rule, *, target: str = "lava", precision: str = "float", delay: int | None = None,
    gate: str | None = None,
) -> LoihiForm:  # fmt: skip
    """The form of a rule's weights, for a `LearningDense` between its input and its neurons.

    x0, x1, x2: this Lava step's spike and Loihi's traces with it; e: y1, or y2 - y3 when split.

        Exponential, Average  -eta k^-1 (x1 - x0) e
        DoubleExponential     -eta g g_q g_p (a - b)^-1 (x1 - x2) e        delay 0
                              -eta g g_q g_p (a b)^-1 (x1 - x2 + x0) e     delay 1; see below
        CurrentExponential    -eta (k - b)^-1 (x1 - x2) e
        Instant               -eta t e           dt = x0 - t
        SynapticExponential   -eta t e           dt = x0 (or x1, of the current) - t y2
                                                 y2 = 1 - k_j (1 - z s_j)
        AdaptiveThreshold     -eta k^-1 (x1 - x0 - t) e                    t = k theta eps_a
                              dt = (x1 - x0) y2 - t y3; y2 = theta psi, y3 = 1 - rho + y2

    The tag t is read before it is written, so it holds the value of network step t. Split, the
    gate y2 moves to y1; y3 then has no port, and 1 - rho becomes a sum of literals.

    A bias is left to the caller: a second `LearningDense` from a source that spikes at every step,
    with `loihi_form(replace(rule, trace=rule.bias, bias=None))`; for `Instant`, dw = -eta e alone
    ("-u0*y1") is the same and needs no tag. A `BurnIn` is left to the host: see `burn_in`; so is
    the choice of rows of a `GRASP(granularity="row")`: see `rows` and `learning.loihi_gates`.

    Args:
        rule: a `ThreeFactor`, or a `Plan` of one with at most `BurnIn`s and then one `GRASP`.
        target: "lava", or "loihi": how the chip takes a negative y is not documented.
        gate: "x0": x0 in place of u0 in dw, so that a synapse learns in Lava steps with an input
            spike alone: delta_oi[t] s_i[t + delay]. Another rule, not an approximation of this one.
            Tags go on at every step.
        precision: the tag of Lava's models that the form is for. "fixed" makes up for each
            product's shift in its exponent, and gives the traces an impulse of 16.
        delay: 0 or 1, of a `DoubleExponential`. None: 0, for a neuron p = a p + g_p q that reads
            this step's q, so that Dense's delay takes the place of DECOLLE's own. 1: for one that
            reads the q before, as `neurons.adaptive.decolle_step` does. 1 for all other traces.

    Raises:
        Invalid: an unknown target, precision or gate.
        Refused: the engine cannot express the rule, or no form of it is written; says which.

    References:
        Lava 0.10: learning/product_series.py:715-731 (literals), learning_rule_applier.py:281-312
        (shifts), model/py/connection.py:397-412 (y ports), 1370-1420 (decay, then impulse).
    """
    if target not in ("lava", "loihi") or precision not in ("float", "fixed"):
        raise Invalid(
            "loihi_form", "expected target 'lava' or 'loihi' and precision 'float' or 'fixed', got "
            f"{target!r}, {precision!r}", "Pass one of each",
        )  # fmt: skip
    if gate not in (None, "x0"):
        raise Invalid("loihi_form", f"expected gate None or 'x0', got {gate!r}", "Pass one")
    inner, burn_in, grasp = _three_factor(rule)
    made = draft(inner.name, inner.trace, delay, precision == "fixed", target == "loihi")
    if gate:
        made = replace(made, weight=columns_by_x0(made.weight))
    rate = inner.learning_rate * made.gain
    up = 1 if precision == "fixed" else 0
    unit, scale = _share(rate, made.weight, up)
    signs = {"y2": 1, "y3": -1} if target == "loihi" else {"y1": 1}
    weight = [(-unit * r * s, p.replace("e", y)) for y, s in signs.items() for r, p in made.weight]
    return LoihiForm(
        weight=tuple(_product(r, p, up) for r, p in weight),
        tag=tuple(_product(r, p, up) for r, p in made.tag),
        scale=scale,
        trace=inner.trace,
        target=target,
        precision=precision,
        delay=made.delay,
        burn_in=burn_in,
        rows=None if grasp is None else row_gate(inner, grasp),
        **made.constants,
    )


def _three_factor(rule: Rule) -> tuple[ThreeFactor, int, GRASP | None]:
    """(the rule inside plans, its burn-in, its scheduler)."""
    if isinstance(rule, Plan):
        inner, steps, grasp = _three_factor(rule.rule)
        for transform in rule.transforms:
            if isinstance(transform, Accumulate):
                raise Refused(
                    inner.name, f"expected updates at every step, got Accumulate("
                    f"{transform.steps}): a tag could sum them, but all u_k of a rule share one k, "
                    "and y is that of an epoch's last step", "Leave it out, or sum on the host",
                )  # fmt: skip
            if not isinstance(transform, (BurnIn, GRASP)):
                raise unknown(inner.name, name_of(transform), "BurnIn or GRASP only")
            if grasp is not None:
                raise Refused(
                    inner.name, f"expected one GRASP behind all BurnIns, got {name_of(transform)} "
                    "behind it", "Put BurnIn first",
                )  # fmt: skip
            if isinstance(transform, GRASP):
                grasp = transform
            else:
                steps = max(steps, transform.steps)
        return inner, steps, grasp
    if isinstance(rule, EProp):
        raise Refused(
            rule.rule.name, "expected an unfiltered eligibility, got EProp: the low-pass "
            "needs the tag for each synapse's filtered value, and no form of it is written",
            "Use etlp without low_pass_ms",
        )  # fmt: skip
    if not isinstance(rule, ThreeFactor):
        raise unknown(name_of(rule), name_of(rule), "ThreeFactor or a Plan of one")
    return rule, 0, None


def _share(rate: float, terms: Sequence[Term], up: int) -> tuple[float, float]:
    """(literal, scale of y) with product rate: all in the literal if it fits, else a power of 2."""
    if rate == 0:
        return 1.0, 0.0
    if all(_literal(rate * r, p, up) for r, p in terms):
        return rate, 1.0
    exponents = [_literal(abs(r), p, up) for r, p in terms]
    used = [e for _, e in filter(None, exponents)]
    low, high = EXPONENTS[0] - min(used), EXPONENTS[1] - max(used)
    unit = 2.0 ** min(max(math.floor(math.log2(abs(rate))), low), high)
    return unit, rate / unit


def _literal(value: float, product: str, up: int) -> tuple[int, int] | None:
    """(m, e) with value = m 2^e exactly, m odd or 0, after the shift is made up for; else None."""
    if value == 0:
        return 0, 0
    mantissa, e = math.frexp(value)
    while mantissa != round(mantissa) and abs(mantissa) < 8:
        mantissa, e = mantissa * 2, e - 1
    e += up * Product(1, 0, tuple(product.replace("e", "y1").split("*"))).shift
    if abs(mantissa) >= 8 or not EXPONENTS[0] <= e <= EXPONENTS[1]:
        return None
    return int(mantissa), e


def _product(value: float, product: str, up: int) -> Product:
    literal = _literal(value, product, up)
    assert literal is not None, (value, product)
    return Product(*literal, tuple(product.split("*")))


def _text(products: Sequence[Product]) -> str:
    return " + ".join(str(p) for p in products).replace("+ -", "- ")


def _given(name: str, value: Array | None) -> Array:
    if value is None:
        raise Invalid("y_ports", f"expected {name}, got None", f"Pass {name}=...")
    return value


def _beside(decay: Decay, like: Array) -> Array:
    if isinstance(decay, float):
        return decay
    return array_namespace(like).asarray(decay, dtype=like.dtype, device=device(like))

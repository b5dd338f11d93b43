"""A rule's Loihi form in a stock LearningDense = the rule itself, weight by weight, step by step.

Spikes and y come from source ring buffers, y `delay` Lava steps after its input, as from a neuron
that Dense keeps one step behind. One test closes the loop with a neuron instead.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from grasp_plugin import lava_session
from grasp_plugin.backends.loihi import learning_dense
from grasp_plugin.learning import (
    GRASP,
    Factors,
    Plan,
    Rule,
    ThreeFactor,
    decolle,
    etlp,
    etlp_output,
    ottt,
    sltt,
)
from grasp_plugin.learning.budget import Coverage, Fixed, Marginal, Sharpness
from grasp_plugin.learning.loihi import LoihiForm, Product, loihi_form
from grasp_plugin.learning.traces import (
    Average,
    CurrentExponential,
    Exponential,
    SynapticExponential,
)
from grasp_plugin.neurons.surrogate import Sigmoid
from grasp_plugin.runtime.lava_import import have_lava, require_lava

pytestmark = pytest.mark.lava
log = logging.getLogger(__name__)
STEPS, N_I, N_O = 200, 5, 3
TARGETS = ("lava", "loihi")
TAGS = {"float": "floating_pt", "fixed": "fixed_pt"}

if have_lava():
    require_lava()
    from lava.magma.core.decorator import implements, requires, tag
    from lava.magma.core.model.py.model import PyLoihiProcessModel
    from lava.magma.core.model.py.ports import PyInPort, PyOutPort
    from lava.magma.core.model.py.type import LavaPyType
    from lava.magma.core.process.ports.ports import InPort, OutPort
    from lava.magma.core.process.process import AbstractProcess
    from lava.magma.core.process.variable import Var
    from lava.magma.core.resources import CPU
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
    from lava.proc.io.source import RingBuffer as Source

    class Neurons(AbstractProcess):
        """v <- 0.9 v + a, sends y1 = v / 8: stands for error times surrogate."""

        def __init__(self, size: int) -> None:
            super().__init__(size=size)
            self.a_in, self.s_out_y1 = InPort(shape=(size,)), OutPort(shape=(size,))
            self.v = Var(shape=(size,), init=0)

    @implements(proc=Neurons, protocol=LoihiProtocol)
    @requires(CPU)
    @tag("floating_pt")
    class PyNeurons(PyLoihiProcessModel):
        a_in: Any = LavaPyType(PyInPort.VEC_DENSE, float)
        s_out_y1: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
        v: Any = LavaPyType(np.ndarray, float)

        def run_spk(self) -> None:
            self.v = 0.9 * self.v + self.a_in.recv()
            self.s_out_y1.send(self.v / 8)


def bare(trace: Any) -> ThreeFactor:
    return ThreeFactor(trace, Sigmoid(4.0), 0.013, name="bare")


RULES = {
    "decolle": (lambda: decolle(0.1), None),
    "decolle, late neuron": (lambda: decolle(0.1), 1),
    "decolle, alpha < beta": (lambda: decolle(0.1, alpha=0.5, beta=0.75), 0),
    "decolle, alpha < beta, late": (lambda: decolle(0.1, alpha=0.5, beta=0.75), 1),
    "decolle, gains": (lambda: decolle(0.01, gain=3.0, gain_q=1.0, gain_p=0.7), 0),
    "decolle, negative gain": (lambda: decolle(0.01, gain=-3.0), 1),
    "decolle, burn-in": (lambda: decolle(0.1, burn_in=20), None),
    "ottt": (lambda: ottt(0.1), None),
    "ottt, rate in the literal": (lambda: ottt(3 / 64), None),
    "ottt, 0.9": (lambda: ottt(0.1, decay=0.9), None),
    "ottt readout, official": (lambda: ottt(0.1, layer="readout", official=True), None),
    "ottt, hard reset": (lambda: ottt(0.1, reset="value"), None),
    "ottt, per neuron": (lambda: ottt(0.1, decay=(0.2, 0.5, 1.0)), None),
    "ottt, hard reset, per neuron": (
        lambda: ottt(0.1, decay=(0.0, 0.5, 0.9), reset="value"), None,
    ),
    "sltt": (lambda: sltt(0.1), None),
    "etlp lif": (lambda: etlp(0.1, theta=0.0, tau_v_ms=20.0), None),
    "etlp output": (lambda: etlp_output(0.1), None),
    "etlp alif": (lambda: etlp(0.1, tau_a_ms=-1 / math.log(0.75)), None),
    "etlp alif, 1 - rho = 45/128": (lambda: etlp(0.1, tau_a_ms=-1 / math.log(83 / 128)), None),
    "etlp alif, official": (
        lambda: etlp(0.1, thr=0.5, theta=0.5, tau_a_ms=-1 / math.log(0.5), official=True), None,
    ),
    "average": (lambda: bare(Average(0.8)), None),
    "current": (lambda: bare(CurrentExponential(0.9, 0.6)), None),
    "current, faster membrane": (lambda: bare(CurrentExponential(0.6, 0.9)), None),
    "current, hard reset": (lambda: bare(SynapticExponential(0.9, True, 0.7)), None),
    "current, per neuron": (lambda: bare(SynapticExponential((0.9, 0.5, 0.1), False, 0.7)), None),
}  # fmt: skip


def inner(rule: Rule) -> ThreeFactor:
    return rule if isinstance(rule, ThreeFactor) else inner(rule.rule)  # type: ignore[attr-defined]


def stream(rng: Any) -> list[Factors]:
    """STEPS random steps, batch 1."""

    def row(n: int) -> Any:
        return rng.normal(size=(1, n))

    return [
        Factors(
            pre=(rng.random((1, N_I)) < 0.3).astype(float), signal=row(N_O), membrane=row(N_O) / 2,
            spikes=(rng.random((1, N_O)) < 0.2).astype(float), direct=row(N_O) * 0.1,
            active=(rng.random((1, N_O)) < 0.8).astype(float),
        )
        for _ in range(STEPS)
    ]  # fmt: skip


def ours(rule: Rule, steps: list[Factors], w: Any) -> Any:
    """The weights after each step (STEPS, N_o, N_i)."""
    state, out = rule.init(w), []
    for factors in steps:
        delta, state = rule.update(factors, state, w)
        w = w + delta["weight"].dense()
        out.append(w)
    return np.stack(out)


def ports(rule: Rule, form: LoihiForm, steps: list[Factors]) -> list[dict[str, Any]]:
    out = []
    for t, factors in enumerate(steps):
        core = inner(rule)
        error = core.error(factors)[0] * (t >= form.burn_in)
        psi = core.seen(factors).post[0]
        if getattr(form.trace, "masked", False):
            psi = psi * factors.active[0]
        out.append(form.y_ports(error, psi=psi, spikes=factors.spikes[0]))
    return out


def stock(
    form: LoihiForm, pre: Any, y: list[dict[str, Any]], w: Any, tag: str = "", **options: Any
) -> Any:
    """Weights of a stock LearningDense after the Lava step of each network step's update."""
    length, fixed = len(pre) + form.delay, (tag or TAGS[form.precision]) == "fixed_pt"
    dtype = np.int32 if fixed else float
    dense = learning_dense(w, form, **options)
    spikes = np.zeros((pre.shape[1], length), dtype)
    spikes[:, : len(pre)] = pre.T
    Source(data=spikes).s_out.connect(dense.s_in)
    for name in y[0]:
        data = np.zeros((w.shape[0], length), dtype)
        data[:, form.delay :] = np.stack([step[name] for step in y]).T
        Source(data=data).s_out.connect(getattr(dense, f"s_in_{name}"))
    config, seen = Loihi2SimCfg(select_tag=tag or TAGS[form.precision]), []
    with lava_session(dense, config) as s:
        for _ in range(length):
            s.run(1)
            seen.append(np.array(s.model(dense).weights, float))
    return np.stack(seen)[form.delay :]


def gated_ports(plan: Plan, form: LoihiForm, steps: list[Factors], n: bool) -> list[dict[str, Any]]:
    """What the y ports carry behind the form's row gate; n: it is told |p|^2."""
    core, gate, out = inner(plan.rule), form.rows, []
    assert gate is not None
    state, trace = gate.init(N_O), core.trace.init(np.zeros((N_O, N_I)))
    for t, factors in enumerate(steps):
        p, trace = core.trace.update(factors, trace)
        error = core.error(factors)[0] * (t >= form.burn_in)
        more: Any = {"norm": float((p**2).sum())} if n else {}
        error, state = gate.update(error, state, curvature=factors.curvature, **more)
        out.append(form.y_ports(error))
    return out


def by_columns(rule: Rule, form: LoihiForm, steps: list[Factors], w: Any) -> Any:
    """The rule whose delta is made where the input spikes `delay` steps after it, and nowhere else:
    what `gate="x0"` expresses."""
    state, out = rule.init(w), []
    for t, factors in enumerate(steps):
        delta, state = rule.update(factors, state, w)
        after = t + form.delay
        spikes = steps[after].pre[0] if after < len(steps) else np.zeros(N_I)
        w = w + delta["weight"].dense() * spikes
        out.append(w)
    return np.stack(out)


def worst(got: Any, want: Any) -> float:
    return float(np.abs(got - want).max())


def both(name: str, rng: Any, target: str = "lava", change: Any = None) -> tuple[float, float]:
    """(worst error over steps and weights, size of the change) of a rule's form."""
    make, delay = RULES[name]
    rule, steps, w = make(), stream(rng), rng.normal(size=(N_O, N_I))
    form = loihi_form(rule, target=target, delay=delay)
    form = change(form) if change else form
    want = ours(rule, steps, w)
    got = stock(form, np.stack([f.pre[0] for f in steps]), ports(rule, form, steps), w)
    log.info("%s, %s: %.1e of %.2f", name, target, worst(got, want), np.ptp(want, axis=0).max())
    return worst(got, want), float(np.ptp(want, axis=0).min())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", RULES)
def test_a_form_in_stock_lava_is_the_rule(name: str, target: str, rng: Any) -> None:
    error, size = both(name, rng, target)
    assert error < 1e-12
    assert size > 1e-4  # every weight moved


ROWS = {
    "decolle": GRASP(Fixed(0.4), "magnitude", "row"),
    "decolle, late neuron": GRASP(Fixed(0.4), "magnitude", "row"),
    "decolle, burn-in": GRASP(Fixed(0.4), "error", "row"),
    "ottt": GRASP(Marginal(0.4), "error", "row"),
    "ottt, rate in the literal": GRASP(Fixed(0.5), "random", "row"),
    "sltt": GRASP(Coverage(0.7), "magnitude", "row"),
    "etlp lif": GRASP(Marginal(0.4), "pred_decrease", "row"),
    "average": GRASP(Marginal(0.4), "magnitude", "row"),
    "current": GRASP(Sharpness(0.4), "abs_gHg", "row"),
}


@pytest.mark.parametrize(("target", "gate"), [("lava", None), ("loihi", None), ("lava", "x0")])
@pytest.mark.parametrize("name", ROWS)
def test_a_row_gated_form_is_the_rule_with_row_gated_grasp(
    name: str, target: str, gate: str | None, rng: Any
) -> None:
    make, delay = RULES[name]
    plan, w = Plan(make(), (ROWS[name],)), rng.normal(size=(N_O, N_I))
    bend = rng.random(N_O) / 50
    steps = [replace(f, curvature=lambda u: u * bend) for f in stream(rng)]
    form = loihi_form(plan, target=target, delay=delay, gate=gate)
    want = by_columns(plan, form, steps, w) if gate else ours(plan, steps, w)
    assert form.rows is not None
    y = gated_ports(plan, form, steps, form.rows.needs_norm)
    got = stock(form, np.stack([f.pre[0] for f in steps]), y, w)
    share = np.mean([np.any([v != 0 for v in step.values()], axis=0) for step in y[30:]])
    log.info("%s, %s, %s: %.1e, rows %.2f", name, target, gate, worst(got, want), share)
    assert worst(got, want) < 1e-12
    assert 0.1 < share < 0.8
    assert np.ptp(want, axis=0).min() > 1e-5
    if target == "lava":
        all_rows = stock(form, np.stack([f.pre[0] for f in steps]), ports(make(), form, steps), w)
        assert worst(all_rows, want) > 1e-3


SPLIT = ("decolle", "decolle, late neuron", "ottt", "ottt, hard reset", "sltt", "etlp alif")


@pytest.mark.parametrize(
    ("name", "target"), [*((name, "lava") for name in RULES), *((name, "loihi") for name in SPLIT)]
)
def test_a_column_gated_form_is_the_rule_times_the_next_input(
    name: str, target: str, rng: Any
) -> None:
    make, delay = RULES[name]
    rule, steps, w = make(), stream(rng), rng.normal(size=(N_O, N_I))
    form = loihi_form(rule, target=target, delay=delay, gate="x0")
    want = by_columns(rule, form, steps, w)
    got = stock(form, np.stack([f.pre[0] for f in steps]), ports(rule, form, steps), w)
    log.info("%s, %s: %.1e", name, target, worst(got, want))
    assert worst(got, want) < 1e-12
    assert np.ptp(want, axis=0).min() > 1e-5
    assert worst(got, ours(rule, steps, w)) > 1e-3  # another rule than the one without a gate
    off = replace(form, delay=1 - form.delay)  # and no other step's input
    assert worst(got, by_columns(rule, off, steps, w)) > 1e-3


def without(symbol: str) -> Any:
    return lambda form: replace(
        form, weight=tuple(p for p in form.weight if p.symbols[0] != symbol)
    )


def negated(form: LoihiForm) -> LoihiForm:
    return replace(form, weight=tuple(replace(p, mantissa=-p.mantissa) for p in form.weight))


def undecayed(form: LoihiForm) -> LoihiForm:
    return replace(form, scale=form.scale * form.y_factor)


CONTROLS = {
    "no x0 correction": (without("x0"), ("ottt", "etlp lif", "etlp alif", "decolle, late neuron")),
    "wrong sign": (negated, ("decolle", "ottt", "sltt", "etlp alif", "ottt, hard reset")),
    "y a step early": (
        lambda form: replace(form, delay=form.delay - 1), ("ottt", "sltt", "etlp alif"),
    ),
    "y a step late": (lambda form: replace(form, delay=form.delay + 1), ("decolle", "ottt")),
    "no tag": (lambda form: replace(form, tag=form.tag[:-1]), ("etlp alif", "sltt")),
}  # fmt: skip


@pytest.mark.parametrize("control", CONTROLS)
def test_a_form_that_is_wrong_is_seen_to_be(control: str, rng: Any) -> None:
    change, names = CONTROLS[control]
    for name in names:
        error, _ = both(name, rng, change=change)
        assert error > 1e-3, name


def test_the_y_factor_is_what_it_is_said_to_be(rng: Any) -> None:
    error, size = both("ottt", rng, change=undecayed)
    assert 1e-8 < error < 3e-5 * size * 10
    assert loihi_form(ottt(0.1)).y_factor == math.exp(-1 / 65535)


def test_in_a_loop_with_a_neuron_delay_and_late_weights_are_as_stated(rng: Any) -> None:
    rule = ThreeFactor(Exponential(0.8), None, -1 / 32, name="loop")
    form, steps = loihi_form(rule), 60
    w = rng.normal(size=(N_O, N_I))
    pre = (rng.random((steps, N_I)) < 0.3).astype(float)
    gain = form.scale / form.y_factor  # the neuron sends d = v / 8, unscaled
    dense, neurons = learning_dense(w, replace(form, scale=1.0)), Neurons(N_O)
    Source(data=pre.T).s_out.connect(dense.s_in)
    dense.a_out.connect(neurons.a_in), neurons.s_out_y1.connect(dense.s_in_y1)
    seen = []
    with lava_session(dense, Loihi2SimCfg(exception_proc_model_map={neurons: PyNeurons})) as s:
        for _ in range(steps):
            s.run(1)
            seen.append(np.array(s.model(dense).weights))
    state, v, weights = rule.init(w), np.zeros((1, N_O)), [w, w]  # in force at steps 0, 1, ...
    for t in range(steps - 1):
        v = 0.9 * v + pre[t][None] @ weights[t].T
        delta, state = rule.update(Factors(pre[t][None], signal=v / 8 / gain), state, w)
        weights.append(weights[-1] + delta["weight"].dense())
    assert worst(seen[-1], weights[steps]) < 1e-11
    assert worst(seen[-1], w) > 0.1
    early = w  # a loop without the extra step of lateness is another loop
    state, v = rule.init(w), np.zeros((1, N_O))
    for t in range(steps - 1):
        v = 0.9 * v + pre[t][None] @ early.T
        delta, state = rule.update(Factors(pre[t][None], signal=v / 8 / gain), state, w)
        early = early + delta["weight"].dense()
    assert worst(seen[-1], early) > 1e-2


FIXED = {
    "decolle": lambda: decolle(0.3, alpha=0.9, beta=0.7),
    "ottt": lambda: ottt(0.06, decay=0.8),
    "sltt": lambda: sltt(0.3),
    "etlp lif": lambda: etlp(0.03, theta=0.0, tau_v_ms=10.0),
    "average": lambda: replace(bare(Average(0.8)), learning_rate=0.3),
    "current": lambda: replace(bare(CurrentExponential(0.8, 0.5)), learning_rate=0.03),
}


def in_integers(rule: Rule, form: LoihiForm, tag: str = "", gate: Any = None) -> tuple[Any, Any]:
    """(weights in the fixed tag, weights of the rule in floats) for y that are whole."""
    rng = np.random.default_rng(3)
    pre = (rng.random((STEPS, N_I)) < 0.15).astype(float)
    errors = rng.integers(-20, 45, (STEPS, N_O)) / form.scale
    w = 2 * rng.integers(-20, 20, (N_O, N_I))
    if form.rows is not None:
        state, kept = form.rows.init(N_O), []
        for e in errors:
            error, state = form.rows.update(e, state)
            kept.append(error)
        errors = np.stack(kept)
    y = [{k: np.round(v) for k, v in form.y_ports(e).items()} for e in errors]
    core = replace(inner(rule), surrogate=None, bias=None)
    steps = [Factors(p[None], signal=e[None]) for p, e in zip(pre, errors, strict=True)]
    if gate:
        return stock(form, pre, y, w, tag), by_columns(core, form, steps, w.astype(float))
    return stock(form, pre, y, w, tag), ours(core, steps, w.astype(float))


@pytest.mark.parametrize("name", FIXED)
def test_both_targets_are_the_same_weights_in_integers(name: str) -> None:
    rule, runs = FIXED[name](), []
    for target in TARGETS:
        form = loihi_form(rule, target=target, precision="fixed")
        runs.append(in_integers(rule, form)[0])
    assert np.array_equal(*runs)
    assert all(len(np.unique(column)) > 10 for column in runs[0].reshape(STEPS, -1).T)


@pytest.mark.parametrize("gate", [None, "x0"])
@pytest.mark.parametrize("name", FIXED)
def test_gated_forms_in_integers(name: str, gate: str | None) -> None:
    """The same weights for both targets, and near the gated rule in floats."""
    plan, runs = Plan(FIXED[name](), (GRASP(Fixed(0.5), "error", "row"),)), []
    for target in TARGETS:
        form = loihi_form(plan, target=target, precision="fixed", gate=gate)
        runs.append(in_integers(plan, form, gate=gate))
    assert np.array_equal(runs[0][0], runs[1][0])
    got, want = runs[0]
    size = np.abs(want - want[0]).max()
    log.info("%s, %s: off by %.3f of %.0f", name, gate, worst(got, want) / size, size)
    assert size > 10
    assert np.abs(want).max() < 250
    assert worst(got, want) < max(0.2 * size, 8)


SHIFTS = [
    (("u0", "x1", "y1"), -5, 3),
    (("u0", "x2", "y1"), -5, 3),
    (("x0", "y1"), -4, 0),
    (("u0", "t", "y1"), -4, 5),
    (("u0", "t"), -5, 0),
    (("u0", "x1", "y1", "y2"), 2, 10),
]


@pytest.mark.parametrize(("symbols", "exponent", "shift"), SHIFTS)
def test_the_shift_of_a_product_is_what_is_observed(
    symbols: tuple[str, ...], exponent: int, shift: int
) -> None:
    product = Product(1, exponent, symbols)
    values = {"x1": 64, "x2": 64, "t": 64, "y1": 32, "y2": 2, "x0": 1, "u0": 1}
    whole = product.factor * math.prod(values[s] for s in symbols)
    held = dict.fromkeys(("x1_tau", "x2_tau"), 1e9) | dict.fromkeys(("x1_impulse",), 64.0)
    form = replace(
        loihi_form(sltt(1.0), precision="fixed"), weight=(product,), tag=(), delay=0,
        x2_impulse=64.0, **held,
    )  # fmt: skip
    pre = np.ones((8, 1)) if "x0" in symbols else np.eye(8)[:, :1]
    y = [{"y1": np.array([32]), "y2": np.array([2])}] * 8
    w = np.zeros((1, 1), int)
    got = stock(form, pre, y, w, tag_1=np.full((1, 1), 64))[:, 0, 0]
    assert product.shift == shift
    assert np.diff(got) == pytest.approx(np.full(7, whole * 2.0**-shift), abs=0)
    assert form.scales() == {str(product): (product.factor, shift)}
    plain = stock(replace(form, precision="float"), pre, y, w, tag_1=np.full((1, 1), 64))[:, 0, 0]
    assert np.diff(plain) == pytest.approx(np.full(7, whole), rel=1e-4)


@pytest.mark.parametrize("name", FIXED)
def test_the_fixed_form_makes_up_for_the_shifts(name: str) -> None:
    rule = FIXED[name]()
    got, want = in_integers(rule, loihi_form(rule, precision="fixed"))
    size = np.abs(want - want[0]).max()
    naive, wanted = in_integers(rule, loihi_form(rule), "fixed_pt")  # made for the float tag
    off = worst(got, want) / size
    naively = worst(naive, wanted) / np.abs(wanted - wanted[0]).max()
    log.info("%s: off by %.3f of %.0f, made for floats %.2f", name, off, size, naively)
    assert size > 50
    assert np.abs(want).max() < 250  # nothing saturates
    assert off < 0.15
    assert naively > max(0.5, 4 * off)

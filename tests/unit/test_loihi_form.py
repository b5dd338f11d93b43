"""Loihi forms of learning rules: strings, ports, scales, and what is refused and why."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from grasp_plugin.backends.loihi import learning_dense, stock_rule
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning import (
    GRASP,
    Accumulate,
    BurnIn,
    Factors,
    Late,
    Plan,
    Rule,
    ThreeFactor,
    decolle,
    etlp,
    etlp_output,
    ottt,
    sltt,
)
from grasp_plugin.learning.budget import Budget, Coverage, Fixed, Marginal, Sharpness
from grasp_plugin.learning.grasp import SCORES
from grasp_plugin.learning.loihi import Product, loihi_form
from grasp_plugin.learning.loihi_gates import RowGate
from grasp_plugin.learning.rule import Trace
from grasp_plugin.learning.traces import (
    AdaptiveThreshold,
    CurrentExponential,
    DoubleExponential,
    Exponential,
    SynapticExponential,
)


def bare(trace: Trace, rate: float = 0.1) -> ThreeFactor:
    return ThreeFactor(trace, None, rate, name="bare")


ALIF = bare(AdaptiveThreshold(0.5, 0.75, 0.5), 1 / 16)
FORMS = [  # rule, options, dw, dt, scale
    (bare(DoubleExponential(0.75, 0.5), 1 / 4), {}, "-2^-3*u0*x1*y1 + 2^-3*u0*x2*y1", None, 1),
    (bare(DoubleExponential(0.5, 0.75), 1 / 4), {}, "-2^-3*u0*x1*y1 + 2^-3*u0*x2*y1", None, 1),
    (
        bare(DoubleExponential(0.75, 0.5), 3.0), {"delay": 1},
        "-u0*x1*y1 + u0*x2*y1 - x0*y1", None, 1,
    ),
    (ottt(1 / 16), {}, "-2^-3*u0*x1*y1 + 2^-3*x0*y1", None, 1),
    (ottt(7 / 16), {}, "-7*2^-3*u0*x1*y1 + 7*2^-3*x0*y1", None, 1),
    (ottt(-1 / 16), {}, "2^-3*u0*x1*y1 - 2^-3*x0*y1", None, 1),
    (ottt(0.1), {}, "-2^-3*u0*x1*y1 + 2^-3*x0*y1", None, 1.6),
    (ottt(1e-6), {}, "-2^-7*u0*x1*y1 + 2^-7*x0*y1", None, 2.56e-4),
    (ottt(1e3), {}, "-2^8*u0*x1*y1 + 2^8*x0*y1", None, 2000 / 256),
    (ottt(0.0), {}, "-u0*x1*y1 + x0*y1", None, 0),
    (
        ottt(1 / 16), {"target": "loihi"},
        "-2^-3*u0*x1*y2 + 2^-3*x0*y2 + 2^-3*u0*x1*y3 - 2^-3*x0*y3", None, 1,
    ),
    (ottt(1 / 2), {"precision": "fixed"}, "-2^-1*u0*x1*y1 + x0*y1", None, 1),
    (ottt(1 / 4, decay=0.25), {"precision": "fixed"}, "-2^-1*u0*x1*y1 + x0*y1", None, 1),
    (sltt(1.0), {}, "-u0*t*y1", "x0 - u0*t", 1),
    (ottt(1 / 16), {"gate": "x0"}, "-2^-3*x0*x1*y1 + 2^-3*x0*y1", None, 1),
    (sltt(1.0), {"gate": "x0"}, "-x0*t*y1", "x0 - u0*t", 1),
    (
        ottt(1 / 2), {"gate": "x0", "target": "loihi", "precision": "fixed"},
        "-2^-1*x0*x1*y2 + x0*y2 + 2^-1*x0*x1*y3 - x0*y3", None, 1,
    ),
    (sltt(1.0), {"precision": "fixed"}, "-u0*t*y1", "2^5*x0 - u0*t", 1),
    (ottt(1.0, reset="value"), {}, "-u0*t*y1", "x0 - u0*t*y2", 1),
    (
        ottt(1.0, reset="value"), {"target": "loihi"},
        "-u0*t*y2 + u0*t*y3", "x0 - u0*t*y1", 1,
    ),
    (bare(SynapticExponential(0.5, True, 0.5), 1.0), {}, "-u0*t*y1", "u0*x1 - u0*t*y2", 1),
    (bare(CurrentExponential(0.5, 0.75), 1.0), {}, "-2^2*u0*x1*y1 + 2^2*u0*x2*y1", None, 1),
    (
        ALIF, {}, "-2^-3*u0*x1*y1 + 2^-3*x0*y1 + 2^-3*u0*t*y1",
        "u0*x1*y2 - x0*y2 - u0*t*y3", 1,
    ),
    (
        ALIF, {"target": "loihi"},
        "-2^-3*u0*x1*y2 + 2^-3*x0*y2 + 2^-3*u0*t*y2 + 2^-3*u0*x1*y3 - 2^-3*x0*y3 - 2^-3*u0*t*y3",
        "u0*x1*y1 - x0*y1 - u0*t*y1 - 2^-2*u0*t", 1,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "options", "dw", "dt", "scale"), FORMS)
def test_strings(rule: Rule, options: Any, dw: str, dt: str | None, scale: float) -> None:
    form = loihi_form(rule, **options)
    assert (form.dw, form.dt) == (dw, dt)
    assert form.scale == pytest.approx(scale, rel=1e-14)


def test_trace_constants() -> None:
    form = loihi_form(decolle(0.1))
    assert form.x1_tau == pytest.approx(-1 / math.log(0.97), rel=1e-12)
    assert form.x2_tau == pytest.approx(-1 / math.log(0.92), rel=1e-12)
    assert (form.x1_impulse, form.x2_impulse, form.delay, form.t_epoch) == (1, 1, 0, 1)
    late = loihi_form(decolle(0.1), delay=1)
    assert late.x2_impulse - late.x1_impulse == pytest.approx(1, rel=1e-12)
    assert late.x1_impulse == pytest.approx(0.92 / 0.05, rel=1e-12)
    fixed = loihi_form(ottt(0.1), precision="fixed")
    assert (fixed.x1_impulse, fixed.x2_impulse, fixed.x2_tau) == (16, 0, 0)
    assert loihi_form(sltt(0.1)).x1_tau == 0


def test_a_literal_of_three_digits_holds_any_128th() -> None:
    for n in range(129):
        rule = bare(AdaptiveThreshold(0.5, 1 - n / 128, 0.5))
        form = loihi_form(rule, target="loihi")
        leak = sum(p.factor for p in form.tag if p.symbols == ("u0", "t"))
        assert leak == -n / 128
        assert all(0 < abs(p.mantissa) < 8 and -7 <= p.exponent <= 8 for p in form.tag)


@pytest.mark.parametrize("like", [np.asarray, torch.asarray])
def test_ports(like: Any) -> None:
    d = like([0.5, -0.25, 0.0])
    factor = loihi_form(sltt(1.0)).y_factor
    assert factor == math.exp(-1 / 65535)

    def ports(form: Any, **more: Any) -> Any:
        return {k: (np.asarray(v) * form.y_factor).tolist() for k, v in
                form.y_ports(d, **more).items()}  # fmt: skip

    near = pytest.approx
    assert ports(loihi_form(sltt(1.0))) == {"y1": near([0.5, -0.25, 0])}
    split = {"y2": near([0.5, 0, 0]), "y3": near([0, 0.25, 0])}
    assert ports(loihi_form(sltt(1.0), target="loihi")) == split
    fixed = loihi_form(sltt(1.0), precision="fixed")
    assert fixed.y_factor == 1
    assert fixed.y_ports(d)["y1"].tolist() == d.tolist()
    psi = like([0.3, 0.0, 0.1])
    assert ports(loihi_form(ALIF), psi=psi) == {
        "y1": near([0.5, -0.25, 0]), "y2": near([0.15, 0, 0.05]), "y3": near([0.4, 0.25, 0.3]),
    }  # fmt: skip
    form = loihi_form(ALIF, target="loihi")
    assert ports(form, psi=psi) == {"y1": near([0.15, 0, 0.05]), **split}
    spikes = like([0.0, 1.0, 0.0])
    hard = loihi_form(ottt(1.0, decay=(0.5, 0.5, 0.25), reset="value"), target="loihi")
    assert ports(hard, spikes=spikes) == {"y1": near([0.5, 1, 0.75]), **split}
    soft = loihi_form(ottt(1.0, trace="synapse"))
    soft = replace(soft, trace=SynapticExponential(0.5, hard_reset=False))
    assert ports(soft)["y2"] == near([0.5, 0.5, 0.5])
    with pytest.raises(Invalid, match=r"expected psi, got None\. Pass psi="):
        loihi_form(ALIF).y_ports(d)
    with pytest.raises(Invalid, match="expected spikes, got None"):
        hard.y_ports(d)


def test_scales() -> None:
    assert loihi_form(ALIF).scales() == {
        "-2^-3*u0*x1*y1": (-0.125, 3), "2^-3*x0*y1": (0.125, 0), "2^-3*u0*t*y1": (0.125, 5),
        "u0*x1*y2": (1.0, 3), "-x0*y2": (-1.0, 0), "-u0*t*y3": (-1.0, 5),
    }  # fmt: skip
    assert Product(-3, -2, ("u0", "x1", "y1", "y2")).shift == 10
    floats, fixed = loihi_form(ottt(1 / 2)), loihi_form(ottt(1 / 2), precision="fixed")
    size = [f * i for f, i in zip([p.factor for p in floats.weight], (1, 1), strict=True)]
    impulse = fixed.x1_impulse  # x1 is 16 times as large
    f, s = zip(*fixed.scales().values(), strict=True)
    assert [f[0] * impulse / 2 ** s[0], f[1] / 2 ** s[1]] == size


def test_burn_in_is_the_hosts_and_nests() -> None:
    rule = decolle(0.1, burn_in=60)
    assert loihi_form(rule).burn_in == 60
    assert loihi_form(Plan(rule, (BurnIn(7),))).burn_in == 60
    assert loihi_form(decolle(0.1)).burn_in == 0
    assert replace(loihi_form(rule), burn_in=0) == loihi_form(decolle(0.1))


def test_the_bias_has_a_form_of_its_own() -> None:
    rule = ottt(1 / 16)
    assert isinstance(rule, ThreeFactor)
    form = loihi_form(replace(rule, trace=rule.bias, bias=None))
    assert form.dw == loihi_form(rule).dw


class Other(Trace):
    rank_one = True

    def init(self, weight: Any, *, batch: int = 1) -> Any:
        return {}

    def update(self, factors: Any, state: Any) -> Any:
        return factors.pre, {}


ROWS = GRASP(Fixed(0.5), "magnitude", "row")
FIXED, LOIHI = {"precision": "fixed"}, {"target": "loihi"}
REFUSED = [
    (decolle(0.1, alpha=0.9, beta=0.9), {}, r"decolle: expected alpha != beta, got 0\.9 for both"),
    (decolle(0.1, alpha=(0.9, 0.8)), {}, r"one alpha for DoubleExponential, got 2: .*one x1_tau"),
    (decolle(0.1, alpha=0.9, beta=0.0), {}, r"0 < beta < 1 for DoubleExponential, got 0\.0: tau"),
    (decolle(0.1, alpha=1.0), {}, r"0 < alpha < 1 for DoubleExponential, got 1\.0"),
    (decolle(0.1), {"delay": 2}, r"expected delay 0 or 1 for DoubleExponential, got 2"),
    (decolle(0.1), {"delay": 1, **FIXED}, r"delay 0 in precision 'fixed', got 1: the impulses"),
    (ottt(0.1), {"delay": 0}, r"ottt hidden: expected delay 1 for Exponential, got 0: Dense puts"),
    (ottt(0.1, decay=0.0), {}, r"0 < decay < 1 for Exponential, got 0\.0: .*Use Instant for 0"),
    (bare(Exponential((0.5, 0.6))), {}, r"bare: expected one decay for Exponential, got 2"),
    (bare(CurrentExponential(0.5, 0.5)), {}, r"expected decay != current, got 0\.5 for both"),
    (ottt(0.1, reset="value"), FIXED, r"'float' for SynapticExponential, got 'fixed': a y port"),
    (bare(SynapticExponential(0.5, True, (0.5, 0.6))), {}, r"one current for SynapticExponential"),
    (bare(SynapticExponential(0.5, True, None, True)), {}, r"no refractory step, got .*gated by"),
    (etlp(0.1, tau_v_ms=(10.0, 20.0)), {}, r"etlp: expected one decay for AdaptiveThreshold"),
    (etlp(0.1), FIXED, r"'float' for AdaptiveThreshold, got 'fixed': a y port would have to carry"),
    (etlp(0.1), LOIHI, r"1 - rho in steps of 2\^-7.*got 0\.0951626.*Pass rho = 0\.90625 \(tau_a ="),
    (bare(AdaptiveThreshold(0.5, 0.75, -1.0)), LOIHI, r"theta >= 0 for target 'loihi', got -1\.0"),
    (etlp(0.1, theta=0.0, low_pass_ms=20.0), {}, r"etlp: expected an unfiltered .*got EProp"),
    (Plan(ottt(0.1), (Accumulate(6),)), {}, r"updates at every step, got Accumulate\(6\): .*one k"),
    (Plan(ottt(0.1), (Late(2),)), {}, r"ottt hidden: expected BurnIn or GRASP only, got Late"),
    (Plan(ottt(0.1), (ROWS, BurnIn(3))), {}, r"one GRASP behind all BurnIns, got BurnIn behind it"),
    (Plan(ottt(0.1), (ROWS, ROWS)), {}, r"one GRASP behind all BurnIns, got GRASP behind it"),
    (
        Plan(ottt(0.1), (GRASP(),)), {},
        r"granularity 'row', got 'weight': .* no product for a single synapse's choice or threshold"
        r".*Use GRASP\(granularity='row'\), gate='x0' for columns",
    ),
    (Plan(ottt(0.1), (GRASP(granularity="block", block=(2, 2)),)), {}, r"'row', got 'block'"),
    (Plan(ottt(0.1), (GRASP(granularity="column"),)), {}, r"'row', got 'column'"),
    (Plan(ottt(0.1, reset="value"), (ROWS,)), {}, r"one trace for all neurons .*got SynapticExp"),
    (bare(Other()), {}, r"bare: expected a trace of learning\.traces, got Other"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "options", "message"), REFUSED)
def test_refused(rule: Rule, options: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        loihi_form(rule, **options)


def test_another_kind_of_rule_is_refused() -> None:
    class Unknown(Rule):
        init = update = None  # type: ignore[assignment]

    with pytest.raises(Refused, match="expected ThreeFactor or a Plan of one, got Unknown"):
        loihi_form(Unknown())


BUDGETS = [Fixed(0.3), Marginal(0.3), Coverage(0.6), Sharpness(0.3, follows="gradient")]


@pytest.mark.parametrize("like", [np.asarray, torch.asarray])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_the_rows_are_those_that_grasp_chooses(budget: Budget, score: str, like: Any) -> None:
    """Without |p|^2 too, where only ratios of rows decide."""
    rng, grasp = np.random.default_rng(3), GRASP(budget, score, "row")
    rule = bare(Exponential(0.8))
    gate = loihi_form(Plan(rule, (grasp,))).rows
    assert gate == RowGate(grasp, 0.1)
    weight, plan, core = np.zeros((12, 7)), Plan(rule, (grasp,)), rule.trace
    state, trace, rows = plan.init(weight), core.init(weight), gate.init(12)
    bend, counts = rng.random(12), []
    for _ in range(40):
        pre, d = (rng.random((1, 7)) < 0.5).astype(float), rng.normal(size=(1, 12)) / 3
        factors = Factors(pre, direct=d, curvature=lambda u: u * like(bend))
        p, trace = core.update(factors, trace)
        numpy_factors = replace(factors, curvature=lambda u: u * bend)
        delta, state = plan.update(numpy_factors, state, weight)
        norm = float((p**2).sum())
        known = {"norm": norm} if gate.needs_norm else {}
        error, rows = gate.update(like(d[0]), rows, curvature=factors.curvature, **known)
        wanted = delta["weight"].picked.mask().any(axis=1)
        if not norm:  # nothing to write, whatever y
            assert not wanted.any()
            continue
        assert np.array_equal(np.asarray(error), np.where(wanted, d[0], 0))
        counts.append(wanted.sum())
    assert 0 < np.mean(counts) < 12
    assert rows["dense"][0] == 12 * 40


def test_a_neuron_without_the_norm_is_told_so() -> None:
    free = {
        (score, type(budget).__name__)
        for score in SCORES
        for budget in BUDGETS
        if not RowGate(GRASP(budget, score, "row"), 0.1).needs_norm
    }
    ratios = {(s, b) for s in SCORES for b in ("Fixed", "Coverage") if s != "pred_decrease"}
    assert free == ratios | {("error", "Marginal")}
    gate = RowGate(GRASP(Marginal(0.1), "magnitude", "row"), 0.1)
    with pytest.raises(
        Refused, match=r"the norm \|p\|\^2 .* the neuron that sends y does not know"
    ):
        gate.update(np.ones(3), gate.init(3))
    bent = RowGate(GRASP(Fixed(0.1), "abs_gHg", "row"), 0.1)
    with pytest.raises(Invalid, match=r"expected Factors\.curvature"):
        bent.update(np.ones(3), bent.init(3))


def test_an_unknown_gate_is_named() -> None:
    with pytest.raises(Invalid, match="expected gate None or 'x0', got 'y0'"):
        loihi_form(ottt(0.1), gate="y0")


@pytest.mark.parametrize("options", [{"target": "chip"}, {"precision": "int8"}])
def test_an_unknown_option_is_named(options: Any) -> None:
    with pytest.raises(Invalid, match=r"expected target 'lava' or 'loihi' .*'(chip|int8)'"):
        loihi_form(ottt(0.1), **options)


@pytest.mark.lava
@pytest.mark.parametrize("target", ["lava", "loihi"])
@pytest.mark.parametrize("precision", ["float", "fixed"])
def test_lava_parses_the_strings_of_any_rate(target: str, precision: str) -> None:
    for rate in (*np.logspace(-6, 0, 25), 3 / 8, 5 / 128, 2**-20):
        for rule in (
            decolle(rate), ottt(rate), ottt(rate, decay=0.9), sltt(rate), etlp_output(rate),
            etlp(rate, theta=0.0), ottt(rate, reset="value"), etlp(rate, tau_a_ms=1 / math.log(2)),
        ):  # fmt: skip
            try:
                form = loihi_form(rule, target=target, precision=precision)
            except Refused:
                assert precision == "fixed"
                continue
            read = stock_rule(form).dw.products
            assert [p.s_mantissa * 2.0 ** (p.s_exp - 7) for p in read] == [
                p.factor for p in form.weight
            ]
            assert [[f.state_var for f in p.factors] for p in read] == [
                list(p.symbols[1:]) for p in form.weight
            ]


def test_weights_that_lava_would_spoil_are_named() -> None:
    form = loihi_form(sltt(0.1), precision="fixed")
    with pytest.raises(Invalid, match=r"finite weights \(N_o, N_i\), got shape \(3,\)"):
        learning_dense(np.zeros(3), form)
    with pytest.raises(Invalid, match=r"got shape \(1, 1\) with NaN or infinity"):
        learning_dense([[np.nan]], form)
    with pytest.raises(Invalid, match=r"whole weights .* which Lava cuts off in silence"):
        learning_dense([[0.5]], form)


def test_no_lava_is_imported() -> None:
    code = (
        "import sys, grasp_plugin.learning.loihi, grasp_plugin.backends.loihi;"
        "sys.exit(any(m.split('.')[0] == 'lava' for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

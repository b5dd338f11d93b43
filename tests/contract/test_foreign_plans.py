"""Plans of another network, folded layers and arguments that are none: refused, or warned of."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import nir
import numpy as np
import plastic_cases as cases
import pytest

from grasp_plugin import build, discretise, quantise
from grasp_plugin.errors import Invalid
from grasp_plugin.learning import (
    GRASP,
    Learning,
    Plan,
    ThreeFactor,
    decolle_for,
    etlp_for,
    ottt_for,
    scheduled,
    sltt_for,
    soel_for,
)
from grasp_plugin.learning.budget import Fixed
from grasp_plugin.learning.signals import RandomReadout
from grasp_plugin.learning.traces import Instant
from grasp_plugin.network.discretise import Discretisation
from grasp_plugin.network.network import Network
from grasp_plugin.network.quantise import dequantise

OUT = cases.OUT
lava = pytest.param("lava", marks=pytest.mark.lava)
BACKENDS = ("torch", "fused", lava)
NET = cases.two_layers(np.random.default_rng(0))
SPIKES = (np.random.default_rng(1).random((12, cases.IN)) < 0.4).astype(float)
RULES: dict[str, Callable[[Network], Learning]] = {
    "decolle": lambda n: decolle_for(n, 3, 0.05),
    "etlp": lambda n: etlp_for(n, OUT, 0.05),
    "ottt": lambda n: ottt_for(n, OUT, 0.05, pipelined=True),
    "sltt": lambda n: sltt_for(n, OUT, 0.05, pipelined=True),
    "soel": lambda n: soel_for(n, OUT, 0.05),
}


def changed(name: str, **values: Any) -> Network:
    """NET with other dynamics of one population."""
    populations = tuple(
        replace(p, **{
            k: np.full(p.size, v) if isinstance(v, float) else v for k, v in values.items()
        }) if p.name == name else p
        for p in NET.populations
    )  # fmt: skip
    return replace(NET, populations=populations)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_plans_of_another_network_are_refused(rule: str, backend: str) -> None:
    plans = RULES[rule](NET)
    wrong = {
        "dv 0.2, got one with dv 0.6": changed("o", dv=0.6),
        "du 1, got one with du 0.5": changed("o", du=0.5),
        "v_th 0.9, got one with v_th 1.1": changed("o", v_th=1.1),
        "reset 'subtract-delayed', got one with reset 'value'": changed("o", reset="value"),
    }
    for message, net in wrong.items():
        with pytest.raises(Invalid, match=f"o: expected the population .*{message}"):
            build(net, backend, plans=plans)
    one = changed("h", dv=np.r_[0.5, np.full(cases.HIDDEN - 1, 0.2)])
    with pytest.raises(Invalid, match=r"h: .*dv of neuron 0 0\.2, got one with .* 0\.5"):
        build(one, backend, plans=plans)


@pytest.mark.parametrize("backend", BACKENDS)
def test_plans_of_another_hidden_size_are_refused(backend: str) -> None:
    rng = np.random.default_rng(0)
    small = cases.network(
        [cases.population("h", 5), cases.population("o", OUT)],
        [cases.dense(rng, "in->h", (5, 9)), cases.dense(rng, "h->o", (OUT, 5))],
    )
    with pytest.raises(Invalid, match=r"h: .* with size 5, got one with size 8"):
        build(NET, backend, plans=RULES["decolle"](small))


@pytest.mark.parametrize("rule", ["decolle", "etlp", "ottt", "sltt"])
@pytest.mark.parametrize("dv", [0.2, 0.0, 1.0, 0.123456])
def test_the_same_network_with_other_weights_or_in_integers_is_taken(rule: str, dv: float) -> None:
    net = replace(NET, populations=tuple(
        replace(p, dv=np.full(p.size, dv), v_th=np.full(p.size, 0.777)) for p in NET.populations
    ))  # fmt: skip
    plans = RULES[rule](net)
    more = net.with_weights({n: 1.1 * w for n, w in net.weights().items()})
    fixed = quantise(more, plastic=list(plans.plans))
    for version in (more, fixed):
        with build(version, "fused", plans=plans) as session:
            session.learn(SPIKES, 1)
    if rule == "sltt":  # its plans can be made from integers too
        build(fixed, "fused", plans=RULES[rule](fixed)).close()
        build(dequantise(fixed), "fused", plans=RULES[rule](fixed)).close()


def test_a_learning_by_hand_is_compared_with_nothing() -> None:
    base = RULES["decolle"](NET)
    hand = Learning(base.plans, base.signals, base.classes, base.readout)
    assert hand == base
    build(changed("o", dv=0.6), "fused", plans=hand).close()


# Folded layers


def folded(front: dict[str, Any], size: int, rows: int = 6) -> Network:
    """1x6x6 -> the nodes of `front` -> (size,) neurons -> Linear -> 3 neurons."""
    rng = np.random.default_rng(3)
    shape = (size,) if rows == 6 else (rows,)
    nodes: dict[str, Any] = {"in": nir.Input(np.array([1, 6, 6])), **front}
    nodes["h"] = nir.LIF(*(np.full(shape, v) for v in (1e-2, 10.0, 0.0, 0.8, 0.0)))
    nodes["w"] = nir.Linear(rng.normal(size=(3, size)))
    nodes["o"] = nir.LIF(*(np.full(3, v) for v in (1e-2, 10.0, 0.0, 0.8, 0.0)))
    nodes["out"] = nir.Output(np.array([3]))
    graph = nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False)
    return discretise(graph, Discretisation(dt_s=1e-3, reset="subtract-delayed"))


RNG = np.random.default_rng(4)
TWO, ZERO = np.array([2, 2]), np.array([0, 0])
FLAT = nir.Flatten(np.array([1, 3, 3]), 0, -1)
POOL = {"pool": nir.AvgPool2d(TWO, TWO, ZERO)}
CONV = {"conv": nir.Conv2d((3, 3), RNG.normal(size=(2, 1, 2, 2)), 1, 0, 1, 1, np.zeros(2)),
        "flat": nir.Flatten(np.array([2, 2, 2]), 0, -1)}  # fmt: skip
FOLDS: dict[str, tuple[dict[str, Any], int]] = {
    "pool, linear": ({**POOL, "flat": FLAT, "fc": nir.Linear(RNG.normal(size=(5, 9)))}, 5),
    "pool, convolution": ({**POOL, **CONV}, 8),
}


@pytest.mark.parametrize("case", FOLDS)
@pytest.mark.parametrize("fixed", [False, True], ids=["float", "integers"])
def test_a_folded_pool_or_convolution_that_learns_is_warned_of(case: str, fixed: bool) -> None:
    net = folded(*FOLDS[case])
    assert isinstance(net.projections[0].weight, np.ndarray), "the case is a dense matrix"
    name = net.projections[0].name
    plans = ottt_for(net, 3, 0.1)
    ready = quantise(net, plastic=list(plans.plans)) if fixed else net
    with pytest.warns(UserWarning, match=rf"{name}: .*free weights.*pool.*Freeze it \(frozen="):
        build(ready, "fused", plans=plans).close()
    frozen = ottt_for(net, 3, 0.1, frozen=[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(ready, "fused", plans=frozen).close()


def test_a_flattened_linear_layer_is_free() -> None:
    flat = nir.Flatten(np.array([1, 6, 6]), 0, -1)
    matrix = RNG.normal(size=(5, 36)) * (RNG.random((5, 36)) < 0.5)
    net = folded({"flat": flat, "fc": nir.Linear(matrix)}, 5)
    with build(net, "fused", plans=ottt_for(net, 3, 0.1)) as session:
        session.learn(np.ones((3, 1, 6, 6)), 1)


# Arguments


def test_what_is_no_network_is_named() -> None:
    graph = nir.NIRGraph({"in": nir.Input(np.array([3])), "out": nir.Output(np.array([3]))},
                         [("in", "out")])  # fmt: skip
    calls: list[Callable[[Any], Any]] = [
        build, lambda g: ottt_for(g, 3, 0.1), lambda g: decolle_for(g, 3, 0.1),
        lambda g: etlp_for(g, 3, 0.1), lambda g: sltt_for(g, 3, 0.1), lambda g: soel_for(g, 3, 0.1),
        lambda g: build(g, "fused", plans=RULES["decolle"](NET)),
    ]  # fmt: skip
    for call in calls:
        for given in (graph, "net.nir", None):
            with pytest.raises(
                Invalid, match=rf"network: expected a Network, got {type(given).__name__}"
            ):
                call(given)


@pytest.mark.lava
def test_to_lava_takes_a_network_only() -> None:
    from grasp_plugin.adapters import to_lava

    wrong: Any = "net.nir"
    with pytest.raises(Invalid, match=r"network: expected a Network, got str.*discretise"):
        to_lava(wrong)


@pytest.mark.parametrize("rate", ["0.1", None, -1, -0.5, float("nan"), float("inf"), True])
def test_a_learning_rate_that_is_none(rate: Any) -> None:
    if rate not in (-1, -0.5):  # a rule alone may go up
        with pytest.raises(Invalid, match=r"rule: expected a finite learning_rate, got"):
            ThreeFactor(Instant(), None, rate)
    for make in (decolle_for, etlp_for, ottt_for, sltt_for, soel_for):
        with pytest.raises(Invalid, match=r"expected learning_rate >= 0, got"):
            make(NET, OUT, rate)


def test_a_negative_rate_by_hand_is_refused_in_a_network() -> None:
    base, rule = RULES["decolle"](NET), ThreeFactor(Instant(), None, -0.1)
    for name in ("in->h", "bh"):
        plans = {**base.plans, name: Plan(Plan(rule))}
        with pytest.raises(Invalid, match=rf"{name}: expected learning_rate >= 0, got -0.1"):
            build(NET, "fused", plans=replace(base, plans=plans))


@pytest.mark.parametrize("classes", [0, -3, "3", 3.0, None, True])
def test_classes_that_are_none(classes: Any) -> None:
    for make in (decolle_for, etlp_for, ottt_for, soel_for):
        with pytest.raises(Invalid, match=r"classes: expected classes, an integer >= 1, got"):
            make(NET, classes, 0.1)
    with pytest.raises(Invalid, match=r"RandomReadout: expected classes"):
        RandomReadout(classes)
    base = RULES["decolle"](NET)
    with pytest.raises(Invalid, match=r"classes: expected classes"):
        build(NET, "fused", plans=replace(base, classes=classes))
    assert decolle_for(NET, np.int64(3), 0.1).classes == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_frozen(backend: str) -> None:
    names = ["in->h", "h->o", "bh", "bo"]
    with pytest.raises(Invalid, match="plans: expected something left to learn, got no plans"):
        build(NET, backend, plans=ottt_for(NET, OUT, 0.1, frozen=names))


def test_a_string_of_names_and_a_budget_that_is_a_number() -> None:
    wrong: Any = "in->h"
    for make in (decolle_for, etlp_for, ottt_for):
        with pytest.raises(Invalid, match=r"frozen: expected a list .*Pass \['in->h'\]"):
            make(NET, OUT, 0.1, frozen=wrong)
    with pytest.raises(Invalid, match=r"only: expected a list .*Pass \['in->h'\]"):
        scheduled(RULES["decolle"](NET), GRASP(Fixed(0.1)), only=wrong)
    wrong = 0.05
    with pytest.raises(Invalid, match=r"GRASP: expected a budget.*Pass GRASP\(Fixed\(0\.05\)\)"):
        GRASP(wrong)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_only_the_other_kind_of_session_has(backend: str) -> None:
    with build(NET, backend) as session:
        with pytest.raises(Invalid, match=r"session: expected plans to learn by.*Pass plans="):
            session.learn(SPIKES, 1)
        known = session.records()
    with build(NET, backend, plans=RULES["decolle"](NET)) as learner:
        with pytest.raises(Invalid, match=r"without plans for resume=True.*session\.learned\(\)"):
            learner.run(SPIKES, resume=True)
        with pytest.raises(Invalid, match=r"without plans for state\(\)"):
            learner.state()
        assert learner.records() == known


def test_plans_that_are_none() -> None:
    wrong: Any
    for wrong in (["in->h"], "ottt"):
        with pytest.raises(
            Invalid, match=rf"plans: expected a Learning.*got {type(wrong).__name__}"
        ):
            build(NET, "fused", plans=wrong, signals={}, classes=3)


def test_names_and_numbers_of_a_run() -> None:
    with build(NET, "fused") as session:
        with pytest.raises(Invalid, match=r"hidden: expected an output or population.*h.*'hidden'"):
            session.run(SPIKES)["hidden"]
        wrong: Any = "membrane"
        with pytest.raises(Invalid, match=r"record: .*the string 'membrane'.*\('membrane',\)"):
            session.run(SPIKES, record=wrong)
        holes = SPIKES.copy()
        holes[3, 2] = holes[5, 1] = np.nan
        with pytest.raises(
            Invalid, match=r"got 2 of 108 that are NaN .*first nan at index \(3, 2\)"
        ):
            session.run(holes)
        with pytest.raises(Invalid, match=r"at least one step and sample, got \(0, 9\)\. Pass an"):
            session.run(SPIKES[:0])
        wrong = [[0.0] * cases.IN, [1.0]]
        with pytest.raises(Invalid, match=r"in: expected an array of numbers, got list"):
            session.run(wrong)


def test_checkpoints_name_what_differs(tmp_path: Any) -> None:
    plans, path = RULES["decolle"](NET), tmp_path / "kept"
    with build(NET, "fused", plans=plans) as learner, build(NET, "fused") as runner:
        learner.save(path)
        with pytest.raises(
            Invalid, match="of a session that runs, got one of a session that learns"
        ):
            runner.load(path)
        runner.save(path)
        with pytest.raises(
            Invalid, match=r"session that learns .*, got one of a session that runs"
        ):
            learner.load(path)
    with build(changed("o", reset="value"), "fused") as other:
        with pytest.raises(
            Invalid, match=r"of o LIF \(4,\) value, got one of o LIF .*delayed"
        ) as e:
            other.load(path)
    assert "in->h" not in str(e.value)

"""Bad plans, targets, numbers and files: each an error that names the culprit and the remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import plastic_cases as cases
import pytest
import scipy.sparse as sp
from learning_error_cases import BACKENDS, NET, OUT, RULE, SPIKES, made

from grasp_plugin import build
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning import (
    Accumulate,
    BurnIn,
    EProp,
    Late,
    Learning,
    Plan,
    decolle_for,
    etlp_for,
    fixed_kernels,
    ottt_for,
)
from grasp_plugin.learning.deltas import Outer, is_finite
from grasp_plugin.learning.signals import Backpropagation, OutputError, Projection
from grasp_plugin.learning.traces import Instant

# Plans and signals


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plan_for_nothing_or_without_a_signal(backend: str) -> None:
    base = decolle_for(NET, 3, 0.1)
    for name in ("h->z", "b9"):
        wrong = replace(base, plans={name: RULE})
        with pytest.raises(Invalid, match=rf"{name}: expected a plan on .*in->h.*, got '{name}'"):
            made(backend, learning=wrong)
    for name in ("in->h", "bh"):
        wrong = replace(base, plans={name: RULE}, signals={"o": base.signals["o"]})
        with pytest.raises(Invalid, match=rf"{name}: expected a signal for its target 'h', got"):
            made(backend, learning=wrong)
    with pytest.raises(Invalid, match="z: expected a signal on a population"):
        made(backend, learning=replace(base, signals={**base.signals, "z": base.signals["o"]}))
    with pytest.raises(Invalid, match="in->h: expected a Rule or Plan, got str"):
        made(backend, learning=replace(base, plans={"in->h": "decolle"}))
    with pytest.raises(Invalid, match="in->h: expected a rule without its own bias"):
        made(backend, learning=replace(base, plans={"in->h": replace(RULE, bias=Instant())}))
    with pytest.raises(Invalid, match="in->h: expected Late as the last transform"):
        made(backend, learning=replace(base, plans={"in->h": Plan(RULE, (Late(1), BurnIn(1)))}))


def test_plans_as_a_mapping_need_signals_and_classes() -> None:
    with pytest.raises(Invalid, match=r"plans: expected signals, classes and a readout"):
        build(NET, "fused", plans={"in->h": RULE})
    base = decolle_for(NET, 3, 0.1)
    with build(NET, "fused", plans=base.plans, signals=base.signals, classes=3) as session:
        session.learn(SPIKES, 1)
        first = session.weights()
    with made() as session:
        session.learn(SPIKES, 1)
    assert cases.gap([first], [first]) == 0
    assert set(first) == set(base.plans)


def test_an_unknown_back_end_and_a_wrong_readout() -> None:
    with pytest.raises(Refused, match=r"brian: expected a back end of torch, lava, fused, got"):
        made("brian")
    base = ottt_for(NET, OUT, 0.1)
    with pytest.raises(Invalid, match=r"o: expected 9 outputs to read a class from, got 4"):
        made(learning=replace(base, classes=9))


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_cannot_learn_or_carry_an_error(backend: str) -> None:
    matrix = NET.projections[1].weight
    sparse = replace(NET.projections[1], weight=sp.csr_matrix(matrix * (abs(matrix) > 0.4)))
    uneven = replace(
        NET.projections[1], delay_steps=np.random.default_rng(0).integers(0, 3, matrix.shape)
    )
    for k, kind in ((sparse, "expected dense weights"), (uneven, "expected one delay")):
        net = replace(NET, projections=(NET.projections[0], k))
        with pytest.raises(Refused, match=f"h->o: {kind}.*that learn|h->o: {kind}"):
            made(backend, net)
        with pytest.raises(Refused, match=rf"h->o: {kind}.*carry an error down"):
            made(backend, net, ottt_for(net, OUT, 0.1, frozen=["h->o"], pipelined=True))
        with made(backend, net, decolle_for(net, 3, 0.1, frozen=["h->o"])) as session:
            session.learn(SPIKES, 1)  # what is frozen and carries nothing may be anything


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["dead end", "only a delayed way up"])
def test_a_population_with_no_way_up_has_no_error(kind: str, backend: str) -> None:
    """OTTT: its plans change nothing, on every back end, and the others are not disturbed."""
    rng = np.random.default_rng(2)
    if kind == "dead end":
        net = cases.network(
            [cases.population("h", 8), cases.population("o", OUT), cases.population("z", 5)],
            [cases.dense(rng, "in->h", (8, 9)), cases.dense(rng, "h->o", (OUT, 8)),
             cases.dense(rng, "h->z", (5, 8)), cases.dense(rng, "o->z", (5, OUT))], output="o",
        )  # fmt: skip
        idle = {"h->z", "o->z"}
    else:
        net, idle = cases.two_layers(rng, delay=1), {"in->h", "bh"}
    with made(backend, net, ottt_for(net, OUT, 0.1, pipelined=True)) as session:
        session.learn(SPIKES, 1)
        moved = cases.moved(net, session.weights())
    assert {n for n, m in moved.items() if m == 0} == idle, moved


# What Lava cannot do in its own time


@pytest.mark.lava
def test_what_lava_refuses_and_says() -> None:
    base = ottt_for(NET, OUT, 0.1)
    with pytest.raises(Refused, match=r"in->h: expected Late\(1\).*pipelined=True.*fused"):
        made("lava", learning=base)
    for wrong in (Late(2), Late(1)):
        plans = {n: Plan(p, (wrong,)) for n, p in base.plans.items()}
        if wrong == Late(1):
            plans |= {n: base.plans[n] for n in ("h->o", "bo")}
            made("lava", learning=replace(base, plans=plans)).close()
        else:
            with pytest.raises(Refused, match=r"expected Late\(1\).*got Late\(2\)"):
                made("lava", learning=replace(base, plans=plans))
    error = etlp_for(NET, OUT, 0.1)
    signals = {**error.signals, "h": Projection(OUT, 1.0, source="error")}
    with pytest.raises(Refused, match=r"h: expected a projected label, got a projected error"):
        made("lava", learning=replace(error, signals=signals))
    whole = cases.behind(base, Accumulate(10))
    with made("lava", learning=whole) as session:
        with pytest.raises(Refused, match=r"expected Accumulate\(20\), the whole sequence"):
            session.learn(SPIKES, 1)
        session.learn(SPIKES[:10], 1)
        got = session.weights()
    with made("fused", learning=whole) as session:
        session.learn(SPIKES[:10], 1)
        assert cases.gap([got], [session.weights()]) < 1e-12
    assert max(cases.moved(NET, got).values()) > 1e-3


def test_eprop_learns_on_fused_as_on_torch() -> None:
    """What Lava refuses, the others do: filtered eligibility, projected error."""
    base = etlp_for(NET, OUT, 0.05)
    rules: dict[str, Any] = {
        n: EProp(p, 0.9) for n, p in base.plans.items() if n in ("in->h", "bh")
    }
    signals = {**base.signals, "h": Projection(OUT, 1.0, source="error")}
    learning = Learning(rules, signals, OUT, "o")
    found = []
    for backend in ("torch", "fused"):
        with made(backend, learning=learning) as session:
            session.learn(SPIKES, 1)
            found.append(session.weights())
    assert cases.gap(found[:1], found[1:]) < 1e-12
    assert min(cases.moved(NET, found[0]).values()) > 1e-3


# Targets and masks

TARGETS: dict[str, tuple[Any, str]] = {
    "out of range": (3, r"target: expected labels in 0..2, got 3 at position 0"),
    "negative": (-1, r"target: expected labels in 0..2, got -1"),
    "float": (1.0, r"target: expected integer labels, got float64"),
    "bool": (True, r"target: expected integer labels, got bool"),
    "one too many": ([1, 2], r"target: expected a label for each of 1 samples, got \(2,\)"),
    "wrong steps": (np.zeros((19, 3)), r"target: expected \(20, 1, 3\).*time comes first"),
    "wrong classes": (np.zeros((20, 4)), r"target: expected \(20, 1, 3\)"),
    "NaN": (np.full((20, 3), np.nan), r"target: expected finite targets, got NaN"),
    "complex": (np.zeros((20, 3), complex), r"target: expected \(20, 1, 3\).*complex"),
    "text": ("one", r"target"),
}
MASKS: dict[str, tuple[Any, str]] = {
    "wrong steps": (np.ones(19), r"mask: expected 0 to 1 in \(20,\) or \(20, 1\), got \(19,\)"),
    "NaN": (np.full(20, np.nan), r"mask: expected"),
    "three axes": (np.ones((20, 1, 1)), r"mask: expected"),
    "a number": (1.0, r"mask: expected"),
    "negative": (np.full(20, -2.0), r"with others"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_bad_target_is_named_and_changes_nothing(name: str) -> None:
    target, message = TARGETS[name]
    for backend in ("torch", "fused"):
        with made(backend) as session:
            with pytest.raises(Invalid, match=message):
                session.learn(SPIKES, target)
            assert max(cases.moved(NET, session.weights()).values()) == 0
            assert session.steps == 0


@pytest.mark.parametrize("name", MASKS)
def test_a_bad_mask_is_named(name: str) -> None:
    mask, message = MASKS[name]
    with made() as session, pytest.raises(Invalid, match=message):
        session.learn(SPIKES, 1, mask=mask)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_input_is_named_and_a_fully_masked_sequence_learns_nothing(backend: str) -> None:
    with made(backend) as session:
        for wrong in (SPIKES[:, :4], np.full(SPIKES.shape, np.nan)):
            with pytest.raises(Invalid):
                session.learn(wrong, 1)
        session.learn(SPIKES, 1, mask=np.zeros(20))
        assert max(cases.moved(NET, session.weights()).values()) == 0
        session.learn(SPIKES, 1)
        assert max(cases.moved(NET, session.weights()).values()) > 1e-4


# Sessions and checkpoints


@pytest.mark.parametrize("above", [{}, {"o": OutputError(OUT)}], ids=["none", "another kind"])
def test_backpropagation_is_needed_all_the_way_up(above: dict[str, Any]) -> None:
    """A plan that waits for an error which no population above sends down would learn nothing."""
    learning = Learning({"in->h": RULE}, {"h": Backpropagation(), **above}, OUT, "o")
    with pytest.raises(Refused, match="expected a way for the error"):
        made(learning=learning)


def test_signals_of_other_classes_are_named() -> None:
    learning = Learning({"in->h": RULE}, {"h": Projection(OUT + 2)}, OUT, "o")
    with pytest.raises(
        Invalid, match=f"h: expected a signal of {OUT} classes, got one of {OUT + 2}"
    ):
        made(learning=learning)


@pytest.mark.parametrize("beside", [{"classes": 99}, {"readout": "nope"}, {"signals": {}}])
def test_arguments_beside_a_learning_or_without_plans_are_refused(beside: dict[str, Any]) -> None:
    learning = Learning({"in->h": RULE}, {"h": Projection(OUT)}, OUT, "o")
    with pytest.raises(Invalid, match="got them with a Learning"):
        build(NET, "fused", plans=learning, **beside)
    with pytest.raises(Invalid, match="got them with no plans"):
        build(NET, "fused", **beside)


def test_negative_inputs_of_integer_traces_are_counted() -> None:
    trace = np.array([3, 0], np.int64)
    key = fixed_kernels.key(0, 1, 1)
    assert fixed_kernels.decay(trace, 3584, 4, np.array([-5, 1]), key, 127) == 1
    assert trace.tolist() == [0, 4]


def test_a_float32_update_that_would_overflow_is_not_finite() -> None:
    huge = np.full((1, 2), 1e25)
    assert is_finite({"weight": Outer(huge, huge, -1.0)})
    single = huge.astype(np.float32)
    assert not is_finite({"weight": Outer(single, single, -1.0)})

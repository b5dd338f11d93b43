"""Numbers that run away, and what integers cannot do: errors that name the culprit."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import plastic_cases as cases
import pytest
from learning_error_cases import BACKENDS, INTEGERS, NET, OUT, RULE, SPIKES, lava, made

from grasp_plugin import build, quantise
from grasp_plugin.errors import GraspError, Invalid, Refused
from grasp_plugin.learning import (
    Accumulate,
    BurnIn,
    EProp,
    Plan,
    decolle_for,
    etlp_for,
    ottt_for,
)
from grasp_plugin.learning.losses import MSE

log = logging.getLogger(__name__)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rate", [float("inf"), float("nan")])
def test_an_update_that_is_not_finite_is_refused_before_it_is_made(
    rate: float, backend: str
) -> None:
    """It names the plan and the step, and every weight is still a number."""
    base = decolle_for(NET, 3, 0.05)
    bad = replace(base.plans["h->o"], learning_rate=np.array(rate))  # type: ignore[type-var]
    on = np.ones(20)
    on[:7] = 0
    learning = replace(base, plans={**base.plans, "h->o": Plan(bad, (BurnIn(0),))})
    with made(backend, learning=learning) as session:
        with pytest.raises(Invalid, match=r"h->o: expected .*at step \d+") as caught:
            session.learn(SPIKES, 1)
        log.info("%s: %s", backend, caught.value)
        after = session.weights()
    assert all(np.all(np.isfinite(w)) for w in after.values())
    assert np.array_equal(after["h->o"], NET.weights()["h->o"])
    assert "learning rate" in caught.value.remedy


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_weight_that_is_not_a_number_is_found_in_the_error_at_its_step(backend: str) -> None:
    """A NaN that slips into a hidden weight is met at the first spike that it weighs (in torch's
    dense products: at once); the step is that of the sequence, on Lava too."""
    learning = decolle_for(NET, 3, 0.05, burn_in=0)
    column = int(SPIKES.argmax(axis=0).argmax())
    first = int(np.flatnonzero(SPIKES[:, column])[0]) if backend != "torch" else 0
    found = []
    with made(backend, learning=learning) as session:
        broken = session.weights()
        broken["in->h"][5, column] = np.nan
        session._set_weights(broken)
        with pytest.raises(Invalid, match="NaN or infinity in the error") as caught:
            session.learn(SPIKES, 1)
        found.append(caught.value)
        rest = session.weights()
    assert found[0].node in ("in->h", "bh")
    assert f"at step {first}." in str(found[0])
    rest["in->h"][5, column] = 0.0
    assert all(np.all(np.isfinite(w)) for w in rest.values())
    assert SPIKES.argmax(axis=0).max() > 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_an_error_a_session_with_sound_weights_is_as_good_as_new(backend: str) -> None:
    net = cases.deep(np.random.default_rng(0))
    learning = decolle_for(net, 3, 0.05)
    with made(backend, net, learning) as session:
        good = session.weights()
        session._set_weights({n: w * (np.nan if n == "a->b" else 1.0) for n, w in good.items()})
        with pytest.raises(Invalid, match="at step"):
            session.learn(SPIKES, 1)
        session._set_weights(good)
        session.learn(SPIKES, 1)
        found = session.weights()
    with made(backend, net, learning) as session:
        session.learn(SPIKES, 1)
        assert cases.gap([found], [session.weights()]) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_a_refused_update_the_weights_are_those_of_the_step_before(backend: str) -> None:
    """Bit for bit those of the sequence cut before the bad step, also where each factor of the
    update is finite and only their product is not."""
    net = cases.network(
        [cases.population("o", OUT, node="LI", reset=None)],
        [cases.dense(np.random.default_rng(0), "in->o", (OUT, cases.IN))],
    )
    learning = ottt_for(net, OUT, 0.05, loss=MSE())
    x = SPIKES.copy()
    x[12, 0] = 1e160  # times the error that it makes: 1e320
    with made(backend, net, learning) as session:
        with pytest.raises(Invalid, match=r"in->o: .* at step 12"):
            session.learn(x, 1)
        kept = session.weights()
    with made(backend, net, learning) as session:
        session.learn(x[:12], 1)
        assert cases.gap([kept], [session.weights()]) == 0
    assert cases.moved(net, kept)["in->o"] > 1e-3


# Integers

FIXED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "rate too large": (
        decolle_for(NET, 3, 1e4), {}, r"in->h: expected a learning rate up to .*, got 1e\+04",
    ),
    "rate overflows": (decolle_for(NET, 3, 1e308), {}, r"in->h: expected a learning rate up to"),
    "error_max": (decolle_for(NET, 3, 0.1), {"error_max": 0.0}, r"in->h: .*error_max > 0"),
    "error_max of nothing": (
        decolle_for(NET, 3, 0.1), {"error_max": {"x": 1.0}}, r"x: expected error_max of a plan",
    ),
    "rate_max": (decolle_for(NET, 3, 0.1), {"rate_max": -1.0}, r"in->h: .*rate_max >= 0"),
    "accumulate": (
        cases.behind(decolle_for(NET, 3, 0.1), Accumulate(5)), {},
        r"in->h: expected BurnIn, GRASP or Late in fixed point, got Accumulate",
    ),
    "per synapse": (
        decolle_for(NET, 3, 0.1, trace="synapse"), {},
        r"in->h: expected a rank-1 trace with one decay in fixed point",
    ),
    "e-prop": (
        replace(etlp_for(NET, OUT, 0.1), plans={"in->h": EProp(RULE, 0.9)}), {},
        r"in->h: expected a three-factor rule in fixed point, got EProp",
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["fused", lava])
@pytest.mark.parametrize("name", FIXED)
def test_what_the_engine_cannot_do_is_refused_with_the_reason(name: str, backend: str) -> None:
    learning, options, message = FIXED[name]
    with pytest.raises(GraspError, match=message):
        made(backend, INTEGERS, learning, **options)


@pytest.mark.parametrize("backend", ["fused", lava])
def test_an_error_that_is_not_finite_names_its_plan_in_integers_too(backend: str) -> None:
    net = cases.two_layers(np.random.default_rng(0), readout={"node": "LI", "reset": None})
    learning = ottt_for(net, OUT, 0.001, loss=MSE(), pipelined=True)
    integers = quantise(net, plastic=list(learning.plans))
    target = np.zeros((20, OUT))
    target[12] = 1.5e308
    with made(backend, integers, learning) as session:
        with np.errstate(all="ignore"), pytest.raises(Invalid) as caught:
            session.learn(SPIKES, target)
        kept = session.weights()
    assert caught.value.node in learning.plans
    assert "at step 12" in str(caught.value)
    assert all(np.all(abs(w) <= 256) for w in kept.values())


@pytest.mark.parametrize("backend", ["fused", lava])
def test_odd_weights_and_integers_on_torch_are_refused(backend: str) -> None:
    odd = quantise(NET, plastic=["in->h"])
    odd = odd.with_weights({"in->h": odd.weights()["in->h"] + 1})
    with pytest.raises(Refused, match=r"in->h: expected even weights .*quantise\(network, plastic"):
        made(backend, odd)
    with pytest.raises(Refused, match=r"network: expected float precision for torch"):
        made("torch", INTEGERS)
    with made(backend, INTEGERS) as session, pytest.raises(Refused, match="whole"):
        session.learn(SPIKES * 0.5, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_options_of_integers_do_not_pass_in_float_in_silence(backend: str) -> None:
    known = {"torch": "device, dtype", "fused": "no options", "lava": "postponed"}[backend]
    with pytest.raises(Invalid, match=rf"error_max: expected .*{known}.*, got error_max"):
        made(backend, error_max=1.0)
    with pytest.raises(
        Invalid, match=r"x: expected .*'fused' with plans \(loihi\).*rate_max.*got x"
    ):
        made("fused", INTEGERS, x=1)
    with pytest.raises(Invalid, match=r"postponed: expected options of 'torch'.*got postponed"):
        build(NET, "torch", postponed=True)

"""The GRASP study's engine learns what sessions with `GRASP` in their plans learn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grasp_plugin import build
from grasp_plugin.learning import scheduled
from grasp_plugin.learning.budget import Coverage, Fixed, Marginal, Sharpness
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.selection import above, top

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from _grasp_pick import pick
from _grasp_policies import Policy, Run
from _grasp_runs import Engine, at_rate
from _grasp_tasks import RULES

SHARE, INPUTS, STEPS, SAMPLES = 0.1, 20, 12, 3
RATES = {"decolle": 1e-2, "etlp": 3e-3, "ottt": 3e-2}
CASES: dict[Policy, GRASP | None] = {
    Policy("dense", grain="all"): None,
    Policy("magnitude"): GRASP(Fixed(SHARE), "magnitude"),
    Policy("pred_decrease", "pred_decrease"): GRASP(Fixed(SHARE), "pred_decrease"),
    Policy("abs_gHg", "abs_gHg"): GRASP(Fixed(SHARE), "abs_gHg"),
    Policy("marginal", "pred_decrease", control="marginal"): GRASP(Marginal(SHARE)),
    Policy("coverage", "pred_decrease", control="coverage"): GRASP(Coverage(SHARE)),
    Policy("more", control="more"): GRASP(Sharpness(SHARE), "magnitude"),
    Policy("fewer", control="fewer"): GRASP(Sharpness(SHARE, "fewer"), "magnitude"),
    Policy("rows", grain="row"): GRASP(Fixed(SHARE), "magnitude", granularity="row"),
    Policy("columns", grain="column"): GRASP(Fixed(SHARE), "magnitude", granularity="column"),
}


def stream() -> tuple[Any, Any]:
    """Spikes (1, sample, step, input) and labels (1, sample)."""
    rng = np.random.default_rng(0)
    x = (rng.random((1, SAMPLES, STEPS, INPUTS)) < 0.4).astype(np.uint8)
    return x, rng.integers(0, 10, (1, SAMPLES))


@pytest.fixture(scope="module", params=RULES)
def learned(request: pytest.FixtureRequest) -> tuple[str, Engine]:
    """All policies side by side."""
    rule = request.param
    runs = [Run(policy, SHARE, RATES[rule], 0) for policy in CASES]
    engine = Engine(runs, lambda seed: RULES[rule](INPUTS, seed))
    engine.load(*stream(), 10)
    engine.learn(SAMPLES)
    return rule, engine


@pytest.mark.parametrize("policy", CASES, ids=lambda p: p.name)
def test_as_a_session(learned: tuple[str, Engine], policy: Policy) -> None:
    """The same weights and numbers of writes as a fused session with GRASP in its plans."""
    rule, engine = learned
    network, learning = RULES[rule](INPUTS, 0)
    learning, grasp = at_rate(learning, RATES[rule]), CASES[policy]
    if grasp is not None:
        learning = scheduled(learning, grasp)
    x, labels = stream()
    with build(network, "fused", plans=learning) as session:
        for spikes, label in zip(x[0], labels[0], strict=True):
            session.learn(spikes.astype(float), int(label))
        wanted, state = session.weights(), session._steps._state["plans"]  # type: ignore[attr-defined]
    (run,) = [i for i, r in enumerate(engine.runs) if r.policy == policy]
    start = network.weights()
    for place, (name, weight) in enumerate(wanted.items()):
        assert np.abs(weight - start[name]).max() > 1e-4
        np.testing.assert_allclose(engine.weights[name][run], weight, rtol=1e-10, atol=1e-14)
        if grasp is not None:
            counts = state[name]["transforms"]["0"]
            for kind in ("issued", "dense_nz"):
                assert int(engine.scheduler.counts[kind][run, place]) == int(counts[kind][0])


def test_seeds_are_apart_and_runs_do_not_touch() -> None:
    """A run among others learns what it learns alone."""
    x, labels = (np.concatenate([v, v[:, ::-1]]) for v in stream())
    runs = [Run(Policy("magnitude"), share, 1e-2, seed) for share in (0.02, 0.1) for seed in (0, 1)]

    def weights(chosen: list[Run], which: list[int]) -> dict[str, torch.Tensor]:
        engine = Engine(chosen, lambda seed: RULES["decolle"](INPUTS, seed))
        engine.load(x[which], labels[which], 10)
        engine.learn(SAMPLES)
        return engine.weights

    together = weights(runs, [0, 1])
    for place, run in enumerate(runs):
        for name, alone in weights([run], [run.seed]).items():
            assert torch.allclose(together[name][place], alone[0], rtol=1e-12, atol=1e-15)
    name = next(iter(together))
    assert not torch.allclose(together[name][0], together[name][1])


@pytest.mark.parametrize("method", ["numba", "plain"])
def test_picks_are_those_of_selection(method: str) -> None:
    """Ties, negative scores and prices included."""
    rng = np.random.default_rng(1)
    a, q = rng.normal(size=(40, 9)), rng.random((40, 14))
    a[:20], q[:30] = a[:20].round(), q[:30].round(1)
    k = rng.integers(0, 126, 40)
    price = np.where(np.arange(40) % 4 == 0, 0.2, np.nan)
    counts, rank, _ = pick(*(torch.from_numpy(v) for v in (a, q, k, price)), method)
    masks = (rank[:, None, :] < counts[:, :, None]).numpy()
    for b, mask in enumerate(masks):
        picked = above(a[b], q[b], 0.2) if b % 4 == 0 else top(a[b], q[b], int(k[b]))
        assert np.array_equal(mask, picked.mask())


def test_writes_of_other_policies_are_counted() -> None:
    """What changed in the weights at one step is what was counted."""
    policies = [
        Policy("random", grain="random"), Policy("every", grain="all", control="every"),
        Policy("some", grain="all", control="sometimes"), Policy("blocks", grain="block"),
    ]  # fmt: skip
    x, labels = stream()
    engine = Engine([Run(p, 0.25, 1e-2, 0) for p in policies], lambda s: RULES["ottt"](INPUTS, s))
    engine.load(x[:, :1, :1], labels[:, :1], 10)
    before = {n: w.clone() for n, w in engine.weights.items()}
    engine.learn(1)
    for place, (name, weight) in enumerate(engine.weights.items()):
        changed = (weight != before[name]).sum((1, 2))
        issued = engine.scheduler.counts["issued"][:, place]
        for run, one in enumerate(engine.runs):
            if one.policy.name == "blocks":
                assert changed[run] <= issued[run]
            else:
                assert changed[run] == issued[run]

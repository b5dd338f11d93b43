"""Exact gradients as a rule: plans are torch's optimisers, GRASP takes them, curvature is true."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.baselines import magnitude
from grasp_plugin.learning.budget import Everything, Fixed
from grasp_plugin.learning.exact import Parameters
from grasp_plugin.learning.exact.episode import ExactGradient
from grasp_plugin.learning.exact.episode_learner import (
    EpisodeLearner,
    run_stack,
    stack_gradients,
)
from grasp_plugin.learning.exact.layers import SpikeTimeLayer
from grasp_plugin.learning.exact.losses import (
    first_spikes,
    ttfs_cross_entropy,
    ttfs_cross_entropy_curvature,
    ttfs_cross_entropy_gradient,
)
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.meter import UpdateMeter
from grasp_plugin.learning.optimise import Adam
from grasp_plugin.learning.rule import Factors, Plan

T_END, LOSS = 60.0, {"tau0_ms": 2.0}
PARAMETERS = ("weight", "delay", "theta", "beta", "bias")


def stack(seed: int = 0, sizes: tuple[int, ...] = (4, 7, 3)) -> list[Parameters]:
    rng = np.random.default_rng(seed)
    return [
        Parameters(
            rng.normal(3.0, 1.0, (outs, ins)), rng.uniform(0, 2, (outs, ins)),
            theta=rng.uniform(0.8, 1.2, outs), beta=rng.uniform(0.1, 0.3, outs),
            bias=rng.uniform(-0.1, 0.1, outs),
        )
        for ins, outs in pairwise(sizes)
    ]  # fmt: skip


def batch(seed: int = 0, samples: int = 6) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed + 100)
    return rng.uniform(0, 15, (samples, 4, 2)), rng.integers(0, 3, samples)


def learner_of(plans: dict[str, Any], seed: int = 0) -> EpisodeLearner:
    return EpisodeLearner(stack(seed), plans, t_end_ms=T_END, loss=LOSS)


def modules(seed: int = 0) -> list[SpikeTimeLayer]:
    made = []
    for p in stack(seed):
        outs, ins = p.weight.shape
        layer = SpikeTimeLayer(
            ins, outs, t_end_ms=T_END, delays="delay", train=("theta", "beta", "bias"),
            dtype=torch.float64,
        )  # fmt: skip
        with torch.no_grad():
            for name in PARAMETERS:
                layer.get_parameter(name).copy_(torch.from_numpy(getattr(p, name)))
        made.append(layer)
    return made


@pytest.mark.parametrize("adam", [False, True])
def test_a_plan_is_torch_s_optimiser_on_the_same_layers(adam: bool) -> None:
    """Every parameter of both layers, five updates, 1e-10: SGD by the rule, Adam by a transform."""
    transforms = (Adam(0.01),) if adam else ()
    rate = 1.0 if adam else 0.02
    plans = {
        f"layer{k}.{name}": Plan(ExactGradient(name, rate), transforms)
        for k in (1, 2) for name in PARAMETERS
    }  # fmt: skip
    learner, layers = learner_of(plans), modules()
    own = [p for layer in layers for p in layer.parameters()]
    optimiser: Any = torch.optim.Adam(own, 0.01) if adam else torch.optim.SGD(own, 0.02)
    for step in range(5):
        times, labels = batch(step)
        loss, _ = learner.learn(times, labels)
        first = first_spikes(layers[1](layers[0](torch.from_numpy(times))))
        wanted = ttfs_cross_entropy(first, torch.from_numpy(labels), t_end_ms=T_END, **LOSS)
        optimiser.zero_grad()
        wanted.backward()
        optimiser.step()
        for layer in layers:
            layer.project_()
        assert float(wanted.detach()) == pytest.approx(loss.mean(), rel=1e-10)
    for k, (p, layer, begun) in enumerate(zip(learner.stack, layers, stack(), strict=True)):
        for name in PARAMETERS:
            got, there = getattr(p, name), layer.get_parameter(name).detach().numpy()
            np.testing.assert_allclose(got, there, rtol=1e-10, atol=1e-12, err_msg=name)
            heard = k == 0 or name != "beta"  # adaptation follows an output's first spike
            assert (np.abs(got - getattr(begun, name)).max() > 1e-4) == heard, name


def test_grasp_with_everything_is_the_rule_bit_for_bit() -> None:
    names = ("layer1.weight", "layer2.delay")
    plain = {n: ExactGradient(n.partition(".")[2], 0.02) for n in names}
    whole = {n: Plan(r, (GRASP(Everything(), "magnitude"),)) for n, r in plain.items()}
    one, two = learner_of(plain), learner_of(whole)
    for step in range(3):
        one.learn(*batch(step))
        two.learn(*batch(step))
    for n in names:
        assert np.array_equal(one.value(n), two.value(n))
        assert not np.array_equal(one.value(n), learner_of(plain).value(n))


@pytest.mark.parametrize("score", ["magnitude", "pred_decrease", "abs_gHg", "random"])
def test_what_is_not_chosen_keeps_every_bit(score: str) -> None:
    """Weights, delays and moments; the meter's count is that of the weights that changed."""
    plans = {
        n: Plan(ExactGradient(n.partition(".")[2]), (GRASP(Fixed(0.25), score), Adam(0.01)))
        for n in ("layer1.weight", "layer1.delay", "layer2.weight")
    }  # fmt: skip
    learner = learner_of(plans)
    meter = UpdateMeter(learner)
    for step in range(3):
        before, read = {n: learner.value(n) for n in plans}, meter.read()
        learner.learn(*batch(step))
        for n, count in meter.since(read).plans.items():
            assert count is not None
            changed = int((before[n] != learner.value(n)).sum())
            assert 0 < changed <= count.issued <= 0.25 * before[n].size + 1, n
            if n != "layer1.delay":  # a delay may be pushed below 0, and stay where it was
                assert changed == count.issued, n
    untouched = learner.states["layer1.weight"]["transforms"]["1"]["mean"] == 0
    assert 0.2 < untouched.mean() < 1


@pytest.mark.parametrize("name", ["layer1.weight", "layer1.delay", "layer2.weight", "layer2.theta"])
def test_curvature_is_that_of_the_loss(name: str) -> None:
    """Full: symmetric, and the second difference of the loss; gn: J^T Lambda J, entry by entry."""
    learner = learner_of({name: Plan(ExactGradient(name.partition(".")[2]))})
    times, labels = batch()
    bend = curvature_of(learner, name, times, labels)
    size = learner.value(name).size
    shape = learner.value(name).shape
    columns = {
        kind: np.array([bend(e.reshape(shape), kind).ravel() for e in np.eye(size)])
        for kind in ("gn", "full")
    }
    for matrix in columns.values():
        assert np.abs(matrix).max() > 1e-6
        np.testing.assert_allclose(matrix, matrix.T, rtol=1e-5, atol=1e-5 * np.abs(matrix).max())
    assert np.linalg.eigvalsh(columns["gn"] + columns["gn"].T).min() > -1e-6 * columns["gn"].max()
    jacobian = output_jacobian(learner, name, times)
    wanted = np.zeros((size, size))
    first = run_stack(learner.stack, times, T_END)[-1].times[:, :, 0]
    for b, rows in enumerate(jacobian):
        lam = np.array([
            ttfs_cross_entropy_curvature(first[b : b + 1], labels[b : b + 1], u[None], **LOSS)[0]
            for u in np.eye(3)
        ])  # fmt: skip
        wanted += rows.T @ lam @ rows / len(labels)
    np.testing.assert_allclose(columns["gn"], wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())
    assert learner.changed == 0
    v = np.random.default_rng(5).normal(size=shape)
    assert second_difference(learner, name, v, times, labels) == pytest.approx(
        float((v * bend(v, "full")).sum()), rel=1e-3
    )


def curvature_of(learner: EpisodeLearner, name: str, times: Any, labels: Any) -> Any:
    """The operator that a plan is given."""
    kept: list[Any] = []

    class Look(GRASP):
        def update(self, delta: Any, state: Any, weight: Any, **extras: Any) -> Any:
            kept.append(extras["factors"].curvature)
            return delta, state

    rule = learner.learning.plans[name]
    assert isinstance(rule, Plan)
    seer = learner_of({name: Plan(rule.rule, (Look(score="magnitude"),))})
    seer.learn(times, labels)
    bend = kept[0]
    bend.learner = learner  # before the update
    return bend


def output_jacobian(learner: EpisodeLearner, name: str, times: Any) -> Any:
    """d(first spike of output c of sample b)/dp by the adjoint: (batch, 3, size of p)."""
    layer, parameter = learner.places[name]
    out = []
    for b in range(len(times)):
        runs = run_stack(learner.stack, times[b : b + 1], T_END)
        rows = [
            np.ravel(getattr(stack_gradients(runs, e[None], 0.0)[layer], parameter))
            for e in np.eye(3)
        ]
        out.append(rows)
    return np.array(out)


def second_difference(learner: EpisodeLearner, name: str, v: Any, times: Any, labels: Any) -> float:
    """d^2 L(p + s v) / ds^2 from losses alone."""
    layer, parameter = learner.places[name]
    begun, h = getattr(learner.stack[layer], parameter), 2e-4

    def loss(s: float) -> float:
        changed = list(learner.stack)
        moved = begun + s * v.reshape(begun.shape)
        changed[layer] = replace(changed[layer], **{parameter: moved})
        first = run_stack(changed, times, T_END)[-1].times[:, :, 0]
        return float(ttfs_cross_entropy_gradient(first, labels, t_end_ms=T_END, **LOSS)[0].mean())

    return (loss(h) - 2 * loss(0.0) + loss(-h)) / h**2


def test_it_learns_at_a_tenth_of_the_writes() -> None:
    """Which of two inputs comes first; loss falls to a third, or to less."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 40)
    times = rng.uniform(0, 2, (40, 4, 1))
    times[:, :2, 0] += np.where(labels == 0, 0, 8)[:, None]
    times[:, 2:, 0] += np.where(labels == 1, 0, 8)[:, None]
    layers = [p for p in stack(3, (4, 12, 2))]
    plans = {
        f"layer{k}.weight": Plan(ExactGradient(), (magnitude(0.1), Adam(0.05))) for k in (1, 2)
    }
    learner = EpisodeLearner(layers, plans, t_end_ms=T_END, gdot_min_per_ms=1e-4)
    losses = [float(learner.learn(times, labels)[0].mean()) for _ in range(60)]
    assert np.mean(losses[-5:]) < losses[0] / 3
    assert UpdateMeter(learner).read().total.share < 0.11


def test_refusals() -> None:
    with pytest.raises(Invalid, match="expected one of"):
        ExactGradient("tau")
    with pytest.raises(Invalid, match=r"layer1\.weight"):
        learner_of({"weights": ExactGradient()})
    with pytest.raises(Invalid, match="array of one of 2 layers"):
        learner_of({"layer3.weight": ExactGradient()})
    for wrong in (ExactGradient("delay"), Plan(ExactGradient("delay"), (Adam(0.1),))):
        with pytest.raises(Invalid, match="gradient of 'weight', got that of 'delay'"):
            learner_of({"layer1.weight": wrong})
    with pytest.raises(Refused, match="read-out"):
        EpisodeLearner(
            [Parameters(np.ones((2, 3)), theta=np.inf)], {"layer1.weight": ExactGradient()},
            t_end_ms=T_END,
        )  # fmt: skip
    with pytest.raises(Invalid, match="Episode"):
        ExactGradient().update(Factors(np.zeros((1, 3))), {}, np.zeros((2, 3)))
    learner = learner_of({"layer1.weight": ExactGradient("weight", np.inf)})
    with pytest.raises(Invalid, match="finite"):
        learner.learn(*batch())
    assert np.array_equal(learner.value("layer1.weight"), stack()[0].weight)
    curved = Plan(ExactGradient(), (GRASP(Fixed(0.1), curvature="fd_smooth"),))
    learner = learner_of({"layer1.weight": curved})
    with pytest.raises(Refused, match="use 'full'"):
        learner.learn(*batch())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0]), r"shape \(6,\), got int64 of shape \(1,\)"),
        (np.zeros(6), "expected integers .*got float64"),
        (np.full(6, -1), r"expected 0..2, got -1..-1"),
        (np.full(6, 3), r"expected 0..2, got 3..3"),
    ],
)
def test_labels_that_no_class_has_are_refused(labels: Any, message: str) -> None:
    learner = learner_of({"layer1.weight": ExactGradient()})
    with pytest.raises(Invalid, match=message):
        learner.learn(batch()[0], labels)
    first = torch.ones(6, 3)
    with pytest.raises(Invalid, match="labels: expected"):
        ttfs_cross_entropy(first, torch.from_numpy(labels), t_end_ms=T_END)

"""The curvature that a network hands to GRASP, against autograd on the instantaneous graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grasp_plugin.errors import Invalid
from grasp_plugin.learning import decolle_for, etlp_for, ottt_for
from grasp_plugin.learning.curvature import diagonal, finite_difference
from grasp_plugin.learning.network_curvature import Curvature, StepCurvature
from grasp_plugin.learning.online import OnlineLearner
from grasp_plugin.learning.spec import Learning, Seen
from grasp_plugin.network.network import Network, Population, Projection

F64 = torch.float64
SIZES = {"a": 6, "b": 5, "out": 3}


def network() -> Network:
    """input -> a -> b -> out, and a -> out past b; out does not spike."""
    rng = np.random.default_rng(0)
    populations = []
    for name, size in SIZES.items():
        one, zero = np.ones(size), np.zeros(size)
        model, reset = ("LI", None) if name == "out" else ("LIF", "subtract-delayed")
        populations.append(
            Population(name, (size,), model, reset, one, 0.2 * one, one, zero, zero, one, zero)
        )
    projections = [
        Projection(f"{s}->{t}", s, t, rng.normal(size=(SIZES[t], SIZES.get(s, 4))) / 2)
        for s, t in (("input", "a"), ("a", "out"), ("a", "b"), ("b", "out"))
    ]
    return Network(tuple(populations), tuple(projections), (), {"input": (4,)}, {"output": "out"})


def scene(recipe: Callable[..., Learning], batch: int = 3) -> tuple[OnlineLearner, StepCurvature]:
    """One step with random membranes: the learner, and its curvature."""
    net = network()
    learner = OnlineLearner(net, recipe(net, 3, 0.1))
    rng = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=F64)

    margin = {p: draw(batch, n) for p, n in SIZES.items()}
    output = {p: (m > 0).to(F64) if p != "out" else m for p, m in margin.items()}
    pre = {name: draw(batch, 4).abs() for name in learner.rules}
    seen = Seen(pre, output, margin)
    target, mask = torch.eye(3, dtype=F64)[:batch], torch.ones(batch, 1, dtype=F64)
    weights = {k.name: torch.as_tensor(k.weight) for k in net.projections}
    before = learner.initial_signals(target)
    thirds, after = learner.third_factors(seen, target, mask, before, weights)
    bent = StepCurvature(net, learner.learning, seen, target, mask, weights, before, after, thirds)
    return learner, bent


def curvature(learner: OnlineLearner, bent: StepCurvature, name: str) -> Curvature:
    factors = learner.factors(name, bent.seen, bent.thirds or {})
    return bent.of(learner.target_of(name), learner.learning.plans[name], factors)


class Spike(torch.autograd.Function):
    """H(x) forward with a derivative that autograd can differentiate again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * _First.apply(x, ctx.surrogate), None


class _First(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return surrogate.first(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.second(x), None


@pytest.mark.parametrize(("name", "population"), [("input->a", "a"), ("a->b", "b")])
def test_full_curvature_of_ottt_is_double_backward_through_the_layers_above(
    name: str, population: str
) -> None:
    learner, bent = scene(ottt_for)
    signal: Any = learner.learning.signals[population]
    weights, margin = bent.weights, bent.seen.margin

    def loss(du: Tensor) -> Tensor:
        """The step's loss where the membrane of one population is moved by du."""
        moved, spikes = {population: du}, {}
        for p in ("a", "b"):
            value = margin[p] + moved.get(p, torch.zeros_like(margin[p]))
            spikes[p] = Spike.apply(value, signal.surrogate)
            for k in learner.network.projections:
                if k.source == p:
                    change = (spikes[p] - bent.seen.output[p]) @ weights[k.name].T
                    moved[k.target] = moved.get(k.target, 0) + change
        return signal.loss.value(bent.seen.output["out"] + moved["out"], bent.target, bent.mask)

    zero = torch.zeros_like(margin[population]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(zero), zero, create_graph=True)
    product = curvature(learner, bent, name)
    for seed in range(3):
        u = torch.randn(margin[population].shape, generator=torch.Generator().manual_seed(seed),
                        dtype=F64)  # fmt: skip
        (wanted,) = torch.autograd.grad((gradient * u).sum(), zero, retain_graph=True)
        found = product(u, "full")
        assert (found - wanted).abs().max() < 1e-10
        assert wanted.abs().max() > 1e-4
        assert (product(u) - wanted).abs().max() > 1e-3  # Gauss-Newton is something else


@pytest.mark.parametrize("recipe", [decolle_for, etlp_for, ottt_for])
@pytest.mark.parametrize("name", ["input->a", "b->out"])
def test_a_smooth_finite_difference_is_the_full_curvature(
    recipe: Callable[..., Learning], name: str
) -> None:
    learner, bent = scene(recipe)
    if name not in learner.rules:
        name = "a->b"  # the readout does not learn
    product = curvature(learner, bent, name)
    u = torch.randn(bent.seen.margin[learner.target_of(name)].shape, dtype=F64)
    wanted = product(u, "full")
    assert wanted.abs().max() > 1e-6
    assert (product(u, "fd_smooth") - wanted).abs().max() / wanted.abs().max() < 1e-3
    assert not product(u * 0, "fd_smooth").any()


def test_the_order_of_projections_does_not_matter() -> None:
    """a -> out is listed before a -> b -> out; the tangent of b must be there all the same."""
    learner, bent = scene(ottt_for)
    turned = replace(bent.network, projections=tuple(reversed(bent.network.projections)))
    u = torch.randn(3, 6, dtype=F64)
    one = curvature(learner, bent, "input->a")(u)
    two = curvature(learner, replace(bent, network=turned), "input->a")(u)
    assert torch.allclose(one, two, rtol=1e-12, atol=1e-15)


def test_the_diagonal_is_unbiased_and_exact_where_m_is_diagonal() -> None:
    rng = np.random.default_rng(3)
    root = rng.normal(size=(4, 4))
    m, like = root @ root.T, np.zeros((1, 4))
    estimates = [diagonal(lambda u: u @ m, like, seed) for seed in range(4000)]
    spread = np.std(estimates, axis=0)[0] / np.sqrt(4000)
    assert np.all(np.abs(np.mean(estimates, axis=0)[0] - np.diag(m)) < 4 * spread)
    only = np.arange(1.0, 5.0)
    assert np.array_equal(diagonal(lambda u: u * only, like, 7)[0], only)


def test_finite_difference_of_a_quadratic() -> None:
    m = np.array([[2.0, 1.0], [1.0, 3.0]])
    u = np.array([[1.0, -2.0]])
    assert np.allclose(finite_difference(lambda du: du @ m, u), u @ m, rtol=1e-9)


def test_macs_count_the_layers_above() -> None:
    learner, bent = scene(ottt_for)
    assert curvature(learner, bent, "input->a").macs == 2 * (5 * 6 + 3 * 5 + 3 * 6)
    assert curvature(learner, bent, "a->b").macs == 2 * 3 * 5
    learner, bent = scene(decolle_for)
    assert curvature(learner, bent, "input->a").macs == 2 * 3 * 6


def test_an_unknown_kind_is_refused() -> None:
    learner, bent = scene(decolle_for)
    with pytest.raises(Invalid, match="gn, full or fd_smooth"):
        curvature(learner, bent, "input->a")(torch.ones(3, 6, dtype=F64), "exact")

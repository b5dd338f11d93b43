"""Closed-form Hessian-vector products are double backward; naive finite differences are not."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import jvp

from grasp_plugin.learning.curvature import (
    InstantaneousGraph,
    Operator,
    Unit,
    hessian_vector,
    output_curvature,
    plus,
    projection_curvature,
    readout_curvature,
    surrogate_curvature,
)
from grasp_plugin.learning.losses import MSE, CrossEntropy, Loss, SmoothL1
from grasp_plugin.learning.signals import (
    Backpropagation,
    OutputError,
    Projection,
    RandomReadout,
)
from grasp_plugin.neurons.surrogate import FastSigmoid, Sigmoid, Surrogate, Triangular

log = logging.getLogger(__name__)
N_IN, N, CLASSES = 7, 6, 4
F64 = torch.float64


class Spike(torch.autograd.Function):
    """H, twice differentiable through a surrogate."""

    @staticmethod
    def forward(ctx, x: Tensor, surrogate: Surrogate) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def]
        return g * Slope.apply(ctx.saved_tensors[0], ctx.surrogate), None


class Slope(torch.autograd.Function):
    """sigma', whose derivative is sigma''."""

    @staticmethod
    def forward(ctx, x: Tensor, surrogate: Surrogate) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return surrogate.first(x)

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def]
        return g * ctx.surrogate.second(ctx.saved_tensors[0]), None


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def double_backward(loss: Callable[[Tensor], Tensor], w: Tensor, v: Tensor) -> Tensor:
    w = w.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(loss(w), w, create_graph=True)
    (out,) = torch.autograd.grad((g * v).sum(), w, allow_unused=True)
    return torch.zeros_like(w) if out is None else out


def scene(batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(trace, W, V, what U holds beside W p)."""
    p = random(batch, N_IN, seed=seed).abs()
    return (
        p,
        random(N, N_IN, seed=seed + 1),
        random(N, N_IN, seed=seed + 2),
        random(batch, N, seed=seed + 3),
    )


def assert_same(found: Tensor, wanted: Tensor, what: str) -> None:
    error = float((found - wanted).abs().max())
    log.info("%s: %.1e of %.1e", what, error, float(wanted.abs().max()))
    assert error < 1e-10
    assert wanted.abs().max() > 1e-6


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(
    "loss", [MSE(), CrossEntropy(), SmoothL1()], ids=lambda x: type(x).__name__
)
def test_decolle_full_is_double_backward(batch: int, loss: Loss) -> None:
    p, w, v, r = scene(batch)
    surrogate, signal = FastSigmoid(10.0), RandomReadout(CLASSES, 2.0, loss, seed=3)
    state = signal.init(N, w)
    target, mask = (
        torch.eye(CLASSES, dtype=F64)[torch.arange(batch) % CLASSES],
        torch.ones(batch, 1),
    )
    u = p @ w.T + r
    spikes, slope = (u > 0).to(F64), surrogate.first(u)
    third, _ = signal.update(spikes, target, state)
    gauss_newton = readout_curvature(signal, spikes, slope, target, mask.to(F64), state)
    full = plus(gauss_newton, surrogate_curvature(surrogate, u, third))

    def local(weight: Tensor) -> Tensor:
        return loss.value(signal.logits(Spike.apply(p @ weight.T + r, surrogate), state), target)

    wanted = double_backward(local, w, v)
    assert_same(hessian_vector(full, p, v), wanted, "decolle")
    assert (hessian_vector(gauss_newton, p, v) - wanted).abs().max() > 1e-4  # sigma'' matters
    _semi_definite(gauss_newton, p)


def test_naive_finite_differences_lose_gauss_newton() -> None:
    """G9: with H as the forward, (g(W + eV) - g(W - eV)) / 2e is full minus Gauss-Newton."""
    p, w, v, r = scene(8)
    surrogate, signal = FastSigmoid(10.0), RandomReadout(CLASSES, 2.0, MSE(), seed=3)
    state = signal.init(N, w)
    target = torch.eye(CLASSES, dtype=F64)[torch.arange(8) % CLASSES]

    def gradient(weight: Tensor) -> Tensor:
        u = p @ weight.T + r
        third, _ = signal.update((u > 0).to(F64), target, state)
        return (third * surrogate.first(u)).T @ p

    e, u = 1e-7, p @ w.T + r
    naive = (gradient(w + e * v) - gradient(w - e * v)) / (2 * e)
    third, _ = signal.update((u > 0).to(F64), target, state)
    bent = hessian_vector(surrogate_curvature(surrogate, u, third), p, v)
    assert (naive - bent).abs().max() / bent.abs().max() < 1e-6
    flat = readout_curvature(
        signal, (u > 0).to(F64), surrogate.first(u), target, torch.ones(8, 1, dtype=F64), state
    )
    assert hessian_vector(flat, p, v).abs().max() > 1e-4


@pytest.mark.parametrize("batch", [1, 8])
def test_etlp(batch: int) -> None:
    """Exact: the pseudo-loss bends by psi' alone. Proxy: the curvature of ||Bf^T S - y*||^2 / 2."""
    p, w, v, r = scene(batch, seed=5)
    surrogate, signal = Triangular(0.3, 1.0), Projection(CLASSES, probability=1.0, seed=2)
    target = torch.eye(CLASSES, dtype=F64)[torch.arange(batch) % CLASSES]
    u = 0.3 * (p @ w.T + r)
    p = 0.3 * p
    third, state = signal.update(target, signal.init(N, w))
    r = 0.3 * r

    def pseudo(weight: Tensor) -> Tensor:
        return (third * Spike.apply(p @ weight.T + r, surrogate)).sum()

    exact = surrogate_curvature(surrogate, u, third)
    assert_same(hessian_vector(exact, p, v), double_backward(pseudo, w, v), "etlp exact")
    slope, spikes, bf = surrogate.first(u), (u > 0).to(F64), state["feedback"]
    proxy = projection_curvature(signal, slope, state)

    def squared(weight: Tensor) -> Tensor:
        s = Spike.apply(p @ weight.T + r, surrogate)
        return ((s @ bf - target) ** 2).sum() / 2

    rest = surrogate_curvature(surrogate, u, (spikes @ bf - target) @ bf.T)
    found = hessian_vector(plus(proxy, rest), p, v)
    assert_same(found, double_backward(squared, w, v), "etlp proxy")
    _semi_definite(proxy, p)
    silent = projection_curvature(signal, slope, {**state, "event": state["event"] * 0})
    assert not hessian_vector(silent, p, v).any()


def test_etlp_output_is_double_backward_of_half_the_squared_error() -> None:
    p, w, v, r = scene(5, seed=9)
    surrogate, target = Triangular(0.3, 1.0), torch.eye(N, dtype=F64)[:5]
    p, r = 0.3 * p, 0.3 * r
    u = p @ w.T + r
    slope, error = surrogate.first(u), (u > 0).to(F64) - target
    flat = output_curvature(OutputError(N), slope, torch.ones(1, dtype=F64))

    def half(weight: Tensor) -> Tensor:
        return ((Spike.apply(p @ weight.T + r, surrogate) - target) ** 2).sum() / 2

    found = hessian_vector(plus(flat, surrogate_curvature(surrogate, u, error)), p, v)
    assert_same(found, double_backward(half, w, v), "output")


@pytest.mark.parametrize("skip", [False, True], ids=["chain", "skip connection"])
def test_ottt_gauss_newton_is_j_lambda_j(skip: bool) -> None:
    """Through two layers above: M = J^T Lambda J, J by forward differentiation."""
    p, w, v, r = scene(6, seed=20)
    w2, w3, extra = random(5, N, seed=30), random(CLASSES, 5, seed=31), random(CLASSES, N, seed=32)
    surrogate, signal = Sigmoid(4.0), Backpropagation(CrossEntropy())
    target = torch.eye(CLASSES, dtype=F64)[torch.arange(6) % CLASSES]

    def logits(weight: Tensor) -> Tensor:
        s1 = smooth(p @ weight.T + r)
        out = smooth(s1 @ w2.T) @ w3.T
        return out + s1 @ extra.T if skip else out

    def smooth(x: Tensor) -> Tensor:
        return surrogate.smooth(x)

    u1 = p @ w.T + r
    u2 = smooth(u1) @ w2.T
    y, mask = logits(w), torch.ones(6, 1, dtype=F64)
    units = {"1": Unit(surrogate, u1), "2": Unit(surrogate, u2), "out": Unit(None, y)}
    above = {"1": [("2", w2)], "2": [("out", w3)]}
    if skip:
        above["1"].append(("out", extra))
    graph = InstantaneousGraph(signal, units, above, "out", y, target, mask)
    found = hessian_vector(graph.of("1"), p, v)
    _, tangent = jvp(logits, (w,), (v,))
    bent = signal.loss.curvature(y, target, tangent, mask)
    leaf = w.clone().requires_grad_(True)
    (wanted,) = torch.autograd.grad((logits(leaf) * bent).sum(), leaf)
    assert_same(found, wanted, "ottt")
    _semi_definite(graph.of("1"), p)


def _semi_definite(product: Operator, p: Tensor) -> None:
    """<v, H v> >= 0 and <u, H v> = <v, H u> (G3)."""
    for seed in range(20):
        a, b = random(N, N_IN, seed=100 + seed), random(N, N_IN, seed=200 + seed)
        ha, hb = hessian_vector(product, p, a), hessian_vector(product, p, b)
        assert (a * ha).sum() >= -1e-14
        assert torch.isclose((b * ha).sum(), (a * hb).sum(), rtol=1e-12, atol=1e-14)


def test_batch_one_is_rank_one() -> None:
    """G5: with one sample and v = g, H g = (||p||^2 M d) p^T."""
    p, w, _, r = scene(1)
    surrogate, signal = FastSigmoid(10.0), RandomReadout(CLASSES, 2.0, MSE(), seed=3)
    state, target = signal.init(N, w), torch.eye(CLASSES, dtype=F64)[:1]
    u = p @ w.T + r
    slope, spikes = surrogate.first(u), (u > 0).to(F64)
    third, _ = signal.update(spikes, target, state)
    d = third * slope
    product = readout_curvature(signal, spikes, slope, target, torch.ones(1, 1, dtype=F64), state)
    outer = (float(p @ p.T) * product(d)).T @ p
    assert_same(hessian_vector(product, p, d.T @ p), outer, "rank one")
    assert torch.linalg.matrix_rank(outer) == 1

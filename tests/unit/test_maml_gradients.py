"""The meta-gradient: against finite differences, Hessian products, and itself (M1 to M6)."""

from __future__ import annotations

from typing import Any

import meta_cases as cases
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from grasp_plugin.errors import Refused
from grasp_plugin.learning.meta import (
    MAML,
    Gradient,
    anil,
    assert_twice_differentiable,
    boil,
    smooth_twin,
    spike,
)
from grasp_plugin.learning.meta.twice import probes
from grasp_plugin.neurons.surrogate import Arctan, Boxcar, FastSigmoid, Sigmoid, Triangular

OURS = {"fast": FastSigmoid(10.0), "steep": FastSigmoid(25.0), "sg": Sigmoid(4.0), "atan": Arctan()}


def snntorch_surrogate(name: str, *arguments: Any) -> Any:
    return getattr(pytest.importorskip("snntorch.surrogate"), name)(*arguments)


def norse_surrogate(name: str) -> Any:
    module = pytest.importorskip("norse.torch.functional.threshold")
    return lambda x: module.threshold(x, name, 10.0)


def second_derivative_error(function: Any) -> float:
    """Largest difference of the double backward and the numeric derivative of the backward."""
    u, h = probes(), 1e-6

    def backward(at: Tensor) -> Tensor:
        at = at.clone().requires_grad_()
        return torch.autograd.grad(function(at).sum(), at)[0]

    at = u.clone().requires_grad_()
    (g,) = torch.autograd.grad(function(at).sum(), at, create_graph=True)
    (second,) = torch.autograd.grad(g.sum(), at)
    numeric = (backward(u + h) - backward(u - h)) / (2 * h)
    return float((second - numeric).abs().max())


@pytest.mark.parametrize("name", [*OURS, "triangular"])
def test_m1_our_surrogates(name: str) -> None:
    function = spike(OURS.get(name, Triangular()))
    assert second_derivative_error(function) < 1e-6
    assert_twice_differentiable(function)


@pytest.mark.parametrize("name", ["atan", "fast_sigmoid", "sigmoid", "spike_rate_escape"])
def test_m1_snntorch(name: str) -> None:
    function = snntorch_surrogate(name)
    assert second_derivative_error(function) < 1e-6
    assert_twice_differentiable(function)


@pytest.mark.parametrize("name", ["super", "heavi_erfc", "tanh", "circ"])
def test_m1_norse(name: str) -> None:
    function = norse_surrogate(name)
    assert second_derivative_error(function) < 1e-6
    assert_twice_differentiable(function)


@pytest.mark.parametrize("name", ["triangular", "straight_through_estimator"])
def test_m5_surrogates_without_a_second_derivative_are_refused(name: str) -> None:
    with pytest.raises(Refused, match="expected a surrogate that can be differentiated twice"):
        assert_twice_differentiable(snntorch_surrogate(name), name)


def test_m5_random_and_wrong_ones_too() -> None:
    with pytest.raises(Refused, match="random"):
        assert_twice_differentiable(lambda u: u * torch.rand_like(u) + u**2)
    with pytest.raises(Refused, match="a constant to autograd"):
        assert_twice_differentiable(spike(Boxcar()))

    class Wrong(torch.autograd.Function):
        """Backward x^2, without the graph of one of its factors."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return (x > 0).to(x.dtype)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            (x,) = ctx.saved_tensors
            return grads[0] * x * x.detach()

    with pytest.raises(Refused, match="off by"):
        assert_twice_differentiable(Wrong.apply)


@pytest.mark.parametrize("steps", [1, 3])
def test_m2_smooth_twin_is_its_finite_differences(steps: int) -> None:
    """Along random directions, to rel 1e-5; the first-order gradient fails the same check."""
    model = cases.model(spikes=smooth_twin(cases.SIGMA))
    given = cases.tasks()
    maml = MAML(model, steps=steps, step_size=0.3)
    gradient = cases.meta_gradient(maml, given)
    first = cases.meta_gradient(MAML(model, steps=steps, step_size=0.3, order=1), given)
    made = torch.Generator().manual_seed(1)
    directions = torch.randn((8, len(gradient)), generator=made, dtype=torch.float64)
    numeric = torch.stack([slope(maml, given, v) for v in directions])
    scale = numeric.abs().max()
    assert (directions @ gradient - numeric).abs().max() / scale < 1e-5
    assert (directions @ first - numeric).abs().max() / scale > 1e-2


def slope(maml: MAML, given: Any, direction: Tensor, h: float = 1e-6) -> Tensor:
    """Derivative of the meta-loss in theta along a direction: central."""
    theta = list(maml.model.parameters())
    begun, values = [p.detach().clone() for p in theta], []
    parts = direction.split([p.numel() for p in theta])
    with torch.no_grad():
        for shift in (-1, 1):
            for p, old, part in zip(theta, begun, parts, strict=True):
                p.copy_(old + shift * h * part.view_as(p))
            values.append(maml(given))
        for p, old in zip(theta, begun, strict=True):
            p.copy_(old)
    return (values[1] - values[0]) / (2 * h)


@pytest.mark.parametrize("mapped", [False, True])
def test_m3_spiking_second_order_is_g_minus_a_h_g(mapped: bool) -> None:
    """With H from an independent double backward, to 1e-10; first order is g to 1e-12 (M4)."""
    a, model, given = 0.4, cases.model(), cases.tasks()
    second = cases.meta_gradient(MAML(model, step_size=a, mapped=mapped), given)
    first = cases.meta_gradient(MAML(model, step_size=a, mapped=mapped, order=1), given)
    wanted, g = [], []
    for task in given:
        _, h_of = support_hessian(model, task)
        outer = query_gradient(model, None, task, a)
        g.append(outer)
        wanted.append(outer - a * h_of(outer))
    assert (second - torch.stack(wanted).mean(0)).abs().max() < 1e-10
    assert (first - torch.stack(g).mean(0)).abs().max() < 1e-12
    assert (second - first).abs().max() > 1e-3  # M5: not the same by accident


def support_hessian(model: Any, task: Any) -> tuple[list[Tensor], Any]:
    """theta, and v -> H v of the support loss."""
    theta = list(model.parameters())
    loss = functional.cross_entropy(model(task[0]), task[1])
    gradient = cases.flat(torch.autograd.grad(loss, theta, create_graph=True))
    return theta, lambda v: cases.flat(
        torch.autograd.grad((gradient * v).sum(), theta, retain_graph=True)
    )


def query_gradient(model: Any, names: Any, task: Any, a: float) -> Tensor:
    """grad_phi of the query loss at phi = theta - a grad, by changing a copy's parameters.

    names: what adapts; None: all.
    """
    loss = functional.cross_entropy(model(task[0]), task[1])
    inner = torch.autograd.grad(loss, list(model.parameters()))
    copy = cases.model()
    with torch.no_grad():
        for (name, own), begun, step in zip(
            copy.named_parameters(), model.parameters(), inner, strict=True
        ):
            own.copy_(begun - a * step if names is None or name in names else begun)
    loss = functional.cross_entropy(copy(task[2]), task[3])
    return cases.flat(torch.autograd.grad(loss, list(copy.parameters())))


def test_m4_orders_agree_without_a_step_and_for_a_linear_loss() -> None:
    model, given = cases.model(), cases.tasks()
    plain = torch.stack(
        [functional.cross_entropy(model(task[2]), task[3]) for task in given]
    ).mean()
    gradient = cases.flat(torch.autograd.grad(plain, list(model.parameters())))
    for order in (1, 2):
        still = cases.meta_gradient(MAML(model, step_size=0.0, order=order), given)
        assert (still - gradient).abs().max() < 1e-12
    linear = Gradient(lambda logits, y: (logits * functional.one_hot(y, 3)).sum())
    head = ("head.weight", "head.bias")  # logits are linear in these
    one, two = (
        cases.meta_gradient(MAML(model, inner=linear, adapt=head, order=o, step_size=0.3), given)
        for o in (1, 2)
    )
    # linear in phi: the Hessian in the head is zero, so that the head's entries agree
    names = [n for n, p in model.named_parameters() for _ in range(p.numel())]
    at_head = torch.tensor([n in head for n in names])
    assert (one - two)[at_head].abs().max() < 1e-12
    assert one[at_head].abs().max() > 1e-3


def test_m6_the_formal_hessian_is_symmetric() -> None:
    model, given = cases.model(), cases.tasks()
    task = next(iter(given))
    _, h_of = support_hessian(model, task)
    made = torch.Generator().manual_seed(3)
    size = sum(p.numel() for p in model.parameters())
    u, w = torch.randn((2, size), generator=made, dtype=torch.float64)
    one, other = u @ h_of(w), w @ h_of(u)
    assert abs(one - other) / abs(one) < 1e-8


@pytest.mark.parametrize("order", [1, 2])
def test_step_size_gradient_is_minus_g_dot_g(order: int) -> None:
    model, given = cases.model(), cases.tasks(count=1)
    maml = MAML(model, step_size=0.4, learn="entry", order=order)
    names = list(maml.step_sizes())
    found = torch.autograd.grad(maml(given), list(maml.step_sizes().values()))
    task = next(iter(given))
    theta = list(model.parameters())
    inner = torch.autograd.grad(functional.cross_entropy(model(task[0]), task[1]), theta)
    outer = query_gradient(model, None, task, 0.4)
    assert len(names) == len(found)
    assert (cases.flat(found) + outer * cases.flat(inner)).abs().max() < 1e-12
    one = MAML(model, step_size=0.4, learn="parameter", order=order)
    (sums,) = [torch.autograd.grad(one(given), list(one.step_sizes().values()))]
    for total, entries in zip(sums, found, strict=True):
        assert abs(total - entries.sum()) < 1e-12


def test_m5_every_way_in_is_guarded_in_every_order() -> None:
    """`adapt` at order 2 too, and a learner whose order is raised after it was used at order 1."""
    bad, given = snntorch_surrogate("triangular"), cases.tasks()
    x, y, *_ = next(iter(given))
    maml = MAML(cases.model(spikes=bad), order=1)
    maml.adapt(x, y)
    assert torch.isfinite(maml(given))
    with pytest.raises(Refused, match="spike: expected a surrogate that can be"):
        maml.adapt(x, y, order=2)
    maml.order = 2
    with pytest.raises(Refused, match="spike: expected a surrogate that can be"):
        maml(given)


def test_m5_a_model_with_an_untested_or_bad_surrogate_is_refused_for_second_order() -> None:
    bad = snntorch_surrogate("triangular")
    given = cases.tasks()
    with pytest.raises(Refused, match="spike: expected a surrogate that can be"):
        MAML(cases.model(spikes=bad))(given)
    assert torch.isfinite(MAML(cases.model(spikes=bad), order=1)(given))
    good, model = snntorch_surrogate("fast_sigmoid", 10), cases.model()
    del model.spike
    type(model).hidden_spike = staticmethod(good)  # held by the class: not found, so not tested
    try:
        model.spike = _Hidden()
        with pytest.raises(Refused, match="got FastSigmoid"):
            MAML(model)(given)
        assert torch.isfinite(MAML(model, surrogates=[good])(given))
    finally:
        del type(model).hidden_spike


class _Hidden(torch.nn.Module):
    """Hides the function: a module, so it is not taken for a spike function itself."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = cases.Toy.hidden_spike(x)
        return out


def test_one_by_one_is_a_step_for_each_sample() -> None:
    """phi = sequential steps by hand, mapped or not; second order differs from first."""
    model, given = cases.model(), cases.tasks()
    x, y, *_ = next(iter(given))
    copy = cases.model()
    for i in range(len(y)):
        loss = functional.cross_entropy(copy(x[:, i : i + 1]), y[i : i + 1])
        for p, g in zip(
            copy.parameters(), torch.autograd.grad(loss, list(copy.parameters())), strict=True
        ):
            p.data -= 0.2 * g
    gradients = []
    for mapped in (False, True):
        inner = Gradient(mapped=mapped, one_by_one=True)
        maml = MAML(model, inner=inner, mapped=mapped, step_size=0.2)
        phi = maml.adapt(x, y)
        for name, value in copy.named_parameters():
            assert (phi[name] - value).abs().max() < 1e-14
        gradients.append(cases.meta_gradient(maml, given))
    assert (gradients[0] - gradients[1]).abs().max() < 1e-13
    first = MAML(model, inner=Gradient(one_by_one=True), step_size=0.2, order=1)
    assert (gradients[0] - cases.meta_gradient(first, given)).abs().max() > 1e-4


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("part", [anil, boil])
def test_mapped_is_the_loop_where_a_part_adapts(part: Any, order: int) -> None:
    """ANIL and BOIL: to 1e-13; at first order the gradient of all is g, to 1e-12."""
    model, given, a = cases.model(), cases.tasks(), 0.4
    names = part(model, ["head"])
    loop, mapped = (
        cases.meta_gradient(
            MAML(model, adapt=names, step_size=a, order=order, mapped=m, steps=2), given
        )
        for m in (False, True)
    )
    assert (loop - mapped).abs().max() < 1e-13
    one = cases.meta_gradient(
        MAML(model, adapt=names, step_size=a, order=order, mapped=True), given
    )
    g = torch.stack([query_gradient(model, names, task, a) for task in given]).mean(0)
    off = (one - g).abs().max()
    assert off < 1e-12 if order == 1 else off > 1e-4


def test_a_frozen_parameter_leaves_the_others_at_second_order() -> None:
    """Mapped = loop, whichever parameter has no requires_grad; it adapts in a task all the same."""
    given = cases.tasks()
    x, y, *_ = next(iter(given))
    for frozen in dict(cases.model().named_parameters()):
        model = cases.model()
        model.get_parameter(frozen).requires_grad_(False)
        free = [p for p in model.parameters() if p.requires_grad]
        grads = {
            (order, mapped): cases.flat(torch.autograd.grad(
                MAML(model, steps=2, step_size=0.4, order=order, mapped=mapped)(given), free
            ))
            for order in (1, 2) for mapped in (False, True)
        }  # fmt: skip
        for order in (1, 2):
            assert (grads[order, False] - grads[order, True]).abs().max() < 1e-13
        assert (grads[2, False] - grads[1, False]).abs().max() > 1e-3
        phi = MAML(model, step_size=0.4).adapt(x, y)
        assert (phi[frozen] - model.get_parameter(frozen)).abs().max() > 1e-6


def squared(logits: Tensor, y: Tensor) -> Tensor:
    return ((logits - torch.eye(cases.WAYS, dtype=logits.dtype)[y]) ** 2).mean()


@pytest.mark.parametrize("mapped", [False, True])
def test_an_inner_gradient_without_a_loss_takes_the_learner_s(mapped: bool) -> None:
    """Its own where it has one; alone it is cross-entropy."""
    model, given = cases.model(), cases.tasks()
    x, y, *_ = next(iter(given))

    def adapted(loss: Any, inner: Any) -> Tensor:
        maml = MAML(model, loss=loss, inner=inner, step_size=0.2, mapped=mapped)
        assert torch.isfinite(maml(given))
        return cases.flat(maml.adapt(x, y).values())

    entropy = functional.cross_entropy
    by = {loss: adapted(loss, Gradient(loss, mapped)) for loss in (squared, entropy)}
    assert (by[squared] - by[entropy]).abs().max() > 1e-3
    for loss in (squared, entropy):
        assert torch.equal(adapted(loss, None), by[loss])
        assert torch.equal(adapted(loss, Gradient()), by[loss])
        assert torch.equal(adapted(loss, Gradient(squared)), by[squared])
    theta = {name: p.detach() for name, p in model.named_parameters()}
    sizes = dict.fromkeys(theta, torch.tensor(0.2, dtype=torch.float64))
    alone = Gradient(mapped=mapped).step(MAML(model).logits, theta, sizes, x, y, 1)
    assert (cases.flat(alone.values()) - by[entropy]).abs().max() < 1e-14


def test_a_gradient_is_mapped_where_its_learner_is() -> None:
    model, given = cases.model(), cases.tasks()
    options: Any = {"step_size": 0.3, "learn": "parameter"}
    learners = [
        MAML(model, inner=Gradient(mapped=inner, one_by_one=True), mapped=outer, **options)
        for inner in (False, True) for outer in (False, True)
    ]  # fmt: skip
    first, *others = (cases.meta_gradient(maml, given) for maml in learners)
    assert all((first - other).abs().max() < 1e-13 for other in others)

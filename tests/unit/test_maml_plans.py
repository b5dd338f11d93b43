"""Plans as inner steps: what lasts in a session lasts from sample to sample; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import meta_cases as cases
import numpy as np
import pytest
import torch
from torch import Tensor

from grasp_plugin import build
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning import decolle_for, etlp_for, ottt_for, scheduled, soel_for
from grasp_plugin.learning.baselines import error_triggered, magnitude
from grasp_plugin.learning.meta import MAML, Stack
from grasp_plugin.learning.optimise import SGD, Adam
from grasp_plugin.learning.soel import last_steps
from grasp_plugin.learning.spec import Learning
from grasp_plugin.network.network import Network
from grasp_plugin.training.meta_plan import PlanStep

HEAD, BODY = "layer1->layer2", "input->layer1"
OWN = {BODY: "weight_1", HEAD: "weight_2"}
LOOSE: dict[str, Any] = {"error_threshold": 0.0}


def stack() -> Stack:
    torch.manual_seed(0)
    return Stack((cases.INPUTS, 8, cases.WAYS), gain=3.0, threshold=0.7, dtype=torch.float64)


def support() -> tuple[Tensor, Tensor]:
    x, y, *_ = next(iter(cases.tasks(steps=12)))
    return x, y


LASTING: dict[str, Callable[[Network], Learning]] = {
    "soel, magnitude": lambda n: soel_for(
        n, cases.WAYS, 0.5, **LOOSE, transforms=(magnitude(0.07),)
    ),
    "soel, error triggered": lambda n: soel_for(
        n, cases.WAYS, 0.5, **LOOSE, transforms=(error_triggered(0.3, 0.5),)
    ),
    "soel, Adam": lambda n: soel_for(n, cases.WAYS, 1.0, **LOOSE, transforms=(Adam(0.1),)),
    "soel, SGD": lambda n: soel_for(n, cases.WAYS, 1.0, **LOOSE, transforms=(SGD(0.5),)),
    "etlp": lambda n: etlp_for(n, cases.WAYS, 0.1, probability=0.3),
    "decolle, dropout": lambda n: decolle_for(n, cases.WAYS, 1.0, dropout=0.5),
    "ottt": lambda n: ottt_for(n, cases.WAYS, 0.1),
}
IN_NUMPY = ("soel, magnitude", "soel, error triggered", "soel, Adam")


def inner_of(net: Stack, learning: Learning, **options: Any) -> PlanStep:
    return PlanStep(net.network(), learning, net.parameter_of(), spikes=net.spike,
                    dtype=torch.float64, **options)  # fmt: skip


ONCE = [(name, False) for name in LASTING if name != "soel, error triggered"]  # scores of batch 1


@pytest.mark.parametrize(("name", "one_by_one"), [(name, True) for name in LASTING] + ONCE)
def test_a_pass_is_a_session_s_learning_with_all_that_lasts(name: str, one_by_one: bool) -> None:
    """Weights after three samples = those of the torch session, to 1e-12; either order."""
    net, (x, y) = stack(), support()
    learning = LASTING[name](net.network())
    parts = [slice(i, i + 1) for i in range(len(y))] if one_by_one else [slice(None)]
    with build(net.network(), "torch", plans=learning) as session:
        for part in parts:
            session.learn(x[:, part].numpy(), y[part].numpy())
        wanted = session.weights()
    inner = inner_of(net, learning, one_by_one=one_by_one)
    adapt = [OWN[plan] for plan in learning.plans]
    maml = MAML(net, inner=inner, adapt=adapt, step_size=1.0)
    for order in (1,) if name in IN_NUMPY else (1, 2):
        phi = maml.adapt(x, y, order=order)
        for plan, value in wanted.items():
            got = phi[OWN[plan]].detach().numpy()
            assert np.abs(got - value).max() < 1e-12
            assert np.abs(value - net.network().weights()[plan]).max() > 1e-3
    again = maml.adapt(x, y)  # another pass begins anew
    assert all(torch.equal(again[own], maml.adapt(x, y)[own]) for own in adapt)


@pytest.mark.parametrize("name", IN_NUMPY)
def test_what_is_in_numpy_is_refused_at_order_2(name: str) -> None:
    net, (x, y) = stack(), support()
    inner = inner_of(net, LASTING[name](net.network()))
    maml = MAML(net, inner=inner, adapt=["weight_2"], step_size=1.0)
    kind = "Adam, whose moments" if "Adam" in name else "GRASP, whose choice"
    with pytest.raises(Refused, match=kind):
        maml.adapt(x, y, order=2)
    twice = scheduled(LASTING[name](net.network()), SGD(1.0))  # behind it: found all the same
    with pytest.raises(Refused, match=kind):
        MAML(net, inner=inner_of(net, twice), adapt=["weight_2"]).adapt(x, y, order=2)


def test_what_goes_wrong_in_a_pass_is_refused() -> None:
    net, (x, y) = stack(), support()
    network = net.network()
    learning = soel_for(network, cases.WAYS, 1.0)
    theta = {n: p.detach() for n, p in net.named_parameters()}
    sizes = {"weight_2": torch.tensor(0.5, dtype=torch.float64)}
    inner = inner_of(net, learning, mask=last_steps(len(x)))

    def step(x: Tensor = x, inner: PlanStep = inner, phi: Any = theta, y: Tensor = y) -> None:
        inner.step(lambda *given: given[1], phi, sizes, x, y, 1)

    step()
    holes = x.clone()
    holes[0, 0, 0] = torch.nan
    endless = replace(learning.plans[HEAD], learning_rate=np.array(np.inf))
    hot = inner_of(net, replace(learning, plans={HEAD: endless}))
    renamed = PlanStep(network, learning, {BODY: "weight_1", HEAD: "weight_9"},
                       dtype=torch.float64)  # fmt: skip
    swapped = PlanStep(network, learning, {HEAD: "weight_1", BODY: "weight_2"},
                       dtype=torch.float64)  # fmt: skip
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("input: expected finite numbers, got 1", {"x": holes}),
        ("input: expected .time, sample, 5 neurons.", {"x": x[..., :4]}),
        ("input: expected .time, sample, 5 neurons.", {"x": x[:0]}),
        ("input: expected .*float64, got .*float32", {"x": x.float()}),
        ("'weight_9' as .3, 8. in torch.float64, got none", {"inner": renamed}),
        ("'weight_2' as .8, 5. in torch.float64, got .3, 8.", {"inner": swapped}),
        ("as .8, 5. in torch.float64, got .8, 5. in torch.float32",
         {"phi": {n: p.float() for n, p in theta.items()}}),
        ("expected a finite update, got NaN or infinity", {"inner": hot}),
        ("labels: expected labels in 0..2, got 3", {"y": y + 1}),
    ]  # fmt: skip
    for message, given in wrong:
        with pytest.raises(Invalid, match=message):
            step(**given)


@pytest.mark.parametrize("mask", [[np.nan] * 12, [-1.0] * 12, [2.0] * 12])
def test_a_mask_outside_0_to_1_is_refused(mask: Any) -> None:
    net = stack()
    with pytest.raises(Invalid, match="mask: expected 0 to 1"):
        inner_of(net, soel_for(net.network(), cases.WAYS, 1.0), mask=mask)

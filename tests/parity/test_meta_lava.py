"""A meta-trained network on Lava: frozen body, plastic head, update for update as in torch."""

from __future__ import annotations

from typing import Any

import meta_cases as cases
import numpy as np
import pytest
import torch

from grasp_plugin import build, quantise
from grasp_plugin.learning import UpdateMeter, soel_for
from grasp_plugin.learning.baselines import magnitude
from grasp_plugin.learning.meta import MAML, Stack
from grasp_plugin.learning.soel import last_steps
from grasp_plugin.training.meta_plan import PlanStep

pytestmark = pytest.mark.lava
HEAD = "layer1->layer2"


def stack() -> Stack:
    torch.manual_seed(0)
    return Stack((cases.INPUTS, 8, cases.WAYS), gain=3.0, threshold=0.7, dtype=torch.float64)


def weights_after_each(network: Any, backend: str, learning: Any, task: Any) -> list[Any]:
    """The head after each support sample."""
    x, y = task[0].numpy(), task[1].numpy()
    out = []
    with build(network, backend, plans=learning) as session:
        for i, label in enumerate(y):
            session.learn(x[:, i], label, mask=last_steps(len(x), 3))
            out.append(session.weights()[HEAD].copy())
    return out


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_adaptation_on_lava_float_is_torch_s_update_for_update(threshold: float) -> None:
    """Lava = torch = fused after every sample, and = `PlanStep` in MAML at the end, to 1e-12."""
    net, task = stack(), next(iter(cases.tasks()))
    network = net.network()
    learning = soel_for(network, cases.WAYS, 0.5, error_threshold=threshold)
    runs = {b: weights_after_each(network, b, learning, task) for b in ("torch", "lava", "fused")}
    begun = network.weights()[HEAD]
    for torch_, lava, fused in zip(*runs.values(), strict=True):
        assert np.abs(lava - torch_).max() < 1e-12
        assert np.abs(fused - torch_).max() < 1e-12
    assert np.abs(runs["lava"][-1] - begun).max() > 1e-3
    inner = PlanStep(network, soel_for(network, cases.WAYS, 1.0, error_threshold=threshold),
                     net.parameter_of(), mask=last_steps(cases.STEPS, 3), one_by_one=True,
                     dtype=torch.float64)  # fmt: skip
    phi = MAML(net, inner=inner, adapt=["weight_2"], step_size=0.5).adapt(task[0], task[1])
    assert np.abs(phi["weight_2"].detach().numpy() - runs["lava"][-1]).max() < 1e-12


def test_grasp_writes_as_often_on_lava_as_in_the_compiled_loop() -> None:
    net, task = stack(), next(iter(cases.tasks()))
    network = net.network()
    learning = soel_for(network, cases.WAYS, 0.5, transforms=(magnitude(0.25),))
    counts = {}
    for backend in ("lava", "fused"):
        with build(network, backend, plans=learning) as session:
            meter = UpdateMeter(session)
            session.learn(task[0].numpy(), task[1].numpy(), mask=last_steps(cases.STEPS))
            counts[backend] = meter.read().total.issued, session.weights()[HEAD]
    assert counts["lava"][0] == counts["fused"][0] > 0
    assert np.abs(counts["lava"][1] - counts["fused"][1]).max() < 1e-12


def test_in_integers_lava_is_the_compiled_loop_bit_for_bit() -> None:
    net, task = stack(), next(iter(cases.tasks()))
    network = net.network()
    learning = soel_for(network, cases.WAYS, 0.5)
    integers = quantise(network, plastic=list(learning.plans))
    lava, fused = (weights_after_each(integers, b, learning, task) for b in ("lava", "fused"))
    assert all(np.array_equal(a, b) for a, b in zip(lava, fused, strict=True))
    assert np.any(lava[-1] != integers.weights()[HEAD])


def test_the_stock_string_of_the_authors_chip_rule_parses() -> None:
    """specs/meta-learning.md 9, item 3: dw = 2^-4 (y2 - 20)(x2 - x1)."""
    from lava.magma.core.learning.learning_rule import Loihi3FLearningRule

    rule = Loihi3FLearningRule(
        dw="2^-4*u0*(y2-20)*x2 - 2^-4*u0*(y2-20)*x1",
        x1_impulse=40, x1_tau=3, x2_impulse=40, x2_tau=5, t_epoch=20, rng_seed=1,
    )  # fmt: skip
    assert rule.dw is not None
    assert rule.decimate_exponent == 0
    assert len(rule.active_product_series) == 1


def test_our_soel_on_stock_lava_is_its_form() -> None:
    """`loihi_form` takes the rule as it is; the sender's y carries the triggered error."""
    from grasp_plugin.learning import Factors, loihi

    learning = soel_for(stack().network(), cases.WAYS, 0.5, error_threshold=0.3)
    (rule,) = learning.plans.values()
    form = loihi.loihi_form(rule)
    signal = np.array([[0.2, -0.5, 0.31]])
    error = rule.error(Factors(np.ones((1, 8)), signal, signal))[0]  # type: ignore[attr-defined]
    assert error.tolist() == [0.0, -0.5, 0.31]
    assert form.y_ports(error)["y1"][0] == 0
    assert "x1" in form.dw

"""HD-LIF layers that learn on Lava: the weights of the torch learner, with and without GRASP."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hdlif_cases import DOUBLE, STEPS, samples, stack

from grasp_plugin.backends.hdlif import build_hdlif
from grasp_plugin.backends.hdlif_learning import HDLIFLearning
from grasp_plugin.errors import GraspError, RunFailed
from grasp_plugin.hdlif.deploy import deploy
from grasp_plugin.hdlif.rules import RuleLearner, plans_for
from grasp_plugin.learning import GRASP, Accumulate
from grasp_plugin.learning.budget import Fixed
from grasp_plugin.learning.losses import MSE
from grasp_plugin.learning.signals import RandomReadout
from grasp_plugin.network.hdlif_fixed import to_fixed

SIZES = (7, 12, 9, 4)
TRANSFORMS: dict[str, Callable[[], Any]] = {
    "rule": tuple,
    "grasp": lambda: (GRASP(Fixed(0.2), "magnitude"),),
    "a sample at once": lambda: (Accumulate(STEPS),),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def parts(case: str = "rule", rate: float = 0.2) -> tuple[Any, Any, dict[str, RandomReadout]]:
    """(stack, plans of its two hidden layers, readouts) by the names "0" and "1"."""
    net = stack(4, "online", SIZES)
    plans = plans_for(net, rate, transforms=TRANSFORMS[case])
    readouts = {n: RandomReadout(4, 2.0, MSE(), seed=int(n)) for n in ("0", "1")}
    return net, {n: plans[n] for n in readouts}, readouts


def on_lava(net: Any, plans: Any, readouts: Any) -> HDLIFLearning:
    names = {"0": "layer1", "1": "layer2"}
    return HDLIFLearning(
        deploy(net).layers, {names[n]: p for n, p in plans.items()},
        {names[n]: r for n, r in readouts.items()},
    )  # fmt: skip


@pytest.mark.lava
@pytest.mark.parametrize("case", TRANSFORMS)
def test_lava_learns_what_torch_learns(case: str) -> None:
    x, y = samples(0)
    targets = torch.eye(4, dtype=DOUBLE)[y]
    net, plans, readouts = parts(case)
    start = [net[k].synapse.weight.detach().numpy().copy() for k in (0, 1)]
    learner = RuleLearner(copy.deepcopy(net), plans, readouts=readouts)
    for b in range(x.shape[1]):
        learner.learn(x[:, b : b + 1], targets[b : b + 1], torch.nn.functional.mse_loss)
    with on_lava(net, plans, readouts) as session:
        logits = session.learn(x.numpy(), targets.numpy())
        found, learned = session.weights(), session.learned()
        counts = session.transforms("layer1")
    for k, name in enumerate(("layer1", "layer2")):
        wanted = learner.net[k].synapse.weight.detach().numpy()
        assert np.abs(found[name] - wanted).max() < 1e-12
        assert np.abs(wanted - start[k]).max() > 1e-3
    assert logits.shape == targets.shape
    if case == "grasp":
        assert 0 < counts["transforms"]["0"]["issued"] <= 0.2 * counts["transforms"]["0"]["dense"]
    with build_hdlif(learned, "fused") as fused, build_hdlif(learned, "torch") as again:
        assert np.abs(fused.run(x.numpy())["layer2"] - again.run(x.numpy())["layer2"]).max() < 1e-12


@pytest.mark.lava
def test_logits_are_the_readouts() -> None:
    """With a rate of 0: the readout of what the layers send, summed over time."""
    x, y = samples(1)
    net, plans, readouts = parts(rate=0.0)
    layers = deploy(net).layers
    with on_lava(net, plans, readouts) as session, build_hdlif(layers, "fused") as plain:
        logits = session.learn(x.numpy(), np.eye(4)[y])
        sent = plain.run(x.numpy())["layer2"]
    fixed = readouts["1"].init(9, np.zeros(1))
    wanted = readouts["1"].logits(sent, fixed).sum(0)
    assert np.abs(logits - wanted).max() < 1e-12
    with pytest.raises(RunFailed, match="closed"):
        session.learn(x.numpy(), np.eye(4)[y])


def without(kind: str) -> Callable[[], Any]:
    net, plans, readouts = parts()
    layers = deploy(net).layers
    if kind == "readout":
        return lambda: HDLIFLearning(layers, {"layer1": plans["0"]}, {})
    if kind == "name":
        return lambda: HDLIFLearning(layers, {"layer9": plans["0"]}, {})
    if kind == "classes":
        mixed = {"layer1": RandomReadout(4), "layer2": RandomReadout(3)}
        return lambda: HDLIFLearning(layers, {"layer1": plans["0"]}, mixed)
    if kind == "plans":
        return lambda: HDLIFLearning(layers, {}, {})
    if kind == "integers":
        sure = [replace(x, kernel=np.sign(x.kernel), bits="1bit", code_step=0.25) for x in layers]
        return lambda: HDLIFLearning(
            to_fixed(sure), {"layer1": plans["0"]}, {"layer1": readouts["0"]}
        )
    scaled = [copy.copy(layer) for layer in layers]
    object.__setattr__(scaled[0], "gain", 2 * scaled[0].gain)
    return lambda: HDLIFLearning(scaled, {"layer1": plans["0"]}, {"layer1": readouts["0"]})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("readout", "expected a RandomReadout beside the plan .*, got NoneType.*RuleLearner"),
        ("name", r"layer9: expected one of the layers \['layer1', 'layer2'\]"),
        ("plans", "a plan of one layer at least"),
        ("classes", r"the same classes, got {'layer1': 4, 'layer2': 3}"),
        ("gain", "fp weights with gain 1"),
        ("integers", "expected float layers"),
    ],
)
def test_refusals_name_the_remedy(kind: str, message: str) -> None:
    with pytest.raises(GraspError, match=message):
        without(kind)()


@pytest.mark.lava
def test_shapes_are_checked() -> None:
    net, plans, readouts = parts()
    with (
        on_lava(net, plans, readouts) as session,
        pytest.raises(GraspError, match=r"expected \(8, 1, 7\) and \(batch, 4\), got \(3, 1, 7\)"),
    ):
        session.learn(np.zeros((3, 1, 7)), np.zeros((1, 4)))

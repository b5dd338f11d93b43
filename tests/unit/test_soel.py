"""SOEL (M10), and plans as inner steps of MAML."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import meta_cases as cases
import nir
import numpy as np
import pytest
import torch
from few_shot_cases import discretised, with_biases
from torch import Tensor
from torch.nn import functional

from grasp_plugin import build
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning import (
    GRASP,
    Factors,
    Plan,
    Soel,
    UpdateMeter,
    decolle_for,
    ottt_for,
    soel_for,
)
from grasp_plugin.learning.baselines import magnitude
from grasp_plugin.learning.meta import MAML, Gradient, Stack, Tasks, spike
from grasp_plugin.learning.soel import last_steps, learning_of
from grasp_plugin.learning.traces import Exponential
from grasp_plugin.network.discretise import discretise
from grasp_plugin.network.meta_hints import MetaHints
from grasp_plugin.network.network import Network
from grasp_plugin.network.to_nir import to_nir
from grasp_plugin.neurons.surrogate import FastSigmoid
from grasp_plugin.training.meta_plan import PlanStep

HEAD = "layer1->layer2"
SIZES = (cases.INPUTS, 8, cases.WAYS)


def stack(seed: int = 0, sizes: tuple[int, ...] = SIZES) -> Stack:
    torch.manual_seed(seed)
    return Stack(sizes, gain=3.0, threshold=0.7, dtype=torch.float64)


def task(seed: int = 0) -> Any:
    return next(iter(cases.tasks(seed)))


def test_stack_is_its_network() -> None:
    """Logits of the module = membrane of the network's output at the last step."""
    net, x = stack(sizes=(cases.INPUTS, 8, 6, cases.WAYS)), task()[0]
    with build(net.network(), backend="torch") as session:
        out = session.run(x.numpy()).spikes["layer3"][-1]
    assert np.abs(out - net(x).detach().numpy()).max() < 1e-12
    assert set(net.parameter_of()) == {k.name for k in net.network().projections}
    for wrong in ({"sizes": (2, 3)}, {"sizes": SIZES, "keep": 1.0}):
        with pytest.raises(Invalid):
            Stack(**wrong)


def test_m10_soel_is_minus_a_e_p_and_zero_where_the_error_is_small() -> None:
    rng = np.random.default_rng(0)
    rule = Soel(Exponential(0.8), None, 0.3, error_threshold=0.2)
    w, trace, state = rng.normal(size=(3, 5)), 0.0, None
    state = rule.init(w, batch=4)
    for _ in range(6):
        pre = (rng.random((4, 5)) < 0.5).astype(float)
        signal = rng.uniform(-0.4, 0.4, (4, 3)) / 4  # the mean's 1/B is in it
        delta, state = rule.update(Factors(pre, signal, w[:1] @ pre.T), state, w)
        trace = 0.8 * trace + pre
        kept = np.where(np.abs(4 * signal) > 0.2, signal, 0.0)
        assert np.abs(delta["weight"].dense() - -0.3 * kept.T @ trace).max() < 1e-12
    quiet = Factors(pre, np.full((4, 3), 0.2 / 4), w[:1] @ pre.T)
    assert not rule.update(quiet, state, w)[0]["weight"].dense().any()
    with pytest.raises(Invalid, match="error_threshold >= 0"):
        Soel(Exponential(0.8), None, 0.3, error_threshold=-1.0)


def test_m10_at_threshold_zero_it_is_gradient_descent_in_the_head_alone() -> None:
    """Autograd's step on cross-entropy of the last membrane, to 1e-12."""
    net, (x, y, *_) = stack(), task()
    plain = MAML(net, adapt=["weight_2"], step_size=0.5).adapt(x, y)
    network = net.network()
    learning = soel_for(network, cases.WAYS, 0.5, error_threshold=0.0)
    with build(network, backend="torch", plans=learning) as session:
        session.learn(x.numpy(), y.numpy(), mask=last_steps(len(x)))
        got = session.weights()
    assert list(got) == [HEAD]
    assert np.abs(got[HEAD] - plain["weight_2"].detach().numpy()).max() < 1e-12
    learning = soel_for(network, cases.WAYS, 0.5, error_threshold=1.0)  # no error is as large
    with build(network, backend="torch", plans=learning) as session:
        session.learn(x.numpy(), y.numpy(), mask=last_steps(len(x)))
        assert np.array_equal(session.weights()[HEAD], network.weights()[HEAD])


def spiking_layer() -> Network:
    """One layer of neurons whose spikes subtract the threshold in the step after."""
    rng, full = np.random.default_rng(3), np.ones(cases.WAYS)
    nodes: Any = {
        "input": nir.Input(np.array([cases.INPUTS])),
        "w": nir.Linear(rng.uniform(-1, 2, (cases.WAYS, cases.INPUTS))),
        "out": nir.LIF(0.05 * full, 5 * full, 0 * full, 0.7 * full, v_reset=0 * full),
        "output": nir.Output(np.array([cases.WAYS])),
    }
    graph = nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False)
    return discretised(graph)


def gradient_step(network: Network, x: Tensor, y: Tensor, detach_reset: bool) -> Any:
    """Autograd's step of 0.5 on cross-entropy of that layer's last spikes."""
    (k,), p = network.projections, network["out"]
    w = torch.tensor(np.asarray(k.weight), requires_grad=True)
    keep, th = 1 - torch.from_numpy(p.dv), torch.from_numpy(p.v_th)
    fire, v, s = spike(FastSigmoid(10.0)), torch.zeros(()), torch.zeros(())
    for now in x:
        v = keep * v + now @ w.T - th * (s.detach() if detach_reset else s)
        s = fire(v - th)
    (g,) = torch.autograd.grad(functional.cross_entropy(s, y), w)
    return (w - 0.5 * g).detach().numpy(), s.detach().numpy()


def test_in_a_spiking_head_it_is_gradient_descent_with_a_detached_reset_alone() -> None:
    network, (x, y, *_) = spiking_layer(), task()
    learning = soel_for(network, cases.WAYS, 0.5, error_threshold=0.0)
    with build(network, backend="torch", plans=learning) as session:
        spikes = session.run(x.numpy()).spikes["out"]
        session.learn(x.numpy(), y.numpy(), mask=last_steps(len(x)))
        (got,) = session.weights().values()
    detached, last = gradient_step(network, x, y, detach_reset=True)
    attached, _ = gradient_step(network, x, y, detach_reset=False)
    assert spikes[:-1].any()  # there are resets
    assert np.array_equal(spikes[-1], last)
    assert np.abs(got - detached).max() < 1e-12
    assert np.abs(got - attached).max() > 1e-4


def test_a_head_s_bias_learns_unless_it_is_told_not_to() -> None:
    network = discretised(with_biases(*SIZES))
    x, y = task()[0].numpy(), task()[1].numpy()
    for bias in (True, False):
        learning = soel_for(network, cases.WAYS, 0.5, error_threshold=0.0, bias=bias)
        assert set(learning.plans) == ({HEAD, "bias->layer2"} if bias else {HEAD})
        with build(network, backend="torch", plans=learning) as session:
            session.learn(x, y, mask=last_steps(len(x)))
            after = session.learned()
        moved = {b.target: not np.array_equal(b.value, c.value)
                 for b, c in zip(network.biases, after.biases, strict=True)}  # fmt: skip
        assert moved == {"layer2": bias}
        assert not np.array_equal(after.weights()[HEAD], network.weights()[HEAD])
    assert set(soel_for(network, cases.WAYS, 0.5).plans) == {HEAD, "bias->layer2"}


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0, "0.1", None])
def test_step_sizes_and_thresholds_are_numbers_from_zero_on(wrong: Any) -> None:
    network = stack().network()
    with pytest.raises(Invalid, match=f"soel_for: expected learning_rate >= 0, got {wrong!r}"):
        soel_for(network, cases.WAYS, wrong)
    with pytest.raises(Invalid, match=f"Soel: expected error_threshold >= 0, got {wrong!r}"):
        soel_for(network, cases.WAYS, 0.1, error_threshold=wrong)


def test_inner_steps_are_passes_or_calls_with_a_batch() -> None:
    """Two inner steps as `learning_of` says to take them; each sample twice in a row is neither."""
    net, (x, y, *_) = stack(), task()
    network, mask = net.network(), last_steps(len(x))
    head = next(name for name in to_nir(network).nodes if name.startswith("w2"))
    meta = MetaHints("anil", {head: 0.5}, "sgd", inner_steps=2, ways=cases.WAYS)
    network = discretise(to_nir(network))
    learning = learning_of(network, meta, cases.WAYS)
    single = [slice(i, i + 1) for i in range(len(y))]
    shown = {"one by one": 2 * single, "batch": 2 * [slice(None)],
             "in a row": [s for s in single for _ in range(2)]}  # fmt: skip
    got = {}
    for name, parts in shown.items():
        with build(network, backend="torch", plans=learning) as session:
            for part in parts:
                session.learn(x[:, part].numpy(), y[part].numpy(), mask=mask)
            got[name] = session.weights()[HEAD]
    for name, inner in (("one by one", Gradient(one_by_one=True)), ("batch", Gradient())):
        maml = MAML(net, inner=inner, adapt=["weight_2"], step_size=0.5, steps=2)
        wanted = maml.adapt(x, y)["weight_2"].detach().numpy()
        assert np.abs(got[name] - wanted).max() < 1e-12
        assert np.abs(got["in a row"] - wanted).max() > 1e-4


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_plan_as_inner_step_is_the_session_s_learning(one_by_one: bool) -> None:
    """SOEL in MAML = the torch session, batched, and sample by sample; either order."""
    net, (x, y, *_) = stack(), task()
    network = net.network()
    mask = last_steps(len(x))
    learning = soel_for(network, cases.WAYS, 1.0)
    inner = PlanStep(network, learning, net.parameter_of(), spikes=net.spike, mask=mask,
                     one_by_one=one_by_one, dtype=torch.float64)  # fmt: skip
    maml = MAML(net, inner=inner, adapt=["weight_2"], step_size=0.5)
    with build(network, "torch", plans=soel_for(network, cases.WAYS, 0.5)) as session:
        for part in [slice(i, i + 1) for i in range(len(y))] if one_by_one else [slice(None)]:
            session.learn(x[:, part].numpy(), y[part].numpy(), mask=mask)
        wanted = session.weights()[HEAD]
    for order in (1, 2):
        phi = maml.adapt(x, y, order=order)
        assert np.abs(phi["weight_2"].detach().numpy() - wanted).max() < 1e-12
        assert torch.equal(phi["weight_1"], net.weight_1)


def test_maml_differentiates_through_a_plan() -> None:
    """Soel at threshold 0 at order 2 = second-order MAML through the loss; DECOLLE and OTTT run."""
    net, given = stack(), cases.tasks()
    network, mask = net.network(), last_steps(cases.STEPS)
    head = ["weight_2"]
    rule = soel_for(network, cases.WAYS, 1.0, error_threshold=0.0)
    inner = PlanStep(network, rule, net.parameter_of(), spikes=net.spike, mask=mask,
                     dtype=torch.float64)  # fmt: skip
    for order in (1, 2):
        options: Any = {"adapt": head, "step_size": 0.5, "order": order, "learn": "parameter"}
        by_rule, by_loss = MAML(net, inner=inner, **options), MAML(net, **options)
        grads = [torch.autograd.grad(m(given), list(m.parameters())) for m in (by_rule, by_loss)]
        for one, two in zip(*grads, strict=True):
            assert (one - two).abs().max() < 1e-12
    for make, adapt in ((decolle_for, ["weight_1"]), (ottt_for, ["weight_1", "weight_2"])):
        online = PlanStep(network, make(network, cases.WAYS, 1.0), net.parameter_of(),
                          spikes=net.spike, dtype=torch.float64)  # fmt: skip
        second = MAML(net, inner=online, adapt=adapt, step_size=0.05)
        first = MAML(net, inner=online, adapt=adapt, step_size=0.05, order=1)
        change = cases.meta_gradient(second, given) - cases.meta_gradient(first, given)
        assert change.abs().max() > 1e-8
        phi = first.adapt(*next(iter(given))[:2])
        assert all(not torch.equal(phi[name], getattr(net, name)) for name in adapt)


def test_what_plan_steps_refuse() -> None:
    net, (x, y, *_) = stack(), task()
    network = net.network()
    scheduled = soel_for(network, cases.WAYS, 1.0, transforms=(magnitude(0.2),))
    inner = PlanStep(network, scheduled, net.parameter_of(), dtype=torch.float64)
    maml = MAML(net, inner=inner, adapt=["weight_2"])
    with pytest.raises(Refused, match="GRASP, whose choice"):
        maml.adapt(x, y, order=2)
    changed = maml.adapt(x, y)["weight_2"] != net.weight_2
    assert 0 < int(changed.sum())
    with pytest.raises(Invalid, match="'weight_2' to adapt"):
        MAML(net, inner=inner, adapt=["weight_1"]).adapt(x, y)
    with pytest.raises(Invalid, match="expected a parameter for it"):
        PlanStep(network, scheduled, {})
    wrong = PlanStep(network, scheduled, net.parameter_of(), mask=[1.0], dtype=torch.float64)
    with pytest.raises(Invalid, match="mask: expected"):
        MAML(net, inner=wrong, adapt=["weight_2"]).adapt(x, y)
    with pytest.raises(Refused, match="can map over tasks"):
        MAML(net, inner=inner, adapt=["weight_2"], mapped=True, order=1)(cases.tasks())
    with pytest.raises(Invalid, match="a window that divides"):
        last_steps(10, 3)
    assert last_steps(6, 3).tolist() == [0, 0, 1, 0, 0, 1]


def test_grasp_counts_the_writes_of_a_shot() -> None:
    net, (x, y, *_) = stack(), task()
    network = net.network()
    learning = soel_for(network, cases.WAYS, 0.5, transforms=(magnitude(0.25),))
    assert isinstance(learning.plans[HEAD], Plan)
    assert isinstance(learning.plans[HEAD].transforms[0], GRASP)
    with build(network, "fused", plans=learning) as session:
        meter = UpdateMeter(session)
        session.learn(x.numpy(), y.numpy(), mask=last_steps(len(x)))
        total = meter.read().total
        changed = session.weights()[HEAD] != network.weights()[HEAD]
    assert 0 < changed.sum() <= total.issued <= round(0.25 * 24) * len(y)


def test_inner_losses_are_free_and_tasks_move() -> None:
    net, given = stack(), cases.tasks()
    squared = Gradient(lambda logits, y: ((logits - functional.one_hot(y, 3)) ** 2).mean())
    assert torch.isfinite(MAML(net, inner=squared)(given))
    assert isinstance(given.to("cpu"), Tasks)

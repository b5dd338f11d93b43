"""The optimizer face of the rules: bit for bit the functional loop, and what is refused."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning import (
    Accumulate,
    BurnIn,
    Factors,
    Late,
    Plan,
    Rule,
    decolle,
    etlp,
    ottt,
    sltt,
)
from grasp_plugin.learning.states import leaves
from grasp_plugin.training.rule_optimizer import RuleOptimizer

SIZES, BATCH, STEPS = (5, 4, 3), 2, 12
NAMES = ("0.weight", "2.weight")
PLANS = {
    "decolle": lambda: decolle(0.1),
    "decolle burn-in": lambda: decolle(0.1, burn_in=3),
    "etlp": lambda: etlp(0.1),
    "etlp factorised": lambda: etlp(0.1, theta=0.0),
    "ottt": lambda: ottt(0.1),
    "ottt hard reset": lambda: ottt(0.1, reset="value"),
    "ottt accumulated": lambda: Plan(ottt(0.1), (BurnIn(1), Accumulate(4))),
    "ottt late": lambda: Plan(Plan(ottt(0.1), (Late(2),)), (BurnIn(1),)),
    "sltt": lambda: sltt(0.1),
}


def model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(*SIZES[:2]), nn.Identity(), nn.Linear(*SIZES[1:])).to(dtype)


def observed(steps: int = STEPS, batch: int = BATCH, seed: int = 4) -> Iterator[dict[str, Factors]]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)  # noqa: E731
    for _ in range(steps):
        out = {}
        for name, n_i, n_o in zip(NAMES, SIZES[:2], SIZES[1:], strict=True):
            out[name] = Factors(
                pre=(draw(batch, n_i) > 0).double(), signal=draw(batch, n_o),
                membrane=0.4 * draw(batch, n_o), spikes=(draw(batch, n_o) > 0.5).double(),
                active=(draw(batch, n_o) > -0.8).double(),
            )  # fmt: skip
        yield out


def both(rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(NAMES, rule)


def functional(rule: Rule, net: nn.Module, lr: Any = lambda t: 1.0) -> tuple[Any, Any, list[Any]]:
    """The loop that the optimizer replaces: weights, states, and all deltas."""
    w = {n: p.detach().clone() for n, p in net.named_parameters()}
    states = {n: rule.init(w[n], batch=BATCH) for n in NAMES}
    deltas = []
    for t, factors in enumerate(observed()):
        deltas.append({})
        for n in NAMES:
            delta, states[n] = rule.update(factors[n], states[n], w[n])
            change = {n: delta["weight"].dense()}
            if "bias" in delta:
                change[n.replace("weight", "bias")] = delta["bias"]
            deltas[-1] |= change
        for n, d in deltas[-1].items():
            w[n] = torch.add(w[n], d, alpha=lr(t))
    return w, states, deltas


def same_states(a: Any, b: Any) -> None:
    assert [n for n, _ in leaves(a)] == [n for n, _ in leaves(b)]
    for (name, x), (_, y) in zip(leaves(a), leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y), name


def same_weights(net: nn.Module, want: dict[str, Tensor]) -> None:
    for name, p in net.named_parameters():
        assert torch.equal(p.detach(), want[name]), name


@pytest.mark.parametrize("make", PLANS.values(), ids=PLANS)
def test_bit_for_bit_the_functional_loop(make: Any) -> None:
    net = model()
    want, states, _ = functional(make(), net)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = RuleOptimizer(net.named_parameters(), both(make()), batch=BATCH)
    for factors in observed():
        optimizer.zero_grad()
        for name in reversed(NAMES):
            optimizer.observe(name, factors[name])
        optimizer.step()
    same_weights(net, want)
    same_states(optimizer.rules, states)
    assert optimizer.steps == STEPS
    assert (
        max(float((p.detach() - before[n]).abs().max()) for n, p in net.named_parameters()) > 1e-3
    )


def test_factors_with_a_graph_leave_none_behind() -> None:
    net, plain = model(), model()
    optimizers = [
        RuleOptimizer(m.named_parameters(), both(etlp(0.1)), batch=BATCH) for m in (net, plain)
    ]
    for factors in observed(4):
        optimizers[1].step(factors)
        graph = {
            name: Factors(
                **{k: v.clone().requires_grad_() * 1 for k, v in vars(f).items() if v is not None}
            )
            for name, f in factors.items()
        }
        optimizers[0].step(graph)
    same_weights(net, dict(plain.named_parameters()))
    assert not any(v.requires_grad for _, v in leaves(optimizers[0].rules))
    assert all(p.is_leaf and p.grad is None for p in net.parameters())


# --- learning rate and groups ---------------------------------------------------------------------


def test_a_scheduler_scales_the_delta() -> None:
    net = model()
    want, _, _ = functional(ottt(0.1), net, lr=lambda t: 0.5 ** (t // 4))
    optimizer = RuleOptimizer(net.named_parameters(), both(ottt(0.1)), batch=BATCH)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, gamma=0.5)
    for factors in observed():
        optimizer.step(factors)
        scheduler.step()
    same_weights(net, want)
    assert scheduler.get_last_lr() == [0.125]


def test_groups_have_their_own_lr() -> None:
    net = model()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    groups = [
        {"params": list(net[0].named_parameters("0")), "lr": 0.0},
        {"params": list(net[2].named_parameters("2"))},
    ]
    optimizer = RuleOptimizer(groups, both(ottt(0.1)), batch=BATCH, lr=0.5)
    optimizer.add_param_group({"params": [("more", nn.Parameter(torch.ones(2)))]})
    optimizer.step(next(observed()))
    assert torch.equal(net[0].weight, before["0.weight"])
    assert not torch.equal(net[2].weight, before["2.weight"])
    assert [g["lr"] for g in optimizer.param_groups] == [0.0, 0.5, 0.5]


def test_parameters_without_names_and_a_bias_by_name() -> None:
    net, want = model(), functional(ottt(0.1), model())[0]
    plans = {"0": ottt(0.1), "2": ottt(0.1)}
    optimizer = RuleOptimizer(net.parameters(), plans, biases={"0": "1"}, batch=BATCH)
    for factors in observed():
        optimizer.step({"0": factors[NAMES[0]], "2": factors[NAMES[1]]})
    assert torch.equal(net[0].weight.detach(), want["0.weight"])
    assert torch.equal(net[0].bias.detach(), want["0.bias"])
    assert torch.equal(net[2].bias, model()[2].bias)  # not named, so not trained


# --- save and resume ------------------------------------------------------------------------------


def build(base: bool, rule: Rule) -> tuple[nn.Module, RuleOptimizer, Any]:
    net = model()
    adamax = torch.optim.Adamax(net.parameters(), lr=1e-2, betas=(0.0, 0.95)) if base else None
    optimizer = RuleOptimizer(net.named_parameters(), both(rule), batch=BATCH, base=adamax)
    return net, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


@pytest.mark.parametrize("base", [False, True], ids=["plain", "adamax"])
@pytest.mark.parametrize("make", PLANS.values(), ids=PLANS)
def test_resumed_is_bit_identical_with_uninterrupted(make: Any, base: bool) -> None:
    parts = whole = build(base, make())
    for t, factors in enumerate(observed()):
        if t == 7:
            buffer = io.BytesIO()
            torch.save([part.state_dict() for part in whole], buffer)
            buffer.seek(0)
            parts = build(base, make())
            for part, saved in zip(parts, torch.load(buffer, weights_only=True), strict=True):
                part.load_state_dict(saved)
            same_states(parts[1].rules, whole[1].rules)
        for _, optimizer, scheduler in {id(p): p for p in (whole, parts)}.values():
            optimizer.step(factors)
            scheduler.step()
    assert parts is not whole
    same_weights(parts[0], dict(whole[0].named_parameters()))
    same_states(parts[1].rules, whole[1].rules)
    assert parts[1].steps == whole[1].steps == STEPS
    assert parts[1].param_groups[0]["lr"] == whole[1].param_groups[0]["lr"] != 1.0


def test_a_state_dict_is_a_moment_not_a_view() -> None:
    _, optimizer, _ = build(False, ottt(0.1))
    stream = observed()
    optimizer.step(next(stream))
    saved = optimizer.state_dict()
    copied = copy.deepcopy(saved["rules"])
    optimizer.step(next(stream))
    same_states(saved["rules"], copied)
    assert saved["steps"] == 1
    optimizer.load_state_dict(saved)
    optimizer.step(next(stream))
    same_states(saved["rules"], copied)


@pytest.mark.parametrize("base", [False, True], ids=["plain", "adamax"])
def test_copies_go_on_alike(base: bool) -> None:
    net, optimizer, _ = build(base, Plan(ottt(0.1), (Accumulate(3),)))
    stream = list(observed(6))
    for factors in stream[:4]:
        optimizer.step(factors)
    pairs = [copy.deepcopy((net, optimizer)), pickle.loads(pickle.dumps((net, optimizer)))]
    for twin, other in [*pairs, (net, optimizer)]:
        assert not base or other.param_groups is other.base.param_groups
        for factors in stream[4:]:
            other.step(factors)
        same_states(other.rules, pairs[0][1].rules)
        same_weights(twin, dict(pairs[0][0].named_parameters()))


# --- a base optimizer -----------------------------------------------------------------------------


def test_adamax_gets_minus_delta_as_the_gradient() -> None:
    plain = model()
    net, optimizer, _ = build(True, decolle(1.0))
    alone = torch.optim.Adamax(plain.parameters(), lr=1e-2, betas=(0.0, 0.95))
    rule = decolle(1.0)
    states = {n: rule.init(plain.get_parameter(n).detach(), batch=BATCH) for n in NAMES}
    for factors in observed():
        for n in NAMES:
            p = plain.get_parameter(n)
            delta, states[n] = rule.update(factors[n], states[n], p.detach())
            p.grad = -delta["weight"].dense()
            plain.get_parameter(n.replace("weight", "bias")).grad = -delta["bias"]
        alone.step()
        optimizer.step(factors)
    same_weights(net, dict(plain.named_parameters()))
    assert all(p.grad is None for p in net.parameters())


def test_the_base_trains_the_rest_from_its_own_gradient_and_ours_only_by_rule() -> None:
    net = model()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    base = torch.optim.SGD(net.parameters(), lr=0.5)
    plans = {"0.weight": ottt(0.1)}
    optimizer = RuleOptimizer(net.named_parameters(), plans, batch=BATCH, base=base)
    net(torch.ones(1, 5).double()).sum().backward()
    grad = net[2].weight.grad.clone()
    optimizer.step()  # nothing observed
    assert torch.equal(net[0].weight, before["0.weight"])
    assert torch.equal(net[0].bias, before["0.bias"])
    assert torch.equal(net[2].weight.detach(), before["2.weight"] - 0.5 * grad)
    optimizer.param_groups[0]["lr"] = 0.25
    assert base.param_groups[0]["lr"] == 0.25
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert len(base.param_groups) == 2


# --- sequences, closures --------------------------------------------------------------------------


def test_reset_traces_starts_a_sequence_of_another_batch() -> None:
    net = model()
    plan = Plan(ottt(0.1), (BurnIn(2), Accumulate(100)))
    optimizer = RuleOptimizer(net.named_parameters(), both(plan), batch=BATCH)
    for factors in observed(3):
        optimizer.step(factors)
    old = optimizer.rules["0.weight"]
    optimizer.reset_traces(5, keep=(Accumulate,))
    new = optimizer.rules["0.weight"]
    assert new["rule"]["trace"]["t"].shape == (5, 5)
    assert float(new["rule"]["trace"]["t"].abs().max()) == 0
    assert int(new["transforms"]["0"]["step"]) == 0
    assert torch.equal(new["transforms"]["1"]["weight"], old["transforms"]["1"]["weight"])
    assert float(new["transforms"]["1"]["weight"].abs().max()) > 0
    optimizer.step(next(observed(batch=5)))
    optimizer.reset_traces()
    same_states(optimizer.rules["0.weight"], plan.init(net[0].weight.detach(), batch=5))
    with pytest.raises(Invalid, match="batch >= 1, got 0"):
        optimizer.reset_traces(0)


def test_a_closure_observes_and_returns_a_loss() -> None:
    net, other = model(), model()
    a, b = (RuleOptimizer(m.named_parameters(), both(ottt(0.1)), batch=BATCH) for m in (net, other))
    factors = next(observed())

    def closure() -> float:
        assert torch.is_grad_enabled()
        for name, seen in factors.items():
            a.observe(name, seen)
        return 3.0

    assert a.step(closure) == 3.0
    assert b.step(factors) is None
    same_weights(net, dict(other.named_parameters()))


def test_a_transform_gets_its_extras() -> None:
    seen = {}

    class Spy(BurnIn):
        def update(self, delta: Any, state: Any, weight: Any, **extras: Any) -> Any:
            seen.update(extras)
            return super().update(delta, state, weight, **extras)

    net = model()
    plans = {"0.weight": Plan(ottt(0.1), (Spy(0),))}
    optimizer = RuleOptimizer(net.named_parameters(), plans, batch=BATCH)
    optimizer.observe("0.weight", next(observed())["0.weight"], mine=3)
    assert seen["mine"] == 3


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["pre", "signal"])
def test_nan_keeps_the_last_good_weights_of_every_layer(where: str) -> None:
    net, optimizer, _ = build(False, ottt(0.1))
    stream = list(observed(4))
    for factors in stream[:3]:
        optimizer.step(factors)
    weights = {n: p.detach().clone() for n, p in net.named_parameters()}
    states = copy.deepcopy(optimizer.rules)
    bad = copy.deepcopy(stream[3])
    getattr(bad["2.weight"], where)[0, 0] = math.nan
    entry = "trace.t" if where == "pre" else "delta.weight"
    with pytest.raises(Invalid, match=rf"2.weight: .* entries of '{entry}' at step 3 .*NaN"):
        optimizer.step(bad)
    same_weights(net, weights)
    same_states(optimizer.rules, states)
    optimizer.step(stream[3])
    same_weights(net, functional_after(4))
    assert optimizer.steps == 4


def functional_after(steps: int) -> dict[str, Tensor]:
    net = model()
    optimizer = RuleOptimizer(net.named_parameters(), both(ottt(0.1)), batch=BATCH)
    for factors in observed(steps):
        optimizer.step(factors)
    return {n: p.detach() for n, p in net.named_parameters()}


def test_observations_that_do_not_fit() -> None:
    _, optimizer, _ = build(False, ottt(0.1))
    good = next(observed())
    f = good["0.weight"]
    with pytest.raises(Invalid, match=r"fc: expected one of \['0.weight', '2.weight'\], got 'fc'"):
        optimizer.observe("fc", f)
    with pytest.raises(Invalid, match=r"2.weight: expected Factors.pre of .*\(2, 4\).*\(2, 5\)"):
        optimizer.step(dict.fromkeys(NAMES, f))
    with pytest.raises(Invalid, match=r"Factors.signal .*\(2, 4\).*got \(\(2, 1\).*reset_traces"):
        optimizer.observe("0.weight", Factors(f.pre, f.signal[:, :1], f.membrane))
    with pytest.raises(Invalid, match=r"Factors.pre .*\(2, 5\).*got \(\(1, 5\)"):
        optimizer.observe("0.weight", Factors(f.pre[:1], f.signal, f.membrane))
    with pytest.raises(Invalid, match=r"torch.float64.*got .*torch.float32"):
        optimizer.observe("0.weight", Factors(f.pre.float(), f.signal, f.membrane))
    with pytest.raises(Invalid, match=r"Factors.pre .*got \(\(2, 5\), dtype\('float64'\)"):
        optimizer.observe("0.weight", Factors(f.pre.numpy(), f.signal, f.membrane))
    with pytest.raises(Invalid, match=r"expected Factors.membrane, got None"):
        optimizer.observe("0.weight", Factors(f.pre, f.signal))
    optimizer.observe("0.weight", f)
    with pytest.raises(Invalid, match="expected one observation a step, got two"):
        optimizer.observe("0.weight", f)
    for call in (optimizer.state_dict, optimizer.reset_traces):
        with pytest.raises(Invalid, match=r"\['0.weight'\] observed. Call step\(\) first"):
            call()
    optimizer.step()
    assert optimizer.steps == 1


def test_what_cannot_be_built() -> None:
    net = model()
    make = lambda *a, **k: RuleOptimizer(net.named_parameters(), *a, **k)  # noqa: E731
    with pytest.raises(Invalid, match=r"fc: expected one of \['0.weight', .*got 'fc'"):
        make({"fc": ottt(0.1)})
    with pytest.raises(Invalid, match=r"expected one of .*got 'no'"):
        make(both(ottt(0.1)), biases={"0.weight": "no"})
    with pytest.raises(Invalid, match=r"a bias \(4,\) of a weight in plans, got '2.bias' \(3,\)"):
        make(both(ottt(0.1)), biases={"0.weight": "2.bias"})
    with pytest.raises(Refused, match=r"0.bias: expected a matrix \[N_o, N_i\].* got \(4,\)"):
        make({"0.bias": ottt(0.1)})
    with pytest.raises(Refused, match="weight: expected a matrix"):
        RuleOptimizer(nn.Conv1d(1, 1, 1).named_parameters(), {"weight": ottt(0.1)})
    half = torch.optim.SGD(net[0].parameters(), lr=0.1)
    with pytest.raises(Invalid, match=r"holds every parameter, \['2.weight', '2.bias'\] missing"):
        make(both(ottt(0.1)), base=half)
    with pytest.raises(Invalid, match=r"expected lr in the base alone, got lr=0.5 too"):
        make(both(ottt(0.1)), base=torch.optim.SGD(net.parameters(), lr=0.1), lr=0.5)
    optimizer = make({"0.weight": etlp(0.1)}, biases={"0.weight": "0.bias"}, batch=BATCH)
    with pytest.raises(Invalid, match="expected a delta for its bias, got none"):
        optimizer.step({"0.weight": next(observed())["0.weight"]})


def test_states_of_something_else_are_refused() -> None:
    _, optimizer, _ = build(False, ottt(0.1))
    saved = optimizer.state_dict()
    with pytest.raises(Invalid, match=r"\['rules', 'steps', 'batch', 'base'\] missing"):
        optimizer.load_state_dict(torch.optim.SGD(model().parameters(), lr=0.1).state_dict())
    with pytest.raises(Invalid, match="optimizer with base"):
        optimizer.load_state_dict(build(True, ottt(0.1))[1].state_dict())
    with pytest.raises(Invalid, match="optimizer without base"):
        build(True, ottt(0.1))[1].load_state_dict(saved)
    with pytest.raises(Invalid, match=r"plans for \['0.weight', '2.weight'\], got \['0.weight'\]"):
        optimizer.load_state_dict({**saved, "rules": {"0.weight": saved["rules"]["0.weight"]}})
    for other in (decolle(0.1), ottt(0.1, reset="value"), sltt(0.1)):
        with pytest.raises(Invalid, match=r"0.weight: expected a state with 'bias"):
            optimizer.load_state_dict(build(False, other)[1].state_dict())
    swapped = dict(zip(NAMES, reversed(saved["rules"].values()), strict=True))
    with pytest.raises(Invalid, match=r"'trace.t' \(\(2, 5\), torch.float64\), got \(\(2, 4\)"):
        optimizer.load_state_dict({**saved, "rules": swapped})
    optimizer.load_state_dict(saved)

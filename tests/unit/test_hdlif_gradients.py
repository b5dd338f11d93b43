"""What HD-LIF's online gradients are, and are not, beside BPTT (H3 to H11)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from hdlif_cases import (
    BATCH,
    DOUBLE,
    SIZES,
    STEPS,
    gradients,
    samples,
    stack,
    weights,
    worst,
)
from torch import Tensor, nn

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.hdlif.training import accumulate, every_step, random_step

ONE = (7, 24, 4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def at_membranes(seed: int, grad_mode: str) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """dL/dm of the last hidden layer (time, batch, neuron), dL/ds there, chi, lambda."""
    net = stack(seed, grad_mode)
    x, y = samples(seed)
    last, kept, spikes, fired = net[2].neuron, [], [], []
    advance = last.advance

    def watched(current: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict]:  # type: ignore[type-arg]
        current = current.detach().requires_grad_()  # dI = dm, the layers below left out
        out, after = advance(current, state)
        out.retain_grad()
        kept.append(current)
        spikes.append(out)
        fired.append(after["margin"] > 0)
        return out, after

    last.advance = watched  # type: ignore[method-assign]
    accumulate(net, x, y, nn.functional.cross_entropy)
    zero = torch.zeros_like(kept[0])
    dm = torch.stack([zero if k.grad is None else k.grad for k in kept])
    ds = torch.stack([s.grad for s in spikes])
    return (
        dm,
        ds,
        torch.stack(fired).to(DOUBLE),
        [float(last.decay(t).detach()) for t in range(STEPS)],
    )


@pytest.mark.parametrize("seed", range(3))
def test_h3_h4_online_is_bptt_where_the_neuron_fires_now(seed: int) -> None:
    bptt, _, chi, _ = at_membranes(seed, "bptt")
    online, _, same, _ = at_membranes(seed, "online")
    assert torch.equal(chi, same)
    assert float((online - chi * bptt).abs().max()) < 1e-12
    ratio = (online / bptt)[bptt != 0]
    assert torch.equal(ratio.round(), ratio.round().clamp(0, 1))
    assert float((ratio - ratio.round()).abs().max()) < 1e-12
    assert {0.0, 1.0} == set(ratio.round().tolist())  # both happen
    assert float(((online == 0) & (bptt != 0)).double().mean()) > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_h4_the_ratio_of_theorem_4_2_is_0_or_1(seed: int) -> None:
    """chi_t / (chi_t + sum_{i>t} chi_i prod_j (1 - chi_{j-1})), by its factors alone."""
    _, _, chi, _ = at_membranes(seed, "bptt")
    for t in range(STEPS):
        later, open_ = torch.zeros_like(chi[0]), 1 - chi[t]
        for i in range(t + 1, STEPS):
            later = later + chi[i] * open_
            open_ = open_ * (1 - chi[i])
        total = chi[t] + later
        ratio = (chi[t] / total)[total != 0]
        assert set(ratio.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("seed", range(3))
def test_h5_first_fire_gives_bptt_in_closed_form(seed: int) -> None:
    bptt, ds, chi, decay = at_membranes(seed, "bptt")
    wanted = torch.zeros_like(bptt)
    waiting = torch.zeros_like(bptt[0])  # dL/ds of the first spike from here on, times its decays
    for t in reversed(range(STEPS)):
        down = 0.0 if t + 1 == STEPS else decay[t + 1]
        waiting = torch.where(chi[t] > 0, ds[t], down * waiting)
        wanted[t] = waiting
    assert float((bptt - wanted).abs().max()) < 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_h6_traces_are_bptt_for_one_layer_and_for_the_last(seed: int) -> None:
    x, y = samples(seed)
    one = [
        gradients(stack(seed, mode, ONE), x, y)["0.synapse.weight"] for mode in ("bptt", "trace")
    ]
    assert float((one[0] - one[1]).abs().max()) < 1e-10 * float(one[0].abs().max())
    deep = {m: weights(gradients(stack(seed, m), x, y)) for m in ("bptt", "trace", "online")}
    for name in ("2.synapse.weight", "3.weight"):
        wanted = deep["bptt"][name]
        assert float((wanted - deep["trace"][name]).abs().max()) < 1e-10 * float(wanted.abs().max())
    first = "0.synapse.weight"
    assert float((deep["bptt"][first] - deep["trace"][first]).abs().max()) > 1e-6  # not exact


def test_h6_with_bias_and_a_norm_in_eval_mode() -> None:
    found = []
    x, y = samples(0)
    for mode in ("bptt", "trace"):
        net = stack(0, mode, ONE)
        g = torch.Generator().manual_seed(1)
        norm = nn.BatchNorm1d(24, dtype=DOUBLE).eval()
        net[0].synapse.bias = nn.Parameter(0.1 * torch.ones(24, dtype=DOUBLE))
        norm.weight.data.copy_(torch.randn(24, generator=g, dtype=DOUBLE) + 1)
        net[0].norm = norm
        found.append(gradients(net, x, y))
    for name in ("0.synapse.weight", "0.synapse.bias"):
        assert float((found[0][name] - found[1][name]).abs().max()) < 1e-12


@pytest.mark.parametrize("mode", ["online", "trace"])
def test_h7_parallel_and_memoryless_layers_are_exact_at_any_depth(mode: str) -> None:
    x, y = samples(3)
    exact, found = (gradients(stack(3, m, parallel=True), x, y) for m in ("bptt", mode))
    assert worst(exact, found) < 1e-12
    nets = stack(3), stack(3, mode)
    for net in nets:
        for layer in net[:-1]:
            nn.init.constant_(layer.neuron.decay_logit, -1e3)  # lambda = 0
    exact, found = (weights(gradients(net, x, y)) for net in nets)
    assert worst(exact, found) < 1e-12


def test_h8_online_is_exact_in_weights_where_all_fire() -> None:
    x, y = samples(4)
    found = []
    for mode in ("bptt", "online"):
        net, rates = stack(4, mode), []
        for layer in net[:-1]:
            with torch.no_grad():
                layer.synapse.weight.abs_()
                layer.synapse.weight.add_(0.05)
                layer.neuron.theta_logit.sub_(4)
        state = None
        for t in range(STEPS):
            _, state = net(x[t], state)
            rates += [(state[str(k)]["margin"] > 0).double().mean() for k in range(3)]
        assert min(rates) == 1.0
        found.append(gradients(net, x, y))
    assert worst(weights(found[0]), weights(found[1])) < 1e-10
    theta = "0.neuron.theta_logit"
    assert float((found[0][theta] - found[1][theta]).abs().max()) > 1e-6  # not the thresholds


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", [SIZES, SIZES[1:]])
def test_h9_online_is_not_bptt_in_general(seed: int, sizes: tuple[int, ...]) -> None:
    """A detach that is missing would make the two agree."""
    x, y = samples(seed, size=sizes[0])
    exact, online = (weights(gradients(stack(seed, m, sizes), x, y)) for m in ("bptt", "online"))
    for name in list(exact)[:-2]:
        assert float((exact[name] - online[name]).abs().max()) > 1e-6, name
    assert worst(exact, online) > 1e-6


def saved_elements(mode: str, steps: int) -> int:
    """The most elements that autograd holds at once: per step online, in all for BPTT."""
    net, (x, y) = stack(0, mode, steps=steps), samples(0, steps)
    counts: list[int] = []
    kept: dict[int, int] = {}  # by address: weights are held once, however many steps use them

    def pack(value: Tensor) -> Tensor:
        kept[value.data_ptr()] = max(value.numel(), kept.get(value.data_ptr(), 0))
        return value

    state, total = None, torch.zeros((), dtype=DOUBLE)
    for t in range(steps):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            out, state = net(x[t], state)
            loss = nn.functional.cross_entropy(out, y) / steps
        if mode == "bptt":
            total = total + loss
        else:
            loss.backward()
            counts.append(sum(kept.values()))
            kept.clear()
    return max([*counts, sum(kept.values())])


@pytest.mark.parametrize("mode", ["online", "trace"])
def test_h10_saved_activations_do_not_grow_with_the_steps(mode: str) -> None:
    assert saved_elements(mode, 4) == saved_elements(mode, 16) == saved_elements(mode, 64)


def test_h10_those_of_bptt_do() -> None:
    four, sixteen, all_ = (saved_elements("bptt", n) for n in (4, 16, 64))
    assert (all_ - sixteen) == 4 * (sixteen - four) > 0


@pytest.mark.parametrize("mode", ["online", "trace"])
def test_h11_random_steps_are_unbiased(mode: str) -> None:
    net, (x, y) = stack(5, mode), samples(5)
    wanted = gradients(net, x, y)
    total: dict[str, Tensor] = {}
    for t in range(STEPS):
        net.zero_grad()
        random_step(net, x, y, nn.functional.cross_entropy, at=t)
        for name, p in net.named_parameters():
            if p.grad is not None:
                total[name] = total.get(name, 0) + p.grad / STEPS
    assert worst(wanted, total) < 1e-12
    g = torch.Generator().manual_seed(0)
    losses = {random_step(net, x, y, nn.functional.cross_entropy, generator=g) for _ in range(40)}
    assert len(losses) == STEPS


def test_every_step_updates_inside_the_sample() -> None:
    x, y = samples(6)
    net = stack(6, "online")
    before = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    first = every_step(net, x, y, nn.functional.cross_entropy, optimizer)
    assert accumulate(net, x, y, nn.functional.cross_entropy) < first
    once = gradients(before, x, y)["3.weight"]
    moved = before[3].weight.detach() - net[3].weight.detach()
    assert float((moved - 0.05 * STEPS * once).abs().max()) > 1e-6  # not one step of the sum


def test_loops_refuse_what_they_cannot_do() -> None:
    x, y = samples(0)
    loss = nn.functional.cross_entropy
    for call in (
        lambda: random_step(stack(0), x, y, loss),
        lambda: every_step(stack(0), x, y, loss, torch.optim.SGD([x], 0.1)),
        lambda: accumulate(stack(0), x, y, loss, bptt=False),
    ):
        with pytest.raises(Refused, match=r"'online' or 'trace', got 'bptt'"):
            call()
    with pytest.raises(Invalid, match=r"expected at in 0..7, got 8"):
        random_step(stack(0, "online"), x, y, loss, at=STEPS)
    with pytest.raises(Invalid, match=r"expected \(time, batch, ...\)"):
        accumulate(stack(0), x[:0], y, loss)
    assert x.shape[1] == BATCH

"""The torch face: autograd through stacked layers, guards, losses, and a network that learns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from exact_cases import STEPS, central_difference
from torch import Tensor

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.exact import losses
from grasp_plugin.learning.exact.function import Guard
from grasp_plugin.learning.exact.layers import LeakyReadout, SpikeTimeLayer

T_END = 60.0
ALL = ("theta", "beta", "v_reset", "bias", "tau_mem_ms", "tau_syn_ms", "tau_adapt_ms")


def inputs(batch: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(1)
    times = 20 * torch.rand(batch, 4, 2, generator=g, dtype=torch.float64)
    times[0, 1, 1] = torch.inf
    return times


def layer(ins: int, outs: int, seed: int = 0, **more: object) -> SpikeTimeLayer:
    options = {"delays": ("delay", "axonal", "dendritic"), "train": ALL, "beta": 0.2} | more
    torch.manual_seed(seed)
    made = SpikeTimeLayer(ins, outs, t_end_ms=T_END, dtype=torch.float64, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        made.weight.uniform_(1, 4)
        for name, value in made.named_parameters():
            if name in ("delay", "axonal", "dendritic"):
                value.uniform_(0.5, 3)
    return made


def check(module: torch.nn.Module, loss: Callable[[Tensor], Tensor], times: Tensor) -> None:
    """The gradient of every parameter and of the input along a random direction is FD's."""
    times.requires_grad_()
    loss(times).backward()
    leaves = [*module.named_parameters(), ("times", times)]
    torch.manual_seed(7)
    for name, leaf in leaves:
        way, base = torch.randn_like(leaf), leaf.detach().clone()
        way = torch.where(torch.isfinite(base), way, 0)

        def moved(h: float, leaf: Tensor = leaf, base: Tensor = base, way: Tensor = way) -> float:
            with torch.no_grad():
                leaf.copy_(base + h * way)
                value = float(loss(times))
                leaf.copy_(base)
            return value

        found = float((leaf.grad * way).sum())
        errors = [abs(central_difference(moved, step) - found) for step in STEPS]
        assert min(errors) < 1e-6 * max(1.0, abs(found)), name


LABELS = torch.tensor([1, 0, 1])
SPIKE_LOSSES = {
    "ttfs": lambda t: losses.ttfs_cross_entropy(losses.first_spikes(t), LABELS, t_end_ms=T_END),
    "target": lambda t: losses.target_time_mse(losses.first_spikes(t), 9 + 0 * t[:, :, 0]),
    "shift": lambda t: losses.shift_invariant_mse(t[:, :, 0], LABELS, delta_ms=1.0),
    "count": lambda t: losses.smooth_count_cross_entropy(t, LABELS, t_end_ms=T_END),
}


@pytest.mark.parametrize("loss", SPIKE_LOSSES.values(), ids=SPIKE_LOSSES)
def test_stacked_layers(loss: Callable[[Tensor], Tensor]) -> None:
    net = torch.nn.Sequential(layer(4, 5), layer(5, 2, 1))
    check(net, lambda t: loss(net(t)), inputs())


READ_LOSSES = {
    "v_max": lambda o: losses.voltage_cross_entropy(o.v_max, LABELS),
    "integral": lambda o: losses.integral_cross_entropy(o.integral, LABELS, t_end_ms=T_END),
    "v_end": lambda o: (o.v_end * o.v_end).sum(),
}


@pytest.mark.parametrize("loss", READ_LOSSES.values(), ids=READ_LOSSES)
def test_readout(loss: Callable[..., Tensor]) -> None:
    hidden = layer(4, 5)
    train = ("bias", "tau_mem_ms", "tau_syn_ms")
    torch.manual_seed(3)
    out = LeakyReadout(5, 2, t_end_ms=T_END, delays="delay", train=train, dtype=torch.float64)
    with torch.no_grad():
        out.delay.fill_(0.7)
    net = torch.nn.Sequential(hidden, out)
    check(net, lambda t: loss(net(t)), inputs())


def test_peak_margin_wakes_a_silent_layer() -> None:
    quiet = layer(4, 3, train=(), delays=())
    with torch.no_grad():
        quiet.weight.fill_(0.2)
    times = inputs()
    assert torch.isinf(quiet(times)).all()
    optimiser = torch.optim.Adam(quiet.parameters(), lr=0.05)
    check(quiet, lambda t: losses.peak_margin(quiet.with_peaks(t)[1], 1.0), times)
    for _ in range(40):
        optimiser.zero_grad()
        losses.peak_margin(quiet.with_peaks(times)[1], 1.0, margin=0.1).backward()
        optimiser.step()
    spikes, v_max = quiet.with_peaks(times)
    assert torch.isfinite(spikes[:, :, 0]).any()
    assert torch.equal(torch.isinf(v_max), torch.isfinite(spikes[:, :, 0]))


def test_silent_outputs_in_the_losses() -> None:
    inf = torch.inf
    times = torch.tensor([[3.0, inf, 5.0], [inf, 2.0, inf], [inf, inf, inf]], requires_grad=True)
    labels = torch.tensor([0, 0, 2])
    for loss in (
        losses.ttfs_cross_entropy(times, labels, t_end_ms=T_END),
        losses.shift_invariant_mse(times, labels, delta_ms=1.0),
        losses.target_time_mse(times, torch.full_like(times, 4.0)),
    ):
        (found,) = torch.autograd.grad(loss, times)
        assert torch.isfinite(loss)
        assert torch.isfinite(found).all()
        assert not found[torch.isinf(times)].any()
    (found,) = torch.autograd.grad(losses.ttfs_cross_entropy(times, labels, t_end_ms=T_END), times)
    assert found[0, 0] > 0 > found[0, 2]
    assert not found[1:].any()
    with pytest.raises(Invalid, match="Call with_peaks"):
        losses.peak_margin(torch.zeros(0, 0))


def test_spike_count_is_refused_and_its_substitutes_named() -> None:
    with pytest.raises(Refused, match=r"0 almost everywhere.*smooth_count_cross_entropy"):
        losses.spike_count(inputs(), LABELS)


def test_guards_count_what_they_do() -> None:
    guard = Guard(gdot_min_per_ms=10.0, max_norm=1e-3)
    kept = layer(4, 3, guard=guard)
    kept(inputs()).nan_to_num(posinf=0.0).sum().backward()
    norm = guard.clip(kept.parameters())
    assert norm > 1e-3
    report = guard.report()
    assert report == {
        "clamped": report["spikes"],
        "spikes": report["spikes"],
        "clipped": 1,
        "steps": 1,
    }
    assert report["spikes"] > 0
    assert kept.guard is guard
    free = layer(4, 3)
    free(inputs()).nan_to_num(posinf=0.0).sum().backward()
    assert free.guard.report()["clamped"] == 0
    with pytest.raises(Invalid, match="Guard"):
        Guard(gdot_min_per_ms=-1.0)


def test_module_manners() -> None:
    made = layer(4, 3)
    assert repr(made) == "SpikeTimeLayer(4, 3, t_end_ms=60.0)"
    with torch.no_grad():
        made.delay.fill_(-1.0)
        made.theta.fill_(-1.0)
        made.tau_syn_ms.fill_(0.0)
    with pytest.raises(Invalid, match="delay: expected delays >= 0"):
        made(inputs())
    assert made.project_() == 12 + 3 + 1
    assert made.tau_syn_ms.item() > 0
    assert (made.theta > 0).all()
    with pytest.raises(Invalid, match="delays: expected some of"):
        SpikeTimeLayer(2, 2, t_end_ms=T_END, delays="somatic")
    with pytest.raises(Invalid, match="train: expected some of"):
        LeakyReadout(2, 2, t_end_ms=T_END, train="theta")
    single = SpikeTimeLayer(4, 3, t_end_ms=T_END)
    out = single(inputs().float())
    assert out.dtype == torch.float32
    out.nan_to_num(posinf=0.0).sum().backward()
    assert single.weight.grad is not None
    assert single.weight.grad.dtype == torch.float32
    taken = single.take_traffic()
    assert taken.arrivals == 23 * 3
    assert single.take_traffic().arrivals == 0
    again = layer(4, 3, seed=5)
    again.load_state_dict(layer(4, 3).state_dict())
    assert torch.equal(again(inputs()), layer(4, 3)(inputs()))


def test_parameters_changed_before_the_backward_pass_are_noticed() -> None:
    made = layer(4, 3)
    out = made(inputs())
    with torch.no_grad():
        made.weight.add_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.nan_to_num(posinf=0.0).sum().backward()


def test_a_small_network_learns_exclusive_or() -> None:
    torch.manual_seed(0)
    early, late = 2.0, 12.0
    pairs = torch.tensor([[early, early], [early, late], [late, early], [late, late]])
    times = torch.cat([pairs, torch.zeros(4, 1)], 1).double()[:, :, None]
    labels = torch.tensor([0, 1, 1, 0])
    guard = Guard(gdot_min_per_ms=1e-4)
    options = {"t_end_ms": T_END, "delays": "delay", "guard": guard, "dtype": torch.float64}
    net = torch.nn.Sequential(SpikeTimeLayer(3, 10, **options), SpikeTimeLayer(10, 2, **options))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(150):
        first = losses.first_spikes(net(times))
        optimiser.zero_grad()
        losses.ttfs_cross_entropy(first, labels, t_end_ms=T_END, tau0_ms=1.0).backward()
        optimiser.step()
        for part in net:
            part.project_()  # type: ignore[operator]
    assert torch.equal(losses.first_spikes(net(times)).argmin(1), labels)

"""A recurrent network under autograd: the oracle's gradients, and a loss that falls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_cases import random_graph, random_layer
from torch import Tensor

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.exact import Parameters, layer_gradients, losses, run_layer
from grasp_plugin.learning.exact.function import Guard
from grasp_plugin.learning.exact.recurrent import VALUES, graph_spike_times

T_END = 60.0


def test_a_layer_as_a_graph_has_the_engines_gradients() -> None:
    layer, times = random_layer(7)
    run = run_layer(times, Parameters(**layer), T_END)
    seeds = np.where(np.isfinite(run.times), np.cos(run.times, where=np.isfinite(run.times)), 0.0)
    wanted = layer_gradients(run, seeds, want_taus=True)
    outs, ins = layer["weight"].shape
    post, pre = np.divmod(np.arange(outs * ins), ins)
    delay = layer["delay"] + layer["axonal"][None] + layer["dendritic"][:, None]
    defaults = {"beta": 0.0, "v_reset": 0.0, "bias": 0.0, "tau_adapt_ms": 25.0}
    given = {**defaults, **layer, "delay": delay}
    values = {
        name: torch.tensor(
            given[name].ravel() if name in ("weight", "delay") else np.zeros(outs) + given[name],
            requires_grad=True,
        )
        for name in VALUES
    }
    start = torch.tensor(times, requires_grad=True)
    guard = Guard()
    found = graph_spike_times(
        start, values, inputs=ins, pre=pre, post=post, t_end_ms=T_END, guard=guard
    )
    assert np.allclose(found.detach().numpy(), run.times, rtol=0, atol=1e-11)
    kept = torch.isfinite(found)
    (found[kept] * torch.tensor(seeds)[kept]).sum().backward()
    for name in ("weight", "theta", "beta", "v_reset", "bias", "delay"):
        close = np.asarray(getattr(wanted, name)).ravel()
        assert np.allclose(values[name].grad.numpy(), close, rtol=1e-9, atol=1e-10), name  # type: ignore[union-attr]
    assert np.allclose(start.grad.numpy(), wanted.times, rtol=1e-9, atol=1e-10)  # type: ignore[union-attr]
    assert guard.report()["spikes"] == run.counts.sum()


def test_a_recurrent_network_learns_target_times() -> None:
    graph = random_graph(2)
    values = {name: torch.tensor(getattr(graph, name)) for name in VALUES}
    for name in ("weight", "delay", "beta"):
        values[name].requires_grad_()
    g = torch.Generator().manual_seed(0)
    times = 20 * torch.rand(2, graph.inputs, 2, generator=g, dtype=torch.float64)
    wiring = {"inputs": graph.inputs, "pre": graph.pre, "post": graph.post, "t_end_ms": T_END}
    trained = [v for v in values.values() if v.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=0.02)

    def loss() -> Tensor:
        first = losses.first_spikes(graph_spike_times(times, values, **wiring))[:, -2:]
        return losses.target_time_mse(first, torch.full_like(first, 20.0))

    before = loss().item()
    for _ in range(40):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        with torch.no_grad():
            values["delay"].clamp_(min=0.0)
    assert loss().item() < before / 2


def test_missing_values() -> None:
    with pytest.raises(Invalid, match=r"without \['weight'"):
        graph_spike_times(torch.zeros(1, 1, 1), {}, inputs=1, pre=[0], post=[0], t_end_ms=1.0)

"""How exact and how dear a second-order step is: identity, finite differences, time, memory."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from _live_bytes import LiveBytes
from _meta_tasks import INPUTS, Method, learner_of, model_of
from torch import Tensor
from torch.nn import functional

from grasp_plugin.learning.meta import MAML, Stack, Tasks, smooth_twin
from grasp_plugin.neurons.surrogate import FastSigmoid

A = 0.3


def small(seed: int = 0, spikes: Any = None) -> tuple[Stack, Tasks]:
    """A network of 12-10-3 in float64, and two tasks of random spikes."""
    torch.manual_seed(seed)
    net = Stack((12, 10, 3), gain=3.0, threshold=0.7, spikes=spikes, dtype=torch.float64)
    x = [(torch.rand(2, 8, n, 12, dtype=torch.float64) < 0.4).double() for n in (3, 6)]
    labels = torch.arange(3).expand(2, 3)
    return net, Tasks(x[0], labels, x[1], labels.repeat(1, 2))


def identity_error() -> float:
    """Largest |meta-gradient - (g - a H g)| of the spiking network, H g by a double backward."""
    net, tasks = small()
    theta = list(net.parameters())
    got = _flat(torch.autograd.grad(MAML(net, step_size=A, mapped=True)(tasks), theta))
    wanted = torch.zeros_like(got)
    for x, y, query_x, query_y in tasks:
        inner = torch.autograd.grad(functional.cross_entropy(net(x), y), theta, create_graph=True)
        other, _ = small()
        with torch.no_grad():
            for p, begun, step in zip(other.parameters(), theta, inner, strict=True):
                p.copy_(begun - A * step)
        loss = functional.cross_entropy(other(query_x), query_y)
        g = _flat(torch.autograd.grad(loss, list(other.parameters())))
        bent = _flat(torch.autograd.grad((_flat(inner) * g).sum(), theta))
        wanted += (g - A * bent) / len(tasks)
    return float((got - wanted).abs().max())


def smooth_error(steps: int = 1) -> float:
    """Relative error of the smooth twin's meta-gradient along 10 directions."""
    net, tasks = small(spikes=smooth_twin(FastSigmoid(10.0)))
    maml = MAML(net, step_size=A, steps=steps, mapped=True)
    theta = list(net.parameters())
    gradient = _flat(torch.autograd.grad(maml(tasks), theta))
    directions = torch.randn(10, len(gradient), dtype=torch.float64)
    numeric = torch.stack([_slope(maml, tasks, theta, v) for v in directions])
    return float((directions @ gradient - numeric).abs().max() / numeric.abs().max())


@torch.no_grad()
def _slope(maml: MAML, tasks: Tasks, theta: list[Any], v: Tensor, h: float = 1e-6) -> Tensor:
    parts, begun = v.split([p.numel() for p in theta]), [p.clone() for p in theta]
    values = []
    for shift in (h, -h):
        for p, old, part in zip(theta, begun, parts, strict=True):
            p.copy_(old + shift * part.view_as(p))
        values.append(maml(tasks))
    for p, old in zip(theta, begun, strict=True):
        p.copy_(old)
    return (values[0] - values[1]) / (2 * h)


def _flat(parts: Any) -> Tensor:
    return torch.cat([p.reshape(-1) for p in parts])


def plain_step(net: Stack, tasks: Tasks, sizes: dict[str, Tensor]) -> Tensor:
    """The same meta-loss with loops over tasks and `torch.autograd.grad`."""
    names, total = list(sizes), torch.zeros(())
    for x, y, query_x, query_y in tasks:
        phi = dict(net.named_parameters())
        loss = functional.cross_entropy(torch.func.functional_call(net, phi, (x,)), y)
        found = torch.autograd.grad(loss, [phi[n] for n in names], create_graph=True)
        phi |= {n: phi[n] - sizes[n] * g for n, g in zip(names, found, strict=True)}
        out = torch.func.functional_call(net, phi, (query_x,))
        total = total + functional.cross_entropy(out, query_y)
    return total / len(tasks)


def step_cost(rounds: int = 5, tasks: int = 8) -> dict[str, float]:
    """CPU ms and peak MB of a second-order step, mapped, by task, and plain; best of rounds."""
    torch.manual_seed(0)
    method = Method("MAML")
    net = model_of(method)
    x = [(torch.rand(tasks, 20, n, INPUTS) < 0.1).float() for n in (5, 25)]
    labels = torch.arange(5).expand(tasks, 5)
    given = Tasks(x[0], labels, x[1], labels.repeat(1, 5))
    mapped = learner_of(method, net, step_size=A, learn="none")
    single = learner_of(method, net, step_size=A, learn="none", mapped=False)
    works = {
        "mapped": lambda: mapped(given),
        "by task": lambda: single(given),
        "plain": lambda: plain_step(net, given, mapped.step_sizes()),
    }
    values = [float(work().detach()) for work in works.values()]
    out = {"difference": max(values) - min(values)}
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.process_time()
            work().backward()  # type: ignore[no-untyped-call]
            times[name].append(time.process_time() - began)
    for name, work in works.items():
        with LiveBytes() as live:
            work().backward()  # type: ignore[no-untyped-call]
        out[f"{name} ms"] = 1e3 * min(times[name])
        out[f"{name} MB"] = live.peak / 1e6
    return out | {"time_ratio": out["plain ms"] / out["mapped ms"],
                  "memory_ratio": out["plain MB"] / out["mapped MB"]}  # fmt: skip


def lava_error() -> float | None:
    """Largest |head on Lava - head in torch| after each of 3 samples; None without Lava."""
    from grasp_plugin import build
    from grasp_plugin.learning import soel_for
    from grasp_plugin.learning.soel import last_steps
    from grasp_plugin.runtime.lava_import import have_lava

    if not have_lava():
        return None
    net, tasks = small()
    x, y, *_ = next(iter(tasks))
    network = net.network()
    learning, runs = soel_for(network, 3, 0.5), []
    for backend in ("torch", "lava"):
        with build(network, backend, plans=learning) as session:
            after = []
            for i in range(len(y)):
                session.learn(x[:, i].numpy(), int(y[i]), mask=last_steps(len(x)))
                after.append(session.weights()["layer1->layer2"].copy())
        runs.append(np.stack(after))
    return float(np.abs(runs[0] - runs[1]).max())

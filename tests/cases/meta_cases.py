"""Small spiking models and tasks in float64 for the tests of meta-learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from grasp_plugin.learning.meta import MAML, Tasks, spike
from grasp_plugin.neurons.surrogate import Arctan, FastSigmoid

SIGMA = FastSigmoid(10.0)
INPUTS, HIDDEN, WAYS, STEPS = 5, 7, 3, 6


class Toy(nn.Module):
    """Leaky neurons that lose their threshold after a spike, and a membrane read at the end."""

    def __init__(self, spikes: Callable[[Tensor], Tensor] | None = None, hidden: int = HIDDEN):
        super().__init__()
        self.body = nn.Linear(INPUTS, hidden).double()
        self.head = nn.Linear(hidden, WAYS).double()
        self.spike = spike(SIGMA) if spikes is None else spikes

    def forward(self, x: Tensor) -> Tensor:
        v, u, s = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for now in x:
            v = 0.8 * v + self.body(now) - 0.6 * s
            s = self.spike(v - 0.6).to(v)  # snnTorch's are float32
            u = 0.9 * u + self.head(s)
        return u


def model(seed: int = 0, **options: Any) -> Toy:
    torch.manual_seed(seed)
    made = Toy(**options)
    with torch.no_grad():
        made.body.weight *= 2.5
    return made


def tasks(seed: int = 0, count: int = 2, steps: int = STEPS, query: int = 2) -> Tasks:
    """Random spikes, one of each class to adapt to."""
    made = torch.Generator().manual_seed(seed)

    def spikes(samples: int) -> Tensor:
        draw = torch.rand((count, steps, samples, INPUTS), generator=made, dtype=torch.float64)
        return (draw < 0.4).double()

    labels = torch.arange(WAYS).expand(count, WAYS)
    return Tasks(spikes(WAYS), labels, spikes(query * WAYS), labels.repeat(1, query))


def flat(parts: Any) -> Tensor:
    return torch.cat([p.reshape(-1) for p in parts])


def meta_gradient(maml: Any, given: Tasks) -> Tensor:
    """dL/dtheta in one vector."""
    return flat(torch.autograd.grad(maml(given), list(maml.model.parameters())))


def two_steps() -> MAML:
    """A learner whose surrogate torch differentiates twice without importing its compiler."""
    return MAML(model(spikes=spike(Arctan(4.0))), steps=2, step_size=0.3, learn="parameter")


def half_of_the_tasks(rank: int, file: str, out: Any) -> None:
    """One of two processes: its half of the tasks, through torch's own data parallelism."""
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    maml = two_steps()
    whole = DistributedDataParallel(maml)
    whole(tasks(count=4).part(2 * rank, 2 * rank + 2)).backward()
    out.put((rank, [p.grad.numpy() for p in maml.parameters()]))
    torch.distributed.destroy_process_group()

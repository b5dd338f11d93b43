"""Training, memory and traffic of one method of `benchmarks/hmdf.py`."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from _hmdf_nets import CLASSES, Method, Net, lif_ops, network
from _hmdf_tasks import Samples
from _live_bytes import LiveBytes
from torch import Tensor
from torch.nn.functional import cross_entropy

from grasp_plugin.hdlif.cost import measure, parameter_bytes
from grasp_plugin.hdlif.training import accumulate, random_step

BATCH = 64
RATES = (1e-3, 3e-3, 1e-2)


def gradient(method: Method, net: Net, x: Tensor, y: Tensor, generator: Any = None) -> float:
    """Add a batch's gradient; returns the loss."""
    if method.mode == "random":
        return random_step(net, x, y, cross_entropy, generator=generator)
    return accumulate(net, x, y, cross_entropy, bptt=method.bptt)


def train(method: Method, samples: Samples, lr: float, seed: int, epochs: int) -> Net:
    """The trained network: Adam, cosine, one update a batch."""
    net = network(method, samples.x.shape[2], len(samples.x), seed)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for which in torch.randperm(len(samples), generator=generator).split(BATCH):
            if len(which) > 1:  # a BatchNorm needs two
                optimizer.zero_grad()
                part = samples.take(which)
                gradient(method, net, part.x, part.y, generator)
                optimizer.step()
    return net


def epoch_cpu_s(method: Method, samples: Samples, rounds: int) -> float:
    """CPU time of an epoch of training, one thread: the median of some."""
    seconds = []
    for seed in range(rounds):
        start = time.process_time()
        train(method, samples, RATES[1], seed, 1)
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))


@torch.no_grad()
def accuracy(net: Net, samples: Samples) -> float:
    """The share that the logits, summed over time, have right; running statistics."""
    net.eval()
    state, logits = None, torch.zeros(())
    for step in samples.x:
        out, state = net(step, state)
        logits = logits + out
    return float((logits.argmax(1) == samples.y).float().mean())


def run(method: Method, train_on: Samples, test_on: Samples, lr: float, seed: int,
        epochs: int) -> dict[str, float]:  # fmt: skip
    """Accuracy of one seed, and what a test sample takes."""
    net = train(method, train_on, lr, seed, epochs)
    traffic = measure(net, test_on.x)
    ops = lif_ops(len(test_on.x)) if method.neuron != "hdlif" else None
    muls, adds = (traffic.ops.muls, traffic.ops.adds)
    if ops is not None:
        muls, adds = ops.muls * traffic.samples, ops.adds * traffic.samples
    each = traffic.samples
    size = parameter_bytes(net)
    return {
        "accuracy": accuracy(net, test_on), "events": traffic.events / each,
        "payload_bits": traffic.payload_bits, "sops": traffic.sops / each, "muls": muls / each,
        "adds": adds / each, "published_kb": size.published / 1e3, "packed_kb": size.packed / 1e3,
    }  # fmt: skip


FIGURES = (
    "accuracy", "events", "payload_bits", "sops", "muls", "adds", "published_kb", "packed_kb",
)  # fmt: skip


def batch(task_inputs: int, steps: int) -> tuple[Tensor, Tensor]:
    """A batch to measure memory with."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(steps, BATCH, task_inputs, generator=generator) < 0.2).float()
    return x, torch.arange(BATCH) % CLASSES


def peak_kb(method: Method, inputs: int, steps: int) -> float:
    """Peak of live tensors while a batch's gradient is formed, beyond network and input."""
    net, (x, y) = network(method, inputs, steps, 0), batch(inputs, steps)
    with LiveBytes() as counter:
        gradient(method, net, x, y, torch.Generator().manual_seed(0))
    return float(counter.peak / 1e3)


def saved_elements(method: Method, inputs: int, steps: int) -> int:
    """The most float32 that autograd holds at once: of one step, or of all for BPTT."""
    net, (x, y) = network(method, inputs, steps, 0), batch(inputs, steps)
    counts: list[int] = []
    kept: dict[int, int] = {}  # by address: weights are held once, however many steps use them

    def pack(value: Tensor) -> Tensor:
        kept[value.data_ptr()] = max(value.numel(), kept.get(value.data_ptr(), 0))
        return value

    state, losses = None, torch.zeros(())
    for t in range(steps):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            out, state = net(x[t], state)
            loss = cross_entropy(out, y) / steps
        if method.bptt:
            losses = losses + loss
        else:
            loss.backward()  # type: ignore[no-untyped-call]
            counts.append(sum(kept.values()))
            kept.clear()
    return max([*counts, sum(kept.values())])


def cosines(seeds: int) -> dict[str, list[float]]:
    """Cosine of online weight gradients with BPTT's, by mode and layer, on the same weights.

    Without a norm, T = 8, inputs-128-128-10, random inputs, one batch.
    """
    out: dict[str, list[float]] = {}
    for mode in ("online", "trace"):
        found = []
        for seed in range(seeds):
            grads = []
            for name in ("bptt", mode):
                method = Method("", "hdlif", name, norm=False)
                net, (x, y) = network(method, 64, 8, seed), batch(64, 8)
                gradient(method, net, x, y)
                grads.append([p.grad for n, p in net.named_parameters() if n.endswith("weight")])
            found.append([float(torch.cosine_similarity(a.flatten(), b.flatten(), 0))
                          for a, b in zip(*grads, strict=True)])  # fmt: skip
        out[mode] = np.mean(found, 0).tolist()
    return out

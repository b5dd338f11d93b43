"""Time and memory of one training step, exact gradients beside surrogate-gradient BPTT.

Both train the same network from the same weights and delays on the same batch: forward, loss,
backward, Adam. The methods take turns; CPU time of the process, medians. BPTT is float32, the
exact engine float64, as each is used.

held: bytes kept between the passes, the input aside. peak: the most bytes alive in a step. Torch's
tensors are counted by `_live_bytes`; the engine's NumPy arrays by tracemalloc, and its compiled
scratch by an upper bound, twice the log. Arrays that torch and NumPy share are counted twice.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _exact_bptt import Grid, GridLayer, Loop, compiled_loop, loss_of, torch_loop, trains
from _exact_tasks import Workload
from _live_bytes import LiveBytes
from torch import Tensor

from grasp_plugin.learning.exact.function import Guard
from grasp_plugin.learning.exact.layers import SpikeTimeLayer
from grasp_plugin.learning.exact.losses import first_spikes, ttfs_cross_entropy

KEYS = ("workload", "batch", "method", "dt_ms", "t_end_ms")
FIGURES = ("ms_sample", "ratio", "held_bytes", "held_ratio", "peak_bytes", "peak_ratio")
LOOPS: dict[str, Loop] = {"torch": torch_loop, "compiled": compiled_loop}


class Exact:
    """The network of a workload under exact gradients."""

    def __init__(self, work: Workload) -> None:
        guard, self.layers = Guard(gdot_min_per_ms=1e-4), torch.nn.ModuleList()
        for weight, delay in zip(work.weights, work.delays, strict=True):
            layer = SpikeTimeLayer(
                weight.shape[1], len(weight), t_end_ms=work.t_end, guard=guard, capacity=10_000,
                delays="delay" if delay is not None else (), dtype=torch.float64,
            )  # fmt: skip
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(weight))
                if delay is not None:
                    layer.get_parameter("delay").copy_(torch.from_numpy(delay))
            self.layers.append(layer)
        self.optimizer = torch.optim.Adam(self.layers.parameters(), 1e-6, fused=True)
        self.x, self.y = torch.from_numpy(work.times), torch.tensor(work.labels)
        self.t_end = work.t_end

    def loss(self) -> Tensor:
        times = self.x
        for layer in self.layers:
            times = layer(times)
        loss: Tensor = ttfs_cross_entropy(first_spikes(times), self.y, t_end_ms=self.t_end)
        return loss

    def held_bytes(self, loss: Tensor) -> int:
        """What the autograd graph's runs keep, and the padded times they share with torch."""
        runs = [node.run for node in _nodes(loss) if hasattr(node, "run")]
        return int(sum(run.held_bytes + run.times.nbytes for run in runs))

    def scratch_bytes(self, loss: Tensor) -> int:
        """An upper bound of what the compiled passes allocate for themselves."""
        return int(max(2 * n.run.log.nbytes for n in _nodes(loss) if hasattr(n, "run")))


def _nodes(loss: Tensor) -> list[Any]:
    """All nodes of an autograd graph."""
    out, waiting = [], [loss.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        out.append(node)
        waiting += [follower for follower, _ in node.next_functions]
    return out


class Bptt:
    """The same network on a grid."""

    def __init__(self, work: Workload, dt: float, loop: Loop) -> None:
        self.grid = Grid(dt, work.t_end)
        pairs = zip(work.weights, work.delays, strict=True)
        self.layers = torch.nn.ModuleList(GridLayer(w, d, self.grid, loop) for w, d in pairs)
        self.optimizer = torch.optim.Adam(self.layers.parameters(), 1e-6, fused=True)
        self.x, self.y = torch.from_numpy(work.times), torch.tensor(work.labels)

    def input_bytes(self) -> int:
        """The input as counts a step."""
        return 4 * self.grid.steps * self.x.shape[0] * self.x.shape[1]

    def loss(self) -> Tensor:
        out = trains(self.x, self.grid), torch.empty(0)
        for layer in self.layers:
            out = layer(out[0])
        return loss_of("first", out, self.y, self.grid.dt)


def step(net: Any) -> None:
    """One training step."""
    net.optimizer.zero_grad()
    net.loss().backward()
    net.optimizer.step()
    if isinstance(net, Exact):
        for layer in net.layers:
            layer.project_()  # type: ignore[operator]


def medians(nets: dict[str, Any], rounds: int) -> dict[str, float]:
    """CPU seconds a step of each, in turn; the cheap ones several times a turn."""
    for net in nets.values():
        step(net)
    spent: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(rounds):
        for name, net in nets.items():
            began, count = time.process_time(), 0
            while count == 0 or (time.process_time() - began < 0.02 and count < 50):
                step(net)
                count += 1
            spent[name].append((time.process_time() - began) / count)
    return {name: float(np.median(values)) for name, values in spent.items()}


def memory(net: Any) -> tuple[int, int]:
    """(held, peak) bytes of a step after the first."""
    exact = isinstance(net, Exact)
    tracemalloc.start()
    with LiveBytes() as counter:
        net.optimizer.zero_grad()
        base = counter.live
        loss = net.loss()
        held = net.held_bytes(loss) if exact else counter.live - base - net.input_bytes()
        scratch = net.scratch_bytes(loss) if exact else 0
        loss.backward()
    arrays = tracemalloc.get_traced_memory()[1] if exact else 0
    tracemalloc.stop()
    return held, counter.peak + arrays + scratch


def compare(work: Workload, steps_ms: tuple[float, ...], rounds: int) -> list[dict[str, Any]]:
    """Rows of KEYS and FIGURES: exact, then BPTT by loop and time step; ratios are to exact."""
    made: dict[str, Callable[[], Any]] = {"exact": lambda: Exact(work)}
    labels: dict[str, tuple[str, Any]] = {"exact": ("exact", "")}
    for dt in steps_ms:
        for loop, call in LOOPS.items():
            name = f"{loop} {dt:g}"
            made[name] = lambda dt=dt, call=call: Bptt(work, dt, call)  # type: ignore[misc]
            labels[name] = (f"BPTT {loop}", dt)
    nets = {name: call() for name, call in made.items()}
    seconds = medians(nets, rounds)
    bytes_ = {name: memory(net) for name, net in nets.items()}
    rows, base = [], (seconds["exact"], *bytes_["exact"])
    for name, (method, dt) in labels.items():
        held, peak = bytes_[name]
        rows.append({
            "workload": work.name, "batch": len(work.times), "method": method, "dt_ms": dt,
            "t_end_ms": work.t_end, "ms_sample": 1e3 * seconds[name] / len(work.times),
            "ratio": seconds[name] / base[0], "held_bytes": held, "held_ratio": held / base[1],
            "peak_bytes": peak, "peak_ratio": peak / base[2],
        })  # fmt: skip
    return rows

"""What an online rule costs, and how exact it is, on every back end.

    python benchmarks/rules.py [--quick]

1. CPU time a step of one plastic projection in Lava, in one process: `PlasticDense` and, in float,
   `PostponedDense` against stock `LearningDense` with the same rule, and against a NumPy outer
   product; at 5 % input rate, with an error at every neuron or at one in ten; `learning_ratio` is
   of `PlasticDense`'s update alone, without what the projection sends. Medians of blocks of steps,
   all in turn, those of `PostponedDense` as long as its history; the CPU time of the graph without
   the projection (sources and sinks) is taken off each. The floor is the time this machine takes
   to read the weights of active inputs and to read and write those that a step by step update
   changes.
2. Peak memory of training in torch at several lengths of the sequence, beside BPTT.
3. The largest difference of a rule's updates from autograd on the graph that its paper names.
4. The largest difference between the weights learned on Lava, fused and torch over 200 steps.

All figures of a run are measured in that run. The last line is one JSON object. In it,
`cpu_ratio_plastic_dense_1000` and `..._sparse_1000` are what a user gets who asks for the fastest
updates in float, `build(..., postponed=True)`; `..._stepwise` are those of the default.
Accuracies are in `benchmarks/nmnist_rules.py`. Needs the extras lava and plot.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _live_bytes import LiveBytes
from _plastic_cpu import RATE, projection_cpu

from grasp_plugin import build
from grasp_plugin.backends.learning_torch import OnlineTorch
from grasp_plugin.backends.torch import TorchNetwork
from grasp_plugin.learning import decolle_for, etlp_for, ottt_for, sltt_for
from grasp_plugin.learning.online import OnlineLearner
from grasp_plugin.learning.spec import Seen
from grasp_plugin.network.network import Network, Population, Projection
from grasp_plugin.neurons.surrogate import Surrogate
from grasp_plugin.report import table

RULES: dict[str, Callable[..., Any]] = {
    "decolle": decolle_for, "etlp": etlp_for, "ottt": ottt_for, "sltt": sltt_for,
}  # fmt: skip
CLASSES = 5


def network(*sizes: int, seed: int = 0, decay: float = 0.9) -> Network:
    """Dense layers of leaky neurons with a subtractive reset."""
    rng = np.random.default_rng(seed)
    names = ["input", *(f"layer{i}" for i in range(1, len(sizes)))]
    populations, projections = [], []
    for i, size in enumerate(sizes[1:], start=1):
        one, zero = np.ones(size), np.zeros(size)
        populations.append(
            Population(names[i], (size,), "LIF", "subtract-delayed", one, one * (1 - decay), one,
                       zero, zero, one, zero)
        )  # fmt: skip
        weight = rng.normal(0.0, 1.5 / np.sqrt(sizes[i - 1]), (size, sizes[i - 1]))
        projections.append(Projection(f"to {names[i]}", names[i - 1], names[i], weight))
    return Network(
        tuple(populations), tuple(projections), (), {"input": (sizes[0],)}, {"out": names[-1]}
    )


# --- 2. memory -----------------------------------------------------------------------------------


def training_bytes(rule: str, steps: int) -> int:
    """Peak bytes of tensors while one batch of `steps` steps trains."""
    net, batch = network(200, 100, 50, CLASSES), 16
    spikes = (torch.rand(steps, batch, 200) < RATE).to(torch.float32)
    target = torch.nn.functional.one_hot(torch.arange(batch) % CLASSES, CLASSES).float()
    if rule == "bptt":
        return _bptt_bytes(net, spikes, target)
    online = OnlineTorch(net, RULES[rule](net, CLASSES, 1e-3), dtype=torch.float32)
    mask = torch.ones(batch, 1)
    with LiveBytes() as counter:
        targets, masks = target.expand(steps, -1, -1), mask.expand(steps, -1, -1)
        for _ in online.sequence({"input": spikes}, targets, masks):
            pass
    return counter.peak


class Spike(torch.autograd.Function):
    """H with a surrogate's derivative."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, surrogate: Surrogate) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad * ctx.surrogate.first(ctx.saved_tensors[0]), None


def _bptt_bytes(net: Network, spikes: torch.Tensor, target: torch.Tensor) -> int:
    from grasp_plugin.neurons.surrogate import Sigmoid

    module = TorchNetwork(net, torch.float32, lambda x: Spike.apply(x, Sigmoid(4.0)))
    with LiveBytes() as counter:
        out, _ = module({"input": spikes})
        logits = out[net.outputs["out"]].sum(0)
        torch.nn.functional.cross_entropy(logits, target).backward()
    return counter.peak


# --- 3. autograd ---------------------------------------------------------------------------------


def autograd_error(rule: str, steps: int) -> float:
    """max |delta + dL/dW| over layers and steps, relative to max |dL/dW|.

    The graph: the leak of the layer itself alive, every other membrane and every reset detached.
    L[t] is the local loss (DECOLLE), the linear pseudo-loss (ETLP) or the loss of the step.
    """
    net, batch = network(12, 10, 8, CLASSES), 3
    learning = RULES[rule](net, CLASSES, 1.0)
    learner = OnlineLearner(net, learning)
    names = [k.name for k in net.projections]
    weights = {k.name: torch.tensor(k.weight) for k in net.projections}
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(steps, batch, 12, generator=generator) < 0.3).double()
    target = torch.nn.functional.one_hot(torch.arange(batch), CLASSES).double()
    state = learner.init(weights, batch)
    graphs = {name: _Alone(net, rule, learning, learner, state, i, weights)
              for i, name in enumerate(names)}  # fmt: skip
    worst = largest = 0.0
    for t in range(steps):
        before = state["signals"]
        wanted = {name: g.gradient(x[t], target, before) for name, g in graphs.items()}
        seen = graphs[names[0]].seen
        with torch.no_grad():
            deltas, state = learner.step(seen, target, torch.ones(batch, 1), state, weights)
        for name in names:
            largest = max(largest, float(wanted[name].abs().max()))
            worst = max(worst, float((deltas[name]["weight"].dense() + wanted[name]).abs().max()))
    return worst / largest


class _Alone:
    """The network in autograd with the leak of one layer alive."""

    def __init__(
        self, net: Network, rule: str, learning: Any, learner: Any, state: Any, layer: int,
        weights: dict[str, torch.Tensor],
    ) -> None:  # fmt: skip
        self.net, self.rule, self.learning, self.layer = net, rule, learning, layer
        self.weights = [
            w.clone().requires_grad_(i == layer) for i, w in enumerate(weights.values())
        ]
        self.v: list[Any] = [0.0] * len(self.weights)
        self.s: list[Any] = [0.0] * len(self.weights)
        self.seen: Any = None
        self.memory = rule != "sltt"

    def gradient(self, x: torch.Tensor, target: torch.Tensor, signals: Any) -> torch.Tensor:
        """dL[t]/dW of the layer."""
        pre, output, margin = {}, {"input": x}, {}
        s = x
        for i, p in enumerate(self.net.populations):
            keep = float(1 - p.dv[0])
            plan = self.learning.plans[f"to {p.name}"]
            old = self.v[i] if i == self.layer and self.memory else _detached(self.v[i])
            pre[f"to {p.name}"] = s.detach()
            local = self.rule in ("decolle", "etlp")
            v = keep * old + (s.detach() if local else s) @ self.weights[i].T - _detached(self.s[i])
            s = Spike.apply(v - 1.0, plan.surrogate)
            self.v[i], self.s[i] = v, s
            output[p.name], margin[p.name] = s, v - 1.0
        detached = {n: o.detach() for n, o in output.items()}
        self.seen = Seen(pre, detached, {n: m.detach() for n, m in margin.items()})
        loss = self._loss(self.net.populations[self.layer].name, output, target, signals)
        (out,) = torch.autograd.grad(
            loss, self.weights[self.layer], retain_graph=True, allow_unused=True
        )
        return torch.zeros_like(self.weights[self.layer]) if out is None else out

    def _loss(self, name: str, output: Any, target: torch.Tensor, signals: Any) -> torch.Tensor:
        signal = self.learning.signals[name]
        if self.rule == "decolle":
            return signal.loss.value(signal.logits(output[name], signals[name]), target)
        if self.rule == "etlp":
            third, _ = (
                signal.update(target, signals[name])
                if hasattr(signal, "source")
                else signal.update(output[name].detach(), target, signals[name])
            )
            return (third * output[name]).sum()
        top = self.net.outputs["out"]
        return self.learning.signals[top].loss.value(output[top], target)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


# --- 4. back ends ---------------------------------------------------------------------------------


def backend_errors(rule: str, steps: int) -> dict[str, float]:
    """max |weight - torch's weight| after `steps` steps, Lava and fused."""
    net = network(20, 16, 12, CLASSES)
    options = {"pipelined": True} if rule in ("ottt", "sltt") else {}
    learning = RULES[rule](net, CLASSES, 0.01, **options)
    rng = np.random.default_rng(2)
    spikes = (rng.random((steps, 20)) < 0.3) * 1.0
    learned = {}
    for backend in ("torch", "lava", "fused"):
        with build(net, backend, plans=learning) as session:
            session.learn(spikes, 1)
            learned[backend] = session.weights()
    return {
        backend: max(
            float(np.abs(learned[backend][n] - learned["torch"][n]).max()) for n in learning.plans
        )
        for backend in ("lava", "fused")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    blocks = 9 if quick else 41
    rows = [
        projection_cpu(size, share, precision, blocks, 3 if size > 100 else 20)
        for size in (100, 1000)
        for precision in ("float", "fixed")
        for share in (1.0, 0.1)
    ]
    print("CPU a step of one plastic projection")
    print(table([[_short(v) for v in r.values()] for r in rows], list(rows[0])))
    lengths = (50, 1000) if quick else (50, 100, 200, 500, 1000)
    memory = {rule: {n: training_bytes(rule, n) for n in lengths} for rule in (*RULES, "bptt")}
    print("\nPeak bytes of tensors while one batch trains (200-100-50-5, batch 16, float32)")
    cells = [[rule, *by.values(), f"{by[1000] / by[50]:.3f}"] for rule, by in memory.items()]
    print(table(cells, ["rule", *(f"T = {n}" for n in lengths), "1000 / 50"]))
    autograd = {rule: autograd_error(rule, 20 if quick else 100) for rule in RULES}
    parity = {rule: backend_errors(rule, 200) for rule in RULES}
    print("\nLargest relative error against autograd, and difference of weights after 200 steps")
    exact = [[rule, f"{autograd[rule]:.1e}", *(f"{v:.1e}" for v in parity[rule].values())]
             for rule in RULES]  # fmt: skip
    print(table(exact, ["rule", "autograd", "Lava - torch", "fused - torch"]))
    print(json.dumps(headline(rows, memory, autograd, parity)))


def headline(rows: Any, memory: Any, autograd: Any, parity: Any) -> dict[str, Any]:
    """The figures of the last line."""
    at = {(r["size"], r["precision"], r["error_share"]): r for r in rows}
    return {
        "cpu_ratio_plastic_dense_1000": round(at[1000, "float", 1.0]["postponed_ratio"], 1),
        "cpu_ratio_plastic_dense_1000_stepwise": round(at[1000, "float", 1.0]["ratio"], 1),
        "cpu_ratio_plastic_dense_1000_fixed": round(at[1000, "fixed", 1.0]["ratio"], 1),
        "cpu_ratio_plastic_sparse_1000": round(at[1000, "float", 0.1]["postponed_ratio"], 1),
        "cpu_ratio_plastic_sparse_1000_stepwise": round(at[1000, "float", 0.1]["ratio"], 1),
        "cpu_ratio_plastic_sparse_1000_fixed": round(at[1000, "fixed", 0.1]["ratio"], 1),
        "cpu_ratio_update_sparse_1000": round(at[1000, "float", 0.1]["learning_ratio"], 1),
        "memory_growth_t50_t1000": round(max(m[1000] / m[50] for r, m in memory.items()
                                             if r != "bptt"), 4),
        "memory_growth_bptt": round(memory["bptt"][1000] / memory["bptt"][50], 2),
        "worst_error_vs_autograd": autograd,
        "worst_error_lava_vs_torch": {rule: errors["lava"] for rule, errors in parity.items()},
    }  # fmt: skip


def _short(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value


if __name__ == "__main__":
    main()

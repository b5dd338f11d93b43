"""CPU time of a step in which GRASP writes 2 % of the synapses, and the error of its curvature.

    python benchmarks/_grasp_cpu.py [--quick]

1. `update_cpu`: a DECOLLE layer's whole `Plan.update` (trace, error, curvature, scores, choice) and
   the write in place, as `fused` and `lava` do it, beside `W += scale * np.outer(d, p)` with d and
   p given. Weights in C order (`lava`) and Fortran order (`fused`).
2. `lava_cpu`: `PlasticDense` with a GRASP plan beside stock `LearningDense` with the same rule, the
   update alone and the whole projection, in one process. Score "magnitude": stock Lava has no
   curvature to compare with.
3. `hvp_worst_error`: DECOLLE's closed-form Hessian-vector product beside double backward.

Batch 1; 5 % of the inputs spike; traces and errors are dense, no entry zero. The contestants take
turns, block by block, and a ratio is the median of the blocks' ratios.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from _plastic_cpu import RATE, Timed

from grasp_plugin.backends.loihi import learning_dense
from grasp_plugin.learning import GRASP, Factors, Plan, ThreeFactor, decolle, ottt
from grasp_plugin.learning.budget import Fixed
from grasp_plugin.learning.curvature import (
    hessian_vector,
    plus,
    readout_curvature,
    surrogate_curvature,
)
from grasp_plugin.learning.fixed_plan import fixed_plan
from grasp_plugin.learning.kernels import add_delta
from grasp_plugin.learning.loihi import loihi_form
from grasp_plugin.learning.losses import MSE, CrossEntropy, SmoothL1
from grasp_plugin.learning.signals import RandomReadout
from grasp_plugin.neurons.surrogate import FastSigmoid, Surrogate
from grasp_plugin.report import table

SHARE, CLASSES = 0.02, 10
WARM = 40  # steps before the first block: compiled, and every trace above 0


# --- 1. the update alone --------------------------------------------------------------------------


class Layer:
    """A DECOLLE layer that learns with GRASP, on factors made beforehand.

    Args:
        size: N_o = N_i. score: GRASP's. order: of the weights in memory.
    """

    def __init__(self, size: int, score: str, order: str) -> None:
        rule = decolle(0.01)
        assert isinstance(rule, ThreeFactor)
        self.plan = Plan(replace(rule, bias=None), (GRASP(Fixed(SHARE), score),))
        self.weights: Any = np.zeros((size, size), order=order)  # type: ignore[call-overload]
        self.state = self.plan.init(self.weights)
        self.signal = RandomReadout(CLASSES, seed=1)
        self.fixed = self.signal.init(size, np.zeros(1))
        self.surrogate = FastSigmoid(10.0)
        self.target, self.mask = np.eye(CLASSES)[:1], np.ones((1, 1))
        self.bends, self.t = score == "pred_decrease", 0
        rng = np.random.default_rng(0)
        self.pre = (rng.random((64, 1, size)) < RATE) * 1.0
        self.pre[0] = 1.0  # every trace starts
        self.margin = rng.normal(size=(64, 1, size))
        spikes = (self.margin > 0) * 1.0
        self.spikes = spikes
        self.third = [self.signal.update(s, self.target, self.fixed)[0] for s in spikes]

    def step(self) -> None:
        t, self.t = self.t % 64, self.t + 1
        bend = None
        if self.bends:
            slope = self.surrogate.first(self.margin[t])
            bend = readout_curvature(
                self.signal, self.spikes[t], slope, self.target, self.mask, self.fixed
            )
        factors = Factors(self.pre[t], self.third[t], self.margin[t], curvature=bend)
        delta, self.state = self.plan.update(factors, self.state, self.weights)
        add_delta(self.weights, delta)

    @property
    def share(self) -> float:
        """Writes by synapses and steps."""
        counts = self.state["transforms"]["0"]
        return float(counts["issued"][0] / counts["dense"][0])


class Dense:
    """The dense update with error and trace given: W += scale * np.outer(d, p)."""

    def __init__(self, size: int) -> None:
        rng = np.random.default_rng(0)
        self.weights = np.zeros((size, size))
        self.left, self.right = rng.normal(size=(64, size)), rng.random((64, size))
        self.t = 0

    def step(self) -> None:
        t, self.t = self.t % 64, self.t + 1
        self.weights += -0.01 * np.outer(self.left[t], self.right[t])


def update_cpu(size: int, blocks: int, steps: int) -> dict[str, Any]:
    """One row of the table of updates; `steps` of the outer product a block, 5 times ours."""
    layers = {
        "magnitude": Layer(size, "magnitude", "C"),
        "pred_decrease": Layer(size, "pred_decrease", "C"),
        "pred_decrease_fused": Layer(size, "pred_decrease", "F"),
    }
    dense = Dense(size)
    for layer in layers.values():
        _seconds(layer.step, WARM)
    _seconds(dense.step, 2)
    taken: dict[str, list[float]] = {name: [] for name in (*layers, "outer")}
    for _ in range(blocks):
        taken["outer"].append(_seconds(dense.step, steps))
        for name, layer in layers.items():
            taken[name].append(_seconds(layer.step, 5 * steps))
    row: dict[str, Any] = {"size": size, "share": layers["pred_decrease"].share}
    row |= {f"{name}_ms": float(np.median(v)) * 1e3 for name, v in taken.items()}
    row |= {f"ratio_{name}": _ratio(taken["outer"], taken[name]) for name in layers}
    return row


def _seconds(step: Callable[[], Any], steps: int) -> float:
    """CPU seconds a step."""
    start = time.process_time()
    for _ in range(steps):
        step()
    return (time.process_time() - start) / steps


def _ratio(slow: list[float], fast: list[float]) -> float:
    return float(np.median(np.array(slow) / np.array(fast)))


# --- 2. in Lava -----------------------------------------------------------------------------------


def lava_cpu(size: int, precision: str, blocks: int, steps: int) -> dict[str, Any]:
    """One row of the table of Lava projections; `steps` of the stock one a block, 10 times ours."""
    from grasp_plugin.processes.plastic.process import PlasticDense

    rng, fixed = np.random.default_rng(1), precision == "fixed"
    length = WARM + 10 * blocks * steps + 3
    spikes = (rng.random((size, length)) < RATE) * 1.0
    spikes[:, 0] = 1.0  # every trace starts
    errors = rng.normal(size=(size, length))
    rule = replace(ottt(2.0**-6, decay=0.875), bias=None)  # type: ignore[type-var]
    scheduled = Plan(rule, (GRASP(Fixed(SHARE), "magnitude"),))
    weights = 2 * rng.integers(-60, 60, (size, size)) if fixed else rng.normal(size=(size, size))
    tag = "fixed_pt" if fixed else "floating_pt"
    y = np.round(errors * 30).astype(np.int32) if fixed else errors
    plan = fixed_plan("w", scheduled, 2.0**-6, error_max=4.0) if fixed else scheduled
    form = loihi_form(rule, precision=precision)
    graphs = {
        "around": Timed(None, spikes, y, "", tag),
        "stock": Timed(learning_dense(weights, form), spikes, y, "s_in_y1", tag),
        "ours": Timed(PlasticDense(weights=weights, plan=plan), spikes, errors, "signal_in", tag),
    }
    graphs["ours"].block(WARM)
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    update: dict[str, list[float]] = {"stock": [], "ours": []}
    for _ in range(blocks):
        for name, graph in graphs.items():
            graph.learning.clear()
            taken[name].append(graph.block(steps if name == "stock" else 10 * steps))
            if name in update:
                update[name].append(float(np.mean(graph.learning)))
    for graph in graphs.values():
        graph.stop()
    whole = {n: list(np.array(taken[n]) - np.median(taken["around"])) for n in ("stock", "ours")}
    return {
        "size": size, "precision": precision,
        **{f"update_{n}_ms": float(np.median(v)) * 1e3 for n, v in update.items()},
        **{f"projection_{n}_ms": float(np.median(v)) * 1e3 for n, v in whole.items()},
        "update_ratio": _ratio(update["stock"], update["ours"]),
        "projection_ratio": _ratio(whole["stock"], whole["ours"]),
    }  # fmt: skip


# --- 3. the curvature -----------------------------------------------------------------------------


class Spike(torch.autograd.Function):
    """H, twice differentiable through a surrogate."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, surrogate: Surrogate) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad * Slope.apply(ctx.saved_tensors[0], ctx.surrogate), None


class Slope(torch.autograd.Function):
    """sigma', whose derivative is sigma''."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, surrogate: Surrogate) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return surrogate.first(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad * ctx.surrogate.second(ctx.saved_tensors[0]), None


def hvp_worst_error(inputs: int = 40, neurons: int = 30) -> float:
    """max |H V - double backward| / max |double backward| over DECOLLE's losses, batch 1 and 8."""
    return max(
        _hvp_error(loss, batch, inputs, neurons)
        for loss in (MSE(), CrossEntropy(), SmoothL1())
        for batch in (1, 8)
    )


def _hvp_error(loss: Any, batch: int, inputs: int, neurons: int) -> float:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    trace, rest = random(batch, inputs).abs(), random(batch, neurons)
    weight, v = random(neurons, inputs), random(neurons, inputs)
    surrogate, signal = FastSigmoid(10.0), RandomReadout(CLASSES, 2.0, loss, seed=3)
    state = signal.init(neurons, weight)
    target = torch.eye(CLASSES, dtype=torch.float64)[torch.arange(batch)]
    u = trace @ weight.T + rest
    spikes = (u > 0).to(u.dtype)
    third, _ = signal.update(spikes, target, state)
    mask = torch.ones(batch, 1, dtype=torch.float64)
    product = plus(
        readout_curvature(signal, spikes, surrogate.first(u), target, mask, state),
        surrogate_curvature(surrogate, u, third),
    )
    w = weight.clone().requires_grad_(True)
    logits = signal.logits(Spike.apply(trace @ w.T + rest, surrogate), state)
    (g,) = torch.autograd.grad(loss.value(logits, target), w, create_graph=True)
    (wanted,) = torch.autograd.grad((g * v).sum(), w)
    return float((hessian_vector(product, trace, v) - wanted).abs().max() / wanted.abs().max())


# --- all ------------------------------------------------------------------------------------------


def figures(quick: bool) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """(the figures by name, the rows of both tables); quick: 1000 x 1000 only."""
    updates = [update_cpu(1000, 7 if quick else 41, 10)]
    projections = [
        lava_cpu(1000, precision, 5 if quick else 21, 1 if quick else 2)
        for precision in ("float", "fixed")
    ]
    if not quick:  # stock Lava takes seconds a step, and gigabytes
        updates.append(update_cpu(4096, 11, 3))
        projections += [lava_cpu(4096, precision, 3, 1) for precision in ("float", "fixed")]
    out: dict[str, Any] = {}
    for row in updates:
        n = row["size"]
        out[f"cpu_ratio_vs_outer_{n}"] = row["ratio_pred_decrease"]
        out[f"cpu_ratio_vs_outer_{n}_magnitude"] = row["ratio_magnitude"]
        out[f"cpu_ratio_vs_outer_{n}_fused"] = row["ratio_pred_decrease_fused"]
        out[f"cpu_ms_{n}"], out[f"cpu_ms_outer_{n}"] = row["pred_decrease_ms"], row["outer_ms"]
    for row in projections:
        name = f"{row['size']}" + ("" if row["precision"] == "float" else "_fixed")
        out[f"cpu_ratio_vs_learningdense_{name}"] = row["update_ratio"]
        out[f"cpu_ratio_vs_learningdense_{name}_projection"] = row["projection_ratio"]
        out[f"cpu_ms_lava_{name}"] = row["update_ours_ms"]
        out[f"cpu_ms_learningdense_{name}"] = row["update_stock_ms"]
    out["hvp_worst_error"] = hvp_worst_error()
    return out, updates, projections


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1000 x 1000 only, under 15 s")
    torch.set_num_threads(1)
    found, updates, projections = figures(parser.parse_args().quick)
    for title, rows in (("Update and write", updates), ("In Lava", projections)):
        print(f"\n{title}, CPU ms a step")
        print(table([list(r.values()) for r in rows], list(rows[0])))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

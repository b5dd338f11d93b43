"""Does the engine do on a device what it does on the CPU, and how long does a step take there?

python benchmarks/_grasp_smoke.py --device cuda
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _grasp_pick import pick
from _grasp_policies import Run
from _grasp_runs import Engine
from _grasp_study import COVERAGE, DENSE, POLICIES, RATES, RECORDED, SEEDS, SHARES, first_pass
from _grasp_tasks import RULES

CHANCE = ("random_k", "random_steps")  # draw random numbers, others on every device
INPUTS, STEPS, SAMPLES = 64, 15, 12


def smoke(device: str, say: Callable[[str], Any]) -> None:
    """Choices and weights as on the CPU, with and without a graph; ms a step of a first pass.

    Raises:
        AssertionError: graph and eager steps differ, or more than a tenth of the runs from the CPU.
    """
    say(f"torch {torch.__version__} on {device}: {_name(device)}")
    say(f"choices: {_choices(device)} of 300 matrices as in plain torch on the CPU")
    for rule in RULES:
        runs = [Run(p, 0.05, lr, s) for p in (*POLICIES, DENSE, COVERAGE)
                for lr in RATES[rule][:2] for s in range(2) if p.name not in CHANCE]  # fmt: skip
        wanted = _learned(rule, runs, "cpu", False)
        found = {}
        if device != "cpu":
            found = {w: _learned(rule, runs, device, w == "graph") for w in ("eager", "graph")}
            assert _agreeing(*found.values()) == len(runs), f"{rule}: the graph is not eager"
        for name, weights in found.items():
            same = _agreeing(wanted, weights)
            say(f"{rule}: {name}: {same} of {len(runs)} runs as on the CPU")
            assert same >= 0.9 * len(runs), f"{rule}: {name}"
        say(f"{rule}: {_timed(rule, device)}")


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"


def _choices(device: str) -> int:
    generator = torch.Generator().manual_seed(0)
    a, q = (torch.rand(300, n, generator=generator, dtype=torch.float64) for n in (64, 168))
    a, q = (4 * a - 1).round(decimals=1), q.round(decimals=1)  # with ties
    k = torch.randint(0, 64 * 168, (300,), generator=generator)
    price = torch.where(torch.arange(300) % 5 == 0, 0.3, torch.nan).to(torch.float64)
    one = pick(a, q, k, price, "plain")[:2]
    other = pick(a.to(device), q.to(device), k.to(device), price.to(device))[:2]
    same = [(x == y.cpu()).all(1) for x, y in zip(one, other, strict=True)]
    number = int((same[0] & same[1]).sum())
    assert number == 300, f"{number} of 300 matrices"
    return number


def _agreeing(one: Any, other: Any) -> int:
    """How many runs have the same weights; a tie that rounding breaks may set one apart."""
    far = [(w - other[n]).abs().amax((1, 2)) for n, w in one.items()]
    return int((torch.stack(far).amax(0) < 1e-9).sum())


def _learned(rule: str, runs: list[Run], device: str, graph: bool) -> Any:
    engine = _engine(rule, runs, device, SAMPLES)
    if graph:
        engine.learn(SAMPLES)
    else:
        for _ in range(SAMPLES):
            engine.sample()
    weights = {n: w.cpu() for n, w in engine.weights.items()}
    assert all(torch.isfinite(w).all() for w in weights.values())
    return weights


def _engine(rule: str, runs: list[Run], device: str, samples: int) -> Engine:
    rng, seeds = np.random.default_rng(0), len({r.seed for r in runs})
    x = (rng.random((seeds, samples, STEPS, INPUTS)) < 0.2).astype(np.uint8)
    engine = Engine(runs, lambda seed: RULES[rule](INPUTS, seed), first=3, device=device,
                    recorded=(RECORDED,))  # fmt: skip
    engine.load(x, rng.integers(0, 10, (seeds, samples)), 10)
    return engine


def _timed(rule: str, device: str) -> str:
    runs = first_pass(RATES[rule], SEEDS, SHARES)
    if device == "cpu":
        runs = runs[:200]
    engine = _engine(rule, runs, device, 30)
    engine.learn(2)
    _wait(device)
    began = time.perf_counter()
    engine.learn(20 if device != "cpu" else 2)
    _wait(device)
    ms = 1e3 * (time.perf_counter() - began) / STEPS / (20 if device != "cpu" else 2)
    return f"{len(runs)} runs, {ms:.2f} ms a step"


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    smoke(parser.parse_args().device, print)


if __name__ == "__main__":
    main()

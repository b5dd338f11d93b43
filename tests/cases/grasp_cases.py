"""A small network under GRASP, and what it lets through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from grasp_plugin import build
from grasp_plugin.learning import decolle_for, etlp_for, ottt_for, scheduled
from grasp_plugin.learning.budget import (
    Coverage,
    Fixed,
    Marginal,
    Sharpness,
)
from grasp_plugin.learning.chosen import Chosen
from grasp_plugin.learning.deltas import Delta, Outer
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.rule import Plan, Transform
from grasp_plugin.learning.spec import Learning
from grasp_plugin.learning.states import State
from grasp_plugin.network.network import Network
from grasp_plugin.network.presets import etlp_network

RULES: dict[str, Callable[..., Learning]] = {
    "decolle": decolle_for, "etlp": etlp_for, "ottt": ottt_for,
}  # fmt: skip
BUDGETS = [Fixed(0.1), Marginal(0.1), Coverage(0.5), Sharpness(0.1), Sharpness(0.1, "fewer")]


def network() -> Network:
    return etlp_network(12, 10, 3, theta=0.0, n_ref=0)


def with_grasp(learning: Learning, grasp: GRASP) -> Learning:
    return scheduled(learning, grasp)


def spikes(steps: int = 60, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((steps, 12)) < 0.4) * 2.0


def learned(learning: Learning, backend: str = "fused", steps: int = 60) -> dict[str, np.ndarray]:
    with build(network(), backend, plans=learning) as session:
        session.learn(spikes(steps), 1)
        return session.weights()


class Spy(Transform):
    """Keeps the deltas that pass."""

    def __init__(self) -> None:
        self.seen: list[Chosen] = []

    def init(self, weight: Any, *, batch: int = 1) -> State:
        return {}

    def update(self, delta: Delta, state: State, weight: Any, **extras: Any) -> tuple[Delta, State]:
        self.seen.append(delta["weight"])
        return delta, state


def spied(learning: Learning, grasp: GRASP, steps: int = 60) -> tuple[list[Chosen], State]:
    """What GRASP lets through on the input weights, and its state at the end."""
    spy, name = Spy(), "input->hidden"
    plans = {n: Plan(r, (grasp, spy) if n == name else (grasp,)) for n, r in learning.plans.items()}
    with build(network(), "fused", plans=replace(learning, plans=plans)) as session:
        session.learn(spikes(steps), 1)
        state = session._steps._state["plans"][name]["transforms"]["0"]  # type: ignore[attr-defined]
    return spy.seen, state


def outer(d: np.ndarray, p: np.ndarray, eta: float = 0.1) -> Delta:
    return {"weight": Outer(d[None], p[None], -eta)}

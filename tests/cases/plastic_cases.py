"""Small networks, plans and an independent NumPy loop for the learning tests (loaded by path)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from grasp_plugin.learning import Learning, Plan, Rule, Transform
from grasp_plugin.learning.online import OnlineLearner
from grasp_plugin.learning.spec import Seen
from grasp_plugin.network import weights as W
from grasp_plugin.network.network import Bias, Network, Population, Projection
from grasp_plugin.network.weights import Conv
from grasp_plugin.neurons import lif

IN, HIDDEN, OUT = 9, 8, 4
Rng = np.random.Generator
Log = dict[str, list[Any]]
Sequence = tuple[Any, Any, Any]  # spikes (time, N) or by input, target, mask


@dataclass(frozen=True, eq=False)
class Recorder(Transform):
    """Passes deltas on and keeps their values."""

    into: list[Any] = field(repr=False)

    def init(self, weight: Any, *, batch: int = 1) -> dict[str, Any]:
        return {}

    def update(self, delta: Any, state: Any, weight: Any, **extras: Any) -> Any:
        self.into.append(np.array(delta["weight"].dense()))
        return delta, state


def recorded(learning: Learning) -> tuple[Learning, Log]:
    """The same plans with a recorder of the rule's deltas, step by step, behind each rule."""
    log: Log = {name: [] for name in learning.plans}
    plans: dict[str, Rule] = {}
    for name, plan in learning.plans.items():
        first = (Recorder(log[name]),)
        if isinstance(plan, Plan):
            plans[name] = Plan(plan.rule, (*first, *plan.transforms))
        else:
            plans[name] = Plan(plan, first)
    return replace(learning, plans=plans), log


def behind(learning: Learning, *transforms: Transform) -> Learning:
    """The same learning with transforms added to every plan, before what is there."""
    plans: dict[str, Rule] = {}
    for name, plan in learning.plans.items():
        rule, old = (plan.rule, plan.transforms) if isinstance(plan, Plan) else (plan, ())
        plans[name] = Plan(rule, (*transforms, *old))
    return replace(learning, plans=plans)


def population(name: str, shape: int | tuple[int, ...], **changes: Any) -> Population:
    """LIF with du 1, dv 0.2, v_th 0.9 and a delayed subtraction; keywords change it."""
    shape = (shape,) if isinstance(shape, int) else shape
    size = int(np.prod(shape))
    given = {"du": 1.0, "dv": 0.2, "v_th": 0.9, "drive": 0.0, "v_init": 0.0, "gain": 1.0,
             "v_offset": 0.0}  # fmt: skip
    for key in ("rho", "theta"):
        if key in changes:
            given[key] = 0.0
    given |= {k: changes.pop(k) for k in list(changes) if k in given}
    arrays = {k: np.broadcast_to(np.asarray(v, float), (size,)).copy() for k, v in given.items()}
    if "n_ref" in changes:
        arrays["n_ref"] = np.full(size, changes.pop("n_ref"), np.int64)
    options = {"node": "LIF", "reset": "subtract-delayed"} | changes
    return Population(name, shape, options["node"], options["reset"], **arrays)


def dense(rng: Rng, name: str, sizes: tuple[int, int], delay: int = 0) -> Projection:
    """`a->b` with random weights (N_o, N_i)."""
    source, target = name.split("->")
    weight = rng.normal(0.18, 0.5, sizes)
    return Projection(name, source, target, weight, delay)


def network(
    populations: list[Population], projections: list[Projection], biases: list[Bias] | None = None,
    inputs: Mapping[str, tuple[int, ...]] | None = None, output: str | None = None,
) -> Network:  # fmt: skip
    outputs = {"out": output or populations[-1].name}
    return Network(
        tuple(populations), tuple(projections), tuple(biases or ()),
        inputs or {"in": (IN,)}, outputs, 1e-3,
    )  # fmt: skip


def two_layers(
    rng: Rng, *, readout: Mapping[str, Any] | None = None, delay: int = 0, **neurons: Any
) -> Network:
    """in -> h -> o with biases, one of them from step 5 on."""
    top = neurons if readout is None else dict(readout)
    return network(
        [population("h", HIDDEN, **neurons), population("o", OUT, **top)],
        [dense(rng, "in->h", (HIDDEN, IN)), dense(rng, "h->o", (OUT, HIDDEN), delay)],
        [Bias("bh", "h", rng.normal(size=HIDDEN) / 9, 5), Bias("bo", "o", rng.normal(size=4) / 9)],
    )  # fmt: skip


def looped(rng: Rng, **neurons: Any) -> Network:
    """in -> h with h -> h a step later and again three steps later; h -> o; o -> h after two."""
    return network(
        [population("h", HIDDEN, **neurons), population("o", OUT, **neurons)],
        [
            dense(rng, "in->h", (HIDDEN, IN)),
            dense(rng, "h->h", (HIDDEN, HIDDEN), 1),
            replace(dense(rng, "h->h", (HIDDEN, HIDDEN), 3), name="h->h.3"),
            dense(rng, "h->o", (OUT, HIDDEN)),
            dense(rng, "o->h", (HIDDEN, OUT), 2),
        ],
    )


def deep(rng: Rng, *, readout: Mapping[str, Any] | None = None, **neurons: Any) -> Network:
    """in -> a -> b -> o, with a -> o beside b."""
    top = neurons if readout is None else dict(readout)
    return network(
        [population("a", HIDDEN, **neurons), population("b", 6, **neurons),
         population("o", OUT, **top)],
        [dense(rng, "in->a", (HIDDEN, IN)), dense(rng, "a->b", (6, HIDDEN)),
         dense(rng, "b->o", (OUT, 6)), dense(rng, "a->o", (OUT, HIDDEN))],
        [Bias("ba", "a", rng.normal(size=HIDDEN) / 9, 2), Bias("bb", "b", rng.normal(size=6) / 9)],
    )  # fmt: skip


def convolution(rng: Rng, **neurons: Any) -> Network:
    """Two convolutions with stride, padding and dilation of their own a side, then dense."""
    first = Conv(rng.normal(0.25, 0.5, (3, 2, 3, 2)), (2, 7, 6), (2, 1), ((1, 0), (0, 2)), (1, 2))
    middle = first.out_shape
    second = Conv(rng.normal(0.25, 0.5, (2, 3, 2, 3)), middle, (1, 2), ((0, 1), (1, 1)), (1, 1))
    last = second.out_shape
    size = int(np.prod(last))
    bias = np.repeat(rng.normal(size=3) / 9, int(np.prod(middle[1:])))
    return network(
        [population("h", middle, **neurons), population("k", last, **neurons),
         population("o", OUT, **neurons)],
        [Projection("in->h", "in", "h", first), Projection("h->k", "h", "k", second),
         dense(rng, "k->o", (OUT, size))],
        [Bias("bh", "h", bias, 3)],
        {"in": (2, 7, 6)},
    )  # fmt: skip


def two_inputs(rng: Rng, **neurons: Any) -> Network:
    """x -> h, y -> h (two steps late) and y -> o; h -> o."""
    return network(
        [population("h", HIDDEN, **neurons), population("o", OUT, **neurons)],
        [dense(rng, "x->h", (HIDDEN, 5)), dense(rng, "y->h", (HIDDEN, 4), 2),
         dense(rng, "h->o", (OUT, HIDDEN)), dense(rng, "y->o", (OUT, 4))],
        inputs={"x": (5,), "y": (2, 2)},
    )  # fmt: skip


def sequences(net: Network, rng: Rng, classes: int, lengths: tuple[int, ...]) -> list[Sequence]:
    """Random spikes; a label, or a target for each step with a third of the steps masked."""
    found: list[Sequence] = []
    for i, steps in enumerate(lengths):
        spikes = {
            name: (rng.random((steps, *shape)) < 0.3).astype(float)
            for name, shape in net.inputs.items()
        }
        if i % 2 == 0:
            found.append((spikes, int(rng.integers(classes)), None))
        else:
            target = rng.normal(0.3, 0.5, (steps, classes))
            found.append((spikes, target, (rng.random(steps) < 0.67).astype(float)))
    return found


def learned(session: Any, given: list[Sequence]) -> list[dict[str, Any]]:
    """The weights after each sequence."""
    kept = []
    with session:
        for spikes, target, mask in given:
            session.learn(spikes, target, mask=mask)
            kept.append(session.weights())
    return kept


def numpy_loop(net: Network, learning: Learning, given: list[Sequence]) -> list[dict[str, Any]]:
    """The plain loop: `lif.step`, `OnlineLearner.step`, weight + delta. Matrices for everything."""
    matrices = {k.name: W.to_dense(k.weight) for k in net.projections}
    learner = OnlineLearner(net, learning, lambda name, _, error: error @ matrices[name])
    weights = {k.name: W.values(k.weight).copy() for k in net.projections}
    weights |= {b.name: b.value.copy() for b in net.biases}
    state, kept = learner.init({n: weights[n] for n in learning.plans}, 1), []
    for spikes, target, mask in given:
        steps = len(next(iter(spikes.values())))
        goal = np.asarray(target)
        rows = np.eye(learning.classes)[np.full(steps, goal)] if goal.ndim == 0 else goal
        state = learner.rest(state, {n: weights[n] for n in learning.plans}, 1)
        neurons, past = _at_rest(net), []
        for t in range(steps):
            seen, neurons = _step(net, learning, weights, t, spikes, neurons, past)
            on = np.ones((1, 1)) if mask is None else np.full((1, 1), mask[t])
            late = {**weights}
            for name, held in learner.pending(state).items():
                late[name] = weights[name] + sum(
                    d["weight"].dense().reshape(weights[name].shape) for d in held
                )
            matrices |= {
                k.name: W.to_dense(W.with_values(k.weight, late[k.name])) for k in net.projections
            }
            deltas, state = learner.step(seen, rows[t][None], on, state, weights)
            _add(weights, deltas)
        for name, held in learner.pending(state).items():
            for delta in held:
                _add(weights, {name: delta})
        kept.append({n: weights[n].copy() for n in learning.plans})
    return kept


def _add(weights: dict[str, Any], deltas: Mapping[str, Any]) -> None:
    for name, delta in deltas.items():
        weights[name] = weights[name] + delta["weight"].dense().reshape(weights[name].shape)


def _at_rest(net: Network) -> dict[str, Any]:
    zero = {p.name: np.zeros((1, p.size)) for p in net.populations}
    keys = ("u", "s", "adapt", "wait")
    return {n: dict.fromkeys(keys, z) | {"v": net[n].v_init[None]} for n, z in zero.items()}


def _step(
    net: Network, learning: Learning, weights: Mapping[str, Any], t: int, spikes: Any,
    neurons: dict[str, Any], past: list[dict[str, Any]],
) -> tuple[Seen, dict[str, Any]]:  # fmt: skip
    """One step of the network; `past` grows by this step's outputs."""
    now = {name: x[t].reshape(1, -1) for name, x in spikes.items()}
    past.append(now)
    pre: dict[str, Any] = {}
    margin, active, after = {}, {}, {}
    for p in net.populations:
        a = np.zeros((1, p.size))
        for k in net.into(p.name):
            seen = past[t - k.min_delay][k.source] if t >= k.min_delay else None
            pre[k.name] = np.zeros((1, k.weight.shape[1])) if seen is None else seen
            a = a + W.apply(W.with_values(k.weight, weights[k.name]), pre[k.name])
        for b in net.biases:
            if b.target == p.name:
                pre[b.name] = np.full((1, 1), float(t >= b.onset_steps))
                a = a + weights[b.name] * pre[b.name]
        more = {"rho": p.rho, "theta": p.theta, "n_ref": p.n_ref} if p.adaptive else {}
        if np.any(p.n_ref):
            active[p.name] = (neurons[p.name]["wait"] <= 0).astype(float)
        if p.reset == "refractory1":
            active[p.name] = 1 - neurons[p.name]["s"]
        now[p.name], after[p.name], margin[p.name] = lif.step(
            a, neurons[p.name], du=p.du, dv=p.dv, v_th=p.v_th, drive=p.drive, reset=p.reset, **more
        )
    output = {p.name: now[p.name] for p in net.populations}
    return Seen({n: pre[n] for n in learning.plans}, output, margin, active), after


def gap(got: Any, want: Any) -> float:
    """Largest difference of two lists of weights by plan."""
    return max(
        float(np.abs(np.asarray(a[n], float) - np.asarray(b[n], float)).max())
        for a, b in zip(got, want, strict=True)
        for n in b
    )


def moved(net: Network, weights: Mapping[str, Any]) -> dict[str, float]:
    """By plan, the largest change from the network's own weights."""
    first: Any = net.weights() | {b.name: b.value for b in net.biases}
    return {n: float(np.abs(w - first[n]).max()) for n, w in weights.items()}


Case = tuple[Callable[[Rng], Network], Callable[[Network], Learning]]

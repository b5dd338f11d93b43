"""Learning in integers = a reference model written from the equations, bit for bit, Lava and fused.

The reference is plain Python and NumPy int64: neurons, traces, errors, rounding and writes, from
the docstrings of `learning.fixed_plan`, `neurons.lif_fixed` and `learning.counter_random`. Signals
(readout, label, loss) are floats and come from formulas written here as well.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plastic_cases as cases
import pytest

from grasp_plugin import build, quantise
from grasp_plugin.learning import (
    Factors,
    Late,
    Plan,
    ThreeFactor,
    decolle_for,
    etlp_for,
    ottt_for,
    sltt_for,
)
from grasp_plugin.learning.fixed import FixedSynapses
from grasp_plugin.learning.fixed_plan import FixedPlan, fixed_plan, fixed_plans
from grasp_plugin.learning.traces import (
    Average,
    CurrentExponential,
    DoubleExponential,
    Exponential,
    Instant,
)
from grasp_plugin.network import weights as W
from grasp_plugin.network.weights import Conv

log = logging.getLogger(__name__)
lava = pytest.param("lava", marks=pytest.mark.lava)
BACKENDS = ("fused", lava)
OUT = cases.OUT
WORD = 2**32


# The reference: random words


def mix(x: int) -> int:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * factor % WORD
    return x ^ (x >> 16)


def word(seed: int, step: int, stream: int, index: int) -> int:
    """The 32 random bits of a use (stream) of a step: 0 error, 1 and 2 traces, 3 weights."""
    return mix((mix(mix((4 * step + stream) % WORD) ^ seed % WORD) + index * 0x9E3779B9) % WORD)


def words(seed: int, step: int, stream: int, size: int) -> Any:
    return np.array([word(seed, step, stream, i) for i in range(size)], np.int64)


# The reference: synapses


@dataclass
class Plastic:
    """x, y, w of one projection, as in the docstring of `fixed_plan`; draws count steps from 1."""

    plan: FixedPlan
    w: Any
    inputs: int
    shares: Any = None  # (N_o, N_i) of 0 for no synapse, else 1 + the index of its weight
    draws: int = 0

    def rest(self) -> None:
        self.x = [np.zeros(self.inputs, np.int64) for _ in self.plan.decays]
        self.step, self.queue = 0, []
        self.counts = getattr(self, "counts", {"traces": 0, "errors": 0, "weights": 0})

    def learn(self, pre: Any, d: Any) -> None:
        p = self.plan
        self.step, self.draws = self.step + 1, self.draws + 1
        for i, decay in enumerate(p.decays):
            random = words(p.seed, self.draws, 1 + i, pre.size) % 4096
            x = (self.x[i] * decay + random) // 4096 + p.impulses[i] * pre
            self.counts["traces"] += int((x > 127).sum())
            self.x[i] = np.minimum(x, 127)
        x = p.impulses[0] * pre if not p.decays else self.x[0] - (self.x[1] if self.x[1:] else 0)
        y = np.zeros(d.size, np.int64)
        if self.step > p.burn_in:
            y = np.floor(
                -p.y_scale * d + (words(p.seed, self.draws, 0, d.size) >> 8) / 2**24
            ).astype(int)
            self.counts["errors"] += int(((y < -128) | (y > 127)).sum())
            y = np.clip(y, -128, 127)
        self.queue.append((y, x, words(p.seed, self.draws, 3, self.w.size)))
        if len(self.queue) > p.late:
            self.w = self.written(self.w, *self.queue.pop(0), self.counts)

    def written(self, w: Any, y: Any, x: Any, random: Any, counts: Any = None) -> Any:
        bits = self.plan.shift + 1
        product = np.outer(y, x)
        if self.shares is not None:
            sums = np.bincount(self.shares.ravel(), product.ravel(), 1 + w.size)[1:]
            product = sums.reshape(w.shape).astype(np.int64)
        new = w + 2 * ((product + random.reshape(w.shape) % 2**bits) // 2**bits)
        if counts is not None:
            counts["weights"] += int(((new < -256) | (new > 254)).sum())
        return np.clip(new, -256, 254)

    def fresh(self) -> Any:
        w = self.w
        for held in self.queue if self.plan.late else ():
            w = self.written(w, *held)
        return w

    def flush(self) -> None:
        while self.queue:
            self.w = self.written(self.w, *self.queue.pop(0), self.counts)


def toward_zero(x: Any, decay: Any) -> Any:
    product = x * (4096 - decay)
    return np.sign(product) * (abs(product) // 4096)


class Reference:
    """A whole integer network of LIF, ALIF or LI populations, subtract-delayed, that learns."""

    def __init__(self, net: Any, learning: Any, signal: Callable[..., Any], seed: int = 0) -> None:
        self.net, self.learning, self.signal = net, learning, signal
        plans = fixed_plans(net, learning, seed=seed)
        self.w = {k.name: np.array(W.values(k.weight), np.int64) for k in net.projections}
        self.w |= {b.name: np.array(b.value, np.int64)[:, None] for b in net.biases}
        self.shares = {
            k.name: W.to_dense(W.with_values(k.weight, self.numbered(k.weight.kernel))).astype(int)
            for k in net.projections if isinstance(k.weight, Conv)
        }  # fmt: skip
        self.plastic = {
            n: Plastic(p, self.w[n], self.matrix(n).shape[1], self.shares.get(n))
            for n, p in plans.items()
        }

    @staticmethod
    def numbered(kernel: Any) -> Any:
        return np.arange(1, kernel.size + 1).reshape(kernel.shape)

    def matrix(self, name: str, w: Any = None) -> Any:
        """The weights over neurons, (N_o, N_i)."""
        w = self.w[name] if w is None else w
        if name not in self.shares:
            return w
        return np.append(0, w.ravel())[self.shares[name]]

    def learn(self, spikes: Any, target: Any, on: Any) -> None:
        net = self.net
        for p in self.plastic.values():
            p.rest()
        zero = {p.name: np.zeros(p.size, np.int64) for p in net.populations}
        u, v, s, a, wait = (dict(zero) for _ in range(5))
        past: list[dict[str, Any]] = []
        for t, x in enumerate(spikes.astype(np.int64).reshape(len(spikes), -1)):
            now, pre, margin, active = {"in": x}, {}, {}, {}
            past.append(now)
            for p in net.populations:
                n, total = p.name, np.zeros(p.size, np.int64)
                for k in net.into(n):
                    late = t - k.min_delay
                    size = k.weight.shape[1]
                    pre[k.name] = past[late][k.source] if late >= 0 else np.zeros(size, np.int64)
                    total += self.shifted(self.matrix(k.name) @ pre[k.name], k.weight_exp)
                for b in net.biases:
                    if b.target == n:
                        pre[b.name] = np.array([int(t >= b.onset_steps)])
                        total += self.shifted(self.w[b.name] @ pre[b.name], b.weight_exp)
                u[n] = toward_zero(u[n], p.du + 1) + 64 * total
                m = toward_zero(v[n], p.dv) + u[n] + p.drive * 2**p.drive_exp
                a[n] = toward_zero(a[n], p.rho) + s[n] * p.theta
                active[n] = (wait[n] <= 0).astype(float)
                if p.spiking:
                    m = m - s[n] * p.v_th * 64
                    far = m - p.v_th * 64 - (a[n] if p.adaptive else 0)
                    s[n] = ((far > 0) & (wait[n] <= 0)).astype(np.int64)
                    wait[n] = np.where(s[n] > 0, p.n_ref, np.maximum(wait[n] - 1, 0))
                    margin[n] = far / (64.0 * p.scale)
                    now[n] = s[n]
                else:
                    now[n] = margin[n] = m / (64.0 * p.scale)
                v[n] = m
            d = self.signal(self, t, now, margin, active, target[t], on[t])
            for name, plastic in self.plastic.items():
                into = {k.name: k.target for k in net.projections}
                into |= {b.name: b.target for b in net.biases}
                plastic.learn(pre[name], d[into[name]])
                self.w[name] = plastic.w
        for name, plastic in self.plastic.items():
            plastic.flush()
            self.w[name] = plastic.w

    @staticmethod
    def shifted(total: Any, exponent: int) -> Any:
        return np.array([x * 2**exponent if exponent > 0 else x // 2**-exponent for x in total])

    def below(self, name: str, d: Any) -> Any:
        """W^T d in float units, by the weights with their late writes."""
        k = next(k for k in self.net.projections if k.name == name)
        unit = 2.0**k.weight_exp / self.net[k.target].scale
        w = self.plastic[name].fresh() if name in self.plastic else self.w[name]
        return np.asarray(d[None] @ self.matrix(name, w))[0] * unit

    def weights(self) -> dict[str, Any]:
        shapes = self.net.weights() | {b.name: b.value for b in self.net.biases}
        return {n: p.w.reshape(shapes[n].shape) for n, p in self.plastic.items()}


def fast_sigmoid(x: Any) -> Any:
    return 1 / (10 * abs(x) + 1) ** 2


def sigmoid(x: Any) -> Any:
    sg = (1 + np.tanh(2 * x)) / 2
    return 4 * sg * (1 - sg)


def decolle_error(
    ref: Reference, t: int, out: Any, margin: Any, active: Any, target: Any, on: Any
) -> dict[str, Any]:
    d = {}
    for i, p in enumerate(p for p in ref.net.populations if p.spiking):
        rng, classes = np.random.default_rng(i), target.size
        bound = 0.5 / math.sqrt(p.size)
        g = rng.uniform(-bound, bound, (classes, p.size))
        y = (out[p.name][None].astype(float) @ g.T)[0] + rng.uniform(-bound, bound, classes)
        e = np.clip((y - target) * on, -1, 1) * on / classes
        d[p.name] = (e[None] @ g)[0] * fast_sigmoid(margin[p.name]) * active[p.name]
    return d


def etlp_error(
    ref: Reference, t: int, out: Any, margin: Any, active: Any, target: Any, on: Any
) -> dict[str, Any]:
    ref.events = getattr(ref, "events", -1) + 1  # type: ignore[attr-defined]
    event = float((word_of_step(0, ref.events) >> 8) / 2**24 < 0.4)  # type: ignore[attr-defined]
    d = {}
    for i, p in enumerate(ref.net.populations):
        psi = 0.3 / 0.9**2 * np.maximum(0, 1 - abs(margin[p.name]) / 0.9) * active[p.name]
        if p.name == ref.learning.readout:
            third = (out[p.name] - target) * event * on
        else:
            b = np.random.default_rng(1 + i).normal(size=(p.size, target.size))
            third = -(target[None] @ (b / math.sqrt(p.size)).T)[0] * event * on
        d[p.name] = third * psi
    return d


def word_of_step(seed: int, step: int) -> int:
    """`counter_random.uniform` of index 0, whose step is the counter itself."""
    return mix(mix(mix(step % WORD) ^ seed % WORD))


def ottt_error(
    ref: Reference, t: int, out: Any, margin: Any, active: Any, target: Any, on: Any
) -> dict[str, Any]:
    top = ref.learning.readout
    e = np.exp(out[top] - out[top].max())
    third = {top: on * (e / e.sum() * target.sum() - target)}
    d = {}
    for p in reversed(ref.net.populations):
        slope = sigmoid(margin[p.name]) if p.spiking else 1.0
        d[p.name] = third[p.name] * slope
        for k in ref.net.into(p.name):
            if k.source != "in":
                third[k.source] = third.get(k.source, 0.0) + ref.below(k.name, d[p.name])
    return d


LI = {"node": "LI", "reset": None}
ALIF = {"theta": 0.4, "rho": 0.85, "n_ref": 3}
DECAYS = {"du": 0.5, "v_th": 1.4}
CASES: dict[str, tuple[Any, Any, Any]] = {
    "decolle": (cases.two_layers, lambda n: decolle_for(n, 3, 0.4), decolle_error),
    "decolle, loops": (cases.looped, lambda n: decolle_for(n, 3, 0.4), decolle_error),
    "decolle, current": (
        lambda rng: cases.looped(rng, **DECAYS), lambda n: decolle_for(n, 3, 0.2), decolle_error,
    ),
    "decolle, burn-in": (
        cases.two_layers, lambda n: decolle_for(n, 3, 0.4, burn_in=40), decolle_error,
    ),
    "decolle, adaptive": (
        lambda rng: cases.looped(rng, **ALIF), lambda n: decolle_for(n, 3, 0.4), decolle_error,
    ),
    "etlp": (
        cases.looped, lambda n: etlp_for(n, OUT, 0.05, probability=0.4), etlp_error,
    ),
    "etlp, refractory": (
        lambda rng: cases.looped(rng, n_ref=2),
        lambda n: etlp_for(n, OUT, 0.3, probability=0.4), etlp_error,
    ),
    "ottt, two layers late": (
        cases.deep, lambda n: ottt_for(n, OUT, 0.02, pipelined=True), ottt_error,
    ),
    "ottt, readout without spikes": (
        lambda rng: cases.deep(rng, readout=LI),
        lambda n: ottt_for(n, OUT, 0.02, pipelined=True), ottt_error,
    ),
    "ottt, frozen middle": (
        cases.deep, lambda n: ottt_for(n, OUT, 0.02, pipelined=True, frozen=["a->b"]), ottt_error,
    ),
    "ottt, clipped": (
        cases.deep, lambda n: ottt_for(n, OUT, 3.5, pipelined=True), ottt_error,
    ),
    "decolle, convolutions": (
        cases.convolution, lambda n: decolle_for(n, 3, 0.2, frozen=["bh"]), decolle_error,
    ),
    "ottt, convolutions": (
        cases.convolution, lambda n: ottt_for(n, OUT, 0.02, pipelined=True, frozen=["bh"]),
        ottt_error,
    ),
    "ottt, frozen convolution": (
        cases.convolution,
        lambda n: ottt_for(n, OUT, 0.02, pipelined=True, frozen=["bh", "h->k"]), ottt_error,
    ),
    "sltt": (cases.deep, lambda n: sltt_for(n, OUT, 0.05, pipelined=True), ottt_error),
}  # fmt: skip


def integer_case(name: str) -> tuple[Any, Any, list[Any]]:
    """(integer network, learning, sequences of 200 and 37 steps)."""
    make, learn, _ = CASES[name]
    net = make(np.random.default_rng(3))
    learning = learn(net)
    integers = quantise(net, plastic=list(learning.plans))
    rng, given = np.random.default_rng(5), []
    for steps in (200, 37):
        spikes = (rng.random((steps, *net.inputs["in"])) < 0.3).astype(float)
        target = rng.random((steps, learning.classes))
        given.append((spikes, target, (rng.random(steps) < 0.8).astype(float)))
    return integers, learning, given


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    return {}


def reference(name: str, made: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """(weights after each sequence, counts) of the reference model."""
    if name not in made:
        integers, learning, given = integer_case(name)
        model, kept = Reference(integers, learning, CASES[name][2], seed=7), []
        for spikes, target, on in given:
            model.learn(spikes, target, on)
            kept.append({n: w.copy() for n, w in model.weights().items()})
        made[name] = kept, {n: p.counts for n, p in model.plastic.items()}
    return made[name]  # type: ignore[no-any-return]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_integers_are_the_reference_models(
    name: str, backend: str, references: dict[str, Any]
) -> None:
    integers, learning, given = integer_case(name)
    want, counts = reference(name, references)
    with build(integers, backend, plans=learning, seed=7) as session:
        for sequence, weights in zip(given, want, strict=True):
            session.learn(sequence[0], sequence[1], mask=sequence[2])
            assert cases.gap([session.weights()], [weights]) == 0
        assert session.clipped() == counts
    moved = cases.moved(integers, want[-1])
    log.info("%s on %s: moved %s, clipped %s", name, backend, moved, counts)
    assert min(moved.values()) >= 2
    assert all(np.all(w % 2 == 0) for w in want[-1].values())


def test_clipping_is_counted(references: dict[str, Any]) -> None:
    """A learning rate near the largest drives weights to both limits, and says so."""
    want, counts = reference("ottt, clipped", references)
    found = np.concatenate([w.ravel() for w in want[-1].values()])
    log.info("weights at a limit: %d; clipped %s", np.sum((found == 254) | (found == -256)), counts)
    assert sum(c["weights"] for c in counts.values()) > 5
    assert found.max() == 254 or found.min() == -256
    for name, options, what in (
        ("ottt, clipped", {"error_max": 0.05}, "errors"),
        ("decolle", {"rate_max": 0.0}, "traces"),
    ):
        integers, learning, given = integer_case(name)
        with build(integers, "fused", plans=learning, **options) as session:
            session.learn(*given[0][:2])
            assert sum(c[what] for c in session.clipped().values()) > 5


def test_another_seed_rounds_otherwise() -> None:
    integers, learning, given = integer_case("decolle")
    runs = []
    for seed in (0, 0, 1):
        with build(integers, "fused", plans=learning, seed=seed) as session:
            session.learn(*given[0][:2])
            runs.append(session.weights())
    assert cases.gap(runs[:1], runs[1:2]) == 0
    assert cases.gap(runs[:1], runs[2:]) > 0


# Rounding: unbiased, independent, and the scale


UNIT = 1 / 64  # float per weight unit


def drawn(plan: FixedPlan, seed: int, pre: Any, error: Any, flush: bool = True) -> Any:
    """The weights (N_o, N_i) after all steps, from 0, rounded with a seed."""
    shape = error.shape[1], pre.shape[1]
    s = FixedSynapses(replace(plan, seed=seed), np.zeros(shape, np.int16))
    for x, d in zip(pre, error, strict=True):
        s.step(Factors(x[None], signal=d[None]))
    if flush:
        s.flush()
    assert not any(s.clipped.values())
    return s.weights.astype(float)


def float_change(rule: Any, pre: Any, error: Any) -> Any:
    """What the float rule adds, in weight units."""
    w = np.zeros((error.shape[1], pre.shape[1]))
    state = rule.init(w)
    for x, d in zip(pre, error, strict=True):
        delta, state = rule.update(Factors(x[None], signal=d[None]), state, w)
        w = w + delta["weight"].dense()
    return w / UNIT


TRACES: dict[str, Any] = {
    "instant": Instant(),
    "exponential": Exponential(0.875),
    "average": Average(0.75),
    "double": DoubleExponential(0.875, 0.5),
    "double, slower inside": DoubleExponential(0.5, 0.875),
    "current": CurrentExponential(0.875, 0.4375),
    "current slower than membrane": CurrentExponential(0.4375, 0.875),
}


def bias_in_errors(rule: Any, plan: FixedPlan, seeds: int) -> tuple[float, float, float]:
    """(mean, rms over synapses of (mean over seeds - float) / standard error, largest |float|)."""
    rng = np.random.default_rng(2)
    pre = (rng.random((60, 6)) < 0.1).astype(float)
    error = rng.normal(size=(60, 5)) / 3
    want = float_change(rule, pre, error)
    got = np.stack([drawn(plan, seed, pre, error) for seed in range(seeds)])
    z = (got.mean(axis=0) - want) / (got.std(axis=0, ddof=1) / math.sqrt(seeds))
    return float(z.mean()), float(np.sqrt((z**2).mean())), float(abs(want).max())


@pytest.mark.parametrize("name", TRACES)
def test_the_mean_fixed_update_is_the_float_update(name: str) -> None:
    """The scale, stated once: w_fixed 2^e / S = w_float, on average over the rounding."""
    rule = ThreeFactor(TRACES[name], None, 0.1, name="w")
    plan = fixed_plan("w", rule, UNIT, error_max=1.5, rate_max=1.0)
    mean, rms, size = bias_in_errors(rule, plan, 120)
    log.info("%s: z mean %.2f, rms %.2f, change up to %.1f units", name, mean, rms, size)
    assert abs(mean) < 0.8
    assert 0.6 < rms < 1.5
    assert size > 1.0  # many roundings of less than one unit each
    wrong = replace(plan, y_scale=plan.y_scale * 0.5)
    assert bias_in_errors(rule, wrong, 120)[1] > 1.8  # and half of it is seen


@pytest.mark.parametrize(("k", "b"), [(0.98, 0.4), (0.9, 0.2), (0.4, 0.95), (0.0, 0.5)])
def test_a_pair_of_traces_is_off_by_half_a_unit_of_its_second_impulse(k: float, b: float) -> None:
    """Impulses are whole numbers, so the response of a current's trace is, in its first steps, not
    the float one: by as much as half a unit, which decays with the faster of the two."""
    rule = ThreeFactor(CurrentExponential(k, b), None, 0.02, name="w")
    plan = fixed_plan("w", rule, UNIT, error_max=1.5, rate_max=0.5)
    steps = np.arange(12)
    (slow, fast), (first, second) = np.array(plan.decays) / 4096, plan.impulses
    gain = plan.y_scale / 2**plan.shift * UNIT / 0.02
    got = gain * (first * slow**steps - second * fast**steps)
    want = np.array([sum(k**i * b ** (n - i) for i in range(n + 1)) for n in steps])
    log.info("k %.2f, b %.2f, impulses %s: first response %.3f", k, b, plan.impulses, got[0])
    assert np.all(abs(got - want) <= 0.51 * gain * fast**steps + 2e-3 * want)
    assert max(plan.impulses) <= 127


def test_late_writes_are_the_same_writes() -> None:
    rule = ThreeFactor(Exponential(0.875), None, 0.02, name="w")
    rng = np.random.default_rng(2)
    pre, error = (rng.random((40, 6)) < 0.2).astype(float), rng.normal(size=(40, 5)) / 3
    plain = fixed_plan("w", rule, UNIT, error_max=1.5)
    late = fixed_plan("w", Plan(rule, (Late(3),)), UNIT, error_max=1.5)
    assert np.array_equal(drawn(plain, 4, pre, error), drawn(late, 4, pre, error))
    cut = drawn(late, 4, pre, error, flush=False)
    assert not np.array_equal(cut, drawn(plain, 4, pre, error))
    assert np.array_equal(cut, drawn(plain, 4, pre[:-3], error[:-3]))


def test_rounding_errors_of_synapses_are_independent() -> None:
    """Same fraction everywhere: each synapse rounds up with its probability, on its own."""
    rule = ThreeFactor(Instant(), None, 1.0, name="w")
    plan = FixedPlan(rule, (), (1,), 1.0, 3)  # w += 2 SR(y / 16), y = -d
    seeds, fraction = 4000, 5 / 16
    ups = np.stack(
        [drawn(plan, seed, np.ones((1, 5)), np.full((1, 4), -5.0)) for seed in range(seeds)]
    ).reshape(seeds, -1)
    assert set(np.unique(ups)) == {0.0, 2.0}
    share, error = ups.mean() / 2, math.sqrt(fraction * (1 - fraction) / ups.size)
    correlation = np.corrcoef(ups.T) - np.eye(ups.shape[1])
    log.info("rounded up %.4f of %.4f; correlation up to %.3f", share, fraction,
             abs(correlation).max())  # fmt: skip
    assert abs(share - fraction) < 4 * error
    assert abs(correlation).max() < 4.5 / math.sqrt(seeds)
    steps = np.stack(
        [drawn(plan, 0, np.ones((n, 5)), np.full((n, 4), -5.0)) for n in range(1, 40)]
    ).reshape(39, -1)  # one seed, step by step
    serial = np.diff(steps, axis=0)
    both = np.mean(serial[1:] * serial[:-1]) / 4
    assert abs(both - fraction**2) < 5 * math.sqrt(fraction**2 / serial[1:].size)

"""Engine A: any graph, one event at a time, in float64. The reference that the engine is held to.

Neurons of `flow`, joined by synapses e = (m -> n, w, d) with recurrence and any delays:

    at t = 0:                  V = I = a = 0
    spike when V = theta + a:  V <- V_r, a <- a + beta, I unchanged
    arrival at t_m + d:        I_n <- I_n + w

`simulate` keeps (t, neuron, I-, a-) of each spike. `adjoint` runs once backwards over the events
with the sensitivities p_x = dL/dx(t). At an arrival of source spike j:

    dL/dw += p_I       S = w (p_I / tau_s - p_V / tau_m)       dL/dd += S       E_j += S

and at an own spike, with gdot = (I- + b - V-) / tau_m + a- / tau_a and V- = theta + a-:

    e    = dL/dt + E - p_V (I- + b - V_r) / tau_m + p_a beta / tau_a + c (V- - V_r)
    dL/dV_r += p_V     dL/dbeta += p_a     p_V <- -e / gdot     p_a <- p_a + e / gdot
    dL/dtheta += e / gdot

Times in ms, the rest in units of the threshold. Ties: an own spike precedes arrivals.
A spike time has a kink where an arrival meets it, and a tie to rounding takes one of its sides.

References: Wunderlich & Pehle, Scientific Reports 2021 (weights; p_V = -tau_m lambda_V).
Departures: delays, thresholds, adaptation, reset, bias and time constants are our derivation, held
    to finite differences in tests/unit/test_exact_oracle.py.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.exact.crossing import first_crossing_adaptive, peak_time
from grasp_plugin.learning.exact.flow import decays, voltage_integral
from grasp_plugin.network.weights import Array

SPIKE, PEAK, ARRIVAL = 0, 1, 2  # the order of events at one time
MAX_SPIKES = 100_000


def check_thresholds(theta: Array, v_reset: Array) -> None:
    """Membranes start at 0 and restart at v_reset: both must lie below theta.

    Raises:
        Invalid: one does not.
    """
    if not (np.asarray(theta) > 0).all():
        raise Invalid("theta", f"expected > 0, got {np.min(theta)}", "Raise it: V starts at 0")
    if not (np.asarray(v_reset) < np.asarray(theta)).all():
        raise Invalid("v_reset", "expected less than theta, got more", "Lower the reset")


@dataclass(frozen=True, eq=False)
class Graph:
    """A network. Sources are numbered 0..inputs-1 (inputs), then the neurons in their order.

    Args:
        inputs: number of inputs.
        pre, post: (E,), source and neuron of each synapse; weight [1], delay [ms] (E,).
        theta, beta, v_reset, bias: (N,); tau_mem_ms, tau_syn_ms, tau_adapt_ms: (N,).
    """

    inputs: int
    pre: Array
    post: Array
    weight: Array
    delay: Array
    theta: Array
    beta: Array
    v_reset: Array
    bias: Array
    tau_mem_ms: Array
    tau_syn_ms: Array
    tau_adapt_ms: Array

    def __post_init__(self) -> None:
        if (np.asarray(self.delay) < 0).any():
            raise Invalid("delay", f"expected >= 0, got {np.min(self.delay)}", "Clip the delays")
        check_thresholds(self.theta, self.v_reset)

    def fan_out(self) -> list[list[int]]:
        """The synapses of each source."""
        out: list[list[int]] = [[] for _ in range(self.inputs + len(self.theta))]
        for e, m in enumerate(self.pre):
            out[m].append(e)
        return out


class Spike(NamedTuple):
    """Time [ms], neuron, I and a just before the spike."""

    time: float
    neuron: int
    current: float
    adaptation: float


class Peak(NamedTuple):
    """The maximum of V: value, time [ms], the arrival (synapse, source event) at a kink or None."""

    value: float = 0.0
    time: float = 0.0
    kink: tuple[int, int] | None = None


@dataclass(eq=False)
class Record:
    """What a simulation leaves: spikes in order of time, V(T), int V dt and max V (N,) each."""

    spikes: list[Spike]
    v_end: Array
    integral: Array
    peaks: list[Peak]
    solves: int = 0
    arrivals: int = 0


@dataclass(eq=False)
class Gradients:
    """dL/d(parameter), each in its parameter's shape; input_times (events,)."""

    weight: Array
    delay: Array
    theta: Array
    beta: Array
    v_reset: Array
    bias: Array
    tau_mem_ms: Array
    tau_syn_ms: Array
    tau_adapt_ms: Array
    input_times: Array
    before_spike: list[float] = field(default_factory=list)  # p_V(t_k-) of each spike
    clamped: int = 0


@dataclass(eq=False)
class _Neuron:
    """The state of one neuron at `time`, and the constants of its flow."""

    tau_m: float
    tau_s: float
    tau_a: float
    bias: float
    time: float = 0.0
    v: float = 0.0
    i: float = 0.0
    a: float = 0.0
    version: int = 0
    integral: float = 0.0
    peak: Peak = field(default_factory=Peak)

    def slope(self) -> float:
        return (self.i + self.bias - self.v) / self.tau_m

    def advance(self, t: float) -> None:
        """The flow up to t, with int V dt and max V on the way."""
        u = t - self.time
        em, es, ka = decays(u, self.tau_m, self.tau_s)
        x = self.v - self.bias
        if self.i > x:
            top = peak_time(x, self.i, self.tau_m, self.tau_s)
            if top < u:
                self.offer(self.bias + self.i * math.exp(-top / self.tau_s), self.time + top)
        self.integral += voltage_integral(
            u, x, self.i, self.bias, self.tau_m, self.tau_s, em, es, ka
        )
        self.v = self.bias + x * em + self.i * ka
        self.i, self.a, self.time = self.i * es, self.a * math.exp(-u / self.tau_a), t

    def offer(self, value: float, t: float, kink: tuple[int, int] | None = None) -> None:
        if value > self.peak.value:
            self.peak = Peak(value, t, kink)


class _Simulation:
    def __init__(self, graph: Graph, t_end: float) -> None:
        self.graph, self.t_end = graph, t_end
        taus = zip(graph.tau_mem_ms, graph.tau_syn_ms, graph.tau_adapt_ms, graph.bias, strict=True)
        self.neurons = [_Neuron(float(m), float(s), float(a), float(b)) for m, s, a, b in taus]
        self.fan_out = graph.fan_out()
        self.queue: list[tuple[float, int, int, int]] = []  # time, kind, number, number
        self.spikes: list[Spike] = []
        self.arrivals = self.solves = 0

    def emit(self, source: int, event: int, t: float) -> None:
        for e in self.fan_out[source]:
            heapq.heappush(self.queue, (t + float(self.graph.delay[e]), ARRIVAL, e, event))

    def schedule(self, n: int) -> None:
        """Put the next spike of n in the queue, in place of the one that stood there."""
        s = self.neurons[n]
        s.version += 1
        d, vth = self.t_end - s.time, float(self.graph.theta[n]) - s.bias
        if not math.isfinite(vth):
            return
        u = first_crossing_adaptive(s.v - s.bias, s.i, s.a, vth, d, s.tau_m, s.tau_s, s.tau_a)
        self.solves += 1
        if u >= 0.0:
            t = max(s.time + u, float(np.nextafter(s.time, math.inf)))
            heapq.heappush(self.queue, (t, SPIKE, n, s.version))

    def arrive(self, t: float, e: int, event: int) -> None:
        n = int(self.graph.post[e])
        s = self.neurons[n]
        s.advance(t)
        s.offer(s.v, t, (e, event))
        s.i += float(self.graph.weight[e])
        self.arrivals += 1
        self.schedule(n)

    def spike(self, t: float, n: int, events: int) -> None:
        s = self.neurons[n]
        s.advance(t)
        self.spikes.append(Spike(t, n, s.i, s.a))
        if len(self.spikes) > MAX_SPIKES:
            raise Refused("oracle", f"expected <= {MAX_SPIKES} spikes, got more", "Lower the drive")
        s.v, s.a = float(self.graph.v_reset[n]), s.a + float(self.graph.beta[n])
        self.emit(self.graph.inputs + n, events + len(self.spikes) - 1, t)
        self.schedule(n)


def simulate(graph: Graph, times: Array, sources: Array, t_end: float) -> Record:
    """Run from rest to t_end [ms]. Input event k is a spike of input sources[k] at times[k].

    Raises:
        Invalid: an input time that is negative or NaN.
        Refused: more than MAX_SPIKES spikes.
    """
    if not (np.asarray(times) >= 0).all():
        raise Invalid("times", "expected input times >= 0, got a negative or NaN", "Shift them")
    run = _Simulation(graph, t_end)
    for event, (t, m) in enumerate(zip(times, sources, strict=True)):
        run.emit(int(m), event, float(t))
    for n, s in enumerate(run.neurons):
        if s.bias:
            run.schedule(n)
    while run.queue and run.queue[0][0] <= t_end:
        t, kind, first, second = heapq.heappop(run.queue)
        if kind == ARRIVAL:
            run.arrive(t, first, second)
        elif second == run.neurons[first].version:
            run.spike(t, first, len(times))
    for s in run.neurons:
        s.advance(t_end)
        s.offer(s.v, t_end)
    return Record(
        run.spikes,
        np.array([s.v for s in run.neurons]),
        np.array([s.integral for s in run.neurons]),
        [s.peak for s in run.neurons],
        run.solves,
        run.arrivals,
    )

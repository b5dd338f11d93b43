"""The backward sweep of `oracle`: equations in its docstring."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from grasp_plugin.errors import Refused
from grasp_plugin.learning.exact.flow import adjoint_flow, decays, tau_integrals
from grasp_plugin.learning.exact.oracle import (
    ARRIVAL,
    PEAK,
    SPIKE,
    Gradients,
    Graph,
    Record,
    Spike,
)
from grasp_plugin.network.weights import Array


@dataclass(eq=False)
class LossGradient:
    """What the loss says: dL/dt_k (spikes,), dL/dV(T), dL/d int V dt, dL/dV_max (N,); None: 0."""

    times: Array | None = None
    v_end: Array | None = None
    integral: Array | None = None
    v_max: Array | None = None


class Event(NamedTuple):
    """At a neuron. number: spike index, or synapse; source: the source event of an arrival."""

    time: float
    kind: int
    neuron: int
    number: int
    source: int


class Jump(NamedTuple):
    """What an own spike does to the sensitivities, and what it adds to the gradients."""

    pv: float
    pa: float
    theta: float
    beta: float
    v_reset: float
    clamped: bool


def spike_jump(
    graph: Graph, spike: Spike, pv: float, pa: float, c: float, error: float, gdot_min: float
) -> Jump:
    """The jump at an own spike, backwards; error = dL/dt_k + E_k.

    Raises:
        Refused: the membrane grazes the threshold there and no clamp is set.
    """
    n = spike.neuron
    tau_m, tau_a = float(graph.tau_mem_ms[n]), float(graph.tau_adapt_ms[n])
    beta, reset = float(graph.beta[n]), float(graph.v_reset[n])
    before = float(graph.theta[n]) + spike.adaptation
    drive = spike.current + float(graph.bias[n])
    gdot = (drive - before) / tau_m + spike.adaptation / tau_a
    clamped = gdot < gdot_min
    gdot = max(gdot, gdot_min)
    if gdot <= 0.0:
        raise grazing(spike.neuron, spike.time)
    e = error - pv * (drive - reset) / tau_m + pa * beta / tau_a + c * (before - reset)
    return Jump(-e / gdot, pa + e / gdot, e / gdot, pa, pv, clamped)


def grazing(neuron: int, time: float) -> Refused:
    """The error of a spike time that has no derivative."""
    return Refused(
        f"neuron {neuron}",
        f"expected a threshold crossed with a slope > 0, got a tangency at {time} ms",
        "Its spike time has no derivative: set gdot_min_per_ms to clamp the slope",
    )


def events_of(
    graph: Graph, record: Record, times: Array, sources: Array, t_end: float
) -> list[Event]:
    """All arrivals and own spikes, rebuilt from the spikes, in order of time."""
    fan_out, out = graph.fan_out(), list[Event]()
    fired = [(float(t), int(m)) for t, m in zip(times, sources, strict=True)]
    fired += [(s.time, graph.inputs + s.neuron) for s in record.spikes]
    for j, (t, m) in enumerate(fired):
        for e in fan_out[m]:
            arrival = t + float(graph.delay[e])
            if arrival <= t_end:
                out.append(Event(arrival, ARRIVAL, int(graph.post[e]), e, j))
    for k, s in enumerate(record.spikes):
        out.append(Event(s.time, SPIKE, s.neuron, k, -1))
    return sorted(out, key=lambda e: (e.time, e.kind, e.neuron))


class _Sweep:
    """p_V, p_I, p_a of every neuron at the time down to which it has been swept."""

    def __init__(self, graph: Graph, record: Record, loss: LossGradient, t_end: float) -> None:
        n = len(graph.theta)
        zero = np.zeros(n)
        self.graph, self.record, self.t_end = graph, record, t_end
        self.pv = np.array(zero if loss.v_end is None else loss.v_end, float)
        self.pi, self.pa = np.zeros(n), np.zeros(n)
        self.c = np.array(zero if loss.integral is None else loss.integral, float)
        self.time = np.full(n, float(t_end))
        synapse, neuron = np.zeros((2, len(graph.weight))), np.zeros((7, n))
        self.out = Gradients(*synapse, *neuron, input_times=np.zeros(0))  # type: ignore[misc]

    def flow(self, n: int, t: float, start: tuple[float, float, float]) -> None:
        """Sweep neuron n down to t, where its state is start = (V - b, I, a) after the event."""
        g, c, u = self.graph, self.c[n], self.time[n] - t
        tau_m, tau_s, tau_a = g.tau_mem_ms[n], g.tau_syn_ms[n], g.tau_adapt_ms[n]
        em, es, ka = decays(u, tau_m, tau_s)
        ea, (x, i, a) = math.exp(-u / tau_a), start
        d_m, d_s = tau_integrals(u, x, i, self.pv[n], self.pi[n], c, tau_m, tau_s, em, es, ka)
        self.out.tau_mem_ms[n] += d_m
        self.out.tau_syn_ms[n] += d_s
        self.out.tau_adapt_ms[n] += self.pa[n] * a * ea * u / tau_a**2
        self.out.bias[n] += (self.pv[n] - c * tau_m) * (1 - em) + c * u
        self.pv[n], self.pi[n] = adjoint_flow(self.pv[n], self.pi[n], c, tau_m, tau_s, em, es, ka)
        self.pa[n] *= ea
        self.time[n] = t


def _starts(graph: Graph, record: Record, events: list[Event]) -> list[tuple[float, float, float]]:
    """(V - b, I, a) just after each event, by a forward pass over the rebuilt events."""
    n = len(graph.theta)
    x, i, a, time = -np.array(graph.bias, float), np.zeros(n), np.zeros(n), np.zeros(n)
    out = []
    for event in events:
        m, u = event.neuron, event.time - time[event.neuron]
        em, es, ka = decays(u, graph.tau_mem_ms[m], graph.tau_syn_ms[m])
        x[m], i[m] = x[m] * em + i[m] * ka, i[m] * es
        a[m] *= math.exp(-u / graph.tau_adapt_ms[m])
        time[m] = event.time
        if event.kind == ARRIVAL:
            i[m] += graph.weight[event.number]
        elif event.kind == SPIKE:
            x[m] = graph.v_reset[m] - graph.bias[m]
            i[m], a[m] = record.spikes[event.number].current, a[m] + graph.beta[m]
        out.append((float(x[m]), float(i[m]), float(a[m])))
    return out


def _with_peaks(events: list[Event], record: Record, loss: LossGradient) -> list[Event]:
    """The events with the times of the maxima that the loss reads."""
    if loss.v_max is None:
        return events
    spiked = {s.neuron for s in record.spikes}
    for n in np.flatnonzero(loss.v_max):
        if n in spiked:
            raise Refused(
                f"neuron {n}",
                "expected a neuron without spikes under a loss of max V, got one that spikes",
                "Its maximum is the threshold: use its spike times",
            )
    peaks = [
        Event(p.time, PEAK, n, -1, -1) for n, p in enumerate(record.peaks) if loss.v_max[n] != 0
    ]
    return sorted(events + peaks, key=lambda e: (e.time, e.kind, e.neuron))


def adjoint(
    graph: Graph,
    times: Array,
    sources: Array,
    t_end: float,
    record: Record,
    loss: LossGradient,
    *,
    gdot_min_per_ms: float = 0.0,
) -> Gradients:
    """All gradients of a loss, by one sweep over the events from t_end to 0.

    Args:
        graph, times, sources, t_end: as given to `simulate`; record: what it returned.
        gdot_min_per_ms: the least slope at a spike; steeper ones are exact, the others counted.

    Raises:
        Refused: a tangent spike and no clamp, or a loss of max V on a neuron that spikes.
    """
    events = _with_peaks(events_of(graph, record, times, sources, t_end), record, loss)
    starts = _starts(graph, record, events)
    sweep, k_in = _Sweep(graph, record, loss, t_end), len(times)
    error = np.zeros(k_in + len(record.spikes))
    if loss.times is not None:
        error[k_in:] = loss.times
    before = [0.0] * len(record.spikes)
    for event, start in zip(reversed(events), reversed(starts), strict=True):
        n = event.neuron
        sweep.flow(n, event.time, start)
        if event.kind == ARRIVAL:
            _arrival(sweep, event, start, loss, error)
        elif event.kind == PEAK and loss.v_max is not None:
            sweep.pv[n] += loss.v_max[n]
        else:
            spike = record.spikes[event.number]
            jump = spike_jump(
                graph, spike, sweep.pv[n], sweep.pa[n], sweep.c[n],
                error[k_in + event.number], gdot_min_per_ms,
            )  # fmt: skip
            sweep.pv[n], sweep.pa[n] = jump.pv, jump.pa
            sweep.out.theta[n] += jump.theta
            sweep.out.beta[n] += jump.beta
            sweep.out.v_reset[n] += jump.v_reset
            sweep.out.clamped += jump.clamped
            before[event.number] = jump.pv
    for n in range(len(graph.theta)):
        sweep.flow(n, 0.0, (-float(graph.bias[n]), 0.0, 0.0))
    sweep.out.input_times, sweep.out.before_spike = error[:k_in], before
    return sweep.out


def _arrival(
    sweep: _Sweep,
    event: Event,
    start: tuple[float, float, float],
    loss: LossGradient,
    error: Array,
) -> None:
    """dL/dw, dL/dd and the error of the source spike; a maximum at this arrival moves with it."""
    g, n, e = sweep.graph, event.neuron, event.number
    w, tau_m, tau_s = g.weight[e], g.tau_mem_ms[n], g.tau_syn_ms[n]
    sweep.out.weight[e] += sweep.pi[n]
    moved = w * (sweep.pi[n] / tau_s - sweep.pv[n] / tau_m)
    if loss.v_max is not None and sweep.record.peaks[n].kink == (e, event.source):
        moved += loss.v_max[n] * (start[1] - w - start[0]) / tau_m
    sweep.out.delay[e] += moved
    error[event.source] += moved

"""Engine B: one feed-forward layer over a batch, spike times in, spike times and gradients out.

    run = run_layer(times, parameters, t_end_ms)     spikes, and V(T), int V dt, max V if asked for
    layer_gradients(run, dL/dtimes, ...)             all gradients of the layer, exact

Equations in `oracle`, loops in `kernels` and `kernels_back`. A layer without recurrence needs no
queue: a neuron's whole history follows from its arrivals. Between the passes a run holds (t, id,
I-, a-) for each spike, and nothing else that grows with the batch's activity or its duration but
its input. Arithmetic is float64; float32 arrays are converted at the border.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.exact.arrivals import from_padded, merge, to_padded
from grasp_plugin.learning.exact.kernels import Clock, Layer, Measures, forward
from grasp_plugin.learning.exact.kernels_back import (
    CLAMPED,
    SWEPT,
    TANGENT,
    WALKED,
    Seeds,
    Sums,
    backward,
)
from grasp_plugin.learning.exact.oracle import check_thresholds
from grasp_plugin.learning.exact.traffic import Traffic
from grasp_plugin.network.weights import Array

NONE = np.zeros((0, 0))
THETA_LEAST = 1e-3  # how far thresholds that learn are kept above rest and reset
CAPACITY = 1024  # spikes of a neuron in an episode; more is taken for a runaway


@dataclass(frozen=True, eq=False)
class Parameters:
    """A layer. Numbers stand for all neurons alike.

    Args:
        symbol, argument, unit, shape:
        w        weight              jump of I   [N_o, N_i]
        d        delay               ms, >= 0    [N_o, N_i], or None
                 axonal, dendritic   ms, >= 0    (N_i,), (N_o,), or None; all three add
        theta    theta               threshold   (N_o,); inf: a read-out that does not spike
        beta     beta                threshold   (N_o,), jump of the adaptation at a spike
        V_r, b   v_reset, bias       threshold   (N_o,)
        tau_m, tau_s, tau_a          tau_mem_ms, tau_syn_ms, tau_adapt_ms    ms, one for the layer

    Raises:
        Invalid: a shape, sign or value outside these.
    """

    weight: Array
    delay: Array | None = None
    axonal: Array | None = None
    dendritic: Array | None = None
    theta: Any = 1.0
    beta: Any = 0.0
    v_reset: Any = 0.0
    bias: Any = 0.0
    tau_mem_ms: float = 20.0
    tau_syn_ms: float = 5.0
    tau_adapt_ms: float = 100.0

    def __post_init__(self) -> None:
        weight = np.asarray(self.weight)
        if weight.ndim != 2:
            raise Invalid("weight", f"expected [N_o, N_i], got {weight.shape}", "Pass a matrix")
        outs, ins = weight.shape
        shapes = {
            "weight": (outs, ins), "delay": (outs, ins), "axonal": (ins,), "dendritic": (outs,),
            "theta": (outs,), "beta": (outs,), "v_reset": (outs,), "bias": (outs,),
        }  # fmt: skip
        for name, shape in shapes.items():
            _check(name, getattr(self, name), shape)
        for name in ("tau_mem_ms", "tau_syn_ms", "tau_adapt_ms"):
            value = float(getattr(self, name))
            if not 0 < value < np.inf:
                raise Invalid(name, f"expected a finite time > 0 ms, got {value}", "Raise it")
        check_thresholds(self.theta, self.v_reset)

    def compiled(self) -> Layer:
        """As the kernels take them: float64, one value a neuron."""
        outs = np.shape(self.weight)[0]

        delay = NONE if self.delay is None else np.ascontiguousarray(self.delay, float)
        per = (self.dendritic, self.theta, self.beta, self.v_reset, self.bias)
        weight = np.ascontiguousarray(self.weight, float)
        return Layer(weight, delay, *(_row(value, outs) for value in per))

    def clock(self, t_end_ms: float) -> Clock:
        """Time constants and the end of the episode."""
        return Clock(
            float(self.tau_mem_ms),
            float(self.tau_syn_ms),
            float(self.tau_adapt_ms),
            float(t_end_ms),
        )


def _row(value: Any, size: int) -> Array:
    """A number, an array or None (0) as (size,) float64."""
    out: Array = np.zeros(size) + np.asarray(0.0 if value is None else value, float)
    return out


def _check(name: str, value: Any, shape: tuple[int, ...]) -> None:
    if value is None:
        return
    array = np.asarray(value)
    if array.shape != shape and not (array.shape == () and len(shape) == 1):
        raise Invalid(name, f"expected shape {shape}, got {array.shape}", "Pass that shape")
    if np.isnan(array).any() or (name != "theta" and np.isinf(array).any()):
        raise Invalid(name, "expected finite numbers, got NaN or inf", "Mend the parameters")
    if name in ("delay", "axonal", "dendritic") and (array < 0).any():
        raise Invalid(
            name, f"expected delays >= 0 ms, got {array.min()}", "Clip them (project_ of a layer)"
        )


@dataclass(frozen=True, eq=False)
class Run:
    """What the forward pass leaves.

    Args:
        times: (batch, N_o, spikes) [ms], inf for none; as wide as the busiest neuron, >= 1.
        counts: (batch, N_o); log: (3, spikes) of (t, I-, a-), in order (neuron, sample, spike).
        v_end, integral, v_max: (batch, N_o), or empty where not measured. v_max is that of the
            membrane; of a neuron that spikes it says no more than that it spiked.
        traffic: counts of the forward pass.
    """

    times: Array
    counts: Array
    log: Array
    measures: Measures
    inputs: Array
    parameters: Parameters
    t_end_ms: float
    traffic: Traffic

    @property
    def held_bytes(self) -> int:
        """Bytes kept for the backward pass, the input aside."""
        return int(self.log.nbytes + self.counts.nbytes + sum(m.nbytes for m in self.measures))


def run_layer(
    times: Array,
    parameters: Parameters,
    t_end_ms: float,
    *,
    capacity: int = CAPACITY,
    measure: bool = False,
) -> Run:
    """The spikes of a layer from rest at t = 0 to t_end_ms.

    Args:
        times: (batch, N_i, spikes) [ms] >= 0, inf for none, in any order.
        capacity: the most spikes of one neuron.
        measure: also V(T), int V dt and max V.

    Raises:
        Invalid: times of another shape, negative or NaN.
        Refused: a neuron spikes more often than capacity; nothing is cut off.
    """
    ins = np.shape(parameters.weight)[1]
    if np.ndim(times) != 3 or np.shape(times)[1] != ins:
        raise Invalid(
            "times", f"expected (batch, {ins}, spikes), got {np.shape(times)}", "Pass padded times"
        )
    if not 0 < t_end_ms < np.inf:
        raise Invalid("t_end_ms", f"expected a finite time > 0, got {t_end_ms}", "Raise it")
    layer, clock = parameters.compiled(), parameters.clock(t_end_ms)
    arrivals = merge(times, _axonal(parameters), clock.t_end, clock[:3])
    out = _measures(np.shape(times)[0], layer.theta.size if measure else 0)
    counts, log, size, walked, solves = forward(arrivals, layer, clock, capacity, out)
    log = log[:, :size].copy()
    if counts.size and counts.max() > capacity:
        b, n = np.unravel_index(counts.argmax(), counts.shape)
        raise Refused(
            f"neuron {n}",
            f"expected at most {capacity} spikes in an episode, got more in sample {b}; "
            f"{(counts > capacity).sum()} neurons of the batch overflow",
            "Raise capacity, or lower the weights",
        )
    padded = to_padded(counts, log[0], max(int(counts.max(initial=0)), 1))
    traffic = Traffic(arrivals=walked, solves=solves, spikes=log.shape[1])
    return Run(padded, counts, log, out, times, parameters, t_end_ms, traffic)


def _axonal(parameters: Parameters) -> Array:
    return _row(parameters.axonal, np.shape(parameters.weight)[1])


def _measures(batch: int, neurons: int) -> Measures:
    shape = (batch, neurons) if neurons else (0, 0)
    v_end, integral, v_max, t_max, slope = (np.zeros(shape) for _ in range(5))
    return Measures(v_end, integral, v_max, t_max, slope, np.full(shape, -1, np.int64))


@dataclass(eq=False)
class LayerGradients:
    """dL/d(parameter), shapes as in `Parameters`; times as the input's; traffic of the pass."""

    weight: Array
    delay: Array
    axonal: Array
    dendritic: Array
    theta: Array
    beta: Array
    v_reset: Array
    bias: Array
    tau_mem_ms: float
    tau_syn_ms: float
    tau_adapt_ms: float
    times: Array
    traffic: Traffic


def layer_gradients(
    run: Run,
    d_times: Array,
    *,
    d_v_end: Array | None = None,
    d_integral: Array | None = None,
    d_v_max: Array | None = None,
    gdot_min_per_ms: float = 0.0,
    want_taus: bool = False,
) -> LayerGradients:
    """All gradients of a layer; the first axis of the batch is summed over.

    Args:
        d_times: dL/dtimes (batch, N_o, spikes); what stands at an inf is not read.
        d_v_end, d_integral, d_v_max: (batch, N_o), of a run that measured.
        gdot_min_per_ms: least slope at a spike; raised slopes are counted in traffic.clamped.
        want_taus: also those of the time constants, else 0.

    Raises:
        Invalid: a gradient that is not finite, or of what was not measured.
        Refused: a spike at a tangency and no clamp; d_v_max at a neuron that spiked.
    """
    layer, clock = run.parameters.compiled(), run.parameters.clock(run.t_end_ms)
    axonal = _axonal(run.parameters)
    arrivals = merge(run.inputs, axonal, clock.t_end, clock[:3])
    seeds = _seeds(run, d_times, d_v_end, d_integral, d_v_max)
    sums = Sums(
        np.zeros_like(layer.w), np.zeros_like(layer.delay), np.zeros(arrivals.time.size),
        np.zeros((layer.theta.size, 8)),
    )  # fmt: skip
    stats = backward(
        arrivals, layer, clock, run.counts, run.log, seeds, run.measures, gdot_min_per_ms,
        want_taus, sums,
    )  # fmt: skip
    if stats[TANGENT]:
        raise Refused(
            "layer",
            f"expected thresholds crossed with a slope > 0, got {stats[TANGENT]} tangent spikes",
            "Their times have no derivative: set gdot_min_per_ms to clamp the slope",
        )
    d_inputs = np.zeros(np.shape(run.inputs))
    d_inputs.ravel()[arrivals.slot] = sums.error
    d_axonal = np.bincount(arrivals.source, sums.error, axonal.size)
    traffic = Traffic(
        arrivals_back=int(stats[WALKED]), swept=int(stats[SWEPT]), clamped=int(stats[CLAMPED])
    )
    shift, theta, beta, v_reset, bias, *taus = np.ascontiguousarray(sums.rows.T)
    tau_m, tau_s, tau_a = (float(column.sum()) if want_taus else 0.0 for column in taus)
    return LayerGradients(
        sums.w, sums.delay, d_axonal, shift, theta, beta, v_reset, bias, tau_m, tau_s, tau_a,
        d_inputs, traffic,
    )  # fmt: skip


def _seeds(
    run: Run, d_times: Array, d_v_end: Array | None, d_integral: Array | None, d_v_max: Array | None
) -> Seeds:
    times = from_padded(run.counts, np.ascontiguousarray(d_times, float))
    given = [d_v_end, d_integral, d_v_max]
    if all(g is None for g in given):
        per = [NONE, NONE, NONE]
    elif not run.measures.v_end.size:
        raise Invalid("run", "expected a run that measured, got one without", "measure=True")
    else:
        per = [
            np.zeros(run.counts.shape) if g is None else np.ascontiguousarray(g, float)
            for g in given
        ]
    seeds = Seeds(times, *per)
    for name, value in zip(Seeds._fields, seeds, strict=True):
        if not np.isfinite(value).all():
            raise Invalid(
                f"d_{name}", "expected finite gradients, got NaN or inf", "Check the loss"
            )
    if seeds.v_max.size and ((seeds.v_max != 0) & (run.counts > 0)).any():
        raise Refused(
            "d_v_max",
            "expected neurons without spikes under a loss of max V, got one that spikes",
            "Mask the loss by counts == 0: where a neuron spikes, use its spike times",
        )
    return seeds

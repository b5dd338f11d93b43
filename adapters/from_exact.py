"""Layers of exact spike times to a grid of steps (`to_network`) and to NIR (`from_exact`).

Grid of step dt. Between grid points nothing is approximated (`learning.exact.flow`):

    du = 1 - e^{-dt/tau_s}      dv = 1 - e^{-dt/tau_m}      weight = w kappa(dt)
    drive = dv (b - V_r)        rho = e^{-dt/tau_a}         theta = beta rho
    D = round(d / dt)           delay_steps = D from inputs, D + 1 from populations

The membrane of step k is V((k + 1) dt). A spike at step k is a crossing in (k dt, (k + 1) dt]; it
reaches the next layer at (k + 1 + D) dt. An input spike at t acts at step ceil(t / dt) + D.
What the grid does change: times are rounded up to it, so a neuron's first spike is late by less
than dt, its later ones drift late (a reset at the end of the step loses up to a step of charge),
and a V that exceeds theta between two grid points only is missed. `exact_drift.drift` measures it.

NIR. Times in seconds. tau_syn I' = -I + w_in S with S a Dirac impulse, so the jump of I is
w w_in / tau_syn: w_in = tau_syn and r = 1 keep w. Tools that step take S = 1 for a whole step, of
area dt; the hint `spike_area` = "dirac" says that ours is 1, and `discretise`, `to_snntorch`
and `to_norse` refuse it. `read_exact` reads it. Delays: axonal is a Delay before the Linear,
dendritic one after it, synaptic a Delay and a Linear for each step of a grid, in parallel, or the
hint `delay_s` of the Linear. A beta is a hint of the CubaLIF, with a warning: NIR has no such
neuron.
"""

from __future__ import annotations

import logging
from typing import Any

import nir
import numpy as np

from grasp_plugin.adapters._exact_stack import (
    row,
    spiking,
    stack_of,
    steps_of_delays,
    without_threshold,
)
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.exact import Parameters
from grasp_plugin.learning.exact.flow import decays
from grasp_plugin.network.hints import DIRAC, SPIKE_AREA, write_hints
from grasp_plugin.network.network import Network, Population, Projection
from grasp_plugin.network.weights import Array

log = logging.getLogger(__name__)
MOST_STEPS = 62  # of delay on Loihi, less the one that every connection takes
PER_SECOND = 1000.0


def to_network(
    layers: Any,
    dt_ms: float,
    *,
    gauge: bool = False,
    fold_theta: bool = False,
    most_steps: int | None = MOST_STEPS,
) -> Network:
    """The layers on a grid of dt_ms: a `Network` for `build` and `quantise`.

    Populations are "layer1", "layer2", ...; the input is "input", the output "output".

    Args:
        layers: `SpikeTimeLayer`s, the last may be a `LeakyReadout`; or their `Parameters`.
        dt_ms: the step [ms].
        gauge: False: D = round(d / dt) of the delays as they are. True: first shift the spikes of
            hidden neurons so that rounding moves delays least and all fit 0..most_steps
            (`_exact_stack.steps_of_delays`).
        fold_theta: theta = 1, each neuron's own in its weights: for substrates with one threshold
            a population. The spikes are the same.
        most_steps: the largest D; None: no limit, for float only.

    Raises:
        Invalid: layers that do not chain; a step that is not positive.
        Refused: a delay outside 0..most_steps; beta < 0, which no population has.
    """
    if not 0 < dt_ms < np.inf:
        raise Invalid("dt_ms", f"expected a step > 0 ms, got {dt_ms}", "Pass e.g. 0.5")
    stack = stack_of(layers)
    if fold_theta:
        stack = [without_threshold(p) if spiking(p) else p for p in stack]
    delays, _ = steps_of_delays(stack, dt_ms, gauge=gauge, most=most_steps)
    populations, projections, source = [], [], "input"
    for k, (p, delay) in enumerate(zip(stack, delays, strict=True), start=1):
        made = _population(f"layer{k}", p, dt_ms)
        weight = np.asarray(p.weight, float) * made.gain[:, None]
        steps: Any = delay + (k > 1)
        if np.all(steps == steps.flat[0]):
            steps = int(steps.flat[0])
        projections.append(Projection(f"{source}->{made.name}", source, made.name, weight, steps))
        populations.append(made)
        source = made.name
    return Network(
        tuple(populations), tuple(projections), (), {"input": (np.shape(stack[0].weight)[1],)},
        {"output": source}, dt_ms / PER_SECOND,
        provenance={"source": "nir", "exact": f"spike times on a grid of {dt_ms:g} ms, rounded up"},
    )  # fmt: skip


def _population(name: str, p: Parameters, dt_ms: float) -> Population:
    """The flow over one step, relative to V_r; equations of this module."""
    size = np.shape(p.weight)[0]
    em, es, ka = decays(dt_ms, float(p.tau_mem_ms), float(p.tau_syn_ms))
    reset, bias, beta = (row(value, size) for value in (p.v_reset, p.bias, p.beta))
    du, dv = np.full(size, 1 - es), np.full(size, 1 - em)
    common: dict[str, Any] = {"du": du, "dv": dv, "gain": np.full(size, ka)}
    if not spiking(p):
        zeros = np.zeros(size)
        return Population(
            name, (size,), "CubaLI", None, v_th=zeros, drive=dv * bias, v_init=zeros.copy(),
            v_offset=zeros.copy(), **common,
        )  # fmt: skip
    if np.any(beta < 0):
        raise Refused(
            name, f"expected beta >= 0, got {beta.min():.6g}: a population's threshold only rises",
            "Train with beta >= 0, or run the layers themselves",
        )  # fmt: skip
    if np.any(beta):
        rho = np.full(size, np.exp(-dt_ms / float(p.tau_adapt_ms)))
        common |= {"rho": rho, "theta": beta * rho}
    return Population(
        name, (size,), "CubaLIF", "value", v_th=row(p.theta, size) - reset,
        drive=dv * (bias - reset), v_init=-reset, v_offset=reset, **common,
    )  # fmt: skip


def from_exact(layers: Any, dt_ms: float | None = None) -> nir.NIRGraph:
    """The layers in continuous time as NIR, in seconds; conventions in the module.

    Args:
        layers: as for `to_network`.
        dt_ms: grid of the synaptic delays, which become parallel branches (rounded to it); None:
            they are kept exactly, in the hint `delay_s` of the Linear node.

    Returns:
        Input -> ... -> Output; `read_exact` gives the layers back, `nir_file.write_nir` writes it.

    Raises:
        Invalid: as `to_network`.

    Example:
        >>> import numpy as np
        >>> from grasp_plugin.learning.exact import Parameters
        >>> graph = from_exact([Parameters(np.ones((2, 3)), axonal=np.ones(3))])
        >>> sorted(graph.nodes)
        ['input', 'layer1', 'layer1.axonal', 'layer1.weight', 'output']
    """
    if dt_ms is not None and not 0 < dt_ms < np.inf:
        raise Invalid("dt_ms", f"expected a step > 0 ms, got {dt_ms}", "Pass e.g. 0.5, or None")
    stack = stack_of(layers)
    ins, outs = np.shape(stack[0].weight)[1], np.shape(stack[-1].weight)[0]
    nodes: dict[str, Any] = {"input": nir.Input(input_type={"input": np.array([ins])})}
    edges: list[tuple[str, str]] = []
    at = "input"
    for k, p in enumerate(stack, start=1):
        name = f"layer{k}"
        nodes[name] = _neuron(name, p)
        _connect(nodes, edges, at, name, p, dt_ms)
        at = name
    nodes["output"] = nir.Output(output_type={"output": np.array([outs])})
    edges.append((at, "output"))
    graph = nir.NIRGraph(nodes=nodes, edges=edges, type_check=False)
    write_hints(graph, time_unit="s", source="nir", **{SPIKE_AREA: DIRAC})
    if dt_ms is not None:
        write_hints(graph, dt_s=dt_ms / PER_SECOND)
    return graph


def _neuron(name: str, p: Parameters) -> Any:
    size = np.shape(p.weight)[0]
    tau_syn = np.full(size, float(p.tau_syn_ms) / PER_SECOND)
    fields = {
        "tau_syn": tau_syn, "tau_mem": np.full(size, float(p.tau_mem_ms) / PER_SECOND),
        "r": np.ones(size), "v_leak": row(p.bias, size), "w_in": tau_syn.copy(),
    }  # fmt: skip
    hints: dict[str, Any] = {SPIKE_AREA: DIRAC, "source": "nir"}
    if not spiking(p):
        node = nir.CubaLI(**fields)
    else:
        fields |= {"v_threshold": row(p.theta, size), "v_reset": row(p.v_reset, size)}
        node = nir.CubaLIF(**fields)
        hints |= {"reset": "value", "comparator": ">"}
        if np.any(row(p.beta, size)):
            hints |= {"beta": row(p.beta, size), "tau_adapt_s": float(p.tau_adapt_ms) / PER_SECOND}
            log.warning(
                "%s: beta is written as a hint of the CubaLIF: tools that do not know it read the "
                "neuron without its adaptive threshold", name,
            )  # fmt: skip
    write_hints(node, **hints)
    return node


def _connect(
    nodes: dict[str, Any],
    edges: list[tuple[str, str]],
    source: str,
    name: str,
    p: Parameters,
    dt_ms: float | None,
) -> None:
    """source -> [axonal] -> weights, with a delay each or by branches -> [dendritic] -> name."""
    outs, ins = np.shape(p.weight)
    start, end = source, name
    if np.any(row(p.axonal, ins)):
        start = f"{name}.axonal"
        nodes[start] = nir.Delay(delay=row(p.axonal, ins) / PER_SECOND)
        edges.append((source, start))
    if np.any(row(p.dendritic, outs)):
        end = f"{name}.dendritic"
        nodes[end] = nir.Delay(delay=row(p.dendritic, outs) / PER_SECOND)
        edges.append((end, name))
    weight = np.asarray(p.weight, float)
    delay = np.zeros((outs, ins)) if p.delay is None else np.asarray(p.delay, float)
    if dt_ms is None or not np.any(delay):
        linear = nir.Linear(weight=weight.copy())
        if np.any(delay):
            write_hints(linear, delay_s=delay / PER_SECOND)
        nodes[f"{name}.weight"] = linear
        edges += [(start, f"{name}.weight"), (f"{name}.weight", end)]
        return
    steps = np.round(delay / dt_ms).astype(np.int64)
    for step in np.unique(steps):
        branch, before = f"{name}.weight_{step}", start
        if step:
            before = f"{name}.delay_{step}"
            nodes[before] = nir.Delay(delay=np.full(ins, step * dt_ms / PER_SECOND))
            edges.append((start, before))
        nodes[branch] = nir.Linear(weight=np.where(steps == step, weight, 0.0))
        edges += [(before, branch), (branch, end)]


def on_grid(times: Array, dt_ms: float, steps: int) -> Array:
    """Padded spike times (batch, neuron, spike) [ms] as input (step, batch, neuron).

    A spike at t stands at step ceil(t / dt); two in one step count 2. Those at or after the end,
    steps dt, are left out.
    """
    given = np.asarray(times, float)
    out = np.zeros((steps, *given.shape[:2]))
    batch, neuron, spike = np.nonzero(np.isfinite(given))
    step = np.ceil(given[batch, neuron, spike] / dt_ms - 1e-9).astype(np.int64)
    inside = step < steps
    np.add.at(out, (step[inside], batch[inside], neuron[inside]), 1.0)
    return out


def from_grid(spikes: Array, dt_ms: float) -> Array:
    """Recorded spikes (step, batch, neuron) as padded times (batch, neuron, spike) [ms].

    A spike at step k happened by (k + 1) dt. inf for none; at least one place a neuron.
    """
    fired = np.asarray(spikes) != 0
    number = np.cumsum(fired, axis=0) - 1
    out = np.full((*fired.shape[1:], max(int(fired.sum(axis=0).max(initial=0)), 1)), np.inf)
    step, batch, neuron = np.nonzero(fired)
    out[batch, neuron, number[step, batch, neuron]] = (step + 1) * dt_ms
    return out


def steps_for(t_end_ms: float, dt_ms: float) -> int:
    """Steps that cover an episode."""
    return int(np.ceil(t_end_ms / dt_ms - 1e-9))

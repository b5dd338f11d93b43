"""NIR graph -> `Network`: the choices NIR leaves open, made explicitly.

Forward Euler (default):  I += dt/tau_syn (w_in S - I);  v += dt/tau_mem (v_leak + r I - v).
Exponential:              decays exp(-dt/tau), input gain 1 - exp(-dt/tau) in place of dt/tau.
Exponential, Euler gain:  decays exp(-dt/tau), input gain dt/tau.

The gains (dt/tau) r and (dt/tau_syn) w_in multiply the incoming weights and biases; a total gain
within 1e-6 of 1 is taken as 1 (files store tau and r in float32).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import nir
import numpy as np

from grasp_plugin.errors import Invalid, MissingChoice, Refused
from grasp_plugin.network import loops
from grasp_plugin.network import weights as W
from grasp_plugin.network.adaptation import adaptation_of
from grasp_plugin.network.fold import Signal, incoming
from grasp_plugin.network.graph import NEURONS, SPIKING, FlatGraph, flatten
from grasp_plugin.network.hints import (
    RESETS,
    read_hints,
    refuse_dirac,
    refuse_graded,
    seconds,
)
from grasp_plugin.network.network import Bias, Network, Population, Projection, evaluation_order
from grasp_plugin.network.policy import INTEGRATORS as INTEGRATORS
from grasp_plugin.network.policy import SCHEMES as SCHEMES
from grasp_plugin.network.policy import SOURCE_DT_S, one_of, require_policy
from grasp_plugin.network.policy import Discretisation as Discretisation
from grasp_plugin.network.weights import Array, Weight


def discretise(graph: nir.NIRGraph, policy: Discretisation | None = None) -> Network:
    """A NIR graph as a `Network` in discrete time; the graph is not changed.

    Args:
        graph: any NIR 1.0.8 graph: nested, recurrent, with skip connections, several inputs and
            outputs, nodes and edges in any order.
        policy: the open choices; by default all from the hints that our exporters write.

    Returns:
        A float `Network`. Populations bear their NIR node's (full) name and have its shape. An
        Output fed by linear nodes becomes a memoryless, non-spiking population that bears the
        Output's name and has its shape. Any other Output, one behind a Flatten too, stands for the
        population that it shows, and recordings have that population's shape: (2, 3, 3) where the
        Output node says (18,), in the same C order.

    Raises:
        Invalid: the graph or a hint in it is malformed, or `policy` is no `Discretisation`.
        MissingChoice: a choice that changes the spikes was made by neither caller nor hints.
        Refused: the graph is sound but cannot be expressed exactly, e.g. tau < dt.
    """
    policy = Discretisation() if policy is None else policy
    require_policy(policy)
    flat = flatten(graph)
    refuse_dirac(flat.nodes, flat.hints)
    refuse_graded(flat.nodes)
    policy = _complete(flat, policy)
    signals = incoming(flat, policy.dt_s)
    neurons = [
        n for n in sorted(flat.nodes) if isinstance(flat.nodes[n], (*NEURONS, nir.Threshold))
    ]
    populations = {n: population_of(n, flat, policy) for n in neurons}
    outputs = {}
    for name in flat.named(nir.Output):
        source = _plain_source(signals[name], populations)
        if source is None:
            populations[name] = _readout(name, flat.shape_in[name])
            source = name
        outputs[name] = source
    _refuse_unused_resets(policy, populations)
    projections, biases = _inputs_of(populations, signals)
    projections = loops.with_loop_delays(projections, policy.loop)
    order = evaluation_order(sorted(populations), tuple(projections))
    return Network(
        populations=tuple(populations[n] for n in order),
        projections=tuple(projections),
        biases=tuple(biases),
        inputs={n: flat.shape_in[n] for n in flat.named(nir.Input)},
        outputs=outputs,
        dt_s=policy.dt_s,
        provenance={"scheme": policy.scheme, "integrator": policy.integrator,
                    "source": str(policy.source or "nir")},
    )  # fmt: skip


def _complete(flat: FlatGraph, policy: Discretisation) -> Discretisation:
    """Fill dt, source and loop from hints; hints that contradict one another are refused."""
    hints = [("graph", flat.hints)] + [(n, read_hints(node)) for n, node in flat.nodes.items()]
    source = policy.source or flat.hints.get("source")
    if source is not None:
        one_of("graph, hint source", source, {**SOURCE_DT_S, "nir": 0.0})
    unit = flat.hints.get("time_unit", "s")
    if not isinstance(unit, str) or unit != "s":
        raise Refused(
            "graph",
            f"expected times in seconds, got time_unit {unit!r}",
            "Read the file with adapters.nir_file.read_nir(path, time_unit=...), which converts",
        )
    dt = policy.dt_s
    if dt is None:
        remedy = "Write it as a number of seconds, or pass dt_s"
        found = {
            seconds(f"{n}, hint dt_s", h["dt_s"], remedy): n
            for n, h in hints if h.get("dt_s") is not None
        }  # fmt: skip
        if len(found) > 1:
            listed = ", ".join(f"{v} s at {n}" for v, n in found.items())
            raise Refused("graph", f"expected one dt, got {listed}", "Pass dt_s")
        dt = next(iter(found), SOURCE_DT_S.get(source or ""))
    loop = policy.loop if policy.loop is not None else loops.from_hint(flat.hints.get("loop"))
    return replace(policy, dt_s=dt, source=source, loop=loop)


def _need_dt(name: str, policy: Discretisation) -> float:
    if policy.dt_s is None:
        raise MissingChoice(
            name,
            "dt_s",
            {
                "1e-4": "seconds a step, as snnTorch's exporter assumes",
                "1e-3": "seconds a step, Norse's default",
            },
        )
    return policy.dt_s


def _reset_of(name: str, node: Any, policy: Discretisation) -> str | None:
    if not isinstance(node, SPIKING):
        return None
    if isinstance(node, nir.Threshold):
        return "none"  # memoryless
    hints = read_hints(node)
    if not isinstance(hints.get("comparator", ">"), str) or hints.get("comparator", ">") != ">":
        raise Refused(
            name,
            f"expected a spike where v > v_threshold, got comparator {hints['comparator']!r}",
            "Loihi and Lava compare strictly; nudge the threshold and export with '>'",
        )
    given = policy.reset
    if isinstance(given, Mapping):
        given = given.get(name, given.get("*"))
    reset = given or hints.get("reset")
    if reset is None:
        raise MissingChoice(name, "reset", RESETS)
    if not isinstance(reset, str) or reset not in RESETS:
        raise Refused(name, f"expected a reset of {', '.join(RESETS)}, got {reset!r}", "Pass reset")
    return str(reset)


def _refuse_unused_resets(policy: Discretisation, populations: Mapping[str, Population]) -> None:
    if not isinstance(policy.reset, Mapping):
        return
    spiking = [n for n, p in populations.items() if p.spiking]
    for name in policy.reset:
        if name != "*" and name not in spiking:
            raise Invalid(
                name,
                f"expected a reset for a spiking node, one of {', '.join(spiking)}, got {name!r}",
                "Check the name",
            )


def population_of(name: str, flat: FlatGraph, policy: Discretisation) -> Population:
    """One neuron node as a `Population`: the equations of this module, shifted by v_reset."""
    node, shape = flat.nodes[name], flat.shape_out[name]
    size = int(np.prod(shape))

    def full(field: str, default: float = 0.0) -> Array:
        value = getattr(node, field, None)
        value = default if value is None else value
        array = np.asarray(value)
        if array.dtype.kind not in "iuf":
            raise Invalid(name, f"expected numbers in {field}, got {array.dtype}", "Fix the node")
        array = array.astype(np.float64)
        if array.size != 1 and array.shape != shape:
            raise Invalid(
                name,
                f"expected {field} of shape {shape} or one value, got {array.shape}",
                "Give all parameters of a neuron one shape",
            )
        if np.any(np.isnan(array)) or (np.any(np.isinf(array)) and not field.startswith("tau")):
            raise Invalid(name, f"expected finite {field}, got NaN or inf", "Fix the node")
        return np.broadcast_to(array.ravel() if array.size == 1 else array, shape).reshape(size)

    zeros, ones = np.zeros(size), np.ones(size)
    reset = _reset_of(name, node, policy)
    more = adaptation_of(name, node, size, policy.dt_s)
    if isinstance(node, nir.Threshold):
        return Population(name, shape, "Threshold", reset, ones, ones, full("threshold"), zeros,
                          zeros, ones, zeros, **more)  # fmt: skip
    offset = _offset(name, node, full("v_reset"), reset, policy)
    du, syn_gain = ones, ones
    if isinstance(node, (nir.CubaLIF, nir.CubaLI)):
        du, syn_gain = _decay(name, "tau_syn", full("tau_syn"), policy)
        syn_gain = syn_gain * full("w_in", 1.0)
    if isinstance(node, (nir.IF, nir.I)):
        dt = _need_dt(name, policy) if policy.integrator == "physical" else 1.0
        dv, mem_gain, leak = zeros, dt * ones, offset
    else:
        field = "tau" if isinstance(node, (nir.LIF, nir.LI)) else "tau_mem"
        dv, mem_gain = _decay(name, field, full(field), policy)
        leak = full("v_leak")
    gain = _snap(syn_gain * mem_gain * full("r", 1.0))
    threshold = full("v_threshold") if reset is not None else zeros
    return Population(
        name=name, shape=shape, node=type(node).__name__, reset=reset, du=du, dv=dv,
        v_th=threshold - offset, drive=dv * (leak - offset), v_init=leak - offset, gain=gain,
        v_offset=offset, **more,
    )  # fmt: skip


def _offset(
    name: str, node: Any, v_reset: Array, reset: str | None, policy: Discretisation
) -> Array:
    """v_reset where the rule resets to a value; 0 where it subtracts or does nothing."""
    if reset in ("value", "refractory1"):
        return v_reset
    source = read_hints(node).get("source", policy.source)
    if reset is not None and np.any(v_reset != 0) and source != "norse" and reset != "none":
        raise Refused(
            name,
            f"expected v_reset = 0 with reset {reset!r}, got {v_reset.ravel()[:3]}: whether "
            "a spike then takes v_threshold or v_threshold - v_reset is not said",
            "Shift the voltages so that v_reset = 0, or pass reset='value'",
        )
    return np.zeros_like(v_reset)


def _decay(name: str, field: str, tau: Array, policy: Discretisation) -> tuple[Array, Array]:
    """(decay, input gain) per step of a first-order filter with time constant tau."""
    if np.any(tau <= 0):
        raise Invalid(name, f"expected {field} > 0 s, got {tau.min():.6g}", "Fix the node")
    dt = _need_dt(name, policy)
    ratio = dt / tau
    if policy.scheme == "euler":
        if np.any(ratio > 1 + 1e-9):
            raise Refused(
                name,
                f"expected {field} >= dt = {dt:.12g} s with forward Euler, got {tau.min():.12g} s, "
                f"{(dt - tau.min()) / dt:.2g} of dt too short",
                f"Choose a smaller dt, at most {float(tau.min())!r} s, check the time unit, or "
                "pass scheme='exponential'",
            )
        ratio = np.minimum(ratio, 1.0)
        return ratio, ratio
    decay = -np.expm1(-ratio)
    return decay, (decay if policy.scheme == "exponential" else ratio)


def _snap(gain: Array) -> Array:
    return np.where(np.abs(gain - 1.0) <= 1e-6, 1.0, gain)


def _plain_source(signal: Signal, populations: Mapping[str, Population]) -> str | None:
    """The population an Output shows as it is, or None if anything linear lies between."""
    if len(signal.paths) != 1 or signal.bias:
        return None
    ((source, terms),) = signal.paths.items()
    if source not in populations or set(terms) != {0} or not W.is_identity(terms[0]):
        return None
    return source


def _readout(name: str, shape: tuple[int, ...]) -> Population:
    """A memoryless population whose output is its input."""
    size = int(np.prod(shape))
    zeros, ones = np.zeros(size), np.ones(size)
    return Population(name, shape, "Output", None, ones, ones, zeros, zeros, zeros, ones, zeros)


def _inputs_of(
    populations: Mapping[str, Population], signals: Mapping[str, Signal]
) -> tuple[list[Projection], list[Bias]]:
    projections: list[Projection] = []
    biases: list[Bias] = []
    for target in sorted(populations):
        gain, signal = populations[target].gain, signals[target]
        for source in sorted(signal.paths):
            terms = {d: W.scale_rows(w, gain) for d, w in sorted(signal.paths[source].items())}
            parts = _merge(terms)
            for i, (weight, delay) in enumerate(parts):
                name = f"{source}->{target}" + (f"#{i}" if len(parts) > 1 else "")
                projections.append(
                    Projection(name, source, target, weight, delay, 0, signal.nodes[source])
                )
        for i, (onset, value) in enumerate(sorted(signal.bias.items())):
            name = f"bias->{target}" + (f"#{i}" if len(signal.bias) > 1 else "")
            biases.append(Bias(name, target, value * gain, onset))
    return projections, biases


def _merge(terms: dict[int, Weight]) -> list[tuple[Weight, int | Array]]:
    """One dense weight with a delay a synapse, where no synapse has two delays; else one each."""
    terms = {d: w for d, w in terms.items() if len(terms) == 1 or W.values(w).any()}
    if len(terms) < 2:
        return [(w, d) for d, w in terms.items()]
    dense = {d: W.to_dense(w) for d, w in terms.items()}
    used = sum((w != 0).astype(int) for w in dense.values())
    if np.any(used > 1):
        return [(w, d) for d, w in terms.items()]
    delays = np.full(used.shape, min(dense), dtype=np.int64)
    for d, w in dense.items():
        delays[w != 0] = d
    return [(sum(dense.values()), delays)]

"""Lay a `Network` out as Lava Processes: stock ones where they are exact, ours where they are not.

    population, resets to value, no drive      lava LIF            (float, fixed)
    the same with one step of refractoriness   lava LIFRefractory  (float, one dv)
    any other reset, a leak drive, an onset,
    an adaptive threshold, refractory steps    ResetLIF            (float, fixed)
    no spikes                                  LeakyReadout        (float, fixed)
    dense / sparse or convolution              lava Dense / Sparse, behind a DelayLine if it waits
    dense with a delay a synapse               lava DelayDense
    bias                                       OnsetSource -> lava Dense

Lava's Conv ignores `weight_exp`, so convolutions become Sparse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from lava.magma.core.decorator import implements, tag
from lava.magma.core.model.sub.model import AbstractSubProcessModel
from lava.proc.dense.process import DelayDense, Dense
from lava.proc.lif.process import LIF, LIFRefractory
from lava.proc.sparse.process import Sparse
from lava.utils.weightutils import SignMode

from grasp_plugin.errors import Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.lowering import lava_process
from grasp_plugin.network.network import Bias, Network, Population, Projection
from grasp_plugin.network.schedule import arrival_steps, extra_delay
from grasp_plugin.processes.leaky.process import DelayLine, LeakyReadout, OnsetSource, ResetLIF
from grasp_plugin.processes.network.process import FixedNetwork, FloatNetwork

MESSAGE_BITS = 24  # sources that may send other values than 0 and 1
MAX_DELAY = 62


class Layout:
    """The Processes of a network.

    neurons: by population; synapses: by projection; others: delay lines and biases; taps: pairs
    (input name, InPort) that wait for a source. (No dataclass: Lava executes this file under a bare
    name, where dataclasses find no module.)
    """

    def __init__(self) -> None:
        self.neurons: dict[str, Any] = {}
        self.synapses: dict[str, Any] = {}
        self.others: list[Any] = []
        self.taps: list[tuple[str, Any]] = []

    def processes(self) -> list[Any]:
        return [*self.neurons.values(), *self.synapses.values(), *self.others]


def lay_out(network: Network, own: frozenset[str] = frozenset()) -> Layout:
    """Create and connect the Processes of a network; `taps` are (input name, InPort) to feed.

    Args:
        own: populations that become ResetLIF or LeakyReadout, which tell their margin, even where
            a stock neuron would do; the spikes are the same.

    Raises:
        Refused: Lava's timing or registers cannot express the network.
    """
    arrival, layout = arrival_steps(network), Layout()
    for p in network.populations:
        layout.neurons[p.name] = neuron_process(p, network.precision, arrival[p.name], own)
    for k in network.projections:
        entry, exit_port = add_synapses(network, k, arrival, layout)
        exit_port.connect(layout.neurons[k.target].a_in)
        if k.source in network.inputs:
            layout.taps.append((k.source, entry))
        else:
            layout.neurons[k.source].s_out.connect(entry)
    for b in network.biases:
        add_bias(network, b, arrival[b.target], layout)
    return layout


def neuron_process(
    p: Population, precision: str, arrival: int, own: frozenset[str] = frozenset()
) -> Any:
    """The Process of one population; one of ours if `own` names it."""
    common: dict[str, Any] = {"shape": (p.size,), "du": p.du, "dv": p.dv}
    kind = lava_process(p, precision)
    stock = p.name not in own
    if stock and kind == "LIF":
        return LIF(vth=p.v_th, **common)
    if stock and kind == "LIFRefractory":
        common["dv"] = float(p.dv[0])
        return LIFRefractory(vth=p.v_th, refractory_period=1, **common)
    common |= {"drive": p.drive, "v": p.v_init, "onset": arrival, "drive_exp": p.drive_exp}
    if kind == "LeakyReadout":
        return LeakyReadout(**common)
    if p.adaptive:
        common |= {"rho": p.rho, "theta": p.theta, "n_ref": p.n_ref}
    return ResetLIF(vth=p.v_th, reset=str(p.reset), **common)


def add_synapses(
    network: Network, k: Projection, arrival: dict[str, int], layout: Layout
) -> tuple[Any, Any]:
    """The projection's Processes; its entry InPort and exit OutPort."""
    extra = extra_delay(k, arrival)
    fixed = network.precision == "loihi"
    if fixed and int(np.max(extra)) > MAX_DELAY:
        raise Refused(
            k.name,
            f"expected at most {MAX_DELAY} steps of waiting on Loihi, got {int(np.max(extra))}",
            "Shorten the delay or the parallel path",
        )
    weights = k.weight if isinstance(k.weight, np.ndarray) else W.to_sparse(k.weight)
    options: dict[str, Any] = {
        "weights": weights.astype(np.int32 if fixed else np.float64),
        "num_message_bits": MESSAGE_BITS if network.graded(k.source) else 0,
    }
    if fixed:
        options |= {"weight_exp": k.weight_exp, "sign_mode": sign_mode(weights)}
    if np.ndim(extra) and np.any(extra != np.min(extra)):
        process = DelayDense(delays=np.asarray(extra, dtype=int), **options)
        layout.synapses[k.name] = process
        return process.s_in, process.a_out
    process = (Sparse if sp.issparse(weights) else Dense)(**options)
    layout.synapses[k.name] = process
    wait = int(np.min(extra))
    if wait == 0:
        return process.s_in, process.a_out
    line = DelayLine(shape=(network.size_of(k.source),), delay=wait)
    line.s_out.connect(process.s_in)
    layout.others.append(line)
    return line.s_in, process.a_out


def add_bias(network: Network, b: Bias, arrival: int, layout: Layout) -> None:
    source = OnsetSource(onset=arrival + b.onset_steps - 1)
    fixed = network.precision == "loihi"
    weights = b.value[:, None].astype(np.int32 if fixed else np.float64)
    options = {"weight_exp": b.weight_exp, "sign_mode": sign_mode(weights)} if fixed else {}
    synapse = Dense(weights=weights, **options)
    source.s_out.connect(synapse.s_in)
    synapse.a_out.connect(layout.neurons[b.target].a_in)
    layout.others += [source, synapse]


def sign_mode(weights: Any) -> SignMode:
    """Mixed unless all weights have one sign (which gains a bit)."""
    if weights.shape[0] and weights.min() >= 0:
        return SignMode.EXCITATORY
    return SignMode.INHIBITORY if weights.max() <= 0 else SignMode.MIXED


class _Network(AbstractSubProcessModel):
    def __init__(self, proc: Any) -> None:
        network = proc.proc_params["network"]
        layout = lay_out(network)
        for i, process in enumerate(layout.processes()):
            setattr(self, f"part_{i}", process)
        for name, port in layout.taps:
            proc.input(name).connect(port)
        for name, process in layout.neurons.items():
            process.s_out.connect(proc.output(name))


@implements(proc=FloatNetwork)
@tag("floating_pt")
class FloatNetworkModel(_Network):
    """The Processes of a float network."""


@implements(proc=FixedNetwork)
@tag("fixed_pt")
class FixedNetworkModel(_Network):
    """The Processes of a network in Loihi integers."""

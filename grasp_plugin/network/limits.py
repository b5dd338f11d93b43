"""Does a network fit Loihi 2? An estimate from public figures; no chip was asked.

Sources: 8192 neurons and 192 KB (state, synapses and axons together) a core, 128 cores a chip:
Intel's Loihi 2 technology brief as quoted in public tables. The bytes an entry are this module's
assumptions, named below; Intel publishes none. Treat every figure as an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from grasp_plugin.network import weights as W
from grasp_plugin.network.network import Network, Projection

NEURONS_PER_CORE = 8192
BYTES_PER_CORE = 192 * 1024
CORES_PER_CHIP = 128
BYTES_NEURON = 16  # u, v (24 bit each), decays, threshold, bias: assumed
BYTES_ADAPTIVE = 8  # adapt, wait, rho, theta of an adaptive neuron: assumed
BYTES_WEIGHT = 1  # 8 bit
BYTES_INDEX = 2  # target of a sparse synapse: assumed
BYTES_DELAY = 1  # 6 bit
BYTES_AXON = 4  # one entry a source neuron a core: assumed


@dataclass(frozen=True)
class CoreUse:
    """One population with its incoming synapses; bytes and cores are estimates.

    Args:
        name: the population.
        neurons, synapses: counts.
        synapse_bytes, axon_bytes, neuron_bytes: memory.
        cores: cores needed if the population is split evenly.
        utilisation: bytes over the bytes of those cores.
    """

    name: str
    neurons: int
    synapses: int
    synapse_bytes: int
    axon_bytes: int
    neuron_bytes: int
    cores: int
    utilisation: float


def core_use(network: Network) -> list[CoreUse]:
    """The estimate for every population."""
    rows = []
    for p in network.populations:
        into = network.into(p.name)
        synapses = sum(_synapses(k) for k in into)
        synapse_bytes = sum(_bytes(k) for k in into)
        synapse_bytes += sum(p.size * BYTES_WEIGHT for b in network.biases if b.target == p.name)
        axons = sum(network.size_of(k.source) for k in into)
        neuron_bytes = p.size * (BYTES_NEURON + (BYTES_ADAPTIVE if p.adaptive else 0))
        cores = max(1, -(-p.size // NEURONS_PER_CORE))
        while _core_bytes(synapse_bytes, neuron_bytes, axons, cores) > BYTES_PER_CORE:
            if cores >= p.size or axons * BYTES_AXON >= BYTES_PER_CORE:
                break
            cores += 1
        total = cores * _core_bytes(synapse_bytes, neuron_bytes, axons, cores)
        rows.append(
            CoreUse(
                p.name, p.size, synapses, synapse_bytes, axons * BYTES_AXON * cores, neuron_bytes,
                cores, total / (cores * BYTES_PER_CORE),
            )
        )  # fmt: skip
    return rows


def fits(network: Network) -> tuple[bool, int]:
    """(does the estimate fit one chip, cores in all)."""
    rows = core_use(network)
    cores = sum(row.cores for row in rows)
    return cores <= CORES_PER_CHIP and all(row.utilisation <= 1 for row in rows), cores


def _core_bytes(synapse_bytes: int, neuron_bytes: int, axons: int, cores: int) -> float:
    return (synapse_bytes + neuron_bytes) / cores + axons * BYTES_AXON


def _synapses(k: Projection) -> int:
    if isinstance(k.weight, np.ndarray):
        return int(k.weight.size)
    return int(W.to_sparse(k.weight).nnz)


def _bytes(k: Projection) -> int:
    """Dense: weights only; sparse and convolutions, which are stored unrolled: an index each."""
    each = BYTES_WEIGHT + (BYTES_DELAY if k.max_delay > 0 else 0)
    if isinstance(k.weight, W.Conv) or sp.issparse(k.weight):
        each += BYTES_INDEX
    return _synapses(k) * each

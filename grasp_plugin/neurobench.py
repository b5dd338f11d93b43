"""NeuroBench's figures of a network and a run, by its published definitions.

    footprint              bytes of parameters and of what is kept beside them
    parameters             weights and biases
    connection sparsity    zero weights / weights, biases left out
    activation sparsity    (activations - non-zero ones) / activations, spiking populations
    synaptic operations    a sample, sum over steps and projections of (weight != 0, input != 0)
        effective ACs      at steps whose inputs of that projection are all -1, 0 or 1
        effective MACs     at all others
        dense              whatever the weight and the input are; biases left out in all three
    membrane updates       a sample: neurons at the first step, then those whose membrane changed

The package `neurobench` (2.3.0, Apache-2.0) is not used: it requires tonic (GPL-3.0), snntorch,
torchaudio and llvmlite of every user, and its hooks see snnTorch's neurons and torch's layers only,
neither delays nor recurrent projections nor any back end but torch. On snnTorch networks its
figures and these are the same, but for the footprint.

References:
    Yik et al., "The neurobench framework for benchmarking neuromorphic computing algorithms and
    systems", Nature Communications 16, 2025. https://arxiv.org/abs/2304.04640

Departures:
    The footprint counts what a simulator of `Network` holds, not torch's buffers. Weights that a
    sparse matrix does not store are zero weights. A delayed input is counted when it arrives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from grasp_plugin.errors import Invalid
from grasp_plugin.network import weights as W
from grasp_plugin.network.network import Network, Population, Projection
from grasp_plugin.network.weights import Array, Weight
from grasp_plugin.runtime.session import Recording, Spikes, as_batches

INDEX_BYTES = 4  # of a sparse matrix


@dataclass(frozen=True)
class NeuroBench:
    """See the module for the definitions.

    Args:
        footprint_bytes: bytes.
        parameters: a count.
        connection_sparsity, activation_sparsity: 0 to 1.
        effective_macs, effective_acs, dense_operations: operations a sample.
        membrane_updates: a sample; None where the run did not record the membrane.
    """

    footprint_bytes: int
    parameters: int
    connection_sparsity: float
    activation_sparsity: float
    effective_macs: float
    effective_acs: float
    dense_operations: float
    membrane_updates: float | None


def neurobench_figures(
    network: Network, inputs: Spikes, recording: Recording, *, number_bytes: int = 4
) -> NeuroBench:
    """NeuroBench's figures of a run.

    Args:
        network: with the weights that ran; `LearningSession.learned()` after learning.
        inputs: what ran, (time, [batch,] neuron...), by input if there are several.
        recording: of that run; with record=("membrane",) for the membrane updates.
        number_bytes: bytes of a stored number: 4 for float32, 1 for a weight of 8 bits.

    Raises:
        Invalid: a recording of another network, number of steps or batch.
    """
    given, _ = as_batches(network, inputs)
    steps, batch = next(iter(given.values())).shape[:2]
    names = {p.name: p.size for p in network.populations}
    if set(recording.spikes) != set(names):
        raise Invalid(
            "recording", f"expected populations {', '.join(names)}, got "
            f"{', '.join(recording.spikes)}", "Pass what `run` gave for this network",
        )  # fmt: skip
    sent = dict(given)
    for name, size in names.items():
        sent[name] = _flat(name, recording.spikes[name], (steps, batch, size))
    spiking = [sent[p.name] for p in network.populations if p.spiking]
    active, activations = sum(map(np.count_nonzero, spiking)), sum(s.size for s in spiking)
    macs = acs = dense = 0
    for k in network.projections:
        more = _operations(k, sent[k.source])
        macs, acs, dense = macs + more[0], acs + more[1], dense + more[2]
    zero, weights = _zeros(network)
    return NeuroBench(
        footprint_bytes=_footprint(network, number_bytes),
        parameters=_parameters(network),
        connection_sparsity=zero / weights if weights else 0.0,
        activation_sparsity=1 - active / activations if activations else 0.0,
        effective_macs=macs / batch,
        effective_acs=acs / batch,
        dense_operations=dense / batch,
        membrane_updates=_membrane_updates(network, recording, steps, batch),
    )


def _flat(name: str, values: Array, shape: tuple[int, int, int]) -> Array:
    """A record as (time, batch, size)."""
    if values.shape[0] != shape[0] or values.size != np.prod(shape):
        raise Invalid(
            name, f"expected a record of {shape} (time, batch, size), got {values.shape}",
            "Pass the inputs of the same run",
        )  # fmt: skip
    return values.reshape(shape)


def _operations(k: Projection, sent: Array) -> tuple[int, int, int]:
    """(MACs, ACs, dense operations) of a projection over all steps and samples."""
    macs = acs = dense = 0
    steps, batch = sent.shape[:2]
    for delay, weight in _by_delay(k):
        live = np.asarray((_mask(weight) != 0).sum(axis=0)).ravel()
        dense += _entries(weight) * steps * batch
        arrived = sent[: max(0, steps - delay)]
        used = (arrived != 0) @ live  # (time, batch)
        whole = np.all(np.isin(arrived, (-1, 0, 1)), axis=(1, 2))
        acs += int(used[whole].sum())
        macs += int(used[~whole].sum())
    return macs, acs, dense


def _by_delay(k: Projection) -> Iterator[tuple[int, Weight]]:
    """(delay, the weights with that delay)."""
    if np.ndim(k.delay_steps) == 0:
        yield k.min_delay, k.weight
        return
    for delay in np.unique(k.delay_steps):
        mine = k.delay_steps == delay
        yield int(delay), sp.csr_matrix((k.weight[mine], np.nonzero(mine)), shape=mine.shape)


def _mask(weight: Weight) -> Weight:
    """A matrix [out, in], sparse or not; kernels spread over their positions."""
    return weight if isinstance(weight, np.ndarray) else W.to_sparse(weight)


def _entries(weight: Weight) -> int:
    """Synapses that are stored, zero weights among them; a kernel's padding is none."""
    stored = W.to_sparse(weight).data if isinstance(weight, W.Conv) else W.values(weight)
    return int(stored.size)


def _zeros(network: Network) -> tuple[int, int]:
    """(zero weights, weights)."""
    sizes = [k.weight.shape if sp.issparse(k.weight) else W.values(k.weight).shape
             for k in network.projections]  # fmt: skip
    weights = sum(int(np.prod(shape)) for shape in sizes)
    live = sum(int(np.count_nonzero(W.values(k.weight))) for k in network.projections)
    return weights - live, weights


def _parameters(network: Network) -> int:
    weights = sum(int(W.values(k.weight).size) for k in network.projections)
    return weights + sum(int(b.value.size) for b in network.biases)


def _footprint(network: Network, number_bytes: int) -> int:
    """Parameters, neuron constants, state and delay lines, and the indices of sparse weights."""
    numbers = _parameters(network) + sum(p.size * _kept(p) for p in network.populations)
    for source in {k.source for k in network.projections}:
        longest = max(k.max_delay for k in network.projections if k.source == source)
        numbers += longest * network.size_of(source)
    numbers += sum(np.size(k.delay_steps) for k in network.projections if np.ndim(k.delay_steps))
    sparse = [k.weight for k in network.projections if sp.issparse(k.weight)]
    indices = sum(int(w.nnz) + int(w.shape[0]) + 1 for w in sparse)
    return number_bytes * numbers + INDEX_BYTES * indices


def _kept(p: Population) -> int:
    """Numbers a neuron: du, dv, v_th, drive, u, v; adaptive also rho, theta, n_ref, A and wait."""
    return 11 if p.adaptive else 6


def _membrane_updates(
    network: Network, recording: Recording, steps: int, batch: int
) -> float | None:
    if not recording.membrane:
        return None
    total = 0
    for p in network.populations:
        v = _flat(p.name, recording.membrane[p.name], (steps, batch, p.size))
        total += batch * p.size * (steps > 0) + np.count_nonzero(np.diff(v, axis=0))
    return float(total) / batch

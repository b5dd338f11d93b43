"""A `Network` packed into flat arrays, and the compiled loop that runs them (`neurons.kernels`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from grasp_plugin.errors import Invalid
from grasp_plugin.network import weights as W
from grasp_plugin.network.network import Network, Population, Projection
from grasp_plugin.network.weights import Array
from grasp_plugin.neurons import kernels

_advance_float: Any = kernels.advance_float
_advance_fixed: Any = kernels.advance_fixed


@dataclass(frozen=True, eq=False)
class Packed:
    """A network in the arrays that `kernels.advance_*` take; see there for their meaning."""

    slices: Mapping[str, slice]
    input_slices: Mapping[str, slice]
    depth: int
    v_init: Array
    arrays: tuple[Array, ...]

    @property
    def neurons(self) -> int:
        return int(self.v_init.size)

    @property
    def inputs(self) -> int:
        return sum(s.stop - s.start for s in self.input_slices.values())


def pack(network: Network) -> Packed:
    """Lay out neurons, synapses and biases of a network for the compiled loop."""
    whole = network.precision == "loihi"
    kind, weight_kind = (np.int64, np.int16) if whole else (np.float64, np.float64)
    input_slices = _consecutive({n: network.size_of(n) for n in network.inputs})
    slices = _consecutive({p.name: p.size for p in network.populations})
    inputs = sum(s.stop - s.start for s in input_slices.values())
    place = {n: s.start for n, s in input_slices.items()}
    place |= {n: inputs + s.start for n, s in slices.items()}
    synapses: list[list[int]] = []
    biases: list[list[int]] = []
    populations: list[list[int]] = []
    rows = _Rows(weight_kind)
    bias_values: list[Array] = []
    used = 0
    for p in network.populations:
        first, first_bias = len(synapses), len(biases)
        for k in network.into(p.name):
            for delay, weight in _by_delay(k):
                offset, dense = rows.add(weight)
                synapses.append([place[k.source], weight.shape[1], slices[p.name].start, p.size,
                                 delay, k.weight_exp, offset, dense])  # fmt: skip
        for b in network.biases:
            if b.target == p.name:
                biases.append([b.onset_steps, used, b.weight_exp])
                bias_values.append(b.value)
                used += p.size
        s = slices[p.name]
        populations.append([s.start, s.stop, first, len(synapses), first_bias, len(biases),
                            p.adaptive])  # fmt: skip
    fields = ("du", "dv", "v_th", "drive", "rho", "theta", "n_ref")
    parameters = np.stack(
        [np.concatenate([_parameter(p, f) for p in network.populations]) for f in fields]
    ).astype(kind)
    arrays = (
        parameters,
        np.array([kernels.RESET_CODES[p.reset] for p in network.populations]),
        np.array(populations).reshape(-1, 7),
        np.array(synapses, dtype=np.int64).reshape(-1, 8),
        np.array(biases, dtype=np.int64).reshape(-1, 3),
        np.concatenate([*bias_values, np.zeros(0)]).astype(kind),
        *rows.arrays(),
    )
    depth = 1 + max((k.max_delay for k in network.projections), default=0)
    v_init = np.concatenate([p.v_init for p in network.populations]).astype(kind)
    return Packed(slices, input_slices, depth, v_init, arrays)


class _Rows:
    """Outgoing weights of all projections: dense ones in one array, sparse ones in another."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._dense: list[Array] = []
        self._data: list[Array] = []
        self._target: list[Array] = []
        self._indptr: list[Array] = []
        self._dense_used = self._rows_used = self._sparse_used = 0

    def add(self, weight: W.Weight) -> tuple[int, int]:
        """(offset, is dense) of a weight [out, in], stored by source."""
        if isinstance(weight, np.ndarray):
            self._dense.append(np.ascontiguousarray(weight.T).ravel())
            offset, self._dense_used = self._dense_used, self._dense_used + weight.size
            return offset, 1
        columns = W.to_sparse(weight).tocsc()
        columns.sort_indices()
        offset, self._rows_used = self._rows_used, self._rows_used + columns.shape[1] + 1
        self._indptr.append(columns.indptr.astype(np.int64) + self._sparse_used)
        self._sparse_used += columns.nnz
        self._data.append(columns.data)
        self._target.append(columns.indices)
        return offset, 0

    def arrays(self) -> tuple[Array, ...]:
        """dense, data, target, indptr; never empty, so that one compiled loop serves all."""
        return (
            np.concatenate([*self._dense, np.zeros(1)]).astype(self._kind),
            np.concatenate([*self._data, np.zeros(1)]).astype(self._kind),
            np.concatenate([*self._target, np.zeros(1)]).astype(np.int32),
            np.concatenate([*self._indptr, np.zeros(1)]).astype(np.int64),
        )


def _consecutive(sizes: Mapping[str, int]) -> dict[str, slice]:
    out, at = {}, 0
    for name, size in sizes.items():
        out[name] = slice(at, at + size)
        at += size
    return out


def _by_delay(k: Projection) -> list[tuple[int, W.Weight]]:
    """A projection as one weight a delay."""
    if np.ndim(k.delay_steps) == 0:
        return [(k.min_delay, k.weight)]
    full = W.to_dense(k.weight)
    return [
        (int(d), sp.csr_matrix(np.where(k.delay_steps == d, full, 0)))
        for d in np.unique(k.delay_steps)
    ]


def _parameter(p: Population, field: str) -> Array:
    value = np.asarray(getattr(p, field))
    return value << p.drive_exp if field == "drive" and p.scale is not None else value


@dataclass(eq=False)
class PackedState:
    """One sample's state; `advance` moves it on in place.

    Args:
        packed: the network.
        u, v, s: current, membrane and last output, (neurons,); rest where left out.
        history: recent inputs and outputs, (depth, input neurons + neurons).
        step: steps taken so far.
        adapt, wait: rise of the threshold and silent steps left, (neurons,); see `neurons.lif`.
    """

    packed: Packed
    u: Array = None  # type: ignore[assignment]
    v: Array = None  # type: ignore[assignment]
    s: Array = None  # type: ignore[assignment]
    history: Array = None  # type: ignore[assignment]
    step: int = 0
    adapt: Array = None  # type: ignore[assignment]
    wait: Array = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        packed, kind = self.packed, self.packed.v_init.dtype
        self.v = packed.v_init.copy() if self.v is None else self.v
        for key in ("u", "s", "adapt", "wait"):
            if getattr(self, key) is None:
                setattr(self, key, np.zeros(packed.neurons, kind))
        if self.history is None:
            self.history = np.zeros((packed.depth, packed.inputs + packed.neurons), kind)


def advance(
    packed: Packed,
    state: PackedState,
    x: Array,
    membrane: bool = False,
    margin: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Run len(x) steps; the state moves on in place.

    Args:
        x: inputs (time, input neurons), all inputs side by side.
        membrane: also return the membrane after each step.
        margin: filled with the membrane's distance to the threshold in force at each step, or with
            the membrane of neurons without spikes: (time, neurons), of the dtype of the state.

    Returns:
        (out, membrane, saturated): (time, neurons) twice, the second empty unless asked for, and
        the number of integer membranes at their limit by population.

    Raises:
        Invalid: a margin of another shape or dtype.
    """
    kind, shape = packed.v_init.dtype, (len(x), packed.neurons)
    if margin is None:
        margin = np.empty((0, 0), kind)
    elif margin.shape != shape or margin.dtype != kind or not margin.flags.c_contiguous:
        raise Invalid(
            "margin", f"expected {kind} {shape}, got {margin.dtype} {margin.shape}", "Use np.empty"
        )
    out = np.empty(shape, kind)
    kept = np.empty((len(x) if membrane else 0, packed.neurons), kind)
    saturated = np.zeros(len(packed.slices), np.int64)
    arguments = (state.step, np.ascontiguousarray(x, kind), out, kept, margin, state.history,
                 state.u, state.v, state.s, state.adapt, state.wait, *packed.arrays)  # fmt: skip
    if kind == np.float64:
        _advance_float(*arguments)
    else:
        _advance_fixed(*arguments, saturated)
    state.step += len(x)
    return out, kept, saturated

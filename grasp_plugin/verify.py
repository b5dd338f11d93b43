"""Prove that it is the same network: torch, Lava float, dequantised float and Lava fixed, compared.

torch = Lava float                        spike for spike, away from ties
dequantised float (torch) = Lava fixed    spike for spike where truncation does not matter
float against fixed                       membrane error as predicted (`network.error`)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from grasp_plugin.backends.build import build
from grasp_plugin.errors import Refused
from grasp_plugin.network.error import LayerError, layer_errors
from grasp_plugin.network.naive import naive_scaling
from grasp_plugin.network.network import Network
from grasp_plugin.network.quantise import dequantise, quantise
from grasp_plugin.runtime.session import Recording, Spikes, as_batches

READOUT_TOLERANCE = 1e-9  # of the largest membrane: a sum's rounding, not a difference


@dataclass(frozen=True)
class Comparison:
    """One population.

    Args:
        name: the population.
        entries: (neuron, step, sample) entries compared.
        spikes: reference spikes (torch float); None for a read-out.
        float_mismatches: entries at which Lava float differs from torch.
        closest: least |membrane - threshold| of the reference; None for a read-out.
        closest_at_mismatch: the same over mismatching entries; None if there are none.
        fixed_mismatches: entries at which Lava fixed differs from the dequantised network.
        fixed_vs_float: entries at which Lava fixed differs from torch float.
        naive_vs_float: the same with the old converter's scaling; None where it cannot run.
        error: predicted and found membrane error, without spikes.
        saturated: entries at which the integer membrane was at its limit.
    """

    name: str
    entries: int
    spikes: int | None
    float_mismatches: int
    closest: float | None
    closest_at_mismatch: float | None
    fixed_mismatches: int | None = None
    fixed_vs_float: int | None = None
    naive_vs_float: int | None = None
    error: LayerError | None = None
    saturated: int = 0


@dataclass(frozen=True)
class Verification:
    """All populations, and why the integer part is missing if it is."""

    rows: tuple[Comparison, ...]
    fixed_refused: str | None = None
    recordings: dict[str, Recording] = field(default_factory=dict, repr=False)

    @property
    def same(self) -> bool:
        """True if Lava float equals torch in every entry."""
        return all(row.float_mismatches == 0 for row in self.rows)


def verify(network: Network, spikes: Spikes, progress: bool = False) -> Verification:
    """Run a float network on torch and Lava, float and fixed, and compare every population.

    Args:
        network: precision "float".
        spikes: as `Session.run` takes them.
        progress: show progress bars.

    Raises:
        Refused: Lava is missing or cannot express the network in float. A network that does not
            fit Loihi's integers is reported in `fixed_refused` instead.
    """
    inputs, _ = as_batches(network, spikes)
    shaped = {name: x.reshape(*x.shape[:2], *network.inputs[name]) for name, x in inputs.items()}
    runs = {"torch": _run(network, "torch", shaped, progress, ("margin",))}
    runs["lava float"] = _run(network, "lava", shaped, progress)
    errors: dict[str, LayerError] = {}
    refused = None
    try:
        peak = {name: max(1.0, float(np.abs(x).max())) for name, x in inputs.items()}
        fixed = quantise(network, input_max=peak)
        runs["dequantised"] = _run(dequantise(fixed), "torch", shaped, progress)
        runs["lava fixed"] = _run(fixed, "lava", shaped, progress)
        flat = {n: r.reshape(*r.shape[:2], -1) for n, r in runs["torch"].spikes.items()}
        errors = {e.name: e for e in layer_errors(network, fixed, {**inputs, **flat})}
    except Refused as error:
        refused = str(error)
    if refused is None:
        try:
            runs["naive fixed"] = _run(naive_scaling(network), "lava", shaped, progress)
        except Refused:
            pass  # the old converter has no such neuron: its column stays empty
    rows = tuple(_compare(network, p.name, runs, errors) for p in network.populations)
    return Verification(rows, refused, runs)


def _run(
    network: Network,
    backend: str,
    spikes: Mapping[str, npt.NDArray[np.float64]],
    progress: bool,
    record: tuple[str, ...] = (),
) -> Recording:
    with build(network, backend=backend) as session:
        return session.run(spikes, record=record, progress=progress)


def _compare(
    network: Network, name: str, runs: Mapping[str, Recording], errors: Mapping[str, LayerError]
) -> Comparison:
    spiking = network[name].spiking
    reference = runs["torch"].spikes[name]
    differs = _differs(reference, runs["lava float"].spikes[name], spiking)
    margin = np.abs(runs["torch"].margin[name])

    def against(first: str, second: str) -> int | None:
        if first not in runs or second not in runs or not spiking:
            return None
        return int(np.sum(runs[first].spikes[name] != runs[second].spikes[name]))

    saturated = runs["lava fixed"].saturated.get(name, 0) if "lava fixed" in runs else 0
    return Comparison(
        name=name,
        entries=reference.size,
        spikes=int(reference.sum()) if spiking else None,
        float_mismatches=int(differs.sum()),
        closest=float(margin.min()) if spiking else None,
        closest_at_mismatch=float(margin[differs].min()) if spiking and differs.any() else None,
        fixed_mismatches=against("dequantised", "lava fixed"),
        fixed_vs_float=against("torch", "lava fixed"),
        naive_vs_float=against("torch", "naive fixed"),
        error=errors.get(name),
        saturated=saturated,
    )


def _differs(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], spiking: bool
) -> npt.NDArray[np.bool_]:
    if spiking:
        return np.asarray(first != second)
    tolerance = READOUT_TOLERANCE * max(1.0, float(np.abs(first).max(initial=0.0)))
    return np.asarray(np.abs(first - second) > tolerance)

"""Tables that a person reads, and the same as plain objects for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from grasp_plugin.errors import GraspError, Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.error import ASSUMED_RATE, layer_errors
from grasp_plugin.network.limits import CORES_PER_CHIP, core_use, fits
from grasp_plugin.network.lowering import lava_process, lava_refusal
from grasp_plugin.network.network import Network
from grasp_plugin.network.quantise import quantise
from grasp_plugin.verify import Verification

ESTIMATE = (
    "Loihi 2 figures are estimates from public numbers (8192 neurons and 192 KB a core, "
    f"{CORES_PER_CHIP} cores a chip); bytes per synapse, axon and neuron are assumptions"
)


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str], floatfmt: str = ".3g") -> str:
    return str(tabulate(rows, headers=headers, tablefmt="simple", floatfmt=floatfmt))


def describe(network: Network) -> dict[str, Any]:
    """What `grasp info` says of a network, as a JSON-ready object."""
    fixed: Network | None = None
    reason: str | None = None
    try:
        fixed = quantise(network)
    except GraspError as error:
        reason = str(error)
    timing = lava_refusal(network)
    populations = [
        {
            "name": p.name,
            "node": p.node,
            "shape": list(p.shape),
            "reset": p.reset,
            "adaptive": p.adaptive,
            "lava_float": timing or lava_process(p, "float"),
            "lava_fixed": timing or reason or lava_process((fixed or network)[p.name], "loihi"),
        }
        for p in network.populations
    ]
    projections = [
        {
            "name": k.name,
            "kind": _kind(k.weight),
            "shape": list(k.weight.shape),
            "parameters": int(W.values(k.weight).size),
            "delay_steps": [k.min_delay, k.max_delay],
            "nodes": list(k.nodes),
        }
        for k in network.projections
    ]
    one_chip, cores = fits(network)
    return {
        "dt_s": network.dt_s,
        "inputs": {name: list(shape) for name, shape in network.inputs.items()},
        "outputs": dict(network.outputs),
        "populations": populations,
        "projections": projections,
        "torch": "runs",
        "lava_float": timing or "runs",
        "lava_fixed": timing or reason or "runs",
        "quantisation": [asdict(e) for e in layer_errors(network, fixed)] if fixed else [],
        "loihi": {
            "fits_one_chip": one_chip,
            "cores": cores,
            "estimate": True,
            "source": ESTIMATE,
            "layers": [asdict(row) for row in core_use(network)],
        },
    }


def _kind(weight: Any) -> str:
    if isinstance(weight, W.Conv):
        return "conv"
    return "sparse" if not hasattr(weight, "ndim") or hasattr(weight, "nnz") else "dense"


def info_text(name: str, facts: dict[str, Any]) -> str:
    """`describe` as tables."""
    shapes = ", ".join(f"{n} {tuple(s)}" for n, s in facts["inputs"].items())
    outputs = ", ".join(f"{o} <- {p}" for o, p in facts["outputs"].items())
    parts = [
        f"{name}: dt {facts['dt_s']} s; inputs {shapes}; outputs {outputs}",
        table(
            [
                [p["name"], p["node"], tuple(p["shape"]),
                 (p["reset"] or "-") + (", adaptive" if p["adaptive"] else ""),
                 _short(p["lava_float"]), _short(p["lava_fixed"])]
                for p in facts["populations"]
            ],
            ["population", "node", "shape", "reset", "Lava float", "Lava fixed"],
        ),
        table(
            [
                [k["name"], k["kind"], "x".join(map(str, k["shape"])), k["parameters"],
                 _range(k["delay_steps"]), " > ".join(k["nodes"])]
                for k in facts["projections"]
            ],
            ["projection", "kind", "out x in", "parameters", "delay", "folded nodes"],
        ),
        table(
            [
                [row["name"], row["neurons"], row["synapses"], row["synapse_bytes"],
                 row["axon_bytes"], row["cores"], f"{100 * row['utilisation']:.1f} %"]
                for row in facts["loihi"]["layers"]
            ],
            ["population", "neurons", "synapses", "synapse B", "axon B", "cores", "memory used"],
        ),
        table(
            [
                [e["name"], e["scale"], " ".join(map(str, e["exponents"])),
                 f"{100 * e['at_limit']:.1f} %", e["predicted"], e["worst_v"]]
                for e in facts["quantisation"]
            ],
            ["population", "scale", "weight exponents", "weights at limit",
             "membrane error, predicted", "worst v / 2^23"],
        )
        + f"\n(spikes with probability {ASSUMED_RATE} assumed; `grasp verify` measures)",
        f"Loihi 2: {facts['loihi']['cores']} cores, "
        + ("fits one chip" if facts["loihi"]["fits_one_chip"] else "does not fit one chip")
        + f". {ESTIMATE}.",
    ]  # fmt: skip
    for key in ("lava_float", "lava_fixed"):
        if facts[key] != "runs":
            parts.append(f"{key.replace('_', ' ')} refused: {facts[key]}")
    return "\n\n".join(parts)


def _short(text: str) -> str:
    return text if " " not in text else "refused"


def _range(delays: Sequence[int]) -> str:
    return str(delays[0]) if delays[0] == delays[1] else f"{delays[0]}..{delays[1]}"


def verification_text(result: Verification) -> str:
    """`verify` as a table, with a line on what the columns mean."""
    rows = []
    for row in result.rows:
        error = row.error
        rows.append(
            [
                row.name, row.entries, _or_dash(row.spikes), row.float_mismatches,
                _or_dash(row.closest), _or_dash(row.fixed_mismatches),
                _or_dash(row.fixed_vs_float), _or_dash(row.naive_vs_float),
                _or_dash(error.predicted if error else None),
                _or_dash(error.found if error else None),
                _or_dash(error.scale if error else None), row.saturated,
            ]
        )  # fmt: skip
    text = table(
        rows,
        ["population", "entries", "spikes", "Lava float\n!= torch", "min |v-th|",
         "Lava fixed !=\ndequantised", "fixed !=\nfloat", "old scaling\n!= float",
         "membrane error\npredicted", "found", "scale", "saturated"],
    )  # fmt: skip
    lines = [text, ""]
    for row in result.rows:
        if row.closest_at_mismatch is not None:
            lines.append(
                f"{row.name}: the closest mismatch lies {row.closest_at_mismatch:.3g} from the "
                "threshold; below 1e-12 it is a tie decided by rounding"
            )
    if result.fixed_refused is not None:
        lines.append(f"fixed point refused: {result.fixed_refused}")
    lines.append(
        "float: the same network on Lava"
        if result.same
        else "float: Lava DIFFERS from torch in the entries counted above"
    )
    return "\n".join(lines)


def _or_dash(value: Any) -> Any:
    return "-" if value is None else value


def verification_facts(result: Verification) -> dict[str, Any]:
    """`verify` as a JSON-ready object."""
    return {
        "same": result.same,
        "fixed_refused": result.fixed_refused,
        "populations": [asdict(row) for row in result.rows],
    }


def refusal(error: GraspError) -> dict[str, Any]:
    """An error as the fields of a JSON line."""
    return {
        "status": "refused" if isinstance(error, Refused) else "invalid",
        "node": error.node.split(", node ")[-1].strip("'"),
        "reason": error.reason,
        "remedy": error.remedy,
    }

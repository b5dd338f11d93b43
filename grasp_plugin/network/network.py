"""`Network`: what a simulator needs and nothing that a framework needs.

Time is discrete; t counts steps of `dt_s`. For every population p, in evaluation order,

    a_p[t] = sum_k W_k y_k[t - d_k] + sum_b b [t >= onset_b]    k: projections into p, b: its biases
    u_p[t] = (1 - du) u_p[t-1] + a_p[t]
    m_p[t] = (1 - dv) v_p[t-1] + u_p[t] + drive
    y_p[t] = H(m_p[t] - v_th) and the reset rule gives v_p[t]    spiking; H(x) = 1 if x > 0 else 0
             with v_th + A_p[t] for v_th, 0 while refractory     adaptive (see `neurons.lif`)
    y_p[t] = v_p[t] = m_p[t]                                     not spiking (LI, CubaLI, I)

y_k is the input or the source's output, zero before t = 0. The reset rules are in `neurons.lif`.
All parameters are flat, one entry a neuron in C order. Voltages are kept relative to `v_offset`
(the NIR node's v_reset), so that every reset to a value is a reset to 0, and the input gain of the
neuron's equation is already multiplied into the weights and biases (`gain` undoes it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.adaptation import check_adaptation
from grasp_plugin.network.hints import RESETS
from grasp_plugin.network.weights import Array, Weight


@dataclass(frozen=True, eq=False)
class Population:
    """Neurons of one kind.

    Args:
        name: the NIR node's name.
        shape: (neuron...), e.g. (10,) or (C, H, W).
        node: NIR type, e.g. "LIF"; for writing back.
        reset: one of `hints.RESETS`, or None where the output is the membrane itself.
        du: synaptic decay per step in [0, 1] (1: no synaptic state), shape (size,).
        dv: membrane decay per step in [0, 1] (0: no leak), shape (size,).
        v_th: threshold relative to v_offset, shape (size,).
        drive: constant added to the membrane per step (the leak's pull), shape (size,).
        v_init: membrane before step 0, relative to v_offset, shape (size,).
        gain: factor already multiplied into weights and biases, shape (size,).
        v_offset: voltage that v = 0 stands for, shape (size,).
        scale: weight LSBs per unit of float (Loihi integers only).
        drive_exp: drive = mantissa * 2 ** drive_exp (Loihi integers only).
        rho: what is left of the threshold's rise a step later, in [0, 1], shape (size,).
        theta: rise of the threshold at a spike, >= 0, shape (size,).
        n_ref: silent steps after a spike, integers >= 0, shape (size,).

    The last three are zeros where left out: a fixed threshold, no refractoriness.

    With Loihi integers du, dv are 12-bit registers (du with its hidden +1), v_th a 17-bit mantissa,
    drive a 13-bit mantissa, v_init and theta are in units of 1 / (64 scale), and rho is the 12-bit
    register of its decay, 4096 (1 - rho).
    """

    name: str
    shape: tuple[int, ...]
    node: str
    reset: str | None
    du: Array
    dv: Array
    v_th: Array
    drive: Array
    v_init: Array
    gain: Array
    v_offset: Array
    scale: float | None = None
    drive_exp: int = 0
    rho: Array = None  # type: ignore[assignment]
    theta: Array = None  # type: ignore[assignment]
    n_ref: Array = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for key, kind in (("rho", np.float64), ("theta", np.float64), ("n_ref", np.int64)):
            if getattr(self, key) is None:
                object.__setattr__(self, key, np.zeros(self.size, kind))

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def spiking(self) -> bool:
        return self.reset is not None

    @property
    def adaptive(self) -> bool:
        """True if the threshold rises at spikes or a spike silences the neuron (theta, n_ref)."""
        return bool(np.any(self.theta) or np.any(self.n_ref))


@dataclass(frozen=True, eq=False)
class Projection:
    """Synapses from one source to one population.

    Args:
        name: unique; `source->target`, numbered where there are several.
        source, target: an input's or population's name; a population's name.
        weight: dense [out, in], CSR [out, in] or `Conv`; the target's gain is in it.
        delay_steps: step t of the source acts at step t + delay_steps; an integer or, with a dense
            weight, integers [out, in]. Every recurrent projection has at least 1.
        weight_exp: the accumulated sum is multiplied by 2 ** weight_exp (Loihi integers only).
        nodes: the NIR nodes folded into it, from source to target.
    """

    name: str
    source: str
    target: str
    weight: Weight
    delay_steps: int | Array = 0
    weight_exp: int = 0
    nodes: tuple[str, ...] = ()

    @property
    def min_delay(self) -> int:
        return int(np.min(self.delay_steps))

    @property
    def max_delay(self) -> int:
        return int(np.max(self.delay_steps))


@dataclass(frozen=True, eq=False)
class Bias:
    """A constant input to `target` from step `onset_steps` on, shape (size,); gain included."""

    name: str
    target: str
    value: Array
    onset_steps: int = 0
    weight_exp: int = 0


@dataclass(frozen=True, eq=False)
class Network:
    """A spiking network in discrete time. See the module's equations.

    Args:
        populations: in evaluation order (sources before targets along undelayed projections).
        projections, biases: their inputs.
        inputs: name -> shape (neuron...).
        outputs: NIR output node -> population.
        dt_s: seconds a step, or None where no parameter depends on it.
        precision: "float" or "loihi" (integers, see `quantise`).
        provenance: where it came from and the choices made; free text values.

    Raises:
        Invalid: a name is missing or used twice, a shape or value is wrong, or an undelayed loop.
    """

    populations: tuple[Population, ...]
    projections: tuple[Projection, ...]
    biases: tuple[Bias, ...]
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, str]
    dt_s: float | None = None
    precision: str = "float"
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    def __getitem__(self, name: str) -> Population:
        for population in self.populations:
            if population.name == name:
                return population
        known = ", ".join(p.name for p in self.populations)
        raise Invalid(
            name, f"expected a population, one of {known}, got {name!r}", "Check the name"
        )

    def size_of(self, source: str) -> int:
        """Number of neurons of an input or population."""
        shape = self.inputs[source] if source in self.inputs else self[source].shape
        return int(np.prod(shape))

    def into(self, target: str) -> tuple[Projection, ...]:
        """The projections into a population."""
        return tuple(p for p in self.projections if p.target == target)

    def graded(self, source: str) -> bool:
        """True if a source may send other values than 0 and 1 (inputs, non-spiking populations)."""
        return source in self.inputs or not self[source].spiking

    def weights(self) -> dict[str, Array]:
        """Parameters by projection: the matrix, the stored non-zeros or the kernel."""
        return {p.name: W.values(p.weight) for p in self.projections}

    def with_weights(self, new: Mapping[str, Array]) -> Network:
        """The same network with other parameters for the projections and biases named in `new`.

        Raises:
            Invalid: an unknown projection or bias, or a wrong shape.
        """
        known = {b.name: b.value for b in self.biases} | self.weights()
        for name, value in new.items():
            if name not in known:
                raise Invalid(
                    name,
                    f"expected a projection or bias, one of {', '.join(known)}, got {name!r}",
                    "Check the name against network.weights()",
                )
            expected = known[name].shape
            if np.shape(value) != expected:
                raise Invalid(
                    name,
                    f"expected weights of shape {expected}, got {np.shape(value)}",
                    "Pass what network.weights() gives, changed",
                )
        replaced = tuple(
            replace(p, weight=W.with_values(p.weight, np.asarray(new[p.name])))
            if p.name in new
            else p
            for p in self.projections
        )
        biases = tuple(
            replace(b, value=np.asarray(new[b.name])) if b.name in new else b for b in self.biases
        )
        return replace(self, projections=replaced, biases=biases)

    def __str__(self) -> str:
        lines = [f"Network ({self.precision}, dt {self.dt_s} s)"]
        lines += [f"  input {name} {tuple(shape)}" for name, shape in self.inputs.items()]
        for p in self.populations:
            adaptive = ", adaptive" if p.adaptive else ""
            lines.append(f"  {p.name}: {p.node} {p.shape}, reset {p.reset}{adaptive}")
        for k in self.projections:
            kind = type(k.weight).__name__.replace("ndarray", "dense").replace("_matrix", "")
            delay = k.min_delay if k.min_delay == k.max_delay else f"{k.min_delay}..{k.max_delay}"
            lines.append(f"  {k.name}: {kind.lower()} {k.weight.shape}, delay {delay}")
        lines += [f"  output {name} <- {source}" for name, source in self.outputs.items()]
        return "\n".join(lines)


def require_network(value: object) -> None:
    """Raise `Invalid` unless the value is a `Network`."""
    if not isinstance(value, Network):
        raise Invalid(
            "network",
            f"expected a Network, got {type(value).__name__}",
            "Pass discretise(graph), and for a file discretise(read_nir(path))",
        )


def evaluation_order(names: list[str], projections: tuple[Projection, ...]) -> list[str]:
    """Names sorted so that every undelayed projection goes forward.

    Raises:
        Refused: an undelayed loop, named.
    """
    waiting = {name: set[str]() for name in names}
    for p in projections:
        if p.min_delay == 0 and p.source in waiting:
            waiting[p.target].add(p.source)
    order: list[str] = []
    while waiting:
        ready = sorted(name for name, sources in waiting.items() if not sources - set(order))
        if not ready:
            loop = " -> ".join(sorted(waiting))
            raise Refused(
                loop,
                "expected every loop to hold at least one step of delay, got a loop without any",
                "Pass loop='each' (every projection inside a loop takes one step), or name the "
                "feedback edges",
            )
        order += ready
        for name in ready:
            del waiting[name]
    return order


def _check(network: Network) -> None:
    names = [p.name for p in network.populations]
    everything = [*network.inputs, *names]
    if len(set(everything)) != len(everything):
        twice = sorted({n for n in everything if everything.count(n) > 1})
        raise Invalid(", ".join(twice), "expected names used once, got them twice", "Rename one")
    for p in network.populations:
        _check_population(p)
        check_adaptation(p, network.precision)
    for k in network.projections:
        if k.source not in everything or k.target not in names:
            raise Invalid(
                k.name,
                f"expected source and target among {everything}, got {k.source} -> {k.target}",
                "Add the population or remove the projection",
            )
        expected = (network[k.target].size, network.size_of(k.source))
        if tuple(k.weight.shape) != expected:
            raise Invalid(
                k.name, f"expected a weight {expected}, got {k.weight.shape}", "Check the shapes"
            )
        if not np.all(np.isfinite(W.values(k.weight))):
            raise Invalid(k.name, "expected finite weights, got NaN or inf", "Check the training")
        if k.min_delay < 0 or np.shape(k.delay_steps) not in ((), expected):
            raise Invalid(
                k.name,
                f"expected delays >= 0, one integer or {expected}, got {np.shape(k.delay_steps)} "
                f"with minimum {k.min_delay}",
                "Check the delays",
            )
    for b in network.biases:
        if b.target not in names or b.value.shape != (network[b.target].size,):
            raise Invalid(b.name, f"bias does not fit population {b.target}", "Check its shape")
        if not np.all(np.isfinite(b.value)):
            raise Invalid(b.name, "expected a finite bias, got NaN or inf", "Check the training")
    for output, source in network.outputs.items():
        if source not in names:
            raise Invalid(output, f"expected a population, got {source!r}", "Check the name")
    if evaluation_order(names, network.projections) != names:
        position = {name: i for i, name in enumerate(names)}
        for k in network.projections:
            if k.min_delay == 0 and k.source in position:
                if position[k.source] >= position[k.target]:
                    raise Invalid(k.name, "expected its source before its target", "Reorder")


def _check_population(p: Population) -> None:
    if p.reset is not None and p.reset not in RESETS:
        raise Invalid(
            p.name, f"expected a reset of {', '.join(RESETS)}, got {p.reset!r}", "Pick one"
        )
    for f in fields(p):
        value: Any = getattr(p, f.name)
        if not isinstance(value, np.ndarray):
            continue
        if value.shape != (p.size,):
            raise Invalid(
                p.name,
                f"expected {f.name} of shape ({p.size},), got {value.shape}",
                "Give one value per neuron, flattened in C order",
            )
        if not np.all(np.isfinite(value)):
            raise Invalid(p.name, f"expected finite {f.name}, got NaN or inf", "Check the node")

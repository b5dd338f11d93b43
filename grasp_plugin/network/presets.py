"""The networks of the papers, ready made: DECOLLE's layers and ETLP's recurrent one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.network.network import Bias, Network, Population, Projection


def decolle_network(
    sizes: Sequence[int],
    *,
    alpha: float = 0.97,
    beta: float = 0.92,
    alpha_rp: float = 0.65,
    w_rp: float = 1.0,
    weight_scale: float = 1.0,
    dt_s: float = 1e-3,
    seed: int = 0,
) -> Network:
    """Dense layers of DECOLLE's neuron: a current, a membrane, a separate refractory state.

    U[t] = W P[t] + b + R[t],  S = H(U)                     P, R: `neurons.adaptive.decolle_step`

    as a `Network`: P reads the current of the step before (a delay of one step); its gain
    (1 - alpha)(1 - beta) is in the weights; -R is an adaptive threshold, and U the margin to it.

    Args:
        sizes: inputs, then neurons of each layer.
        alpha, beta, alpha_rp: decays per step of membrane, current and refractory state.
        w_rp: strength of the refractory state.
        weight_scale: weights and biases ~ U(-s, s) / sqrt(fan in), in DECOLLE's units.
        dt_s: seconds a step, for files.
        seed: of the weights.

    Raises:
        Invalid: fewer than two sizes.

    References:
        Kaiser, Mostafa, Neftci, Front. Neurosci. 14:424, 2020. The authors initialise by LSUV.

    Departures:
        b is a threshold of -b, which no plan changes: biases do not learn here.
    """
    if len(sizes) < 2:
        raise Invalid("decolle_network", f"expected inputs and layers, got {sizes}", "Add a layer")
    rng = np.random.default_rng(seed)
    gain = (1 - alpha) * (1 - beta)
    names = ["input", *(f"layer{i}" for i in range(1, len(sizes)))]
    populations, projections = [], []
    for i, (fan_in, size) in enumerate(pairwise(sizes), start=1):
        bound = weight_scale / math.sqrt(fan_in)
        weight = gain * rng.uniform(-bound, bound, (size, fan_in))
        populations.append(
            _population(
                names[i], size, "CubaLIF", "none", du=1 - beta, dv=1 - alpha, gain=gain,
                v_th=-rng.uniform(-bound, bound, size), rho=alpha_rp, theta=(1 - alpha_rp) * w_rp,
            )
        )  # fmt: skip
        name = f"{names[i - 1]}->{names[i]}"
        projections.append(Projection(name, names[i - 1], names[i], weight, 1))
    return Network(
        tuple(populations), tuple(projections), (), {"input": (sizes[0],)},
        {"output": names[-1]}, dt_s,
    )  # fmt: skip


def etlp_network(
    inputs: int,
    neurons: int,
    classes: int,
    *,
    tau_v_ms: float | Sequence[float] = 80.0,
    tau_a_ms: float = 10.0,
    tau_o_ms: float = 80.0,
    theta: float = 5.0,
    thr: float = 1.0,
    n_ref: int = 5,
    recurrent: bool = True,
    dt_ms: float = 1.0,
    bias: bool = False,
    seed: int = 0,
) -> Network:
    """ETLP's network: one (recurrent) layer with adaptive thresholds, and a spiking output.

    The neuron is `adaptive.alif_step`. Weights ~ N(0, 1) {0.2, 0.2, 1} / sqrt(fan in) for input,
    recurrence and output, as the authors'.

    Args:
        inputs, neurons, classes: sizes.
        tau_v_ms, tau_a_ms, tau_o_ms: time constants of membrane (one or one a neuron, such as
            `heterogeneous_tau_ms`), threshold and output.
        theta: what a spike adds to the threshold; thr: the threshold; n_ref: silent steps after it.
        recurrent: with W_rec, one step late.
        dt_ms: a step.
        bias: with a bias for each output neuron, at 0 (not the authors').
        seed: of the weights.

    Raises:
        Invalid: a time constant <= 0.

    References:
        Quintana et al., Neuromorph. Comput. Eng. 2024; authors' code, models.py:67-87, 182-206.

    Departures:
        The authors' output fires from the membrane of the step before.
    """
    rng = np.random.default_rng(seed)
    taus = np.atleast_1d(np.asarray(tau_v_ms, float))
    if min(float(taus.min()), tau_a_ms, tau_o_ms, dt_ms) <= 0:
        raise Invalid("etlp_network", "expected time constants > 0, got one <= 0", "Pass ms")
    hidden = _population(
        "hidden", neurons, "LIF", "subtract-delayed", dv=1 - np.exp(-dt_ms / taus), v_th=thr,
        rho=math.exp(-dt_ms / tau_a_ms), theta=theta, n_ref=n_ref,
    )  # fmt: skip
    output = _population(
        "output", classes, "LIF", "subtract-delayed", dv=1 - math.exp(-dt_ms / tau_o_ms), v_th=thr
    )

    def weights(source: str, target: str, shape: tuple[int, int], scale: float, delay: int) -> Any:
        values = rng.normal(size=shape) * scale / math.sqrt(shape[1])
        return Projection(f"{source}->{target}", source, target, values, delay)

    projections = [weights("input", "hidden", (neurons, inputs), 0.2, 0)]
    if recurrent:
        projections.append(weights("hidden", "hidden", (neurons, neurons), 0.2, 1))
    projections.append(weights("hidden", "output", (classes, neurons), 1.0, 0))
    biases = (Bias("bias->output", "output", np.zeros(classes)),) if bias else ()
    return Network(
        (hidden, output), tuple(projections), biases, {"input": (inputs,)}, {"out": "output"},
        dt_ms / 1e3,
    )  # fmt: skip


def _population(name: str, size: int, node: str, reset: str, **values: Any) -> Population:
    """A population from single values: no current, no drive, nothing adaptive by default."""
    given = {"du": 1.0, "dv": 1.0, "v_th": 1.0, "drive": 0.0, "v_init": 0.0, "gain": 1.0,
             "v_offset": 0.0, "rho": 0.0, "theta": 0.0, "n_ref": 0, **values}  # fmt: skip
    arrays: dict[str, Any] = {k: np.broadcast_to(v, (size,)).copy() for k, v in given.items()}
    return Population(name, (size,), node, reset, **arrays)

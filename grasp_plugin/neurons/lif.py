"""The leaky integrate-and-fire step with every reset rule, for NumPy and torch arrays alike.

With a the input after weights, H(x) = 1 if x > 0 else 0, all arrays (..., neuron):

    u <- (1 - du) u + a
    m  = (1 - dv) v + u + drive
    value               s = H(m - v_th)              v = m - s m
    subtract-delayed    m = m - s_old v_th           s = H(m - v_th)             v = m
    subtract-immediate  s = H(m - v_th)              v = m - s v_th
    snntorch-nodelay    r = H(v_old - v_th)          s = H(m - v_th (1 + r))     v = m - s v_th
    refractory1         m = (1 - s_old) m            s = H(m - v_th)             v = m - s m
    none                s = H(m - v_th)              v = m
    no spike (None)     output v = m

Adaptive populations (theta is given) add A to the threshold that the rule puts in force; what a
spike subtracts, and r, go on with v_th alone:

    A <- rho A + theta s_old
    s  = H(m - v_th (1 + r) - A) where wait_old = 0, else 0
    wait = n_ref where s = 1, else max(wait_old - 1, 0)

`refractory1` clears the membrane at the spike, as Lava's LIFRefractory(1) does, and once more in
the step after it; snnTorch clears it in that step only, with the same spikes.

Sources: snnTorch 1.0.0 (Leaky, Synaptic, RLeaky, RSynaptic, Lapicque), Norse 1.1.0 (LIFBoxCell,
LIFCell, IAFCell) and Lava 0.10 (LIF), each checked spike for spike in tests/parity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grasp_plugin.errors import Invalid

Array = Any  # a NumPy array or torch tensor
State = dict[str, Array]


def heaviside(x: Array) -> Array:
    """H(x) = 1 if x > 0 else 0, in x's own dtype."""
    return (x > 0) * (x * 0 + 1)


def step(
    a: Array,
    state: State,
    *,
    du: Array,
    dv: Array,
    v_th: Array,
    drive: Array,
    reset: str | None,
    spike: Callable[[Array], Array] = heaviside,
    rho: Array = 0.0,
    theta: Array | None = None,
    n_ref: Array = 0,
) -> tuple[Array, State, Array]:
    """One step of the module's equations.

    Args:
        a: input (..., neuron), gain included.
        state: u, v, s of the last step, (..., neuron) each; adaptive: also adapt (A) and wait.
        du, dv, v_th, drive: (neuron,), relative to v_reset as in `Population`.
        reset: one of `hints.RESETS`, or None.
        spike: H, or a surrogate with H as its forward value.
        rho, theta, n_ref: (neuron,) as in `Population`; theta None: not adaptive.

    Returns:
        (output, state, margin): spikes (or the membrane), the new state, and the membrane's
        distance to the threshold that was in force, refractory or not, (..., neuron) each;
        margin 0 is a tie.

    Raises:
        Invalid: an unknown reset.
    """
    u = (1 - du) * state["u"] + a
    v, s_old = state["v"], state["s"]
    m = (1 - dv) * v + u + drive
    if reset is None:
        return m, {"u": u, "v": m, "s": s_old}, m * 0 + 1
    threshold = v_th
    if reset == "subtract-delayed":
        m = m - s_old * v_th
    elif reset == "refractory1":
        m = (1 - s_old) * m
    elif reset == "snntorch-nodelay":
        threshold = v_th * (1 + heaviside(v - v_th))
    elif reset not in ("value", "subtract-immediate", "none"):
        raise Invalid("reset", f"expected a known reset, got {reset!r}", "See hints.RESETS")
    if theta is None:
        margin, more = m - threshold, {}
        s = spike(margin)
    else:
        adapt = rho * state["adapt"] + theta * s_old
        margin = m - (threshold + adapt)
        s = spike(margin) * ready(state)
        more = {"adapt": adapt, "wait": _waiting(state["wait"], s, n_ref)}
    if reset in ("value", "refractory1"):
        v = m - s * m
    elif reset in ("subtract-immediate", "snntorch-nodelay"):
        v = m - s * v_th
    else:
        v = m
    return s, {"u": u, "v": v, "s": s, **more}, margin


def ready(state: State) -> Array:
    """1 where a neuron may spike in the step after `state`, 0 where it is refractory."""
    return 1 - heaviside(state["wait"]) if "wait" in state else state["v"] * 0 + 1


def _waiting(wait: Array, s: Array, n_ref: Array) -> Array:
    fired = heaviside(s)
    return fired * n_ref + (1 - fired) * (wait - 1) * (wait > 1)

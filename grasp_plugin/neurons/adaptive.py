"""The neuron steps of ETLP (adaptive threshold, spiking output) and DECOLLE (separate refractory).

Pure functions like `lif.step`, for NumPy and torch arrays; H(x) = 1 if x > 0 else 0.
All arrays (batch, neuron); `a` is the input after weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace

from grasp_plugin.neurons.lif import heaviside

Array = Any  # a NumPy array or torch tensor
State = dict[str, Array]
Spike = Callable[[Array], Array]


def alif_init(a: Array) -> State:
    """The state before step 0, shaped like the input `a`."""
    return {"v": a * 0, "s": a * 0, "adapt": a * 0, "refractory": a * 0}


def alif_step(
    a: Array,
    state: State,
    *,
    decay: Array,
    rho: Array,
    theta: Array,
    thr: Array,
    n_ref: int = 0,
    spike: Spike = heaviside,
) -> tuple[Array, State, Array, Array]:
    """ETLP's neuron: the threshold rises by theta at each spike and decays with rho.

    A_[t] = rho A_[t-1] + S[t-1]             A[t] = thr + theta A_[t]
    V[t]  = d_v V[t-1] + a[t] - thr S[t-1]                    (a holds the recurrent input too)
    S[t]  = H(V[t] - A[t]) where R[t-1] = 0, else 0
    R[t]  = n_ref where S[t] = 1, else max(R[t-1] - 1, 0)

    Args:
        symbol  argument  unit   shape
        a       a         -      (batch, N)
        d_v     decay     -      () or (N,), per step
        rho     rho       -      (), per step
        theta   theta     -      ()
        thr     thr       -      ()
        n_ref   n_ref     steps  silent steps after a spike
        H       spike     -      H, or a surrogate with H as its forward value

    Returns:
        (S, state, V - A, active), active = 1 where R[t-1] = 0: the `membrane` and `active` of
        `learning.Factors`.

    References:
        Quintana et al., Neuromorph. Comput. Eng. 2024; authors' code, models.py:182-206.
    """
    xp = array_namespace(a)
    adapt = rho * state["adapt"] + state["s"]
    v = decay * state["v"] + a - thr * state["s"]
    margin = v - thr - theta * adapt
    active = xp.astype(state["refractory"] <= 0, a.dtype)
    s = spike(margin) * active
    waiting = xp.clip(state["refractory"] - 1, 0, None)
    refractory = xp.where(s > 0, xp.full_like(waiting, n_ref), waiting)
    return s, {"v": v, "s": s, "adapt": adapt, "refractory": refractory}, margin, active


def output_init(a: Array) -> State:
    """The state before step 0, shaped like the input `a`."""
    return {"v": a * 0, "s": a * 0}


def output_step(
    a: Array, state: State, *, decay: Array, thr: Array, spike: Spike = heaviside
) -> tuple[Array, State, Array]:
    """ETLP's spiking output, which fires from the membrane of the step before.

    V_o[t] = d_o V_o[t-1] + a[t] - thr S_o[t-1]
    S_o[t] = H(V_o[t-1] - thr)

    Returns:
        (S_o, state, V_o[t] - thr): the surrogate is taken at the new membrane.

    References:
        Authors' code, models.py:209-214.
    """
    s = spike(state["v"] - thr)
    v = decay * state["v"] + a - thr * state["s"]
    return s, {"v": v, "s": s}, v - thr


def decolle_init(a: Array) -> State:
    """The state before step 0, shaped like the input `a`."""
    return {"q": a * 0, "p": a * 0, "r": a * 0, "s": a * 0}


def decolle_step(
    a: Array,
    state: State,
    *,
    alpha: Array,
    beta: Array,
    alpha_rp: Array,
    w_rp: Array = 1.0,
    bias: Array = 0.0,
    gain_q: Array | None = None,
    gain_p: Array | None = None,
    gain_r: Array | None = None,
    by_membrane: bool = False,
    spike: Spike = heaviside,
) -> tuple[Array, State, Array]:
    """DECOLLE's neuron with the filters behind the weights; its threshold is 0.

    q[t] = beta q[t-1] + g_q a[t]            p[t] = alpha p[t-1] + g_p q[t-1]
    R[t] = alpha_rp R[t-1] - g_r w_rp S[t-1]
    U[t] = p[t] + b + R[t]                   S[t] = H(U[t])

    With decays that are the same for all inputs, p = W P: the paper's dense product with the
    trace P becomes a sum over the few inputs that spiked.

    Args:
        symbol    argument  unit  shape
        a         a         -     (batch, N): W S_in, spikes times weights, without the bias
        alpha     alpha     -     (), per step
        beta      beta      -     (), per step
        alpha_rp  alpha_rp  -     (), per step
        w_rp      w_rp      -     ()
        b         bias      -     (N,), not filtered
        g_q       gain_q    -     (); None: 1 - beta
        g_p       gain_p    -     (); None: 1 - alpha
        g_r       gain_r    -     (); None: 1 - alpha_rp
                  by_membrane  -  bool: R falls by S[t-1] U[t-1] instead of S[t-1]

    Returns:
        (S, state, U).

    References:
        Kaiser, Mostafa, Neftci, Front. Neurosci. 14:424, 2020; authors' code,
        decolle/base_model.py:208-224 (LIFLayer). gain_q = gain_p = gain_r = 1 are the
        un-normalised gains of lines 274-290 (LIFLayerNonorm); gain_q = tau_s, gain_p = tau_m those
        of BaseLIFLayer (177-190); by_membrane is LIFLayerRefractory (242-260).
    """
    q = beta * state["q"] + (1 - beta if gain_q is None else gain_q) * a
    p = alpha * state["p"] + (1 - alpha if gain_p is None else gain_p) * state["q"]
    fall = (1 - alpha_rp if gain_r is None else gain_r) * w_rp
    r = alpha_rp * state["r"] - fall * state["s"]
    u = p + bias + r
    s = spike(u)
    return s, {"q": q, "p": p, "r": r, "s": s * u if by_membrane else s}, u

"""Losses of spike times and membranes that are smooth where the spike pattern does not change.

Torch tensors; spike times (batch, class) or (batch, neuron, spike) in ms, inf where there is no
spike. All return the mean over the batch. A silent neuron's time has no gradient: `peak_margin`
wakes it through its membrane.

The number of spikes is piecewise constant, its exact gradient 0 almost everywhere:
`spike_count` refuses, and names what to use.

References:
    Wunderlich & Pehle, Scientific Reports 2021: `ttfs_cross_entropy`, `voltage_cross_entropy`.
    Goeltz et al., DelGrad, Nature Communications 2025: the idea of `shift_invariant_mse`.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.deltas import Array


def first_spikes(times: Array) -> Array:
    """(batch, neuron) of (batch, neuron, spike)."""
    return times[:, :, 0]


def _fired(times: Array) -> tuple[Array, Array]:
    """(which are spikes, the times with 0 for none: inf times a zero gradient would be NaN)."""
    xp = array_namespace(times)
    fired = xp.isfinite(times)
    return fired, xp.where(fired, times, xp.zeros_like(times))


def _own(values: Array, labels: Array) -> Array:
    """values[b, labels[b]] (batch,)."""
    return values[array_namespace(values).arange(len(labels)), labels]


def check_labels(labels: Array, times: Array) -> None:
    """Labels (batch,) of the classes of times (batch, class).

    Raises:
        Invalid: another shape, numbers that are not whole, or a class that is not there.
    """
    batch, classes = times.shape
    whole = array_namespace(labels).isdtype(labels.dtype, "integral")
    if tuple(labels.shape) != (batch,) or not whole:
        raise Invalid(
            "labels", f"expected integers of shape ({batch},), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}", "Pass one class a sample",
        )  # fmt: skip
    if batch and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise Invalid(
            "labels", f"expected 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}",
            "Number the classes from 0",
        )  # fmt: skip


def _cross_entropy(z: Array, labels: Array) -> Array:
    """-log softmax(z)_y (batch,)."""
    xp = array_namespace(z)
    shift = xp.max(z, axis=1, keepdims=True)
    return xp.log(xp.sum(xp.exp(z - shift), axis=1)) + shift[:, 0] - _own(z, labels)


def ttfs_cross_entropy(
    times: Array,
    labels: Array,
    *,
    t_end_ms: float,
    tau0_ms: float = 0.5,
    tau1_ms: float = 6.4,
    alpha: float = 3e-3,
) -> Array:
    """Cross-entropy of first spikes: the label's neuron is to be the first.

    z_c = -t_c / tau0        L = -log softmax(z)_y + alpha (e^{t_y / tau1} - 1)

    A silent output has softmax 0 and no gradient. A sample whose label's neuron is silent counts
    t_end / tau0, a constant: to send the others back would silence them too.

    Args:
        times: first spikes (batch, class); labels (batch,), integers.

    Raises:
        Invalid: labels of another shape, not whole, or outside the classes.
    """
    check_labels(labels, times)
    xp = array_namespace(times)
    fired, t = _fired(times)
    spoke = _own(fired, labels)
    heard = fired | ~spoke[:, None]  # a sample without its label: all alike, for a finite loss
    z = xp.where(heard, -t / tau0_ms, xp.zeros_like(t) - xp.inf)
    loss = _cross_entropy(z, labels) + alpha * (xp.exp(_own(t, labels) / tau1_ms) - 1)
    return xp.mean(xp.where(spoke, loss, xp.zeros_like(loss) + t_end_ms / tau0_ms))


def ttfs_cross_entropy_gradient(
    times: Array,
    labels: Array,
    *,
    t_end_ms: float,
    tau0_ms: float = 0.5,
    tau1_ms: float = 6.4,
    alpha: float = 3e-3,
) -> tuple[Array, Array]:
    """(loss (batch,), dL/dt (batch, class)) of `ttfs_cross_entropy` a sample, without autograd.

    dL/dt_y = (1 - p_y) / tau0 + (alpha / tau1) e^{t_y / tau1}      dL/dt_c = -p_c / tau0

    Raises:
        Invalid: labels of another shape, not whole, or outside the classes.
    """
    check_labels(labels, times)
    xp = array_namespace(times)
    fired, t = _fired(times)
    spoke = _own(fired, labels)[:, None]
    z, p = _softmax(fired | ~spoke, t, tau0_ms)
    late = xp.exp(_own(t, labels) / tau1_ms)
    loss = _cross_entropy(z, labels) + alpha * (late - 1)
    own = xp.arange(times.shape[1])[None, :] == labels[:, None]
    d = xp.where(own, (1 - p) / tau0_ms + (alpha / tau1_ms) * late[:, None], -p / tau0_ms)
    silent = xp.zeros_like(loss) + t_end_ms / tau0_ms
    return xp.where(spoke[:, 0], loss, silent), xp.where(spoke & fired, d, xp.zeros_like(d))


def ttfs_cross_entropy_curvature(
    times: Array,
    labels: Array,
    u: Array,
    *,
    tau0_ms: float = 0.5,
    tau1_ms: float = 6.4,
    alpha: float = 3e-3,
) -> Array:
    """Lambda u (batch, class), Lambda = d^2L/dt^2 of `ttfs_cross_entropy` a sample.

    (Lambda u)_c = p_c (u_c - p . u) / tau0^2 + [c = y] (alpha / tau1^2) e^{t_y / tau1} u_y

    Positive semi-definite; 0 where an output or its sample's label is silent.

    Args:
        times: first spikes (batch, class) [ms]; labels (batch,), of the classes.
        u: a change of the times (batch, class) [ms].
    """
    xp = array_namespace(times)
    fired, t = _fired(times)
    spoke = _own(fired, labels)[:, None]
    _, p = _softmax(fired | ~spoke, t, tau0_ms)
    u = xp.where(spoke & fired, u, xp.zeros_like(u))
    own = xp.arange(times.shape[1])[None, :] == labels[:, None]
    bent = p * (u - xp.sum(p * u, axis=1, keepdims=True)) / tau0_ms**2
    late = (alpha / tau1_ms**2) * xp.exp(_own(t, labels) / tau1_ms)[:, None] * u
    out = bent + xp.where(own, late, xp.zeros_like(late))
    return xp.where(spoke & fired, out, xp.zeros_like(out))


def _softmax(heard: Array, t: Array, tau0_ms: float) -> tuple[Array, Array]:
    """(z = -t / tau0, or -inf where not heard; softmax z)."""
    xp = array_namespace(t)
    z = xp.where(heard, -t / tau0_ms, xp.zeros_like(t) - xp.inf)
    p = xp.exp(z - xp.max(z, axis=1, keepdims=True))
    return z, p / xp.sum(p, axis=1, keepdims=True)


def voltage_cross_entropy(v_max: Array, labels: Array) -> Array:
    """-log softmax(V_max)_y of a read-out's maxima over time (batch, class)."""
    return array_namespace(v_max).mean(_cross_entropy(v_max, labels))


def integral_cross_entropy(integral: Array, labels: Array, *, t_end_ms: float) -> Array:
    """-log softmax(int_0^T V dt / T)_y of a read-out's integrals (batch, class)."""
    return array_namespace(integral).mean(_cross_entropy(integral / t_end_ms, labels))


def target_time_mse(times: Array, targets: Array) -> Array:
    """1/2 sum_c (t_c - t*_c)^2 over outputs that spike and have a finite target (batch, class)."""
    xp = array_namespace(times)
    fired, t = _fired(times)
    wanted, target = _fired(targets)
    miss = xp.where(fired & wanted, t - target, xp.zeros_like(t))
    return xp.mean(xp.sum(miss * miss, axis=1)) / 2


def shift_invariant_mse(times: Array, labels: Array, *, delta_ms: float) -> Array:
    """1/2 sum_{c != y} (t_c - t_y - Delta)^2: the label first, by Delta, whenever that is.

    Pairs with a silent neuron count 0. DelGrad uses Delta = 0.2 tau_s; the sum is our reading.
    """
    xp = array_namespace(times)
    fired, t = _fired(times)
    own = xp.arange(times.shape[1])[None, :] == labels[:, None]
    pair = fired & _own(fired, labels)[:, None] & ~own
    miss = xp.where(pair, t - _own(t, labels)[:, None] - delta_ms, xp.zeros_like(t))
    return xp.mean(xp.sum(miss * miss, axis=1)) / 2


def smooth_count(times: Array, *, t_end_ms: float) -> Array:
    """sum_k (1 - t_k / T)^2 (batch, neuron): a count in which a spike at T weighs nothing.

    Spikes come and go through T without a jump; those made or lost by grazing still jump.
    """
    xp = array_namespace(times)
    fired, t = _fired(times)
    weight = (1 - t / t_end_ms) ** 2
    return xp.sum(xp.where(fired, weight, xp.zeros_like(weight)), axis=-1)


def smooth_count_cross_entropy(
    times: Array, labels: Array, *, t_end_ms: float, gain: float = 1.0
) -> Array:
    """-log softmax(gain sum_k (1 - t_k / T)^2)_y of (batch, class, spike)."""
    counts = smooth_count(times, t_end_ms=t_end_ms)
    return array_namespace(times).mean(_cross_entropy(gain * counts, labels))


def spike_count(times: Array, labels: Array) -> Array:
    """Always refuses: no exact gradient of a spike count is of any use.

    Raises:
        Refused: with the smooth losses that take its place.
    """
    del times, labels
    raise Refused(
        "spike_count",
        "expected a loss that is smooth in the spike times, got a spike count: it is piecewise "
        "constant, its exact gradient is 0 almost everywhere",
        "Use smooth_count_cross_entropy, integral_cross_entropy or voltage_cross_entropy on a "
        "LeakyReadout, or ttfs_cross_entropy",
    )


def peak_margin(v_max: Array, theta: Array | float = 1.0, *, margin: float = 0.0) -> Array:
    """1/2 sum_n max(0, theta + margin - V_max)^2 over neurons without a spike.

    Args:
        v_max: (batch, neuron), inf where the neuron spikes (`SpikeTimeLayer.with_peaks`).
        theta: (neuron,) or a number; margin: how far above it silent neurons are drawn.

    Raises:
        Invalid: v_max was not measured.
    """
    xp = array_namespace(v_max)
    if v_max.ndim != 2 or not v_max.shape[-1]:
        raise Invalid(
            "v_max", f"expected (batch, neuron), got {tuple(v_max.shape)}", "Call with_peaks"
        )
    silent, v = _fired(v_max)
    gap = xp.where(silent, theta + margin - v, xp.zeros_like(v))
    gap = xp.where(gap > 0, gap, xp.zeros_like(gap))
    return xp.mean(xp.sum(gap * gap, axis=1)) / 2

"""Learning signals: where the third factor dL/dS comes from.

    RandomReadout      a fixed random readout of the layer's own spikes, and a loss   DECOLLE
    Projection         a label (or an error) through a fixed random matrix, at        ETLP
                       random teaching events
    Backpropagation    the loss at this step through the layers above                 OTTT

Each is a frozen dataclass with `init` and `update` on an explicit state, as a rule is; the fixed
matrices are part of the state and come back unchanged. Random numbers are a hash of (seed, step,
index): the same on NumPy and torch, and after a resume.

All arrays (batch, classes) or (batch, neuron); everything is dimensionless.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.rule import Array, State, counter

# --- losses ------------------------------------------------------------------------------------


class Loss(ABC):
    """A loss of logits y and target, with m = `mask` (batch, 1): 0 where there is no target."""

    @abstractmethod
    def value(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        """The scalar loss."""

    @abstractmethod
    def gradient(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        """dL/dy (batch, classes), with the mean's 1/B in it."""


@dataclass(frozen=True)
class SmoothL1(Loss):
    """L = mean over B C of d^2 / 2 if |d| < 1 else |d| - 1/2,   d = m (y - target)."""

    def value(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        xp = array_namespace(y)
        d = (y - target) * mask
        return xp.mean(xp.where(abs(d) < 1, d * d / 2, abs(d) - 0.5))

    def gradient(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        d = (y - target) * mask
        return array_namespace(y).clip(d, -1.0, 1.0) * mask / math.prod(y.shape)


@dataclass(frozen=True)
class MSE(Loss):
    """L = mean over B C of d^2 (without the 1/2), d = m (y - target)."""

    def value(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        d = (y - target) * mask
        return array_namespace(y).mean(d * d)

    def gradient(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        return 2 * (y - target) * mask * mask / math.prod(y.shape)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """L = -1/B sum_b m_b sum_c target_bc log softmax(y_b)_c."""

    def value(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        xp = array_namespace(y)
        shifted = y - xp.max(y, axis=1, keepdims=True)
        log_p = shifted - xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True))
        return -xp.sum(mask * target * log_p) / y.shape[0]

    def gradient(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        xp = array_namespace(y)
        e = xp.exp(y - xp.max(y, axis=1, keepdims=True))
        p = e / xp.sum(e, axis=1, keepdims=True)
        return mask * (p * xp.sum(target, axis=1, keepdims=True) - target) / y.shape[0]


@dataclass(frozen=True)
class Weighted(Loss):
    """L = sum_k c_k L_k, from pairs (c_k, L_k)."""

    terms: tuple[tuple[float, Loss], ...]

    def value(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        return sum(c * loss.value(y, target, mask) for c, loss in self.terms)

    def gradient(self, y: Array, target: Array, mask: Array = 1.0) -> Array:
        return sum(c * loss.gradient(y, target, mask) for c, loss in self.terms)


def one_hot(labels: Array, classes: int, like: Array, *, node: str = "labels") -> Array:
    """Labels (batch,) as rows of 0 and 1 (batch, classes), in like's dtype.

    Raises:
        Invalid: a label outside 0..classes-1 (named with its place), or not an integer.
    """
    xp = array_namespace(like)
    labels = xp.asarray(labels, device=device(like))
    if not xp.isdtype(labels.dtype, "integral"):
        raise Invalid(node, f"expected integer labels, got {labels.dtype}", "Pass class indices")
    for place, label in enumerate(labels.tolist()):
        if not 0 <= label < classes:
            raise Invalid(
                node,
                f"expected labels in 0..{classes - 1}, got {label} at position {place}",
                f"Raise classes (now {classes}) or mend the label",
            )
    hot = labels[:, None] == xp.arange(classes, device=device(like))[None, :]
    return xp.astype(hot, like.dtype)


# --- random numbers that depend on (seed, step, index) only ---------------------------------------

_WORD = 0xFFFFFFFF


def _mix(x: Array) -> Array:
    """A bijection of 32-bit words held in int64 that leaves no visible pattern."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = x ^ (x >> shift)
        high = ((x >> 16) * factor & 0xFFFF) << 16
        x = ((x & 0xFFFF) * factor + high) & _WORD
    return x ^ (x >> 16)


def uniform(seed: int, step: Array, size: int, like: Array) -> Array:
    """Numbers in [0, 1) (size,), in like's dtype; `step` is a counter (1,)."""
    xp = array_namespace(like)
    index = xp.arange(size, dtype=xp.int64, device=device(like))
    key = _mix(_mix(step & _WORD) ^ (seed & _WORD))
    return xp.astype(_mix((key + index * 0x9E3779B9) & _WORD), like.dtype) / 2**32


def _fixed(values: Any, like: Array) -> Array:
    return array_namespace(like).asarray(values, dtype=like.dtype, device=device(like))


# --- signals --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomReadout:
    """DECOLLE's signal: a local loss behind a fixed random readout.

    Y[t] = G drop(S[t]) + c              G, c ~ U(-a / sqrt(N_o), a / sqrt(N_o)), never trained
    e[t] = (dL/dY) H drop'               H = G, or G times noise that keeps its sign

    Args:
        symbol  argument        unit  shape
        C       classes         -     ()
        a       amplitude       -     ()
        L       loss            -     a `Loss`
                dropout         -     (), share of spikes dropped on the way to the readout
                feedback_noise  -     () in [0, 1): H = G (1 + noise U(-1, 1))
                seed            -     ()

    Raises:
        Invalid: dropout or feedback_noise outside [0, 1).

    References:
        Kaiser et al. 2020; authors' code, lenet_decolle_model.py:142-181, 236-238 and
        base_model.py:468-476, 530-544.
    Departures:
        The noise on H: the paper asks only that it keep the sign of G.
    """

    classes: int
    amplitude: float = 1.0
    loss: Loss = field(default_factory=SmoothL1)
    dropout: float = 0.0
    feedback_noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dropout", "feedback_noise"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise Invalid(
                    "RandomReadout", f"expected {name} in [0, 1), got {value}", f"Lower {name}"
                )

    def init(self, neurons: int, like: Array) -> State:
        """The fixed readout of `neurons` neurons, in like's dtype and on its device."""
        rng = np.random.default_rng(self.seed)
        bound = self.amplitude / math.sqrt(neurons)
        g = rng.uniform(-bound, bound, (self.classes, neurons))
        state = {
            "readout": _fixed(g, like),
            "bias": _fixed(rng.uniform(-bound, bound, self.classes), like),
            "step": counter(like),
        }
        if self.feedback_noise:
            noise = 1 + self.feedback_noise * rng.uniform(-1, 1, g.shape)
            state["feedback"] = _fixed(g * noise, like)
        return state

    def keep(self, spikes: Array, state: State) -> Array:
        """The dropout mask of this step, scaled to a mean of 1 (batch, N_o)."""
        xp = array_namespace(spikes)
        draw = uniform(self.seed, state["step"], math.prod(spikes.shape), spikes)
        kept = xp.reshape(draw, spikes.shape) >= self.dropout
        return xp.astype(kept, spikes.dtype) / (1 - self.dropout)

    def logits(self, spikes: Array, state: State) -> Array:
        """Y without dropout (batch, C): the readout in use."""
        return spikes @ state["readout"].T + state["bias"]

    def update(
        self, spikes: Array, target: Array, state: State, *, mask: Array = 1.0
    ) -> tuple[Array, State]:
        """(e = dL/dS (batch, N_o), state)."""
        keep = self.keep(spikes, state) if self.dropout else 1.0
        y = self.logits(spikes * keep, state)
        feedback = state.get("feedback", state["readout"])
        e = self.loss.gradient(y, target, mask) @ feedback * keep
        return e, {**state, "step": state["step"] + 1}


def activity_penalty(u: Array, strength: float) -> Array:
    """dR/dU of DECOLLE's activity regulariser, for `Factors.direct` (batch, N_o).

    R = r mean(relu(U + 0.01)) + 0.003 r relu(mean(0.1 - sigmoid(U)))       r = `strength`

    References:
        Authors' code, base_model.py:535-539; r = 0 in all shipped configurations.
    """
    xp = array_namespace(u)
    sg = (1 + xp.tanh(u / 2)) / 2
    silent = xp.astype(xp.mean(0.1 - sg) > 0, u.dtype)
    high = xp.astype(u + 0.01 > 0, u.dtype)
    return strength * (high - 3e-3 * silent * sg * (1 - sg)) / math.prod(u.shape)


@dataclass(frozen=True)
class Projection:
    """ETLP's signal: the label through a fixed random matrix, at random teaching events.

    L[t] = event[t] (-y* Bf^T + v_reg V [|V| > thr])        event ~ Bernoulli(p), one per batch
    Bf ~ N(0, 1) / sqrt(N_o)

    With source = "error" (e-prop) y* is replaced by y* - S_o.

    Args:
        symbol  argument      unit  shape
        C       classes       -     ()
        p       probability   -     (), per step; the authors' 100 Hz at 1 ms is 0.1
                source        -     "label" or "error"
        v_reg   v_reg         -     ()
        thr     thr           -     ()
                seed          -     ()

    State:
        "event" (1,) is 1 after a step with an event, else 0; the output layer, which learns from
        S_o - y* at the same events, multiplies its signal by it.

    Raises:
        Invalid: probability outside [0, 1]; an unknown source; `output` missing for "error";
            `potential` missing with v_reg.

    References:
        Quintana et al. 2024; authors' code, models.py:51-56 (signal), utils.py:46 (event),
        models.py:67-87 (Bf).
    """

    classes: int
    probability: float = 0.1
    source: str = "label"
    v_reg: float = 0.0
    thr: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise Invalid(
                "Projection", f"expected probability in [0, 1], got {self.probability}",
                "Pass rate_hz * dt_ms / 1000",
            )  # fmt: skip
        if self.source not in ("label", "error"):
            raise Invalid(
                "Projection", f"expected source 'label' or 'error', got {self.source!r}",
                "Pass one of the two",
            )  # fmt: skip

    def init(self, neurons: int, like: Array) -> State:
        """The fixed feedback of `neurons` neurons, in like's dtype and on its device."""
        b = np.random.default_rng(self.seed).normal(size=(neurons, self.classes))
        event = array_namespace(like).zeros((1,), dtype=like.dtype, device=device(like))
        feedback = _fixed(b / math.sqrt(neurons), like)
        return {"feedback": feedback, "step": counter(like), "event": event}

    def update(
        self,
        target: Array,
        state: State,
        *,
        output: Array | None = None,
        potential: Array | None = None,
    ) -> tuple[Array, State]:
        """(L (batch, N_o), state); `output` is S_o (batch, C), `potential` V (batch, N_o)."""
        xp = array_namespace(target)
        if self.source == "error":
            if output is None:
                raise Invalid("Projection", "expected output, got None", "Pass output=S_o")
            target = target - output
        signal = -(target @ state["feedback"].T)
        if self.v_reg:
            if potential is None:
                raise Invalid("Projection", "expected potential, got None", "Pass potential=V")
            beyond = xp.astype(abs(potential) > self.thr, signal.dtype)
            signal = signal + self.v_reg * potential * beyond
        drawn = uniform(self.seed, state["step"], 1, target) < self.probability
        event = xp.astype(drawn, target.dtype)
        return signal * event, {**state, "step": state["step"] + 1, "event": event}


@dataclass(frozen=True)
class Backpropagation:
    """OTTT's signal: the loss of this step, back through the layers above at this step only.

    p[t]          = dL[t]/do[t]                                        at the logits
    dL[t]/ds^l    = g^{l+1}[t] W^{l+1},   g^{l+1} = dL[t]/du^{l+1}     at the spikes of layer l

    Not local: each layer waits for the layers above it.

    References:
        Xiao et al., NeurIPS 2022; authors' code, train_cifar.py:230-236 (loss).
    """

    loss: Loss = field(default_factory=CrossEntropy)

    def top(self, logits: Array, target: Array, mask: Array = 1.0) -> Array:
        """p (batch, C)."""
        return self.loss.gradient(logits, target, mask)

    @staticmethod
    def below(error_above: Array, weight_above: Array) -> Array:
        """dL/ds of a layer (batch, N_i), from dL/du and the weights [N_o, N_i] above it."""
        return error_above @ weight_above


def ottt_loss(steps: int, mse_share: float = 0.0) -> Loss:
    """((1 - m) CE + m MSE) / T, m = `mse_share`, T = `steps`: OTTT's loss of one step."""
    terms = ((1 - mse_share) / steps, CrossEntropy()), (mse_share / steps, MSE())
    return Weighted(terms if mse_share else terms[:1])

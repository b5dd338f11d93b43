"""Learning signals: where the third factor dL/dS comes from.

    RandomReadout      a fixed random readout of the layer's own spikes, and a loss   DECOLLE
    Projection         a label (or an error) through a fixed random matrix, at        ETLP
                       random teaching events
    OutputError        output minus label, at the same events                         ETLP's output
    Backpropagation    the loss at this step through the layers above                 OTTT

Each is a frozen dataclass with `init` and an explicit state, as a rule is; the fixed matrices are
part of the state and come back unchanged. `learning.online.third_factor` calls any of them. Random
numbers are a hash of (seed, step, index): the same on NumPy and torch, and after a resume.

All arrays (batch, classes) or (batch, neuron); everything is dimensionless.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from grasp_plugin.checks import is_whole
from grasp_plugin.errors import Invalid
from grasp_plugin.learning.counter_random import uniform
from grasp_plugin.learning.deltas import Array
from grasp_plugin.learning.losses import CrossEntropy, Loss, SmoothL1
from grasp_plugin.learning.states import State, counter
from grasp_plugin.neurons.surrogate import Sigmoid, Surrogate


def _fixed(values: Any, like: Array) -> Array:
    return array_namespace(like).asarray(values, dtype=like.dtype, device=device(like))


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
        Invalid: classes that are no integer >= 1; dropout or feedback_noise outside [0, 1).

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
        check_classes("RandomReadout", self.classes)
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


def check_classes(culprit: str, classes: Any) -> None:
    """Refuse a number of classes that is no integer >= 1.

    Raises:
        Invalid: names the culprit and what was got.
    """
    if not is_whole(classes, 1):
        raise Invalid(
            culprit, f"expected classes, an integer >= 1, got {classes!r}",
            "Pass how many labels there are",
        )  # fmt: skip


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
                seed          -     () of the events, and of Bf unless
                matrix_seed   -     () is given

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
    matrix_seed: int | None = None

    def __post_init__(self) -> None:
        check_classes("Projection", self.classes)
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
        seed = self.seed if self.matrix_seed is None else self.matrix_seed
        b = np.random.default_rng(seed).normal(size=(neurons, self.classes))
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
        event = teaching_event(self.seed, state["step"], self.probability, target)
        return signal * event, {**state, "step": state["step"] + 1, "event": event}


def teaching_event(seed: int, step: Array, probability: float, like: Array) -> Array:
    """1 with `probability`, else 0, (1,): one draw for the whole batch; `step` (1,) counts them."""
    return array_namespace(like).astype(uniform(seed, step, 1, like) < probability, like.dtype)


@dataclass(frozen=True)
class OutputError:
    """The signal of ETLP's output weights: (S_o - y*) at teaching events, else 0.

    The events are those of every `Projection` with the same probability and seed.

    References:
        Quintana et al. 2024; authors' code, models.py:58-62.
    """

    classes: int
    probability: float = 0.1
    seed: int = 0

    def init(self, neurons: int, like: Array) -> State:
        """The step counter.

        Raises:
            Invalid: neurons is not the number of classes.
        """
        if neurons != self.classes:
            raise Invalid(
                "OutputError", f"expected one output neuron a class, got {neurons} for "
                f"{self.classes} classes", "Pass classes=... to match the output population",
            )  # fmt: skip
        return {"step": counter(like)}

    def update(self, output: Array, target: Array, state: State) -> tuple[Array, State]:
        """(the signal (batch, C), state)."""
        event = teaching_event(self.seed, state["step"], self.probability, target)
        return (output - target) * event, {"step": state["step"] + 1}


@dataclass(frozen=True)
class Backpropagation:
    """OTTT's signal: the loss of this step, back through the layers above at this step only.

    p[t]          = dL[t]/do[t]                                        at the logits
    dL[t]/ds^l    = g^{l+1}[t] W^{l+1},   g^{l+1} = dL[t]/du^{l+1}     at the spikes of layer l

    Not local: each layer waits for the layers above it. `surrogate` is what carries the error from
    the spikes of a population to its membrane; a population that does not spike needs none.

    References:
        Xiao et al., NeurIPS 2022; authors' code, train_cifar.py:230-236 (loss).
    """

    loss: Loss = field(default_factory=CrossEntropy)
    surrogate: Surrogate = field(default_factory=Sigmoid)

    def init(self, neurons: int, like: Array) -> State:
        """Nothing to keep."""
        return {}

    def top(self, logits: Array, target: Array, mask: Array = 1.0) -> Array:
        """p (batch, C)."""
        return self.loss.gradient(logits, target, mask)

    @staticmethod
    def below(error_above: Array, weight_above: Array) -> Array:
        """dL/ds of a layer (batch, N_i), from dL/du and the weights [N_o, N_i] above it."""
        return error_above @ weight_above

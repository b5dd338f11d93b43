"""DECOLLE: deep continuous local learning, from the equations of the paper."""

from __future__ import annotations

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.losses import Loss, SmoothL1
from grasp_plugin.learning.rule import Plan, Rule, ThreeFactor
from grasp_plugin.learning.signals import RandomReadout
from grasp_plugin.learning.traces import Decay, DoubleExponential, Instant
from grasp_plugin.learning.transforms import BurnIn
from grasp_plugin.neurons.surrogate import Boxcar, FastSigmoid


def decolle(
    learning_rate: float,
    *,
    alpha: Decay = 0.97,
    beta: Decay = 0.92,
    gain: float = 1.0,
    gain_q: float | None = None,
    gain_p: float | None = None,
    surrogate: str = "fast_sigmoid",
    burn_in: int = 0,
    official: bool = False,
) -> Rule:
    """The DECOLLE rule of one layer: local readout error times a twice-filtered input.

    Q[t]  = beta Q[t-1] + (1 - beta) g S_in[t]
    P[t]  = alpha P[t-1] + (1 - alpha) Q[t-1]
    dW[t] = -eta sum_b (e[t] sigma'(U[t])) outer P[t]            db[t] = -eta sum_b e sigma'(U)

    e is the signal of `decolle_readout`; U that of `neurons.adaptive.decolle_step`. Nothing
    flows back in time or between layers, so the update is the exact gradient of the local loss.

    Args:
        symbol    argument       unit   shape
        eta       learning_rate  -      ()
        alpha     alpha          -      () or (N_i,), per step
        beta      beta           -      () or (N_i,), per step
        g         gain           -      ()
        1 - beta  gain_q         -      () or None; 1: the authors' LIFLayerNonorm
        1 - alpha gain_p         -      () or None
        sigma'    surrogate      -      "fast_sigmoid" (code) or "boxcar" (paper)
                  burn_in        steps  no update before this step
                  official       -      bool; see Departures

    Raises:
        Invalid: an unknown surrogate; a decay outside [0, 1].

    References:
        Kaiser, Mostafa, Neftci, Front. Neurosci. 14:424, 2020. Authors' code (decolle-public,
        GPL-3, not copied): base_model.py:208-224 (LIFLayer), 25-53 (surrogates).

    Departures:
        None in the gradient. `official` takes the boxcar of the authors' SmoothStep, which is
        half open, (-1/2, 1/2], where the paper's is closed.

    Example:
        >>> import numpy as np
        >>> from grasp_plugin.learning import Factors, decolle
        >>> rule, w = decolle(0.5, alpha=0.5, beta=0.5), np.zeros((1, 1))
        >>> f = Factors(pre=np.ones((1, 1)), membrane=w, signal=np.ones((1, 1)))
        >>> delta, state = rule.update(f, rule.init(w), w)
        >>> delta, state = rule.update(f, state, w)
        >>> delta["weight"].dense(), delta["bias"]
        (array([[-0.125]]), array([-0.5]))
    """
    options = {"fast_sigmoid": FastSigmoid(10.0), "boxcar": Boxcar(0.5, closed_left=not official)}
    if surrogate not in options:
        raise Invalid(
            "decolle", f"expected surrogate in {sorted(options)}, got {surrogate!r}",
            "Pass one of them",
        )  # fmt: skip
    trace = DoubleExponential(alpha, beta, gain, gain_q, gain_p)
    rule = ThreeFactor(trace, options[surrogate], learning_rate, Instant(), name="decolle")
    return Plan(rule, (BurnIn(burn_in),)) if burn_in else rule


def decolle_readout(
    classes: int,
    *,
    amplitude: float = 0.5,
    loss: Loss | None = None,
    dropout: float | None = None,
    feedback_noise: float = 0.0,
    seed: int = 0,
    official: bool = False,
) -> RandomReadout:
    """The signal of `decolle`; `official` drops half of the spikes, as the authors' scripts do.

    References:
        train_lenet_decolle.py:53-54 (dropout 0.5), params_nmnist.yml (amplitude 0.5).
    """
    if dropout is None:
        dropout = 0.5 if official else 0.0
    return RandomReadout(classes, amplitude, loss or SmoothL1(), dropout, feedback_noise, seed)

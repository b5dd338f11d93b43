"""A `LoihiForm` as stock Lava: the learning rule, and a plastic connection that carries it.

dense = learning_dense(weights, loihi_form(rule))
spikes.s_out.connect(dense.s_in)                          # input of the projection
dense.a_out.connect(neurons.a_in)
neurons.s_out_y1.connect(dense.s_in_y1)                   # what `LoihiForm.y_ports` says
"""

from __future__ import annotations

from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.loihi import LoihiForm
from grasp_plugin.runtime.lava_import import kept_logging, require_lava


def stock_rule(form: LoihiForm, *, seed: int = 1) -> Any:
    """Lava's `Loihi3FLearningRule` of a form.

    Args:
        form: from `loihi_form`.
        seed: of the stochastic rounding of traces in the fixed tag; Lava draws one if given none.

    Raises:
        Refused: Lava is not installed.
    """
    learning = require_lava("lava.magma.core.learning.learning_rule")
    return learning.Loihi3FLearningRule(
        dw=form.dw,
        dt=form.dt,
        x1_tau=form.x1_tau,
        x1_impulse=form.x1_impulse,
        x2_tau=form.x2_tau,
        x2_impulse=form.x2_impulse,
        t_epoch=form.t_epoch,
        rng_seed=seed,
    )


def learning_dense(weights: Any, form: LoihiForm, *, seed: int = 1, **options: Any) -> Any:
    """Lava's `LearningDense` with the rule of a form.

    Args:
        weights: (N_o, N_i), finite; whole numbers if the form is for the fixed tag.
        form: from `loihi_form`.
        seed: as in `stock_rule`.
        options: passed to `LearningDense`, such as name or sign_mode.

    Raises:
        Invalid: weights of another shape, not finite, or not whole in the fixed tag.
        Refused: Lava is not installed.
    """
    weights = np.asarray(weights)
    if weights.ndim != 2 or not np.all(np.isfinite(weights)):
        raise Invalid(
            "LearningDense", f"expected finite weights (N_o, N_i), got shape {weights.shape}"
            f"{'' if weights.ndim != 2 else ' with NaN or infinity'}", "Pass a finite matrix",
        )  # fmt: skip
    if form.precision == "fixed" and np.any(weights != np.round(weights)):
        raise Invalid(
            "LearningDense", "expected whole weights for a form of precision 'fixed', got "
            "fractions, which Lava cuts off in silence", "Quantise the weights first",
        )  # fmt: skip
    process = require_lava("lava.proc.dense.process")
    with kept_logging():
        return process.LearningDense(
            weights=weights, learning_rule=stock_rule(form, seed=seed), **options
        )

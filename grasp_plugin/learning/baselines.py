"""The policies that GRASP is compared with, each as a `GRASP`: a comparison swaps one object.

    dense()                  every synapse at every step: the rule itself, counted
    nonzero()                every synapse with a gradient: the dense rule without its idle writes
    random_k(share)          as many at random, of those with a gradient
    magnitude(share)         those with the largest gradient
    error_triggered(share)   the rows of neurons whose error is above a moving threshold
    every(steps)             all with a gradient at every `steps`-th step, none in between
    random_steps(share)      all with a gradient at steps drawn at random
    rows_only(share)         the rows whose gradient is largest, whole
    columns_only(share)      the columns (inputs) whose gradient is largest, whole

`share` is the mean of writes / (N_o N_i), in (0, 1]; where fewer synapses have a gradient, fewer
are written. No policy needs a curvature, so all of them run wherever plans do, Lava included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from grasp_plugin.learning.budget import (
    Every,
    Everything,
    Fixed,
    Marginal,
    NonZero,
    RandomSteps,
)
from grasp_plugin.learning.grasp import GRASP


def dense() -> GRASP:
    """Every synapse at every step, also those without a gradient."""
    return GRASP(Everything(), "magnitude")


def nonzero() -> GRASP:
    """Every synapse with a gradient that is not zero."""
    return GRASP(NonZero(), "magnitude")


def random_k(share: float, seed: int = 0) -> GRASP:
    """share N_o N_i synapses at random, of those with a gradient."""
    return GRASP(Fixed(share), "random", seed=seed)


def magnitude(share: float) -> GRASP:
    """The share N_o N_i synapses with the largest |gradient|."""
    return GRASP(Fixed(share), "magnitude")


def error_triggered(share: float, gain: float = 0.05) -> GRASP:
    """All synapses of neurons with |d_o| > theta; theta moves so that `share` of the rows is held.

    log theta <- log theta + gain (rows written / (share N_o) - 1);  batch 1.

    Args:
        share: of rows, hence of synapses. gain: of the controller, per step.

    Raises:
        Invalid: at the first step, for a batch.

    References:
        Payvand, Fouda, Kurdahi, Eltawil & Neftci, "Error-triggered Three-Factor Learning Dynamics
        for Crossbar Arrays", https://arxiv.org/abs/1910.06152

    Departures:
        Written from the idea of the abstract, updates where the error exceeds a threshold. d_o is
        the rule's error at the membrane, surrogate included, and is written as it is, not by its
        sign. The threshold is moved by a controller of its logarithm, integral only, to hold a
        share that the caller names; the authors' code has a PID controller of the threshold.
    """
    return GRASP(Marginal(share, gain), "error", "row")


def every(steps: int) -> GRASP:
    """All synapses with a gradient at steps `steps` - 1, 2 `steps` - 1, ..."""
    return GRASP(Every(steps), "magnitude")


def random_steps(share: float, seed: int = 0) -> GRASP:
    """All synapses with a gradient at steps drawn with probability `share`; see `RandomSteps`."""
    return GRASP(RandomSteps(share, seed), "magnitude")


def rows_only(share: float) -> GRASP:
    """The share N_o rows with the largest |gradient|, whole: what a Loihi neuron can gate."""
    return GRASP(Fixed(share), "magnitude", "row")


def columns_only(share: float) -> GRASP:
    """The share N_i columns with the largest |gradient|, whole."""
    return GRASP(Fixed(share), "magnitude", "column")


POLICIES: Mapping[str, Callable[[float, int], GRASP]] = MappingProxyType(
    {
        "dense": lambda share, seed: dense(),
        "nonzero": lambda share, seed: nonzero(),
        "random_k": random_k,
        "magnitude": lambda share, seed: magnitude(share),
        "error_triggered": lambda share, seed: error_triggered(share),
        "every": lambda share, seed: every(max(1, round(1 / share))),
        "random_steps": random_steps,
        "rows_only": lambda share, seed: rows_only(share),
        "columns_only": lambda share, seed: columns_only(share),
    }
)
"""By name, (share, seed) -> policy. dense and nonzero take no notice of the share; `every` rounds
1 / share to whole steps."""

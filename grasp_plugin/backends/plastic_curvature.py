"""Which populations send a curvature to their synapses on Lava, and what cannot be sent.

At batch 1 GRASP asks for M d alone, d the error of the synapses: what `LearningSignal` can work out
from what it sees. It cannot serve a synapse that asks for another direction, nor one whose M runs
through other populations.
"""

from __future__ import annotations

from typing import Any

from grasp_plugin.errors import Refused
from grasp_plugin.learning.convolved import Convolved, SharedBias
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.online import OnlineLearner
from grasp_plugin.learning.rule import Plan, Rule, ThreeFactor
from grasp_plugin.learning.signals import Backpropagation

MAGNITUDE = "Use score='magnitude' and a budget without sharpness"
REMEDY = f"{MAGNITUDE}, or backend='fused' or 'torch'"


def bending(plan: Rule | None) -> GRASP | None:
    """The first GRASP of a plan that asks for a curvature."""
    transforms = plan.transforms if isinstance(plan, Plan) else ()
    return next((t for t in transforms if isinstance(t, GRASP) and t.bends), None)


def bending_rules(learner: OnlineLearner) -> dict[str, ThreeFactor]:
    """By population, the rule of the synapses into it that ask for curvature.

    Raises:
        Refused: a plan whose curvature Lava cannot send, with the reason and what to do.
    """
    rules: dict[str, ThreeFactor] = {}
    first: dict[str, str] = {}
    for name, plan in learner.learning.plans.items():
        grasp = bending(plan)
        if grasp is None:
            continue
        population = learner.target_of(name)
        rule = _checked(name, population, grasp, learner)
        known = rules.setdefault(population, rule)
        other = first.setdefault(population, name)
        if known.surrogate != rule.surrogate:
            _refuse(
                name, f"the surrogate of {other!r}, which ends at {population!r} too "
                f"({known.surrogate})", rule.surrogate,
            )  # fmt: skip
    return rules


def _checked(name: str, population: str, grasp: GRASP, learner: OnlineLearner) -> ThreeFactor:
    """The rule of a plan with curvature, if Lava can send it."""
    plan: Any = learner.learning.plans[name]
    signal = learner.learning.signals[population]
    if isinstance(signal, Backpropagation) and population != learner.learning.readout:
        _refuse(
            name, "a signal that closes its own loss", "back-propagation below the readout, whose "
            "curvature runs through the layers above and back, over steps on Lava",
        )  # fmt: skip
    if isinstance(learner.rules[name], (Convolved, SharedBias)):
        what = "weights that the positions of a convolution share"
        _refuse(name, "dense weights", what)
    if not isinstance(plan.rule, ThreeFactor):
        _refuse(name, "a three-factor rule", type(plan.rule).__name__)
    if not plan.rule.trace.rank_one:
        _refuse(name, "a rank-1 trace", f"a trace for each synapse, {plan.rule.trace}")
    if grasp.curvature != "gn":
        _refuse(name, "curvature 'gn'", repr(grasp.curvature))
    return plan.rule  # type: ignore[no-any-return]


def _refuse(name: str, expected: str, got: Any, remedy: str = REMEDY) -> None:
    raise Refused(name, f"expected {expected} for GRASP's curvature on Lava, got {got}", remedy)

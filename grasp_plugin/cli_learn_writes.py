"""`grasp learn --writes SHARE`: learning that writes few synapses, and how many those were."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.budget import Fixed
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.meter import UpdateMeter
from grasp_plugin.learning.recipes import scheduled
from grasp_plugin.learning.spec import Learning
from grasp_plugin.network.network import Network
from grasp_plugin.runtime.learning import LearningSession

SCORES = ("magnitude", "pred_decrease", "abs_gHg", "random")


def add_writes(learn: argparse.ArgumentParser) -> None:
    """The options --writes and --score."""
    learn.add_argument("--writes", type=float, metavar="SHARE",
                       help="write this share of the synapses of each projection at a step, "
                       "biases apart; default: all")  # fmt: skip
    learn.add_argument("--score", choices=SCORES,
                       help="which synapses, with --writes: largest gradient (the default), "
                       "predicted decrease of the loss, |g Hg|, or random ones")  # fmt: skip


def check_writes(arguments: Any) -> None:
    """Refuses a share of nothing or too much, and a score without a share.

    Raises:
        Invalid: either of them.
    """
    share = arguments.writes
    if share is None and arguments.score is not None:
        raise Invalid("--score", "expected --writes with it, got none", "Pass e.g. --writes 0.05")
    if share is not None and not 0 < share <= 1:
        raise Invalid("--writes", f"expected a share in (0, 1], got {share}", "Pass e.g. 0.05")


def score_of(arguments: Any) -> str:
    """The score asked for, or the default."""
    return arguments.score or SCORES[0]


def fewer_writes(learning: Learning, network: Network, arguments: Any) -> Learning:
    """The learning with `GRASP` behind the rule of each projection, if --writes asks for it.

    Biases are few, and those of a convolution cannot be written for some neurons alone.

    Raises:
        Invalid: nothing but biases is left to learn.
    """
    if arguments.writes is None:
        return learning
    only = [k.name for k in network.projections if k.name in learning.plans]
    if not only:
        raise Invalid(
            "--writes", "expected a projection left to learn, got biases alone",
            "Leave it out, or name fewer in --frozen",
        )  # fmt: skip
    grasp = GRASP(Fixed(arguments.writes), score_of(arguments), seed=arguments.seed)
    return scheduled(learning, grasp, only=only)


def provenance_of(arguments: Any) -> dict[str, str]:
    """What the metadata of the learned network say of its writes; nothing without --writes."""
    if arguments.writes is None:
        return {}
    return {"learning_writes": f"{arguments.writes:g}", "learning_score": score_of(arguments)}


def writes_facts(arguments: Any, session: LearningSession) -> dict[str, Any] | None:
    """The counts of all learning so far, a checkpoint's too, as a JSON-ready object.

    `writes` of the `dense` that the rule alone would have made; `uncounted`: plans without a
    scheduler, which are written in full. None without --writes.
    """
    if arguments.writes is None:
        return None
    reading = UpdateMeter(session).read()
    row = reading.total.row()
    return {
        "asked": arguments.writes, "score": score_of(arguments),
        "share": row["issued/dense"], "share_of_nonzero": row["issued/dense_nz"],
        "writes": row["issued"], "dense": row["dense"], "dense_nonzero": row["dense_nz"],
        "changed": row["changed"], "uncounted": sorted(reading.uncounted),
    }  # fmt: skip


def writes_text(facts: Mapping[str, Any]) -> str:
    """`writes_facts` for a person."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.3g} %"

    text = (
        f"writes, chosen by {facts['score']}: {facts['writes']:,} of {facts['dense']:,} "
        f"({percent(facts['share'])}), and {percent(facts['share_of_nonzero'])} of those with a "
        "gradient"
    )
    if facts["changed"] is not None:
        text += f"; {facts['changed']:,} changed a weight in integers"
    if facts["uncounted"]:
        text += f"; written in full, not counted: {', '.join(facts['uncounted'])}"
    return text

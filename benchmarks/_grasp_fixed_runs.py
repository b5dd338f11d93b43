"""One run in Loihi's integers or in float, and the proof that Lava does what `fused` does.

    DECOLLE  64-64-64, its own neuron with thresholds at 0, since a negative one is no register
    ETLP     64-64-10, as in the study
    OTTT     64-64-10; hidden writes come a step late, as they do on Lava

A run is a session of the `fused` back end. Dense is `Everything`, which writes what the bare rule
writes and counts it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import _grasp_tasks as tasks
import numpy as np
from _grasp_runs import at_rate

from grasp_plugin import build, quantise
from grasp_plugin.learning import GRASP, Learning, UpdateMeter, ottt_for, scheduled
from grasp_plugin.learning.budget import Everything, Fixed, NonZero
from grasp_plugin.learning.signals import RandomReadout
from grasp_plugin.network.network import Network

PROOF = 3  # samples that Lava learns too
W_MIN, W_MAX = -256, 254
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Case:
    """A rule and what it takes in integers.

    Args:
        make: (inputs, seed, late as on Lava) -> (network, learning at rate 1).
        rate: the learning rate from which a better one is looked for.
        growth: how many times its largest first weight a weight can hold, see `quantise`: less
            leaves weights at their limits, more makes every write coarser.
        readout: its learned linear readout; None: there is none.
    """

    make: Callable[[int, int, bool], tuple[Network, Learning]]
    rate: float
    growth: float
    readout: str | None = "layer1->readout"


def _decolle(inputs: int, seed: int, late: bool) -> tuple[Network, Learning]:
    network, _ = tasks.decolle_made(inputs, seed)
    level = tuple(replace(p, v_th=np.zeros(p.size)) for p in network.populations)
    network = replace(network, populations=level)
    return network, tasks.decolle_plans(network, seed)


def _etlp(inputs: int, seed: int, late: bool) -> tuple[Network, Learning]:
    return tasks.etlp_made(inputs, seed)


def _ottt(inputs: int, seed: int, late: bool) -> tuple[Network, Learning]:
    network = tasks.layers([inputs, tasks.HIDDEN, tasks.CLASSES], seed)
    return network, ottt_for(network, tasks.CLASSES, 1.0, pipelined=late)


CASES = {
    "decolle": Case(_decolle, 5e-3, 4.0, None), "etlp": Case(_etlp, 1e-3, 1.0),
    "ottt": Case(_ottt, 5e-3, 4.0),
}  # fmt: skip
LADDER = [float(f"{m}e{e}") for e in range(-5, 0) for m in (1, 2, 5)]


def _fixed(share: float, score: str = "magnitude", grain: str = "weight") -> GRASP:
    return GRASP(Fixed(share), score, grain)


POLICIES: dict[str, tuple[GRASP, GRASP | None]] = {  # of all, and another of the readout
    "dense": (GRASP(Everything(), "magnitude"), None),
    "changes": (GRASP(NonZero(), "change"), None),
    "magnitude 10 %": (_fixed(0.1), None),
    "hidden 5 %": (_fixed(0.05), GRASP(NonZero(), "magnitude")),
    "change 1 %": (_fixed(0.01, "change"), None),
    "magnitude 5 %": (_fixed(0.05), None),
    "random 10 %": (_fixed(0.1, "random"), None),
    "rows 10 %": (_fixed(0.1, "magnitude", "row"), None),
}
SAME_AS_DENSE = ("changes",)  # bit for bit, so at its learning rate


def policies(rule: str) -> list[str]:
    """Those that differ for a rule."""
    return [p for p, (_, own) in POLICIES.items() if own is None or CASES[rule].readout]


def planned(rule: str, policy: str, seed: int, lr: float, late: bool) -> tuple[Network, Learning]:
    """A float network and what learns it, scheduled by a policy."""
    case = CASES[rule]
    network, learning = case.make(64, seed, late)
    learning = _at(learning, lr)
    everywhere, own = POLICIES[policy]
    if own is None or case.readout is None:
        return network, scheduled(learning, everywhere)
    hidden = [name for name in learning.plans if name != case.readout]
    learning = scheduled(learning, everywhere, only=hidden)
    return network, scheduled(learning, own, only=[case.readout])


def session(rule: str, policy: str, lr: float, seed: int, backend: str = "fused") -> Any:
    """A learning session in integers; dense on Lava is the bare rule, without a scheduler."""
    network, learning = planned(rule, policy, seed, lr, True)
    if (policy, backend) == ("dense", "lava"):
        learning = _at(CASES[rule].make(64, seed, True)[1], lr)
    whole = quantise(network, plastic=list(learning.plans), growth=CASES[rule].growth)
    return build(whole, backend, plans=learning, seed=seed)


def _at(learning: Learning, lr: float) -> Learning:
    """Every rule lr times as fast, those with transforms too."""
    plans: Any = learning.plans
    bare = {n: getattr(p, "rule", p) for n, p in plans.items()}
    fast = at_rate(replace(learning, plans=bare), lr).plans
    held = {n: replace(p, rule=fast[n]) if hasattr(p, "rule") else fast[n]
            for n, p in plans.items()}  # fmt: skip
    return replace(learning, plans=held)


def learned(task: tasks.Task, rule: str, policy: str, lr: float, seed: int) -> dict[str, Any]:
    """One run in integers: accuracies, writes, what they changed, and what was clipped."""
    with session(rule, policy, lr, seed) as s:
        s.learn(*_given(task.parts["train"], seed))
        total = UpdateMeter(s).read().total
        clipped = {f"clipped_{kind}": sum(c[kind] for c in s.clipped().values())
                   for kind in ("weights", "errors", "traces")}  # fmt: skip
        weights = np.concatenate([w.ravel() for w in s.weights().values()])
        found = _accuracies(s, task, seed)
    return {
        **found, "writes": total.share, "writes_per_nz": total.share_nz,
        "changed": (total.changed or 0) / max(total.issued, 1),
        "clipped": clipped["clipped_weights"] / max(total.issued, 1), **clipped,
        "at_limit": np.mean((weights == W_MIN) | (weights == W_MAX)),
    }  # fmt: skip


def in_float(task: tasks.Task, rule: str, policy: str, lr: float, seed: int) -> dict[str, Any]:
    """The same run in float: accuracies and writes."""
    network, learning = planned(rule, policy, seed, lr, False)
    with build(network, "fused", plans=learning) as s:
        s.learn(*_given(task.parts["train"], seed))
        total = UpdateMeter(s).read().total
        found = _accuracies(s, task, seed)
    return {**found, "writes": total.share, "writes_per_nz": total.share_nz}


def _given(part: tasks.Part, seed: int, most: int | None = None) -> tuple[Array, Array]:
    """Spikes (T, n, N_in) and labels (n,) of a seed."""
    return part.x[seed, :most].swapaxes(0, 1).astype(float), part.labels[seed, :most]


def _accuracies(s: Any, task: tasks.Task, seed: int) -> dict[str, float]:
    return {f"accuracy_{n}": _accuracy(s, task.parts[n], seed) for n in ("validation", "test")}


def _accuracy(s: Any, part: tasks.Part, seed: int) -> float:
    """Share of samples whose summed logits are largest at their label."""
    x, labels = _given(part, seed)
    readout = s.learning.readout
    logits = s.run(x).spikes[readout].sum(0)
    signal = s.learning.signals[readout]
    if isinstance(signal, RandomReadout):
        fixed = signal.init(logits.shape[1], np.zeros(1))
        logits = logits @ fixed["readout"].T + len(x) * fixed["bias"]
    return float(np.mean(logits.argmax(1) == labels))


def same_on_lava(task: tasks.Task, rule: str, policy: str, lr: float, samples: int = PROOF) -> bool:
    """Whether Lava and `fused` have the same integer weights after each of a few samples."""
    x, labels = _given(task.parts["train"], 0, samples)
    with session(rule, policy, lr, 0, "lava") as one, session(rule, policy, lr, 0) as other:
        first, same = other.weights(), True
        for i in range(samples):
            for s in (one, other):
                s.learn(x[:, i], labels[i])
            pairs = [(w, other.weights()[n]) for n, w in one.weights().items()]
            same &= all(np.array_equal(a, b) for a, b in pairs)
        moved = all(np.any(w != first[n]) for n, w in other.weights().items())
        return bool(same and moved and one.clipped() == other.clipped())

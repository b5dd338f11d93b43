"""One run in Loihi's integers, many in float, and the proof that Lava does what `fused` does.

    DECOLLE  64-64-64, its own neuron with thresholds at 0, since a negative one is no register
    ETLP     64-64-10, as in the study
    OTTT     64-64-10; in integers hidden writes come a step late, as they do on Lava

In integers a run is a session of the `fused` back end; in float, of `_grasp_runs`, side by side.
Dense is `Everything`, which writes what the bare rule writes and counts it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import _grasp_tasks as tasks
import numpy as np
from _grasp_policies import Policy, Run
from _grasp_runs import Engine, at_rate
from tqdm import tqdm

from grasp_plugin import build, quantise
from grasp_plugin.learning import GRASP, Learning, UpdateMeter, ottt_for, scheduled
from grasp_plugin.learning.budget import Everything, Fixed
from grasp_plugin.learning.signals import RandomReadout
from grasp_plugin.network.network import Network
from grasp_plugin.network.quantise import integers

PROOF = 3  # samples that Lava learns too
W_MIN, W_MAX = -256, 254
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Case:
    """A rule and what it takes in integers.

    Args:
        make: (inputs, seed, late as on Lava) -> (network, learning at rate 1).
        rates: learning rates tried.
        growth: how many times its largest first weight a weight can hold, see `quantise`: less
            leaves weights at their limits, more makes every write coarser.
        room: how many times the first weights' largest sum a membrane can hold; costs nothing as
            long as weights keep their bits.
    """

    make: Callable[[int, int, bool], tuple[Network, Learning]]
    rates: tuple[float, ...]
    growth: float
    room: float


def _decolle(inputs: int, seed: int, late: bool) -> tuple[Network, Learning]:
    network, learning = tasks.decolle_made(inputs, seed)
    level = tuple(replace(p, v_th=np.zeros(p.size)) for p in network.populations)
    return replace(network, populations=level), learning


def _etlp(inputs: int, seed: int, late: bool) -> tuple[Network, Learning]:
    return tasks.etlp_made(inputs, seed)


def _ottt(inputs: int, seed: int, late: bool) -> tuple[Network, Learning]:
    network = tasks.layers([inputs, tasks.HIDDEN, tasks.CLASSES], seed)
    return network, ottt_for(network, tasks.CLASSES, 1.0, pipelined=late)


CASES = {
    "decolle": Case(_decolle, (3e-3, 1e-2, 3e-2), 4.0, 1.0),
    "etlp": Case(_etlp, (3e-4, 1e-3, 3e-3), 1.0, 16.0),
    "ottt": Case(_ottt, (2e-3, 5e-3, 1.25e-2), 4.0, 16.0),
}
POLICIES: dict[str, tuple[GRASP, Policy, float]] = {  # in integers; in float, with its share
    "dense": (GRASP(Everything(), "magnitude"), Policy("dense", grain="all"), 1.0),
    "magnitude 5 %": (GRASP(Fixed(0.05), "magnitude"), Policy("magnitude"), 0.05),
    "magnitude 10 %": (GRASP(Fixed(0.1), "magnitude"), Policy("magnitude"), 0.1),
    "magnitude 20 %": (GRASP(Fixed(0.2), "magnitude"), Policy("magnitude"), 0.2),
    "rows 10 %": (GRASP(Fixed(0.1), "magnitude", "row"), Policy("rows", grain="row"), 0.1),
    "random 10 %": (GRASP(Fixed(0.1), "random"), Policy("random_k", grain="random"), 0.1),
}
FASTER = {"random 10 %": 3.0}  # as in the study: few writes of no choice, three times the rates


def rates(rule: str, policy: str) -> list[float]:
    """Learning rates to try."""
    return [float(f"{FASTER.get(policy, 1.0) * lr:.4g}") for lr in CASES[rule].rates]


# --- in integers ----------------------------------------------------------------------------------


def session(rule: str, policy: str, lr: float, seed: int, backend: str = "fused") -> Any:
    """A learning session in integers; dense on Lava is the bare rule, without a scheduler."""
    case = CASES[rule]
    network, learning = case.make(64, seed, True)
    learning = _at(learning, lr)
    if (policy, backend) != ("dense", "lava"):
        learning = scheduled(learning, POLICIES[policy][0])
    whole = with_room(network, list(learning.plans), case.growth, case.room)
    return build(whole, backend, plans=learning, seed=seed)


def with_room(network: Network, plastic: list[str], growth: float, room: float) -> Network:
    """`quantise`, with membranes that hold `room` times what the first weights can drive.

    `quantise` leaves room for weights to grow, not for the sums that they then drive. A current
    that outgrows 2^23 changes its sign, so that the class of the largest logit is never read.
    """
    wide = {n: room * w for n, w in network.weights().items()}
    roomy = quantise(network.with_weights(wide), plastic=plastic)
    projections = []
    for k in network.projections:
        scale = float(roomy[k.target].scale or 1.0)
        value, exponent = integers(np.asarray(k.weight), scale, W_MAX, growth)
        projections.append(replace(k, weight=value, weight_exp=exponent))
    return replace(roomy, projections=tuple(projections))


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
        found = {f"accuracy_{n}": _accuracy(s, task.parts[n], seed)
                 for n in ("validation", "test")}  # fmt: skip
    return {
        **found, "writes": total.share, "writes_per_nz": total.share_nz,
        "changed": (total.changed or 0) / max(total.issued, 1),
        "clipped": clipped["clipped_weights"] / max(total.issued, 1), **clipped,
        "at_limit": np.mean((weights == W_MIN) | (weights == W_MAX)),
    }  # fmt: skip


def _given(part: tasks.Part, seed: int, most: int | None = None) -> tuple[Array, Array]:
    """Spikes (T, n, N_in) and labels (n,) of a seed."""
    return part.x[seed, :most].swapaxes(0, 1).astype(float), part.labels[seed, :most]


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


def same_on_lava(task: tasks.Task, rule: str, policy: str, samples: int = PROOF) -> bool:
    """Whether Lava and `fused` have the same integer weights after each of a few samples."""
    x, labels = _given(task.parts["train"], 0, samples)
    lr = rates(rule, policy)[-1]
    with session(rule, policy, lr, 0, "lava") as one, session(rule, policy, lr, 0) as other:
        first, same = other.weights(), True
        for i in range(samples):
            for s in (one, other):
                s.learn(x[:, i], labels[i])
            pairs = [(w, other.weights()[n]) for n, w in one.weights().items()]
            same &= all(np.array_equal(a, b) for a, b in pairs)
        moved = all(np.any(w != first[n]) for n, w in other.weights().items())
        return bool(same and moved and one.clipped() == other.clipped())


# --- in float -------------------------------------------------------------------------------------


def in_float(
    task: tasks.Task, rule: str, keys: Sequence[tuple[str, float, int]]
) -> list[tuple[tuple[str, float, int], dict[str, float]]]:
    """Runs (policy, lr, seed) side by side in float, and what each found."""
    names = {Run(*POLICIES[name][1:], lr, seed): (name, lr, seed) for name, lr, seed in keys}
    engine = Engine(list(names), lambda seed: CASES[rule].make(task.inputs, seed, False))
    given = {n: (p.x[engine.seeds], p.labels[engine.seeds]) for n, p in task.parts.items()}
    engine.load(*given["train"], tasks.CLASSES)
    samples = given["train"][0].shape[1]
    with tqdm(total=samples, desc=f"{rule} in float", unit="sample", leave=False) as bar:
        engine.learn(samples, bar.update)
    validation, test = (engine.accuracy(*given[n]) for n in ("validation", "test"))
    issued, live = (engine.scheduler.counts[n].sum(1).numpy() for n in ("issued", "dense_nz"))
    size = sum(a * b for a, b in engine.scheduler.shapes) * int(engine.scheduler.step[0])
    return [
        (names[one], {
            "accuracy_validation": validation[i], "accuracy_test": test[i],
            "writes": issued[i] / size, "writes_per_nz": issued[i] / max(live[i], 1),
        })
        for i, one in enumerate(engine.runs)
    ]  # fmt: skip

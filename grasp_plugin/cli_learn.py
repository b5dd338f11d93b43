"""`grasp learn`: a network goes on learning from a stream of samples, and is written back."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grasp_plugin.accuracy import Curve, prequential
from grasp_plugin.cli_files import check_picture, check_target
from grasp_plugin.cli_learn_writes import (
    add_writes,
    check_writes,
    fewer_writes,
    provenance_of,
    writes_facts,
    writes_text,
)
from grasp_plugin.data.samples import Samples, read_samples, split
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.rule import Plan
from grasp_plugin.learning.signals import RandomReadout
from grasp_plugin.learning.spec import Learning
from grasp_plugin.learning.traces import AdaptiveThreshold, SynapticExponential
from grasp_plugin.network.network import Network
from grasp_plugin.network.weights import Conv
from grasp_plugin.runtime.learning import LearningSession

RATES = {"decolle": 0.1, "etlp": 3e-5, "ottt": 1e-3, "sltt": 1e-3}
"""Learning rates to start from; they suit the networks of `examples/`, in units of the weights."""

DATA_HELP = (
    "an .npz with `spikes` (time, sample, neuron...), as --input of run, and integer `labels` "
    "(sample,); or a folder or zip of N-MNIST, framed at the network's dt and pixels"
)
MEANING = (
    "accuracy: each block is classified with learning off, by the weights so far, then learned from"
)


def add_learn(verbs: Any) -> argparse.ArgumentParser:
    """The verb's parser, without the choices that all verbs share."""
    learn: argparse.ArgumentParser = verbs.add_parser(
        "learn", help="let a model learn from labelled samples"
    )
    learn.add_argument("model", metavar="MODEL.nir")
    learn.add_argument("--rule", choices=tuple(RATES), required=True)
    learn.add_argument("--data", required=True, help=DATA_HELP)
    learn.add_argument("--test", metavar="DATA", help="held-out samples, in the formats of --data")
    learn.add_argument("--held-out", type=float, default=0.2, metavar="SHARE",
                       help="without --test: this share of --data (%(default)s)")  # fmt: skip
    learn.add_argument("--backend", choices=("lava", "fused", "torch"), default="lava")
    learn.add_argument("--precision", choices=("float", "fixed"), default="float")
    learn.add_argument("--growth", type=float, default=2.0, metavar="TIMES",
                       help="fixed point: room for weights, in times the largest")  # fmt: skip
    learn.add_argument("--lr", type=float, help="learning rate; default by rule: "
                       + ", ".join(f"{r} {v:g}" for r, v in RATES.items()))  # fmt: skip
    learn.add_argument("--epochs", type=int, default=1, help="passes through the data")
    learn.add_argument("--block", type=int, default=20, metavar="N",
                       help="samples tested, then learned, at a time (%(default)s)")  # fmt: skip
    learn.add_argument("--seed", type=int, default=0, help="of split, order and random matrices")
    learn.add_argument("--frozen", nargs="+", action="extend", default=[], metavar="NAME",
                       help="what does not learn: projections, biases, or a population "
                       "for all into it")  # fmt: skip
    add_writes(learn)
    learn.add_argument("--classes", type=int, help="default: the size of the output population")
    learn.add_argument("--output", metavar="LEARNED.nir", help="the network with its new weights")
    learn.add_argument("--plot", metavar="ACC.png", help="accuracy over time")
    learn.add_argument("--checkpoint", metavar="FILE",
                       help="go on from FILE if it exists; saved after each epoch")  # fmt: skip
    return learn


@dataclass(frozen=True)
class _Job:
    """What was asked for, checked."""

    arguments: Any
    network: Network
    learning: Learning
    frozen: tuple[str, ...]
    stream: Samples
    held: Samples | None

    @property
    def rate(self) -> float:
        return rate_of(self.arguments)


def rate_of(arguments: Any) -> float:
    """The learning rate asked for, or the rule's own."""
    return RATES[arguments.rule] if arguments.lr is None else float(arguments.lr)


def learn(arguments: Any, network: Network) -> str:
    """The verb: learns from the data, writes what was asked for, and says what came of it."""
    from grasp_plugin.backends.build import build

    job = _job(arguments, network)
    with build(job.network, backend=arguments.backend, plans=job.learning) as session:
        if arguments.checkpoint and Path(arguments.checkpoint).exists():
            session.load(arguments.checkpoint)
        curve = _epochs(job, session)
        held = (curve.held_out[0], curve.held_out[-1]) if job.held else (None, None)
        facts = _facts(job, session, curve, held)
        learned = session.learned()
    if arguments.output:
        _write(job, learned, session.steps, arguments.output)
    if arguments.plot:
        from grasp_plugin.plot import learning_figure

        title = f"{Path(arguments.model).name}: {_title(arguments)}"
        learning_figure([curve], arguments.plot, chance=1 / job.learning.classes, title=title)
    return json.dumps(facts) if arguments.json else _text(facts)


def _job(arguments: Any, network: Network) -> _Job:
    _check_options(arguments)
    outputs = list(dict.fromkeys(network.outputs.values()))
    classes = arguments.classes or network[outputs[0]].size
    stream = read_samples(arguments.data, network, classes)
    held: Samples | None = None
    if arguments.test:
        held = read_samples(arguments.test, network, classes)
    elif arguments.held_out:
        stream, held = split(stream, arguments.held_out, arguments.seed)
    frozen = frozen_names(network, arguments.frozen)
    if arguments.precision == "fixed":
        _refuse_shared_biases(network, frozen)
    learning = learning_for(arguments, network, classes, frozen)
    learning = fewer_writes(learning, network, arguments)
    if arguments.precision == "fixed":
        from grasp_plugin.network.quantise import quantise

        peak = max(1.0, float(np.abs(stream[0]).max(initial=1.0)))
        plastic = list(learning.plans)
        network = quantise(network, peak, plastic=plastic, growth=arguments.growth)
    return _Job(arguments, network, learning, frozen, stream, held)


def _check_options(arguments: Any) -> None:
    for name, low in (("epochs", 1), ("block", 1)):
        if getattr(arguments, name) < low:
            raise Invalid(
                f"--{name}", f"expected {low} or more, got {getattr(arguments, name)}", "Raise it"
            )
    if arguments.seed < 0:
        raise Invalid("--seed", f"expected 0 or more, got {arguments.seed}", "Pass another")
    if arguments.classes is not None and arguments.classes < 2:
        raise Invalid("--classes", f"expected 2 or more, got {arguments.classes}", "Raise it")
    if not np.isfinite(rate_of(arguments)) or rate_of(arguments) <= 0:
        raise Invalid("--lr", f"expected a finite rate > 0, got {arguments.lr}", "Pass another")
    if not 0 <= arguments.held_out < 1:
        raise Invalid(
            "--held-out", f"expected a share in [0, 1), got {arguments.held_out}", "Pass e.g. 0.2"
        )
    check_writes(arguments)
    for name in ("output", "plot", "checkpoint"):  # hours of learning must not end in a lost file
        path = getattr(arguments, name)
        if path:
            (check_picture if name == "plot" else check_target)(path)


def learning_for(
    arguments: Any, network: Network, classes: int, frozen: Collection[str]
) -> Learning:
    """Plans and signals of the rule asked for; on Lava, OTTT's updates come late (`pipelined`)."""
    from grasp_plugin.learning.recipes import decolle_for, etlp_for, ottt_for, sltt_for

    rate = rate_of(arguments)
    if arguments.rule == "decolle":
        learning = decolle_for(network, classes, rate, frozen=frozen, seed=arguments.seed)
    elif arguments.rule == "etlp":
        learning = etlp_for(network, classes, rate, frozen=frozen, seed=arguments.seed)
    else:
        recipe = ottt_for if arguments.rule == "ottt" else sltt_for
        pipelined = arguments.backend == "lava"
        learning = recipe(network, classes, rate, pipelined=pipelined, frozen=frozen)
    if not learning.plans:
        raise Invalid("--frozen", "expected something left to learn, got all frozen", "Name fewer")
    return learning


def frozen_names(network: Network, given: Collection[str]) -> tuple[str, ...]:
    """Projections and biases by name, with a population standing for all that end there.

    Raises:
        Invalid: a name that is none of them.
    """
    targets = {k.name: k.target for k in network.projections}
    targets |= {b.name: b.target for b in network.biases}
    out: list[str] = []
    for name in given:
        meant = [name] if name in targets else [n for n, t in targets.items() if t == name]
        if not meant:
            raise Invalid(
                "--frozen", f"expected a projection, bias or population, one of "
                f"{', '.join(sorted({*targets, *targets.values()}))}, got {name!r}",
                "Check the name",
            )  # fmt: skip
        out += meant
    return tuple(dict.fromkeys(out))


def _refuse_shared_biases(network: Network, frozen: Collection[str]) -> None:
    """The bias of a convolution is one number for many neurons, which integers do not learn."""
    shared = {k.target for k in network.projections if isinstance(k.weight, Conv)}
    names = [b.name for b in network.biases if b.target in shared and b.name not in frozen]
    if names:
        raise Refused(
            "--precision fixed",
            f"expected biases of single neurons to learn, got those of convolutions: "
            f"{', '.join(names)}",
            f"Let them stay as they are with --frozen {' '.join(names)}, or learn with --precision "
            "float",
        )


def _epochs(job: _Job, session: LearningSession) -> Curve:
    from tqdm import tqdm

    arguments, (spikes, labels) = job.arguments, job.stream
    curve = Curve(_title(arguments))
    total = arguments.epochs * len(labels)
    quiet = arguments.json or not sys.stderr.isatty()
    with tqdm(total=total, desc=arguments.rule, unit="sample", disable=quiet) as bar:
        for _ in range(arguments.epochs):
            rng = np.random.default_rng([arguments.seed, session.steps])
            order = rng.permutation(len(labels))
            blocks = prequential(
                session, spikes[:, order], labels[order], curve, block=arguments.block,
                held_out=job.held,
            )  # fmt: skip
            for curve in blocks:
                bar.update(curve.learned - bar.n)
                bar.set_postfix_str(f"accuracy {100 * curve.mean(100):.0f} %")
            if arguments.checkpoint:
                session.save(arguments.checkpoint)
    return curve


def _title(arguments: Any) -> str:
    return f"{arguments.rule} on {arguments.backend}, {arguments.precision}"


def _write(job: _Job, learned: Network, steps: int, path: str) -> None:
    from grasp_plugin.adapters.nir_file import write_nir
    from grasp_plugin.network.quantise import dequantise
    from grasp_plugin.network.to_nir import to_nir

    if learned.precision == "loihi":
        learned = dequantise(learned)
    a = job.arguments
    provenance = {
        "learning_rule": a.rule, "learning_rate": f"{job.rate:g}", "learning_backend": a.backend,
        "learning_precision": a.precision, "learning_seed": str(a.seed),
        "learning_steps": str(steps),
        "learning_frozen": ", ".join(job.frozen), "learning_from": Path(a.model).name,
        **provenance_of(a),
    }  # fmt: skip
    write_nir(to_nir(learned, provenance), path)


def _facts(
    job: _Job, session: LearningSession, curve: Curve, held: tuple[float | None, float | None]
) -> dict[str, Any]:
    """What the verb reports, as a JSON-ready object."""
    a = job.arguments
    clipped = session.clipped() if hasattr(session, "clipped") else {}
    return {
        "model": a.model, "rule": a.rule, "backend": a.backend, "precision": a.precision,
        "learning_rate": job.rate, "seed": a.seed, "epochs": a.epochs,
        "samples": len(job.stream[1]), "held_out_samples": len(job.held[1]) if job.held else 0,
        "learned": sorted(job.learning.plans), "frozen": list(job.frozen),
        "readout": _readout(job.learning), "classes": job.learning.classes,
        "per_synapse": per_synapse(job.learning),
        "held_out": {"before": held[0], "after": held[1]},
        "accuracy": [
            {"after_samples": n, "accuracy": share, "of": size}
            for n, share, size in zip(curve.samples, curve.accuracy, curve.sizes, strict=True)
        ],
        "held_out_over_time": [
            {"after_samples": n, "accuracy": share}
            for n, share in zip(curve.held_samples, curve.held_out, strict=True)
        ],
        "writes": writes_facts(a, session), "clipped": clipped,
        "output": a.output, "plot": a.plot, "checkpoint": a.checkpoint,
    }  # fmt: skip


def _readout(learning: Learning) -> str:
    """Where the class is read from."""
    own = isinstance(learning.signals.get(learning.readout), RandomReadout)
    return f"a fixed random readout of {learning.readout}" if own else learning.readout


def per_synapse(learning: Learning) -> list[str]:
    """The plans whose rule keeps a trace for each synapse, as a hard reset needs."""
    rules = {n: p.rule if isinstance(p, Plan) else p for n, p in learning.plans.items()}
    kinds = (SynapticExponential, AdaptiveThreshold)
    return sorted(n for n, r in rules.items() if isinstance(getattr(r, "trace", None), kinds))


def _text(facts: dict[str, Any]) -> str:
    """`_facts` for a person."""
    from grasp_plugin.report import table

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.1f} %"

    points = facts["accuracy"]
    kept = points[:: max(1, -(-len(points) // 10))]  # at most ten rows
    kept = kept if kept[-1] is points[-1] else [*kept, points[-1]]
    rows = [[p["after_samples"], percent(p["accuracy"]), p["of"]] for p in kept]
    lines = [
        f"{facts['rule']} on {facts['backend']}, {facts['precision']}, learning rate "
        f"{facts['learning_rate']:g}; class read from {facts['readout']}",
        f"learned: {', '.join(facts['learned'])}"
        + (f"; frozen: {', '.join(facts['frozen'])}" if facts["frozen"] else ""),
        "",
        table(rows, ["samples learned", "accuracy", "of block of"]),
        f"({MEANING})",
        "",
        f"held-out accuracy, {facts['held_out_samples']} samples: before "
        f"{percent(facts['held_out']['before'])}, after {percent(facts['held_out']['after'])}",
    ]
    if facts["per_synapse"]:
        lines.insert(2, f"per-synapse traces, as the reset, decays or threshold need them: "
                     f"{', '.join(facts['per_synapse'])}")  # fmt: skip
    if facts["writes"]:
        lines.append(writes_text(facts["writes"]))
    met = {n: c for n, c in facts["clipped"].items() if any(c.values())}
    if met:
        lines.append(f"met their limit in fixed point: {met}")
    lines += [f"wrote {facts[key]}" for key in ("output", "plot", "checkpoint") if facts[key]]
    return "\n".join(lines)

"""The command line `grasp` (also `python -m grasp_plugin`): info, run, verify, learn, convert."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from grasp_plugin.cli_files import check_picture, check_target, in_options, write_arrays
from grasp_plugin.cli_learn import add_learn, learn
from grasp_plugin.data.samples import read_spikes
from grasp_plugin.errors import GraspError, Invalid
from grasp_plugin.network.discretise import INTEGRATORS, SCHEMES, Discretisation, discretise
from grasp_plugin.network.hints import RESETS
from grasp_plugin.network.network import Network


def main(argv: list[str] | None = None) -> int:
    """Run a verb. Exit status: 0 done, 1 `verify` found a difference, 2 an error of the input."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.verb(arguments))
    except GraspError as error:
        return _fail(str(in_options(error, arguments)))
    except BrokenPipeError:  # the reader of our output has gone, e.g. `grasp info | head`
        sys.stdout = open(os.devnull, "w")
        return 0
    except OSError as error:
        return _fail(f"{error.filename or 'file'}: {error.strerror or error}")
    except ValueError as error:  # of a library underneath; 1 would say that `verify` differs
        return _fail(" ".join(str(error).split()))


def _fail(message: str) -> int:
    print(f"grasp: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grasp", description="Spiking networks on Lava.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    info = verbs.add_parser(
        "info", help="what is in a .nir file and what each back end does with it"
    )
    info.add_argument("models", nargs="+", metavar="MODEL.nir")
    info.set_defaults(verb=_info)
    run = verbs.add_parser("run", help="run a model on an input")
    run.add_argument("--backend", choices=("lava", "fused", "torch"), default="lava")
    run.add_argument("--precision", choices=("float", "fixed"), default="float")
    run.add_argument("--output", required=True, metavar="OUT.npz", help="one array per population")
    run.add_argument("--membrane", action="store_true", help="also keep NAME.membrane")
    run.set_defaults(verb=_run)
    verify = verbs.add_parser("verify", help="torch against Lava, float and fixed")
    verify.add_argument("--plot", metavar="PNG", help="also draw rasters and membranes")
    verify.set_defaults(verb=_verify)
    for verb in (run, verify):
        verb.add_argument("model", metavar="MODEL.nir")
        verb.add_argument("--input", required=True, metavar="SPIKES.npy",
                          help="(time, neuron...) or (time, batch, neuron...); .npz: one array an "
                          "input")  # fmt: skip
    convert = verbs.add_parser("convert", help="rewrite a .nir file in another convention")
    convert.add_argument("model", metavar="MODEL.nir")
    convert.add_argument("output", metavar="OUT.nir")
    convert.add_argument("--to-unit", choices=("s", "ms"), default="s", help="unit to write")
    convert.add_argument("--flatten", action="store_true", help="inline nested graphs")
    convert.set_defaults(verb=_convert)
    learner = add_learn(verbs)
    learner.set_defaults(verb=_learn)
    for verb in (info, run, verify, convert, learner):
        _choices(verb)
    return parser


def _choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dt", type=float, metavar="SECONDS", help="seconds a step")
    parser.add_argument("--reset", action="append", default=[], metavar="RULE|NODE=RULE",
                        help=f"one of {', '.join(RESETS)}; repeatable")  # fmt: skip
    parser.add_argument("--time-unit", choices=("s", "ms"), help="unit of the times in the file")
    parser.add_argument("--scheme", choices=tuple(SCHEMES), default="euler")
    parser.add_argument("--integrator", choices=tuple(INTEGRATORS), default="per-step")
    parser.add_argument("--loop", action="append", default=[], metavar="each|SOURCE->TARGET",
                        help="where loops through several populations take their step")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="for programs")


def policy_of(arguments: Any) -> Discretisation:
    """The `Discretisation` that the options spell.

    Raises:
        Invalid: an unknown rule, a node given twice, a loop that is neither "each" nor an edge.
    """
    resets: dict[str, str] = {}
    for given in arguments.reset:
        name, _, rule = given.rpartition("=")
        name = name or "*"
        if name in resets:
            raise Invalid("--reset", f"expected one rule for {name!r}, got two", "Give one")
        resets[name] = rule
    loop: str | tuple[tuple[str, str], ...] | None = None
    if arguments.loop == ["each"]:
        loop = "each"
    elif arguments.loop:
        edges = [tuple(edge.split("->")) for edge in arguments.loop]
        if any(len(edge) != 2 for edge in edges):
            raise Invalid(
                "--loop", f"expected 'each' or SOURCE->TARGET, got {arguments.loop}", "Fix"
            )
        loop = tuple((edge[0], edge[1]) for edge in edges)
    return Discretisation(
        dt_s=arguments.dt, reset=resets or None, scheme=arguments.scheme,
        integrator=arguments.integrator, loop=loop,
    )  # fmt: skip


def _load(path: str, arguments: Any) -> Network:
    from grasp_plugin.adapters.nir_file import read_nir

    policy = policy_of(arguments)
    return discretise(read_nir(path, time_unit=arguments.time_unit), policy)


def _info(arguments: Any) -> int:
    from grasp_plugin.report import describe, info_text, refusal

    policy_of(arguments)  # a wrong option is an error of the call, not of every file
    failed = False
    for path in arguments.models:
        try:
            facts = describe(_load(path, arguments))
            line: dict[str, Any] = {"file": path, "status": "converts", "node": None,
                                    "reason": None, "remedy": None}  # fmt: skip
        except GraspError as error:
            failed, facts = True, {}
            line = {"file": path, **refusal(in_options(error, arguments))}
        if arguments.json:
            print(json.dumps({**line, **facts}))
        elif facts and len(arguments.models) == 1:
            print(info_text(Path(path).name, facts))
        elif facts:
            print(f"{path}: converts; {_summary(facts)}")
        else:
            text = f"{path}: {line['status']}: {line['node']}: {line['reason']}. {line['remedy']}."
            print(text, file=sys.stdout if len(arguments.models) > 1 else sys.stderr)
    return 2 if failed else 0


def _summary(facts: dict[str, Any]) -> str:
    parameters = sum(k["parameters"] for k in facts["projections"])
    neurons = sum(int(np.prod(p["shape"])) for p in facts["populations"])
    fixed = "fixed runs" if facts["lava_fixed"] == "runs" else "fixed refused"
    return (
        f"{len(facts['populations'])} populations, {neurons} neurons, {parameters} weights; Lava "
        f"float {'runs' if facts['lava_float'] == 'runs' else 'refused'}, {fixed}; about "
        f"{facts['loihi']['cores']} Loihi 2 cores (estimate)"
    )


def _run(arguments: Any) -> int:
    from grasp_plugin import build, quantise
    from grasp_plugin.report import table

    check_target(arguments.output)
    network = _load(arguments.model, arguments)
    spikes = read_spikes(arguments.input)
    if arguments.precision == "fixed":
        given = spikes.values() if isinstance(spikes, dict) else [spikes]
        peak = max((float(np.abs(a).max(initial=1.0)) for a in given), default=1.0)
        network = quantise(network, input_max=max(1.0, peak) if np.isfinite(peak) else 1.0)
    record = ("membrane",) if arguments.membrane else ()
    with build(network, backend=arguments.backend) as session:
        recording = session.run(spikes, record=record, progress=sys.stderr.isatty())
    arrays = dict(recording.spikes)
    arrays |= {f"{name}.membrane": v for name, v in recording.membrane.items()}
    write_arrays(arguments.output, arrays)
    rows: list[dict[str, Any]] = [
        {"population": p.name, "shape": list(recording.spikes[p.name].shape),
         "spikes": int(recording.spikes[p.name].sum()) if p.spiking else None,
         "saturated": recording.saturated.get(p.name, 0)}
        for p in network.populations
    ]  # fmt: skip
    if arguments.json:
        print(json.dumps({"output": arguments.output, "backend": arguments.backend,
                          "precision": arguments.precision, "populations": rows}))  # fmt: skip
    else:
        cells = [[r["population"], tuple(r["shape"]), r["spikes"]] for r in rows]
        print(table(cells, ["population", "shape", "spikes"]))
        print(f"wrote {arguments.output}")
    return 0


def _verify(arguments: Any) -> int:
    from grasp_plugin.report import verification_facts, verification_text
    from grasp_plugin.verify import verify

    if arguments.plot:
        check_picture(arguments.plot)
    network = _load(arguments.model, arguments)
    spikes = read_spikes(arguments.input)
    result = verify(network, spikes, progress=sys.stderr.isatty())
    if arguments.plot:
        from grasp_plugin.plot import verification_figure

        verification_figure(network, result, arguments.plot)
    if arguments.json:
        print(json.dumps(verification_facts(result)))
    else:
        print(verification_text(result))
    return 0 if result.same else 1


def _learn(arguments: Any) -> int:
    print(learn(arguments, _load(arguments.model, arguments)))
    return 0


def _convert(arguments: Any) -> int:
    from grasp_plugin.adapters.nir_file import read_nir, write_nir
    from grasp_plugin.network.convert import with_choices

    graph = read_nir(arguments.model, time_unit=arguments.time_unit)
    graph = with_choices(graph, policy_of(arguments), flatten_nested=arguments.flatten)
    write_nir(graph, arguments.output, time_unit=arguments.to_unit)
    facts = {"file": arguments.model, "output": arguments.output, "time_unit": arguments.to_unit}
    print(json.dumps(facts) if arguments.json else f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

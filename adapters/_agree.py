"""Do the steps of a time loop say the same? If so: one node per layer, with its edges."""

from __future__ import annotations

from grasp_plugin.adapters._recorder import Recorder
from grasp_plugin.adapters._signals import BATCH, Layer, Signal, Source, Traced, say_sources
from grasp_plugin.errors import Invalid, Refused

Wiring = frozenset[tuple[str, int]]


def agree(recorder: Recorder) -> Traced:
    """Fold the calls of each layer into one node.

    Call k of a layer may read what its sources computed at step k (an edge) or k - 1 (a delayed
    edge, absent at k = 0). Whatever else differs between steps is refused.
    """
    _check_inputs(recorder)
    edges: list[tuple[str, str]] = []
    delayed: set[tuple[str, str]] = set()
    for name, layer in recorder.layers.items():
        for source, offset in sorted(_wiring(recorder, layer)):
            edges.append((source, name))
            if offset:
                delayed.add((source, name))
    outputs = _outputs(recorder)
    used = {source for source, _ in edges} | {n for names in outputs.values() for n in names}
    idle = [name for name in recorder.inputs if name not in used]
    for name in idle:
        if name not in recorder.state_inputs:
            raise Refused(
                name,
                "expected every input to reach a layer, got one that reaches none",
                "Leave it out of the sample",
            )
    _refuse_dead_ends(recorder, edges, outputs)
    for name in sorted(recorder.state_inputs & used):
        raise Refused(
            name,
            "expected an input to be a signal or a state, got one that is both",
            "Give the state an argument of its own",
        )
    shapes = {n: s[len(lead) :] for n, (s, lead) in recorder.inputs.items() if n not in idle}
    return Traced(shapes, recorder.layers, edges, frozenset(delayed), outputs)


def _refuse_dead_ends(
    recorder: Recorder, edges: list[tuple[str, str]], outputs: dict[str, list[str]]
) -> None:
    """What the returned values depend on must reach them by edges: nothing is dropped unseen."""
    reach = {name for names in outputs.values() for name in names}
    waiting = list(reach)
    while waiting:
        target = waiting.pop()
        new = {a for a, b in edges if b == target} - reach
        reach |= new
        waiting += new
    dead = [n for n in recorder.layers if n in recorder.returned and n not in reach]
    ends = [name for name in dead if not any(a == name != b for a, b in edges)]
    for name in (*ends, *dead):
        raise Refused(
            name,
            "expected its output to reach an output of the model, got only a hidden state there",
            "Return its spikes too (a membrane is no output in NIR), or leave it out of the"
            " forward pass",
        )


def _check_inputs(recorder: Recorder) -> None:
    for name, (shape, lead) in recorder.inputs.items():
        if lead == BATCH:
            continue
        steps = shape[lead.index("time")]
        used = recorder.used_steps.get(name)
        if steps < 2 or (used is not None and used != set(range(max(len(used), 2)))):
            raise Invalid(
                name,
                f"expected the model to read at least steps 0 and 1 of its input in order, got"
                f" steps {sorted(used) if used else [0]} of {steps}",
                "Give a sample of at least two time steps, (time, batch, ...)",
            )


def _wiring(recorder: Recorder, layer: Layer) -> Wiring:
    calls = [
        frozenset(_offset(recorder, layer, k, source) for source in call.sources)
        for k, call in enumerate(layer.calls)
    ]
    later = calls[-1]
    for k, wiring in enumerate(calls):
        expected = later if k else frozenset(edge for edge in later if not edge[1])
        if wiring != expected and not (len(calls) == 1 and wiring == later):
            raise Refused(
                layer.name,
                f"expected the same sources at every step, got {_say(later)} at the last step and"
                f" {_say(wiring)} at step {k}",
                "Give every layer of a step its own module, and call each once per step",
            )
    if not later:
        raise Refused(
            layer.name,
            "expected an input from the network, got a constant at every step",
            "If it carries spikes of the step before, give the sample more steps, or hand the"
            " spikes on through forward(x, state=None)",
        )
    if len(calls) == 1 and any(offset for _, offset in later):
        raise _out_of_step(layer.name, f"{_say(later)} as sources of its only call")
    return later


def _offset(recorder: Recorder, layer: Layer, k: int, source: Source) -> tuple[str, int]:
    """How many steps before call `k` of `layer` the source was computed: 0 or 1."""
    name, step = source
    if step is None:
        return name, 0
    got = f"{say_sources([source])} as a source of its call {k + 1}"
    if name in recorder.inputs:
        if step != k:
            raise _out_of_step(layer.name, got)
        return name, 0
    calls = recorder.layers[name].calls
    single = len(calls) == 1 and not calls[0].timed
    if single and len(layer.calls) > 1:
        if _is_stepped(recorder, name):
            raise _out_of_step(layer.name, got)
        return name, 0
    if len(layer.calls) == 1 and len(calls) > 1:
        raise _out_of_step(layer.name, got)
    offset = k - step
    if offset not in (0, 1):
        raise _out_of_step(layer.name, got)
    return name, offset


def _is_stepped(recorder: Recorder, name: str) -> bool:
    """True if this layer, called once, read one step of something that changes with time."""
    if recorder.framework.is_neuron(recorder.layers[name].module):
        return True
    for source, step in recorder.layers[name].calls[0].sources:
        if source in recorder.inputs:
            if step is not None:
                return True
        elif _is_stepped(recorder, source):
            return True
    return False


def _out_of_step(name: str, got: str) -> Refused:
    return Refused(
        name,
        f"expected sources of the same step or the step before, got {got}",
        "Call every layer once per time step, in the order of the steps, and give each use its own"
        " module; for a delay use a layer of its own in NIR",
    )


def _say(wiring: Wiring) -> str:
    names = {0: "", 1: " (step before)"}
    return ", ".join(f"{name}{names[offset]}" for name, offset in sorted(wiring)) or "nothing"


def _outputs(recorder: Recorder) -> dict[str, list[str]]:
    if not recorder.outputs:
        raise Refused(
            "output",
            "expected the forward pass to return the output of a layer, got hidden states only",
            "Return the spikes; NIR graphs have no membrane output for spiking neurons",
        )
    named = len(recorder.outputs) > 1
    return {
        f"output_{path}" if named else "output": _at_last(recorder, signal)
        for path, signal in recorder.outputs
    }


def _at_last(recorder: Recorder, signal: Signal) -> list[str]:
    """The nodes of an output; a single step must not be picked out of several."""
    for name, step in sorted(signal.sources, key=str):
        calls = recorder.layers[name].calls if name in recorder.layers else []
        if step is not None and len(calls) > 1:
            raise Refused(
                "output",
                f"expected {name!r} at every step, got step {step} of {len(calls)} alone",
                "Collect the outputs of all steps and return torch.stack(outputs)",
            )
    return sorted(name for name, _ in signal.sources)

"""The `lava` back end: a `Network` as a compiled Lava graph, in float or in Loihi integers.

Latency is taken out: index t of a recording is the network's step t for every population. Samples
of a batch run one after another in one compiled graph, its state set back in between.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from grasp_plugin.errors import Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.network import Network, Population
from grasp_plugin.network.schedule import arrival_steps
from grasp_plugin.network.weights import Array
from grasp_plugin.neurons.lif_fixed import UV_MAX
from grasp_plugin.runtime.lava_import import forget_processes, kept_logging, require_lava
from grasp_plugin.runtime.session import (
    Floats,
    Recording,
    Session,
    in_float_units,
    require_whole_numbers,
)

ABSOLUTE = "refractory_period_end"  # in Lava's own time steps
ADAPTATION = ("adapt", "wait")  # of adaptive populations
STATE = ("u", "v", "s", "age", "a_buff", "buffer", ABSOLUTE, *ADAPTATION)


class LavaSession(Session):
    """`build(network, backend="lava")`.

    Args:
        network: "float" runs Lava's floating-point models, "loihi" its fixed-point ones.

    Raises:
        Refused: Lava is not installed, or cannot express the network.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        require_lava()
        self._arrival = arrival_steps(network)
        self._graph: _Graph | None = None
        self._state: dict[str, dict[str, Floats]] | None = None
        self._snapshots: list[dict[str, Array]] = []
        self._compiled(steps=1)  # refuse at build time what cannot be laid out

    def records(self) -> tuple[str, ...]:
        return ("membrane",)

    def _compiled(self, steps: int) -> _Graph:
        """The graph for runs of `steps`; Lava's ring buffers fix the length, so one per length."""
        length = steps + max(self._arrival.values())
        if self._graph is None or self._graph.length != length:
            if self._graph is not None:
                self._graph.stop()
            with kept_logging():
                self._graph = _Graph(self.network, length)
        return self._graph

    def _run(self, inputs: dict[str, Floats], record: tuple[str, ...], progress: bool) -> Recording:
        from tqdm import tqdm

        require_whole_numbers(self.network, inputs)
        steps, batch = next(iter(inputs.values())).shape[:2]
        graph = self._compiled(steps)
        names = [p.name for p in self.network.populations]
        kept = {
            what: {n: np.empty((steps, batch, self.network[n].size)) for n in names}
            for what in ("spikes", *record)
        }
        states: dict[str, dict[str, list[Floats]]] = {n: {"u": [], "v": []} for n in names}
        saturated = dict.fromkeys(names, 0)
        for b in tqdm(range(batch), disable=not progress, desc="lava", leave=False):
            sample = {name: array[:, b] for name, array in inputs.items()}
            graph.put(self._snapshots[b])
            voltages, self._snapshots[b] = graph.run(
                sample, self._arrival, steps, states, bool(record)
            )
            for n in names:
                first = self._arrival[n]
                if voltages:
                    v = voltages[n][first : first + steps]
                    saturated[n] += int(np.sum(np.abs(v) >= UV_MAX - 1)) if graph.fixed else 0
                out = graph.recorded(n)[:, first : first + steps].T
                kept["spikes"][n][:, b] = _in_floats(self.network[n], out)
                if record:
                    kept["membrane"][n][:, b] = in_float_units(self.network[n], v)
        self._state = {
            n: {
                key: np.stack(values).reshape(batch, *self.network[n].shape)
                for key, values in both.items()
            }
            for n, both in states.items()
        }
        shaped = {
            what: {n: a.reshape(steps, batch, *self.network[n].shape) for n, a in arrays.items()}
            for what, arrays in kept.items()
        }
        return Recording(
            shaped["spikes"],
            dict(self.network.outputs),
            shaped.get("membrane", {}),
            saturated={n: count for n, count in saturated.items() if count},
        )

    def _rest(self, batch: int) -> None:
        self._snapshots = [{} for _ in range(batch)]

    def _state_arrays(self) -> dict[str, Array]:
        return {
            f"{b}/{name}": value
            for b, snapshot in enumerate(self._snapshots)
            for name, value in snapshot.items()
        }

    def _set_state_arrays(self, arrays: dict[str, Array], batch: int) -> None:
        self._snapshots = [{} for _ in range(batch)]
        for path, value in arrays.items():
            b, _, name = path.partition("/")
            self._snapshots[int(b)][name] = value

    def _set_weights(self, weights: dict[str, Array]) -> None:
        self.network = self.network.with_weights(weights)
        if self._graph is not None:
            self._graph.stop()
            self._graph = None

    def weights(self) -> dict[str, Floats]:
        if self._graph is None:
            return self.network.weights()
        return self._graph.weights()

    def state(self) -> dict[str, dict[str, Floats]]:
        if self._state is not None:
            return self._state
        return {
            p.name: {
                "u": np.zeros((1, *p.shape)),
                "v": in_float_units(p, p.v_init).reshape(1, *p.shape),
            }
            for p in self.network.populations
        }

    def close(self) -> None:
        if self._graph is not None:
            self._graph.stop()
            self._graph = None
        super().close()


class _Graph:
    """One compiled Lava graph for runs of a fixed length."""

    def __init__(self, network: Network, length: int) -> None:
        from lava.magma.core.run_configs import Loihi2SimCfg
        from lava.proc.io.sink import RingBuffer as Sink
        from lava.proc.io.source import RingBuffer as Source

        from grasp_plugin.processes.network.models import lay_out
        from grasp_plugin.runtime.inprocess import InProcessRuntime

        self.network, self.length = network, length
        self.fixed = fixed = network.precision == "loihi"
        self._layout = lay_out(network)
        dtype = np.int32 if fixed else np.float64
        self._sources = {
            name: Source(data=np.zeros((network.size_of(name), length), dtype))
            for name in network.inputs
        }
        self._sinks = {p.name: Sink(shape=(p.size,), buffer=length) for p in network.populations}
        for name, port in self._layout.taps:
            self._sources[name].s_out.connect(port)
        for name, sink in self._sinks.items():
            self._layout.neurons[name].s_out.connect(sink.a_in)
        fed = {name for name, _ in self._layout.taps}
        processes = [
            *self._layout.processes(),
            *self._sinks.values(),
            *(source for name, source in self._sources.items() if name in fed),
        ]
        self._processes = processes
        tag = "fixed_pt" if fixed else "floating_pt"
        config = Loihi2SimCfg(
            select_tag=tag,
            exception_proc_model_map={p: model_class(p, tag) for p in processes},
        )
        self._runtimes = []
        self._first: list[Any] = []
        for part in connected_parts(processes):
            self._runtimes.append(InProcessRuntime(part[0].compile(config), part[0]))
            self._first.append(part[0])
        self._models = {
            id(p): runtime.model_of(p)
            for runtime, part in zip(self._runtimes, connected_parts(processes), strict=True)
            for p in part
        }
        self._stateful = [
            (f"{i}.{name}", self.model(process), name)
            for i, process in enumerate(self._layout.processes())
            for name in sorted(self.model(process).var_id_to_var_map.values())
            if name in STATE
            and (name not in ADAPTATION or getattr(self.model(process), "adaptive", True))
        ]
        self._rest = self.take()

    def model(self, process: Any) -> Any:
        return self._models[id(process)]

    def take(self) -> dict[str, Array]:
        """A copy of all state. LIFRefractory's absolute step is kept relative to now."""
        return {
            key: np.array(getattr(model, name)) - (model.time_step if name == ABSOLUTE else 0)
            for key, model, name in self._stateful
        }

    def put(self, snapshot: dict[str, Array]) -> None:
        """Set all state to what `take` gave; empty: to rest."""
        for key, model, name in self._stateful:
            value = (snapshot or self._rest)[key]
            now = model.time_step if name == ABSOLUTE else 0
            setattr(model, name, (value + now).astype(value.dtype))

    def run(
        self,
        sample: dict[str, Floats],
        arrival: dict[str, int],
        steps: int,
        states: dict[str, dict[str, list[Floats]]],
        membrane: bool,
    ) -> tuple[dict[str, Floats], dict[str, Array]]:
        """Run one sample, appending each population's state at its last network step.

        Returns the raw membranes (Lava step, neuron), empty unless asked for or needed to count
        saturation in integers, and the snapshot from which the next steps go on: that of the Lava
        step at which the input ended, before the later layers caught up.
        """
        for name, source in self._sources.items():
            if id(source) in self._models:
                data = self.model(source).data
                data[...] = 0
                data[:, :steps] = sample[name].T
        names = [p.name for p in self.network.populations]
        traces: dict[str, list[Floats]] = {n: [] for n in names}
        every = membrane or self.fixed
        ends = sorted({steps, *(steps + arrival[n] for n in names)})
        stops = range(1, self.length + 1) if every else ends
        done, snapshot = 0, {}
        for stop in stops:
            self._advance(stop - done)
            done = stop
            if stop == steps:
                snapshot = self.take()
            for n in names:
                if every:
                    traces[n].append(self.model(self._layout.neurons[n]).v.copy())
                if stop == steps + arrival[n]:
                    states[n]["v"].append(self.voltage(n))
                    states[n]["u"].append(self.current(n))
        self._advance(self.length - done)
        return {n: np.stack(v) for n, v in traces.items()} if every else {}, snapshot

    def _advance(self, steps: int) -> None:
        from lava.magma.core.run_conditions import RunSteps

        if steps:
            for process in self._first:
                process.run(RunSteps(num_steps=steps))

    def recorded(self, name: str) -> Floats:
        """(neuron, Lava step) of the last run."""
        return np.asarray(self.model(self._sinks[name]).data, np.float64)

    def voltage(self, name: str) -> Floats:
        return in_float_units(self.network[name], self.model(self._layout.neurons[name]).v)

    def current(self, name: str) -> Floats:
        p, u = self.network[name], self.model(self._layout.neurons[name]).u
        return np.asarray(u, np.float64) / (1.0 if p.scale is None else 64.0 * p.scale)

    def weights(self) -> dict[str, Floats]:
        out = {}
        for k in self.network.projections:
            live = self.model(self._layout.synapses[k.name]).weights
            same = isinstance(k.weight, W.Conv) or live.shape != k.weight.shape
            out[k.name] = W.values(k.weight) if same else W.values(live)
        return out

    def stop(self) -> None:
        for runtime in self._runtimes:
            runtime.stop()
        forget_processes(self._processes)


def model_class(process: Any, tag: str) -> type:
    """The ProcessModel for a Process that `lay_out` uses, by tag."""
    from lava.proc.dense import models as dense
    from lava.proc.io import sink, source
    from lava.proc.lif import models as neurons
    from lava.proc.sparse import models as sparse

    from grasp_plugin.processes.exact import models as exact
    from grasp_plugin.processes.leaky import models as ours
    from grasp_plugin.processes.plastic import models as plastic
    from grasp_plugin.processes.postponed import models as postponed
    from grasp_plugin.processes.scheduler import models as scheduler
    from grasp_plugin.processes.signal import models as signal

    for module in (
        neurons, dense, sparse, source, sink, ours, plastic, postponed, scheduler, signal, exact,
    ):  # fmt: skip
        for candidate in vars(module).values():
            implemented = getattr(candidate, "implements_process", None)
            if implemented is type(process) and tag in getattr(candidate, "tags", ()):
                return candidate  # type: ignore[no-any-return]
    raise Refused(
        type(process).__name__, f"expected a ProcessModel tagged {tag!r}, got none", "Report this"
    )


def connected_parts(processes: list[Any]) -> list[list[Any]]:
    """Lava compiles what is connected; a network may fall into several parts."""
    home = {id(p): {id(p)} for p in processes}
    for p in processes:
        for port in p.out_ports:
            for other in port.out_connections:
                merged = home[id(p)] | home[id(other.process)]
                for member in merged:
                    home[member] = merged
    seen: set[int] = set()
    parts = []
    for p in processes:
        if id(p) not in seen:
            parts.append([q for q in processes if id(q) in home[id(p)]])
            seen |= home[id(p)]
    return parts


def _in_floats(p: Population, out: Floats) -> Floats:
    """Spikes as they are; a membrane in the network's float units."""
    return out if p.spiking else in_float_units(p, out)

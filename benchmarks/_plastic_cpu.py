"""CPU time a step of one plastic projection in Lava: stock `LearningDense`, `PlasticDense` and, in
float, `PostponedDense`."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np

from grasp_plugin.backends.lava import model_class
from grasp_plugin.backends.loihi import learning_dense
from grasp_plugin.learning import ottt
from grasp_plugin.learning.fixed_plan import fixed_plan
from grasp_plugin.learning.kernels import gather
from grasp_plugin.learning.loihi import loihi_form
from grasp_plugin.learning.postponed import STEPS
from grasp_plugin.runtime.lava_import import kept_logging, require_lava

RATE = 0.05  # of the inputs


class Timed:
    """source -> connection -> sink with errors, in one process; without connection, two sinks.

    Args:
        connection: `LearningDense`, `PlasticDense` or `PostponedDense`, or None.
        spikes, errors: (N_i, time), (N_o, time).
        port: the connection's port for errors.
        tag: "floating_pt" or "fixed_pt".
    """

    def __init__(
        self, connection: Any, spikes: np.ndarray, errors: np.ndarray, port: str, tag: str
    ) -> None:
        require_lava()
        from lava.magma.core.run_configs import Loihi2SimCfg
        from lava.proc.io.sink import RingBuffer as Sink
        from lava.proc.io.source import RingBuffer as Source

        from grasp_plugin.runtime.inprocess import InProcessRuntime

        steps = spikes.shape[1]
        with kept_logging():
            source = Source(data=spikes.astype(np.int32 if tag == "fixed_pt" else float))
            error, sink = Source(data=errors), Sink(shape=(errors.shape[0],), buffer=steps)
            self.parts = [source]
            if connection is None:
                other = Sink(shape=(errors.shape[0],), buffer=steps)
                source.s_out.connect(sink.a_in)
                error.s_out.connect(other.a_in)
                self.parts.append(error)
            else:
                source.s_out.connect(connection.s_in)
                error.s_out.connect(getattr(connection, port))
                connection.a_out.connect(sink.a_in)
            # our Process takes errors as floats in both precisions
            models = {error: model_class(error, "floating_pt")} if port == "signal_in" else {}
            config = Loihi2SimCfg(select_tag=tag, exception_proc_model_map=models)
            self.runtimes = [InProcessRuntime(p.compile(config), p) for p in self.parts]
        self.learning: list[float] = []
        if connection is not None:
            model = self.runtimes[0].model_of(connection)
            self._time(model, "learn" if hasattr(model, "learn") else "run_lrn")
        self.block(3)  # what is done once
        self.learning.clear()

    def _time(self, model: Any, name: str) -> None:
        """Keep the CPU seconds of each call of a method that waits for nothing."""
        method = getattr(model, name)

        def timed(*args: Any) -> Any:
            start = time.process_time()
            out = method(*args)
            self.learning.append(time.process_time() - start)
            return out

        setattr(model, name, timed)

    def block(self, steps: int) -> float:
        """CPU seconds a step over `steps` more steps."""
        from lava.magma.core.run_conditions import RunSteps

        start = time.process_time()
        for part in self.parts:
            part.run(RunSteps(num_steps=steps))
        return (time.process_time() - start) / steps

    def stop(self) -> None:
        for runtime in self.runtimes:
            runtime.stop()


def projection_cpu(
    size: int, share: float, precision: str, blocks: int, steps: int
) -> dict[str, Any]:
    """One row of the CPU table; `share` of the neurons have an error in a step.

    `ratio` is stock / ours for `PlasticDense`, `postponed_ratio` for `PostponedDense`.
    """
    from grasp_plugin.processes.plastic.process import PlasticDense
    from grasp_plugin.processes.postponed.process import PostponedDense

    rng, fixed = np.random.default_rng(1), precision == "fixed"
    length = 10 * blocks * steps + 3
    spikes = (rng.random((size, length)) < RATE) * 1.0
    errors = rng.normal(size=(size, length)) * (rng.random((size, length)) < share)
    rule = replace(ottt(2.0**-6, decay=0.875), bias=None)
    weights = 2 * rng.integers(-60, 60, (size, size)) if fixed else rng.normal(size=(size, size))
    tag = "fixed_pt" if fixed else "floating_pt"
    form = loihi_form(rule, precision="fixed" if fixed else "float")
    y = np.round(errors * 30).astype(np.int32) if fixed else errors
    plan = fixed_plan("w", rule, 2.0**-6, error_max=4.0) if fixed else rule
    graphs = {
        "around": Timed(None, spikes, y, "", tag),
        "stock": Timed(learning_dense(weights, form), spikes, y, "s_in_y1", tag),
        "ours": Timed(PlasticDense(weights=weights, plan=plan), spikes, errors, "signal_in", tag),
    }
    if not fixed:
        connection = PostponedDense(weights=weights, plan=plan)
        graphs["postponed"] = Timed(connection, spikes, errors, "signal_in", tag)
    lengths = {"stock": steps, "postponed": STEPS}  # in each of which all is settled once
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(blocks):
        for name, graph in graphs.items():
            taken[name].append(graph.block(lengths.get(name, 10 * steps)))
    for graph in graphs.values():
        graph.stop()
    cpu = {name: float(np.median(values)) for name, values in taken.items()}
    stock, ours = cpu["stock"] - cpu["around"], cpu["ours"] - cpu["around"]
    waiting = cpu.get("postponed", math.nan) - cpu["around"]
    learning = {name: float(np.median(graphs[name].learning)) for name in ("stock", "ours")}
    floor = floor_seconds(np.int16 if fixed else np.float64, size, share)
    return {
        "size": size, "error_share": share, "precision": precision, "stock_ms": stock * 1e3,
        "ours_ms": ours * 1e3, "ratio": stock / ours, "postponed_ms": waiting * 1e3,
        "postponed_ratio": stock / waiting,
        "learning_ratio": learning["stock"] / learning["ours"], "over_floor": ours / floor,
        "outer_ms": outer_cpu(size) * 1e3,
    }  # fmt: skip


def floor_seconds(kind: Any, size: int, share: float) -> float:
    """Seconds to read the columns of active inputs and to read and write the rows that change."""
    rng = np.random.default_rng(0)
    weights = np.zeros((size, size), kind)
    rows = weights[: max(1, int(size * share))]
    seconds = []
    for _ in range(20):
        x = (rng.random(size) < RATE).astype(kind)
        start = time.perf_counter()
        gather(weights, x)
        np.add(rows, 1, out=rows)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def outer_cpu(size: int) -> float:
    """CPU seconds of `w += eta * np.outer(error, trace)`."""
    rng = np.random.default_rng(0)
    weights, left, right = np.zeros((size, size)), rng.random(size), rng.random(size)
    start = time.process_time()
    for _ in range(10):
        weights += 0.1 * np.outer(left, right)
    return (time.process_time() - start) / 10

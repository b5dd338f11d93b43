"""Run unmodified Lava graphs in one OS process: greenlets and deques for processes and channels.

Lava compiles the graph; this module takes the place of its runtime. `Process.run`, `pause`,
`stop`, `Var.get`, `Var.set` and `Monitor` work as before. Nothing forks, a raising model surfaces
as its own exception, a deadlock names who waits on which port, and Var access runs at memory speed.

Semantics are stock Lava's LoihiProtocol: SPK, then PRE, LRN and POST if any model asks, each phase
run by every model whose own guard holds at that moment; RefPort requests are served in PRE, POST
and at the end of a run, once the owner of the Var has finished its phase.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet
from lava.magma.compiler.builders.channel_builder import ChannelBuilderMp
from lava.magma.compiler.channels.pypychannel import CspRecvPort, CspSendPort
from lava.magma.core.model.py.model import PyAsyncProcessModel, PyLoihiProcessModel
from lava.magma.core.process.ports.ports import InPort, create_port_id
from lava.magma.core.run_conditions import RunSteps
from lava.magma.runtime.mgmt_token_enums import MGMT_COMMAND
from lava.utils.sparse import find
from scipy.sparse import csr_matrix

from grasp_plugin.errors import Refused, RunFailed


class _Queue:
    """The length of a channel, where stock models look for it."""

    def __init__(self, messages: deque[Any]) -> None:
        self._messages = messages

    def qsize(self) -> int:
        return len(self._messages)


class SendPort(CspSendPort):  # type: ignore[misc]
    """The sending end of a deque; never blocks."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any, messages: deque[Any]) -> None:
        self._name, self._shape, self._dtype, self._messages = name, shape, dtype, messages
        self._size = 0
        self.observer = None

    def start(self) -> None: ...

    def join(self) -> None: ...

    def probe(self) -> bool:
        return True

    def send(self, data: Any) -> None:
        if data.shape != self._shape:
            raise AssertionError(
                f"port {self._name}: expected data of shape {self._shape}, got {data.shape}"
            )
        if isinstance(data, csr_matrix):
            data = find(data, explicit_zeros=True)[2]
        self._messages.append(np.array(data, dtype=self._dtype))


class ReceivePort(CspRecvPort):  # type: ignore[misc]
    """The receiving end; an empty channel hands control to the scheduler."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any, messages: deque[Any]) -> None:
        self._name, self._shape, self._dtype, self._messages = name, shape, dtype, messages
        self._size = 0
        self._queue = _Queue(messages)
        self.observer = None

    def start(self) -> None: ...

    def join(self) -> None: ...

    def probe(self) -> bool:
        return bool(self._messages)

    def peek(self) -> Any:
        self._wait()
        return self._messages[0].copy()

    def recv(self) -> Any:
        if not self._messages:
            self._wait()
        return self._messages.popleft()

    def _wait(self) -> None:
        while not self._messages:
            parent = getcurrent().parent
            if parent is None:
                raise RunFailed(
                    f"port {self._name}",
                    "expected a message, got an empty channel outside a run",
                    "Send before receiving, then run",
                )
            parent.switch(self)


class _Commands:
    """Stands for the channel from the runtime service: tells async models when to stop."""

    def __init__(self, runtime: InProcessRuntime) -> None:
        self._runtime = runtime

    def start(self) -> None: ...

    def join(self) -> None: ...

    def probe(self) -> bool:
        """Asked by an async model in its loop: let the others run, then answer."""
        parent = getcurrent().parent
        if parent is not None and not self._runtime.stopping:
            parent.switch(None)
        return self._runtime.stopping

    def peek(self) -> Any:
        return MGMT_COMMAND.STOP


class _Worker:
    """A model's greenlet: runs one job at a time and keeps the port it waits on."""

    def __init__(self, process: Any, model: Any) -> None:
        self.process, self.model = process, model
        self.port: ReceivePort | None = None
        self.busy = False
        self._green = greenlet(self._loop)
        self._job: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        return f"{self.process.name} ({type(self.process).__name__})"

    def give(self, job: Callable[[], None]) -> None:
        self._job, self.busy, self.port = job, True, None

    def ready(self) -> bool:
        return self.busy and (self.port is None or self.port.probe())

    def resume(self) -> None:
        """Run until the job ends or waits; exceptions of the model come out here."""
        if self._green.dead:
            self._green = greenlet(self._loop)
        self._green.parent = getcurrent()
        self.port = self._green.switch()

    def _loop(self) -> None:
        while True:
            job = self._job
            if job is not None:
                job()
            self._job, self.busy = None, False
            getcurrent().parent.switch(None)


class InProcessRuntime:
    """The runtime of a compiled Lava executable, in the calling process.

    Args:
        executable: from `process.compile(run_cfg)`.
        process: the process that was compiled; it and all connected ones get this runtime.

    Raises:
        Refused: the graph holds channels or models that are not Python on the CPU.
    """

    def __init__(self, executable: Any, process: Any) -> None:
        self._is_started = self._is_running = False
        self.stopping = self._failed = self._stopped = False
        self._executable = executable
        _connect(executable)
        self._workers: list[_Worker] = []
        self._home: dict[int, tuple[Any, str]] = {}
        self._shapes = {v.id: v.shape for p in executable.proc_builders for v in p.vars}
        for proc, builder in executable.proc_builders.items():
            model = builder.build()
            model.service_to_process = _Commands(self)
            self._workers.append(_Worker(proc, model))
            for var_id, attribute in model.var_id_to_var_map.items():
                self._home[var_id] = (model, attribute)
        self._loihi = [w for w in self._workers if isinstance(w.model, PyLoihiProcessModel)]
        self._async = [w for w in self._workers if isinstance(w.model, PyAsyncProcessModel)]
        for worker in self._workers:
            if worker not in self._loihi and worker not in self._async:
                raise Refused(
                    worker.name,
                    "expected a PyLoihiProcessModel or PyAsyncProcessModel, got "
                    f"{type(worker.model).__name__}",
                    "Run this graph with Lava's own runtime",
                )
        self._served = [w for w in self._loihi if w.model.var_ports]
        executable.assign_runtime_to_all_processes(self)
        process.runtime = self

    # what Process and Var call

    def start(self, condition: Any) -> None:
        """Run for `RunSteps`, to completion; RunContinuous is refused (nothing would end it)."""
        if self._stopped or self._failed:
            how = "stopped" if self._stopped else "failed in an earlier step"
            raise RunFailed(
                "runtime", f"expected a live runtime, got one that {how}", "Build again"
            )
        if not isinstance(condition, RunSteps):
            raise Refused(
                "run",
                f"expected RunSteps, got {type(condition).__name__}",
                "In one process a run must end by itself: use RunSteps, repeatedly",
            )
        self._is_started = self._is_running = True
        try:
            self._run(condition.num_steps)
        except BaseException:
            self._failed = True
            raise
        finally:
            self._is_running = False

    def wait(self) -> None:
        """Runs are complete when `start` returns."""

    def pause(self) -> None:
        """Runs are complete when `start` returns."""

    def stop(self) -> None:
        """End; a further run is an error. Safe to call twice."""
        if self._is_started:
            self._stopped = True
        self._is_started = self._is_running = False

    def get_var(self, var_id: int, idx: Any = None) -> Any:
        """A copy of a Var as float64 in its declared shape (csr: values; str: ASCII codes)."""
        model, attribute = self._home_of(var_id)
        value = getattr(model, attribute)
        if isinstance(value, str):
            out = np.frombuffer(value.encode("ascii"), np.uint8).astype(np.float64)
        elif isinstance(value, csr_matrix):
            out = np.asarray(find(value, explicit_zeros=True)[2], np.float64)
        else:
            out = np.array(value, dtype=np.float64)
            if out.size == np.prod(self._shapes[var_id]):
                out = out.reshape(self._shapes[var_id])
        return out if idx is None else out[idx]

    def set_var(self, var_id: int, value: Any, idx: Any = None) -> None:
        """Write a Var: arrays in place (scalars broadcast; a wrong shape raises), others anew."""
        model, attribute = self._home_of(var_id)
        old = getattr(model, attribute)
        if isinstance(old, str):
            setattr(model, attribute, bytes(np.asarray(value, np.uint8).tolist()).decode("ascii"))
        elif isinstance(old, csr_matrix):
            rows, cols, _ = find(old, explicit_zeros=True)
            data = np.asarray(value, old.dtype).ravel()
            setattr(model, attribute, csr_matrix((data, (rows, cols)), old.shape))
        elif isinstance(old, np.ndarray):
            new = np.asarray(value)
            if idx is not None:
                old[idx] = new
            else:
                same = new.size == old.size and new.shape != old.shape
                old[...] = new.reshape(old.shape) if same else new
        else:
            setattr(model, attribute, type(old)(np.asarray(value).item()))
        model.on_var_update()

    def _home_of(self, var_id: int) -> tuple[Any, str]:
        if self._stopped:
            raise RunFailed("Var", "expected a live runtime, got a stopped one", "Read it before")
        if var_id not in self._home:
            raise RunFailed(
                f"Var {var_id}", "expected a Var that its model implements, got none", "Check it"
            )
        return self._home[var_id]

    def model_of(self, process: Any) -> Any:
        """The ProcessModel object that runs a Process."""
        for worker in self._workers:
            if worker.process is process:
                return worker.model
        raise RunFailed(process.name, "expected a Process of this graph, got another", "Check it")

    # scheduling

    def _run(self, steps: int) -> None:
        self.stopping = False
        for worker in self._async:
            worker.model.num_steps = steps
            worker.give(worker.model.run_async)
        for _ in range(steps):
            if self._loihi and self._one_step():
                break
        self._serve_var_ports()
        if self._loihi:
            self.stopping = True
        self._drain(self._async)

    def _one_step(self) -> bool:
        """One time step of all Loihi models; True if a model asked for a pause or stop."""
        asked: set[str] = set()
        self._phase(self._loihi, lambda w: lambda: _spike(w.model, asked))
        if "pre" in asked:
            self._phase(self._loihi, lambda w: lambda: _managed(w.model, "pre", asked), serve=True)
        if "lrn" in asked:
            self._phase(self._loihi, lambda w: lambda: _managed(w.model, "lrn", asked))
        if "post" in asked:
            self._phase(self._loihi, lambda w: lambda: _managed(w.model, "post", asked), serve=True)
        if "stop" in asked:
            self._stopped = True
        return bool(asked & {"pause", "stop"})

    def _phase(
        self, workers: list[_Worker], job: Callable[[_Worker], Callable[[], None]], *,
        serve: bool = False,
    ) -> None:  # fmt: skip
        for worker in workers:
            worker.give(job(worker))
        self._drain(workers, serve=serve)

    def _drain(self, workers: list[_Worker], *, serve: bool = False) -> None:
        """Resume whoever can go on until all of `workers` are idle.

        Workers are kept in the order in which they finished, so that in the next step each finds
        its input ready.
        """
        finished: list[_Worker] = []
        waiting = list(workers)
        background = [w for w in self._async if w not in workers]
        while waiting:
            progress = False
            for worker in [*waiting, *background]:
                if worker.ready():
                    progress = True
                    self._resume(worker)
            finished += [w for w in waiting if not w.busy]
            waiting = [w for w in waiting if w.busy]
            if serve:
                progress = self._serve_var_ports() or progress
            if waiting and not progress:
                raise self._deadlock(waiting)
        workers[:] = finished

    def _resume(self, worker: _Worker) -> None:
        try:
            worker.resume()
        except Exception as error:
            step = getattr(worker.model, "time_step", None)
            where = RunFailed(
                worker.name,
                f"its model {type(worker.model).__name__} raised {type(error).__name__} in time "
                f"step {step}",
                "See the traceback",
            )
            if error.__cause__ is None and error is not where:
                raise error from where
            raise

    def _serve_var_ports(self) -> bool:
        served = False
        for worker in self._served:
            if worker.busy:
                continue
            for port in worker.model.var_ports:
                receive = port._csp_recv_port
                while receive is not None and receive.probe():
                    port.service()
                    served = True
        return served

    def _deadlock(self, waiting: list[_Worker]) -> RunFailed:
        stuck = "; ".join(
            f"{w.name} waits on {w.port.name if w.port is not None else 'nothing'}" for w in waiting
        )
        return RunFailed(
            waiting[0].name,
            f"expected every model to finish its phase, got a deadlock: {stuck}",
            "Check that every sender sends once a step and that recurrent models send before they "
            "receive",
        )


def _spike(model: Any, asked: set[str]) -> None:
    model.time_step += 1
    model.phase = PyLoihiProcessModel.Phase.SPK
    model.run_spk()
    model.advance_to_time_step(model.time_step + 1)
    if _interrupted(model, asked):
        return
    if model.lrn_guard() and model.pre_guard():
        asked.add("pre")
    elif model.lrn_guard():
        asked.add("lrn")
    elif model.post_guard():
        asked.add("post")


def _managed(model: Any, phase: str, asked: set[str]) -> None:
    """One of the phases PRE, LRN, POST of one model, and what it asks for next."""
    names = {"pre": "pre_mgmt", "lrn": "lrn", "post": "post_mgmt"}
    tokens = PyLoihiProcessModel.Phase
    model.phase = {"pre": tokens.PRE_MGMT, "lrn": tokens.LRN, "post": tokens.POST_MGMT}[phase]
    if getattr(model, f"{phase}_guard")():
        getattr(model, f"run_{names[phase]}")()
    if _interrupted(model, asked):
        return
    if phase == "pre":
        asked.add("lrn")
    elif phase == "lrn" and model.post_guard():
        asked.add("post")


def _interrupted(model: Any, asked: set[str]) -> bool:
    if model._req_pause:
        model._req_pause = False
        asked.add("pause")
        return True
    if model._req_stop:
        model._req_stop = False
        asked.add("stop")
        return True
    return False


def _connect(executable: Any) -> None:
    """A deque for every channel of the executable, its two ends given to the builders."""
    builders = executable.proc_builders
    for channel in executable.channel_builders or ():
        if not isinstance(channel, ChannelBuilderMp):
            raise Refused(
                type(channel).__name__,
                "expected channels between Python models, got another kind",
                "Run this graph with Lava's own runtime",
            )
        source, target = channel.src_port_initializer, channel.dst_port_initializer
        send, receive = _channel(source.name, target.name, source.shape, source.d_type)
        builders[channel.src_process].set_csp_ports([send])
        builders[channel.dst_process].set_csp_ports([receive])
        port_id = create_port_id(channel.src_process.id, source.name)
        builders[channel.dst_process].add_csp_port_mapping(port_id, receive)
    for process, builder in builders.items():
        for name, port in builder.py_ports.items():
            _connect_pipe(builder, getattr(process, name), name, port)


def _connect_pipe(builder: Any, port: Any, name: str, declared: Any) -> None:
    """The outer end of an Injector's or Extractor's pipe."""
    if not port.external_pipe_flag:
        return
    send, receive = _channel(name, name, declared.shape, declared.d_type)
    if isinstance(port, InPort):
        builder.set_csp_ports([receive])
        port.external_pipe_csp_send_port = send
    else:
        builder.set_csp_ports([send])
        port.external_pipe_csp_recv_port = receive


def _channel(
    source: str, target: str, shape: tuple[int, ...], dtype: Any
) -> tuple[SendPort, ReceivePort]:
    messages: deque[Any] = deque()
    return SendPort(source, shape, dtype, messages), ReceivePort(target, shape, dtype, messages)

"""Run unmodified Lava graphs in one OS process: greenlets and deques for processes and channels.

Lava compiles the graph; this module takes the place of its runtime. `Process.run`, `pause`,
`stop`, `Var.get`, `Var.set` and `Monitor` work as before. Nothing forks, a raising model surfaces
as its own exception, a deadlock names who waits on which port, and Var access runs at memory speed.
A run that does not block (`RunContinuous`, `RunSteps(blocking=False)`) goes on in a thread.

Semantics are stock Lava's LoihiProtocol: SPK, then PRE, LRN and POST if any model asks, each phase
run by every model whose own guard holds at that moment; RefPort requests are served in PRE, POST
and at the end of a run, once the owner of the Var has finished its phase.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet
from lava.magma.compiler.builders.channel_builder import ChannelBuilderMp
from lava.magma.core.model.py.model import PyAsyncProcessModel, PyLoihiProcessModel
from lava.magma.core.process.ports.ports import InPort, create_port_id
from lava.magma.core.run_conditions import RunContinuous, RunSteps
from lava.magma.runtime.mgmt_token_enums import MGMT_COMMAND
from lava.utils.sparse import find
from scipy.sparse import csr_matrix

from grasp_plugin.errors import Refused, RunFailed
from grasp_plugin.runtime.channels import POLL_S, channel


class _Commands:
    """Stands for the channel from the runtime service: tells async models when to end."""

    def __init__(self, runtime: InProcessRuntime) -> None:
        self._runtime = runtime

    def start(self) -> None:
        """Nothing to start."""

    def join(self) -> None:
        """Nothing to join."""

    def probe(self) -> bool:
        """Asked by an async model in its loop: let the others run, then answer."""
        parent = getcurrent().parent
        if parent is not None and not self._runtime.ending:
            parent.switch(None)
        return self._runtime.ending

    def peek(self) -> Any:
        return MGMT_COMMAND.STOP if not self._runtime.pausing else MGMT_COMMAND.PAUSE


class _Worker:
    """A model's greenlet: runs one job at a time and keeps the port it waits on."""

    def __init__(self, process: Any, model: Any) -> None:
        self.process, self.model = process, model
        self.port: Any = None
        self.busy = False
        self._green = greenlet(self._loop)
        self._thread = threading.get_ident()
        self._job: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        return f"{self.process.name} ({type(self.process).__name__})"

    def give(self, job: Callable[[], None]) -> None:
        self._job, self.busy, self.port = job, True, None

    def ready(self) -> bool:
        return self.busy and (self.port is None or self.port.probe())

    def outside(self) -> bool:
        """True if it waits on a pipe that another thread may serve."""
        external = self.port is not None and self.port.external
        return external and threading.active_count() > 1

    def resume(self) -> None:
        """Run until the job ends or waits; exceptions of the model come out here."""
        if self._green.dead or self._thread != threading.get_ident():
            self._green, self._thread = greenlet(self._loop), threading.get_ident()
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
        self._is_started = self._is_running = self._failed = self._stopped = False
        self.ending = self.pausing = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._executable = executable
        self._owner = threading.get_ident()
        _connect(executable, self._may_wait)
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
        """Run for `RunSteps`, here if it blocks, else (and for `RunContinuous`) in a thread."""
        self._settle()
        if self._stopped or self._failed:
            how = "stopped" if self._stopped else "failed in an earlier step"
            raise RunFailed("runtime", f"expected a live runtime, got one that {how}", "Build anew")
        if not isinstance(condition, (RunSteps, RunContinuous)):
            raise Refused(
                "run",
                f"expected RunSteps or RunContinuous, got {type(condition).__name__}",
                "Pass one of Lava's run conditions",
            )
        steps = condition.num_steps if isinstance(condition, RunSteps) else None
        self._is_started = self._is_running = True
        self.ending = self.pausing = False
        if isinstance(condition, RunSteps) and condition.blocking:
            self._guarded(steps)
            self._settle()
        else:
            self._thread = threading.Thread(target=self._guarded, args=(steps,), daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait for a run in a thread to end; its exception, if any, is raised here."""
        if self._thread is not None:
            self._thread.join()
        self._settle()

    def pause(self) -> None:
        """End a run in a thread after its current step; `start` may go on from there."""
        self.pausing = True
        self.wait()

    def stop(self) -> None:
        """End; a further run is an error. Safe to call twice."""
        if self._is_started:
            self._stopped = True
        self.pausing = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None
        self._is_started = self._is_running = False

    def _may_wait(self) -> bool:
        """May the far end of a pipe wait? A run goes on, or another thread can start one."""
        other = threading.get_ident() != self._owner
        return not self._stopped and (self._is_running or other)

    def _guarded(self, steps: int | None) -> None:
        try:
            self._run(steps)
        except BaseException as error:
            self._failed, self._error = True, error
        finally:
            self._is_running = False

    def _settle(self) -> None:
        """Forget a thread that has ended; raise what ended it."""
        if self._thread is not None and not self._thread.is_alive():
            self._thread.join()
            self._thread = None
        if self._thread is not None:
            raise RunFailed("run", "expected no run in progress, got one", "Call pause() or wait()")
        error, self._error = self._error, None
        if error is not None:
            raise error

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
        if self._is_running:
            raise RunFailed("Var", "expected a paused run, got one in progress", "pause() first")
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

    def _run(self, steps: int | None) -> None:
        """All steps, or until a pause where `steps` is None."""
        for worker in self._async:
            worker.model.num_steps = steps if steps is not None else sys.maxsize
            worker.give(worker.model.run_async)
        done = 0
        while self._loihi and (steps is None or done < steps) and not self.pausing:
            if self._one_step():
                break
            done += 1
        self._serve_var_ports()
        if self._async:
            self._finish_async(steps)

    def _finish_async(self, steps: int | None) -> None:
        """Let async models end by themselves, or at the end of the others or a pause."""
        if self._loihi and steps is not None:
            self.ending = True
        while any(w.busy for w in self._async):
            self.ending = self.ending or self.pausing
            if steps is not None:
                return self._drain(self._async)
            self._pass(self._async)
        return None

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
            progress = self._pass([*waiting, *background])
            finished += [w for w in waiting if not w.busy]
            waiting = [w for w in waiting if w.busy]
            if serve:
                progress = self._serve_var_ports() or progress
            if waiting and not progress:
                if self.pausing or not any(w.outside() for w in waiting):
                    raise self._deadlock(waiting)
                time.sleep(POLL_S)
        workers[:] = finished

    def _pass(self, workers: list[_Worker]) -> bool:
        """Resume each worker that can go on, once; True if there was one."""
        progress = False
        for worker in workers:
            if worker.ready():
                progress = True
                self._resume(worker)
        return progress

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


def _connect(executable: Any, alive: Callable[[], bool]) -> None:
    """A deque for every channel of the executable, its two ends given to the builders.

    In the order in which the sending Processes were made: Lava's compiler orders channels by
    chance, and with it the order in which a port with three or more senders adds floats.
    """
    builders = executable.proc_builders
    for built in sorted(executable.channel_builders or (), key=_creation):
        if not isinstance(built, ChannelBuilderMp):
            raise Refused(
                type(built).__name__,
                "expected channels between Python models, got another kind",
                "Run this graph with Lava's own runtime",
            )
        source, target = built.src_port_initializer, built.dst_port_initializer
        send, receive = channel(source.name, target.name, source.shape, source.d_type)
        builders[built.src_process].set_csp_ports([send])
        builders[built.dst_process].set_csp_ports([receive])
        port_id = create_port_id(built.src_process.id, source.name)
        builders[built.dst_process].add_csp_port_mapping(port_id, receive)
    for process, builder in builders.items():
        for name, declared in builder.py_ports.items():
            _connect_pipe(builder, getattr(process, name), name, declared, alive)


def _creation(built: Any) -> tuple[int, int]:
    return built.src_process.id, built.dst_process.id


def _connect_pipe(
    builder: Any, port: Any, name: str, declared: Any, alive: Callable[[], bool]
) -> None:
    """The outer end of an Injector's or Extractor's pipe."""
    if not port.external_pipe_flag:
        return
    limit = port.external_pipe_buffer_size
    send, receive = channel(name, name, declared.shape, declared.d_type, limit)
    if isinstance(port, InPort):
        send.alive = alive
        builder.set_csp_ports([receive])
        port.external_pipe_csp_send_port = send
    else:
        receive.alive = alive
        builder.set_csp_ports([send])
        port.external_pipe_csp_recv_port = receive

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

import threading
from collections.abc import Callable
from typing import Any

from lava.magma.compiler.builders.channel_builder import ChannelBuilderMp
from lava.magma.core.process.ports.ports import InPort, create_port_id
from lava.magma.core.run_conditions import RunContinuous, RunSteps

from grasp_plugin.errors import Refused, RunFailed
from grasp_plugin.runtime.channels import channel
from grasp_plugin.runtime.scheduler import Scheduler
from grasp_plugin.runtime.variables import read_var, write_var


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
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._executable = executable
        self._owner = threading.get_ident()
        _connect(executable, self._may_wait)
        self._home: dict[int, tuple[Any, str]] = {}
        self._shapes = {v.id: v.shape for p in executable.proc_builders for v in p.vars}
        models = [
            (proc, _built(proc, builder)) for proc, builder in executable.proc_builders.items()
        ]
        for _, model in models:
            for var_id, attribute in model.var_id_to_var_map.items():
                self._home[var_id] = (model, attribute)
        self._scheduler = Scheduler(models)
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
        self._scheduler.ending = self._scheduler.pausing = False
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
        self._scheduler.pausing = True
        self.wait()

    def stop(self) -> None:
        """End; a further run is an error. Safe to call twice."""
        if self._is_started:
            self._stopped = True
        self._scheduler.pausing = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None
        self._scheduler.close()
        self._is_started = self._is_running = False

    def _may_wait(self) -> bool:
        """May the far end of a pipe wait? A run goes on, or another thread can start one."""
        other = threading.get_ident() != self._owner
        return not self._stopped and (self._is_running or other)

    def _guarded(self, steps: int | None) -> None:
        try:
            self._scheduler.run(steps)
        except BaseException as error:
            self._failed, self._error = True, error
        finally:
            self._is_running = False
            self._stopped = self._stopped or self._scheduler.stop_asked
            if threading.current_thread() is self._thread:
                self._scheduler.close()

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
        out = read_var(model, attribute, self._shapes[var_id])
        return out if idx is None else out[idx]

    def set_var(self, var_id: int, value: Any, idx: Any = None) -> None:
        """Write a Var: arrays in place (scalars broadcast; a wrong shape raises), others anew."""
        write_var(*self._home_of(var_id), value, idx)

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
        for worker in self._scheduler.workers:
            if worker.process is process:
                return worker.model
        raise RunFailed(process.name, "expected a Process of this graph, got another", "Check it")


def _built(process: Any, builder: Any) -> Any:
    """The model of a Process; if its constructor raises, the Process is named beside its error."""
    try:
        model = builder.build()
        if "Injector" in type(model).__name__:  # its __del__ joins a port that Lava renamed
            model.__dict__.setdefault("_p_to_pm_dst_port", model.in_port.csp_ports[-1])
        return model
    except Exception as error:
        where = RunFailed(
            f"{process.name} ({type(process).__name__})",
            f"its model {builder.proc_model.__name__} raised {type(error).__name__} while it was "
            "built",
            "See the traceback",
        )
        raise error from (error.__cause__ or where)


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

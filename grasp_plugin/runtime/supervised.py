"""Lava's own multi-process runtime under supervision: it ends, cleans up and says why.

Stock Lava hangs for ever when a ProcessModel raises before it sends, is killed or never returns;
`Var.get` of a float scalar and `run` after `pause` hang as well. Here every child reports over a
pipe of its own, a thread in it answers while the model works (`runtime.child`), and the parent
polls pipes, exit codes and progress. After a failure, a stop or an interrupt nothing is left: no
process, zombie, thread, semaphore or block of shared memory. (multiprocessing's resource tracker,
one process for each interpreter that shares memory, ends with the interpreter.)
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from typing import Any

from grasp_plugin.errors import Refused, RunFailed
from grasp_plugin.runtime.actors import (
    Actor,
    StockRuntime,
    end_port,
    end_processes,
    end_shared_memory,
    external_ports,
    fork_as_start_method,
)
from grasp_plugin.runtime.child import ChildError
from grasp_plugin.runtime.lava_import import kept_logging, require_lava

require_lava("lava.magma.runtime.runtime")

from lava.magma.core.run_conditions import RunContinuous, RunSteps  # noqa: E402
from lava.magma.runtime.mgmt_token_enums import MGMT_COMMAND, MGMT_RESPONSE  # noqa: E402

POLL_S = 0.02
GRACE_S = 1.0  # for the child that raised to say so
STOP_S = 1.5  # for an orderly end; whoever is left is killed
_live: weakref.WeakSet[SupervisedRuntime] = weakref.WeakSet()


class SupervisedRuntime:
    """Lava's multi-process runtime of a compiled executable, supervised.

    Args:
        executable: from `process.compile(run_cfg)`; used once.
        process: the process that was compiled; it and all connected ones get this runtime.
        stall_s: a call fails once no model has made progress for so long: no new time step or
            phase, no message (asked for at least once a second). A single phase may last no
            longer; a run may. Use `math.inf` for models that wait for outside input.

    Raises:
        Refused: this platform cannot fork.
        RunFailed: a model's constructor raised, died or stalled.

    `RunSteps(n, blocking=False)` and `RunContinuous` return at once and are supervised from the
    next call on (`wait`, `pause`, `stop`, `Var.get`). Not for use from several threads at a time.
    """

    def __init__(self, executable: Any, process: Any, stall_s: float = 60.0) -> None:
        self._is_started = self._is_running = self._ended = False
        self._why = "stopped"
        if "fork" not in multiprocessing.get_all_start_methods():
            self._ended = True
            raise Refused(
                "runtime 'supervised'",
                f"expected a platform that forks processes, got {sys.platform}",
                "Use runtime='inprocess'",
            )
        self._stall_s, self._pid = stall_s, os.getpid()
        self._wake = threading.Event()
        self._answers: dict[int, list[float]] = {}
        self._odd_at = float("inf")  # when a child ended, or reported an error, without a cause
        self._progress_at = self._asked_at = time.monotonic()
        self._lava = StockRuntime(executable)
        self._actors: list[Actor] = self._lava._messaging_infrastructure.list
        self._shapes = {v.id: v.shape for p in executable.proc_builders for v in p.vars}
        self._home: dict[int, tuple[Actor, str]] = {}
        _live.add(self)
        with self._supervision(), kept_logging():
            with fork_as_start_method():
                self._lava.initialize()
            self._pipes = list(external_ports(executable))
            for port in self._lava.service_to_runtime:
                port.observer = self._wake.set
            self._await(lambda: all(actor.ready for actor in self._actors))
        for actor, builder in zip(self._actors, executable.proc_builders.values(), strict=False):
            self._home |= {v.var_id: (actor, name) for name, v in builder.vars.items()}
        executable.assign_runtime_to_all_processes(self)
        process.runtime = self

    def __enter__(self) -> SupervisedRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __del__(self) -> None:
        if not self._ended:
            self._tear_down()

    # what Process and Var call

    def start(self, condition: Any) -> None:
        """Run for `RunSteps` or `RunContinuous`; returns at once if `condition` does not block.

        Raises:
            Refused: another run condition, or a run is in progress.
            RunFailed: a child raised, died or stalled; chained to its traceback.
        """
        self._check_idle("run")
        if not isinstance(condition, (RunSteps, RunContinuous)):
            raise Refused(
                "run", f"expected RunSteps or RunContinuous, got {type(condition).__name__}",
                "Pass one of them",
            )  # fmt: skip
        blocking, self._answers = condition.blocking, {}
        self._is_started = self._is_running = True
        with self._supervision():
            if isinstance(condition, RunSteps):
                condition = RunSteps(condition.num_steps, blocking=False)
            self._lava.start(condition)
            self._ask_states(time.monotonic())
        if blocking:
            self.wait()

    def wait(self) -> None:
        """Wait for the end of a run that was started without blocking."""
        if not self._is_running:
            return
        with self._supervision():
            self._await(self._run_over)
            asked = {token for tokens in self._answers.values() for token in tokens}
            self._is_running = False
            if MGMT_RESPONSE.REQ_PAUSE[0] in asked:
                self._pause()
        if MGMT_RESPONSE.REQ_STOP[0] in asked:
            self.stop()

    def pause(self) -> None:
        """Pause a run after the current time step; `Process.run` resumes."""
        if self._is_running:
            with self._supervision():
                self._pause()
            self._is_running = False

    def stop(self) -> None:
        """End all children, orderly if they follow; a further run is an error. Safe to repeat."""
        if self._ended or os.getpid() != self._pid:
            return
        try:
            self._end_orderly()
        finally:
            self._tear_down()

    def get_var(self, var_id: int, idx: Any = None) -> Any:
        """A copy of a Var as float64 in its declared shape (csr: values; str: ASCII codes)."""
        value = self._request(var_id, "get", self._shapes.get(var_id))
        return value if idx is None else value[idx]

    def set_var(self, var_id: int, value: Any, idx: Any = None) -> None:
        """Write a Var: arrays in place (scalars broadcast; a wrong shape raises), others anew."""
        self._request(var_id, "set", value, idx)

    def _request(self, var_id: int, kind: str, *args: Any) -> Any:
        self._check_idle("Var")
        if var_id not in self._home:
            raise RunFailed(
                f"Var {var_id}", "expected a Var that its model implements, got none", "Check it"
            )
        actor, name = self._home[var_id]
        with self._supervision():
            actor.values.clear()
            actor.ask(kind, name, *args)
            self._await(lambda: bool(actor.values), actor.pipe)
        answer, content = actor.values.pop()
        if answer == "refused":
            raise RunFailed(f"{actor.name}, Var {name}", f"could not {kind} it: {content}", "Check")
        return content

    # supervision

    @contextmanager
    def _supervision(self) -> Iterator[None]:
        """Whatever comes out of the body, a KeyboardInterrupt too, ends everything first."""
        try:
            yield
        except BaseException as error:
            self._why = "failed"
            self._tear_down()
            if isinstance(error, Exception) and not isinstance(error, RunFailed):
                raise RunFailed(
                    "runtime", f"Lava raised {type(error).__name__}: {error}", "See the traceback"
                ) from error
            raise

    def _check_idle(self, node: str) -> None:
        if self._ended:
            raise RunFailed(
                node, f"expected a live runtime, got one that {self._why}", "Build it again"
            )
        if self._is_running and self._run_over():
            self.wait()
        if self._is_running:
            raise Refused(node, "expected no run in progress, got one", "Call wait() or pause()")

    def _run_over(self) -> bool:
        """True once every runtime service is done or one asks for a pause or stop."""
        for index, port in enumerate(self._lava.service_to_runtime):
            while port.probe():
                token = float(port.recv()[0])
                self._answers.setdefault(index, []).append(token)
                if token == MGMT_RESPONSE.ERROR[0]:
                    self._odd_at = min(self._odd_at, time.monotonic())
        if self._odd_at < float("inf"):
            return False  # the child that raised is about to say why
        asked = {token for tokens in self._answers.values() for token in tokens}
        wishes = {MGMT_RESPONSE.REQ_PAUSE[0], MGMT_RESPONSE.REQ_STOP[0]}
        return bool(asked & wishes) or len(self._answers) == len(self._lava.service_to_runtime)

    def _command(self, command: Any, answer: Any) -> Callable[[], bool]:
        """Send a command to all runtime services; the result is true once all have answered."""
        self._answers = {}
        for port in self._lava.runtime_to_service:
            port.send(command)

        def answered() -> bool:
            self._run_over()
            given = [tokens for tokens in self._answers.values() if float(answer[0]) in tokens]
            return len(given) == len(self._lava.service_to_runtime)

        return answered

    def _pause(self) -> None:
        self._await(self._command(MGMT_COMMAND.PAUSE, MGMT_RESPONSE.PAUSED))

    def _await(self, done: Callable[[], bool], pipe: Any = None) -> None:
        """Poll until `done()`, woken early by a runtime service or by a message in `pipe`.

        Raises:
            RunFailed: a child failed, or there was no progress for `stall_s`.
        """
        self._progress_at = time.monotonic()
        while not done():
            if pipe is not None:
                connection.wait([pipe], POLL_S)
            else:
                self._wake.wait(POLL_S)
                self._wake.clear()
            now = time.monotonic()
            if any([actor.receive() for actor in self._actors]):
                self._progress_at = now
            self._check_children(now)
            if now - self._progress_at > self._stall_s:
                raise self._stalled()
            if now - self._asked_at > min(1.0, self._stall_s / 4):
                self._ask_states(now)

    def _ask_states(self, now: float) -> None:
        self._asked_at = now
        for actor in self._actors:
            if not actor.asked:
                actor.asked = True
                actor.ask("state")

    def _check_children(self, now: float) -> None:
        dead = [a for a in self._actors if a.process.exitcode is not None]
        for actor in dead:
            actor.receive()
        failed = [a for a in self._actors if a.failure is not None]
        if failed:
            first = min(failed, key=lambda a: a.failure[0] if a.failure else now)
            _, step, message, trace = first.failure or (0, None, "", "")
            when = "while it was built" if step == "building" else f"in time step {step}"
            raise RunFailed(
                first.name, f"its model {first.model} raised {when}: {message}", "See the traceback"
            ) from ChildError(trace)
        if dead and self._odd_at == float("inf"):
            self._odd_at = now
        late = now - self._odd_at > GRACE_S
        for actor in dead:
            code = actor.process.exitcode or 0
            if code or late:  # others exit with code 0 if one has raised, sooner than it reports
                signalled = f"was killed by {signal.Signals(-code).name}" if code < 0 else ""
                raise RunFailed(
                    actor.name,
                    f"its process {signalled or f'exited with code {code}'}",
                    "A SIGKILL may come from the system, out of memory; otherwise look for an exit "
                    "in the model",
                )
        if late:
            raise RunFailed("runtime service", "reported an error without a cause", "Run again")

    def _stalled(self) -> RunFailed:
        """Who works or waits where, by the last state of each child; workers before waiters."""
        found = []
        for actor in self._actors:
            _, line, port = actor.state or ((), "", "")
            if line or not actor.ready:
                how = f"waits on {port} at" if port else "is at"
                found.append((bool(port), actor.name, f"{how} {line or 'an unknown line'}"))
        found.sort(key=lambda entry: entry[0])
        places = "; ".join(f"{name} {place}" for _, name, place in found)
        return RunFailed(
            found[0][1] if found else "runtime",
            f"expected progress within {self._stall_s:g} s, got none: {places or 'all are idle'}",
            "Mend the model that is stuck, or pass a longer stall_s",
        )

    # the end

    def _end_orderly(self) -> None:
        """Ask for the end and wait for it, for at most `STOP_S`."""
        limit = time.monotonic() + STOP_S
        if not all(actor.ready and actor.process.is_alive() for actor in self._actors):
            return
        answered = self._command(MGMT_COMMAND.STOP, MGMT_RESPONSE.TERMINATED)
        while time.monotonic() < limit and not answered():
            self._wake.wait(POLL_S)
            self._wake.clear()
            if any(a.process.exitcode for a in self._actors):
                return
        for actor in self._actors:
            actor.process.join(max(0.0, limit - time.monotonic()))

    def _tear_down(self) -> None:
        """Leave nothing behind; each part may be repeated, so that an interrupt does no harm."""
        if self._ended or os.getpid() != self._pid:
            return
        self._is_started = self._is_running = False
        lava = self._lava
        watchdog, shared = lava._watchdog_manager, lava._messaging_infrastructure.smm
        end_processes([actor.process for actor in self._actors])
        for port in [*lava.runtime_to_service, *lava.service_to_runtime, *lava._open_ports]:
            end_port(port)
        for port in getattr(self, "_pipes", ()):
            end_port(port)
        if getattr(watchdog, "_mp_manager", None):
            end_processes([p for p in (watchdog._lm, watchdog._sm) if p is not None])
            watchdog._mp_manager.shutdown()
            watchdog._mp_manager = None
            atexit.unregister(watchdog.stop)
        if shared is not None:
            end_shared_memory(shared)
        for actor in self._actors:
            actor.pipe.close()
            with suppress(ValueError):
                actor.process.close()
        self._actors.clear()
        self._home.clear()
        lava._is_running = lava._is_started = False
        self._ended = True
        _live.discard(self)
        del self._lava


def _stop_all() -> None:
    for runtime in list(_live):
        runtime.stop()


atexit.register(_stop_all)

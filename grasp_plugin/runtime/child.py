"""The child's side of the supervised runtime: run one model, report its end, answer meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing import connection
from types import FrameType
from typing import Any

from grasp_plugin.runtime.variables import read_var, write_var


class ChildError(Exception):
    """What happened in another OS process: its formatted traceback."""

    def __str__(self) -> str:
        return "in the child process\n\n" + "".join(map(str, self.args))


def run_child(builder: Any, ours: Any, theirs: Any) -> None:
    """Main function of a child: build a model or a runtime service, run it, report its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    theirs.close()
    actors: list[Any] = []
    lock = threading.Lock()
    threading.Thread(target=_listen, args=(ours, actors, lock), daemon=True).start()
    try:
        actor = builder.build()
        _mend_pause(actor)
        actors.append(actor)
        with lock:
            ours.send(("ready",))
        actor.start()
    except BaseException as error:
        try:
            report = f"{type(error).__name__}: {error}".rstrip(": "), traceback.format_exc()
        except MemoryError:
            report = type(error).__name__, "(no memory left for the traceback)"
        step = getattr(actors[0], "time_step", None) if actors else "building"
        with lock:
            ours.send(("failed", time.monotonic(), step, *report))
        raise SystemExit(1) from None


def _mend_pause(service: Any) -> None:
    """Stock Lava never resets the flags of a pause, so that the next run hangs (`lava.md`, 3)."""
    if hasattr(service, "pausing"):
        handle = service._handle_pause

        def handle_pause() -> None:
            handle()
            service.pausing = service.req_pause = False

        service._handle_pause = handle_pause


def _listen(pipe: Any, actors: list[Any], lock: threading.Lock) -> None:
    """Answer the parent while the model works or waits; end this process if the parent is gone."""
    while True:
        try:
            request = pipe.recv()
            with lock:
                pipe.send(_answer(actors, *request))
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGKILL)


def _answer(actors: list[Any], request: str, *args: Any) -> tuple[Any, ...]:
    try:
        if request == "state":
            return "state", _progress(actors), *_where()
        function: Any = {"get": read_var, "set": write_var}[request]
        return "value", function(actors[0], *args)
    except Exception as error:
        return "refused", f"{type(error).__name__}: {error}"


def _progress(actors: list[Any]) -> tuple[Any, ...]:
    """What changes while a model works: its time step, its phase, its place in each channel."""
    if not actors or not hasattr(actors[0], "py_ports"):
        return ()
    phase = getattr(actors[0], "phase", None)
    ends = [end for port in actors[0].py_ports for end in port.csp_ports]
    return (
        getattr(actors[0], "time_step", 0), None if phase is None else int(phase[0]),
        *(end._idx for end in ends),
    )  # fmt: skip


def _where() -> tuple[str, str]:
    """The line on which the main thread is, outside of Lava's machinery, and the awaited port."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    line = port = ""
    while frame is not None and frame.f_code is not run_child.__code__:
        path = frame.f_code.co_filename
        if path.endswith("pypychannel.py") and not port:
            port = getattr(frame.f_locals.get("self"), "_name", "")
        ours = os.path.join("lava", "magma") not in path and path != threading.__file__
        if ours and not line:
            line = f"{path}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return line, port


def end_with_parent() -> None:
    """In the manager of shared memory: end if the parent is killed, which it would not notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()

"""Lava's message infrastructure with children that report, and how to end it all."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any

from grasp_plugin.runtime.child import end_with_parent, run_child
from grasp_plugin.runtime.lava_import import require_lava

require_lava("lava.magma.runtime.runtime")  # keeps the start method that others have chosen

from lava.magma.core.process.message_interface_enum import ActorType  # noqa: E402
from lava.magma.runtime.message_infrastructure.multiprocessing import (  # noqa: E402
    MultiProcessing,
)
from lava.magma.runtime.message_infrastructure.shared_memory_manager import (  # noqa: E402
    SharedMemoryManager,
)
from lava.magma.runtime.runtime import Runtime  # noqa: E402


class Actor:
    """A child process as its parent sees it."""

    def __init__(self, name: str, builder: Any) -> None:
        self.name = name
        self.model = getattr(getattr(builder, "proc_model", None), "__name__", name)
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=run_child, args=(builder, theirs, self.pipe))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child is not to see it
        try:
            self.process.start()
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self.ready = self.asked = False
        self.failure: tuple[Any, ...] | None = None
        self.state: tuple[Any, ...] | None = None
        self.values: list[tuple[Any, ...]] = []

    def ask(self, *request: Any) -> None:
        with suppress(OSError):  # a dead child is found by its exit code
            self.pipe.send(request)

    def receive(self) -> bool:
        """Take what the child has sent; True if that shows progress."""
        progress = False
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                kind, *content = self.pipe.recv()
                if kind == "ready":
                    self.ready = progress = True
                elif kind == "failed":
                    self.failure = tuple(content)
                elif kind == "state":
                    progress |= self.state is not None and self.state[0] != content[0]
                    self.state, self.asked = tuple(content), False
                else:
                    self.values.append((kind, *content))
        return progress


class Actors(MultiProcessing):  # type: ignore[misc]
    """Lava's message infrastructure with children that report."""

    def __init__(self, executable: Any) -> None:
        super().__init__()
        self.list: list[Actor] = []
        self._names = {
            id(builder): f"{process.name} ({type(process).__name__})"
            for process, builder in executable.proc_builders.items()
        }

    def start(self) -> None:
        self._smm = SharedMemoryManager()
        self._smm._manager.start(end_with_parent)

    def build_actor(self, target_fn: Any, builder: Any, exception_q: Any = None) -> None:
        exception_q.close()
        self.list.append(Actor(self._names.get(id(builder), "runtime service"), builder))


class StockRuntime(Runtime):  # type: ignore[misc]
    """Lava's runtime; ends only when told, and never from a forked copy."""

    def __init__(self, executable: Any) -> None:
        super().__init__(executable, ActorType.MultiProcessing)
        self._messaging_infrastructure = Actors(executable)

    def __del__(self) -> None: ...

    def _build_message_infrastructure(self) -> None:
        self._messaging_infrastructure.start()

    def initialize(self, node_cfg_idx: int = 0) -> None:
        """As Lava's, less the wait for the children, which never ends if one dies."""
        self._build_watchdog_manager()
        self._build_message_infrastructure()
        self._build_channels()
        self._build_sync_channels()
        self._build_processes()
        self._build_runtime_services()
        self._start_ports()
        self._is_initialized = True


@contextmanager
def fork_as_start_method() -> Iterator[None]:
    """Lava needs fork; leave the start method as it was, chosen or not."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("fork", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


def external_ports(executable: Any) -> Iterator[Any]:
    """The outer ends of Injectors and Extractors, which live in the parent."""
    for process, builder in executable.proc_builders.items():
        for name in getattr(builder, "py_ports", ()):
            for end in ("external_pipe_csp_send_port", "external_pipe_csp_recv_port"):
                if hasattr(getattr(process, name), end):
                    yield getattr(getattr(process, name), end)


def end_processes(processes: list[BaseProcess]) -> None:
    """Terminate, wait 0.5 s for all together, kill, reap."""
    for process in processes:
        process.terminate()
    limit = time.monotonic() + 0.5
    for process in processes:
        process.join(max(0.0, limit - time.monotonic()))
    for process in processes:
        if process.exitcode is None:
            process.kill()
            process.join(1.0)


def end_port(port: Any) -> None:
    """Join the thread of a port and let go of its view of the shared memory."""
    with suppress(Exception):  # a watchdog whose manager is gone
        port.join()
    if port.thread is not None:
        port.thread.join(0.5)
    port._array = []


def end_shared_memory(shared: Any) -> None:
    """Shut the manager down, and unlink what it leaves if it was killed."""
    handles = list(shared._shared_memory_handles)
    with suppress(Exception):  # not started, killed, or views of the memory are alive
        shared.shutdown()
    for handle in handles:
        with suppress(FileNotFoundError):
            handle.unlink()

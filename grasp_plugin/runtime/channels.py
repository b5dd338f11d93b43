"""The two ends of a Lava channel as a deque in one process.

Inside a model (a greenlet) an end that cannot go on hands itself to the scheduler, which resumes
the model once `probe()` holds. Outside a model (the far end of an Injector's or Extractor's pipe)
it waits for a run in another thread, and raises where no run can ever serve it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from greenlet import getcurrent
from lava.magma.compiler.channels.pypychannel import CspRecvPort, CspSendPort
from lava.utils.sparse import find
from scipy.sparse import csr_matrix

from grasp_plugin.errors import RunFailed

POLL_S = 2e-4


class _Queue:
    """The length of a channel, where stock models look for it."""

    def __init__(self, messages: deque[Any]) -> None:
        self._messages = messages

    def qsize(self) -> int:
        return len(self._messages)


class _End:
    """What both ends share. `limit` 0 means unbounded; `alive` says if waiting can end."""

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: Any, messages: deque[Any], limit: int = 0
    ) -> None:
        self._name, self._shape, self._dtype, self._messages = name, shape, dtype, messages
        self._size = limit
        self._queue = _Queue(messages)
        self.external = limit > 0
        self.alive: Callable[[], bool] = lambda: False
        self.observer = None
        self.thread = None

    def start(self) -> None:
        """Nothing to start."""

    def join(self) -> None:
        """Nothing to join."""

    def probe(self) -> bool:
        raise NotImplementedError("an end knows when it can go on")

    def _wait(self) -> None:
        parent = getcurrent().parent
        while not self.probe():
            if parent is not None:
                parent.switch(self)
            elif self.alive():
                time.sleep(POLL_S)
            elif not self.probe():
                raise RunFailed(
                    f"port {self._name}",
                    "expected a run to serve this pipe, got none that is going on",
                    "Start one with RunSteps(..., blocking=False) or RunContinuous()",
                )


class SendPort(_End, CspSendPort):  # type: ignore[misc]
    """The sending end; blocks only where a pipe is full."""

    def probe(self) -> bool:
        return not self._size or len(self._messages) < self._size

    def send(self, data: Any) -> None:
        if data.shape != self._shape:
            raise AssertionError(
                f"port {self._name}: expected data of shape {self._shape}, got {data.shape}"
            )
        if isinstance(data, csr_matrix):
            data = find(data, explicit_zeros=True)[2]
        if self._size:
            self._wait()
        self._messages.append(np.array(data, dtype=self._dtype))


class ReceivePort(_End, CspRecvPort):  # type: ignore[misc]
    """The receiving end; an empty channel hands control to the scheduler."""

    def probe(self) -> bool:
        return bool(self._messages)

    def peek(self) -> Any:
        self._wait()
        return self._messages[0].copy()

    def recv(self) -> Any:
        if not self._messages:
            self._wait()
        return self._messages.popleft()


def channel(
    source: str, target: str, shape: tuple[int, ...], dtype: Any, limit: int = 0
) -> tuple[SendPort, ReceivePort]:
    """Both ends of a new channel."""
    messages: deque[Any] = deque()
    return (
        SendPort(source, shape, dtype, messages, limit),
        ReceivePort(target, shape, dtype, messages, limit),
    )

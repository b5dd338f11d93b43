"""Run the models of a Lava graph in greenlets: LoihiProtocol's phases and asynchronous models.

One worker a model. A worker that waits on an empty channel is resumed once the channel has
something; a whole pass without progress is a deadlock, and is raised with who waits on what.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet
from lava.magma.core.model.py.model import PyAsyncProcessModel, PyLoihiProcessModel
from lava.magma.runtime.mgmt_token_enums import MGMT_COMMAND

from grasp_plugin.errors import Refused, RunFailed
from grasp_plugin.runtime.channels import POLL_S


class Commands:
    """Stands for the channel from the runtime service: tells async models when to end."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def start(self) -> None:
        """Nothing to start."""

    def join(self) -> None:
        """Nothing to join."""

    def probe(self) -> bool:
        """Asked by an async model in its loop: let the others run, then answer."""
        parent = getcurrent().parent
        if parent is not None and not self._scheduler.ending:
            parent.switch(None)
        return self._scheduler.ending

    def peek(self) -> Any:
        return MGMT_COMMAND.STOP if not self._scheduler.pausing else MGMT_COMMAND.PAUSE


class Worker:
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

    def close(self) -> None:
        """End the greenlet, whose waiting frame would keep the model alive for ever."""
        if self._green and not self._green.dead and self._thread == threading.get_ident():
            self._green.parent = getcurrent()
            self._green.throw()

    def _loop(self) -> None:
        while True:
            job = self._job
            if job is not None:
                job()
            self._job, self.busy = None, False
            getcurrent().parent.switch(None)


class Scheduler:
    """Runs the models of one graph, step by step.

    Args:
        models: (process, model) pairs.

    Attributes:
        pausing: set from another thread to end a run after its current step.
        ending: tells asynchronous models to end.
        stop_asked: a model asked for the end of the program.

    Raises:
        Refused: a model of another protocol.
    """

    def __init__(self, models: list[tuple[Any, Any]]) -> None:
        self.ending = self.pausing = self.stop_asked = False
        self.workers = [Worker(process, model) for process, model in models]
        self._loihi = [w for w in self.workers if isinstance(w.model, PyLoihiProcessModel)]
        self._async = [w for w in self.workers if isinstance(w.model, PyAsyncProcessModel)]
        for worker in self.workers:
            worker.model.service_to_process = Commands(self)
            if worker not in self._loihi and worker not in self._async:
                raise Refused(
                    worker.name,
                    "expected a PyLoihiProcessModel or PyAsyncProcessModel, got "
                    f"{type(worker.model).__name__}",
                    "Run this graph with Lava's own runtime",
                )
        self._served = [w for w in self._loihi if w.model.var_ports]

    def close(self) -> None:
        """End the greenlets that this thread started; a further run starts new ones."""
        for worker in self.workers:
            worker.close()

    def run(self, steps: int | None) -> None:
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
            self.stop_asked = True
        return bool(asked & {"pause", "stop"})

    def _phase(
        self, workers: list[Worker], job: Callable[[Worker], Callable[[], None]], *,
        serve: bool = False,
    ) -> None:  # fmt: skip
        for worker in workers:
            worker.give(job(worker))
        self._drain(workers, serve=serve)

    def _drain(self, workers: list[Worker], *, serve: bool = False) -> None:
        """Resume whoever can go on until all of `workers` are idle.

        Workers are kept in the order in which they finished, so that in the next step each finds
        its input ready.
        """
        finished: list[Worker] = []
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

    def _pass(self, workers: list[Worker]) -> bool:
        """Resume each worker that can go on, once; True if there was one."""
        progress = False
        for worker in workers:
            if worker.ready():
                progress = True
                self._resume(worker)
        return progress

    def _resume(self, worker: Worker) -> None:
        try:
            worker.resume()
        except SystemExit as error:
            raise RunFailed(
                worker.name,
                f"expected its model to go on, got SystemExit({error.code}) in time step "
                f"{getattr(worker.model, 'time_step', None)}",
                "A model cannot end the program: raise an error of its own",
            ) from error
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

    def _deadlock(self, waiting: list[Worker]) -> RunFailed:
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

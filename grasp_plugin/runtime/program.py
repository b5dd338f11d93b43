"""`lava_session`: one line that runs a Lava program of the user's own, unchanged."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from grasp_plugin.errors import Refused
from grasp_plugin.runtime.lava_import import forget_processes, kept_logging, require_lava

RUNTIMES = ("inprocess", "supervised")


class ProgramSession:
    """A compiled Lava program; a context manager. Made by `lava_session`.

    Inside the `with` block Lava's own calls work as always: `process.run(RunSteps(n))`, `Var.get`,
    `Var.set`, `Monitor.get_data`. Leaving the block stops the program.
    """

    def __init__(self, process: Any, runtime: Any, processes: list[Any]) -> None:
        self.process, self.runtime, self._processes = process, runtime, processes

    def run(self, steps: int) -> None:
        """Run `steps` time steps and return when they are done.

        Raises:
            RunFailed: a deadlock or stall, a dead child, or a session that is stopped. In one
                process a model's own exception comes out as itself.
        """
        from lava.magma.core.run_conditions import RunSteps

        self.process.run(RunSteps(num_steps=steps))

    def model(self, process: Any) -> Any:
        """The ProcessModel object that runs a Process (in one process only).

        Raises:
            Refused: the supervised runtime, whose models live in other OS processes.
        """
        if getattr(self.runtime, "model_of", None) is None:
            raise Refused("model", "expected runtime='inprocess', got 'supervised'", "Use Var.get")
        return self.runtime.model_of(process)

    def stop(self) -> None:
        """End the program; safe to call twice."""
        self.runtime.stop()
        forget_processes(self._processes)

    def __enter__(self) -> ProgramSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def lava_session(
    process: Any,
    run_cfg: Any,
    runtime: str = "inprocess",
    stall_s: float = 60.0,
    compile_config: dict[str, Any] | None = None,
) -> ProgramSession:
    """Compile the Lava program that `process` belongs to and make it ready to run.

        with grasp_plugin.lava_session(proc, run_cfg) as s:
            s.run(100)
            weights = dense.weights.get()

    Args:
        process: any Process of the program.
        run_cfg: Lava's run configuration, e.g. `Loihi2SimCfg(select_tag="fixed_pt")`.
        runtime: "inprocess" runs all models in this OS process (fast, exact, debuggable);
            "supervised" runs Lava's own runtime, one OS process a Process, under a watchdog.
        stall_s: supervised only: seconds without an end after which a run is given up.
        compile_config: passed to Lava's compiler.

    Raises:
        Refused: Lava is not installed, an unknown runtime, or models that are not Python.
    """
    require_lava()
    if runtime not in RUNTIMES:
        raise Refused("runtime", f"expected one of {', '.join(RUNTIMES)}, got {runtime!r}", "Pick")
    with kept_logging():
        executable = process.compile(run_cfg, compile_config)
    if runtime == "supervised":
        from grasp_plugin.runtime.supervised import SupervisedRuntime

        supervised = SupervisedRuntime(executable, process, stall_s=stall_s)
        return ProgramSession(process, supervised, list(executable.proc_builders))
    from grasp_plugin.runtime.inprocess import InProcessRuntime

    runtime_here = InProcessRuntime(executable, process)
    return ProgramSession(process, runtime_here, list(executable.proc_builders))

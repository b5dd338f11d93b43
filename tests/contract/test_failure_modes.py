"""Every way in which a Lava run can fail ends, says which Process and why, and leaves nothing.

Each case runs in a Python process of its own, with a time limit, in both runtimes. A case is a
chain source -> middle -> sink of which one part fails in time step 3 (or while it is built). The
program notes when the fault happens, what comes out, after how long, and what is left by then; the
test looks again once the program has ended. Blocks of shared memory and semaphores are recognised
by a prefix of the test's own, processes by an environment variable.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = [
    pytest.mark.lava,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc"),
]
ROOT = Path(__file__).parents[2]
END_S = 2.0
STALL_S = 1.0

PARTS = '''
"""Three Processes whose models fail as told by proc_params["fault"] = (where, what)."""
import json, os, resource, signal, sys, time
import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class Source(AbstractProcess):
    def __init__(self, **params):
        super().__init__(**params)
        self.s_out, self.gain = OutPort((2,)), Var((1,), 0.5)


class Middle(AbstractProcess):
    def __init__(self, **params):
        super().__init__(**params)
        self.a_in, self.s_out = InPort((2,)), OutPort((2,))


class Sink(AbstractProcess):
    def __init__(self, **params):
        super().__init__(**params)
        self.a_in, self.total = InPort((2,)), Var((2,), 0)


def fail(what):
    with open("fault", "w") as note:
        note.write(repr(time.time()))
    if what == "raise":
        raise ValueError("boom")
    if what == "unpicklable":
        raise type("Local", (Exception,), {})("boom")
    if what == "exit":
        sys.exit(3)
    if what == "os-exit":
        os._exit(4)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "sleep":
        time.sleep(1e4)
    if what == "loop":
        while True:
            pass
    if what == "memory":
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 2**28,) * 2)
        np.ones(2**30)


class Model(PyLoihiProcessModel):
    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.fault = proc_params.get("fault") or ("", "")
        self.at("init")

    def at(self, where):
        if self.fault[0] == where and self.time_step in (0, 3):
            fail(self.fault[1])

    def lrn_guard(self):
        return self.fault[0] == "lrn"

    def run_lrn(self):
        self.at("lrn")

    def out(self):
        self.at("before")
        wrong = self.fault == ("before", "shape") and self.time_step == 3
        if wrong:
            fail("shape")
        self.s_out.send(np.ones(3 if wrong else 2))
        self.at("after")


@implements(proc=Source, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class SourceModel(Model):
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    gain: float = LavaPyType(float, float)

    def run_spk(self):
        self.out()


@implements(proc=Middle, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class MiddleModel(Model):
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)

    def run_spk(self):
        self.a_in.recv()
        self.out()


@implements(proc=Sink, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class SinkModel(Model):
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    total: np.ndarray = LavaPyType(np.ndarray, float)

    def run_spk(self):
        self.total += self.a_in.recv()
        self.at("before")
        self.at("after")
'''

MAIN = '''
import json, multiprocessing, os, signal, sys, threading, time
from multiprocessing import process, shared_memory
from pathlib import Path

RUNTIME, CASE, TOKEN = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
STALL_S = float(sys.argv[4])
shared_memory._SHM_NAME_PREFIX = f"/psm_{TOKEN}"
process.current_process()._config["semprefix"] = f"/mp-{TOKEN}"


def left_over():
    """Children, zombies, threads, shared memory and log handlers of this process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            command = stat.with_name("cmdline").read_text().replace(chr(0), " ")
        except OSError:
            continue
        if int(parent) == os.getpid() and "resource_tracker" not in command:
            found.append(f"process {state} {command}")
    found += [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    return found + [f.name for f in Path("/dev/shm").iterdir() if TOKEN in f.name]


def start(process, run_cfg, compile_config=None):
    executable = process.compile(run_cfg, compile_config)
    if RUNTIME == "inprocess":
        from grasp_plugin.runtime.inprocess import InProcessRuntime
        return InProcessRuntime(executable, process)
    from grasp_plugin.runtime.supervised import SupervisedRuntime
    return SupervisedRuntime(executable, process, stall_s=STALL_S)


def main():
    if "context" in CASE:
        multiprocessing.set_start_method(CASE["context"])
    from grasp_plugin.runtime.lava_import import require_lava
    require_lava()
    from lava.magma.core.run_conditions import RunContinuous, RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from parts import Middle, MiddleModel, Sink, SinkModel, Source, SourceModel

    faults = {CASE["at"]: (CASE["where"], CASE["what"])} if "at" in CASE else {}
    source = Source(name="source", fault=faults.get("source"))
    middle = Middle(name="middle", fault=faults.get("middle"))
    sink = Sink(name="sink", fault=faults.get("sink"))
    models = {source: SourceModel, middle: MiddleModel, sink: SinkModel}
    if CASE.get("ring"):
        other = Middle(name="other")
        middle.s_out.connect(other.a_in)
        other.s_out.connect(middle.a_in)
        models[other] = MiddleModel
    else:
        source.s_out.connect(middle.a_in)
        middle.s_out.connect(sink.a_in)
    cfg = Loihi2SimCfg(select_tag="floating_pt", exception_proc_model_map=models)
    report, held = {}, []
    begin = time.time()
    try:
        held.append(start(middle, cfg, CASE.get("compile")))
        begin = time.time()
        exec(CASE.get("run", "middle.run(RunSteps(20))"), {**globals(), **locals()})
    except BaseException as error:
        fault = float(Path("fault").read_text()) if Path("fault").exists() else begin
        report |= {"after_s": time.time() - fault, "error": type(error).__name__}
        report |= {"text": str(error), "left": left_over()}
        if held:
            for call in ("middle.run(RunSteps(1))", "sink.total.get()", "middle.stop()"):
                try:
                    report[call] = eval(call)
                except Exception as again:
                    report[call] = type(again).__name__ + str(again)
        raise
    finally:
        Path("report").write_text(json.dumps(report, default=str))


if __name__ == "__main__":
    main()
'''


class Ran(NamedTuple):
    """How a program ended."""

    code: int
    errors: str
    report: dict[str, Any]
    left: list[str]


def left_by(token: str) -> list[str]:
    """Processes and blocks in /dev/shm that carry the token."""
    found = [file.name for file in Path("/dev/shm").iterdir() if token in file.name]
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"GRASP_TEST={token}".encode() in environment.read_bytes():
                found.append(environment.with_name("cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def run(folder: Path, runtime: str, case: dict[str, Any], stall_s: float = STALL_S) -> Ran:
    """Run one case in a program of its own."""
    program = folder / "program"
    program.mkdir()
    (program / "parts.py").write_text(PARTS)
    (folder / "main.py").write_text(MAIN)
    token = uuid.uuid4().hex[:4]
    path = os.pathsep.join([str(ROOT), str(program)])
    ended = subprocess.run(
        [sys.executable, str(folder / "main.py"), runtime, json.dumps(case), token, str(stall_s)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "GRASP_TEST": token},
        capture_output=True,
        text=True,
        timeout=40,
        start_new_session=True,
    )
    report = folder / "report"
    content = json.loads(report.read_text()) if report.exists() else {}
    return Ran(ended.returncode, ended.stderr, content, left_by(token))


def case(at: str, where: str, what: str, *words: str, **more: Any) -> dict[str, Any]:
    return {"at": at, "where": where, "what": what, "words": words, **more}


INTERRUPT = (
    "threading.Timer(0.4, lambda: (Path('fault').write_text(repr(time.time())), "
    "os.kill(os.getpid(), signal.SIGINT))).start(); middle.run(RunSteps(10**8))"
)
BOTH = {
    "init": case("middle", "init", "raise", "middle (Middle)", "ValueError: boom", "parts.py"),
    "before send": case("source", "before", "raise", "source (Source)", "boom", "parts.py"),
    "after send": case("source", "after", "raise", "source (Source)", "boom", "parts.py"),
    "learning": case("middle", "lrn", "raise", "middle (Middle)", "boom", "run_lrn"),
    "last of chain": case("sink", "before", "raise", "sink (Sink)", "boom", "parts.py"),
    "wrong shape": case("middle", "before", "shape", "middle (Middle)", "(3,)", "(2,)"),
    "unpicklable": case("middle", "before", "unpicklable", "middle (Middle)", "Local: boom"),
    "system exit": case("middle", "before", "exit", "middle (Middle)", "SystemExit", "3"),
    "out of memory": case("middle", "before", "memory", "middle (Middle)", "MemoryError"),
    "deadlock": {"ring": True, "words": ("middle (Middle)", "other (Middle)", "waits on a_in")},
}
SUPERVISED = {
    "killed": case("middle", "before", "kill", "middle (Middle)", "SIGKILL", "out of memory"),
    "killed in init": case("middle", "init", "kill", "middle (Middle)", "SIGKILL"),
    "os._exit": case("sink", "before", "os-exit", "sink (Sink)", "exited with code 4"),
    "with a watchdog": case("source", "before", "raise", "source (Source)", "boom",
                            compile={"use_watchdog": True}),
    "not blocking": case("sink", "after", "raise", "sink (Sink)", "boom",
                         run="middle.run(RunSteps(20, blocking=False)); middle.wait()"),
    "continuous": case("sink", "after", "raise", "sink (Sink)", "boom",
                       run="middle.run(RunContinuous()); middle.wait()"),
    "other start method": case("source", "before", "raise", "source (Source)", "boom",
                               context="spawn"),
}  # fmt: skip
STALLS = {
    "sleep": case("middle", "before", "sleep", "middle (Middle)", "time.sleep", "parts.py"),
    "loop": case("middle", "before", "loop", "middle (Middle) is at", "parts.py", "in fail"),
    "init": case("middle", "init", "sleep", "middle (Middle)", "parts.py"),
}


def check(ran: Ran, words: tuple[str, ...], wait_s: float = 0.0) -> None:
    """Failed, in time, naming everything in `words`, leaving nothing behind."""
    assert ran.code == 1, ran.errors
    assert all(word in ran.errors for word in words), ran.errors
    assert ran.report["after_s"] < wait_s + END_S
    assert ran.report["left"] == []
    assert ran.left == []
    if "middle.run(RunSteps(1))" in ran.report:
        assert ran.report["middle.run(RunSteps(1))"].startswith("RunFailed")
        assert ran.report["middle.stop()"] is None


@pytest.mark.parametrize("runtime", ["inprocess", "supervised"])
@pytest.mark.parametrize("name", BOTH)
def test_failure_ends_with_its_cause(name: str, runtime: str, tmp_path: Path) -> None:
    ran = run(tmp_path, runtime, BOTH[name])
    stalls = name == "deadlock" and runtime == "supervised"
    check(ran, BOTH[name]["words"], wait_s=STALL_S if stalls else 0.0)


@pytest.mark.parametrize("name", SUPERVISED)
def test_failure_of_a_child_ends_with_its_cause(name: str, tmp_path: Path) -> None:
    ran = run(tmp_path, "supervised", SUPERVISED[name])
    check(ran, SUPERVISED[name]["words"])
    assert ran.report["error"] == "RunFailed"


@pytest.mark.parametrize("name", STALLS)
def test_stall_ends_after_its_time_limit(name: str, tmp_path: Path) -> None:
    ran = run(tmp_path, "supervised", STALLS[name])
    words = ("middle (Middle)", "expected progress within 1 s") if name == "sleep" else ()
    check(ran, (*words, *STALLS[name]["words"][:1], "parts.py"), wait_s=STALL_S)
    assert ran.report["after_s"] > STALL_S


def test_long_run_that_progresses_is_no_stall(tmp_path: Path) -> None:
    steps = "began = time.time()\nwhile time.time() < began + 2: middle.run(RunSteps(200))"
    ran = run(tmp_path, "supervised", {"run": steps}, stall_s=0.5)
    assert (ran.code, ran.left) == (0, []), ran.errors
    one_run = "middle.run(RunSteps(8000))"
    (tmp_path / "again").mkdir()
    ran = run(tmp_path / "again", "supervised", {"run": one_run}, stall_s=0.3)
    assert (ran.code, ran.left) == (0, []), ran.errors


@pytest.mark.parametrize("runtime", ["inprocess", "supervised"])
def test_keyboard_interrupt_ends_the_program(runtime: str, tmp_path: Path) -> None:
    ran = run(tmp_path, runtime, {"run": INTERRUPT}, stall_s=30)
    assert ran.code in (-signal.SIGINT, 130), ran.errors
    assert ran.errors.rstrip().endswith("KeyboardInterrupt")
    assert ran.errors.count("Traceback") == 1, "a child reported as well"
    assert ran.report["after_s"] < END_S
    assert [left for left in ran.report["left"] if "Thread" not in left] == []
    assert ran.left == []


@pytest.mark.parametrize("runtime", ["inprocess", "supervised"])
def test_program_ends_without_stop(runtime: str, tmp_path: Path) -> None:
    ran = run(tmp_path, runtime, {})
    assert (ran.code, ran.errors, ran.left) == (0, "", [])


@pytest.mark.parametrize("runtime", ["inprocess", "supervised"])
def test_lifecycle(runtime: str, tmp_path: Path) -> None:
    """What hangs, crashes or answers nonsense in stock Lava: a float scalar, pause, run again."""
    script = """
import numpy as np
from grasp_plugin.errors import RunFailed
def refused(call):
    try:
        call()
    except RunFailed as error:
        return str(error)
    raise AssertionError("not refused")
middle.run(RunSteps(3))
assert source.gain.get() == 0.5
source.gain.set(np.array([0.25])); assert source.gain.get() == 0.25
sink.total.set(np.array([5.0, 6.0])); middle.run(RunSteps(2))
assert sink.total.get().tolist() == [7.0, 8.0]
for _ in range(5):
    middle.run(RunContinuous()); time.sleep(0.05); middle.pause()
    before = sink.total.get(); assert before[0] > 7; middle.run(RunSteps(4))
    assert (sink.total.get() == before + 4).all()
middle.run(RunSteps(5, blocking=False)); middle.wait()
middle.pause()
try:
    sink.total.set(np.zeros(3))
except ValueError:
    middle.run(RunSteps(1))
middle.stop(); middle.stop()
assert left_over() == [], left_over()
assert "stopped" in refused(lambda: middle.run(RunSteps(1)))
assert "stopped" in refused(lambda: sink.total.get())
"""
    ran = run(tmp_path, runtime, {"run": script})
    assert (ran.code, ran.errors, ran.left) == (0, "", []), ran.errors


def test_collected_runtime_and_start_method(tmp_path: Path) -> None:
    """A runtime that nobody holds ends its children; another library's start method stays."""
    script = """
import gc
middle.run(RunSteps(2))
assert len(left_over()) > 4, left_over()
for process in (source, middle, sink):
    process.runtime = None
held.clear(); gc.collect()
assert left_over() == [], left_over()
assert multiprocessing.get_start_method(True) == "spawn"
"""
    ran = run(tmp_path, "supervised", {"context": "spawn", "run": script})
    assert (ran.code, ran.errors, ran.left) == (0, "", []), ran.errors


def test_killed_parent_takes_its_children_along(tmp_path: Path) -> None:
    ran = run(tmp_path, "supervised", {"run": "os.kill(os.getpid(), signal.SIGKILL)"})
    assert ran.code == -signal.SIGKILL
    assert ran.left == []  # run() returns when the last holder of stderr is gone

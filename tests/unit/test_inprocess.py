"""Lava's API on our runtime: Vars, pauses, threads, pipes, async models, errors."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import grasp_plugin
from grasp_plugin import lava_session
from grasp_plugin.errors import Refused, RunFailed
from grasp_plugin.runtime.lava_import import have_lava, require_lava

pytestmark = pytest.mark.lava

if have_lava():
    require_lava()
    from lava.magma.core.decorator import implements, requires, tag
    from lava.magma.core.model.py.model import PyAsyncProcessModel, PyLoihiProcessModel
    from lava.magma.core.model.py.ports import PyInPort, PyOutPort
    from lava.magma.core.model.py.type import LavaPyType
    from lava.magma.core.process.ports.ports import InPort, OutPort
    from lava.magma.core.process.process import AbstractProcess
    from lava.magma.core.process.variable import Var
    from lava.magma.core.resources import CPU
    from lava.magma.core.run_conditions import RunContinuous, RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.magma.core.sync.protocols.async_protocol import AsyncProtocol
    from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
    from lava.proc.dense.process import Dense
    from lava.proc.io.extractor import Extractor
    from lava.proc.io.injector import Injector
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source
    from lava.proc.lif.process import LIF

    class Counter(AbstractProcess):
        """Sends its step number; raises at step `fail` if that is not 0."""

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.out = OutPort(shape=(2,))
            self.count = Var(shape=(1,), init=0)
            self.name_of = Var(shape=(3,), init="abc")

    @implements(proc=Counter, protocol=LoihiProtocol)
    @requires(CPU)
    @tag("floating_pt")
    class PyCounter(PyLoihiProcessModel):
        out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)
        count: Any = LavaPyType(np.ndarray, int)
        name_of: Any = LavaPyType(str, str)

        def run_spk(self) -> None:
            self.count[0] += 1
            if self.time_step == self.proc_params.get("fail", 0):
                raise ZeroDivisionError("on purpose")
            self.out.send(np.full(2, float(self.time_step)))

    class Waiter(AbstractProcess):
        """Receives before it sends."""

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.inp, self.out = InPort(shape=(2,)), OutPort(shape=(2,))

    @implements(proc=Waiter, protocol=LoihiProtocol)
    @requires(CPU)
    @tag("floating_pt")
    class PyWaiter(PyLoihiProcessModel):
        inp: Any = LavaPyType(PyInPort.VEC_DENSE, float)
        out: Any = LavaPyType(PyOutPort.VEC_DENSE, float)

        def run_spk(self) -> None:
            self.out.send(self.inp.recv())

    class Ticker(AbstractProcess):
        """An asynchronous process that counts until it is told to stop."""

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.ticks = Var(shape=(1,), init=0)

    @implements(proc=Ticker, protocol=AsyncProtocol)
    @requires(CPU)
    @tag("floating_pt")
    class PyTicker(PyAsyncProcessModel):
        ticks: Any = LavaPyType(np.ndarray, int)

        def run_async(self) -> None:
            while not self.check_for_stop_cmd() and not self.check_for_pause_cmd():
                self.ticks[0] += 1


def config(**models: Any) -> Any:
    return Loihi2SimCfg(select_tag="floating_pt", **models)


def with_models(*pairs: Any) -> Any:
    return config(exception_proc_model_map=dict(pairs))


def counting(fail: int = 0) -> tuple[Any, Any, Any]:
    from lava.proc.io.sink import PyReceiveModelFloat

    c, k = Counter(fail=fail), Sink(shape=(2,), buffer=8)
    c.out.connect(k.a_in)
    return c, k, with_models((c, PyCounter), (k, PyReceiveModelFloat))


def test_run_again_and_vars() -> None:
    c, k, cfg = counting()
    with lava_session(c, cfg) as session:
        session.run(3)
        assert c.count.get().tolist() == [3.0]
        assert c.name_of.get() == "abc"
        session.run(2)
        assert k.data.get()[0].tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
        c.count.set(np.array([10]))
        c.run(RunSteps(num_steps=1))
        assert c.count.get().tolist() == [11.0]
        assert session.model(c).time_step == 6
        with pytest.raises(ValueError, match="broadcast"):
            c.count.set(np.arange(3))
    with pytest.raises(RunFailed, match="stopped"):
        session.run(1)
    with pytest.raises(RunFailed, match="stopped"):
        c.count.get()
    session.stop()


def test_whole_arrays_in_and_out() -> None:
    weights = np.random.default_rng(0).normal(size=(300, 200))
    d, n = Dense(weights=weights), LIF(shape=(300,), du=0.5, dv=0.25, vth=2.0)
    d.a_out.connect(n.a_in)
    with lava_session(n, config()) as session:
        session.run(1)
        assert np.array_equal(d.weights.get(), weights)
        d.weights.set(weights * 2)
        assert np.array_equal(d.weights.get(), weights * 2)
        assert n.vth.get().tolist() == [2.0]  # stock Lava hangs on a float scalar
        assert n.du.get().shape == (1,)


def test_a_model_raises_as_itself_with_the_name_of_its_process() -> None:
    c, _, cfg = counting(fail=2)
    with lava_session(c, cfg) as session:
        with pytest.raises(ZeroDivisionError, match="on purpose") as caught:
            session.run(5)
        cause = caught.value.__cause__
        assert isinstance(cause, RunFailed)
        assert c.name in str(cause)
        assert "Counter" in str(cause)
        assert "time step 2" in str(cause)
        assert any(entry.name == "run_spk" for entry in caught.traceback)
        with pytest.raises(RunFailed, match="failed"):
            session.run(1)


def test_a_deadlock_names_who_waits_on_what() -> None:
    a, b = Waiter(), Waiter()
    a.out.connect(b.inp)
    b.out.connect(a.inp)
    started = time.monotonic()
    with lava_session(a, with_models((a, PyWaiter), (b, PyWaiter))) as session:
        with pytest.raises(RunFailed, match="waits on inp") as caught:
            session.run(1)
        assert a.name in str(caught.value)
        assert b.name in str(caught.value)
    assert time.monotonic() - started < 20


def test_a_wrong_shape_names_the_port() -> None:
    c, k = Counter(), Sink(shape=(2,), buffer=4)
    c.out.connect(k.a_in)

    @implements(proc=Counter, protocol=LoihiProtocol)
    @requires(CPU)
    class Wrong(PyCounter):
        def run_spk(self) -> None:
            self.out.send(np.zeros(5))

    from lava.proc.io.sink import PyReceiveModelFloat

    with lava_session(c, with_models((c, Wrong), (k, PyReceiveModelFloat))) as session:
        with pytest.raises(AssertionError, match=r"port out.*\(2,\).*\(5,\)"):
            session.run(1)


def test_continuous_run_pause_and_go_on() -> None:
    c, _, cfg = counting()
    with lava_session(c, cfg):
        c.run(RunContinuous())
        time.sleep(0.05)
        with pytest.raises(RunFailed, match="in progress"):
            c.count.get()
        with pytest.raises(RunFailed, match="in progress"):
            c.run(RunSteps(num_steps=1))
        c.pause()
        seen = int(c.count.get()[0])
        assert seen > 3
        c.run(RunSteps(num_steps=4))
        assert int(c.count.get()[0]) == seen + 4
        c.run(RunSteps(num_steps=5, blocking=False))
        c.wait()
        assert int(c.count.get()[0]) == seen + 9


def test_an_error_in_a_thread_surfaces_at_the_next_call() -> None:
    c, _, cfg = counting(fail=3)
    with lava_session(c, cfg):
        c.run(RunSteps(num_steps=9, blocking=False))
        with pytest.raises(ZeroDivisionError):
            c.wait()


def test_pipes_to_and_from_a_running_program() -> None:
    inject, extract = Injector(shape=(2,)), Extractor(shape=(2,))
    inject.out_port.connect(extract.in_port)
    with lava_session(inject, Loihi2SimCfg()):
        for _ in range(50):  # the pipe's size
            inject.send(np.zeros(2))
        with pytest.raises(RunFailed, match="pipe"):  # full, and nothing runs
            inject.send(np.zeros(2))
    inject, extract = Injector(shape=(2,)), Extractor(shape=(2,))
    inject.out_port.connect(extract.in_port)
    with lava_session(inject, Loihi2SimCfg()):
        inject.run(RunSteps(num_steps=20, blocking=False))
        for k in range(20):
            inject.send(np.array([k, -k]))
            assert extract.receive().tolist() == [k, -k]
        inject.wait()


def test_async_models_end_with_the_others_or_at_a_pause() -> None:
    c, k, cfg = counting()
    ticker = Ticker()
    with lava_session(ticker, with_models((ticker, PyTicker))):
        ticker.run(RunContinuous())
        time.sleep(0.02)
        ticker.pause()
        assert ticker.ticks.get()[0] > 0
    with lava_session(c, cfg) as session:
        session.run(2)
    assert k.name != c.name


def test_unknown_runtimes_are_refused() -> None:
    c, _, cfg = counting()
    with pytest.raises(Refused, match="inprocess, supervised"):
        lava_session(c, cfg, runtime="cloud")


def test_no_handlers_pile_up() -> None:
    before = list(logging.getLogger().handlers)
    for _ in range(3):
        c, _, cfg = counting()
        logging.getLogger().handlers[:] = before
        with lava_session(c, cfg) as session:
            session.run(1)
        assert logging.getLogger().handlers == before


STDP = """
import numpy as np
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.dense.process import Dense, LearningDense
from lava.proc.io.source import RingBuffer
from lava.proc.learning_rules.stdp_learning_rule import STDPLoihi
from lava.proc.lif.process import LIF

rule = STDPLoihi(learning_rate=1, A_plus=1, A_minus=-1, tau_plus=10, tau_minus=10, t_epoch=4,
                 rng_seed=7)
source = RingBuffer(data=(np.random.default_rng(0).random((2, 60)) < 0.4).astype(int))
inputs = Dense(weights=np.eye(2) * 60)
pre = LIF(shape=(2,), du=4095, dv=4095, vth=50)
plastic = LearningDense(weights=np.full((1, 2), 60), learning_rule=rule)
post = LIF(shape=(1,), du=4095, dv=1000, vth=70)
source.s_out.connect(inputs.s_in)
inputs.a_out.connect(pre.a_in)
pre.s_out.connect(plastic.s_in)
plastic.a_out.connect(post.a_in)
post.s_out.connect(plastic.s_in_bap)
config = Loihi2SimCfg(select_tag="fixed_pt")
"""
STOCK_TAIL = """
if __name__ == "__main__":
    pre.run(RunSteps(num_steps=60), config)
    print(plastic.weights.get().tolist())
    pre.stop()
"""
OUR_TAIL = """
if __name__ == "__main__":
    import grasp_plugin
    with grasp_plugin.lava_session(pre, config) as session:
        session.run(60)
        print(plastic.weights.get().tolist())
"""


def test_a_users_own_stdp_program_runs_unchanged(tmp_path: Path) -> None:
    """Written with lava-nc only; stock Lava and the one-line session learn the same weights."""
    printed = []
    for name, tail in (("stock", STOCK_TAIL), ("ours", OUR_TAIL)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "program.py").write_text(STDP + tail)
        done = subprocess.run(
            [sys.executable, "program.py"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(Path(grasp_plugin.__file__).parents[1])},
        )
        assert done.returncode == 0, done.stderr[-1500:]
        printed.append(done.stdout.strip())
    assert printed[0] == printed[1]
    assert printed[0] != "[[60.0, 60.0]]"


OWN_SUITE = (
    "proc.lif.test_models", "proc.dense.test_models", "proc.dense.test_learning",
    "proc.dense.test_stdp_sim", "proc.sparse.test_models", "proc.conv.test_process",
    "proc.monitor.test_monitors", "proc.rf.test_models", "proc.atrlif.test_models",
    "proc.sdn.test_models", "proc.graded.test_graded", "proc.resfire.test_resfire",
    "proc.io.test_source_sink", "proc.clp.nsm.test_nsm", "proc.clp.prototype_lif.test_models",
    "proc.spiker.test_models", "proc.bit_check.test_models", "magma.core.model.test_sub_model",
    "magma.core.process.test_lif_dense_lif",
)  # fmt: skip
RUN_OWN_SUITE = """
import sys, unittest
from grasp_plugin.runtime.lava_import import require_lava

AbstractProcess = require_lava().AbstractProcess
from grasp_plugin.runtime.inprocess import InProcessRuntime


def create_runtime(self, run_cfg=None, executable=None, compile_config=None):
    executable = executable or self.compile(run_cfg, compile_config)
    InProcessRuntime(executable, self)


if __name__ == "__main__":
    AbstractProcess.create_runtime = create_runtime
    suite = unittest.defaultTestLoader.loadTestsFromNames(sys.argv[1:])
    result = unittest.TextTestRunner(verbosity=0).run(suite)
    sys.exit(not result.wasSuccessful() or result.testsRun < 100)
"""


def test_lavas_own_tests_pass_in_one_process(tmp_path: Path) -> None:
    """Lava's installed test suite of its processes, learning rules and monitors, on our runtime."""
    script = tmp_path / "own_suite.py"
    script.write_text(RUN_OWN_SUITE)
    names = [f"tests.lava.{name}" for name in OWN_SUITE]
    done = subprocess.run(
        [sys.executable, str(script), *names], capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(Path(grasp_plugin.__file__).parents[1])},
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_sources_are_not_shared() -> None:
    """A channel copies: a sender that reuses its array does not change what was sent."""
    data = np.arange(8.0).reshape(2, 4)
    s, k = Source(data=data), Sink(shape=(2,), buffer=4)
    s.s_out.connect(k.a_in)
    with lava_session(s, config()) as session:
        session.run(4)
        session.model(s).data[...] = -1
        assert np.array_equal(k.data.get(), data)

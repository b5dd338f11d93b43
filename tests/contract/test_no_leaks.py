"""200 start, run, stop cycles in one interpreter leave nothing behind.

Run in a child, so that what other tests hold does not count. After 20 cycles of warm-up (imports,
caches, pools) memory may grow by 4 MB over the rest (20 kB a cycle; a graph with its models takes
about 500 kB), file descriptors, threads, log handlers, shared memory and Lava's lists of
Processes and Vars not at all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import grasp_plugin

pytestmark = pytest.mark.lava
SCRIPT = """
import gc, json, logging, os, sys
import numpy as np
from grasp_plugin import Discretisation, build, discretise, lava_session
from grasp_plugin.runtime.lava_import import kept_logging, require_lava

require_lava()
import nir
from lava.magma.core.process.process import ProcessServer
from lava.magma.core.process.variable import VarServer
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.dense.process import Dense
from lava.proc.io.source import RingBuffer
from lava.proc.lif.process import LIF
from lava.proc.monitor.process import Monitor

nodes = {"i": nir.Input(np.array([8])), "w": nir.Linear(np.ones((8, 8))),
         "n": nir.LIF(*(np.full(8, v) for v in (0.01, 1.0, 0.0, 1.0, 0.0))),
         "o": nir.Output(np.array([8]))}
graph = nir.NIRGraph(nodes, [("i", "w"), ("w", "n"), ("n", "o")], type_check=False)
network = discretise(graph, Discretisation(dt_s=1e-3, reset="value"))


def own(runtime):
    with kept_logging():
        source = RingBuffer(data=np.ones((8, 4)))
        dense, lif = Dense(weights=np.ones((8, 8))), LIF(shape=(8,))
        monitor = Monitor()
        monitor.probe(lif.v, 4)
    source.s_out.connect(dense.s_in)
    dense.a_out.connect(lif.a_in)
    with lava_session(lif, Loihi2SimCfg(select_tag="floating_pt"), runtime=runtime) as session:
        session.run(4)


def ours(runtime):
    with build(network, backend="lava") as session:
        session.run(np.ones((4, 8)))


def held():
    gc.collect()
    with open("/proc/self/statm") as file:
        rss = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    threads = len(os.listdir("/proc/self/task"))
    shared = [n for n in os.listdir("/dev/shm") if n.startswith(("psm_", "sem."))]
    return {"rss": rss, "fds": len(os.listdir("/proc/self/fd")), "threads": threads,
            "handlers": len(logging.getLogger().handlers), "shared": len(shared),
            "vars": len(VarServer().vars), "processes": len(ProcessServer().processes)}


if __name__ == "__main__":
    runtime, warm, cycles = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    call = ours if runtime == "session" else own
    for _ in range(warm):
        call(runtime)
    before = held()
    for _ in range(cycles - warm):
        call(runtime)
    print(json.dumps([before, held()]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("runtime", "warm", "cycles"),
    [("session", 20, 200), ("inprocess", 20, 200), ("supervised", 3, 20)],
)
def test_cycles_leave_nothing(runtime: str, warm: int, cycles: int, tmp_path: Path) -> None:
    script = tmp_path / "cycles.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), runtime, str(warm), str(cycles)],
        capture_output=True, text=True, timeout=180, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(grasp_plugin.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = json.loads(done.stdout.splitlines()[-1])
    for key in ("fds", "threads", "handlers", "shared", "vars", "processes"):
        assert after[key] <= before[key], (key, before, after)
    assert after["rss"] - before["rss"] < 4, (before, after)

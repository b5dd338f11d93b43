"""A resumed run equals an uninterrupted one, bit for bit, through a file, on every back end."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grasp_plugin import build, quantise
from grasp_plugin.errors import GraspError, Invalid
from grasp_plugin.runtime.checkpoint import load_arrays, save_arrays

_spec = importlib.util.spec_from_file_location(
    "lava_parity_cases", Path(__file__).with_name("test_lava_parity.py")
)
assert _spec is not None
assert _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

BACKENDS = [
    ("torch", "float"),
    ("fused", "float"),
    ("fused", "loihi"),
    pytest.param(("lava", "float"), marks=pytest.mark.lava),
    pytest.param(("lava", "loihi"), marks=pytest.mark.lava),
]
NETS = [("delayed-recurrence", "refractory1"), ("skip", "subtract-delayed"),
        ("leak-and-reset-voltage", "value"), ("delays", "snntorch-nodelay"),
        ("dense-CubaLIF", "refractory1")]  # fmt: skip


def uniform_decays(network: Any) -> Any:
    """One dv a population, so that Lava's own LIFRefractory is used too."""
    from dataclasses import replace

    return replace(
        network,
        populations=tuple(replace(p, dv=np.full(p.size, p.dv[0])) for p in network.populations),
    )


@pytest.mark.parametrize("where", BACKENDS, ids=str)
@pytest.mark.parametrize(("name", "reset"), NETS)
def test_resumed_equals_uninterrupted(
    name: str, reset: str, where: tuple[str, str], rng: Any, make_neuron: Any, tmp_path: Path
) -> None:
    backend, precision = where
    network = uniform_decays(cases.network_of(name, rng, make_neuron, reset))
    spikes = cases.spikes_for(network, rng)
    network = quantise(network) if precision == "loihi" else network
    with build(network, backend=backend) as session:
        whole = session.run(spikes, record=("membrane",))
        end = session.state()
    for cut in (2, 37):  # shorter than the pipeline, and in the middle
        first = {n: x[:cut] for n, x in spikes.items()}
        second = {n: x[cut:] for n, x in spikes.items()}
        with build(network, backend=backend) as session:
            a = session.run(first, record=("membrane",))
            session.save(tmp_path / "state.ckpt")
        with build(network, backend=backend) as session:
            session.load(tmp_path / "state.ckpt")
            assert session.steps == cut
            b = session.run(second, record=("membrane",), resume=True)
            for p in network.populations:
                joined = np.concatenate([a.spikes[p.name], b.spikes[p.name]])
                assert np.array_equal(joined, whole.spikes[p.name]), (cut, p.name)
                joined = np.concatenate([a.membrane[p.name], b.membrane[p.name]])
                assert np.array_equal(joined, whole.membrane[p.name]), (cut, p.name)
                for key in ("u", "v"):
                    assert np.array_equal(session.state()[p.name][key], end[p.name][key])
            again = session.run(first)  # without resume: from rest
            assert all(np.array_equal(again.spikes[n], a.spikes[n]) for n in a.spikes)


def test_weights_travel_in_the_checkpoint(rng: Any, make_neuron: Any, tmp_path: Path) -> None:
    network = cases.network_of("dense-LIF", rng, make_neuron, "value")
    changed = network.with_weights({k: w + 0.25 for k, w in network.weights().items()})
    for backend in ("torch", "fused"):
        with build(changed, backend=backend) as session:
            session.save(tmp_path / "w.ckpt")
        with build(network, backend=backend) as session:
            session.load(tmp_path / "w.ckpt")
            for name, value in changed.weights().items():
                assert np.array_equal(session.weights()[name], value)


def test_what_does_not_belong_is_refused(rng: Any, make_neuron: Any, tmp_path: Path) -> None:
    network = cases.network_of("dense-LIF", rng, make_neuron, "value")
    other = cases.network_of("recurrent", rng, make_neuron, "value")
    path = tmp_path / "a.ckpt"
    with build(network, backend="fused") as session:
        session.run(cases.spikes_for(network, rng))
        session.save(path)
        with pytest.raises(Invalid, match="batch of 3"):
            session.run(np.ones((4, 12)), resume=True)
        with pytest.raises(Invalid, match="folder"):
            session.save(tmp_path / "no" / "such.ckpt")
    for wrong, backend in ((other, "fused"), (network, "torch")):
        with build(wrong, backend=backend) as session, pytest.raises(Invalid, match=str(path)):
            session.load(path)
    for content in (b"", b"hello", path.read_bytes()[:-7], path.read_bytes()[:40]):
        bad = tmp_path / "bad.ckpt"
        bad.write_bytes(content)
        with build(network, backend="fused") as session, pytest.raises(Invalid, match=r"bad\.ckpt"):
            session.load(bad)
    save_arrays(tmp_path / "x", {"a": np.arange(3)}, {"n": 1})
    arrays, facts = load_arrays(tmp_path / "x")
    assert arrays["a"].tolist() == [0, 1, 2]
    assert facts["n"] == 1
    with pytest.raises(Invalid, match="JSON"):
        save_arrays(tmp_path / "x", {}, {"n": object()})


WRITER = """
import sys
import numpy as np
from grasp_plugin.runtime.checkpoint import save_arrays
n = 0
while True:
    save_arrays(sys.argv[1], {"a": np.full(400_000, n)}, {"n": n})
    n += 1
    print(n, flush=True)
"""


def test_kill_at_any_moment_leaves_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    for wait in (0.0, 0.003, 0.007, 0.011, 0.017):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(wait)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        arrays, facts = load_arrays(path)
        assert np.all(arrays["a"] == facts["n"])


def test_errors_are_ours(tmp_path: Path) -> None:
    with pytest.raises(GraspError, match="none"):
        load_arrays(tmp_path / "nothing")

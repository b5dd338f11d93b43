"""What `benchmarks/hmdf.py` compares with: its LIFs, its counts, its deployed networks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import _hmdf_deploy as deployed
import _hmdf_nets as nets
import _hmdf_train as training
from _hmdf_tasks import Samples, Task

from grasp_plugin.hdlif.deploy import deploy


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def task(steps: int = 4, inputs: int = 30) -> Task:
    """Ten classes that a few inputs tell apart."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 10
    x = 0.25 * torch.randint(0, 4, (steps, 200, inputs), generator=g)
    x[:, torch.arange(200), y] += 3.0
    samples = Samples(x, y)
    return Task(
        "toy", samples.take(torch.arange(120)), samples.take(torch.arange(120, 200)), 0.25, 15
    )


def test_lif_by_hand() -> None:
    """lambda = theta = 0.5, inputs 0.4, 0.6, 0: fires at 0.8 and keeps 0.3; graded it sends 0.3."""
    for graded, wanted in ((False, [0.0, 1.0, 0.0]), (True, [0.0, 0.3, 0.0])):
        lif, state, out = nets.LIF(3, graded, "float", True), None, []
        for current in (0.4, 0.6, 0.0):
            spike, state = lif(torch.tensor([[current]]), state)
            out.append(spike.item())
        assert out == pytest.approx(wanted, abs=1e-6)
        assert state[0].item() == pytest.approx(0.15, abs=1e-6)


@pytest.mark.parametrize("method", nets.METHODS, ids=lambda m: m.name.strip())
def test_every_method_trains(method: nets.Method) -> None:
    work = task()
    found = training.run(method, work.train, work.test, 1e-2, 0, 4)
    assert found["accuracy"] > 0.3  # chance is 0.1
    assert found["sops"] > found["events"] > 0
    assert (found["muls"], found["adds"]) == ((512, 1536) if method.parallel else (1024, 2048))


@pytest.mark.parametrize("neuron", ["lif", "graded"])
def test_the_lifs_bptt_is_not_their_online_gradient(neuron: str) -> None:
    grads = []
    for mode in ("online", "bptt"):
        method = nets.Method("", neuron, mode, spikes="binary" if neuron == "lif" else "float")
        net = nets.network(method, 30, 4, 0)
        training.gradient(method, net, *training.batch(30, 4))
        grads.append(net[0].synapse.weight.grad)
    assert float((grads[0] - grads[1]).abs().max()) > 1e-6


def test_memory_grows_with_the_steps_in_bptt_only() -> None:
    by_name = {m.name: m for m in nets.METHODS}
    for name, grows in (("HD-LIF, online", False), ("HD-LIF, BPTT", True)):
        few, many = (training.saved_elements(by_name[name], 20, n) for n in (4, 16))
        assert (many > 3 * few) if grows else (many == few)


def test_a_trained_network_runs_alike_on_the_compiled_back_end() -> None:
    work = task()
    net = training.train(nets.COMPRESSED, work.train, 1e-2, 0, 4)
    layers = deploy(nn.Sequential(*net).double()).layers
    share, worst = deployed.code_mismatch(layers, work)
    assert share < 0.005
    assert worst <= 1
    assert deployed.fold_mismatches(1)[0] == 0
    traces = training.cosines(1)
    assert traces["trace"][1] == pytest.approx(1, abs=1e-5)
    assert traces["online"][0] < 0.99

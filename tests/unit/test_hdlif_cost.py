"""Published costs recomputed from a ResNet-18 that code builds (H16), and counts by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from grasp_plugin.errors import Invalid
from grasp_plugin.hdlif import HDLIF, HDLayer, HDStack, QuantConv2d, QuantLinear
from grasp_plugin.hdlif.cost import (
    LayerTraffic,
    NeuronOps,
    Traffic,
    measure,
    neuron_ops,
    parameter_bytes,
)
from grasp_plugin.hdlif.resnet import ResNet18, meta_resnet18
from grasp_plugin.hdlif.training import accumulate


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


PUBLISHED = {"fp": ("44.84", "44.84"), "1.5bit": ("4.40", "3.00"), "1bit": ("3.00", "1.61")}


@pytest.mark.parametrize("weights", PUBLISHED)
def test_h16_parameter_bytes(weights: str) -> None:
    """CIFAR-100, ResNet-18: as published, and truly packed."""
    net, _ = meta_resnet18(classes=100, steps=4, weights=weights)
    found = parameter_bytes(net)
    assert (f"{found.published / 1e6:.2f}", f"{found.packed / 1e6:.2f}") == PUBLISHED[weights]
    assert found.count == 11210532


@pytest.mark.parametrize(("parallel", "million"), [(False, "6.586"), (True, "4.620")])
def test_h16_neuron_operations(parallel: bool, million: str) -> None:
    net, image = meta_resnet18(classes=100, steps=4, parallel=parallel)
    ops = neuron_ops(net, image, 4)
    assert f"{ops.total / 1e6:.3f}" == million
    assert ops.muls == 4 * (303104 + (0 if parallel else 245760))


def test_h16_published_energy() -> None:
    """mJ from the published SOPs (million), at 0.9 pJ, and an eighth of it for 4-bit spikes."""
    rows = ((273.02, 1, 0.246), (284.49, 1, 0.256), (233.84, 8, 0.026), (254.08, 1, 0.229),
            (190.13, 8, 0.021))  # fmt: skip
    for millions, parts, wanted in rows:
        layer = _traffic(round(millions * 1e6))
        assert round(layer.energy_mj(0.9 / parts), 3) == wanted


def _traffic(sops: int) -> Traffic:
    layer = LayerTraffic("x", 10, 4, sops, 0.0, 0.0)
    return Traffic(1, (layer,), NeuronOps(0, 0), 0)


SMALL = {
    "II": {"seca": "II", "spikes": "4bit", "weights": "1bit"},
    "I": {"seca": "I", "parallel": True, "mem_bn": True},
}


@pytest.mark.parametrize("case", SMALL)
def test_a_small_resnet_trains_with_every_option(case: str) -> None:
    torch.manual_seed(0)
    net = ResNet18(10, 2, widths=(4, 4, 6, 6), **SMALL[case])  # type: ignore[arg-type]
    x = torch.randn(2, 3, 3, 16, 16)
    accumulate(net, x, torch.arange(3), nn.functional.cross_entropy)
    assert [n for n, p in net.named_parameters() if p.grad is None] == []
    with pytest.raises(Invalid, match="seca None, 'I' or 'II', got 'III'"):
        ResNet18(10, 2, seca="III")


def test_synaptic_operations_count_weights_that_are_there() -> None:
    linear = QuantLinear(3, 4, weights="1.5bit")
    with torch.no_grad():  # ternary: columns with 4, 1 and 0 weights that are not 0
        linear.weight.copy_(torch.tensor([[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0.0]]))
    net = HDStack(HDLayer(linear, HDLIF(2, spikes="4bit")), nn.Linear(4, 2))
    x = torch.tensor([[[1.0, 1.0, 1.0]], [[0.0, 1.0, 0.0]]])
    found = measure(net, x)
    first, second = found.layers
    assert (first.name, first.events, first.sops, first.payload_bits) == ("0.synapse", 4, 6, 1)
    assert second.events == 5  # step 0: excesses 0.5 (three) and 1.5; step 1: 0.75 of the last
    assert second.payload_bits == 4
    assert found.ops == NeuronOps(muls=8, adds=16)
    assert first.weight_bytes == 6 * 0.25
    assert found.state_bytes == 8 * 8
    assert found.bytes_moved == 4 / 8 + 1.5 + second.message_bytes + second.weight_bytes + 64
    assert found.payload_bits == (4 + 4 * 5) / 9


def test_convolutions_count_their_borders() -> None:
    conv = QuantConv2d(1, 2, 3, weights="1bit", padding=1)
    x = torch.zeros(1, 1, 1, 3, 3)
    x[0, 0, 0, 0, 0] = 0.3  # a corner meets 4 positions of the 3 x 3 kernel, in 2 channels
    x[0, 0, 0, 1, 1] = 0.7
    found = measure(HDStack(HDLayer(conv, HDLIF(1, parallel=True))), x)
    assert (found.sops, found.events, found.payload_bits) == (8 + 18, 2, 32)
    assert found.ops == NeuronOps(0, 18)
    assert found.state_bytes == 0


@pytest.mark.parametrize("mode", ["trace", "online"])
def test_traced_layers_are_counted_alike(mode: str) -> None:
    torch.manual_seed(0)
    net = HDStack(HDLayer(nn.Linear(5, 4), HDLIF(3, grad_mode=mode)))
    assert measure(net, torch.ones(3, 2, 5)).sops == 3 * 2 * 5 * 4
    assert net[0].neuron.grad_mode == mode
    with pytest.raises(Invalid, match=r"expected \(time, batch"):
        measure(net, torch.ones(0, 2, 5))
    with pytest.raises(Invalid, match=r"got \(2, 0, 5\)"):
        measure(net, torch.ones(2, 0, 5))

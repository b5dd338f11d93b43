"""Train two small snnTorch networks on N-MNIST and write them as NIR files.

    python examples/01_train_nmnist_snntorch.py --data <N-MNIST folder or zip>

A convolutional network (reset to zero) and a recurrent one (reset by subtraction) see 30 frames of
10 ms, pooled to 17 x 17 pixels, two polarities. They are trained on every recording of `--data`
except the 140 test ids of `data/nmnist_split.json`, which are read from `data/nmnist_subset.zip`
and only measured at the end, and are written to `models/nmnist_conv.nir` and
`models/nmnist_recurrent.nir`. `--validate` instead holds out the last eighth of the training ids,
prints its accuracy, writes nothing and does not look at the test ids: settings were chosen so.

Without `--data`, the 80 training recordings of the subset are used, which shows the way but does
not reach the accuracy of the files that are committed.
"""

from __future__ import annotations

import nir
import snntorch as snn
import torch
from _nmnist_training import DT_S, train_and_write
from snntorch import surrogate
from snntorch.utils import reset
from torch import Tensor, nn

from grasp_plugin.adapters.from_snntorch import from_snntorch

HIDDEN = 64


def conv_net() -> nn.Sequential:
    """Two convolutions and a layer of ten neurons that count."""
    neuron = {"beta": 0.9, "reset_mechanism": "zero", "init_hidden": True}
    slope = surrogate.fast_sigmoid(slope=10)
    return nn.Sequential(
        nn.Conv2d(2, 12, 4),
        snn.Leaky(spike_grad=slope, **neuron),
        nn.AvgPool2d(2),
        nn.Dropout(0.2),
        nn.Conv2d(12, 24, 4),
        snn.Leaky(spike_grad=slope, **neuron),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(24 * 4 * 4, 10),
        snn.Leaky(spike_grad=slope, **neuron),
    )


def recurrent_net() -> nn.Sequential:
    """A convolution, a layer of recurrent neurons and a layer of ten neurons that count."""
    neuron = {"beta": 0.9, "reset_mechanism": "subtract", "init_hidden": True}
    slope = surrogate.fast_sigmoid(slope=10)
    return nn.Sequential(
        nn.Conv2d(2, 8, 4),
        snn.Leaky(spike_grad=slope, **neuron),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(8 * 7 * 7, HIDDEN),
        snn.RLeaky(spike_grad=slope, all_to_all=True, linear_features=HIDDEN, **neuron),
        nn.Dropout(0.2),
        nn.Linear(HIDDEN, 10),
        snn.Leaky(spike_grad=slope, **neuron),
    )


def run(net: nn.Sequential, frames: Tensor) -> Tensor:
    """Spikes (time, batch, class) for frames (time, batch, polarity, y, x), from rest.

    Layer by layer: layers without state take all steps at once, neurons step after step.
    """
    reset(net)
    signal = frames
    for layer in net:
        if isinstance(layer, snn.SpikingNeuron):
            signal = torch.stack([layer(step) for step in signal])
        else:
            signal = layer(signal.flatten(0, 1)).unflatten(0, signal.shape[:2])
    return signal


def export(net: nn.Sequential, sample: Tensor) -> nir.NIRGraph:
    reset(net)
    return from_snntorch(net, sample, dt=DT_S)


if __name__ == "__main__":
    train_and_write(__doc__, {"conv": conv_net, "recurrent": recurrent_net}, run, export)

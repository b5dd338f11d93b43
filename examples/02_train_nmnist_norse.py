"""Train a small Norse network on N-MNIST and write it as a NIR file.

    python examples/02_train_nmnist_norse.py --data <N-MNIST folder or zip>

The sibling of 01: a convolutional network of cells without and with a synaptic current sees 30
frames of 10 ms, pooled to 17 x 17 pixels, two polarities. It is trained on every recording of
`--data` except the 140 test ids of `data/nmnist_split.json`, which are read from
`data/nmnist_subset.zip` and only measured at the end, and is written to `models/nmnist_norse.nir`.
`--validate` instead holds out the last eighth of the training ids, prints its accuracy, writes
nothing and does not look at the test ids: settings were chosen so.

Without `--data`, the 80 training recordings of the subset are used, which shows the way but does
not reach the accuracy of the file that is committed.
"""

from __future__ import annotations

import nir
import norse.torch as norse
import torch
from _nmnist_training import DT_S, train_and_write
from torch import Tensor, nn

from grasp_plugin.adapters.from_norse import from_norse

# A membrane moves by dt/tau = 0.1 of its input a step, so a threshold of 0.1 suits weights of the
# usual size.
MEMBRANE = {"tau_mem_inv": 10.0, "v_leak": 0.0, "v_th": 0.1, "v_reset": 0.0}

# The surrogate's width has to suit that threshold: "circ" takes it from alpha. "super" of Norse
# 1.1.0 takes no notice of alpha, its width is always 1, and learned much less (--validate).
SURROGATE = {"method": "circ", "alpha": 0.04}


def box() -> norse.LIFBoxCell:
    """Neurons whose input moves the membrane at once."""
    return norse.LIFBoxCell(norse.LIFBoxParameters(**parameters(MEMBRANE), **SURROGATE), dt=DT_S)


def parameters(values: dict[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def current() -> norse.LIFCell:
    """Neurons with a synaptic current of 20 ms."""
    membrane = parameters(MEMBRANE | {"tau_syn_inv": 50.0})
    return norse.LIFCell(norse.LIFParameters(**membrane, **SURROGATE), dt=DT_S)


def conv_net() -> norse.SequentialState:
    """Two convolutions and a layer of ten neurons that count."""
    return norse.SequentialState(
        nn.Conv2d(2, 12, 4),
        box(),
        nn.AvgPool2d(2),
        nn.Dropout(0.2),
        nn.Conv2d(12, 24, 4),
        current(),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(24 * 4 * 4, 10),
        box(),
    )


def run(net: nn.Sequential, frames: Tensor) -> Tensor:
    """Spikes (time, batch, class) for frames (time, batch, polarity, y, x), from rest.

    Layer by layer: layers without state take all steps at once, neurons step after step.
    """
    signal = frames
    for layer in net:
        if isinstance(layer, (norse.LIFBoxCell, norse.LIFCell)):
            state, spikes = None, []
            for step in signal:
                z, state = layer(step, state)
                spikes.append(z)
            signal = torch.stack(spikes)
        else:
            signal = layer(signal.flatten(0, 1)).unflatten(0, signal.shape[:2])
    return signal


def export(net: nn.Sequential, sample: Tensor) -> nir.NIRGraph:
    return from_norse(net, sample, dt=DT_S)


if __name__ == "__main__":
    # With 01's weight decay it learned less; gradients here shrink by dt/tau at each layer.
    train_and_write(__doc__, {"norse": conv_net}, run, export, weight_decay=0.0)

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

import argparse
import json
import time
from pathlib import Path

import snntorch as snn
import torch
from snntorch import surrogate
from snntorch.utils import reset
from torch import Tensor, nn

from grasp_plugin.adapters.from_snntorch import from_snntorch
from grasp_plugin.adapters.nir_file import write_nir
from grasp_plugin.data.nmnist import Recording, load_nmnist, to_frames

HERE = Path(__file__).resolve().parent
SUBSET = HERE / "data" / "nmnist_subset.zip"
SPLIT = HERE / "data" / "nmnist_split.json"
STEPS, DT_S, POOL = 30, 0.01, 2
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


def without_dropout(net: nn.Sequential) -> nn.Sequential:
    """The same layers, less the dropout, which does nothing once a network is trained."""
    return nn.Sequential(*(layer for layer in net if not isinstance(layer, nn.Dropout)))


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


def tensors(recordings: list[Recording]) -> tuple[Tensor, Tensor]:
    """Frames (recording, time, polarity, y, x) as uint8 and labels (recording,)."""
    frames = [torch.from_numpy(to_frames(one, steps=STEPS, pool=POOL)) for one in recordings]
    return torch.stack(frames), torch.tensor([one.label for one in recordings])


def augmented(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Each recording moved by up to 2 pixels and 2 steps, a tenth of its spikes lost."""
    moved = torch.empty_like(frames)
    for k, one in enumerate(frames):
        dt, dy, dx = (int(d) for d in torch.randint(-2, 3, (3,), generator=generator))
        padded = nn.functional.pad(one, (2, 2, 2, 2, 0, 0, 2, 2))
        t, _, y, x = one.shape
        moved[k] = padded[2 + dt : 2 + dt + t, :, 2 + dy : 2 + dy + y, 2 + dx : 2 + dx + x]
    return moved * (torch.rand(moved.shape, generator=generator) > 0.1)


@torch.no_grad()
def accuracy(net: nn.Sequential, frames: Tensor, labels: Tensor) -> float:
    """Share of recordings whose class spiked most."""
    net.eval()
    right = 0
    for x, y in zip(frames.split(100), labels.split(100), strict=True):
        counts = run(net, x.transpose(0, 1).float()).sum(0)
        right += int((counts.argmax(1) == y).sum())
    return right / len(labels)


def train(net: nn.Sequential, frames: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    """Cross-entropy of spike counts, Adam, learning rate down to zero along a cosine."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=4e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    began = time.perf_counter()
    for epoch in range(epochs):
        net.train()
        total = 0.0
        for index in torch.randperm(len(labels), generator=generator).split(32):
            x = augmented(frames[index], generator).transpose(0, 1).float()
            counts = run(net, x).sum(0)
            loss = nn.functional.cross_entropy(counts * 0.5, labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(index)
        schedule.step()
        if (epoch + 1) % 10 == 0:
            seconds = time.perf_counter() - began
            print(f"  epoch {epoch + 1:3}: loss {total / len(labels):.3f}, {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="N-MNIST as a folder or zip")
    parser.add_argument("--net", choices=["conv", "recurrent"], action="append")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--validate", action="store_true", help="hold out training ids")
    parser.add_argument("--out", type=Path, default=HERE / "models")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    split = json.loads(SPLIT.read_text())
    if options.data:
        recordings = [one for one in load_nmnist(options.data) if one.id not in split["test"]]
    else:
        recordings = load_nmnist(SUBSET, ids=split["train"])
    if options.validate:
        cut = (
            len(recordings) * 7 // 8
        )  # neighbours share a writer, so the last ids, not every eighth
        recordings, test = recordings[:cut], recordings[cut:]
    else:
        test = load_nmnist(SUBSET, ids=split["test"])
    train_set, test_set = tensors(recordings), tensors(test)
    print(f"{len(recordings)} recordings to train on, {len(test)} to measure on")

    for name in options.net or ["conv", "recurrent"]:
        torch.manual_seed(options.seed)
        net = conv_net() if name == "conv" else recurrent_net()
        print(f"{name}: {sum(p.numel() for p in net.parameters())} parameters")
        train(net, *train_set, epochs=options.epochs, seed=options.seed)
        print(f"  accuracy: train {accuracy(net, *train_set):.1%}", end=", ")
        print(f"{'validation' if options.validate else 'test'} {accuracy(net, *test_set):.1%}")
        if options.validate:
            continue
        net.eval()
        reset(net)
        sample = train_set[0][:1, 0].float()
        graph = from_snntorch(without_dropout(net), sample, dt=DT_S)
        path = options.out / f"nmnist_{name}.nir"
        write_nir(graph, path)
        print(f"  wrote {path.name}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

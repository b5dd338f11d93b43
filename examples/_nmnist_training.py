"""What the training scripts 01 and 02 share: recordings, augmentation, training, writing.

A script gives its networks, how to run one on a batch of frames, and how to export one; the layers
are those of `nn.Sequential`, of whatever framework.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import nir
import torch
from torch import Tensor, nn

from grasp_plugin.adapters.nir_file import write_nir
from grasp_plugin.data.nmnist import Recording, load_nmnist, to_frames

HERE = Path(__file__).resolve().parent
SUBSET = HERE / "data" / "nmnist_subset.zip"
SPLIT = HERE / "data" / "nmnist_split.json"
STEPS, DT_S, POOL = 30, 0.01, 2

Make = Callable[[], nn.Sequential]
Run = Callable[[nn.Sequential, Tensor], Tensor]  # frames (time, batch, ...) -> spikes, from rest
Export = Callable[[nn.Sequential, Tensor], nir.NIRGraph]  # of a network and a sample of one step


def train_and_write(
    doc: str | None,
    makers: Mapping[str, Make],
    run: Run,
    export: Export,
    weight_decay: float = 1e-5,
) -> None:
    """The command of a script: trains each network, measures it, writes `nmnist_<name>.nir`."""
    options = arguments(doc, list(makers))
    torch.set_num_threads(options.threads)
    recordings, test = split(options.data, options.validate)
    train_set, test_set = tensors(recordings), tensors(test)
    print(f"{len(recordings)} recordings to train on, {len(test)} to measure on")

    for name in options.net or makers:
        torch.manual_seed(options.seed)
        net = makers[name]()
        print(f"{name}: {sum(p.numel() for p in net.parameters())} parameters")
        train(net, run, *train_set, options.epochs, options.seed, weight_decay)
        print(f"  accuracy: train {accuracy(net, run, *train_set):.1%}", end=", ")
        kind = "validation" if options.validate else "test"
        print(f"{kind} {accuracy(net, run, *test_set):.1%}")
        if options.validate:
            continue
        net.eval()
        graph = export(without_dropout(net), train_set[0][:1, 0].float())
        path = options.out / f"nmnist_{name}.nir"
        write_nir(graph, path)
        print(f"  wrote {path.name}, {path.stat().st_size / 1000:.0f} kB")


def arguments(doc: str | None, names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="N-MNIST as a folder or zip")
    parser.add_argument("--net", choices=names, action="append")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--validate", action="store_true", help="hold out training ids")
    parser.add_argument("--out", type=Path, default=HERE / "models")
    return parser.parse_args()


def split(data: Path | None, validate: bool) -> tuple[list[Recording], list[Recording]]:
    """Recordings to train on and to measure on; with `validate` neither is a test recording."""
    ids = json.loads(SPLIT.read_text())
    if data:
        recordings = [one for one in load_nmnist(data) if one.id not in ids["test"]]
    else:
        recordings = load_nmnist(SUBSET, ids=ids["train"])
    if not validate:
        return recordings, load_nmnist(SUBSET, ids=ids["test"])
    cut = len(recordings) * 7 // 8  # neighbours share a writer, so the last ids, not every eighth
    return recordings[:cut], recordings[cut:]


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
def accuracy(net: nn.Sequential, run: Run, frames: Tensor, labels: Tensor) -> float:
    """Share of recordings whose class spiked most."""
    net.eval()
    right = 0
    for x, y in zip(frames.split(100), labels.split(100), strict=True):
        counts = run(net, x.transpose(0, 1).float()).sum(0)
        right += int((counts.argmax(1) == y).sum())
    return right / len(labels)


def train(
    net: nn.Sequential,
    run: Run,
    frames: Tensor,
    labels: Tensor,
    epochs: int,
    seed: int,
    weight_decay: float,
) -> None:
    """Cross-entropy of spike counts, Adam, learning rate down to zero along a cosine."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=4e-3, weight_decay=weight_decay)
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


def without_dropout(net: nn.Sequential) -> nn.Sequential:
    """The same layers, less the dropout, which does nothing once a network is trained."""
    return type(net)(*(layer for layer in net if not isinstance(layer, nn.Dropout)))

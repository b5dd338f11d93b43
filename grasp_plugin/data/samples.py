"""Arrays and labelled samples from files, checked against the network that they are for."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from grasp_plugin.data.nmnist import SIZE, load_nmnist, to_frames
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network.network import Network
from grasp_plugin.network.weights import Array

Samples = tuple[Array, Array]
TEXT = (".csv", ".tsv", ".txt")


def read_spikes(path: str) -> Any:
    """An .npy array, or the arrays of an .npz by name.

    Raises:
        Invalid: no such file, pickled objects, or a damaged file.
    """
    if Path(path).suffix.lower() in TEXT:
        raise Invalid(
            path, "expected a .npy or .npz file, got a text file", "Save the numbers with "
            "numpy.save(path, numpy.loadtxt(...)), time first",
        )  # fmt: skip
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                return {name: loaded[name] for name in loaded.files}
        return loaded
    except FileNotFoundError as error:
        raise Invalid(path, "expected a file, got none", "Check the path") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        pickled = "pickled" in str(error)  # NumPy says so of any file that it does not know
        raise Invalid(
            path, "expected a .npy or .npz file of numbers, got "
            f"{'another file, or one of objects' if pickled else error}", "Save it with numpy.save",
        ) from error  # fmt: skip


def read_samples(path: str, network: Network, classes: int) -> Samples:
    """(spikes (time, sample, neuron...), labels (sample,)) for a network with one input.

    Raises:
        Invalid: a file that is missing or damaged, or arrays that do not fit the network.
        Refused: a network with several inputs.
    """
    if len(network.inputs) != 1:
        raise Refused("network", f"expected one input, got {', '.join(network.inputs)}",
                      "Use build(network, plans=...) in Python")  # fmt: skip
    (shape,) = network.inputs.values()
    if Path(path).suffix == ".npz":
        spikes, labels = _read_npz(path, shape)
    elif Path(path).suffix.lower() in (".npy", *TEXT):
        raise Invalid(
            path, "expected an .npz with spikes and labels, or a folder or zip of N-MNIST, got "
            f"{Path(path).suffix}", "Save it with numpy.savez(path, spikes=..., labels=...)",
        )  # fmt: skip
    else:
        spikes, labels = _read_nmnist(path, network, shape)
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        at = int(np.flatnonzero((labels < 0) | (labels >= classes))[0])
        raise Invalid(
            path, f"expected labels in 0..{classes - 1}, got {wrong[0]} of sample {at}",
            "Pass --classes, or mend the label" if wrong.min() >= 0
            else "Mend the labels: they count from 0",
        )  # fmt: skip
    return spikes, labels


def _read_npz(path: str, shape: tuple[int, ...]) -> Samples:
    arrays = read_spikes(path)
    missing = [name for name in ("spikes", "labels") if name not in arrays]
    if missing:
        raise Invalid(
            path, f"expected arrays spikes and labels, got {', '.join(arrays) or 'none'}",
            "Save it with numpy.savez(path, spikes=..., labels=...)",
        )  # fmt: skip
    spikes, labels = arrays["spikes"], arrays["labels"]
    if spikes.dtype.kind not in "biuf" or labels.dtype.kind not in "iu":
        raise Invalid(
            path, f"expected numbers and integer labels, got {spikes.dtype} and {labels.dtype}",
            "Convert them",
        )  # fmt: skip
    if spikes.shape[2:] != tuple(shape) or labels.shape != spikes.shape[1:2] or not labels.size:
        sample_first = spikes.shape[2:] == tuple(shape) and labels.shape == spikes.shape[:1]
        raise Invalid(
            path, f"expected spikes (time, sample, {', '.join(map(str, shape))}) and a label for "
            f"each sample, got {spikes.shape} and {labels.shape}",
            "Time comes first: numpy.swapaxes(spikes, 0, 1)" if sample_first else "Check the axes",
        )  # fmt: skip
    if not len(spikes) or not np.all(np.isfinite(spikes)):
        raise Invalid(path, "expected finite spikes of one step or more", "Check the data")
    return spikes.astype(np.float64), labels.astype(np.int64)


def _read_nmnist(path: str, network: Network, shape: tuple[int, ...]) -> Samples:
    recordings = load_nmnist(path)
    square = len(shape) == 3 and shape[0] == 2 and shape[1] == shape[2]
    if not square or SIZE % shape[1] or network.dt_s is None:
        raise Invalid(
            path, f"expected a network with a time step and an input (2, n, n), n a divisor of "
            f"{SIZE}, for N-MNIST, got dt {network.dt_s} and {tuple(shape)}",
            "Frame the recordings yourself (data.nmnist.to_frames) and pass an .npz",
        )  # fmt: skip
    frames = [to_frames(r, dt_s=network.dt_s, pool=SIZE // shape[1]) for r in recordings]
    labels = np.array([r.label for r in recordings])
    return np.stack(frames, axis=1).astype(np.float64), labels


def split(stream: Samples, share: float, seed: int) -> tuple[Samples, Samples]:
    """Samples to learn from and samples to hold out, drawn by the seed."""
    spikes, labels = stream
    order = np.random.default_rng(seed).permutation(len(labels))
    cut = round(share * len(labels))
    if not 0 < cut < len(labels):
        raise Invalid(
            "--held-out", f"expected a share that leaves samples on both sides, got {share} of "
            f"{len(labels)}", "Pass --held-out 0, or --test DATA",
        )  # fmt: skip
    out, kept = np.sort(order[:cut]), np.sort(order[cut:])
    return (spikes[:, kept], labels[kept]), (spikes[:, out], labels[out])

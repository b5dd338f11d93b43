"""What `OnlineTrainer` is given: batches of spikes and labels, checked, one step at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.losses import one_hot
from grasp_plugin.network.network import Network
from grasp_plugin.runtime.inputs import check_numbers

Batch = tuple[Any, Any]


@dataclass(frozen=True, eq=False)
class Steps:
    """A sequence (time, batch, neuron) in its own dtype, each step given in the network's.

    The whole sequence is never copied in another dtype, so bytes stay bytes.
    """

    values: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def __getitem__(self, t: int) -> Tensor:
        return self.values[t].to(self.dtype)


@dataclass(frozen=True, eq=False)
class Sequences:
    """A batch: inputs by name, labels (batch,), and rows of 0 and 1 (batch, classes)."""

    inputs: dict[str, Steps]
    labels: Tensor
    rows: Tensor

    @property
    def steps(self) -> int:
        return next(iter(self.inputs.values())).shape[0]

    @property
    def batch(self) -> int:
        return next(iter(self.inputs.values())).shape[1]

    def target(self) -> Tensor:
        """(time, batch, classes), one row for all steps in memory."""
        return self.rows.expand(self.steps, *self.rows.shape)

    def mask(self) -> Tensor:
        """Ones (time, batch, 1)."""
        return self.rows.new_ones(1, 1, 1).expand(self.steps, self.batch, 1)


def batches_of(batches: Iterable[Batch]) -> Iterable[Batch]:
    """The same.

    Raises:
        Invalid: an iterator, which the first epoch would use up.
    """
    if isinstance(batches, Iterator):
        raise Invalid(
            "batches", f"expected batches that can be gone through in every epoch, got an "
            f"iterator ({type(batches).__name__})", "Pass a list or a DataLoader",
        )  # fmt: skip
    return batches


def as_sequences(
    network: Network, spikes: Any, labels: Any, classes: int, device: str, dtype: torch.dtype
) -> Sequences:
    """Spikes and labels of one batch, on the device; labels None: none are known.

    Raises:
        Invalid: a wrong name, shape or value; a label out of range.
    """
    given = spikes if isinstance(spikes, Mapping) else {next(iter(network.inputs)): spikes}
    if set(given) != set(network.inputs):
        raise Invalid(
            "spikes", f"expected inputs {', '.join(sorted(network.inputs))}, got "
            f"{', '.join(sorted(given))}", "Pass {name: array} with every input once",
        )  # fmt: skip
    inputs = {
        name: Steps(_flat(name, given[name], shape, device), dtype)
        for name, shape in network.inputs.items()
    }
    sizes = {x.shape[:2] for x in inputs.values()}
    if len(sizes) != 1:
        raise Invalid("spikes", f"expected one time and batch size, got {sizes}", "Pad the inputs")
    batch = next(iter(sizes))[1]
    like = torch.zeros((), dtype=dtype, device=device)
    if labels is None:
        return Sequences(inputs, like.new_zeros(batch), like.new_zeros(batch, 1))
    named = torch.as_tensor(labels)
    if tuple(named.shape) != (batch,):
        raise Invalid(
            "labels", f"expected one for each of {batch} samples, got {tuple(named.shape)}",
            "Pass (batch,) integers",
        )  # fmt: skip
    rows = one_hot(named.to(device), classes, like)
    return Sequences(inputs, named.to(device), rows)


def _flat(name: str, array: Any, shape: tuple[int, ...], device: str) -> Tensor:
    """(time, batch, size) in its own dtype."""
    try:
        values = torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Invalid(name, f"expected numbers, got {type(array).__name__}: {error}", "Pass an "
                      "array") from error  # fmt: skip
    if values.ndim != len(shape) + 2 or tuple(values.shape[2:]) != tuple(shape):
        raise Invalid(
            name, f"expected (time, batch, neuron...) with neurons {tuple(shape)}, got "
            f"{tuple(values.shape)}", "Check the axes: time comes first, then the batch",
        )  # fmt: skip
    if 0 in values.shape:
        raise Invalid(
            name, f"expected at least one step and sample, got {tuple(values.shape)}",
            "Pass an input that is not empty",
        )  # fmt: skip
    if values.is_complex():
        raise Invalid(name, f"expected real numbers, got {values.dtype}", "Convert them")
    if not bool(torch.isfinite(values.sum())):  # a sum may overflow: the check looks at each
        check_numbers(name, values.detach().double().cpu().numpy())
    return values.reshape(*values.shape[:2], -1).to(device)

"""Few-shot tasks as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.meta.checks import samples


@dataclass(frozen=True, eq=False)
class Tasks:
    """A batch of tasks of one size.

    Args:
        symbol              argument   shape
        support inputs      support_x  (task, time, sample, neuron...)
        support labels      support_y  (task, sample), integers
        query inputs        query_x    (task, time, query, neuron...)
        query labels        query_y    (task, query)

    Labels of any integer type are taken as int64. Support and query may differ in time.

    Raises:
        Invalid: no tensors; shapes that do not fit each other; no task, step, sample or neuron;
            labels that are not integers; inputs with NaN or infinity; support and query of
            different neurons or dtypes.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def __post_init__(self) -> None:
        for part in ("support", "query"):
            names = f"{part}_x", f"{part}_y"
            x, y = (getattr(self, name) for name in names)
            labels = samples(x, y, names, ("task", "time", "sample"))
            object.__setattr__(self, names[1], labels)
        wanted, got = (
            f"{len(x)} tasks of neurons {tuple(x.shape[3:])} in {x.dtype}"
            for x in (self.support_x, self.query_x)
        )
        if wanted != got:
            raise Invalid("query_x", f"expected {wanted}, as support_x, got {got}", "Make them one")

    @classmethod
    def of(cls, arrays: Sequence[Any], dtype: torch.dtype = torch.float32) -> Tasks:
        """From four arrays, such as `data.episodes.FewShot.batch` gives; inputs in `dtype`."""
        tensors = [torch.as_tensor(np.ascontiguousarray(a)) for a in arrays]
        return cls(tensors[0].to(dtype), tensors[1], tensors[2].to(dtype), tensors[3])

    def __len__(self) -> int:
        return len(self.support_y)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        yield from zip(self.support_x, self.support_y, self.query_x, self.query_y, strict=True)

    def part(self, start: int, stop: int) -> Tasks:
        """Tasks start..stop - 1."""
        own = (self.support_x, self.support_y, self.query_x, self.query_y)
        return Tasks(*(value[start:stop] for value in own))

    def to(self, target: str | torch.device | torch.dtype) -> Tasks:
        """The same on another device, or with inputs in another dtype; labels stay int64."""
        own = (self.support_x, self.support_y, self.query_x, self.query_y)
        if not isinstance(target, torch.dtype):
            return Tasks(*(value.to(target) for value in own))
        return Tasks(own[0].to(target), own[1], own[2].to(target), own[3])

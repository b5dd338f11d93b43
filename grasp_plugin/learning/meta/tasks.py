"""Few-shot tasks as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grasp_plugin.errors import Invalid


@dataclass(frozen=True, eq=False)
class Tasks:
    """A batch of tasks of one size.

    Args:
        symbol              argument   shape
        support inputs      support_x  (task, time, sample, neuron...)
        support labels      support_y  (task, sample), integers
        query inputs        query_x    (task, time, query, neuron...)
        query labels        query_y    (task, query)

    Raises:
        Invalid: shapes that do not fit each other.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def __post_init__(self) -> None:
        for name in ("support", "query"):
            x, y = getattr(self, f"{name}_x"), getattr(self, f"{name}_y")
            fits = x.dim() >= 4 and y.dim() == 2 and y.shape == (x.shape[0], x.shape[2])
            if not fits or len(y) != len(self.support_y):
                raise Invalid(
                    f"{name}_x", f"expected (task, time, sample, neuron...) and labels (task, "
                    f"sample), got {tuple(x.shape)} and {tuple(y.shape)}", "Time is axis 1",
                )  # fmt: skip

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

    def to(self, device: str | torch.device) -> Tasks:
        """The same on another device."""
        own = (self.support_x, self.support_y, self.query_x, self.query_y)
        return Tasks(*(value.to(device) for value in own))

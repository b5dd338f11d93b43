"""What `OnlineTrainer` says of an epoch, and who is told."""

from __future__ import annotations

import os
from typing import Any, Protocol, TypedDict

from grasp_plugin.errors import Refused


class Record(TypedDict):
    """One epoch of `fit`.

    Args:
        epoch: from 1, counted over all calls of `fit`.
        loss: mean over the steps and samples, before each step's update.
        accuracy: share of samples whose summed logits were highest at their label while learning.
        updates: how many times the weights were changed.
    """

    epoch: int
    loss: float
    accuracy: float
    updates: int


class Callback(Protocol):
    """What `OnlineTrainer` calls after every epoch, with itself and the record."""

    def epoch(self, trainer: Any, record: Record) -> None: ...


class TensorBoard:
    """A callback that writes loss, accuracy and updates of every epoch for TensorBoard.

    Args:
        log_dir: folder of the event files.

    Raises:
        Refused: tensorboard is not installed.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise Refused(
                "TensorBoard", f"expected tensorboard to be installed, got {error}",
                "Run pip install tensorboard, or leave this callback out",
            ) from error  # fmt: skip
        self.writer: Any = SummaryWriter(os.fspath(log_dir))

    def epoch(self, trainer: Any, record: Record) -> None:
        for name in ("loss", "accuracy", "updates"):
            self.writer.add_scalar(name, record[name], record["epoch"])
        self.writer.flush()

"""Records of training and evaluation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.environment import Environment


@dataclass(frozen=True)
class Accuracy(Record):
    """Result of one pass over a labelled data set."""

    top1: float  # percent
    top5: float  # percent
    loss: float  # mean cross-entropy, nats
    n: int  # images
    environment: Environment


@dataclass(frozen=True)
class EpochLog:
    """One epoch of training; validation fields are None where the epoch was not validated."""

    epoch: int  # counted from 1
    train_loss: float  # mean over the epoch, with augmentation and soft targets
    learning_rate: float  # at the epoch's last step
    img_per_s: float  # training images per second, validation excluded
    seconds: float  # the epoch's training time, validation excluded
    val_top1: float | None = None  # percent
    val_top5: float | None = None  # percent
    val_loss: float | None = None  # mean cross-entropy, nats


@dataclass(frozen=True)
class TrainingRecord(Record):
    """One training run, from its recipe to its final accuracy."""

    model: str
    img_size: tuple[int, int]  # height, width
    num_classes: int
    params: int
    macs: int  # multiply-accumulates for one image
    dataset: str  # title as shown to the reader
    train_images: int
    recipe: dict[str, Any]
    history: tuple[EpochLog, ...]
    final: Accuracy  # of the final weights
    best_epoch: int  # epoch with the highest val_top1
    seconds: float  # whole run, over all resumed parts
    command: str  # the one command that regenerates this record
    environment: Environment
    teacher: str | None = None  # name and fingerprint of the weights, where one was distilled
    weights: str | None = None  # fingerprint of what the run started from; None: drawn anew
    processes: int = 1  # that worked on it; of a run that was continued, in its last part

    def to_frame(self) -> pd.DataFrame:
        """One row per epoch; the model and data set stand in every row."""
        columns = [field.name for field in dataclasses.fields(EpochLog)]
        frame = pd.DataFrame([dataclasses.asdict(log) for log in self.history], columns=columns)
        frame.insert(0, "dataset", self.dataset)
        frame.insert(0, "model", self.model)
        return frame

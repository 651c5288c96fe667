"""Records of object detection: box AP, a training run, and where a detector's time goes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.environment import Environment


@dataclass(frozen=True)
class BoxAP(Record):
    """COCO's twelve box metrics of one data set, in percent; None where no box is of that size.

    AP is averaged over IoU 0.50 to 0.95 and over classes; sizes are areas in pixels of the original
    image: small below 32², large above 96². AR is the recall with so many boxes an image.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float
    ar10: float
    ar100: float
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    images: int
    boxes: int  # of the ground truth, crowds left out
    environment: Environment


@dataclass(frozen=True)
class DetectionLog:
    """One epoch of training; validation fields are None where the epoch was not validated."""

    epoch: int  # counted from 1
    train_loss: float  # mean over the epoch, classification and boxes
    learning_rate: float  # at the epoch's last step
    img_per_s: float  # training images per second, validation excluded
    seconds: float  # the epoch's training time, validation excluded
    val_ap: float | None = None  # percent
    val_ap50: float | None = None  # percent


@dataclass(frozen=True)
class DetectionRecord(Record):
    """One training run of a detector, from its recipe to its final box AP."""

    model: str  # the backbone
    img_size: tuple[int, int]  # short side, long side at most
    num_classes: int
    params: int
    macs: int  # multiply-accumulates for one image of short side x long side; without NMS
    dataset: str  # title as shown to the reader
    train_images: int
    train_boxes: int
    validated_on: str  # the split and how many images, such as "train, the same 8 images"
    recipe: dict[str, Any]
    history: tuple[DetectionLog, ...]
    final: BoxAP  # of the final weights
    best_epoch: int  # epoch with the highest val_ap
    seconds: float  # whole run, over all resumed parts
    command: str  # the one command that regenerates this record
    environment: Environment
    weights: str | None = None  # fingerprint of what the backbone started from; None: drawn anew
    processes: int = 1  # that worked on it; of a run that was continued, in its last part

    def to_frame(self) -> pd.DataFrame:
        """One row per epoch; the model and data set stand in every row."""
        columns = [field.name for field in dataclasses.fields(DetectionLog)]
        frame = pd.DataFrame([dataclasses.asdict(log) for log in self.history], columns=columns)
        frame.insert(0, "dataset", self.dataset)
        frame.insert(0, "model", self.model)
        return frame

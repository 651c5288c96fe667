"""Record of an int8 model beside the float32 one it was made from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.environment import Environment
from evitlab.records.training import Accuracy


@dataclass(frozen=True)
class QuantizationSpeed:
    """Both files at one batch size, in turns."""

    batch_size: int
    float32_ms: float  # median of the rounds
    int8_ms: float  # median of the rounds
    ratio: float  # median over the rounds of float32's time / int8's, > 1: int8 is faster
    ratio_low: float  # first quartile
    ratio_high: float  # third quartile


@dataclass(frozen=True)
class QuantizationRecord(Record):
    """What int8 gains and costs, in ONNX Runtime."""

    model: str
    img_size: tuple[int, int]  # height, width
    dataset: str  # calibrated on its training images, accuracy on its validation images
    calibration_images: int
    float32_layers: tuple[str, ...]  # that the engine has no integer form of
    relative_error: float  # root mean square change of the calibration images' logits
    float32_bytes: int  # of the file
    int8_bytes: int
    float32: Accuracy | None  # None: weights that were not trained for the data's classes
    int8: Accuracy | None
    speed: tuple[QuantizationSpeed, ...]
    threads: int
    rounds: int
    command: str  # the one command that regenerates this record
    environment: Environment

    @property
    def points_lost(self) -> float | None:
        """Top-1 of float32 less that of int8, percentage points."""
        if self.float32 is None or self.int8 is None:
            return None
        return self.float32.top1 - self.int8.top1

    def to_frame(self) -> pd.DataFrame:
        """One row per batch size; the model stands in every row."""
        frame = pd.DataFrame([dataclasses.asdict(row) for row in self.speed])
        frame.insert(0, "model", self.model)
        return frame

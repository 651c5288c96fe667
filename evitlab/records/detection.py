"""Records of object detection: box AP, a training run, and where a detector's time goes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.environment import Environment

DETECTOR_PARTS = ("preparation", "backbone", "neck", "head", "post-processing")


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

    model: str  # which one: the name of its run's folder or file; of one built here, the backbone
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


@dataclass(frozen=True)
class DetectorPart:
    """What one part of a detector takes of a pass, and what it consists of."""

    part: str  # one of DETECTOR_PARTS
    ms: float  # of a batch, median of the rounds
    ms_low: float  # first quartile
    ms_high: float  # third quartile
    share: float  # of the pass, 0 to 1, median of the rounds
    macs: int  # multiply-accumulates for one image; 0 where nothing is multiplied by weights
    params: int


@dataclass(frozen=True)
class DetectorTiming:
    """One detector in one form: a pass, part by part.

    Post-processing depends on the picture and on what the detector has learnt: it decodes and
    compares the candidates, boxes above the score threshold. A detector whose head is as drawn has
    none, so what post-processing can cost stands beside it: with one class of every anchor a
    candidate, up to so many per level as the detector takes.
    """

    model: str  # which one: the name of its run's folder or file; of one built here, the backbone
    form: str  # "as trained"; "deployed", or "folded": BatchNorms of a backbone that is not ours
    learnt: bool  # False: built to be measured, with weights as drawn
    num_classes: int
    channels: int  # of neck and head
    img_size: tuple[int, int]  # height, width of the batch, padding included
    parts: tuple[DetectorPart, ...]  # in the order of DETECTOR_PARTS
    whole_ms: float  # a plain call for a batch, median of the rounds
    whole_ms_low: float  # first quartile
    whole_ms_high: float  # third quartile
    img_per_s: float  # of the plain call
    speedup: float | None  # over "as trained", median of the rounds' ratios; None: not compared
    speedup_low: float | None  # first quartile
    speedup_high: float | None  # third quartile
    candidates: int  # boxes of one image that post-processing decoded and compared
    detections: int  # what it left of them
    full_ms: float  # post-processing of a batch with `full_candidates`, median of the rounds
    full_candidates: int  # of one image
    backbone: str | None = None  # None in older records, where `model` is the backbone


@dataclass(frozen=True)
class DetectorSpeed(Record):
    """Where a detector's time goes, taken in turns by all of its rows."""

    rows: tuple[DetectorTiming, ...]
    batch_size: int
    rounds: int
    command: str  # the one command that regenerates this record
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row per model, form and part, then the plain call as part "whole"."""
        found: list[dict[str, Any]] = []
        for row in self.rows:
            who = {"model": row.model, "form": row.form}
            found += [{**who, **dataclasses.asdict(part)} for part in row.parts]
            found.append({
                **who,
                "part": "whole",
                "ms": row.whole_ms,
                "ms_low": row.whole_ms_low,
                "ms_high": row.whole_ms_high,
                "share": 1.0,
                "macs": sum(part.macs for part in row.parts),
                "params": sum(part.params for part in row.parts),
                "img_per_s": row.img_per_s,
                "speedup": row.speedup,
                "candidates": row.candidates,
            })  # fmt: skip
        return pd.DataFrame(found)


@dataclass(frozen=True)
class AnchorLevel:
    """One level of a detector's pyramid, over one picture."""

    stride: int  # pixels between neighbouring positions
    grid: tuple[int, int]  # rows and columns of positions
    anchors: tuple[tuple[float, float, float, float], ...]  # of the position nearest to the middle
    matched: int  # anchors of the level that learn an object
    boxes: tuple[int, ...]  # which of the plan's boxes overlap most with an anchor of this level

    @property
    def sides(self) -> tuple[float, float]:
        """The square root of the smallest and of the largest anchor's area, pixels."""
        sides = [((x2 - x1) * (y2 - y1)) ** 0.5 for x1, y1, x2, y2 in self.anchors]
        return min(sides), max(sides)

    @property
    def total(self) -> int:
        """Anchors of the level."""
        return self.grid[0] * self.grid[1] * len(self.anchors)


@dataclass(frozen=True)
class AnchorPlan(Record):
    """Where a detector's anchors lie on a picture, and which of them an object falls to.

    Boxes and anchors are (x1, y1, x2, y2) in pixels of the picture at the detector's size.
    """

    img_size: tuple[int, int]  # height, width of the picture, before padding
    levels: tuple[AnchorLevel, ...]  # finest first
    boxes: tuple[tuple[float, float, float, float], ...]  # the true ones
    names: tuple[str, ...]  # of their classes
    overlaps: tuple[float, ...]  # of each box with its best anchor: intersection over union
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row per level."""
        return pd.DataFrame([
            {
                "stride": level.stride,
                "rows": level.grid[0],
                "columns": level.grid[1],
                "anchors": level.total,
                "smallest_side": round(level.sides[0], 1),
                "largest_side": round(level.sides[1], 1),
                "matched": level.matched,
                "objects": len(level.boxes),
            }
            for level in self.levels
        ])  # fmt: skip

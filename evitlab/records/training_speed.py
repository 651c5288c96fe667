"""The record of how fast training runs beside a plain loop of timm."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.environment import Environment

PHASES = ("data", "augmentation", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class LoopSpeed:
    """One loop over one model: where a step's time goes, medians of the rounds."""

    model: str
    loop: str  # "evitlab" or "timm"
    img_per_s: float
    data_ms: float  # gathering images; in timm's loop also decoding-free PIL augmentation
    augmentation_ms: float  # of whole batches
    forward_ms: float
    backward_ms: float
    optimizer_ms: float  # with clipping and the moving average
    peak_mib: float  # memory of the loop's process at most: resident, or torch's on a GPU
    training_mib: float  # the same, less what it held before the first step

    @property
    def step_ms(self) -> float:
        """All phases."""
        return sum(getattr(self, f"{phase}_ms") for phase in PHASES)

    @property
    def input_share(self) -> float:
        """Of data and augmentation in the step."""
        return (self.data_ms + self.augmentation_ms) / self.step_ms


@dataclass(frozen=True)
class LoopRatio:
    """Ours beside timm's for one model; above 1 ours is faster, or needs less."""

    model: str
    macs: int  # multiply-accumulates of one image's forward pass
    ratio: float  # median over the rounds of timm's step / ours
    ratio_low: float  # first quartile
    ratio_high: float  # third quartile
    compute_ratio: float  # the same without data and augmentation
    floor_ms: float  # 3 x MACs x batch over the matrix product's peak: no step can be shorter


@dataclass(frozen=True)
class TrainingSpeed(Record):
    """Training steps of `evitlab.train` in turns with those of a plain timm loop."""

    loops: tuple[LoopSpeed, ...]
    ratios: tuple[LoopRatio, ...]
    img_size: tuple[int, int]  # height, width
    batch_size: int
    recipe: str
    rounds: int
    peak_gmac_s: float  # 1e9 multiply-accumulates per second of a large matrix product
    command: str  # the one command that regenerates this record
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row per loop, with its ratio; milliseconds per step."""
        ratios = {row.model: row for row in self.ratios}
        return pd.DataFrame(
            [
                {
                    **asdict(loop),
                    "step_ms": loop.step_ms,
                    "input_share": loop.input_share,
                    "ratio": ratios[loop.model].ratio if loop.loop == "evitlab" else 1.0,
                    "floor_ms": ratios[loop.model].floor_ms,
                }
                for loop in self.loops
            ]
        )

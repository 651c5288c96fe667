"""The record of which models' attention can be captured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.environment import Environment


@dataclass(frozen=True)
class CaptureRow:
    """One model, built without weights; where it failed, numbers are 0 and `error` says why."""

    model: str
    family: str  # "vit", "swinv2", …
    img_size: int  # pixels of a side
    blocks: int  # attention modules that ran
    kinds: tuple[str, ...]  # of "global", "window", "cascade", those that occur
    heads: tuple[int, ...]  # by block
    keys: tuple[int, ...]  # M by block
    identity_error: float  # largest |maps @ V - head outputs| over the largest output
    row_error: float  # largest |sum of a query's weights - 1|
    output_error: float  # largest |logits while watched - plain logits| over the largest logit
    error: str | None = None


@dataclass(frozen=True)
class CaptureSweep(Record):
    """Attention captured in many models, one image of noise each."""

    rows: tuple[CaptureRow, ...]
    command: str
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row per model; what differs by block as text ("3 6 12")."""
        frame = pd.DataFrame([dataclasses.asdict(row) for row in self.rows])
        for column in ("kinds", "heads", "keys"):
            values = [dict.fromkeys(map(str, value)) for value in frame[column]]
            frame[column] = [" ".join(value) for value in values]
        return frame

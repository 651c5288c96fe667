"""The record of what looking into a model costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.environment import Environment


@dataclass(frozen=True)
class AnalysisCostRow:
    """One analysis of one model beside the passes that it needs anyway."""

    model: str
    analysis: str  # "head_similarity" or "channel_importance"
    passes: str  # "forward, attention unfused", or "forward and backward"
    batches: int  # of one call
    batch_size: int
    plain_ms: float  # the passes alone, median of the rounds
    analysis_ms: float  # median of the rounds
    ratio: float  # median over the rounds of analysis / plain
    ratio_low: float  # first quartile
    ratio_high: float  # third quartile


@dataclass(frozen=True)
class AnalysisCost(Record):
    """What the analyses cost, on 224-pixel noise, in turns with the plain passes."""

    rows: tuple[AnalysisCostRow, ...]
    rounds: int
    command: str
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row per analysis and model."""
        return pd.DataFrame([asdict(row) for row in self.rows])

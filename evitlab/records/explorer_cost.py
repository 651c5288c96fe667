"""The record of how fast the explorer answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.environment import Environment


@dataclass(frozen=True)
class ExplorerStep:
    """One kind of step with one model, from the choice to the picture's bytes."""

    model: str
    img_size: int
    step: str  # "query", "head", "block", "head off", "seen image" or "new image"
    times: int
    median_ms: float
    low_ms: float  # first quartile
    high_ms: float  # third quartile
    slowest_ms: float


@dataclass(frozen=True)
class ExplorerCost(Record):
    """How fast the explorer repaints, and what many interactions leave behind."""

    rows: tuple[ExplorerStep, ...]
    width: int  # of the picture, CSS pixels
    interactions: int
    # Largest memory of the process so far: after the first fifth of the interactions, and after
    # all of them; None where the system does not say.
    peak_mib_early: float | None
    peak_mib: float | None
    hooks_left: int
    command: str
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row per model and step."""
        return pd.DataFrame([asdict(row) for row in self.rows])

"""Records of the studies' runs."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.comparison import ThroughputMatch
from evitlab.records.environment import Environment
from evitlab.records.training import TrainingRecord


@dataclass(frozen=True)
class AttentionShareRun(Record):
    """One point of Fig. 3: a subnetwork of matched speed, trained."""

    line: str  # "Swin-T-1.25x", as in the figure
    attention_share: float  # of the layers
    width: ThroughputMatch  # what decided its width
    training: TrainingRecord
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row: the point, with what the width reached."""
        match = self.width.match
        row = {
            "line": self.line,
            "attention_share": self.attention_share,
            "embed_dim": match.embed_dim,
            "speedup": match.speedup,
            "macs": self.training.macs,
            "params": self.training.params,
            "top1": self.training.final.top1,
            "seed": self.environment.seed,
            "train_images": self.training.train_images,
            "epochs": len(self.training.history),
            "dataset": self.training.dataset,
            "scale": self.environment.scale,
            "device": self.environment.device,
        }
        return pd.DataFrame([row])

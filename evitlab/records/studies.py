"""Records of the studies' runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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
        """One row: the point, with what its width reached.

        `top1_error` is half of the 95 % interval that the number of validation images leaves.
        """
        match, final = self.width.match, self.training.final
        share = final.top1 / 100
        row = {
            "line": self.line,
            "attention_share": self.attention_share,
            "embed_dim": match.embed_dim,
            "asked": self.width.asked,
            "speedup": match.speedup,
            "macs": self.training.macs,
            "params": self.training.params,
            "top1": final.top1,
            "top1_error": 196 * math.sqrt(share * (1 - share) / final.n),
            "seed": self.environment.seed,
            "train_images": self.training.train_images,
            "epochs": len(self.training.history),
            "dataset": self.training.dataset,
            "scale": self.environment.scale,
            "device": self.environment.device,
        }
        return pd.DataFrame([row])


@dataclass(frozen=True)
class AblationRun(Record):
    """One variant of the model, trained: a row of Table 6 or a point of Fig. 7."""

    variant: str  # "row-2", "key-dim-8", "value-ratio-0.8"
    seed: int
    changes: dict[str, Any]  # fields of the configuration, the adjusted width included
    training: TrainingRecord
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row; the multiply-accumulates are those of the model as it was trained."""
        training = self.training
        row = {
            "variant": self.variant,
            "seed": self.seed,
            "model": training.model,
            "macs": training.macs,
            "params": training.params,
            "top1": training.final.top1,
            "val_images": training.final.n,
            "train_images": training.train_images,
            "epochs": len(training.history),
            "dataset": training.dataset,
            "scale": self.environment.scale,
            "device": self.environment.device,
        }
        return pd.DataFrame([row])

"""Records of pruned models: what was cut, and what it cost before and after recovery."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.environment import Environment
from evitlab.records.training import Accuracy, TrainingRecord

# Widths that are free: queries and keys share theirs, as they meet in one product.
WIDTHS = ("qk", "v", "ffn")


@dataclass(frozen=True)
class ChannelWidths:
    """One width of one block, before and after."""

    block: int  # counted from 1 in execution order, as in Fig. 5
    name: str  # dotted path of the module: "blocks.3.attn", "blocks.3.mlp"
    component: str  # one of WIDTHS
    before: int  # channels, over all heads
    after: int
    input_dim: int  # channels of the block's input, the denominator of Fig. 5's ratio

    @property
    def ratio_before(self) -> float:
        """Channels over the block's input channels, as Fig. 5 has them ("origin")."""
        return self.before / self.input_dim

    @property
    def ratio_after(self) -> float:
        """Channels over the block's input channels, as Fig. 5 has them ("pruned")."""
        return self.after / self.input_dim


@dataclass(frozen=True)
class PruningRecord(Record):
    """One model pruned to a budget; accuracies are None where they were not measured."""

    model: str
    criterion: str  # one of channels.CRITERIA
    images: int  # that the scores of one step were taken from
    budget: dict[str, float]  # what was asked for: {"macs": 0.7}, or shares by component
    steps: int  # cuts, with the scores refreshed before each
    macs_before: int  # multiply-accumulates for one image
    macs_after: int
    params_before: int
    params_after: int
    widths: tuple[ChannelWidths, ...]  # in execution order
    command: str  # the one command that regenerates this record
    environment: Environment
    before: Accuracy | None = None
    pruned: Accuracy | None = None  # right after the cut
    recovered: Accuracy | None = None  # after `recovery`
    recovery: TrainingRecord | None = None  # the training of the pruned model

    def to_frame(self) -> pd.DataFrame:
        """One row per block and component, with Fig. 5's ratios; the model stands in every row."""
        columns = [field.name for field in dataclasses.fields(ChannelWidths)]
        frame = pd.DataFrame([dataclasses.asdict(row) for row in self.widths], columns=columns)
        for name in ("ratio_before", "ratio_after"):
            frame[name] = [getattr(row, name) for row in self.widths]
        frame["kept"] = frame["after"] / frame["before"]
        frame.insert(0, "model", self.model)
        return frame


@dataclass(frozen=True)
class PrunedPeer:
    """One way to prune the model of a comparison, with its accuracies in percent of top-1."""

    method: str  # "evitlab" or "torch-pruning", and what was changed in it
    criterion: str
    macs: int  # multiply-accumulates for one image
    params: int
    pruned_top1: float  # right after the cut
    recovered_top1: float  # after the same training for all
    kept: dict[str, float]  # share of the channels that is left, by component of WIDTHS, 0 to 1


@dataclass(frozen=True)
class PruningComparison(Record):
    """Several ways to prune one model to one budget on the same data."""

    model: str
    macs: int  # of the model that is pruned, multiply-accumulates for one image
    params: int
    budget: float  # share of the MACs that may be left, 0 to 1
    steps: int  # cuts
    images: int  # that the scores of one step were taken from
    train_images: int  # of the recovery
    recipe: dict[str, Any]  # of the recovery
    before: Accuracy
    rows: tuple[PrunedPeer, ...]
    command: str  # the one command that regenerates this record
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row per way to prune, the shares that are left as columns."""
        frame = pd.DataFrame(
            {
                **{k: v for k, v in dataclasses.asdict(row).items() if k != "kept"},
                "macs_share": row.macs / self.macs,
                **{f"{name}_kept": row.kept[name] for name in WIDTHS},
            }
            for row in self.rows
        )
        frame.insert(0, "before_top1", self.before.top1)
        frame.insert(0, "model", self.model)
        return frame

"""Records of how much single channels matter: scores, and what cutting one of them costs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.environment import Environment

# Channels that are scored apart: of the queries, the keys, the values, and hidden in the FFN.
COMPONENTS = ("q", "k", "v", "ffn")
# taylor: (sum of w g)^2 over a channel's weights w and their gradients g (Molchanov et al. 2019);
# abs-taylor: sum of |w g|; magnitude: sum of w^2; random: knows nothing, the baseline.
CRITERIA = ("taylor", "abs-taylor", "magnitude", "random")


@dataclass(frozen=True)
class ChannelScores:
    """Scores of one component's channels in one layer."""

    block: int  # counted from 1 in execution order, as in Fig. 5
    name: str  # dotted path of the module that holds them: "blocks.3.attn", "blocks.3.mlp"
    component: str  # one of COMPONENTS
    num_heads: int  # the channels come head by head; 1 for ffn
    input_dim: int  # channels of the block's input, the denominator of Fig. 5's ratio
    scores: tuple[float, ...]  # one per channel, higher: matters more

    def head_of(self, channel: int) -> int:
        """The head that a channel belongs to, counted from 0."""
        return channel * self.num_heads // len(self.scores)


@dataclass(frozen=True)
class ChannelImportance(Record):
    """Scores of every channel that may be cut, in execution order."""

    model: str
    criterion: str  # one of CRITERIA
    images: int  # that the scores were taken from, over all batches
    batches: int  # over which they were averaged
    channels: tuple[ChannelScores, ...]
    environment: Environment

    def of(self, name: str, component: str) -> ChannelScores:
        """The scores of one component of one module.

        Raises:
            KeyError: this module has no such channels.
        """
        for found in self.channels:
            if (found.name, found.component) == (name, component):
                return found
        raise KeyError(f"{self.model} has no {component!r} channels in {name!r}")

    def to_frame(self) -> pd.DataFrame:
        """One row per channel; `head` is None for the FFN's, `channel` counts in its component."""
        rows = [
            {
                "model": self.model,
                "criterion": self.criterion,
                "block": group.block,
                "name": group.name,
                "component": group.component,
                "head": None if group.component == "ffn" else group.head_of(i),
                "channel": i,
                "score": score,
            }
            for group in self.channels
            for i, score in enumerate(group.scores)
        ]
        columns = ["model", "criterion", "block", "name", "component", "head", "channel", "score"]
        frame = pd.DataFrame(rows, columns=columns)
        frame["head"] = frame["head"].astype("Int64")
        return frame


@dataclass(frozen=True)
class ChannelCut:
    """One channel set to zero, all others left as they are."""

    block: int  # counted from 1 in execution order
    name: str  # of the module that holds it
    component: str  # one of COMPONENTS
    channel: int  # within its component
    score: float
    rank: float  # its place among its component's channels of this block: 0 lowest, 1 highest
    loss_change: float  # nats, on the images that the score was taken from


@dataclass(frozen=True)
class ChannelCuts(Record):
    """What a score means: the loss after single channels were cut, low ones and high ones."""

    model: str
    criterion: str  # one of CRITERIA
    images: int
    loss: float  # mean cross-entropy with every channel in place, nats
    cuts: tuple[ChannelCut, ...]
    command: str  # the one command that regenerates this record
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row per cut; the model stands in every row."""
        columns = [field.name for field in dataclasses.fields(ChannelCut)]
        frame = pd.DataFrame([dataclasses.asdict(cut) for cut in self.cuts], columns=columns)
        frame.insert(0, "model", self.model)
        return frame

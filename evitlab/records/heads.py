"""The record of how alike the heads of a model attend."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.comparison import ThroughputMatch
from evitlab.records.environment import Environment
from evitlab.records.training import TrainingRecord

Matrix = tuple[tuple[float, ...], ...]  # [h, h]


@dataclass(frozen=True)
class BlockHeads:
    """One attention block; h heads, N queries and M keys of a window or an image.

    The three matrices hold cosines between the heads' maps, each averaged over windows and
    images: of the maps themselves, of the maps less the uniform map (1 / M everywhere), and of the
    maps less their mean over the block's heads. The last two are 0 where nothing is left of a map.
    """

    block: int  # counted from 1 in the order of execution
    name: str  # dotted path of the attention module
    kind: str  # "global", "window" or "cascade"
    num_heads: int  # h
    windows: int  # of each image; 1 where attention is global
    queries: int  # N
    keys: int  # M
    similarity: Matrix  # [h, h], 0..1, the paper's
    correlation: Matrix  # [h, h], -1..1: what uniform maps have in common is gone
    centred: Matrix  # [h, h], -1..1; on average at least -1 / (h - 1) off the diagonal
    permuted: Matrix  # [h, h]: expected similarity once each query's keys are shuffled
    entropy: tuple[float, ...]  # [h], of a query's weights, 0..1: relative to log M
    image_quartiles: tuple[float, float, float] | None  # over images, of `max_similarity`

    @property
    def max_per_head(self) -> tuple[float, ...] | None:
        """Each head's largest similarity to another head, [h]; None with a single head."""
        return _maxima(self.similarity)

    @property
    def max_similarity(self) -> float | None:
        """The mean of `max_per_head`: what Fig. 4 plots."""
        return _mean(self.max_per_head)

    @property
    def max_correlation(self) -> float | None:
        """The same of `correlation`."""
        return _mean(_maxima(self.correlation))

    @property
    def max_centred(self) -> float | None:
        """The same of `centred`."""
        return _mean(_maxima(self.centred))

    @property
    def max_permuted(self) -> float | None:
        """The same of `permuted`: heads as sharp as these that have nothing to do with each
        other."""
        return _mean(_maxima(self.permuted))

    @property
    def mean_similarity(self) -> float | None:
        """Over all pairs of different heads."""
        h = self.num_heads
        pairs = [self.similarity[i][j] for i in range(h) for j in range(h) if i != j]
        return _mean(tuple(pairs) or None)

    @property
    def mean_entropy(self) -> float:
        return fmean(self.entropy)


@dataclass(frozen=True)
class HeadSimilarity(Record):
    """How alike the heads attend within each attention block of a model.

    Pitfall: cosines of softmax maps are high between unrelated heads too, highest where maps are
    near uniform. Read `similarity` beside `permuted`, `correlation`, `entropy` and the same model
    untrained.
    """

    model: str
    weights: str  # where they come from, as shown: "trained on CIFAR-10", "untrained, seed 0"
    images: int
    per: str  # "map": cosines of whole maps; "query": of each query's weights, then averaged
    blocks: tuple[BlockHeads, ...]
    environment: Environment

    def __post_init__(self) -> None:
        for block in self.blocks:
            h = block.num_heads
            for field in ("similarity", "correlation", "centred", "permuted"):
                shape = [len(row) for row in getattr(block, field)]
                if len(shape) != h or any(length != h for length in shape):
                    raise ValueError(f"{field}: expected {h} x {h} in {block.name}, got {shape}")
            if len(block.entropy) != h:
                raise ValueError(f"entropy: expected {h} in {block.name}, got {len(block.entropy)}")

    def to_frame(self) -> pd.DataFrame:
        """One row per block and head, both counted from 1: the head most like it, and how much."""
        rows = []
        for block in self.blocks:
            maxima = [_maxima(m) for m in (block.similarity, block.correlation, block.centred)]
            permuted = _maxima(block.permuted)
            for head in range(block.num_heads):
                others = [j for j in range(block.num_heads) if j != head]
                nearest = max(others, key=lambda j: block.similarity[head][j], default=None)
                rows.append(
                    {
                        "model": self.model,
                        "weights": self.weights,
                        "block": block.block,
                        "name": block.name,
                        "kind": block.kind,
                        "head": head + 1,
                        "nearest": nearest if nearest is None else nearest + 1,
                        "max_similarity": maxima[0] and maxima[0][head],
                        "max_correlation": maxima[1] and maxima[1][head],
                        "max_centred": maxima[2] and maxima[2][head],
                        "max_permuted": permuted and permuted[head],
                        "entropy": block.entropy[head],
                    }
                )
        frame = pd.DataFrame(rows)
        numbers = [column for column in frame if str(column).startswith("max_")]
        frame[numbers] = frame[numbers].astype(float)
        return frame.astype({"nearest": "Int64"})

    def by_block(self) -> pd.DataFrame:
        """One row per block, heads averaged; `q25` and `q75` are those of the images."""
        return pd.DataFrame(
            {
                "model": self.model,
                "weights": self.weights,
                "block": block.block,
                "name": block.name,
                "kind": block.kind,
                "heads": block.num_heads,
                "queries": block.queries,
                "keys": block.keys,
                "max_similarity": block.max_similarity,
                "q25": block.image_quartiles and block.image_quartiles[0],
                "q75": block.image_quartiles and block.image_quartiles[2],
                "max_permuted": block.max_permuted,
                "max_correlation": block.max_correlation,
                "max_centred": block.max_centred,
                "mean_similarity": block.mean_similarity,
                "entropy": block.mean_entropy,
            }
            for block in self.blocks
        )

    def pairs(self) -> pd.DataFrame:
        """One row per block and pair of heads, both counted from 1: what the heat-maps draw."""
        return pd.DataFrame(
            {
                "model": self.model,
                "weights": self.weights,
                "block": block.block,
                "head": i + 1,
                "other": j + 1,
                "similarity": block.similarity[i][j],
                "correlation": block.correlation[i][j],
                "centred": block.centred[i][j],
                "permuted": block.permuted[i][j],
            }
            for block in self.blocks
            for i in range(block.num_heads)
            for j in range(block.num_heads)
        )


@dataclass(frozen=True)
class HeadSimilarities(Record):
    """Several models, or one with several weights, that were looked at together."""

    records: tuple[HeadSimilarity, ...]
    command: str
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """The records' frames, one below the other."""
        return pd.concat([record.to_frame() for record in self.records], ignore_index=True)


@dataclass(frozen=True)
class HeadSimilarityRun(Record):
    """One line of Fig. 4: a subnetwork, trained, its heads over all channels or each its split."""

    line: str  # "Swin-T-1.25x", as in the figure
    split_heads: bool
    width: ThroughputMatch  # what decided its width
    training: TrainingRecord
    trained: HeadSimilarity
    untrained: HeadSimilarity  # the same architecture with fresh weights
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row per block, trained and untrained."""
        frame = pd.concat([self.trained.by_block(), self.untrained.by_block()], ignore_index=True)
        frame.insert(0, "top1", self.training.final.top1)
        frame.insert(0, "head_splits", self.split_heads)
        frame.insert(0, "line", self.line)
        return frame


def _maxima(matrix: Matrix) -> tuple[float, ...] | None:
    """Each row's largest value off the diagonal; None where there is none."""
    if len(matrix) < 2:
        return None
    return tuple(max(row[:i] + row[i + 1 :]) for i, row in enumerate(matrix))


def _mean(values: tuple[float, ...] | None) -> float | None:
    return None if values is None else fmean(values)

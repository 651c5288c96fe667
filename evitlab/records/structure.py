"""The record of a model's block as it ran."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pandas as pd

from evitlab.records.base import Record


@dataclass(frozen=True)
class BlockNode:
    """One operation of a model as it really ran, for the drawing of the block.

    Kinds of the model's row: stem, stage, subsample, norm, pool, classifier. Of the block's
    column (`head` is None): dwconv, ffn, attention, and add for a residual sum. Inside the
    attention: split, concat, act, proj, and per head (`head` = j from 0): add for the cascade's
    sum of the previous head's output and this head's split, dwconv (on Q), head.
    """

    name: str  # dotted module path, or a label where no module stands behind the operation
    kind: str
    in_shape: tuple[int, ...]  # without the batch: (C, H, W) or (N, C)
    out_shape: tuple[int, ...]
    params: int
    macs: int  # multiply-accumulates for one image
    detail: str = ""  # what the box says below its name: "3x3, stride 2", "Q 16, K 16, V 64"
    head: int | None = None


@dataclass(frozen=True)
class BlockTrace(Record):
    """A model's row, one of its sandwich blocks and that block's attention, in execution order."""

    nodes: tuple[BlockNode, ...]
    model: str = ""
    block: str = ""  # dotted path of the block that is drawn in full

    def to_frame(self) -> pd.DataFrame:
        """One row per node; shapes as text ("64x14x14")."""
        frame = pd.DataFrame(
            [dataclasses.asdict(node) for node in self.nodes],
            columns=[field.name for field in dataclasses.fields(BlockNode)],
        )
        for column in ("in_shape", "out_shape"):
            frame[column] = ["x".join(map(str, shape)) for shape in frame[column]]
        frame["head"] = frame["head"].astype("Int64")
        return frame

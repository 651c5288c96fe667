"""What the attention explorer shows at one moment: all that its picture needs, nothing to compute.

Shape legend: h heads, H x W the picture in pixels; a grid is rows x columns of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
OVERLAYS = ("attention", "rollout", "grad_cam", "integrated_gradients")


@dataclass(frozen=True, eq=False)
class AttentionView:
    """One query's attention in one block of one model, with what stands beside it.

    Blocks, heads and the pair's head are counted from 1, rows and columns of tokens from 0. It
    lives in memory only: `Record`s go to disk. Views compare by identity.

    Raises:
        ValueError: a field does not fit the others; the message names it.

    Pitfall: `maps` are relative to uniform attention over the keys that the query can see, so a
    window's values cannot be compared with a global block's as shares: 2 is twice the average.
    """

    model: str
    weights: str  # where they come from, as shown
    picture: NDArray[np.uint8]  # [H, W, 3], as the model sees it
    picture_name: str
    label: str | None  # the true class
    block: int
    blocks: int  # how many there are
    block_name: str  # dotted path of the attention module
    kind: str  # "global", "window" or "cascade"
    head: int  # the chosen one
    query: tuple[int, int] | None  # (row, column) of `query_grid`; None: the class token
    has_class_token: bool
    grid: tuple[int, int]  # of the keys
    query_grid: tuple[int, int]  # another one only where LeViT downsamples
    window: tuple[int, int] | None  # tokens of a window; None: attention is global
    shift: tuple[int, int]  # of the windows, up and to the left; shifted windows wrap around
    maps: Floats  # [h, rows, columns], 1 = uniform; NaN outside the query's window
    class_weights: Floats | None  # [h], on the class token, in the unit of `maps`
    similarity: Floats  # [h, h], 0..1, on this picture
    pair: int | None  # second head, picked in the matrix
    entropy: Floats  # [h], 0..1, relative to that of uniform attention
    distance: Floats  # [h], mean distance from query to key, as a share of the picture's diagonal
    on_object: Floats | None  # [h], share of attention on the object
    mask: NDArray[np.bool_] | None  # [H, W], the object
    off: tuple[tuple[int, int], ...]  # (block, head) that are turned off, of any block
    classes: tuple[tuple[str, float, float | None], ...]  # name, probability, and with heads off
    overlay: str  # one of `OVERLAYS`: what is laid over the picture
    heat: Floats | None  # [rows', columns'], 0..1, of the overlays that are not attention
    importance: Floats | None  # [blocks, h_max], loss of probability; NaN where there is no head

    def __post_init__(self) -> None:
        heads, grid = self.num_heads, self.grid
        expected = {
            "picture": (*self.size, 3),
            "maps": (heads, *grid),
            "class_weights": (heads,),
            "similarity": (heads, heads),
            "entropy": (heads,),
            "distance": (heads,),
            "on_object": (heads,),
            "mask": self.size,
        }
        for field, shape in expected.items():
            given = getattr(self, field)
            if given is not None and given.shape != shape:
                raise ValueError(f"{field}: expected shape {shape}, got {given.shape}")
        for field, number, last in (
            ("block", self.block, self.blocks),
            ("head", self.head, heads),
            ("pair", 1 if self.pair is None else self.pair, heads),
        ):
            if not 1 <= number <= last:
                raise ValueError(f"{field}: expected 1 to {last}, got {number}")
        if self.overlay not in OVERLAYS:
            raise ValueError(f"overlay: expected one of {', '.join(OVERLAYS)}, got {self.overlay}")
        if self.query is None and not self.has_class_token:
            raise ValueError("query: expected (row, column) without a class token, got None")
        if self.query is not None:
            (row, column), (rows, columns) = self.query, self.query_grid
            if not (0 <= row < rows and 0 <= column < columns):
                raise ValueError(
                    f"query: expected a patch of {rows} x {columns}, got ({row}, {column})"
                )

    @property
    def num_heads(self) -> int:
        return len(self.maps)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture in pixels."""
        return self.picture.shape[0], self.picture.shape[1]

    @property
    def off_here(self) -> tuple[int, ...]:
        """The heads of this block that are turned off."""
        return tuple(sorted({head for block, head in self.off if block == self.block}))

    def to_frame(self) -> pd.DataFrame:
        """One row per head of the block: what stands below its map."""
        heads = range(1, self.num_heads + 1)
        return pd.DataFrame(
            {
                "model": self.model,
                "picture": self.picture_name,
                "block": self.block,
                "name": self.block_name,
                "kind": self.kind,
                "head": heads,
                "off": [(self.block, head) in self.off for head in heads],
                "entropy": self.entropy,
                "distance": self.distance,
                "on_object": self.on_object,
            }
        )

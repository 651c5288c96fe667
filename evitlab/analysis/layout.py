"""Where the tokens of an attention map stand on the image: windows, shifts, class tokens.

Shape legend: w windows of an image, M tokens of a map, n = M - prefix of them on the image,
rows x columns the grid of all tokens of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TokenLayout:
    """One block's tokens on the image; all sizes are (rows, columns), in tokens.

    Windows cover the grid row by row, padded at the right and the bottom where it is no multiple
    of them. A shift (Swin's) moves the grid's content up and left first, what leaves there coming
    back at the other side, so that a window may hold up to four pieces.
    """

    grid: tuple[int, int]  # of the image
    window: tuple[int, int]  # the grid itself where attention is global
    shift: tuple[int, int] = (0, 0)
    prefix: int = 0  # class and register tokens, before the others

    @property
    def windows(self) -> tuple[int, int]:
        """How many windows stand below and beside each other."""
        return -(-self.grid[0] // self.window[0]), -(-self.grid[1] // self.window[1])

    @property
    def index(self) -> Tensor:
        """int64 [w, n]: each window's tokens as positions in the grid, row by row; -1 is padding.

        Shared between calls: copy it before changing it.
        """
        return _index(self.grid, self.window, self.shift)

    def find(self, row: int, column: int) -> tuple[int, int]:
        """The window that holds a position of the grid, and which of its M tokens stands there.

        Raises:
            ValueError: the position is outside the grid.
        """
        rows, columns = self.grid
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(
                f"position: expected a row of 0 to {rows - 1} and a column of 0 to {columns - 1}, "
                f"got ({row}, {column})"
            )
        row, column = (row - self.shift[0]) % rows, (column - self.shift[1]) % columns
        window = row // self.window[0] * self.windows[1] + column // self.window[1]
        token = row % self.window[0] * self.window[1] + column % self.window[1]
        return window, self.prefix + token

    def on_grid(self, values: Tensor) -> Tensor:
        """Values of tokens [..., w, M] -> [..., rows, columns]; prefix and padding are left out."""
        rows, columns = self.grid
        index = self.index.to(values.device).flatten()
        placed = values.new_zeros(*values.shape[:-2], rows * columns + 1)  # the last: padding
        placed[..., index] = values[..., self.prefix :].flatten(-2)
        return placed[..., :-1].unflatten(-1, (rows, columns))


@lru_cache(maxsize=64)
def _index(grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    rows, columns = grid
    positions = torch.arange(rows * columns).view(rows, columns)
    positions = positions.roll((-shift[0], -shift[1]), dims=(0, 1))
    positions = F.pad(positions, (0, -columns % window[1], 0, -rows % window[0]), value=-1)
    split = positions.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0]))
    return split.transpose(1, 2).flatten(2).flatten(0, 1)


def grid_of(tokens: int, img_size: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns of so many tokens over an image of (height, width) pixels; None: no such
    grid of about square tokens."""
    height, width = img_size
    rows = max(1, round((tokens * height / width) ** 0.5))
    columns = tokens // rows
    square = 0.75 < (height / rows) / (width / max(columns, 1)) < 4 / 3
    return (rows, columns) if rows * columns == tokens and square else None


def global_layout(
    tokens: int, img_size: Sequence[int], prefix: int | None
) -> TokenLayout | None:
    """Attention over all tokens of an image of (height, width) pixels; None where it is not known.

    Args:
        prefix: how many tokens come before the grid; None: whatever number leaves one.
    """
    if len(img_size) != 2:
        return None
    for count in (0, 1, 2, 5) if prefix is None else (prefix,):
        grid = grid_of(tokens - count, img_size) if tokens > count else None
        if grid is not None:
            return TokenLayout(grid, grid, prefix=count)
    return None

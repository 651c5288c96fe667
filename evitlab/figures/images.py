"""Images side by side, with what is known or predicted about each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from evitlab.figures.style import INK, PALETTE, add_caption, house_style, new_figure

_SIDE = 0.96  # inches: 32- and 48-pixel images come out in whole multiples of their pixels
_RIGHT, _WRONG = PALETTE[2], PALETTE[0]


def image_grid(
    images: Any,
    titles: Sequence[str] | None = None,
    *,
    correct: Sequence[bool] | None = None,
    row_names: Sequence[str] | None = None,
    columns: int = 8,
    note: str = "",
) -> Figure:
    """Images in rows, from the left and from the top, each under its title.

    Args:
        images: tensor or array [N, 3, H, W] on the CPU; uint8, or floats, which are cut to 0..1.
        titles: one per image; a line break makes a second line.
        correct: one per image: colours its title, and puts ✗ before a wrong one's.
        row_names: one per row, written to its left.
        columns: images per row.
        note: the caption below the grid.

    Raises:
        ValueError: images of another shape or none, columns below 1, or another number of titles,
            truth values or row names than there are images or rows.
    """
    pixels = np.asarray(images)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or len(pixels) == 0:
        raise ValueError(f"images: expected [N, 3, H, W] with N > 0, got {list(pixels.shape)}")
    if columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}")
    count, _, height, width = pixels.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    for name, given, wanted in (
        ("titles", titles, count),
        ("correct", correct, count),
        ("row_names", row_names, rows),
    ):
        if given is not None and len(given) != wanted:
            raise ValueError(f"{name}: expected {wanted}, one per {_unit(name)}, got {len(given)}")
    if pixels.dtype != np.uint8:
        pixels = pixels.clip(0.0, 1.0)
    lines = max((title.count("\n") + 1 for title in titles), default=0) if titles else 0
    tall = _SIDE * height / width + 0.15 * lines + 0.06
    with house_style():
        figure = new_figure(
            (_SIDE + 0.08) * columns + (1.05 if row_names else 0.05),
            tall * rows + (0.3 if note else 0.1),
        )
        pads = {"w_pad": 0.04, "h_pad": 0.03, "wspace": 0.0, "hspace": 0.0}
        figure.set_layout_engine("constrained", **pads)
        grid = figure.subplots(rows, columns, squeeze=False)
        for i, axes in enumerate(grid.flat):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if i >= count:
                axes.set_visible(False)
                continue
            axes.imshow(pixels[i].transpose(1, 2, 0), interpolation="nearest")
            if titles is not None:
                wrong = correct is not None and not correct[i]
                color = INK if correct is None else _WRONG if wrong else _RIGHT
                text = f"✗ {titles[i]}" if wrong else titles[i]
                axes.set_title(
                    text, fontsize=7.5, fontweight="normal", color=color, loc="center", pad=2
                )
        for axes, name in zip(grid[:, 0], row_names or (), strict=False):
            axes.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6, fontsize=8.5)
        if note:
            add_caption(figure, note=note)
    return figure


def _unit(name: str) -> str:
    return "row" if name == "row_names" else "image"

"""The levels of a detector's pyramid and their anchors, drawn over one picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from evitlab.figures.names import NameTags
from evitlab.figures.style import (
    INK,
    PALETTE,
    add_caption,
    environment_line,
    house_style,
    new_figure,
)
from evitlab.records import AnchorLevel, AnchorPlan

_ROOM = 0.22  # of the picture's sides around it, for anchors that reach outside
_POSITION = 2.6  # points across
_PANEL = 3.1  # inches


def detector_pyramid(plan: AnchorPlan, picture: Any, *, note: str = "") -> Figure:
    """Each level over the picture: the grid of its positions, the nine anchors of the position in
    the middle, and the objects whose best anchor is of this level.

    Args:
        plan: of `place_anchors`.
        picture: uint8 [3, H, W], at any size: it is drawn at the plan's.
        note: what else the caption should say.

    Raises:
        ValueError: the picture is of another shape.
    """
    pixels = np.asarray(picture)
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"picture: expected [3, H, W], got {list(pixels.shape)}")
    pixels = pixels.transpose(1, 2, 0)
    height, width = plan.img_size
    panels = 1 + len(plan.levels)
    columns = min(3, panels)
    rows = -(-panels // columns)
    with house_style():
        figure = new_figure(9.6, 0.7 + rows * (0.35 + 3.0 * height / width))
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[panels:]:
            axes.set_axis_off()
        _draw_objects(grid[0], plan, pixels)
        for number, (axes, level) in enumerate(zip(grid[1:], plan.levels, strict=False)):
            _draw_level(axes, plan, level, pixels, PALETTE[number % len(PALETTE)])
        learn, total = (
            sum(getattr(level, name) for level in plan.levels) for name in ("matched", "total")
        )
        text = (
            f"Picture at {width} × {height} px. Dots: positions; thin boxes: the nine anchors of "
            f"one position; thick boxes: objects whose best anchor is\nof that level. {learn:,} "
            f"of {total:,} anchors learn an object."
        )
        lines = (text, note, environment_line(plan.environment))
        add_caption(figure, note="\n".join(filter(None, lines)))
    return figure


def _draw_objects(axes: Axes, plan: AnchorPlan, pixels: np.ndarray) -> None:
    _show(axes, plan, pixels, faint=False)
    axes.set_title("Objects, coloured by their level")
    height, width = plan.img_size
    tags = NameTags(axes, width, height, inches=_PANEL, crowded=len(plan.boxes) > 8)
    for number, level in enumerate(plan.levels):
        for place in level.boxes:
            color = PALETTE[number % len(PALETTE)]
            _outline(axes, plan.boxes[place], color, 2.0, "object")
            tags.add(plan.boxes[place], plan.names[place], color)


def _draw_level(
    axes: Axes, plan: AnchorPlan, level: AnchorLevel, pixels: np.ndarray, color: str
) -> None:
    _show(axes, plan, pixels, faint=True)
    rows, columns = level.grid
    ys, xs = np.mgrid[:rows, :columns] * level.stride  # as torchvision: from the corner on
    inside = (xs < plan.img_size[1]) & (ys < plan.img_size[0])
    size = _POSITION * min(1.0, max(0.35, level.stride / 32))
    axes.plot(xs[inside], ys[inside], ".", ms=size, color=INK, gid="positions")
    for anchor in level.anchors:
        _outline(axes, anchor, color, 0.9, "anchor")
    for place in level.boxes:
        _outline(axes, plan.boxes[place], color, 2.4, "object")
    low, high = level.sides
    axes.set_title(
        f"Stride {level.stride}: {rows} × {columns}, {low:.0f} to {high:.0f} px", color=color
    )


def _show(axes: Axes, plan: AnchorPlan, pixels: np.ndarray, *, faint: bool) -> None:
    height, width = plan.img_size
    axes.imshow(
        pixels, extent=(0, width, height, 0), alpha=0.4 if faint else None, aspect="equal",
        interpolation="antialiased",
    )  # fmt: skip
    room = _ROOM if faint else 0.0
    axes.set_xlim(-room * width, (1 + room) * width)
    axes.set_ylim((1 + room) * height, -room * height)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _outline(
    axes: Axes, box: tuple[float, float, float, float], color: str, width: float, gid: str
) -> None:
    x1, y1, x2, y2 = box
    axes.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, lw=width, gid=gid)
    )

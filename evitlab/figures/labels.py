"""Labels beside their points, without a legend and without overlaps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

_RADII = (6.0, 11.0, 18.0, 27.0, 38.0)  # points; tried from near to far
_LEADER_FROM = 18.0  # points; farther labels get a line to their point
_ANGLES = tuple(math.radians(a) for a in (0, 90, 270, 180, 45, 315, 135, 225, 20, 340, 160, 200))


def place_labels(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    texts: Sequence[str],
    *,
    colors: Sequence[str],
    fontsize: float = 7.5,
    weights: Sequence[str] | None = None,
    avoid: np.ndarray | None = None,
) -> list[Annotation]:
    """Label every point where there is room; limits and scales of the axes must already be final.

    Each label takes the cheapest of some sixty places around its point, most crowded points first;
    three more rounds let each label move once the others are known.

    Args:
        avoid: [n, 2] further data points (along lines) that labels should not cover.
    """
    figure = axes.figure.get_figure(root=True)
    assert isinstance(figure.canvas, FigureCanvasAgg), "create the figure with new_figure"
    figure.draw_without_rendering()  # settles the layout, so that pixels below are the final ones
    renderer = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    pixels_per_point = figure.dpi / 72
    points = axes.transData.transform(np.column_stack([x, y]))
    lines = np.empty((0, 2)) if avoid is None else axes.transData.transform(avoid)

    labels, sizes = [], []
    for i, text in enumerate(texts):
        label = axes.annotate(
            text,
            (x[i], y[i]),
            xytext=(0, 0),
            textcoords="offset points",
            color=colors[i],
            fontsize=fontsize,
            fontweight=weights[i] if weights else "normal",
            annotation_clip=False,
            bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.3},  # over lines
        )
        label.set_in_layout(False)  # otherwise the axes would shrink and the points move
        box = label.get_window_extent(renderer)
        labels.append(label)
        sizes.append((box.width, box.height))

    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    order = np.argsort(-np.exp(-distance / 60).sum(1), kind="stable")
    boxes: dict[int, Bbox] = {}
    for _ in range(4):
        for i in order:
            others = [box for j, box in boxes.items() if j != i]
            candidates = [
                (_box_at(points[i], angle, radius * pixels_per_point, sizes[i]), radius)
                for radius in _RADII
                for angle in _ANGLES
            ]
            costs = [
                radius + _cost(box, frame, others, points, lines) for box, radius in candidates
            ]
            boxes[i] = candidates[int(np.argmin(costs))][0]

    for i, label in enumerate(labels):
        box = boxes[i]
        # Anchored on the side that faces the point: at another dpi text is not exactly as wide.
        side = int(points[i][0] < box.x0) - int(points[i][0] > box.x1)
        label.set_horizontalalignment(("center", "left", "right")[side])
        anchor = ((box.x0 + box.x1) / 2, box.x0, box.x1)[side]
        offset = (np.array([anchor, box.y0]) - points[i]) / pixels_per_point
        label.set_position((float(offset[0]), float(offset[1])))
        nearest = np.clip(points[i], box.min, box.max)
        if np.linalg.norm(nearest - points[i]) > _LEADER_FROM * pixels_per_point * 0.9:
            axes.annotate(
                "",
                (x[i], y[i]),
                xytext=(nearest - points[i]) / pixels_per_point,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": colors[i], "lw": 0.5, "shrinkB": 3},
                annotation_clip=False,
            ).set_in_layout(False)
    return labels


def _box_at(
    point: np.ndarray, angle: float, radius: float, size: tuple[float, float]
) -> Bbox:
    """The label's box whose side facing the point lies `radius` away in the given direction."""
    width, height = size
    dx, dy = math.cos(angle), math.sin(angle)
    centre_x = point[0] + dx * radius + dx * width / 2
    centre_y = point[1] + dy * radius + dy * height / 2
    return Bbox.from_bounds(centre_x - width / 2, centre_y - height / 2, width, height)


def _cost(
    box: Bbox, frame: Bbox, others: list[Bbox], points: np.ndarray, lines: np.ndarray
) -> float:
    """What a place costs, in points of distance: covering text or a marker is worst."""
    cost = 0.0
    padded = box.padded(2)
    for other in others:
        if padded.overlaps(other):
            cost += 500.0
    for obstacles, padding, price in ((points, 7.0, 300.0), (lines, 1.0, 12.0)):
        inside = (
            (obstacles[:, 0] > box.x0 - padding)
            & (obstacles[:, 0] < box.x1 + padding)
            & (obstacles[:, 1] > box.y0 - padding)
            & (obstacles[:, 1] < box.y1 + padding)
        )
        cost += price * float(inside.sum())
    if box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1:
        cost += 1000.0
    return cost

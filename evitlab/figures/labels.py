"""Labels beside their points, without a legend and without overlaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

_RADII = (6.0, 11.0, 18.0, 27.0, 38.0)  # points; tried from near to far
_LEADER_FROM = 18.0  # points; farther labels get a line to their point
_ANGLES = np.radians([0, 90, 270, 180, 45, 315, 135, 225, 20, 340, 160, 200])


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
    radii, angles = (grid.ravel() for grid in np.meshgrid(_RADII, _ANGLES, indexing="ij"))
    places = [_places(points[i], angles, radii * pixels_per_point, sizes[i]) for i in order]
    boxes: dict[int, np.ndarray] = {}
    for _ in range(4):
        for i, candidates in zip(order, places, strict=True):
            others = np.array([box for j, box in boxes.items() if j != i]).reshape(-1, 4)
            costs = radii + _costs(candidates, frame, others, points, lines)
            boxes[i] = candidates[np.argmin(costs)]

    for i, label in enumerate(labels):
        box = Bbox.from_extents(*boxes[i])
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


def _places(
    point: np.ndarray, angles: np.ndarray, radii: np.ndarray, size: tuple[float, float]
) -> np.ndarray:
    """[n, 4] boxes (x0, y0, x1, y1) whose side facing the point is so far away, in a direction."""
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    centres = point + directions * radii[:, None] + directions * np.array(size) / 2
    return np.hstack([centres - np.array(size) / 2, centres + np.array(size) / 2])


def _costs(
    boxes: np.ndarray, frame: Bbox, others: np.ndarray, points: np.ndarray, lines: np.ndarray
) -> np.ndarray:
    """What each place costs, in points of distance: covering text or a marker is worst."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    costs = 500.0 * _met((low - 2 <= others[:, 2:]) & (others[:, :2] <= high + 2))
    for obstacles, padding, price in ((points, 7.0, 300.0), (lines, 1.0, 12.0)):
        costs += price * _met((obstacles > low - padding) & (obstacles < high + padding))
    outside = (boxes[:, :2] < frame.min).any(1) | (boxes[:, 2:] > frame.max).any(1)
    return costs + 1000.0 * outside


def _met(inside: np.ndarray) -> np.ndarray:
    """[boxes, obstacles, 2] in x and y -> how many obstacles each box meets."""
    return inside.all(-1).sum(-1)

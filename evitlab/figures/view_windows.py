"""Where a view's windows are on the picture: their borders, the query's own, and its content.

A shifted window wraps around: it stands on the picture in up to four pieces.
"""

from __future__ import annotations

from typing import Any

import contourpy
import numpy as np
from numpy.typing import NDArray

from evitlab.figures.view_layout import Rect
from evitlab.records import AttentionView


def window_ids(view: AttentionView) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """In which row and column of windows each row and column of tokens is; shifted ones wrap."""
    window = view.window or view.grid
    rows, columns = (
        (np.arange(tokens) - shift) % tokens // size
        for tokens, size, shift in zip(view.grid, window, view.shift, strict=True)
    )
    return rows, columns


def borders(view: AttentionView, box: Rect) -> list[Any]:
    rows, columns = window_ids(view)
    lines: list[Any] = []
    for row in np.flatnonzero(np.diff(rows)) + 1:
        y = box.y + row / len(rows) * box.height
        lines.append([(box.x, y), (box.right, y)])
    for column in np.flatnonzero(np.diff(columns)) + 1:
        x = box.x + column / len(columns) * box.width
        lines.append([(x, box.y), (x, box.bottom)])
    return lines


def window_pieces(view: AttentionView, box: Rect) -> list[Rect]:
    """The pieces of the query's window: up to four where a shifted window wraps around."""
    if view.window is None or view.query is None or view.query_grid != view.grid:
        return []
    if all(size >= tokens for size, tokens in zip(view.window, view.grid, strict=True)):
        return []  # a single one
    spans = []
    for ids, place in zip(window_ids(view), view.query, strict=True):
        inside = np.pad((ids == ids[place]).astype(int), 1)
        spans.append(list(zip(*(np.flatnonzero(np.diff(inside) == d) for d in (1, -1)),
                              strict=True)))  # fmt: skip
    (rows, columns), pieces = view.grid, []
    for top, bottom in spans[0]:
        for left, right in spans[1]:
            first = box.cell(float(top), float(left), rows, columns)
            last = box.cell(float(bottom), float(right), rows, columns)
            pieces.append(Rect(first.x, first.y, last.x - first.x, last.y - first.y))
    return pieces


def in_window(view: AttentionView) -> tuple[NDArray[Any], tuple[int, int] | None]:
    """The heads' maps of the query's window as it is computed, its pieces put together again, or
    of all tokens; and where the query is in them."""
    maps, query = np.asarray(view.maps), view.query
    if view.query_grid != view.grid:
        return maps, None
    if view.window is None or query is None:
        return maps, query
    place = []
    for axis, (at, shift, size) in enumerate(zip(query, view.shift, view.window, strict=True)):
        tokens = view.grid[axis]
        window, within = divmod((at - shift) % tokens, size)
        index = window * size + np.arange(min(size, tokens))
        taken = maps.take((index + shift) % tokens, axis=axis + 1).astype(float)
        taken[(slice(None),) * (axis + 1) + (index >= tokens,)] = np.nan  # padding
        maps = taken
        place.append(within)
    return maps, (place[0], place[1])


def outline(mask: NDArray[np.bool_], box: Rect) -> list[NDArray[np.float64]]:
    """The object's borders; also where it ends at the picture's edge."""
    height, width = mask.shape
    padded = np.pad(mask, 1).astype(float)
    lines = contourpy.contour_generator(z=padded).lines(0.5)
    scale = np.array([box.width / width, box.height / height])
    low, high = np.array([box.x, box.y]) + 1, np.array([box.right, box.bottom]) - 1
    return [
        np.clip((np.asarray(line) - 0.5) * scale + [box.x, box.y], low, high) for line in lines
    ]

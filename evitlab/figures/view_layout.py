"""Where everything stands in the explorer's picture, and what lies under a click.

Lengths are CSS pixels, x to the right and y downwards from the picture's upper left corner. The
same boxes are drawn into and clicked on, so the two cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from evitlab.records import AttentionView

MIN_WIDTH, WIDE = 380, 900  # below `WIDE` the parts are stacked
MAX_CLASSES = 6
MARGIN, GAP, HEADING, LINE = 12.0, 22.0, 22.0, 15.0
TITLE_HEIGHT = 58.0
CAPTION = 20.0  # the line below picture and map
SCALE_WIDTH = 66.0  # colour scale and its numbers, right of the map
SCALE_HEIGHT = 34.0  # the same below the matrix
LABELS = 24.0  # room for head numbers beside and above the matrix
CLASS_HEIGHT = 40.0
_PITCH = 92.0  # the least width in which a head's numbers can be read
_LARGEST_HEAD = 170.0

Part = Literal["title", "picture", "map", "classes", "heads", "similarity", "importance"]


@dataclass(frozen=True)
class Rect:
    """A box of the picture."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def center(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2

    def find(self, x: float, y: float, rows: int, columns: int) -> tuple[int, int] | None:
        """(row, column) under a point of the box cut into a grid; None outside."""
        if not (self.x <= x < self.right and self.y <= y < self.bottom):
            return None
        row = int((y - self.y) / self.height * rows)
        column = int((x - self.x) / self.width * columns)
        return min(row, rows - 1), min(column, columns - 1)

    def cell(self, row: float, column: float, rows: int, columns: int) -> Rect:
        """One cell of the box cut into a grid."""
        width, height = self.width / columns, self.height / rows
        return Rect(self.x + column * width, self.y + row * height, width, height)

    def fit(self, rows: float, columns: float) -> Rect:
        """The largest box of this shape, at the left and at the top, on whole pixels."""
        side = min(self.width / columns, self.height / rows)
        width, height = max(round(columns * side), 1), max(round(rows * side), 1)
        return Rect(round(self.x), round(self.y), width, height)


@dataclass(frozen=True)
class Hit:
    """What lies under a point: a patch, a head, a pair of heads, or a head of any block."""

    part: Literal["query", "head", "pair", "importance"]
    model: int  # 0, or 1 where another model is compared
    row: int | None = None  # of the query grid, from 0
    column: int | None = None
    block: int | None = None  # from 1
    head: int | None = None  # from 1
    other: int | None = None  # second head of a pair, from 1


@dataclass(frozen=True)
class Panel:
    """One part of one model, and its box."""

    part: Part
    model: int
    rect: Rect


@dataclass(frozen=True)
class Layout:
    """The panels of a picture; they do not overlap."""

    width: float
    height: float
    panels: tuple[Panel, ...]


def arrange(view: AttentionView, other: AttentionView | None, width: int) -> Layout:
    """The boxes of all parts.

    Raises:
        ValueError: `width` is below `MIN_WIDTH`.
    """
    if width < MIN_WIDTH:
        raise ValueError(f"width: expected at least {MIN_WIDTH} pixels, got {width}")
    wide, inner = width >= WIDE, width - 2 * MARGIN
    rows: list[list[Panel]] = list(_wide(view, inner) if wide else _narrow(view, inner))
    if other is not None:
        rows += list(_compact(other, inner, wide))
    panels, y = [], MARGIN
    for row in rows:
        for panel in row:
            rect = panel.rect  # on whole pixels, so that sizes that are alike are the same
            x, right = round(rect.x + MARGIN), round(rect.right + MARGIN)
            box = Rect(x, round(y), right - x, round(rect.height))
            panels.append(Panel(panel.part, panel.model, box))
        y += round(max(panel.rect.height for panel in row)) + (4 if row[0].part == "title" else 16)
    return Layout(width, math.ceil(y - 16 + MARGIN), tuple(panels))


def _wide(view: AttentionView, inner: float) -> Iterator[list[Panel]]:
    picture, shown = 0.36 * inner, 0.33 * inner - GAP
    yield [_panel("title", 0, inner, TITLE_HEIGHT)]
    yield [
        _panel("picture", 0, picture, _picture_height(view, picture)),
        _panel("map", 0, shown, _map_height(view, shown), picture + GAP),
        _panel("classes", 0, inner - picture - shown - 2 * GAP, _classes_height(view),
               picture + shown + 2 * GAP),
    ]  # fmt: skip
    heads = picture + GAP + shown
    matrix = min(inner - heads - GAP, max(48.0 * view.num_heads, 170.0) + LABELS)
    yield [
        _panel("heads", 0, heads, _heads_height(view, heads)),
        _panel("similarity", 0, matrix, _matrix_height(matrix), heads + GAP),
    ]
    yield from _importance(view, inner)


def _narrow(view: AttentionView, inner: float) -> Iterator[list[Panel]]:
    half = (inner - GAP) / 2
    yield [_panel("title", 0, inner, TITLE_HEIGHT)]
    yield [_panel("picture", 0, inner, _picture_height(view, inner))]
    yield [
        _panel("map", 0, half, _map_height(view, half)),
        _panel("similarity", 0, half, _matrix_height(half), half + GAP),
    ]
    yield [_panel("heads", 0, inner, _heads_height(view, inner))]
    yield [_panel("classes", 0, inner, _classes_height(view))]
    yield from _importance(view, inner)


def _compact(view: AttentionView, inner: float, wide: bool) -> Iterator[list[Panel]]:
    """The model that is compared: the picture, its heads, its classes."""
    yield [_panel("title", 1, inner, TITLE_HEIGHT)]
    if wide:
        picture, classes = 0.25 * inner, 0.25 * inner
        heads = inner - picture - classes - 2 * GAP
        yield [
            _panel("picture", 1, picture, _picture_height(view, picture)),
            _panel("heads", 1, heads, _heads_height(view, heads), picture + GAP),
            _panel("classes", 1, classes, _classes_height(view), picture + heads + 2 * GAP),
        ]
    else:
        half = (inner - GAP) / 2
        yield [
            _panel("picture", 1, half, _picture_height(view, half)),
            _panel("classes", 1, half, _classes_height(view), half + GAP),
        ]
        yield [_panel("heads", 1, inner, _heads_height(view, inner))]


def _importance(view: AttentionView, inner: float) -> Iterator[list[Panel]]:
    if view.importance is not None:
        rows = len(view.importance)
        yield [_panel("importance", 0, inner, HEADING + LINE + 4 + _importance_cell(rows) * rows)]


def _panel(part: Part, model: int, width: float, height: float, x: float = 0.0) -> Panel:
    return Panel(part, model, Rect(x, 0.0, width, height))


def _picture_height(view: AttentionView, width: float) -> float:
    rows, columns = view.size
    return HEADING + min(width * rows / columns, 1.1 * width) + CAPTION


def _map_height(view: AttentionView, width: float) -> float:
    rows, columns = view.grid
    side = width - SCALE_WIDTH
    return HEADING + max(min(side * rows / columns, 1.1 * side), 150.0) + CAPTION


def _classes_height(view: AttentionView) -> float:
    return HEADING + CLASS_HEIGHT * max(min(len(view.classes), MAX_CLASSES), 1) + CAPTION


def _matrix_height(width: float) -> float:
    return HEADING + LABELS + width - LABELS + SCALE_HEIGHT


def _importance_cell(rows: int) -> float:
    return 22.0 if rows <= 12 else 16.0


def head_lines(view: AttentionView) -> int:
    """How many numbers stand below each head's map."""
    return 2 + (view.on_object is not None) + (view.class_weights is not None)


def _head_grid(view: AttentionView, width: float) -> tuple[int, int, float]:
    """Rows, columns, and the width of one head with the gap to its right."""
    gap = head_gap(view)
    rows = math.ceil(view.num_heads / max(1, int((width + gap) // _PITCH)))
    columns = math.ceil(view.num_heads / rows)
    return rows, columns, min((width + gap) / columns, _LARGEST_HEAD + gap)


def head_gap(view: AttentionView) -> float:
    return 26.0 if view.kind == "cascade" else 16.0


def head_shape(view: AttentionView) -> tuple[int, int]:
    """Rows and columns of a head's map: of the query's window, or of all tokens."""
    if view.window is None or view.query is None or view.query_grid != view.grid:
        return view.grid
    (rows, columns), (high, wide) = view.grid, view.window
    return min(rows, high), min(columns, wide)


def _head_height(view: AttentionView, width: float) -> float:
    """Of its map."""
    rows, columns = head_shape(view)
    return min(width * rows / columns, 1.2 * width)


def _heads_height(view: AttentionView, width: float) -> float:
    rows, _, pitch = _head_grid(view, width)
    each = LINE + _head_height(view, pitch - head_gap(view)) + LINE * head_lines(view) + 12
    return HEADING + rows * each


def picture_box(view: AttentionView, rect: Rect) -> Rect:
    """The picture itself."""
    space = Rect(rect.x, rect.y + HEADING, rect.width, rect.height - HEADING - CAPTION)
    return space.fit(*view.size)


def map_box(view: AttentionView, rect: Rect) -> Rect:
    """The chosen head's map."""
    height = rect.height - HEADING - CAPTION
    return Rect(rect.x, rect.y + HEADING, rect.width - SCALE_WIDTH, height).fit(*view.grid)


def head_boxes(view: AttentionView, rect: Rect) -> list[Rect]:
    """Each head's map."""
    _, columns, pitch = _head_grid(view, rect.width)
    width = pitch - head_gap(view)
    height = _head_height(view, width)
    each = LINE + height + LINE * head_lines(view) + 12
    boxes = []
    for head in range(view.num_heads):
        row, column = divmod(head, columns)
        y = rect.y + HEADING + LINE + row * each
        boxes.append(Rect(rect.x + column * pitch, y, width, height).fit(*head_shape(view)))
    return boxes


def head_width(view: AttentionView, rect: Rect) -> float:
    """What a head's name and numbers may take up: more than its map where that is slender."""
    return _head_grid(view, rect.width)[2] - head_gap(view)


def matrix_box(view: AttentionView, rect: Rect) -> Rect:
    side = rect.width - LABELS
    return Rect(rect.x + LABELS, rect.y + HEADING + LABELS, side, side).fit(1, 1)


def importance_box(view: AttentionView, rect: Rect) -> Rect:
    assert view.importance is not None
    rows, columns = view.importance.shape
    width = min((rect.width - 60 - 110) / columns, 56.0)
    box = Rect(round(rect.x + 60), round(rect.y + HEADING + LINE), 0, 0)
    return Rect(box.x, box.y, round(width * columns), round(_importance_cell(rows) * rows))


def locate(layout: Layout, views: tuple[AttentionView, ...], x: float, y: float) -> Hit | None:
    """What lies at a point, in pixels; None where there is nothing to choose."""
    for panel in layout.panels:
        hit = _hit(panel, views[panel.model], x, y)
        if hit is not None:
            return hit
    return None


def _hit(panel: Panel, view: AttentionView, x: float, y: float) -> Hit | None:
    model, rect = panel.model, panel.rect
    if panel.part in ("picture", "map"):
        box = (picture_box if panel.part == "picture" else map_box)(view, rect)
        if (cell := box.find(x, y, *view.query_grid)) is not None:
            return Hit("query", model, row=cell[0], column=cell[1])
    elif panel.part == "heads":
        for head, box in enumerate(head_boxes(view, rect), start=1):
            width = max(box.width, head_width(view, rect))
            height = box.height + LINE * (head_lines(view) + 1)
            whole = Rect(box.x, box.y - LINE, width, height)  # its name and numbers too
            if whole.find(x, y, 1, 1) is not None:
                return Hit("head", model, block=view.block, head=head)
    elif panel.part == "similarity":
        heads = view.num_heads
        if (cell := matrix_box(view, rect).find(x, y, heads, heads)) is not None:
            return Hit("pair", model, block=view.block, head=cell[0] + 1, other=cell[1] + 1)
    elif panel.part == "importance":
        assert view.importance is not None
        cell = importance_box(view, rect).find(x, y, *view.importance.shape)
        if cell is not None and not math.isnan(view.importance[cell]):
            return Hit("importance", model, block=cell[0] + 1, head=cell[1] + 1)
    return None

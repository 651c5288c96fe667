"""The parts of the explorer's picture, each drawn into its own box from one `AttentionView`.

Colours of attention are the same everywhere: a weight relative to uniform attention, on a
logarithmic scale from 1/2 to 32, in cividis, which is read alike with and without colour blindness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import contourpy
import matplotlib
import numpy as np
from matplotlib.colors import to_rgba
from numpy.typing import NDArray
from PIL import Image

from evitlab.figures import view_layout as layout
from evitlab.figures.view_ink import (
    BODY,
    SMALL,
    STRONG,
    Pen,
    Theme,
    shortened,
    text_width,
)
from evitlab.figures.view_layout import HEADING, LINE, Part, Rect
from evitlab.records import AttentionView

ATTENTION, SIMILARITY, LOSS = "cividis", "magma", "PuOr_r"
LOWEST, HIGHEST = 0.5, 32.0  # of the attention scale, times uniform
_TICKS = (0.5, 1, 2, 4, 8, 16, 32)
OVERLAY_NAMES = {
    "attention": "Attention",
    "rollout": "Attention rollout",
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "Integrated gradients",
}
_BOTH = (("black", 3.2), ("white", 1.6))  # seen on any picture
_Bytes = NDArray[np.uint8]


def draw_title(pen: Pen, view: AttentionView, rect: Rect) -> None:
    """Three lines: the model, where in it, and on what."""
    head = f"head {view.head}" + (f" and {view.pair}" if view.pair else "")
    where = f"Block {view.block} of {view.blocks} · {head} of {view.num_heads}"
    what = f"query: {query_name(view)} · {kind_name(view)} · {view.block_name}"
    lines = (
        (f"{view.model} · {view.weights}", STRONG, True, pen.theme.ink),
        (f"{where} · {what}", BODY, False, pen.theme.ink),
        (" · ".join(_circumstances(view)), BODY, False, pen.theme.muted),
    )  # fmt: skip
    for number, (line, size, bold, color) in enumerate(lines):
        pen.text(
            rect.x, rect.y + 15 + 19 * number, shortened(line, rect.width, size, bold), size=size,
            bold=bold, color=color, gid=f"title {number}",
        )  # fmt: skip


def _circumstances(view: AttentionView) -> Iterator[str]:
    yield view.picture_name
    if view.label is not None:
        yield f"true class: {view.label}"
    if view.off:
        heads = ", ".join(f"{block}.{head}" for block, head in view.off)
        yield f"turned off (block.head): {heads}"
    else:
        yield "all heads on"


def kind_name(view: AttentionView) -> str:
    if view.window is None:
        return "global"
    size = f"windows of {view.window[0]} × {view.window[1]}"
    shifted = ", shifted" if any(view.shift) else ""
    return f"{'cascade, ' if view.kind == 'cascade' else ''}{size}{shifted}"


def query_name(view: AttentionView) -> str:
    if view.query is None:
        return "class token"
    return f"row {view.query[0] + 1}, column {view.query[1] + 1}"


def draw_picture(pen: Pen, view: AttentionView, rect: Rect) -> None:
    """The picture with what is laid over it, the query, its window, the object's outline."""
    box = layout.picture_box(view, rect)
    attention = view.overlay == "attention"
    title = OVERLAY_NAMES[view.overlay]
    _heading(pen, rect, f"{title} of head {view.head}" if attention else title)
    scale = pen.pixel_ratio
    size = (max(round(box.height * scale), 1), max(round(box.width * scale), 1))
    pen.image(box, _overlaid(view, size, pen.theme), gid="picture")
    legend = []
    if view.mask is not None:
        outline = _outline(view.mask, box)
        pen.lines(outline, ("black", 2.0), ("white", 1.0), dashes=(4, 3), gid="object")
        legend.append("dashed: object")
    if attention and view.window is not None:
        pen.lines(_borders(view, box), ("black", 1.5), ("white", 0.7), gid="window borders")
    if view.query is not None:
        query = box.cell(*view.query, *view.query_grid)
        pen.frames([query], *_BOTH, gid="query")
        legend.insert(0, "box: query")
    if attention and (pieces := _window(view, box)):
        pen.frames(pieces, ("black", 2.6), (pen.theme.chosen, 1.5), gid="window")
        legend.insert(1, "orange: window")
    _caption(pen, rect, box, legend)


def draw_map(pen: Pen, view: AttentionView, rect: Rect) -> None:
    """What is laid over the picture, alone, with its scale."""
    box = layout.map_box(view, rect)
    heat = view.heat if view.overlay != "attention" else None
    if view.overlay == "attention" or heat is None:
        _heading(pen, rect, f"Map of head {view.head}", right=layout.SCALE_WIDTH)
        pen.image(box, colored(view.maps[view.head - 1], pen.theme), gid="map")
        _grid_lines(pen, view, box)
        _scale(pen, rect, box, [(_tick_name(t), float(share(t))) for t in _TICKS], "× uniform")
    else:
        _heading(pen, rect, f"{OVERLAY_NAMES[view.overlay]}, alone", right=layout.SCALE_WIDTH)
        pen.image(box, _palette(ATTENTION)[_steps(heat)], gid="map")
        _scale(pen, rect, box, [("0", 0.0), ("0.5", 0.5), ("1", 1.0)], "of largest")
    if view.query is not None:
        query = box.cell(*view.query, *view.query_grid)
        pen.frames([query], *_BOTH, gid="query")
    if view.class_weights is not None:
        weight = float(view.class_weights[view.head - 1])
        y = box.bottom + 5
        swatch = Rect(box.x, y, 12, 12)
        pen.image(swatch, colored(np.array([[weight]]), pen.theme), gid="class token")
        pen.text(box.x + 18, y + 10, f"class token {_times(weight)}", color=pen.theme.muted)
    elif view.overlay == "attention" and np.isnan(view.maps).any():
        _caption(pen, rect, box, ["grey: out of sight"])


def draw_heads(pen: Pen, view: AttentionView, rect: Rect) -> None:
    """Every head's map of the block, its name above and its numbers below."""
    theme = pen.theme
    title = "Heads of this block, same query"
    if view.kind == "cascade" and view.num_heads > 1:
        title = "Cascade: a head's output feeds the next"
    _heading(pen, rect, title, right=_short_scale(pen, rect))
    boxes = layout.head_boxes(view, rect)
    width = layout.head_width(view, rect)
    crosses: list[Any] = []
    arrows: list[Any] = []
    for head, box in enumerate(boxes, start=1):
        off = head in view.off_here
        pixels = colored(view.maps[head - 1], theme)
        pen.image(box, _faded(pixels, theme) if off else pixels, gid=f"head {head}")
        if off:
            crosses += [[(box.x, box.y), (box.right, box.bottom)],
                        [(box.x, box.bottom), (box.right, box.y)]]  # fmt: skip
        named = (head == view.head) or (head == view.pair)
        pen.text(
            box.x, box.y - 6, f"Head {head}" + (" off" if off else ""), bold=named,
            color=theme.muted if off else theme.ink, gid=f"head name {head}",
        )  # fmt: skip
        following = boxes[head] if head < len(boxes) else None
        if view.kind == "cascade" and following is not None and following.y == box.y:
            left, right, y = box.right + 5, following.x - 5, box.center[1]
            arrows += [[(left, y), (right, y)],
                       [(right - 5, y - 4), (right, y), (right - 5, y + 4)]]  # fmt: skip
        for line, (name, value) in enumerate(_numbers(view, head)):
            y = box.bottom + 13 + line * LINE
            pen.text(box.x, y, name, color=theme.muted)
            pen.text(box.x + min(width, 112.0), y, value, align="right", gid=f"{name} {head}")
    pen.lines(crosses, (theme.chosen, 1.5), gid="off")
    if view.pair is not None and view.pair != view.head:
        pen.frames([boxes[view.pair - 1]], (theme.second, 2.4), dashes=(6, 3), gid="pair")
    pen.frames([boxes[view.head - 1]], (theme.chosen, 2.4), gid="chosen")
    pen.lines(arrows, (theme.ink, 1.1), gid="order")


def _numbers(view: AttentionView, head: int) -> Iterator[tuple[str, str]]:
    yield "entropy", _share_name(view.entropy[head - 1])
    yield "distance", _share_name(view.distance[head - 1])
    if view.on_object is not None:
        yield "object", _share_name(view.on_object[head - 1])
    if view.class_weights is not None:
        yield "class", _times(float(view.class_weights[head - 1])).removesuffix(" uniform")


def draw_similarity(pen: Pen, view: AttentionView, rect: Rect) -> None:
    """Heads against heads."""
    theme, heads = pen.theme, view.num_heads
    box = layout.matrix_box(view, rect)
    _heading(pen, rect, "Similarity of heads")
    pen.image(box, _palette(SIMILARITY)[_steps(view.similarity)], gid="similarity")
    cell = box.width / heads
    step = math.ceil(LINE / cell)
    for head in range(0, heads, step):
        named = head + 1 in (view.head, view.pair)
        x, y = box.cell(head, head, heads, heads).center
        pen.text(x, box.y - 5, str(head + 1), align="center", bold=named)
        pen.text(box.x - 6, y + 4, str(head + 1), align="right", bold=named)
    if cell >= 26:
        for i in range(heads):
            for j in range(heads):
                value = view.similarity[i, j]
                x, y = box.cell(i, j, heads, heads).center
                pen.text(
                    x, y + 4, _share_name(value), align="center", gid=f"similarity {i + 1} {j + 1}",
                    color="white" if value < 0.65 else "black",
                )  # fmt: skip
    column = (view.pair or view.head) - 1
    chosen = box.cell(view.head - 1, column, heads, heads)
    width = 1.6 if cell >= 20 else 0.8
    pen.frames([chosen], ("black", 2 * width), ("white", width), gid="pair")
    bar = Rect(box.x, box.bottom + 8, box.width, 9)
    pen.image(bar, _palette(SIMILARITY)[None, :], gid="similarity scale")
    for value, align, x in ((0, "left", bar.x), (1, "right", bar.right)):
        pen.text(x, bar.bottom + 13, str(value), align=align, color=theme.muted)
    name = shortened("cosine of their maps", bar.width - 20, SMALL)
    pen.text(bar.center[0], bar.bottom + 13, name, align="center", color=theme.muted)


def draw_classes(pen: Pen, view: AttentionView, rect: Rect) -> None:
    """Probabilities of the likeliest classes, and what they are once heads are off."""
    theme = pen.theme
    classes = view.classes[: layout.MAX_CLASSES]
    changed = any(after is not None for _, _, after in classes)
    _heading(pen, rect, "Prediction")
    before_bars, after_bars, tracks = [], [], []
    for row, (name, before, after) in enumerate(classes):
        y = rect.y + HEADING + layout.CLASS_HEIGHT * row
        number = f"{100 * before:.1f} %"
        if after is not None:
            number += f" → {100 * after:.1f} % ({_points(after - before)})"
        pen.text(rect.right, y + 12, number, align="right", gid=f"probability {row + 1}")
        true = name == view.label
        space = rect.width - text_width(number, SMALL) - 10
        shown = shortened(("✓ " if true else "") + name, space, SMALL, true)
        pen.text(rect.x, y + 12, shown, bold=true, gid=f"class {row + 1}")
        height = 8 if after is not None else 12
        tracks.append(Rect(rect.x, y + 17, rect.width, 16 if after is not None else 12))
        before_bars.append(Rect(rect.x, y + 17, rect.width * before, height))
        if after is not None:
            after_bars.append(Rect(rect.x, y + 25, rect.width * after, 8))
    pen.fill(tracks, color=theme.empty, gid="tracks")
    pen.fill(before_bars, color=theme.before, gid="before")
    pen.fill(after_bars, color=theme.ground, hatch="//////", edge=theme.after, gid="after")
    y = rect.y + HEADING + layout.CLASS_HEIGHT * len(classes)
    if changed:
        keys = [Rect(rect.x, y + 4, 14, 8), Rect(rect.x + 92, y + 4, 14, 8)]
        pen.fill(keys[:1], color=theme.before)
        pen.fill(keys[1:], color=theme.ground, hatch="//////", edge=theme.after)
        pen.text(keys[0].right + 5, y + 12, "all heads", color=theme.muted)
        text = shortened("heads off (change in points)", rect.right - keys[1].right - 5, SMALL)
        pen.text(keys[1].right + 5, y + 12, text, color=theme.muted)
    else:
        pen.text(rect.x, y + 12, "all heads on", color=theme.muted, gid="no change")


def draw_importance(pen: Pen, view: AttentionView, rect: Rect) -> None:
    """What each head of the model is worth to the predicted class."""
    assert view.importance is not None
    values, theme = 100 * view.importance, pen.theme
    box = layout.importance_box(view, rect)
    title = "Importance: points of the predicted class lost without the head"
    _heading(pen, rect, shortened(title, rect.width, BODY, True))
    known = values[np.isfinite(values)]
    limit = _round_up(float(np.abs(known).max())) if known.size else 1.0
    pixels = _palette(LOSS)[_steps(0.5 + values / (2 * limit))]
    pixels[np.isnan(values)] = _rgba(theme.ground)
    pen.image(box, pixels, gid="importance")
    rows, columns = values.shape
    for column in range(0, columns, math.ceil(LINE * columns / box.width)):
        x, _ = box.cell(0, column, rows, columns).center
        pen.text(x, box.y - 4, str(column + 1), align="center", color=theme.muted)
    step = math.ceil(LINE / (box.height / rows))
    for row in range(0, rows, step):
        _, y = box.cell(row, 0, rows, columns).center
        name = f"block {row + 1}"
        pen.text(box.x - 6, y + 4, name, align="right", bold=row + 1 == view.block)
    if box.width / columns >= 36 and box.height / rows >= LINE:
        for (row, column), value in np.ndenumerate(values):
            if math.isfinite(value):
                x, y = box.cell(row, column, rows, columns).center
                strong = abs(value) > 0.6 * limit
                pen.text(
                    x, y + 4, f"{value:.1f}".replace("-", "−"), align="center",
                    color="white" if strong else "black",
                    gid=f"importance {row + 1} {column + 1}",
                )  # fmt: skip
    if view.block <= rows and view.head <= columns:
        chosen = box.cell(view.block - 1, view.head - 1, rows, columns)
        pen.frames([chosen], *_BOTH, gid="chosen")
    ticks = [(_signed(-limit), 0.0), ("0", 0.5), (_signed(limit), 1.0)]
    side = Rect(box.x, box.y, box.width, max(box.height, 60))
    _scale(pen, rect, side, ticks, "points", colors=LOSS)


# What draws each part, and all fields that its picture depends on.
_SIGHT = ("maps", "head", "grid", "query", "query_grid", "window", "shift", "overlay", "heat")
PAINTERS: dict[Part, tuple[Callable[[Pen, AttentionView, Rect], None], tuple[str, ...]]] = {
    "title": (draw_title, (
        "model", "weights", "picture_name", "label", "block", "blocks", "block_name", "kind",
        "num_heads", "head", "pair", "query", "window", "shift", "off",
    )),
    "picture": (draw_picture, (*_SIGHT, "picture", "mask")),
    "map": (draw_map, (*_SIGHT, "class_weights")),
    "heads": (draw_heads, (
        "maps", "kind", "head", "pair", "off_here", "entropy", "distance", "on_object",
        "class_weights",
    )),
    "similarity": (draw_similarity, ("similarity", "head", "pair")),
    "classes": (draw_classes, ("classes", "label")),
    "importance": (draw_importance, ("importance", "block", "head")),
}  # fmt: skip


def share(weight: Any) -> Any:
    """Where a weight stands on the attention scale, 0..1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.log2(np.asarray(weight, float) / LOWEST) / math.log2(HIGHEST / LOWEST)
    return np.clip(place, 0.0, 1.0)


def colored(weights: NDArray[Any], theme: Theme) -> _Bytes:
    """Weights [rows, columns] as RGBA; what is out of sight in the theme's grey."""
    pixels = _palette(ATTENTION)[_steps(share(weights))]
    pixels[np.isnan(weights)] = _rgba(theme.empty)
    return pixels


def _overlaid(view: AttentionView, size: tuple[int, int], theme: Theme) -> _Bytes:
    """The picture at its size on screen, in grey, with colours where something was measured."""
    if view.overlay == "attention":
        values = np.asarray(view.maps[view.head - 1])
        steps, seen = _steps(share(values)), ~np.isnan(values)
    elif view.heat is not None:
        steps, seen = _steps(view.heat), ~np.isnan(view.heat)
    else:
        steps, seen = None, None
    height, width = size
    picture = Image.fromarray(view.picture).resize((width, height), Image.Resampling.BILINEAR)
    if steps is None or seen is None:
        return np.asarray(picture.convert("RGBA"))
    # Grey below the colours: hues of the picture would be read as attention.
    grey = np.asarray(picture.convert("L"))
    rows = np.arange(height) * len(steps) // height
    columns = np.arange(width) * steps.shape[1] // width
    # One table of all 256 greys under all 256 colours, instead of floats at every pixel.
    mixed = _blends()[(steps.astype(np.int32) * 256)[:, columns][rows] + grey]
    if not seen.all():
        veil = Image.new("RGB", picture.size, theme.empty)
        veiled = np.asarray(Image.blend(picture, veil, 0.55).convert("RGBA"))
        mixed = np.where(seen[:, columns][rows], mixed, veiled.view(np.uint32)[..., 0])
    return mixed.view(np.uint8).reshape(height, width, 4)


@cache
def _blends() -> NDArray[np.uint32]:
    """Every colour of the attention scale over every grey, [256 * 256], RGBA in one number."""
    colors = _palette(ATTENTION).astype(float)[:, None]
    greys = np.arange(256.0)[None, :, None]
    strength = np.linspace(0.38, 0.8, 256)[:, None, None]
    mixed = (strength * colors + (1 - strength) * greys).astype(np.uint8)
    mixed[..., 3] = 255
    return mixed.view(np.uint32).reshape(-1)


def _faded(pixels: _Bytes, theme: Theme) -> _Bytes:
    grey = pixels[..., :3].mean(-1, keepdims=True)
    faded = (0.35 * grey + 0.65 * np.array(_rgba(theme.empty))).astype(np.uint8)
    faded[..., 3] = 255
    return faded


@cache
def _palette(name: str) -> _Bytes:
    return np.asarray(matplotlib.colormaps[name](np.arange(256), bytes=True))


def _steps(values: Any) -> NDArray[np.intp]:
    """Values 0..1 as places of a palette."""
    return np.nan_to_num(255 * np.clip(values, 0.0, 1.0)).round().astype(np.intp)


def _rgba(color: str) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in to_rgba(color))


def _outline(mask: NDArray[np.bool_], box: Rect) -> list[NDArray[np.float64]]:
    """The object's borders; also where it ends at the picture's edge."""
    height, width = mask.shape
    padded = np.pad(mask, 1).astype(float)
    lines = contourpy.contour_generator(z=padded).lines(0.5)
    scale = np.array([box.width / width, box.height / height])
    low, high = np.array([box.x, box.y]) + 1, np.array([box.right, box.bottom]) - 1
    return [
        np.clip((np.asarray(line) - 0.5) * scale + [box.x, box.y], low, high) for line in lines
    ]


def window_ids(view: AttentionView) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """In which row and column of windows each row and column of tokens is; shifted ones wrap."""
    window = view.window or view.grid
    rows, columns = (
        (np.arange(tokens) - shift) % tokens // size
        for tokens, size, shift in zip(view.grid, window, view.shift, strict=True)
    )
    return rows, columns


def _borders(view: AttentionView, box: Rect) -> list[Any]:
    rows, columns = window_ids(view)
    lines: list[Any] = []
    for row in np.flatnonzero(np.diff(rows)) + 1:
        y = box.y + row / len(rows) * box.height
        lines.append([(box.x, y), (box.right, y)])
    for column in np.flatnonzero(np.diff(columns)) + 1:
        x = box.x + column / len(columns) * box.width
        lines.append([(x, box.y), (x, box.bottom)])
    return lines


def _window(view: AttentionView, box: Rect) -> list[Rect]:
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


def _grid_lines(pen: Pen, view: AttentionView, box: Rect) -> None:
    """Cells apart, where they are large enough; window borders stronger."""
    rows, columns = view.grid
    xs = [box.x + i * box.width / columns for i in range(1, columns)]
    ys = [box.y + i * box.height / rows for i in range(1, rows)]
    cells: list[Any] = [[(x, box.y), (x, box.bottom)] for x in xs]
    cells += [[(box.x, y), (box.right, y)] for y in ys]
    if min(box.width / columns, box.height / rows) >= 7:
        pen.lines(cells, (pen.theme.ground, 0.5), gid="cells")
    if view.window is not None:
        pen.lines(_borders(view, box), (pen.theme.ink, 0.8), gid="window borders")
    pieces = _window(view, box)
    pen.frames(pieces, (pen.theme.chosen, 1.5), gid="window")


def _heading(pen: Pen, rect: Rect, text: str, *, right: float = 0.0) -> None:
    shown = shortened(text, rect.width - right, BODY, True)
    pen.text(rect.x, rect.y + 14, shown, size=BODY, bold=True, gid="heading")


def _caption(pen: Pen, rect: Rect, box: Rect, parts: list[str]) -> None:
    """As many of the parts as there is room for."""
    while parts and text_width(" · ".join(parts), SMALL) > rect.width:
        parts = parts[:-1]
    text = " · ".join(parts)
    pen.text(box.x, box.bottom + 15, text, color=pen.theme.muted, gid="caption")


def _scale(
    pen: Pen, rect: Rect, box: Rect, ticks: list[tuple[str, float]], unit: str, *,
    colors: str = ATTENTION,
) -> None:  # fmt: skip
    """A colour scale right of a box, the largest on top, its unit above it."""
    bar = Rect(box.right + 10, box.y, 12, box.height)
    pen.image(bar, _palette(colors)[::-1][:, None], gid="scale")
    marks = []
    for name, place in ticks:
        y = bar.bottom - place * bar.height
        marks.append([(bar.right, y), (bar.right + 3, y)])
        text = min(max(y + 4, bar.y + 9), bar.bottom)
        pen.text(bar.right + 6, text, name, color=pen.theme.ink, gid=f"tick {name}")
    pen.lines(marks, (pen.theme.muted, 0.8), gid="marks")
    pen.text(bar.x - 2, box.y - 7, unit, color=pen.theme.muted, gid="unit")


def _short_scale(pen: Pen, rect: Rect) -> float:
    """The attention scale in the line of a heading, at the right; how wide it is."""
    y, unit = rect.y + 14, f"{HIGHEST:g} × uniform"
    bar = Rect(round(rect.right - text_width(unit, SMALL) - 5 - 56), rect.y + 5, 56, 9)
    pen.image(bar, _palette(ATTENTION)[None, :], gid="scale")
    pen.text(bar.right + 5, y, unit, color=pen.theme.muted, gid="unit")
    pen.text(bar.x - 5, y, _tick_name(LOWEST), align="right", color=pen.theme.muted)
    return rect.right - bar.x + 24


def _tick_name(weight: float) -> str:
    return "½" if weight == LOWEST else f"{weight:g}"


def _share_name(value: float) -> str:
    """Two digits: ".93", "1.0"; nothing known: "–"."""
    if math.isnan(value):
        return "–"
    text = f"{value:.2f}"
    return text[:3] if text.startswith("1") else text.replace("0.", ".", 1).replace("-", "−")


def _times(weight: float) -> str:
    if math.isnan(weight):
        return "–"
    return f"{weight:.1f} × uniform" if weight < 9.95 else f"{weight:.0f} × uniform"


def _points(change: float) -> str:
    return _signed(100 * change, digits=1)


def _signed(value: float, *, digits: int | None = None) -> str:
    text = f"{abs(value):.{digits}f}" if digits is not None else f"{abs(value):g}"
    return ("+" if value > 0 else "−" if float(text) else "±") + text


def _round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten; at least 0.1."""
    power = 10.0 ** math.floor(math.log10(max(value, 0.1)))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.9999))


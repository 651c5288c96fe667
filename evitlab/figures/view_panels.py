"""The parts of the explorer's picture, each drawn into its own box from one `AttentionView`.

Shape legend: a rect is a part's whole box with heading and caption, a box what is drawn inside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from evitlab.figures import view_layout as layout
from evitlab.figures.view_colors import (
    ATTENTION,
    LOSS,
    SIMILARITY,
    colored,
    faded,
    overlaid,
    palette,
    rgba,
    share,
    steps,
)
from evitlab.figures.view_ink import BODY, SMALL, STRONG, Pen, shortened, text_width
from evitlab.figures.view_layout import HEADING, LINE, Part, Rect
from evitlab.figures.view_marks import (
    caption,
    heading,
    points,
    round_up,
    scale,
    seen,
    share_name,
    short_scale,
    signed,
    tick_name,
    times,
)
from evitlab.figures.view_windows import borders, in_window, outline, window_pieces
from evitlab.records import AttentionView

_TICKS = (0.5, 1, 2, 4, 8, 16, 32)
OVERLAY_NAMES = {
    "attention": "Attention",
    "rollout": "Attention rollout",
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "Integrated gradients",
}


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
        return {"global": "global", "window": "one window"}.get(view.kind, "cascade, one window")
    size = f"windows of {view.window[0]} × {view.window[1]}"
    shifted = ", shifted" if any(view.shift) else ""
    return f"{'cascade, ' if view.kind == 'cascade' else ''}{size}{shifted}"


def query_name(view: AttentionView) -> str:
    """As `select` takes it: row and column counted from 0."""
    return "class token" if view.query is None else str(view.query)


def draw_picture(pen: Pen, view: AttentionView, rect: Rect) -> None:
    """The picture with what is laid over it, the query, its window, the object's outline."""
    box = layout.picture_box(view, rect)
    attention = view.overlay == "attention"
    title = OVERLAY_NAMES[view.overlay]
    heading(pen, rect, f"{title} of head {view.head}" if attention else title)
    height, width = (max(round(side * pen.pixel_ratio), 1) for side in (box.height, box.width))
    pen.image(box, overlaid(view, (height, width), pen.theme), gid="picture")
    legend = []
    if view.mask is not None:
        lines = outline(view.mask, box)
        pen.lines(lines, ("black", 2.0), ("white", 1.0), dashes=(4, 3), gid="object")
        legend.append("dashed: object")
    if attention and view.window is not None:
        pen.lines(borders(view, box), ("black", 1.3), ("white", 0.5), gid="window borders")
    if attention and (pieces := window_pieces(view, box)):
        pen.frames(pieces, ("black", 2.6), (pen.theme.chosen, 1.5), gid="window")
        legend.insert(0, "orange: window")
    if view.query is not None:
        query = box.cell(*view.query, *view.query_grid)
        pen.frames([query], *seen(query), gid="query")
        legend.insert(0, "box: query")
    caption(pen, rect, box, legend)


def draw_map(pen: Pen, view: AttentionView, rect: Rect) -> None:
    """What is laid over the picture, alone, with its scale."""
    box = layout.map_box(view, rect)
    heat = view.heat if view.overlay != "attention" else None
    beside = Rect(rect.x, box.y, rect.width - layout.SCALE_WIDTH, max(box.height, 110.0))
    if view.overlay == "attention" or heat is None:
        heading(pen, rect, f"Map of head {view.head}", right=layout.SCALE_WIDTH)
        pen.image(box, colored(view.maps[view.head - 1], pen.theme), gid="map")
        _grid_lines(pen, view, box)
        scale(pen, beside, [(tick_name(t), float(share(t))) for t in _TICKS], "× uniform")
    else:
        heading(pen, rect, f"{OVERLAY_NAMES[view.overlay]}, alone", right=layout.SCALE_WIDTH)
        pen.image(box, palette(ATTENTION)[steps(heat)], gid="map")
        scale(pen, beside, [("0", 0.0), ("0.5", 0.5), ("1", 1.0)], "of largest")
    if view.query is not None:
        query = box.cell(*view.query, *view.query_grid)
        pen.frames([query], *seen(query), gid="query")
    if view.class_weights is not None:
        weight = float(view.class_weights[view.head - 1])
        y = box.bottom + 5
        swatch = Rect(box.x, y, 12, 12)
        pen.image(swatch, colored(np.array([[weight]]), pen.theme), gid="class token")
        pen.text(box.x + 18, y + 10, f"class token {times(weight)}", color=pen.theme.muted)
    elif view.overlay == "attention" and np.isnan(view.maps).any():
        caption(pen, rect, box, ["grey: out of sight"])


def draw_heads(pen: Pen, view: AttentionView, rect: Rect) -> None:
    """Every head's map of the block, its name above and its numbers below."""
    theme = pen.theme
    cropped = layout.head_shape(view) != view.grid
    title = "Heads, in the query's window" if cropped else "Heads of this block, same query"
    if view.kind == "cascade" and view.num_heads > 1:
        title = "Cascade: a head's output feeds the next"
    heading(pen, rect, title, right=short_scale(pen, rect))
    boxes = layout.head_boxes(view, rect)
    width = layout.head_width(view, rect)
    maps, query = in_window(view)
    queries: list[Rect] = []
    crosses: list[Any] = []
    arrows: list[Any] = []
    for head, box in enumerate(boxes, start=1):
        off = head in view.off_here
        pixels = colored(maps[head - 1], theme)
        pen.image(box, faded(pixels, theme) if off else pixels, gid=f"head {head}")
        if query is not None:
            queries.append(box.cell(*query, *maps.shape[1:]))
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
            pen.text(box.x + min(width, 112.0), y, value, align="right", gid=f"{name} of {head}")
    if queries and queries[0].width >= 6:
        pen.frames(queries, ("black", 2.0), ("white", 1.0), gid="query")
    pen.lines(crosses, (theme.chosen, 1.5), gid="off")
    if view.pair is not None and view.pair != view.head:
        pen.frames([boxes[view.pair - 1]], (theme.second, 2.4), dashes=(6, 3), gid="pair")
    pen.frames([boxes[view.head - 1]], (theme.chosen, 2.4), gid="chosen")
    pen.lines(arrows, (theme.ink, 1.1), gid="order")


def _numbers(view: AttentionView, head: int) -> Iterator[tuple[str, str]]:
    yield "entropy", share_name(view.entropy[head - 1])
    yield "distance", share_name(view.distance[head - 1])
    if view.on_object is not None:
        yield "object", share_name(view.on_object[head - 1])
    if view.class_weights is not None:
        yield "class", times(float(view.class_weights[head - 1]))


def draw_similarity(pen: Pen, view: AttentionView, rect: Rect) -> None:
    """Heads against heads."""
    theme, heads = pen.theme, view.num_heads
    box = layout.matrix_box(view, rect)
    heading(pen, rect, "Similarity of heads")
    pen.image(box, palette(SIMILARITY)[steps(view.similarity)], gid="similarity")
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
                    x, y + 4, share_name(value), align="center", gid=f"similarity {i + 1} {j + 1}",
                    color="white" if value < 0.65 else "black",
                )  # fmt: skip
    column = (view.pair or view.head) - 1
    chosen = box.cell(view.head - 1, column, heads, heads)
    pen.frames([chosen], *seen(chosen), gid="pair")
    bar = Rect(box.x, box.bottom + 8, box.width, 9)
    pen.image(bar, palette(SIMILARITY)[None, :], gid="similarity scale")
    for value, align, x in ((0, "left", bar.x), (1, "right", bar.right)):
        pen.text(x, bar.bottom + 13, str(value), align=align, color=theme.muted)
    name = shortened("cosine of their maps", bar.width - 34, SMALL)
    pen.text(bar.center[0], bar.bottom + 13, name, align="center", color=theme.muted)


def draw_classes(pen: Pen, view: AttentionView, rect: Rect) -> None:
    """Probabilities of the likeliest classes, and what they are once heads are off."""
    theme = pen.theme
    classes = view.classes[: layout.MAX_CLASSES]
    changed = any(after is not None for _, _, after in classes)
    heading(pen, rect, "Prediction")
    before_bars, after_bars, tracks = [], [], []
    for row, (name, before, after) in enumerate(classes):
        y = rect.y + HEADING + layout.CLASS_HEIGHT * row
        number = f"{100 * before:.1f} %"
        if after is not None:
            number += f" → {100 * after:.1f} % ({points(after - before)})"
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
    heading(pen, rect, shortened(title, rect.width, BODY, True))
    known = values[np.isfinite(values)]
    limit = round_up(float(np.abs(known).max())) if known.size else 1.0
    pixels = palette(LOSS)[steps(0.5 + values / (2 * limit))]
    pixels[np.isnan(values)] = rgba(theme.ground)
    pen.image(box, pixels, gid="importance")
    rows, columns = values.shape
    for column in range(0, columns, math.ceil(20 * columns / box.width)):
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
        pen.frames([chosen], *seen(chosen), gid="chosen")
    ticks = [(signed(-limit), 0.0), ("0", 0.5), (signed(limit), 1.0)]
    side = Rect(box.x, box.y, box.width, max(box.height, 60))
    scale(pen, side, ticks, "points", colors=LOSS)


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
        "maps", "kind", "grid", "query", "query_grid", "window", "shift", "head", "pair",
        "off_here", "entropy", "distance", "on_object", "class_weights",
    )),
    "similarity": (draw_similarity, ("similarity", "head", "pair")),
    "classes": (draw_classes, ("classes", "label")),
    "importance": (draw_importance, ("importance", "block", "head")),
}  # fmt: skip


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
        pen.lines(borders(view, box), (pen.theme.ink, 0.8), gid="window borders")
    pieces = window_pieces(view, box)
    pen.frames(pieces, (pen.theme.chosen, 1.5), gid="window")



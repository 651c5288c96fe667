"""Fig. 6: the architecture, its sandwich block and the cascaded group attention, as they ran.

Everything is laid out in inches on one page, from top to bottom; three panels stand side by side.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from evitlab.figures.boxes import (
    LOOKS,
    SUM_RADIUS,
    Box,
    arrow,
    draw_box,
    draw_sum,
    fitting_size,
    polyline,
    shape_label,
    shape_text,
    text_width,
)
from evitlab.figures.style import MUTED, add_caption, house_style, new_figure
from evitlab.records import BlockNode, BlockTrace
from evitlab.wording import did_you_mean

_WIDTH, _HEIGHT = 12.0, 7.0  # inches
_TOP, _BOTTOM = 6.45, 0.42  # of the panels
_MODEL, _BLOCK, _ATTENTION = (0.12, 2.62), (2.97, 5.47), (5.82, 11.88)  # left and right edges
_TITLE = 0.42  # height kept free for a panel's title

_ROW = ("stem", "stage", "subsample", "norm", "pool", "classifier")
def fig6_block(trace: BlockTrace) -> Figure:
    """The model's row, one sandwich block, and its attention, drawn from the nodes that ran.

    An arrow from one head to the next stands only where the trace has an `add` of that head, a
    split only where it has a `split`, a residual line only where an `add` follows a layer of the
    block: a model without the cascade, or with another number of heads, looks different.

    Raises:
        ValueError: an unknown kind of node, or a part of the drawing that has no node.

    Paper: Fig. 6 and Section 3.1.
    """
    for node in trace.nodes:
        if node.kind not in LOOKS:
            hint = did_you_mean(node.kind, LOOKS)
            raise ValueError(f"trace: unknown kind {node.kind!r} of node {node.name!r}{hint}")
    row = [node for node in trace.nodes if node.kind in _ROW and node.head is None]
    inside = ("split", "qkv", "head", "concat", "act", "proj")
    attention = [node for node in trace.nodes if node.head is not None or node.kind in inside]
    block = [node for node in trace.nodes if node not in row and node not in attention]
    heads = [node for node in attention if node.head is not None]
    for part, nodes in (("model", row), ("block", block), ("attention's heads", heads)):
        if not nodes:
            raise ValueError(f"trace: expected nodes of the {part}, got none")

    with house_style():
        figure = new_figure(_WIDTH, _HEIGHT, layout=None)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set(xlim=(0, _WIDTH), ylim=(0, _HEIGHT))
        axes.axis("off")
        axes.text(0.12, 6.72, _headline(trace), fontsize=12, fontweight="bold", va="center")
        drawn = _draw_column(axes, _MODEL, "Model", row)
        home = next((n for n in row if n.name and _within(trace.block, n.name)), None)
        if home is not None:
            _zoom(axes, drawn[row.index(home)], _BLOCK[0])
        drawn = _draw_column(axes, _BLOCK, f"Sandwich block {trace.block}".strip(), block)
        for node, box in zip(block, drawn, strict=True):
            if node.kind == "attention":
                _zoom(axes, box, _ATTENTION[0])
        _draw_attention(axes, attention)
        add_caption(
            figure,
            note="Shapes: channels × height × width, inside the attention those of one window. "
            "Costs: parameters, and multiply-accumulates (MACs) for one image.",
        )
    return figure


def _headline(trace: BlockTrace) -> str:
    first = trace.nodes[0].in_shape
    return f"{trace.model or 'EfficientViT'} on {shape_text(first)} images"


def _within(block: str, stage: str) -> bool:
    return block == stage or block.startswith(f"{stage}.")


def _panel(axes: Axes, edges: tuple[float, float], title: str) -> None:
    left, right = edges
    frame = Rectangle((left, _BOTTOM), right - left, _TOP - _BOTTOM, fc="#FAFAFA", ec="#DDDDDD")
    axes.add_patch(frame)
    centre = (left + right) / 2
    size = fitting_size(title, right - left, 9.0, "bold")
    axes.text(
        centre, _TOP - 0.17, title, ha="center", va="center", fontsize=size, fontweight="bold"
    )


def _draw_column(
    axes: Axes, edges: tuple[float, float], title: str, nodes: list[BlockNode]
) -> list[Box]:
    """A panel with its nodes from top to bottom; an `add` becomes a circle with its residual."""
    _panel(axes, edges, title)
    centre = (edges[0] + edges[1]) / 2
    boxes = [node for node in nodes if node.kind != "add"]
    start, end = _TOP - _TITLE - 0.16, _BOTTOM + 0.22
    sums = len(nodes) - len(boxes)
    gap_below = 0.2
    sum_room = 0.035 + 2 * SUM_RADIUS
    pitch = (start - end - gap_below - sum_room * sums) / len(boxes)
    height = min(0.62, 0.72 * pitch)
    gap = pitch - height

    shape_label(axes, centre, start + 0.09, nodes[0].in_shape, ha="center")
    drawn: list[Box] = []
    y = start
    counts: dict[str, int] = {}
    before: list[float] = []  # y at which each box's input leaves the column, for its residual
    for node in nodes:
        if node.kind == "add":
            circle = draw_sum(axes, centre, y - sum_room + SUM_RADIUS)
            arrow(axes, (centre, drawn[-1].bottom), (centre, circle.top))
            if before:
                side = drawn[-1].left - 0.12
                path = [(centre, before[-1]), (side, before[-1]), (side, circle.middle)]
                polyline(axes, [*path, (circle.left, circle.middle)], arrow=True)
            drawn.append(circle)
            y = circle.bottom
            continue
        arrow_from = drawn[-1].bottom if drawn else start
        box = Box(centre, y - gap, y - gap - height, 1.6)
        before.append((arrow_from + box.top) / 2)
        arrow(axes, (centre, arrow_from), (centre, box.top))
        if drawn and nodes[len(drawn)].in_shape != nodes[0].in_shape:
            shape_label(axes, centre + 0.07, (arrow_from + box.top) / 2, node.in_shape)
        counts[node.kind] = counts.get(node.kind, 0) + 1
        number = f" {counts[node.kind]}" if node.kind == "stage" else ""
        draw_box(axes, box, node, number=number)
        drawn.append(box)
        y = box.bottom
    arrow(axes, (centre, y), (centre, _BOTTOM + 0.2))
    shape_label(axes, centre, _BOTTOM + 0.11, nodes[-1].out_shape, ha="center")
    return drawn


def _draw_attention(axes: Axes, nodes: list[BlockNode]) -> None:
    """The split, one column per head with the cascade's arrows, and the way back together."""
    heads = sorted({node.head for node in nodes if node.head is not None})
    columns = {head: [node for node in nodes if node.head == head] for head in heads}
    split = next((node for node in nodes if node.kind == "split"), None)
    after = [node for node in nodes if node.head is None and node.kind != "split"]
    cascade = any(node.kind == "add" for column in columns.values() for node in column)
    _panel(axes, _ATTENTION, _attention_title(len(heads), split is not None, cascade))
    left, right = _ATTENTION[0] + 0.2, _ATTENTION[1] - 0.2
    centre = (left + right) / 2

    top = _TOP - _TITLE - 0.16
    shape_label(axes, centre, top + 0.09, nodes[0].in_shape, ha="center")
    bar = Box(centre, top - 0.2, top - 0.46, right - left)
    if split is not None:
        arrow(axes, (centre, top), (centre, bar.top))
        draw_box(axes, bar, split, one_line=True)
    else:  # every head reads the whole input: one wire to all
        bar = Box(centre, top - 0.2, top - 0.2, right - left)

    pitch = (right - left) / len(heads)
    centres = {head: left + (i + 0.5) * pitch for i, head in enumerate(heads)}
    if split is None:
        polyline(axes, [(centre, top), (centre, bar.bottom)])
        polyline(axes, [(x, bar.bottom) for x in centres.values()])
    end = _BOTTOM + 0.22
    row, space = 0.3, 0.17
    low = end + len(after) * (row + space) + 0.12  # bottom of the heads' columns
    high = bar.bottom - 0.22
    outputs: dict[int, Box] = {}
    for i, head in enumerate(heads):
        previous = outputs.get(heads[i - 1]) if i else None
        arrow_shape = columns[head][0].in_shape
        if i == 0 or text_width(shape_text(arrow_shape), 7.5) < 0.5 * pitch:  # else: no room
            shape_label(axes, centres[head] + 0.06, bar.bottom - 0.11, arrow_shape)
        outputs[head] = _draw_head(
            axes, columns[head], centres[head], pitch, (bar.bottom, high, low), previous
        )

    y = low - space
    for i, node in enumerate(after):
        wide = right - left if node.kind == "concat" else 3.4
        box = Box(centre, y, y - row, wide)
        if i == 0:
            for output in outputs.values():
                arrow(axes, (output.x, output.bottom), (output.x, box.top))
        else:
            arrow(axes, (centre, y + space), (centre, box.top))
        draw_box(axes, box, node, one_line=True)
        y -= row + space
    arrow(axes, (centre, y + space), (centre, _BOTTOM + 0.2))
    shape_label(axes, centre, _BOTTOM + 0.11, nodes[-1].out_shape, ha="center")


def _draw_head(
    axes: Axes,
    nodes: list[BlockNode],
    x: float,
    pitch: float,
    levels: tuple[float, float, float],
    previous: Box | None,
) -> Box:
    """One head's column between `levels` (bus, top, bottom); returns its last box."""
    bus, high, low = levels
    gutter = min(0.36, 0.24 * pitch)  # the cascade's line runs here
    width = min(pitch - gutter, 1.7)
    steps = [node for node in nodes if node.kind != "add"]
    sum_room = 0.42  # kept in every column, so that the boxes of all heads stand level
    pitch_y = (high - sum_room - low) / max(len(steps), 1)
    height = min(0.78, pitch_y - 0.17)
    y, last = bus, None
    number = f" {nodes[0].head + 1}" if nodes[0].head is not None else ""
    for node in nodes:
        if node.kind == "add":
            circle = draw_sum(axes, x, high - 0.12)
            arrow(axes, (x, bus), (x, circle.top))
            if previous is not None:
                lane = x - width / 2 - gutter / 2
                drop = previous.bottom - 0.08
                path = [(previous.x, drop), (lane, drop), (lane, circle.middle)]
                polyline(axes, [*path, (circle.left, circle.middle)], arrow=True, cascade=True)
            y = circle.bottom
            last = circle
            continue
        i = steps.index(node)
        top = high - sum_room - i * pitch_y - (pitch_y - height) / 2
        box = Box(x, top, top - height, width)
        arrow(axes, (x, y), (x, box.top))
        draw_box(axes, box, node, number=number if node.kind == "head" else "")
        y, last = box.bottom, box
    assert last is not None
    return last


def _attention_title(heads: int, split: bool, cascade: bool) -> str:
    kind = "group attention" if split else "multi-head attention on the whole input"
    kind = f"Cascaded {kind}" if cascade else f"{kind.capitalize()}, no cascade"
    return f"{kind}, {heads} head{'s' if heads != 1 else ''}"


def _zoom(axes: Axes, box: Box, edge: float) -> None:
    """Faint lines from a box to the panel that shows its inside."""
    for start, end in ((box.top, _TOP), (box.bottom, _BOTTOM)):
        axes.plot([box.right, edge], [start, end], color=MUTED, lw=0.7, ls=(0, (3, 3)), zorder=1)

"""Boxes, arrows and sums: how a node of a model is drawn, in inches."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.textpath import TextToPath

from evitlab.figures.style import INK, MUTED, PALETTE
from evitlab.records import BlockNode

Point = tuple[float, float]

_OUTLINE = "#8C8C8C"
SUM_RADIUS = 0.085
_SMALLEST = 6.0  # points; below this a box says less rather than smaller
LOOKS = {  # kind: title in the box, fill
    "stem": ("Stem", "#E8E8E8"),
    "stage": ("Stage", "#FBE3D2"),
    "subsample": ("Subsample", "#E6DCEC"),
    "norm": ("Norm", "#E8E8E8"),
    "pool": ("Average pool", "#E8E8E8"),
    "classifier": ("Classifier", "#E8E8E8"),
    "dwconv": ("DWConv", "#D6E8F5"),
    "ffn": ("FFN", "#FFF0CC"),
    "attention": ("Attention", "#D5EDE3"),
    "split": ("Split channels", "#FFFFFF"),
    "add": ("+", "#FFFFFF"),
    "qkv": ("Q, K, V", "#F7DDEB"),
    "head": ("Attend", "#D5EDE3"),
    "concat": ("Concatenate", "#FFFFFF"),
    "act": ("Activation", "#FFFFFF"),
    "proj": ("Project", "#F7DDEB"),
}


@dataclass(frozen=True)
class Box:
    """Where a node was drawn, in inches."""

    x: float  # centre
    top: float
    bottom: float
    width: float

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        return self.x + self.width / 2

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


def draw_box(
    axes: Axes, box: Box, node: BlockNode, *, number: str = "", one_line: bool = False
) -> None:
    """A node: its title, what it says about itself, and what it costs, as far as there is room."""
    title, fill = LOOKS[node.kind]
    height = box.top - box.bottom
    axes.add_patch(
        FancyBboxPatch(
            (box.left, box.bottom),
            box.width,
            height,
            boxstyle="round,pad=0,rounding_size=0.05",
            fc=fill,
            ec=_OUTLINE,
            lw=0.9,
            zorder=3,
        )
    )
    if one_line:
        rest = ", ".join(part for part in (node.detail, *_cost(node)) if part)
        text = f"{title}{number}: {rest}" if rest else f"{title}{number}"
        size = fitting_size(text, box.width, 8.0)
        axes.text(box.x, box.middle, text, ha="center", va="center", fontsize=size, zorder=4)
        return
    lines = [(f"{title}{number}", 8.5, "bold", INK)]
    for part in node.detail.split("\n") if node.detail else ():
        lines += [(line, 7.2, "normal", INK) for line in _wrapped(part, box.width, 7.2)]
    costs = [(part, 6.8, "normal", MUTED) for part in _cost(node)]
    together = ", ".join(_cost(node))
    # By width, not by what happens to fit: neighbouring boxes should break alike.
    if len(costs) > 1 and box.width > 1.4 and fitting_size(together, box.width, 6.8) >= _SMALLEST:
        costs = [(together, 6.8, "normal", MUTED)]
    if any(fitting_size(part, box.width, 6.8) < _SMALLEST for part, *_ in costs):
        costs = []
    room = int((height - 0.05) / (_SMALLEST * 1.15 / 72))
    if len(lines) + len(costs) <= room:
        lines += costs
    elif len(lines) > room:
        lines = [(" ".join((title + number, node.detail)), 7.2, "normal", INK)]
    step = min(0.145, (height - 0.05) / len(lines))
    y = box.middle + step * (len(lines) - 1) / 2
    for text, points, weight, color in lines:
        size = min(fitting_size(text, box.width, points, weight), step * 72 / 1.1)
        axes.text(
            box.x,
            y,
            text,
            ha="center",
            va="center",
            fontsize=size,
            fontweight=weight,
            color=color,
            zorder=4,
        )
        y -= step


def _cost(node: BlockNode) -> list[str]:
    costs = ((node.params, "params"), (node.macs, "MACs"))
    return [f"{_short(number)} {unit}" for number, unit in costs if number]


def _short(number: int) -> str:
    for limit, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return str(number)


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Inches, from the glyphs themselves: the same on every screen."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    width, _, _ = TextToPath().get_text_width_height_descent(text, font, ismath=False)
    return width / 72


def fitting_size(text: str, width: float, size: float, weight: str = "normal") -> float:
    """The font size, at most `size`, at which the text fits the width (inches)."""
    return size * min(1.0, (width - 0.08) / text_width(text, size, weight))


def _wrapped(text: str, width: float, size: float) -> list[str]:
    """The text in as few lines as fit the width; only a single long word is left too wide."""
    lines: list[str] = []
    for word in text.split(" ") if text else ():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width - 0.08:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def shape_text(shape: tuple[int, ...]) -> str:
    return "×".join(str(side) for side in shape)


def shape_label(
    axes: Axes, x: float, y: float, shape: tuple[int, ...], *, ha: str = "left"
) -> None:
    axes.text(x, y, shape_text(shape), ha=ha, va="center", fontsize=7.5, color=MUTED, zorder=4)


def draw_sum(axes: Axes, x: float, y: float) -> Box:
    axes.add_patch(Circle((x, y), SUM_RADIUS, fc="white", ec=INK, lw=0.9, zorder=3))
    axes.text(x, y - 0.005, "+", ha="center", va="center", fontsize=9, zorder=4)
    return Box(x, y + SUM_RADIUS, y - SUM_RADIUS, 2 * SUM_RADIUS)


def arrow(axes: Axes, start: Point, end: Point) -> None:
    polyline(axes, [start, end], arrow=True)


def polyline(
    axes: Axes, points: list[Point], *, arrow: bool = False, cascade: bool = False
) -> None:
    color = PALETTE[0] if cascade else INK
    width = 1.5 if cascade else 0.9
    xs, ys = zip(*points, strict=True)
    if not arrow:
        axes.plot(xs, ys, color=color, lw=width, zorder=2, solid_capstyle="butt")
        return
    axes.plot(xs[:-1], ys[:-1], color=color, lw=width, zorder=2, solid_joinstyle="miter")
    axes.add_patch(
        FancyArrowPatch(
            points[-2],
            points[-1],
            arrowstyle="-|>",
            mutation_scale=8,
            shrinkA=0,
            shrinkB=0,
            color=color,
            lw=width,
            zorder=2,
            gid="cascade" if cascade else None,
        )
    )

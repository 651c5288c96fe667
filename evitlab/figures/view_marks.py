"""What the parts of the explorer's picture share: headings, captions, scales, and how numbers are
written.
"""

from __future__ import annotations

import math

from evitlab.figures.view_colors import ATTENTION, HIGHEST, LOWEST, palette
from evitlab.figures.view_ink import BODY, SMALL, Color, Pen, shortened, text_width
from evitlab.figures.view_layout import Rect


def heading(pen: Pen, rect: Rect, text: str, *, right: float = 0.0) -> None:
    shown = shortened(text, rect.width - right, BODY, True)
    pen.text(rect.x, rect.y + 14, shown, size=BODY, bold=True, gid="heading")


def caption(pen: Pen, rect: Rect, box: Rect, parts: list[str]) -> None:
    """As many of the parts as there is room for."""
    while parts and text_width(" · ".join(parts), SMALL) > rect.width:
        parts = parts[:-1]
    text = " · ".join(parts)
    pen.text(box.x, box.bottom + 15, text, color=pen.theme.muted, gid="caption")


def seen(box: Rect) -> tuple[tuple[Color, float], ...]:
    """Pens whose lines are seen on any picture, and do not cover a small box."""
    width = 1.6 if min(box.width, box.height) >= 20 else 0.9
    return ("black", 2 * width), ("white", width)


def scale(
    pen: Pen, box: Rect, ticks: list[tuple[str, float]], unit: str, *,
    colors: str = ATTENTION,
) -> None:  # fmt: skip
    """A colour scale right of a box, the largest on top, its unit above it."""
    bar = Rect(box.right + 10, box.y, 12, box.height)
    pen.image(bar, palette(colors)[::-1][:, None], gid="scale")
    marks = []
    for name, place in ticks:
        y = bar.bottom - place * bar.height
        marks.append([(bar.right, y), (bar.right + 3, y)])
        text = min(max(y + 4, bar.y + 9), bar.bottom)
        pen.text(bar.right + 6, text, name, color=pen.theme.ink, gid=f"tick {name}")
    pen.lines(marks, (pen.theme.muted, 0.8), gid="marks")
    pen.text(bar.x - 2, box.y - 7, unit, color=pen.theme.muted, gid="unit")


def short_scale(pen: Pen, rect: Rect) -> float:
    """The attention scale in the line of a heading, at the right; how wide it is."""
    y, unit = rect.y + 14, f"{HIGHEST:g} × uniform"
    bar = Rect(round(rect.right - text_width(unit, SMALL) - 5 - 56), rect.y + 5, 56, 9)
    pen.image(bar, palette(ATTENTION)[None, :], gid="scale")
    pen.text(bar.right + 5, y, unit, color=pen.theme.muted, gid="unit")
    pen.text(bar.x - 5, y, tick_name(LOWEST), align="right", color=pen.theme.muted)
    return rect.right - bar.x + 24


def tick_name(weight: float) -> str:
    return "½" if weight == LOWEST else f"{weight:g}"


def share_name(value: float) -> str:
    """Two digits: ".93", "1.0"; nothing known: "–"."""
    if math.isnan(value):
        return "–"
    text = f"{value:.2f}"
    return text[:3] if text.startswith("1") else text.replace("0.", ".", 1).replace("-", "−")


def times(weight: float) -> str:
    """A weight relative to uniform: "1.2 ×"."""
    if math.isnan(weight):
        return "–"
    return f"{weight:.1f} ×" if weight < 9.95 else f"{weight:.0f} ×"


def points(change: float) -> str:
    return signed(100 * change, digits=1)


def signed(value: float, *, digits: int | None = None) -> str:
    text = f"{abs(value):.{digits}f}" if digits is not None else f"{abs(value):g}"
    sign = "±" if not float(text) else "+" if value > 0 else "−"
    return sign + text


def round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten; at least 0.1."""
    power = 10.0 ** math.floor(math.log10(max(value, 0.1)))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.9999))

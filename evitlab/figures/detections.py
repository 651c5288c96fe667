"""Boxes on a picture: a detector's answer as a reader looks at it, in the picture's own pixels.

Shape legend: n boxes of one picture, each (x1, y1, x2, y2) in its pixels.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from evitlab.figures.style import PALETTE

_ENLARGED_BELOW = 320  # pixels of the longer side: there a name is wider than what it names
_FONT = 0.026  # of the geometric mean of the sides
_FONT_SIZES = (11, 120)  # pixels
_SMALLEST_FONT = 7
_LINE = 0.0045  # as _FONT
_CONTRAST = 4.5  # of white letters on a plate, WCAG's bound for text
_GOLDEN_TURN = 0.381966  # of the circle of hues: the classes after the palette differ most

Area = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Plate:
    """A name in its place."""

    area: Area  # (x1, y1, x2, y2), the last row and column included
    text: str
    points: int  # of its letters, in pixels
    color: str


def draw_boxes(
    picture: Image.Image,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    *,
    class_names: Sequence[str] = (),
    scores: Sequence[float] | None = None,
) -> Image.Image:
    """Each box in its class's colour, with name and score on a plate; the picture stays as it is.

    Lines and letters grow with the picture. Plates stay inside it, and where there is room they
    cover neither each other nor a corner of another box. A picture below 320 pixels is enlarged by
    a whole number first.

    Args:
        picture: any mode; drawn as RGB.
        boxes: [n, 4]; what reaches outside the picture is cut.
        labels: [n], numbers of classes from 0.
        class_names: one per class; a class without one goes by its number.
        scores: [n], 0 to 1, written beside the names; None: no scores.

    Raises:
        ValueError: the lengths differ, or a box is no four numbers.
    """
    if len(boxes) != len(labels) or (scores is not None and len(scores) != len(boxes)):
        raise ValueError(
            f"labels: expected one for each of {len(boxes)} boxes, and so many scores, got "
            f"{len(labels)} and {'none' if scores is None else len(scores)}"
        )
    factor = max(1, math.ceil(_ENLARGED_BELOW / max(picture.size)))
    canvas = picture.convert("RGB")
    if factor > 1:
        larger = factor * canvas.width, factor * canvas.height
        canvas = canvas.resize(larger, Image.Resampling.BOX)
    elif canvas is picture:
        canvas = picture.copy()
    side = math.sqrt(canvas.width * canvas.height)
    line = max(2, round(_LINE * side))
    draw = ImageDraw.Draw(canvas)
    order = range(len(boxes))
    if scores is not None:
        order = sorted(order, key=lambda i: -scores[i])  # type: ignore[assignment]
    areas = {i: _inside(boxes[i], factor, canvas.size) for i in order}
    for i in reversed(order):  # the best on top
        _outline(draw, areas[i], class_color(labels[i]), line)
    size = min(max(round(_FONT * side), _FONT_SIZES[0]), _FONT_SIZES[1])
    plates: list[_Plate] = []
    for i in order:
        named = 0 <= labels[i] < len(class_names)
        name = class_names[labels[i]] if named else str(labels[i])
        texts = (name,) if scores is None else (f"{name} {scores[i]:.2f}", name)
        others = [area for other, area in areas.items() if other != i]
        plate = _plate(texts, size, class_color(labels[i]), areas[i], canvas.size, plates, others)
        plates += [plate] if plate else []
    for plate in reversed(plates):
        _letter(draw, plate)
    return canvas


@cache
def class_color(label: int) -> str:
    """Of a class, the same in every picture; white letters can be read on it."""
    if label < len(PALETTE):
        return PALETTE[label]
    hue, lightness = (label * _GOLDEN_TURN) % 1.0, 0.5
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    while 1.05 / (_luminance(red, green, blue) + 0.05) < _CONTRAST:
        lightness -= 0.01
        red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return "#" + "".join(f"{round(255 * part):02X}" for part in (red, green, blue))


def _luminance(*parts: float) -> float:
    """WCAG's relative luminance of sRGB."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _inside(box: Sequence[float], factor: int, size: tuple[int, int]) -> Area:
    """Whole pixels of the canvas, at least one a side."""
    if len(box) != 4:
        raise ValueError(f"boxes: expected (x1, y1, x2, y2), got {list(box)}")
    x1, y1, x2, y2 = (round(factor * value) for value in box)
    x1, y1 = min(max(x1, 0), size[0] - 1), min(max(y1, 0), size[1] - 1)
    return x1, y1, min(max(x2 - 1, x1), size[0] - 1), min(max(y2 - 1, y1), size[1] - 1)


def _outline(draw: ImageDraw.ImageDraw, area: Area, color: str, line: int) -> None:
    """A line along the inside of the box, between two thin white ones: seen on any ground."""
    thin = max(1, line // 3) if line > 1 else 0
    width, height = area[2] - area[0] + 1, area[3] - area[1] + 1
    if thin and min(width, height) > 2 * (line + 2 * thin):
        draw.rectangle(area, outline="white", width=line + 2 * thin)
        area = area[0] + thin, area[1] + thin, area[2] - thin, area[3] - thin
    draw.rectangle(area, outline=color, width=max(1, min(line, min(width, height) // 2)))


def _plate(
    texts: Sequence[str],
    size: int,
    color: str,
    box: Area,
    canvas: tuple[int, int],
    plates: Sequence[_Plate],
    others: Sequence[Area],
) -> _Plate | None:
    """Where the name of a box goes: in smaller letters, or without its score, where that keeps it
    from covering another plate; None where the picture has no room at all."""
    best: tuple[tuple[int, int], _Plate] | None = None
    sizes = dict.fromkeys((size, max(_SMALLEST_FONT, size * 2 // 3), _SMALLEST_FONT))
    for points, text in ((points, text) for points in sizes for text in texts):
        if best is not None and (best[0][0] == 0 or points < size * 2 // 3):
            break  # tiny letters are for tiny pictures
        width, height = _plate_size(text, points)
        if width > canvas[0] or height > canvas[1]:
            continue
        # The first of the best: `_places` begins with where a reader looks.
        costs = ((_cost(at, plates, others), at) for at in _places(box, width, height, canvas))
        cost, place = min(costs, key=lambda found: found[0])
        if best is None or cost[0] < best[0][0]:
            best = cost, _Plate(place, text, points, color)
    return best[1] if best else None


def _places(box: Area, width: int, height: int, canvas: tuple[int, int]) -> list[Area]:
    """Where a plate of a box may stand, best first: at its top, at its bottom, then down inside."""
    lefts = (box[0], box[2] + 1 - width, (box[0] + box[2] + 1 - width) // 2)
    tops = [box[1] - height, box[1], box[3] + 1, box[3] + 1 - height]
    tops += range(box[1] + height, box[3] + 1 - height, height)
    limits = canvas[0] - width, canvas[1] - height
    found: dict[Area, None] = {}
    for top in tops:
        if top in tops[:1] + tops[2:3] and not 0 <= top <= limits[1]:
            continue  # above or below the box there is no picture
        for left in lefts:
            x, y = min(max(left, 0), limits[0]), min(max(top, 0), limits[1])
            found[x, y, x + width - 1, y + height - 1] = None
    return list(found)


def _cost(place: Area, plates: Sequence[_Plate], others: Sequence[Area]) -> tuple[int, int]:
    """How many pixels of other plates a place covers, then how many corners of other boxes."""
    covered = sum(_overlap(place, plate.area) for plate in plates)
    corners = sum(
        place[0] <= x <= place[2] and place[1] <= y <= place[3]
        for box in others
        for x in (box[0], box[2])
        for y in (box[1], box[3])
    )
    return covered, corners


def _overlap(one: Area, other: Area) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0]) + 1
    height = min(one[3], other[3]) - max(one[1], other[1]) + 1
    return max(0, width) * max(0, height)


def _letter(draw: ImageDraw.ImageDraw, plate: _Plate) -> None:
    left, top, _, bottom = plate.area
    draw.rectangle(plate.area, fill=plate.color)
    start = left + _padding(plate.points), (top + bottom + 1) / 2
    draw.text(start, plate.text, fill="white", font=_font(plate.points), anchor="lm")


def _plate_size(text: str, points: int) -> tuple[int, int]:
    width = _font(points).getlength(text)
    return math.ceil(width) + 2 * _padding(points), round(1.3 * points)


def _padding(points: int) -> int:
    return max(1, round(0.25 * points))


@cache
def _font(points: int) -> ImageFont.FreeTypeFont:
    """The figures' font, which ships with matplotlib."""
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", points)

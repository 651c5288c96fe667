"""What the explorer's picture is drawn with: two themes, and artists that repaint fast.

Matplotlib lays text out and renders it glyph by glyph each time, and resamples images each time:
with a hundred texts that is most of a repaint. These artists keep what they rendered and copy it.
On other devices than a raster, such as SVG, they hand over text, images and paths as usual.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.path import Path
from matplotlib.transforms import Transform
from numpy.typing import NDArray

from evitlab.figures.style import INK, MUTED, PALETTE, RULE
from evitlab.figures.view_layout import Rect

SMALL, BODY, STRONG = 8.5, 9.0, 10.5  # points
_DPI = 100.0  # a CSS pixel is a pixel of a figure at 100 dots per inch
_ALIGN = {"left": 0.0, "center": 0.5, "right": 1.0}
Color = Any


@dataclass(frozen=True)
class Theme:
    ground: str
    ink: str
    muted: str
    rule: str
    empty: str  # cells that are out of a query's sight
    chosen: str
    second: str
    before: str
    after: str


LIGHT = Theme(
    ground="#FFFFFF", ink=INK, muted=MUTED, rule=RULE, empty="#E4E4E4", chosen=PALETTE[0],
    second=PALETTE[1], before=PALETTE[1], after=PALETTE[0],
)  # fmt: skip
DARK = Theme(
    ground="#111111", ink="#ECECEC", muted="#A8A8A8", rule="#3C3C3C", empty="#303030",
    chosen="#F58A3C", second="#56B4E9", before="#56B4E9", after="#F58A3C",
)  # fmt: skip


class Label(Artist):
    """A line of text whose picture is kept: the same words in the same ink are rendered once."""

    def __init__(
        self, x: float, y: float, text: str, *, size: float, bold: bool, color: Color,
        align: str, vertical: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.x, self.y, self.text, self.align = x, y, text, align
        self.size, self.bold, self.color, self.vertical = size, bold, color, vertical

    @property
    def box(self) -> Rect:
        """What it covers, in CSS pixels; inside `house_style`."""
        width, height = text_width(self.text, self.size, self.bold), self.size * _DPI / 72
        start = _ALIGN[self.align] * width
        if self.vertical:
            return Rect(self.x - 0.8 * height, self.y + start - width, height, width)
        return Rect(self.x - start, self.y - 0.8 * height, width, height)

    def draw(self, renderer: RendererBase) -> None:
        box = self.box
        x, y = (self.x, box.bottom) if self.vertical else (box.x, self.y)
        x, y = self.get_transform().transform((x, y))
        ink = renderer.new_gc()
        if isinstance(renderer, RendererAgg):
            stamp, left, below = _stamp(
                self.text, self.size, self.bold, to_rgb(self.color), self.vertical, renderer.dpi
            )
            renderer.draw_image(ink, round(x) - left, round(y) - below, stamp)
            return
        ink.set_foreground(self.color)
        if renderer.flipy():
            y = renderer.get_canvas_width_height()[1] - y
        angle = 90.0 if self.vertical else 0.0
        renderer.draw_text(ink, x, y, self.text, _font(self.size, self.bold), angle)


class Pixels(AxesImage):
    """An image of RGBA values whose cells stay sharp; one that fills its box is copied as it is."""

    def draw(self, renderer: RendererBase) -> None:
        if not isinstance(renderer, RendererAgg):
            super().draw(renderer)
            return
        left, right, low, high = self.get_extent()
        corners = self.get_transform().transform([(left, low), (right, high)])
        (x0, y0), (x1, y1) = np.rint(corners).astype(int)
        pixels = _enlarged(np.asarray(self.get_array()), y1 - y0, x1 - x0)
        renderer.draw_image(renderer.new_gc(), x0, y0, pixels)


class Strokes(Artist):
    """Polylines, each drawn with every pen in turn: a wide dark one below a light one is seen on
    any ground. Filled where a face is given."""

    def __init__(
        self, lines: Sequence[Any], pens: Sequence[tuple[Color, float]], *,
        dashes: Sequence[float] | None, face: Color | None, hatch: str | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.lines = [np.asarray(line, float) for line in lines]
        self.pens, self.dashes, self.face, self.hatch = tuple(pens), dashes, face, hatch

    def draw(self, renderer: RendererBase) -> None:
        transform = self.get_transform()
        paths = [Path(line, closed=bool((line[0] == line[-1]).all())) for line in self.lines]
        face = None if self.face is None else to_rgba(self.face)
        pixels = float(renderer.points_to_pixels(1.0))  # type: ignore[arg-type]
        for number, (color, width) in enumerate(self.pens):
            ink = renderer.new_gc()
            ink.set_foreground(color)
            ink.set_linewidth(width * pixels)
            ink.set_joinstyle("miter")
            ink.set_capstyle("butt")
            ink.set_snap(True)
            if self.dashes is not None and number == len(self.pens) - 1:
                ink.set_dashes(0, [part * pixels for part in self.dashes])
            if self.hatch is not None:
                ink.set_hatch(self.hatch)
                ink.set_hatch_color(color)
            for path in paths:
                renderer.draw_path(ink, path, transform, face)


class Pen:
    """Makes artists in CSS pixels and keeps them; whoever holds the pen draws or adds them."""

    def __init__(
        self, axes: Axes, theme: Theme, *, transform: Transform, pixel_ratio: float
    ) -> None:
        self.theme = theme
        self.pixel_ratio = pixel_ratio  # device pixels to a CSS pixel, for pictures
        self.artists: list[Artist] = []
        self._axes, self._transform = axes, transform

    def text(
        self, x: float, y: float, text: str, *, size: float = SMALL, bold: bool = False,
        color: Color | None = None, align: str = "left", vertical: bool = False, gid: str = "",
    ) -> None:  # fmt: skip
        """One line; y is its baseline."""
        label = Label(
            x, y, text, size=size, bold=bold, color=color or self.theme.ink, align=align,
            vertical=vertical,
        )  # fmt: skip
        self._keep(label, gid)

    def image(self, box: Rect, pixels: NDArray[np.uint8], *, gid: str) -> None:
        """RGBA values [rows, columns, 4] that fill a box."""
        extent = (box.x, box.right, box.bottom, box.y)
        image = Pixels(self._axes, extent=extent, interpolation="nearest")
        image.set_data(pixels)
        self._keep(image, gid)

    def lines(
        self, lines: Sequence[Any], *pens: tuple[Color, float],
        dashes: Sequence[float] | None = None, gid: str = "",
    ) -> None:  # fmt: skip
        """Polylines, each [points, 2], in (colour, width in points); the last pen may be dashed."""
        if len(lines):
            self._keep(Strokes(lines, pens, dashes=dashes, face=None, hatch=None), gid)

    def frames(
        self, boxes: Iterable[Rect], *pens: tuple[Color, float],
        dashes: Sequence[float] | None = None, gid: str = "",
    ) -> None:  # fmt: skip
        """Outlines of boxes."""
        self.lines([corners(box) for box in boxes], *pens, dashes=dashes, gid=gid)

    def fill(
        self, boxes: Sequence[Rect], *, color: Color, hatch: str | None = None,
        edge: Color | None = None, gid: str = "",
    ) -> None:  # fmt: skip
        """Boxes of one colour; those without width are left out."""
        shown = [corners(box) for box in boxes if box.width > 0]
        if shown:
            pens = ((edge, 0.8),) if edge else ((color, 0.0),)
            self._keep(Strokes(shown, pens, dashes=None, face=color, hatch=hatch), gid)

    def _keep(self, artist: Artist, gid: str) -> None:
        artist.set_gid(gid)
        artist.set_transform(self._transform)
        artist.set_in_layout(False)  # the sheet they stand on has the figure's size
        self.artists.append(artist)


def corners(box: Rect) -> NDArray[np.float64]:
    """A closed outline, [5, 2]."""
    x, y, right, bottom = box.x, box.y, box.right, box.bottom
    return np.array([(x, y), (right, y), (right, bottom), (x, bottom), (x, y)], float)


@lru_cache(4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """In CSS pixels; inside `house_style`."""
    width, _, _ = _ruler().get_text_width_height_descent(text, _font(size, bold), False)
    return float(width)


@lru_cache(2048)
def shortened(text: str, width: float, size: float, bold: bool = False) -> str:
    """The text, or as much of it as fits with an ellipsis behind."""
    if text_width(text, size, bold) <= width:
        return text
    low, high = 0, len(text)  # the longest beginning that fits
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + "…", size, bold) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


@cache
def _font(size: float, bold: bool) -> FontProperties:
    return FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")


@cache
def _ruler() -> RendererAgg:
    return RendererAgg(8, 8, _DPI)


@lru_cache(512)
def _stamp(
    text: str, size: float, bold: bool, color: tuple[float, float, float], vertical: bool,
    dpi: float,
) -> tuple[NDArray[np.uint8], int, int]:  # fmt: skip
    """The text as RGBA pixels, and how many of them are left of and below its beginning."""
    pad, scale = 3, dpi / _DPI
    length = int(text_width(text, size, bold) * scale) + 2 * pad + 2
    above = int(1.5 * size * dpi / 72) + pad  # also accents
    tall = above + int(0.7 * size * dpi / 72) + pad
    width, height = (tall, length) if vertical else (length, tall)
    x, y = (above, length - pad) if vertical else (pad, above)
    renderer = RendererAgg(width, height, dpi)
    ink = renderer.new_gc()
    ink.set_foreground(color)
    renderer.draw_text(ink, x, y, text, _font(size, bold), 90.0 if vertical else 0.0)
    return np.ascontiguousarray(np.asarray(renderer.buffer_rgba())[::-1]), x, height - y


def _enlarged(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """RGBA of another size by the nearest value, the lowest row first as the renderer takes it."""
    rows, columns = pixels.shape[:2]
    packed = np.ascontiguousarray(pixels).view(np.uint32)[..., 0]
    if columns != width:
        packed = packed[:, np.arange(width) * columns // width]
    packed = packed[np.arange(height - 1, -1, -1) * rows // height]
    return np.ascontiguousarray(packed).view(np.uint8).reshape(height, width, 4)

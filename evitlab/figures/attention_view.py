"""The attention explorer's picture: as a figure, and as PNG bytes that repaint fast."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Affine2D
from PIL import Image

from evitlab.figures.style import house_style, new_figure
from evitlab.figures.view_ink import DARK, LIGHT, Pen, Theme
from evitlab.figures.view_layout import MIN_WIDTH, Hit, Layout, Panel, arrange
from evitlab.figures.view_layout import locate as locate_in
from evitlab.figures.view_panels import OVERLAY_NAMES, PAINTERS, kind_name, query_name
from evitlab.records import AttentionView

_DPI = 100.0  # a CSS pixel is a pixel at a ratio of 1


def attention_view(
    view: AttentionView, other: AttentionView | None = None, *, width: int = 1100,
    dark: bool = False,
) -> Figure:  # fmt: skip
    """The whole explorer as a figure: picture and map of the chosen head, all heads of the block,
    their likeness, the prediction, and the heads' importance where it is known.

    Args:
        other: another model on the same picture, below in a compact form.
        width: in CSS pixels, 100 to the inch; below 900 the parts are stacked.
        dark: light ink on a dark ground.

    Raises:
        ValueError: `width` is below 380.

    Pitfall: attention is drawn relative to uniform attention over the keys in sight, on a
    logarithmic scale that ends at 1/2 and 32; weights beyond take the end's colour.
    """
    theme, plan = DARK if dark else LIGHT, arrange(view, other, width)
    with house_style():
        figure = new_figure(plan.width / _DPI, plan.height / _DPI, layout=None)
        axes = _sheet(figure, plan)
        ground = Rectangle((0, 0), plan.width, plan.height, color=theme.ground, lw=0, zorder=-1)
        axes.add_patch(ground)
        for panel in plan.panels:
            pen = Pen(axes, theme, transform=axes.transData, pixel_ratio=2.0)
            for artist in _painted(pen, panel, _viewed(panel, view, other)):
                axes.add_artist(artist)
    return figure


def describe(view: AttentionView) -> str:
    """What is shown, in one sentence: the alternative text of the picture."""
    what = OVERLAY_NAMES[view.overlay]
    top = view.classes[0] if view.classes else None
    prediction = f"; predicted {top[0]}, {100 * top[1]:.0f} %" if top else ""
    if top and top[2] is not None:
        prediction += f", with {len(view.off)} head{'s' * (len(view.off) != 1)} off "
        prediction += f"{100 * top[2]:.0f} %"
    label = f", true class {view.label}" if view.label is not None else ""
    pair = f" beside head {view.pair}" if view.pair is not None else ""
    return (
        f"{what} of {view.model} ({view.weights}) on {view.picture_name}{label}: "
        f"block {view.block} of {view.blocks} ({kind_name(view)}), head {view.head} of "
        f"{view.num_heads}{pair}, query {query_name(view)}{prediction}."
    )


class ViewCanvas:
    """Draws one view after the other into the same picture; only parts that changed are redrawn.

    Args:
        width: in CSS pixels; below 900 the parts are stacked.
        dark: light ink on a dark ground.
        pixel_ratio: device pixels to a CSS pixel.

    Raises:
        ValueError: `width` is below 380, or `pixel_ratio` is not above 0.
    """

    def __init__(self, width: int = 1100, dark: bool = False, pixel_ratio: float = 1.0) -> None:
        if width < MIN_WIDTH:
            raise ValueError(f"width: expected at least {MIN_WIDTH} pixels, got {width}")
        if not pixel_ratio > 0:
            raise ValueError(f"pixel_ratio: expected more than 0, got {pixel_ratio}")
        self.width, self.dark, self.pixel_ratio = width, dark, pixel_ratio
        self._theme: Theme = DARK if dark else LIGHT
        ground = [round(255 * part) for part in to_rgba(self._theme.ground)]
        self._ground = np.array(ground, np.uint8).view(np.uint32)[0]
        self._views: tuple[AttentionView, ...] = ()
        self._layout: Layout | None = None
        self._figure: Figure | None = None
        self._axes: Axes | None = None
        self._renderer: RendererAgg | None = None
        self._transform = Affine2D()
        self._pixels = np.empty((0, 0), np.uint32)  # the renderer's own, four bytes in one
        self._drawn: dict[Panel, tuple[Any, ...]] = {}

    def draw(self, view: AttentionView, other: AttentionView | None = None) -> bytes:
        """The picture as PNG bytes, `width` times `pixel_ratio` pixels wide."""
        plan = arrange(view, other, self.width)
        self._views = (view,) if other is None else (view, other)
        with house_style():
            if plan != self._layout or self._axes is None:
                self._begin(plan)
            assert self._axes is not None and self._renderer is not None
            for panel in plan.panels:
                shown = _viewed(panel, view, other)
                state = _state(panel, shown)
                if self._drawn.get(panel) == state:
                    continue
                self._drawn.pop(panel, None)  # nothing is there until all of it is
                self._clear(panel)
                pen = Pen(
                    self._axes, self._theme, transform=self._transform, pixel_ratio=self.pixel_ratio
                )
                for artist in _painted(pen, panel, shown):
                    artist.draw(self._renderer)
                self._drawn[panel] = state
            return _png(self._renderer)

    def locate(self, x: float, y: float) -> Hit | None:
        """What was clicked in the latest picture; None where there is nothing to choose.

        Args:
            x: share of the picture's width, from the left.
            y: share of its height, from the top.
        """
        if self._layout is None:
            return None
        plan = self._layout
        return locate_in(plan, self._views, x * plan.width, y * plan.height)

    def _begin(self, plan: Layout) -> None:
        """An empty sheet of the layout's size."""
        if self._figure is None or self._axes is None:
            self._figure = new_figure(1, 1, layout=None)
            self._figure.set_dpi(_DPI * self.pixel_ratio)
            self._axes = _sheet(self._figure, plan)
        self._figure.set_size_inches(plan.width / _DPI, plan.height / _DPI)
        self._axes.set(xlim=(0, plan.width), ylim=(plan.height, 0))
        canvas = self._figure.canvas
        assert isinstance(canvas, FigureCanvasAgg)
        self._renderer = canvas.get_renderer()
        self._pixels = np.asarray(self._renderer.buffer_rgba()).view(np.uint32)[..., 0]
        self._pixels[:] = self._ground
        ratio = self.pixel_ratio
        self._transform = Affine2D().scale(ratio, -ratio).translate(0, plan.height * ratio)
        self._layout, self._drawn = plan, {}

    def _clear(self, panel: Panel) -> None:
        """A panel's box and what its lines may overlap by, which no other panel reaches."""
        rect, ratio, bleed = panel.rect, self.pixel_ratio, 5
        top, bottom = (max(round(y * ratio), 0) for y in (rect.y - bleed, rect.bottom + bleed))
        left, right = (max(round(x * ratio), 0) for x in (rect.x - bleed, rect.right + bleed))
        self._pixels[top:bottom, left:right] = self._ground


def _viewed(panel: Panel, view: AttentionView, other: AttentionView | None) -> AttentionView:
    if panel.model == 0:
        return view
    assert other is not None
    return other


def _sheet(figure: Figure, plan: Layout) -> Axes:
    """Axes over the whole figure, in CSS pixels from the upper left corner."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, plan.width), ylim=(plan.height, 0))
    return axes


def _painted(pen: Pen, panel: Panel, view: AttentionView) -> list[Artist]:
    painter, _ = PAINTERS[panel.part]
    painter(pen, view, panel.rect)
    return pen.artists


def _state(panel: Panel, view: AttentionView) -> tuple[Any, ...]:
    """All that decides a panel's picture, comparable."""
    _, fields = PAINTERS[panel.part]
    values = (getattr(view, name) for name in fields)
    return tuple(
        (value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
        for value in values
    )


def _png(renderer: RendererAgg) -> bytes:
    """What was drawn as PNG, without filters and lightly packed: libraries try filters for longer
    than a repaint may take."""
    picture = np.asarray(renderer.buffer_rgba())
    height, width, _ = picture.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # each begins with its filter: none
    lines[:, 1:] = np.asarray(Image.fromarray(picture).convert("RGB")).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(lines.tobytes(), 1)
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )

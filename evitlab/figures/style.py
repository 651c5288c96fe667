"""The house style of every figure, its caption line, and how it is written to disk."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
import pandas as pd
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from evitlab.records import Environment, write_atomically
from evitlab.resources import figures_dir

# Okabe and Ito's colour-blind-safe hues, darkened where text in them would be too faint on white.
PALETTE = (
    "#D55E00", "#0072B2", "#00805C", "#A3447A", "#A66F00", "#3585B5", "#7A4A2B", "#5B5B5B",
)  # fmt: skip
_LARGE_BYTES = 80_000  # of a PNG in a notebook
INK, MUTED, RULE = "#1F1F1F", "#666666", "#D9D9D9"

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so a figure looks the same everywhere
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.dpi": 100.0,
    "savefig.dpi": 150.0,
    "savefig.facecolor": "white",
    "text.hinting": "none",  # hinted widths differ between dpi: labels would grow into their points
    "svg.fonttype": "path",  # glyphs as outlines: boxes fit their text without the font at hand
    "svg.hashsalt": "evitlab",  # element ids that do not change from run to run
}


# matplotlib's settings are shared by all threads, and widgets draw in one of their own.
_ALONE = threading.RLock()


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style; matplotlib's own settings are put back at the end."""
    with _ALONE, matplotlib.rc_context():
        matplotlib.rcdefaults()  # a reader's own settings must not change a committed figure
        matplotlib.rcParams.update(_RC)
        yield


class HouseFigure(Figure):
    """A figure outside pyplot's registry, so none stays open; Jupyter shows it all the same."""

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, bytes]:
        """Where a photograph makes the PNG large, 256 colours or a JPEG are enough on screen."""
        with house_style():
            png = _render(self, "png", dpi=100)
        if len(png) <= _LARGE_BYTES:
            return {"image/png": png}
        with Image.open(io.BytesIO(png)) as shown:
            few, jpeg = _in_few_colors(shown.convert("RGB"), even=True), io.BytesIO()
            shown.convert("RGB").save(jpeg, "JPEG", quality=75, optimize=True)
        if len(few) <= len(jpeg.getvalue()):
            return {"image/png": few}
        return {"image/jpeg": jpeg.getvalue()}


def new_figure(
    width: float, height: float, *, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """An empty figure, width and height in inches; call it inside `house_style`."""
    figure = HouseFigure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def add_caption(
    figure: Figure, environment: Environment | None = None, *, note: str = ""
) -> Figure:
    """Write below the axes: the note, then data set, scale, and what it ran on and when."""
    card = environment_line(environment) if environment is not None else ""
    text = " · ".join(part for part in (note, card) if part)
    figure.supxlabel(text, x=0.008, ha="left", fontsize=7.5, color=MUTED)
    return figure


def environment_line(environment: Environment) -> str:
    """The part of an environment card that a figure has to state, in one line."""
    parts = (
        environment.dataset,
        f"scale {environment.scale}" if environment.scale else None,
        environment.hardware,
        environment.precision,
        f"torch {environment.torch.partition('+')[0]}",
        environment.date[:10],
    )
    return " · ".join(part for part in parts if part)


def save_figure(
    figure: Figure,
    name: str,
    frame: pd.DataFrame,
    *,
    out_dir: str | os.PathLike[str] | None = None,
) -> tuple[Path, Path, Path]:
    """Write NAME.png, NAME.svg and NAME.csv, each atomically; the same figure gives the same bytes.

    Args:
        name: file name without ending, such as "fig1_speed_accuracy".
        frame: the numbers that the figure draws.
        out_dir: default: `resources.figures_dir()`.

    Returns:
        The paths of PNG, SVG and CSV.

    Raises:
        ValueError: `name` is empty or holds a path.
        OSError: the folder cannot be written; the message names the file.
    """
    if not name or Path(name).name != name:
        raise ValueError(f"name: expected a file name without folder or ending, got {name!r}")
    folder = figures_dir() if out_dir is None else Path(out_dir)
    png, svg = save_picture(figure, folder / name)
    table = frame.to_csv(index=False, lineterminator="\n")
    return png, svg, write_atomically(folder / f"{name}.csv", table)


def save_picture(figure: Figure, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write a figure as PNG and as SVG, each atomically.

    Args:
        path: its endings .png and .svg are added, or replaced.

    Raises:
        OSError: the folder cannot be written; the message names the file.
    """
    place = Path(path)
    stem = place.with_suffix("") if place.suffix in (".png", ".svg") else place
    with house_style():
        png, svg = _render(figure, "png", dpi=150), _render(figure, "svg", dpi=150)
    return (
        write_atomically(stem.with_name(f"{stem.name}.png"), png),
        write_atomically(stem.with_name(f"{stem.name}.svg"), svg),
    )


def _render(figure: Figure, format: str, *, dpi: float) -> bytes:
    # Neither date nor matplotlib's version: a figure that has not changed must not differ in git.
    metadata = {"Software": None} if format == "png" else {"Date": None, "Creator": None}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=dpi, metadata=metadata)
    if format == "png" and not any(axes.images for axes in figure.axes):
        # A third of the size for line art, which notebooks and git carry; photographs would band.
        return _in_few_colors(Image.open(buffer).convert("RGB"), dpi=dpi)
    return buffer.getvalue()


def _in_few_colors(drawing: Image.Image, *, dpi: float = 100, even: bool = False) -> bytes:
    """A PNG with 256 colours, none of them mixed by dots.

    Args:
        even: no colour far off, as where a scale runs through many; else few pixels off.
    """
    buffer = io.BytesIO()
    method = Image.Quantize.MAXCOVERAGE if even else Image.Quantize.MEDIANCUT
    colors = drawing.quantize(256, method, kmeans=3 if even else 0, dither=Image.Dither.NONE)
    colors.save(buffer, "PNG", optimize=True, dpi=(dpi, dpi))
    return buffer.getvalue()

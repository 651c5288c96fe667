"""What predictions rest on: maps of several models and methods, and how faithful methods are."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from evitlab.figures.style import (
    INK,
    MUTED,
    PALETTE,
    add_caption,
    environment_line,
    house_style,
    new_figure,
)
from evitlab.records import AttributionPicture, FaithfulnessCurves

_TITLES = {
    "attention_rollout": "Attention rollout",
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "Integrated gradients",
    "occlusion": "Occlusion",
}
_SIGNED = ("integrated_gradients", "occlusion")
_MOST = 4.0, 16.0  # times the map's mean; of signed maps, whose single pixels stand out
_SIDE = 1.5  # inches
_SCALE = (
    "Colours count in multiples of each map's own mean size: the same scale for all models and "
    "methods."
)


def attribution_grid(
    pictures: Sequence[AttributionPicture], *, title: str | None = None
) -> Figure:
    """Each model a row: the photograph, then what every method says about its class.

    All unsigned maps share one colour scale, all signed ones another; both count in multiples of
    a map's own mean absolute value, since logits of different models have no common unit.

    Args:
        pictures: the rows; all with the same methods.
        title: None says what the weights are, where they are all the same.

    Raises:
        ValueError: no pictures, or pictures of different methods.
    """
    if not pictures:
        raise ValueError("pictures: expected at least one, got none")
    methods = list(pictures[0].maps)
    for picture in pictures:
        if list(picture.maps) != methods:
            wanted, got = ", ".join(methods), ", ".join(picture.maps)
            raise ValueError(f"pictures: expected {wanted} of each, got {got} of {picture.model}")
    weights = {picture.weights for picture in pictures}
    unsigned = [method for method in methods if method not in _SIGNED]
    methods = unsigned + [method for method in methods if method in _SIGNED]
    columns = 1 + len(methods)
    ratio = max(p.picture.shape[0] / p.picture.shape[1] for p in pictures)
    with house_style():
        figure = new_figure(
            _SIDE * columns + 0.95, (_SIDE * ratio + 0.3) * len(pictures) + 1.7
        )
        pads = {"w_pad": 0.03, "h_pad": 0.05, "wspace": 0.02, "hspace": 0.02}
        figure.set_layout_engine("constrained", **pads)
        grid = figure.subplots(len(pictures), columns, squeeze=False)
        for row, picture in zip(grid, pictures, strict=True):
            _draw_row(row, picture, methods, own_weights=len(weights) > 1)
        for axes, name in zip(grid[0], ["Image", *methods], strict=True):
            axes.set_title(
                _TITLES.get(name, name), fontsize=8.5, fontweight="normal", loc="center", pad=4
            )
        split = 1 + len(unsigned)
        if unsigned:
            _add_bar(figure, grid[:, 1:split].ravel().tolist(), signed=False)
        if split < columns:
            _add_bar(figure, grid[:, split:].ravel().tolist(), signed=True)
        shared = weights.pop() if len(weights) == 1 else ""
        figure.suptitle(
            title or "What predictions rest on" + (f"; weights: {shared}" if shared else ""),
            x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK,
        )  # fmt: skip
        environment = pictures[0].environment
        card = environment_line(environment) if environment is not None else ""
        width = int(16.5 * figure.get_figwidth())
        note = " · ".join(part for part in (_SCALE, card) if part)
        add_caption(figure, note=textwrap.fill(note, width))
    return figure


def _draw_row(
    row: Sequence[Axes], picture: AttributionPicture, methods: Sequence[str], *, own_weights: bool
) -> None:
    height, width = picture.picture.shape[:2]
    extent = (0, width, height, 0)
    for axes in row:
        axes.set(xticks=[], yticks=[])
        axes.set_anchor("N")
        axes.grid(False)
        axes.spines[:].set_visible(False)
    row[0].imshow(picture.picture, extent=extent, interpolation="nearest", gid="picture")
    name = f"{picture.model}\n{picture.weights}" if own_weights else picture.model
    row[0].set_ylabel(textwrap.fill(name, 18), fontsize=8.5, labelpad=4)
    row[0].set_xlabel(
        f"{picture.target}, {100 * picture.probability:.2g} %", fontsize=7.5, labelpad=2
    )
    for axes, method in zip(row[1:], methods, strict=True):
        values = picture.maps[method]
        mean = np.abs(values).mean()
        colors, norm = _scale(signed=method in _SIGNED)
        axes.imshow(
            values / mean if mean > 0 else values, cmap=colors, norm=norm, extent=extent,
            interpolation="antialiased", gid=method,
        )  # fmt: skip
        if method == "integrated_gradients" and picture.completeness_error is not None:
            axes.set_xlabel(
                f"completeness error {_percent(picture.completeness_error)}", fontsize=7.5,
                labelpad=2,
            )  # fmt: skip


def _percent(share: float) -> str:
    return "< 0.01 %" if share < 1e-4 else f"{100 * share:.2g} %"


def _scale(*, signed: bool) -> tuple[str, Normalize]:
    """Colours that are safe for the colour-blind, logarithmic."""
    if signed:
        return "PuOr_r", SymLogNorm(1.0, vmin=-_MOST[1], vmax=_MOST[1], base=2, clip=True)
    return "cividis", LogNorm(1 / _MOST[0], _MOST[0], clip=True)


def _add_bar(figure: Figure, axes: list[Axes], *, signed: bool) -> None:
    colors, norm = _scale(signed=signed)
    bar = figure.colorbar(
        ScalarMappable(norm, colors), ax=axes, location="bottom", fraction=0.05, pad=0.03,
        aspect=34, shrink=0.9, extend="both", panchor=False,
    )  # fmt: skip
    ticks = [-16, -4, 0, 4, 16] if signed else [1 / 4, 1 / 2, 1, 2, 4]
    bar.ax.xaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.ax.xaxis.set_major_formatter(FuncFormatter(_multiple))
    bar.ax.tick_params(labelsize=7.5)
    # Two short lines: one map may be all that stands above.
    label = "× mean size\n− against, + for the class" if signed else "× mean of the map"
    bar.set_label(label, fontsize=7.5)
    bar.outline.set_visible(False)


def _multiple(value: float, _position: int) -> str:
    text = {0.25: "¼", 0.5: "½"}.get(abs(value), f"{abs(value):g}")
    return f"−{text}" if value < 0 else text


def faithfulness_curves(record: FaithfulnessCurves, *, title: str | None = None) -> Figure:
    """Deletion on the left, insertion on the right, a line for each method; areas in the legend.

    Args:
        record: any number of methods; the random orders are dashed and grey.
        title: None names the model.
    """
    with house_style():
        figure = new_figure(7.6, 3.9)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, name, goal in zip(
            panels, ("deletion", "insertion"), ("low", "high"), strict=True
        ):
            colors = iter(PALETTE * (1 + len(record.curves) // len(PALETTE)))
            for curve in record.curves:
                random = curve.method.startswith("random")
                style = {"color": MUTED, "ls": "--" if "pixels" in curve.method else ":"}
                if not random:
                    style = {"color": next(colors), "ls": "-"}
                area = getattr(curve, f"{name}_area")
                axes.plot(
                    [100 * fraction for fraction in record.fractions],
                    [100 * probability for probability in getattr(curve, name)],
                    label=f"{_TITLES.get(curve.method, curve.method)}  {100 * area:.1f} %",
                    lw=1.2 if random else 1.6, gid=curve.method, **style,
                )  # fmt: skip
            verb = "taken away" if name == "deletion" else "put in"
            axes.set_xlabel(f"pixels {verb}, most important first (%)")
            axes.set_title(f"{name.capitalize()}: {goal} is faithful")
            axes.set_xlim(0, 100)
            axes.legend(title="area", fontsize=7.5, title_fontsize=7.5, alignment="left",
                        loc="upper right" if name == "deletion" else "lower right")  # fmt: skip
        panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel("probability of the class (%)")
        count = f"{record.images:,} image{'s' if record.images != 1 else ''}"
        figure.suptitle(
            title or f"{record.model}: do the important pixels matter? Mean of {count}", x=0.01,
            ha="left", fontsize=10, fontweight="bold", color=INK,
        )  # fmt: skip
        note = (
            f"Pixels taken away show {_NAMES.get(record.deletion_baseline, 'what was given')}; "
            f"those not yet put in {_NAMES.get(record.insertion_baseline, 'what was given')}. "
            f"{environment_line(record.environment)}"
        )
        add_caption(figure, note=textwrap.fill(note, int(16.5 * figure.get_figwidth())))
    return figure


_NAMES = {
    "mean": "the image's mean colour",
    "black": "black",
    "blurred": "the image blurred",
}

"""Fig. 1: the speed-accuracy plane."""

from __future__ import annotations

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from evitlab.figures.labels import place_labels
from evitlab.figures.style import INK, MUTED, PALETTE, add_caption, house_style, new_figure

_OURS = "EfficientViT"
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "d", "H")


def fig1_speed_accuracy(
    paper: pd.DataFrame, measured: pd.DataFrame | None = None, *, log: bool = True, note: str = ""
) -> Figure:
    """Throughput against top-1, one marker per family; the second panel is what was measured here.

    Args:
        paper: `paper.speed_accuracy()`: model, family, top1 (percent), img_per_s, provenance.
        measured: the same columns without provenance, and dataset, device, scale (one value each),
            which the panel states. Where only the speed was measured here, as in
            `paper.measured_speed_accuracy`: `top1_source` ("timm") in place of scale, and
            provenance, whose "digitised" accuracies get open markers.
        log: logarithmic throughput axis.
        note: what else to say below about how the speed was measured.

    Raises:
        ValueError: a column is missing, a frame is empty, or `measured` mixes data sets, devices or
            scales.

    Paper: Fig. 1.
    Pitfall: the panels differ in data set, hardware and batch size, so compare orders and shapes,
    never positions.
    """
    _require("paper", paper, ("model", "family", "top1", "img_per_s", "provenance"))
    families = list(dict.fromkeys(paper["family"]))
    if measured is not None:
        borrowed = "top1_source" in measured
        said = ("dataset", "device", "top1_source" if borrowed else "scale")
        _require("measured", measured, ("model", "family", "top1", "img_per_s", *said))
        families += [f for f in dict.fromkeys(measured["family"]) if f not in families]
    looks = {_OURS: (PALETTE[0], "o")}
    for i, family in enumerate(family for family in families if family != _OURS):
        looks[family] = (PALETTE[1:][i % (len(PALETTE) - 1)], _MARKERS[i % len(_MARKERS)])
    with house_style():
        figure = new_figure(8.0 if measured is None else 13.0, 5.6)
        left, *right = figure.subplots(1, 1 if measured is None else 2, squeeze=False)[0]
        left.set_title("Published: ImageNet-1k, V100, batch 2,048, half precision")
        _draw_axes(left, "ImageNet-1k top-1 (%)", paper, log)
        caption = "Up and to the right is better. A line joins the members of one family."
        if measured is not None:
            dataset, device, last = (_only(measured, column) for column in said)
            title, label = f"Measured: {dataset}, {device}, scale {last}", f"{dataset} top-1 (%)"
            if borrowed:
                title, label = f"Speed measured here: {device}", f"{label}, published by {last}"
                caption += f"\nRight: top-1 as {last} publishes it (open markers: read off the "
                caption += "paper's figure), of weights that were trained in different ways."
            right[0].set_title(fill(title, 72))
            _draw_axes(right[0], label, measured, log)
        add_caption(figure, note=" ".join(filter(None, (caption, note))))
        _draw_points(left, paper, looks)
        if measured is not None:
            known = measured.get("provenance", pd.Series("", measured.index))
            faces = known.where(known == "digitised", "printed")
            _draw_points(right[0], measured.assign(provenance=faces), looks)
        _draw_provenance(left, sorted(set(paper["provenance"])))
    return figure


def _draw_axes(axes: Axes, ylabel: str, frame: pd.DataFrame, log: bool) -> None:
    """Final limits, with room for labels at the rim."""
    axes.set(xlabel="Throughput (images per second)", ylabel=ylabel)
    speeds, top1 = frame["img_per_s"], frame["top1"]
    if log:
        axes.set_xscale("log")
        axes.set_xlim(speeds.min() / 1.45, speeds.max() * 1.45)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        reach = max(speeds.max() - speeds.min(), 1.0)
        axes.set_xlim(max(0.0, speeds.min() - 0.08 * reach), speeds.max() + 0.1 * reach)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    reach = max(top1.max() - top1.min(), 1.0)
    axes.set_ylim(top1.min() - 0.08 * reach, top1.max() + 0.08 * reach)


def _draw_points(axes: Axes, frame: pd.DataFrame, looks: dict[str, tuple[str, str]]) -> None:
    on_lines = []
    for family, group in frame.groupby("family", sort=False):
        color, marker = looks[str(family)]
        ours = family == _OURS
        group = group.sort_values("img_per_s")
        axes.plot(
            group["img_per_s"],
            group["top1"],
            color=color,
            lw=2.0 if ours else 0.9,
            alpha=1.0 if ours else 0.7,
            zorder=2,
        )
        for printed, face in ((True, color), (False, "white")):
            shown = group[(group["provenance"] == "printed") == printed]
            if len(shown):
                axes.plot(
                    shown["img_per_s"],
                    shown["top1"],
                    linestyle="none",
                    marker=marker,
                    ms=8 if ours else 6,
                    color=color,
                    markerfacecolor=face,
                    label=f"{family} ({'printed' if printed else 'not printed'})",
                    zorder=3,
                )
        on_lines.append(_along(axes, group))
    place_labels(
        axes,
        frame["img_per_s"].to_numpy(float),
        frame["top1"].to_numpy(float),
        frame["model"].tolist(),
        colors=[looks[family][0] for family in frame["family"]],
        weights=["bold" if f == _OURS else "normal" for f in frame["family"]],
        avoid=np.concatenate(on_lines),
    )


def _along(axes: Axes, group: pd.DataFrame) -> np.ndarray:
    """[n, 2] data points along a family's line, evenly spaced as seen on the axes."""
    corners = group[["img_per_s", "top1"]].to_numpy(float)
    if len(corners) < 2:
        return np.empty((0, 2))
    seen = axes.transData.transform(corners)
    steps = np.linspace(0, len(seen) - 1, 24 * (len(seen) - 1) + 1)
    knots = np.arange(len(seen))
    path = np.column_stack([np.interp(steps, knots, seen[:, k]) for k in (0, 1)])
    return axes.transData.inverted().transform(path)


def _draw_provenance(axes: Axes, provenances: list[str]) -> None:
    rest = [provenance for provenance in provenances if provenance != "printed"]
    handles = [
        Line2D([], [], linestyle="none", marker="o", color=MUTED, ms=6, label="printed"),
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            color=MUTED,
            markerfacecolor="white",
            ms=6,
            label=" or ".join(rest),
        ),
    ]
    axes.legend(
        handles=handles[: 2 if rest else 1],
        loc="lower left",
        title="Published value",
        title_fontsize=8,
        fontsize=8,
        labelcolor=INK,
        alignment="left",
    )


def _require(name: str, frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"{name}: expected the columns {', '.join(columns)}; missing {missing[0]}")
    if frame.empty:
        raise ValueError(f"{name}: expected at least one point, got none")


def _only(frame: pd.DataFrame, column: str) -> str:
    values = list(dict.fromkeys(frame[column]))
    if len(values) != 1:
        raise ValueError(f"measured: expected one {column} in all rows, got {values}")
    return str(values[0])

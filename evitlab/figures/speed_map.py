"""Throughput over batch size, engine and memory layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from evitlab.figures.style import (
    MUTED,
    PALETTE,
    add_caption,
    environment_line,
    house_style,
    new_figure,
)
from evitlab.records import CURVE, ThroughputSweep

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)))


def speed_map(sweep: ThroughputSweep, *, columns: int = 4) -> Figure:
    """Images per second over the batch size, one panel per model, one line per engine and layout.

    Below a line the launch-bound region is shaded: batch sizes at which it has not reached half of
    its own best (`ThroughputSweep.half_speed`), so that more than half of a call is the cost of
    calling, and images per second grow nearly as fast as the batch.

    Args:
        sweep: rows without a speed are left out and counted below the figure.
        columns: panels side by side.

    Raises:
        ValueError: no row has a speed, or `columns` is below one.

    Pitfall: a sweep that ends before the speed levels off shows too small a region.
    """
    if columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}")
    frame = sweep.to_frame()
    failed = frame[frame["img_per_s"].isna()]
    frame = frame[frame["img_per_s"].notna()]
    if frame.empty:
        raise ValueError("sweep: expected at least one row with a speed, got none")
    models = list(dict.fromkeys(frame["model"]))
    engines = list(dict.fromkeys(frame["engine"]))
    varying = [c for c in CURVE if c not in ("model", "engine") and frame[c].nunique() > 1]
    settings = list(dict.fromkeys(frame[varying].itertuples(index=False, name=None)))
    half = sweep.half_speed().set_index(list(CURVE))["half_batch_size"]
    columns = min(columns, len(models))
    rows = -(-len(models) // columns)
    with house_style():
        figure = new_figure(max(2.7 * columns, 5.5) + 0.6, 2.35 * rows + 1.2)
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(models) :]:
            axes.axis("off")
        for axes, model in zip(grid.flat, models, strict=False):
            name = _short(model, models)
            axes.set_title(name, fontsize=9 if len(name) < 24 else 7.5)
            for key, curve in frame[frame["model"] == model].groupby(list(CURVE), sort=False):
                setting = tuple(curve[c].iloc[0] for c in varying)
                engine = engines.index(curve["engine"].iloc[0])
                _draw_curve(axes, curve, half[key], engine, settings.index(setting))
        _finish(grid, frame, len(models))
        handles: list[Any] = [
            Line2D([], [], color=PALETTE[i % 8], marker=_MARKERS[i % 10], ms=4, label=engine)
            for i, engine in enumerate(engines)
        ]
        handles += [
            Line2D([], [], color=MUTED, ls=_DASHES[i % 4], label=_words(varying, setting))
            for i, setting in enumerate(settings)
            if varying
        ]
        handles.append(Patch(color=MUTED, alpha=0.3, label="launch-bound: below half of its best"))
        figure.legend(handles=handles, loc="outside upper center", ncols=6, fontsize=8)
        add_caption(figure, note=_note(sweep, frame, failed, varying))
    return figure


def _draw_curve(axes: Axes, curve: pd.DataFrame, half: float, engine: int, setting: int) -> None:
    curve = curve.sort_values("batch_size")
    sizes, speeds = curve["batch_size"].to_numpy(float), curve["img_per_s"].to_numpy(float)
    color = PALETTE[engine % len(PALETTE)]
    axes.plot(
        sizes, speeds, color=color, ls=_DASHES[setting % 4], marker=_MARKERS[engine % 10], ms=3.5,
        lw=1.4,
    )  # fmt: skip
    spread = curve[["img_per_s_low", "img_per_s_high"]].astype(float)
    axes.fill_between(sizes, *spread.to_numpy().T, color=color, alpha=0.25, lw=0)
    if half > sizes[0]:
        within = np.append(sizes[sizes < half], half)
        below = np.exp(np.interp(np.log(within), np.log(sizes), np.log(speeds)))
        axes.fill_between(within, below, 1e-9, color=color, alpha=0.13, lw=0, gid="launch-bound")


def _finish(grid: np.ndarray, frame: pd.DataFrame, panels: int) -> None:
    sizes = sorted(frame["batch_size"].unique())
    every = -(-len(sizes) // 6)
    for i, axes in enumerate(grid.flat):
        axes.set(xscale="log", yscale="log")
        axes.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.25)
        axes.set_ylim(frame["img_per_s"].min() / 1.5, frame["img_per_s"].max() * 1.5)
        axes.xaxis.set_major_locator(FixedLocator([float(size) for size in sizes[::every]]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        if i % grid.shape[1] == 0:
            axes.set_ylabel("Images per second")
        if i + grid.shape[1] >= panels:
            axes.set_xlabel("Batch size")
            axes.tick_params(labelbottom=True)


def _short(model: str, models: list[str]) -> str:
    """Without the library, where that leaves the name its own."""
    name = model.rpartition("/")[2]
    return name if sum(name == other.rpartition("/")[2] for other in models) == 1 else model


def _words(names: list[str], values: tuple[Any, ...]) -> str:
    words = {"threads": "{} threads", "img_size": "{} px"}
    return ", ".join(
        words.get(name, "{}").format(value) for name, value in zip(names, values, strict=True)
    )


def _note(
    sweep: ThroughputSweep, frame: pd.DataFrame, failed: pd.DataFrame, varying: list[str]
) -> str:
    lines = ["Lines: medians; bands: quartiles."]
    if len(failed):
        lines[0] += f" {len(failed)} of {len(failed) + len(frame)} measurements failed."
    layout = [] if "layout" in varying else [f"{frame['layout'].iloc[0]} layout"]
    return "\n".join([*lines, " · ".join([*layout, environment_line(sweep.environment)])])

"""Fig. 3: accuracy of subnetworks of equal speed over their share of attention layers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from evitlab.figures.style import (
    MUTED,
    PALETTE,
    RULE,
    add_caption,
    environment_line,
    house_style,
    new_figure,
)
from evitlab.records import AttentionShareRun, Environment

_FAMILIES = ("DeiT-T", "Swin-T")
_BEST_SHARES = (20, 40)  # percent, what the paper found
_LOOKS = {"1.25x": (PALETTE[0], "o"), "1.50x": (PALETTE[1], "s")}


def fig3_attention_share(published: pd.DataFrame, runs: Sequence[AttentionShareRun]) -> Figure:
    """Top-1 over the share of attention layers: the paper's lines above, ours below.

    Ours carry the width of each subnetwork, the 95 % interval that the number of validation images
    leaves, and as a cross the runs that did not reach their line's speed within a tenth.

    Args:
        published: the table `paper.load("fig3")`.
        runs: of one data set; several seeds of a point are averaged.

    Raises:
        ValueError: no runs, or runs on different data sets.
    """
    if not runs:
        raise ValueError("runs: expected at least one, got none")
    ours = pd.concat([run.to_frame() for run in runs], ignore_index=True)
    if ours["dataset"].nunique() > 1:
        raise ValueError(f"runs: expected one data set, got {sorted(ours['dataset'].unique())}")
    with house_style():
        figure = new_figure(9.0, 6.4)
        grid = figure.subplots(2, 2, sharex=True)
        for column, family in enumerate(_FAMILIES):
            above, below = grid[:, column]
            for axes in (above, below):
                axes.axvspan(*_BEST_SHARES, color=RULE, alpha=0.5, lw=0)
            for speed, look in _LOOKS.items():
                line = f"{family}-{speed}"
                _draw_published(above, published[published["model"] == line], look)
                _draw_ours(below, ours[ours["line"] == line], look)
            above.set_title(f"{family}, the paper (ImageNet)")
            below.set_title(f"{family}, here ({ours['dataset'].iloc[0]})")
            below.set_xlabel("Attention layers (% of all layers)")
            for axes in (above, below):
                axes.margins(y=0.14)
                axes.set_xticks([0, 20, 40, 50, 60, 80, 100])
        for axes in grid[:, 0]:
            axes.set_ylabel("Top-1 (%)")
        handles: list[Line2D | Patch] = [
            Line2D([], [], color=color, marker=marker, ms=5, label=f"{speed[:-1]} × as fast")
            for speed, (color, marker) in _LOOKS.items()
            if f"{_FAMILIES[0]}-{speed}" in set(published["model"])
        ]
        handles += [
            Line2D([], [], ls="none", marker="o", mfc="white", color=MUTED, label="digitised"),
            Line2D([], [], ls="none", marker="o", color=MUTED, label="printed or measured"),
            Patch(color=RULE, label="best in the paper"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=8)
        add_caption(figure, note=_caption(ours, runs[0].environment))
    return figure


def _draw_published(axes: Axes, rows: pd.DataFrame, look: tuple[str, str]) -> None:
    color, marker = look
    rows = rows.sort_values("mhsa_share")
    share = 100 * rows["mhsa_share"]
    axes.plot(share, rows["value"], color=color, lw=1.4)
    for printed, face in ((True, color), (False, "white")):
        part = rows[(rows["provenance"] == "printed") == printed]
        axes.plot(
            100 * part["mhsa_share"], part["value"],
            ls="none", marker=marker, ms=5.5, color=color, mfc=face, gid="published",
        )  # fmt: skip


def _draw_ours(axes: Axes, rows: pd.DataFrame, look: tuple[str, str]) -> None:
    if rows.empty:
        return
    color, marker = look
    points = rows.groupby("attention_share", as_index=False).agg(
        top1=("top1", "mean"),
        error=("top1_error", "mean"),
        embed_dim=("embed_dim", "first"),
        speedup=("speedup", "first"),
        asked=("asked", "first"),
    )
    share = 100 * points["attention_share"]
    axes.errorbar(
        share, points["top1"], yerr=points["error"],
        color=color, marker=marker, ms=5.5, lw=1.4, elinewidth=1.0, gid="ours",
    )  # fmt: skip
    slow = (points["speedup"] / points["asked"] - 1).abs() > 0.1
    axes.plot(share[slow], points["top1"][slow], "x", color="white", ms=4, mew=1.2, gid="off speed")
    for row in points.itertuples():
        axes.annotate(
            f"{row.embed_dim}", (100 * row.attention_share, row.top1 - row.error),
            xytext=(0, -3), textcoords="offset points", ha="center", va="top",
            fontsize=7.5, color=color,
        )  # fmt: skip


def _caption(ours: pd.DataFrame, environment: Environment) -> str:
    first = ours.iloc[0]
    seeds = int(ours.groupby(["line", "attention_share"]).size().max())
    return (
        "Numbers at the points: channels of the (first) stage. Bars: 95 % interval of the "
        "validation images. Cross: more than a tenth off its line's speed.\n"
        f"{first.train_images:,} training images × {first.epochs} epochs, {seeds} "
        f"seed{'s' * (seeds > 1)}.\n"
        f"{environment_line(environment)}"
    )

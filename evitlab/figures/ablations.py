"""Table 6 and Fig. 7: what each design choice brings, the paper's differences beside ours."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from evitlab.figures.style import INK, MUTED, PALETTE, RULE, add_caption, house_style, new_figure
from evitlab.records import Environment

_PAPER, _OURS = PALETTE[1], PALETTE[0]
_TABLE6 = ("row", "variant", "paper_diff", "diff", "diff_low", "diff_high", "seeds", "chance")
_SPEEDS = {"gpu": "Speed: V100, ours traced", "onnx": "Speed in ONNX Runtime"}
_SWEEPS = {"key_dim": "Width of Q and K", "value_ratio": "Width of V over its split"}


def table6_ablations(
    frame: pd.DataFrame, *, environment: Environment | None = None, note: str = ""
) -> Figure:
    """Table 6 as differences to row 1: top-1 in points, speed as a ratio, the paper's and ours.

    Our dots are means over the seeds, their bars reach from the worst seed to the best; the grey
    band is what the number of validation images leaves to chance. Rows not trained here say so.

    Args:
        frame: `paper.table6(...)`.
        environment: what ours was trained on, for the caption.
        note: what else the caption should say: model, budget, where the speeds are from.

    Raises:
        ValueError: a column is missing.

    Paper: Table 6.
    Pitfall: differences of a short training on small images; compare signs and orders.
    """
    _require(frame, (*_TABLE6, *_SPEEDS, *(f"paper_{column}" for column in _SPEEDS)))
    with house_style():
        figure = new_figure(11.0, 1.7 + 0.33 * len(frame))
        top1, *speeds = figure.subplots(
            1, 1 + len(_SPEEDS), sharey=True, width_ratios=(1.5, *(1 for _ in _SPEEDS))
        )
        top1.set(title="Accuracy", xlabel="Top-1, points over row 1")
        _baseline(top1, 0.0)
        chance = frame["chance"].max()
        if not math.isnan(chance):
            top1.axvspan(-chance, chance, color=RULE, alpha=0.5, lw=0, gid="chance")
        for place, row in enumerate(frame.itertuples()):
            if row.row == 1:
                continue  # what all others are held against
            _pair(top1, place, row.paper_diff, row.diff)
            if row.seeds > 1:
                ends = [row.diff_low, row.diff_high]
                top1.plot(ends, [place, place], color=_OURS, lw=2.2, alpha=0.55, gid="seeds")
        for axes, (column, title) in zip(speeds, _SPEEDS.items(), strict=True):
            axes.set(title=title, xlabel="Times as fast as row 1")
            _baseline(axes, 1.0)
            for place, cells in enumerate(frame.to_dict("records")):
                if cells["row"] != 1:
                    _pair(axes, place, cells[f"paper_{column}"], cells[column])
            if frame[column].isna().all():
                axes.set_title(f"{title} (the paper's alone)")
        labels = [_label(row.row, row.variant, row.seeds) for row in frame.itertuples()]
        ticks = top1.set_yticks(range(len(frame)), labels=labels)
        for tick, seeds in zip(ticks, frame["seeds"], strict=True):
            tick.label1.set_color(INK if seeds else MUTED)
        top1.set_ylim(len(frame) - 0.4, -0.6)
        for axes in (top1, *speeds):
            axes.tick_params(axis="y", length=0)
        figure.legend(handles=_handles(chance), loc="outside upper center", ncols=4, fontsize=8)
        text = "Left of the line: less accurate, or slower, than the published design (row 1)."
        add_caption(figure, environment, note="\n".join(filter(None, (text, note))))
    return figure


def fig7_widths(
    frame: pd.DataFrame, *, environment: Environment | None = None, note: str = ""
) -> Figure:
    """Both sweeps of Fig. 7: top-1 above and speed below, over Q's and K's width and over V's.

    All are differences, or ratios, to the published design, which the dotted line marks. Ours is
    drawn where it was run.

    Args:
        frame: `paper.fig7(...)`.
        environment: what ours was trained on, for the caption.
        note: what else the caption should say.

    Raises:
        ValueError: a column is missing.

    Paper: Fig. 7, digitised.
    """
    columns = ("sweep", "setting", "paper_diff", "paper_error", "paper_gpu", "gpu", *_TABLE6[3:])
    _require(frame, columns)
    with house_style():
        figure = new_figure(9.0, 5.6)
        grid = figure.subplots(2, len(_SWEEPS), sharey="row", sharex="col")
        for (sweep, title), (above, below) in zip(_SWEEPS.items(), grid.T, strict=True):
            points = frame[frame["sweep"] == sweep].sort_values("setting")
            above.set_title(title)
            below.set_xlabel("Channels of a head" if sweep == "key_dim" else "Ratio")
            design = points.loc[points["paper_diff"].eq(0), "setting"]
            for axes in (above, below):
                if sweep == "key_dim":
                    axes.set_xscale("log", base=2)
                axes.set_xticks(points["setting"], labels=[f"{x:g}" for x in points["setting"]])
                axes.minorticks_off()
                for setting in design:
                    axes.axvline(setting, color=MUTED, lw=0.8, ls=(0, (1, 2)))
            above.axhline(0, color=INK, lw=0.8)
            below.axhline(1, color=INK, lw=0.8)
            above.errorbar(
                points["setting"], points["paper_diff"], yerr=points["paper_error"],
                color=_PAPER, marker="s", mfc="white", ms=5.5, lw=1.2, gid="paper",
            )  # fmt: skip
            below.plot(
                points["setting"], points["paper_gpu"],
                color=_PAPER, marker="s", mfc="white", ms=5.5, lw=1.2, gid="paper",
            )  # fmt: skip
            _our_sweep(above, below, points)
        grid[0, 0].set_ylabel("Top-1, points over\nthe published design")
        grid[1, 0].set_ylabel("Times as fast")
        handles = _handles(math.nan, printed=False)
        figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8)
        text = "Dotted: the published design. The paper's points are read off its figure; their "
        text += "speeds are a V100's, ours are of a traced model."
        add_caption(figure, environment, note="\n".join(filter(None, (text, note))))
    return figure


def _our_sweep(above: Axes, below: Axes, points: pd.DataFrame) -> None:
    run = points[points["seeds"] > 0]
    if len(run) > 1:  # the design alone is no sweep
        spread = [run["diff"] - run["diff_low"], run["diff_high"] - run["diff"]]
        above.errorbar(
            run["setting"], run["diff"], yerr=spread,
            color=_OURS, marker="o", ms=6, lw=1.4, elinewidth=2.2, gid="ours",
        )  # fmt: skip
    else:
        _say_missing(above, "ours: not trained")
    timed = points[points["gpu"].notna()]
    if len(timed) > 1:
        look: dict[str, Any] = {"color": _OURS, "marker": "o", "ms": 6, "lw": 1.4}
        below.plot(timed["setting"], timed["gpu"], gid="ours", **look)
    else:
        _say_missing(below, "ours: not measured")


def _say_missing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.06, text, transform=axes.transAxes, ha="center", color=MUTED, fontsize=8)


def _pair(axes: Axes, place: int, paper: float, ours: float) -> None:
    if not math.isnan(paper) and not math.isnan(ours):
        axes.plot([paper, ours], [place, place], color=MUTED, lw=1.0, zorder=1)
    if not math.isnan(paper):
        axes.plot(paper, place, "s", ms=5.5, color=_PAPER, gid="paper")
    if not math.isnan(ours):
        axes.plot(ours, place, "o", ms=6.5, color=_OURS, gid="ours")


def _baseline(axes: Axes, value: float) -> None:
    axes.axvline(value, color=INK, lw=1.0)
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)


def _label(row: int, variant: str, seeds: int) -> str:
    name = "as published" if row == 1 else variant
    return f"{row}  {name}" if seeds else f"{row}  {name} (not trained here)"


def _handles(chance: float, *, printed: bool = True) -> list[Line2D | Patch]:
    face = _PAPER if printed else "white"
    label = "paper" if printed else "paper, digitised"
    handles: list[Line2D | Patch] = [
        Line2D([], [], ls="none", marker="s", ms=6, color=_PAPER, mfc=face, label=label),
        Line2D([], [], ls="none", marker="o", ms=6.5, color=_OURS, label="ours, mean of seeds"),
        Line2D([], [], color=_OURS, lw=2.2, alpha=0.55, label="from the worst seed to the best"),
    ]
    if not math.isnan(chance):
        handles.append(Patch(color=RULE, label=f"chance, 95 %: ± {chance:.1f} points"))
    return handles


def _require(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(
            f"frame: expected the columns of paper.table6 or paper.fig7, missing {missing[0]}"
        )

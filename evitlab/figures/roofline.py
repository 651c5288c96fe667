"""The roofline: what each operator achieves below what the device could do at best."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from evitlab.figures.operators import part_colors
from evitlab.figures.style import (
    INK,
    MUTED,
    PALETTE,
    RULE,
    add_caption,
    environment_line,
    house_style,
    new_figure,
)
from evitlab.records import MEMORY_BOUND, OperatorProfile, Roofline

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_SMALLEST = 0.004  # share of a model's time below which an operator is left out


def roofline(profiles: Sequence[OperatorProfile], *, ceilings: Roofline | None = None) -> Figure:
    """Left, operators that multiply: speed against arithmetic intensity, below the two ceilings.
    Right, those of the memory-bound categories: bytes moved per second.

    A point is one operator in one part of one model; its area is its share of that model's time.
    Shares below 0.4 % are left out.

    Args:
        profiles: of one device, at most eight.
        ceilings: default: those in the first profile.

    Raises:
        ValueError: no profile, more than eight, or two of one name and attention state.

    Pitfall: bytes come from a model in which each operand is read and each result written once. In
    a cache they move faster than memory allows, so points may lie above the slope.
    """
    if not 0 < len(profiles) <= len(_MARKERS):
        raise ValueError(f"profiles: expected 1 to {len(_MARKERS)}, got {len(profiles)}")
    ceilings = ceilings or profiles[0].roofline
    names = _names(profiles)
    points = pd.concat(
        [_points(profile, name) for profile, name in zip(profiles, names, strict=True)]
    )
    markers = dict(zip(names, _MARKERS, strict=False))
    colors = part_colors(profiles)
    with house_style():
        figure = new_figure(11.0, 5.0)
        left, right = figure.subplots(1, 2, width_ratios=(2, 1))
        multiply = points[points["macs"] > 0]
        _draw_ceilings(left, ceilings, multiply)
        _draw_points(left, multiply, "intensity", "gmac_s", markers, colors)
        moved = points[(points["macs"] == 0) & points["category"].isin(MEMORY_BOUND)]
        _draw_moved(right, moved, ceilings, markers, colors)
        shown = set(points["module"])
        handles = [
            Line2D([], [], ls="none", marker=marker, color=MUTED, ms=7, label=name)
            for name, marker in markers.items()
        ]
        handles += [
            Line2D([], [], ls="none", marker="s", color=color, ms=7, label=part)
            for part, color in colors.items()
            if part in shown
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=6, fontsize=8)
        batches = ", ".join(map(str, sorted({profile.batch_size for profile in profiles})))
        add_caption(
            figure,
            note="Shape: model. Colour: part of the model. Area: share of the model's time.\n"
            f"batch {batches} · {environment_line(ceilings.environment)}",
        )
    return figure


def _names(profiles: Sequence[OperatorProfile]) -> list[str]:
    """Models' names, with the state of attention where both are there."""
    states = {profile.fused_attention for profile in profiles}
    suffix = {True: " (fused)", False: " (unfused)"} if len(states) > 1 else {}
    names = [p.model + suffix.get(p.fused_attention, "") for p in profiles]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"profiles: {twice[0]!r} stands twice")
    return names


def _points(profile: OperatorProfile, name: str) -> pd.DataFrame:
    """One row per operator and part, with what it achieves."""
    keys = ["operator", "category", "module"]
    frame = profile.to_frame().groupby(keys, as_index=False)[["self_ms", "bytes", "macs"]].sum()
    frame = frame[(frame["self_ms"] > _SMALLEST * profile.self_ms) & (frame["bytes"] > 0)]
    return frame.assign(
        name=name,
        share=frame["self_ms"] / profile.self_ms,
        intensity=frame["macs"] / frame["bytes"],
        gmac_s=1e-6 * frame["macs"] / frame["self_ms"],
        gb_s=1e-6 * frame["bytes"] / frame["self_ms"],
    )


def _draw_ceilings(axes: Axes, ceilings: Roofline, points: pd.DataFrame) -> None:
    peak, bandwidth, ridge = ceilings.peak_gmac_s, ceilings.bandwidth_gb_s, ceilings.ridge
    low = min([ridge / 20, *points["intensity"]]) / 1.6
    high = max([ridge * 20, *points["intensity"]]) * 1.6
    bottom = min([peak / 300, *points["gmac_s"]]) / 1.6
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, peak * 3))
    axes.set_title(f"{ceilings.environment.hardware}: roofline")
    axes.set_xlabel("Arithmetic intensity (multiply–accumulates per byte)")
    axes.set_ylabel("Achieved (10⁹ multiply–accumulates per second)")
    axes.axvspan(low, ridge, color=PALETTE[0], alpha=0.06, lw=0)
    roof = np.array([low, ridge, high])
    axes.plot(roof, np.minimum(roof * bandwidth, peak), color=INK, lw=1.8, gid="roof")
    axes.plot([ridge, ridge], [bottom, peak], color=MUTED, lw=0.8, ls=(0, (3, 3)))
    axes.text(high / 1.1, peak * 1.12, f"peak {peak:.3g}", ha="right", va="bottom", fontsize=8)
    axes.text(
        ridge * 1.1, bottom * 1.25, f"ridge {ridge:.2g}", color=MUTED, fontsize=8, va="bottom"
    )
    axes.text(low * 1.15, peak * 2.6, "memory-bound", color=PALETTE[0], fontsize=9, va="top")
    axes.text(ridge * 1.1, peak * 2.6, "compute-bound", color=PALETTE[1], fontsize=9, va="top")
    at = max(low * 1.3, bottom / bandwidth * 1.6)
    axes.text(
        at, at * bandwidth * 1.45, f"memory {bandwidth:.3g} GB/s", fontsize=8,
        rotation=math.degrees(math.atan(bandwidth)), rotation_mode="anchor",
        transform_rotates_text=True,
    )  # fmt: skip


def _draw_points(
    axes: Axes,
    points: pd.DataFrame,
    x: str,
    y: str,
    markers: dict[str, str],
    colors: dict[str, str],
) -> None:
    for row in points.sort_values("share", ascending=False).itertuples():
        axes.plot(
            getattr(row, x),
            getattr(row, y),
            ls="none",
            marker=markers[row.name],
            ms=3.5 + 22 * float(row.share) ** 0.5,
            color=colors[row.module],
            alpha=0.75,
            mec="white",
            mew=0.7,
        )


def _draw_moved(
    axes: Axes,
    points: pd.DataFrame,
    ceilings: Roofline,
    markers: dict[str, str],
    colors: dict[str, str],
) -> None:
    rows = {category: row for row, category in enumerate(MEMORY_BOUND)}
    lanes = {name: 0.6 * (i + 0.5) / len(markers) - 0.3 for i, name in enumerate(markers)}
    lane = points["name"].map(lanes).astype(float)
    points = points.assign(y=points["category"].map(rows).astype(float) + lane)
    axes.set_title("Without multiplications")
    axes.set(xscale="log", ylim=(len(rows) - 0.4, -0.6), xlabel="Achieved (GB per second)")
    axes.set_yticks(range(len(rows)), labels=list(rows))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    for row in range(1, len(rows)):
        axes.axhline(row - 0.5, color=RULE, lw=0.6)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bandwidth = ceilings.bandwidth_gb_s
    speeds = [bandwidth, *points["gb_s"]]
    axes.set_xlim(min(speeds) / 2, max(speeds) * 2)
    axes.axvline(bandwidth, color=INK, lw=1.8, gid="roof")
    axes.text(
        bandwidth, -0.55, f"memory {bandwidth:.3g} ", ha="right", va="top", fontsize=8, color=INK
    )
    _draw_points(axes, points, "gb_s", "y", markers, colors)

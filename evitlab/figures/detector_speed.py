"""Where a detector's time and its multiply-accumulates go."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from evitlab.figures.style import (
    INK,
    PALETTE,
    RULE,
    add_caption,
    environment_line,
    house_style,
    new_figure,
)
from evitlab.records import DETECTOR_PARTS, DetectorSpeed, DetectorTiming

_COLORS = dict(
    zip(DETECTOR_PARTS, (PALETTE[7], PALETTE[0], PALETTE[2], PALETTE[5], PALETTE[4]), strict=True)
)
_ROOM = 0.09  # of the axis: a narrower share is not written into its bar


def detector_parts(record: DetectorSpeed) -> Figure:
    """Milliseconds of each part of a detector as stacked bars, one per model and form, and the
    multiply-accumulates of the same parts beside them.

    Raises:
        ValueError: the record has no row.

    Pitfall: post-processing depends on how many candidates there were, which the caption says.
    """
    if not record.rows:
        raise ValueError("record: expected at least one row, got none")
    with house_style():
        figure = new_figure(9.4, 1.7 + 0.42 * len(record.rows))
        time, macs = figure.subplots(1, 2, sharey=True, width_ratios=(1.45, 1))
        _draw_bars(
            time, [[part.ms for part in row.parts] for row in record.rows],
            [_said(row) for row in record.rows],
        )  # fmt: skip
        time.set(title="Time", xlabel=f"Milliseconds, batch {record.batch_size}")
        billions = [[part.macs / 1e9 for part in row.parts] for row in record.rows]
        _draw_bars(macs, billions, [f"{sum(values):.1f}" for values in billions])
        macs.set(title="Arithmetic", xlabel="Multiply-accumulates for one image (billion)")
        time.set_yticks(
            range(len(record.rows)), labels=[f"{row.model}\n{row.form}" for row in record.rows]
        )
        time.set_ylim(len(record.rows) - 0.45, -0.55)
        shown = [
            name for name in DETECTOR_PARTS
            if any(part.part == name for row in record.rows for part in row.parts)
        ]  # fmt: skip
        handles = [Patch(color=_COLORS[name], label=name) for name in shown]
        figure.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=8)
        add_caption(figure, note=f"{_caption(record)}\n{environment_line(record.environment)}")
    return figure


def _draw_bars(axes: Axes, rows: list[list[float]], totals: list[str]) -> None:
    longest = max(sum(values) for values in rows)
    for y, (values, total) in enumerate(zip(rows, totals, strict=True)):
        left = 0.0
        for name, value in zip(DETECTOR_PARTS, values, strict=True):
            axes.barh(y, value, 0.66, left=left, color=_COLORS[name], gid=name)
            if value > _ROOM * longest:
                axes.text(
                    left + value / 2, y, f"{value / sum(values):.0%}", ha="center", va="center",
                    color="white", fontsize=7.5, gid="share",
                )  # fmt: skip
            left += value
        axes.text(left + 0.015 * longest, y, total, va="center", fontsize=8, color=INK, gid="total")
    axes.set_xlim(0, 1.3 * longest)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    for y in range(1, len(rows)):
        axes.axhline(y - 0.5, color=RULE, lw=0.5)


def _said(row: DetectorTiming) -> str:
    gain = "" if row.speedup is None else f" ({row.speedup:.2f} ×)"
    return f"{row.img_per_s:.3g} img/s{gain}"


def _caption(record: DetectorSpeed) -> str:
    """Size, repetition, and what post-processing had to do."""
    sizes = dict.fromkeys(row.img_size for row in record.rows)
    pixels = " or ".join(f"{width} × {height} px" for height, width in sizes)
    most = max(record.rows, key=lambda row: row.full_ms)
    none = all(row.candidates == 0 for row in record.rows)
    counts = sorted({row.candidates for row in record.rows})
    had = (
        "no candidate boxes, heads being as drawn" if none and not any(
            row.learnt for row in record.rows
        )
        else f"{' or '.join(f'{count:,}' for count in counts)} candidate boxes"
    )  # fmt: skip
    rounds = f"{record.rounds} round{'s' * (record.rounds > 1)}"
    return (
        f"{pixels}; medians of {rounds} in turns; img/s and × (over as trained) of the plain call."
        f"\nPost-processing had {had}; with {most.full_candidates:,} it takes up to "
        f"{most.full_ms:.0f} ms."
    )

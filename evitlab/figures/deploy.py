"""What deploying brings: ratios to a peer's speed, and the share of the device's peak."""

from __future__ import annotations

from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from evitlab.figures.style import (
    INK,
    PALETTE,
    RULE,
    add_caption,
    environment_line,
    house_style,
    new_figure,
)
from evitlab.records import DeployRatios, PeakRow, RatioRow

_ENGINES = {"deploy": "PyTorch", "onnxruntime": "ONNX Runtime"}
_PEERS = {
    "eager": "timm's as built",
    "folded": "timm's folded",
    "exported": "timm's folded, then exported",
}
_LOOKS = {
    peer: (PALETTE[i], marker) for i, (peer, marker) in enumerate(zip(_PEERS, "osD", strict=True))
}
_BARS = (PALETTE[5], PALETTE[2], PALETTE[4], PALETTE[7])


def deploy_ratios(record: DeployRatios) -> Figure:
    """How many times faster the deployed family is than timm's models with the same weights, one
    panel per engine and batch size; then the share of the device's peak, as a panel where all
    models have one, else in the caption.

    Points are medians of interleaved rounds, bars their quartiles.

    Raises:
        ValueError: the record has no row, or an unknown peer.
    """
    if not record.rows:
        raise ValueError("record: expected at least one ratio, got none")
    unknown = [row.peer for row in record.rows if row.peer not in _PEERS]
    if unknown:
        raise ValueError(f"record: expected peers {', '.join(_PEERS)}, got {unknown[0]!r}")
    models = list(dict.fromkeys(row.model for row in record.rows))
    panels = list(dict.fromkeys((row.engine, row.batch_size) for row in record.rows))
    with_peak = {row.model for row in record.peak} >= set(models)
    columns = len(panels) + with_peak
    with house_style():
        figure = new_figure(1.4 + 2.4 * columns, 1.5 + 0.42 * len(models))
        grid = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
        for axes, panel in zip(grid, panels, strict=False):
            rows = [row for row in record.rows if (row.engine, row.batch_size) == panel]
            _draw_ratios(axes, rows, models)
            axes.set_title(_title(*panel), fontsize=9.5)
        if with_peak:
            _draw_peak(grid[-1], record.peak, models)
        grid[0].set_yticks(range(len(models)), labels=models)
        grid[0].set_ylim(len(models) - 0.4, -0.6)
        handles: list[Any] = [
            Line2D([], [], ls="none", marker=marker, color=color, label=f"against {_PEERS[peer]}")
            for peer, (color, marker) in _LOOKS.items()
            if any(row.peer == peer for row in record.rows)
        ]
        handles += [
            Patch(color=color, label=_title(*panel))
            for panel, color in _bars(record.peak).items()
            if with_peak
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=8)
        shares = [
            f" {row.model}, {_title(row.engine, row.batch_size)}: "
            f"{100 * row.share:.0f} % of torch's matrix product."
            for row in record.peak
            if not with_peak
        ]
        failed = f" {len(record.failed)} measurements failed." if record.failed else ""
        add_caption(
            figure,
            note="Right of 1 ours is faster. Points: medians of interleaved rounds; bars: "
            f"quartiles.{''.join(shares)}{failed}\n{environment_line(record.environment)}",
        )
    return figure


def _title(engine: str, batch_size: int) -> str:
    return f"{_ENGINES.get(engine, engine)}, batch {batch_size}"


def _bars(rows: tuple[PeakRow, ...]) -> dict[tuple[str, int], str]:
    """Colours of the peak's bars, by engine and batch size."""
    shown = dict.fromkeys((row.engine, row.batch_size) for row in rows)
    return dict(zip(shown, cycle(_BARS), strict=False))


def _draw_ratios(axes: Axes, rows: list[RatioRow], models: list[str]) -> None:
    peers = [peer for peer in _PEERS if any(row.peer == peer for row in rows)]
    lanes = {peer: 0.5 * (i + 0.5) / len(peers) - 0.25 for i, peer in enumerate(peers)}
    for row in rows:
        y = models.index(row.model) + lanes[row.peer]
        color, marker = _LOOKS[row.peer]
        axes.plot([row.ratio_low, row.ratio_high], [y, y], color=color, lw=1.4)
        axes.plot(row.ratio, y, marker=marker, ms=5.5, color=color, ls="none", gid="ratio")
    axes.axvline(1, color=INK, lw=1.0)
    axes.set(xscale="log", xlabel="Times as fast")
    axes.set_xlim(
        min(0.9, *(row.ratio_low / 1.05 for row in rows)),
        max(1.3, *(row.ratio_high * 1.05 for row in rows)),
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _finish(axes, len(models))


def _draw_peak(axes: Axes, rows: tuple[PeakRow, ...], models: list[str]) -> None:
    colors = _bars(rows)
    height = 0.6 / len(colors)
    for row in rows:
        if row.model not in models:
            continue
        panel = row.engine, row.batch_size
        y, color = models.index(row.model) - 0.3, colors[panel]
        y += height * (list(colors).index(panel) + 0.5)
        axes.barh(y, 100 * row.share, 0.85 * height, color=color, gid="peak")
        axes.text(
            100 * row.share - 1.5, y, f"{100 * row.share:.0f}", color="white", fontsize=7,
            ha="right", va="center",
        )  # fmt: skip
    axes.set_title("Share of the peak", fontsize=9.5)
    axes.set(xlabel="Of the measured peak (%)", xlim=(0, 100))
    _finish(axes, len(models))


def _finish(axes: Axes, models: int) -> None:
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    for row in range(1, models):
        axes.axhline(row - 0.5, color=RULE, lw=0.6)

"""Tables 2 and 3: the speed columns, as ratios."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from evitlab.figures.style import INK, MUTED, PALETTE, RULE, add_caption, house_style, new_figure
from evitlab.records import Environment

_TITLES = {
    "gpu": "GPU: V100, batch 2,048",
    "cpu": "CPU: one thread, batch 16",
    "onnx": "ONNX Runtime",
}
_PAPER, _OURS = PALETTE[1], PALETTE[0]


def speed_ratios(
    frame: pd.DataFrame, *, environment: Environment | None = None, note: str = ""
) -> Figure:
    """How many times faster a member of the family is than its peer, one panel per column of the
    paper's tables; a filled blue marker is printed in the paper, an open one not, ours is red.

    Args:
        frame: `paper.speed_ratios(measured)`: member, peer, column, paper, provenance, and ours
            (this column may be absent). A pair without a number in one panel stays empty there.
        environment: what ours ran on, for the caption.
        note: what else the caption should say about ours: engine, batch size.

    Raises:
        ValueError: a column is missing, or there is no ratio.

    Paper: Tables 2 and 3, Table 7 for LeViT, and the text.
    Pitfall: the titles are the paper's conditions; ours are in the caption.
    """
    missing = [c for c in ("member", "peer", "column", "paper", "provenance") if c not in frame]
    if missing:
        raise ValueError(f"frame: expected the columns of paper.speed_ratios, missing {missing[0]}")
    ours = frame["ours"] if "ours" in frame else pd.Series(float("nan"), frame.index)
    frame = frame.assign(ours=ours)[frame["paper"].notna() | ours.notna()]
    if frame.empty:
        raise ValueError("frame: expected at least one ratio, got none")
    columns = [column for column in _TITLES if column in set(frame["column"])]
    pairs = list(dict.fromkeys(zip(frame["member"], frame["peer"], strict=True)))
    with house_style():
        figure = new_figure(3.0 + 2.7 * len(columns), 1.5 + 0.235 * len(pairs))
        panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
        for axes, column in zip(panels, columns, strict=True):
            _draw_panel(axes, frame[frame["column"] == column], pairs)
            axes.set_title(_TITLES[column], fontsize=9.5)
        labels = [f"{_short(member)} ÷ {_short(peer)}" for member, peer in pairs]
        panels[0].set_yticks(range(len(pairs)), labels=labels)
        figure.legend(handles=_handles(frame), loc="outside upper center", ncols=4, fontsize=8)
        add_caption(figure, environment, note=_note(frame, note))
    return figure


def _draw_panel(axes: Axes, cells: pd.DataFrame, pairs: list[tuple[str, str]]) -> None:
    rows = {pair: row for row, pair in enumerate(pairs)}
    values = pd.concat([cells["paper"], cells["ours"]]).dropna()
    axes.set(xscale="log", ylim=(len(pairs) - 0.4, -0.6), xlabel="Times as fast")
    axes.set_xlim(min(0.8, values.min() / 1.15), max(1.6, values.max() * 1.25))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(axis="y", length=0)
    axes.axvline(1, color=INK, lw=1.0)
    for row in range(1, len(pairs)):
        if _group(pairs[row]) != _group(pairs[row - 1]):
            axes.axhline(row - 0.5, color=RULE, lw=1.2)
    for cell in cells.itertuples():
        row = rows[cell.member, cell.peer]
        if pd.notna(cell.paper) and pd.notna(cell.ours):
            axes.plot([cell.paper, cell.ours], [row, row], color=MUTED, lw=1.0, zorder=1)
        if pd.notna(cell.paper):
            face = _PAPER if cell.provenance == "printed" else "white"
            axes.plot(cell.paper, row, "s", ms=5.5, color=_PAPER, mfc=face, gid="paper")
        if pd.notna(cell.ours):
            axes.plot(cell.ours, row, "o", ms=6.5, color=_OURS, gid="ours")


def _group(pair: tuple[str, str]) -> tuple[str, bool]:
    """Pairs that stand together: those within the family, then each member's peers."""
    return pair[0], pair[1].startswith("EfficientViT")


def _short(name: str) -> str:
    return name.removeprefix("EfficientViT-")


def _handles(frame: pd.DataFrame) -> list[Line2D]:
    def marker(shape: str, color: str, face: str, label: str) -> Line2D:
        look: dict[str, Any] = {"color": color, "markerfacecolor": face, "ms": 6, "label": label}
        return Line2D([], [], ls="none", marker=shape, **look)

    published = frame[frame["paper"].notna()]
    printed = published["provenance"] == "printed"
    rest = sorted(set(published.loc[~printed, "provenance"]))
    handles = []
    if printed.any():
        handles.append(marker("s", _PAPER, _PAPER, "paper, printed"))
    if rest:
        handles.append(marker("s", _PAPER, "white", f"paper, {' or '.join(rest)}"))
    if frame["ours"].notna().any():
        handles.append(marker("o", _OURS, _OURS, "measured here"))
    return handles


def _note(frame: pd.DataFrame, note: str) -> str:
    lines = ["Right of 1 the first of the two is faster. Titles: the paper's conditions."]
    return "\n".join([*lines, note]) if note else lines[0]

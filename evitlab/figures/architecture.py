"""Table 1: the family's architecture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from evitlab.figures.style import INK, MUTED, PALETTE, RULE, add_caption, house_style, new_figure

_Text = Callable[[Any], str]


def _stages(values: Any) -> str:
    return " · ".join(str(value) for value in values)


def _decimal(places: int, sign: str = "") -> _Text:
    """A number's text; a dash where there is none, as for a model the paper does not have."""
    form = f"{sign}.{places}f"
    return lambda value: "–" if math.isnan(value) else format(value, form).replace("-", "−")


# column of the frame, head, x of the column's centre, text
_COLUMNS: tuple[tuple[str, str, float, _Text], ...] = (
    ("embed_dim", "Channels", 0.255, _stages),
    ("depth", "Blocks", 0.385, _stages),
    ("num_heads", "Heads", 0.475, _stages),
    ("params_m", "ours", 0.57, _decimal(2)),
    ("paper_params_m", "paper", 0.64, _decimal(1)),
    ("params_diff_m", "difference", 0.72, _decimal(2, "+")),
    ("macs_m", "ours", 0.81, _decimal(1)),
    ("paper_macs_m", "paper", 0.88, _decimal(0)),
    ("macs_diff_pct", "diff. (%)", 0.96, _decimal(2, "+")),
)
_GROUPS = (("Per stage", 0.19, 0.51), ("Parameters (M)", 0.54, 0.76), ("MACs (M)", 0.78, 1.0))


def table1_architecture(frame: pd.DataFrame) -> Figure:
    """Table 1 as a table, the computed costs beside the published ones.

    Args:
        frame: `paper.architecture(computed)`: model, embed_dim, depth, num_heads (a tuple of
            stages each), params_m, macs_m, and the paper_params_m, paper_macs_m (NaN: not in the
            paper), params_diff_m, macs_diff_pct beside them.

    Raises:
        ValueError: a column is missing, or there is no row.

    Paper: Table 1; costs: Table 2. What the paper calls FLOPs are multiply-accumulates.
    """
    missing = [c for c in ("model", *(column for column, *_ in _COLUMNS)) if c not in frame]
    if missing:
        raise ValueError(f"frame: expected the columns of paper.architecture, missing {missing[0]}")
    if frame.empty:
        raise ValueError("frame: expected one row per model, got none")
    rows = len(frame)
    with house_style():
        figure = new_figure(10.0, 1.25 + 0.3 * rows)
        axes = figure.add_subplot()
        axes.set(xlim=(0, 1), ylim=(rows + 0.1, -2.2))
        axes.axis("off")

        def write(x: float, y: float, text: str, **style: Any) -> None:
            axes.text(x, y, text, va="center", **{"ha": "center", "fontsize": 9, **style})

        write(0.01, -0.65, "Model", ha="left", color=MUTED)
        for title, start, end in _GROUPS:
            write((start + end) / 2, -1.65, title, fontweight="bold")
            axes.plot([start, end], [-1.15, -1.15], color=MUTED, lw=0.8)
        for column, head, x, text in _COLUMNS:
            write(x, -0.65, head, color=MUTED)
            for row, value in enumerate(frame[column]):
                color = PALETTE[1] if column in ("params_m", "macs_m") else INK
                write(x, row + 0.5, text(value), color=color)
        for row, model in enumerate(frame["model"]):
            write(0.01, row + 0.5, model, ha="left", fontweight="bold")
            if row:
                axes.axhline(row, color=RULE, lw=0.6)
        for y, width in ((-2.2, 1.4), (-0.1, 0.8), (rows + 0.1, 1.4)):
            axes.axhline(y, color=INK, lw=width)
        note = "ours: counted on the models as built. MACs: the paper's “FLOPs”, for one image."
        add_caption(figure, note=note)
    return figure

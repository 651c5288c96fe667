"""What the paper's training would cost, as a table."""

from __future__ import annotations

import math
import re

import pandas as pd
from matplotlib.figure import Figure

from evitlab.figures.style import INK, MUTED, PALETTE, RULE, add_caption, house_style, new_figure

_COLUMNS = ("model", "macs_m", "images", "steps", "machine", "how", "hours")


def planned_cost(frame: pd.DataFrame) -> Figure:
    """Hours of the paper's training, one row per member, one column per machine; what was
    published or measured is bold, what was scaled is not, and what nobody measured says how to.

    Args:
        frame: `planned_cost(...)`.

    Raises:
        ValueError: a column is missing, or there is no row.

    Paper: Section 4.1.
    """
    missing = [column for column in _COLUMNS if column not in frame]
    if missing:
        raise ValueError(f"frame: expected the columns of planned_cost, missing {missing[0]}")
    if frame.empty:
        raise ValueError("frame: expected at least one row, got none")
    models = list(dict.fromkeys(frame["model"]))
    machines = list(dict.fromkeys(frame["machine"]))
    cells = frame.set_index(["model", "machine"])
    with house_style():
        figure = new_figure(4.2 + 1.7 * len(machines), 1.35 + 0.32 * len(models))
        axes = figure.add_subplot()
        columns = 3.1 + 1.7 * len(machines)
        axes.set(xlim=(0, columns), ylim=(len(models) + 0.1, -2.1))
        axes.axis("off")

        def write(x: float, y: float, text: str, **style: object) -> None:
            look = {"ha": "right", "va": "center", "fontsize": 9, **style}
            axes.text(x, y, text, **look)  # type: ignore[arg-type]

        places = [3.1 + 1.7 * (place + 1) - 0.05 for place in range(len(machines))]
        write(0.05, -0.6, "Model", ha="left", color=MUTED)
        write(3.0, -0.6, "MACs (M)", color=MUTED)
        if machines:
            write((3.3 + columns) / 2, -1.75, "Hours on", ha="center", fontweight="bold")
        for x, machine in zip(places, machines, strict=True):
            name = "\n".join(machine.split(", ", 1))
            write(x, -0.75, name, color=MUTED, fontsize=8)
        for row, model in enumerate(models):
            own = cells.loc[model]
            write(0.05, row + 0.5, model, ha="left", fontweight="bold")
            write(3.0, row + 0.5, f"{own['macs_m'].iloc[0]:.0f}")
            if row:
                axes.axhline(row, color=RULE, lw=0.6)
            for x, machine in zip(places, machines, strict=True):
                if machine not in own.index or math.isnan(own.loc[machine, "hours"]):
                    write(x, row + 0.5, "not measured", color=MUTED, fontsize=8)
                    continue
                cell = own.loc[machine]
                firm = cell["how"] in ("published", "measured")
                color, weight = (PALETTE[1], "bold") if firm else (INK, "normal")
                text = f"{cell['hours']:,.{0 if cell['hours'] >= 100 else 1}f}"
                write(x, row + 0.5, text, color=color, fontweight=weight)
        for y, width in ((-2.1, 1.4), (-0.05, 0.8), (len(models) + 0.1, 1.4)):
            axes.axhline(y, color=INK, lw=width)
        add_caption(figure, note=_note(frame))
    return figure


def _note(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    lines = [
        f"{first['images'] / 1e6:.0f} million images in {first['steps']:,} steps for each model. "
        "Bold: published or measured; the rest is scaled from M5's published hours."
    ]
    for command in frame.loc[frame["hours"].isna(), "how"].unique():
        shortened = re.sub(r"(\S+_m0) .* (\S+_m5)", r"\1 … \2", command)  # M1 to M4 between
        lines.append(f"Not measured; what does: {shortened}")
    return "\n".join(lines)

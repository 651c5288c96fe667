"""Fig. 4 and what belongs beside it: how alike heads attend, block by block and head by head."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, MultipleLocator

from evitlab import paper
from evitlab.figures.style import (
    INK,
    MUTED,
    PALETTE,
    add_caption,
    environment_line,
    house_style,
    new_figure,
)
from evitlab.records import HeadSimilarity, HeadSimilarityRun

_ROWS = {  # column of `by_block` -> its axis
    "max_similarity": "Similarity (%)",
    "max_correlation": "Correlation",
    "max_centred": "Centred",
    "entropy": "Entropy",
}
_SPLITS = {False: ("all channels", PALETTE[1]), True: ("head splits", PALETTE[0])}
_MATRICES = {
    "similarity": ("cosine similarity", "magma", 0.0),
    "correlation": ("correlation: less the uniform map", "RdBu_r", -1.0),
    "centred": ("centred: less the heads' mean map", "RdBu_r", -1.0),
}
_LEGIBLE = 4  # heads up to which a number fits into its cell
_MEASURES = (
    "Similarity: each head's largest cosine to another head's map, mean over heads (the paper's). "
    "By chance: once keys are shuffled. Correlation: maps less the uniform map. Centred: maps less "
    "the heads' mean map. Entropy: of a query's weights, 1 = uniform."
)


def fig4_head_similarity(
    runs: Sequence[HeadSimilarityRun], *, published: bool = True
) -> Figure:
    """Each model a column: the paper's similarity over the blocks, with what puts it in
    proportion below; heads with all channels and with splits.

    Args:
        runs: at most one for a line and kind of heads.
        published: also show the paper's lines, where the model is the paper's.

    Raises:
        ValueError: no run, or two of one line and kind of heads.

    Paper: Fig. 4, read from the drawing, error at most 0.5 points.
    """
    _check_runs(runs)
    lines = list(dict.fromkeys(run.line for run in runs))
    known = paper.load("fig4")
    with house_style():
        figure = new_figure(1.2 + 4.4 * len(lines), 8.6)
        panels = figure.subplots(
            len(_ROWS), len(lines), squeeze=False, sharex="col", sharey="row",
            height_ratios=(2.1, 1, 1, 1),
        )  # fmt: skip
        for column, line in enumerate(lines):
            panels[0, column].set_title(line)
            for run in (run for run in runs if run.line == line):
                _, color = _SPLITS[run.split_heads]
                _draw_rows(panels[:, column], run.trained, color)
                _draw_untrained(panels[:, column], run.untrained, color)
                shown = known[(known["model"] == line) & (known["head_splits"] == run.split_heads)]
                if published and not shown.empty:
                    panels[0, column].plot(
                        shown["block"], shown["value"], color=color, ls=(0, (4, 2)), lw=1.2,
                        marker="o", ms=3, mfc="white", alpha=0.75, gid="paper",
                    )  # fmt: skip
        _finish_rows(panels, "Attention block")
        splits = sorted({run.split_heads for run in runs})
        handles = [Line2D([], [], color=_SPLITS[s][1], lw=4, label=_SPLITS[s][0]) for s in splits]
        figure.legend(
            handles=[*handles, *_styles(published)], loc="outside upper center",
            ncols=len(handles) + 2 + 2 * published, fontsize=8,
        )  # fmt: skip
        top1 = "; ".join(
            f"{run.line}, {_SPLITS[run.split_heads][0]}: {run.training.final.top1:.1f} %"
            for run in runs
        )
        epochs = len(runs[0].training.history)
        trained = (
            f"Trained for {epochs} epoch{'s' if epochs != 1 else ''} on "
            f"{runs[0].training.train_images:,} images of {runs[0].training.dataset}; top-1 of "
            f"{top1}."
        )
        _add_note(figure, _MEASURES, trained, environment_line(runs[0].environment))
    return figure


def head_curves(records: Sequence[HeadSimilarity]) -> Figure:
    """The same measures of any models, each a colour; a band spans the images' quartiles.

    Args:
        records: at least one; told apart by `model` and `weights`.

    Raises:
        ValueError: no record, or more than the palette has colours.
    """
    if not records or len(records) > len(PALETTE):
        raise ValueError(f"records: expected 1 to {len(PALETTE)}, got {len(records)}")
    with house_style():
        figure = new_figure(6.4, 7.6)
        panels = figure.subplots(
            len(_ROWS), 1, squeeze=False, sharex="col", height_ratios=(2.1, 1, 1, 1)
        )
        handles = []
        for record, color in zip(records, PALETTE, strict=False):
            _draw_rows(panels[:, 0], record, color)
            frame = record.by_block().dropna(subset=["q25"])
            panels[0, 0].fill_between(
                frame["block"], 100 * frame["q25"].astype(float),
                100 * frame["q75"].astype(float), color=color, alpha=0.15, lw=0, gid="quartiles",
            )  # fmt: skip
            handles.append(
                Line2D([], [], color=color, lw=4, label=f"{record.model}, {record.weights}")
            )
        _finish_rows(panels, "Attention block")
        dotted = Line2D([], [], color=MUTED, ls=":", label="by chance")
        figure.legend(handles=[*handles, dotted], loc="outside upper left", fontsize=8)
        images = ", ".join(sorted({f"{record.images:,}" for record in records}))
        card = environment_line(records[0].environment)
        _add_note(figure, _MEASURES, f"{images} images; band: their quartiles · {card}")
    return figure


def head_maps(
    record: HeadSimilarity, *, quantity: str = "similarity", columns: int = 6
) -> Figure:
    """A heat-map of head against head for each block that has several heads.

    Args:
        quantity: "similarity", "correlation" or "centred".
        columns: blocks in a row.

    Raises:
        ValueError: `quantity` unknown, `columns` below one, or no block with two heads.
    """
    if quantity not in _MATRICES:
        expected = ", ".join(_MATRICES)
        raise ValueError(f"quantity: expected one of {expected}, got {quantity!r}")
    if columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}")
    blocks = [block for block in record.blocks if block.num_heads > 1]
    if not blocks:
        raise ValueError("record: expected a block with at least two heads, got none")
    title, colors, low = _MATRICES[quantity]
    columns = min(columns, len(blocks))
    rows = math.ceil(len(blocks) / columns)
    with house_style():
        figure = new_figure(max(1.45 * columns + 0.8, 5.2), 1.62 * rows + 0.85)
        panels = figure.subplots(rows, columns, squeeze=False)
        norm = Normalize(low, 1.0)
        for axes in panels.flat[len(blocks) :]:
            axes.set_visible(False)
        for axes, block in zip(panels.flat, blocks, strict=False):
            matrix = getattr(block, quantity)
            axes.imshow(matrix, cmap=colors, norm=norm, interpolation="nearest")
            axes.set_title(f"block {block.block}", fontsize=8.5, fontweight="normal", pad=3)
            step = max(1, math.ceil(block.num_heads / 6))
            ticks = list(range(0, block.num_heads, step))
            axes.set_xticks(ticks, labels=[str(tick + 1) for tick in ticks], fontsize=7)
            axes.set_yticks(ticks, labels=[str(tick + 1) for tick in ticks], fontsize=7)
            axes.tick_params(length=0, pad=2)
            axes.grid(False)
            axes.spines[:].set_visible(False)
            if block.num_heads <= _LEGIBLE:
                _write_cells(axes, matrix, norm, colors)
        bar = figure.colorbar(
            ScalarMappable(norm, colors), ax=panels, fraction=0.05, pad=0.02, aspect=30
        )
        bar.set_label(title.partition(":")[0])
        bar.outline.set_visible(False)
        figure.suptitle(
            f"{record.model}, {record.weights}: heads against heads", x=0.01, ha="left",
            fontsize=10, fontweight="bold", color=INK,
        )  # fmt: skip
        note = f"{title[0].upper()}{title[1:]} of attention maps, mean of {record.images:,} images"
        add_caption(figure, note=f"{note} · {environment_line(record.environment)}")
    return figure


def _add_note(figure: Figure, *paragraphs: str) -> None:
    """The caption, broken where the figure ends."""
    width = int(16.5 * figure.get_figwidth())  # characters
    add_caption(figure, note="\n".join(textwrap.fill(text, width) for text in paragraphs))


def _write_cells(
    axes: Axes, matrix: Sequence[Sequence[float]], norm: Normalize, colors: str
) -> None:
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            share = float(norm(value))
            dark = share < 0.6 if colors == "magma" else not 0.2 < share < 0.8
            axes.text(
                j, i, f"{value:.2f}".replace("0.", ".", 1), ha="center", va="center", fontsize=6.5,
                color="white" if dark else INK,
            )  # fmt: skip


def _draw_rows(panels: Iterable[Axes], record: HeadSimilarity, color: str) -> None:
    """Similarity, chance beside it, and the three measures below."""
    frame = record.by_block()
    for axes, column in zip(panels, _ROWS, strict=True):
        scale = 100 if column == "max_similarity" else 1
        values = scale * frame[column].astype(float)
        axes.plot(frame["block"], values, color=color, marker="o", ms=3.5, gid=f"ours {column}")
        if column == "max_similarity":
            chance = 100 * frame["max_permuted"].astype(float)
            axes.plot(frame["block"], chance, color=color, ls=":", lw=1.3, gid="chance")


def _draw_untrained(panels: Iterable[Axes], record: HeadSimilarity, color: str) -> None:
    frame = record.by_block()
    for axes, column in zip(panels, _ROWS, strict=True):
        scale = 100 if column == "max_similarity" else 1
        axes.plot(
            frame["block"], scale * frame[column].astype(float), color=color, lw=0.8, alpha=0.55,
            marker="x", ms=3.5, gid=f"untrained {column}",
        )  # fmt: skip


def _finish_rows(panels: Any, xlabel: str) -> None:
    for row, (column, label) in zip(panels, _ROWS.items(), strict=True):
        row[0].set_ylabel(label)
        for axes in row:
            if column in ("max_correlation", "max_centred"):
                axes.axhline(0, color=MUTED, lw=0.7)
            if column == "entropy":
                axes.set_ylim(min(0.0, *axes.get_ylim()), 1.05)
            if column == "max_similarity":
                axes.set_ylim(max(0.0, axes.get_ylim()[0]), 102)
                axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.xaxis.set_major_locator(MultipleLocator(1))
    for axes in panels[-1]:
        axes.set_xlabel(xlabel)


def _styles(published: bool) -> list[Line2D]:
    """What line styles mean."""
    lines = [Line2D([], [], color=MUTED, marker="o", ms=3.5, label="ours")]
    if published:
        lines.append(
            Line2D([], [], color=MUTED, ls=(0, (4, 2)), lw=1.2, marker="o", ms=3, mfc="white",
                   label="paper (digitised)")
        )  # fmt: skip
    lines.append(Line2D([], [], color=MUTED, ls=":", lw=1.3, label="ours by chance"))
    lines.append(Line2D([], [], color=MUTED, lw=0.8, marker="x", ms=3.5, label="untrained"))
    return lines


def _check_runs(runs: Sequence[HeadSimilarityRun]) -> None:
    if not runs:
        raise ValueError("runs: expected at least one, got none")
    keys = pd.Series([f"{run.line}, {_SPLITS[run.split_heads][0]}" for run in runs])
    if keys.duplicated().any():
        raise ValueError(f"runs: {keys[keys.duplicated()].iloc[0]} stands there twice")

"""What a classifier gets right and wrong: confusion matrix, accuracy of each class, results page.

Shape legend: K classes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evitlab.figures.style import (
    INK,
    MUTED,
    PALETTE,
    add_caption,
    environment_line,
    house_style,
    new_figure,
)
from evitlab.figures.training import draw_curves
from evitlab.records import ClassificationReport, ClassResult, TrainingRecord

_SHOWN = 20  # classes that are told apart in one picture
_NAME = 24  # characters of a class's name
_CELL = 0.34  # inches
_BAR = 0.2  # inches
_MATRIX = 4.2  # inches of a side, on the results page
_FEWEST_ROWS = 6  # that bars are drawn for: two would be as thick as the page
_CAPTION_LETTER = 0.062  # inches
_OTHERS = "all others"


def confusion_matrix(report: ClassificationReport) -> Figure:
    """Images by true class (rows) and predicted class (columns).

    Colours are shares of the row, counts are written. Of more than 20 classes those that were
    confused most are shown, and a last column takes what was called by any other name.

    Pitfall: a row's colours look the same for five images as for five hundred: read the counts.
    """
    with house_style():
        size = 2.6 + _CELL * _columns(report)
        figure = new_figure(max(size, 4.6), max(size, 3.6))
        draw_confusion(figure.subplots(), report, cell=_CELL)
        return _captioned(figure, report)


def class_accuracy(report: ClassificationReport) -> Figure:
    """Accuracy of each class, worst first; of more than 20 classes the ten worst and ten best."""
    with house_style():
        figure = new_figure(6.4, 1.4 + _BAR * max(len(_ranked(report)), _FEWEST_ROWS))
        draw_class_accuracy(figure.subplots(), report)
        return _captioned(figure, report)


def results_page(record: TrainingRecord, report: ClassificationReport) -> Figure:
    """A trained classifier on one page: curves, accuracy of each class, confusion matrix.

    Args:
        record: of the training.
        report: of the trained model, over its validation data.

    Raises:
        ValueError: the training has no epoch.
    """
    with house_style():
        cell = min(_CELL, _MATRIX / _columns(report))
        rows = max(len(_ranked(report)), _FEWEST_ROWS)
        below = max(1.6 + _BAR * rows, 2.4 + cell * _columns(report))
        figure = new_figure(10.0, 3.5 + below)
        parts: Any = figure.subfigures(2, 1, height_ratios=(3.1, below))
        curves, classes = parts
        loss, top1 = curves.subplots(1, 2)
        draw_curves(loss, top1, [record])
        bars, matrix = classes.subplots(1, 2, width_ratios=(1, 1.35))
        draw_class_accuracy(bars, report)
        draw_confusion(matrix, report, cell=cell)
        height, width = record.img_size
        trained = f"{height}×{width} px · {record.train_images:,} training images"
        return _captioned(figure, report, trained)


def draw_confusion(axes: Axes, report: ClassificationReport, *, cell: float) -> None:
    """The matrix of `confusion_matrix` into axes that are there, with room for cells of so many
    inches."""
    counts = np.array(report.confusion)
    chosen = _most_confused(counts)
    names = [report.class_names[k] for k in chosen]
    shown = counts[np.ix_(chosen, chosen)]
    title = "Confusion matrix"
    if len(chosen) < len(counts):
        title = f"Most confused {len(chosen)} of {len(counts)} classes"
        rest = counts[chosen].sum(1) - shown.sum(1)
        shown = np.column_stack([shown, rest])
    totals = counts[chosen].sum(1)
    shares = shown / np.maximum(totals, 1)[:, None]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    digits = len(str(shown.max()))
    fontsize = min(8.0, 72 * cell / (0.7 * max(digits, 2)))
    for row, column in zip(*np.nonzero(shown), strict=True):
        axes.text(
            column, row, f"{shown[row, column]}", ha="center", va="center", fontsize=fontsize,
            color="white" if shares[row, column] > 0.55 else INK,
        )  # fmt: skip
    columns = [*names, _OTHERS] if shown.shape[1] > len(names) else names
    axes.set(title=title, xlabel="Predicted (colours: share of the row)", ylabel="True class")
    _name_ticks(axes, "x", columns)
    _name_ticks(axes, "y", names)
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(names)), minor=True)
    axes.grid(False)
    axes.grid(True, which="minor", color="white", lw=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_anchor("N")


def draw_class_accuracy(axes: Axes, report: ClassificationReport) -> None:
    """The bars of `class_accuracy` into axes that are there."""
    rows = _ranked(report)
    labels = []
    for y, row in enumerate(rows):
        if row is None:
            axes.text(2, y, f"… {len(report.classes) - len(rows) + 1} more", color=MUTED,
                      fontsize=8, va="center")  # fmt: skip
            labels.append("")
            continue
        labels.append(row.name)
        if row.accuracy is None:
            axes.text(2, y, "no images", color=MUTED, fontsize=8, va="center")
            continue
        axes.barh(y, row.accuracy, height=0.72, color=PALETTE[1])
        # In a column of their own: on the bars they would meet the line of the mean.
        axes.text(102, y, f"{row.accuracy:.0f} % of {row.n}", va="center", fontsize=8)
    axes.axvline(report.accuracy.top1, color=PALETTE[0], lw=1.2, ls=(0, (4, 2)))
    axes.text(
        report.accuracy.top1, 1.0, f"all: {report.accuracy.top1:.1f} %", color=PALETTE[0],
        fontsize=8, ha="center", va="bottom", transform=axes.get_xaxis_transform(),
    )  # fmt: skip
    axes.set_title("Accuracy of each class", pad=16)
    lowest = max(len(rows), _FEWEST_ROWS) - 0.4
    axes.set(xlabel="Recognised (%)", xlim=(0, 100), ylim=(lowest, -0.6))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    _name_ticks(axes, "y", labels)


def _ranked(report: ClassificationReport) -> list[ClassResult | None]:
    """The classes to show, worst first; None stands for those left out between."""
    ranked = sorted(
        report.classes, key=lambda row: (row.accuracy is None, row.accuracy or 0, row.name)
    )
    if len(ranked) <= _SHOWN:
        return [*ranked]
    known = [row for row in ranked if row.accuracy is not None]
    if len(known) <= _SHOWN:
        return [*known, None]
    return [*known[: _SHOWN // 2], None, *known[-_SHOWN // 2 :]]


def _columns(report: ClassificationReport) -> int:
    """Of the matrix that is drawn."""
    return min(len(report.classes), _SHOWN + 1)


def _most_confused(counts: np.ndarray) -> list[int]:
    """The classes to show, in their order: all, or those in most mistakes, made or taken part in.

    Pair by pair, so that what is shown is confusions and not classes that err everywhere.
    """
    if len(counts) <= _SHOWN:
        return list(range(len(counts)))
    wrong = counts - np.diag(counts.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")
    chosen: dict[int, None] = {}
    for place in order:
        pair = divmod(int(place), len(counts))
        if len(chosen | dict.fromkeys(pair)) > _SHOWN:
            break
        chosen |= dict.fromkeys(pair)
    return sorted(chosen)


def _name_ticks(axes: Axes, side: str, names: Sequence[str]) -> None:
    """Class names at a whole axis; "$" and "_" in them mean nothing."""
    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_ticks(range(len(names)), [_short(name) for name in names], fontsize=8)
    for label in axis.get_ticklabels():
        label.set_parse_math(False)
        if side == "x":
            label.set(rotation=90 if len(names) > 4 else 0)


def _short(name: str) -> str:
    """Beginning and end of a long name: many differ in their end alone."""
    if len(name) <= _NAME:
        return name
    head = math.ceil((_NAME - 1) * 0.6)
    return f"{name[:head]}…{name[-(_NAME - 1 - head):]}"


def _measured(report: ClassificationReport) -> str:
    """On what it was measured, and where."""
    card = environment_line(report.environment).removeprefix(f"{report.dataset} · ")
    return (
        f"{report.dataset} ({report.split}), {report.n:,} images, top-1 "
        f"{report.accuracy.top1:.1f} % · {card}"
    )


def _captioned(figure: Figure, report: ClassificationReport, *trained: str) -> Figure:
    """With a caption that breaks where the figure ends."""
    columns = int(figure.get_figwidth() / _CAPTION_LETTER)
    text = " · ".join((report.model, *trained, _measured(report)))
    return add_caption(figure, note=textwrap.fill(text, columns))

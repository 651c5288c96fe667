"""Training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evitlab.figures.style import (
    PALETTE,
    add_caption,
    environment_line,
    house_style,
    new_figure,
)
from evitlab.records import TrainingRecord


def training_curves(records: Sequence[TrainingRecord]) -> Figure:
    """Loss and top-1 over the epochs, one colour per run, the final top-1 written at its point.

    Raises:
        ValueError: no record, or one without an epoch.

    Pitfall: the training loss is taken under augmentation and soft targets, the validation loss is
    not, so the first may well stay above the second.
    """
    if not records:
        raise ValueError("records: expected at least one training record, got none")
    for record in records:
        if not record.history:
            raise ValueError(f"records: the run of {record.model!r} has no epoch")
    with house_style():
        figure = new_figure(9.0, 3.9)
        loss, top1 = figure.subplots(1, 2)
        draw_curves(loss, top1, records)
        return add_caption(figure, note=_summary(records))


def draw_curves(loss: Axes, top1: Axes, records: Sequence[TrainingRecord]) -> None:
    """The curves of `training_curves` into axes that are there."""
    loss.set(title="Loss", xlabel="Epoch", ylabel="Cross-entropy (nats)")
    top1.set(title="Accuracy", xlabel="Epoch", ylabel="Validation top-1 (%)")
    ends: list[tuple[int, float, str, str]] = []
    for i, record in enumerate(records):
        color = PALETTE[i % len(PALETTE)]
        epochs = [log.epoch for log in record.history]
        train_loss = [log.train_loss for log in record.history]
        dashes: dict[str, Any] = {"ls": (0, (4, 2)), "lw": 1.2, "label": "training"}
        loss.plot(epochs, train_loss, **_curve(color, len(epochs)), **dashes)
        checked = [log for log in record.history if log.val_top1 is not None]
        curve = _curve(color, len(checked))
        with_loss = [log for log in checked if log.val_loss is not None]
        loss.plot(
            [log.epoch for log in with_loss],
            np.array([log.val_loss for log in with_loss], float),
            label="validation",
            **curve,
        )
        reached = np.array([log.val_top1 for log in checked], float)
        top1.plot([log.epoch for log in checked], reached, **curve)
        top1.plot(epochs[-1], record.final.top1, marker="o", ms=6, color=color, ls="none")
        name = f"{record.model}  " if len(records) > 1 else ""
        ends.append((epochs[-1], record.final.top1, f"{name}{record.final.top1:.1f} %", color))
    for axes in (loss, top1):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(x=0.05, y=0.1)
    handles, _ = loss.get_legend_handles_labels()
    loss.legend(handles=handles[:2], loc="best", fontsize=8)
    _label_ends(top1, ends)


def seed_curves(groups: Mapping[str, Sequence[TrainingRecord]]) -> Figure:
    """Training loss and validation top-1 over the epochs: the mean of the seeds as a line, and as a
    band around it, from the lowest seed to the highest.

    Args:
        groups: runs by the name they are shown under; those of one name differ in the seed.

    Raises:
        ValueError: no group, a group without a run, or one whose runs differ in length.
    """
    if not groups:
        raise ValueError("groups: expected at least one, got none")
    for name, runs in groups.items():
        lengths = {len(run.history) for run in runs}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"groups: expected runs of one length in {name!r}, got {sorted(lengths)} epochs"
            )
    with house_style():
        figure = new_figure(9.0, 3.9)
        loss, top1 = figure.subplots(1, 2)
        loss.set(title="Training loss", xlabel="Epoch", ylabel="Cross-entropy (nats)")
        top1.set(title="Accuracy", xlabel="Epoch", ylabel="Validation top-1 (%)")
        ends: list[tuple[int, float, str, str]] = []
        for i, (name, runs) in enumerate(groups.items()):
            color = PALETTE[i % len(PALETTE)]
            _band(
                loss, [[(log.epoch, log.train_loss) for log in run.history] for run in runs], color
            )
            checked = [
                [(log.epoch, log.val_top1) for log in run.history if log.val_top1 is not None]
                for run in runs
            ]
            _band(top1, checked, color)
            final = sum(run.final.top1 for run in runs) / len(runs)
            ends.append((len(runs[0].history), final, f"{name}  {final:.1f} %", color))
        for axes in (loss, top1):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.margins(x=0.05, y=0.1)
        seeds = sorted({len(runs) for runs in groups.values()})
        said = " or ".join(map(str, seeds)) + f" seed{'s' * (seeds != [1])}"
        note = f"Line: mean of {said}; band: from the lowest seed to the highest.\n"
        add_caption(figure, note=note + _summary([run for runs in groups.values() for run in runs]))
        _label_ends(top1, ends)
    return figure


def _band(axes: Axes, curves: Sequence[Sequence[tuple[int, float]]], color: str) -> None:
    """Mean and extremes of the seeds, at the epochs that all of them have."""
    by_epoch: dict[int, list[float]] = {}
    for curve in curves:
        for epoch, value in curve:
            by_epoch.setdefault(epoch, []).append(value)
    epochs = sorted(epoch for epoch, values in by_epoch.items() if len(values) == len(curves))
    values = [by_epoch[epoch] for epoch in epochs]
    means = [sum(found) / len(found) for found in values]
    axes.plot(epochs, means, gid="mean", **_curve(color, len(epochs)))
    low, high = [min(found) for found in values], [max(found) for found in values]
    if len(curves) == 1:
        return
    if len(epochs) == 1:  # a band has no width here
        axes.plot(epochs * 2, [low[0], high[0]], color=color, lw=4, alpha=0.3, gid="band")
    else:
        axes.fill_between(epochs, low, high, color=color, alpha=0.25, lw=0, gid="band")


def _label_ends(axes: Axes, ends: list[tuple[int, float, str, str]]) -> None:
    """Write (epoch, top1, text, color) in one column right of the curves, in the points' order."""
    left, right = axes.get_xlim()
    axes.set_xticks([tick for tick in axes.get_xticks() if left <= tick <= right])
    axes.set_xlim(left, right + (right - left) * (0.14 if len(ends) == 1 else 0.5))
    low, high = axes.get_ylim()
    line_height = 0.055 * (high - low)
    below = low
    for epoch, top1, text, color in sorted(ends, key=lambda end: end[1]):
        y = max(top1, below + line_height)
        below = y
        axes.plot([epoch, right], [top1, y], color=color, lw=0.6, ls=(0, (1, 2)))
        axes.text(right, y, f" {text}", color=color, fontsize=9, fontweight="bold", va="center")
    axes.set_ylim(low, max(high, below + line_height))


def _curve(color: str, length: int) -> dict[str, Any]:
    """A line's look; a short one also shows its points, or one epoch would draw nothing."""
    return {"color": color, "marker": "o" if length < 12 else None, "ms": 3.5}


def _summary(records: Sequence[TrainingRecord]) -> str:
    """What was trained, on what and where: one line for all runs that agree on it."""
    models: dict[str, list[str]] = {}
    for record in records:
        height, width = record.img_size
        line = (
            f"{height}×{width} px · {record.train_images:,} training images · "
            f"{environment_line(record.environment)}"
        )
        models.setdefault(line, []).append(record.model)
    lines = (f"{', '.join(dict.fromkeys(names))} · {line}" for line, names in models.items())
    return "\n".join(lines)

"""Channels: Fig. 5, the scores behind it, what a score means, and the recovery after the cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from evitlab import paper
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
from evitlab.records import (
    WIDTHS,
    ChannelCuts,
    ChannelImportance,
    ChannelWidths,
    PruningRecord,
)

_TITLES = {"qk": "Q, K", "v": "V", "ffn": "FFN", "q": "Q", "k": "K"}
_COLORS = {"qk": PALETTE[1], "v": PALETTE[0], "ffn": PALETTE[2], "q": PALETTE[1], "k": PALETTE[5]}
_PAPERS = {"Swin-T": "swin_t"}  # whose channels Fig. 5 shows, and how our models of it begin


def fig5_channels(records: Sequence[PruningRecord], *, published: bool = True) -> Figure:
    """Channels of Q and K, of V and of the FFN over those of the block's input, before and after.

    Args:
        records: one row of panels each.
        published: also show the paper's numbers where its model is shown.

    Raises:
        ValueError: no record, or one without a width.

    Paper: Fig. 5. Its bars were read from the drawing, hence their error.
    """
    if not records or not all(record.widths for record in records):
        raise ValueError("records: expected at least one pruning record with widths, got none")
    with house_style():
        figure = new_figure(10.0, 0.75 + 2.15 * len(records))
        panels = figure.subplots(len(records), 3, squeeze=False)
        for row, record in zip(panels, records, strict=True):
            for axes, component in zip(row, WIDTHS, strict=True):
                _draw_widths(axes, record, component)
                if published:
                    _draw_published(axes, record, component)
            share = 100 * record.macs_after / record.macs_before
            row[0].set_ylabel(
                f"{record.model}, {share:.0f} % of MACs\nChannels / input channels", fontsize=8
            )
        for axes in panels[-1]:
            axes.set_xlabel("Block" if axes.patches else "")
        handles = {
            label: handle
            for axes in panels.flat
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper right", ncols=3, fontsize=8
        )
        notes = [accuracies_line(record) for record in records]
        if any(label.startswith("paper") for label in handles):
            notes.append(_paper_line())
        notes.append(environment_line(records[0].environment))
        add_caption(figure, note="\n".join(notes))
    return figure


def accuracies_line(record: PruningRecord) -> str:
    """ "deit_t: top-1 70.1 % -> 31.0 % pruned -> 68.9 % recovered; 70 % of the MACs"."""
    parts = []
    for name, accuracy in (
        ("", record.before), (" pruned", record.pruned), (" recovered", record.recovered)
    ):  # fmt: skip
        if accuracy is not None:
            parts.append(f"{accuracy.top1:.1f} %{name}")
    top1 = f"top-1 {' → '.join(parts)}; " if parts else ""
    share = 100 * record.macs_after / record.macs_before
    return f"{record.model}: {top1}{share:.0f} % of the MACs left, criterion {record.criterion}"


def _paper_line() -> str:
    (before, after) = (
        paper.number("fig5", model="Swin-T", state=state, quantity="top1")
        for state in ("origin", "pruned")
    )
    return f"Paper's Swin-T on ImageNet: top-1 {before} → {after} pruned and trained again"


def _draw_widths(axes: Axes, record: PruningRecord, component: str) -> None:
    axes.set_title(_TITLES[component])
    widths = [width for width in record.widths if width.component == component]
    if not widths:
        axes.text(
            0.5, 0.5, "not free: tied to the split", color=MUTED, ha="center",
            transform=axes.transAxes,
        )  # fmt: skip
        axes.set(xticks=[], yticks=[])
        return
    blocks = sorted({width.block for width in widths})
    before, after = (np.array([_ratio(widths, block, state) for block in blocks])
                     for state in ("before", "after"))  # fmt: skip
    axes.bar(blocks, before, 0.8, fc="none", ec=MUTED, lw=0.9, label="origin", gid="origin")
    axes.bar(blocks, after, 0.8, color=_COLORS[component], alpha=0.9, gid="pruned",
             label="pruned" if component == WIDTHS[0] else None)  # fmt: skip
    axes.set(xlim=(min(blocks) - 0.7, max(blocks) + 0.7), ylim=(0, 1.12 * before.max()))
    axes.xaxis.set_major_locator(FixedLocator(blocks))
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0, labelsize=8)


def _ratio(widths: Sequence[ChannelWidths], block: int, state: str) -> float:
    """Of one block; the mean where it has several such layers."""
    ratios = [getattr(width, f"ratio_{state}") for width in widths if width.block == block]
    return sum(ratios) / len(ratios)


def _draw_published(axes: Axes, record: PruningRecord, component: str) -> None:
    table = paper.load("fig5")
    for title, name in _PAPERS.items():
        rows = table[
            (table["model"] == title) & (table["state"] == "pruned")
            & (table["projection"] == component)
        ]  # fmt: skip
        blocks = {width.block for width in record.widths}
        if record.model.startswith(name) and blocks == set(rows["block"].astype(int)):
            axes.errorbar(
                rows["block"].astype(int), rows["value"], yerr=rows["error"], color=INK, ls="none",
                marker="D", ms=3.6, lw=1.0, label=f"paper's {title}, pruned (digitised)",
                gid="paper",
            )  # fmt: skip


def channel_scores(importance: ChannelImportance) -> Figure:
    """Scores of all channels by block: a bar from the 10th to the 90th percentile, and the median.

    Raises:
        ValueError: no channels, or no score above 0.
    """
    frame = importance.to_frame()
    positive = frame["score"][frame["score"] > 0]
    if positive.empty:
        raise ValueError("importance: expected channels with scores above 0, got none")
    floor = positive.quantile(0.001)
    components = list(dict.fromkeys(group.component for group in importance.channels))
    with house_style():
        figure = new_figure(10.0, 3.1)
        panels = figure.subplots(1, len(components), squeeze=False, sharey=True)[0]
        for axes, component in zip(panels, components, strict=True):
            rows = frame[frame["component"] == component].groupby("block")["score"]
            for block, scores in rows:
                low, middle, high = np.maximum(np.quantile(scores, (0.1, 0.5, 0.9)), floor)
                color = _COLORS[component]
                axes.plot([block, block], [low, high], color=color, lw=5, alpha=0.35,
                          solid_capstyle="butt")  # fmt: skip
                axes.plot(block, middle, marker="o", ms=4, color=color, gid="median")
            axes.set(title=_TITLES[component], xlabel="Block", yscale="log")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("Score of a channel")
        add_caption(
            figure,
            note=f"{importance.model}, criterion {importance.criterion}, {importance.images:,} "
            "images. Bars: 10th to 90th percentile; points: medians.\n"
            f"{environment_line(importance.environment)}",
        )
    return figure


def channel_cuts(record: ChannelCuts) -> Figure:
    """What a score means: how much the loss changes when single channels are cut, by their score.

    Under the criterion "taylor" the line is the change that the score predicts, its square root.

    Raises:
        ValueError: no cut.

    Pitfall: a cut can also lower the loss; shown is the size of the change, hollow where it fell.
    """
    if not record.cuts:
        raise ValueError("record: expected at least one cut, got none")
    with house_style():
        figure = new_figure(10.0, 3.6)
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        scores = np.array([cut.score for cut in record.cuts])
        changes = np.abs([cut.loss_change for cut in record.cuts])
        floor = changes[changes > 0].min(initial=1e-3)  # where a cut changed nothing at all
        for component in dict.fromkeys(cut.component for cut in record.cuts):
            for fell in (False, True):
                chosen = [
                    i for i, cut in enumerate(record.cuts)
                    if cut.component == component and (cut.loss_change < 0) == fell
                ]  # fmt: skip
                color = _COLORS[component]
                left.plot(
                    scores[chosen], np.maximum(changes[chosen], floor), marker="o", ms=4.5,
                    ls="none", mec=color, mfc="none" if fell else color, mew=1.0, gid="cut",
                    label=None if fell else _TITLES[component],
                )  # fmt: skip
        if record.criterion == "taylor":
            ends = np.array([scores[scores > 0].min(), scores.max()])
            left.plot(ends, np.sqrt(ends), color=INK, lw=1.0, label="predicted", gid="predicted")
        left.set(xscale="log", yscale="log", xlabel="Score", ylabel="Change of the loss (nats)")
        left.set_title("Single channels, cut one at a time")
        left.legend(fontsize=8, loc="upper left")
        _draw_ends(right, record)
        add_caption(
            figure,
            note=f"{record.model}, criterion {record.criterion}, {record.images:,} images, loss "
            f"{record.loss:.3f} with all channels. Hollow: the loss fell.\n"
            f"{environment_line(record.environment)}",
        )
    return figure


def _draw_ends(axes: Axes, record: ChannelCuts) -> None:
    """Mean size of the change for channels of the lowest and of the highest scores."""
    components = list(dict.fromkeys(cut.component for cut in record.cuts))
    for i, component in enumerate(components):
        for side, name in enumerate(("lowest", "highest")):
            changes = [
                abs(cut.loss_change) for cut in record.cuts
                if cut.component == component and (cut.rank > 0.5) == bool(side)
            ]  # fmt: skip
            if changes:
                mean = sum(changes) / len(changes)
                axes.bar(
                    i + 0.38 * (side - 0.5), mean, 0.36, color=_COLORS[component],
                    alpha=1 if side else 0.45, gid=name,
                )  # fmt: skip
                axes.annotate(
                    f"{mean:.1g}", (i + 0.38 * (side - 0.5), mean), (0, 2), fontsize=7,
                    textcoords="offset points", ha="center",
                )  # fmt: skip
    axes.set(yscale="log", title="Pale: low scores; full: high scores")
    axes.set_ylabel("Mean change of the loss (nats)")
    axes.set_xticks(range(len(components)), labels=[_TITLES[name] for name in components])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.15)


def recovery_curve(records: Sequence[PruningRecord]) -> Figure:
    """Top-1 before the cut, right after it, and over the epochs of the training that follows.

    Raises:
        ValueError: no record, or one without its accuracies and a training that was validated.
    """
    if not records:
        raise ValueError("records: expected at least one pruning record, got none")
    with house_style():
        figure = new_figure(7.0, 3.6)
        axes = figure.subplots()
        for i, record in enumerate(records):
            if record.before is None or record.pruned is None or record.recovery is None:
                raise ValueError(
                    f"records: expected accuracies and a recovery, {record.model!r} has none"
                )
            epochs, top1 = [0], [record.pruned.top1]
            for log in record.recovery.history:
                if log.val_top1 is not None:
                    epochs.append(log.epoch)
                    top1.append(log.val_top1)
            color = PALETTE[i % len(PALETTE)]
            share = 100 * record.macs_after / record.macs_before
            label = f"{record.model}, {record.criterion}, {share:.0f} % of the MACs"
            axes.plot(epochs, top1, color=color, marker="o", ms=4, label=label)
            axes.axhline(record.before.top1, color=color, lw=1.0, ls=(0, (4, 2)), gid="before")
            axes.annotate(f"{top1[-1]:.1f} %", (epochs[-1], top1[-1]), (6, -9), color=color,
                          textcoords="offset points", va="center", fontweight="bold")  # fmt: skip
        axes.set(xlabel="Epochs after the cut", ylabel="Validation top-1 (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.12, y=0.08)
        axes.spines["bottom"].set_color(RULE)
        figure.legend(loc="outside upper left", fontsize=8, ncols=2)
        add_caption(figure, records[0].environment, note="Dashed: before the cut.")
    return figure

"""Table 4 and larger images: what pretrained weights bring elsewhere, and at other sizes."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evitlab.figures.style import INK, MUTED, PALETTE, add_caption, house_style, new_figure
from evitlab.records import Environment

_TITLES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "flowers102": "Flowers-102",
    "pets": "Pets",
    "cars": "Cars",
}
# column of the frame, label, colour, marker
_STARTS = (
    ("finetuned", "ours, fine-tuned", PALETTE[0], "o"),
    ("scratch", "ours, from scratch", PALETTE[4], "D"),
)
_PAPER = (
    ("paper", "paper, M5 fine-tuned", PALETTE[1], "s"),
    ("paper_others", "paper, best of its peers", PALETTE[7], "v"),
)


def table4_transfer(
    frame: pd.DataFrame, *, environment: Environment | None = None, note: str = ""
) -> Figure:
    """Top-1 on each data set: the paper's transfer beside fine-tuning and training from scratch
    here; bars reach from the worst seed to the best.

    Args:
        frame: `paper.transfer(...)`; a data set that was not run here says so.
        environment: what ours was trained on, for the caption.
        note: what else the caption should say: model, budget, where the weights are from.

    Raises:
        ValueError: a column is missing, or there is no data set.

    Paper: Table 4.
    Pitfall: the paper's weights are from ImageNet at 224 pixels; compare the gain with what the
    same budget gives from scratch, not with the paper's heights.
    """
    starts = [column for column, *_ in _STARTS]
    spread = [f"{start}_{end}" for start in starts for end in ("low", "high", "seeds")]
    _require(frame, ("data", "dataset", "paper", "paper_others", "gain", *starts, *spread))
    with house_style():
        figure = new_figure(8.6, 1.7 + 0.55 * len(frame))
        axes = figure.add_subplot()
        axes.set_xlabel("Top-1 (%)")
        labels = []
        for place, row in enumerate(frame.to_dict("records")):
            for column, _, color, marker in _PAPER:
                if not math.isnan(row[column]):
                    axes.plot(row[column], place - 0.14, marker, ms=6, color=color, gid=column)
            both = [row[start] for start in starts]
            if not any(map(math.isnan, both)):
                axes.plot(both, [place + 0.14] * 2, color=MUTED, lw=1.0, zorder=1)
                axes.annotate(
                    f"{row['gain']:+.1f} points".replace("-", "−"),
                    (sum(both) / 2, place + 0.14), xytext=(0, -4), textcoords="offset points",
                    ha="center", va="top", fontsize=8, color=INK, gid="gain",
                )  # fmt: skip
            for column, _, color, marker in _STARTS:
                if math.isnan(row[column]):
                    continue
                ends = [row[f"{column}_low"], row[f"{column}_high"]]
                axes.plot(ends, [place + 0.14] * 2, color=color, lw=3, alpha=0.5, gid="seeds")
                axes.plot(row[column], place + 0.14, marker, ms=6.5, color=color, gid=column)
            run = any(row[f"{start}_seeds"] for start in starts)
            title = (row["dataset"] if run else None) or _TITLES.get(row["data"], row["data"])
            labels.append(title if run else f"{title}\n(not run here)")
        ticks = axes.set_yticks(range(len(frame)), labels=labels)
        for tick, text in zip(ticks, labels, strict=True):
            tick.label1.set_color(MUTED if "\n" in text else INK)
        axes.set_ylim(len(frame) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.06)
        handles = [
            Line2D([], [], ls="none", marker=marker, ms=6, color=color, label=label)
            for column, label, color, marker in (*_PAPER, *_STARTS)
            if frame[column].notna().any()
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8)
        text = "Paper: weights from ImageNet at 224 pixels."
        add_caption(figure, environment, note="\n".join(filter(None, (text, note))))
    return figure


def resolution(
    frame: pd.DataFrame, *, environment: Environment | None = None, note: str = ""
) -> Figure:
    """Top-1 and cost over the image size: weights as they are, their bias tables resized, and
    fine-tuned at that size.

    Args:
        frame: `study_frame` of the study "resolution": variant ("before-48", "after-48"), top1,
            top1_error, macs (of the fine-tuned).
        environment: what it ran on, for the caption.
        note: what else the caption should say.

    Raises:
        ValueError: a column is missing, or no such run is there.

    Paper: Table 3's M5 at 384 and 512 pixels.
    Pitfall: an enlarged small image holds no more detail; it is looked at in more tokens.
    """
    _require(frame, ("variant", "top1", "top1_error", "macs"))
    stages = frame["variant"].str.extract(r"^(before|after)-(\d+)$")
    frame = frame.assign(stage=stages[0], size=stages[1].astype(float)).dropna(subset=["size"])
    if frame.empty:
        raise ValueError("frame: expected runs named before-SIZE or after-SIZE, got none")
    sizes = sorted(frame["size"].unique())
    with house_style():
        figure = new_figure(9.0, 3.9)
        top1, cost = figure.subplots(1, 2)
        top1.set(title="Accuracy", xlabel="Image size (pixels)", ylabel="Top-1 (%)")
        cost.set(title="Cost", xlabel="Image size (pixels)", ylabel="MACs for one image (million)")
        looks = (
            ("before", "weights as they are", PALETTE[7], "s"),
            ("after", "fine-tuned at that size", PALETTE[0], "o"),
        )
        for stage, label, color, marker in looks:
            rows = frame[frame["stage"] == stage].sort_values("size")
            if rows.empty:
                continue
            top1.errorbar(
                rows["size"], rows["top1"], yerr=rows["top1_error"], label=label,
                color=color, marker=marker, ms=6, lw=1.6, elinewidth=1.0, gid=stage,
            )  # fmt: skip
        top1.legend(loc="best", fontsize=8)
        spent = frame.dropna(subset=["macs"]).drop_duplicates("size").sort_values("size")
        cost.plot(spent["size"], spent["macs"] / 1e6, marker="o", color=PALETTE[1], gid="macs")
        cost.set_ylim(bottom=0)
        for size, macs in zip(spent["size"], spent["macs"], strict=True):
            cost.annotate(
                f"{macs / 1e6:.0f} M", (size, macs / 1e6), xytext=(-6, 5),
                textcoords="offset points", ha="right", fontsize=8,
            )  # fmt: skip
        for axes in (top1, cost):
            _size_ticks(axes, sizes)
        text = "Bars: 95 % interval of the validation images."
        add_caption(figure, environment, note=" ".join(filter(None, (text, note))))
    return figure


def _size_ticks(axes: Axes, sizes: list[float]) -> None:
    axes.set_xticks(sizes, labels=[f"{size:g}" for size in sizes])
    axes.margins(x=0.12, y=0.12)


def _require(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"frame: expected the columns {', '.join(columns)}; missing {missing[0]}")
    if frame.empty:
        raise ValueError("frame: expected at least one row, got none")

"""What a detector learnt and what it finds: curves, boxes beside the true ones, Table 5."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from evitlab.figures.detections import class_color
from evitlab.figures.names import NameTags
from evitlab.figures.style import (
    MUTED,
    PALETTE,
    add_caption,
    environment_line,
    house_style,
    new_figure,
)
from evitlab.records import DetectionRecord, Environment

_MEASURES = {"ap": "AP", "ap50": "AP at IoU 0.5", "ap75": "AP at IoU 0.75"}
_COLORS = dict(zip(_MEASURES, PALETTE, strict=False))


class Found(Protocol):
    """What was found on a picture, as `predict_boxes` gives it."""

    @property
    def boxes(self) -> Any: ...  # [n, 4], pixels

    @property
    def labels(self) -> Any: ...  # [n]

    @property
    def scores(self) -> Any: ...  # [n]


def detection_curves(records: Sequence[DetectionRecord]) -> Figure:
    """Training loss and box AP over the epochs, one colour per run, the final AP at its point.

    Raises:
        ValueError: no record, or one without an epoch.

    Pitfall: the caption says which images AP was measured on; on those that were learnt from it
    tells only whether they were learnt.
    """
    if not records:
        raise ValueError("records: expected at least one training record, got none")
    for record in records:
        if not record.history:
            raise ValueError(f"records: the run of {record.model!r} has no epoch")
    with house_style():
        figure = new_figure(9.0, 3.9)
        loss, ap = figure.subplots(1, 2)
        loss.set(title="Training loss", xlabel="Epoch", ylabel="Focal and box loss", yscale="log")
        ap.set(title="Box AP", xlabel="Epoch", ylabel="COCO AP (%)")
        for number, record in enumerate(records):
            color = PALETTE[number % len(PALETTE)]
            epochs = [log.epoch for log in record.history]
            few = "." if len(epochs) < 12 else None
            losses = [log.train_loss for log in record.history]
            loss.plot(epochs, losses, color=color, marker=few, gid="loss", label=record.model)
            for name, dashes in (("val_ap", "-"), ("val_ap50", (0, (4, 2)))):
                logs = [log for log in record.history if getattr(log, name) is not None]
                ap.plot(
                    [log.epoch for log in logs], [getattr(log, name) for log in logs],
                    color=color, ls=dashes, marker="." if len(logs) < 12 else None, gid=name,
                    label={"val_ap": "AP", "val_ap50": "AP at IoU 0.5"}[name],
                )  # fmt: skip
            ap.plot(epochs[-1], record.final.ap, "o", ms=6, color=color, gid="final")
            ap.annotate(
                f"{record.final.ap:.1f} %", (epochs[-1], record.final.ap), xytext=(7, 0),
                textcoords="offset points", va="center", color=color, fontweight="bold",
                annotation_clip=False,
            )  # fmt: skip
        for axes in (loss, ap):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ap.set_ylim(0, 100)
        left, right = ap.get_xlim()
        ap.set_xlim(left, right + 0.08 * (right - left))
        ap.legend(handles=ap.get_lines()[:2], loc="best", fontsize=8)
        if len(records) > 1:
            loss.legend(loc="best", fontsize=8)
        lines = [
            f"{record.model} · {_size(record)} · learnt from {record.train_images:,} images, "
            f"AP on {record.validated_on}\n{environment_line(record.environment)}"
            for record in records
        ]
        add_caption(figure, note="\n".join(lines))
    return figure


def boxes_beside_truth(
    pictures: Sequence[Any],
    truth: Sequence[tuple[Any, Any]],
    found: Sequence[Found],
    *,
    class_names: Sequence[str],
    threshold: float = 0.3,
    environment: Environment | None = None,
    note: str = "",
) -> Figure:
    """The true boxes of each picture above what a detector finds on it, in the classes' colours.

    Args:
        pictures: uint8 [3, H, W] each, some five at most.
        truth: (boxes [n, 4], labels [n]) of each.
        found: of `predict_boxes`, for the same pictures.
        class_names: one per class.
        threshold: boxes of lower scores are not drawn.
        environment: what found them, for the caption.
        note: what else the caption should say.

    Raises:
        ValueError: no picture, or not as many truths and answers.
    """
    if not pictures or not len(pictures) == len(truth) == len(found):
        raise ValueError(
            "pictures: expected at least one, with a truth and an answer each, got "
            f"{len(pictures)}, {len(truth)} and {len(found)}"
        )
    shown = [np.asarray(picture).transpose(1, 2, 0) for picture in pictures]
    tallest = max(picture.shape[0] / picture.shape[1] for picture in shown)
    width = min(3.1, 9.6 / len(shown))
    with house_style():
        figure = new_figure(max(width * len(shown), 4.2), 0.9 + 2 * (width * tallest + 0.1))
        grid = figure.subplots(2, len(shown), squeeze=False)
        for column, (picture, (boxes, labels), answer) in enumerate(
            zip(shown, truth, found, strict=True)
        ):
            kept = np.asarray(answer.scores) >= threshold
            rows = (
                ("True boxes", np.asarray(boxes), np.asarray(labels), None),
                (
                    f"Found, score from {threshold:g}", np.asarray(answer.boxes)[kept],
                    np.asarray(answer.labels)[kept], np.asarray(answer.scores)[kept],
                ),
            )  # fmt: skip
            for axes, (title, own, numbers, scores) in zip(grid[:, column], rows, strict=True):
                _draw_found(axes, picture, own, numbers, scores, class_names, width)
                if column == 0:
                    axes.set_title(title)
        columns = int(figure.get_figwidth() / 0.058)
        card = environment_line(environment) if environment else ""
        text = "\n".join(textwrap.fill(part, columns) for part in (note, card) if part)
        add_caption(figure, note=text)
    return figure


def table5_detection(
    frame: pd.DataFrame, *, environment: Environment | None = None, note: str = ""
) -> Figure:
    """Table 5's box AP, and in a panel of its own what was trained here: the images differ, so
    the two are not to be compared.

    Args:
        frame: `paper.table5(...)`.
        environment: what ours was trained on, for the caption.
        note: what else the caption should say.

    Raises:
        ValueError: a column is missing, or the frame is empty.

    Paper: Table 5.
    """
    for column in ("source", "model", *_MEASURES, "measured_on"):
        if column not in frame:
            raise ValueError(f"frame: expected the columns of paper.table5, missing {column!r}")
    if frame.empty:
        raise ValueError("frame: expected at least one row, got none")
    groups = [
        (title, frame[frame["source"] == source].to_dict("records"))
        for source, title in (("paper", "Paper: COCO"), ("ours", "Here: other images"))
        if (frame["source"] == source).any()
    ]
    most = max(len(rows) for _, rows in groups)
    with house_style():
        figure = new_figure(1.2 + 4.2 * len(groups), 1.75 + 0.56 * most)
        grid = figure.subplots(1, len(groups), squeeze=False)[0]
        for axes, (title, rows) in zip(grid, groups, strict=True):
            _draw_ap(axes, rows, most)
            axes.set_title(title)
        handles = [Patch(color=_COLORS[name], label=label) for name, label in _MEASURES.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8)
        text = "An AP belongs to the images it was measured on: the panels are not comparable."
        card = environment_line(environment) if environment else ""
        add_caption(figure, note="\n".join(filter(None, (text, note, card))))
    return figure


def _draw_ap(axes: Axes, rows: list[dict[Any, Any]], most: int) -> None:
    labels = []
    for y, row in enumerate(rows):
        derived = row.get("provenance") == "derived"
        for lane, name in enumerate(_MEASURES):
            if np.isnan(row[name]):
                continue
            place, color = y + 0.26 * (lane - 1), _COLORS[name]
            axes.barh(
                place, row[name], 0.22, gid=name, ec=color, lw=1.0,
                fc="white" if derived else color,
            )  # fmt: skip
            axes.text(row[name] + 1.2, place, f"{row[name]:.1f}", va="center", fontsize=7.5)
        where = "derived from a stated difference" if derived else row["measured_on"]
        labels.append(f"{row['model']}\n{textwrap.fill(str(where), 30)}")
    axes.set_yticks(range(len(rows)), labels=labels, fontsize=7.5)
    for tick in axes.get_yticklabels():
        tick.set_parse_math(False)
    axes.set_ylim(most - 0.5, -0.5)
    axes.set(xlabel="Box AP (%)", xlim=(0, 110))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def _draw_found(
    axes: Axes,
    picture: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    class_names: Sequence[str],
    inches: float,
) -> None:
    """One picture with boxes and names."""
    height, width = picture.shape[:2]
    axes.imshow(picture, extent=(0, width, height, 0), interpolation="antialiased")
    axes.set_axis_off()
    axes.set_anchor("N")
    tags = NameTags(axes, width, height, inches=inches - 0.1, crowded=len(boxes) > 8)
    for i, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        color = class_color(label)
        x1, y1, x2, y2 = box
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="white", lw=2.8, gid="halo")
        )
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, lw=1.6, gid="box")
        )
        name = class_names[label] if label < len(class_names) else str(label)
        tags.add(box, name if scores is None else f"{name} {scores[i]:.2f}", color)
    if not len(boxes):
        axes.text(
            0.5, 0.5, "nothing", transform=axes.transAxes, ha="center", va="center", color="white",
            fontsize=8, bbox={"fc": MUTED, "ec": "none", "pad": 2}, gid="nothing",
        )  # fmt: skip


def _size(record: DetectionRecord) -> str:
    short, long = record.img_size
    return f"{short} px (at most {long})"

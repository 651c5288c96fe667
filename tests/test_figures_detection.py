"""Figures of detection, read by their artists; the anchors of a picture; Table 5."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from timed_records import CARD

from evitlab import figures, open_detection, paper
from evitlab.analysis.anchors import place_anchors
from evitlab.datasets import Detections
from evitlab.figures.detections import class_color
from evitlab.models.detector import create_detector
from evitlab.records import (
    DETECTOR_PARTS,
    AnchorPlan,
    BoxAP,
    DetectionLog,
    DetectionRecord,
    DetectorPart,
    DetectorSpeed,
    DetectorTiming,
)

DATA = dataclasses.replace(CARD, dataset="scenes of shapes", scale="quick")
SIZE = 256


def texts(figure: Figure) -> str:
    figure.draw_without_rendering()
    return "\n".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))  # type: ignore[attr-defined]


def artists(axes: Axes, gid: str) -> list[Any]:
    return [artist for artist in axes.findobj() if artist.get_gid() == gid]


def corners(patch: Rectangle) -> tuple[float, ...]:
    x, y = patch.get_xy()
    return x, y, x + patch.get_width(), y + patch.get_height()


@pytest.fixture(scope="module")
def scenes():
    """Four pictures with a box of its own size each: 40, 100, 160 and 220 pixels."""
    data = open_detection("scenes", "val").take(range(4))
    sides = (40.0, 100.0, 160.0, 220.0)
    boxes = tuple(torch.tensor([[8.0, 8.0, 8.0 + side, 8.0 + side]]) for side in sides)
    labels = tuple(torch.tensor([i]) for i in range(4))
    return dataclasses.replace(
        data, boxes=boxes, labels=labels, crowd=(torch.tensor([False]),) * 4
    )


@pytest.fixture(scope="module")
def detector():
    return create_detector("efficientvit_m0", num_classes=10, img_size=SIZE, channels=16)


@pytest.mark.parametrize(("index", "level"), [(0, 0), (1, 1), (2, 2), (3, 2)])
def test_an_object_falls_to_the_level_of_its_size(index, level, scenes, detector):
    """Anchors of a level are 4, 5.04 and 6.35 strides long: 220 is nearer to 203 than to 256."""
    plan = place_anchors(detector, scenes, index)
    found = [number for number, own in enumerate(plan.levels) if own.boxes == (0,)]
    assert found == [level] and 0.5 < plan.overlaps[0] <= 1
    assert plan.levels[level].matched > 0
    assert plan.boxes == ((*scenes.boxes[index][0].tolist(),),)
    assert plan.names == (scenes.class_names[index],)


def test_positions_and_anchors_by_hand(scenes, detector):
    plan = place_anchors(detector, scenes, 2)
    height, width = plan.img_size
    assert {height, width} == {256, 320}
    grids = [own.grid for own in plan.levels]
    assert grids == [(-(-height // s), -(-width // s)) for s in (8, 16, 32, 64, 128)]
    first = plan.levels[0]
    assert len(first.anchors) == 9 and first.total == 9 * first.grid[0] * first.grid[1]
    assert list(first.sides) == pytest.approx([32, 50.8], rel=0.03)
    for x1, y1, x2, y2 in first.anchors:  # around the middle of the picture
        assert ((x1 + x2) / 2, (y1 + y2) / 2) == (width / 2, height / 2)


def test_a_picture_without_boxes_and_a_crowd(scenes, detector, tmp_path):
    crowd = dataclasses.replace(scenes, crowd=(torch.tensor([True]),) * 4)
    plan = place_anchors(detector, crowd, 0)
    assert plan.boxes == () and all(own.matched == 0 for own in plan.levels)
    assert AnchorPlan.load(plan.save(tmp_path / "plan.json")) == plan
    assert list(plan.to_frame()["stride"]) == [8, 16, 32, 64, 128]
    with pytest.raises(ValueError, match="index: expected 0 to 3, got 4"):
        place_anchors(detector, crowd, 4)


def test_pyramid_draws_positions_anchors_and_objects(scenes, detector):
    plan = place_anchors(detector, scenes, 1)
    figure = figures.detector_pyramid(plan, scenes.image(1))
    overview, *levels = figure.axes
    assert len(levels) == len(plan.levels)
    assert len(artists(overview, "object")) == 1
    (name,) = artists(overview, "name")
    assert name.get_text() == plan.names[0]
    for axes, own in zip(levels, plan.levels, strict=True):
        assert [corners(patch) for patch in artists(axes, "anchor")] == [
            pytest.approx(anchor) for anchor in own.anchors
        ]
        assert len(artists(axes, "object")) == len(own.boxes)
        (dots,) = artists(axes, "positions")
        assert len(dots.get_xdata()) == own.grid[0] * own.grid[1] and max(dots.get_xdata()) < 320
        assert f"Stride {own.stride}" in axes.get_title(loc="left")
    learn = sum(own.matched for own in plan.levels)
    assert f"{learn:,} of {sum(own.total for own in plan.levels):,} anchors" in texts(figure)
    with pytest.raises(ValueError, match=r"picture: expected \[3, H, W\], got \[256, 320\]"):
        figures.detector_pyramid(plan, np.zeros((256, 320)))


def found_on(scenes: Any, *scores: float) -> list[Detections]:
    """The true boxes, each moved by 2 pixels, with these scores."""
    return [
        Detections(file, i, boxes + 2, labels, torch.tensor([score]))
        for i, (file, boxes, labels, score) in enumerate(
            zip(scenes.files, scenes.boxes, scenes.labels, scores, strict=False)
        )
    ]


def test_found_boxes_below_the_true_ones(scenes):
    pictures = [scenes.image(i) for i in range(3)]
    truth = [(scenes.boxes[i], scenes.labels[i]) for i in range(3)]
    answers = found_on(scenes, 0.9, 0.3, 0.29)
    figure = figures.boxes_beside_truth(
        pictures, truth, answers, class_names=scenes.class_names, environment=DATA, note="4 epochs"
    )
    above, below = figure.axes[:3], figure.axes[3:]
    for i, axes in enumerate(above):
        (box,) = artists(axes, "box")
        assert corners(box) == pytest.approx(scenes.boxes[i][0].tolist())
        (name,) = artists(axes, "name")
        assert name.get_text() == scenes.class_names[i]
        assert name.get_bbox_patch().get_facecolor()[:3] == box.get_edgecolor()[:3]
    for i, axes in enumerate(below[:2]):
        (box,) = artists(axes, "box")
        assert corners(box) == pytest.approx((scenes.boxes[i][0] + 2).tolist())
        assert artists(axes, "name")[0].get_text() == f"{scenes.class_names[i]} {(0.9, 0.3)[i]:.2f}"
    assert not artists(below[2], "box") and artists(below[2], "nothing")
    for said in ("True boxes", "Found, score from 0.3", "4 epochs", "scale quick"):
        assert said in texts(figure)
    assert class_color(0) != class_color(1)
    with pytest.raises(ValueError, match="pictures: expected at least one, .* got 3, 3 and 1"):
        figures.boxes_beside_truth(
            pictures, truth, answers[:1], class_names=scenes.class_names
        )


def test_names_keep_off_each_other(scenes):
    """Four boxes of one place: each name finds a place of its own, inside the picture."""
    boxes = torch.tensor([[100.0, 100.0, 180.0, 180.0]]).repeat(4, 1)
    figure = figures.boxes_beside_truth(
        [scenes.image(2)], [(boxes, torch.arange(4))],
        [Detections("", 0, boxes, torch.arange(4), torch.linspace(0.9, 0.6, 4))],
        class_names=scenes.class_names,
    )  # fmt: skip
    figure.draw_without_rendering()
    for axes in figure.axes:
        plates = [text.get_bbox_patch().get_window_extent() for text in artists(axes, "name")]
        assert len(plates) == 4
        for i, one in enumerate(plates):
            assert axes.bbox.x0 - 3 <= one.x0 and one.x1 <= axes.bbox.x1 + 3
            for other in plates[:i]:
                overlap = one.intersection(one, other)
                assert overlap is None or overlap.width * overlap.height < 0.1 * one.size.prod()


def trained(model: str = "efficientvit_m0", ap: float = 91.2, **changes: Any) -> DetectionRecord:
    """Three epochs, validated at the second and third."""
    logs = tuple(
        DetectionLog(e, 3.0 / e, 1e-3, 4.0, 20.0, *((ap * e / 3, 99.0) if e > 1 else ()))
        for e in (1, 2, 3)
    )
    final = BoxAP(ap, 99.0, 95.0, None, 90.0, 93.0, 50.0, 91.0, 92.0, None, 90.0, 94.0, 8, 40, DATA)
    record = DetectionRecord(
        model=model, img_size=(256, 426), num_classes=10, params=5_000_000, macs=10**9,
        dataset="scenes of shapes", train_images=8, train_boxes=40,
        validated_on="train, the same 8 images", recipe={}, history=logs, final=final, best_epoch=3,
        seconds=60.0, command="evitlab detect train", environment=DATA,
    )  # fmt: skip
    return dataclasses.replace(record, **changes)


def test_curves():
    figure = figures.detection_curves([trained(), trained("efficientvit_m4", 80.0)])
    loss, ap = figure.axes
    lines = artists(loss, "loss")
    assert [list(line.get_ydata()) for line in lines] == [[3.0, 1.5, 1.0]] * 2
    assert [list(line.get_xdata()) for line in artists(ap, "val_ap")] == [[2, 3]] * 2
    assert list(artists(ap, "val_ap")[0].get_ydata()) == pytest.approx([60.8, 91.2])
    assert [line.get_ydata()[0] for line in artists(ap, "final")] == [91.2, 80.0]
    for said in ("91.2 %", "AP on train, the same 8 images", "scale quick", "256 px"):
        assert said in texts(figure)
    with pytest.raises(ValueError, match="records: expected at least one"):
        figures.detection_curves([])
    with pytest.raises(ValueError, match="'efficientvit_m0' has no epoch"):
        figures.detection_curves([trained(history=())])


def timing(form: str, head_ms: float, **changes: Any) -> DetectorTiming:
    parts = tuple(
        DetectorPart(name, ms, ms, ms, ms / (70 + head_ms), macs * 10**9, 10)
        for name, ms, macs in zip(
            DETECTOR_PARTS, (1.0, 30.0, 19.0, head_ms, 20.0), (0, 1, 2, 7, 0), strict=True
        )
    )
    row = DetectorTiming(
        model="efficientvit_m4", form=form, learnt=False, num_classes=80, channels=256,
        img_size=(320, 448), parts=parts, whole_ms=200.0, whole_ms_low=190.0, whole_ms_high=210.0,
        img_per_s=5.0, speedup=None, speedup_low=None, speedup_high=None, candidates=0,
        detections=0, full_ms=99.0, full_candidates=3468,
    )  # fmt: skip
    return dataclasses.replace(row, **changes)


def test_parts_are_stacked_to_the_whole():
    rows = (timing("as trained", 130.0), timing("deployed", 110.0, speedup=1.25))
    speed = DetectorSpeed(rows, 1, 9, "evitlab bench", DATA)
    figure = figures.detector_parts(speed)
    time, macs = figure.axes
    for axes, name in ((time, "ms"), (macs, "macs")):
        unit = 1e9 if name == "macs" else 1
        for part, gid in enumerate(DETECTOR_PARTS):
            bars = [patch for patch in artists(axes, gid) if isinstance(patch, Rectangle)]
            for bar, row in zip(bars, rows, strict=True):
                values = [getattr(own, name) / unit for own in row.parts]
                assert bar.get_width() == pytest.approx(values[part])
                assert bar.get_x() == pytest.approx(sum(values[:part]))
    assert [text.get_text() for text in artists(time, "total")] == ["5 img/s", "5 img/s (1.25 ×)"]
    assert "65%" in [text.get_text() for text in artists(time, "share")]
    told = texts(figure)
    for said in ("no candidate boxes, heads being as drawn", "3,468", "99 ms", "448 × 320 px"):
        assert said in told
    learnt = dataclasses.replace(speed, rows=(timing("as trained", 1, learnt=True, candidates=57),))
    assert "57 candidate boxes" in texts(figures.detector_parts(learnt))
    with pytest.raises(ValueError, match="record: expected at least one row"):
        figures.detector_parts(dataclasses.replace(speed, rows=()))


def ours(**changes: Any) -> pd.DataFrame:
    row = {
        "model": "efficientvit_m0", "ap": 91.2, "ap50": 99.0, "ap75": 95.0,
        "learnt_from": "COCO128, 8 images", "measured_on": "the same 8 images", "scale": "quick",
    }  # fmt: skip
    return pd.DataFrame([{**row, **changes}])


def test_table5_holds_the_papers_numbers():
    table = paper.table5()
    assert list(table["model"]) == ["EfficientViT-M4", "MobileNetV2", "SPOS"]
    m4 = table.iloc[0]
    assert (m4["ap"], m4["ap50"], m4["ap75"]) == (32.7, 52.2, 34.1)
    assert list(table["ap"]) == [32.7, 28.3, 30.7]
    assert list(table["provenance"]) == ["printed", "derived", "derived"]
    assert table["ap50"].isna().sum() == 2, "what was not found has no number"
    assert set(table["measured_on"]) == {"COCO val2017"}


def test_table5_beside_ours():
    table = paper.table5(ours())
    row = table.iloc[-1]
    assert (row["source"], row["ap"], row["measured_on"]) == ("ours", 91.2, "the same 8 images")
    assert len(paper.table5(ours().iloc[:0])) == 3
    with pytest.raises(ValueError, match="column of trained: no 'measured_on'"):
        paper.table5(ours().drop(columns="measured_on"))
    there, here = figures.table5_detection(table, environment=DATA, note="8 images").axes
    found = {gid: [bar.get_width() for bar in artists(there, gid)] for gid in ("ap", "ap50")}
    assert found == {"ap": [32.7, 28.3, 30.7], "ap50": [52.2]}
    white = [bar.get_facecolor()[:3] == (1, 1, 1) for bar in artists(there, "ap")]
    assert white == [False, True, True], "derived numbers look other than printed ones"
    assert [bar.get_width() for bar in artists(here, "ap75")] == [95.0]


def test_table5_never_puts_both_on_one_axis():
    figure = figures.table5_detection(paper.table5(ours()))
    assert len(figure.axes) == 2
    assert "the panels are not comparable" in texts(figure)
    assert len(figures.table5_detection(paper.table5()).axes) == 1
    with pytest.raises(ValueError, match="missing 'ap75'"):
        figures.table5_detection(paper.table5().drop(columns="ap75"))
    with pytest.raises(ValueError, match="expected at least one row"):
        figures.table5_detection(paper.table5().iloc[:0])

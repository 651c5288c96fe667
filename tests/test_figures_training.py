"""Runs of the studies as tables beside the paper's, and their figures."""

from __future__ import annotations

import dataclasses
import math
import shlex
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from small_runs import one_line
from timed_records import CARD, ROOFLINE

from evitlab import figures, paper, planned_cost, study_frame
from evitlab.cli.commands import GROUPS
from evitlab.cli.parser import parser_with_commands
from evitlab.records import (
    AblationRun,
    Accuracy,
    EpochLog,
    LoopSpeed,
    SpeedRecord,
    SpeedRow,
    ThroughputSweep,
    TrainingRecord,
    TrainingSpeed,
)
from evitlab.training.planned_cost import COMMAND, IMAGENET_IMAGES

DATA = dataclasses.replace(CARD, dataset="CIFAR-10 (JPEG q75)", scale="lab")


def trained(
    model: str = "efficientvit_m0_p4", top1: float = 60.0, **changes: Any
) -> TrainingRecord:
    """Three epochs, validated at the second and the third; the loss falls as 1 / epoch."""
    logs = [
        EpochLog(
            epoch,
            200 / top1 / epoch,
            1e-3,
            100.0,
            9.0,
            *((top1 * epoch / 3, 99.0, 1.0) if epoch > 1 else ()),
        )
        for epoch in (1, 2, 3)
    ]
    record = TrainingRecord(
        model=model, img_size=(32, 32), num_classes=10, params=2_000_000, macs=20_000_000,
        dataset="CIFAR-10 (JPEG q75)", train_images=15_000, recipe={}, history=tuple(logs),
        final=Accuracy(top1, 99.0, 1.0, 10_000, DATA), best_epoch=3, seconds=7200.0,
        command="evitlab study", environment=DATA,
    )  # fmt: skip
    return dataclasses.replace(record, **changes)


def ablation(variant: str, seed: int, top1: float) -> AblationRun:
    return AblationRun(variant, seed, {}, trained(top1=top1), DATA)


# Row 1 at 60 and 62 %; row 6 is 2 and 3 points worse, row 3 was trained with one seed alone.
ABLATIONS = {
    "row-1": ablation("row-1", 0, 60.0),
    "row-1-seed1": ablation("row-1", 1, 62.0),
    "row-6": ablation("row-6", 0, 58.0),
    "row-6-seed1": ablation("row-6", 1, 59.0),
    "row-3": ablation("row-3", 0, 60.5),
    "key-dim-4": ablation("key-dim-4", 0, 59.0),
    "speeds": ThroughputSweep((), ROOFLINE, "evitlab study", CARD),
}
SPEEDS = pd.DataFrame(
    [
        (model, engine, speed * scale)
        for model, scale in {"row-1": 1.0, "row-6": 1.25, "key-dim-4": 1.5, "row-2": 2.0}.items()
        for engine, speed in {"eager": 9.0, "traced": 10.0, "onnxruntime": 20.0}.items()
    ],
    columns=["model", "engine", "img_per_s"],
)
TRANSFER = {
    "pretrained": trained(dataset="Tiny-ImageNet"),
    "finetuned-cifar10": trained(top1=70.0),
    "finetuned-cifar10-seed1": trained(top1=72.0),
    "scratch-cifar10": trained(top1=61.0),
    "scratch-cifar10-seed1": trained(top1=65.0),
}
RESOLUTION = {
    "before-32": Accuracy(76.0, 99.0, 1.0, 5_000, DATA),
    "before-48": Accuracy(50.0, 99.0, 1.0, 5_000, DATA),
    "after-32": trained(top1=77.0),
    "after-48": trained(top1=75.0, img_size=(48, 48), macs=50_000_000),
}


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def drawn(axes: Axes, gid: str) -> Any:
    """The points of each line with this mark."""
    return [
        [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]
        for line in axes.lines
        if line.get_gid() == gid
    ]


# study_frame


def test_a_study_has_one_row_a_run() -> None:
    frame = study_frame(ABLATIONS).set_index("run")
    assert list(frame.index) == [run for run in ABLATIONS if run != "speeds"]
    row = frame.loc["row-6-seed1"]
    assert (row.variant, row.seed, row.model) == ("row-6", 1, "efficientvit_m0_p4")
    assert (row.title, row.family) == ("EfficientViT-M0", "EfficientViT")
    assert (row.top1, row.val_images, row.epochs, row.hours) == (59.0, 10_000, 3, 2.0)
    assert row.top1_error == pytest.approx(196 * math.sqrt(0.59 * 0.41 / 10_000))
    assert (row.dataset, row.scale, row.hardware) == (DATA.dataset, "lab", "Abacus 2, 1 thread")


def test_evaluations_have_an_accuracy_and_no_training() -> None:
    frame = study_frame(RESOLUTION).set_index("run")
    assert frame.loc["before-48", "top1"] == 50.0 and pd.isna(frame.loc["before-48", "macs"])
    assert frame.loc["after-48", "img_size"] == 48 and frame.loc["after-48", "macs"] == 5e7
    assert list(frame["variant"]) == list(frame.index) and set(frame["seed"]) == {0}


@pytest.mark.parametrize(
    ("model", "title", "family"),
    [
        ("mobilenetv3_small_100", "MobileNetV3-Small 1.0x", "MobileNetV3"),
        ("deit_t_p4", "DeiT-T", "DeiT"),
        ("swin_t_p2", "Swin-T", "Swin"),
        ("efficientvit_m5_p4", "EfficientViT-M5", "EfficientViT"),
        ("my_net", "my_net", "my_net"),
    ],
)
def test_models_are_called_as_in_the_papers_tables(model: str, title: str, family: str) -> None:
    (row,) = study_frame({model: trained(model)}).itertuples()
    assert (row.title, row.family) == (title, family)


def test_a_study_of_speeds_alone_is_refused() -> None:
    with pytest.raises(ValueError) as raised:
        study_frame({"speeds": ABLATIONS["speeds"]})
    assert one_line(raised) == "study: expected records of trained or evaluated runs, got none"


# Table 6


def test_table6_by_hand() -> None:
    table = paper.table6(study_frame(ABLATIONS), SPEEDS).set_index("row")
    assert list(table.index) == list(range(1, 12))
    cascade = table.loc[6]
    assert cascade["variant"] == "Cascade → None"
    assert cascade["paper_diff"] == pytest.approx(69.8 - 71.3)
    assert cascade["paper_gpu"] == pytest.approx(16411 / 15914)
    assert cascade["paper_onnx"] == pytest.approx(111.0 / 108.6)
    assert (cascade["diff"], cascade["diff_low"], cascade["diff_high"]) == (-2.5, -3.0, -2.0)
    assert cascade["seeds"] == 2
    assert (cascade["gpu"], cascade["onnx"]) == pytest.approx((1.25, 1.25))
    # Each seed is held against row 1 of the same seed, so the spread of row 1 itself is none.
    assert table.loc[1, ["diff", "diff_low", "diff_high"]].tolist() == [0, 0, 0]
    assert table.loc[3, ["diff", "seeds"]].tolist() == [0.5, 1]
    assert table["chance"].tolist() == pytest.approx(
        [196 * math.sqrt(2 * 0.61 * 0.39 / 10_000)] * 11
    )


def test_rows_that_were_not_run_are_missing() -> None:
    table = paper.table6(study_frame(ABLATIONS), SPEEDS).set_index("row")
    missing = table.drop([1, 3, 6])
    assert missing["seeds"].eq(0).all() and missing["diff"].isna().all()
    assert missing["paper_diff"].notna().all()
    assert table.loc[2, "gpu"] == 2.0 and math.isnan(table.loc[4, "gpu"])
    untimed = paper.table6(study_frame(ABLATIONS))
    assert untimed[["gpu", "onnx"]].isna().all(axis=None)
    only_eager = paper.table6(study_frame(ABLATIONS), SPEEDS[SPEEDS["engine"] == "eager"])
    assert only_eager[["gpu", "onnx"]].isna().all(axis=None)


def test_table6_needs_row_1() -> None:
    frame = study_frame(ABLATIONS)
    with pytest.raises(ValueError, match="trained: expected a run of row-1"):
        paper.table6(frame[frame["variant"] != "row-1"])
    with pytest.raises(ValueError, match="column of trained: no 'top1'"):
        paper.table6(frame.drop(columns="top1"))
    with pytest.raises(ValueError, match="column of speeds: no 'engine'"):
        paper.table6(frame, SPEEDS.drop(columns="engine"))


def test_table6_is_drawn_with_the_paper_beside_ours() -> None:
    table = paper.table6(study_frame(ABLATIONS), SPEEDS)
    figure = figures.table6_ablations(table, environment=DATA, note="M0, 3 epochs.")
    top1, traced, onnx = figure.axes
    published = drawn(top1, "paper")
    assert len(published) == 10  # row 1 is the line they are held against
    assert published[4] == [(pytest.approx(-1.5), 5.0)]
    assert drawn(top1, "ours") == [[(0.5, 2.0)], [(-2.5, 5.0)]]
    assert drawn(top1, "seeds") == [[(-3.0, 5.0), (-2.0, 5.0)]]  # row 3 has one seed
    assert drawn(traced, "ours") == [[(2.0, 1.0)], [(pytest.approx(1.25), 5.0)]]
    assert len(drawn(onnx, "paper")) == 10
    labels = [text.get_text() for text in top1.get_yticklabels()]
    assert labels[0] == "1  as published" and labels[5] == "6  Cascade → None"
    assert [label for label in labels if "not trained here" in label] == [
        label for place, label in enumerate(labels, start=1) if place not in (1, 3, 6)
    ]
    shown = " ".join(texts(figure))
    assert "M0, 3 epochs. · CIFAR-10 (JPEG q75) · scale lab" in shown
    assert f"chance, 95 %: ± {table['chance'].max():.1f} points" in shown


def test_table6_without_speeds_says_whose_they_are() -> None:
    figure = figures.table6_ablations(paper.table6(study_frame(ABLATIONS)))
    assert all("(the paper's alone)" in axes.get_title(loc="left") for axes in figure.axes[1:])


def test_rows_of_a_part_of_table6_keep_their_speeds() -> None:
    table = paper.table6(study_frame(ABLATIONS), SPEEDS)
    trained_rows = table[table["seeds"] > 0]  # 1, 3 and 6
    top1, traced, _ = figures.table6_ablations(trained_rows).axes
    assert drawn(top1, "ours") == [[(0.5, 1.0)], [(-2.5, 2.0)]]
    assert drawn(traced, "ours") == [[(pytest.approx(1.25), 2.0)]]
    assert [y for ((_, y),) in drawn(traced, "paper")] == [1.0, 2.0]


# Fig. 7


def test_fig7_by_hand() -> None:
    frame = paper.fig7(study_frame(ABLATIONS), SPEEDS).set_index(["sweep", "setting"])
    narrow = frame.loc["key_dim", 4.0]
    assert narrow["paper_diff"] == pytest.approx(70.67 - 71.3)
    assert narrow["paper_gpu"] == pytest.approx(16300 / 15920)
    assert (narrow["diff"], narrow["seeds"], narrow["gpu"]) == (-1.0, 1, 1.5)
    for design in (("key_dim", 16.0), ("value_ratio", 1.0)):  # the published one, in both sweeps
        assert frame.loc[design, "seeds"] == 2
        assert frame.loc[design, ["paper_diff", "diff"]].tolist() == [0, 0]
    assert frame.loc["value_ratio", "seeds"].sum() == 2


def test_fig7_draws_both_sweeps() -> None:
    figure = figures.fig7_widths(paper.fig7(study_frame(ABLATIONS), SPEEDS), note="M0.")
    keys, values, key_speed, value_speed = figure.axes
    (published,) = drawn(keys, "paper")
    assert [x for x, _ in published] == [4, 8, 16, 32, 64]
    (ours,) = drawn(keys, "ours")
    assert ours == [(4.0, -1.0), (16.0, 0.0)]
    assert drawn(key_speed, "ours") == [[(4.0, 1.5), (16.0, 1.0)]]
    assert not drawn(values, "ours") and not drawn(value_speed, "ours")
    assert "ours: not trained" in [text.get_text() for text in values.texts]
    assert "ours: not measured" in [text.get_text() for text in value_speed.texts]


@pytest.mark.parametrize("draw", [figures.table6_ablations, figures.fig7_widths])
def test_a_frame_of_another_kind_is_refused(draw: Any) -> None:
    with pytest.raises(ValueError, match="frame: expected the columns of paper.table6"):
        draw(pd.DataFrame({"row": [1]}))


# Table 4


def test_transfer_by_hand() -> None:
    table = paper.transfer(study_frame(TRANSFER)).set_index("data")
    assert list(table.index) == ["cifar10", "cifar100", "flowers102", "pets"]
    row = table.loc["cifar10"]
    assert (row["paper"], row["paper_others"]) == (98.0, 97.6)
    assert (row["finetuned"], row["finetuned_low"], row["finetuned_high"]) == (71.0, 70.0, 72.0)
    assert (row["scratch"], row["scratch_seeds"], row["gain"]) == (63.0, 2, 8.0)
    assert table.loc["pets", "finetuned_seeds"] == 0 and pd.isna(table.loc["pets", "gain"])


def test_a_data_set_that_the_paper_lacks_has_a_row_of_its_own() -> None:
    runs = {**TRANSFER, "finetuned-cars": trained(top1=40.0, dataset="Stanford Cars")}
    table = paper.transfer(study_frame(runs)).set_index("data")
    assert pd.isna(table.loc["cars", "paper"]) and table.loc["cars", "finetuned"] == 40.0
    assert pd.isna(table.loc["cars", "gain"])


def test_other_data_do_not_stand_beside_the_papers_points() -> None:
    """A short study without CIFAR-10 runs on drawn shapes under the same names."""
    runs = {name: trained(top1=90.0, dataset="embedded shapes") for name in TRANSFER}
    table = paper.transfer(study_frame(runs)).set_index("data")
    assert table.loc["cifar10", ["finetuned_seeds", "scratch_seeds"]].tolist() == [0, 0]
    assert table.loc["embedded shapes", "finetuned_seeds"] == 2
    assert pd.isna(table.loc["embedded shapes", "paper"])
    (axes,) = figures.table4_transfer(table.reset_index()).axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[0] == "CIFAR-10\n(not run here)" and labels[-1] == "embedded shapes"


def test_transfer_is_drawn_beside_the_papers() -> None:
    figure = figures.table4_transfer(paper.transfer(study_frame(TRANSFER)), environment=DATA)
    (axes,) = figure.axes
    assert [x for ((x, _),) in drawn(axes, "paper")] == [98.0, 86.4, 97.1, 92.0]
    assert drawn(axes, "finetuned") == [[(71.0, 0.14)]] and drawn(axes, "scratch") == [
        [(63.0, 0.14)]
    ]
    assert [[x for x, _ in line] for line in drawn(axes, "seeds")] == [[70.0, 72.0], [61.0, 65.0]]
    assert "+8.0 points" in texts(figure)
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[0] == "CIFAR-10 (JPEG q75)" and all("not run here" in text for text in labels[1:])
    with pytest.raises(ValueError, match="missing paper"):
        figures.table4_transfer(pd.DataFrame({"data": ["x"], "dataset": ["x"]}))


# Larger images


def test_resolution_draws_both_stages_and_the_cost() -> None:
    figure = figures.resolution(study_frame(RESOLUTION), environment=DATA)
    top1, cost = figure.axes
    assert drawn(top1, "before") == [[(32.0, 76.0), (48.0, 50.0)]]
    assert drawn(top1, "after") == [[(32.0, 77.0), (48.0, 75.0)]]
    assert drawn(cost, "macs") == [[(32.0, 20.0), (48.0, 50.0)]]
    with pytest.raises(ValueError, match="runs named before-SIZE or after-SIZE, got none"):
        figures.resolution(study_frame(ABLATIONS))


# Seeds as bands


def test_seeds_are_a_band_around_their_mean() -> None:
    runs = {"row 1": [trained(top1=60.0), trained(top1=63.0)], "row 6": [trained(top1=50.0)]}
    figure = figures.seed_curves(runs)
    loss, top1 = figure.axes
    first, second = drawn(loss, "mean")
    assert first == [(e, pytest.approx((200 / 60 + 200 / 63) / 2 / e)) for e in (1, 2, 3)]
    assert second == [(e, pytest.approx(4 / e)) for e in (1, 2, 3)]
    (band,) = [found for found in top1.collections if found.get_gid() == "band"]
    corners = np.asarray(band.get_paths()[0].vertices)
    heights = {round(float(y), 6) for x, y in corners if x == 3}
    assert heights == {60.0, 63.0}
    shown = " ".join(texts(figure))
    assert "mean of 1 or 2 seeds; band: from the lowest seed to the highest" in shown
    assert "row 1  61.5 %" in shown and "row 6  50.0 %" in shown


def test_seeds_that_were_validated_once_have_a_bar() -> None:
    def once(top1: float) -> TrainingRecord:
        record = trained(top1=top1)
        blank = [dataclasses.replace(log, val_top1=None) for log in record.history[:-1]]
        return dataclasses.replace(record, history=(*blank, record.history[-1]))

    _, top1 = figures.seed_curves({"a": [once(60.0), once(63.0)]}).axes
    assert drawn(top1, "band") == [[(3.0, 60.0), (3.0, 63.0)]]
    assert drawn(top1, "mean") == [[(3.0, 61.5)]]


def test_seeds_of_different_length_are_refused() -> None:
    short = dataclasses.replace(trained(), history=trained().history[:2])
    with pytest.raises(ValueError, match=r"runs of one length in 'a', got \[2, 3\] epochs"):
        figures.seed_curves({"a": [trained(), short]})
    with pytest.raises(ValueError, match="groups: expected at least one"):
        figures.seed_curves({})
    with pytest.raises(ValueError, match="runs of one length in 'a', got"):
        figures.seed_curves({"a": []})


# Planned cost


def speeds(hardware: str = "cpu", /, **ms: float) -> SpeedRecord:
    rows = [
        SpeedRow(model, task, batch, value * scale, 1.0, 1.0, 1.0, 1.0)
        for model, value in ms.items()
        for task, batch, scale in (("forward", 32, 0.1), ("training step", 2, 9.0),
                                   ("training step", 32, 1.0))
    ]  # fmt: skip
    return SpeedRecord(tuple(rows), (), 5, dataclasses.replace(CARD, device=hardware))


def test_planned_cost_by_hand() -> None:
    frame = planned_cost([speeds(efficientvit_m0=320.0)])
    assert frame["steps"].unique().tolist() == [300 * (IMAGENET_IMAGES // 2048)]
    assert frame["images"].unique().tolist() == [300 * (IMAGENET_IMAGES // 2048) * 2048]
    cells = frame.set_index(["machine", "model"])
    m0, m5 = "EfficientViT-M0", "EfficientViT-M5"
    by_macs, by_speed = "8 V100, by MACs", "8 V100, by inference speed"
    assert cells.loc[(by_macs, m5), ["hours", "how"]].tolist() == [30.0, "published"]
    assert cells.loc[(by_macs, m0), "hours"] == pytest.approx(30 * 79 / 522)
    assert cells.loc[(by_speed, m0), "hours"] == pytest.approx(30 * 10621 / 27644)
    assert "scaled by" in cells.loc[(by_macs, m0), "how"]
    here = cells.loc["Abacus 2, 1 thread"]
    assert list(here.index) == [m0] and here.loc[m0, "how"] == "measured"
    assert here.loc[m0, "img_per_s"] == pytest.approx(100.0)  # 32 images in 320 ms
    assert here.loc[m0, "hours"] == pytest.approx(here.loc[m0, "images"] / 100 / 3600)


def test_a_gpu_that_was_not_measured_has_the_command_that_does() -> None:
    gpu = planned_cost([]).query("machine == 'one H200'")
    assert len(gpu) == 6 and gpu["hours"].isna().all()
    assert gpu["how"].str.startswith("evitlab bench --train").all()
    measured = planned_cost([speeds("cuda (NVIDIA H200)", efficientvit_m5=10.0)])
    assert "one H200" not in set(measured["machine"])
    assert measured.query("machine == 'cuda (NVIDIA H200)'")["hours"].notna().all()


def loop_speeds(img_size: int = 224, **img_per_s: float) -> TrainingSpeed:
    loops = [
        LoopSpeed(model, loop, speed * scale, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
        for model, speed in img_per_s.items()
        for loop, scale in (("evitlab", 1.0), ("timm", 0.5))
    ]
    card = dataclasses.replace(CARD, device="cuda (NVIDIA H200)")
    size = (img_size, img_size)
    return TrainingSpeed(tuple(loops), (), size, 128, "imagenet", 5, 1.0, COMMAND, card)


def test_steps_of_our_loop_fill_the_gpus_cells() -> None:
    frame = planned_cost([loop_speeds(efficientvit_m0=4000.0, efficientvit_m5=1000.0)])
    here = frame.query("machine == 'cuda (NVIDIA H200)'").set_index("model")
    assert here["img_per_s"].to_dict() == {"EfficientViT-M0": 4000.0, "EfficientViT-M5": 1000.0}
    assert "one H200" not in set(frame["machine"])
    with pytest.raises(ValueError) as raised:
        planned_cost([loop_speeds(64, efficientvit_m0=4000.0)])
    assert one_line(raised).startswith(
        "measured: expected training steps at 224x224 pixels, got a record of 64x64; `evitlab bench"
    )
    with pytest.raises(ValueError, match="measured: expected training steps of the family"):
        planned_cost([loop_speeds(efficientvit_m0_p4=1.0)])


def test_the_command_that_is_named_measures_the_family_at_224_pixels() -> None:
    args = parser_with_commands(GROUPS).parse_args(shlex.split(COMMAND)[1:])
    assert args.models == [f"efficientvit_m{i}" for i in range(6)]
    assert (args.preset, args.img_size, args.device) == ("train", 224, ["cuda"])


def test_the_last_record_of_a_machine_counts() -> None:
    first = loop_speeds(efficientvit_m0=4000.0, efficientvit_m5=1000.0)
    frame = planned_cost([first, loop_speeds(efficientvit_m0=5000.0)])
    here = frame.query("machine == 'cuda (NVIDIA H200)'").set_index("model")
    assert here["img_per_s"].to_dict() == {"EfficientViT-M0": 5000.0, "EfficientViT-M5": 1000.0}


def test_machines_that_measured_a_part_of_the_family_leave_cells_empty() -> None:
    frame = planned_cost([speeds(efficientvit_m0=320.0), loop_speeds(efficientvit_m5=1000.0)])
    (axes,) = figures.planned_cost(frame).axes
    shown = [text.get_text() for text in axes.texts]
    assert "1,067" in shown and "107" in shown  # 384 million at 100 and at 1,000 a second
    assert shown.count("not measured") == 10


def test_what_is_recorded_is_what_counts() -> None:
    here = planned_cost().query("how == 'measured'")
    assert list(here["model"]) == [f"EfficientViT-M{i}" for i in range(6)]
    assert here["hours"].is_monotonic_increasing  # the larger the slower


def test_a_record_without_training_steps_is_refused() -> None:
    record = speeds(efficientvit_m0=1.0)
    forward = tuple(row for row in record.rows if row.task == "forward")
    with pytest.raises(ValueError, match="measured: expected training steps of the family"):
        planned_cost([dataclasses.replace(record, rows=forward)])


def test_planned_cost_is_a_table_that_tells_measured_from_scaled() -> None:
    figure = figures.planned_cost(planned_cost([speeds(
        **{f"efficientvit_m{i}": 320.0 for i in range(6)})]))  # fmt: skip
    (axes,) = figure.axes
    bold = [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"]
    assert bold.count("30.0") == 2 and bold.count("1,067") == 6  # 384 million at 100 a second
    plain = [text.get_text() for text in axes.texts if text.get_fontweight() == "normal"]
    assert "4.5" in plain and plain.count("not measured") == 6
    caption = figure.get_supxlabel()
    assert "384 million images in 187,500 steps" in caption
    assert "evitlab bench --train efficientvit_m0 … efficientvit_m5 --img-size 224" in caption
    with pytest.raises(ValueError, match="missing model"):
        figures.planned_cost(pd.DataFrame({"hours": [1.0]}))


# Our Fig. 1


def test_a_familys_runs_are_points_of_fig_1() -> None:
    runs = {name: trained(name, top1) for name, top1 in
            {"efficientvit_m0_p4": 60.0, "efficientvit_m2_p4": 64.0,
             "mobilenetv3_small_100": 62.0}.items()}  # fmt: skip
    frame = study_frame(runs)
    points = frame.assign(model=frame["title"], device="Abacus 2", img_per_s=[30.0, 20.0, 40.0])
    figure = figures.fig1_speed_accuracy(paper.speed_accuracy(), points)
    assert "scale lab" in figure.axes[1].get_title(loc="left")
    assert {"EfficientViT-M0", "MobileNetV3-Small 1.0x"} <= {
        text.get_text() for text in figure.axes[1].texts
    }

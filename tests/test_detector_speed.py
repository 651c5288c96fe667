"""Where a detector's time goes: the parts are the whole, the counts are right; nothing is timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evitlab import DetectionDataset, count_macs, count_params, open_detection
from evitlab.analysis.detector_speed import _by_part, measure_detector
from evitlab.cli import main
from evitlab.models.detector import RetinaNet, create_detector
from evitlab.records import DETECTOR_PARTS, DetectorSpeed
from evitlab.training.checkpoint import save_weights

SIZE = (96, 96)
# Nine anchors at 12², 6², 3², 2² and 1² positions; the finest level may give 1,000.
FULL = 1000 + 9 * (36 + 9 + 4 + 1)


def detector(name: str = "efficientvit_m0", **changes: Any) -> RetinaNet:
    torch.manual_seed(0)
    values = {"num_classes": 3, "img_size": SIZE, "channels": 16, **changes}
    return create_detector(name, **values)


def sees_everything(model: RetinaNet) -> RetinaNet:
    """Its first class has a score of 0.5 at every anchor."""
    last = model.head.classification_head.cls_logits
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, -20)
    with torch.no_grad():
        last.bias[::3] = 0  # K numbers for each of the nine anchors
    return model


@pytest.fixture(scope="module")
def scenes() -> DetectionDataset:
    return open_detection("scenes", "val").take([0, 1])


@pytest.fixture(scope="module")
def record(scenes: DetectionDataset) -> DetectorSpeed:
    given = [detector(), sees_everything(detector("mobilenetv2_100"))]
    return measure_detector(given, rounds=3, data=scenes, command="evitlab bench", scale="smoke")


def test_rows_and_parts(record):
    found = [(row.model, row.form) for row in record.rows]
    assert found == [
        ("efficientvit_m0", "as trained"), ("efficientvit_m0", "deployed"),
        ("mobilenetv2_100", "as trained"), ("mobilenetv2_100", "folded"),
    ]  # fmt: skip
    for row in record.rows:
        assert tuple(part.part for part in row.parts) == DETECTOR_PARTS
        assert all(0 < part.ms_low <= part.ms <= part.ms_high for part in row.parts)
        assert 0.5 < sum(part.share for part in row.parts) < 1.5  # of medians: not exactly 1
        assert row.whole_ms_low <= row.whole_ms <= row.whole_ms_high
        assert row.img_per_s == pytest.approx(1000 / row.whole_ms)
        assert (row.img_size, row.num_classes, row.channels) == ((96, 96), 3, 16)
    plain, other = record.rows[:2]
    assert plain.speedup is None and other.speedup_low <= other.speedup <= other.speedup_high
    assert record.environment.threads == 1 and record.environment.scale == "smoke"
    assert record.environment.dataset == "scenes of shapes"


def test_costs_of_the_parts_are_those_of_the_whole(record):
    for row, name in ((record.rows[0], "efficientvit_m0"), (record.rows[2], "mobilenetv2_100")):
        model = detector(name)
        assert sum(part.macs for part in row.parts) == count_macs(model, SIZE)
        assert sum(part.params for part in row.parts) == count_params(model)
        costs = {part.part: part for part in row.parts}
        assert costs["preparation"].macs == costs["post-processing"].macs == 0
        assert costs["neck"].params == count_params(model.backbone.neck)
        assert costs["head"].params == count_params(model.head)
    # By hand: the first convolution of M0's neck, 64 to 16 channels on the map of stride 16.
    first = 64 * 16 * 6 * 6
    assert first < {p.part: p.macs for p in record.rows[0].parts}["neck"] < 40 * first


def test_candidates(record):
    """A head as drawn scores 0.01 everywhere, below the threshold; one that sees something
    everywhere has all that the levels may give."""
    as_drawn, everywhere = record.rows[0], record.rows[2]
    assert (as_drawn.candidates, as_drawn.detections) == (0, 0)
    assert everywhere.candidates == FULL and 0 < everywhere.detections <= 100
    assert as_drawn.full_candidates == everywhere.full_candidates == FULL


def test_the_timed_steps_are_the_forward_pass(scenes):
    model = sees_everything(detector()).eval()
    images = [scenes.image(0), scenes.image(1)]  # of other sizes: they are resized and padded
    spent: dict[str, float] = {}
    with torch.inference_mode():
        found = _by_part(model, images, spent)
        expected = model.forward_dense(found.batch.tensors)
    assert tuple(spent) == DETECTOR_PARTS
    assert torch.equal(found.outputs["cls_logits"], expected["cls_logits"])
    assert torch.equal(found.outputs["bbox_regression"], expected["bbox_regression"])


def test_models_stay_as_they_are(scenes):
    model = detector().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = measure_detector(model, img_size=(64, 80), rounds=1, deployed=[True], data=scenes)
    assert model.training and model.config.img_size == SIZE
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    (row,) = found.rows
    assert row.form == "deployed" and row.img_size in ((64, 96), (96, 64))
    assert row.speedup is None, "there was nothing to compare with"


@pytest.mark.slow
def test_detectors_of_one_backbone_are_told_apart(scenes, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_weights(detector(), tmp_path / name / "model.safetensors", class_names=("x", "y", "z"))
    runs = [tmp_path / "a", tmp_path / "b", tmp_path / "b" / "model.safetensors"]
    found = measure_detector(
        [*runs, detector(), detector()], rounds=1, deployed=[False], data=scenes
    )
    names = ["a", "b", "b/model.safetensors", "efficientvit_m0", "efficientvit_m0 (2)"]
    assert [row.model for row in found.rows] == names
    assert {row.backbone for row in found.rows} == {"efficientvit_m0"}
    assert main(["bench", "--preset", "detector", str(runs[0]), str(runs[1]), "--rounds", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said if "candidate boxes" in line] == ["a", "b"]


def test_the_recorded_times_still_load():
    path = Path(__file__).parents[1] / "data" / "results" / "detector_speed.json"
    assert all(row.model and row.backbone in (None, row.model)
               for row in DetectorSpeed.load(path).rows)  # fmt: skip


def test_record_survives_json_and_has_a_frame(record, tmp_path):
    assert DetectorSpeed.load(record.save(tmp_path / "speed.json")) == record
    frame = record.to_frame()
    assert len(frame) == len(record.rows) * (len(DETECTOR_PARTS) + 1)
    whole = frame[frame["part"] == "whole"]
    assert list(whole["ms"]) == [row.whole_ms for row in record.rows]
    assert list(whole["candidates"]) == [0, 0, FULL, FULL]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "models, deployed: expected at least one of each"),
        ({"deployed": ()}, "models, deployed: expected at least one of each"),
        ({"rounds": 0}, "rounds: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"threads": -1}, "threads: expected at least 1, got -1"),
        ({"models": "efficientvit_m9"}, "backbone_name: .*did you mean 'efficientvit_m"),
        ({"device": "gpu"}, "device"),
    ],
)
def test_what_cannot_be_measured(change, message, scenes):
    values = {"models": "efficientvit_m0", "rounds": 1, "data": scenes, **change}
    with pytest.raises(ValueError, match=message):
        measure_detector(values.pop("models"), **values)


def test_a_set_without_boxes(scenes):
    from dataclasses import replace

    empty = replace(scenes, boxes=tuple(boxes[:0] for boxes in scenes.boxes))
    with pytest.raises(ValueError, match="data: expected an image with boxes, got none in scenes"):
        measure_detector("efficientvit_m0", rounds=1, data=empty)


def test_bench_prints_parts_and_candidates(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EVITLAB_DATA", str(tmp_path / "none"))
    file = tmp_path / "speed.json"
    command = ["bench", "efficientvit_m0", "--preset", "detector", "--img-size", "64"]
    assert main([*command, "--rounds", "1", "--json", str(file)]) == 0
    told = capsys.readouterr().out
    for said in (*DETECTOR_PARTS, "as trained", "deployed", "0 candidate boxes", "as drawn"):
        assert said in told, said
    assert DetectorSpeed.load(file).command.startswith("evitlab bench efficientvit_m0 --preset det")
    assert main([*command, "--engines", "eager"]) == 2
    assert "--engines: not an option of --preset detector" in capsys.readouterr().err
    assert main([*command, "--batch-sizes", "1", "2"]) == 2
    assert "--batch-sizes: expected one value" in capsys.readouterr().err

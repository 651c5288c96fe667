"""Training a detector: batches, losses, resuming, records."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import landscapes, one_line, small_detector
from torch import Tensor

from evitlab import DetectionRecord, Recipe, evaluate_detector, load_detector, predict_boxes
from evitlab.datasets import DetectionDataset, open_detection
from evitlab.training import detection
from evitlab.training.detection import BoxBatches, load_target, train_detector
from evitlab.training.distributed import Ranks

SIZE = (64, 96)


class Stopped(Exception):
    """In place of a kill."""


@pytest.fixture(scope="module")
def scenes() -> DetectionDataset:
    return open_detection("scenes", "train", limit=6)


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"epochs": 3, "batch_size": 2, "lr": 1e-3, "validate_every": 2, **changes})


def batches(data: DetectionDataset, ranks: Ranks | None = None, **changes: Any) -> BoxBatches:
    return BoxBatches(
        data,
        recipe(**changes),
        SIZE,
        ranks=ranks or Ranks(),
        device=torch.device("cpu"),
        on_phase=lambda phase: None,
    )


def with_crowd(data: DetectionDataset) -> DetectionDataset:
    """The first box of each image is a crowd."""
    crowd = tuple(torch.arange(len(own)) == 0 for own in data.boxes)
    return dataclasses.replace(data, crowd=crowd)


def test_an_image_and_its_boxes_are_flipped_together(scenes: DetectionDataset) -> None:
    (image, target), (other, flipped) = (
        load_target(scenes, 0, SIZE, flip=flip) for flip in (False, True)
    )
    assert image.dtype == torch.uint8 and min(image.shape[1:]) == SIZE[0]
    assert torch.equal(other, image.flip(-1))
    for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(target["boxes"], flipped["boxes"], strict=True):
        assert (u1 + x2, u2 + x1) == (image.shape[2], image.shape[2])
        assert (v1, v2) == (y1, y2)
    assert torch.equal(target["labels"], flipped["labels"])
    assert target["labels"].tolist() == scenes.labels[0].tolist()


def test_crowds_are_no_targets(scenes: DetectionDataset) -> None:
    most = max(range(len(scenes)), key=lambda i: len(scenes.boxes[i]))
    _, target = load_target(with_crowd(scenes), most, SIZE, flip=False)
    assert target["labels"].tolist() == scenes.labels[most][1:].tolist()
    assert len(target["boxes"]) == len(scenes.boxes[most]) - 1


def test_boxes_that_resizing_leaves_no_area_are_no_targets(scenes: DetectionDataset) -> None:
    boxes = (torch.tensor([[10.0, 10.0, 50.0, 60.0], [20.0, 20.0, 20.0, 30.0]]),)
    labels, crowd = (torch.tensor([1, 2]),), (torch.tensor([False, False]),)
    data = dataclasses.replace(scenes.take([0]), boxes=boxes, labels=labels, crowd=crowd)
    _, target = load_target(data, 0, SIZE, flip=True)
    assert target["labels"].tolist() == [1]


def test_an_epoch_sees_each_image_once_in_whole_batches(scenes: DetectionDataset) -> None:
    source = batches(scenes, batch_size=4)
    assert (source.steps, source.size) == (1, 4)
    ((part,),) = source.epoch(1)
    assert (len(part.inputs), len(part.targets), part.share) == (4, 4, 1.0)
    assert batches(scenes, batch_size=64).size == 6


def test_an_epoch_is_a_function_of_its_number(scenes: DetectionDataset) -> None:
    def order(epoch: int, **changes: Any) -> list[Tensor]:
        return [
            image
            for parts in batches(scenes, **changes).epoch(epoch)
            for image in parts[0].inputs
        ]

    def same(one: list[Tensor], other: list[Tensor]) -> bool:
        return all(map(torch.equal, one, other))

    assert same(order(1), order(1))
    assert not same(order(1), order(2))
    assert not same(order(1), order(1, seed=1))
    assert same(order(1, flip=0.0), [image.flip(-1) for image in order(1, flip=1.0)])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_share_what_one_sees(scenes: DetectionDataset, accumulate: int) -> None:
    changes: Any = {"batch_size": 6, "accumulate": accumulate}
    ((*whole,),) = batches(scenes, **changes).epoch(1)
    shares = [list(batches(scenes, Ranks(rank, 2), **changes).epoch(1))[0] for rank in range(2)]
    for number, part in enumerate(whole):
        own = [share[number].inputs for share in shares]
        assert all(map(torch.equal, part.inputs[0::2], own[0]))
        assert all(map(torch.equal, part.inputs[1::2], own[1]))
        # Means of each process's sums are the mean over the global batch.
        images = [share[number].share / 2 * 6 for share in shares]
        assert images == [len(one) for one in own]
    assert sum(part.share for part in whole) == pytest.approx(1)


def test_the_loss_of_parts_is_that_of_the_batch() -> None:
    """In evaluation of the norms, so that an image does not see the others; nor their padding."""
    scenes = landscapes(6)
    model = small_detector(scenes).train()
    for module in model.backbone.body.modules():
        module.training = False
    task = detection.Detection(
        model, scenes, scenes, recipe(), weights=None, command="", scale=None
    )
    sums = []
    for accumulate in (1, 3):
        ((*parts,),) = batches(scenes, batch_size=6, accumulate=accumulate).epoch(1)
        sums.append(sum(part.share * task.loss(model, part).item() for part in parts))
    assert sums[0] == pytest.approx(sums[1], rel=1e-4)


@pytest.fixture(scope="module")
def finished(
    scenes: DetectionDataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, DetectionRecord]:
    out = tmp_path_factory.mktemp("detector")
    record = train_detector(
        small_detector(scenes), scenes, scenes, recipe(), out_dir=out, device="cpu", scale="smoke"
    )
    return out, record


def test_the_record_says_all_about_the_run(
    finished: tuple[Path, DetectionRecord], scenes: DetectionDataset
) -> None:
    out, record = finished
    assert DetectionRecord.load(out / "record.json") == record
    assert (record.model, record.img_size) == ("retinanet_efficientvit_m0", SIZE)
    assert (record.train_images, record.train_boxes) == (6, scenes.num_boxes)
    assert record.validated_on == "train, the same 6 images"
    assert [log.epoch for log in record.history] == [1, 2, 3]
    assert [log.val_ap is None for log in record.history] == [True, False, False]
    assert record.history[-1].val_ap == record.final.ap
    assert record.recipe["lr"] == 1e-3 and record.environment.scale == "smoke"
    assert list(record.to_frame()["val_ap"].notna()) == [False, True, True]
    assert {file.name for file in out.rglob("*") if file.is_file()} == {
        "model.safetensors", "record.json", "recipe.json", "last.pt", "previous.pt",
        "best.safetensors",
    }  # fmt: skip


def test_the_weights_are_what_was_measured(
    finished: tuple[Path, DetectionRecord], scenes: DetectionDataset
) -> None:
    out, record = finished
    model = load_detector(out)
    assert model.class_names == scenes.class_names
    found = evaluate_detector(model, scenes, batch_size=2, device="cpu")
    assert (found.ap, found.ar100) == (record.final.ap, record.final.ar100)
    # What would not be so of other weights.
    other = evaluate_detector(small_detector(scenes), scenes, batch_size=2, device="cpu")
    assert 0 < found.ar100 != other.ar100
    assert all(len(one.boxes) for one in predict_boxes(model, scenes, progress=False))


def test_a_stopped_run_continues_to_the_same_bits(
    finished: tuple[Path, DetectionRecord],
    scenes: DetectionDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = detection.Detection.loss, []

    def stop(*args: Any) -> Tensor:
        calls.append(args)
        if len(calls) == 5:  # in the second epoch
            raise Stopped
        return real(*args)

    options: Any = dict(out_dir=tmp_path, device="cpu", scale="smoke")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(detection.Detection, "loss", stop)
        train_detector(small_detector(scenes), scenes, scenes, recipe(), **options)
    assert not (tmp_path / "record.json").exists()
    record = train_detector(small_detector(scenes, seed=9), scenes, scenes, recipe(), **options)
    out, whole = finished
    assert (tmp_path / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert [log.train_loss for log in record.history] == [log.train_loss for log in whole.history]


def test_a_finished_run_is_not_trained_again(
    finished: tuple[Path, DetectionRecord],
    scenes: DetectionDataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, record = finished
    monkeypatch.setattr(detection.Detection, "loss", None)
    model = small_detector(scenes, seed=3)
    assert train_detector(model, scenes, scenes, recipe(), out_dir=out, device="cpu") == record
    state, trained = model.state_dict(), load_detector(out).state_dict()
    assert all(torch.equal(state[key], trained[key]) for key in trained)


def test_a_folder_holds_one_run(
    finished: tuple[Path, DetectionRecord], scenes: DetectionDataset
) -> None:
    out, _ = finished
    with pytest.raises(ValueError) as raised:
        model = small_detector(scenes)
        train_detector(model, scenes, scenes, recipe(lr=2e-3), out_dir=out, device="cpu")
    assert "holds a different run (lr 0.001 there, 0.002 asked for)" in one_line(raised)
    five = scenes.take(range(5))
    with pytest.raises(ValueError, match="train_images 6 there, 5 asked for"):
        train_detector(small_detector(scenes), five, scenes, recipe(), out_dir=out, device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup_alpha": 0.8}, "mixup_alpha: expected 0.0 in a detector's recipe, got 0.8"),
        ({"crop": "pad"}, "crop: expected 'none' in a detector's recipe, got 'pad'"),
        ({"batch_size": 1}, "batch_size: expected at least 2, as BatchNorm needs them, got 1"),
        ({"accumulate": 3}, "batch_size: expected at least 6"),
    ],
)
def test_recipes_that_do_not_fit(
    scenes: DetectionDataset, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as raised:
        train_detector(small_detector(scenes), scenes, scenes, recipe(**changes), out_dir=tmp_path)
    assert one_line(raised).startswith(message)
    assert not list(tmp_path.iterdir())


def test_data_that_do_not_fit(scenes: DetectionDataset, tmp_path: Path) -> None:
    model = small_detector(scenes)
    nothing = tuple(torch.zeros(0, 4) for _ in range(6))
    none, flags = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    empty = dataclasses.replace(
        scenes, boxes=nothing, labels=(none,) * 6, crowd=(flags,) * 6, areas=(torch.zeros(0),) * 6
    )
    with pytest.raises(ValueError, match="expected at least one box to learn from"):
        train_detector(model, empty, scenes, recipe(), out_dir=tmp_path)
    with pytest.raises(ValueError, match="expected at least one box to find"):
        train_detector(model, scenes, empty, recipe(), out_dir=tmp_path)
    other = dataclasses.replace(scenes, class_names=scenes.class_names[::-1])
    with pytest.raises(ValueError, match="expected the model's classes in its order"):
        train_detector(model, scenes, other, recipe(), out_dir=tmp_path)
    fewer = dataclasses.replace(
        scenes, class_names=scenes.class_names[:9], category_ids=scenes.category_ids[:9]
    )
    with pytest.raises(ValueError, match="expected boxes of 10 classes"):
        train_detector(model, fewer, fewer, recipe(), out_dir=tmp_path)
    assert not list(tmp_path.iterdir())

"""A detector's pass over images: order, modes, batches, COCO results, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from red_boxes import RedBoxes, painted, painted_set, write_coco
from torch import Tensor

from evitlab.datasets import DetectionDataset, open_detection
from evitlab.datasets.detection import Detections
from evitlab.training import detecting
from evitlab.training.box_ap import box_ap
from evitlab.training.detecting import ap_of, coco_results, evaluate_detector, predict_boxes
from evitlab.training.distributed import Ranks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    root = write_coco(tmp_path_factory.mktemp("painted"), painted_set(5), "val")
    return open_detection(root, "val")


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_detector_that_finds_all(data: DetectionDataset, batch_size: int) -> None:
    model = RedBoxes().train()
    found = evaluate_detector(model, data, batch_size=batch_size)
    assert (found.ap, found.ap50, found.ar100) == (100, 100, 100)
    assert (found.images, found.boxes) == (5, 7)
    assert (found.environment.dataset, found.environment.batch_size) == (data.title, batch_size)
    full, rest = divmod(5, batch_size)
    assert model.batches == [batch_size] * full + [rest] * bool(rest)
    assert model.modes == [False] * len(model.batches)
    assert model.training, "its own mode comes back"


def test_detections_are_in_the_order_of_the_images_best_first(data: DetectionDataset) -> None:
    found = predict_boxes(RedBoxes(), data, batch_size=2)
    assert [one.image_id for one in found] == [11, 12, 13, 14, 15]
    assert [one.file for one in found] == list(data.files)
    assert [one.labels.tolist() for one in found] == [[0], [0, 1], [0], [0, 1], [0]]
    assert found[1].scores.tolist() == pytest.approx([0.9, 0.5])
    assert found[1].boxes.tolist() == [[5, 6, 31, 40], [40, 31, 56, 62]]


def test_pictures_of_any_kind_have_the_number_of_their_place() -> None:
    picture = painted(50, 40, ("red", (10, 5, 20, 25)))
    pixels = torch.zeros(3, 30, 20, dtype=torch.uint8)
    pixels[0, 3:9, 4:8] = 255
    found = predict_boxes(
        RedBoxes(),
        [("a", picture), ("b", pixels), ("c", picture.convert("P")), ("d", Image.new("L", (3, 1)))],
    )
    assert [(one.file, one.image_id) for one in found] == [("a", 0), ("b", 1), ("c", 2), ("d", 3)]
    assert [one.boxes.tolist() for one in found] == [
        [[10, 5, 20, 25]], [[4, 3, 8, 9]], [[10, 5, 20, 25]], [],
    ]  # fmt: skip
    assert found[3].boxes.shape == (0, 4)


def test_results_are_those_that_a_file_of_them_holds(data: DetectionDataset) -> None:
    found = predict_boxes(RedBoxes(), data)
    results = coco_results(found, data.category_ids)
    assert results[1:3] == [
        {"image_id": 12, "category_id": 3, "bbox": [5, 6, 26, 34], "score": 0.9},
        {"image_id": 12, "category_id": 7, "bbox": [40, 31, 16, 31], "score": 0.5},
    ]
    measured = ap_of(found, data)
    read = json.loads(json.dumps(results))
    assert box_ap(data.ground_truth(), read, environment=measured.environment) == measured


def test_results_keep_enough_digits() -> None:
    found = Detections(
        "a", 1, torch.tensor([[1 / 3, 2 / 3, 100 + 1 / 3, 50.0]]), torch.tensor([0]),
        torch.tensor([1 / 7]),
    )  # fmt: skip
    (result,) = coco_results([found], [5])
    assert result["bbox"] == pytest.approx([1 / 3, 2 / 3, 100, 50 - 2 / 3], abs=1e-3)
    assert result["score"] == pytest.approx(1 / 7, abs=1e-6)
    with pytest.raises(ValueError, match="category_ids: expected one for each label, got 0 and"):
        coco_results([found], [])


def test_shares_of_several_processes_make_the_whole(
    data: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process's share, run one after the other; together they are what one finds."""
    shares: list[list[Detections]] = []

    class Share(Ranks):
        def gather(self, value: Any) -> list[Any]:
            shares.append(value)
            return [value]

    for rank in range(3):
        monkeypatch.setattr(detecting, "current_ranks", lambda rank=rank: Share(rank, 3))
        monkeypatch.setattr(Share, "from_main", lambda self, compute: compute())
        evaluate_detector(RedBoxes(), data, distributed=True)
    assert [one.image_id for share in shares for one in share] == [11, 12, 13, 14, 15]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


class Unready(RedBoxes):
    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        raise RuntimeError("not ready")


def test_a_model_that_fails_comes_back_as_it_was(data: DetectionDataset) -> None:
    model = Unready().train()
    with pytest.raises(RuntimeError, match="not ready"):
        predict_boxes(model, data)
    assert model.training


def without_boxes(data: DetectionDataset) -> DetectionDataset:
    empty: dict[str, Any] = {
        name: tuple(part[:0] for part in getattr(data, name))
        for name in ("boxes", "labels", "crowd", "areas")
    }
    return dataclasses.replace(data, **empty)


def test_wrong_input_is_named(data: DetectionDataset) -> None:
    model = RedBoxes()
    with pytest.raises(ValueError, match="data: expected at least one image, got none"):
        predict_boxes(model, [])
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        predict_boxes(model, data, batch_size=0)
    with pytest.raises(ValueError, match="device: expected one that torch can use"):
        predict_boxes(model, data, device="nowhere")
    none = without_boxes(data)
    assert len(predict_boxes(model, none)) == 5
    with pytest.raises(ValueError, match=r"data: expected at least one box .*\(val, 5 images\)"):
        evaluate_detector(model, none)


def test_classes_that_differ_are_refused(data: DetectionDataset) -> None:
    model = RedBoxes()
    model.class_names = ("blue", "red")
    with pytest.raises(ValueError, match="got 'red' instead of 'blue' as class 0"):
        evaluate_detector(model, data)
    model.class_names, model.num_classes = ("red", "blue", "green"), 3
    with pytest.raises(ValueError, match="boxes of 3 classes .the model's., got 2"):
        predict_boxes(model, data)
    model.class_names, model.num_classes = (), 2
    assert evaluate_detector(model, data).ap == 100


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = write_coco(tmp_path, painted_set(3), "val")
    broken = open_detection(root, "val")
    (root / "val" / "12.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"12\.png: not an image file"):
        predict_boxes(RedBoxes(), broken, batch_size=2)

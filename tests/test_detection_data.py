"""Images with boxes: what opens, what it gives, and that scenes are what their boxes say."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evitlab.datasets import (
    DetectionDataset,
    check_boxes,
    data_home,
    default_detection_name,
    open_detection,
)
from evitlab.datasets.scenes import draw_scene, lay_out
from evitlab.models.image_size import resized_size

NEEDS_COCO128 = pytest.mark.skipif(
    not (data_home() / "coco128").is_dir(), reason="coco128 is not at hand"
)


def annotation(image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, **more}


def small_coco() -> dict[str, Any]:
    """Two images of 8x6 and one of 4x10 (width x height); the categories have holes."""
    sizes = {7: (8, 6), 3: (8, 6), 5: (4, 10)}
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
            for number, (width, height) in sizes.items()
        ],
        "annotations": [
            annotation(7, 90, [1, 2, 3, 4], area=10, iscrowd=0),
            annotation(7, 2, [0, 0, 8, 6], iscrowd=1),
            annotation(5, 11, [0.5, 1.5, 2.25, 7]),
        ],
        "categories": [
            {"id": 90, "name": "brush"},
            {"id": 2, "name": "cat"},
            {"id": 11, "name": "dog"},
        ],
    }


def write_images(folder: Path, coco: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image in coco["images"]:
        size = (image["width"], image["height"])
        Image.new("RGB", size, (image["id"], 0, 0)).save(folder / image["file_name"])


def write_coco(root: Path, coco: dict[str, Any], split: str = "val") -> Path:
    """root/annotations/instances_<split>.json with root/<split>/."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco))
    write_images(root / split, coco)
    return root


def pack(folder: Path, *, below: str = "") -> Path:
    """A tar beside a folder that holds its files, and not the folder any more."""
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, f"{below}{file.name}")
            file.unlink()
    folder.rmdir()
    return path


def test_categories_with_holes_become_classes(tmp_path: Path) -> None:
    data = open_detection(write_coco(tmp_path / "own", small_coco()))
    assert data.class_names == ("cat", "dog", "brush") and data.category_ids == (2, 11, 90)
    assert data.num_classes == 3 and data.title == "own" and data.split == "val"
    assert data.image_ids == (7, 3, 5) and data.files == ("7.png", "3.png", "5.png")
    assert [labels.tolist() for labels in data.labels] == [[2, 0], [], [1]]
    assert data.boxes[0].tolist() == [[1, 2, 4, 6], [0, 0, 8, 6]]
    assert [boxes.shape for boxes in data.boxes] == [(2, 4), (0, 4), (1, 4)]
    assert data.crowd[0].tolist() == [False, True] and data.num_boxes == 2
    # The file's own area where it has one; a crowd's mask may be smaller than its box.
    assert [areas.tolist() for areas in data.areas] == [[10, 48], [], [15.75]]
    assert {t.dtype for t in (*data.boxes, *data.areas)} == {torch.float32}
    assert {t.dtype for t in data.labels} == {torch.int64}
    assert {t.dtype for t in data.crowd} == {torch.bool}
    assert data.notes == ()


def test_images_come_in_their_own_size_and_resized(tmp_path: Path) -> None:
    data = open_detection(write_coco(tmp_path, small_coco()))
    assert data.image(2).shape == (3, 10, 4) and data.image(2)[0].unique().tolist() == [5]
    image, boxes = data.resized(2, (8, 15))  # the long side of 15 binds: 1.5 times
    assert image.shape == (3, 15, 6) and image.dtype == torch.uint8
    torch.testing.assert_close(boxes, torch.tensor([[0.75, 2.25, 4.125, 12.75]]))
    image, boxes = data.resized(1, (3, 100))
    assert image.shape == (3, 3, 4) and boxes.shape == (0, 4)


@pytest.mark.parametrize("img_size", [(5, 9), (64, 64), (7, 1000), (2, 3)])
def test_resized_boxes_stay_inside_and_keep_their_share(
    tmp_path: Path, img_size: tuple[int, int]
) -> None:
    data = open_detection(write_coco(tmp_path, small_coco()))
    for index, (height, width) in enumerate(data.img_sizes):
        image, boxes = data.resized(index, img_size)
        assert tuple(image.shape[1:]) == resized_size(height, width, img_size)
        after = torch.tensor([image.shape[2], image.shape[1]] * 2)
        torch.testing.assert_close(
            boxes / after, data.boxes[index] / torch.tensor([width, height] * 2)
        )
        assert bool((boxes <= after).all())


def test_reducing_is_antialiased(tmp_path: Path) -> None:
    """Stripes of one pixel become grey, not some of the stripes."""
    coco = small_coco()
    coco["images"] = [{"id": 5, "file_name": "5.png", "width": 64, "height": 64}]
    coco["annotations"] = []
    root = write_coco(tmp_path, coco)
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(root / "val" / "5.png")
    image, _ = open_detection(root).resized(0, (16, 16))
    assert image.float().sub(127.5).abs().max() < 20


def test_ground_truth_is_coco_again(tmp_path: Path) -> None:
    data = open_detection(write_coco(tmp_path / "first", small_coco()))
    truth = data.ground_truth()
    assert [entry["id"] for entry in truth["annotations"]] == [1, 2, 3]
    assert truth["annotations"][0] == {
        "id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 4], "area": 10, "iscrowd": 0,
    }  # fmt: skip
    assert truth["annotations"][1]["iscrowd"] == 1
    assert [(entry["id"], entry["name"]) for entry in truth["categories"]] == [
        (2, "cat"), (11, "dog"), (90, "brush"),
    ]  # fmt: skip
    again = open_detection(write_coco(tmp_path / "again", json.loads(json.dumps(truth))))
    assert again.image_ids == data.image_ids and again.category_ids == data.category_ids
    for name in ("boxes", "labels", "crowd", "areas"):
        for mine, other in zip(getattr(data, name), getattr(again, name), strict=True):
            assert torch.equal(mine, other), name


def test_take_keeps_images_and_boxes_together(tmp_path: Path) -> None:
    data = open_detection(write_coco(tmp_path, small_coco()))
    for indices in ([2, 0], np.array([2, 0]), torch.tensor([2, 0])):
        taken = data.take(indices)
        assert taken.image_ids == (5, 7) and len(taken) == 2
        assert taken.image(0).shape == (3, 10, 4) and taken.boxes[1].shape == (2, 4)
        assert int(taken.take([1]).image(0)[0, 0, 0]) == 7
    assert len(data.take([])) == 0
    for wrong in ([0, 0], [3], [-1]):
        with pytest.raises(ValueError, match="indices: expected different numbers from 0 to 2"):
            data.take(wrong)


def test_limit_spreads_over_the_set(tmp_path: Path) -> None:
    root = write_coco(tmp_path, small_coco())
    assert open_detection(root, limit=1).image_ids == (3,)
    assert open_detection(root, limit=2).image_ids == (7, 5)
    assert len(open_detection(root, limit=9)) == 3


@pytest.mark.parametrize("below", ["", "val/", "./deep/val/"])
def test_a_tar_beside_the_annotations(tmp_path: Path, below: str) -> None:
    root = write_coco(tmp_path, small_coco())
    pack(root / "val", below=below)
    data = open_detection(root)
    assert [int(data.image(index)[0, 0, 0]) for index in range(3)] == [7, 3, 5]
    assert [*root.iterdir()] and not (root / "val").exists()  # nothing is extracted
    copy: DetectionDataset = pickle.loads(pickle.dumps(data))  # as workers get it
    assert torch.equal(copy.image(2), data.image(2))


@pytest.mark.parametrize(
    "place", ["val2017", "images/val2017", "images", "annotations", ".", "annotations/images"]
)
def test_images_are_found_in_the_usual_places(tmp_path: Path, place: str) -> None:
    root = write_coco(tmp_path, small_coco(), "val2017")
    images = sorted((root / "val2017").iterdir())
    (root / place).mkdir(parents=True, exist_ok=True)
    for file in images:
        file.rename(root / place / file.name)
    if place != "val2017":
        (root / "val2017").rmdir()
    by_root = open_detection(root)
    by_file = open_detection(root / "annotations" / "instances_val2017.json", "train")
    for data in (by_root, by_file):
        assert data.split == "val" and int(data.image(2)[0, 0, 0]) == 5


def test_a_bare_file_name_finds_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_coco(tmp_path, small_coco(), "val2017")
    monkeypatch.chdir(root / "annotations")
    data = open_detection("instances_val2017.json")
    assert (data.name, int(data.image(2)[0, 0, 0])) == ("instances_val2017.json", 5)


def test_one_json_with_its_images_elsewhere(tmp_path: Path) -> None:
    write_images(tmp_path / "pictures" / "b", small_coco())
    coco = small_coco()
    for image in coco["images"]:
        image["file_name"] = "b\\" + image["file_name"]  # as written on Windows
    (tmp_path / "boxes.json").write_text(json.dumps(coco), encoding="utf-8-sig")
    for folder in (tmp_path / "pictures", tmp_path / "pictures" / "b"):
        data = open_detection(tmp_path / "boxes.json", images=folder)
        assert (len(data), data.split, data.title) == (3, "all", "boxes")
        assert int(data.image(0)[0, 0, 0]) == 7
    packed = pack(tmp_path / "pictures" / "b")
    assert len(open_detection(tmp_path / "boxes.json", images=packed)) == 3


def test_splits_go_by_several_names(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "one", small_coco(), "valid")
    write_coco(root, {**small_coco(), "annotations": []}, "train2020")
    (root / "annotations" / "instances_minitrain2020.json").write_text("{}")
    (root / "annotations" / "person_keypoints_train2020.json").write_text("{}")
    assert open_detection(root, "val").split == open_detection(root, "test").split == "val"
    assert open_detection(root, "train").num_boxes == 0
    exported = tmp_path / "exported"
    for split in ("train", "valid"):
        write_images(exported / split, small_coco())
        (exported / split / "_annotations.coco.json").write_text(json.dumps(small_coco()))
    assert open_detection(exported, "train").split == "train"
    assert int(open_detection(exported, "test").image(1)[0, 0, 0]) == 3


def test_a_folder_without_splits_holds_a_fifth_out(tmp_path: Path) -> None:
    coco = small_coco()
    coco["images"] = [
        {"id": n, "file_name": f"{n}.png", "width": 4, "height": 4} for n in range(20)
    ]
    coco["annotations"] = []
    root = write_coco(tmp_path, coco, "default")
    (root / "default").rename(root / "images")
    train, val = (open_detection(root, split) for split in ("train", "val"))
    assert (train.split, len(train), val.split, len(val)) == ("train", 16, "val", 4)
    assert sorted(train.image_ids + val.image_ids) == list(range(20))
    assert open_detection(root, "test").image_ids == val.image_ids
    assert len(open_detection(root, "all")) == 20


def test_names_are_folders_of_the_data_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVITLAB_DATA", str(tmp_path))
    assert default_detection_name() == "scenes"
    write_coco(tmp_path / "own", small_coco())
    assert open_detection("own").name == "own"
    with pytest.raises(ValueError, match=r"closest name: 'own' \(known: scenes, own\)"):
        open_detection("owm")
    (tmp_path / "classes" / "train").mkdir(parents=True)  # pictures without boxes
    exported = tmp_path / "exported" / "valid"  # as Roboflow does
    write_images(exported, small_coco())
    (exported / "_annotations.coco.json").write_text(json.dumps(small_coco()))
    assert open_detection("exported").num_boxes == 2
    with pytest.raises(ValueError, match=r"\(known: scenes, exported, own\)"):
        open_detection("class")
    for split in ("train2017", "val2017"):
        write_coco(tmp_path / "coco128", small_coco(), split)
    assert default_detection_name() == "coco128"
    assert open_detection("coco128", "train").title == "COCO128"


@NEEDS_COCO128
def test_coco128() -> None:
    train, val = (open_detection("coco128", split) for split in ("train", "val"))
    assert (len(train), sum(map(len, train.boxes)), train.num_boxes) == (128, 935, 929)
    assert (len(val), sum(map(len, val.boxes)), val.num_boxes) == (128, 903, 898)
    assert sum(not len(boxes) for boxes in train.boxes) == 2
    assert train.num_classes == 80 and train.category_ids[-1] == 90
    assert train.notes == val.notes == ()
    assert train.class_names[int(train.labels[3][0])] == "zebra"
    assert train.image(3).shape == (3, 425, 640)
    image, boxes = val.resized(3, (256, 320))
    assert image.shape == (3, 320, 240) and boxes.shape == (4, 4)
    check_boxes(train)


@NEEDS_COCO128
def test_coco128_as_ground_truth_is_the_file() -> None:
    path = data_home() / "coco128" / "annotations" / "instances_val2017.json"
    truth = open_detection("coco128").ground_truth()["annotations"]
    original = json.loads(path.read_text())["annotations"]
    assert len(truth) == len(original)
    # In the order of the images, so sorted the same way before they are compared.
    order = {entry["id"]: n for n, entry in enumerate(json.loads(path.read_text())["images"])}
    original.sort(key=lambda entry: order[entry["image_id"]])
    for mine, other in zip(truth, original, strict=True):
        assert (mine["image_id"], mine["category_id"]) == (other["image_id"], other["category_id"])
        assert mine["iscrowd"] == other["iscrowd"]
        assert mine["area"] == pytest.approx(other["area"], rel=1e-6)
        assert mine["bbox"] == pytest.approx(other["bbox"], abs=1e-3)


def test_boxes_of_scenes_are_those_of_their_masks() -> None:
    for index in range(12):
        layout = lay_out("val", index)
        image, masks = draw_scene("val", index)
        assert image.shape[1:] == layout.img_size and len(masks) == len(layout.objects) > 0
        for number, mask in enumerate(masks):
            rows, columns = np.nonzero(mask)
            drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            # The pixels of a thin tip are not all half covered.
            assert np.abs(drawn - layout.boxes[number]).max() < 2
            assert mask.sum() == pytest.approx(layout.areas[number], rel=0.03)


def test_scenes_are_the_same_each_time_and_differ() -> None:
    data = open_detection("scenes", limit=20)
    assert data.read(3) == open_detection("scenes", limit=20).read(3)
    assert len({data.read(index)[0] for index in range(4)}) == 4
    assert data.take([3]).read(0) == data.read(3)
    assert open_detection("scenes", "test").image_ids == open_detection("scenes").image_ids
    assert pickle.loads(pickle.dumps(data)).read(2) == data.read(2)


def test_scenes_show_all_sizes_and_classes_inside_the_image() -> None:
    data = open_detection("scenes", "val")
    assert len(data) == 200 and data.num_classes == 10 and data.notes == ()
    assert torch.bincount(torch.cat(data.labels), minlength=10).min() > 20
    assert {len(boxes) for boxes in data.boxes} == {1, 2, 3, 4, 5}
    areas = torch.cat(data.areas)
    assert 0.1 < (areas < 32**2).float().mean() < 0.4 and (areas > 96**2).any()
    for boxes, (height, width) in zip(data.boxes, data.img_sizes, strict=True):
        assert bool((boxes >= 0).all()) and bool((boxes[:, 2:] > boxes[:, :2]).all())
        assert bool((boxes[:, 2] <= width).all()) and bool((boxes[:, 3] <= height).all())
    image = data.image(0)
    assert image.dtype == torch.uint8 and tuple(image.shape[1:]) == data.img_sizes[0]
    with Image.open(io.BytesIO(data.read(0)[0])) as picture:
        assert picture.format == "PNG"
    check_boxes(data)


def test_training_scenes_are_other_ones() -> None:
    first, second = lay_out("train", 0), lay_out("val", 0)
    assert first.objects.tolist() != second.objects.tolist()
    assert len(open_detection("scenes", "train", limit=3)) == 3

"""Annotations that cannot be meant as they are written, and Pascal VOC's."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ExifTags, Image

from evitlab.datasets import check_boxes, open_detection, voc_to_coco

Coco = dict[str, Any]


def write(root: Path, change: Callable[[Coco], object] = lambda coco: None) -> Path:
    """One image of 8x6 with one box, changed, as root/annotations/instances_val.json."""
    coco: Coco = {
        "images": [{"id": 1, "file_name": "1.png", "width": 8, "height": 6}],
        "annotations": [{"image_id": 1, "category_id": 4, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 4, "name": "cat"}],
    }
    (root / "annotations").mkdir(parents=True)
    (root / "val").mkdir()
    Image.new("RGB", (8, 6)).save(root / "val" / "1.png")
    change(coco)
    (root / "annotations" / "instances_val.json").write_text(json.dumps(coco))
    return root


def add_boxes(*boxes: list[float]) -> Callable[[Coco], object]:
    rows = [{"image_id": 1, "category_id": 4, "bbox": box} for box in boxes]
    return lambda coco: coco["annotations"].extend(rows)


def test_boxes_outside_are_clipped_or_left_out_and_counted(tmp_path: Path) -> None:
    data = open_detection(
        write(
            tmp_path,
            add_boxes(
                [-2, -1, 4, 3], [6, 4, 9.5, 9],  # reach outside
                [8, 0, 2, 2], [-3, 0, 3, 3], [0, 7, 1, 1],  # wholly outside
                [1, 1, 0, 3], [5, 5, -2, -2],  # empty
                [0, 0, 8.01, 6.005], [0, 0, 1e-9, 3],  # rounding; a sliver
            ),
        )
    )  # fmt: skip
    assert data.boxes[0].tolist() == [[1, 2, 4, 6], [0, 0, 2, 2], [6, 4, 8, 6], [0, 0, 8, 6]]
    assert data.areas[0].tolist() == [12, 4, 4, 48] and data.labels[0].tolist() == [0] * 4
    assert data.notes == (
        "2 boxes reach outside their image and were clipped",
        "3 boxes outside their image were left out",
        "3 boxes of zero area were left out",
    )
    assert open_detection(write(tmp_path / "one", add_boxes([7, 0, 2, 2]))).notes == (
        "1 box reaches outside its image and was clipped",
    )


@pytest.mark.parametrize("change", [
    lambda coco: coco.update(annotations=[]),
    lambda coco: coco.pop("annotations"),
    lambda coco: coco["annotations"][0].update(iscrowd=1),
    lambda coco: coco["annotations"][0].update(bbox=[1, 1, 0, 0]),
])  # fmt: skip
def test_without_boxes_it_opens_but_cannot_be_trained_on(
    tmp_path: Path, change: Callable[[Coco], object]
) -> None:
    data = open_detection(write(tmp_path, change))
    assert len(data) == 1 and data.num_boxes == 0 and data.image(0).shape == (3, 6, 8)
    assert data.boxes[0].shape[1] == 4
    with pytest.raises(ValueError, match=r"^data: expected at least one box to find, got none in "):
        check_boxes(data)
    said = r"^train_data: expected at least one box to learn from, got none in .* \(val, 1 im"
    with pytest.raises(ValueError, match=said):
        check_boxes(data, "train_data", to="learn from")


WRONG: dict[str, tuple[Callable[[Coco], object], str]] = {
    "no images": (lambda c: c.pop("images"), "expected a list under 'images', got nothing"),
    "empty images": (lambda c: c.update(images=[]), "at least one entry in 'images'"),
    "images by name": (lambda c: c.update(images={}), "a list under 'images', got dict"),
    "image a string": (lambda c: c.update(images=["1.png"]), r"images\[0\]: .* object, got str"),
    "no categories": (lambda c: c.pop("categories"), "a list under 'categories', got nothing"),
    "empty categories": (lambda c: c.update(categories=[]), "at least one entry in 'categories'"),
    "annotations null": (lambda c: c.update(annotations=None), "'annotations', got nothing"),
    "same category": (
        lambda c: c["categories"].append({"id": 4, "name": "dog"}),
        r"categories\[1\]: expected an id of its own, got 4 a second time",
    ),
    "same image": (
        lambda c: c["images"].append(c["images"][0]),
        r"images\[1\]: expected an id of its own, got 1 a second time",
    ),
    "other image": (
        lambda c: c["annotations"][0].update(image_id=9),
        r"annotations\[0\]: expected the id of an image, got image_id 9",
    ),
    "other category": (
        lambda c: c["annotations"][0].update(category_id=0),
        r"annotations\[0\]: expected the id of a category, got category_id 0; closest: 4",
    ),
    "id a string": (
        lambda c: c["images"][0].update(id="1"), r"images\[0\]: .* number as 'id', got '1'"
    ),
    "id a half": (lambda c: c["images"][0].update(id=1.5), "whole number as 'id', got 1.5"),
    "id true": (lambda c: c["images"][0].update(id=True), "whole number as 'id', got True"),
    "no width": (lambda c: c["images"][0].pop("width"), "a key 'width', got id, file_name, height"),
    "height zero": (lambda c: c["images"][0].update(height=0), "height and width from 1 to"),
    "height huge": (lambda c: c["images"][0].update(height=10**400), "height and width from 1 to"),
    "no file": (lambda c: c["images"][0].update(file_name=""), "a name as 'file_name', got ''"),
    "name null": (lambda c: c["categories"][0].update(name=None), "a name as 'name', got None"),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), r"annotations\[0\]: .* a key 'bbox'"),
    "three numbers": (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "four finite numbers"),
    "box NaN": (
        lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]),
        r"annotations\[0\]: expected four finite numbers .* got \[1, 2, nan, 4\]",
    ),
    "box infinite": (
        lambda c: c["annotations"][0].update(bbox=[1, 2, float("inf"), 4]), "finite numbers"
    ),
    "box huge": (lambda c: c["annotations"][0].update(bbox=[1, 2, 10**400, 4]), "finite numbers"),
    "box of strings": (lambda c: c["annotations"][0].update(bbox=["1"] * 4), "finite numbers"),
    "crowd 2": (lambda c: c["annotations"][0].update(iscrowd=2), "iscrowd 0 or 1, got 2"),
    "area negative": (lambda c: c["annotations"][0].update(area=-1), "as 'area', got -1"),
    "area NaN": (lambda c: c["annotations"][0].update(area=float("nan")), "as 'area', got nan"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_malformed_entries_are_named(tmp_path: Path, case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(ValueError, match=f"instances_val.json: .*{message}"):
        open_detection(write(tmp_path, change))


@pytest.mark.parametrize(("text", "message"), [
    (b"", "got no JSON"),
    (b"\xff\xd8\xff", "got no JSON"),
    (b"[" * 100_000, "got no JSON"),
    (b"[]", "expected an object with .* got list; a list of results has no images"),
    (b"3", "got int"),
    (b"{}", "expected a list under 'categories', got nothing"),
])  # fmt: skip
def test_files_that_are_no_annotations(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f"boxes.json: .*{message}"):
        open_detection(path, images=tmp_path)


def missing(coco: Coco) -> None:
    more = [{"id": n, "file_name": f"{n}.png", "width": 8, "height": 6} for n in (2, 3)]
    coco["images"] = more + coco["images"]
    coco["annotations"].append({"image_id": 3, "category_id": 4, "bbox": [0, 0, 1, 1]})


def test_missing_images_are_counted_or_skipped(tmp_path: Path) -> None:
    root = write(tmp_path, missing)
    with pytest.raises(ValueError, match=r"2 of 3 images are not in .*val; the first is '2.png'"):
        open_detection(root)
    data = open_detection(root, on_error="skip")
    assert data.image_ids == (1,) and data.num_boxes == 1
    assert data.notes == ("2 images not found, left out",)
    (root / "val" / "1.png").unlink()
    with pytest.raises(ValueError, match="at least one image, got none"):
        open_detection(root, on_error="skip")


def test_skip_leaves_out_what_is_no_image_or_of_another_size(tmp_path: Path) -> None:
    root = write(tmp_path, missing)
    (root / "val" / "2.png").write_bytes(b"no image")
    Image.new("RGB", (6, 8)).save(root / "val" / "3.png")
    data = open_detection(root, on_error="skip")
    assert data.image_ids == (1,)
    assert data.notes == ("2 images unreadable or not of the declared size, left out",)
    by_all = open_detection(root)
    with pytest.raises(ValueError, match=r"2.png: not an image file"):
        by_all.image(0)
    with pytest.raises(ValueError, match=r"3.png: expected 8x6 .* got 6x8; its EXIF") as caught:
        by_all.resized(1, (4, 8))
    assert "width x height" in str(caught.value)


def test_an_image_that_exif_turns_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, lambda coco: coco["images"][0].update(file_name="1.jpg"))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (8, 6)).save(root / "val" / "1.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"1.jpg: expected 8x6 .* got 6x8; its EXIF orientation"):
        open_detection(root).image(0)
    turned = write(
        tmp_path / "declared",
        lambda coco: coco["images"][0].update(file_name="1.jpg", width=6, height=8),
    )
    Image.new("RGB", (8, 6)).save(turned / "val" / "1.jpg", exif=exif)
    assert open_detection(turned).image(0).shape == (3, 8, 6)
    Image.new("RGB", (9, 9)).save(turned / "val" / "1.jpg")
    with pytest.raises(ValueError, match=r"expected 6x8 .* got 9x9$"):
        open_detection(turned).image(0)


def test_one_name_for_two_files(tmp_path: Path) -> None:
    root = write(tmp_path)
    for folder in ("a", "b"):
        (root / "val" / folder).mkdir()
        Image.new("RGB", (8, 6)).save(root / "val" / folder / "1.png")
    assert len(open_detection(root)) == 1  # the one that lies right there
    (root / "val" / "1.png").unlink()
    with pytest.raises(ValueError, match="'1.png' to name one image, got 2: a/1.png, b/1.png"):
        open_detection(root)


@pytest.mark.parametrize("packed", [False, True])
def test_two_names_for_one_file(tmp_path: Path, packed: bool) -> None:
    """Of those, only one is the image, as far as the folders tell."""
    names = ["cam2/1.png", "cam1/1.png", "cam3/1.png"]

    def by_camera(coco: Coco) -> None:
        coco["images"] = [
            {"id": n, "file_name": name, "width": 8, "height": 6} for n, name in enumerate(names)
        ]

    root = write(tmp_path, by_camera)
    file = root / "annotations" / "instances_val.json"
    images = (root / "val").rename(root / "cam1")
    if packed:
        with tarfile.open(root / "cam1.tar", "w") as tar:
            tar.add(images / "1.png", "1.png")
        images = root / "cam1.tar"
    with pytest.raises(ValueError, match=r"2 of 3 images are not in .*; the first is 'cam2/1.png'"):
        open_detection(file, images=images)
    data = open_detection(file, images=images, on_error="skip")
    assert data.files == ("cam1/1.png",) and data.notes == ("2 images not found, left out",)
    elsewhere = images.rename(images.with_stem("pictures"))
    with pytest.raises(ValueError, match=r"3 of 3 images are not in"):
        open_detection(file, images=elsewhere)
    names[0] = "1.png"  # says just that; the others only end in it
    by_camera(coco := json.loads(file.read_text()))
    file.write_text(json.dumps(coco))
    data = open_detection(file, images=elsewhere, on_error="skip")
    assert data.files == ("1.png",)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png"])
def test_a_name_does_not_leave_the_folder(tmp_path: Path, name: str) -> None:
    root = write(tmp_path / "set", lambda coco: coco["images"][0].update(file_name=name))
    Image.new("RGB", (8, 6)).save(root / "secret.png")
    with pytest.raises(ValueError, match="1 of 1 images are not in"):
        open_detection(root)


def test_wrong_arguments(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    for split in ("training", ""):
        with pytest.raises(ValueError, match="split: expected one of train, val, test or all"):
            open_detection(root, split)
    with pytest.raises(ValueError, match=r"for 'train', got annotations/instances_val.json"):
        open_detection(root, "train")
    with pytest.raises(ValueError, match="got no annotation file"):
        open_detection(tmp_path, "val")
    for limit in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=f"limit: expected a positive .* got {limit}"):
            open_detection(root, limit=limit)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_error: expected 'raise' or 'skip', got 'ignore'"):
        open_detection(root, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images: expected a folder or a tar, got '.*nowhere'"):
        open_detection(root, images=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="images: 'scenes' draws its own"):
        open_detection("scenes", images=root)
    with pytest.raises(ValueError, match="split: 'scenes' is read split by split"):
        open_detection("scenes", "all")
    (root / "annotations" / "instances_val2.json").write_text("{}")
    with pytest.raises(ValueError, match="instances_val.json, instances_val2.json; give the path"):
        open_detection(root)


def test_images_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path)
    (root / "val").rename(root / "elsewhere")
    with pytest.raises(ValueError, match="images: none found for .*instances_val.json"):
        open_detection(root)
    monkeypatch.chdir(root / "annotations")
    with pytest.raises(ValueError, match="images: none found for instances_val.json; give"):
        open_detection("instances_val.json")
    assert len(open_detection(root, images=root / "elsewhere")) == 1


VOC = """<annotation><folder>VOC</folder><filename>{stem}.png</filename>
<size><width>8</width><height>6</height><depth>3</depth></size>
<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>8</xmax><ymax>4</ymax></bndbox></object>
</annotation>"""


def write_voc(root: Path, stems: str = "abc", **lists: str) -> Path:
    (root / "Annotations").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for number, stem in enumerate(stems):
        text = VOC.format(stem=stem, name=("dog", "cat")[number % 2], difficult=number % 3 // 2)
        (root / "Annotations" / f"{stem}.xml").write_text(text)
        Image.new("RGB", (8, 6), (number, 0, 0)).save(root / "JPEGImages" / f"{stem}.png")
    for split, members in lists.items():
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        path.write_text("".join(f"{stem}  1\n" for stem in members))
    if not lists:
        (root / "ImageSets" / "Main").rmdir()
    return root


def test_voc_becomes_coco(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "own", train="ca", test="b", dog_train="a")
    coco = voc_to_coco(root, "train")
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [image["file_name"] for image in coco["images"]] == ["c.png", "a.png"]
    # Corners 1..8 and 2..4, both inside: 8 wide and 3 high from (0, 1).
    assert [entry["bbox"] for entry in coco["annotations"]] == [[0, 1, 8, 3]] * 2
    assert [entry["iscrowd"] for entry in coco["annotations"]] == [1, 0]
    assert [entry["area"] for entry in coco["annotations"]] == [24, 24]
    data = open_detection(root, "train")
    assert (data.split, data.title, data.class_names) == ("train", "own", ("cat", "dog"))
    assert data.labels[1].tolist() == [1] and data.crowd[0].tolist() == [True]
    assert data.boxes[0].tolist() == [[0, 1, 8, 4]] and int(data.image(0)[0, 0, 0]) == 2
    assert open_detection(root, "val").split == "test" and data.notes == ()
    assert len(open_detection(root, "all")) == 3
    # Written out, it opens as COCO.
    (tmp_path / "own.json").write_text(json.dumps(coco))
    again = open_detection(tmp_path / "own.json", images=root / "JPEGImages")
    assert torch.equal(again.boxes[1], data.boxes[1]) and again.files == data.files


def test_voc_without_lists_holds_a_fifth_out(tmp_path: Path) -> None:
    root = write_voc(tmp_path, "abcdefghij")
    train, val = (open_detection(root, split) for split in ("train", "val"))
    assert (len(train), train.split, len(val), val.split) == (8, "train", 2, "val")
    assert sorted(train.files + val.files) == [f"{stem}.png" for stem in "abcdefghij"]
    assert train.category_ids == val.category_ids == (1, 2)


BOMB = '<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(("old", "new", "message"), [
    ("</annotation>", "", "expected an XML annotation, got none"),
    ("<annotation>", BOMB + "<annotation>", "got one that declares entities"),
    ("annotation>", "boxes>", "expected <annotation> at the top, got <boxes>"),
    ("<xmin>1</xmin>", "", "object 0: expected <bndbox/xmin>, got nothing"),
    ("<xmin>1<", "<xmin>one<", "object 0: expected a number as <bndbox/xmin>, got 'one'"),
    ("<xmin>1<", "<xmin>nan<", "object 0: expected a number as <bndbox/xmin>, got 'nan'"),
    ("<width>8<", "<width>0<", "expected a positive size, got 0x6 pixels"),
    ("<name>dog</name>", "<name> </name>", "object 0: expected <name>, got nothing"),
    ("<difficult>0<", "<difficult>yes<", "expected <difficult> 0 or 1, got 'yes'"),
])  # fmt: skip
def test_broken_voc_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    root = write_voc(tmp_path, train="a")
    file = root / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=f"a.xml: .*{message}"):
        voc_to_coco(root, "train")


def test_voc_splits_that_are_not_there(tmp_path: Path) -> None:
    root = write_voc(tmp_path, train="a", dog_train="a", trainval="ax")
    with pytest.raises(ValueError, match="Main has train, trainval, got 'val'"):
        open_detection(root, "val")
    with pytest.raises(ValueError, match=r"Annotations/x.xml, which its trainval list has"):
        voc_to_coco(root, "trainval")
    (root / "JPEGImages" / "a.png").unlink()
    with pytest.raises(ValueError, match="1 of 1 images are not in .*JPEGImages"):
        open_detection(root, "train")
    with pytest.raises(ValueError, match="folder: expected annotations in .*nowhere"):
        voc_to_coco(tmp_path / "nowhere")

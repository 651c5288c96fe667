"""Box AP: equal to COCO's own evaluation, to hand-worked cases, and clear about wrong input."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evitlab.datasets import open_detection
from evitlab.datasets.hub import data_home
from evitlab.records.detection import BoxAP
from evitlab.training.box_ap import box_ap

GOLDEN = data_home() / "coco_eval_golden"
EXPECTED = {
    "ap": 0.503647, "ap50": 0.696973, "ap75": 0.571667,
    "ap_small": 0.593252, "ap_medium": 0.557991, "ap_large": 0.489363,
    "ar1": 0.386813, "ar10": 0.593680, "ar100": 0.595353,
    "ar_small": 0.654764, "ar_medium": 0.603130, "ar_large": 0.553744,
}  # fmt: skip
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"{GOLDEN.name} is not at hand")


def truth(*boxes: tuple[int, int, list[float]], images: int = 2) -> dict[str, Any]:
    """A ground truth of (image, category, x y width height); categories 1 and 3."""
    return {
        "images": [{"id": number} for number in range(1, images + 1)],
        "categories": [{"id": 1, "name": "disk"}, {"id": 3, "name": "square"}],
        "annotations": [
            {"id": place, "image_id": image, "category_id": category, "bbox": box}
            for place, (image, category, box) in enumerate(boxes)
        ],
    }


def result(image: int, category: int, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def share(found: float) -> float:
    """Percent."""
    return 100 * found


@needs_golden
def test_the_golden_vector() -> None:
    found = box_ap(GOLDEN / "sampled_gts_bbox_area.json", GOLDEN / "cocoapi_results.json")
    values = {name: getattr(found, name) / 100 for name in EXPECTED}
    assert values == pytest.approx(EXPECTED, abs=1e-6, rel=0)
    assert (found.images, found.boxes) == (100, 830)
    assert found.environment.dataset == "sampled_gts_bbox_area"


@needs_golden
def test_the_golden_vector_as_objects_which_stay_as_they_are(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    truth = json.loads((GOLDEN / "sampled_gts_bbox_area.json").read_bytes())
    results = json.loads((GOLDEN / "cocoapi_results.json").read_bytes())
    before = copy.deepcopy((truth, results))
    found = box_ap(truth, results)
    assert found.ap / 100 == pytest.approx(EXPECTED["ap"], abs=1e-6, rel=0)
    assert (truth, results) == before
    assert capfd.readouterr() == ("", "")
    assert BoxAP.load(found.save(tmp_path / "ap.json")) == found


# Two images, one square of 100 pixels a side in each: "disk" in both, "square" only in image 1.
DISK = [10.0, 10.0, 100.0, 100.0]
SQUARE = [200.0, 200.0, 100.0, 100.0]
TRUTH = truth((1, 1, DISK), (2, 1, DISK), (1, 3, SQUARE))


def test_perfect_results() -> None:
    found = box_ap(
        TRUTH, [result(1, 1, DISK, 0.9), result(2, 1, DISK, 0.8), result(1, 3, SQUARE, 0.7)]
    )
    assert (found.ap, found.ap50, found.ap75, found.ap_large) == (100, 100, 100, 100)
    assert (found.ar1, found.ar100, found.ar_large) == (100, 100, 100)
    # Nothing of these sizes is there to be found.
    assert (found.ap_small, found.ap_medium, found.ar_small, found.ar_medium) == (None,) * 4
    assert (found.images, found.boxes) == (2, 3)


def test_worked_by_hand() -> None:
    """Of "disk" the best box is wrong, one disk is found at an IoU of 0.8, the other is not.

    Up to IoU 0.80: precision 1/2 where recall is at most 1/2, which is 51 of COCO's 101 places;
    above, nothing. "square" is found exactly.
    """
    shifted = [10.0, 10.0, 100.0, 80.0]  # inside the disk: IoU 8000 / 10000
    wrong = [300.0, 10.0, 50.0, 50.0]
    found = box_ap(
        TRUTH,
        [result(1, 1, wrong, 0.9), result(2, 1, shifted, 0.8), result(1, 3, SQUARE, 0.3)],
    )
    disk = 0.5 * 51 / 101
    assert found.ap50 == pytest.approx(share((disk + 1) / 2))
    assert found.ap75 == pytest.approx(share((disk + 1) / 2))
    assert found.ap == pytest.approx(share((0.7 * disk + 1) / 2))  # 0.50 .. 0.80: 7 of 10
    assert found.ar100 == pytest.approx(share((0.7 * 0.5 + 1) / 2))


def test_a_box_numbered_0_is_found_as_any_other() -> None:
    found = box_ap(truth((1, 1, DISK)), [result(1, 1, DISK, 0.9)])
    assert found.ap == 100


def test_crowds_are_ignored() -> None:
    """What lies in a crowd is neither right nor wrong."""
    crowded = truth((1, 1, DISK), (1, 1, SQUARE))
    crowded["annotations"][1]["iscrowd"] = 1
    inside = [result(1, 1, [210.0, 210.0, 20.0, 20.0], 0.95 - 0.01 * k) for k in range(3)]
    found = box_ap(crowded, [*inside, result(1, 1, DISK, 0.5)])
    assert (found.ap, found.boxes) == (100, 1)
    crowded["annotations"][1]["iscrowd"] = 0
    assert box_ap(crowded, [*inside, result(1, 1, DISK, 0.5)]).ap < 50


def test_areas_of_the_file_decide_what_is_small() -> None:
    drawn = truth((1, 1, DISK))
    drawn["annotations"][0]["area"] = 500.0
    found = box_ap(drawn, [result(1, 1, DISK, 0.9)])
    assert (found.ap_small, found.ap_large) == (100, None)


@pytest.mark.parametrize("results", [[], [result(1, 3, DISK, 0.9)]])
def test_nothing_found_is_an_ap_of_0(results: list[dict[str, Any]]) -> None:
    found = box_ap(TRUTH, results)
    assert (found.ap, found.ap50, found.ar100, found.ap_large) == (0, 0, 0, 0)


def without(key: str, entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}


ONE = result(1, 1, DISK, 0.9)


@pytest.mark.parametrize(
    ("ground_truth", "results", "said"),
    [
        (TRUTH, [ONE, {**ONE, "image_id": 7}], r"results\[1\].*image.*image_id 7"),
        (TRUTH, [{**ONE, "category_id": 2}], r"results\[0\].*category.*category_id 2"),
        (TRUTH, [{**ONE, "image_id": "1"}], "whole number as 'image_id', got '1'"),
        (TRUTH, [without("score", ONE)], "expected a key 'score', got image_id"),
        (TRUTH, [{**ONE, "score": float("nan")}], "expected a finite number as 'score', got nan"),
        (TRUTH, [{**ONE, "bbox": [1, 2, 3]}], r"four finite numbers .* got \[1, 2, 3\]"),
        (TRUTH, [{**ONE, "bbox": [1, 2, 3, None]}], "finite numbers .* None"),
        (TRUTH, [3], "expected an object, got int"),
        (TRUTH, TRUTH, r"expected a list of COCO results, got dict \(a ground truth\?\)"),
        (truth(), [], "at least one box to find .* got 0 annotations"),
        ([ONE], [], "expected a COCO ground truth .* got list"),
        ({"images": []}, [], "got keys images"),
        (truth((9, 1, DISK)), [], r"annotations\[0\]: .* id of an image, got image_id 9"),
        ({**TRUTH, "images": [{"id": 1}, {"id": 1}]}, [], r"images\[1\].*got 1 a second"),
        ({**TRUTH, "categories": [{"name": "disk"}]}, [], r"categories\[0\].* key 'id', got name"),
    ],
)  # fmt: skip
def test_wrong_input_is_named(ground_truth: Any, results: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        box_ap(ground_truth, results)


def as_in_tables(coco: dict[str, Any]) -> None:
    for key, own in (("images", "id"), ("annotations", "image_id"), ("categories", "id")):
        for entry in coco[key]:
            entry[own] = float(entry[own])


# How the same annotations may be written, and what is refused in them.
WRITTEN: dict[str, tuple[Callable[[dict[str, Any]], object], str | None]] = {
    "whole numbers as 1.0": (as_in_tables, None),
    "area null": (lambda c: c["annotations"][0].update(area=None), None),
    "no area": (lambda c: c["annotations"][0].pop("area", None), None),
    "true as id": (lambda c: c["images"][0].update(id=True), "number as 'id', got True"),
    "true as category": (
        lambda c: c["annotations"][0].update(category_id=True), "'category_id', got True",
    ),
    "crowd 2": (lambda c: c["annotations"][0].update(iscrowd=2), "iscrowd 0 or 1, got 2"),
    "area negative": (lambda c: c["annotations"][0].update(area=-1), "as 'area', got -1"),
    "box huge": (
        lambda c: c["annotations"][0].update(bbox=[0, 0, 10**400, 1]), "four finite numbers",
    ),
    "an image a list": (lambda c: c["images"].append([]), r"images\[2\]: .* object, got list"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRITTEN)
def test_what_opens_as_data_is_taken_as_ground_truth(case: str, tmp_path: Path) -> None:
    change, said = WRITTEN[case]
    drawn = copy.deepcopy(TRUTH)
    for entry in drawn["images"]:
        Image.new("RGB", (320, 320)).save(tmp_path / f"{entry['id']}.png")
        entry |= {"file_name": f"{entry['id']}.png", "width": 320, "height": 320}
    change(drawn)
    (tmp_path / "truth.json").write_text(json.dumps(drawn), "utf-8")
    results = [result(1, 1, DISK, 0.9)]
    if said is None:
        found = box_ap(tmp_path / "truth.json", results)
        data = open_detection(tmp_path / "truth.json", images=tmp_path)
        assert found.ap > 0 and found.boxes == data.num_boxes == 3
    else:
        with pytest.raises(ValueError, match=said):
            box_ap(tmp_path / "truth.json", results)
        with pytest.raises(ValueError, match=said):
            open_detection(tmp_path / "truth.json", images=tmp_path)


def test_only_crowds_are_nothing_to_find() -> None:
    crowded = truth((1, 1, DISK))
    crowded["annotations"][0]["iscrowd"] = 1
    with pytest.raises(ValueError, match="crowds are none"):
        box_ap(crowded, [])


@pytest.mark.parametrize(
    ("write", "error", "said"),
    [
        (lambda path: path.write_text("{", "utf-8"), ValueError, "is no JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), ValueError, "is no JSON"),
        (lambda path: path.mkdir(), ValueError, "expected a JSON file, got the folder"),
        (lambda path: None, FileNotFoundError, "truth.json"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(
    write: Callable[[Path], object], error: type[Exception], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "truth.json"
    write(path)
    with pytest.raises(error, match=said):
        box_ap(os.fspath(path), [])


def test_without_the_evaluator_it_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'evitlab\[detect\]'"):
        box_ap(TRUTH, [])

"""Box AP as COCO counts it, of a ground truth and the results of a detector.

faster-coco-eval does the computing; here its input is checked and its numbers named.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evitlab.datasets import coco_entries
from evitlab.records import Environment, environment_card
from evitlab.records.detection import BoxAP

# In the order of COCO's summary; None where nothing was counted.
_NAMES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
_NOT_COUNTED = -1.0

GroundTruth = Mapping[str, Any] | str | os.PathLike[str]
Results = Sequence[Mapping[str, Any]] | str | os.PathLike[str]


def box_ap(
    ground_truth: GroundTruth, results: Results, *, environment: Environment | None = None
) -> BoxAP:
    """COCO's twelve box metrics, in percent.

    Args:
        ground_truth: in COCO format, or the path of such a JSON file. Where an annotation has no
            `area`, its box's is taken; `iscrowd` is 0 where it is missing.
        results: a list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}, or
            the path of such a JSON file. An empty list is an AP of 0.
        environment: where the results come from; None: this process, now.

    Raises:
        ValueError: something is missing or no number, the ground truth has no boxes but crowds,
            or a result names an image or category that the ground truth does not know; or
            faster-coco-eval is not installed.
        FileNotFoundError: there is no such file.

    Paper: Table 5.

    Pitfall: only the 100 best boxes of an image count, and an image that no result names counts
        as one where nothing was found. Small, medium and large go by `area`, which COCO measures
        on masks: of boxes alone those three columns shift a little.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ValueError(
            "box AP: expected faster-coco-eval to be installed: pip install 'evitlab[detect]'"
        ) from error

    truth, truth_name = _read(ground_truth, "ground_truth")
    checked = _checked_truth(truth, truth_name)
    found, results_name = _read(results, "results")
    detections = _checked_results(found, results_name, checked)
    target = COCO(checked, print_function=_silent)
    if detections:
        loaded = target.loadRes(detections)
    else:  # which older versions cannot load
        loaded = COCO({**checked, "annotations": []}, print_function=_silent)
    evaluation = COCOeval_faster(target, loaded, iouType="bbox", print_function=_silent)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    values: dict[str, Any] = {
        name: None if value == _NOT_COUNTED else 100 * float(value)
        for name, value in zip(_NAMES, evaluation.stats[: len(_NAMES)], strict=True)
    }
    if environment is None:
        named = Path(truth_name).stem if truth_name != "ground_truth" else None
        environment = environment_card(dataset=named)
    return BoxAP(
        **values,
        images=len(checked["images"]),
        boxes=sum(not entry["iscrowd"] for entry in checked["annotations"]),
        environment=environment,
    )


def _silent(*_: object) -> None:
    pass


def _read(given: Any, argument: str) -> tuple[Any, str]:
    """The content, and what to call it in an error: the file's path, else the argument."""
    if not isinstance(given, (str, os.PathLike)):
        return given, argument
    path = Path(given)
    try:
        return json.loads(path.read_bytes()), str(path)
    except IsADirectoryError as error:
        raise ValueError(f"{argument}: expected a JSON file, got the folder {path}") from error
    except (ValueError, RecursionError) as error:  # also where it is no text at all
        raise ValueError(f"{argument}: {path} is no JSON ({error})") from error


def _checked_truth(truth: Any, where: str) -> dict[str, Any]:
    """A ground truth with what is needed and no more, its annotations numbered from 1.

    From 1, because COCO's matching takes the number 0 for "matched with nothing".
    """
    if not isinstance(truth, Mapping) or not all(
        isinstance(truth.get(key), list) for key in ("images", "annotations", "categories")
    ):
        what = f"keys {', '.join(truth)}" if isinstance(truth, Mapping) else type(truth).__name__
        raise ValueError(
            f"{where}: expected a COCO ground truth with lists images, annotations and "
            f"categories, got {what[:200]}"
        )
    images, categories = (_ids(truth, key, where) for key in ("images", "categories"))
    annotations = []
    for place, entry in enumerate(coco_entries.listed(truth, "annotations", where)):
        said = f"{where}: annotations[{place}]"
        found = _checked_entry(entry, said, images, categories)
        width, height = found["bbox"][2:]
        annotations.append({
            "id": place + 1,
            **found,
            "area": coco_entries.area(entry, width * height, said),
            "iscrowd": int(coco_entries.crowd(entry, said)),
        })  # fmt: skip
    if all(entry["iscrowd"] for entry in annotations):
        raise ValueError(
            f"{where}: expected at least one box to find (crowds are none), got "
            f"{len(annotations)} annotations"
        )
    return {
        "images": [{"id": number} for number in images],
        "categories": [{"id": number} for number in categories],
        "annotations": annotations,
    }


def _checked_results(found: Any, where: str, truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Copies, since faster-coco-eval writes into what it is given."""
    if isinstance(found, (str, bytes, Mapping)) or not isinstance(found, Sequence):
        raise ValueError(
            f"{where}: expected a list of COCO results, got {type(found).__name__}"
            f"{' (a ground truth?)' if isinstance(found, Mapping) else ''}"
        )
    images, categories = (
        {entry["id"]: None for entry in truth[key]} for key in ("images", "categories")
    )
    checked = []
    for place, entry in enumerate(found):
        said = f"{where}: results[{place}]" if where != "results" else f"results[{place}]"
        one = _checked_entry(entry, said, images, categories)
        checked.append({**one, "score": coco_entries.score(entry, said)})
    return checked


def _ids(truth: Mapping[str, Any], key: str, where: str) -> dict[int, None]:
    """The entries' numbers, in order."""
    numbers: dict[int, None] = {}
    for place, entry in enumerate(coco_entries.listed(truth, key, where)):
        numbers[coco_entries.own_id(entry, numbers, f"{where}: {key}[{place}]")] = None
    return numbers


def _checked_entry(
    entry: Any, where: str, images: Mapping[int, None], categories: Mapping[int, None]
) -> dict[str, Any]:
    """What an annotation and a result have in common; their image and category are known."""
    coco_entries.check_object(entry, where)
    return {
        "image_id": coco_entries.known_id(entry, "image_id", images, where),
        "category_id": coco_entries.known_id(entry, "category_id", categories, where),
        "bbox": coco_entries.box(entry, where),
    }

"""Detect: one pass of a detector over images, its COCO results, and the box AP they come to.

Shape legend: n boxes of one image; boxes are (x1, y1, x2, y2) in pixels of the image's own size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from evitlab.datasets.detection import DetectionDataset, Detections, check_boxes
from evitlab.records import Environment, environment_card
from evitlab.records.detection import BoxAP
from evitlab.training.box_ap import box_ap
from evitlab.training.distributed import ALONE, Ranks, current_ranks
from evitlab.training.evaluation import checked_device, evaluating

Pictures = Sequence[tuple[str, Image.Image | Tensor]]  # (name, RGB picture or uint8 [3, H, W])

_READERS = 4  # threads that decode ahead


def evaluate_detector(
    model: nn.Module,
    data: DetectionDataset,
    *,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    distributed: bool = False,
) -> BoxAP:
    """COCO's twelve box metrics of a detector over a data set.

    Args:
        model: run in evaluation mode; its own mode comes back afterwards.
        data: images with boxes.
        batch_size: images per forward pass; they are padded to the largest of them, so it can
            change boxes a little.
        device: None evaluates where the model's parameters are.
        distributed: True: all processes of a run call this, each detects on its share of the
            images, and all return the same.

    Raises:
        ValueError: no images or no boxes, classes that are not the model's, an image that cannot
            be decoded, a batch size below one, or a device that is not there.

    Paper: Table 5.
    Pitfall: see `box_ap`.
    """
    check_boxes(data)
    ranks = current_ranks() if distributed else ALONE
    found = _predict(model, data, batch_size=batch_size, device=device, ranks=ranks)
    home = _device_of(model)
    card = environment_card(
        device=checked_device(device) if device else home,
        batch_size=batch_size,
        dataset=data.title,
    )
    return ranks.from_main(lambda: ap_of(found, data, environment=card))


def ap_of(
    detections: Iterable[Detections],
    data: DetectionDataset,
    *,
    environment: Environment | None = None,
) -> BoxAP:
    """The box AP that detections on a data set come to.

    Args:
        detections: of `predict_boxes`; an image without any counts as one where nothing was found.
        data: what they were made on.
        environment: where they come from; None: this process, now.

    Raises:
        ValueError: the data have no boxes, or a detection is of an image that they lack.
    """
    check_boxes(data)
    results = coco_results(detections, data.category_ids)
    return box_ap(data.ground_truth(), results, environment=environment)


def predict_boxes(
    model: nn.Module,
    data: DetectionDataset | Pictures,
    *,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> list[Detections]:
    """What a detector finds on each image, in the images' order, best first.

    Args:
        model: as in `evaluate_detector`.
        data: a data set, with or without boxes, or pictures with names, numbered by their place.
        batch_size: images per forward pass.
        device: None runs where the model's parameters are.
        progress: a bar, where it takes more than two seconds.

    Raises:
        ValueError: see `evaluate_detector`; images without boxes are taken.
    """
    return _predict(
        model, data, batch_size=batch_size, device=device, ranks=ALONE, progress=progress
    )


def coco_results(
    detections: Iterable[Detections], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """In COCO's format: image_id, category_id, bbox as [x, y, width, height], and score.

    Args:
        detections: of any number of images.
        category_ids: the number of each class there.

    Raises:
        ValueError: a label without a number.
    """
    results = []
    for found in detections:
        rows = zip(
            found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
        )
        for (x1, y1, x2, y2), label, score in rows:
            if not 0 <= label < len(category_ids):
                raise ValueError(
                    f"category_ids: expected one for each label, got {len(category_ids)} and the "
                    f"label {label} in {found.file}"
                )
            results.append({
                "image_id": found.image_id,
                "category_id": category_ids[label],
                # Finer than what an overlap can show, and what a file says is what is measured.
                "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(score, 6),
            })  # fmt: skip
    return results


def check_detector_classes(model: nn.Module, data: DetectionDataset) -> None:
    """Raise a ValueError where a detector's classes are not those of the data."""
    known = getattr(model, "num_classes", data.num_classes)
    if known != data.num_classes:
        raise ValueError(
            f"data: expected boxes of {known} classes (the model's), got {data.num_classes} in "
            f"{data.title}"
        )
    names = tuple(getattr(model, "class_names", ())) or data.class_names
    for number, (own, other) in enumerate(zip(names, data.class_names, strict=True)):
        if own != other:
            raise ValueError(
                f"data: expected the model's classes in its order, got {other!r} instead of "
                f"{own!r} as class {number} of {data.title}"
            )


@torch.no_grad()
def _predict(
    model: nn.Module,
    data: DetectionDataset | Pictures,
    *,
    batch_size: int,
    device: str | torch.device | None,
    ranks: Ranks,
    progress: bool = True,
) -> list[Detections]:
    if len(data) == 0:
        raise ValueError("data: expected at least one image, got none")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if isinstance(data, DetectionDataset):
        check_detector_classes(model, data)
    home = _device_of(model)
    device = checked_device(device) if device else home
    own = torch.arange(len(data)).tensor_split(ranks.size)[ranks.rank].tolist()
    found: list[Detections] = []
    with (
        evaluating(model, device=device, home=home),
        tqdm(
            total=len(own), desc="detect", unit="img", leave=False, delay=2,
            disable=not (progress and ranks.main),
        ) as bar,
    ):  # fmt: skip
        for batch in _batches(data, own, batch_size):
            outputs = model([pixels.to(device) for _, _, pixels in batch])
            for (file, number, _), output in zip(batch, outputs, strict=True):
                found.append(_detections(file, number, output))
            bar.update(len(batch))
    return [one for part in ranks.gather(found) for one in part]


def _batches(
    data: DetectionDataset | Pictures, indices: Sequence[int], batch_size: int
) -> Iterator[list[tuple[str, int, Tensor]]]:
    """(name, number, uint8 [3, H, W]) of each image; the next ones are decoded meanwhile."""

    def read(index: int) -> tuple[str, int, Tensor]:
        if isinstance(data, DetectionDataset):
            return data.files[index], data.image_ids[index], data.image(index)
        name, picture = data[index]
        return name, index, _pixels(picture)

    def submit(batch: int) -> list[Any]:
        part = indices[batch * batch_size : (batch + 1) * batch_size]
        return [pool.submit(read, index) for index in part]

    count = math.ceil(len(indices) / batch_size)
    ahead = max(1, math.ceil(_READERS / batch_size))  # batches
    with ThreadPoolExecutor(_READERS) as pool:
        waiting = [submit(batch) for batch in range(min(ahead, count))]
        try:
            for batch in range(count):
                if batch + ahead < count:
                    waiting.append(submit(batch + ahead))
                yield [future.result() for future in waiting.pop(0)]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _pixels(picture: Image.Image | Tensor) -> Tensor:
    if isinstance(picture, Tensor):
        return picture
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def _detections(file: str, number: int, output: dict[str, Tensor]) -> Detections:
    scores = output["scores"].float().cpu()
    order = scores.argsort(descending=True, stable=True)
    return Detections(
        file=file,
        image_id=number,
        boxes=output["boxes"].float().cpu()[order],
        labels=output["labels"].cpu()[order],
        scores=scores[order],
    )


def _device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))

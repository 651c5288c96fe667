"""Where a detector's anchors lie on a picture, and which of them learn its objects.

Shape legend: n boxes, A anchors; boxes are (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from evitlab.datasets import DetectionDataset
from evitlab.models.detector import DIVISOR, RetinaNet
from evitlab.models.pyramid import STRIDES
from evitlab.records import AnchorLevel, AnchorPlan, environment_card


def place_anchors(
    detector: RetinaNet, data: DetectionDataset, index: int = 0, *, scale: str | None = None
) -> AnchorPlan:
    """The levels of a detector's pyramid over one picture, with its true boxes.

    Nothing is computed with the detector's weights: anchors and matching are fixed beforehand.

    Args:
        detector: its size, anchors and matching rule count.
        data: where the picture comes from.
        index: which picture; crowds are left out.
        scale: for the record.

    Raises:
        ValueError: no such picture, or it cannot be read.

    Paper: the official detector's configuration: octave scale 4, three scales, three shapes.
    """
    if not 0 <= index < len(data):
        raise ValueError(f"index: expected 0 to {len(data) - 1}, got {index}")
    image, boxes = data.resized(index, detector.config.img_size)
    kept = ~data.crowd[index]
    boxes, labels = boxes[kept], data.labels[index][kept].tolist()
    height, width = image.shape[-2:]
    padded = [-(-side // DIVISOR) * DIVISOR for side in (height, width)]
    grids = [(-(-padded[0] // stride), -(-padded[1] // stride)) for stride in STRIDES]
    maps = [torch.empty(1, 1, *grid) for grid in grids]
    batch = ImageList(torch.empty(1, 3, *padded), [(height, width)])
    anchors: Tensor = detector.anchor_generator(batch, maps)[0]  # [A, 4]
    per_position = detector.anchor_generator.num_anchors_per_location()
    counts = [n * rows * columns for n, (rows, columns) in zip(per_position, grids, strict=True)]
    overlaps = box_iou(boxes, anchors)  # [n, A]
    level_of = torch.repeat_interleave(torch.arange(len(STRIDES)), torch.tensor(counts))
    best, places = overlaps.max(1) if len(boxes) else (torch.empty(0), torch.empty(0).long())
    matched = torch.zeros(len(STRIDES), dtype=torch.int64)
    if len(boxes):
        learns = detector.proposal_matcher(overlaps) >= 0
        matched = torch.bincount(level_of[learns], minlength=len(STRIDES))
    levels = []
    for number, (stride, grid, own) in enumerate(
        zip(STRIDES, grids, anchors.split(counts), strict=True)
    ):
        middle = _middle(grid, stride, height, width)
        at = middle[0] * grid[1] + middle[1]
        n = per_position[number]
        found = (level_of[places] == number).nonzero().flatten().tolist()
        levels.append(
            AnchorLevel(
                stride=stride,
                grid=grid,
                anchors=_tuples(own[at * n : (at + 1) * n]),
                matched=int(matched[number]),
                boxes=tuple(found),
            )
        )
    return AnchorPlan(
        img_size=(height, width),
        levels=tuple(levels),
        boxes=_tuples(boxes),
        names=tuple(data.class_names[label] for label in labels),
        overlaps=tuple(best.tolist()),
        environment=environment_card(dataset=data.title, scale=scale),
    )


def _middle(grid: tuple[int, int], stride: int, height: int, width: int) -> tuple[int, int]:
    """Row and column of the position nearest to the picture's middle."""
    row, column = (min(n - 1, round(side / 2 / stride)) for n, side in
                   zip(grid, (height, width), strict=True))  # fmt: skip
    return row, column


def _tuples(boxes: Tensor) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in boxes)

"""A detector that needs no training, and the pictures that it finds something on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

Box = tuple[int, int, int, int]  # x1, y1, x2, y2
GREY = (90, 90, 90)
COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


class RedBoxes(nn.Module):
    """Finds the one red and the one blue rectangle: sure of red, half sure of blue.

    Called as a RetinaNet is. The better box comes last, so that the order is not its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.class_names: tuple[str, ...] = ("red", "blue")
        self.category_ids = (3, 7)
        self.num_classes = 2
        self.batches: list[int] = []  # how many images each call got
        self.modes: list[bool] = []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.batches.append(len(images))
        self.modes.append(self.training)
        return [self._find(image) for image in images]

    def _find(self, image: Tensor) -> dict[str, Tensor]:
        found = []
        for label, channel in ((1, 2), (0, 0)):
            others = [k for k in range(3) if k != channel]
            mask = (image[channel] > 150) & (image[others] < 100).all(0)
            if mask.any():
                ys, xs = mask.any(1).nonzero(), mask.any(0).nonzero()
                box = (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)
                found.append((box, label, (0.9, 0.5)[label]))
        return {
            "boxes": torch.tensor([box for box, _, _ in found], dtype=torch.float32).view(-1, 4),
            "labels": torch.tensor([label for _, label, _ in found], dtype=torch.int64),
            "scores": torch.tensor([score for _, _, score in found], dtype=torch.float32),
        }


def painted(width: int, height: int, *boxes: tuple[str, Box]) -> Image.Image:
    """A grey picture with rectangles of COLORS."""
    picture = Image.new("RGB", (width, height), GREY)
    for name, box in boxes:
        picture.paste(COLORS[name], box)
    return picture


def write_coco(
    root: Path, pictures: Sequence[tuple[Image.Image, Sequence[tuple[str, Box]]]], split: str
) -> Path:
    """A COCO folder: images below `root/<split>`, the boxes in `root/annotations`.

    Categories: red is 3, blue is 7.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (root / split).mkdir(parents=True, exist_ok=True)
    for number, (picture, boxes) in enumerate(pictures, 11):
        picture.save(root / split / f"{number}.png")
        images.append({
            "id": number, "file_name": f"{number}.png",
            "width": picture.width, "height": picture.height,
        })  # fmt: skip
        for name, (x1, y1, x2, y2) in boxes:
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "iscrowd": 0,
                "category_id": {"red": 3, "blue": 7}[name],
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
            })  # fmt: skip
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), "utf-8")
    return root


def painted_set(count: int) -> list[tuple[Image.Image, list[tuple[str, Box]]]]:
    """Pictures of differing sizes, a red box on all, a blue one on every second."""
    made = []
    for k in range(count):
        boxes: list[tuple[str, Box]] = [("red", (4 + k, 6, 30 + k, 40))]
        if k % 2:
            boxes.append(("blue", (40, 30 + k, 56, 62)))
        made.append((painted(64 + 8 * k, 72, *boxes), boxes))
    return made

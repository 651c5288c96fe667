"""Scenes for detection: one to five of the embedded set's shapes on clutter, drawn by numpy.

It needs no file and no network. Every scene is a function of (split, index) alone and is drawn
when it is read; its boxes are known from the outlines, without drawing. Shapes lie wholly inside
the scene and hardly overlap, from 25 to 200 pixels long.

Shape legend: n shapes of one scene; H x W pixels.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from evitlab.datasets.detection import DetectionDataset
from evitlab.datasets.embedded import CLASS_NAMES, SPLIT_SIZES, draw_several, object_boxes
from evitlab.datasets.sources import Reader

SCENES = "scenes"
SCENE_COUNTS = {"train": 2_000, "val": 200}
_SPLIT_SEEDS = {"train": 201, "val": 202}
_IMG_SIZES = ((256, 320), (256, 320), (256, 320), (320, 256))
_MOST_SHAPES = 5
_SIDES_PX = (45.0, 220.0)  # of the picture that a shape comes from and fills to about 0.75
_MARGIN_PX = 2.0
_MOST_OVERLAP = 0.1  # of the smaller box
_TRIES = 20

_Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Layout:
    """What lies where in one scene.

    Attributes:
        img_size: (height, width).
        ground: picture of the embedded set that lends its background.
        objects: int64 [n], pictures of the embedded set that lend their shapes.
        corners: float32 [n, 2], x and y of their upper left corners, pixels.
        sides: float32 [n], of those pictures, pixels.
        boxes: float32 [n, 4], of the shapes, (x1, y1, x2, y2) in pixels.
        areas: float32 [n], of the shapes, square pixels.
    """

    img_size: tuple[int, int]
    ground: int
    objects: NDArray[np.int64]
    corners: NDArray[np.float32]
    sides: NDArray[np.float32]
    boxes: NDArray[np.float32]
    areas: NDArray[np.float32]


def lay_out(split: str, index: int) -> Layout:
    """Draw lots for one scene: which shapes, how large, and where."""
    rng = np.random.Generator(np.random.Philox(key=[_SPLIT_SEEDS[split], index]))
    height, width = img_size = _IMG_SIZES[int(rng.integers(len(_IMG_SIZES)))]
    ground = int(rng.integers(SPLIT_SIZES[split]))
    drawn = rng.integers(SPLIT_SIZES[split], size=int(rng.integers(1, _MOST_SHAPES + 1)))
    low, high = np.log(_SIDES_PX).tolist()
    sides = np.exp(rng.uniform(low, high, size=len(drawn)))
    relative, fractions = object_boxes(split, drawn)
    spans = relative * sides[:, None]
    boxes: list[_Box] = []
    kept: list[int] = []
    for number, (x1, y1, x2, y2) in enumerate(spans.tolist()):
        for _ in range(_TRIES):
            left = rng.uniform(_MARGIN_PX, width - _MARGIN_PX - (x2 - x1))
            top = rng.uniform(_MARGIN_PX, height - _MARGIN_PX - (y2 - y1))
            box = (left, top, left + x2 - x1, top + y2 - y1)
            if all(_overlap(box, other) <= _MOST_OVERLAP for other in boxes):
                boxes.append(box)
                kept.append(number)
                break  # one that finds no place is left out; the first one always finds one
    placed = np.array(boxes)
    return Layout(
        img_size=img_size,
        ground=ground,
        objects=drawn[kept],
        corners=(placed[:, :2] - spans[kept, :2]).astype(np.float32),
        sides=sides[kept].astype(np.float32),
        boxes=placed.astype(np.float32),
        areas=(fractions[kept] * sides[kept] ** 2).astype(np.float32),
    )


def draw_scene(split: str, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One scene, uint8 [3, H, W], and the masks of its shapes, bool [n, H, W]."""
    layout = lay_out(split, index)
    return draw_several(
        split,
        layout.ground,
        layout.objects,
        layout.corners,
        layout.sides,
        img_size=layout.img_size,
    )


def open_scenes(split: str) -> DetectionDataset:
    """All scenes of a split, "train" or "val"; nothing is drawn yet."""
    with tqdm(
        range(SCENE_COUNTS[split]), desc=f"{SCENES} ({split})", unit="img", delay=2.0, leave=False
    ) as indices:
        layouts = [lay_out(split, index) for index in indices]
    return DetectionDataset(
        name=SCENES,
        title="scenes of shapes",
        split=split,
        class_names=CLASS_NAMES,
        category_ids=tuple(range(1, len(CLASS_NAMES) + 1)),
        image_ids=tuple(range(1, len(layouts) + 1)),
        files=tuple(f"{split}_{index:05}.png" for index in range(len(layouts))),
        img_sizes=tuple(layout.img_size for layout in layouts),
        boxes=tuple(torch.from_numpy(layout.boxes) for layout in layouts),
        labels=tuple(torch.from_numpy(layout.objects % len(CLASS_NAMES)) for layout in layouts),
        crowd=tuple(torch.zeros(len(layout.objects), dtype=torch.bool) for layout in layouts),
        areas=tuple(torch.from_numpy(layout.areas) for layout in layouts),
        read=_SceneReader(split),
    )


def _overlap(first: _Box, second: _Box) -> float:
    """Of two boxes, as a share of the smaller one."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return max(width, 0) * max(height, 0) / smaller


@dataclass(frozen=True)
class _SceneReader:
    split: str

    def __call__(self, index: int, /) -> tuple[bytes, str]:
        image, _ = draw_scene(self.split, index)
        file = io.BytesIO()
        # Hardly compressed: it is decoded at once.
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "png", compress_level=1)
        return file.getvalue(), f"{SCENES} ({self.split}): {index}"

    def for_random_access(self) -> Reader:
        return self

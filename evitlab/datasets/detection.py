"""Images with boxes, and what a detector says of an image.

Shape legend: n boxes of one image; boxes are (x1, y1, x2, y2) in pixels, y down, so that a box
from edge to edge is (0, 0, width, height). H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evitlab.datasets.decoding import decode_image
from evitlab.datasets.sources import Reader, TakenReader
from evitlab.models.image_size import resized_size


@dataclass(frozen=True, eq=False)
class DetectionDataset:
    """Images with their boxes; the files are decoded when asked for.

    Attributes:
        name: as `open_detection` was called with.
        title: as shown to the reader.
        split: "train", "val", "test" or "all".
        class_names: one per class.
        category_ids: the file's own number of each class, which may have holes.
        image_ids: the file's own number of each image.
        files: the images' names.
        img_sizes: (height, width) of each image as declared.
        boxes: float32 [n, 4] of each image, inside it and of positive area.
        labels: int64 [n] of each image, numbers of classes from 0.
        crowd: bool [n] of each image, true on regions of many objects: no target of training,
            and ignored where AP is computed.
        areas: float32 [n] of each image, square pixels, as the file has them.
        read: index -> bytes of the file.
        notes: in words, what was clipped or left out.
    """

    name: str
    title: str
    split: str
    class_names: tuple[str, ...] = field(repr=False)
    category_ids: tuple[int, ...] = field(repr=False)
    image_ids: tuple[int, ...] = field(repr=False)
    files: tuple[str, ...] = field(repr=False)
    img_sizes: tuple[tuple[int, int], ...] = field(repr=False)
    boxes: tuple[Tensor, ...] = field(repr=False)
    labels: tuple[Tensor, ...] = field(repr=False)
    crowd: tuple[Tensor, ...] = field(repr=False)
    areas: tuple[Tensor, ...] = field(repr=False)
    read: Reader = field(repr=False)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def num_boxes(self) -> int:
        """Of all images; crowds left out."""
        return sum(int((~crowd).sum()) for crowd in self.crowd)

    def image(self, index: int) -> Tensor:
        """One image at its own size, uint8 [3, H, W].

        Raises:
            ValueError: the file is no image, or not of the size that the annotations declare.
        """
        return _to_tensor(self._picture(index))

    def resized(self, index: int, img_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """One image and its boxes, resized (bilinear, antialiased) with its aspect kept.

        Args:
            index: which image.
            img_size: the length to give the short side, and the most that the long one may have.

        Returns:
            uint8 [3, H, W], and float32 [n, 4] in its pixels; crowds are among the boxes.

        Raises:
            ValueError: see `image`.
        """
        picture = self._picture(index)
        height, width = resized_size(picture.height, picture.width, img_size)
        factors = torch.tensor([width / picture.width, height / picture.height]).repeat(2)
        if (height, width) != (picture.height, picture.width):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        limits = torch.tensor([width, height], dtype=torch.float32).repeat(2)
        return _to_tensor(picture), torch.minimum(self.boxes[index] * factors, limits)

    def take(self, indices: Sequence[int] | np.ndarray | Tensor) -> DetectionDataset:
        """The same set, restricted to some images, in the order of `indices`.

        Raises:
            ValueError: an image twice, or one that is not there.
        """
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        places = chosen.tolist()
        if len(set(places)) < len(places) or any(not 0 <= i < len(self) for i in places):
            raise ValueError(
                f"indices: expected different numbers from 0 to {len(self) - 1}, got {places[:8]}"
            )
        return replace(
            self,
            image_ids=tuple(self.image_ids[i] for i in places),
            files=tuple(self.files[i] for i in places),
            img_sizes=tuple(self.img_sizes[i] for i in places),
            boxes=tuple(self.boxes[i] for i in places),
            labels=tuple(self.labels[i] for i in places),
            crowd=tuple(self.crowd[i] for i in places),
            areas=tuple(self.areas[i] for i in places),
            read=TakenReader(self.read, chosen),
        )

    def ground_truth(self) -> dict[str, Any]:
        """The annotations as a COCO dict: categories and images under the file's own numbers.

        Boxes are (x, y, width, height), as they are here: clipped, the empty ones left out.
        Annotations are numbered anew from 1, as evaluators take number 0 for "no match".
        """
        images = [
            {"id": number, "file_name": file, "width": width, "height": height}
            for number, file, (height, width) in zip(
                self.image_ids, self.files, self.img_sizes, strict=True
            )
        ]
        annotations: list[dict[str, Any]] = []
        for index, number in enumerate(self.image_ids):
            rows = zip(
                self.boxes[index].tolist(),
                self.labels[index].tolist(),
                self.crowd[index].tolist(),
                self.areas[index].tolist(),
                strict=True,
            )
            for (x1, y1, x2, y2), label, crowd, area in rows:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": self.category_ids[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": area,
                        "iscrowd": int(crowd),
                    }
                )
        categories = [
            {"id": number, "name": name}
            for number, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        return {
            "info": {"description": self.title},
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }

    def _picture(self, index: int) -> Image.Image:
        data, where = self.read(index)
        picture = decode_image(data, where=where)
        declared, found = self.img_sizes[index], (picture.height, picture.width)
        if found != declared:
            turned = (
                "; its EXIF orientation may turn it, which the annotations do not know of: save "
                "it upright and declare the new size" * (found == declared[::-1])
            )
            raise ValueError(
                f"{where}: expected {declared[1]}x{declared[0]} pixels (width x height), as the "
                f"annotations declare, got {found[1]}x{found[0]}{turned}"
            )
        return picture


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found on one image, best first.

    Attributes:
        file: the image's name.
        image_id: its number in the data set, or its place in the sequence.
        boxes: float32 [n, 4], in pixels of the image's own size.
        labels: int64 [n], numbers of classes from 0.
        scores: float32 [n], 0 to 1, falling.
    """

    file: str
    image_id: int
    boxes: Tensor
    labels: Tensor
    scores: Tensor


def check_boxes(data: DetectionDataset, argument: str = "data", *, to: str = "find") -> None:
    """Raise a ValueError where a set holds no box: crowds are none.

    Args:
        data: which set.
        argument: what the caller calls it.
        to: what the boxes are for, "find" or "learn from".
    """
    if not data.num_boxes:
        raise ValueError(
            f"{argument}: expected at least one box to {to}, got none in {data.title} "
            f"({data.split}, {len(data)} images)"
        )


def _to_tensor(picture: Image.Image) -> Tensor:
    pixels = np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
    return torch.from_numpy(pixels.copy() if not pixels.flags.writeable else pixels)

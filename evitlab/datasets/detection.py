"""Images with boxes, and what a detector says of an image.

Shape legend: n boxes of one image; boxes are (x1, y1, x2, y2) in pixels, y down.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from evitlab.datasets.sources import Reader


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
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: tuple[int, ...]
    files: tuple[str, ...]
    img_sizes: tuple[tuple[int, int], ...]
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

    # To come: image(index) -> uint8 [3, H, W]; resized(index, (short, long)); take(indices);
    # ground_truth() -> COCO dict.


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

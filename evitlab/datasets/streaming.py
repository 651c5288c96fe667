"""Data sets too large for memory: decoded in worker processes, batch by batch.

Shape legend: N images of a set, B images of a batch, H x W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from evitlab.datasets.decoding import OnError, decode_image, fit_image
from evitlab.datasets.memory import check_labels
from evitlab.datasets.sources import Source, stratified

# The paper evaluates at 224 on a centre crop of images whose short side was brought to 256.
EVAL_CROP_RATIO = 224 / 256
_ASPECTS = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10
_MAX_WORKERS = 16


@dataclass(frozen=True, eq=False)
class StreamingDataset:
    """Labelled images on disk, with the interface of `Dataset` except for `images`.

    Attributes:
        name: what it was opened by.
        source: where the images come from.
        img_size: (height, width) that images are brought to.
        num_workers: processes that decode; 0 decodes in the calling one. None stands for one per
            core, 16 at most.
        crop_scale: share of the image's area that a training crop takes, least and most.
        on_error: "raise" at a corrupt image, or "skip" it, which makes its batch smaller.
        crops_on_load: True: training crops are cut while decoding, and `Augment` must not crop.
        masks: None: objects are not known.

    Raises:
        ValueError: a label is outside the classes.

    Paper: Section 4.1; the crops are those of the official code's timm transforms, with bicubic
    interpolation.
    """

    name: str
    source: Source
    img_size: tuple[int, int]
    num_workers: int | None = None
    crop_scale: tuple[float, float] = (0.08, 1.0)
    on_error: OnError = "raise"
    crops_on_load: ClassVar[bool] = True
    masks: ClassVar[None] = None
    _skipped: set[int] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        check_labels(self.labels, self.num_classes, f"{self.name} ({self.split})")

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image as in evaluation, uint8 [3, H, W], and its label."""
        return _to_tensor(self._load(index, None)), int(self.source.labels[index])

    @property
    def title(self) -> str:
        return self.source.title

    @property
    def split(self) -> str:
        return self.source.split

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        return torch.from_numpy(self.source.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def num_classes(self) -> int:
        return len(self.source.class_names)

    @property
    def labelled(self) -> bool:
        """False for images without class folders, whose labels are all 0."""
        return self.source.labelled

    @property
    def files(self) -> tuple[str, ...]:
        """The images' names, without those that were skipped so far."""
        return self.source.names([i for i in range(len(self)) if i not in self._skipped])

    @property
    def skipped(self) -> int:
        """Corrupt images that were met so far."""
        return len(self._skipped)

    @property
    def skipped_indices(self) -> frozenset[int]:
        """The corrupt images that were met so far."""
        return frozenset(self._skipped)

    def skip(self, *indices: frozenset[int]) -> None:
        """Count these as met too: other processes of a run read them."""
        self._skipped.update(*indices)

    def subset(self, n: int, seed: int = 0) -> StreamingDataset:
        """`n` images with the classes in proportion; all of them if there are no more than that.

        Raises:
            ValueError: n is not positive.
        """
        if n < 1:
            raise ValueError(f"n: expected a positive number of images, got {n}")
        if n >= len(self):
            return self
        chosen = stratified(self.source.labels, n, seed=seed)
        return replace(self, source=self.source.take(chosen), _skipped=set())

    def batches(
        self,
        order: Tensor,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        train: bool = False,
        seed: int = 0,
        places: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels in the given order; the last batch may be smaller.

        The result depends on `seed` and on the place in `order`, not on the number of workers:
        an index that repeats gets a new crop each time.

        Args:
            order: int64, indices in any number; they may repeat.
            batch_size: images per batch.
            device: where the batches go.
            train: random-resized crops; else the short side is brought to 256/224 of the image
                size and the centre is cut out.
            seed: of the crops; give each epoch its own.
            places: int64, where `order` is only a part of one: the places of its entries there,
                which decide their crops. None: it is the whole.

        Yields:
            uint8 [B, 3, H, W] and int64 [B].

        Raises:
            ValueError: a corrupt image, by name, unless they are skipped.
        """
        pin = torch.device(device).type == "cuda"
        samples = _Samples(
            self,
            order.tolist(),
            range(len(order)) if places is None else places.tolist(),
            seed if train else None,
        )
        workers = default_workers() if self.num_workers is None else self.num_workers
        loader = DataLoader(
            samples,
            batch_size=batch_size,
            num_workers=min(workers, -(-len(samples) // batch_size)),
            collate_fn=_collate,
            pin_memory=pin,
            # Without its own generator the loader would draw a seed from the global one.
            generator=torch.Generator().manual_seed(seed),
        )
        for images, labels, failures in loader:
            for index, message in failures:
                if self.on_error == "raise":
                    raise ValueError(message)
                self._skipped.add(index)
            if len(labels):
                yield images.to(device, non_blocking=pin), labels.to(device, non_blocking=pin)

    def _load(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
        data, where = self.source.read(index)
        image = decode_image(data, where=where)
        if rng is None:
            return fit_image(image, self.img_size, crop_ratio=EVAL_CROP_RATIO)
        box = random_resized_box(image.size, self.crop_scale, rng)
        height, width = self.img_size
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def default_workers() -> int:
    """One process per core that this one may use, 16 at most."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(_MAX_WORKERS, cores)


def random_resized_box(
    size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A crop of random area, shape (3:4 to 4:3) and place, as (left, top, right, bottom).

    Args:
        size: (width, height) of the image, Pillow's order.
        scale: share of the area, least and most.
        rng: source of randomness.
    """
    width, height = size
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(_ASPECTS)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    # A picture so long that no such crop fits: the central part of admissible shape.
    w = min(width, max(1, round(height * _ASPECTS[1])))
    h = min(height, max(1, round(width / _ASPECTS[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


@dataclass(frozen=True)
class _Samples(TorchDataset):
    """position -> (pixels, label, index, error message); what a worker process runs."""

    data: StreamingDataset
    order: Sequence[int]
    places: Sequence[int]
    seed: int | None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> tuple[np.ndarray | None, int, int, str]:
        index = self.order[position]
        label = int(self.data.source.labels[index])
        place = self.places[position]
        rng = None if self.seed is None else np.random.default_rng((self.seed, place))
        try:
            return self.data._load(index, rng), label, index, ""
        except (ValueError, OSError) as error:
            # Sent as data: raised in a worker, the message would be buried in its traceback.
            return None, label, index, str(error)


def _collate(
    samples: list[tuple[np.ndarray | None, int, int, str]],
) -> tuple[Tensor, Tensor, list[tuple[int, str]]]:
    pixels = [image for image, _, _, _ in samples if image is not None]
    labels = [label for image, label, _, _ in samples if image is not None]
    failures = [(index, message) for image, _, index, message in samples if image is None]
    images = _to_tensor(np.stack(pixels)) if pixels else torch.empty(0, dtype=torch.uint8)
    return images, torch.tensor(labels, dtype=torch.int64), failures


def _to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [..., H, W, 3] -> uint8 [..., 3, H, W], contiguous."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, -3)))

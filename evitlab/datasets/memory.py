"""A data set in memory: decoded once, kept as uint8, batched by indexing.

Shape legend: N images of a set, B images of a batch, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from evitlab.datasets.sources import stratified


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in memory.

    Attributes:
        name: what it was opened by.
        title: as shown in records and figures; says what sets this copy apart.
        split: the split that was really read: a set without a validation split answers "val"
            with its test split, and then says "test".
        images: uint8 [N, 3, H, W], RGB.
        labels: int64 [N], on the CPU.
        class_names: one per class.
        masks: bool [N, H, W], true on the object; None where that is not known.
        skipped: corrupt images that were left out.
        files: the images' names: paths below the folder or in the tar, or numbers in their set;
            empty where nobody gave them names.
        labelled: False for images without class folders, whose labels are all 0.
        crops_on_load: False: training crops are left to `Augment`.

    Raises:
        ValueError: shapes or types do not match, or a label is outside the classes.
    """

    name: str
    title: str
    split: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    masks: Tensor | None = None
    skipped: int = 0
    files: tuple[str, ...] = ()
    labelled: bool = True
    crops_on_load: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(
                f"images: expected uint8 [N, 3, H, W], got {self.images.dtype} "
                f"{list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels: expected int64 [{len(self.images)}], got {self.labels.dtype} "
                f"{list(self.labels.shape)}"
            )
        check_labels(self.labels, self.num_classes, f"{self.name} ({self.split})")
        if self.files and len(self.files) != len(self):
            raise ValueError(f"files: expected {len(self)} names or none, got {len(self.files)}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def img_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def to(self, device: torch.device | str) -> Dataset:
        """With the images on another device, so that batches need no copying."""
        masks = None if self.masks is None else self.masks.to(device)
        return replace(self, images=self.images.to(device), masks=masks)

    def subset(self, n: int, seed: int = 0) -> Dataset:
        """`n` images with the classes in proportion; all of them if there are no more than that.

        Raises:
            ValueError: n is not positive.
        """
        if n < 1:
            raise ValueError(f"n: expected a positive number of images, got {n}")
        if n >= len(self):
            return self
        chosen = torch.from_numpy(stratified(self.labels.numpy(), n, seed=seed))
        there = chosen.to(self.images.device)
        return replace(
            self,
            images=self.images[there],
            labels=self.labels[chosen],
            masks=None if self.masks is None else self.masks[there],
            files=tuple(self.files[index] for index in chosen.tolist() if self.files),
        )

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

        Args:
            order: int64, indices in any number; they may repeat.
            batch_size: images per batch.
            device: where the batches go.
            train: of no effect here, as are `seed` and `places`: see `StreamingDataset`, which
                crops on load.
            seed: see `train`.
            places: see `train`.

        Yields:
            uint8 [B, 3, H, W] and int64 [B].
        """
        pin = torch.device(device).type == "cuda" and self.images.device.type == "cpu"
        order = order.cpu()
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            images = self.images[chosen.to(self.images.device)]
            labels = self.labels[chosen]
            # Only pinned memory is copied while the GPU still works on the batch before.
            images = images.pin_memory() if pin else images
            yield images.to(device, non_blocking=pin), labels.to(device)


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Raise a ValueError that names the first label outside 0..num_classes - 1."""
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(
            f"{where}: label {int(wrong[0])} is outside 0..{num_classes - 1} "
            f"({num_classes} classes)"
        )

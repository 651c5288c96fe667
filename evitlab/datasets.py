"""Labelled images as uint8 tensors: decoded once, then batched from memory.

Shape legend: N images of a set, B images of a batch, 3 channels, H x W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from evitlab.decoding import OnError, decode_all
from evitlab.sources import NAMED_SETS, find_source, stratified


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in memory.

    Attributes:
        name: what it was opened by.
        title: as shown in records and figures; says what sets this copy apart.
        split: the split that was really read: a set without a validation split gives its test
            split for "val".
        images: uint8 [N, 3, H, W], RGB.
        labels: int64 [N].
        class_names: one per class.
        masks: bool [N, H, W], true on the object, or None where that is not known.
        skipped: corrupt images that were left out.

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
    crops_on_load = False

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
        wrong = self.labels[(self.labels < 0) | (self.labels >= self.num_classes)]
        if len(wrong):
            raise ValueError(
                f"{self.name} ({self.split}): label {int(wrong[0])} is outside "
                f"0..{self.num_classes - 1} ({self.num_classes} classes)"
            )

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

    def subset(self, n: int, seed: int = 0) -> Dataset:
        """`n` images (or all, if there are fewer) with the classes in proportion.

        Raises:
            ValueError: n is not positive.
        """
        if n < 1:
            raise ValueError(f"n: expected a positive number of images, got {n}")
        if n >= len(self):
            return self
        chosen = torch.from_numpy(stratified(self.labels.numpy(), n, seed=seed))
        masks = None if self.masks is None else self.masks[chosen]
        return replace(
            self, images=self.images[chosen], labels=self.labels[chosen], masks=masks
        )

    def batches(
        self,
        order: Tensor,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        train: bool = False,
        seed: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels in the given order; the last batch may be smaller.

        Args:
            order: int64 [any length], indices; they may repeat.
            batch_size: images per batch.
            device: where the batches go.
            train: nothing to do here, since crops are made by `Augment`; see `StreamingDataset`.
            seed: likewise.

        Yields:
            uint8 [B, 3, H, W] and int64 [B].
        """
        for chosen in order.split(batch_size):
            images, labels = self.images[chosen], self.labels[chosen]
            if torch.device(device).type == "cuda":
                # Only pinned memory is copied while the GPU still works on the batch before.
                images, labels = images.pin_memory(), labels.pin_memory()
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def open_dataset(
    name_or_path: str | os.PathLike[str],
    split: str,
    *,
    img_size: int | tuple[int, int] | None = None,
    limit: int | None = None,
    on_error: OnError = "raise",
) -> Dataset:
    """Open a data set by name or path.

    Args:
        name_or_path: "embedded", a named set, or the path of an image folder, of a tar of one or
            of a parquet file.
        split: "train", "val" or "test".
        img_size: size to resize to (short side, bicubic, then centre crop), as an int or (height,
            width); None keeps the size of the files, which must then all have the same.
        limit: images at most, with the classes in proportion.
        on_error: "raise" on a corrupt image, or "skip" it and count it in `skipped`.

    Raises:
        ValueError: see `find_source` and `decode_all`.
        FileNotFoundError: a named set that is neither at hand nor to be fetched.
    """
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected a positive number of images, got {limit}")
    source = find_source(name_or_path, split)
    total = len(source.labels)
    chosen = np.arange(total)
    if limit is not None and limit < total:
        chosen = stratified(source.labels, limit)
    images, kept = decode_all(
        len(chosen),
        lambda position: source.read(int(chosen[position])),
        img_size=size,
        on_error=on_error,
        title=f"{source.title} ({source.split})",
    )
    return Dataset(
        name=os.fspath(name_or_path),
        title=source.title,
        split=source.split,
        images=torch.from_numpy(images),
        labels=torch.from_numpy(source.labels[chosen[kept]]),
        class_names=source.class_names,
        skipped=len(chosen) - len(kept),
    )


def default_dataset_name() -> str:
    """ "cifar10" where it is at hand, else "embedded"."""
    try:
        find_source("cifar10", "test")
    except FileNotFoundError:
        return "embedded"
    return "cifar10"

"""The explorer's pictures, whatever they were given as; files are read when they are looked at.

Shape legend: N pictures, H x W pixels.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from evitlab.datasets import Dataset, open_dataset
from evitlab.datasets.decoding import decode_image, fit_image
from evitlab.datasets.folders import IMAGE_SUFFIXES

_FROM_A_SET = 100  # pictures of a data set that is given by its name
Size = tuple[int, int]
Labels = Sequence[int | str] | Tensor | NDArray[Any] | None


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture to look at."""

    name: str
    read: Callable[[], NDArray[np.uint8]]  # -> [H, W, 3]
    label: int | str | None = None  # the true class, by number or name
    mask: NDArray[np.bool_] | None = None  # [H, W], true on the object

    def fitted(self, size: Size) -> NDArray[np.uint8]:
        """[*size, 3]: the short side resized, the centre cut out; as it is where it fits."""
        return fit_image(Image.fromarray(self.read()), size)

    def fitted_mask(self, size: Size) -> NDArray[np.bool_] | None:
        """The same of the mask."""
        if self.mask is None or self.mask.shape == size:
            return self.mask
        shades = Image.fromarray(255 * self.mask.astype(np.uint8)).convert("RGB")
        return fit_image(shades, size)[..., 0] > 127


def read_pictures(images: Any, labels: Labels, size: Size) -> list[Picture]:
    """Pictures from anything that holds some.

    Args:
        images: the path of an image file or of a folder of them; the name of a data set; a
            `Dataset`; a tensor or array [N, 3, H, W] or [N, H, W, 3], uint8 or floats of 0 to 1;
            or a sequence of paths, PIL images and such arrays without N.
        labels: the true class of each, by number or name; None takes the data set's, if any.
        size: (height, width) at which a named data set is drawn.

    Raises:
        ValueError: no picture, one that cannot be read as such, or another number of labels.
        FileNotFoundError: neither a data set's name nor a path that exists.
    """
    pictures = _from_source(images, size)
    if not pictures:
        raise ValueError("images: expected at least one picture, got none")
    if labels is None:
        return pictures
    if isinstance(labels, str) or not isinstance(labels, (Sequence, Tensor, np.ndarray)):
        raise ValueError(f"labels: expected one per picture, got {labels!r}")
    given = [label if isinstance(label, str) else operator.index(label) for label in labels]
    if len(given) != len(pictures):
        raise ValueError(f"labels: expected {len(pictures)}, one per picture, got {len(given)}")
    return [
        Picture(picture.name, picture.read, label, picture.mask)
        for picture, label in zip(pictures, given, strict=True)
    ]


def read_path(path: str | os.PathLike[str]) -> list[Picture]:
    """The picture in a file, or those in a folder and below, by name; the file is read now.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a folder without pictures, or a file that is none.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        files = sorted(
            file for file in place.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        )  # fmt: skip
        if not files:
            raise ValueError(
                f"{path}: expected a folder with pictures ({', '.join(IMAGE_SUFFIXES)}), found none"
            )
        return [Picture(str(file.relative_to(place)), _reader(file)) for file in files]
    if not place.is_file():
        raise FileNotFoundError(f"{path}: expected a picture or a folder of them, found nothing")
    picture = Picture(place.name, _reader(place))
    picture.read()
    return [picture]


def read_bytes(data: bytes, name: str) -> Picture:
    """An uploaded file.

    Raises:
        ValueError: it is no picture.
    """
    pixels = np.asarray(decode_image(data, where=name))
    return Picture(name, lambda: pixels)


def _from_source(images: Any, size: Size) -> list[Picture]:
    if isinstance(images, str) and not images:
        raise ValueError("images: expected a path or the name of a data set, got ''")
    if isinstance(images, (str, os.PathLike)):
        if Path(images).expanduser().exists():
            return read_path(images)
        images = open_dataset(images, "val", img_size=size, limit=_FROM_A_SET)
    if isinstance(images, Dataset):
        return _from_dataset(images)
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, (Tensor, np.ndarray)):
        if images.ndim != 4:
            raise ValueError(
                f"images: expected [N, 3, H, W] or [N, H, W, 3], got {list(images.shape)}"
            )
    elif not isinstance(images, Sequence):
        raise ValueError(
            "images: expected a path, the name of a data set, a Dataset, a tensor or a list of "
            f"pictures, got {type(images).__name__}"
        )
    return [picture for i, one in enumerate(images) for picture in _from_one(one, f"picture {i}")]


def _from_dataset(data: Dataset) -> list[Picture]:
    def reader(i: int) -> Callable[[], NDArray[np.uint8]]:
        return lambda: np.ascontiguousarray(data.images[i].permute(1, 2, 0).cpu().numpy())

    return [
        Picture(
            f"{data.name} {i}",
            reader(i),
            data.class_names[label],
            None if data.masks is None else data.masks[i].cpu().numpy(),
        )
        for i, label in enumerate(data.labels.tolist())
    ]


def _from_one(image: Any, name: str) -> list[Picture]:
    if isinstance(image, (str, os.PathLike)):
        return read_path(image)
    if isinstance(image, Image.Image):
        pixels = np.asarray(image.convert("RGB"))
    elif isinstance(image, (Tensor, np.ndarray)):
        pixels = _as_pixels(image)
    else:
        raise ValueError(
            f"images: expected paths, PIL images or arrays, got {type(image).__name__} as {name}"
        )
    return [Picture(name, lambda: pixels)]


def _as_pixels(image: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """[3, H, W] or [H, W, 3], uint8 or floats of 0 to 1 -> uint8 [H, W, 3]."""
    array = torch.as_tensor(image).detach().cpu()
    if array.ndim == 3 and array.shape[0] == 3:
        array = array.permute(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"images: expected [3, H, W] or [H, W, 3] each, got {list(image.shape)}")
    if array.is_floating_point():
        low, high = array.min().item(), array.max().item()
        if not (low >= 0 and high <= 1):  # also where it is not a number
            raise ValueError(
                f"images: expected floats of 0 to 1, got {low:.3g} to {high:.3g}; "
                "give pictures as they are, not normalised"
            )
        array = (255 * array).round()
    elif array.dtype != torch.uint8:
        raise ValueError(f"images: expected uint8 or floats of 0 to 1, got {array.dtype}")
    return array.to(torch.uint8).contiguous().numpy()


def _reader(file: Path) -> Callable[[], NDArray[np.uint8]]:
    return lambda: np.asarray(decode_image(file.read_bytes(), where=str(file)))

"""The size that the images of a data set share."""

from __future__ import annotations

import os

import numpy as np

from evitlab.datasets.decoding import image_size
from evitlab.datasets.opening import EMBEDDED, find_source

_LOOKED_AT = 256  # files; those of a large set are not all opened for this


def common_img_size(
    name_or_path: str | os.PathLike[str], split: str = "train"
) -> tuple[int, int] | None:
    """(height, width) that the images share, by the headers of at most 256 files, evenly spread.

    Args:
        name_or_path: as in `open_dataset`.
        split: as in `open_dataset`.

    Returns:
        None where they differ, or where no file can be read. Sizes are of upright images.

    Pitfall: of a larger set an image that was not looked at may differ; `open_dataset` then
        raises `SizesDiffer`.

    Raises:
        ValueError: see `open_dataset`.
        FileNotFoundError: see `open_dataset`.
    """
    name = os.fspath(name_or_path)
    if name == EMBEDDED:
        return (32, 32)
    source = find_source(name, split)
    count = len(source.labels)
    places = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int))
    sizes = {image_size(source.read(int(place))[0]) for place in places} - {None}
    return sizes.pop() if len(sizes) == 1 else None

"""`open_dataset`: from a name or a path to a data set."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evitlab.datasets import embedded
from evitlab.datasets.decoding import OnError, decode_all, decode_image
from evitlab.datasets.folders import open_folder, open_tar
from evitlab.datasets.hub import NAMED_SETS, can_fetch, is_at_hand, open_named
from evitlab.datasets.memory import Dataset, check_labels
from evitlab.datasets.parquet import open_parquet_path
from evitlab.datasets.sources import SPLITS, Source, stratified
from evitlab.datasets.streaming import StreamingDataset

AnyDataset = Dataset | StreamingDataset
EMBEDDED = "embedded"
# Above this many bytes of pixels a set is streamed instead of being kept in memory.
STREAM_ABOVE_BYTES = 4 * 2**30


def open_dataset(
    name_or_path: str | os.PathLike[str],
    split: str,
    *,
    img_size: int | tuple[int, int] | None = None,
    limit: int | None = None,
    on_error: OnError = "raise",
    streaming: bool | None = None,
) -> AnyDataset:
    """Open a data set by name or path.

    Args:
        name_or_path: "embedded" (drawn, needs no file), a named set, or the path of an image
            folder, of a tar of one, of a parquet file or of a folder of those.
        split: "train", "val" or "test". A set with only one of val and test answers both with it.
            A path without splits gives a fixed 80 % for "train" and the rest for both others, by
            class; there, "all" is everything, also where images lie in the folder itself: they are
            unlabelled (`labelled` says so, and all labels are 0).
        img_size: size to bring the images to, an int or (height, width). None keeps the size of
            the files, which must then all have the same; "embedded" is drawn at 32.
        limit: images at most, chosen with the classes in proportion.
        on_error: "raise" at a corrupt image, or "skip" it and count it in `skipped`.
        streaming: decode batch by batch in worker processes; None does so above 4 GiB of pixels.

    Returns:
        A `Dataset`, whose images were resized to cover `img_size` (bicubic, antialiased) and cut
        to it from the centre; or a `StreamingDataset`.

    Pitfall: evaluation sees the whole height or width of an image that is in memory, but the
        central 224/256 of a streamed one, as in the paper; and training crops of images in memory
        are taken from what was already cut to `img_size`. Compare like with like.

    Raises:
        ValueError: neither a known name nor a path; no image in it; no such split; a corrupt
            image; labels outside the classes.
        SizesDiffer: images of several sizes with `img_size=None`; a ValueError as well.
        FileNotFoundError: a named set that is neither at hand nor to be fetched.

    Example:
        >>> data = evitlab.open_dataset("embedded", "val", limit=20)
        >>> data.images.shape, data.class_names[:3]
        (torch.Size([20, 3, 32, 32]), ('disk', 'square', 'triangle'))
    """
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if limit is not None and not _is_positive_int(limit):
        raise ValueError(f"limit: expected a positive number of images, got {limit!r}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: expected 'raise' or 'skip', got {on_error!r}")
    size = _checked_size(img_size)
    name = os.fspath(name_or_path)
    if name == EMBEDDED:
        if streaming:
            raise ValueError("streaming: 'embedded' is drawn in memory and has no files to stream")
        return _draw_embedded(split, size or (32, 32), limit)
    source = find_source(name, split)
    if not len(source.labels):
        raise ValueError(f"{name}: the {source.split} split is empty")
    check_labels(
        torch.from_numpy(source.labels), len(source.class_names), f"{name} ({source.split})"
    )
    if limit is not None and limit < len(source.labels):
        source = source.take(stratified(source.labels, limit))
    if streaming is None:
        streaming = 3 * _pixels(source, size) * len(source.labels) > STREAM_ABOVE_BYTES
    if streaming:
        if size is None:
            raise ValueError("img_size: expected a size, as the set is streamed; got None")
        return StreamingDataset(name, source.for_random_access(), size, on_error=on_error)
    images, kept = decode_all(
        len(source.labels),
        source.read,
        img_size=size,
        on_error=on_error,
        title=f"{source.title} ({source.split})",
    )
    return Dataset(
        name=name,
        title=source.title,
        split=source.split,
        images=torch.from_numpy(images),
        labels=torch.from_numpy(source.labels[kept]),
        class_names=source.class_names,
        skipped=len(source.labels) - len(kept),
        files=source.names(kept),
        labelled=source.labelled,
    )


def default_dataset_name() -> str:
    """ "cifar10" where it is at hand or can be fetched, else "embedded"."""
    return "cifar10" if is_at_hand("cifar10") or can_fetch("cifar10") else EMBEDDED


def photograph() -> Tensor:
    """The photograph that comes with matplotlib (Grace Hopper, 1984): uint8 [3, 600, 512]."""
    from matplotlib import get_data_path

    path = Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"
    image = decode_image(path.read_bytes(), where=str(path))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).contiguous()


def _checked_size(img_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if img_size is None:
        return None
    size = img_size if isinstance(img_size, (tuple, list)) else (img_size, img_size)
    if len(size) != 2 or not all(_is_positive_int(side) for side in size):
        raise ValueError(f"img_size: expected a positive int or (height, width), got {img_size!r}")
    return int(size[0]), int(size[1])


def _is_positive_int(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and int(value) >= 1


def find_source(name: str, split: str) -> Source:
    """The labels and encoded images behind a name or a path; see `open_dataset`."""
    if name in NAMED_SETS:
        return open_named(name, split)
    path = Path(name).expanduser()
    if not path.exists():
        known = (EMBEDDED, *NAMED_SETS)
        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"name_or_path: {name!r} is neither an existing path nor a data set; closest name: "
            f"{close!r} (known: {', '.join(known)})"
        )
    if path.suffix == ".parquet" or (path.is_dir() and next(path.rglob("*.parquet"), None)):
        return open_parquet_path(path, split)
    return open_folder(path, split) if path.is_dir() else open_tar(path, split)


def _pixels(source: Source, size: tuple[int, int] | None) -> int:
    """Pixels of one image, judged by the first one where no size is given."""
    if size is not None:
        return size[0] * size[1]
    data, where = source.read(0)
    try:
        width, height = decode_image(data, where=where).size
    except ValueError:
        return 0  # what to do about a corrupt image is decided where all are decoded
    return width * height


def _draw_embedded(split: str, size: tuple[int, int], limit: int | None) -> Dataset:
    if split == "all":
        raise ValueError("split: 'embedded' is read split by split (train, val or test)")
    labels = embedded.labels_of(split)
    chosen = np.arange(len(labels))
    if limit is not None and limit < len(labels):
        chosen = stratified(labels, limit)
    images, masks = embedded.draw(split, chosen, img_size=size)
    return Dataset(
        name=EMBEDDED,
        title="embedded shapes",
        split=split,
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels[chosen]),
        class_names=embedded.CLASS_NAMES,
        masks=torch.from_numpy(masks),
    )

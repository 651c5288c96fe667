"""The images that a command is about: how large, how many left out, and which classes lack some."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from evitlab.datasets import AnyDataset

_LARGEST = 224  # pixels; the files' own size is taken up to here
_SEVERAL = "several sizes"


def on_error(args: argparse.Namespace) -> Literal["skip", "raise"]:
    return "skip" if args.skip_corrupt else "raise"


def skipped(data: AnyDataset) -> str:
    """In words, how many images were left out; "" of none."""
    return f" ({data.skipped} unreadable ones left out)" if data.skipped else ""


def training_size(
    name: str, model: str, *, img_size: int | None, weights: str | None
) -> tuple[int | tuple[int, int] | None, str]:
    """The size to train at, and in words where it comes from.

    What was asked for; else the weights' own; else the files', where all are alike and no side is
    above 224 pixels; else 224.

    Args:
        name: of the data set, or its path.
        model: its name.
        img_size: what was asked for.
        weights: what training begins with.

    Returns:
        None for the files' own size; "" where there is nothing to say.
    """
    from evitlab.datasets import common_img_size
    from evitlab.models.starting import weights_card
    from evitlab.models.zoo import native_img_size

    if img_size is not None:
        return img_size, ""
    if weights == "timm":
        return native_img_size(model), ""
    card = weights_card(weights) if weights is not None else None
    own = (card or {}).get("config", {}).get("img_size")  # timm's models state none there
    if own is not None:
        height, width = own
        said = f"images brought to {height}x{width} pixels, the size of the weights"
        return (height, width), f"{said} (--img-size changes it)"
    common = common_img_size(name)
    if common is not None and max(common) <= _LARGEST:
        return None, ""
    return _LARGEST, _brought(f"{common[0]}x{common[1]} pixels" if common else _SEVERAL)


def open_training(
    name: str, size: int | tuple[int, int] | None, args: argparse.Namespace
) -> tuple[AnyDataset, str]:
    """The training images at a size of `training_size`, and in words where that did not hold.

    Not every file of a large set was looked at for it: where one turns out to be of another size
    than the rest, all are brought to 224 pixels.
    """
    from evitlab.datasets import SizesDiffer, open_dataset

    options: dict[str, Any] = dict(limit=args.limit, on_error=on_error(args))
    try:
        return open_dataset(name, "train", img_size=size, **options), ""
    except SizesDiffer:
        return open_dataset(name, "train", img_size=_LARGEST, **options), _brought(_SEVERAL)


def _brought(what: str) -> str:
    return (
        f"images of {what} brought to {_LARGEST}x{_LARGEST}: resized, then cut from the centre "
        "(--img-size changes it)"
    )


def check_training_classes(
    train_data: AnyDataset, val_data: AnyDataset, *, limited: bool
) -> list[str]:
    """Whether every class that is validated can be learned; in words, which classes lack images.

    Args:
        train_data: what is learned from.
        val_data: of the same classes.
        limited: the training images are a choice of all, which may leave classes out.

    Raises:
        ValueError: fewer than two classes, or a class with images to validate and none to train.
    """
    from evitlab.datasets import listed, without_images

    if train_data.num_classes < 2:
        raise ValueError(
            f"--data: expected images of at least two classes, got one "
            f"({train_data.class_names[0]!r}) in {train_data.title}"
        )
    unseen, unchecked = without_images(train_data), without_images(val_data)
    wrong = [name for name in unseen if name not in unchecked]
    if wrong and not limited:
        raise ValueError(
            f"--data: expected training images of every class of the {val_data.split} split, got "
            f"none of {listed(wrong)}"
        )
    said = []
    if unseen:
        said.append(f"no training images of {listed(unseen)}: the model cannot learn them")
    if unchecked:
        said.append(f"no validation images of {listed(unchecked)}: nothing will be known of them")
    return said

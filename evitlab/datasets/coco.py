"""Annotations in COCO's format: checked, and joined with the image files.

Category numbers, which may have holes, become classes 0 to K - 1 in their order. Boxes are kept
inside their image. A file that cannot be meant the way it is written is refused, by entry.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from evitlab.datasets.coco_entries import (
    area,
    box,
    crowd,
    kind,
    known_id,
    listed,
    own_id,
    text,
    whole,
)
from evitlab.datasets.decoding import OnError, image_size
from evitlab.datasets.detection import DetectionDataset
from evitlab.datasets.folders import Listing, list_images

# COCO writes hundredths of a pixel: a left edge and a width, both rounded, may end this far out.
_ROUNDING_PX = 0.02
# Thinner than this a box loses its area among the digits of float32.
_SLIVER_PX = 0.001
_LONGEST_PX = 2**24  # whole numbers up to here are exact in float32
_PREFIX = "instances_"


def read_coco(path: Path) -> dict[str, Any]:
    """Read a COCO annotation file; its entries are checked by `join_images`.

    Raises:
        ValueError: no JSON, or not an object.
    """
    try:
        coco = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a COCO annotation file, got no JSON ({error})") from (
            error
        )
    if not isinstance(coco, dict):
        results = "; a list of results has no images and categories" * isinstance(coco, list)
        raise ValueError(
            f"{path}: expected an object with 'images', 'annotations' and 'categories', got "
            f"{kind(coco)}{results}"
        )
    return coco


def find_images(annotations: Path, coco: dict[str, Any]) -> Path:
    """The folder or tar of the images of an annotation file, from the usual places beside it.

    `annotations/instances_val2017.json` goes with `val2017/`, `val2017.tar` or `images/val2017/`;
    else `images/` or a folder around the file is taken, where the images lie directly in it.

    Raises:
        ValueError: nowhere; says where was looked.
    """
    stem = annotations.stem.removeprefix(_PREFIX)
    # A bare file name has no folder above its own until it is made absolute.
    folder = annotations.absolute().parent
    parents = (folder, folder.parent)
    looked = [
        place
        for parent in parents
        for around in (parent, parent / "images")
        for place in (around / stem, around / f"{stem}.tar")
    ]
    for place in looked:
        if place.is_dir() if place.suffix != ".tar" else place.is_file():
            return place
    entries = coco.get("images")
    names = [
        image["file_name"].replace("\\", "/")
        for image in (entries if isinstance(entries, list) else [])[:100]
        if isinstance(image, dict) and isinstance(image.get("file_name"), str)
    ]
    for place in (place for parent in parents for place in (parent / "images", parent)):
        if any((place / name).is_file() for name in names):
            return place
    for place in (parent / "images.tar" for parent in parents):
        if place.is_file():
            return place
    raise ValueError(
        f"images: none found for {annotations}; give their folder or tar, or put them into "
        f"{parents[1] / stem} or {parents[1] / (stem + '.tar')}"
    )


def join_images(
    coco: dict[str, Any],
    images: Path,
    *,
    where: str,
    name: str,
    title: str,
    split: str,
    on_error: OnError = "raise",
) -> DetectionDataset:
    """Check a COCO dict and join it with the files of its images.

    Args:
        coco: "images", "annotations" (may be left out: no boxes) and "categories".
        images: folder, or tar, of the images. An image goes by the path that its "file_name" ends
            in, or that ends in its "file_name"; of two names that end in one path, the one that
            also agrees with the folder's own name has it.
        where: what to call the annotations in errors, their path.
        name: of the data set.
        title: of the data set.
        split: of the data set.
        on_error: "raise" where an image is missing; "skip" leaves out those that are missing, are
            no image by their header, or have another size than declared, and counts them.

    Raises:
        ValueError: a malformed entry, a number given twice, an annotation of an image or category
            that is not there, or a missing image.
    """
    categories = _categories(coco, where)
    entries = _images(coco, where)
    boxes, notes = _boxes(coco, entries, categories, where)
    listing = list_images(images)
    paths = _match_files([entry["file_name"] for entry in entries.values()], listing, images, where)
    numbers = list(entries)
    missing = [number for number, path in zip(numbers, paths, strict=True) if path is None]
    if missing and on_error == "raise":
        raise ValueError(
            f"{where}: {len(missing)} of {len(numbers)} images are not in {images}; the first is "
            f"{entries[missing[0]]['file_name']!r}"
        )
    chosen = [
        (number, path) for number, path in zip(numbers, paths, strict=True) if path is not None
    ]
    if missing:
        notes.append(f"{_count(missing, 'image')} not found, left out")
    if on_error == "skip":
        chosen, unreadable = _readable(chosen, listing, entries)
        if unreadable:
            count = _count(unreadable, "image")
            notes.append(f"{count} unreadable or not of the declared size, left out")
    if not chosen:
        raise ValueError(f"{where}: expected at least one image, got none in {images}")
    own = [boxes[number] for number, _ in chosen]
    return DetectionDataset(
        name=name,
        title=title,
        split=split,
        class_names=tuple(categories.values()),
        category_ids=tuple(categories),
        image_ids=tuple(number for number, _ in chosen),
        files=tuple(entries[number]["file_name"] for number, _ in chosen),
        img_sizes=tuple((entries[n]["height"], entries[n]["width"]) for n, _ in chosen),
        boxes=tuple(torch.tensor([row[0] for row in rows]).reshape(-1, 4) for rows in own),
        labels=tuple(torch.tensor([row[1] for row in rows], dtype=torch.int64) for rows in own),
        crowd=tuple(torch.tensor([row[2] for row in rows], dtype=torch.bool) for rows in own),
        areas=tuple(torch.tensor([row[3] for row in rows], dtype=torch.float32) for rows in own),
        read=listing.reader([path for _, path in chosen]),
        notes=tuple(notes),
    )


def _categories(coco: dict[str, Any], where: str) -> dict[int, str]:
    """Number -> name, in order of the numbers."""
    found: dict[int, str] = {}
    for index, entry in enumerate(listed(coco, "categories", where)):
        place = f"{where}: categories[{index}]"
        number = own_id(entry, found, place)
        found[number] = text(entry, "name", place)
    if not found:
        raise ValueError(f"{where}: expected at least one entry in 'categories', got none")
    return dict(sorted(found.items()))


def _images(coco: dict[str, Any], where: str) -> dict[int, dict[str, Any]]:
    """Number -> file_name, height, width, in the file's order."""
    found: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(listed(coco, "images", where)):
        place = f"{where}: images[{index}]"
        number = own_id(entry, found, place)
        image: dict[str, Any] = {"file_name": text(entry, "file_name", place)}
        image |= {side: whole(entry, side, place) for side in ("height", "width")}
        if not all(1 <= image[side] <= _LONGEST_PX for side in ("height", "width")):
            raise ValueError(
                f"{place}: expected a height and width from 1 to {_LONGEST_PX:,}, got "
                f"{image['height']} and {image['width']}"
            )
        found[number] = image
    if not found:
        raise ValueError(f"{where}: expected at least one entry in 'images', got none")
    return found


# (box, class, crowd, area)
_Row = tuple[tuple[float, float, float, float], int, bool, float]


def _boxes(
    coco: dict[str, Any],
    images: dict[int, dict[str, Any]],
    categories: dict[int, str],
    where: str,
) -> tuple[dict[int, list[_Row]], list[str]]:
    """The boxes of each image, inside it, and in words what that changed."""
    classes = {number: label for label, number in enumerate(categories)}
    found: dict[int, list[_Row]] = {number: [] for number in images}
    changed: Counter[str] = Counter()
    for index, entry in enumerate(listed(coco, "annotations", where, optional=True)):
        place = f"{where}: annotations[{index}]"
        number = known_id(entry, "image_id", images, place)
        category = known_id(entry, "category_id", categories, place)
        x, y, width, height = box(entry, place)
        is_crowd = crowd(entry, place)
        image = images[number]
        if width < _SLIVER_PX or height < _SLIVER_PX:
            changed["empty"] += 1
            continue
        x1, x2 = max(x, 0.0), min(x + width, float(image["width"]))
        y1, y2 = max(y, 0.0), min(y + height, float(image["height"]))
        if x2 - x1 < _SLIVER_PX or y2 - y1 < _SLIVER_PX:
            changed["outside"] += 1
            continue
        if max(-x, -y, x + width - image["width"], y + height - image["height"]) > _ROUNDING_PX:
            changed["clipped"] += 1
        size = area(entry, (x2 - x1) * (y2 - y1), place)
        found[number].append(((x1, y1, x2, y2), classes[category], is_crowd, size))
    ways = {
        "clipped": ("reaches outside its image and was clipped",
                    "reach outside their image and were clipped"),
        "outside": ("outside its image was left out", "outside their image were left out"),
        "empty": ("of zero area was left out", "of zero area were left out"),
    }  # fmt: skip
    notes = [
        f"{changed[key]:,} box{'es' * (changed[key] > 1)} {ways[key][changed[key] > 1]}"
        for key in ways
        if changed[key]
    ]
    return found, notes


def _match_files(
    names: Sequence[str], listing: Listing, images: Path, where: str
) -> list[str | None]:
    """The listed path of each file name; None where there is none.

    Of different names that lead to one file, only that which agrees with its whole path furthest
    has it: `1.png` in a folder cam1 is the image of `cam1/1.png` and not of `cam2/1.png` too.
    """
    known = set(listing.files)
    by_base: dict[str, list[str]] = {}
    for path in listing.files:
        by_base.setdefault(PurePosixPath(path).name, []).append(path)
    found: list[str | None] = []
    for name in names:
        wanted = PurePosixPath(name.replace("\\", "/")).as_posix()
        if wanted in known:
            found.append(wanted)
            continue
        alike = [
            path
            for path in by_base.get(PurePosixPath(wanted).name, ())
            if f"/{path}".endswith(f"/{wanted}") or f"/{wanted}".endswith(f"/{path}")
        ]
        if len(alike) > 1:
            raise ValueError(
                f"{where}: expected file_name {name!r} to name one image, got {len(alike)}: "
                f"{alike[0]}, {alike[1]}"
            )
        found.append(alike[0] if alike else None)
    # Names are compared as they are written, so one that is there twice keeps its file.
    claims: dict[str, dict[str, tuple[bool, int]]] = {}
    for name, chosen in zip(names, found, strict=True):
        if chosen is not None:
            claims.setdefault(chosen, {})[name] = _agreement(name, images, chosen)
    for place, (name, chosen) in enumerate(zip(names, found, strict=True)):
        others = [own for other, own in claims.get(chosen or "", {}).items() if other != name]
        if chosen is not None and others and claims[chosen][name] <= max(others):
            found[place] = None
    return found


def _agreement(name: str, images: Path, path: str) -> tuple[bool, int]:
    """Whether a file name is a listed path, and in how many steps from the end they agree."""
    wanted = PurePosixPath(name.replace("\\", "/"))
    root = images.absolute().with_suffix("") if images.is_file() else images.absolute()
    steps = zip(reversed(wanted.parts), reversed((*root.parts, *path.split("/"))), strict=False)
    return wanted.as_posix() == path, len(list(takewhile(lambda pair: pair[0] == pair[1], steps)))


def _readable(
    chosen: list[tuple[int, str]], listing: Listing, images: dict[int, dict[str, Any]]
) -> tuple[list[tuple[int, str]], list[int]]:
    """Those whose header names the declared size, and the numbers of the others."""
    read = listing.reader([path for _, path in chosen])
    good = [
        image_size(read(place)[0]) == (images[number]["height"], images[number]["width"])
        for place, (number, _) in enumerate(chosen)
    ]
    kept = [pair for pair, fine in zip(chosen, good, strict=True) if fine]
    return kept, [number for (number, _), fine in zip(chosen, good, strict=True) if not fine]


def _count(numbers: Sequence[int], noun: str) -> str:
    return f"{len(numbers):,} {noun}{'s' * (len(numbers) > 1)}"

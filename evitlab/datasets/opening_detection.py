"""`open_detection`: from a name or a path to images with boxes."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from evitlab.datasets.coco import find_images, join_images, read_coco
from evitlab.datasets.decoding import OnError
from evitlab.datasets.detection import DetectionDataset
from evitlab.datasets.hub import data_home
from evitlab.datasets.scenes import SCENES, open_scenes
from evitlab.datasets.sources import SPLITS, canonical_split, unsplit_indices
from evitlab.datasets.voc import is_voc, voc_split, voc_to_coco

_PREFERRED = "coco128"
_TITLES = {"coco128": "COCO128", "coco": "COCO"}


def open_detection(
    name_or_path: str | os.PathLike[str],
    split: str = "val",
    *,
    images: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    on_error: OnError = "raise",
) -> DetectionDataset:
    """Open a set of images with boxes, by name or path.

    Args:
        name_or_path: "scenes" (drawn, needs no file); a folder with
            `annotations/instances_<split>*.json`, or `<split>/_annotations.coco.json`, and the
            images beside them; the name of such a folder in the data home; a COCO JSON itself, of
            which `split` takes nothing away; or a folder of Pascal VOC (`Annotations/`,
            `JPEGImages/`, and `ImageSets/Main/<split>.txt` where there are splits).
        split: "train", "val", "test" or "all". A set with only one of val and test answers both
            with it. A folder that knows no splits gives a fixed 80 % for "train" and the rest for
            both others; "all" is for those.
        images: folder or tar of the images, where they do not lie beside the annotations.
        limit: images at most, evenly spread over the set.
        on_error: "raise" where an image is missing; "skip" leaves out what is missing, unreadable
            or not of the declared size, which costs a look into every file, and says so in `notes`.

    Pitfall: only "skip" looks into the files. Else a corrupt image shows when it is read, and so
        does one that EXIF turns against its annotations; one turned upside down cannot be told.

    Raises:
        ValueError: neither a known name nor a path; no such split; annotations that are malformed
            or do not go together, by file and entry; missing images.
        FileNotFoundError: a named set that is not at hand.
    """
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split: expected one of {', '.join(SPLITS)} or all, got {split!r}")
    if limit is not None and (
        isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit < 1
    ):
        raise ValueError(f"limit: expected a positive number of images, got {limit!r}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: expected 'raise' or 'skip', got {on_error!r}")
    name = os.fspath(name_or_path)
    data = (
        _open_scenes(split, images)
        if name == SCENES
        else _open_path(name, _find_path(name), split, images, on_error)
    )
    if limit is not None and limit < len(data):
        # The middle of each of `limit` equal parts.
        data = data.take((2 * np.arange(limit) + 1) * len(data) // (2 * limit))
    return data


def default_detection_name() -> str:
    """ "coco128" where it is at hand, else "scenes"."""
    root = data_home() / _PREFERRED
    at_hand = all(_annotation_files(root, split) for split in ("train", "val"))
    return _PREFERRED if at_hand else SCENES


def _open_scenes(split: str, images: str | os.PathLike[str] | None) -> DetectionDataset:
    if images is not None:
        raise ValueError(f"images: 'scenes' draws its own, got {os.fspath(images)!r}")
    if split == "all":
        raise ValueError("split: 'scenes' is read split by split (train, val or test)")
    return open_scenes("train" if split == "train" else "val")


def _find_path(name: str) -> Path:
    """An existing path, or a folder with annotations in the data home."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    home = data_home()
    folders = sorted(home.iterdir()) if home.is_dir() else []
    known = [SCENES, *(folder.name for folder in folders if holds_annotations(folder))]
    if name in known:
        return home / name
    if name in _TITLES:  # nothing fetches it
        raise FileNotFoundError(
            f"name_or_path: {name} is not at hand; put its images and COCO annotations into "
            f"{home / name}, or point EVITLAB_DATA to the folder that holds {name}/"
        )
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"name_or_path: {name!r} is neither an existing path nor a data set with boxes; closest "
        f"name: {close!r} (known: {', '.join(known)})"
    )


def holds_annotations(folder: Path) -> bool:
    """Whether a folder holds a data set with boxes, of COCO's or VOC's kind."""
    return (folder / "annotations").is_dir() or bool(_annotation_files(folder)) or is_voc(folder)


def _open_path(
    name: str, path: Path, split: str, images: str | os.PathLike[str] | None, on_error: OnError
) -> DetectionDataset:
    if path.is_dir() and is_voc(path):
        coco, where, found = voc_to_coco(path, split), path, voc_split(path, split)
        pictures = path / "JPEGImages"
    else:
        found, where = _annotations_of(path, split) if path.is_dir() else (_split_of(path), path)
        coco = read_coco(where)
        pictures = find_images(where, coco) if images is None else path
    if images is not None:
        pictures = Path(images).expanduser()
    if not pictures.exists():
        raise ValueError(f"images: expected a folder or a tar, got {os.fspath(pictures)!r}")
    title = _TITLES.get(path.name, path.stem if path.is_file() else path.resolve().name)
    data = join_images(
        coco, pictures, where=str(where), name=name, title=title, split=found, on_error=on_error
    )
    if path.is_dir() and found == "all" != split:
        data = replace(data.take(unsplit_indices(len(data), split)), split=split)
    return data


def _annotations_of(root: Path, split: str) -> tuple[str, Path]:
    """The annotation file of a split, and the split that it is of; "all": it knows none."""
    for alias in SPLITS.get(split, ()):
        files = _annotation_files(root, alias)
        if len(files) > 1:
            raise ValueError(
                f"split: expected one file of {alias!r} in {root}, got "
                f"{', '.join(file.name for file in files)}; give the path of one of them"
            )
        if files:
            return canonical_split(alias) or split, files[0]
    there = _annotation_files(root)
    if len(there) == 1 and _split_of(there[0]) == "all":
        return "all", there[0]
    names = ", ".join(file.relative_to(root).as_posix() for file in there)
    raise ValueError(
        f"split: expected annotations/instances_{split}*.json in {root} for {split!r}, got "
        f"{names or 'no annotation file'}"
    )


def _annotation_files(root: Path, alias: str | None = None) -> list[Path]:
    """The annotation files of a folder, or those that go by one name of a split."""
    files = sorted((root / "annotations").glob("instances_*.json"))
    files = files or sorted(root.glob("*/_annotations.coco.json"))
    return [file for file in files if alias is None or alias in _words(file)]


def _split_of(file: Path) -> str:
    """The split that a file's name, or its folder's, tells; else "all"."""
    return next((split for split in map(canonical_split, _words(file)) if split), "all")


def _words(file: Path) -> list[str]:
    """Of "instances_train2017": "instances" and "train"."""
    name = file.parent.name if file.name.startswith("_annotations") else file.stem
    return re.findall("[a-z]+", name.lower())

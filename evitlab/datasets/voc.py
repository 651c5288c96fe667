"""Pascal VOC annotations as COCO's."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from evitlab.datasets.sources import SPLITS, canonical_split, unsplit_indices


def is_voc(folder: Path) -> bool:
    """Whether a folder is laid out as Pascal VOC is."""
    return (folder / "Annotations").is_dir()


def voc_to_coco(folder: str | os.PathLike[str], split: str = "train") -> dict[str, Any]:
    """Read one split of a Pascal VOC folder as a COCO dict.

    Corners, which VOC counts from 1 and takes as inside, become x, y, width and height from 0: a
    box of corners (1, 1) and (4, 3) is (0, 0, 4, 3). Classes are numbered from 1 in the order of
    their sorted names, over all splits, so that each split numbers them alike.

    Args:
        folder: with `Annotations/*.xml`, and `ImageSets/Main/<split>.txt` where there are splits.
        split: the name of one of its lists, such as "train", "val", "test" or "trainval"; of val
            and test the one stands in for the other. Without lists a fixed 80 % is for "train" and
            the rest for both others. "all" is everything.

    Raises:
        ValueError: no such folder or split, or an annotation that is broken, by its file.
    """
    root = Path(folder).expanduser()
    files = sorted((root / "Annotations").glob("*.xml"))
    if not files:
        raise ValueError(f"folder: expected annotations in {root / 'Annotations'}/*.xml, got none")
    parsed = {file.stem: _read(file) for file in files}
    names = sorted({box["name"] for entry in parsed.values() for box in entry["boxes"]})
    if not names:
        raise ValueError(f"{root}: expected at least one object in its annotations, got none")
    numbers = {name: number for number, name in enumerate(names, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for stem in _stems(root, split, sorted(parsed)):
        if stem not in parsed:
            raise ValueError(f"{root}: expected Annotations/{stem}.xml, which its {split} list has")
        entry = parsed[stem]
        images.append({"id": len(images) + 1} | entry["image"])
        for box in entry["boxes"]:
            x, y, width, height = box["bbox"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": numbers[box["name"]],
                    "bbox": [x, y, width, height],
                    "area": max(width, 0.0) * max(height, 0.0),
                    # VOC counts no detection of a difficult object, and no miss of one, as a
                    # mistake; of COCO's marks only a crowd is ignored in that way.
                    "iscrowd": int(box["difficult"]),
                }
            )
    return {
        "info": {"description": f"{root.resolve().name} ({split})"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
    }


def voc_split(folder: Path, split: str) -> str:
    """The split that `voc_to_coco` really reads: "train", "val", "test" or "all"."""
    found = _list_of(folder, split)
    return (canonical_split(found.stem) if found else None) or split


def _list_of(root: Path, split: str) -> Path | None:
    main = root / "ImageSets" / "Main"
    if split == "all" or not main.is_dir():
        return None
    for alias in SPLITS.get(split, (split,)):
        if (main / f"{alias}.txt").is_file():
            return main / f"{alias}.txt"
    # Beside the splits stand lists by class: "dog_train.txt".
    there = [file.stem for file in sorted(main.glob("*.txt")) if "_" not in file.stem]
    raise ValueError(f"split: {main} has {', '.join(there) or 'no lists'}, got {split!r}")


def _stems(root: Path, split: str, stems: list[str]) -> list[str]:
    """The names of a split's images, without their suffix."""
    file = _list_of(root, split)
    if file is not None:
        lines = file.read_text(encoding="utf-8").splitlines()
        found = [line.split()[0] for line in lines if line.strip()]
        if not found:
            raise ValueError(f"{file}: expected the names of images, got none")
        return list(dict.fromkeys(found))
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split: expected one of {', '.join(SPLITS)} or all, got {split!r}")
    return [stems[index] for index in unsplit_indices(len(stems), split)]


def _read(file: Path) -> dict[str, Any]:
    """One annotation file: its image, and its boxes as x, y, width, height from 0."""
    root = _parse(file)
    name = _text(root, "filename", file)
    width, height = (_number(root, f"size/{side}", file) for side in ("width", "height"))
    if min(width, height) < 1:
        raise ValueError(f"{file}: expected a positive size, got {width:g}x{height:g} pixels")
    boxes = []
    for index, thing in enumerate(root.iterfind("object")):
        where = f"{file}: object {index}"
        x1, y1, x2, y2 = (
            _number(thing, f"bndbox/{corner}", where) for corner in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = (thing.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise ValueError(f"{where}: expected <difficult> 0 or 1, got {difficult!r}")
        boxes.append(
            {
                "name": _text(thing, "name", where),
                "bbox": (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1),
                "difficult": difficult == "1",
            }
        )
    return {"image": {"file_name": name, "width": width, "height": height}, "boxes": boxes}


def _parse(file: Path) -> ElementTree.Element:
    """The root of an XML file without entities: nested, a few lines of them fill the memory."""

    def refuse(*_: object) -> None:
        raise ValueError(f"{file}: expected a plain annotation, got one that declares entities")

    parser = ElementTree.XMLParser()
    scanner = expat.ParserCreate()
    scanner.EntityDeclHandler = refuse
    try:
        data = file.read_bytes()
        scanner.Parse(data, True)
        parser.feed(data)
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, expat.ExpatError, LookupError) as error:
        raise ValueError(f"{file}: expected an XML annotation, got none ({error})") from error
    if root.tag != "annotation":
        raise ValueError(f"{file}: expected <annotation> at the top, got <{root.tag}>")
    return root


def _text(element: ElementTree.Element, path: str, where: object) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"{where}: expected <{path}>, got nothing")
    return text


def _number(element: ElementTree.Element, path: str, where: object) -> float:
    text = _text(element, path, where)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: expected a number as <{path}>, got {text!r}")
    return number

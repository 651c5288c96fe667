"""The entries of COCO's format, checked one by one: errors name file, entry and key.

Whole numbers may be written 640.0, as tables do; true is no number; `area` and `iscrowd` may be
left out, `area` may be null.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

_LARGEST = 1e30  # far below what float32 holds, so that sums stay finite too


def listed(
    coco: Mapping[str, Any], key: str, where: str, *, optional: bool = False
) -> list[Mapping[str, Any]]:
    """The entries under a key.

    Raises:
        ValueError: no list of objects there.
    """
    entries = coco.get(key, [] if optional else None)
    if not isinstance(entries, list):
        got = kind(entries) if key in coco else "nothing"
        raise ValueError(f"{where}: expected a list under {key!r}, got {got}")
    for index, entry in enumerate(entries):
        check_object(entry, f"{where}: {key}[{index}]")
    return entries


def check_object(entry: Any, place: str) -> None:
    """Raise a ValueError where an entry is none."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{place}: expected an object, got {kind(entry)}")


def whole(entry: Mapping[str, Any], key: str, place: str) -> int:
    """A whole number.

    Raises:
        ValueError: it is missing, or something else.
    """
    value = _value(entry, key, place)
    found = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not found:
        raise ValueError(f"{place}: expected a whole number as {key!r}, got {value!r}")
    return int(value)


def own_id(entry: Mapping[str, Any], taken: Collection[int], place: str) -> int:
    """The number of an image or a category.

    Raises:
        ValueError: another one has it, or it is no whole number.
    """
    number = whole(entry, "id", place)
    if number in taken:
        raise ValueError(f"{place}: expected an id of its own, got {number} a second time")
    return number


def known_id(entry: Mapping[str, Any], key: str, known: Collection[int], place: str) -> int:
    """The number of the image or category that an entry is of.

    Raises:
        ValueError: there is none of this number, or it is no whole number.
    """
    number = whole(entry, key, place)
    if number in known:
        return number
    if key == "image_id":
        raise ValueError(f"{place}: expected the id of an image, got image_id {number}")
    closest = min(known, key=lambda other: abs(other - number), default="none")
    raise ValueError(
        f"{place}: expected the id of a category, got {key} {number}; closest: {closest}"
    )


def text(entry: Mapping[str, Any], key: str, place: str) -> str:
    """A name.

    Raises:
        ValueError: it is missing, empty or something else.
    """
    value = _value(entry, key, place)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{place}: expected a name as {key!r}, got {value!r}")
    return value


def box(entry: Mapping[str, Any], place: str) -> list[float]:
    """(x, y, width, height).

    Raises:
        ValueError: it is missing, or not four finite numbers.
    """
    value = _value(entry, "bbox", place)
    if (
        not isinstance(value, Sequence) or isinstance(value, (str, bytes))
        or len(value) != 4 or not all(map(_is_finite, value))
    ):  # fmt: skip
        raise ValueError(
            f"{place}: expected four finite numbers (x, y, width, height) as 'bbox', got {value!r}"
        )
    return [float(number) for number in value]


def area(entry: Mapping[str, Any], otherwise: float, place: str) -> float:
    """Square pixels, as the file has them, or `otherwise`.

    Raises:
        ValueError: it is there and no finite number from 0.
    """
    value = entry.get("area")
    if value is None:
        return otherwise
    if not _is_finite(value) or value < 0:
        raise ValueError(f"{place}: expected a number of square pixels as 'area', got {value!r}")
    return float(value)


def crowd(entry: Mapping[str, Any], place: str) -> bool:
    """Whether the entry is a region of many objects.

    Raises:
        ValueError: neither 0 nor 1.
    """
    value = entry.get("iscrowd", 0)
    if value not in (0, 1):
        raise ValueError(f"{place}: expected iscrowd 0 or 1, got {value!r}")
    return bool(value)


def score(entry: Mapping[str, Any], place: str) -> float:
    """How sure a result is.

    Raises:
        ValueError: it is missing, or no finite number.
    """
    value = _value(entry, "score", place)
    if not _is_finite(value):
        raise ValueError(f"{place}: expected a finite number as 'score', got {value!r}")
    return float(value)


def kind(value: object) -> str:
    """What a value is, for an error."""
    return "nothing" if value is None else type(value).__name__


def _value(entry: Mapping[str, Any], key: str, place: str) -> Any:
    if key not in entry:
        raise ValueError(f"{place}: expected a key {key!r}, got {', '.join(entry) or 'none'}")
    return entry[key]


def _is_finite(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) < _LARGEST  # type: ignore[arg-type]  # false for NaN

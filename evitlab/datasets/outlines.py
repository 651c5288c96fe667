"""The outlines of the embedded data set's ten shapes, and how far they reach.

An outline is a function of (x, y) that is negative inside and grows by about one per unit of
length. A shape lives in its own frame, where it fills about the unit disk and y points up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]  # float32 throughout

TURN = 2 * np.pi
DIRECTIONS = 720


def _disk(x: Floats, y: Floats) -> Floats:
    return np.hypot(x, y) - 0.92


def _square(x: Floats, y: Floats) -> Floats:
    return np.maximum(abs(x), abs(y)) - 0.8


def _triangle(x: Floats, y: Floats) -> Floats:
    return np.maximum(0.866 * abs(x) + 0.5 * y, -y) - 0.52


def _star(x: Floats, y: Floats) -> Floats:
    # Folded into one tenth of the star: from a tip at angle 0 to a notch at 36 degrees.
    angle = abs((np.arctan2(x, y) + TURN / 10) % (TURN / 5) - TURN / 10)
    radius = np.hypot(x, y)
    tip = np.array([1.1, 0.0])
    notch = 0.46 * np.array([np.cos(TURN / 10), np.sin(TURN / 10)])
    along = (notch - tip) / np.linalg.norm(notch - tip)
    return (radius * np.cos(angle) - np.float32(tip[0])) * np.float32(along[1]) - (
        radius * np.sin(angle) * np.float32(along[0])
    )


def _ring(x: Floats, y: Floats) -> Floats:
    return abs(np.hypot(x, y) - 0.7) - 0.26


def _cross(x: Floats, y: Floats) -> Floats:
    wide, narrow = np.maximum(abs(x), abs(y)) - 1, np.minimum(abs(x), abs(y)) - 0.3
    return np.maximum(wide, narrow)


def _heart(x: Floats, y: Floats) -> Floats:
    side, y = np.float32(0.6), y + 0.12
    lobe = side / np.float32(np.sqrt(2))
    diamond = (abs(x) + abs(y)) / np.float32(np.sqrt(2)) - side
    return np.minimum(diamond, np.hypot(abs(x) - lobe, y - lobe) - side)


def _crescent(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.hypot(x, y) - 1, 0.82 - np.hypot(x - 0.5, y))


def _arrow(x: Floats, y: Floats) -> Floats:
    shaft = np.maximum(abs(x) - 0.25, abs(y + 0.45) - 0.55)
    head = np.maximum(0.78 * abs(x) + 0.626 * (y - 1.0), -y - 0.05)
    return np.minimum(shaft, head)


def _flower(x: Floats, y: Floats) -> Floats:
    return 0.75 * (np.hypot(x, y) - 0.74 - 0.28 * np.cos(5 * np.arctan2(x, y)))


OUTLINES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "disk": _disk,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "crescent": _crescent,
    "arrow": _arrow,
    "flower": _flower,
}


@functools.cache
def reaches() -> tuple[Floats, Floats]:
    """Of each outline how far it reaches in evenly spread directions, counter-clockwise from
    that of x, [10, DIRECTIONS]; and its area, [10]."""
    angles = np.arange(DIRECTIONS, dtype=np.float32) * np.float32(TURN / DIRECTIONS)
    radii = np.linspace(0, 1.2, 601, dtype=np.float32)
    x, y = radii * np.cos(angles)[:, None], radii * np.sin(angles)[:, None]  # [directions, 601]
    towards = np.cos(angles - angles[:, None])
    reach, area = [], []
    for outline in OUTLINES.values():
        inside = outline(x, y) < 0
        reach.append((towards * (inside * radii).max(1)).max(1))
        area.append((inside * radii).sum() * (radii[1] * TURN / DIRECTIONS))
    return np.stack(reach), np.array(area, np.float32)

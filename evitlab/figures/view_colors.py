"""The colours of attention: one scale for every map, alone and over the picture.

A weight stands relative to uniform attention, on a logarithmic scale from 1/2 to 32, in cividis,
which is read alike with and without colour blindness. Pixels are RGBA, uint8.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgba
from numpy.typing import NDArray
from PIL import Image

from evitlab.figures.view_ink import Theme
from evitlab.records import AttentionView

ATTENTION, SIMILARITY, LOSS = "cividis", "magma", "PuOr_r"
LOWEST, HIGHEST = 0.5, 32.0  # of the attention scale, times uniform
Bytes = NDArray[np.uint8]


def share(weight: Any) -> Any:
    """Where a weight stands on the attention scale, 0..1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.log2(np.asarray(weight, float) / LOWEST) / math.log2(HIGHEST / LOWEST)
    return np.clip(place, 0.0, 1.0)


def colored(weights: NDArray[Any], theme: Theme) -> Bytes:
    """Weights [rows, columns] as RGBA; what is out of sight in the theme's grey."""
    pixels = palette(ATTENTION)[steps(share(weights))]
    pixels[np.isnan(weights)] = rgba(theme.empty)
    return pixels


def overlaid(view: AttentionView, size: tuple[int, int], theme: Theme) -> Bytes:
    """The picture at its size on screen, in grey, with colours where something was measured."""
    if view.overlay == "attention":
        values = np.asarray(view.maps[view.head - 1])
        places, seen = steps(share(values)), ~np.isnan(values)
    elif view.heat is not None:
        places, seen = steps(view.heat), ~np.isnan(view.heat)
    else:
        places, seen = None, None
    height, width = size
    picture = Image.fromarray(view.picture).resize((width, height), Image.Resampling.BILINEAR)
    if places is None or seen is None:
        return np.asarray(picture.convert("RGBA"))
    # Grey below the colours: hues of the picture would be read as attention.
    grey = np.asarray(picture.convert("L"))
    rows = np.arange(height) * len(places) // height
    columns = np.arange(width) * places.shape[1] // width
    # One table of all 256 greys under all 256 colours, instead of floats at every pixel.
    mixed = _blends()[(places.astype(np.int32) * 256)[:, columns][rows] + grey]
    if not seen.all():
        veil = Image.new("RGB", picture.size, theme.empty)
        veiled = np.asarray(Image.blend(picture, veil, 0.55).convert("RGBA"))
        mixed = np.where(seen[:, columns][rows], mixed, veiled.view(np.uint32)[..., 0])
    return mixed.view(np.uint8).reshape(height, width, 4)


def faded(pixels: Bytes, theme: Theme) -> Bytes:
    """Without colour and with little contrast."""
    grey = pixels[..., :3].mean(-1, keepdims=True)
    pale = (0.35 * grey + 0.65 * np.array(rgba(theme.empty))).astype(np.uint8)
    pale[..., 3] = 255
    return pale


@cache
def palette(name: str) -> Bytes:
    return np.asarray(matplotlib.colormaps[name](np.arange(256), bytes=True))


def steps(values: Any) -> NDArray[np.intp]:
    """Values 0..1 as places of a palette."""
    return np.nan_to_num(255 * np.clip(values, 0.0, 1.0)).round().astype(np.intp)


@cache
def _blends() -> NDArray[np.uint32]:
    """Every colour of the attention scale over every grey, [256 * 256], RGBA in one number."""
    colors = palette(ATTENTION).astype(float)[:, None]
    greys = np.arange(256.0)[None, :, None]
    strength = np.linspace(0.22, 0.82, 256)[:, None, None]
    mixed = (strength * colors + (1 - strength) * greys).astype(np.uint8)
    mixed[..., 3] = 255
    return mixed.view(np.uint32).reshape(-1)


def rgba(color: str) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in to_rgba(color))

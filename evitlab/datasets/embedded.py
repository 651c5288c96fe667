"""The embedded data set: ten shapes, textured, on clutter, drawn by numpy.

It needs no file and no network. Every picture is a function of (split, index) alone, up to the
rounding of the machine's mathematics library, and the pixels of the object are known, so attention
maps can be scored against the truth. The class is the outline only: colours, texture, place, size,
turn and background say nothing about it.

Shape legend: n images that are drawn together, H x W pixels. Lengths are fractions of the short
side of the image; a shape lives in its own frame, where it fills about the unit disk and y points
up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from evitlab.datasets.outlines import DIRECTIONS, OUTLINES, TURN, Floats, reaches

SPLIT_SIZES = {"train": 10_000, "val": 2_000, "test": 2_000}
CLASS_NAMES = tuple(OUTLINES)
_SPLIT_SEEDS = {"train": 101, "val": 102, "test": 103}
_CHUNK_PIXELS = 2**16  # what one pass works on stays in the cache
_DISTRACTORS = 6
_GRIDS = (4, 9)


def labels_of(split: str) -> NDArray[np.int64]:
    """int64 [N], the label of each picture of a split: the classes take turns."""
    return np.arange(SPLIT_SIZES[split], dtype=np.int64) % len(CLASS_NAMES)


def draw(
    split: str, indices: NDArray[np.int64], *, img_size: tuple[int, int] = (32, 32)
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw some pictures of a split.

    Args:
        split: "train", "val" or "test".
        indices: int64 [N], which pictures.
        img_size: (height, width); the scene is the same at every size.

    Returns:
        uint8 [N, 3, H, W] and the masks, bool [N, H, W], true on the object.
    """
    height, width = img_size
    images = np.empty((len(indices), 3, height, width), np.uint8)
    masks = np.empty((len(indices), height, width), np.bool_)
    step = max(1, _CHUNK_PIXELS // (height * width))
    title = f"embedded ({split})"
    with tqdm(total=len(indices), desc=title, unit="img", delay=2.0, leave=False) as bar:
        for start in range(0, len(indices), step):
            here = slice(start, start + step)
            images[here], masks[here] = _draw_chunk(split, indices[here], height, width)
            bar.update(len(images[here]))
    return images, masks


def _draw_chunk(
    split: str, indices: NDArray[np.int64], height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    scene = _Scene(split, indices)
    short = min(height, width)
    x, y = _axes(height, width)
    canvas = _ground(scene, x, y, short)
    canvas, masks = _paint_object(canvas, scene, indices, x, y, short)
    return _to_bytes(canvas), masks


def draw_several(
    split: str,
    ground: int,
    objects: NDArray[np.int64],
    corners: Floats,
    sides: Floats,
    *,
    img_size: tuple[int, int],
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw the objects of several pictures onto the ground of another one.

    They are recoloured to stand out from it as they do from their own. Later ones cover earlier
    ones; the masks are of whole objects.

    Args:
        split: "train", "val" or "test".
        ground: the picture whose background and strokes are taken.
        objects: int64 [n], the pictures whose objects are.
        corners: [n, 2], x and y of the upper left corner of each such picture, in pixels.
        sides: [n], the side of each, in pixels.
        img_size: (height, width) of the result.

    Returns:
        uint8 [3, H, W] and bool [n, H, W].
    """
    height, width = img_size
    scene, short = _Scene(split, np.array([ground])), min(height, width)
    x, y = _axes(height, width)
    canvas = _ground(scene, x, y, short)
    masks = np.zeros((len(objects), height, width), np.bool_)
    for number, (left, top) in enumerate(corners.tolist()):
        one, side = objects[number : number + 1], float(sides[number])
        piece = _Scene(split, one)
        piece.object_hue += scene.ground_hue - piece.ground_hue
        piece.bright_ground = scene.bright_ground
        margin = 0.1 * side  # the shadow goes beyond the picture
        rows = slice(max(0, int(top - margin)), int(top + side + margin) + 1)
        columns = slice(max(0, int(left - margin)), int(left + side + margin) + 1)
        here = (0, slice(None), rows, columns)
        # As in `draw`: pixel centres, from the middle of the object's own picture.
        own_y = (top + side / 2 - 0.5 - np.arange(height, dtype=np.float32)[rows])[:, None] / side
        own_x = (np.arange(width, dtype=np.float32)[columns] + 0.5 - left - side / 2) / side
        window, mask = _paint_object(canvas[here][None], piece, one, own_x[None], own_y, side)
        canvas[here], masks[number, rows, columns] = window[0], mask[0]
    return _to_bytes(canvas)[0], masks


def object_boxes(split: str, indices: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Where the objects of pictures lie, by their outlines; nothing is drawn.

    A tip may lie outside its picture, which then cuts it off, but `draw_several` does not.

    Returns:
        Boxes [N, 4], (x1, y1, x2, y2) from the upper left corner, y down, and areas [N]; both as
        fractions of a square picture's side.
    """
    radius, angle, x, y = _pose(_Scene(split, indices).main)
    labels = indices % len(CLASS_NAMES)
    reach, area = reaches()
    # The outline's reach to the right, up, left and down, in the frame that turned with it.
    right, up, left, down = (
        radius * reach[labels, np.rint((quarter / 4 - angle / TURN) * DIRECTIONS).astype(int)
                       % DIRECTIONS]
        for quarter in range(4)
    )  # fmt: skip
    boxes = np.stack([x - left, -y - up, x + right, -y + down], axis=1) + np.float32(0.5)
    return boxes.astype(np.float32), (area[labels] * radius * radius).astype(np.float32)


def _axes(height: int, width: int) -> tuple[Floats, Floats]:
    """x [1, W] and y [H, 1] of the pixel centres, as fractions of the short side, the origin in
    the middle, y pointing up."""
    short = min(height, width)
    y = ((height - 1) / 2 - np.arange(height, dtype=np.float32))[:, None] / short
    x = (np.arange(width, dtype=np.float32) - (width - 1) / 2)[None, :] / short
    return x, y


def _ground(scene: _Scene, x: Floats, y: Floats, short: int) -> Floats:
    """Background and strokes, [n, 3, H, W]."""
    canvas = _background(scene, y.shape[0], x.shape[1])
    for number in range(_DISTRACTORS):
        _paint_distractor(canvas, scene, number, x, y, short)
    return canvas


def _to_bytes(canvas: Floats) -> NDArray[np.uint8]:
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)


class _Scene:
    """The random numbers behind n pictures, each from its own generator."""

    def __init__(self, split: str, indices: NDArray[np.int64]) -> None:
        seed = _SPLIT_SEEDS[split]
        count = sum(grid * grid for grid in _GRIDS)
        numbers = np.empty((len(indices), 32 + 8 * _DISTRACTORS + 3 * count), np.float32)
        for row, index in enumerate(indices.tolist()):
            np.random.Generator(np.random.Philox(key=[seed, index])).random(
                out=numbers[row], dtype=np.float32
            )
        self.main, rest = numbers[:, :32], numbers[:, 32:]
        self.distractors = rest[:, : 8 * _DISTRACTORS].reshape(-1, _DISTRACTORS, 8)
        self.noise = rest[:, 8 * _DISTRACTORS :]
        # Colours: the background is calm, the object saturated, and either the one or the other
        # is bright, so the object can be told from the ground whatever the hues are.
        self.ground_hue, self.bright_ground = self.main[:, 0], self.main[:, 1] < 0.5
        self.object_hue = self.ground_hue + 0.2 + 0.6 * self.main[:, 2]

    def __len__(self) -> int:
        return len(self.main)


def _rgb(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    """[n, 3] colours from hue (in turns), saturation and value."""
    offsets = np.array([0.0, 2 / 3, 1 / 3], np.float32)
    wave = np.clip(abs((hue[:, None] + offsets) % 1 * 6 - 3) - 1, 0, 1)
    return (value[:, None] * (1 - saturation[:, None] * (1 - wave))).astype(np.float32)


def _background(scene: _Scene, height: int, width: int) -> Floats:
    """Two tones that run into each other like clouds, with a finer grain on top."""
    u = scene.main
    value = np.where(scene.bright_ground, 0.62 + 0.3 * u[:, 3], 0.18 + 0.2 * u[:, 3])
    first = _rgb(scene.ground_hue, 0.15 + 0.4 * u[:, 4], value)
    second_hue = scene.ground_hue + 0.25 * (u[:, 5] - 0.5)
    second = _rgb(second_hue, 0.15 + 0.4 * u[:, 6], value - 0.12 + 0.08 * u[:, 7])
    canvas = np.zeros((len(scene), 3, height, width), np.float32)
    start = 0
    for grid, amplitude in zip(_GRIDS, (1.0, 0.25), strict=True):
        values = scene.noise[:, start : start + 3 * grid * grid].reshape(-1, 3, grid, grid)
        start += 3 * grid * grid
        rows, columns = _smooth_upsampling(grid, height), _smooth_upsampling(grid, width)
        canvas += (rows @ values @ columns.T - 0.5) * np.float32(amplitude)
    blend = np.clip(0.5 + 1.1 * canvas[:, :1], 0, 1)
    tint = 0.10 * canvas
    canvas = first[:, :, None, None] * blend + second[:, :, None, None] * (1 - blend)
    canvas += tint
    return canvas


def _smooth_upsampling(grid: int, size: int) -> Floats:
    """[size, grid], interpolates a row of grid values smoothly."""
    position = np.linspace(0, grid - 1, size, dtype=np.float32)
    left = np.minimum(position.astype(np.int64), grid - 2)
    weight = position - left
    weight = weight * weight * (3 - 2 * weight)
    matrix = np.zeros((size, grid), np.float32)
    matrix[np.arange(size), left] = 1 - weight
    matrix[np.arange(size), left + 1] = weight
    return matrix


def _paint_distractor(
    canvas: Floats, scene: _Scene, number: int, x: Floats, y: Floats, short: int
) -> None:
    """A short stroke, as saturated as the object but much smaller."""
    u = scene.distractors[:, number]
    angle = TURN * u[:, 0]
    half_length, thickness = 0.03 + 0.12 * u[:, 1], 0.018 + 0.02 * u[:, 2]
    dx, dy = x - _column(u[:, 3] - 0.5), y - _column(u[:, 4] - 0.5)
    along = dx * _column(np.cos(angle)) + dy * _column(np.sin(angle))
    across = dy * _column(np.cos(angle)) - dx * _column(np.sin(angle))
    along -= np.clip(along, -_column(half_length), _column(half_length))
    distance = np.sqrt(along * along + across * across) - _column(thickness)
    cover = np.clip(0.5 - distance * short, 0, 1)[:, None] * _column(0.5 + 0.5 * u[:, 5])[:, None]
    colour = _rgb(u[:, 6], 0.3 + 0.6 * u[:, 7], np.where(scene.bright_ground, 0.45, 0.75))
    canvas += (colour[:, :, None, None] - canvas) * cover


def _column(values: NDArray[Any]) -> Floats:
    return values.astype(np.float32)[:, None, None]


def _paint_object(
    canvas: Floats, scene: _Scene, indices: NDArray[np.int64], x: Floats, y: Floats, short: float
) -> tuple[Floats, NDArray[np.bool_]]:
    u = scene.main
    radii, angle, centre_x, centre_y = _pose(u)
    radius = _column(radii)
    dx, dy = (x - _column(centre_x)) / radius, (y - _column(centre_y)) / radius
    own_x = dx * _column(np.cos(angle)) + dy * _column(np.sin(angle))
    own_y = dy * _column(np.cos(angle)) - dx * _column(np.sin(angle))
    distance = np.empty_like(own_x)
    labels = indices % len(CLASS_NAMES)
    for label, outline in enumerate(OUTLINES.values()):
        chosen = labels == label
        distance[chosen] = outline(own_x[chosen], own_y[chosen])
    value = np.where(scene.bright_ground, 0.25 + 0.25 * u[:, 12], 0.75 + 0.25 * u[:, 12])
    first = _rgb(scene.object_hue, 0.6 + 0.4 * u[:, 13], value)
    lighter = np.where(scene.bright_ground, value + 0.22, value - 0.28)
    second = _rgb(scene.object_hue + 0.16 * (u[:, 14] - 0.5), 0.5 + 0.5 * u[:, 15], lighter)
    texture = _texture(u, own_x, own_y)[:, None]  # [n, 1, H, W]
    colour = first[:, :, None, None] * (1 - texture) + second[:, :, None, None] * texture
    # Lit from the upper left, darker along the edge, with a soft shadow around it.
    shade = 1 + 0.14 * np.clip(dy - dx, -1.2, 1.2) - 0.35 * np.clip(1 + distance / 0.14, 0, 1)
    shadow = 1 - 0.4 * np.clip(1 - distance / 0.16, 0, 1)
    cover = np.clip(0.5 - distance * radius * short, 0, 1)[:, None]
    canvas = canvas * shadow[:, None]
    canvas += (colour * shade[:, None] - canvas) * cover
    return canvas, distance < 0


def _pose(u: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Radius, turn (up to 20 degrees either way), and the centre's x and y, each [n]."""
    return (
        0.31 + 0.11 * u[:, 8],
        (u[:, 9] - 0.5) * (TURN / 9),
        0.18 * (u[:, 10] - 0.5),
        0.18 * (u[:, 11] - 0.5),
    )


def _texture(u: Floats, x: Floats, y: Floats) -> Floats:
    """Stripes, checks, dots, rings or a plain fade: values from 0 to 1, [n, H, W]."""
    kind = (u[:, 16] * 5).astype(np.int64)
    angle = TURN * u[:, 17]
    frequency = _column(4.5 + 3.5 * u[:, 18])
    along = x * _column(np.cos(angle)) + y * _column(np.sin(angle)) + _column(u[:, 19])
    across = y * _column(np.cos(angle)) - x * _column(np.sin(angle)) + _column(u[:, 20])
    waves = np.sin(frequency * along)
    texture = np.empty_like(x)
    for number, pattern in enumerate(
        (
            lambda k: waves[k] * 2,
            lambda k: waves[k] * np.sin(frequency[k] * across[k]) * 4,
            lambda k: (waves[k] + np.sin(frequency[k] * across[k])) * 2 - 1.2,
            lambda k: np.sin(1.6 * frequency[k] * np.hypot(x[k], y[k])) * 2,
            lambda k: along[k] * 0.9,
        )
    ):
        chosen = kind == number
        texture[chosen] = np.clip(0.5 + 0.5 * pattern(chosen), 0, 1)
    return texture

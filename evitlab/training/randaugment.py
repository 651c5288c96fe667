"""RandAugment and colour jitter on batches, each image with its own operations and amounts.

Colour operations give what Pillow's give, value for value; most are a table that maps the 256
levels of a channel. Geometric operations are matrices, so that those of an image are composed
and its pixels are sampled once.

Shape legend: B images of a batch, b of those that an operation is applied to, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_APPLY_PROBABILITY = 0.5
_JITTERED = ("brightness", "contrast", "color")


@dataclass(frozen=True)
class Operation:
    """One operation, of which exactly one of `table`, `pixels` and `matrix` is given.

    Attributes:
        amount: (level from 0 to 1, sign) -> amount, all [b].
        table: (uint8 images [b, 3, H, W], amount [b]) -> uint8 [b, 3 or 1, 256].
        pixels: (uint8 images [b, 3, H, W], amount [b]) -> the images changed.
        matrix: (amount [b], height, width) -> [b, 3, 3], which takes a place in the result to its
            place in the input, in pixels from the upper left corner.
    """

    amount: Callable[[Tensor, Tensor], Tensor]
    table: Callable[[Tensor, Tensor], Tensor] | None = None
    pixels: Callable[[Tensor, Tensor], Tensor] | None = None
    matrix: Callable[[Tensor, int, int], Tensor] | None = None


@dataclass(frozen=True)
class Plan:
    """What happens to each image, in order.

    Attributes:
        kinds: int64 [n, B], positions in `OPERATIONS`; -1 for nothing.
        amounts: float32 [n, B], on the CPU like `kinds`.
    """

    kinds: Tensor
    amounts: Tensor


def autocontrast_table(images: Tensor, amount: Tensor) -> Tensor:
    """Stretch each channel to the full range."""
    # In double precision and in this order, since Pillow cuts off the fraction.
    low = images.flatten(2).amin(2, keepdim=True).double()
    high = images.flatten(2).amax(2, keepdim=True).double()
    scale = 255.0 / (high - low)
    stretched = (_ramp(images).double() * scale - low * scale).trunc().clamp(0, 255)
    return torch.where(high > low, stretched, _ramp(images).double()).to(torch.uint8)


def equalize_table(images: Tensor, amount: Tensor) -> Tensor:
    """Give each level of a channel about the same number of pixels."""
    flat = images.flatten(2).long()  # [b, 3, H * W]
    counts = flat.new_zeros(*flat.shape[:2], 256).scatter_add_(2, flat, torch.ones_like(flat))
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - last) // 255
    before = counts.cumsum(2) - counts
    spread = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, spread, _ramp(images)).to(torch.uint8)


def invert_table(images: Tensor, amount: Tensor) -> Tensor:
    return (255 - _ramp(images)).to(torch.uint8).expand(len(images), 1, 256)


def posterize_table(images: Tensor, amount: Tensor) -> Tensor:
    """Keep the upper `amount` bits."""
    step = 2 ** (8 - amount.long())[:, None, None]
    return (_ramp(images) // step * step).to(torch.uint8)


def solarize_table(images: Tensor, amount: Tensor) -> Tensor:
    """Invert from the level `amount` on."""
    ramp = _ramp(images)
    return torch.where(ramp < amount[:, None, None], ramp, 255 - ramp).to(torch.uint8)


def solarize_add_table(images: Tensor, amount: Tensor) -> Tensor:
    """Add `amount` to the darker half of the levels."""
    ramp = _ramp(images)
    added = (ramp + amount.long()[:, None, None]).clamp(max=255)
    return torch.where(ramp < 128, added, ramp).to(torch.uint8)


def brightness_table(images: Tensor, amount: Tensor) -> Tensor:
    """Multiply: 0 is black, 1 the image itself."""
    return _blend(torch.zeros_like(_ramp(images)), _ramp(images), amount[:, None, None])


def contrast_table(images: Tensor, amount: Tensor) -> Tensor:
    """Move away from the mean grey: 0 is all grey, 1 the image itself."""
    grey = _grey(images).double().mean((1, 2, 3)).add_(0.5).floor_()[:, None, None]
    return _blend(grey, _ramp(images), amount[:, None, None])


def adjust_color(images: Tensor, amount: Tensor) -> Tensor:
    """Move away from grey: 0 is greyscale, 1 the image itself."""
    return _blend(_grey(images), images, amount[:, None, None, None])


def adjust_sharpness(images: Tensor, amount: Tensor) -> Tensor:
    """Move away from the smoothed image: 0 is smooth, 1 the image itself."""
    pixels = images.float()
    inner = (..., slice(1, -1), slice(1, -1))
    smooth = pixels.clone()  # the outermost pixels stay, as in Pillow
    total = F.avg_pool2d(pixels, 3, stride=1, divisor_override=1) + 4 * pixels[inner]
    smooth[inner] = (total / 13 + 0.5).floor()
    return _blend(smooth, images, amount[:, None, None, None])


def _ramp(images: Tensor) -> Tensor:
    return torch.arange(256, device=images.device)


def _grey(images: Tensor) -> Tensor:
    """int32 [b, 1, H, W], luma as Pillow rounds it."""
    red, green, blue = images.int().split(1, dim=1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _blend(base: Tensor, values: Tensor, amount: Tensor) -> Tensor:
    base = base.float()
    return (base + amount * (values.float() - base)).clamp_(0, 255).to(torch.uint8)


def rotation(amount: Tensor, height: int, width: int) -> Tensor:
    """Turn by `amount` degrees counter-clockwise about the centre."""
    angle = amount.double() * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    return _matrix(cos, -sin, x - x * cos + y * sin, sin, cos, y - x * sin - y * cos)


def shear_x(amount: Tensor, height: int, width: int) -> Tensor:
    one, zero = _ones_zeros(amount)
    return _matrix(one, amount, zero, zero, one, zero)


def shear_y(amount: Tensor, height: int, width: int) -> Tensor:
    one, zero = _ones_zeros(amount)
    return _matrix(one, zero, zero, amount, one, zero)


def translation_x(amount: Tensor, height: int, width: int) -> Tensor:
    """Move by `amount` of the width, to the left where it is positive."""
    one, zero = _ones_zeros(amount)
    return _matrix(one, zero, amount * width, zero, one, zero)


def translation_y(amount: Tensor, height: int, width: int) -> Tensor:
    """Move by `amount` of the height, up where it is positive."""
    one, zero = _ones_zeros(amount)
    return _matrix(one, zero, zero, zero, one, amount * height)


def _ones_zeros(amount: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(amount), torch.zeros_like(amount)


def _matrix(*upper: Tensor) -> Tensor:
    """[b, 3, 3] from the two upper rows."""
    rows = torch.stack([element.double() for element in upper], 1).view(-1, 2, 3)
    last = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(len(rows), 1, 3)
    return torch.cat([rows, last], 1)


def _enhance(level: Tensor, sign: Tensor) -> Tensor:
    return (1 + sign * level * 0.9).clamp_(min=0.1)


# The fifteen of timm's "rand-...-inc1" in its order, where a higher level is always stronger.
# Amounts that are whole numbers are cut off as timm does it.
OPERATIONS = {
    "autocontrast": Operation(lambda level, sign: level, table=autocontrast_table),
    "equalize": Operation(lambda level, sign: level, table=equalize_table),
    "invert": Operation(lambda level, sign: level, table=invert_table),
    "rotate": Operation(lambda level, sign: 30 * level * sign, matrix=rotation),
    "posterize": Operation(lambda level, sign: 4 - (4 * level).trunc(), table=posterize_table),
    "solarize": Operation(lambda level, sign: 256 - (256 * level).trunc(), table=solarize_table),
    "solarize_add": Operation(lambda level, sign: (110 * level).trunc(), table=solarize_add_table),
    "color": Operation(_enhance, pixels=adjust_color),
    "contrast": Operation(_enhance, table=contrast_table),
    "brightness": Operation(_enhance, table=brightness_table),
    "sharpness": Operation(_enhance, pixels=adjust_sharpness),
    "shear_x": Operation(lambda level, sign: 0.3 * level * sign, matrix=shear_x),
    "shear_y": Operation(lambda level, sign: 0.3 * level * sign, matrix=shear_y),
    "translate_x": Operation(lambda level, sign: 0.45 * level * sign, matrix=translation_x),
    "translate_y": Operation(lambda level, sign: 0.45 * level * sign, matrix=translation_y),
}
_NAMES = tuple(OPERATIONS)


def draw_randaugment(
    count: int, *, ops: int, magnitude: float, std: float, generator: torch.Generator
) -> Plan:
    """Choose operations for each image; each is then left out with probability one half.

    Args:
        count: B.
        ops: operations per image; one may come twice.
        magnitude: mean level, on timm's scale from 0 to 10.
        std: standard deviation of the level, on the same scale.
        generator: on the CPU.
    """
    shape = (ops, count)
    kinds = torch.randint(len(_NAMES), shape, generator=generator)
    applied = torch.rand(shape, generator=generator) < _APPLY_PROBABILITY
    levels = (magnitude + std * torch.randn(shape, generator=generator)).clamp_(0, 10) / 10
    signs = torch.where(torch.rand(shape, generator=generator) < 0.5, -1.0, 1.0)
    amounts = torch.empty(shape)
    for kind, name in enumerate(_NAMES):
        chosen = kinds == kind
        amounts[chosen] = OPERATIONS[name].amount(levels[chosen], signs[chosen])
    return Plan(torch.where(applied, kinds, -1), amounts)


def draw_jitter(count: int, *, strength: float, generator: torch.Generator) -> Plan:
    """Brightness, contrast and colour in random order, by factors from 1 - strength on.

    Args:
        count: B.
        strength: factors are uniform in 1 - strength (0 at least) to 1 + strength.
        generator: on the CPU.
    """
    shape = (len(_JITTERED), count)
    order = torch.rand(shape, generator=generator).argsort(0)
    kinds = torch.tensor([_NAMES.index(name) for name in _JITTERED])[order]
    low, high = max(0.0, 1 - strength), 1 + strength
    return Plan(kinds, low + (high - low) * torch.rand(shape, generator=generator))


def apply_colors(images: Tensor, plan: Plan) -> Tensor:
    """Apply the colour operations of a plan, in its order.

    Args:
        images: uint8 [B, 3, H, W]; not modified.
        plan: its geometric operations are ignored, see `compose_geometry`.
    """
    images = images.clone()
    for kinds, amounts in zip(plan.kinds, plan.amounts, strict=True):
        tables: list[Tensor] = []
        tabled: list[Tensor] = []
        for kind, name in enumerate(_NAMES):
            operation = OPERATIONS[name]
            chosen = (kinds == kind).nonzero().squeeze(1)
            if operation.matrix or not len(chosen):
                continue
            # Sent without waiting: the choice was made on the CPU, so the GPU is never asked.
            where = chosen.to(images.device, non_blocking=True)
            amount = amounts[chosen].to(images.device, non_blocking=True)
            some = images.index_select(0, where)
            if operation.pixels:
                images.index_copy_(0, where, operation.pixels(some, amount))
            elif operation.table:
                tables.append(operation.table(some, amount).expand(len(chosen), 3, 256))
                tabled.append(where)
        if tables:
            where = torch.cat(tabled)
            some = images.index_select(0, where)
            looked_up = torch.cat(tables).gather(2, some.flatten(2).long())
            images.index_copy_(0, where, looked_up.view_as(some))
    return images


def compose_geometry(plan: Plan, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The geometric operations of a plan as one matrix per image.

    Args:
        plan: its colour operations are ignored.
        size: (height, width) of the images.

    Returns:
        float64 [B, 3, 3] from places in the result to places in the input, in pixels, and bool
        [B], true where that is not the identity; both on the CPU.
    """
    count = plan.kinds.shape[1]
    total = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    moved = torch.zeros(count, dtype=torch.bool)
    for kinds, amounts in zip(plan.kinds, plan.amounts, strict=True):
        for kind, name in enumerate(_NAMES):
            matrix = OPERATIONS[name].matrix
            chosen = kinds == kind
            if matrix and bool(chosen.any()):
                # A place in the result of the last operation is looked up in that of the one
                # before, so the first matrix stands on the left.
                total[chosen] = total[chosen] @ matrix(amounts[chosen], *size)
                moved |= chosen
    return total, moved

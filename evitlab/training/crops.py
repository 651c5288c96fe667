"""Crops, flips and warps of batches: where each pixel of the result comes from.

All take and give uint8, and sample an image once, whatever is done to it.

Shape legend: B images of a batch, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_LOG_CROP_ASPECTS = (math.log(3 / 4), math.log(4 / 3))
_CROP_ATTEMPTS = 10


def pad_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Cut a window of the original size out of the zero-padded images, each at its own offset.

    Args:
        images: uint8 [B, 3, H, W].
        padding: pixels added on each side.
        generator: on the CPU.
    """
    count, channels, height, width = images.shape
    span = 2 * padding + 1
    down, right = torch.randint(span, (2, count, 1, 1), generator=generator)
    padded = F.pad(images, (padding,) * 4)
    wide, tall = width + 2 * padding, height + 2 * padding
    # Every run of `width` bytes is a row of this view, so rows are copied whole: ten times faster
    # than picking pixels.
    runs = padded.flatten().as_strided((padded.numel() - width + 1, width), (1, 1))
    image, channel = torch.arange(count)[:, None, None], torch.arange(channels)[:, None]
    starts = ((image * channels + channel) * tall + torch.arange(height) + down) * wide + right
    return runs.index_select(0, starts.flatten().to(images.device)).view_as(images)


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the images where `flipped`, bool [B] on the CPU, is true."""
    both = torch.stack([images, images.flip(-1)]).flatten(0, 1)  # [2 * B, 3, H, W]
    chosen = torch.arange(len(images)) + len(images) * flipped
    return both.index_select(0, chosen.to(images.device))


def resized_boxes(
    count: int, size: tuple[int, int], scale: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Crops of random area, shape (3:4 to 4:3) and place.

    Args:
        count: B.
        size: (height, width) of the images.
        scale: share of the area, least and most.
        generator: on the CPU.

    Returns:
        float32 [B, 4]: top, left, height, width in pixels.
    """
    height, width = size
    draws = (_CROP_ATTEMPTS, count)
    areas = uniform(draws, scale, generator) * (height * width)
    aspects = uniform(draws, _LOG_CROP_ASPECTS, generator).exp()
    tall, wide = (areas / aspects).sqrt(), (areas * aspects).sqrt()
    fits = (tall <= height) & (wide <= width)
    # The first that fits, and where none does (a very long image), the first cut to the image.
    first = fits.float().argmax(0, keepdim=True)
    tall = tall.gather(0, first)[0].clamp(max=height)
    wide = wide.gather(0, first)[0].clamp(max=width)
    places = torch.rand(2, count, generator=generator)
    return torch.stack([places[0] * (height - tall), places[1] * (width - wide), tall, wide], 1)


def warp(
    images: Tensor,
    *,
    boxes: Tensor | None = None,
    flipped: Tensor | None = None,
    matrices: Tensor | None = None,
    fill: Sequence[float] = (0.0, 0.0, 0.0),
) -> Tensor:
    """Crop to boxes and resize, then flip, then map by matrices, sampling bilinearly once.

    Args:
        images: uint8 [B, 3, H, W].
        boxes: [B, 4] as from `resized_boxes`; None for the whole image.
        flipped: bool [B].
        matrices: [B, 3, 3] as from `compose_geometry`.
        fill: per channel, in units of the full range: what shows beyond the edge of the crop.

    Returns:
        uint8 [B, 3, H, W].
    """
    height, width = images.shape[2:]
    device = images.device
    x = (torch.arange(width, device=device) + 0.5) * (2 / width) - 1  # in -1..1, as grid_sample's
    y = ((torch.arange(height, device=device) + 0.5) * (2 / height) - 1)[:, None]
    inside = None
    if matrices is not None:
        to_pixels = torch.tensor(
            [[width / 2, 0, width / 2], [0, height / 2, height / 2], [0, 0, 1]], dtype=torch.float64
        )
        m = (to_pixels.inverse() @ matrices @ to_pixels).float().to(device)[:, :, :, None, None]
        (a, b, c), (d, e, f) = m[:, 0].unbind(1), m[:, 1].unbind(1)
        x, y = a * x + b * y + c, d * x + e * y + f
        inside = (x.abs() <= 1) & (y.abs() <= 1)  # [B, H, W]
    if flipped is not None:
        x = x * torch.where(flipped, -1.0, 1.0).to(device)[:, None, None]
    if boxes is not None:
        top, left, tall, wide = boxes.to(device)[:, :, None, None].unbind(1)
        x = x * (wide / width) + (2 * left + wide) / width - 1
        y = y * (tall / height) + (2 * top + tall) / height - 1
    shape = (len(images), height, width)
    grid = torch.stack([x.expand(shape), y.expand(shape)], -1)
    sampled = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    if inside is not None:
        outside = torch.tensor(fill, device=device).mul_(255)[:, None, None]
        sampled = torch.where(inside[:, None], sampled, outside)
    return sampled.round_().to(torch.uint8)


def uniform(
    shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """float32 of the given shape, uniform within the bounds."""
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator)

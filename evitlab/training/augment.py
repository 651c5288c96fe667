"""Augmentation of whole batches on the images' device.

Every image gets its own parameters. They are drawn on the CPU, all from the generator that the
caller passes in, so a run that restores the generator continues bit for bit. Pixels stay uint8
until they are normalised.

Shape legend: B images, 3 channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images / 255 - mean) / std, channel by channel.

    Args:
        images: uint8 [B, 3, H, W].
        mean: per channel, in units of the full range.
        std: per channel, in units of the full range.

    Returns:
        float32 [B, 3, H, W] on the same device.
    """
    shift = torch.tensor(mean, device=images.device).mul_(255.0)[:, None, None]
    scale = torch.tensor(std, device=images.device).mul_(255.0).reciprocal_()[:, None, None]
    return images.to(torch.float32).sub_(shift).mul_(scale)


class AugmentSettings(Protocol):
    """What `Augment` reads of a recipe; `evitlab.Recipe` documents each field."""

    @property
    def crop(self) -> str: ...
    @property
    def crop_padding(self) -> int: ...
    @property
    def crop_scale(self) -> tuple[float, float]: ...
    @property
    def flip(self) -> float: ...
    @property
    def color_jitter(self) -> float: ...
    @property
    def randaugment_ops(self) -> int: ...
    @property
    def randaugment_magnitude(self) -> float: ...
    @property
    def randaugment_std(self) -> float: ...
    @property
    def mixup_alpha(self) -> float: ...
    @property
    def cutmix_alpha(self) -> float: ...
    @property
    def mix_prob(self) -> float: ...
    @property
    def switch_prob(self) -> float: ...
    @property
    def random_erasing(self) -> float: ...
    @property
    def label_smoothing(self) -> float: ...


def uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """float32 [count], uniform in [low, high)."""
    return torch.rand(count, generator=generator).mul_(high - low).add_(low)


def beta(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """float64 [count] from Beta(alpha, alpha)."""
    # Joehnk's and Cheng's rejections need a loop; the ratio of two gammas does not, and torch has
    # a gamma sampler that takes a generator.
    shape = torch.full((2, count), alpha, dtype=torch.float64)
    gamma = torch._standard_gamma(shape, generator=generator).clamp_(min=1e-300)
    return gamma[0] / gamma.sum(0)


def pad_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Cut a window of the original size out of the zero-padded images, each at its own offset.

    Args:
        images: uint8 [B, 3, H, W].
        padding: pixels added on each side.
    """
    count, _, height, width = images.shape
    span = 2 * padding + 1
    offsets = torch.randint(span * span, (count,), generator=generator)
    padded = F.pad(images, (padding,) * 4)
    # Every window is a view, so picking one per image copies each pixel once.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, 3, span, span, H, W]
    rows, columns = (offsets // span).to(images.device), (offsets % span).to(images.device)
    return windows[torch.arange(count, device=images.device), :, rows, columns]


def random_flip(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with the given probability."""
    flipped = torch.rand(len(images), generator=generator) < probability
    return torch.where(flipped.to(images.device)[:, None, None, None], images.flip(-1), images)


def random_boxes(
    areas: Tensor, aspects: Tensor, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Boxes of the given areas and aspect ratios, placed anywhere inside the image.

    Args:
        areas: [B], fraction of the image.
        aspects: [B], height over width.
        size: (height, width) of the image.

    Returns:
        int64 [B, 4]: top, bottom, left, right (bottom and right exclusive).
    """
    height, width = size
    pixels = areas * (height * width)
    box_h = (pixels * aspects).sqrt().round().clamp(max=height)
    box_w = (pixels / aspects).sqrt().round().clamp(max=width)
    top = (torch.rand(len(areas), generator=generator) * (height - box_h + 1)).floor()
    left = (torch.rand(len(areas), generator=generator) * (width - box_w + 1)).floor()
    return torch.stack([top, top + box_h, left, left + box_w], 1).long()


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """bool [B, H, W], true inside each box of `random_boxes`."""
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    rows, columns = torch.arange(size[0]), torch.arange(size[1])
    inside_rows = (rows >= top) & (rows < bottom)  # [B, H]
    inside_columns = (columns >= left) & (columns < right)  # [B, W]
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def random_erasing(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Overwrite one box per chosen image with standard normal noise, in place.

    Boxes cover 2 % to a third of the image with aspect ratios from 0.3 to 1 / 0.3.

    Args:
        images: normalised float [B, 3, H, W].
        probability: that an image is chosen.
    """
    count, channels, height, width = images.shape
    chosen = torch.rand(count, generator=generator) < probability
    areas = uniform(count, 0.02, 1 / 3, generator)
    limit = torch.log(torch.tensor(0.3)).item()
    aspects = uniform(count, limit, -limit, generator).exp_()
    boxes = random_boxes(areas, aspects, (height, width), generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    # The boxes are known on the CPU, so finding their pixels there spares a GPU synchronisation.
    where = box_masks(boxes, (height, width)).logical_and_(chosen[:, None, None])
    picked = where.flatten().nonzero().squeeze(1).to(images.device)
    noise_generator = torch.Generator(images.device).manual_seed(seed)
    noise = torch.randn(
        (len(picked), channels), generator=noise_generator, device=images.device, dtype=images.dtype
    )
    # Pixel p of image b starts at b * 3 * H * W + p, and its channels lie H * W apart.
    area = height * width
    first = picked // area * (channels * area) + picked % area
    flat = images.view(-1)
    for channel in range(channels):
        flat[first + channel * area] = noise[:, channel]
    return images


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """float32 [B, K]: smoothing / K everywhere, plus 1 - smoothing at the label."""
    targets = torch.full(
        (len(labels), num_classes), smoothing / num_classes, device=labels.device
    )
    return targets.scatter_(1, labels[:, None], 1 - smoothing + smoothing / num_classes)


class Augment:
    """The augmentation of a recipe, as a function of a batch.

    Order: crop, flip, normalise, random erasing, then mixup or cutmix with the batch in a random
    order. Each image draws its own mixing weight and chooses between mixup and cutmix itself.

    Args:
        recipe: anything with the fields of `AugmentSettings`.
        num_classes: K, the width of the targets.
        mean: per channel, for `normalize`.
        std: per channel, for `normalize`.

    Raises:
        ValueError: `recipe.crop` is unknown.
    """

    def __init__(
        self,
        recipe: AugmentSettings,
        *,
        num_classes: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if recipe.crop not in ("none", "pad", "resized"):
            raise ValueError(f"crop: expected 'none', 'pad' or 'resized', got {recipe.crop!r}")
        self.recipe = recipe
        self.num_classes = num_classes
        self.mean = tuple(mean)
        self.std = tuple(std)

    def __call__(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Augment one batch.

        Args:
            images: uint8 [B, 3, H, W]; not modified.
            labels: int64 [B] on the same device.
            generator: on the CPU; the only source of randomness.

        Returns:
            float32 [B, 3, H, W], normalised, and float32 targets [B, K] whose rows sum to 1.
        """
        recipe = self.recipe
        if recipe.crop == "pad":
            images = pad_crop(images, recipe.crop_padding, generator)
        if recipe.flip > 0:
            images = random_flip(images, recipe.flip, generator)
        pixels = normalize(images, self.mean, self.std)
        if recipe.random_erasing > 0:
            pixels = random_erasing(pixels, recipe.random_erasing, generator)
        targets = smooth_targets(labels, self.num_classes, recipe.label_smoothing)
        if (recipe.mixup_alpha > 0 or recipe.cutmix_alpha > 0) and recipe.mix_prob > 0:
            pixels, targets = self._mix(pixels, targets, generator)
        return pixels, targets

    def _mix(
        self, pixels: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        recipe = self.recipe
        count, _, height, width = pixels.shape
        mixed = torch.rand(count, generator=generator) < recipe.mix_prob
        if recipe.mixup_alpha > 0 and recipe.cutmix_alpha > 0:
            cut = torch.rand(count, generator=generator) < recipe.switch_prob
        else:
            cut = torch.full((count,), recipe.cutmix_alpha > 0)
        keep = torch.ones(count, dtype=torch.float64)  # the share of the own image, [B]
        if recipe.mixup_alpha > 0:
            keep = torch.where(cut, keep, beta(count, recipe.mixup_alpha, generator))
        weights = keep[:, None, None].expand(count, height, width)
        if recipe.cutmix_alpha > 0:
            pasted = 1 - beta(count, recipe.cutmix_alpha, generator)
            boxes = random_boxes(pasted, torch.full_like(pasted, height / width), (height, width),
                                 generator)
            inside = box_masks(boxes, (height, width)) & cut[:, None, None]
            weights = torch.where(inside, 0.0, weights)
        weights = torch.where(mixed[:, None, None], weights, 1.0)
        partner = torch.randperm(count, generator=generator).to(pixels.device)
        # The weight that counts is the one of the pixels, not the one that was drawn: boxes have
        # whole pixels.
        share = weights.mean((1, 2)).to(targets)[:, None]
        pixels = torch.lerp(pixels[partner], pixels, weights.to(pixels)[:, None])
        return pixels, torch.lerp(targets[partner], targets, share)

"""Augmentation of whole batches on the images' device.

Every image gets its own parameters. They are drawn on the CPU, all from the generator that the
caller passes in, so a run that restores the generator continues bit for bit. Pixels stay uint8
until they are normalised.

Shape legend: B images of a batch, H x W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evitlab.training.crops import flip, pad_crop, resized_boxes, uniform, warp
from evitlab.training.randaugment import (
    Plan,
    apply_colors,
    compose_geometry,
    draw_jitter,
    draw_randaugment,
)
from evitlab.training.recipe import Recipe

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_ERASED_AREAS = (0.02, 1 / 3)
_LOG_ERASED_ASPECTS = (math.log(0.3), -math.log(0.3))


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images / 255 - mean) / std, channel by channel.

    Args:
        images: uint8 [B, 3, H, W].
        mean: per channel, in units of the full range.
        std: per channel, in units of the full range.

    Returns:
        float32 [B, 3, H, W] on the same device.
    """
    shift = torch.tensor(mean).mul_(255)[:, None, None].to(images.device)
    scale = torch.tensor(std).mul_(255).reciprocal_()[:, None, None].to(images.device)
    return images.float().sub_(shift).mul_(scale)


class Augment:
    """The augmentation of a recipe, as a function of a batch.

    Order: crop, flip, RandAugment or colour jitter, normalisation, random erasing, and at last
    mixup or cutmix with the batch in random order. As in timm, colour jitter is left out where
    RandAugment is on; unlike there, each image draws its own mixing weight and chooses between
    mixup and cutmix itself, and the geometric operations come before those on colours.

    Args:
        recipe: its augmentation fields are read.
        num_classes: K, the width of the targets.
        mean: per channel, for `normalize`; also what shows beyond the image's edge.
        std: per channel, for `normalize`.

    Paper: Section 4.1; the official code's timm settings are the recipe "imagenet".
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        num_classes: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
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
        plan = self._draw_plan(len(images), generator)
        images = self._move(images, plan, generator)
        if plan:
            images = apply_colors(images, plan)
        pixels = normalize(images, self.mean, self.std)
        if recipe.random_erasing > 0:
            erase(pixels, recipe.random_erasing, generator)
        targets = smooth_targets(labels, self.num_classes, recipe.label_smoothing)
        if recipe.mix_prob > 0 and (recipe.mixup_alpha > 0 or recipe.cutmix_alpha > 0):
            return mix(
                pixels,
                targets,
                mixup_alpha=recipe.mixup_alpha,
                cutmix_alpha=recipe.cutmix_alpha,
                probability=recipe.mix_prob,
                cutmix_share=recipe.switch_prob,
                generator=generator,
            )
        return pixels, targets

    def _draw_plan(self, count: int, generator: torch.Generator) -> Plan | None:
        recipe = self.recipe
        if recipe.randaugment_ops > 0:
            return draw_randaugment(
                count,
                ops=recipe.randaugment_ops,
                magnitude=recipe.randaugment_magnitude,
                std=recipe.randaugment_std,
                generator=generator,
            )
        if recipe.color_jitter > 0:
            return draw_jitter(count, strength=recipe.color_jitter, generator=generator)
        return None

    def _move(self, images: Tensor, plan: Plan | None, generator: torch.Generator) -> Tensor:
        """Crop, flip and the geometric operations, each pixel being sampled once."""
        recipe = self.recipe
        count, _, height, width = images.shape
        boxes = None
        if recipe.crop == "pad":
            images = pad_crop(images, recipe.crop_padding, generator)
        elif recipe.crop == "resized":
            boxes = resized_boxes(count, (height, width), recipe.crop_scale, generator)
        flipped = None
        if recipe.flip > 0:
            flipped = torch.rand(count, generator=generator) < recipe.flip
        if boxes is None and flipped is not None:
            images, flipped = flip(images, flipped), None
        matrices, moved = (None, None) if plan is None else compose_geometry(plan, (height, width))
        if boxes is not None:
            return warp(images, boxes=boxes, flipped=flipped, matrices=matrices, fill=self.mean)
        if matrices is not None and moved is not None and bool(moved.any()):
            where = moved.nonzero().squeeze(1)
            warped = warp(images[where.to(images.device)], matrices=matrices[where], fill=self.mean)
            return images.index_copy(0, where.to(images.device), warped)
        return images


def erase(pixels: Tensor, probability: float, generator: torch.Generator) -> None:
    """Overwrite one box per chosen image with standard normal noise, in place.

    Boxes cover 2 % to a third of the image, with aspect ratios from 0.3 to 1 / 0.3.

    Args:
        pixels: normalised float [B, 3, H, W].
        probability: that an image is chosen.
        generator: on the CPU; the noise comes from a generator on the device, seeded by it.
    """
    count, channels, height, width = pixels.shape
    chosen = (torch.rand(count, generator=generator) < probability).nonzero()
    areas = uniform((len(chosen),), _ERASED_AREAS, generator)
    aspects = uniform((len(chosen),), _LOG_ERASED_ASPECTS, generator).exp()
    seed = int(torch.randint(2**62, (), generator=generator))
    boxes = random_boxes(areas, aspects, (height, width), generator)
    # Found on the CPU, where the boxes are, so that the GPU need not be asked how many there are.
    picked = box_masks(boxes, (height, width)).flatten(1).nonzero()
    image, place = chosen[picked[:, 0], 0], picked[:, 1]
    first = (image * (channels * height * width) + place).to(pixels.device)
    noise = torch.randn(
        (channels, len(first)),
        generator=torch.Generator(pixels.device).manual_seed(seed),
        device=pixels.device,
    )
    flat = pixels.reshape(-1)
    for channel in range(channels):
        flat.index_copy_(0, first + channel * (height * width), noise[channel])
    if not pixels.is_contiguous():  # channels_last, say: `flat` is then a copy
        pixels.copy_(flat.view(pixels.shape))


def random_boxes(
    areas: Tensor, aspects: Tensor, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Boxes in whole pixels, anywhere inside the image, cut down where they would not fit.

    Args:
        areas: [B], share of the image.
        aspects: [B], height over width.
        size: (height, width) of the image.
        generator: on the CPU.

    Returns:
        int64 [B, 4]: top, bottom, left, right (bottom and right exclusive).
    """
    height, width = size
    tall = (areas * aspects * (height * width)).sqrt().round().clamp(max=height)
    wide = (areas / aspects * (height * width)).sqrt().round().clamp(max=width)
    places = torch.rand(2, len(areas), generator=generator)
    top = (places[0] * (height - tall + 1)).floor()
    left = (places[1] * (width - wide + 1)).floor()
    return torch.stack([top, top + tall, left, left + wide], 1).long()


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """bool [B, H, W], true inside each box of `random_boxes`."""
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    rows, columns = torch.arange(size[0]), torch.arange(size[1])
    inside_rows = (rows >= top) & (rows < bottom)  # [B, H]
    inside_columns = (columns >= left) & (columns < right)  # [B, W]
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """float32 [B, K]: smoothing / K everywhere, and 1 - smoothing more at the label."""
    shape = (len(labels), num_classes)
    targets = torch.full(shape, smoothing / num_classes, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - smoothing + smoothing / num_classes)


def mix(
    pixels: Tensor,
    targets: Tensor,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    probability: float,
    cutmix_share: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Mixup or cutmix of each image with another one, and of the targets in proportion.

    Args:
        pixels: float [B, 3, H, W].
        targets: float [B, K].
        mixup_alpha: weights come from Beta(alpha, alpha); 0 for no mixup.
        cutmix_alpha: pasted areas come from Beta(alpha, alpha); 0 for no cutmix.
        probability: that an image is mixed at all.
        cutmix_share: share of cutmix where both are on.
        generator: on the CPU.
    """
    count, _, height, width = pixels.shape
    device = pixels.device
    # numpy has a Beta that takes a generator, torch has none.
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    mixed = torch.rand(count, generator=generator) < probability
    cut = torch.rand(count, generator=generator) < cutmix_share
    if not (mixup_alpha > 0 and cutmix_alpha > 0):
        cut = torch.full((count,), cutmix_alpha > 0)
    own = torch.ones(count)  # the weight of the image itself
    if mixup_alpha > 0:
        drawn = torch.from_numpy(rng.beta(mixup_alpha, mixup_alpha, count)).float()
        own = torch.where(mixed & ~cut, drawn, own)
    weights = own.to(device)[:, None, None, None]  # [B, 1, 1 or H, 1 or W]
    if cutmix_alpha > 0:
        areas = torch.from_numpy(rng.beta(cutmix_alpha, cutmix_alpha, count)).float()
        square = torch.full((count,), height / width)  # pasted boxes have the image's shape
        boxes = random_boxes(areas, square, (height, width), generator)
        boxes *= (mixed & cut)[:, None]  # empty where nothing is pasted
        inside = box_masks(boxes, (height, width)).to(device)[:, None]
        weights = torch.where(inside, 0.0, weights)
        # What counts is the area that was pasted, in whole pixels, not the one that was drawn.
        top, bottom, left, right = boxes.unbind(1)
        own = own * (1 - (bottom - top) * (right - left) / (height * width))
    partner = torch.randperm(count, generator=generator).to(device)
    pixels = torch.lerp(pixels.index_select(0, partner), pixels, weights)
    share = own.to(device)[:, None]
    return pixels, torch.lerp(targets.index_select(0, partner), targets, share)

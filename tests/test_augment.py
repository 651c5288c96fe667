"""Augmentation: each operation against Pillow or by hand, then the laws of the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import timm.data.auto_augment as timm_ops
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional as F

from evitlab.training import augment as aug
from evitlab.training import crops
from evitlab.training import randaugment as ra
from evitlab.training.augment import IMAGENET_MEAN, IMAGENET_STD, Augment, normalize
from evitlab.training.recipe import RECIPES, Recipe

OFF = Recipe(epochs=1, batch_size=8, lr=1e-3, flip=0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int = 8, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def smooth_images(count: int = 4, height: int = 24, width: int = 32) -> Tensor:
    """Without sharp edges, so that a place a hair off gives nearly the same value."""
    coarse = torch.rand(count, 3, 4, 4, generator=generator(1)) * 255
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)


def telling_images() -> Tensor:
    """Noise, a fade, one grey, two levels, a dark and a bright image: where formulas differ."""
    fade = torch.arange(256, dtype=torch.uint8).repeat(12).reshape(1, 3, 32, 32)
    grey = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    two = (random_images(1, seed=3) > 127).to(torch.uint8) * 90 + 13
    dark, bright = random_images(2, seed=4) // 5
    noise = random_images(2, seed=5)
    return torch.cat([noise, fade, grey, two, dark[None], bright[None] + 200])


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def through_plan(images: Tensor, name: str, amount: float) -> Tensor:
    kinds = torch.full((1, len(images)), list(ra.OPERATIONS).index(name))
    return ra.apply_colors(images, ra.Plan(kinds, torch.full((1, len(images)), amount)))


# Normalisation and targets


def test_normalize_by_hand() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    result = normalize(images, (0.5, 0.2, 0.0), (0.5, 0.1, 0.25))
    assert torch.allclose(result.flatten(), torch.tensor([-1.0, 0.0, 4.0]), atol=1e-6)
    assert result.dtype == torch.float32


def test_smoothed_targets_by_hand() -> None:
    targets = aug.smooth_targets(torch.tensor([2, 0]), 4, 0.1)
    expected = torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]])
    assert torch.allclose(targets, expected)


def test_all_off_is_normalisation() -> None:
    images, labels = random_images(), torch.arange(8)
    pixels, targets = Augment(OFF, num_classes=10)(images, labels, generator())
    assert torch.equal(pixels, normalize(images, IMAGENET_MEAN, IMAGENET_STD))
    assert torch.equal(targets, F.one_hot(labels, 10).float())


# Operations on colours


@pytest.mark.parametrize(
    ("name", "amounts", "pillow"),
    [
        ("autocontrast", [0], lambda image, _: ImageOps.autocontrast(image)),
        ("equalize", [0], lambda image, _: ImageOps.equalize(image)),
        ("invert", [0], lambda image, _: ImageOps.invert(image)),
        ("posterize", [1, 3, 4, 8], lambda i, bits: timm_ops.posterize(i, int(bits))),
        ("solarize", [0, 26, 128, 256], lambda image, level: ImageOps.solarize(image, level)),
        ("solarize_add", [0, 50, 99, 128], lambda i, add: timm_ops.solarize_add(i, int(add))),
        ("color", [0.1, 0.6, 1, 1.83], lambda i, f: ImageEnhance.Color(i).enhance(f)),
        ("contrast", [0.1, 0.6, 1, 1.83], lambda i, f: ImageEnhance.Contrast(i).enhance(f)),
        ("brightness", [0.1, 0.6, 1, 1.83], lambda i, f: ImageEnhance.Brightness(i).enhance(f)),
        ("sharpness", [0.1, 0.6, 1, 1.83], lambda i, f: ImageEnhance.Sharpness(i).enhance(f)),
    ],
)
def test_color_operation_equals_pillow(
    name: str, amounts: list[float], pillow: Callable[..., Image.Image]
) -> None:
    images = telling_images()
    for amount in amounts:
        ours = through_plan(images, name, amount)
        theirs = torch.stack([from_pil(pillow(to_pil(image), amount)) for image in images])
        wrong = (ours != theirs).flatten(1).any(1).nonzero().flatten().tolist()
        assert not wrong, f"{name} by {amount} differs from Pillow on images {wrong}"


def test_operations_apply_in_the_order_of_the_plan() -> None:
    images = random_images(2)
    names = list(ra.OPERATIONS)
    invert, solarize = names.index("invert"), names.index("solarize")
    plan = ra.Plan(torch.tensor([[invert, solarize], [solarize, invert]]), torch.full((2, 2), 100))
    one_way = through_plan(through_plan(images, "invert", 100), "solarize", 100)[0]
    other_way = through_plan(through_plan(images, "solarize", 100), "invert", 100)[1]
    assert torch.equal(ra.apply_colors(images, plan), torch.stack([one_way, other_way]))


# Operations on places


@pytest.mark.parametrize(
    ("name", "amount", "pillow"),
    [
        ("rotate", 17.0, timm_ops.rotate),
        ("rotate", -30.0, timm_ops.rotate),
        ("shear_x", 0.21, timm_ops.shear_x),
        ("shear_y", -0.3, timm_ops.shear_y),
        ("translate_x", 0.33, timm_ops.translate_x_rel),
        ("translate_y", -0.45, timm_ops.translate_y_rel),
    ],
)
def test_geometric_operation_equals_pillow(
    name: str, amount: float, pillow: Callable[..., Image.Image]
) -> None:
    images = smooth_images()
    kinds = torch.full((1, len(images)), list(ra.OPERATIONS).index(name))
    plan = ra.Plan(kinds, torch.full((1, len(images)), amount))
    matrices, moved = ra.compose_geometry(plan, (24, 32))
    ours = crops.warp(images, matrices=matrices, fill=(1.0, 0.0, 0.0))
    theirs = torch.stack(
        [
            from_pil(
                pillow(
                    to_pil(image), amount, resample=Image.Resampling.BILINEAR, fillcolor=(255, 0, 0)
                )
            )
            for image in images
        ]
    )
    assert moved.all()
    off = (ours.int() - theirs.int()).abs() > 2
    assert off.float().mean() < 0.002, f"{name}: {int(off.sum())} values differ by more than 2"


def test_whole_pixel_translation_by_hand() -> None:
    images = random_images(1, 4, 4)
    matrices = ra.translation_x(torch.tensor([0.25]), 4, 4)
    moved = crops.warp(images, matrices=matrices, fill=(0.2, 0.4, 0.6))
    assert torch.equal(moved[..., :3], images[..., 1:])
    assert moved[0, :, :, 3].float().unique(dim=1).flatten().tolist() == [51, 102, 153]


def test_composed_geometry_is_one_operation_after_the_other() -> None:
    images = random_images(3, 8, 8)
    names = list(ra.OPERATIONS)
    kinds = torch.tensor([names.index("translate_x"), names.index("rotate")])[:, None].repeat(1, 3)
    amounts = torch.tensor([0.25, 90.0])[:, None].repeat(1, 3)
    matrices, _ = ra.compose_geometry(ra.Plan(kinds, amounts), (8, 8))
    shifted = torch.zeros_like(images)
    shifted[..., :6] = images[..., 2:]
    assert torch.equal(crops.warp(images, matrices=matrices), shifted.rot90(1, (2, 3)))


def test_levels_equal_timms() -> None:
    to_timm = {"translate_x": "TranslateXRel", "translate_y": "TranslateYRel"}
    stronger = {"posterize", "solarize", "color", "contrast", "brightness", "sharpness"}
    for name, operation in ra.OPERATIONS.items():
        timm_name = to_timm.get(name) or name.title().replace("_", "")
        timm_name = {"Autocontrast": "AutoContrast"}.get(timm_name, timm_name)
        timm_name += "Increasing" if name in stronger else ""
        assert timm_name in timm_ops._RAND_INCREASING_TRANSFORMS
        to_amount = timm_ops.LEVEL_TO_ARG[timm_name]
        if to_amount is None:
            continue
        for level in (0.0, 3.3, 9.0, 10.0):
            drawn = [float(to_amount(level, {})[0]) for _ in range(40)]  # timm draws the sign
            levels, signs = torch.tensor([level, level]) / 10, torch.tensor([-1.0, 1.0])
            ours = sorted(operation.amount(levels, signs).tolist())
            assert np.allclose(ours, [min(drawn), max(drawn)], atol=1e-5), f"{name} at {level}"


def test_randaugment_draws_every_operation_and_applies_half() -> None:
    plan = ra.draw_randaugment(4000, ops=2, magnitude=9.0, std=0.5, generator=generator())
    counts = torch.bincount(plan.kinds.flatten() + 1, minlength=len(ra.OPERATIONS) + 1)
    assert abs(counts[0] / 8000 - 0.5) < 0.03
    assert (counts[1:] > 0.7 * 4000 / len(ra.OPERATIONS)).all()
    rotations = plan.amounts[plan.kinds == list(ra.OPERATIONS).index("rotate")]
    assert 20 < rotations.abs().min() and rotations.abs().max() <= 30
    assert 0.3 < (rotations > 0).float().mean() < 0.7


def test_jitter_uses_each_operation_once_per_image() -> None:
    plan = ra.draw_jitter(300, strength=0.4, generator=generator())
    expected = sorted(list(ra.OPERATIONS).index(n) for n in ("brightness", "contrast", "color"))
    assert plan.kinds.sort(0).values.T.tolist() == [expected] * 300
    assert len(set(map(tuple, plan.kinds.T.tolist()))) == 6, "all orders occur"
    assert 0.6 <= plan.amounts.min() < 0.65 and 1.35 < plan.amounts.max() <= 1.4


# Crops and flips


def test_pad_crop_gives_windows_of_the_padded_images() -> None:
    images = random_images(200, 6, 8)
    cropped = crops.pad_crop(images, 2, generator())
    padded = F.pad(images, (2, 2, 2, 2))
    seen = set()
    for image, result in zip(padded, cropped, strict=True):
        found = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if torch.equal(image[:, down : down + 6, right : right + 8], result)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 25, "every offset occurs among 200 images"


def test_pad_crop_without_padding_changes_nothing() -> None:
    images = random_images()
    assert torch.equal(crops.pad_crop(images, 0, generator()), images)


def test_flip_mirrors_the_chosen_images() -> None:
    images = torch.arange(12, dtype=torch.uint8).view(2, 3, 1, 2)
    flipped = crops.flip(images, torch.tensor([False, True]))
    assert flipped.flatten().tolist() == [0, 1, 2, 3, 4, 5, 7, 6, 9, 8, 11, 10]


def test_resized_boxes_stay_inside_and_keep_to_their_ranges() -> None:
    boxes = crops.resized_boxes(2000, (48, 64), (0.2, 0.7), generator())
    top, left, tall, wide = boxes.unbind(1)
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + tall <= 48.001).all() and (left + wide <= 64.001).all()
    share, aspect = tall * wide / (48 * 64), wide / tall
    assert 0.2 <= share.min() + 1e-4 < 0.22 and 0.68 < share.max() <= 0.7001
    assert 0.75 <= aspect.min() + 1e-4 and aspect.max() <= 1.334


def test_boxes_of_a_very_long_image_stay_inside() -> None:
    top, left, tall, wide = crops.resized_boxes(50, (8, 400), (0.9, 1.0), generator()).unbind(1)
    assert (tall > 0).all() and (top + tall <= 8.001).all() and (left + wide <= 400.01).all()


def test_warp_to_the_whole_image_changes_nothing() -> None:
    images = random_images(4, 24, 32)
    boxes = torch.tensor([[0.0, 0.0, 24.0, 32.0]]).repeat(4, 1)
    assert torch.equal(crops.warp(images, boxes=boxes), images)
    flipped = torch.tensor([True, False, True, False])
    identity = torch.eye(3, dtype=torch.float64).repeat(4, 1, 1)
    both = crops.warp(images, boxes=boxes, flipped=flipped, matrices=identity)
    assert torch.equal(both, crops.flip(images, flipped))


def test_warp_to_a_box_is_crop_and_bilinear_resize() -> None:
    images = smooth_images(1, 32, 32)
    result = crops.warp(images, boxes=torch.tensor([[8.0, 4.0, 16.0, 16.0]]))
    crop = images[:, :, 8:24, 4:20].float()
    resized = F.interpolate(crop, (32, 32), mode="bilinear", align_corners=False).round()
    inner = (..., slice(2, -2), slice(2, -2))  # the outermost pixels see beyond the crop
    assert (result[inner].float() - resized[inner]).abs().max() <= 1


def test_geometry_shows_the_fill_beyond_the_crop_not_the_image() -> None:
    images = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)
    matrices = ra.translation_x(torch.tensor([0.5]), 8, 8)
    result = crops.warp(images, boxes=torch.tensor([[2.0, 0.0, 4.0, 4.0]]), matrices=matrices)
    assert (result[..., :4] == 200).all() and (result[..., 4:] == 0).all()


# Erasing and mixing


def test_erasing_replaces_one_box_by_noise() -> None:
    pixels = torch.full((400, 3, 20, 30), 50.0)
    aug.erase(pixels, 1.0, generator())
    erased = pixels != 50.0
    assert torch.equal(erased.any(1), erased.all(1)), "all channels of a pixel or none"
    masks = erased[:, 0]
    areas = masks.flatten(1).sum(1)
    boxes = masks.any(1).sum(1) * masks.any(2).sum(1)
    assert torch.equal(areas, boxes), "a box, not scattered pixels"
    assert areas.min() >= 0.01 * 600 and areas.max() <= 0.36 * 600
    noise = pixels[erased]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_erasing_chooses_images_with_its_probability() -> None:
    pixels = torch.full((2000, 3, 8, 8), 50.0)
    aug.erase(pixels, 0.25, generator())
    assert abs((pixels != 50.0).flatten(1).any(1).float().mean() - 0.25) < 0.03


def mixed(count: int = 64, **changes: float) -> tuple[Tensor, Tensor]:
    """Images whose pixels all say their number, with their number as class, after `mix`."""
    pixels = torch.arange(count).float()[:, None, None, None].expand(count, 3, 10, 12).contiguous()
    settings = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "probability": 1.0, "cutmix_share": 0.5}
    return aug.mix(pixels, torch.eye(count), **{**settings, **changes}, generator=generator())


def test_cutmix_targets_are_the_pasted_areas() -> None:
    pixels, targets = mixed(cutmix_alpha=1.0)
    pasted = 0
    for number, (image, target) in enumerate(zip(pixels, targets, strict=True)):
        assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
        shares = torch.stack([(image[0] == other).float().mean() for other in range(64)])
        assert torch.allclose(target, shares, atol=1e-6)
        other = image[0] != number
        assert other.sum() == other.any(0).sum() * other.any(1).sum(), "a box"
        pasted += bool(other.any())
    assert pasted > 50


def test_mixup_mixes_pixels_and_targets_alike() -> None:
    pixels, targets = mixed(mixup_alpha=0.8)
    assert torch.allclose(pixels, pixels[:, :1, :1, :1].expand_as(pixels))
    expected = targets @ torch.arange(64).float()
    assert torch.allclose(pixels[:, 0, 0, 0], expected, atol=1e-4)
    own = targets.diagonal()
    assert own.unique().numel() > 50, "each image has its own weight"


def test_switch_and_probability() -> None:
    pixels, _ = mixed(mixup_alpha=1.0, cutmix_alpha=1.0, cutmix_share=1.0)
    assert torch.equal(pixels, pixels.round()), "cutmix never blends"
    pixels, _ = mixed(mixup_alpha=1.0, cutmix_alpha=1.0, cutmix_share=0.0)
    assert torch.equal(pixels.amin((1, 2, 3)), pixels.amax((1, 2, 3))), "mixup never pastes"
    _, targets = mixed(400, mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.3)
    assert abs((targets.diagonal() < 1).float().mean() - 0.3) < 0.06
    pixels, targets = mixed(mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.0)
    assert torch.equal(targets, torch.eye(64))
    assert torch.equal(pixels[:, 0, 0, 0], torch.arange(64.0))


# The whole

FULL = RECIPES["imagenet"]
JITTER = dataclasses.replace(OFF, color_jitter=0.4)


@pytest.mark.parametrize("recipe", [*RECIPES.values(), JITTER])
def test_every_recipe_keeps_the_contract(recipe: Recipe) -> None:
    images, labels = random_images(16, 24, 32), torch.arange(16) % 5
    before = images.clone()
    pixels, targets = Augment(recipe, num_classes=5)(images, labels, generator())
    assert pixels.shape == (16, 3, 24, 32) and pixels.dtype == torch.float32
    assert pixels.isfinite().all() and pixels.is_contiguous()
    assert torch.allclose(targets.sum(1), torch.ones(16), atol=1e-6) and (targets >= 0).all()
    assert torch.equal(images, before), "the input is not modified"


def test_the_generator_alone_decides() -> None:
    images, labels = random_images(16), torch.arange(16) % 5
    augment = Augment(FULL, num_classes=5)
    state = torch.get_rng_state()
    first = augment(images, labels, generator(7))
    torch.manual_seed(99)
    second = augment(images, labels, generator(7))
    third = augment(images, labels, generator(8))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], third[0])
    torch.manual_seed(99)
    expected = torch.get_rng_state()
    augment(images, labels, generator(7))
    assert torch.equal(torch.get_rng_state(), expected), "the global generator is left alone"
    torch.set_rng_state(state)


def test_equal_images_of_a_batch_come_out_different() -> None:
    images = random_images(1).expand(12, 3, 32, 32)
    recipe = dataclasses.replace(OFF, crop="resized", flip=0.5)
    pixels, _ = Augment(recipe, num_classes=5)(images, torch.zeros(12).long(), generator())
    assert len({image.numpy().tobytes() for image in pixels}) == 12


def test_jitter_is_left_out_beside_randaugment_as_in_timm() -> None:
    images, labels = random_images(), torch.arange(8)
    on = Augment(dataclasses.replace(OFF, randaugment_ops=2, color_jitter=0.4), num_classes=8)
    off = Augment(dataclasses.replace(OFF, randaugment_ops=2), num_classes=8)
    assert torch.equal(on(images, labels, generator())[0], off(images, labels, generator())[0])


def test_one_image_is_a_batch_too() -> None:
    pixels, targets = Augment(FULL, num_classes=3)(random_images(1), torch.tensor([2]), generator())
    assert pixels.shape == (1, 3, 32, 32) and torch.allclose(targets.sum(), torch.tensor(1.0))

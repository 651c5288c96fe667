"""A training loop as a user of timm writes it, with timm's own parts: what ours is held beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from evitlab.datasets import Dataset
from evitlab.datasets.streaming import default_workers
from evitlab.models.config import STEM_STRIDES, EfficientViTConfig
from evitlab.models.zoo import MODELS
from evitlab.training.recipe import Recipe


def timm_twin(name: str, *, img_size: int, num_classes: int) -> nn.Module:
    """timm's EfficientViT with the configuration of ours, small-image variants included.

    timm lays windows out for a stem that halves four times, so it is built for images that give the
    same map, and then gets the strides of our stem. Names and shapes of weights are ours.

    Args:
        name: `efficientvit_m0` to `efficientvit_m5`, or with `_p4`, `_p8`.

    Raises:
        ValueError: another name.
    """
    config = MODELS.get(name)
    if not isinstance(config, EfficientViTConfig):
        raise ValueError(f"model: expected one of the EfficientViT family, got {name!r}")
    model: Any = timm.create_model(
        name.partition("_p")[0],
        img_size=img_size * 16 // config.patch_size,
        num_classes=num_classes,
        window_size=config.window_size,
    )
    for number, stride in enumerate(STEM_STRIDES[config.patch_size], start=1):
        getattr(model.patch_embed, f"conv{number}").conv.stride = (stride, stride)
    return model


def run_timm_loop(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    on_phase: Callable[[str], None],
    *,
    device: torch.device,
) -> None:
    """Train until `on_phase` raises; it is called with each phase of a step as the phase begins.

    The pictures are decoded beforehand, as in `evitlab.train`. On the CPU the loader works in this
    process, so that both loops have the same threads; beside a GPU it has all cores.

    Args:
        recipe: what of it timm's parts can do: RandAugment, mixing, erasing, AdamW, AGC, EMA.
    """
    model.train().to(device).to(memory_format=torch.channels_last)
    magnitude, std = f"{recipe.randaugment_magnitude:g}", f"{recipe.randaugment_std:g}"
    transform = create_transform(
        data.img_size[0],
        is_training=True,
        scale=recipe.crop_scale,
        hflip=recipe.flip,
        color_jitter=recipe.color_jitter,
        # At magnitude 10 it would keep 0 bits of a colour, which Pillow refuses.
        auto_augment=f"rand-m{magnitude}-mmax9-mstd{std}-inc1",
        interpolation="bicubic",
        re_prob=recipe.random_erasing,
        re_mode="pixel",
    )
    loader: DataLoader = DataLoader(
        _Pictures(data, transform),
        recipe.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=0 if device.type == "cpu" else default_workers(),
        pin_memory=device.type == "cuda",
    )
    mixup = Mixup(
        recipe.mixup_alpha,
        recipe.cutmix_alpha,
        prob=recipe.mix_prob,
        switch_prob=recipe.switch_prob,
        label_smoothing=recipe.label_smoothing,
        num_classes=data.num_classes,
    )
    optimizer = create_optimizer_v2(
        model, "adamw", lr=recipe.peak_lr, weight_decay=recipe.weight_decay
    )
    ema = ModelEmaV3(model, decay=recipe.ema_decay)
    classifier = {id(weight) for weight in model.get_classifier().parameters()}  # type: ignore[operator]
    clipped = [weight for weight in model.parameters() if id(weight) not in classifier]
    criterion = SoftTargetCrossEntropy()
    on_phase("data")
    while True:
        for images, labels in loader:
            on_phase("augmentation")
            pixels, targets = mixup(images.to(device), labels.to(device))
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            on_phase("forward")
            loss = criterion(model(pixels), targets)
            optimizer.zero_grad()
            on_phase("backward")
            loss.backward()
            on_phase("optimizer")
            adaptive_clip_grad(clipped, recipe.clip_grad)
            optimizer.step()
            ema.update(model)
            loss.item()
            on_phase("data")


class _Pictures(TorchDataset):
    def __init__(self, data: Dataset, transform: Callable[[Any], Tensor]) -> None:
        pixels = data.images.permute(0, 2, 3, 1).numpy()
        self.pictures = [Image.fromarray(picture) for picture in pixels]
        self.labels, self.transform = data.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pictures[index]), self.labels[index]

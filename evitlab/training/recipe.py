"""Training recipes: every hyperparameter of a run in one frozen record."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


def _pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_number, value))


# What is expected of a field, in words and as a test.
_RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "at least 1, an integer",
        lambda value: _whole(value) and value >= 1,
        ("epochs", "batch_size", "repeats", "accumulate", "validate_every"),
    ),
    (
        "at least 1, an integer, or None",
        lambda value: value is None or (_whole(value) and value >= 1),
        ("lr_batch",),
    ),
    (
        "0 or more, an integer",
        lambda value: _whole(value) and value >= 0,
        ("cooldown_epochs", "crop_padding", "randaugment_ops", "warmup_steps"),
    ),
    (
        "an integer of at most 63 bits",  # what torch takes as a seed
        lambda value: _whole(value) and -(2**63) <= value < 2**63,
        ("seed",),
    ),
    (
        "a positive number",
        lambda value: _number(value) and value > 0,
        ("lr", "eps", "clip_grad", "distillation_tau"),
    ),
    (
        "0 or more",
        lambda value: _number(value) and value >= 0,
        (
            "min_lr",
            "warmup_lr",
            "warmup_epochs",
            "weight_decay",
            "color_jitter",
            "randaugment_std",
            "mixup_alpha",
            "cutmix_alpha",
        ),
    ),
    (
        "0 to below 1",
        lambda value: _number(value) and 0 <= value < 1,
        ("ema_decay", "label_smoothing"),
    ),
    (
        "0 to 1",
        lambda value: _number(value) and 0 <= value <= 1,
        ("distillation_alpha", "flip", "mix_prob", "switch_prob", "random_erasing"),
    ),
    (
        "above 0, up to 1",
        lambda value: _number(value) and 0 < value <= 1,
        ("layer_decay",),
    ),
    (
        "0 to 10",
        lambda value: _number(value) and 0 <= value <= 10,
        ("randaugment_magnitude",),
    ),
    (
        "a tuple of two numbers from 0 to below 1",
        lambda value: _pair(value) and all(0 <= beta < 1 for beta in value),
        ("betas",),
    ),
    (
        "a tuple (least, most) of shares, above 0 and up to 1",
        lambda value: _pair(value) and 0 < value[0] <= value[1] <= 1,
        ("crop_scale",),
    ),
    (
        "a rising tuple of epochs, integers of at least 1",
        lambda value: isinstance(value, tuple)
        and all(_whole(epoch) and epoch >= 1 for epoch in value)
        and list(value) == sorted(set(value)),
        ("lr_steps",),
    ),
    ("True or False", lambda value: isinstance(value, bool), ("sync_norm", "compile")),
)
_CHOICES = {
    "schedule": ("cosine", "steps"),
    "clip": ("none", "norm", "agc"),
    "precision": ("auto", "float32", "bfloat16"),
    "crop": ("none", "pad", "resized"),
    "freeze": ("none", "backbone"),
    "distillation": ("none", "soft", "hard"),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of one training run, optimisation first, then augmentation.

    Raises ValueError where a value is outside its range, naming the field.

    Pitfall: BatchNorm sees a part of a batch at a time where `accumulate` is above 1, so its
    statistics, and with them the losses, are those of the parts; all else is as with 1.
    """

    epochs: int  # of the cosine; `cooldown_epochs` follow at `min_lr`
    batch_size: int  # of a step, over all processes and parts
    lr: float  # peak, for `lr_batch` images a step
    lr_batch: int | None = None  # peak = lr * batch_size / lr_batch; None: lr as it is
    min_lr: float = 1e-5
    warmup_lr: float = 1e-6
    warmup_epochs: float = 0
    warmup_steps: int = 0  # where above 0, instead of `warmup_epochs`
    schedule: Literal["cosine", "steps"] = "cosine"
    lr_steps: tuple[int, ...] = ()  # of "steps": after so many epochs the rate is a tenth
    cooldown_epochs: int = 0
    weight_decay: float = 0.025  # not on biases, norms and attention biases
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    layer_decay: float = 1.0  # a layer's rate: peak_lr * layer_decay ** (layers above it)
    freeze: Literal["none", "backbone"] = "none"  # backbone: only the classifier trains
    clip: Literal["none", "norm", "agc"] = "none"  # agc: adaptive, the classifier exempt
    clip_grad: float = 1.0
    ema_decay: float = 0.0  # 0: no moving average of the weights
    distillation: Literal["none", "soft", "hard"] = "none"  # hard: the teacher's top-1 as label
    distillation_alpha: float = 0.5  # the teacher's share of the loss, the labels have the rest
    distillation_tau: float = 1.0  # temperature of soft distillation
    repeats: int = 1  # repeated augmentation: views of an image within one epoch
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU
    accumulate: int = 1  # parts a batch is worked off in, one after the other: less memory
    sync_norm: bool = True  # BatchNorm's statistics are of all processes' images, not of each's
    compile: bool = False  # torch.compile: minutes of start-up, then faster steps
    validate_every: int = 1  # epochs
    seed: int = 0
    # augmentation: read by training.augment.Augment
    crop: Literal["none", "pad", "resized"] = "none"
    crop_padding: int = 4
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    color_jitter: float = 0.0
    randaugment_ops: int = 0
    randaugment_magnitude: float = 9.0
    randaugment_std: float = 0.5
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_prob: float = 1.0
    switch_prob: float = 0.5
    random_erasing: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for expected, fits, names in _RANGES:
            for name in names:
                if not fits(getattr(self, name)):
                    raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, got {getattr(self, name)!r}")

    @property
    def peak_lr(self) -> float:
        return self.lr * self.batch_size / self.lr_batch if self.lr_batch else self.lr

    @property
    def total_epochs(self) -> int:
        return self.epochs + self.cooldown_epochs

    def learning_rate(self, epoch: float, *, steps: int = 1) -> float:
        """The rate at a point of the run, counted in epochs (2.5: half of the third is done).

        Linear warm-up, then the cosine of the whole run (its warm-up part is skipped, as in
        timm's scheduler), then `min_lr`; or the peak, and a tenth of it after each of `lr_steps`.

        Args:
            epoch: 0 is the start.
            steps: in an epoch, which `warmup_steps` are counted in.
        """
        warmup = self.warmup_steps / steps or self.warmup_epochs
        if epoch < warmup:
            return self.warmup_lr + (self.peak_lr - self.warmup_lr) * epoch / warmup
        if self.schedule == "steps":
            return self.peak_lr * 0.1 ** sum(epoch >= step for step in self.lr_steps)
        if epoch >= self.epochs:
            return self.min_lr
        cosine = 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return self.min_lr + (self.peak_lr - self.min_lr) * cosine


RECIPES = {
    # Seconds: does everything run? Used by tests and notebooks.
    "smoke": Recipe(epochs=2, batch_size=64, lr=2e-3, crop="pad", warmup_epochs=0.2),
    # CIFAR-sized images on two CPU cores: short runs underfit, so augmentation stays light.
    "cifar": Recipe(
        epochs=16,
        batch_size=128,
        lr=2e-3,
        warmup_epochs=1,
        weight_decay=0.05,
        clip="norm",
        crop="pad",
        label_smoothing=0.1,
        validate_every=2,
    ),
    # The authors' answer on fine-tuning (microsoft/Cream issue 172): 300 epochs, batch 256,
    # lr 1e-3, weight decay 1e-8; fewer epochs here, since most users have a small folder.
    "finetune": Recipe(
        epochs=30,
        batch_size=256,
        lr=1e-3,
        warmup_epochs=2,
        weight_decay=1e-8,
        clip="agc",
        clip_grad=0.02,
        crop="resized",
        crop_scale=(0.35, 1.0),
        label_smoothing=0.1,
        random_erasing=0.25,
    ),
    # Section 4.1 and the official defaults; data/paper/recipe.json holds them field by field.
    "imagenet": Recipe(
        epochs=300,
        batch_size=2048,
        lr=1e-3,
        lr_batch=512,
        warmup_epochs=5,
        cooldown_epochs=10,
        weight_decay=0.025,
        clip="agc",
        clip_grad=0.02,
        ema_decay=0.99996,
        repeats=3,
        crop="resized",
        color_jitter=0.4,
        randaugment_ops=2,
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        random_erasing=0.25,
        label_smoothing=0.1,
        sync_norm=False,  # each of 8 GPUs normalises its 256 images; accumulate=8 does so on one
    ),
    # RetinaNet's 1x schedule on COCO, the official downstream configuration; recipe.json again.
    "detection": Recipe(
        epochs=12,
        batch_size=16,
        lr=1e-4,
        schedule="steps",
        lr_steps=(8, 11),
        warmup_steps=500,
        warmup_lr=1e-7,
        weight_decay=0.05,
        precision="float32",
        sync_norm=False,  # each of 8 GPUs normalises its 2 images
    ),
    # A detector on a handful of images, seen again and again: do its parts work together?
    "overfit": Recipe(
        epochs=300,
        batch_size=4,
        lr=1e-3,
        warmup_steps=20,
        weight_decay=0.0,
        clip="norm",
        clip_grad=10.0,
        flip=0.0,
        validate_every=10,
    ),
}

_FEWEST_STEPS, _SMALLEST_BATCH = 8, 8


def fit_batch(recipe: Recipe, images: int) -> Recipe:
    """The recipe with a batch small enough for a small data set.

    At most an eighth of the images, as a power of two, and 8 at least, so that an epoch of a few
    hundred images is not a single step. The learning rate follows with the root of the batch, the
    rule for Adam (Malladi et al., NeurIPS 2022); where a recipe has an `lr_batch`, by that.

    Args:
        recipe: comes back as it is where its batch is small enough.
        images: of the training set.
    """
    batch = 2 ** (max(images // _FEWEST_STEPS, _SMALLEST_BATCH).bit_length() - 1)
    if batch >= recipe.batch_size:
        return recipe
    scale = 1.0 if recipe.lr_batch else math.sqrt(batch / recipe.batch_size)
    return replace(recipe, batch_size=batch, lr=recipe.lr * scale)

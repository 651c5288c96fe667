"""Data, models and recipes so small that a whole training run takes a second or less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from evitlab import (
    Dataset,
    DetectionDataset,
    Recipe,
    RetinaNet,
    create_detector,
    create_model,
    open_detection,
)
from evitlab.datasets import embedded
from evitlab.training.checkpoint import save_weights


def shapes(count: int, split: str = "train", *, classes: int = 3, title: str = "shapes") -> Dataset:
    """The first pictures of the embedded set's first classes, 32 x 32, the classes in turn."""
    indices = torch.arange(count) // classes * 10 + torch.arange(count) % classes
    images, _ = embedded.draw(split, indices.numpy())
    return Dataset(
        name="shapes",
        title=title,
        split=split,
        images=torch.from_numpy(images),
        labels=torch.arange(count) % classes,
        class_names=embedded.CLASS_NAMES[:classes],
    )


def write_folder(root: Path, sets: dict[str, Dataset]) -> Path:
    """An image folder root/<split>/<class>/<number>.png."""
    for split, data in sets.items():
        for number, (pixels, label) in enumerate(data[i] for i in range(len(data))):
            file = root / split / data.class_names[label] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)
    return root


def tiny_vit(seed: int = 0, **overrides: Any) -> Any:
    """M0 with one block a stage and few channels. `Any`, as modules' attributes have no types."""
    torch.manual_seed(seed)
    small: dict[str, Any] = dict(
        img_size=32,
        num_classes=3,
        depth=(1, 1, 1),
        embed_dim=(16, 24, 32),
        num_heads=(2, 2, 2),
        key_dim=(4, 4, 4),
    )
    return create_model("efficientvit_m0_p4", **{**small, **overrides})


def train_command(root: Path, *words: str, epochs: int) -> list[str]:
    """`evitlab train …` of seconds, but for the folder after --out: 24 images, 65 thousand weights.

    Args:
        root: receives the images and the weights to start from.
        words: more of the command line.
    """
    data = write_folder(root / "data", {"train": shapes(24), "val": shapes(6, "val")})
    start = save_weights(tiny_vit(), root / "tiny.safetensors")
    return [
        *("train", "efficientvit_m0", "--data", str(data), "--weights", str(start)),
        *("--recipe", "smoke", "--epochs", str(epochs), "--batch-size", "12", "--threads", "1"),
        *("--device=cpu", *words, "--out"),
    ]


def plain_net(seed: int = 0, classes: int = 3) -> nn.Module:
    """A model that knows nothing of timm: three layers, a step takes a millisecond."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, classes))


def recipe(**changes: Any) -> Recipe:
    """Two epochs of two steps on 32 images, nothing augmented."""
    few: dict[str, Any] = dict(epochs=2, batch_size=16, lr=1e-2, flip=0.0)
    return Recipe(**{**few, **changes})


class Stopped(Exception):
    """What stands for a power cut."""


@contextmanager
def stopped_at(epoch: int, *, step: int) -> Iterator[None]:
    """Training is cut off before step `step` (from 1) of epoch `epoch`, counted from now."""
    begun = 0
    whole = Dataset.batches

    def batches(self: Dataset, *args: Any, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal begun
        training = options.get("train", False)
        begun += training
        for number, batch in enumerate(whole(self, *args, **options), start=1):
            if training and begun == epoch and number == step:
                raise Stopped
            yield batch

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Dataset, "batches", batches)
        yield


@contextmanager
def no_training() -> Iterator[None]:
    """Fails where a training batch is asked for."""
    whole = Dataset.batches

    def batches(self: Dataset, *args: Any, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        assert not options.get("train"), "training began"
        return whole(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dataset, "batches", batches)
        yield


def one_line(raised: pytest.ExceptionInfo[BaseException]) -> str:
    """The message of an error, which must be one line."""
    message = str(raised.value)
    assert message and "\n" not in message
    return message


class RunsCode:
    """Makes a folder when a careless reader unpickles it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def small_detector(data: DetectionDataset, seed: int = 0) -> RetinaNet:
    """Its head finds boxes from the start, wherever they are."""
    torch.manual_seed(seed)
    model = create_detector(
        "efficientvit_m0",
        num_classes=data.num_classes,
        img_size=(64, 96),
        channels=16,
        class_names=data.class_names,
        category_ids=data.category_ids,
    )
    for tower in (model.head.classification_head, model.head.regression_head):
        for layer in tower.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.constant_(model.head.classification_head.cls_logits.bias, -2.0)
    return model


def landscapes(count: int) -> DetectionDataset:
    """The first scenes of one shape, so that no batch needs padding of its own."""
    scenes = open_detection("scenes", "train", limit=4 * count)
    return scenes.take(
        [i for i, (height, width) in enumerate(scenes.img_sizes) if width > height][:count]
    )

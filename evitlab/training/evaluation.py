"""Evaluate: one pass of a classifier over a data set, and the accuracy it comes to.

Shape legend: N images of the set, k classes kept of each image's ranking.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from evitlab.datasets import AnyDataset, StreamingDataset
from evitlab.models.zoo import normalization
from evitlab.records import Accuracy, Environment, environment_card
from evitlab.training.augment import normalize
from evitlab.training.distributed import ALONE, current_ranks

_NO_IMAGES = "data: expected at least one image, got none"


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier says of each image of a data set, in the set's order.

    Attributes:
        files: the images' names, as `Dataset.files`, else their numbers; without those that could
            not be read.
        class_names: one per class of the data.
        labels: int64 [N], the true classes; None where the data have none.
        ranked: int64 [N, k], the k likeliest classes, best first; k = 5, or all where fewer.
        probabilities: float32 [N, k], of those classes.
        losses: float32 [N], cross-entropy in nats; None where the data have no labels.
        environment: where it ran.
    """

    files: tuple[str, ...]
    class_names: tuple[str, ...]
    labels: Tensor | None
    ranked: Tensor
    probabilities: Tensor
    losses: Tensor | None
    environment: Environment

    def __len__(self) -> int:
        return len(self.ranked)

    def to_frame(self) -> pd.DataFrame:
        """One row per image: file, true class if known, then the likeliest classes, best first."""
        columns: dict[str, Any] = {"file": self.files}
        if self.labels is not None:
            columns["true"] = self._names(self.labels)
        for rank in range(self.ranked.shape[1]):
            place = f"_{rank + 1}" if rank else ""
            columns["predicted" + place] = self._names(self.ranked[:, rank])
            columns["probability" + place] = self.probabilities[:, rank].numpy()
        return pd.DataFrame(columns)

    def _names(self, classes: Tensor) -> list[str]:
        """By number where the model has more classes than the data name."""
        named = dict(enumerate(self.class_names))
        return [named.get(number, str(number)) for number in classes.tolist()]


def evaluate(
    model: nn.Module,
    data: AnyDataset,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    distributed: bool = False,
) -> Accuracy:
    """Top-1 and top-5 accuracy and mean cross-entropy over a data set.

    Args:
        model: run in evaluation mode; its own mode comes back afterwards.
        data: labelled images.
        batch_size: images per forward pass.
        device: None evaluates where the model's parameters are.
        distributed: True: all processes of a run call this, each measures its share of the
            images, and all return the same; each image counts once.

    Raises:
        ValueError: no images (or only corrupt ones, skipped), images without labels, labels
            outside the model's classes, a batch size below one, or a device that is not there.
    """
    return accuracy_of(
        predict(model, data, batch_size=batch_size, device=device, distributed=distributed)
    )


def accuracy_of(predictions: Predictions) -> Accuracy:
    """The accuracy that predictions come to.

    Raises:
        ValueError: they are of images without labels.
    """
    if predictions.labels is None or predictions.losses is None:
        raise ValueError("data: expected labelled images, got images without class folders")
    right = predictions.ranked == predictions.labels[:, None]
    count = len(predictions)
    return Accuracy(
        top1=100 * int(right[:, 0].sum()) / count,
        top5=100 * int(right.sum()) / count,
        loss=predictions.losses.double().sum().item() / count,
        n=count,
        environment=predictions.environment,
    )


@torch.no_grad()
def predict(
    model: nn.Module,
    data: AnyDataset,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    distributed: bool = False,
) -> Predictions:
    """The likeliest classes of each image; every measure of accuracy is a function of this pass.

    Args:
        model: as in `evaluate`.
        data: images, labelled or not.
        batch_size: images per forward pass.
        device: None runs where the model's parameters are.
        distributed: as in `evaluate`.

    Raises:
        ValueError: see `evaluate`; unlabelled images are taken.
    """
    if len(data) == 0:
        raise ValueError(_NO_IMAGES)
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    check_labels(model, data)
    home = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    device = checked_device(device) if device else home
    mean, std = normalization(model)
    ranks = current_ranks() if distributed else ALONE
    own = torch.arange(len(data)).tensor_split(ranks.size)[ranks.rank]  # in the set's order
    parts: list[tuple[Tensor, ...]] = []  # stay on the device, so that batches need not wait
    with evaluating(model, device=device, home=home):
        batches = data.batches(own, batch_size, device=device)
        for pixels, labels in tqdm(
            batches,
            total=math.ceil(len(own) / batch_size),
            desc="evaluate",
            unit="batch",
            leave=False,
            delay=2,
            disable=not ranks.main,
        ):
            inputs = normalize(pixels, mean, std).contiguous(memory_format=torch.channels_last)
            logits = model(inputs).float()
            losses = F.cross_entropy(logits, labels, reduction="none")
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
            parts.append((labels, ranked, logits.softmax(1).gather(1, ranked), losses))
    found = [part for part in ranks.gather(_joined(parts)) if part]
    if not found:  # nothing but corrupt images, skipped
        raise ValueError(_NO_IMAGES)
    if isinstance(data, StreamingDataset):
        data.skip(*ranks.gather(data.skipped_indices))
    labels, ranked, probabilities, losses = _joined(found)
    return Predictions(
        files=data.files or tuple(map(str, range(len(labels)))),
        class_names=data.class_names,
        labels=labels if data.labelled else None,
        ranked=ranked,
        probabilities=probabilities,
        losses=losses if data.labelled else None,
        environment=environment_card(
            device=device, layout="channels_last", batch_size=batch_size, dataset=data.title
        ),
    )


def _joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """One tuple of the parts' tensors, joined, on the CPU; () of none."""
    return tuple(torch.cat(part).cpu() for part in zip(*parts, strict=True))


def check_labels(model: nn.Module, data: AnyDataset) -> None:
    """Raise a ValueError where the data have more classes than the model."""
    classes = getattr(model, "num_classes", data.num_classes)
    if data.num_classes > classes:
        raise ValueError(
            f"data: expected labels of at most {classes} classes (the model's), got "
            f"{data.num_classes} in {data.title}"
        )


def checked_device(device: str | torch.device) -> torch.device:
    """The device, or a ValueError where torch cannot use it here."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # builds without CUDA assert
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"device: expected one that torch can use here, such as 'cpu', got {str(device)!r} "
            f"({reason})"
        ) from error


@contextmanager
def evaluating(model: nn.Module, *, device: torch.device, home: torch.device) -> Iterator[None]:
    """The model in evaluation mode on a device; modes and device come back, also after an error."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.to(device).eval()
        yield
    finally:
        model.to(home)
        for module, was_training in before:
            module.training = was_training

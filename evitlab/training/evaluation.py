"""Evaluate: accuracy and loss of a classifier over a data set."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from evitlab.datasets import AnyDataset
from evitlab.models.zoo import normalization
from evitlab.records import Accuracy, environment_card
from evitlab.training.augment import normalize

_NO_IMAGES = "data: expected at least one image, got none"


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: AnyDataset,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> Accuracy:
    """Top-1 and top-5 accuracy and mean cross-entropy over a data set.

    Args:
        model: run in evaluation mode; its own mode comes back afterwards.
        data: labelled images.
        batch_size: images per forward pass.
        device: None evaluates where the model's parameters are.

    Raises:
        ValueError: no images (or only corrupt ones, skipped), labels outside the model's classes,
            a batch size below one, or a device that is not there.
    """
    if len(data) == 0:
        raise ValueError(_NO_IMAGES)
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    check_labels(model, data)
    home = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    device = checked_device(device) if device else home
    mean, std = normalization(model)
    hits = torch.zeros(2, dtype=torch.float64)
    loss = torch.zeros((), dtype=torch.float64)
    count = 0  # fewer than len(data) where corrupt images are skipped
    with _evaluating(model, device=device, home=home):
        batches = data.batches(torch.arange(len(data)), batch_size, device=device)
        for pixels, labels in tqdm(
            batches,
            total=math.ceil(len(data) / batch_size),
            desc="evaluate",
            unit="batch",
            leave=False,
            delay=2,
        ):
            inputs = normalize(pixels, mean, std).contiguous(memory_format=torch.channels_last)
            logits = model(inputs).float()
            loss += F.cross_entropy(logits, labels, reduction="sum").cpu()
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            count += len(labels)
            hits += torch.stack([ranked[:, 0].sum(), ranked.sum()]).cpu()
    if count == 0:
        raise ValueError(_NO_IMAGES)
    top1, top5 = (100 * hits / count).tolist()
    return Accuracy(
        top1=top1,
        top5=top5,
        loss=loss.item() / count,
        n=count,
        environment=environment_card(
            device=device, layout="channels_last", batch_size=batch_size, dataset=data.title
        ),
    )


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
def _evaluating(model: nn.Module, *, device: torch.device, home: torch.device) -> Iterator[None]:
    """The model in evaluation mode on a device; modes and device come back, also after an error."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.to(device).eval()
        yield
    finally:
        model.to(home)
        for module, was_training in before:
            module.training = was_training

"""What every explanation of a prediction starts from: images, a class of each, and a baseline.

Shape legend: B images, n images of one pass, K classes, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from evitlab.analysis.conditions import in_eval_mode
from evitlab.analysis.subjects import img_size_of
from evitlab.models.deployed_transformer import within
from evitlab.models.zoo import normalization
from evitlab.training.augment import normalize
from evitlab.wording import check_choice

Quantity = Literal["logit", "probability"]
BaselineName = Literal["mean", "black", "blurred"]
Baseline: TypeAlias = BaselineName | Tensor
Targets: TypeAlias = int | Sequence[int] | Tensor | None


@dataclass(frozen=True, eq=False)
class Explained:
    """A model with the images and classes whose predictions are to be explained."""

    model: nn.Module
    images: Tensor  # [B, 3, H, W], as the model takes them
    targets: Tensor  # int64 [B], the class of each image
    quantity: Quantity
    batch_size: int  # images per pass
    bar: tqdm

    def forward(self, x: Tensor) -> Tensor:
        """The explained quantity of all classes, [n, K]."""
        logits = self.model(x)
        self.bar.update(len(x))
        return logits if self.quantity == "logit" else logits.softmax(1)

    @torch.no_grad()
    def scores(self, x: Tensor, targets: Tensor) -> Tensor:
        """The explained quantity of one class of each image, [n]."""
        parts = zip(x.split(self.batch_size), targets.split(self.batch_size), strict=True)
        return torch.cat([self.forward(some).gather(1, t[:, None])[:, 0] for some, t in parts])

    def expects(self, images: int) -> None:
        """So many more images will pass through the model: for the progress bar."""
        self.bar.total = (self.bar.total or 0) + images


@contextmanager
def explaining(
    model: nn.Module,
    images: Tensor,
    targets: Targets,
    *,
    quantity: Quantity,
    batch_size: int,
    title: str,
) -> Iterator[Explained]:
    """The model in evaluation mode, gradients on but not for its weights; all as before
    afterwards, also after an error and whatever grad mode the caller is in.

    Args:
        images: [B, 3, H, W]; uint8 is normalised as the model expects, floats are taken as they
            are.
        targets: one class for all images or one for each, counted from 0; None: the predicted one.
        quantity: what is explained, the class's "logit" or "probability".
        batch_size: images per pass at most.
        title: of the progress bar, which shows after two seconds.

    Raises:
        ValueError: an argument is of another shape, empty, or outside the model's classes; the
            model cannot take images of this size, or has no classes.
    """
    if (
        not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3
        or images.numel() == 0
    ):  # fmt: skip
        got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images: expected [B, 3, H, W] with B > 0, got {got}")
    if getattr(within(model), "num_classes", None) == 0:
        raise ValueError(
            f"model: expected a classifier, got {type(within(model)).__name__} without classes "
            "(num_classes=0)"
        )
    check_choice("quantity", quantity, get_args(Quantity))
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    weights = [(weight, weight.requires_grad) for weight in model.parameters()]
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        in_eval_mode(model),
        tqdm(desc=title, unit="img", leave=False, delay=2) as bar,
    ):
        try:
            for weight, _ in weights:
                weight.requires_grad_(False)  # their gradients would keep every activation
            x = as_the_model_takes(model, images)
            with torch.no_grad():
                logits = _logits(model, x, batch_size)
            chosen = _checked_targets(targets, logits)
            yield Explained(model, x, chosen, quantity, batch_size, bar)
        finally:
            for weight, needed in weights:
                weight.requires_grad_(needed)


def as_the_model_takes(model: nn.Module, images: Tensor) -> Tensor:
    """[B, 3, H, W] of the model's dtype on its device; uint8 is normalised."""
    like = next(iter(model.parameters()), torch.empty(0))
    x = images.detach().to(like.device)
    if not x.is_floating_point():
        x = normalize(x, *normalization(model))
    return x.to(like.dtype, copy=True)


def baseline_of(model: nn.Module, x: Tensor, baseline: Baseline) -> Tensor:
    """What an image is without what is to be explained, [B, 3, H, W] as the model takes it.

    Args:
        x: images as the model takes them.
        baseline: "mean", each image's own mean colour everywhere; "black"; "blurred", by a
            Gaussian of a twentieth of the shorter side; or a tensor that broadcasts to the images,
            uint8 or as the model takes them.

    Raises:
        ValueError: another name, or a tensor that does not fit.
    """
    if isinstance(baseline, Tensor):
        given = baseline if baseline.ndim == 4 else baseline[None]
        try:
            return as_the_model_takes(model, given).expand_as(x)
        except RuntimeError:
            raise ValueError(
                f"baseline: expected a tensor that broadcasts to {list(x.shape)}, got "
                f"{list(baseline.shape)}"
            ) from None
    check_choice("baseline", baseline, get_args(BaselineName))
    if baseline == "black":
        return as_the_model_takes(model, x.new_zeros(1, 3, 1, 1, dtype=torch.uint8)).expand_as(x)
    if baseline == "mean":
        return x.mean((2, 3), keepdim=True).expand_as(x)
    return _blurred(x)


def _blurred(x: Tensor) -> Tensor:
    """Rows, then columns; edges are repeated."""
    sigma = min(x.shape[2:]) / 20
    reach = max(1, math.ceil(2 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=torch.float32)
    kernel = torch.softmax(-((offsets / sigma) ** 2) / 2, 0).to(x.dtype)
    C = x.shape[1]
    for shape, pad in (((1, -1), (reach, reach, 0, 0)), ((-1, 1), (0, 0, reach, reach))):
        padded = F.pad(x, pad, mode="replicate")
        x = F.conv2d(padded, kernel.view(1, 1, *shape).expand(C, -1, -1, -1), groups=C)
    return x


def class_tokens_read(model: nn.Module) -> int | None:
    """How many class tokens, the first ones, the classifier reads; 0: it reads the whole grid;
    None: the model does not say. Around a single classifier of timm, the one inside says it."""
    inner = within(model)
    if not (hasattr(inner, "num_prefix_tokens") or hasattr(inner, "global_pool")):
        found = [
            part for part in inner.modules()
            if hasattr(part, "num_prefix_tokens") and getattr(part, "global_pool", "") != ""
        ]  # fmt: skip
        if len(found) != 1:
            return None
        inner = found[0]
    if getattr(inner, "global_pool", "token") not in ("token", ""):
        return 0
    tokens = getattr(inner, "num_prefix_tokens", 0)
    return min(tokens, 2 if hasattr(inner, "head_dist") else 1)  # registers are not read


def _logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """[B, K]"""
    try:
        parts = [model(some) for some in x.split(batch_size)]
    except (AssertionError, RuntimeError) as error:
        # Many models take any size, so only the pass tells; of some, the size is not known.
        given, own = tuple(x.shape[2:]), img_size_of(model)
        known = getattr(within(model), "pretrained_cfg", None) is not None
        if isinstance(error, torch.OutOfMemoryError) or not known or given == own:
            raise
        raise ValueError(
            f"images: expected {own[0]} x {own[1]} pixels, which the model was built for, got "
            f"{given[0]} x {given[1]} ({error})"
        ) from error
    for part in parts:
        if not isinstance(part, Tensor) or part.ndim != 2 or part.shape[1] == 0:
            got = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(f"model: expected logits [B, classes] from it, got {got}")
    return torch.cat(parts)


def _checked_targets(targets: Targets, logits: Tensor) -> Tensor:
    B, K = logits.shape
    if targets is None:
        return logits.argmax(1)
    try:
        chosen = torch.as_tensor(targets).to(logits.device)
    except (TypeError, ValueError, RuntimeError):  # words, or lists of different lengths
        raise ValueError(f"targets: expected class numbers, got {targets!r}") from None
    if chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise ValueError(f"targets: expected class numbers, got {chosen.dtype}")
    if chosen.ndim == 0:
        chosen = chosen.expand(B)
    if chosen.shape != (B,):
        raise ValueError(f"targets: expected one, or {B} of them, got {list(chosen.shape)}")
    if chosen.min() < 0 or chosen.max() >= K:
        bad = next(t for t in chosen.tolist() if not 0 <= t < K)
        raise ValueError(f"targets: expected classes 0 to {K - 1}, got {bad}")
    return chosen.long()

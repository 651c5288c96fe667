"""Train a classifier."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from evitlab.datasets import AnyDataset, StreamingDataset
from evitlab.models.zoo import normalization
from evitlab.records import Accuracy, EpochLog, TrainingRecord
from evitlab.training.augment import Augment
from evitlab.training.batches import Batches, Part, check_norms, resident
from evitlab.training.distillation import Objective, check_teacher
from evitlab.training.distributed import Ranks
from evitlab.training.evaluation import check_labels, evaluate
from evitlab.training.identity import run_identity
from evitlab.training.loop import run
from evitlab.training.recipe import Recipe
from evitlab.training.task import Task


def train(
    model: nn.Module,
    train_data: AnyDataset,
    val_data: AnyDataset,
    recipe: Recipe,
    *,
    out_dir: str | os.PathLike[str],
    resume: bool = True,
    device: str | torch.device | None = None,
    command: str = "",
    scale: str | None = None,
    teacher: nn.Module | None = None,
    weights: str | None = None,
    on_phase: Callable[[str], None] | None = None,
) -> TrainingRecord:
    """Train a classifier; leaves weights, checkpoints and the record in `out_dir`.

    Args:
        model: takes [B, C, H, W], gives [B, classes]; moved to `device` and trained in place.
        train_data: what to learn from; its images decide the image size.
        val_data: validated every `recipe.validate_every` epochs and at the end.
        recipe: hyperparameters.
        out_dir: receives `model.safetensors` (final weights), `record.json` and `checkpoints/`
            (`last.pt`, every epoch, and `best.safetensors`, the highest validation top-1).
        resume: continue a run that was stopped; of a finished one load the final weights and
            return the record. False removes what an earlier run left and starts over.
        device: where to train; None takes a GPU if there is one.
        command: the command line that regenerates the record, kept in it.
        scale: smoke, quick, lab or paper, kept in the record.
        teacher: a trained classifier of the same classes, where the recipe distils; moved to
            `device` and put in evaluation mode. It sees the augmented images with its own
            normalisation and size.
        weights: `weights_identity` of what the model was loaded with, so that a run that started
            from something else is not taken for this one; kept in the record.
        on_phase: called with each phase of a step as it begins: "data", "augmentation",
            "forward", "backward", "optimizer"; to measure them.

    Raises:
        ValueError: data, model and teacher do not fit, no such device or scale, or `out_dir`
            holds a different run.
        NonFiniteLoss: the loss is NaN or infinite.
        OutOfMemory: memory ran out; says what to lower.
        LostProcess: another process of the run is gone; says how to go on.
        OSError: `out_dir` cannot be written.

    Paper: Section 4.1.
    Pitfall: `best` is chosen on the validation data, so report `final` where that is a test set.
    """
    task = Classification(
        model,
        train_data,
        val_data,
        recipe,
        teacher=teacher,
        weights=weights,
        command=command,
        scale=scale,
    )
    record: TrainingRecord = run(
        task, model, out_dir=out_dir, resume=resume, device=device, on_phase=on_phase
    )
    return record


class Classification(Task):
    """Images to classes; the arguments are those of `train`."""

    record_type, log_type = TrainingRecord, EpochLog

    def __init__(
        self,
        model: nn.Module,
        train_data: AnyDataset,
        val_data: AnyDataset,
        recipe: Recipe,
        *,
        teacher: nn.Module | None,
        weights: str | None,
        command: str,
        scale: str | None,
    ) -> None:
        self.model, self.recipe = model, recipe
        self.train_data, self.val_data = train_data, val_data
        self.img_size = train_data.img_size
        self.teacher, self.weights = teacher, weights
        self.command, self.scale = command, scale

    def check(self, ranks: Ranks, device: torch.device) -> None:
        _check_fit(self.model, self.train_data, self.val_data, self.recipe, ranks)
        check_teacher(self.model, self.recipe, self.teacher, self.train_data)
        self.identity = run_identity(
            self.model, self.train_data, self.recipe, self.teacher, self.weights
        )
        self.environment = self.card(device)

    def begin(self, ranks: Ranks, device: torch.device, on_phase: Callable[[str], None]) -> None:
        model, recipe, data = self.model, self.recipe, self.train_data
        self.device = device
        self.objective = Objective(model, recipe, self.teacher, data, device)
        mean, std = normalization(model)
        augment = Augment(
            dataclasses.replace(recipe, crop="none") if data.crops_on_load else recipe,
            num_classes=self.identity["num_classes"],
            mean=mean,
            std=std,
        )
        if isinstance(data, StreamingDataset):  # it crops while it decodes
            data = dataclasses.replace(data, crop_scale=recipe.crop_scale)
        self.batches = Batches(
            resident(data, device), recipe, augment, ranks=ranks, device=device, on_phase=on_phase
        )
        self.validated = resident(self.val_data, device)
        # No more than a step's forward pass: what is said to lower memory lowers this too.
        step = self.batches.size // recipe.accumulate // ranks.size
        self.validated_at_once = max(1, min(256, step))

    def loss(self, model: nn.Module, part: Part) -> Tensor:
        return self.objective(model(part.inputs), part.inputs, part.targets)

    def validate(self, model: nn.Module) -> Accuracy:
        return evaluate(
            model,
            self.validated,
            batch_size=self.validated_at_once,
            device=self.device,
            distributed=True,
        )

    def said(self, result: Accuracy) -> str:
        return f"top-1 {result.top1:.2f} %"

    def log(self, result: Accuracy | None, **measured: Any) -> EpochLog:
        log = EpochLog(**measured)
        if result is None:
            return log
        return dataclasses.replace(
            log, val_top1=result.top1, val_top5=result.top5, val_loss=result.loss
        )

    def score(self, log: EpochLog) -> float | None:
        return log.val_top1


def _check_fit(
    model: nn.Module,
    train_data: AnyDataset,
    val_data: AnyDataset,
    recipe: Recipe,
    ranks: Ranks,
) -> None:
    sizes = len(train_data), len(val_data)
    if sizes[0] < 2 or sizes[1] < 1:
        raise ValueError(f"train_data, val_data: expected at least 2 and 1 images, got {sizes}")
    check_norms(model, recipe, len(train_data), ranks)
    check_labels(model, train_data)
    if train_data.class_names != val_data.class_names:
        raise ValueError(
            f"val_data: expected the training data's {train_data.num_classes} classes, got "
            f"{val_data.num_classes} ({', '.join(val_data.class_names[:3])}, …)"
        )
    if train_data.img_size != val_data.img_size:
        trained, validated = (f"{h}x{w}" for h, w in (train_data.img_size, val_data.img_size))
        raise ValueError(
            f"val_data: expected images of {trained} pixels, the training data's, got {validated}"
        )

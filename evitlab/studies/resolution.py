"""Larger images: a trained model evaluated, and fine-tuned, at sizes it was not trained for.

`before-SIZE` evaluates the shipped CIFAR-10 model with its bias tables resized, `after-SIZE`
fine-tunes it there; 32 pixels, where it was trained, is the control of the same budget.

Pitfall: images of 32 pixels gain no detail by being enlarged; what changes is the number of tokens,
and with it the cost.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from evitlab.analysis.conditions import cpu_threads
from evitlab.models.starting import weights_card
from evitlab.models.weights import find_checkpoint
from evitlab.records import Accuracy, Record, TrainingRecord
from evitlab.studies.base import SMOKE, Budget, Conditions, Run, Study, Training, lab_budget
from evitlab.training.evaluation import evaluate

MODEL, WEIGHTS = "efficientvit_m0_p4", "efficientvit_m0_cifar10"
SIZES = (32, 48, 64)


def _runs(scale: str) -> tuple[Run, ...]:
    sizes = SIZES if scale != "smoke" else SIZES[1:2]
    before = [Run(f"before-{size}", partial(_evaluate, size)) for size in sizes]
    return (*before, *(Run(f"after-{size}", partial(_train, size)) for size in sizes))


def training(conditions: Conditions) -> Training:
    """The budget of each fine-tuning; the image size is put in by the run."""
    changes = {"batch_size": 64, "lr": 5e-4}  # a quarter of what the weights were trained with
    todo = Training(MODEL, weights=find_checkpoint(WEIGHTS), changes=changes)
    if conditions.scale == "smoke":
        return todo.within(SMOKE)
    if conditions.scale == "quick":
        return todo.within(Budget(1, 1_000, 500))
    return todo.within(lab_budget(conditions, cpu=Budget(1, 8_000, 2_000), gpu=Budget(10)))


def _evaluate(size: int, folder: Path, conditions: Conditions) -> Accuracy:
    todo = replace(training(conditions), img_size=size)
    _, val_data = todo.data(conditions)
    known = (weights_card(WEIGHTS) or {}).get("class_names", ())
    if tuple(known) != val_data.class_names:
        raise ValueError(
            f"data: expected the classes of {WEIGHTS} ({', '.join(known[:3])}, …), got those of "
            f"{val_data.title} ({', '.join(val_data.class_names[:3])}, …)"
        )
    with cpu_threads(conditions.threads), torch.random.fork_rng([]):
        found = evaluate(todo.build(val_data.num_classes), val_data, device=conditions.device)
    return replace(found, environment=replace(found.environment, scale=conditions.scale))


def _train(size: int, folder: Path, conditions: Conditions) -> Record:
    return replace(training(conditions), img_size=size).run(folder, conditions)[1]


STUDY = Study(
    "resolution",
    "a trained model at larger images, as it is and fine-tuned there",
    (TrainingRecord, Accuracy),
    _runs,
)

"""Our own Fig. 1: the family and its peers, trained alike on small images, beside their speed.

A run is named by its model; `speeds` times them all at the size they were trained at.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from evitlab.models.finer import finer_features
from evitlab.models.zoo import create_model, list_models
from evitlab.records import Record, ThroughputSweep, TrainingRecord
from evitlab.studies.base import SMOKE, Budget, Conditions, Run, Study, Training, lab_budget
from evitlab.studies.speeds import speeds_run

FAMILY = tuple(f"efficientvit_m{i}_p4" for i in range(6))
PEERS = (
    "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_b0", "deit_t_p4", "swin_t_p2",
)  # fmt: skip
IMG_SIZE = 32


def _runs(scale: str) -> tuple[Run, ...]:
    names = (*FAMILY, *PEERS) if scale != "smoke" else (FAMILY[0], PEERS[0])
    trainings = [Run(name, partial(_train, name)) for name in names]
    return (*trainings, speeds_run(partial(_models, names), img_size=IMG_SIZE))


def _models(names: tuple[str, ...]) -> dict[str, Any]:
    return {name: _build(name).eval() for name in names}


def _build(name: str) -> Any:
    if name in list_models():
        return create_model(name, img_size=IMG_SIZE, num_classes=10)
    return finer_features(name, img_size=IMG_SIZE, num_classes=10)


def training(conditions: Conditions) -> Training:
    """The budget of each run, the same for all; the model is put in by the run."""
    if conditions.scale == "smoke":
        return Training("").within(SMOKE)
    changes = {"batch_size": 64}  # more steps out of a short run
    if conditions.scale == "quick":
        return Training("", changes=changes).within(Budget(1, 2_000, 1_000))
    cpu, gpu = Budget(2, 20_000), Budget(50)
    budget = lab_budget(conditions, cpu=cpu, gpu=gpu)
    return Training("", changes={} if budget is gpu else changes).within(budget)


def _train(name: str, folder: Path, conditions: Conditions) -> Record:
    return replace(training(conditions), model=name).run(folder, conditions)[1]


STUDY = Study(
    "family",
    "Fig. 1 on small images: M0 to M5 and their peers, trained alike, beside their speed",
    (TrainingRecord, ThroughputSweep),
    _runs,
)

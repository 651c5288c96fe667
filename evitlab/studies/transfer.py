"""Table 4: pretrained weights fine-tuned on other data, beside training from scratch.

`pretrained` is trained on Tiny-ImageNet; for each data set NAME `finetuned-NAME` starts from it and
`scratch-NAME` from nothing, both with the same images, recipe and epochs. Second seeds end in
`-seed1`. Below the scale "lab", NAME is cifar10 whatever the data are; the record says which.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from evitlab.datasets import EMBEDDED, is_at_hand
from evitlab.records import Record, TrainingRecord
from evitlab.studies.base import SMOKE, Budget, Conditions, Run, Study, Training, lab_budget

MODEL, IMG_SIZE = "efficientvit_m0_p4", 32
DATA_SETS = ("cifar10", "cifar100", "flowers102", "pets", "cars")
SEEDS = (0, 1)
_SOURCE = "tiny_imagenet"


def run_name(start: str, data: str, seed: int) -> str:
    """ "finetuned-cifar10", or "finetuned-cifar10-seed1" where the seed is not 0."""
    return f"{start}-{data}{f'-seed{seed}' * bool(seed)}"


def _runs(scale: str) -> tuple[Run, ...]:
    runs = [Run("pretrained", _pretrain)]
    for seed in SEEDS if scale == "lab" else SEEDS[:1]:
        for data in DATA_SETS if scale == "lab" else DATA_SETS[:1]:
            name = partial(run_name, data=data, seed=seed)
            start = partial(_train, data, seed)
            runs.append(Run(name("finetuned"), partial(start, True), after=("pretrained",)))
            runs.append(Run(name("scratch"), partial(start, False)))
    return tuple(runs)


def _pretrain(folder: Path, conditions: Conditions) -> Record:
    source = _SOURCE if is_at_hand(_SOURCE) or conditions.scale == "lab" else EMBEDDED
    todo = Training(MODEL, changes={"batch_size": 64}, data_name=source)
    if conditions.scale == "smoke":
        return todo.within(SMOKE).run(folder, conditions)[1]
    if conditions.scale == "quick":
        return todo.within(Budget(1, 2_000, 1_000)).run(folder, conditions)[1]
    budget = lab_budget(conditions, cpu=Budget(2), gpu=Budget(30))
    return todo.within(budget).run(folder, conditions)[1]


def finetuning(conditions: Conditions) -> Training:
    """The budget of each transfer, the same from pretrained weights and from scratch."""
    todo = Training(MODEL, recipe_name="finetune", changes={"batch_size": 64})
    if conditions.scale == "smoke":
        return todo.within(SMOKE)
    if conditions.scale == "quick":
        return todo.within(Budget(1, 1_000, 1_000))
    return todo.within(lab_budget(conditions, cpu=Budget(4, 5_000), gpu=Budget(30)))


def _train(
    data: str, seed: int, pretrained: bool, folder: Path, conditions: Conditions
) -> Record:
    todo = replace(finetuning(conditions), seed=seed)
    if conditions.scale == "lab":  # elsewhere the data set is what the conditions say
        if conditions.data is not None:
            raise ValueError(
                f"data: expected none at the scale lab, whose runs name theirs ({data}), got "
                f"{conditions.data!r}"
            )
        todo = replace(todo, data_name=data)
    if pretrained:
        todo = replace(todo, weights=_pretrained_weights(folder, conditions))
    return todo.run(folder, conditions)[1]


def _pretrained_weights(folder: Path, conditions: Conditions) -> Path:
    """Those of `pretrained`, trained again where its record is all that is left of it."""
    weights = folder.parent / "pretrained" / "model.safetensors"
    if not weights.is_file():
        own = folder / "pretrained"  # runs beside this one may train it, too
        _pretrain(own, conditions)
        weights.parent.mkdir(parents=True, exist_ok=True)
        os.replace(own / weights.name, weights)
    return weights


STUDY = Study(
    "transfer",
    "Table 4: fine-tuned from pretrained weights, beside training from scratch",
    (TrainingRecord,),
    _runs,
)

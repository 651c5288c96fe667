"""Fig. 5: DeiT-T and Swin-T, trained, scored, pruned by their Taylor scores and trained again.

For each model NAME: `NAME` is the baseline, `NAME-scores` its channels' scores, `NAME-cuts` what
the scores mean, `NAME-taylor` the pruned model with its recovery, `NAME-deep` one that is cut much
further, `NAME-random` and others the cut alone by other criteria at the same budget, `NAME-peers`
the same beside Torch-Pruning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evitlab.analysis.channels import channel_importance
from evitlab.analysis.conditions import cpu_threads
from evitlab.analysis.cuts import measure_cuts
from evitlab.analysis.peers import compare_pruning
from evitlab.analysis.recovery import prune_and_recover, sample
from evitlab.models.zoo import load_model
from evitlab.records import (
    CRITERIA,
    ChannelCuts,
    ChannelImportance,
    PruningComparison,
    PruningRecord,
    Record,
    TrainingRecord,
)
from evitlab.studies.base import Conditions, Run, Study, Training

MACS, DEEP = 0.7, 0.4  # shares of the multiply-accumulates that are left
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "swin_t": ("swin_t_p2", {"embed_dim": 24}),
    "deit_t": ("deit_t_p4", {"embed_dim": 48}),
}


@dataclass(frozen=True)
class _Size:
    """How much a scale trains and reads."""

    epochs: int
    limit: int | None  # training images of the baseline; None: all
    val_limit: int | None
    images: int  # that scores are taken from
    steps: int  # cuts
    recovery_epochs: int
    recovery_limit: int  # training images of the recovery
    recovery_val: int  # validation images of all that is pruned


_SIZES = {
    "smoke": _Size(1, 256, 100, 64, 2, 1, 128, 100),
    "quick": _Size(1, 2_000, 1_000, 256, 3, 1, 1_000, 1_000),
    "lab": _Size(4, None, None, 512, 5, 2, 15_000, 5_000),
}


def _runs(scale: str) -> tuple[Run, ...]:
    runs: list[Run] = []
    for name in MODELS if scale != "smoke" else ("deit_t",):
        rest: dict[str, Callable[..., Record]] = {
            "scores": _scores,
            "cuts": _cuts,
            **{criterion: partial(_pruned, criterion, MACS) for criterion in CRITERIA},
            "deep": partial(_pruned, "taylor", DEEP),
            "peers": _peers,
        }
        runs.append(Run(name, partial(_baseline, name, scale)))
        for what, carry_out in rest.items():
            if what != "peers" or scale != "smoke":  # an optional package, and minutes
                runs.append(Run(f"{name}-{what}", partial(carry_out, name, scale), after=(name,)))
    return tuple(runs)


def training(name: str, scale: str) -> Training:
    """Of the baseline."""
    model, overrides = MODELS[name]
    size = _SIZES[scale]
    return Training(model, overrides, size.epochs, size.limit, size.val_limit)


def recovery(name: str, scale: str) -> Training:
    """Of a pruned model: gentler and shorter, on part of the images."""
    size = _SIZES[scale]
    return dataclasses.replace(
        training(name, scale),
        epochs=size.recovery_epochs,
        limit=size.recovery_limit,
        val_limit=size.recovery_val,
        changes={"lr": 5e-4, "validate_every": 1},
    )


def _baseline(name: str, scale: str, folder: Path, conditions: Conditions) -> TrainingRecord:
    return training(name, scale).run(folder, conditions)[1]


def _scores(name: str, scale: str, folder: Path, conditions: Conditions) -> ChannelImportance:
    with cpu_threads(conditions.threads):
        data, _ = recovery(name, scale).data(conditions)
        model = load_model(folder.parent / name)
        record = channel_importance(model, sample(data, _SIZES[scale].images))
    return _dated(record, data.title, conditions)


def _cuts(name: str, scale: str, folder: Path, conditions: Conditions) -> ChannelCuts:
    with cpu_threads(conditions.threads):
        data, _ = recovery(name, scale).data(conditions)
        size = _SIZES[scale].images
        (batch,) = sample(data, size, batch_size=size)
        return measure_cuts(
            load_model(folder.parent / name),
            batch,
            dataset=data.title,
            command=conditions.command,
            scale=conditions.scale,
        )


def _pruned(
    criterion: str, macs: float, name: str, scale: str, folder: Path, conditions: Conditions
) -> PruningRecord:
    todo, size = recovery(name, scale), _SIZES[scale]
    train_data, val_data = todo.data(conditions)
    with cpu_threads(conditions.threads):
        return prune_and_recover(
            load_model(folder.parent / name),
            train_data,
            val_data,
            macs=macs,
            out_dir=folder,
            recipe=todo.recipe if criterion == "taylor" else None,
            criterion=criterion,
            steps=size.steps,
            images=size.images,
            device=conditions.device,
            command=conditions.command,
            scale=conditions.scale,
        )


def _peers(name: str, scale: str, folder: Path, conditions: Conditions) -> PruningComparison:
    size = _SIZES[scale]
    todo = dataclasses.replace(recovery(name, scale), epochs=1, limit=size.recovery_limit // 2)
    train_data, val_data = todo.data(conditions)
    with cpu_threads(conditions.threads):
        return compare_pruning(
            load_model(folder.parent / name),
            train_data,
            val_data,
            todo.recipe,
            macs=MACS,
            out_dir=folder,
            steps=size.steps,
            images=size.images,
            command=conditions.command,
            scale=conditions.scale,
        )


def _dated(record: ChannelImportance, title: str, conditions: Conditions) -> ChannelImportance:
    card = dataclasses.replace(record.environment, dataset=title, scale=conditions.scale, seed=0)
    return dataclasses.replace(record, environment=card)


STUDY = Study(
    "channel-importance",
    "Fig. 5: which channels of Q, K, V and FFN are left when Swin-T and DeiT-T are pruned",
    (TrainingRecord, ChannelImportance, ChannelCuts, PruningRecord, PruningComparison),
    _runs,
)

"""A study's runs in one table, whatever their records are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from evitlab import paper
from evitlab.records import AblationRun, Accuracy, Record, TrainingRecord

_SEED = re.compile(r"-seed(\d+)$")
_COLUMNS = (
    "run", "variant", "seed", "model", "title", "family", "dataset", "img_size", "epochs",
    "train_images", "macs", "params", "top1", "top1_error", "val_images", "hours", "scale",
    "hardware", "command",
)  # fmt: skip
_BASELINES = {"deit_t": ("DeiT-T", "DeiT"), "swin_t": ("Swin-T", "Swin")}


def study_frame(study: Mapping[str, Record]) -> pd.DataFrame:
    """One row per run that was trained or evaluated, in the order of the study.

    Columns: run, variant (the run without its seed), seed, model, title and family (as in figures),
    dataset, img_size (pixels of the longer side), epochs, train_images, macs, params, top1
    (percent, of the final weights), top1_error (half of the 95 % interval that the number of
    validation images leaves), val_images, hours, scale, hardware, command. What an evaluation alone
    has not is missing; of runs of other kinds, such as measured speeds, there is no row.

    Args:
        study: what `load_study` gives.

    Raises:
        ValueError: no run of the study was trained or evaluated.
    """
    rows = [
        {"run": run, "variant": _SEED.sub("", run), "seed": _seed(run), **found}
        for run, record in study.items()
        if (found := _row(record))
    ]
    if not rows:
        raise ValueError("study: expected records of trained or evaluated runs, got none")
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _row(record: Record) -> dict[str, Any]:
    if isinstance(record, AblationRun):
        return _row(record.training)
    if isinstance(record, Accuracy):
        return {**_accuracy(record), "hardware": record.environment.hardware}
    if not isinstance(record, TrainingRecord):
        return {}
    title, family = _name(record.model)
    return {
        "model": record.model,
        "title": title,
        "family": family,
        "img_size": max(record.img_size),
        "epochs": len(record.history),
        "train_images": record.train_images,
        "macs": record.macs,
        "params": record.params,
        "hours": record.seconds / 3600,
        "scale": record.environment.scale,
        "hardware": record.environment.hardware,
        "command": record.command,
        **_accuracy(record.final),
        "dataset": record.dataset,
    }


def _accuracy(found: Accuracy) -> dict[str, Any]:
    share = found.top1 / 100
    return {
        "top1": found.top1,
        "top1_error": 196 * math.sqrt(share * (1 - share) / found.n),
        "val_images": found.n,
        "dataset": found.environment.dataset,
    }


def _seed(run: str) -> int:
    found = _SEED.search(run)
    return int(found[1]) if found else 0


def _name(model: str) -> tuple[str, str]:
    """Title and family of a model in figures; a small-image variant is called by its original."""
    original = re.sub(r"_p\d+$", "", model)
    if original in _BASELINES:
        return _BASELINES[original]
    names = (original, f"timm/{original}")
    return next((paper.MODELS[name] for name in names if name in paper.MODELS), (model, model))

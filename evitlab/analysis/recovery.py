"""Prune a model and train what is left: accuracy before, right after the cut, and recovered.

Paper: Section 2.3 (Fig. 5: Swin-T, 79.1 % before, 76.5 % pruned and trained again).
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evitlab.analysis.pruning import prune
from evitlab.datasets import AnyDataset
from evitlab.models.zoo import load_model, model_name
from evitlab.records import PruningRecord
from evitlab.training.checkpoint import save_weights
from evitlab.training.classifier import train
from evitlab.training.evaluation import evaluate
from evitlab.training.recipe import Recipe


def prune_and_recover(
    model: nn.Module,
    train_data: AnyDataset,
    val_data: AnyDataset,
    *,
    macs: float,
    out_dir: str | os.PathLike[str],
    recipe: Recipe | None = None,
    criterion: str = "taylor",
    steps: int = 5,
    images: int = 512,
    seed: int = 0,
    device: str | torch.device | None = None,
    command: str = "",
    scale: str | None = None,
) -> PruningRecord:
    """Prune to a share of the MACs, measure, train; stopped at any point, the same call continues.

    Args:
        model: trained, as `prune` takes it; not touched.
        train_data: what the scores are taken from, and what is trained on.
        val_data: what the three accuracies are measured on.
        macs: share of the multiply-accumulates that may be left.
        out_dir: receives `pruned.safetensors` and `pruned.json` (right after the cut), `recovery/`
            (a training run), and in the end `model.safetensors` and `record.json`.
        recipe: of the training; None leaves the model as it was cut.
        criterion: see `channel_importance`.
        steps: cuts, with the scores refreshed before each.
        images: training images, drawn at random, that the scores of one step are taken from.
        seed: draws these images; also of the criterion "random".
        device: where to score, measure and train; None takes a GPU if there is one.
        command: the command line that regenerates the record, kept in it.
        scale: smoke, quick, lab or paper, kept in the record.

    Raises:
        ValueError: as `prune` and `train`, or `out_dir` holds another pruned model.
        OSError: `out_dir` cannot be written.

    Pitfall: a model right after pruning can be at chance, and its recovery says how good the cut
    was only beside that of other cuts.
    """
    out = Path(out_dir)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    asked = {
        "model": model_name(model), "criterion": criterion, "budget": {"macs": float(macs)},
        "steps": steps,
    }  # fmt: skip
    names = tuple(getattr(model, "class_names", ())) or train_data.class_names
    if (out / "pruned.json").exists() and (out / "pruned.safetensors").exists():
        record = PruningRecord.load(out / "pruned.json")
        _check_same(record, asked, seed, images, train_data, out)
        pruned: Any = load_model(out / "pruned.safetensors")
    else:
        out.mkdir(parents=True, exist_ok=True)
        model = model.to(device)
        before = evaluate(model, val_data)
        result = prune(
            model,
            sample(train_data, images, seed=seed, device=device),
            macs=float(macs),
            criterion=criterion,
            steps=steps,
            seed=seed,
            img_size=train_data.img_size,
            command=command,
        )
        pruned = result.model
        card = dataclasses.replace(
            result.record.environment, seed=seed, dataset=train_data.title, scale=scale
        )
        record = dataclasses.replace(
            result.record, before=before, pruned=evaluate(pruned, val_data), environment=card
        )
        save_weights(pruned, out / "pruned.safetensors", class_names=names)
        record.save(out / "pruned.json")
    if recipe is not None:
        recovery = train(
            pruned,
            train_data,
            val_data,
            recipe,
            out_dir=out / "recovery",
            device=device,
            command=command,
            scale=scale,
        )
        record = dataclasses.replace(record, recovered=recovery.final, recovery=recovery)
    save_weights(pruned, out / "model.safetensors", class_names=names)
    record.save(out / "record.json")
    return record


def sample(
    data: AnyDataset,
    images: int,
    *,
    batch_size: int = 64,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> list[tuple[Tensor, Tensor]]:
    """Batches of images drawn at random from a data set, uint8 [B, C, H, W], with labels [B]."""
    if images < 1:
        raise ValueError(f"images: expected at least 1, got {images}")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:images]
    return list(data.batches(order, batch_size, device=device))


def _check_same(
    record: PruningRecord,
    asked: dict[str, Any],
    seed: int,
    images: int,
    data: AnyDataset,
    out: Path,
) -> None:
    """Raise where the model that was cut in `out` is not the one that is asked for."""
    there = {name: getattr(record, name) for name in asked}
    wanted = {**asked, "seed": seed, "dataset": data.title}
    there |= {"seed": record.environment.seed, "dataset": record.environment.dataset}
    if record.images:  # criteria that read no image have none
        there["images"], wanted["images"] = record.images, min(images, len(data))
    differing = [
        f"{name} {there[name]} there, {wanted[name]} asked for"
        for name in wanted
        if there[name] != wanted[name]
    ]
    if differing:
        raise ValueError(
            f"out_dir: {out} holds another pruned model ({'; '.join(differing)}); choose another "
            "folder"
        )

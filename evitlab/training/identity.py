"""The identity of a run: what must be equal for it to be continued, and what it left behind."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from evitlab.datasets import AnyDataset
from evitlab.models.card import read_card
from evitlab.models.weights import find_checkpoint, load_weights
from evitlab.models.zoo import config_fields
from evitlab.records import Record, write_atomically
from evitlab.training.checkpoint import newest_checkpoint, one_before
from evitlab.training.distillation import teacher_identity
from evitlab.training.recipe import Recipe

# Without `sync_norm`, of no effect in one process, as all runs were that do not have it.
_DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(Recipe)
    if field.default is not dataclasses.MISSING and field.name != "sync_norm"
}
AnyRecord = TypeVar("AnyRecord", bound=Record)


def run_identity(
    model: nn.Module,
    data: AnyDataset,
    recipe: Recipe,
    teacher: nn.Module | None = None,
    weights: str | None = None,
) -> dict[str, Any]:
    """What must be equal for a run to be continued."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    return {
        "model": cfg.get("architecture") or type(model).__name__,
        "img_size": data.img_size,
        "num_classes": getattr(model, "num_classes", data.num_classes),
        "dataset": data.title,
        "train_images": len(data),
        "recipe": dataclasses.asdict(recipe),
        "teacher": teacher_identity(teacher),
        "weights": weights,
        # Overrides such as `cascade=False` change the function, but no name and no weight's shape.
        "config": config_fields(model),
        "channel_widths": getattr(model, "channel_widths", {}),  # of a pruned model
    }


def weights_identity(weights: str | os.PathLike[str] | None) -> str | None:
    """A fingerprint of the file that a run starts from: other weights make another run.

    Args:
        weights: as in `load_weights`; None where the model is drawn anew.

    Raises:
        FileNotFoundError: no such weights.
    """
    if weights is None or weights == "timm":  # the hub's, which its name stands for
        return weights
    with open(find_checkpoint(weights), "rb") as file:
        return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"


def recorded(identity: dict[str, Any], record_type: type[Record]) -> list[str]:
    """What of an identity a run's record holds, too."""
    fields: Any = record_type  # every record is a dataclass
    known = {field.name for field in dataclasses.fields(fields)}
    return [name for name in identity if name in known]


def earlier_run(
    model: nn.Module, identity: dict[str, Any], out: Path, record_type: type[AnyRecord]
) -> AnyRecord | dict[str, Any] | None:
    """What a run left in `out`: its record, loading its weights, or its last checkpoint.

    Args:
        model: of the run that is asked for.
        identity: of it.
        out: the run's folder.
        record_type: of such runs.

    Raises:
        ValueError: it is a different run, or a file is damaged.
    """
    if (out / "record.json").exists() and (out / "model.safetensors").exists():
        return finished_run(model, identity, out, record_type)
    last = out / "checkpoints" / "last.pt"
    state = newest_checkpoint(last)
    if state is None:
        return None
    found = state.get("identity")
    if not isinstance(found, dict) or not isinstance(found.get("recipe"), dict):
        raise ValueError(f"{last}: expected the checkpoint of a run, got one that names no recipe")
    check_same_run(found, identity, out)
    return state


def begin_run(identity: dict[str, Any], out: Path, *, resume: bool) -> None:
    """Write `recipe.json`, and remove what an earlier run left where it is not continued.

    Raises:
        OSError: `out` cannot be written, which shall cost no epoch.
    """
    write_atomically(out / "recipe.json", json.dumps(identity, indent=1) + "\n")
    if not resume:
        remove_earlier_run(out)


def finished_run(
    model: nn.Module, identity: dict[str, Any], out: Path, record_type: type[AnyRecord]
) -> AnyRecord:
    """The record of the run in `out`, after its weights were loaded; errors if it is another."""
    record = record_type.load(out / "record.json")
    found = {name: getattr(record, name) for name in recorded(identity, record_type)}
    weights = out / "model.safetensors"
    ours = identity["config"] or identity["channel_widths"]  # other weights need no card
    card = read_card(weights) if ours else {}
    found |= {name: card.get(name, {}) for name in ("config", "channel_widths")}
    check_same_run(found, identity, out)
    load_weights(model, weights)
    return record


def check_same_run(found: dict[str, Any], wanted: dict[str, Any], out: Path) -> None:
    """Compare what the run in `out` recorded.

    A field of the recipe that is younger than it had its default's effect; another one is not
    compared.
    """

    def flat(run: dict[str, Any]) -> dict[str, Any]:
        recipe = {**_DEFAULTS, **run["recipe"]}
        plain = json.loads(json.dumps({**run, "recipe": recipe}))  # JSON has no tuples
        younger = {"teacher": None, "weights": None}
        return {**younger, **plain.pop("config", {}), **plain.pop("recipe"), **plain}

    there, asked_for = flat(found), flat(wanted)
    pruned = [run.pop("channel_widths", {}) for run in (there, asked_for)]
    differing = [
        f"{key} {value} there, {asked_for.get(key)} asked for"
        for key, value in there.items()
        if asked_for.get(key) != value
    ]
    if pruned[0] != pruned[1]:  # too many numbers for a message
        how = ["pruned" if widths else "whole" for widths in pruned]
        other = "pruned to other widths" if all(pruned) else how[1]
        differing.append(f"model {how[0]} there, {other} asked for")
    if differing:
        raise ValueError(
            f"out_dir: {out} holds a different run ({'; '.join(differing)}); choose another "
            "folder, or start over with resume=False (--no-resume)"
        )


def remove_earlier_run(out: Path) -> None:
    """Else a run that is stopped early would be continued, or reported, as the one before it."""
    checkpoints = ("checkpoints/last.pt", "checkpoints/best.safetensors")
    results = ("record.json", "results.json", "model.safetensors", "model_ema.safetensors")
    for name in (*results, *checkpoints):
        (out / name).unlink(missing_ok=True)
    one_before(out / "checkpoints" / "last.pt").unlink(missing_ok=True)

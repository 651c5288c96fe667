"""Train and evaluate: one loop, readable from top to bottom.

A run is a function of (model, data, recipe): every random number of step s of epoch e is drawn
from a generator seeded with (seed, e, s), so a run that was killed continues from its last
checkpoint to the very same weights.
"""

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from tqdm.auto import tqdm

from evitlab.datasets import Dataset
from evitlab.models.cost import count_macs, count_params
from evitlab.models.zoo import normalization
from evitlab.records import (
    Accuracy,
    EpochLog,
    TrainingRecord,
    environment_card,
    write_atomically,
)
from evitlab.training.augment import Augment, normalize
from evitlab.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from evitlab.training.recipe import Recipe


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; the message names step, rate and last good checkpoint."""


def train(
    model: nn.Module,
    train_data: Dataset,
    val_data: Dataset,
    recipe: Recipe,
    *,
    out_dir: str | os.PathLike[str],
    resume: bool = True,
    device: str | torch.device | None = None,
    command: str = "",
    scale: str | None = None,
) -> TrainingRecord:
    """Train a classifier; leaves weights, checkpoints and the record in `out_dir`.

    Args:
        model: takes [B, C, H, W], gives [B, classes]; moved to `device` and trained in place.
        train_data: what to learn from; its images decide the image size.
        val_data: validated every `recipe.validate_every` epochs and at the end.
        recipe: hyperparameters.
        out_dir: receives `model.safetensors` (final weights), `record.json` and `checkpoints/`
            (`last.pt`, every epoch, and `best.safetensors`, the highest validation top-1).
        resume: continue a run that was stopped, and return the record of a finished one; False
            starts over.
        device: where to train; None takes a GPU if there is one.
        command: the command line that regenerates the record, kept in it.
        scale: smoke, quick, lab or paper, kept in the record.

    Raises:
        ValueError: data and model do not fit, or `out_dir` holds a different run.
        NonFiniteLoss: the loss is NaN or infinite.
        OSError: `out_dir` cannot be written.

    Paper: Section 4.1.
    Pitfall: `best` is chosen on the validation data, so report `final` where that is a test set.
    """
    out = Path(out_dir)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    _check_fit(model, train_data, val_data)
    identity = _identity(model, train_data, recipe)
    if resume and (out / "record.json").exists():
        record = TrainingRecord.load(out / "record.json")
        _check_same_run(_identity_of(record), identity, out)
        return record
    last = out / "checkpoints" / "last.pt"
    # Written first, so that a folder that cannot be written costs no epoch.
    write_atomically(out / "recipe.json", json.dumps(identity, indent=1) + "\n")
    names = train_data.class_names

    model.to(device, memory_format=torch.channels_last)
    step_model = torch.compile(model) if recipe.compile else model
    optimizer = torch.optim.AdamW(
        param_groups_weight_decay(
            model,
            recipe.weight_decay,
            no_weight_decay_list=getattr(model, "no_weight_decay", set)(),
        ),
        lr=recipe.peak_lr,
        betas=recipe.betas,
        eps=recipe.eps,
        fused=device.type in ("cpu", "cuda"),
    )
    ema = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay else None
    mean, std = normalization(model)
    augment = Augment(
        dataclasses.replace(recipe, crop="none") if train_data.crops_on_load else recipe,
        num_classes=model.num_classes,
        mean=mean,
        std=std,
    )
    history: list[EpochLog] = []
    if resume and last.exists():
        state = load_checkpoint(last)
        _check_same_run(state["identity"], identity, out)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if ema:
            ema.module.load_state_dict(state["ema"])
        history = [EpochLog(**log) for log in state["history"]]

    steps = max(1, len(train_data) // recipe.batch_size)
    images = steps * min(recipe.batch_size, len(train_data))
    bar = tqdm(
        total=images * recipe.total_epochs,
        initial=images * len(history),
        unit="img",
        unit_scale=True,
        disable=None if sys.stderr.isatty() else False,
        mininterval=1,
    )
    clipped = [p for name, p in model.named_parameters() if not name.startswith("head.")]
    with bar, torch.random.fork_rng():
        for epoch in range(len(history) + 1, recipe.total_epochs + 1):
            model.train()
            order = _epoch_order(len(train_data), recipe, epoch)[:images]
            batches = train_data.batches(
                order, recipe.batch_size, device=device, train=True, seed=_seed(recipe, epoch)
            )
            total_loss = torch.zeros((), device=device)
            began = time.perf_counter()
            for step, (pixels, labels) in enumerate(batches):
                rate = recipe.learning_rate(epoch - 1 + step / steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                seed = _seed(recipe, epoch, step)
                torch.manual_seed(seed)  # stochastic depth
                inputs, targets = augment(pixels, labels, torch.Generator().manual_seed(seed))
                inputs = inputs.contiguous(memory_format=torch.channels_last)
                with _autocast(device, recipe.precision):
                    loss = F.cross_entropy(step_model(inputs), targets)
                optimizer.zero_grad()
                loss.backward()
                if recipe.clip == "agc":
                    adaptive_clip_grad(clipped, recipe.clip_grad)
                elif recipe.clip == "norm":
                    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
                optimizer.step()
                if ema:
                    ema.update(model)
                total_loss += loss.detach()
                if device.type == "cpu" or step % 20 == 0 or step == steps - 1:
                    if not math.isfinite(total_loss.item()):
                        raise NonFiniteLoss(
                            f"loss is not finite at epoch {epoch}, step {step + 1} of {steps}, "
                            f"learning rate {rate:.3g}; last good checkpoint: "
                            f"{last if last.exists() else 'none yet'}"
                        )
                    mean_loss = total_loss.item() / (step + 1)
                    bar.set_description(f"epoch {epoch}/{recipe.total_epochs}", refresh=False)
                    bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
                bar.update(len(labels))
            seconds = time.perf_counter() - began
            log = EpochLog(
                epoch=epoch,
                train_loss=mean_loss,
                learning_rate=rate,
                img_per_s=images / seconds,
                seconds=seconds,
            )
            if epoch % recipe.validate_every == 0 or epoch == recipe.total_epochs:
                accuracy = evaluate(model, val_data, device=device)
                log = dataclasses.replace(
                    log, val_top1=accuracy.top1, val_top5=accuracy.top5, val_loss=accuracy.loss
                )
                bar.write(f"epoch {epoch}: loss {mean_loss:.3f}, top-1 {accuracy.top1:.2f} %")
            history.append(log)
            if log.val_top1 is not None and epoch == _best_epoch(history):
                save_weights(model, out / "checkpoints" / "best.safetensors", class_names=names)
            save_checkpoint(
                {
                    "identity": identity,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.module.state_dict() if ema else None,
                    "history": [dataclasses.asdict(log) for log in history],
                },
                last,
            )
    final = evaluate(model, val_data, device=device)
    if ema:
        save_weights(ema.module, out / "model_ema.safetensors", class_names=names)
    save_weights(model, out / "model.safetensors", class_names=names)
    record = TrainingRecord(
        **identity,
        params=count_params(model),
        macs=count_macs(model, train_data.img_size),
        history=tuple(history),
        final=final,
        best_epoch=_best_epoch(history),
        seconds=sum(log.seconds for log in history),
        command=command,
        environment=environment_card(
            device=device,
            precision=_precision(device, recipe.precision),
            layout="channels_last",
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            dataset=train_data.title,
            scale=scale,
        ),
    )
    record.save(out / "record.json")
    return record


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Dataset,
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
        ValueError: no images, or labels outside the model's classes.
    """
    if len(data) == 0:
        raise ValueError("data: expected at least one image, got none")
    _check_labels(model, data)
    home = next(model.parameters()).device
    device = torch.device(device) if device else home
    mean, std = normalization(model)
    hits = torch.zeros(2, dtype=torch.float64)
    loss = torch.zeros((), dtype=torch.float64)
    with _mode(model.to(device), training=False):
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
            hits += torch.stack([ranked[:, 0].sum(), ranked.sum()]).cpu()
    model.to(home)
    top1, top5 = (100 * hits / len(data)).tolist()
    return Accuracy(
        top1=top1,
        top5=top5,
        loss=loss.item() / len(data),
        n=len(data),
        environment=environment_card(
            device=device, layout="channels_last", batch_size=batch_size, dataset=data.title
        ),
    )


def _check_labels(model: nn.Module, data: Dataset) -> None:
    classes = getattr(model, "num_classes", data.num_classes)
    if data.num_classes > classes:
        raise ValueError(
            f"data: expected labels of at most {classes} classes (the model's), got "
            f"{data.num_classes} in {data.title}"
        )


def _check_fit(model: nn.Module, train_data: Dataset, val_data: Dataset) -> None:
    if len(train_data) < 2 or len(val_data) == 0:
        raise ValueError(
            "train_data, val_data: expected at least 2 and 1 images, got "
            f"{len(train_data)} and {len(val_data)}"
        )
    _check_labels(model, train_data)
    if train_data.class_names != val_data.class_names:
        raise ValueError(
            f"val_data: expected the training data's {train_data.num_classes} classes, got "
            f"{val_data.num_classes} ({', '.join(val_data.class_names[:3])}, …)"
        )


def _identity(model: nn.Module, data: Dataset, recipe: Recipe) -> dict[str, Any]:
    """What must be equal for a run to be continued; the start of its record."""
    return {
        "model": model.pretrained_cfg["architecture"],
        "img_size": data.img_size,
        "num_classes": model.num_classes,
        "dataset": data.title,
        "train_images": len(data),
        "recipe": dataclasses.asdict(recipe),
    }


def _identity_of(record: TrainingRecord) -> dict[str, Any]:
    names = ("model", "img_size", "num_classes", "dataset", "train_images", "recipe")
    return {name: getattr(record, name) for name in names}


def _check_same_run(found: dict[str, Any], wanted: dict[str, Any], out: Path) -> None:
    flat_found, flat_wanted = ({**run, **run["recipe"]} for run in (found, wanted))
    differing = [
        f"{key} {flat_found.get(key)} there, {value} asked for"
        for key, value in flat_wanted.items()
        if key != "recipe" and flat_found.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"out_dir: {out} holds a different run ({'; '.join(differing)}); choose another "
            "folder, or start over with resume=False (--no-resume)"
        )


def _best_epoch(history: list[EpochLog]) -> int:
    validated = [log for log in history if log.val_top1 is not None]
    return max(validated, key=lambda log: log.val_top1, default=history[-1]).epoch


def _seed(recipe: Recipe, epoch: int, step: int = -1) -> int:
    """One seed for each (run, epoch, step), apart from each other's neighbours."""
    return ((recipe.seed * 1_000_003 + epoch) * 1_000_003 + step + 1) % 2**63


def _epoch_order(count: int, recipe: Recipe, epoch: int) -> Tensor:
    """int64 [count]: a new permutation each epoch, each entry `repeats` times in a row."""
    generator = torch.Generator().manual_seed(_seed(recipe, epoch))
    order = torch.randperm(count, generator=generator)
    return order.repeat_interleave(recipe.repeats)[:count]


def _precision(device: torch.device, precision: str) -> str:
    if precision == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return precision


def _autocast(device: torch.device, precision: str) -> Any:
    if _precision(device, precision) == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training

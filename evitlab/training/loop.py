"""Train: one loop, readable from top to bottom.

A run is a function of (model, data, recipe): every random number of step s of epoch e is drawn
from a generator seeded with (seed, e, s), so a run that was killed continues from its last
checkpoint to the very same weights.
"""

import dataclasses
import json
import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from tqdm.auto import tqdm

from evitlab.datasets import AnyDataset, StreamingDataset
from evitlab.models.cost import count_macs, count_params
from evitlab.models.zoo import normalization
from evitlab.records import Accuracy, EpochLog, TrainingRecord, environment_card, write_atomically
from evitlab.training.augment import Augment
from evitlab.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from evitlab.training.distillation import Objective, check_teacher
from evitlab.training.evaluation import check_labels, checked_device, evaluate
from evitlab.training.identity import (
    RECORDED,
    check_same_run,
    finished_run,
    remove_earlier_run,
    run_identity,
)
from evitlab.training.optimizer import (
    all_but_classifier,
    build_optimizer,
    frozen,
    set_learning_rate,
    train_mode,
)
from evitlab.training.recipe import Recipe


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; the message names step, rate and last good checkpoint."""


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

    Raises:
        ValueError: data, model and teacher do not fit, no such device or scale, or `out_dir`
            holds a different run.
        NonFiniteLoss: the loss is NaN or infinite.
        OSError: `out_dir` cannot be written.

    Paper: Section 4.1.
    Pitfall: `best` is chosen on the validation data, so report `final` where that is a test set.
    """
    out = Path(out_dir)
    device = checked_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    _check_fit(model, train_data, val_data, recipe)
    check_teacher(model, recipe, teacher, train_data)
    identity = run_identity(model, train_data, recipe, teacher)
    card = environment_card(
        device=device,
        precision=_precision(device, recipe.precision),
        layout="channels_last",
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        dataset=train_data.title,
        scale=scale,
    )
    last = out / "checkpoints" / "last.pt"
    state = None
    if resume:
        if (out / "record.json").exists() and (out / "model.safetensors").exists():
            return finished_run(model.to(device), identity, out)
        if last.exists():
            state = load_checkpoint(last)
            check_same_run(state["identity"], identity, out)
    objective = Objective(model, recipe, teacher, train_data, device)
    # Written first, so that a folder that cannot be written costs no epoch.
    write_atomically(out / "recipe.json", json.dumps(identity, indent=1) + "\n")
    if not resume:
        remove_earlier_run(out)
    names = train_data.class_names

    model.to(device).to(memory_format=torch.channels_last)
    step_model = torch.compile(model) if recipe.compile else model
    optimizer = build_optimizer(model, recipe)
    if isinstance(train_data, StreamingDataset):  # it crops while it decodes
        train_data = dataclasses.replace(train_data, crop_scale=recipe.crop_scale)
    ema = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay else None
    mean, std = normalization(model)
    augment = Augment(
        dataclasses.replace(recipe, crop="none") if train_data.crops_on_load else recipe,
        num_classes=identity["num_classes"],
        mean=mean,
        std=std,
    )
    history: list[EpochLog] = []
    accuracy: Accuracy | None = None
    if state:
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
        mininterval=1,
    )
    # Other GPUs than the one in use are left out: there may be many, and torch warns of the time.
    clipped = all_but_classifier(model)
    own = [device] if device.type == "cuda" else []
    with bar, frozen(model, recipe.freeze), torch.random.fork_rng(own):
        for epoch in range(len(history) + 1, recipe.total_epochs + 1):
            train_mode(model, recipe.freeze)
            order = _epoch_order(len(train_data), recipe, epoch)[:images]
            batches = train_data.batches(
                order, recipe.batch_size, device=device, train=True, seed=_seed(recipe, epoch)
            )
            total_loss = torch.zeros((), device=device)
            began = time.perf_counter()
            for step, (pixels, labels) in enumerate(batches):
                rate = recipe.learning_rate(epoch - 1 + step / steps)
                set_learning_rate(optimizer, rate)
                seed = _seed(recipe, epoch, step)
                torch.manual_seed(seed)  # stochastic depth
                inputs, targets = augment(pixels, labels, torch.Generator().manual_seed(seed))
                inputs = inputs.contiguous(memory_format=torch.channels_last)
                with _autocast(device, recipe.precision):
                    loss = objective(step_model(inputs), inputs, targets)
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
                        raise _non_finite("loss", (epoch, step + 1, steps), rate, last)
                    mean_loss = total_loss.item() / (step + 1)
                    bar.set_description(f"epoch {epoch}/{recipe.total_epochs}", refresh=False)
                    bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
                bar.update(len(labels))
            seconds = time.perf_counter() - began
            log = EpochLog(epoch, mean_loss, rate, images / seconds, seconds)
            if epoch % recipe.validate_every == 0 or epoch == recipe.total_epochs:
                accuracy = evaluate(model, val_data, device=device)
                log = dataclasses.replace(
                    log, val_top1=accuracy.top1, val_top5=accuracy.top5, val_loss=accuracy.loss
                )
                bar.write(f"epoch {epoch}: loss {mean_loss:.3f}, top-1 {accuracy.top1:.2f} %")
            # The last step's update comes after its loss: no checkpoint may hold a broken one.
            if not math.isfinite(log.val_loss or 0) or not _is_finite(model):
                what = "loss" if log.val_loss is None else "validation loss"
                raise _non_finite(what, (epoch, steps, steps), rate, last)
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
    # A run that was stopped after its last epoch still has to be measured.
    final = accuracy or evaluate(model, val_data, device=device)
    if ema:
        save_weights(ema.module, out / "model_ema.safetensors", class_names=names)
    save_weights(model, out / "model.safetensors", class_names=names)
    record = TrainingRecord(
        **{name: identity[name] for name in RECORDED},
        params=count_params(model),
        macs=count_macs(model, train_data.img_size),
        history=tuple(history),
        final=final,
        best_epoch=_best_epoch(history),
        seconds=sum(log.seconds for log in history),
        command=command,
        environment=card,
    )
    record.save(out / "record.json")
    return record


def _check_fit(
    model: nn.Module,
    train_data: AnyDataset,
    val_data: AnyDataset,
    recipe: Recipe,
) -> None:
    sizes = len(train_data), len(val_data)
    if sizes[0] < 2 or sizes[1] < 1:
        raise ValueError(f"train_data, val_data: expected at least 2 and 1 images, got {sizes}")
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    if recipe.batch_size == 1 and any(isinstance(module, norms) for module in model.modules()):
        raise ValueError("batch_size: expected at least 2, as BatchNorm needs them, got 1")
    check_labels(model, train_data)
    if train_data.class_names != val_data.class_names:
        raise ValueError(
            f"val_data: expected the training data's {train_data.num_classes} classes, got "
            f"{val_data.num_classes} ({', '.join(val_data.class_names[:3])}, …)"
        )


def _is_finite(model: nn.Module) -> bool:
    return bool(torch.stack([v.isfinite().all() for v in model.state_dict().values()]).all())


def _non_finite(what: str, place: tuple[int, int, int], rate: float, last: Path) -> NonFiniteLoss:
    epoch, step, steps = place
    return NonFiniteLoss(
        f"{what} is not finite at epoch {epoch}, step {step} of {steps}, learning rate "
        f"{rate:.3g}; last good checkpoint: {last if last.exists() else 'none yet'}"
    )


def _best_epoch(history: list[EpochLog]) -> int:
    validated = [(log.val_top1, -log.epoch) for log in history if log.val_top1 is not None]
    return -max(validated)[1] if validated else history[-1].epoch


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

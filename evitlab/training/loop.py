"""Train: one loop, readable from top to bottom.

A run is a function of (model, data, recipe): every random number of step s of epoch e is drawn
from a generator seeded with (seed, e, s), so a run that was killed continues from its last
checkpoint to the very same weights. Started by `torchrun`, it is the same function, worked out by
several processes: `recipe.batch_size` counts the images of all of them. Not so with stochastic
depth or dropout, which each process draws for itself, without `recipe.sync_norm`, and with
streamed images (`Batches`).
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from tqdm.auto import tqdm

from evitlab.datasets import AnyDataset, StreamingDataset
from evitlab.models.cost import count_macs, count_params
from evitlab.models.zoo import normalization
from evitlab.records import Accuracy, EpochLog, TrainingRecord, environment_card
from evitlab.training.augment import Augment
from evitlab.training.batches import Batches, check_norms, resident, step_seed
from evitlab.training.checkpoint import save_checkpoint, save_weights
from evitlab.training.distillation import Objective, check_teacher
from evitlab.training.distributed import Ranks, gradients_stay, joined, own_device
from evitlab.training.evaluation import check_labels, checked_device, evaluate
from evitlab.training.failures import NonFiniteLoss, explained, last_good
from evitlab.training.heap import freed_memory_kept
from evitlab.training.identity import RECORDED, begin_run, earlier_run, run_identity
from evitlab.training.launch import restarted
from evitlab.training.optimizer import (
    all_but_classifier,
    build_optimizer,
    check_trained,
    clip_adaptively,
    frozen,
    set_learning_rate,
    train_mode,
)
from evitlab.training.recipe import Recipe
from evitlab.training.sync_norm import synchronized_norms


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
    out = Path(out_dir)
    device = own_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    device = checked_device(device)
    last = out / "checkpoints" / "last.pt"
    with joined(device) as ranks, explained(recipe, train_data.img_size, last):
        _check_fit(model, train_data, val_data, recipe, ranks)
        check_trained(model, recipe)
        check_teacher(model, recipe, teacher, train_data)
        identity = run_identity(model, train_data, recipe, teacher, weights)
        card = environment_card(
            device=device,
            precision=_precision(device, recipe.precision),
            layout="channels_last",
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            dataset=train_data.title,
            scale=scale,
        )
        model.to(device)
        state = None
        if resume or restarted():
            found = ranks.from_main(lambda: earlier_run(model, identity, out))
            if isinstance(found, TrainingRecord):
                ranks.share_state(model)
                return found
            state = found
        objective = Objective(model, recipe, teacher, train_data, device)
        ranks.from_main(lambda: begin_run(identity, out, resume=resume or restarted()))
        with frozen(model, recipe.freeze):
            history, final = _run_epochs(
                model,
                train_data,
                val_data,
                recipe,
                objective,
                state=state,
                identity=identity,
                out=out,
                ranks=ranks,
                device=device,
                on_phase=on_phase or _unwatched,
            )
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
            processes=ranks.size,
        )
        if ranks.main:
            save_weights(model, out / "model.safetensors", class_names=train_data.class_names)
            record.save(out / "record.json")
        return record


def _run_epochs(
    model: nn.Module,
    train_data: AnyDataset,
    val_data: AnyDataset,
    recipe: Recipe,
    objective: Objective,
    *,
    state: dict[str, Any] | None,
    identity: dict[str, Any],
    out: Path,
    ranks: Ranks,
    device: torch.device,
    on_phase: Callable[[str], None],
) -> tuple[list[EpochLog], Accuracy]:
    """From `state`, or from the start, to the end; gives the history and the final accuracy."""
    names, last = train_data.class_names, out / "checkpoints" / "last.pt"
    model.to(memory_format=torch.channels_last)
    synced = recipe.sync_norm and ranks.size > 1
    step_model: Any = ranks.parallel(model, share_buffers=not synced)
    step_model = torch.compile(step_model) if recipe.compile else step_model
    optimizer = build_optimizer(model, recipe)
    ema = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay else None
    mean, std = normalization(model)
    augment = Augment(
        dataclasses.replace(recipe, crop="none") if train_data.crops_on_load else recipe,
        num_classes=identity["num_classes"],
        mean=mean,
        std=std,
    )
    if isinstance(train_data, StreamingDataset):  # it crops while it decodes
        train_data = dataclasses.replace(train_data, crop_scale=recipe.crop_scale)
    train_data, val_data = resident(train_data, device), resident(val_data, device)
    batches = Batches(train_data, recipe, augment, ranks=ranks, device=device, on_phase=on_phase)
    validate = partial(
        evaluate,
        data=val_data,
        # No more than a step's forward pass: what is said to lower memory lowers this too.
        batch_size=max(1, min(256, batches.size // recipe.accumulate // ranks.size)),
        device=device,
        distributed=True,
    )
    history: list[EpochLog] = []
    accuracy: Accuracy | None = None
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if ema:
            ema.module.load_state_dict(state["ema"])
        history = [EpochLog(**log) for log in state["history"]]

    clipped = all_but_classifier(model)
    steps, images = batches.steps, batches.steps * batches.size
    bar = tqdm(
        total=images * recipe.total_epochs,
        initial=images * len(history),
        unit="img",
        unit_scale=True,
        mininterval=1,
        disable=not ranks.main,
    )
    norms = synchronized_norms(model) if synced else nullcontext()
    memory = freed_memory_kept() if device.type == "cpu" else nullcontext()
    # Other GPUs than the one in use are left out: there may be many, and torch warns of the time.
    own = [device] if device.type == "cuda" else []
    with bar, norms, memory, torch.random.fork_rng(own):
        for epoch in range(len(history) + 1, recipe.total_epochs + 1):
            train_mode(model, recipe.freeze)
            total_loss = torch.zeros((), device=device)
            began = time.perf_counter()
            for step, parts in enumerate(batches.epoch(epoch)):
                rate = recipe.learning_rate(epoch - 1 + step / steps)
                set_learning_rate(optimizer, rate)
                optimizer.zero_grad()
                # Stochastic depth, in each process its own.
                torch.manual_seed(step_seed(recipe, epoch, step, rank=ranks.rank))
                for number, (inputs, targets, share) in enumerate(parts, start=1):
                    with gradients_stay(step_model, number < len(parts)):
                        on_phase("forward")
                        with _autocast(device, recipe.precision):
                            loss = share * objective(step_model(inputs), inputs, targets)
                        on_phase("backward")
                        loss.backward()
                    total_loss += loss.detach()
                on_phase("optimizer")
                if recipe.clip == "agc":
                    clip_adaptively(clipped, recipe.clip_grad)
                elif recipe.clip == "norm":
                    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
                optimizer.step()
                if ema:
                    ema.update(model)
                if device.type == "cpu" or step % 20 == 0 or step == steps - 1:
                    mean_loss = ranks.sum(total_loss).item() / ranks.size / (step + 1)
                    if not math.isfinite(mean_loss):
                        raise _non_finite("loss", (epoch, step + 1, steps), rate, last)
                    bar.set_description(f"epoch {epoch}/{recipe.total_epochs}", refresh=False)
                    bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
                bar.update(batches.size)
            seconds = time.perf_counter() - began
            log = EpochLog(epoch, mean_loss, rate, images / seconds, seconds)
            ranks.share_state(model)  # running statistics that are not synchronised differ
            if epoch % recipe.validate_every == 0 or epoch == recipe.total_epochs:
                accuracy = validate(model)
                log = dataclasses.replace(
                    log, val_top1=accuracy.top1, val_top5=accuracy.top5, val_loss=accuracy.loss
                )
                if ranks.main:  # a bar that is not shown still writes
                    bar.write(f"epoch {epoch}: loss {mean_loss:.3f}, top-1 {accuracy.top1:.2f} %")
            # The last step's update comes after its loss: no checkpoint may hold a broken one.
            if not math.isfinite(log.val_loss or 0) or not _is_finite(model):
                what = "loss" if log.val_loss is None else "validation loss"
                raise _non_finite(what, (epoch, steps, steps), rate, last)
            history.append(log)
            if not ranks.main:
                continue
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
    if ema and ranks.main:
        save_weights(ema.module, out / "model_ema.safetensors", class_names=names)
    # A run that was stopped after its last epoch still has to be measured.
    return history, accuracy or validate(model)


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


def _unwatched(phase: str) -> None:
    pass


def _is_finite(model: nn.Module) -> bool:
    return bool(torch.stack([v.isfinite().all() for v in model.state_dict().values()]).all())


def _non_finite(what: str, place: tuple[int, int, int], rate: float, last: Path) -> NonFiniteLoss:
    epoch, step, steps = place
    return NonFiniteLoss(
        f"{what} is not finite at epoch {epoch}, step {step} of {steps}, learning rate "
        f"{rate:.3g}; {last_good(last)}"
    )


def _best_epoch(history: list[EpochLog]) -> int:
    validated = [(log.val_top1, -log.epoch) for log in history if log.val_top1 is not None]
    return -max(validated)[1] if validated else history[-1].epoch


def _precision(device: torch.device, precision: str) -> str:
    if precision == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return precision


def _autocast(device: torch.device, precision: str) -> Any:
    if _precision(device, precision) == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()

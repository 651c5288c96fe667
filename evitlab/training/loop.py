"""One loop for whatever is trained, readable from top to bottom.

A run is a function of (model, data, recipe): every random number of step s of epoch e is drawn
from a generator seeded with (seed, e, s), so a run that was killed continues from its last
checkpoint to the very same weights. Started by `torchrun`, it is the same function, worked out by
several processes: `recipe.batch_size` counts the images of all of them. Not so with stochastic
depth or dropout, which each process draws for itself, without `recipe.sync_norm`, and with
streamed images (`Batches`); of a detector each process, and each part of a batch, is padded to its
own largest image.

What is trained, on which batches and how the result is measured says a `Task`.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from tqdm.auto import tqdm

from evitlab.training.batches import step_seed
from evitlab.training.checkpoint import save_checkpoint
from evitlab.training.distributed import Ranks, gradients_stay, joined, own_device
from evitlab.training.evaluation import checked_device
from evitlab.training.failures import NonFiniteLoss, explained, last_good
from evitlab.training.folder_lock import held
from evitlab.training.heap import freed_memory_kept
from evitlab.training.identity import begin_run, earlier_run
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
from evitlab.training.sync_norm import synchronized_norms
from evitlab.training.task import Task, computed_in


def run(
    task: Task,
    model: nn.Module,
    *,
    out_dir: str | os.PathLike[str],
    resume: bool,
    device: str | torch.device | None,
    on_phase: Callable[[str], None] | None = None,
) -> Any:
    """Train a model for a task; leaves weights, checkpoints and the record in `out_dir`.

    Args:
        task: what to learn; its recipe holds the hyperparameters.
        model: moved to `device` and trained in place.
        out_dir: receives `model.safetensors` (final weights), `record.json` and `checkpoints/`
            (`last.pt`, every epoch, and `best.safetensors`, of the highest score).
        resume: continue a run that was stopped; of a finished one load the final weights and
            return the record. False removes what an earlier run left and starts over.
        device: where to train; None takes a GPU if there is one.
        on_phase: called with each phase of a step as it begins: "data", "augmentation",
            "forward", "backward", "optimizer"; to measure them.

    Returns:
        The run's record, of `task.record_type`.

    Raises:
        ValueError: data and model do not fit, no such device, or `out_dir` holds a different run.
        NonFiniteLoss: the loss is NaN or infinite.
        OutOfMemory: memory ran out; says what to lower.
        LostProcess: another process of the run is gone; says how to go on.
        FolderInUse: another process writes into `out_dir`.
        OSError: `out_dir` cannot be written.
    """
    out, recipe = Path(out_dir), task.recipe
    device = own_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    device = checked_device(device)
    last = out / "checkpoints" / "last.pt"
    with joined(device) as ranks, explained(recipe, task.img_size, last):
        check_trained(model, recipe)
        task.check(ranks, device)
        with held(out):
            return _run_alone(
                task, model, out=out, ranks=ranks, resume=resume, device=device, on_phase=on_phase
            )


def _run_alone(
    task: Task,
    model: nn.Module,
    *,
    out: Path,
    ranks: Ranks,
    resume: bool,
    device: torch.device,
    on_phase: Callable[[str], None] | None,
) -> Any:
    """The run, in a folder that no other one writes into."""
    recipe = task.recipe
    state: Any = None
    model.to(device)
    if resume or restarted():
        found = ranks.from_main(
            lambda: earlier_run(model, task.identity, out, task.record_type)
        )
        if isinstance(found, task.record_type):
            ranks.share_state(model)
            return found
        state = found
    task.begin(ranks, device, on_phase or _unwatched)
    ranks.from_main(lambda: begin_run(task.identity, out, resume=resume or restarted()))
    with frozen(model, recipe.freeze):
        history, final = _run_epochs(
            model,
            task,
            state=state,
            out=out,
            ranks=ranks,
            device=device,
            on_phase=on_phase or _unwatched,
        )
    best = _best_epoch(history, task)
    record = task.record(history, final, best_epoch=best, processes=ranks.size)
    if ranks.main:
        task.save(model, out / "model.safetensors")
        record.save(out / "record.json")
    return record


def _run_epochs(
    model: nn.Module,
    task: Task,
    *,
    state: dict[str, Any] | None,
    out: Path,
    ranks: Ranks,
    device: torch.device,
    on_phase: Callable[[str], None],
) -> tuple[list[Any], Any]:
    """From `state`, or from the start, to the end; gives the history and the final result."""
    recipe, last = task.recipe, out / "checkpoints" / "last.pt"
    model.to(memory_format=torch.channels_last)
    synced = recipe.sync_norm and ranks.size > 1
    step_model: Any = ranks.parallel(model, share_buffers=not synced)
    step_model = torch.compile(step_model) if recipe.compile else step_model
    optimizer = build_optimizer(model, recipe)
    ema = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay else None
    history: list[Any] = []
    result: Any = None
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if ema:
            ema.module.load_state_dict(state["ema"])
        history = [task.log_type(**log) for log in state["history"]]

    clipped = all_but_classifier(model)
    batches = task.batches
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
                rate = recipe.learning_rate(epoch - 1 + step / steps, steps=steps)
                set_learning_rate(optimizer, rate)
                optimizer.zero_grad()
                # Stochastic depth, in each process its own.
                torch.manual_seed(step_seed(recipe, epoch, step, rank=ranks.rank))
                for number, part in enumerate(parts, start=1):
                    with gradients_stay(step_model, number < len(parts)):
                        on_phase("forward")
                        with _autocast(device, recipe.precision):
                            loss = part.share * task.loss(step_model, part)
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
            ranks.share_state(model)  # running statistics that are not synchronised differ
            result = None
            if epoch % recipe.validate_every == 0 or epoch == recipe.total_epochs:
                result = task.validate(model)
                if ranks.main:  # a bar that is not shown still writes
                    bar.write(f"epoch {epoch}: loss {mean_loss:.3f}, {task.said(result)}")
            log = task.log(
                result,
                epoch=epoch,
                train_loss=mean_loss,
                learning_rate=rate,
                img_per_s=images / seconds,
                seconds=seconds,
            )
            # The last step's update comes after its loss: no checkpoint may hold a broken one.
            measured = [value for value in vars(log).values() if isinstance(value, float)]
            if not all(map(math.isfinite, measured)):
                raise _non_finite("validation loss", (epoch, steps, steps), rate, last)
            if not _is_finite(model):
                raise _non_finite("a weight", (epoch, steps, steps), rate, last)
            history.append(log)
            if not ranks.main:
                continue
            if result is not None and epoch == _best_epoch(history, task):
                task.save(model, out / "checkpoints" / "best.safetensors")
            save_checkpoint(
                {
                    "identity": task.identity,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.module.state_dict() if ema else None,
                    "history": [dataclasses.asdict(log) for log in history],
                },
                last,
            )
    if ema and ranks.main:
        task.save(ema.module, out / "model_ema.safetensors")
    # A run that was stopped after its last epoch still has to be measured.
    return history, result or task.validate(model)


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


def _best_epoch(history: list[Any], task: Task) -> int:
    """The first epoch of the highest score; the last one where none was validated."""
    scores = [(task.score(log), -log.epoch) for log in history]
    validated = [(score, place) for score, place in scores if score is not None]
    return -max(validated)[1] if validated else history[-1].epoch


def _autocast(device: torch.device, precision: str) -> Any:
    if computed_in(device, precision) == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()

"""How fast `evitlab.train` trains beside a plain timm loop, and where the time goes.

Each loop runs in a process of its own and takes one step at a time when it is asked to, so that
the two take turns, and each has its own peak of memory. A step does 3 x MACs multiply-accumulates
for each image, twice as many backward as forward: at the matrix product's peak that is its floor.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
from tqdm.auto import tqdm

from evitlab.analysis.memory import peak_resident_mib
from evitlab.analysis.roofline import measure_roofline
from evitlab.analysis.timm_loop import run_timm_loop, timm_twin
from evitlab.datasets import EMBEDDED, Dataset, is_at_hand, open_dataset
from evitlab.models.cost import count_macs
from evitlab.models.zoo import VARIANTS, create_model, small_image_name
from evitlab.records import LoopRatio, LoopSpeed, TrainingSpeed, environment_card, quartiles
from evitlab.records.training_speed import PHASES
from evitlab.training.evaluation import checked_device
from evitlab.training.recipe import RECIPES, Recipe

MODELS = ("efficientvit_m0", "efficientvit_m4")
RECIPE = "imagenet"  # the one with all augmentation
_WARM_UP = 2  # steps of each loop that are not counted
_LOOPS = ("evitlab", "timm")


def compare_training(
    models: Sequence[str] = MODELS,
    *,
    img_size: int = 64,
    batch_size: int = 128,
    rounds: int = 15,
    threads: int = 1,
    device: str = "cpu",
    command: str = "",
) -> TrainingSpeed:
    """Time training steps of both loops: same model, batch, precision, threads and augmentation.

    Images are Tiny-ImageNet's where it is at hand, else the embedded set's, decoded beforehand.

    Args:
        models: members of the family; small images take the variant that `evitlab train` takes.
        img_size: pixels of both sides.
        rounds: steps of each loop; the two take turns.
        threads: of torch on the CPU, in each loop; the loader of timm's loop works in its process,
            beside a GPU in one process for each core.
        device: "cpu" or "cuda".

    Raises:
        ValueError: unknown model, no such device, or a number below one.

    Pitfall: timm augments image by image with Pillow, ours the whole batch; the operations are the
    same in kind, not in their pixels.
    """
    unknown = [name for name in models if name not in VARIANTS]
    if unknown or not models:
        raise ValueError(f"models: expected some of {', '.join(VARIANTS)}, got {list(models)}")
    for name, value in (("img_size", img_size), ("rounds", rounds), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if batch_size < 2:
        raise ValueError(f"batch_size: expected at least 2, as BatchNorm needs them: {batch_size}")
    checked_device(device)
    # No bf16 in either, and one view of an image: the plain loop has no repeated augmentation.
    recipe = dataclasses.replace(
        RECIPES[RECIPE], batch_size=batch_size, repeats=1, precision="float32"
    )
    data = _images(img_size, batch_size)
    peak = measure_roofline(device, threads=threads).peak_gmac_s
    loops, ratios = [], []
    for member in models:
        name = small_image_name(member, data.img_size)
        steps, memory = _take_turns(name, data, recipe, rounds, threads, device)
        for loop in _LOOPS:
            spent = {phase: median(step[phase] for step in steps[loop]) for phase in PHASES}
            before, most = memory[loop]
            loops.append(
                LoopSpeed(
                    name,
                    loop,
                    img_per_s=batch_size / median(sum(step.values()) for step in steps[loop]),
                    **{f"{phase}_ms": 1e3 * seconds for phase, seconds in spent.items()},
                    peak_mib=most,
                    training_mib=most - before,
                )
            )
        model = create_model(name, img_size=data.img_size, num_classes=data.num_classes)
        macs = count_macs(model)
        low, middle, high = quartiles(_ratios(steps, PHASES))
        computing = quartiles(_ratios(steps, PHASES[2:]))[1]
        floor_ms = 1e-6 * 3 * macs * batch_size / peak
        ratios.append(LoopRatio(name, macs, middle, low, high, computing, floor_ms))
    card = environment_card(
        device=device,
        precision=recipe.precision,
        layout="channels_last",
        batch_size=batch_size,
        dataset=data.title,
    )
    return TrainingSpeed(
        loops=tuple(loops),
        ratios=tuple(ratios),
        img_size=data.img_size,
        batch_size=batch_size,
        recipe=RECIPE,
        rounds=rounds,
        peak_gmac_s=peak,
        command=command,
        environment=dataclasses.replace(card, threads=threads),
    )


def _images(img_size: int, batch_size: int) -> Dataset:
    name = "tiny_imagenet" if is_at_hand("tiny_imagenet") else EMBEDDED
    data = open_dataset(
        name, "train", img_size=img_size, limit=max(4 * batch_size, 512), streaming=False
    )
    assert isinstance(data, Dataset)
    return data


def _ratios(steps: dict[str, list[dict[str, float]]], phases: Sequence[str]) -> list[float]:
    """timm's time over ours, round by round."""
    pairs = zip(steps["timm"], steps["evitlab"], strict=True)
    return [sum(its[p] for p in phases) / sum(ours[p] for p in phases) for its, ours in pairs]


def _take_turns(
    name: str, data: Dataset, recipe: Recipe, rounds: int, threads: int, device: str
) -> tuple[dict[str, list[dict[str, float]]], dict[str, tuple[float, float]]]:
    """Seconds by phase of each counted step, and MiB before and at most, by loop."""
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    processes = []
    steps: dict[str, list[dict[str, float]]] = {loop: [] for loop in _LOOPS}
    try:
        for loop in _LOOPS:
            ends[loop], other = context.Pipe()
            process = context.Process(
                target=_serve, args=(loop, name, data, recipe, threads, device, other), daemon=True
            )
            process.start()
            processes.append(process)
            other.close()  # so that its end is noticed here
        for number in tqdm(range(_WARM_UP + rounds), desc=name, unit="round"):
            for loop in _LOOPS if number % 2 else _LOOPS[::-1]:
                ends[loop].send(True)
                step = ends[loop].recv()
                if number >= _WARM_UP:
                    steps[loop].append(step)
        memory = {}
        for loop in _LOOPS:
            ends[loop].send(False)
            memory[loop] = ends[loop].recv()
        return steps, memory
    except EOFError as error:
        raise RuntimeError(f"the {loop} loop over {name} ended; its error stands above") from error
    finally:
        for process in processes:
            process.terminate()
            process.join()


class _Asked(Exception):
    """The parent has seen enough."""


def _serve(
    loop: str, name: str, data: Dataset, recipe: Recipe, threads: int, device: str, end: Connection
) -> None:
    """One loop, a step for each `True` that comes; then its memory."""
    torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    before = _peak_mib(device)
    step: dict[str, float] = {}
    phase, since = "", 0.0

    def on_phase(begun: str) -> None:
        nonlocal phase, since
        if device != "cpu":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if phase:
            step[phase] = step.get(phase, 0.0) + now - since
        if begun == "data":  # a step is over, or the first begins, or an epoch: not counted
            if "optimizer" in step:
                end.send(dict(step))
            if ("optimizer" in step or not phase) and not end.recv():
                raise _Asked
            step.clear()
        phase, since = begun, time.perf_counter()

    try:
        _loop(loop, name, data, recipe, device, on_phase)
    except _Asked:
        end.send((before, _peak_mib(device)))


def _loop(
    loop: str,
    name: str,
    data: Dataset,
    recipe: Recipe,
    device: str,
    on_phase: Callable[[str], None],
) -> None:
    from evitlab.training.classifier import train

    if loop == "timm":
        twin = timm_twin(name, img_size=data.img_size[0], num_classes=data.num_classes)
        run_timm_loop(twin, data, recipe, on_phase, device=torch.device(device))
    model: Any = create_model(name, img_size=data.img_size, num_classes=data.num_classes)
    with tempfile.TemporaryDirectory() as out:
        train(
            model, data, data.subset(data.num_classes), recipe,
            out_dir=out, device=device, on_phase=on_phase,
        )  # fmt: skip


def _peak_mib(device: str) -> float:
    """Memory of this process at most so far: resident, or torch's on a GPU; 0: not known."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_resident_mib() or 0.0

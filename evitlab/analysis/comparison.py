"""Speed beside a peer: both in one process, in turns, medians of many rounds.

The floor of a forward pass is MACs over the processor's peak; small batches stay far above it,
because every operator call costs some microseconds whatever its size.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median

import timm
import torch
from torch import nn
from tqdm.auto import tqdm

from evitlab.analysis.conditions import cpu_threads
from evitlab.datasets import open_dataset
from evitlab.models.zoo import VARIANTS, create_model
from evitlab.records import DataPathRow, SpeedRecord, SpeedRow, environment_card, quartiles
from evitlab.training.augment import Augment
from evitlab.training.recipe import RECIPES

_DATA_PATH_BATCH = 128  # the recipe "cifar"


def compare_with_timm(
    models: Sequence[str] = tuple(VARIANTS),
    *,
    batch_sizes: Sequence[int] = (1, 32),
    rounds: int = 15,
    threads: int = 1,
) -> SpeedRecord:
    """Time forward and training step of our models against timm's, same weights, same threads.

    Args:
        models: names that both libraries know, `efficientvit_m0` to `efficientvit_m5`.
        batch_sizes: images of 224 x 224 pixels per call.
        rounds: measurements of each; the two take turns within a round.
        threads: of torch on the CPU.

    Raises:
        ValueError: unknown model, nothing to compare, or a number below one.

    Pitfall: a training step at batch size 1 uses 2 images, since BatchNorm needs them.
    """
    unknown = [name for name in models if name not in VARIANTS]
    if unknown or not models:
        raise ValueError(f"models: expected names of {', '.join(VARIANTS)}, got {unknown}")
    if min(batch_sizes, default=0) < 1:
        raise ValueError(f"batch_sizes: expected numbers of at least 1, got {list(batch_sizes)}")
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    rows = []
    tasks = [(n, t, b) for n in models for t in ("forward", "training step") for b in batch_sizes]
    with cpu_threads(threads), torch.random.fork_rng([]):  # fresh weights and noise are drawn
        for name, task, batch in tqdm(tasks, desc="bench", unit="comparison"):
            peer = timm.create_model(name)
            ours = create_model(name, weights=peer.state_dict())
            training = task == "training step"
            images = torch.randn(max(batch, 2) if training else batch, 3, 224, 224)
            calls = {
                "ours": _call(ours.train(training), images),
                "timm": _call(peer.train(training), images),
            }
            times = interleave(calls, rounds=rounds)
            ratios = [b / a for a, b in zip(times["ours"], times["timm"], strict=True)]
            low, middle, high = quartiles(ratios)
            rows.append(
                SpeedRow(
                    model=name,
                    task=task,
                    batch_size=len(images),
                    ours_ms=1e3 * median(times["ours"]),
                    timm_ms=1e3 * median(times["timm"]),
                    ratio=middle,
                    ratio_low=low,
                    ratio_high=high,
                )
            )
        paths = tuple(_data_path(recipe, rounds) for recipe in ("cifar", "imagenet"))
        card = environment_card(layout="contiguous input", dataset="noise")
    return SpeedRecord(tuple(rows), paths, rounds, card)


def interleave(calls: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, after two rounds of warm-up; who is first alternates."""
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(-2, rounds):
        for name in names if round_ % 2 else reversed(names):
            began = time.perf_counter()
            calls[name]()
            if round_ >= 0:
                times[name].append(time.perf_counter() - began)
    return times


def _call(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    if model.training:
        return lambda: model(images).sum().backward()
    return torch.inference_mode()(lambda: model(images))


def _data_path(recipe: str, rounds: int) -> DataPathRow:
    """Gather, augment and normalise a batch of 32-pixel images, against the step it feeds."""
    batch_size = _DATA_PATH_BATCH
    data = open_dataset("embedded", "train", img_size=32, limit=1024)
    augment = Augment(RECIPES[recipe], num_classes=data.num_classes)
    model = create_model("efficientvit_m0_p4", img_size=32, num_classes=data.num_classes).train()
    generator = torch.Generator().manual_seed(0)

    def prepare() -> torch.Tensor:
        order = torch.randperm(len(data), generator=generator)[:batch_size]
        (pixels, labels), *_ = data.batches(order, batch_size, train=True)
        return augment(pixels, labels, generator)[0]

    inputs = prepare()
    calls = {"data": prepare, "step": lambda: model(inputs).sum().backward()}
    times = interleave(calls, rounds=rounds)
    data_ms, step_ms = (1e3 * median(times[name]) for name in ("data", "step"))
    return DataPathRow(
        "efficientvit_m0_p4", recipe, batch_size, data_ms, step_ms, 100 * data_ms / step_ms
    )

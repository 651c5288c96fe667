"""The batches of a run: which images each step sees, cut and augmented, for this process.

Order and random numbers are functions of (recipe, epoch, step), never of what came before.

Shape legend: B images of a global batch, W processes, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evitlab.datasets import AnyDataset, StreamingDataset
from evitlab.training.augment import Augment
from evitlab.training.distributed import Ranks
from evitlab.training.recipe import Recipe


class Part(NamedTuple):
    """What one forward pass takes.

    Attributes:
        inputs: float32 [b, 3, H, W], augmented, channels-last; of a detector a list of images.
        targets: float32 [b, K]; of a detector a list of boxes and labels.
        share: weight of the part's mean loss; the mean over processes of their sums over parts
            is the mean over the global batch, also where parts differ in length.
    """

    inputs: Any
    targets: Any
    share: float


class Batches:
    """The steps of a run's epochs, in whole global batches: what is left over sits out.

    A global batch is worked off in `recipe.accumulate` parts, each by all processes. Images in
    memory are augmented batch by batch in every process, which then takes its share, so a step
    is the same whatever the number of processes. Streamed images are decoded and augmented by
    one process each: crops depend on the place in the epoch, but what `Augment` draws, and
    with whom an image is mixed, depend on the number of processes.

    Attributes:
        steps: in an epoch.
        size: B.

    Raises:
        ValueError: fewer images in a batch than parts; in `epoch`, so few that can be read.
    """

    def __init__(
        self,
        data: AnyDataset,
        recipe: Recipe,
        augment: Augment,
        *,
        ranks: Ranks,
        device: torch.device,
        on_phase: Callable[[str], None],
    ) -> None:
        self.data, self.recipe, self.augment = data, recipe, augment
        self.ranks, self.device, self.on_phase = ranks, device, on_phase
        self.steps, self.size = steps_of(len(data), recipe, ranks)
        self.streams = isinstance(data, StreamingDataset) and ranks.size > 1

    def epoch(self, epoch: int) -> Iterator[list[Part]]:
        """The parts of each step of an epoch, counted from 1."""
        order = self._order(epoch)
        options: dict[str, Tensor] = {}
        size = self.size
        if self.streams:
            own = torch.cat(self._parts(torch.arange(size)))
            places = (torch.arange(self.steps)[:, None] * size + own).flatten()
            order, size, options = order[places], len(own), {"places": places}
        step = -1
        self.on_phase("data")
        for step, (pixels, labels) in enumerate(
            self.data.batches(
                order,
                size,
                device=self.device,
                train=True,
                seed=step_seed(self.recipe, epoch),
                **options,
            )
        ):
            seed = step_seed(self.recipe, epoch, step, rank=self.ranks.rank if self.streams else 0)
            self.on_phase("augmentation")
            batch = self.augment(pixels, labels, torch.Generator().manual_seed(seed))
            yield self._shared(*batch)
            self.on_phase("data")
        if self.streams and step + 1 < self.steps:  # the others would wait for this one
            raise self._unreadable(0)

    def _unreadable(self, count: int) -> ValueError:
        size = len(torch.cat(self._parts(torch.arange(self.size)))) if self.streams else self.size
        return ValueError(
            f"train_data: expected at least {self.recipe.accumulate} readable of a step's {size} "
            f"images in process {self.ranks.rank}, one for each part (accumulate), got {count}; "
            "leave corrupt images out of the set"
        )

    def _order(self, epoch: int) -> Tensor:
        """int64 [steps * B]: a new permutation each epoch, each entry `repeats` times in a row."""
        count = len(self.data)
        generator = torch.Generator().manual_seed(step_seed(self.recipe, epoch))
        order = torch.randperm(count, generator=generator)
        return order.repeat_interleave(self.recipe.repeats)[: self.steps * self.size]

    def _parts(self, batch: Tensor) -> list[Tensor]:
        """This process's entries of each part of a global batch; neighbours go apart."""
        count = self.recipe.accumulate
        return [self.ranks.part(batch[first::count]) for first in range(count)]

    def _shared(self, inputs: Tensor, targets: Tensor) -> list[Part]:
        if len(targets) < self.recipe.accumulate:  # the mean loss of an empty part is NaN
            raise self._unreadable(len(targets))
        if self.streams:  # this process's alone, part after part; corrupt ones may be missing
            lengths = [len(part) for part in self._parts(torch.arange(self.size))]
            whole = len(targets) == sum(lengths)
            cut = [*torch.tensor(lengths[:-1]).cumsum(0)] if whole else self.recipe.accumulate
            parts = list(zip(inputs.tensor_split(cut), targets.tensor_split(cut), strict=True))
            total = self.ranks.sum(torch.tensor(len(targets))).item()
        else:
            parts = list(zip(self._parts(inputs), self._parts(targets), strict=True))
            total = len(targets)
        scale = self.ranks.size / total
        return [
            Part(part.contiguous(memory_format=torch.channels_last), goal, len(goal) * scale)
            for part, goal in parts
        ]


def steps_of(images: int, recipe: Recipe, ranks: Ranks) -> tuple[int, int]:
    """Steps of an epoch in whole global batches, and the images of each.

    Raises ValueError where a batch has fewer images than parts.
    """
    size = min(recipe.batch_size, images)
    if size < recipe.accumulate * ranks.size:
        raise ValueError(
            f"batch_size: expected at least an image for each of {recipe.accumulate} parts "
            f"(accumulate) in each of {ranks.size} processes, got {size}"
        )
    return max(1, images // recipe.batch_size), size


def check_norms(model: nn.Module, recipe: Recipe, images: int, ranks: Ranks) -> None:
    """Raise a ValueError where a BatchNorm would see a single image at a time."""
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    size = min(recipe.batch_size, images)
    apart = 1 if recipe.sync_norm else ranks.size
    if size // recipe.accumulate // apart >= 2:
        return
    wanted, got = 2 * recipe.accumulate * apart, f"{recipe.batch_size}"
    if size < recipe.batch_size:
        got = f"{size} training images"
    elif wanted > 2:
        got += f" in {recipe.accumulate} parts (accumulate) for each of {apart} processes"
    raise ValueError(f"batch_size: expected at least {wanted}, as BatchNorm needs them, got {got}")


def resident(data: AnyDataset, device: torch.device) -> AnyDataset:
    """Images in memory moved to the GPU once, where they take at most half of what is free."""
    if isinstance(data, StreamingDataset) or device.type != "cuda" or data.images.is_cuda:
        return data
    free, _ = torch.cuda.mem_get_info(device)
    return data.to(device) if data.images.nbytes <= free / 2 else data


def step_seed(recipe: Recipe, epoch: int, step: int = -1, *, rank: int = 0) -> int:
    """One seed for each (run, epoch, step, process), apart from each other's neighbours."""
    seed = (recipe.seed * 1_000_003 + epoch) * 1_000_003 + step + 1
    return (seed + rank * 0x9E3779B97F4A7C15) % 2**63

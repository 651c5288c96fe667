"""What the loop is told of the task at hand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from evitlab.models.cost import count_macs, count_params
from evitlab.records import Environment, Record, environment_card
from evitlab.training.batches import Part
from evitlab.training.checkpoint import save_weights
from evitlab.training.distributed import Ranks
from evitlab.training.identity import recorded
from evitlab.training.recipe import Recipe


class Steps(Protocol):
    """The steps of a run's epochs.

    Attributes:
        steps: in an epoch.
        size: images of a step, over all processes.
    """

    steps: int
    size: int

    def epoch(self, epoch: int) -> Iterator[list[Part]]:
        """The parts of each step of an epoch, counted from 1, for this process."""
        ...


class Task(ABC):
    """What is trained: which batches, what is minimised, and how the result is measured.

    Attributes:
        model: what is trained.
        train_data: what it learns from.
        recipe: hyperparameters.
        command: the one that regenerates the record.
        scale: smoke, quick, lab or paper.
        environment: `card` of the device. There after `check`.
        identity: what must be equal for a run to be continued; plain values. There after `check`.
        img_size: in pixels, named where memory runs out.
        batches: there after `begin`.
        record_type: of the run's record.
        log_type: of an epoch's entry in its history.
    """

    model: nn.Module
    train_data: Any
    recipe: Recipe
    command: str
    scale: str | None
    environment: Environment
    identity: dict[str, Any]
    img_size: tuple[int, int]
    batches: Steps
    record_type: type[Record]
    log_type: type

    @abstractmethod
    def check(self, ranks: Ranks, device: torch.device) -> None:
        """Raise a ValueError where data, model and recipe do not fit, before anything is done."""

    @abstractmethod
    def begin(self, ranks: Ranks, device: torch.device, on_phase: Callable[[str], None]) -> None:
        """Lay out the batches; the model is on its device, nothing is written yet."""

    @abstractmethod
    def loss(self, model: nn.Module, part: Part) -> Tensor:
        """Mean loss over a part's images, by one forward pass."""

    @abstractmethod
    def validate(self, model: nn.Module) -> Any:
        """The model's result on the validation data; all processes call it, all get the same."""

    @abstractmethod
    def said(self, result: Any) -> str:
        """A result in a few words."""

    @abstractmethod
    def log(self, result: Any, **measured: Any) -> Any:
        """An epoch's entry; `result` is None where the epoch was not validated."""

    @abstractmethod
    def score(self, log: Any) -> float | None:
        """What the best epoch has most of; None where it was not validated."""

    def card(self, device: torch.device) -> Environment:
        """Where the run takes place."""
        return environment_card(
            device=device,
            precision=computed_in(device, self.recipe.precision),
            layout="channels_last",
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            dataset=self.train_data.title,
            scale=self.scale,
        )

    def record(
        self, history: list[Any], final: Any, *, best_epoch: int, processes: int
    ) -> Record:
        """The whole run's record."""
        kind: Any = self.record_type
        return kind(
            **{name: self.identity[name] for name in recorded(self.identity, kind)},
            params=count_params(self.model),
            macs=count_macs(self.model, self.img_size),
            history=tuple(history),
            final=final,
            best_epoch=best_epoch,
            seconds=sum(log.seconds for log in history),
            command=self.command,
            environment=self.environment,
            processes=processes,
        )

    def save(self, model: nn.Module, path: Path) -> None:
        """Write weights, with what it takes to rebuild the model."""
        save_weights(model, path, class_names=self.train_data.class_names)


def computed_in(device: torch.device, precision: str) -> str:
    """What a recipe's precision comes to on a device."""
    if precision == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return precision

"""What a study is: a declared list of runs, each of which leaves one record.

A run is carried out in a process of its own (`evitlab.studies.worker`), so that many share a
machine or a GPU, and one that fails or is killed leaves the others alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from evitlab.analysis.conditions import cpu_threads
from evitlab.datasets import AnyDataset, default_dataset_name, open_dataset
from evitlab.models.finer import finer_features
from evitlab.models.starting import classifier_keys, weights_card
from evitlab.models.weights import load_weights
from evitlab.models.zoo import create_model, list_models
from evitlab.records import Record, TrainingRecord
from evitlab.training.classifier import train
from evitlab.training.recipe import RECIPES, Recipe

SCALES = ("smoke", "quick", "lab")


@dataclass(frozen=True)
class Conditions:
    """Where and how the runs of a study are carried out.

    Attributes:
        data: a data set's name or path; None is CIFAR-10 if it is at hand, else the embedded set.
        device: "cpu", "cuda"; None is a GPU if there is one.
        threads: of torch, in each run.
        command: the command line that regenerates the records, kept in them.
    """

    scale: str
    data: str | None = None
    device: str | None = None
    threads: int = 1
    command: str = ""


@dataclass(frozen=True)
class Run:
    """One run: its name, which is its record's and its folder's, and what it does.

    Attributes:
        carry_out: (folder, conditions) -> record; called again after it was killed, it continues
            from what it left in the folder.
        after: names of runs whose records it needs.
        alone: a measurement, which shares the machine with no other run.
    """

    name: str
    carry_out: Callable[[Path, Conditions], Record]
    after: tuple[str, ...] = ()
    alone: bool = False


@dataclass(frozen=True)
class Study:
    """A finding's runs.

    Attributes:
        name: as `evitlab study` takes it.
        summary: one line for the list of studies.
        records: types of its runs' records.
        runs: scale -> the runs, in the order in which they are begun.
    """

    name: str
    summary: str
    records: tuple[type[Record], ...]
    runs: Callable[[str], tuple[Run, ...]]

    def load(self, file: Path) -> Record:
        """A run's record; raises ValueError where the file is not one of this study's."""
        kinds = {kind.__name__: kind for kind in self.records}
        try:
            found = json.loads(file.read_text(encoding="utf-8")).get("record")
        except (ValueError, AttributeError):
            found = None  # `Record.load` says what is wrong
        return kinds.get(found, self.records[0]).load(file)


@dataclass(frozen=True)
class Budget:
    """How much one run of a study trains.

    Attributes:
        limit: training images at most; None: all.
        val_limit: validation images at most; None: all.
    """

    epochs: int = 1
    limit: int | None = None
    val_limit: int | None = None


SMOKE = Budget(epochs=1, limit=256, val_limit=100)


def lab_budget(conditions: Conditions, *, cpu: Budget, gpu: Budget) -> Budget:
    """What the scale "lab" trains: hours of a CPU and half an hour of a GPU differ by far."""
    device = conditions.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return gpu if torch.device(device).type == "cuda" else cpu


@dataclass(frozen=True)
class Training:
    """One model to train.

    Attributes:
        model: a name of `list_models()`, or of a convolutional network of timm, which then gets
            finer features for small images.
        overrides: fields of its configuration.
        limit: training images at most; None: all.
        changes: of the recipe.
        recipe_name: one of RECIPES.
        data_name: a data set's name or path; None: what the conditions say.
        img_size: pixels of both sides.
        weights: to start from, a classifier of other classes left out; None: from scratch.
    """

    model: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 1
    limit: int | None = None
    val_limit: int | None = None
    seed: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)
    recipe_name: str = "cifar"
    data_name: str | None = None
    img_size: int = 32
    weights: str | Path | None = None

    def within(self, budget: Budget) -> Training:
        """The same training with this much of it."""
        return replace(
            self, epochs=budget.epochs, limit=budget.limit, val_limit=budget.val_limit
        )

    @property
    def recipe(self) -> Recipe:
        """The recipe for a short run: warmed up quickly, measured once at its end."""
        given = {
            "epochs": self.epochs, "cooldown_epochs": 0, "seed": self.seed,
            "validate_every": self.epochs, "warmup_epochs": 0.25,
        }  # fmt: skip
        return replace(RECIPES[self.recipe_name], **{**given, **self.changes})

    def data(self, conditions: Conditions) -> tuple[AnyDataset, AnyDataset]:
        """Training and validation images."""
        name = self.data_name or conditions.data or default_dataset_name()
        return (
            open_dataset(name, "train", img_size=self.img_size, limit=self.limit),
            open_dataset(name, "val", img_size=self.img_size, limit=self.val_limit),
        )

    def build(self, num_classes: int, class_names: Sequence[str] | None = None) -> Any:
        """The model as it is before training; weights are drawn from torch's own generator.

        Args:
            num_classes: outputs of the model.
            class_names: of the data; a classifier of other names in `weights` is left out, also
                where there are as many. None: only their number tells them apart.
        """
        if self.model in list_models():
            model = create_model(
                self.model, img_size=self.img_size, num_classes=num_classes, **self.overrides
            )
        else:
            model = finer_features(
                self.model, img_size=self.img_size, num_classes=num_classes
            )
        if self.weights is not None:
            state = model.state_dict()
            drawn = {key: state[key].clone() for key in classifier_keys(model)}
            report = load_weights(model, self.weights, strict=False)
            if report.missing or report.unexpected:
                load_weights(model, self.weights)  # says what does not fit
            card = weights_card(self.weights)
            theirs = tuple(card["class_names"]) if card is not None else ()
            if class_names is not None and theirs and theirs != tuple(class_names):
                for key, values in drawn.items():
                    state[key].copy_(values)
        return model

    def run(self, folder: Path, conditions: Conditions) -> tuple[Any, TrainingRecord]:
        """The trained model and its record; continues what was begun in the folder."""
        train_data, val_data = self.data(conditions)
        with cpu_threads(conditions.threads), torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            model = self.build(train_data.num_classes, train_data.class_names)
            record = train(
                model,
                train_data,
                val_data,
                self.recipe,
                out_dir=folder,
                device=conditions.device,
                command=conditions.command,
                scale=conditions.scale,
            )
        return model.eval(), record

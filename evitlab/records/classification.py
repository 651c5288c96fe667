"""Record of what a classifier gets right and wrong, class by class.

Shape legend: K classes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.environment import Environment
from evitlab.records.training import Accuracy


@dataclass(frozen=True)
class ClassResult:
    """One class."""

    name: str
    n: int  # images of it (the support)
    predicted: int  # images that were taken for it, rightly or not
    accuracy: float | None  # percent of its images that were recognised; None without images
    precision: float | None  # percent of `predicted` that are of it; None where that is 0


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that were taken for another."""

    true: str
    predicted: str
    count: int  # images
    share: float  # percent of the true class's images


@dataclass(frozen=True)
class ClassificationReport(Record):
    """Result of one pass over a labelled data set, class by class.

    Pitfall: a class with five images has an accuracy of 0, 20, 40, ... percent: look at `n` before
    comparing classes.
    """

    model: str
    dataset: str  # title as shown to the reader
    split: str  # "train", "val", "test" or "all"
    n: int  # images
    accuracy: Accuracy  # over all images
    classes: tuple[ClassResult, ...]  # [K], in the order of the model's outputs
    confused: tuple[ConfusedPair, ...]  # most images first; at most 20 pairs
    confusion: tuple[tuple[int, ...], ...]  # [K, K] images, by true and by predicted class
    environment: Environment

    @property
    def class_names(self) -> tuple[str, ...]:
        """[K]."""
        return tuple(result.name for result in self.classes)

    @property
    def mean_accuracy(self) -> float:
        """Mean of the classes' accuracies, percent; classes without images are left out."""
        known = [result.accuracy for result in self.classes if result.accuracy is not None]
        return sum(known) / len(known)

    def to_frame(self) -> pd.DataFrame:
        """One row per class; the model and data set stand in every row."""
        columns = [field.name for field in dataclasses.fields(ClassResult)]
        frame = pd.DataFrame([dataclasses.asdict(row) for row in self.classes], columns=columns)
        frame.insert(0, "dataset", self.dataset)
        frame.insert(0, "model", self.model)
        return frame

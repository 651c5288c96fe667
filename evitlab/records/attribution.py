"""What attribution leaves behind: how faithful methods are, and pictures of their maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evitlab.records.base import Record
from evitlab.records.environment import Environment


@dataclass(frozen=True)
class FaithfulnessCurve:
    """One order of the pixels, the most important ones first; S steps, B images."""

    method: str  # as given; "random pixels" and "random patches" are the chance to beat
    deletion: tuple[float, ...]  # [S + 1], mean probability with the first pixels taken away
    insertion: tuple[float, ...]  # [S + 1], mean probability with only the first pixels there
    deletion_areas: tuple[float, ...]  # [B], under each image's curve; low is faithful
    insertion_areas: tuple[float, ...]  # [B]; high is faithful

    @property
    def deletion_area(self) -> float:
        return fmean(self.deletion_areas)

    @property
    def insertion_area(self) -> float:
        return fmean(self.insertion_areas)


@dataclass(frozen=True)
class FaithfulnessCurves(Record):
    """How a class's probability goes as its most important pixels are taken away, or put in.

    Pitfall: a picture that is half deleted is none that the model was trained on. Scattered pixels
    disturb it more than patches do, so compare fine maps with "random pixels", coarse ones with
    "random patches".
    """

    model: str
    images: int  # B
    fractions: tuple[float, ...]  # [S + 1], of the pixels, 0..1
    deletion_baseline: str  # what stands in for the pixels that are gone
    insertion_baseline: str  # what the pixels are put into
    curves: tuple[FaithfulnessCurve, ...]
    environment: Environment

    def __post_init__(self) -> None:
        for curve in self.curves:
            for name, wanted in (
                ("deletion", len(self.fractions)),
                ("insertion", len(self.fractions)),
                ("deletion_areas", self.images),
                ("insertion_areas", self.images),
            ):
                if (got := len(getattr(curve, name))) != wanted:
                    raise ValueError(f"{name}: expected {wanted} of {curve.method}, got {got}")

    def to_frame(self) -> pd.DataFrame:
        """One row per method, curve ("deletion", "insertion") and fraction."""
        return pd.DataFrame(
            {
                "model": self.model,
                "method": curve.method,
                "curve": name,
                "fraction": fraction,
                "probability": probability,
            }
            for curve in self.curves
            for name in ("deletion", "insertion")
            for fraction, probability in zip(self.fractions, getattr(curve, name), strict=True)
        )

    def areas(self) -> pd.DataFrame:
        """One row per method: areas under both curves, and their standard errors over images."""
        return pd.DataFrame(
            {
                "model": self.model,
                "method": curve.method,
                "deletion": curve.deletion_area,
                "deletion_se": _standard_error(curve.deletion_areas),
                "insertion": curve.insertion_area,
                "insertion_se": _standard_error(curve.insertion_areas),
            }
            for curve in self.curves
        )


@dataclass(frozen=True, eq=False)
class AttributionPicture:
    """One image as a model sees it, through several methods. Arrays: it does not go to JSON."""

    model: str
    weights: str  # where they come from, as shown
    picture: NDArray[np.uint8]  # [H, W, 3]
    target: str  # the class that is explained, as shown
    probability: float  # the model's, of that class
    maps: Mapping[str, NDArray[Any]]  # method -> float [rows, columns], signed where it is
    completeness_error: float | None = None  # of integrated gradients; None: not among the maps
    environment: Environment | None = field(default=None)

    def __post_init__(self) -> None:
        if self.picture.dtype != np.uint8 or self.picture.ndim != 3 or self.picture.shape[2] != 3:
            raise ValueError(
                f"picture: expected uint8 [H, W, 3], got {self.picture.dtype} "
                f"{list(self.picture.shape)}"
            )
        for method, values in self.maps.items():
            if values.ndim != 2 or not np.isfinite(values).all():
                raise ValueError(
                    f"maps: expected finite [rows, columns] of {method}, got {list(values.shape)}"
                )


def _standard_error(values: tuple[float, ...]) -> float | None:
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None

"""The record of an installation: what is there, and whether it computes what it should."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.environment import Environment


@dataclass(frozen=True)
class Package:
    """A package that evitlab needs, or one of its extras does."""

    name: str
    needs: str  # versions that will do, such as ">=1.18"; "": any
    version: str | None  # of what is installed; None: it is missing
    ok: bool  # installed, in a version that will do


@dataclass(frozen=True)
class Extra:
    """An optional part of the installation, such as detect."""

    name: str
    packages: tuple[Package, ...]

    @property
    def ok(self) -> bool:
        """All its packages are there."""
        return all(package.ok for package in self.packages)


@dataclass(frozen=True)
class Accelerator:
    """A GPU that torch can use."""

    device: str  # as torch takes it: "cuda:0", "mps"
    name: str
    memory_gib: float | None  # None: shared with the CPU


@dataclass(frozen=True)
class Check:
    """One part of the self-check."""

    name: str
    ok: bool
    seconds: float
    said: str  # what was found, or what went wrong; names no folder


@dataclass(frozen=True)
class Diagnosis(Record):
    """What `evitlab doctor` found. Names no folder of the machine."""

    version: str  # of evitlab
    torchvision: str | None  # its version; torch's and timm's are on the environment card
    system: str  # "Linux", "Darwin" or "Windows"
    extras: tuple[Extra, ...]
    accelerators: tuple[Accelerator, ...]
    no_accelerator: str  # why there is none; "" where there is one
    data_home: str  # "there", or what is wrong with the folder of the data sets
    datasets: tuple[str, ...]  # named sets that lie there
    detection_sets: tuple[str, ...]  # sets with boxes that lie there
    checkpoints: tuple[str, ...]  # weights that come with evitlab
    notebooks: tuple[str, ...]
    hub_models: int  # in the Hugging Face Hub's cache
    data_free_gib: float | None  # of the disk with the data sets; None: the system does not say
    work_free_gib: float | None  # of the disk with the working directory
    chromium: bool  # whether the tests of the widgets find a browser
    environment: Environment
    checks: tuple[Check, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no check failed; extras may be missing."""
        return all(check.ok for check in self.checks)

    def to_frame(self) -> pd.DataFrame:
        """One row for each check."""
        columns = [field.name for field in dataclasses.fields(Check)]
        return pd.DataFrame([dataclasses.asdict(check) for check in self.checks], columns=columns)

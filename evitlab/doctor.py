"""What an installation has: packages, devices, data, disk space. No network is asked."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

from evitlab.datasets import NAMED_SETS, data_home, is_at_hand
from evitlab.datasets.opening_detection import holds_annotations
from evitlab.records import environment_card
from evitlab.records.diagnosis import Accelerator, Diagnosis, Extra, Package
from evitlab.resources import data_dir, notebooks_dir
from evitlab.version import __version__
from evitlab.wording import on_one_line

_DISTRIBUTION = "evitlab"
_CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def diagnose() -> Diagnosis:
    """Look around; nothing is computed and `checks` is empty: `self_checks` yields them.

    A broken installation is described as far as it goes: what is missing is an empty entry.
    """
    home = data_home()
    gpus, without = accelerators()
    return Diagnosis(
        version=__version__,
        torchvision=_version("torchvision"),
        system=platform.system(),
        extras=extras(),
        accelerators=gpus,
        no_accelerator=without,
        data_home=_state(home),
        datasets=tuple(name for name in NAMED_SETS if is_at_hand(name)),
        detection_sets=_detection_sets(home),
        checkpoints=shipped(data_dir, "checkpoints/*.safetensors"),
        notebooks=shipped(notebooks_dir, "*.ipynb"),
        hub_models=sum(1 for _ in hub_cache().glob("models--*")),
        data_free_gib=free_gib(home),
        work_free_gib=free_gib(Path.cwd()),
        chromium=find_chromium() is not None,
        environment=environment_card(),
    )


def required_packages() -> tuple[Package, ...]:
    """What evitlab cannot do without, as its installed metadata say.

    Raises:
        ValueError: evitlab runs from its files without being installed.
    """
    try:
        needed = [line for line in _requirements() if _applies(line, "")]
    except metadata.PackageNotFoundError:
        raise ValueError(
            "evitlab: expected an installed package, got its files alone: run pip install -e . in "
            "the repository"
        ) from None
    return tuple(map(_package, needed))


def extras() -> tuple[Extra, ...]:
    """The optional parts that the installed metadata know; () where evitlab is not installed."""
    try:
        names = metadata.metadata(_DISTRIBUTION).get_all("Provides-Extra") or []
        lines = _requirements()
    except metadata.PackageNotFoundError:
        return ()
    return tuple(
        Extra(
            name,
            tuple(
                _package(line)
                for line in lines
                if _applies(line, name) and not _applies(line, "")
            ),
        )
        for name in names
    )


def _requirements() -> list[Requirement]:
    return [Requirement(line) for line in metadata.requires(_DISTRIBUTION) or ()]


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _package(requirement: Requirement) -> Package:
    version = _version(requirement.name)
    will_do = version is not None and requirement.specifier.contains(version, prereleases=True)
    return Package(requirement.name, str(requirement.specifier), version, will_do)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def accelerators() -> tuple[tuple[Accelerator, ...], str]:
    """The GPUs that torch can use; where there is none, in words why."""
    with warnings.catch_warnings(record=True) as said:  # a driver too old for this torch
        warnings.simplefilter("always")
        found = [
            Accelerator(f"cuda:{number}", card.name, card.total_memory / 2**30)
            for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
            for card in [torch.cuda.get_device_properties(number)]
        ]
        if torch.backends.mps.is_available():
            found.append(Accelerator("mps", "Apple GPU", None))
    if found:
        return tuple(found), ""
    if said:
        return (), on_one_line(str(said[0].message).partition(" (Triggered")[0])
    built = torch.version.cuda or torch.version.hip
    return (), "none that torch can use" if built else "none (this torch is built for CPUs alone)"


def hub_cache() -> Path:
    """Where weights of the Hugging Face Hub are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def shipped(folder: Callable[[], Path], pattern: str) -> tuple[str, ...]:
    """Names of files that come with evitlab, without their suffix; () where they are missing."""
    try:
        return tuple(sorted(file.stem for file in folder().glob(pattern)))
    except FileNotFoundError:
        return ()


def find_chromium() -> str | None:
    """The browser that tests of the widgets drive: `EVITLAB_CHROMIUM`, or one on the path."""
    named = os.environ.get("EVITLAB_CHROMIUM")
    return named or next(filter(None, map(shutil.which, _CHROMIUMS)), None)


def free_gib(path: Path) -> float | None:
    """Free space of the disk that a path lies on, or would; None where the system does not say."""
    for folder in (path.absolute(), *path.absolute().parents):
        try:
            return shutil.disk_usage(folder).free / 2**30
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return None
    return None


def _state(home: Path) -> str:
    """ "there", or what is wrong with the folder of the data sets."""
    try:
        with os.scandir(home) as entries:
            next(entries, None)
    except FileNotFoundError:
        return "not there yet"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "there"


def _detection_sets(home: Path) -> tuple[str, ...]:
    if _state(home) != "there":
        return ()
    folders = sorted(folder for folder in home.iterdir() if folder.is_dir())
    return tuple(
        folder.name for folder in folders if holds_annotations(folder)
    )

"""Where the files that belong to evitlab lie: in a checkout, and inside an installed wheel."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def checkout_dir() -> Path | None:
    """The repository that this package is imported from; None for an installed wheel."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() else None


def data_dir() -> Path:
    """Folder of the published numbers, recorded runs and small checkpoints.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    return _resource("data")


def notebooks_dir() -> Path:
    """Folder of the notebooks.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    return _resource("notebooks")


def figures_dir() -> Path:
    """Folder that figures and findings are written to where nothing else is asked for.

    `EVITLAB_FIGURES` where it is set; else the `figures/` of the project around the working
    directory, so that a notebook and the command line write to the same place; else `figures/`
    in the working directory. The folder may not exist yet.
    """
    named = os.environ.get("EVITLAB_FIGURES")
    if named:
        return Path(named).expanduser().absolute()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "figures").is_dir() and (folder / "pyproject.toml").is_file():
            return folder / "figures"
    return here / "figures"


def _resource(name: str) -> Path:
    installed = _PACKAGE / name
    if installed.is_dir():
        return installed
    root = checkout_dir()
    if root is None:
        raise FileNotFoundError(
            f"{name}: expected a folder inside the installed package at {installed}; "
            "install evitlab again"
        )
    return root / name

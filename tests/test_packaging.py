"""The same packages everywhere (pyproject.toml, lock, environment.yml), the Makefile, the wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from evitlab import resources

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")

# Not on conda-forge as it is needed here, and what it calls by another name than PyPI.
BY_PIP = {"captum", "onnxscript"}  # conda-forge's are older; pip brings them with evitlab itself
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
PLATFORMS = {
    "Linux": {"sys_platform": "linux", "os_name": "posix", "platform_machine": "x86_64"},
    "macOS": {"sys_platform": "darwin", "os_name": "posix", "platform_machine": "arm64"},
    "Windows": {"sys_platform": "win32", "os_name": "nt", "platform_machine": "AMD64"},
}
HERE = {name: str(value) for name, value in default_environment().items()}
MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # what make hands down to a make below it
PYTHONS = ("3.11.0", "3.12.0", "3.13.0", "3.14.0")


def requirements(*extras: str) -> list[Requirement]:
    """pyproject's requirements: the core's where no extra is named, else the extras' alone."""
    optional = PROJECT["project"]["optional-dependencies"]
    lines = (
        [line for extra in extras for line in optional[extra]]
        if extras
        else PROJECT["project"]["dependencies"]
    )
    return [Requirement(line) for line in lines]


def there(platform: str, python: str) -> dict[str, str]:
    """What the markers of a requirement are compared with."""
    return {
        **HERE,
        **PLATFORMS[platform],
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
    }


def locked(environment: dict[str, str]) -> dict[str, str]:
    """Name to version of what the lock installs there."""
    pins: dict[str, str] = {}
    for line in LOCK.splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(environment):
            name = canonicalize_name(pin.name)
            assert name not in pins, f"{name} is pinned twice"
            pins[name] = str(pin.specifier).removeprefix("==")
    return pins


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_lock_satisfies_pyproject(platform: str, python: str) -> None:
    environment = there(platform, python)
    pins = locked(environment)
    wanted = requirements() + requirements(*PROJECT["project"]["optional-dependencies"])
    wanted += [Requirement(line) for line in PROJECT["build-system"]["requires"]]
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in the lock; run `make lock`"
        assert requirement.specifier.contains(version, prereleases=True), (
            f"lock has {requirement.name} {version}, pyproject wants {requirement.specifier}"
        )


def test_lock_pins_one_version_each() -> None:
    for line in LOCK.splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[\w.-]+==[\w.+]+( ; .+)?", line), line


def test_lock_is_complete() -> None:
    """Nothing that an installed package asks for on this machine is missing from the lock.

    `make setup` installs the lock's packages without resolving their dependencies.
    """
    oldest = (ROOT / "requirements-oldest.lock").read_text(encoding="utf-8")
    lock = oldest if f"timm=={metadata.version('timm')}\n" in oldest else LOCK
    pins = {canonicalize_name(Requirement(line).name) for line in lock.splitlines() if "==" in line}
    waiting = [(requirement, "evitlab") for requirement in requirements()]
    for extra in PROJECT["project"]["optional-dependencies"]:
        waiting += [(requirement, f"evitlab[{extra}]") for requirement in requirements(extra)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, parent = waiting.pop()
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{parent} needs {name}, which is not in the lock; run `make lock`"
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for child in map(Requirement, metadata.requires(name) or ()):
                if child.marker is None or child.marker.evaluate({**HERE, "extra": extra}):
                    waiting.append((child, name))


def test_conda_environment_is_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"][0] == "conda-forge"
    *packages, own = environment["dependencies"]
    assert own == {"pip": ["-e .[onnx]"]}
    assert "pip" in packages
    conda = {}
    for line in packages:
        name, operator, bound = line.partition(">=")
        conda[name.replace("_", "-")] = operator + bound
    wanted = {
        CONDA_NAMES.get(requirement.name, requirement.name): str(requirement.specifier)
        for requirement in requirements() + requirements("onnx", "detect", "app")
        if requirement.name not in BY_PIP
    }
    wanted["python"] = PROJECT["project"]["requires-python"]
    assert conda == {**wanted, "pip": ""}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the installed backend: no isolated environment, hence no network."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_carries_data_and_notebooks(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    ours = {
        kind: [path.relative_to(ROOT).as_posix() for path in ROOT.glob(kind)]
        for kind in ("evitlab/**/*.py", "evitlab/*.pyi", "data/paper/*.csv", "notebooks/*.ipynb")
    }
    for kind, paths in ours.items():
        assert paths, f"nothing matches {kind}"
        for path in paths:
            inside = path if path.startswith("evitlab/") else f"evitlab/{path}"
            assert inside in files, f"{path} is not in the wheel"
    assert "evitlab/py.typed" in files
    assert not [file for file in files if "checkpoints/." in file or "__pycache__" in file]


def test_installed_wheel_finds_its_files(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = (
        "import runpy; names = runpy.run_path('evitlab/resources.py');"
        "print(names['checkout_dir'](), names['data_dir'](), names['notebooks_dir'](), sep='\\n')"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    package = tmp_path / "evitlab"
    assert result.stdout.split() == ["None", str(package / "data"), str(package / "notebooks")]
    assert list((package / "data" / "paper").glob("*.csv"))


def test_installed_wheel_runs_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """Weights and records are found, and nothing is written beside the package."""
    installed, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(installed)
    empty.mkdir()
    before = {path: path.stat().st_mtime_ns for path in installed.rglob("*") if path.is_file()}
    script = (
        "import evitlab, sys; from evitlab.cli import main; print(evitlab.__file__);"
        "sys.exit(main(['doctor']) or main(['recipes']))"
    )
    outside = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=empty, env=outside, capture_output=True,
        text=True, encoding="utf-8",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert Path(result.stdout.splitlines()[0]) == installed / "evitlab" / "__init__.py"
    assert "all is well" in result.stdout and "efficientvit_m0_embedded" in result.stdout
    after = {path: path.stat().st_mtime_ns for path in installed.rglob("*") if path.is_file()}
    assert after == before and not list(empty.iterdir())


def test_checkout_finds_its_files() -> None:
    assert resources.checkout_dir() == ROOT
    assert resources.data_dir() == ROOT / "data"
    assert resources.notebooks_dir() == ROOT / "notebooks"


def test_missing_files_of_an_installation_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "evitlab")
    with pytest.raises(FileNotFoundError, match="data: expected a folder inside the installed"):
        resources.data_dir()


def test_figures_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVITLAB_FIGURES", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resources.figures_dir() == tmp_path / "figures"
    # From a notebook's folder, the project's own: beside its pyproject.toml.
    project = tmp_path / "project"
    (project / "figures").mkdir(parents=True)
    (project / "notebooks").mkdir()
    (project / "pyproject.toml").touch()
    monkeypatch.chdir(project / "notebooks")
    assert resources.figures_dir() == project / "figures"
    monkeypatch.setenv("EVITLAB_FIGURES", str(tmp_path / "elsewhere"))
    assert resources.figures_dir() == tmp_path / "elsewhere"


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`make` as from a shell, also where `make test` runs this."""
    outside = {key: value for key, value in os.environ.items() if key not in MAKE}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=outside
    )


def test_makefile_lists_its_targets() -> None:
    listed = re.findall(r"^  make (\w+)", make("help").stdout, re.MULTILINE)
    assert set(listed) >= {
        "setup", "reproduce", "test", "lint", "notebooks", "figures", "lab", "lock"
    }  # fmt: skip


def test_old_python_is_refused_in_one_line(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"))
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = make("--directory", str(tmp_path), "test", f"PYTHON={old}")
    assert result.returncode != 0
    message, outcome = result.stderr.strip().splitlines()
    assert message == (
        f"evitlab needs Python 3.11 or newer, which '{old}' is not; "
        "name one: make test PYTHON=python3.12"
    )
    assert outcome.startswith("make: ***")
    assert not (tmp_path / ".venv").exists()

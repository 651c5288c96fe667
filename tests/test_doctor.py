"""`evitlab doctor` and `evitlab --version`: what is there, what is missing, what is broken."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest
import torch

import evitlab
from evitlab import cli, doctor, resources, selfcheck, version
from evitlab.records.diagnosis import Check, Diagnosis, Package

ROOT = Path(__file__).parents[1]
GIVEN = resources.data_dir()
CHECKS = ("packages", "files", "accuracy", "training", "deploy")


@pytest.fixture
def no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-check has nothing to do."""
    monkeypatch.setattr(selfcheck, "_CHECKS", {})


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's folder of an installed copy, whose files a test may spoil; it has no data."""
    package = tmp_path / "site-packages" / "evitlab"
    package.mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", package)
    return package


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says of packages that they are not installed, or are in another version."""
    given = metadata.version

    def change(**versions: str | None) -> None:
        def version_of(name: str) -> str:
            found = versions.get(name.replace("-", "_"), given)
            if found is None:
                raise metadata.PackageNotFoundError(name)
            return found if isinstance(found, str) else given(name)

        monkeypatch.setattr(metadata, "version", version_of)

    return change


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was printed, continued lines joined to the first."""
    out, err = capsys.readouterr()
    assert err == ""
    for line in out.splitlines():
        # Only a path or a command may be wider, since it is of no use in two pieces.
        assert len(line) <= 100 or re.search(r"/\S{40}|pip install", line), line
    return re.sub(r"\n {16}", " ", out).splitlines()


def line_of(lines: list[str], label: str) -> str:
    """What the one line of that name says."""
    (found,) = (line for line in lines if re.match(rf" *{re.escape(label)}(  |$)", line))
    return found.strip()[len(label) :].strip()


def test_the_version_is_the_same_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert version.__version__ == evitlab.__version__ == project["version"]
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr() == (f"evitlab {project['version']}\n", "")


def test_the_version_is_said_before_torch_loads() -> None:
    script = "import sys; from evitlab.cli import main; main(['--version']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT
    )
    said, loaded = done.stdout.splitlines()
    assert said == f"evitlab {evitlab.__version__}"
    assert not {"torch", "timm", "pandas", "evitlab.records"} & set(loaded.split())


def test_all_is_well_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, before = tmp_path / "doctor.json", torch.get_rng_state()
    assert cli.main(["doctor", "--json", str(file)]) == 0
    assert torch.equal(torch.get_rng_state(), before)
    lines = lines_of(capsys)
    assert lines[-1].startswith("all is well (")
    assert line_of(lines, "evitlab").startswith(evitlab.__version__)
    assert line_of(lines, "libraries").startswith(f"torch {torch.__version__}, torchvision ")
    assert "efficientvit_m0_cifar10" in line_of(lines, "weights")
    for name in CHECKS:
        assert line_of(lines, name).startswith("ok "), name
    assert "100 % of 20 drawn images known" in line_of(lines, "accuracy")

    found = Diagnosis.load(file)
    assert found.ok and found.version == evitlab.__version__
    assert set(CHECKS) <= {check.name for check in found.checks}
    assert found.to_frame()["seconds"].gt(0).all() and len(found.to_frame()) == len(found.checks)
    assert len(found.notebooks) >= 9 and "00_tour" in found.notebooks
    text = file.read_text(encoding="utf-8")
    assert not re.search(r'[" ](/|[A-Z]:\\)', text), "a folder of this machine"
    assert json.loads(text)["record"] == "Diagnosis"


def test_an_installation_without_its_files_is_told(
    installed: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "doctor.json"
    assert cli.main(["doctor", "--json", str(file)]) == 1
    lines = lines_of(capsys)
    for label in ("weights", "notebooks"):
        assert str(installed) in line_of(lines, label)
        assert line_of(lines, label).endswith("install evitlab again")
    assert line_of(lines, "packages").startswith("ok ")
    for name in CHECKS[1:]:
        assert re.match(r"FAILED +\d+\.\d s  .+; install evitlab again", line_of(lines, name)), name
    assert lines[-1].startswith("FAILED: files, accuracy, training, deploy (")
    found = Diagnosis.load(file)
    assert not found.ok and found.checkpoints == found.notebooks == ()
    assert str(tmp_path) not in file.read_text(encoding="utf-8")


def test_weights_that_are_missing_or_damaged_are_named(installed: Path) -> None:
    (installed / "notebooks").mkdir()
    (installed / "notebooks" / "00_tour.ipynb").touch()
    shutil.copytree(GIVEN / "results", installed / "data" / "results")
    with pytest.raises(FileNotFoundError, match="expected trained weights in .*; install evitlab"):
        selfcheck.check_files()
    weights = installed / "data" / "checkpoints"
    weights.mkdir()
    for name in ("swin_t_cifar10", "efficientvit_m0_cifar10"):
        shutil.copy(GIVEN / "checkpoints" / f"{name}.safetensors", weights)
    assert selfcheck.check_files().endswith("recorded runs, 2 trained weights")
    whole = (weights / "swin_t_cifar10.safetensors").read_bytes()
    (weights / "swin_t_cifar10.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match="swin_t_cifar10: expected safetensors"):
        selfcheck.check_files()
    with pytest.raises(FileNotFoundError, match="efficientvit_m0_embedded: expected a weights"):
        selfcheck.check_accuracy()


def test_a_model_that_computes_something_else_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    given = selfcheck.load_model

    def spoiled(name: str) -> torch.nn.Module:
        model = given(name)
        with torch.no_grad():
            model.head.linear.weight.neg_()
        return model

    monkeypatch.setattr(selfcheck, "load_model", spoiled)
    with pytest.raises(ValueError, match=r"0 % of 20 drawn images known; recorded: 100 %"):
        selfcheck.check_accuracy()
    monkeypatch.setattr(selfcheck, "deploy", lambda model: lambda images: 1.001 * model(images))
    with pytest.raises(ValueError, match="the inference form differs by 1e-03 .* at most 1e-05"):
        selfcheck.check_deploy()
    monkeypatch.setattr(selfcheck, "deploy", lambda model: lambda images: model(images) * torch.nan)
    with pytest.raises(ValueError, match="the inference form differs by nan"):
        selfcheck.check_deploy()


def test_training_that_breaks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle:
        def step(self) -> None:
            pass

    monkeypatch.setattr(selfcheck, "normalize", lambda images, *_: images * torch.nan)
    with pytest.raises(ValueError, match=r"expected finite values after a step, loss nan"):
        selfcheck.check_training()
    monkeypatch.undo()
    monkeypatch.setattr(selfcheck, "build_optimizer", lambda *_: Idle())
    with pytest.raises(ValueError, match="expected a training step to change it"):
        selfcheck.check_training()


def test_a_gpu_is_held_beside_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for it here."""
    gpu = doctor.Accelerator("cpu", "stands for a GPU", 16.0)
    assert selfcheck.check_accelerators() == "" or torch.cuda.is_available()
    monkeypatch.setattr(selfcheck, "accelerators", lambda: ((gpu,), ""))
    assert re.fullmatch(r"cpu differs by \S+ of the largest logit", selfcheck.check_accelerators())
    monkeypatch.setattr(selfcheck, "_difference", lambda *_: 0.5)
    with pytest.raises(ValueError, match="cpu differs by 5e-01"):
        selfcheck.check_accelerators()


@pytest.mark.usefixtures("no_checks")
def test_what_torch_says_of_a_gpu_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def available() -> bool:
        warnings.warn("CUDA initialization: driver too old (Triggered at x.cpp:1)", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert cli.main(["doctor"]) == 0
    assert line_of(lines_of(capsys), "GPU") == "CUDA initialization: driver too old"
    card = doctor.Accelerator("cuda:0", "NVIDIA H200", 139.8)
    monkeypatch.setattr(doctor, "accelerators", lambda: ((card,), ""))
    assert cli.main(["doctor"]) == 0
    assert line_of(lines_of(capsys), "GPU") == "cuda:0: NVIDIA H200, 140 GiB"


@pytest.mark.usefixtures("no_checks")
def test_a_missing_extra_is_no_failure_and_how_to_get_it_is_said(
    without: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    without(onnxscript=None, faster_coco_eval="1.0.0", onnx="1.19.0", onnxruntime="1.24")
    assert cli.main(["doctor"]) == 0
    lines = lines_of(capsys)
    assert line_of(lines, "onnx") == "onnxscript is missing: pip install 'evitlab[onnx]'"
    assert line_of(lines, "detect").startswith("faster-coco-eval is 1.0.0, not >=1.6")
    assert line_of(lines, "detect").endswith(": pip install 'evitlab[detect]'")


def test_the_extras_are_those_of_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = ["torch>=2", "numpy ; sys_platform == 'no such'", "zzz>=3 ; extra == 'more'"]
    provided = Message()
    provided["Provides-Extra"] = "more"
    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    monkeypatch.setattr(metadata, "metadata", lambda name: provided)
    assert [package.name for package in doctor.required_packages()] == ["torch"]
    (more,) = doctor.extras()
    assert more.name == "more"
    assert more.packages == (Package("zzz", ">=3", None, False),) and not more.ok


def test_a_required_package_that_is_too_old_fails_the_check(without: Callable[..., None]) -> None:
    without(torch="2.5.1", captum=None)
    with pytest.raises(ValueError) as raised:
        selfcheck.check_packages()
    said = str(raised.value)
    assert "torch is 2.5.1, not >=2.11" in said and "captum is missing" in said
    assert re.search(r"pip install '(captum|torch)>=\S+' '(captum|torch)>=\S+'$", said)


def test_files_without_an_installation_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    monkeypatch.setattr(metadata, "requires", missing)
    assert doctor.extras() == ()
    with pytest.raises(ValueError, match="evitlab: expected an installed package.* -e ."):
        doctor.required_packages()


@pytest.mark.usefixtures("no_checks")
def test_data_are_listed_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "sets"
    monkeypatch.setenv("EVITLAB_DATA", str(home))
    assert cli.main(["doctor"]) == 0
    lines = lines_of(capsys)
    said = line_of(lines, "data sets")
    assert said.startswith(f"{home} (EVITLAB_DATA); not there yet, ") and said.endswith("GiB free")
    assert line_of(lines, "images") == "none at hand; embedded, which needs no files"

    for folder in ("street/annotations", "voc/Annotations", "empty"):
        (home / folder).mkdir(parents=True)
    for split in ("train", "test"):
        (home / "cifar10").mkdir(exist_ok=True)
        (home / "cifar10" / f"{split}-00000-of-00001.parquet").touch()
    assert cli.main(["doctor"]) == 0
    lines = lines_of(capsys)
    assert "not there" not in line_of(lines, "data sets")
    assert line_of(lines, "images") == "cifar10; embedded, which needs no files"
    assert line_of(lines, "with boxes") == "street, voc; scenes, which needs no files"

    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("EVITLAB_DATA", str(file))
    assert doctor.diagnose().data_home == "cannot be read (Not a directory)"


def test_one_failed_check_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash() -> str:
        raise RuntimeError("no\nkernel /opt/lib/x.so")

    checks: dict[str, Callable[[], str]] = {
        "first": crash, "second": lambda: "fine", "third": lambda: "",
    }  # fmt: skip
    monkeypatch.setattr(selfcheck, "_CHECKS", checks)
    assert cli.main(["doctor"]) == 1
    lines = lines_of(capsys)
    assert re.fullmatch(r"FAILED +0\.0 s  RuntimeError: no kernel x\.so", line_of(lines, "first"))
    assert re.fullmatch(r"ok +0\.0 s  fine", line_of(lines, "second"))
    assert not any(line.strip().startswith("third") for line in lines)
    assert lines[-1].startswith("FAILED: first (evitlab doctor --debug")
    with pytest.raises(RuntimeError, match="no\nkernel"):
        cli.main(["doctor", "--debug"])


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("[Errno 2] No such file: '/srv/sets/x.json'", "[Errno 2] No such file: 'x.json'"),
        (r"C:\Users\me\x.json: broken", "x.json: broken"),
        ("and/or 1/2 of https://example.org/a/b", "and/or 1/2 of https://example.org/a/b"),
        ("5 in /srv/evitlab", "5 in evitlab"),
        (f"none in {Path(doctor.__file__).parent}/data", "none in evitlab/data"),
    ],
)
def test_folders_are_cut(text: str, cut: str) -> None:
    assert selfcheck.without_folders(text) == cut


def test_a_record_of_checks_says_whether_all_is_well() -> None:
    found = doctor.diagnose()
    assert found.checks == () and found.ok
    assert list(found.to_frame().columns) == ["name", "ok", "seconds", "said"]
    assert not Diagnosis(**{**vars(found), "checks": (Check("x", False, 0.1, "no"),)}).ok

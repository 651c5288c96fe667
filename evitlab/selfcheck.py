"""The self-check of `evitlab doctor`: in seconds, what a broken installation would get wrong."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import torch
import torch.nn.functional as F

from evitlab.analysis.conditions import without_progress_bars
from evitlab.datasets import EMBEDDED, open_dataset
from evitlab.doctor import accelerators, required_packages, shipped
from evitlab.models.deploy import deploy
from evitlab.models.zoo import create_model, load_model, normalization
from evitlab.records import TrainingRecord
from evitlab.records.diagnosis import Check, Package
from evitlab.resources import data_dir, notebooks_dir
from evitlab.training.augment import normalize
from evitlab.training.checkpoint import save_weights
from evitlab.training.evaluation import evaluate
from evitlab.training.optimizer import build_optimizer
from evitlab.training.recipe import Recipe
from evitlab.wording import on_one_line

_KNOWN = "efficientvit_m0_embedded"  # trained on pictures that are drawn, so they are always there
_START = "efficientvit_m0_cifar10"
_IMAGES = 20
_TOLERANCE = 10.0  # points of accuracy: two of 20 images
_DEPLOYED = 1e-5  # of the largest logit, as `deploy` promises
_ON_GPU = 1e-2  # the same; a GPU may round to TF32
_ABSOLUTE = re.compile(r"(?<![\w.:/\\])(?:[A-Za-z]:[\\/]|/)(?:[^\s:'\"]*[\\/])?(?=[^\s:'\"])")


def self_checks(*, reraise: bool = False) -> Iterator[Check]:
    """Run the checks, one after the other; each is yielded when it is done.

    A check that says nothing had nothing to look at and is left out.

    Args:
        reraise: pass the error of a failed check on, to see its traceback.
    """
    for name, check in _CHECKS.items():
        start = time.perf_counter()
        try:
            with without_progress_bars(), torch.random.fork_rng(devices=[]):
                ok, said = True, check()
        except Exception as error:  # whatever is broken: the other checks may say more about it
            if reraise:
                raise
            text = on_one_line(error)
            known = isinstance(error, (ValueError, OSError, ArithmeticError)) and text
            ok, said = False, text if known else f"{type(error).__name__}: {text}"
        if said:
            yield Check(name, ok, time.perf_counter() - start, without_folders(said))


def without_folders(text: str) -> str:
    """Absolute paths in a text cut to their last part, as a record names no folder."""
    # Those that may have spaces in their names.
    for known in (Path(__file__).parents[1], gettempdir(), sys.prefix, Path.home()):
        text = text.replace(f"{known}{os.sep}", "")
    return _ABSOLUTE.sub("", text)


def check_packages() -> str:
    """Everything that evitlab cannot do without is installed, in a version that will do.

    Raises ValueError with the line that installs the rest.
    """
    packages = required_packages()
    wrong = [package for package in packages if not package.ok]
    if wrong:
        lines = " ".join(f"'{package.name}{package.needs}'" for package in wrong)
        raise ValueError(f"{', '.join(map(lacking, wrong))}: pip install {lines}")
    return f"{len(packages)} required packages"


def lacking(package: Package) -> str:
    """In words, what is wrong with a package that is not `ok`."""
    if package.version is None:
        return f"{package.name} is missing"
    return f"{package.name} is {package.version}, not {package.needs}"


def check_files() -> str:
    """What comes with evitlab is there, and its weights can be loaded.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: damaged weights, or no file of a kind.
    """
    notebooks, weights = notebooks_dir(), data_dir() / "checkpoints"  # says what is missing
    names = shipped(data_dir, "checkpoints/*.safetensors")
    counts = {
        f"notebooks in {notebooks}": len(shipped(notebooks_dir, "*.ipynb")),
        f"recorded runs in {weights.parent}": len(shipped(data_dir, "results/*.json")),
        f"trained weights in {weights}": len(names),
    }
    for what, count in counts.items():
        if not count:
            raise FileNotFoundError(f"expected {what}, found none; install evitlab again")
    for name in names:
        model = load_model(name)
        if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
            raise ValueError(f"{name}: expected finite weights, got NaN or infinity")
    return ", ".join(f"{count} {what.partition(' in ')[0]}" for what, count in counts.items())


def check_accuracy() -> str:
    """A shipped model knows drawn pictures as well as its record says, to within ten points.

    Raises:
        FileNotFoundError: weights or record are missing.
        ValueError: it knows fewer.
    """
    record = TrainingRecord.load(data_dir() / "results" / f"{_KNOWN}.json")
    model = load_model(_KNOWN)
    data = open_dataset(EMBEDDED, "val", img_size=record.img_size, limit=_IMAGES)
    top1 = evaluate(model, data, device="cpu").top1
    said = f"{top1:.0f} % of {_IMAGES} drawn images known; recorded: {record.final.top1:.0f} %"
    if top1 < record.final.top1 - _TOLERANCE:
        raise ValueError(f"{_KNOWN}: {said}")
    return said


def check_training() -> str:
    """A training step from shipped weights has a finite loss, and the result can be saved and read.

    Raises:
        ValueError: the loss or a gradient is not finite, the weights did not change, or what is
            read back differs from what was saved.
        OSError: nothing can be written among the temporary files.
    """
    data = open_dataset(EMBEDDED, "train", img_size=32, limit=16)
    images, labels = next(data.batches(torch.arange(16), 16))
    model = create_model("efficientvit_m0_p4", img_size=32, num_classes=10, weights=_START).train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = build_optimizer(model, Recipe(epochs=1, batch_size=16, lr=1e-3))
    loss = F.cross_entropy(model(normalize(images, *normalization(model))), labels)
    loss.backward()
    optimizer.step()
    for name, value in model.named_parameters():
        if not (loss.isfinite() and value.isfinite().all()):
            raise ValueError(f"{name}: expected finite values after a step, loss {loss:.2f}")
        if torch.equal(value, before[name]):
            raise ValueError(f"{name}: expected a training step to change it, got the same values")
    with TemporaryDirectory(prefix="evitlab-doctor-") as folder:
        saved = load_model(save_weights(model, Path(folder) / "model.safetensors")).state_dict()
    if not all(torch.equal(saved[key], value) for key, value in model.state_dict().items()):
        raise ValueError("expected to read the weights that were saved, got others")
    return f"a step of 16 images, loss {loss:.2f}; saved and read back"


@torch.no_grad()
def check_deploy() -> str:
    """The exact inference form computes what the model does. Raises ValueError where not."""
    model, images = _model_and_images()
    apart = _difference(deploy(model)(images), model(images))
    return _within(apart, _DEPLOYED, "the inference form")


@torch.no_grad()
def check_accelerators() -> str:
    """Every GPU computes what the CPU does; "" without one. Raises ValueError where it does not."""
    gpus, _ = accelerators()
    if not gpus:
        return ""
    model, images = _model_and_images()
    expected = model(images)
    said = []
    for gpu in gpus:
        found = model.to(gpu.device)(images.to(gpu.device)).cpu()
        said.append(_within(_difference(found, expected), _ON_GPU, gpu.device))
    return "; ".join(said)


def _model_and_images() -> tuple[Any, torch.Tensor]:
    model = load_model(_KNOWN)
    size = (2, *model.pretrained_cfg["input_size"])
    return model, torch.randn(size, generator=torch.Generator().manual_seed(0))


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, as a part of the largest logit."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _within(apart: float, tolerance: float, what: str) -> str:
    said = f"{what} differs by {apart:.0e} of the largest logit"
    if not apart <= tolerance:  # NaN is wrong too
        raise ValueError(f"{said}, expected at most {tolerance:.0e}")
    return said


_CHECKS: dict[str, Callable[[], str]] = {
    "packages": check_packages,
    "files": check_files,
    "accuracy": check_accuracy,
    "training": check_training,
    "deploy": check_deploy,
    "accelerator": check_accelerators,
}

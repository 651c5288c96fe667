"""Records come back as they were saved, or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evitlab.records import (
    Accuracy,
    BlockNode,
    BlockTrace,
    Environment,
    EpochLog,
    TrainingRecord,
    check_writable,
    environment,
    environment_card,
    write_atomically,
)

CARD = Environment(
    device="cpu",
    cpu_model="Abacus 2",
    cores=2,
    threads=1,
    python="3.11.7",
    torch="2.11.0",
    timm="1.0.20",
    precision="float32",
    layout="contiguous",
    batch_size=None,
    seed=0,
    dataset="CIFAR-10",
    scale="quick",
    date="2026-01-02T03:04:05+00:00",
    git_commit=None,
)
ACCURACY = Accuracy(top1=75.0, top5=98.0, loss=0.7, n=10_000, environment=CARD)
TRAINING = TrainingRecord(
    model="efficientvit_m0",
    img_size=(32, 32),
    num_classes=10,
    params=2_000_000,
    macs=10_000_000,
    dataset="CIFAR-10",
    train_images=50_000,
    recipe={"crop": "pad", "crop_scale": (0.08, 1.0), "ema": None, "nested": {"on": True}},
    history=(
        EpochLog(1, 2.3, 1e-3, 500.0, 100.0),
        EpochLog(2, 1.9, 5e-4, 510.0, 98.0, val_top1=75.0, val_top5=98.0, val_loss=0.7),
    ),
    final=ACCURACY,
    best_epoch=2,
    seconds=198.0,
    command="evitlab train efficientvit_m0 --data cifar10 --out runs/m0",
    environment=CARD,
)
TRACE = BlockTrace(
    nodes=(
        BlockNode("patch_embed", "stem", (3, 32, 32), (64, 8, 8), 100, 200, "3x3"),
        BlockNode("heads.0", "head", (16, 8, 8), (16, 8, 8), 0, 300, head=0),
    ),
    model="efficientvit_m0",
)
ALL = [ACCURACY, TRAINING, TRACE]


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("record", ALL, ids=lambda record: type(record).__name__)
def test_loaded_equals_saved(record, tmp_path):
    path = record.save(tmp_path / "deep" / "record.json")
    assert json.loads(path.read_text())["record"] == type(record).__name__
    assert type(record).load(path) == record


def test_numbers_of_numpy_and_torch_become_plain(tmp_path):
    numbers: dict[str, Any] = {
        "top1": np.float32(75.0),
        "n": np.int64(3),
        "loss": torch.tensor(0.5),
    }
    measured = dataclasses.replace(ACCURACY, **numbers)
    loaded = Accuracy.load(measured.save(tmp_path / "a.json"))
    assert (loaded.top1, loaded.n, loaded.loss) == (75.0, 3, 0.5)
    assert type(loaded.n) is int


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_by_name(bad, tmp_path):
    broken = dataclasses.replace(TRAINING, final=dataclasses.replace(ACCURACY, loss=bad))
    with pytest.raises(ValueError, match=r"TrainingRecord\.final\.loss: expected a finite number"):
        broken.save(tmp_path / "r.json")
    assert not list(tmp_path.iterdir())

    path = TRAINING.save(tmp_path / "r.json")
    edit(path, lambda content: content["history"][1].update(train_loss=bad))
    with pytest.raises(ValueError, match=r"r\.json: TrainingRecord\.history\[1\]\.train_loss"):
        TrainingRecord.load(path)


def test_nan_inside_a_recipe_is_refused(tmp_path):
    broken = dataclasses.replace(TRAINING, recipe={"optimizer": {"lr": math.nan}})
    with pytest.raises(ValueError, match=r"recipe\.optimizer\.lr"):
        broken.save(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("params"), "TrainingRecord: missing field 'params'"),
        (lambda c: c["final"].pop("n"), r"TrainingRecord\.final: missing field 'n'"),
        (lambda c: c.update(parmas=1), "unknown field 'parmas'; did you mean 'params'"),
        (lambda c: c.update(params="2M"), r"TrainingRecord\.params: expected int, got '2M'"),
        (lambda c: c.update(params=True), r"params: expected int, got True"),
        (lambda c: c.update(params=2.5), r"params: expected int, got 2\.5"),
        (lambda c: c.update(img_size=[32]), r"img_size: expected 2 values"),
        (lambda c: c.update(history={}), r"history: expected a list"),
        (lambda c: c.update(final=3), r"final: expected an object \(Accuracy\)"),
        (lambda c: c["environment"].update(seed="x"), r"environment\.seed: expected int"),
        (lambda c: c.update(model=None), r"model: expected str, got None"),
        (lambda c: c.update(record="Accuracy"), "expected a record of type TrainingRecord"),
        (lambda c: c.pop("record"), "not a record"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, message, tmp_path):
    path = TRAINING.save(tmp_path / "r.json")
    edit(path, change)
    with pytest.raises(ValueError, match=message) as error:
        TrainingRecord.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", '{"record": "Accu', "[1]", "3"])
def test_broken_json_is_refused(content, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"r\.json: not a"):
        Accuracy.load(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        Accuracy.load(tmp_path / "nowhere.json")


def test_a_field_with_a_default_may_be_absent(tmp_path):
    path = TRACE.save(tmp_path / "t.json")
    edit(path, lambda content: content.pop("block"))
    assert BlockTrace.load(path) == TRACE


def test_frames_are_tidy():
    row = ACCURACY.to_frame()
    assert len(row) == 1
    assert row.loc[0, ["top1", "n", "device", "scale"]].tolist() == [75.0, 10_000, "cpu", "quick"]
    assert row.columns[0] == "top1"

    epochs = TRAINING.to_frame()
    assert epochs["epoch"].tolist() == [1, 2]
    assert set(epochs["model"]) == {"efficientvit_m0"}
    assert math.isnan(epochs["val_top1"][0]) and epochs["val_top1"][1] == 75.0

    nodes = TRACE.to_frame()
    assert nodes["in_shape"].tolist() == ["3x32x32", "16x8x8"]
    assert nodes["head"].isna().tolist() == [True, False]


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "f.txt", "old")

    def no_space(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match=r"No space left.*f\.txt"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]


def test_write_keeps_bytes_and_line_endings(tmp_path):
    assert write_atomically(tmp_path / "a", b"\x00\r\n").read_bytes() == b"\x00\r\n"
    assert write_atomically(tmp_path / "b", "é\n").read_bytes() == "é\n".encode()


def test_unwritable_folder_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="cannot write here.*file"):
        write_atomically(file / "inside" / "r.json", "x")


def test_what_could_not_be_written_is_said_before(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "r.json")
    assert not list(tmp_path.iterdir()), "it makes nothing"
    (tmp_path / "there.json").write_text("old")
    check_writable(tmp_path / "there.json")
    assert (tmp_path / "there.json").read_text() == "old"
    check_writable(tmp_path / "new", folder=True)
    check_writable(tmp_path, folder=True)
    with pytest.raises(OSError, match=r"cannot write here \(Not a directory\): '.*there.json'$"):
        check_writable(tmp_path / "there.json", folder=True)
    for wrong in (tmp_path, tmp_path / "there.json" / "r.json", tmp_path / ("x" * 300)):
        with pytest.raises(OSError, match="cannot write here"):
            check_writable(wrong)
    with pytest.raises(ValueError, match="null"):
        check_writable("\0")


def test_card_describes_this_process_and_nobody():
    card = environment_card(batch_size=8, seed=1, dataset="CIFAR-10", scale="smoke")
    assert card.torch == torch.__version__ and card.threads == torch.get_num_threads()
    assert card.cores >= 1 and card.cpu_model and card.date.endswith("+00:00")
    assert card.hardware.startswith(card.cpu_model)
    texts = [value for value in dataclasses.asdict(card).values() if isinstance(value, str)]
    for private in (str(Path.home()), str(Path.cwd()), socket.gethostname()):
        assert len(private) < 3 or not any(private in text for text in texts)


def test_card_names_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA T")
    card = environment_card(device="cuda:0")
    assert card.device == card.hardware == "cuda (NVIDIA T)"


def test_unknown_scale_suggests_the_closest():
    with pytest.raises(ValueError, match="scale: expected one of smoke.*did you mean 'quick'"):
        environment_card(scale="quik")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_is_that_of_the_own_checkout_only(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=n", "-c", "user.email=e@e")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    package = tmp_path / "evitlab"
    (package / "records").mkdir(parents=True)
    (package / "records" / "environment.py").write_text("1")
    monkeypatch.setattr(environment, "__file__", str(package / "records" / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment_card().git_commit is None

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "x")
    clean = environment_card().git_commit
    assert clean is not None and len(clean) == 12

    (package / "records" / "environment.py").write_text("2")
    assert environment_card().git_commit == f"{clean}+"

    inside = package / "site-packages" / "evitlab"
    (inside / "records").mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(inside / "records" / "environment.py"))
    assert environment_card().git_commit is None

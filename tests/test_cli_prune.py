"""`evitlab prune`: what it leaves behind, what may follow, and one line for every mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from small_runs import no_training, shapes, tiny_vit, write_folder

from evitlab import PruningRecord, count_macs, load_model, save_weights
from evitlab.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "drawings"
    return write_folder(root, {"train": shapes(36), "val": shapes(12, "val")})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    return save_weights(tiny_vit(), file, class_names=shapes(3).class_names)


def prune_command(weights: Path, folder: Path, out: Path, *more: str) -> list[str]:
    return [
        *("prune", str(weights), "--macs", "0.8", "--data", str(folder), "--recipe", "smoke"),
        *("--steps", "2", "--images", "16", "--batch-size", "16", "--threads", "1"),
        *("--device", "cpu", "--out", str(out), *more),
    ]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, folder: Path, weights: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pruned"
    assert main(prune_command(weights, folder, out, "--epochs", "2", "--scale", "smoke")) == 0
    return out


def test_prune_leaves_a_smaller_model_its_record_and_the_figure(
    pruned: Path, weights: Path
) -> None:
    record = PruningRecord.load(pruned / "record.json")
    assert record.before and record.pruned and record.recovered and record.recovery
    assert len(record.recovery.history) == 2 and record.recovered.n == 12
    model, whole = load_model(pruned), load_model(weights)
    assert count_macs(model) == record.macs_after <= 0.8 * count_macs(whole)
    assert model.class_names == ("disk", "square", "triangle")
    assert (record.environment.dataset, record.environment.scale) == ("drawings", "smoke")
    assert record.command.startswith("evitlab prune tiny.safetensors --macs 0.8 --data drawings ")
    for suffix in ("png", "svg", "csv"):
        assert (pruned / f"fig5_channels.{suffix}").stat().st_size > 100


def test_the_same_command_again_prints_the_same_and_trains_nothing(
    pruned: Path, weights: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with no_training():
        assert main(prune_command(weights, folder, pruned, "--epochs", "2")) == 0
    record = PruningRecord.load(pruned / "record.json")
    text = capsys.readouterr().out
    assert record.before and record.pruned and record.recovered
    assert (
        f"top-1: before {record.before.top1:.2f} %, pruned {record.pruned.top1:.2f} %, "
        f"recovered {record.recovered.top1:.2f} %; drawings, 12 images"
    ) in text
    widths = record.to_frame().query("component == 'qk' and block == 1")
    row = next(line for line in text.splitlines() if line.startswith("1 "))
    assert f"{widths['after'].sum()} of {widths['before'].sum()}" in row


def test_a_pruned_run_can_be_exported_and_pruned_again(
    pruned: Path, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "again.safetensors"
    assert main(["export", str(pruned), str(file)]) == 0
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_model(file)(images), load_model(pruned)(images))
    assert main(prune_command(pruned, folder, tmp_path / "out", "--criterion", "magnitude")) == 0
    assert count_macs(load_model(tmp_path / "out")) < count_macs(load_model(pruned))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--macs", "1.5"], r"macs: expected"),
        (["--macs", "0.01"], r"macs: expected [\d.]+ to 1 as a share"),
        (["--criterion", "taylr"], "criterion: .*did you mean 'taylor'"),
        (["--steps", "0"], "steps: expected at least 1, got 0"),
        (["--images", "0"], "images: expected at least 1, got 0"),
        (["--recipe", "nothing"], "--recipe: expected one of smoke"),
        (["--epochs", "-1"], "--epochs: expected 0 or more, got -1"),
        (["--num-classes", "3"], "--num-classes: expected the name of a model"),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str],
    message: str,
    weights: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(prune_command(weights, folder, tmp_path / "out", *options)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("evitlab: error: ") and re.search(message, error)
    assert not (tmp_path / "out" / "record.json").exists()


def test_neither_model_nor_weights(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(prune_command(tmp_path / "nothing", folder, tmp_path / "out")) == 2
    assert "nothing" in capsys.readouterr().err

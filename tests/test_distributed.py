"""Two processes are one run: the same numbers, each image once, one voice, and a clear end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import faults
import psutil
import pytest
import ranks
import torch
from ranks import RUNS, VALIDATION, detection_losses, losses, norm_inputs
from safetensors.torch import load_file
from small_runs import one_line, plain_net, recipe, shapes, tiny_vit, write_folder
from torch import nn

from evitlab import TrainingRecord, evaluate, train
from evitlab.cli import main
from evitlab.training import classifier
from evitlab.training.failures import OutOfMemory

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ranks.py found in each of two processes."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for begun in [faults.process(ranks.process, rank, port, out) for rank in (0, 1)]:
        begun.join(faults.LIMIT_S)
        assert begun.exitcode == 0, [log.read_text(encoding="utf-8") for log in out.glob("*.log")]
    first, second = (json.loads((out / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    return first, second


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_lose_what_one_does(
    found: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path, name: str
) -> None:
    """With BatchNorm, mixing and clipping over the whole batch; also where it is not even."""
    alone = losses(name, tmp_path)
    assert found[0][name] == found[1][name]
    assert found[0][name] == pytest.approx(alone, abs=1e-5)


def test_two_processes_train_a_detector_as_one_does(
    found: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    *expected, recall = detection_losses(tmp_path)
    *losses, recalled = found[0]["detector"]
    assert found[0]["detector"] == found[1]["detector"]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert recalled == pytest.approx(recall, abs=1.0) and recall > 0


def test_statistics_over_processes_are_those_of_the_whole_batch(
    found: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    """Of three and two images; gradients through them too."""
    norm, images, slopes = norm_inputs()
    images.requires_grad_()
    out = norm(images)
    (out * slopes).sum().backward()
    pairs = [per["norm"] for per in found]
    for rank, per in enumerate(pairs):
        for name, whole in (("out", out), ("gradient", images.grad)):
            assert whole is not None
            torch.testing.assert_close(torch.tensor(per[name]).double(), whole[rank::2].detach())
        torch.testing.assert_close(torch.tensor(per["mean"]).double(), norm.running_mean)
        torch.testing.assert_close(torch.tensor(per["var"]).double(), norm.running_var)
    total = torch.tensor(pairs[0]["weight"]) + torch.tensor(pairs[1]["weight"])
    torch.testing.assert_close(total.double(), norm.weight.grad)


def test_statistics_that_are_not_shared_end_alike(
    found: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    assert found[0]["own"] == found[1]["own"]


@pytest.mark.parametrize("images", [1, VALIDATION])
def test_evaluation_counts_each_image_once(
    found: tuple[dict[str, Any], dict[str, Any]], images: int
) -> None:
    alone = evaluate(plain_net(), shapes(images))
    for per in found:
        n, top1, loss = per[f"evaluated {images}"]
        assert (n, top1) == (images, alone.top1)
        assert loss == pytest.approx(alone.loss, abs=1e-6)


def test_a_streamed_image_is_decoded_by_one_process(
    found: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    assert found[0]["streamed"] == found[1]["streamed"]
    first, second = found[0]["streamed"]
    assert (len(first), len(second)) == (6, 4)  # of five: three and two
    assert sorted(first + second) == list(range(10))


def test_an_error_of_process_0_is_raised_in_all(
    found: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    assert found[0]["error"] == found[1]["error"] == "only process 0 knows why"


@pytest.mark.slow
def test_a_killed_process_ends_the_run_in_one_line_and_it_resumes(tmp_path: Path) -> None:
    """The real command line, one process killed; then one process alone goes on to the end."""
    root = write_folder(tmp_path / "data", {"train": shapes(32), "val": shapes(5, "val")})
    out, whole = tmp_path / "run", tmp_path / "whole"
    command = ["train", "efficientvit_m0", "--data", str(root), "--img-size", "32", "--recipe",
               "smoke", "--batch-size", "16", "--lr", "1e-4", "--epochs", "5", "--device",
               "cpu"]  # fmt: skip
    run = subprocess.Popen(
        [*TORCHRUN, "-m", "evitlab", *command, "--out", str(out)],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    last, victim = out / "checkpoints" / "last.pt", 0
    while not last.exists():
        assert run.poll() is None, run.communicate()[1][-3000:]
        victim = victim or process_of_rank(1, run.pid)  # known by then: no epoch may pass
        time.sleep(0.01)
    assert victim, "no process of that number was seen"
    os.kill(victim, signal.SIGKILL)
    _, said = run.communicate(timeout=120)
    assert run.returncode != 0
    (line,) = [line for line in said.splitlines() if "evitlab: " in line]
    assert "evitlab: stopped: a process of this run is gone" in line
    assert f"{last}, and the same command continues from it" in line
    assert not (out / "record.json").exists()
    for folder in (out, whole):
        assert main([*command, "--out", str(folder)]) == 0
    records = [TrainingRecord.load(folder / "record.json") for folder in (out, whole)]
    resumed, expected = ([log.train_loss for log in record.history] for record in records)
    assert resumed == pytest.approx(expected, abs=1e-4)


def process_of_rank(rank: int, launcher: int) -> int:
    """The child of torchrun that has this number; 0 where it has not begun."""
    for child in psutil.Process(launcher).children():
        with suppress(psutil.Error):  # it has just ended, or not begun
            if child.environ().get("RANK") == str(rank):
                return child.pid
    return 0


def test_parts_of_a_batch_give_its_gradient(tmp_path: Path) -> None:
    """Without BatchNorm there is nothing that depends on the parts."""
    weights = []
    for parts in (1, 3):
        out = tmp_path / str(parts)
        train(plain_net(), shapes(32), shapes(6), recipe(accumulate=parts), out_dir=out)
        weights.append(load_file(out / "model.safetensors")["2.weight"])
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "changes", "message"),
    [
        (32, dict(batch_size=16, accumulate=9),
         r"^batch_size: expected at least 18, as BatchNorm needs them, got 16 in 9 parts"),
        (8, dict(batch_size=64, accumulate=5),
         r"^batch_size: expected at least 10, as BatchNorm needs them, got 8 training images"),
    ],
)  # fmt: skip
def test_parts_too_small_for_batchnorm_are_refused(
    tmp_path: Path, images: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        train(tiny_vit(), shapes(images), shapes(3), recipe(**changes), out_dir=tmp_path / "run")
    one_line(raised)
    assert not (tmp_path / "run").exists()


class Greedy(nn.Module):
    """Asks for a petabyte."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain_net()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            images.new_empty(2**48)
        return self.net(images)


def test_out_of_memory_says_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory) as raised:
        train(Greedy(), shapes(32), shapes(6), recipe(), out_dir=tmp_path)
    message = one_line(raised)
    for part in ("out of memory (", "--batch-size, now 16", "--img-size, now 32x32",
                 "--accumulate, now 1", "last good checkpoint: none yet"):  # fmt: skip
        assert part in message


def test_the_command_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path / "data", {"train": shapes(8), "val": shapes(3, "val")})

    def greedy(self: Any, *_: Any) -> None:
        torch.empty(2**48)

    monkeypatch.setattr(classifier.Objective, "__call__", greedy)
    command = ["train", "efficientvit_m0", "--data", str(root), "--img-size", "32", "--recipe",
               "smoke", "--batch-size", "8", "--device", "cpu", "--out"]  # fmt: skip
    assert main([*command, str(tmp_path / "run")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "evitlab: " in line]
    assert len(lines) == 1 and "evitlab: error: out of memory (" in lines[0]

"""`evitlab detect train` and `prune`, killed and begun again: the same as if nothing had been."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import faults
import pytest
from cases import slow
from small_runs import shapes, tiny_vit, write_folder

from evitlab.training.checkpoint import save_weights

Whole = tuple[dict[str, Any], float]


@pytest.fixture(scope="module")
def detect(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three drawn scenes, learnt and measured in a second or two."""
    return [
        *("detect", "train", "efficientvit_m0", "--data", "scenes", "--overfit", "3"),
        *("--img-size", "64", "--channels", "8", "--epochs", "3", "--batch-size", "2"),
        *("--validate-every", "1", "--threads", "1", "--device=cpu", "--out"),
    ]


@pytest.fixture(scope="module")
def prune(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("prune")
    data = write_folder(root / "data", {"train": shapes(24), "val": shapes(6, "val")})
    start = save_weights(tiny_vit(), root / "tiny.safetensors", class_names=shapes(3).class_names)
    return [
        *("prune", str(start), "--data", str(data), "--recipe", "smoke", "--epochs", "2"),
        *("--steps", "1", "--images", "12", "--batch-size", "12", "--threads", "1"),
        *("--device=cpu", "--out"),
    ]


@pytest.fixture(scope="module")
def detect_whole(detect: list[str], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return undisturbed(detect, tmp_path_factory)


@pytest.fixture(scope="module")
def prune_whole(prune: list[str], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return undisturbed(prune, tmp_path_factory)


def undisturbed(argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What a command comes to when nothing happens, and its seconds."""
    out, seconds = faults.finished(argv, tmp_path_factory.mktemp("reference") / "run")
    return results(out), seconds


def results(out: Path) -> dict[str, Any]:
    """Weights and records of a finished command, below its folder, without times."""
    kinds = {".safetensors": Path.read_bytes, ".json": faults.read_untimed}
    return {
        str(path.relative_to(out)): kinds[path.suffix](path)
        for path in out.rglob("*")
        if path.suffix in kinds
    }


@pytest.mark.parametrize("name", [slow("detect"), "prune"])
def test_kill_9_at_random(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    record_property: Any,
) -> None:
    argv, (whole, seconds) = request.getfixturevalue(name), request.getfixturevalue(f"{name}_whole")
    tries = faults.tries(pytestconfig, quick=1, thorough=8)
    moments, kills = random.Random(5), 0
    equal: list[bool] = []
    while kills < tries:
        out, ended = tmp_path / f"run {len(equal)}", False
        while kills < tries and not ended:
            began, before = time.monotonic(), faults.epochs_done(out)
            after_s = moments.uniform(0.2, 0.9) * seconds
            code = faults.killed([*argv, str(out)], tmp_path / "log", after_s)
            output = (tmp_path / "log").read_text(encoding="utf-8")
            assert code in (0, -9), output
            assert not faults.unreadable(out)
            if name == "detect":
                said, done = faults.validated(output), faults.epochs_done(out)
                assert said == list(range(before + 1, before + 1 + len(said))), "repeated"
                assert before <= done and before + len(said) - done <= 1, "more was lost"
            ended = code == 0
            if ended:  # the first run took longer, as everything had to be loaded
                seconds = min(seconds, time.monotonic() - began)
            kills += not ended
        faults.finished(argv, out)
        assert not faults.litter(out)
        equal.append(results(out) == whole)
    faults.note(
        record_property, "kill -9 at random", "detect train" if name == "detect" else name,
        lost="at most 1 epoch" if name == "detect" else "at most 1 epoch or the cut",
        equal=equal, tries=kills,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detect", "prune"])
@pytest.mark.parametrize("number", [2, 4])
def test_kill_9_before_a_file_takes_its_place(
    name: str,
    number: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    argv, out = request.getfixturevalue(name), tmp_path / "run"
    code, output = faults.run([*argv, str(out)], tmp_path / "log", faults.die_at(number))
    assert code == -9 and len(faults.litter(out)) == 1, output
    assert not faults.unreadable(out)
    faults.finished(argv, out)
    assert not faults.litter(out)


@pytest.mark.slow
def test_two_at_once(
    prune: list[str], prune_whole: Whole, tmp_path: Path, record_property: Any
) -> None:
    out = tmp_path / "run"
    first = faults.Command([*prune, str(out)], tmp_path / "first.log")
    faults.wait_for(out / ".lock-holder", first.process)
    with faults.stopped(first):
        code, output = faults.run([*prune, str(out)], tmp_path / "second.log")
    line = faults.one_line(output)
    assert code == 2 and line.startswith(first.refuses(out)), line
    assert first.wait() == 0, first.output()
    equal = [results(out) == prune_whole[0]]
    faults.note(record_property, "two on one folder", "prune", lost="nothing", equal=equal)

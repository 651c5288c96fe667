"""`evitlab study` at the mercy of its machine: no record is lost, no run is left to itself."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import faults
import faulty_study
import psutil
import pytest
from small_runs import shapes, write_folder

COMMAND = [
    *("study", "demo", "--scale", "smoke", "--jobs", "2", "--threads", "1", "--device", "cpu"),
    "--out",
]
WHERE = Path("demo", "smoke")  # below --out

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> faults.Fault:
    """What makes the study known in a process."""
    folder = tmp_path_factory.mktemp("drawings") / "data"
    return faulty_study.declared(
        write_folder(folder, {"train": shapes(24), "val": shapes(6, "val")})
    )


@pytest.fixture(scope="module")
def reference(
    demo: faults.Fault, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], float]:
    """What the study comes to when nothing happens, and its seconds."""
    out = tmp_path_factory.mktemp("reference")
    _, seconds = faults.finished(COMMAND, out / "study", demo)
    assert "3 records in" in (out / "study.log").read_text(encoding="utf-8")
    return faulty_study.results(out / "study" / WHERE), seconds


def written(out: Path) -> dict[str, int]:
    """The records of a study, and when each was written."""
    return {file.name: file.stat().st_mtime_ns for file in (out / WHERE).glob("[!.]*.json")}


def finish(out: Path, demo: faults.Fault, whole: dict[str, Any]) -> bool:
    """Whether the same command again comes to what an undisturbed one does."""
    faults.finished(COMMAND, out, demo)
    assert not faults.unreadable(out) and not faults.litter(out)
    return faulty_study.results(out / WHERE) == whole


def test_kill_9_of_the_scheduler(
    demo: faults.Fault,
    reference: tuple[dict[str, Any], float],
    tmp_path: Path,
    pytestconfig: pytest.Config,
    record_property: Any,
) -> None:
    """Its runs end with it, and the same command goes on with what they left."""
    whole, seconds = reference
    tries = faults.tries(pytestconfig, quick=2, thorough=20)
    moments, kills = random.Random(8), 0
    equal: list[bool] = []
    while kills < tries:
        out, ended = tmp_path / str(len(equal)) / "study", False
        out.parent.mkdir()
        while kills < tries and not ended:
            kept = written(out)
            command = faults.Command([*COMMAND, str(out)], out.with_name("log"), demo)
            command.process.join(moments.uniform(0, seconds))
            runs = faults.children(command.process) if command.process.is_alive() else []
            command.process.kill()
            code = command.wait()
            assert code in (0, -9), command.output()
            faults.gone(runs)
            assert not faults.unreadable(out)
            assert written(out) | kept == written(out), "a record was made again"
            ended = code == 0
            kills += not ended
        equal.append(finish(out, demo, whole))
    faults.note(
        record_property, "kill -9 at random", "study", lost="at most 1 epoch of a run",
        equal=equal, tries=kills,
    )  # fmt: skip


def test_a_run_that_is_killed_leaves_the_others_alone(
    demo: faults.Fault,
    reference: tuple[dict[str, Any], float],
    tmp_path: Path,
    record_property: Any,
) -> None:
    """As the system does where memory runs out: said so, the rest is done, the next call mends."""
    out = tmp_path / "study"
    command = faults.Command([*COMMAND, str(out)], tmp_path / "log", demo)
    faults.wait_for(out / WHERE / "third" / "checkpoints" / "last.pt", command.process)
    folder = str(out / WHERE / "third")
    victim = next(run for run in faults.children(command.process) if holds(run, folder))
    victim.kill()
    assert command.wait() == 1
    failed = re.findall(r"^failed: (\w+): (.*)", command.output(), re.MULTILINE)
    assert [name for name, _ in failed] == ["third"]
    assert failed[0][1].startswith("its process was ended by SIGKILL, as the system does where")
    assert (out / WHERE / "first.json").exists() and (out / WHERE / "second.json").exists()
    assert not faults.unreadable(out)
    equal = [finish(out, demo, reference[0])]
    faults.note(
        record_property, "a run's process dies", "study", lost="at most 1 epoch of that run",
        equal=equal,
    )  # fmt: skip


def holds(process: psutil.Process, folder: str) -> bool:
    return any(file.path.startswith(folder) for file in process.open_files())


@pytest.mark.slow
@pytest.mark.parametrize("given", ["SIGTERM", "SIGINT"])
def test_asked_to_end(
    demo: faults.Fault,
    reference: tuple[dict[str, Any], float],
    tmp_path: Path,
    record_property: Any,
    given: str,
) -> None:
    out = tmp_path / "study"
    command = faults.Command([*COMMAND, str(out)], tmp_path / "log", demo)
    faults.wait_for(out / WHERE / "first" / "checkpoints" / "last.pt", command.process)
    runs = faults.children(command.process)
    command.send(signal.Signals[given])
    assert command.wait() == 130, command.output()
    assert command.last_line() == "interrupted; the same command continues where it can"
    faults.gone(runs)
    assert not faults.unreadable(out)
    equal = [finish(out, demo, reference[0])]
    faults.note(record_property, given, "study", lost="at most 1 epoch of a run", equal=equal)


def test_two_at_once(
    demo: faults.Fault,
    reference: tuple[dict[str, Any], float],
    tmp_path: Path,
    record_property: Any,
) -> None:
    out = tmp_path / "study"
    first = faults.Command([*COMMAND, str(out)], tmp_path / "first.log", demo)
    faults.wait_for(out / WHERE / "first" / "checkpoints" / "last.pt", first.process)
    with faults.stopped(first):
        code, output = faults.run([*COMMAND, str(out)], tmp_path / "second.log", demo)
    line = faults.one_line(output)
    assert code == 2 and line.startswith(first.refuses(out / WHERE)), line
    assert first.wait() == 0, first.output()
    equal = [faulty_study.results(out / WHERE) == reference[0]]
    faults.note(record_property, "two on one folder", "study", lost="nothing", equal=equal)


@pytest.mark.slow
@pytest.mark.parametrize("kib", [8, 1200])  # for no log; for no second checkpoint
def test_the_disk_is_full(
    demo: faults.Fault,
    reference: tuple[dict[str, Any], float],
    tmp_path: Path,
    record_property: Any,
    kib: int,
) -> None:
    with faults.small_disk(tmp_path / "disk", kib=kib) as disk:
        code, output = faults.run([*COMMAND, str(disk / "study")], tmp_path / "log", demo)
        assert code == 1 and "Traceback" not in output, output
        reasons = re.findall(r"^failed: (?:first|third): (.*)", output, re.MULTILINE)
        assert len(reasons) == 2, output
        for reason in reasons:
            assert re.search("No space left on device|the disk is full", reason), reason
        assert not faults.unreadable(disk)
        faults.remount(disk, "size=64m")
        equal = [finish(disk / "study", demo, reference[0])]
    faults.note(
        record_property, "disk full" if kib > 8 else "disk full, logs too", "study",
        lost="at most 1 epoch of a run", equal=equal,
    )  # fmt: skip


@pytest.mark.slow
def test_real_workers_end_with_their_scheduler_too(tmp_path: Path) -> None:
    """Started as ever, by `python -m`, and not forked as above."""
    words = ["study", "attention-share", "--scale", "smoke", "--data", "embedded", "--jobs", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "evitlab", *words, "--device", "cpu", "--out", str(tmp_path)],
        cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as scheduler:  # fmt: skip
        limit = time.monotonic() + faults.LIMIT_S
        runs: list[psutil.Process] = []
        while not runs:
            assert scheduler.poll() is None and time.monotonic() < limit, "no run began"
            time.sleep(0.01)
            children = psutil.Process(scheduler.pid).children()
            runs = [run for run in children if "evitlab.studies.worker" in run.cmdline()]
        scheduler.kill()
    faults.gone(runs)

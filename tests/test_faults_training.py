"""`evitlab train` at the mercy of its machine: what was done is kept, and the rest is the same."""

from __future__ import annotations

import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import faults
import pytest
from cases import slow
from small_runs import train_command

from evitlab import TrainingRecord

EPOCHS = 4


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return train_command(tmp_path_factory.mktemp("faults"), epochs=EPOCHS)


@pytest.fixture(scope="module")
def reference(
    command: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, float]:
    """The run that nothing happened to, and its seconds."""
    return faults.finished(command, tmp_path_factory.mktemp("reference") / "run")


class Kills:
    """A run that is begun again after each kill, and what it must leave each time."""

    def __init__(self, command: list[str], out: Path, whole: Path) -> None:
        self.argv, self.out, self.whole = [*command, str(out)], out, whole
        self.log = out.with_name(f"{out.name}.log")
        self.killed = 0

    def go(self, after_s: float = faults.LIMIT_S, *given: faults.Fault) -> bool:
        """Go on with the run until the kill; whether it was finished before."""
        before = faults.epochs_done(self.out)
        code = faults.killed(self.argv, self.log, after_s, *given)
        said, done = faults.validated(self.log.read_text()), faults.epochs_done(self.out)
        assert code in (0, -9, -25), self.log.read_text()
        self.killed += code != 0
        assert not faults.unreadable(self.out)
        assert said == list(range(before + 1, before + 1 + len(said))), "an epoch was repeated"
        assert before <= done and before + len(said) - done <= 1, "more than an epoch was lost"
        return code == 0

    def equal(self) -> bool:
        """Let it finish; whether it came to what the undisturbed run did, and nothing else."""
        assert self.go()
        assert not faults.litter(self.out)
        return faults.equal_runs(self.out, self.whole)


def test_kill_9_at_random(
    command: list[str],
    reference: tuple[Path, float],
    tmp_path: Path,
    pytestconfig: pytest.Config,
    record_property: Any,
) -> None:
    whole, seconds = reference
    tries = faults.tries(pytestconfig, quick=3, thorough=20)
    moments, kills = random.Random(8), 0
    equal: list[bool] = []
    while kills < tries:
        run = Kills(command, tmp_path / str(len(equal)), whole)
        while kills + run.killed < tries and not run.go(moments.uniform(0, seconds)):
            pass
        equal.append(run.equal())
        kills += run.killed
    faults.note(
        record_property, "kill -9 at random", "train", lost="at most 1 epoch", equal=equal,
        tries=kills,
    )  # fmt: skip


def test_kill_9_at_each_write(
    command: list[str],
    reference: tuple[Path, float],
    tmp_path: Path,
    pytestconfig: pytest.Config,
    record_property: Any,
) -> None:
    """Before a file is flushed, before it takes its place, and after; as far as the run comes."""
    whole, _ = reference
    first = faults.tries(pytestconfig, quick=1, thorough=12)
    moments = [
        (call, number, moment)
        for number in range(1, first + 1)
        for call, moment in (("fsync", "before"), ("replace", "before"), ("replace", "after"))
    ]
    kills = 0
    equal: list[bool] = []
    while moments:
        run = Kills(command, tmp_path / str(len(equal)), whole)
        while moments:
            call, number, moment = moments.pop(0)
            if run.go(faults.LIMIT_S, faults.die_at(number, call, moment=moment)):
                break  # fewer files than that were left to be written
        equal.append(run.equal())
        kills += run.killed
    faults.note(
        record_property, "kill -9 before, in and after a write", "train",
        lost="at most 1 epoch", equal=equal, tries=kills,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size to be killed at")
def test_kill_halfway_through_a_file(
    command: list[str],
    reference: tuple[Path, float],
    tmp_path: Path,
    record_property: Any,
) -> None:
    """The kernel ends the process in the write that makes a file too large: half is there."""
    whole, _ = reference
    checkpoint = (whole / "checkpoints" / "last.pt").stat().st_size
    picture = (whole / "results.png").stat().st_size
    weights = (whole / "model.safetensors").stat().st_size
    assert picture < weights < checkpoint
    run = Kills(command, tmp_path / "run", whole)
    for size in (checkpoint // 2, weights // 2):
        assert not run.go(faults.LIMIT_S, faults.file_size(size, kill=True))
        assert faults.litter(run.out), "no half file is there: the test missed its moment"
    assert run.go()
    assert not run.go(faults.LIMIT_S, faults.file_size(picture // 2, kill=True))
    assert faults.litter(run.out)
    faults.note(
        record_property, "kill halfway through a file", "train", lost="at most 1 epoch",
        equal=[run.equal()], tries=run.killed,
    )  # fmt: skip


@pytest.mark.parametrize("given, code", [slow("SIGTERM", -15), ("SIGINT", 130)])
def test_asked_to_end(
    command: list[str],
    reference: tuple[Path, float],
    tmp_path: Path,
    record_property: Any,
    given: str,
    code: int,
) -> None:
    """By a cluster or `kill`, or by Ctrl-C, in the second epoch or later."""
    out, log = tmp_path / "run", tmp_path / "log"
    sent = faults.die_at(4, moment="after", sent=signal.Signals[given])
    begun = faults.Command([*command, str(out)], log, sent)
    assert begun.wait() == code, begun.output()
    if given == "SIGINT":
        assert begun.last_line() == "interrupted; the same command continues where it can"
    assert not faults.unreadable(out) and faults.epochs_done(out) >= 1
    assert faults.run([*command, str(out)], log)[0] == 0
    equal = [faults.equal_runs(out, reference[0])]
    faults.note(record_property, given, "train", lost="at most 1 epoch", equal=equal)


@pytest.mark.slow
def test_the_clock_goes_backwards(
    command: list[str],
    reference: tuple[Path, float],
    tmp_path: Path,
    record_property: Any,
) -> None:
    """An hour at each look, in the run that is killed and in the one that goes on."""
    run = Kills(command, tmp_path / "run", reference[0])
    back = faults.clock_backwards
    assert not run.go(faults.LIMIT_S, back, faults.die_at(4))
    assert run.go(faults.LIMIT_S, back)
    equal = [run.equal()]
    record = TrainingRecord.load(run.out / "record.json")
    assert all(log.seconds > 0 for log in record.history), "times are not of the clock on the wall"
    faults.note(
        record_property, "clock goes backwards", "train", lost="at most 1 epoch", equal=equal
    )


@pytest.mark.parametrize("where", [slow("torch"), "system"])
def test_memory_runs_out(
    command: list[str],
    reference: tuple[Path, float],
    tmp_path: Path,
    record_property: Any,
    where: str,
) -> None:
    """Torch's own error in the second epoch, or the system gives no more memory there."""
    if where == "system" and sys.platform != "linux":
        pytest.skip("no limit of a process's memory that holds here")
    out, log = tmp_path / "run", tmp_path / "log"
    code, output = faults.run([*command, str(out)], log, faults.memory_runs_out(where, epoch=2))
    line = faults.one_line(output)
    assert code == 2 and line.startswith("evitlab: error: out of memory ("), output
    assert "lower batch_size (--batch-size, now 12)" in line
    assert line.endswith(f"last good checkpoint: {out / 'checkpoints' / 'last.pt'}")
    assert not faults.unreadable(out) and not faults.litter(out) and faults.epochs_done(out) == 1
    assert faults.run([*command, str(out)], log)[0] == 0
    faults.note(
        record_property, f"out of memory ({where})", "train", lost="at most 1 epoch",
        equal=[faults.equal_runs(out, reference[0])],
    )  # fmt: skip


def as_before_its_end(finished: Path, out: Path) -> Path:
    """A copy of a run as it was right after its last checkpoint."""
    shutil.copytree(finished, out)
    for name in ("record.json", "results.json", "model.safetensors"):
        (out / name).unlink()
    return out


@pytest.mark.parametrize("damage", ["truncated", *map(slow, ("empty", "noise", "gone"))])
def test_a_damaged_checkpoint_costs_one_epoch(
    command: list[str],
    reference: tuple[Path, float],
    tmp_path: Path,
    record_property: Any,
    damage: str,
) -> None:
    """By another hand than ours: the one before it is there, and takes its place."""
    out = as_before_its_end(reference[0], tmp_path / "run")
    last = out / "checkpoints" / "last.pt"
    whole = last.read_bytes()
    noise = random.Random(0).randbytes(len(whole))
    left = {"truncated": whole[: len(whole) // 2], "empty": b"", "noise": noise}
    if damage == "gone":
        last.unlink()
    else:
        last.write_bytes(left[damage])
    code, output = faults.run([*command, str(out)], tmp_path / "log")
    assert code == 0, output
    assert ("going on from the checkpoint before it" in output) == (damage != "gone"), output
    assert faults.validated(output) == [EPOCHS], "more than an epoch was lost"
    faults.note(
        record_property, f"checkpoint {damage}", "train", lost="1 epoch",
        equal=[faults.equal_runs(out, reference[0])],
    )  # fmt: skip


def test_without_a_checkpoint_before_it_a_damaged_one_is_named(
    command: list[str], reference: tuple[Path, float], tmp_path: Path
) -> None:
    out = as_before_its_end(reference[0], tmp_path / "run")
    (out / "checkpoints" / "previous.pt").unlink()
    last = out / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    code, output = faults.run([*command, str(out)], tmp_path / "log")
    assert code == 2 and str(last) in faults.one_line(output), output


def test_two_at_once(
    command: list[str], reference: tuple[Path, float], tmp_path: Path, record_property: Any
) -> None:
    """The second ends with one line that names the first, which never notices."""
    out = tmp_path / "run"
    first = faults.Command([*command, str(out)], tmp_path / "first.log")
    faults.wait_for(out / "checkpoints" / "last.pt", first.process)
    with faults.stopped(first):
        code, output = faults.run([*command, str(out)], tmp_path / "second.log")
    line = faults.one_line(output)
    assert code == 2 and line.startswith(first.refuses(out)), line
    assert "(evitlab train efficientvit_m0 " in line and "choose another folder" in line
    assert first.wait() == 0, first.output()
    equal = [faults.equal_runs(out, reference[0])]
    faults.note(record_property, "two on one folder", "train", lost="nothing", equal=equal)

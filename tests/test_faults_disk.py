"""A disk that is full, that takes no large file, or that takes none: one line, and nothing lost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import faults
import pytest
from cases import slow
from faults import one_line
from small_runs import train_command

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such limits")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return train_command(tmp_path_factory.mktemp("faults"), epochs=3)


@pytest.fixture(scope="module")
def reference(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    return faults.finished(command, tmp_path_factory.mktemp("reference") / "run")[0]


# Too little for the second checkpoint beside the first; for the final weights; for a figure.
@pytest.mark.parametrize("kib, lost", [(1500, 1), slow(2150, 0), slow(2400, 0)])
def test_the_disk_is_full(
    command: list[str],
    reference: Path,
    tmp_path: Path,
    record_property: Any,
    kib: int,
    lost: int,
) -> None:
    with faults.small_disk(tmp_path / "disk", kib=kib) as disk:
        out = disk / "run"
        code, output = faults.run([*command, str(out)], tmp_path / "log")
        line = one_line(output)
        assert code == 2 and "No space left on device" in line and str(out) in line
        assert not faults.unreadable(disk) and not faults.litter(disk)
        done = faults.epochs_done(out)
        assert len(faults.validated(output)) - done == lost
        faults.remount(disk, "size=64m")
        code, output = faults.run([*command, str(out)], tmp_path / "log")
        assert code == 0 and faults.validated(output) == list(range(done + 1, 4)), output
        equal = [faults.equal_runs(out, reference)]
    faults.note(
        record_property, "disk full", "train", lost="1 epoch" if lost else "nothing", equal=equal
    )


@pytest.mark.slow
@pytest.mark.parametrize("file", ["checkpoints/last.pt", "model.safetensors", "results.png"])
def test_no_file_may_become_so_large(
    command: list[str],
    reference: Path,
    tmp_path: Path,
    record_property: Any,
    file: str,
) -> None:
    out, limit = tmp_path / "run", (reference / file).stat().st_size - 1
    code, output = faults.run([*command, str(out)], tmp_path / "log", faults.file_size(limit))
    assert code == 2 and "cannot write here (File too large)" in one_line(output)
    assert not faults.unreadable(out) and not faults.litter(out)
    assert faults.run([*command, str(out)], tmp_path / "log")[0] == 0
    faults.note(
        record_property, f"file size limit ({Path(file).name})", "train", lost="at most 1 epoch",
        equal=[faults.equal_runs(out, reference)],
    )  # fmt: skip


def test_the_folder_is_read_only(
    command: list[str], reference: Path, tmp_path: Path, record_property: Any
) -> None:
    """From the start: told before anything is trained."""
    with faults.small_disk(tmp_path / "disk", kib=64_000) as disk:
        out = disk / "run"
        faults.remount(disk, "ro")
        code, output = faults.run([*command, str(out)], tmp_path / "log")
        assert code == 2 and "cannot write here (Read-only file system)" in one_line(output)
        assert not faults.validated(output) and not list(disk.iterdir())
        faults.remount(disk, "rw")
        assert faults.run([*command, str(out)], tmp_path / "log")[0] == 0
        equal = [faults.equal_runs(out, reference)]
    faults.note(record_property, "read-only from the start", "train", lost="nothing", equal=equal)


@pytest.mark.slow
@pytest.mark.parametrize("number", [4, 5])  # in the first epoch, in the second
def test_the_disk_becomes_read_only(
    command: list[str],
    reference: Path,
    tmp_path: Path,
    record_property: Any,
    number: int,
) -> None:
    """Under way, as the system does with a disk that fails."""
    out = tmp_path / "run"
    code, output = faults.run([*command, str(out)], tmp_path / "log", faults.read_only_at(number))
    assert code == 2 and "cannot write here (Read-only file system)" in one_line(output)
    assert not faults.unreadable(out)
    assert len(faults.validated(output)) - faults.epochs_done(out) == 1
    assert faults.run([*command, str(out)], tmp_path / "log")[0] == 0
    assert not faults.litter(out)
    faults.note(
        record_property, "read-only under way", "train", lost="1 epoch",
        equal=[faults.equal_runs(out, reference)],
    )  # fmt: skip

"""Two processes on one output folder: the second is told in one line, the first is undisturbed."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults
import pytest

from evitlab.training import folder_lock
from evitlab.training.folder_lock import FolderInUse, held


def hold(folder: Path) -> None:
    """In a process of its own: keep the folder until told to go on."""
    with held(folder, command="evitlab train m0"):
        (folder / "begun").touch()
        while not (folder / "go on").exists():
            time.sleep(0.01)


@pytest.fixture()
def holder(tmp_path: Path) -> Iterator[Any]:
    process = faults.process(hold, tmp_path / "out")
    faults.wait_for(tmp_path / "out" / "begun", process)
    yield process
    process.kill()
    process.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "_PATIENCE_S", 0.05)


def test_the_second_is_told_who_holds_it(tmp_path: Path, holder: Any) -> None:
    with pytest.raises(FolderInUse) as raised, held(tmp_path / "out"):
        raise AssertionError("two hold it")
    message = str(raised.value)
    assert re.fullmatch(
        rf".*out is in use by process {holder.pid} on \S+ since \d{{4}}-\d\d-\d\dT\S+ "
        r"\(evitlab train m0\); wait for it, end it, or choose another folder",
        message,
    ), message
    with held(tmp_path / "another"):
        pass
    (tmp_path / "out" / "go on").touch()
    holder.join()
    assert holder.exitcode == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"begun", "go on"}, "the first one's lock is not taken away after it"
    with held(tmp_path / "out"):
        pass


def test_a_killed_holder_blocks_nobody_and_its_litter_is_swept(
    tmp_path: Path, holder: Any
) -> None:
    out = tmp_path / "out"
    half = [out / ".record.json.0123abcd.tmp", out / "checkpoints" / ".last.pt.0123abcd.tmp"]
    kept = [out / ".own.tmp", out / "notes.tmp", out / "a" / "b" / ".deep.json.0123abcd.tmp"]
    for path in (*half, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    holder.kill()
    holder.join()
    assert (out / ".lock-holder").exists(), "it was killed while it held the folder"
    with held(out):
        assert not any(path.exists() for path in half) and all(path.exists() for path in kept)
        assert json.loads((out / ".lock-holder").read_text())["pid"] == os.getpid()


def test_asking_twice_is_holding_once(tmp_path: Path) -> None:
    with held(tmp_path):
        with held(tmp_path):
            pass
        assert (tmp_path / ".lock").exists(), "the outer one still holds it"
    assert not list(tmp_path.iterdir())


def test_a_refused_command_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError), held(tmp_path / "new"):
        raise ValueError
    assert not (tmp_path / "new").exists()


def fork_and_die(folder: Path) -> None:
    """Held here; a child of the process lives on, as a data loader's worker may."""
    with held(folder):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        (folder / "begun").touch()
        time.sleep(60)


def test_a_forked_child_does_not_hold_it_on(tmp_path: Path) -> None:
    process = faults.process(fork_and_die, tmp_path)
    faults.wait_for(tmp_path / "begun", process)
    children = faults.children(process)
    process.kill()
    process.join()
    try:
        assert len(children) == 1 and children[0].is_running()
        with held(tmp_path):
            pass
    finally:
        for child in children:
            child.kill()


def test_of_torchruns_processes_number_0_holds_it(
    tmp_path: Path, holder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    with held(tmp_path / "out"):
        assert json.loads((tmp_path / "out" / ".lock-holder").read_text())["pid"] == holder.pid


def test_a_holder_that_has_not_said_who_it_is(tmp_path: Path, holder: Any) -> None:
    (tmp_path / "out" / ".lock-holder").write_text("{")
    with pytest.raises(FolderInUse, match="out is in use by another process; wait"):
        with held(tmp_path / "out"):
            pass

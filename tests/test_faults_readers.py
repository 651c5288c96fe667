"""Training on images that processes of their own read: what happens when one of them dies."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import faults
import psutil
import pytest
from cases import slow
from small_runs import train_command

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no signals to kill with")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return train_command(tmp_path_factory.mktemp("faults"), "--img-size", "32", epochs=3)


@pytest.fixture(scope="module")
def reference(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    out = tmp_path_factory.mktemp("reference") / "run"
    return faults.finished(command, out, faults.images_are_streamed())[0]


def readers(command: faults.Command, method: str) -> list[psutil.Process]:
    """What reads images now: a command's own children, or with "forkserver" those of a server."""
    found = faults.children(command.process)
    if method == "forkserver":
        return [child for child in found if child.ppid() != command.pid]
    return [child for child in found if "resource_tracker" not in " ".join(child.cmdline())]


@pytest.mark.parametrize("method", ["fork", slow("forkserver")])
def test_a_reader_dies(
    command: list[str],
    reference: Path,
    tmp_path: Path,
    record_property: Any,
    method: str,
) -> None:
    """Whichever way Python starts them: by itself, or as of 3.14 by a server."""
    out, log = tmp_path / "run", tmp_path / "log"
    streamed = faults.images_are_streamed(method)
    begun = faults.Command([*command, str(out)], log, streamed)
    faults.wait_for(out / "checkpoints" / "last.pt", begun.process)
    while begun.process.is_alive():  # one that has just read its last is not missed
        with suppress(psutil.NoSuchProcess):
            for reader in readers(begun, method):
                reader.kill()
        time.sleep(0.005)
    assert begun.wait() == 1, begun.output()
    line = begun.last_line()
    assert line.startswith("evitlab: stopped: a process that reads the images is gone"), line
    assert line.endswith(
        f"last good checkpoint: {out / 'checkpoints' / 'last.pt'}, and the same command continues"
    )
    assert "Traceback" not in begun.output() and not faults.unreadable(out)
    before = faults.epochs_done(out)
    _, output = faults.run([*command, str(out)], log, streamed)
    assert faults.validated(output) == list(range(before + 1, 4)), output
    equal = [faults.equal_runs(out, reference)]
    faults.note(
        record_property, f"a reader of images dies ({method})", "train", lost="at most 1 epoch",
        equal=equal,
    )  # fmt: skip


@pytest.mark.slow
def test_readers_end_with_a_run_that_is_killed(
    command: list[str],
    reference: Path,
    tmp_path: Path,
    record_property: Any,
) -> None:
    """Nor do they keep its folder, which the same command has at once."""
    out, log = tmp_path / "run", tmp_path / "log"
    streamed = faults.images_are_streamed("fork")
    begun = faults.Command([*command, str(out)], log, streamed)
    faults.wait_for(out / "checkpoints" / "last.pt", begun.process)
    while not (reading := readers(begun, "fork")):
        assert begun.process.is_alive(), "it ended unseen"
        time.sleep(0.005)
    begun.process.kill()
    assert begun.wait() == -9
    assert not faults.unreadable(out)
    faults.finished(command, out, streamed)
    faults.gone(reading)
    equal = [faults.equal_runs(out, reference)]
    faults.note(
        record_property, "kill -9, images streamed", "train", lost="at most 1 epoch", equal=equal
    )

"""Training on images that processes of their own read: what happens when one of them dies."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import faults
import psutil
import pytest
from small_runs import train_command

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no signals to kill with")
streamed = faults.images_are_streamed


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return train_command(tmp_path_factory.mktemp("faults"), "--img-size", "32", epochs=3)


@pytest.fixture(scope="module")
def reference(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    return faults.finished(command, tmp_path_factory.mktemp("reference") / "run", streamed)[0]


def a_reader(command: faults.Command) -> psutil.Process:
    """What reads images is not the command's own child: a server starts it."""
    limit = time.monotonic() + faults.LIMIT_S
    while True:
        for child in faults.children(command.process):
            if child.ppid() != command.pid:
                return child
        assert command.process.is_alive() and time.monotonic() < limit, "it starts no reader"
        time.sleep(0.005)


def test_a_reader_dies(
    command: list[str], reference: Path, tmp_path: Path, record_property: Any
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    begun = faults.Command([*command, str(out)], log, streamed)
    faults.wait_for(out / "checkpoints" / "last.pt", begun.process)
    a_reader(begun).kill()
    assert begun.wait() == 1, begun.output()
    line = begun.last_line()
    assert line.startswith("evitlab: stopped: a process that reads the images is gone"), line
    assert line.endswith(
        f"last good checkpoint: {out / 'checkpoints' / 'last.pt'}, and the same command continues"
    )
    assert "Traceback" not in begun.output() and not faults.unreadable(out)
    assert faults.run([*command, str(out)], log, streamed)[0] == 0
    equal = [faults.equal_runs(out, reference)]
    faults.note(
        record_property, "a data loader's worker dies", "train", lost="at most 1 epoch", equal=equal
    )


def test_readers_end_with_a_run_that_is_killed(
    command: list[str],
    reference: Path,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    record_property: Any,
) -> None:
    """Nor do they keep its folder, which the same command has at once."""
    faults.only_thorough(pytestconfig)
    out, log = tmp_path / "run", tmp_path / "log"
    begun = faults.Command([*command, str(out)], log, streamed)
    faults.wait_for(out / "checkpoints" / "last.pt", begun.process)
    reader = a_reader(begun)
    begun.process.kill()
    assert begun.wait() == -9
    assert not faults.unreadable(out)
    code, output = faults.run([*command, str(out)], log, streamed)
    assert code == 0, output
    faults.gone([reader])
    equal = [faults.equal_runs(out, reference)]
    faults.note(
        record_property, "kill -9, images streamed", "train", lost="at most 1 epoch", equal=equal
    )

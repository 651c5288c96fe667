"""A study of three runs of a second or two, and its workers forked instead of started anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import faults

from evitlab.records import TrainingRecord
from evitlab.studies import STUDIES, scheduler, worker
from evitlab.studies.base import Conditions, Run, Study, Training

RUNS = ("first", "second", "third")
_TINY = {
    "depth": (1, 1, 1), "embed_dim": (16, 24, 32), "num_heads": (2, 2, 2), "key_dim": (4, 4, 4),
}  # fmt: skip


def declared(data: Path) -> faults.Fault:
    """Make `evitlab study demo` known in a process, on an image folder."""
    return partial(_declare, data)


def _declare(data: Path) -> None:
    todo = Training(
        "efficientvit_m0_p4", _TINY, epochs=3, recipe_name="smoke", data_name=str(data),
        changes={"batch_size": 12, "validate_every": 1},
    )  # fmt: skip
    runs = (
        Run("first", partial(_train, todo)),
        Run("second", partial(_train, todo), after=("first",)),
        Run("third", partial(_train, todo)),
    )
    STUDIES["demo"] = Study("demo", "a test's", (TrainingRecord,), lambda scale: runs)
    workers_are_forked()


def workers_are_forked() -> None:
    """For studies of this process, whose runs begin in no time."""
    setattr(scheduler, "_POLL_SECONDS", 0.02)  # noqa: B010 - a constant, to mypy
    known = {name: getattr(subprocess, name) for name in ("PIPE", "STDOUT", "TimeoutExpired")}
    forking = SimpleNamespace(Popen=ForkedWorker, **known)
    setattr(scheduler, "subprocess", forking)  # noqa: B010 - a module, to mypy


def _train(todo: Training, folder: Path, conditions: Conditions) -> TrainingRecord:
    return todo.run(folder, conditions)[1]


class ForkedWorker:
    """What the scheduler uses of `Popen`: a process of its own, without the seconds of imports."""

    _pipes: list[int] = []

    def __init__(
        self, command: list[str], *, stdin: int, stdout: IO[bytes], stderr: int, env: dict[str, str]
    ) -> None:
        assert (stdin, stderr) == (subprocess.PIPE, subprocess.STDOUT)
        assert command[1:3] == ["-m", "evitlab.studies.worker"]
        self.returncode: int | None = None
        read, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            for pipe in (write, *self._pipes):  # another one's end would not end with its parent
                os.close(pipe)
            os.dup2(read, 0)
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            os.environ.update(env)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            code = 1
            try:
                worker.end_with_the_scheduler()
                code = worker.main(command[-1])
            finally:
                os._exit(code)
        os.close(read)
        self._pipes.append(write)
        self.stdin = os.fdopen(write, "wb", closefd=False)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def results(folder: Path) -> dict[str, Any]:
    """What a finished study left, run by run, without times: record, weights."""
    return {
        run: (
            faults.untimed(json.loads((folder / f"{run}.json").read_text(encoding="utf-8"))),
            (folder / run / "model.safetensors").read_bytes(),
        )
        for run in RUNS
    }

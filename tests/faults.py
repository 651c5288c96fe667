"""The real command line in processes of their own, which a test may kill, starve or signal.

A process that imports evitlab takes seconds to start. So one server imports it once, runs nothing,
and forks a child for each command: what Python calls "forkserver". A child is a process like any
other, with its own memory, signals and end.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from evitlab.training.checkpoint import load_checkpoint

Fault = Callable[[], object]

_TESTS = str(Path(__file__).parent)
# What commands load on first use, so that no child loads it again.
_PRELOADED = [
    "pytest", "faults", "evitlab.cli.commands", "evitlab.analysis.recovery", "evitlab.figures",
    "evitlab.models.detector", "evitlab.report", "evitlab.runner", "evitlab.studies.worker",
    "evitlab.training.classifier", "evitlab.training.detection", "evitlab.training.per_class",
    "torch._dynamo", "torch.utils.data",
]  # fmt: skip
LIMIT_S = 300  # of any command here, on a machine with other work: beyond it, it hangs
_read, _corrupt = Counter[str](), Counter[str]()  # of each test: files that `unreadable` looked at
# What differs between two runs that are equal: when and where they were made, and how fast.
_TIMES = {"date", "seconds", "img_per_s", "git_commit", "command"}


@cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        paths = [_TESTS, str(Path(_TESTS).parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("OMP_NUM_THREADS", "1")  # a thread of a pool would not survive the fork
        forkserver.ensure_running()
    ready = context.Process(target=os.getpid)
    ready.start()
    ready.join()  # all is loaded now, and no command waits for it
    return context


def process(target: Callable[..., object], *args: Any) -> ForkServerProcess:
    """A function in a process of its own, begun."""
    begun: ForkServerProcess = _server().Process(target=target, args=args)
    begun.start()
    return begun


def wait_for(path: Path, process: ForkServerProcess) -> None:
    """Until a file is there."""
    limit = time.monotonic() + LIMIT_S
    while not path.exists():
        assert process.is_alive() and time.monotonic() < limit, f"no {path.name} came"
        time.sleep(0.005)


def children(process: ForkServerProcess) -> list[psutil.Process]:
    """The living descendants of a process; none where it is gone itself."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def a_child(process: ForkServerProcess) -> psutil.Process:
    """One of a process's children, as soon as it has any."""
    limit = time.monotonic() + LIMIT_S
    while not (found := children(process)):
        assert process.is_alive() and time.monotonic() < limit, "it starts no process"
        time.sleep(0.005)
    return found[0]


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def gone(processes: Sequence[psutil.Process]) -> None:
    """Wait for processes to end by themselves, as those must whose parent was killed."""
    limit = time.monotonic() + LIMIT_S  # one that is still being imported looks up only then
    while left := [process for process in processes if lives(process)]:
        assert time.monotonic() < limit, f"left to itself: {left}"
        time.sleep(0.01)


class Command:
    """`evitlab …` in a process of its own; `faults` are called in it before the command begins."""

    def __init__(self, argv: Sequence[str], log: Path, *faults: Fault) -> None:
        self.log = log
        self.process = process(_carry_out, list(argv), log, faults)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def send(self, sent: signal.Signals) -> None:
        os.kill(self.pid, sent)

    def wait(self) -> int:
        """The exit code, or less than zero: the signal that ended it."""
        self.process.join(LIMIT_S)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {LIMIT_S} s: {self.output()[-2000:]}")
        return self.process.exitcode

    def output(self) -> str:
        """All that it said, on both streams."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def refuses(self, folder: Path) -> str:
        """How the line begins with which another command leaves it a folder."""
        return f"evitlab: error: {folder} is in use by process {self.pid} on "

    def last_line(self) -> str:
        return self.output().strip().splitlines()[-1]


def _carry_out(argv: list[str], log: Path, faults: Sequence[Fault]) -> None:
    from evitlab.cli import main

    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has none
    for fault in faults:
        fault()
    sys.exit(main(argv))


def run(argv: Sequence[str], log: Path, *faults: Fault) -> tuple[int, str]:
    """(exit code, output) of a command."""
    command = Command(argv, log, *faults)
    return command.wait(), command.output()


def finished(argv: Sequence[str], out: Path, *faults: Fault) -> tuple[Path, float]:
    """A command that must succeed, with `out` as its last word: that folder, and the seconds."""
    _server()  # whose start is not of its seconds
    began = time.monotonic()
    code, output = run([*argv, str(out)], out.with_name(f"{out.name}.log"), *faults)
    assert code == 0, output
    return out, time.monotonic() - began


def one_line(output: str) -> str:
    """The line that a command ends with: all that it says of a mistake."""
    line = output.strip().splitlines()[-1]
    assert line.startswith("evitlab: error: ") and "Traceback" not in output, output
    return line


@contextmanager
def stopped(command: Command) -> Iterator[None]:
    """A command that stands still, so that it is not done before another has come."""
    command.send(signal.SIGSTOP)
    try:
        yield
    finally:
        command.send(signal.SIGCONT)


def tries(config: pytest.Config, *, quick: int, thorough: int) -> int:
    return thorough if config.getoption("--thorough") else quick


def note(
    record_property: Callable[[str, object], None],
    fault: str,
    command: str,
    *,
    lost: str,
    equal: Sequence[bool],
    tries: int | None = None,
) -> None:
    """A row of the table of faults, once all that it says has been seen.

    Args:
        lost: the most work that a try cost.
        equal: of each run that went on afterwards, whether it came to what an undisturbed one does.
        tries: how often the fault was made; None: once for each of `equal`.
    """
    assert equal and all(equal), f"{fault}: {sum(equal)} of {len(equal)} came to the same"
    row = {
        "fault": fault, "command": command, "tries": tries or len(equal), "lost work": lost,
        "files read": _read[_this_test()], "corrupt files": _corrupt[_this_test()],
        "resumed equal": f"{sum(equal)} of {len(equal)}",
    }  # fmt: skip
    record_property("faults", row)


def validated(output: str) -> list[int]:
    """Epochs that a command says it has trained and measured, in order."""
    return [int(epoch) for epoch in re.findall(r"^epoch (\d+): loss", output, re.MULTILINE)]


def killed(argv: Sequence[str], log: Path, after_s: float, *faults: Fault) -> int:
    """Start a command and `kill -9` it after so many seconds; its exit code, -9 where it lived."""
    command = Command(argv, log, *faults)
    command.process.join(after_s)
    command.process.kill()
    return command.wait()


def read_only_at(number: int) -> Fault:
    """From the n-th file on, from 1, none can be written: as on a disk that begins to fail."""
    return partial(_read_only_at, number)


def _read_only_at(number: int) -> None:
    from evitlab.records import base

    opened = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal opened
        opened += 1
        if opened >= number:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return open(*args, **options)

    setattr(base, "open", counted)  # noqa: B010 - a builtin, to mypy


def die_at(
    number: int,
    call: str = "replace",
    *,
    moment: str = "before",
    sent: signal.Signals = signal.SIGKILL,
) -> Fault:
    """A signal from within, just before or after the n-th `os.<call>` from now, from 1."""
    return partial(_die_at, number, call, moment, sent)


def _die_at(number: int, call: str, moment: str, sent: signal.Signals) -> None:
    whole, calls = getattr(os, call), 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and moment == "before":
            os.kill(os.getpid(), sent)
        result = whole(*args, **options)
        if calls == number and moment == "after":
            os.kill(os.getpid(), sent)
        return result

    setattr(os, call, counted)


def file_size(limit: int, *, kill: bool = False) -> Fault:
    """No file may become larger: an error of the system, or, with `kill`, the end at that byte."""
    return partial(_file_size, limit, kill)


def _file_size(limit: int, kill: bool) -> None:
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)


def clock_backwards() -> None:
    """Each look at the clock on the wall finds it an hour earlier."""
    whole, looks = time.time, 0

    def earlier() -> float:
        nonlocal looks
        looks += 1
        return whole() - 3600 * looks

    time.time = earlier


@contextmanager
def small_disk(folder: Path, *, kib: int) -> Iterator[Path]:
    """A folder on a disk of its own of so many KiB, in memory; skips where none can be mounted."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    """Change a disk of `small_disk`: "size=20m", "ro" or "rw"."""
    mount("-o", f"remount,{option}", str(folder))


def mount(*words: str) -> None:
    tool = shutil.which("mount")
    done = tool and subprocess.run([tool, *words], capture_output=True, text=True)
    if not done or done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip() if done else 'no mount'}")


def images_are_streamed(method: str | None = None) -> Fault:
    """Read batch by batch in processes of their own, as a set is that memory does not hold.

    Args:
        method: how Python starts them: "fork", "forkserver" or "spawn"; None: as it does here.
    """
    return partial(_images_are_streamed, method)


def _images_are_streamed(method: str | None) -> None:
    from evitlab.datasets import opening, streaming

    multiprocessing.set_start_method(method, force=True)  # else as `_server` starts a command
    setattr(opening, "STREAM_ABOVE_BYTES", 0)  # noqa: B010 - a constant, to mypy
    setattr(streaming, "default_workers", lambda: 1)  # noqa: B010 - on any machine


def memory_runs_out(where: str, *, epoch: int) -> Fault:
    """In an epoch of training, from 1: as torch says it, or the system has really no more."""
    return partial(_memory_runs_out, where, epoch)


def _memory_runs_out(where: str, epoch: int) -> None:
    from evitlab.datasets import Dataset

    whole, begun = Dataset.batches, 0

    def batches(self: Dataset, *args: Any, **options: Any) -> Any:
        nonlocal begun
        begun += bool(options.get("train"))
        for batch in whole(self, *args, **options):
            if begun == epoch and where == "torch":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            if begun == epoch:
                import resource

                resource.setrlimit(resource.RLIMIT_AS, (2**20, resource.RLIM_INFINITY))
                try:
                    torch.empty(2**26)
                finally:  # else not even the line that says so could be written
                    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                    resource.setrlimit(resource.RLIMIT_AS, unlimited)
            yield batch

    setattr(Dataset, "batches", batches)  # noqa: B010 - mypy knows no assignment to a method


def unreadable(folder: Path) -> list[str]:
    """Files below a folder that no reader takes, and files of no known kind: must be none."""
    broken: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(".lock") and not is_litter(path):
            _read[_this_test()] += 1
            try:
                _READERS[path.suffix](path)
            except Exception as error:  # whatever a reader says of a broken file
                broken.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    _corrupt[_this_test()] += len(broken)
    return broken


def _this_test() -> str:
    return os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]


def is_litter(path: Path) -> bool:
    """Half a file that a killed process left under a name that nobody takes for a result."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def litter(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if is_litter(path)]


def _read_picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()


_READERS: dict[str, Callable[[Path], object]] = {
    ".safetensors": load_file,
    ".pt": load_checkpoint,
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".ipynb": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".png": _read_picture,
    ".svg": ElementTree.parse,
    ".csv": pd.read_csv,
    ".txt": lambda path: path.read_text(encoding="utf-8"),
}


def epochs_done(out: Path) -> int:
    """Epochs that a run goes on from: of its last checkpoint, or with that gone the one before."""
    for name in ("last.pt", "previous.pt"):
        if (file := out / "checkpoints" / name).exists():
            return len(load_checkpoint(file)["history"])
    return 0


def read_untimed(file: Path) -> Any:
    """A record as plain values, without what tells two equal runs apart."""
    return untimed(json.loads(file.read_text(encoding="utf-8")))


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: untimed(v) for name, v in value.items() if name not in _TIMES}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def equal_runs(one: Path, other: Path) -> bool:
    """Whether two training runs came to the same weights, bit for bit, and the same history."""
    weights = ("model.safetensors", "checkpoints/best.safetensors")
    same = [(one / name).read_bytes() == (other / name).read_bytes() for name in weights]
    return all(same) and read_untimed(one / "record.json") == read_untimed(other / "record.json")

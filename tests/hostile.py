"""Hostile input is tried in a child process: watched, with little memory, and for a limited time.

An input must be accepted, or refused in one line. What a child does beside that is counted: code
that it runs, and files that it writes anywhere but in the room's target folder.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import re
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import evitlab
from evitlab.cli import main

NEEDS_FORK = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="a watched child needs Linux: fork and RLIMIT_AS"
)
REFUSALS = (ValueError, OSError)
Recorder = Callable[[str, object], None]  # pytest's `record_property`
_WATCH_FAILED = 70
_PROGRESS = re.compile(r"\d+%\|")
_ERASED = " \x1b[A"  # what a progress bar leaves of itself
_RUNS_CODE = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn")
# A record asks for the commit that it was made with.
_OWN_PROGRAM = ["git", "-C", str(Path(evitlab.__file__).parent)]
_WRITES = (
    "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "shutil.rmtree",
)  # fmt: skip
_HARMLESS = ("/dev/null", "/dev/shm/", "/proc/")
# What may stand where something else is expected; small to write down, not all small to carry out.
NONSENSE: dict[str, Any] = {
    "null": None, "true": True, "minus one": -1, "zero": 0, "huge": 10**12, "enormous": 10**400,
    "tiny fraction": 1e-300, "NaN": math.nan, "infinity": math.inf, "text": "x", "no text": "",
    "a path": "../../../outside/treasure.txt", "escape codes": "\x1b[2J\r\n\0\ud800",
    "no list": [], "a list": [1, "two", None], "numbers": [1, 2, 3], "huge numbers": [10**12] * 3,
    "many": list(range(50_000)), "no object": {}, "an object": {"a": {"b": [{}]}},
}  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """A hostile input: its name in a failure, and what opens it, which raises where it refuses."""

    name: str
    open: Callable[[], object]


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt.

    Attributes:
        name: the attempt's.
        kind: "accepted", "refused" or "crash".
        text: the refusal, or how it crashed.
        executed: what ran code.
        outside: files that were written, or would have been, outside the target.
    """

    name: str
    kind: str
    text: str
    executed: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


class Room:
    """A tree of folders that is watched.

    Attributes:
        target: inputs lie here, and results may be written here.
        outside: holds what must not be read into a result, changed or added to.
        canary: made by every payload that is run.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.target, self.outside = root / "a" / "b" / "target", root / "outside"
        self.home = root / "home"
        for folder in (self.target, self.outside, self.home / "data", root / "tmp"):
            folder.mkdir(parents=True)
        self.canary = self.outside / "canary"
        (self.outside / "treasure.txt").write_text("secret", encoding="utf-8")

    def file(self, name: str, content: bytes | str) -> Path:
        """An input in the target folder."""
        path = self.target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def snapshot(self) -> dict[str, tuple[int, int, int]]:
        """What lies outside the target: kind and mode, size and time of change of each entry."""
        found = {}
        for folder, _, names in os.walk(self.root):
            ours = any(Path(folder).is_relative_to(own) for own in (self.target, self.root / "tmp"))
            for path in [] if ours else [Path(folder), *(Path(folder) / name for name in names)]:
                if path == self.target.parent or path == self.root / "tmp":
                    continue  # their time changes with what lies in them, which is looked at
                stat = path.lstat()
                found[str(path)] = (stat.st_mode, stat.st_size, stat.st_mtime_ns)
        return found

    def attempt(
        self, attempts: Sequence[Attempt], *, limit_s: float = 60, memory_mib: int = 1024
    ) -> list[Outcome]:
        """Open each input in a child; where it dies or hangs, the next child goes on.

        Args:
            attempts: in this order.
            limit_s: of one attempt, after which it counts as hanging.
            memory_mib: what one attempt may take; of what it asks for without using it, four times
                as much.
        """
        names = [one.name for one in attempts]
        assert len(set(names)) == len(names), "attempts of one name"
        outcomes: list[Outcome] = []
        while len(outcomes) < len(attempts):
            before = self.snapshot()
            first = len(outcomes)
            outcomes += self._one_child(attempts[first:], limit_s, memory_mib)
            changed = _changed(before, self.snapshot())
            if changed:  # of which attempt is not known
                last = outcomes.pop()
                executed = (*last.executed, *(["canary"] if str(self.canary) in changed else []))
                outcomes.append(
                    Outcome(last.name, last.kind, last.text, executed, (*last.outside, *changed))
                )
        return outcomes

    def _one_child(
        self, attempts: Sequence[Attempt], limit_s: float, memory_mib: int
    ) -> list[Outcome]:
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                Watch(self, writing).work(attempts, memory_mib)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            os._exit(_WATCH_FAILED)
        os.close(writing)
        outcomes: list[Outcome] = []
        rest, hangs = b"", False
        deadline = time.monotonic() + limit_s
        while True:
            ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(reading, 2**16) if ready else b""
            if not data:
                hangs = not ready
                break
            *lines, rest = (rest + data).split(b"\n")
            outcomes += [_outcome(json.loads(line)) for line in lines]
            if lines:
                deadline = time.monotonic() + limit_s
        os.close(reading)
        if hangs:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) != _WATCH_FAILED, "the watch itself failed"
        if len(outcomes) < len(attempts):
            text = f"hangs: no end after {limit_s:g} s" if hangs else f"child ended: {status}"
            if not hangs and os.WIFSIGNALED(status):
                text = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
            outcomes.append(Outcome(attempts[len(outcomes)].name, "crash", text))
        return outcomes


class Watch:
    """Of a watched process: it tries one input after another and writes what came of each.

    Attributes:
        executed, outside: what the audit hook `see` saw.
    """

    def __init__(self, room: Room, pipe: int) -> None:
        self.room, self.pipe = room, pipe
        self.executed: list[str] = []
        self.outside: list[str] = []

    def work(self, attempts: Sequence[Attempt], memory_mib: int) -> None:
        import resource

        faulthandler.disable()  # who died is told, and where would fill the terminal
        torch.set_num_threads(1)  # the parent's threads are not here, and would be waited for
        os.environ |= {
            "HOME": str(self.room.home),
            "EVITLAB_DATA": str(self.room.home / "data"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.room.root / "tmp" / "inductor"),
        }
        os.environ.pop("CI", None)  # some libraries report their use to their makers but for there
        tempfile.tempdir = str(self.room.root / "tmp")
        sys.dont_write_bytecode = True
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + 4 * memory_mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(self.room.target)
        warnings.resetwarnings()  # a user sees them; an error, as in tests, would hide what follows
        sys.addaudithook(self.see)
        for one in attempts:
            self.executed, self.outside = [], []
            before = _memory_mib(reset=True)
            kind, text = _try(one)
            taken = _memory_mib() - before
            if kind != "crash" and taken > memory_mib:
                kind, text = "crash", f"took {taken:.0f} MiB ({kind} {text})"
            if self.room.canary.exists():
                self.executed.append("canary")
            said = [one.name, kind, text[:2000], self.executed[:5], self.outside[:5]]
            data = json.dumps(said).encode() + b"\n"
            while data:
                data = data[os.write(self.pipe, data) :]

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_RUNS_CODE):
            if event == "subprocess.Popen" and list(arguments[1][:3]) == _OWN_PROGRAM:
                return
            self.executed.append(f"{event} {arguments[:2]!r}")
        elif event == "open":
            path, mode, flags = arguments
            writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            written = any(letter in mode for letter in "wax+") if mode else bool(flags & writes)
            if written:
                self._written(event, path)
        elif event in _WRITES:
            # Of a link its place is written, not what it points to; of a renaming both are.
            paths = arguments[:2] if event == "os.rename" else arguments[:1]
            for path in arguments[1:2] if event in ("os.symlink", "os.link") else paths:
                self._written(event, path)

    def _written(self, event: str, path: Any) -> None:
        if isinstance(path, int):
            return
        where = os.path.realpath(os.fspath(path))
        where = where.decode(errors="replace") if isinstance(where, bytes) else where
        allowed = [str(self.room.target), str(self.room.root / "tmp")]
        inside = [f"{folder}{os.sep}" for folder in allowed]
        if where not in allowed and not where.startswith((*inside, *_HARMLESS)):
            self.outside.append(f"{event} {where}")


def _memory_mib(*, reset: bool = False) -> float:
    """The most that the process held since the last reset; with `reset`, what it holds now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def _try(one: Attempt) -> tuple[str, str]:
    try:
        one.open()
    except REFUSALS as error:
        text = str(error)
        if not text.strip():
            return "crash", f"{type(error).__name__} without words"
        return ("refused", text) if "\n" not in text else ("crash", f"several lines: {text!r}")
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "crash", f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    return "accepted", ""


def _outcome(said: list[Any]) -> Outcome:
    name, kind, text, executed, outside = said
    return Outcome(name, kind, text, tuple(executed), tuple(outside))


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    keys = before.keys() | after.keys()
    return sorted(key for key in keys if before.get(key) != after.get(key))


def command(*words: object) -> Callable[[], None]:
    """What runs the command line, and raises what it says where its exit code is 2."""

    def run() -> None:
        with _captured() as said:
            try:
                code = main([os.fspath(word) if isinstance(word, Path) else str(word)
                             for word in words])  # fmt: skip
            except SystemExit as left:  # argparse's way
                code = left.code if isinstance(left.code, int) else 1
        lines = [line for line in re.split(r"[\r\n]+", said[0]) if line.strip()]
        lines = [line for line in lines if not _PROGRESS.search(line) and line.strip(_ERASED)]
        if code == 2:
            assert len(lines) == 1, f"expected one line, got {lines}"
            assert lines[0].startswith("evitlab: error: "), lines[0]
            low = lines[0].lower()
            assert "memory" not in low, lines[0]  # it was about to take too much
            raise ValueError(lines[0])
        assert code == 0, f"exit code {code}: {lines}"
        assert not lines, f"accepted, but said {lines}"

    return run


def some(attempts: Sequence[Attempt], config: pytest.Config, count: int) -> list[Attempt]:
    """`count` of many, evenly spread; all with --thorough."""
    if config.getoption("--thorough") or count >= len(attempts):
        return list(attempts)
    return [attempts[i * len(attempts) // count] for i in range(count)]


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
    """What the process writes to its two streams, of stderr also by file descriptor."""
    said: list[str] = []
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(number) for number in (1, 2)]
    streams = sys.stdout, sys.stderr
    out, err = os.memfd_create("out"), os.memfd_create("err")
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    try:
        yield said
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = streams
        for number, old in zip((1, 2), before, strict=True):
            os.dup2(old, number)
            os.close(old)
        said.append(os.pread(err, 2**20, 0).decode(errors="replace"))
        os.close(out)
        os.close(err)


def tabled(record_property: Recorder, kind: str, outcomes: Sequence[Outcome]) -> None:
    """Put a kind of input into the table "hostile input", and fail where one did harm."""
    counts = {name: sum(one.kind == name for one in outcomes) for name in ("refused", "accepted")}
    crashed = [one for one in outcomes if one.kind == "crash"]
    executed = [one for one in outcomes if one.executed]
    outside = [one for one in outcomes if one.outside]
    record_property(
        "hostile input",
        {
            "kind": kind,
            "inputs tried": len(outcomes),
            **counts,
            "crashes": len(crashed),
            "code executed": len(executed),
            "files outside": len(outside),
        },
    )
    for what, wrong in (("crash", crashed), ("run code", executed), ("write outside", outside)):
        listing = "\n".join(
            f"  {one.name}: {one.text} {one.executed} {one.outside}" for one in wrong[:30]
        )
        assert not wrong, f"{len(wrong)} of {len(outcomes)} inputs {what}:\n{listing}"

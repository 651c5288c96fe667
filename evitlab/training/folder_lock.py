"""One process at a time writes into an output folder; a second one is told who is at it.

The system itself lets go of the lock of a process that is gone, however it ended, so none is left
to be removed by hand.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from evitlab.records import unwritable, write_atomically
from evitlab.training.launch import launch_rank

_LOCK, _HOLDER = ".lock", ".lock-holder"  # neither looks like a record, to `glob("*.json")`
_PATIENCE_S = 2.0  # a process that was just killed may take a moment to be gone
_HALF_WRITTEN = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # the names that `write_atomically` gives
_held: set[tuple[int, Path]] = set()  # (process, folder); it may ask again, a fork of it may not


class FolderInUse(OSError):
    """Another process writes into the folder; the message says which."""


@contextmanager
def held(folder: str | os.PathLike[str], *, command: str = "") -> Iterator[None]:
    """Keep a folder for this process alone, and sweep up what a killed one left half written.

    It is made where it is not there. Asked for again within, by the same process, it is held
    already; of the processes that torchrun started, number 0 holds it for all.

    Args:
        folder: whose files, and those of the folders in it, this process is going to write.
        command: what this process does, for another one that finds the folder in use.

    Raises:
        FolderInUse: another process holds it.
        OSError: it cannot be made or written.
    """
    place = Path(folder).absolute()
    own = (os.getpid(), place)
    if own in _held or launch_rank() > 0:
        yield
        return
    lock, made = FileLock(place / _LOCK), not place.exists()
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_PATIENCE_S)
    except Timeout:
        raise FolderInUse(
            f"{folder} is in use by {_holder(place)}; wait for it, end it, or choose another folder"
        ) from None
    except OSError as error:
        raise unwritable(error, folder) from error
    _held.add(own)
    try:
        _introduce(place, command)
        _sweep(place)
        yield
    finally:
        _held.discard(own)
        for name in (_HOLDER, _LOCK):  # while it is held: nobody else's can be removed
            with suppress(OSError):  # Windows removes no open file; an empty one stays
                (place / name).unlink(missing_ok=True)
        lock.release()
        if made:  # for a command that was refused: a folder with anything in it stays
            with suppress(OSError):
                place.rmdir()


def _introduce(place: Path, command: str) -> None:
    who = {
        "pid": os.getpid(),
        "machine": platform.node(),
        "command": command,
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    write_atomically(place / _HOLDER, json.dumps(who) + "\n")


def _holder(place: Path) -> str:
    try:
        who = json.loads((place / _HOLDER).read_text(encoding="utf-8"))
        doing = f" ({who['command']})" if who["command"] else ""
        return f"process {who['pid']} on {who['machine']} since {who['since']}{doing}"
    except (OSError, ValueError, LookupError, TypeError):  # it has only just begun
        return "another process"


def _sweep(place: Path) -> None:
    for pattern in (".*.tmp", "*/.*.tmp"):
        for path in place.glob(pattern):
            if _HALF_WRITTEN.fullmatch(path.name):
                with suppress(OSError):  # another process of the run was faster
                    path.unlink()

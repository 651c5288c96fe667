"""How this process was started: alone, or by `torchrun` as one of many that must not talk at once.

Read from the environment variables that torchrun sets, so it can be asked before any process
group exists.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Terminated(BaseException):
    """SIGTERM arrived: torchrun ends the other processes of a run when one of them is gone."""


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    launched = all(name in os.environ for name in _VARIABLES)
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def launch_rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int:
    """This process's number on its machine: its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def launcher() -> tuple[str, ...]:
    """The words that start a command in so many processes; () for a process that runs alone."""
    if world_size() == 1:
        return ()
    own = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    machines = (f"--nnodes={world_size() // own}",) if own < world_size() else ()
    return ("torchrun", *machines, f"--nproc-per-node={own}", "-m")


def restarted() -> bool:
    """Whether torchrun started the processes again after one of them failed."""
    return world_size() > 1 and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def one_voice() -> Iterator[None]:
    """Within, only process 0 prints and draws bars, and SIGTERM raises `Terminated`.

    An exception leaves the block, so that whoever reports it does so on the real streams.
    """
    with ExitStack() as stack:
        if launch_rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        if world_size() > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        yield


def _terminate(*_: Any) -> NoReturn:
    deaf_to_sigterm()  # it comes once; the process is ending
    raise Terminated


def deaf_to_sigterm() -> None:
    """Let this process of a run say its last line; torchrun kills what lingers anyway."""
    if world_size() > 1 and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def first_to_speak(*, after_s: float = 0.0) -> bool:
    """Whether no other process of the run has reported its end yet: one error, one line.

    They ask the store that torchrun keeps, which outlives them; where it does not answer, each
    speaks for itself.

    Args:
        after_s: seconds to let the others speak first, for a process that knows no cause. The one
            that knows it leaves the run before it speaks, and the others may notice sooner.
    """
    if world_size() == 1:
        return True
    time.sleep(after_s)
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=5),
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return int(store.add(f"evitlab/spoken/{attempt}", 1)) == 1
    except (dist.DistError, RuntimeError, ValueError):
        return True

"""How a training run can fail, in one line each: what happened, what to change, how to go on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evitlab.training.launch import Terminated, world_size
from evitlab.training.recipe import Recipe
from evitlab.wording import on_one_line

# torch raises its own type on a GPU, and a plain RuntimeError on a CPU.
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|Unable to allocate", re.I)
# What torch says where one of them has ended, and Python where what starts them has; an error
# *in* one of them is told by other words.
_READER = re.compile(r"^(DataLoader worker \(pid|unexpected EOF$)")
# What gloo, NCCL and the store say when the other end is gone or silent.
_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out|socket", re.I
)


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; the message names step, rate and last good checkpoint."""


class OutOfMemory(RuntimeError):
    """Memory ran out; the message says what to lower."""


class LostProcess(RuntimeError):
    """Another process of the run is gone, or this one was told to end; says how to go on."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had: torch's on a GPU or CPU, or Python's and numpy's."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )


@contextmanager
def explained(recipe: Recipe, img_size: tuple[int, int], last: Path) -> Iterator[None]:
    """Turn torch's errors of memory and of lost processes into ours.

    Args:
        recipe: its batch size is named.
        img_size: (height, width) in pixels, named too.
        last: the last checkpoint, which may not exist.

    Raises:
        OutOfMemory: memory ran out in the block.
        LostProcess: another process of the run is gone, one of those that read images included,
            or SIGTERM arrived.
    """
    try:
        yield
    except (RuntimeError, MemoryError, EOFError, Terminated) as error:
        if isinstance(error, (OutOfMemory, LostProcess)):
            raise
        if is_out_of_memory(error):
            reason = on_one_line(error).partition(". ")[0]
            raise OutOfMemory(
                f"out of memory ({reason}): lower batch_size (--batch-size, now "
                f"{recipe.batch_size}) or img_size (--img-size, now {img_size[0]}x{img_size[1]}), "
                f"or raise accumulate (--accumulate, now {recipe.accumulate}); {last_good(last)}"
            ) from error
        if _READER.search(str(error)):
            raise LostProcess(
                "a process that reads the images is gone (killed, perhaps as memory ran out, or "
                f"crashed); {last_good(last)}, and the same command continues"
            ) from error
        if isinstance(error, Terminated) or (world_size() > 1 and _LOST.search(str(error))):
            raise LostProcess(
                f"a process of this run is gone (killed, out of memory, or its machine lost), so "
                f"the other{'' if world_size() == 2 else 's'} stopped; {last_good(last)}, and the "
                f"same command continues {'from it' if last.exists() else 'where it can'}"
            ) from error
        raise


def last_good(last: Path) -> str:
    """Where the run can go on from."""
    return f"last good checkpoint: {last if last.exists() else 'none yet'}"

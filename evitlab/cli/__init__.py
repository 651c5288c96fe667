"""`evitlab …`, the same as `python -m evitlab …`: one module for each group of commands."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from evitlab.cli import (
    bench,
    explore,
    export,
    heads,
    models,
    profile,
    prune,
    recipes,
    reproduce,
    study,
    train,
)
from evitlab.cli.parser import parser_with_commands

GROUPS = [
    train.add, export.add, models.add, recipes.add, profile.add, heads.add, explore.add, prune.add,
    bench.add, study.add, reproduce.add,
]  # fmt: skip
USER_MISTAKES = (ValueError, OSError, ArithmeticError)  # one line and exit code 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 a finding failed, 2 a user's mistake."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser_with_commands(GROUPS).parse_args(argv)
    args.command_line = shlex.join(["evitlab", *_without_machine_paths(argv)])
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it can", file=sys.stderr)
        return 130
    except (*USER_MISTAKES, RuntimeError) as error:
        if args.debug or not (isinstance(error, USER_MISTAKES) or _is_out_of_memory(error)):
            raise
        # On one line, also where a library's message has several.
        print(f"evitlab: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _is_out_of_memory(error: BaseException) -> bool:
    """torch raises its own type on a GPU, and a plain RuntimeError on a CPU."""
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def _without_machine_paths(argv: list[str]) -> list[str]:
    """Paths cut to their last part: a record names no folder of one machine."""

    def cut(word: str) -> str:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else word

    return [cut(word) for word in argv]

"""All commands, one module for each group of them, and how a command ends."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from evitlab.cli import (
    bench,
    detect,
    doctor,
    evaluate,
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
from evitlab.training.failures import LostProcess, is_out_of_memory
from evitlab.training.launch import (
    Terminated,
    deaf_to_sigterm,
    first_to_speak,
    launch_rank,
    launcher,
    one_voice,
)
from evitlab.version import __version__
from evitlab.wording import on_one_line

GROUPS = [
    train.add, evaluate.add, export.add, models.add, recipes.add, profile.add, heads.add,
    explore.add, prune.add, bench.add, study.add, detect.add, reproduce.add,
    doctor.add,
]  # fmt: skip
_CAUSE_SPEAKS_S = 2.0  # a process that failed says why well within this, also on a busy machine
_FILES = ("file", "json", "predictions")  # that any command writes in the end
USER_MISTAKES = (ValueError, OSError, ArithmeticError)  # one line and exit code 2


def run(argv: list[str]) -> int:
    """Run a command; returns the exit code, as `evitlab.cli.main` says it."""
    parser = parser_with_commands(GROUPS)
    parser.add_argument("--version", action="version", version=f"evitlab {__version__}")
    for option in (word[:-3] for word in argv if word.startswith("--") and word.endswith("=--")):
        parser.error(f"argument {option}: expected a value, got '--'")  # argparse takes it for []
    args = parser.parse_args(argv)
    args.command_line = shlex.join([*launcher(), "evitlab", *_without_machine_paths(argv)])
    try:
        with one_voice():
            _check_outputs(args)
            code = args.run(args) or 0
            sys.stdout.flush()  # here, where what goes wrong is told
            return code
    except KeyboardInterrupt:
        _say("interrupted; the same command continues where it can")
        return 130
    except BrokenPipeError:
        try:
            print(flush=True)
        except BrokenPipeError:  # `evitlab models | head`: its reader has enough, no mistake
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed at the end
        else:
            _say("evitlab: stopped: a process that it talked to is gone", _CAUSE_SPEAKS_S)
        return 1
    except (LostProcess, Terminated) as error:
        if args.debug:
            raise
        gone = "another process of this run is gone; the same command continues where it can"
        _say(f"evitlab: stopped: {str(error) or gone}", _CAUSE_SPEAKS_S)
        return 1
    except (*USER_MISTAKES, RuntimeError, MemoryError) as error:
        if args.debug or not (isinstance(error, USER_MISTAKES) or is_out_of_memory(error)):
            raise
        _say(f"evitlab: error: {str(error) or type(error).__name__}")
        return 2


def _check_outputs(args: argparse.Namespace) -> None:
    """Say now that a file could not be written, and not once it has been worked out."""
    for name in _FILES if launch_rank() == 0 else ():
        place = getattr(args, name, None)
        if place:
            from evitlab.records import check_writable

            try:
                check_writable(place)
            except ValueError as error:
                raise ValueError(f"{name}: expected a path, got {place!r} ({error})") from error


def _say(message: str, after_s: float = 0.0) -> None:
    """On one line, also where a library's message has several, and once for all processes."""
    deaf_to_sigterm()
    if first_to_speak(after_s=after_s):
        print(on_one_line(message), file=sys.stderr)


def _without_machine_paths(argv: list[str]) -> list[str]:
    """Paths cut to their last part: a record names no folder of one machine."""

    def cut(word: str) -> str:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else word

    return [cut(word) for word in argv]

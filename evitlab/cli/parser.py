"""The parser all commands share: an example in each help, every mistake in one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

Run = Callable[[argparse.Namespace], int | None]  # carries a command out; None and 0: done
# (name, run, what it does, an example) -> the new command's parser, to add its options to
AddCommand = Callable[[str, Run, str, str], argparse.ArgumentParser]


class Parser(argparse.ArgumentParser):
    """Says a wrong command line in one line, as every other mistake."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"evitlab: error: {message} (see {self.prog} --help)\n")


def parser_with_commands(groups: Sequence[Callable[[AddCommand], None]]) -> Parser:
    """The parser of `evitlab`.

    Args:
        groups: each adds its commands, in the order in which `evitlab --help` lists them.
    """
    parser = Parser(
        prog="evitlab",
        description="Rebuild, measure and extend the findings of EfficientViT (CVPR 2023).",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command = commands_of(parser)
    for add in groups:
        add(command)
    return parser


def commands_of(parser: argparse.ArgumentParser) -> AddCommand:
    """What adds commands to a parser: to that of `evitlab`, or to one command's own."""
    commands: Any = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Run, text: str, example: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                         help="show the traceback of an error")  # fmt: skip
        return sub

    return command

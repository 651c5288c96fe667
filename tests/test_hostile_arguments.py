"""Every option of every command with words that cannot be meant, found by walking the parsers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import NEEDS_FORK, Attempt, Recorder, Room, command, some, tabled

from evitlab.cli.commands import GROUPS
from evitlab.cli.parser import parser_with_commands

pytestmark = NEEDS_FORK

NO_NUMBERS = ("", "x", "0x10", "1e", "1,5", "٣x", "--", "\x1b[2J", "1" * 5000, "[1]", "None")


def options(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.Action]]:
    """The words of each command, and each of its options that takes a value."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from options(sub, (*words, name))
        elif action.option_strings and action.nargs != 0:
            yield words, action


def test_words_where_numbers_or_choices_are_expected(
    tmp_path: Path, record_property: Recorder, pytestconfig: pytest.Config
) -> None:
    attempts = []
    for words, action in options(parser_with_commands(GROUPS)):
        option = action.option_strings[-1]
        if action.type in (int, float) or action.choices:
            for value in NO_NUMBERS:
                if value.isdigit() and action.type is float:
                    continue  # a number, if an endless one
                line = (*words, f"{option}={value}")
                attempts.append(Attempt(repr(line)[:100], command(*line)))
        attempts.append(Attempt(f"{words} {option} alone", command(*words, option)))
        if not words:
            continue
        attempts.append(Attempt(f"{words} {option}x", command(*words, f"{option}-x=1")))
    assert len(attempts) > 500
    outcomes = Room(tmp_path).attempt(some(attempts, pytestconfig, 200))
    tabled(record_property, "command line: no numbers, no values, unknown options", outcomes)
    assert [one.name for one in outcomes if one.kind != "refused"] == []

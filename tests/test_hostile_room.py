"""The watch over hostile input sees what it is there for: harm of each kind is made and counted."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile import NEEDS_FORK, Attempt, Room, command, tabled

pytestmark = NEEDS_FORK


def refuse() -> None:
    raise ValueError("limit: expected 1, got 2")


def two_lines() -> None:
    raise ValueError("limit: expected 1,\ngot 2")


def test_each_kind_of_harm_is_seen(tmp_path: Path) -> None:
    room = Room(tmp_path)
    treasure = room.outside / "treasure.txt"
    (room.target / "way out").symlink_to(room.outside)
    attempts = {
        "fine": lambda: (room.target / "result").write_text("x"),
        "refused": refuse,
        "several lines": two_lines,
        "another error": lambda: os.environ["no such variable"],
        "abort": os.abort,
        "segmentation fault": lambda: ctypes.string_at(0),
        "leaves": lambda: os._exit(3),
        "memory": lambda: bytearray(2**29),
        "system": lambda: os.system("true"),
        "subprocess": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        "writes": lambda: treasure.write_text("mine"),
        "writes through a link": lambda: (room.target / "way out" / "new").write_text("x"),
        "makes a folder": lambda: (room.target / ".." / "beside").mkdir(),
        "unseen by Python": lambda: ctypes.CDLL(None).rename(
            str(treasure).encode(), str(room.outside / "stolen").encode()
        ),
    }
    attempts |= {"fine again": lambda: None}
    found = {
        one.name: one
        for one in room.attempt(
            [Attempt(name, what) for name, what in attempts.items()], memory_mib=256
        )
    }
    assert [name for name, one in found.items() if one.kind == "accepted"] == [
        "fine", "system", "subprocess", "writes", "writes through a link", "makes a folder",
        "unseen by Python", "fine again",
    ]  # fmt: skip
    assert [name for name, one in found.items() if one.kind == "refused"] == ["refused"]
    said = {name: one.text for name, one in found.items() if one.kind == "crash"}
    assert said["several lines"].startswith("several lines")
    assert said["another error"].startswith("KeyError: 'no such variable'")
    assert said["abort"] == "killed by SIGABRT"
    assert said["segmentation fault"] == "killed by SIGSEGV"
    assert said["leaves"].startswith("child ended")
    assert said["memory"].startswith("took 512 MiB")
    assert {name for name, one in found.items() if one.executed} == {"system", "subprocess"}
    # What no hook sees is found in the folders afterwards, and told of the child's last attempt.
    assert {name for name, one in found.items() if one.outside} == {
        "writes", "writes through a link", "makes a folder", "fine again",
    }  # fmt: skip
    assert str(room.outside / "stolen") in found["fine again"].outside


def test_what_hangs_is_ended_and_the_next_goes_on(tmp_path: Path) -> None:
    attempts = [Attempt("hangs", lambda: time.sleep(600)), Attempt("fine", lambda: None)]
    found = Room(tmp_path).attempt(attempts, limit_s=5)
    assert [(one.kind, one.text) for one in found] == [
        ("crash", "hangs: no end after 5 s"), ("accepted", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["crash", "code", "outside"])
def test_the_table_fails_on_harm(tmp_path: Path, kind: str) -> None:
    room = Room(tmp_path)
    attempts = {
        "crash": os.abort,
        "code": lambda: os.system("true"),
        "outside": lambda: (room.outside / "new").write_text("x"),
    }
    rows: list[object] = []
    outcomes = room.attempt([Attempt("fine", lambda: None), Attempt("wrong", attempts[kind])])
    with pytest.raises(AssertionError, match="1 of 2 inputs"):
        tabled(lambda table, row: rows.append(row), "of a test", outcomes)
    counts = {"crashes": "crash", "code executed": "code", "files outside": "outside"}
    accepted = 1 if kind == "crash" else 2
    assert rows == [
        {"kind": "of a test", "inputs tried": 2, "refused": 0, "accepted": accepted}
        | {column: int(what == kind) for column, what in counts.items()}
    ]


def test_commands_are_judged_by_code_and_words(tmp_path: Path) -> None:
    room = Room(tmp_path)
    attempts = {
        "no command": command(),
        "mistake": command("models", "resnet*"),
        "fine": command("recipes"),
    }
    found = room.attempt([Attempt(name, what) for name, what in attempts.items()])
    assert [one.kind for one in found] == ["refused", "refused", "accepted"]
    assert found[1].text.startswith("evitlab: error: pattern: expected")

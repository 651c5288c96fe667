"""Environment variables that say nonsense."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hostile import NEEDS_FORK, Attempt, Recorder, Room, tabled

from evitlab import open_dataset

pytestmark = NEEDS_FORK


def with_variable(name: str, value: str, act: Callable[[], object]) -> None:
    os.environ[name] = value
    try:
        act()
    finally:
        del os.environ[name]


def test_environment_variables(tmp_path: Path, record_property: Recorder) -> None:
    room = Room(tmp_path)
    file = room.file("a file", "text")
    attempts = []
    for value in ("", "nonsense", str(file), f"{file}/x", "~nobody/x", "\x1b[2J", "x" * 5000, "/"):
        for name in ("imagenet", "cifar10", "nonsense"):
            opened = partial(open_dataset, name, "val", img_size=32)
            attempts.append(
                Attempt(f"EVITLAB_DATA={value[-20:]!r}, {name}",
                        partial(with_variable, "EVITLAB_DATA", value, opened))
            )  # fmt: skip
    outcomes = room.attempt(attempts)
    tabled(record_property, "environment: where the data is", outcomes)
    assert all(one.kind == "refused" for one in outcomes)

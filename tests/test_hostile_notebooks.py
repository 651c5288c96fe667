"""Notebooks that are none, and what a notebook is told by its environment, of nonsense."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hostile import NEEDS_FORK, Attempt, Recorder, Room, some, tabled
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from test_hostile_records import changed

from evitlab import conclude
from evitlab.findings import Finding
from evitlab.report import reproduce
from evitlab.runner import code_cells

pytestmark = NEEDS_FORK

HOLDS = Finding("one is one", paper="1", ours="1", holds=True, command="make reproduce")


def test_files(tmp_path: Path, record_property: Recorder, pytestconfig: pytest.Config) -> None:
    room = Room(tmp_path)
    good: Any = new_notebook(
        cells=[
            new_code_cell("1", outputs=[new_output("stream", text="1")], id="a"),
            new_markdown_cell("text", id="b"),
        ]
    )
    text = json.dumps(good)
    contents = {name: json.dumps(content) for name, content in changed(good)}
    contents |= {f"cut at {at}": text[:at] for at in range(0, len(text), 20)}
    contents |= {"deep": "[" * 100_000, "NaN": "NaN", "NUL": "\0", "digits": "1" * 10_000}
    attempts = [
        Attempt(name, partial(code_cells, room.file(f"{number}.ipynb", content)))
        for number, (name, content) in enumerate(contents.items())
    ]
    attempts.append(Attempt("no UTF-8", partial(code_cells, room.file("x.ipynb", b"\xff\xfe{}"))))
    attempts += [Attempt(str(path), partial(code_cells, path)) for path in (room.target, tmp_path)]
    outcomes = room.attempt(some(attempts, pytestconfig, 150))
    tabled(record_property, "notebooks: fields missing or of nonsense, cut files", outcomes)


def test_parameters(tmp_path: Path, record_property: Recorder) -> None:
    room = Room(tmp_path)
    content = json.dumps(new_notebook(cells=[new_code_cell("1 / 0")]))
    notebook = room.file("a folder/00_a.ipynb", content)
    known = {"EVITLAB_SCALE": "smoke", "EVITLAB_NOTEBOOK": "00_a", "EVITLAB_FIGURES": "out"}
    outside = str(room.outside / "treasure.txt")
    values = (
        "", " ", "-1", "nan", "quik", "paper", "../../../outside/x", "..", "x" * 5000, "a\nb",
        "\x1b[2J", "a/b", "~", "~nobody", "$HOME", outside, "CON", "a b", "\udcff",
    )  # fmt: skip

    def concluding(given: dict[str, str]) -> Callable[[], object]:
        def run() -> None:
            os.environ |= known | given
            conclude([HOLDS])

        return run

    attempts = [
        Attempt(f"{name}={value!r}", concluding({name: value}))
        for name in known
        for value in values
        if name != "EVITLAB_FIGURES" or value[:1] not in (".", "~", "/")  # who says so means it
    ]
    for value in values:
        attempts.append(Attempt(f"scale {value!r}", partial(reproduce, scale=value, out_dir="out")))
        what = partial(reproduce, scale="smoke", notebooks=[value], out_dir="out")
        attempts.append(Attempt(f"notebooks {value!r}", what))
    for minutes in (0, -1, float("nan")):
        what = partial(reproduce, notebooks=[notebook], out_dir="out", budget_min=minutes)
        attempts.append(Attempt(f"budget_min {minutes}", what))
    tabled(record_property, "notebooks: their parameters", room.attempt(attempts))

"""Options whose values can be read but not meant: numbers out of any range, and wrong paths."""

from __future__ import annotations

from pathlib import Path

import matplotlib.font_manager  # noqa: F401 - its list of fonts is made before a home is watched
import pytest
from hostile import NEEDS_FORK, Attempt, Recorder, Room, command, some, tabled
from small_runs import tiny_vit
from test_hostile_arguments import options

from evitlab import save_weights
from evitlab.cli.commands import GROUPS
from evitlab.cli.parser import parser_with_commands
from evitlab.datasets.embedded import CLASS_NAMES

pytestmark = NEEDS_FORK

NUMBERS = {
    int: ("-1", "-99999999999999999999"),
    float: ("nan", "1e309", "-1"),
}
TRAIN = ("train", "efficientvit_m0_p4", "--data", "embedded", "--limit", "20", "--epochs", "1",
         "--batch-size", "10", "--device", "cpu", "--out", "out")  # fmt: skip


def lines(weights: Path) -> dict[tuple[str, ...], tuple[str, ...]]:
    """A short run of each command, to which one option is added; the last one given counts."""
    small = str(weights)
    return {
        ("train",): TRAIN,
        ("evaluate",): ("evaluate", small, "--data", "embedded"),
        ("heads",): ("heads", small, "--images", "embedded", "--limit", "4", "--out", "out"),
        ("profile",): ("profile", "efficientvit_m0_p4", "--img-size", "32", "--rounds", "1",
                       "--out", "out"),
        ("prune",): ("prune", small, "--data", "embedded", "--images", "8", "--steps", "1",
                     "--limit", "20", "--device", "cpu", "--out", "out"),
        ("export",): ("export", small, "x.onnx"),
        ("detect", "predict"): ("detect", "predict", small, "photos", "--out", "out"),
        ("detect", "train"): ("detect", "train", small, "--data", "nothing", "--out", "out"),
        ("detect", "evaluate"): ("detect", "evaluate", small, "--data", "nothing"),
        ("explore",): ("explore", "nothing", "--no-browser"),
        ("study",): ("study", "nothing"),
    }  # fmt: skip


def test_numbers_out_of_range_and_wrong_paths(
    tmp_path: Path, record_property: Recorder, pytestconfig: pytest.Config
) -> None:
    room = Room(tmp_path)
    weights = save_weights(
        tiny_vit(num_classes=len(CLASS_NAMES)), room.target / "small.safetensors",
        class_names=CLASS_NAMES,
    )  # fmt: skip
    file, folder = room.file("a file", "text"), room.file("a folder/a.txt", "text").parent
    known = lines(weights)
    attempts = []
    for words, action in options(parser_with_commands(GROUPS)):
        if words not in known:
            continue
        line, option = known[words], action.option_strings[-1]
        metavar = str(action.metavar)
        values = NUMBERS.get(action.type, ()) if isinstance(action.type, type) else ()
        if any(name in metavar for name in ("FILE", "PATH", "DIR")):
            line = tuple("nothing" if word == "embedded" else word for word in line)
            values = (str(file), str(folder), f"{file}/x", "", "\x00", "x" * 5000)
        for value in values:
            tried = command(*line, f"{option}={value}")
            attempts.append(Attempt(f"{' '.join(words)} {option}={value[-30:]!r}", tried))
    assert len(attempts) > 150
    chosen = some(attempts, pytestconfig, 6)
    chosen.append(Attempt("evaluate, nothing wrong", command(*known["evaluate",])))
    outcomes = room.attempt(chosen, memory_mib=2048)
    tabled(record_property, "command line: numbers out of range, wrong paths", outcomes)

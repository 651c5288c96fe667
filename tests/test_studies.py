"""Studies: what is missing is carried out, in processes of their own; a stop loses no record."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from functools import partial
from pathlib import Path
from typing import Any

import faults
import faulty_study
import pytest
from small_runs import no_training, one_line

from evitlab import Accuracy, environment_card, load_study, run_study
from evitlab import studies as api
from evitlab.analysis import matching
from evitlab.records import AttentionShareRun
from evitlab.studies import STUDIES, scheduler
from evitlab.studies.base import Conditions, Run, Study, Training

ROOT = Path(__file__).parents[1]

# Stands for the worker: each run notes when it began and ended, and does what its name says.
WORKER = """
    import json, pathlib, sys, time
    asked = json.loads(sys.argv[1])
    folder, name = pathlib.Path(asked["folder"]), asked["run"]
    began = time.monotonic()
    print("work:  40%|####      |", end="\\r", flush=True)
    if name.startswith("slow"):
        time.sleep(60)
    if name.startswith("broken"):
        sys.exit("no good")
    if name.startswith("pair"):  # waits until the other one runs too
        (folder / "began").touch()
        limit = time.monotonic() + 60
        while len(list(folder.parent.glob("pair*/began"))) < 2 and time.monotonic() < limit:
            time.sleep(0.01)
        assert time.monotonic() < limit, "it ran alone"
    time.sleep(0.1)
    target = pathlib.Path(asked["record"])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(pathlib.Path(sys.argv[0]).with_name("record.json").read_text())
    (folder / "times.json").write_text(json.dumps([began, time.monotonic()]))
    print()
    print("did", name)
"""


def never(folder: Path, conditions: Conditions) -> Any:
    raise AssertionError("the worker of these tests carries out nothing")


@pytest.fixture()
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study whose runs are given by the test, and a worker that only pretends."""
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    Accuracy(50.0, 90.0, 1.0, 10, environment_card()).save(tmp_path / "record.json")
    monkeypatch.setattr(scheduler, "_WORKER", (sys.executable, str(script)))
    monkeypatch.setattr(scheduler, "_POLL_SECONDS", 0.02)

    def declare(*runs: Run) -> None:
        made = Study("demo", "a test's", (Accuracy,), lambda scale: runs)
        monkeypatch.setitem(STUDIES, "demo", made)

    return declare


def demo(tmp_path: Path, **options: Any) -> Any:
    given: dict[str, Any] = {"scale": "smoke", "out_dir": tmp_path / "out", "device": "cpu"}
    return run_study("demo", **{**given, **options})


def times(tmp_path: Path, run: str) -> list[float]:
    return json.loads((tmp_path / "out" / "demo" / "smoke" / run / "times.json").read_text())


def test_runs_once_each(study: Any, tmp_path: Path) -> None:
    study(Run("a", never), Run("b", never, after=("a",)))
    report = demo(tmp_path)
    assert report.finished and set(report.records) == {"a", "b"}
    assert times(tmp_path, "b")[0] > times(tmp_path, "a")[1], "b needs a's record"
    before = times(tmp_path, "a")
    assert demo(tmp_path).finished
    assert times(tmp_path, "a") == before, "a finished run was repeated"
    assert set(load_study("demo", tmp_path / "out" / "demo" / "smoke")) == {"a", "b"}


def test_several_at_once_but_a_measurement_alone(study: Any, tmp_path: Path) -> None:
    pair = Run("pair a", never), Run("pair b", never)
    study(*pair, Run("m", never, alone=True), Run("c", never))
    assert demo(tmp_path, jobs=2).finished, "the pair did not run at once"
    a, b, m, c = (times(tmp_path, run) for run in ("pair a", "pair b", "m", "c"))
    assert max(a[1], b[1]) < m[0] and m[1] < c[0], "the measurement shared the machine"


def test_a_run_that_fails_leaves_the_others_alone(study: Any, tmp_path: Path) -> None:
    study(Run("broken", never), Run("after it", never, after=("broken",)), Run("other", never))
    report = demo(tmp_path, jobs=1)
    assert report.failed == {"broken": "no good"}
    assert set(report.records) == {"other"} and report.waiting == ("after it",)


def test_time_limit(study: Any, tmp_path: Path) -> None:
    study(Run("a", never), Run("slow", never))
    began = time.monotonic()
    report = demo(tmp_path, jobs=1, time_limit=3 / 60)
    assert time.monotonic() - began < 45, "it did not stop"
    assert set(report.records) == {"a"} and report.waiting == ("slow",) and not report.failed


def test_records_in_a_folder_of_their_own(study: Any, tmp_path: Path) -> None:
    study(Run("a", never))
    demo(tmp_path, records_dir=tmp_path / "records")
    assert (tmp_path / "records" / "demo" / "a.json").exists()
    with pytest.raises(FileNotFoundError, match="expected records of the study demo"):
        load_study("demo", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scale": "huge"}, "scale: expected one of smoke, quick, lab, got 'huge'"),
        ({"jobs": 0}, "jobs: expected more than 0, got 0"),
        ({"threads": 0}, "threads: expected more than 0, got 0"),
        ({"time_limit": -1}, "time_limit: expected more than 0, got -1"),
        ({"only": "z*"}, "only: expected one that matches a run (a), got 'z*'"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_wrong_values_are_named(
    study: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    study(Run("a", never))
    with pytest.raises(ValueError) as raised:
        demo(tmp_path, **options)
    assert message in one_line(raised)


def test_unknown_study() -> None:
    with pytest.raises(ValueError) as raised:
        run_study("atention-share")
    assert "did you mean 'attention-share'?" in one_line(raised)


def test_a_record_of_another_kind_is_refused(study: Any, tmp_path: Path) -> None:
    study(Run("a", never))
    folder = tmp_path / "out" / "demo" / "smoke"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text('{"record": "Roofline"}')
    with pytest.raises(ValueError, match="expected a record of type Accuracy, got 'Roofline'"):
        demo(tmp_path)


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("scale", api.SCALES)
def test_every_study_declares_runs_that_can_be_carried_out(name: str, scale: str) -> None:
    """Names are files; what a run needs comes before it."""
    known: set[str] = set()
    for run in STUDIES[name].runs(scale):
        assert run.name not in known and "/" not in run.name
        assert set(run.after) <= known, f"{run.name} needs a run that comes later"
        known.add(run.name)


def few_widths() -> None:
    """To be timed in a study's search for equal speed."""
    setattr(matching, "_COARSE", (0.2, 0.4, 1.0))  # noqa: B010 - a constant, to mypy
    setattr(matching, "_BESIDE", range(2))  # noqa: B010


@pytest.mark.slow
def test_attention_share_smoke_end_to_end(tmp_path: Path) -> None:
    """Two widths and two trainings, each in a process of its own."""
    command = [
        *("study", "attention-share", "--scale", "smoke", "--data", "embedded"),
        *("--jobs", "1", "--device", "cpu", "--out"),
    ]
    out = tmp_path / "out"
    given = (faulty_study.workers_are_forked, few_widths)
    faults.finished(command, out, *given)
    folder = out / "attention-share" / "smoke"
    first = {file: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    assert len(first) == 4
    faults.finished(command, out, *given)
    assert all(file.stat().st_mtime_ns == when for file, when in first.items())
    records = load_study("attention-share", folder)
    points = [record for record in records.values() if isinstance(record, AttentionShareRun)]
    assert {point.attention_share for point in points} == {0.0, 0.5} and len(records) == 4
    for point in points:
        assert point.training.recipe["epochs"] == 1 and point.environment.scale == "smoke"
        assert point.to_frame().embed_dim.item() == point.width.embed_dim
        assert len(point.to_frame()) == 1


def test_training_continues_in_its_folder(tmp_path: Path) -> None:
    """A second call returns the finished run's record without training."""
    todo = Training("deit_t_p4", {"embed_dim": 6, "depth": (1,)}, limit=64, val_limit=32)
    run = partial(todo.run, tmp_path, Conditions("smoke", data="embedded", device="cpu"))
    _, first = run()
    with no_training():
        model, again = run()
    assert again == first and not model.training

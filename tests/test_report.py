"""Findings, their tables, and the main job on a small folder of notebooks."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from evitlab.findings import Finding, Findings, conclude, finding_rows, format_table
from evitlab.report import NotebookRun, Report, reproduce
from evitlab.runner import run_notebook, write_notebook

COMMAND = "evitlab reproduce"
HOLDS = Finding("B is faster than A", paper="1.4x", ours="1.3x", holds=True, command=COMMAND)
FAILS = Finding("C is better", paper="2 %", ours="-1 %", holds=False, command=COMMAND)
RECORDED = Finding(
    "D is best",
    paper="20 %",
    ours="40 %",
    holds=False,
    command=COMMAND,
    expected=False,
    note="trained for 30 epochs, not 300",
)


@pytest.fixture(autouse=True)
def no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVITLAB_NOTEBOOK", "EVITLAB_SCALE", "EVITLAB_FIGURES", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)


def save_notebook(path: Path, *sources: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [new_markdown_cell("# Title", id="title")]
    cells += [new_code_cell(source, id=f"code-{i}") for i, source in enumerate(sources)]
    path.write_text(nbformat.writes(new_notebook(cells=cells)), encoding="utf-8")
    return path


# Findings


@pytest.mark.parametrize(
    ("holds", "expected", "verdict"),
    [
        (True, True, "yes"),
        (False, True, "NO"),
        (False, False, "no, as recorded"),
        (True, False, "yes, unexpectedly"),
    ],
)
def test_verdict(holds: bool, expected: bool, verdict: str) -> None:
    finding = Finding(
        "c", paper="1", ours="2", holds=holds, expected=expected, command=COMMAND, note="why"
    )
    assert finding.verdict == verdict
    assert finding.as_expected == (holds == expected)


def test_finding_takes_numbers() -> None:
    values: dict[str, Any] = {"paper": 0.5, "ours": np.float64(0.25), "holds": np.bool_(True)}
    finding = Finding("c", command=COMMAND, **values)
    assert (finding.paper, finding.ours) == ("0.5", "0.25")
    assert finding.holds is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claim": " "}, "claim: expected a text"),
        ({"command": ""}, "command: expected a text"),
        ({"holds": "yes"}, "holds: expected True or False, got 'yes'"),
        ({"expected": False}, "note: expected the likely reason why 'c' does not reproduce"),
    ],
)
def test_finding_refuses(change: dict[str, Any], message: str) -> None:
    plain = {"claim": "c", "paper": "1", "ours": "2", "holds": True, "command": COMMAND}
    with pytest.raises(ValueError, match=message):
        Finding(**{**plain, **change})


def test_table_as_text() -> None:
    table = format_table(finding_rows([HOLDS, RECORDED]), width=70)
    assert table.splitlines() == [
        "  claim               paper  ours  same conclusion?",
        "  ------------------  -----  ----  ----------------",
        "  B is faster than A  1.4x   1.3x  yes",
        "  D is best           20 %   40 %  no, as recorded",
        "    note: trained for 30 epochs, not 300",
    ]


def test_table_wraps_to_its_width() -> None:
    long = Finding(
        "a claim " * 20, paper="p" * 50, ours="measured " * 9, holds=True, command=COMMAND,
        note="a note " * 30,
    )  # fmt: skip
    lines = format_table(finding_rows([long]), width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert len({line.index("yes") for line in lines if "yes" in line}) == 1
    shown = "".join("".join(lines).split())
    assert shown.count("measured") == 9 and shown.count("p" * 3) >= 10


def test_conclude_records_and_shows(tmp_path: Path) -> None:
    table = conclude([HOLDS, RECORDED], notebook="03_x", out_dir=tmp_path)
    assert Findings.load(tmp_path / "findings" / "03_x.json") == table
    assert list(table.to_frame()["holds"]) == [True, False]
    assert list(table.to_frame()["notebook"]) == ["03_x", "03_x"]
    assert str(table) == format_table(finding_rows([HOLDS, RECORDED]))


def test_conclude_as_html(tmp_path: Path) -> None:
    sly = Finding(
        "<b>x</b>", paper="1", ours="2", holds=True, command="make <it>", note="<i>note</i>"
    )
    text = conclude([sly], notebook="n", out_dir=tmp_path)._repr_html_()
    for shown in ("&lt;b&gt;x", "make &lt;it&gt;", "&lt;i&gt;note", "same conclusion?"):
        assert shown in text
    assert text.count("<tr>") == 2


def test_conclude_names_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match=r"1 of 2 conclusions .* 'C is better' \(ours: -1 %\)"):
        conclude([HOLDS, FAILS], notebook="03_x", out_dir=tmp_path)
    assert "C is better" in capsys.readouterr().out
    assert Findings.load(tmp_path / "findings" / "03_x.json").findings == (HOLDS, FAILS)


def test_conclude_refuses_a_surprise(tmp_path: Path) -> None:
    """A claim that is recorded as not reproduced, and now is: the record is out of date."""
    surprise = Finding(
        "D", paper="1", ours="1", holds=True, expected=False, command=COMMAND, note="w"
    )
    with pytest.raises(AssertionError, match="'D'"):
        conclude([surprise], notebook="n", out_dir=tmp_path)


def test_conclude_finds_its_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="notebook: expected the notebook's name"):
        conclude([HOLDS], out_dir=tmp_path)
    with pytest.raises(ValueError, match="notebook: expected the notebook's name"):
        conclude([HOLDS], notebook="../x", out_dir=tmp_path)
    monkeypatch.setenv("JPY_SESSION_NAME", "folder/04_y.ipynb")
    assert conclude([HOLDS], out_dir=tmp_path).notebook == "04_y"
    monkeypatch.setenv("EVITLAB_NOTEBOOK", "05_z")
    assert conclude([HOLDS], out_dir=tmp_path).notebook == "05_z"
    with pytest.raises(ValueError, match="expected '05_z', which is being run, got '00_tour'"):
        conclude([HOLDS], notebook="00_tour", out_dir=tmp_path)


def test_conclude_needs_findings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="findings: expected at least one"):
        conclude([], notebook="n", out_dir=tmp_path)


# The report


def report_of(*runs: NotebookRun, tmp_path: Path) -> Report:
    card = conclude([HOLDS], notebook="n", out_dir=tmp_path).environment
    return Report(scale="smoke", dataset="shapes", runs=runs, environment=card)


def test_report_counts_and_keeps(tmp_path: Path) -> None:
    report = report_of(
        NotebookRun("00_a", 65.2, (HOLDS, RECORDED)), NotebookRun("01_b", 3.0, (HOLDS,)),
        tmp_path=tmp_path,
    )  # fmt: skip
    assert report.ok
    assert report.verdict == (
        "OK: 2 of 3 conclusions the same as the paper's, 1 recorded as not reproduced, "
        "2 notebooks in 1 min 8 s"
    )
    lines = str(report).splitlines()
    assert lines[-1] == report.verdict
    assert lines.index("00_a (1 min 5 s)") < lines.index("01_b (3 s)")
    assert Report.load(report.save(tmp_path / "report.json")) == report
    assert list(report.to_frame()["notebook"]) == ["00_a", "00_a", "01_b"]


@pytest.mark.parametrize(
    "bad", [NotebookRun("01_b", 1.0, (), "cell 2: E: no"), NotebookRun("01_b", 1.0, (FAILS,))]
)
def test_report_fails(bad: NotebookRun, tmp_path: Path) -> None:
    report = report_of(NotebookRun("00_a", 1.0, (HOLDS,)), bad, tmp_path=tmp_path)
    assert not report.ok
    assert report.verdict.startswith("FAILED in 01_b: ")
    assert bad.error is None or f"ERROR {bad.error}" in str(report)


# The main job

Ran = tuple[Path, Report, str]

# Importing evitlab takes seconds, so only the first of these notebooks does.
CONCLUDE = """\
finding = evitlab.Finding("one is one", paper="1", ours="1", holds=True, command="make reproduce")
evitlab.conclude([finding])
"""


def concluded(notebook: str, finding: Finding, folder: Path) -> str:
    """A cell that leaves the record that `conclude` would."""
    try:
        conclude([finding], notebook=notebook, out_dir=folder)
    except AssertionError:
        pass  # written all the same
    source = folder / "findings" / f"{notebook}.json"
    return (
        "import os, pathlib, shutil\n"
        "out = pathlib.Path(os.environ['EVITLAB_FIGURES'], 'findings')\n"
        f"out.mkdir(exist_ok=True)\nshutil.copy({str(source)!r}, out) and None"
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """(folder, report, stdout) of four small notebooks, executed once."""
    folder = tmp_path_factory.mktemp("project")
    notebooks = folder / "notebooks"
    save_notebook(
        notebooks / "00_good.ipynb",
        "import os, sys, evitlab",
        "print(os.environ['EVITLAB_SCALE'], os.getcwd(), evitlab.__file__)",
        "print(sys.executable)",
        CONCLUDE,
    )
    save_notebook(notebooks / "01_raises.ipynb", "1 + 1", "1 / 0", "print('never')")
    save_notebook(
        notebooks / "02_differs.ipynb",
        concluded("02_differs", FAILS, folder / "elsewhere"),
        "assert False, 'not as expected'",
    )
    save_notebook(notebooks / "03_silent.ipynb", "1 + 1")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("EVITLAB_NOTEBOOK", "JPY_SESSION_NAME"):
            patch.delenv(name, raising=False)
        patch.setenv("EVITLAB_DATA", str(folder / "none"))
        patch.setenv("COLUMNS", "90")
        patch.chdir(folder)
        conclude([HOLDS], notebook="01_raises", out_dir="out")  # an earlier run's
        before = {path.name: path.read_text() for path in notebooks.iterdir()}
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            report = reproduce(scale="smoke", out_dir="out", notebooks="notebooks")
    assert before == {path.name: path.read_text() for path in notebooks.iterdir()}
    return folder, report, stdout.getvalue()


def test_reproduce_runs_all_and_gathers(ran: Ran) -> None:
    _, report, _ = ran
    assert [run.notebook for run in report.runs] == [
        "00_good", "01_raises", "02_differs", "03_silent"
    ]  # fmt: skip
    good, raises, differs, silent = report.runs
    assert good.ok and [finding.verdict for finding in good.findings] == ["yes"]
    assert raises.error == "cell 3: ZeroDivisionError: division by zero"
    assert raises.findings == (), "an earlier run's finding passed for this one's"
    assert [finding.verdict for finding in differs.findings] == ["NO"]
    assert differs.error == "cell 3: AssertionError: not as expected"
    assert silent.error == "it ended without evitlab.conclude([...])"
    assert report.scale == "smoke" and report.dataset == "embedded shapes"


def test_reproduce_ends_in_its_report(ran: Ran) -> None:
    _, report, stdout = ran
    lines = stdout.splitlines()
    assert lines[0] == (
        "4 notebooks, smoke scale, embedded shapes (the embedded default: no CIFAR-10 at hand)"
    )
    assert lines[-1] == report.verdict
    assert lines[-1].startswith("FAILED in 01_raises, 02_differs, 03_silent: 1 of 2 conclusions")
    assert any(line.split() == ["one", "is", "one", "1", "1", "yes"] for line in lines)
    assert any(line.split()[-1:] == ["NO"] for line in lines)
    assert max(map(len, lines[5:-1])) <= 90


def test_reproduce_keeps_executed_copies(ran: Ran) -> None:
    folder, _, _ = ran
    good = nbformat.read(folder / "out" / "notebooks" / "00_good.ipynb", as_version=4)
    environment, python = good.cells[2].outputs[0].text, good.cells[3].outputs[0].text
    assert environment.split()[0] == "smoke"
    assert environment.split()[1] == str(folder / "notebooks")
    assert environment.split()[2].endswith("evitlab/__init__.py")
    # The kernel is this Python, whatever kernel spec is installed; its folder is not written down.
    assert "python" in python and sys.prefix not in python
    assert good.cells[4].outputs[0].data["text/html"].startswith("<table>")
    raises = nbformat.read(folder / "out" / "notebooks" / "01_raises.ipynb", as_version=4)
    assert raises.cells[2].outputs[0].ename == "ZeroDivisionError"
    assert raises.cells[3].outputs == []


def test_saved_notebooks_run_again_to_the_same_file(tmp_path: Path) -> None:
    cell = concluded("00_good", HOLDS, tmp_path / "elsewhere")
    path = save_notebook(tmp_path / "nb" / "00_good.ipynb", "1 + 1", cell)
    texts = []
    for _ in range(2):
        report = reproduce(
            scale="smoke", out_dir=tmp_path / "out", notebooks=path, save_notebooks=True
        )
        assert report.ok
        texts.append(path.read_text())
    assert texts[0] == texts[1]
    notebook = json.loads(texts[0])
    assert [cell["id"] for cell in notebook["cells"]] == ["title", "code-0", "code-1"]
    assert notebook["cells"][1]["outputs"][0]["data"] == {"text/plain": ["2"]}
    assert [cell["metadata"] for cell in notebook["cells"]] == [{}, {}, {}]


def test_failed_notebook_is_not_saved(tmp_path: Path) -> None:
    path = save_notebook(tmp_path / "00_bad.ipynb", "1 / 0")
    before = path.read_text()
    reproduce(scale="smoke", out_dir=tmp_path / "out", notebooks=path, save_notebooks=True)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "quik"}, "scale: expected one of smoke, quick, got 'quik'; did you mean"),
        ({"notebooks": ["99_none"]}, "notebooks: expected one of .*got '99_none'"),
        ({"budget_min": 0}, "budget_min: expected a positive number of minutes, got 0"),
        ({"budget_min": float("nan")}, "budget_min: expected a positive number"),
        ({"notebooks": "."}, "notebooks: expected NN_name.ipynb files in ., got none"),
    ],
)
def test_reproduce_refuses(
    arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        reproduce(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_over_its_budget_failed(tmp_path: Path) -> None:
    cell = concluded("00_good", HOLDS, tmp_path / "elsewhere")
    path = save_notebook(tmp_path / "nb" / "00_good.ipynb", "import time; time.sleep(1.5)", cell)
    (run,) = reproduce(
        scale="smoke", out_dir=tmp_path / "out", notebooks=path, budget_min=1 / 60
    ).runs
    assert not run.ok and run.error is not None
    assert re.fullmatch(r"over its budget: .* s", run.error) and len(run.findings) == 1


def test_reproduce_refuses_an_unwritable_folder(tmp_path: Path) -> None:
    path = save_notebook(tmp_path / "00_a.ipynb", "1")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write here .*file"):
        reproduce(out_dir=tmp_path / "file" / "out", notebooks=path)


def test_broken_notebook_is_named(tmp_path: Path) -> None:
    (tmp_path / "00_a.ipynb").write_text("{")
    with pytest.raises(ValueError, match="00_a.ipynb: not a notebook"):
        reproduce(out_dir=tmp_path / "out", notebooks=tmp_path)


# The runner


def test_dead_kernel_is_an_error(tmp_path: Path) -> None:
    path = save_notebook(tmp_path / "00_a.ipynb", "import os; os._exit(3)")
    execution = run_notebook(path, environment={})
    assert execution.error is not None and "died" in execution.error.lower()


def test_interrupt_stops_kernel_and_program(tmp_path: Path) -> None:
    """Ctrl-C ends the main job; it does not pass for a failed notebook, and no kernel stays."""
    mark = tmp_path / "kernel.pid"
    source = f"import os, pathlib; pathlib.Path({str(mark)!r}).write_text(str(os.getpid()))"
    path = save_notebook(tmp_path / "00_a.ipynb", source, "import time; time.sleep(60)")

    def interrupt() -> None:
        while not (mark.is_file() and mark.read_text()):
            time.sleep(0.05)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    # A shell that starts tests in the background has them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run_notebook(path, environment={})
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_written_notebook_is_free_of_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVITLAB_DATA", "/srv/sets")
    home = str(Path.home())
    cell = new_code_cell("x", id="x", execution_count=1)
    cell.metadata = {"execution": {"iopub.status.busy": "2026-01-01"}, "tags": ["kept"]}
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "W()"}
    cell.outputs = [
        new_output("stream", name="stdout", text=f"/srv/sets/cifar10 {home}/x {home}-other\n"),
        new_output("stream", name="stderr", text="/tmp/ipykernel_12/345.py:1: UserWarning: w\n"),
        new_output("display_data", data=widget),
        new_output("display_data", data={**widget, "image/png": "aGk="}),
    ]
    notebook = new_notebook(cells=[cell], metadata={"widgets": {}, "language_info": {"name": "x"}})
    path = write_notebook(notebook, tmp_path / "n.ipynb")
    written = nbformat.read(path, as_version=4)
    assert dict(written.metadata) == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    (plain,) = written.cells
    assert dict(plain.metadata) == {"tags": ["kept"]}
    first, second, third = plain.outputs
    assert first.text == f"$EVITLAB_DATA/cifar10 ~/x {home}-other\n"
    assert second.text == "<cell>:1: UserWarning: w\n"
    assert dict(third.data) == {"image/png": "aGk="}


def test_images_of_data_sets_are_not_committed(tmp_path: Path) -> None:
    cell = new_code_cell("image_grid(images)", id="x", metadata={"tags": ["remove_output"]})
    cell.outputs = [new_output("display_data", data={"image/png": "aGk="})]
    notebook = new_notebook(cells=[cell])
    here = write_notebook(notebook, tmp_path / "here.ipynb")
    shared = write_notebook(notebook, tmp_path / "shared.ipynb", to_commit=True)
    assert len(nbformat.read(here, as_version=4).cells[0].outputs) == 1
    assert nbformat.read(shared, as_version=4).cells[0].outputs == []
    assert len(cell.outputs) == 1


def test_large_notebook_is_refused(tmp_path: Path) -> None:
    small, large = new_code_cell("1"), new_code_cell("2")
    picture = base64.b64encode(bytes(330_000)).decode()
    large.outputs = [new_output("display_data", data={"image/png": picture})]
    with pytest.raises(ValueError, match=r"at most 400 kB .* got 440 kB; the largest is cell 2"):
        write_notebook(new_notebook(cells=[small, large]), tmp_path / "n.ipynb")
    assert not (tmp_path / "n.ipynb").exists()


def test_terminal_width_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "64")
    wide = finding_rows([Finding("w" * 200, paper="1", ours="2", holds=True, command=COMMAND)])
    assert format_table(wide) == format_table(wide, width=64)
    assert format_table(wide) != format_table(wide, width=65)

"""`evitlab reproduce` at the mercy of its machine: no half file, and no kernel left behind."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import faults
import nbformat
import pytest

# One notebook with a figure, which must not be half there, and one after it.
DRAWS = """\
import pandas as pd
from evitlab.figures.style import house_style, new_figure, save_figure
with house_style():
    figure = new_figure(3, 2)
    figure.subplots().plot([1, 2, 4])
save_figure(figure, "fig1", pd.DataFrame({"x": [1, 2, 4]})) and None"""
CONCLUDES = """\
from evitlab.findings import Finding, conclude
conclude([Finding("one is one", paper="1", ours="1", holds=True, command="make reproduce")])"""


def notebook(*cells: str) -> str:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    for number, cell in enumerate(made.cells, start=1):
        cell.id = f"cell-{number}"
    return nbformat.writes(made)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "00_draws.ipynb").write_text(notebook(DRAWS, CONCLUDES), encoding="utf-8")
    (folder / "01_after.ipynb").write_text(notebook(CONCLUDES), encoding="utf-8")
    return ["reproduce", "--scale", "smoke", "--notebooks", str(folder), "--out"]


@pytest.fixture(scope="module")
def reference(
    command: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], float]:
    """What is there when nothing happens, and the seconds that it takes."""
    out = tmp_path_factory.mktemp("reference") / "out"
    began = time.monotonic()
    code, output = faults.run([*command, str(out)], out.with_name("log"))
    assert code == 0, output
    return results(out), time.monotonic() - began


def results(out: Path) -> dict[str, Any]:
    """Each file of a finished run, apart from times."""
    return {
        str(path.relative_to(out)): faults.read_untimed(path)
        if path.suffix == ".json"
        else path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.suffix != ".ipynb"  # they show the date
    }


def finish(command: list[str], out: Path, whole: dict[str, Any]) -> bool:
    code, output = faults.run([*command, str(out)], out.with_name("log"))
    assert code == 0 and output.count("ok,") == 2, output
    assert not faults.unreadable(out) and not faults.litter(out)
    return results(out) == whole


def test_kill_9_at_random(
    command: list[str],
    reference: tuple[dict[str, Any], float],
    tmp_path: Path,
    pytestconfig: pytest.Config,
    record_property: Any,
) -> None:
    """The kernel ends too, and what is there is whole; the same command does all of it again."""
    whole, seconds = reference
    tries = faults.tries(pytestconfig, quick=2, thorough=20)
    moments, kills = random.Random(8), 0
    equal: list[bool] = []
    while kills < tries:
        out = tmp_path / str(len(equal)) / "out"
        out.parent.mkdir()
        for _ in range(min(5, tries)):  # one upon the other
            begun = faults.Command([*command, str(out)], out.with_name("log"))
            begun.process.join(moments.uniform(0.2, 1) * seconds)
            kernels = faults.children(begun.process) if begun.process.is_alive() else []
            begun.process.kill()
            code = begun.wait()
            assert code in (0, -9), begun.output()
            faults.gone(kernels)
            assert not faults.unreadable(out)
            kills += code == -9
        equal.append(finish(command, out, whole))
    faults.note(
        record_property, "kill -9 at random", "reproduce", lost="this call", equal=equal,
        tries=kills,
    )  # fmt: skip


@pytest.mark.parametrize("given, code", [("SIGTERM", -15), ("SIGINT", 130)])
def test_asked_to_end(
    command: list[str],
    reference: tuple[dict[str, Any], float],
    tmp_path: Path,
    record_property: Any,
    given: str,
    code: int,
) -> None:
    out = tmp_path / "out"
    begun = faults.Command([*command, str(out)], tmp_path / "log")
    faults.wait_for(out / "fig1.png", begun.process)
    kernels = faults.children(begun.process)
    assert kernels
    begun.send(signal.Signals[given])
    assert begun.wait() == code, begun.output()
    faults.gone(kernels)
    assert not faults.unreadable(out)
    equal = [finish(command, out, reference[0])]
    faults.note(record_property, given, "reproduce", lost="this call", equal=equal)


def test_a_kernel_dies(
    command: list[str],
    reference: tuple[dict[str, Any], float],
    tmp_path: Path,
    record_property: Any,
) -> None:
    """As where memory runs out: that notebook failed, the one after it is executed."""
    out = tmp_path / "out"
    begun = faults.Command([*command, str(out)], tmp_path / "log")
    faults.wait_for(out / "fig1.png", begun.process)
    for kernel in faults.children(begun.process):
        kernel.kill()
    assert begun.wait() == 1
    assert "00_draws: FAILED" in begun.output() and "01_after: ok" in begun.output()
    assert "Kernel died" in begun.output() and "Traceback" not in begun.output(), begun.output()
    assert not faults.unreadable(out)
    equal = [finish(command, out, reference[0])]
    faults.note(
        record_property, "a kernel dies", "reproduce", lost="that notebook", equal=equal
    )


def test_two_at_once(
    command: list[str],
    reference: tuple[dict[str, Any], float],
    tmp_path: Path,
    record_property: Any,
) -> None:
    out = tmp_path / "out"
    first = faults.Command([*command, str(out)], tmp_path / "first.log")
    faults.wait_for(out / ".lock.json", first.process)
    code, output = faults.run([*command, str(out)], tmp_path / "second.log")
    line = output.strip().splitlines()[-1]
    assert code == 2 and "Traceback" not in output, output
    assert line.startswith(f"evitlab: error: {out} is in use by process {first.pid} on "), line
    assert "(evitlab reproduce --scale smoke)" in line
    assert first.wait() == 0, first.output()
    equal = [results(out) == reference[0]]
    faults.note(record_property, "two on one folder", "reproduce", lost="nothing", equal=equal)


def test_the_disk_is_full(
    command: list[str],
    reference: tuple[dict[str, Any], float],
    tmp_path: Path,
    record_property: Any,
) -> None:
    """For the figure, in the kernel: its notebook says so, and nothing half is left."""
    with faults.small_disk(tmp_path / "disk", kib=24) as disk:
        code, output = faults.run([*command, str(disk / "out")], tmp_path / "log")
        assert code in (1, 2) and "No space left on device" in output, output
        assert "Traceback" not in output
        assert not faults.unreadable(disk) and not faults.litter(disk)
        faults.remount(disk, "size=64m")
        code, output = faults.run([*command, str(disk / "out")], tmp_path / "log")
        assert code == 0, output
        equal = [results(disk / "out") == reference[0]]
    faults.note(record_property, "disk full", "reproduce", lost="this call", equal=equal)

"""`evitlab reproduce` at the mercy of its machine: no half file, and no kernel left behind."""

from __future__ import annotations

import random
import re
import signal
from pathlib import Path
from typing import Any

import faults
import nbformat
import pytest
from cases import slow
from PIL import Image

from evitlab.findings import Finding, conclude

# What `conclude` and `save_figure` would leave, without the seconds that they take to import.
CELL = """\
import os, pathlib, shutil
out = pathlib.Path(os.environ["EVITLAB_FIGURES"])
for file in sorted(pathlib.Path({source!r}).iterdir()):
    target = out / ("findings" if file.suffix == ".json" else "") / file.name
    target.parent.mkdir(exist_ok=True)
    half = target.with_name(f".{{file.name}}.01234567.tmp")
    shutil.copy(file, half)
    os.replace(half, target)"""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two notebooks, each of which leaves a picture and a finding that holds."""
    root = tmp_path_factory.mktemp("notebooks")
    holds = Finding("one is one", paper="1", ours="1", holds=True, command="make reproduce")
    for name in ("00_first", "01_second"):
        source = root / name
        conclude([holds], notebook=name, out_dir=source)
        (source / "findings" / f"{name}.json").rename(source / f"{name}.json")
        (source / "findings").rmdir()
        Image.effect_noise((160, 120), 50).save(source / f"{name}.png")
        cell = nbformat.v4.new_code_cell(CELL.format(source=str(source)), id="cell-1")
        made = nbformat.v4.new_notebook(cells=[cell])
        (root / f"{name}.ipynb").write_text(nbformat.writes(made), encoding="utf-8")
    return ["reproduce", "--scale", "smoke", "--notebooks", str(root), "--out"]


@pytest.fixture(scope="module")
def reference(
    command: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], float]:
    """What is there when nothing happens, and the seconds that it takes."""
    out = tmp_path_factory.mktemp("reference") / "out"
    _, seconds = faults.finished(command, out)
    return results(out), seconds


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
    faults.finished(command, out)
    assert out.with_name(f"{out.name}.log").read_text(encoding="utf-8").count("ok,") == 2
    assert not faults.unreadable(out) and not faults.litter(out)
    return results(out) == whole


@pytest.mark.parametrize(
    "given, code", [("SIGKILL", -9), slow("SIGTERM", -15), ("SIGINT", 130)]
)
def test_ended_in_every_way(
    command: list[str],
    reference: tuple[dict[str, Any], float],
    tmp_path: Path,
    pytestconfig: pytest.Config,
    record_property: Any,
    given: str,
    code: int,
) -> None:
    """One upon the other, on one folder: the kernels end too, and what is there is whole."""
    whole, seconds = reference
    tries = faults.tries(pytestconfig, quick=1, thorough=20 if given == "SIGKILL" else 5)
    moments = random.Random(8)
    out, log = tmp_path / "out", tmp_path / "log"
    cut, equal = 0, list[bool]()
    for number in range(1, tries + 1):
        begun = faults.Command([*command, str(out)], log)
        begun.process.join(moments.uniform(0.1, 0.8) * seconds)
        kernels = faults.children(begun.process) if begun.process.is_alive() else []
        if begun.process.is_alive():
            begun.send(signal.Signals[given])
        ended = begun.wait()
        assert ended in (code, 0), begun.output()
        cut += ended == code
        faults.gone(kernels)
        assert not faults.unreadable(out)
        if number % 5 == 0 or number == tries:
            equal.append(finish(command, out, whole))
    assert cut, "each was done before its end"
    faults.note(
        record_property, {"SIGKILL": "kill -9 at random"}.get(given, given), "reproduce",
        lost="this call", equal=equal, tries=cut,
    )  # fmt: skip


def test_a_kernel_dies(
    command: list[str],
    reference: tuple[dict[str, Any], float],
    tmp_path: Path,
    record_property: Any,
) -> None:
    """As where memory runs out: that notebook failed, the one after it is executed."""
    out = tmp_path / "out"
    begun = faults.Command([*command, str(out)], tmp_path / "log")
    faults.a_child(begun.process).kill()
    assert begun.wait() == 1
    assert "00_first: FAILED" in begun.output() and "01_second: ok" in begun.output()
    assert "Kernel died" in begun.output() and "Traceback" not in begun.output(), begun.output()
    assert not faults.unreadable(out)
    equal = [finish(command, out, reference[0])]
    faults.note(record_property, "a kernel dies", "reproduce", lost="that notebook", equal=equal)


def test_two_at_once(
    command: list[str],
    reference: tuple[dict[str, Any], float],
    tmp_path: Path,
    record_property: Any,
) -> None:
    out = tmp_path / "out"
    first = faults.Command([*command, str(out)], tmp_path / "first.log")
    faults.wait_for(out / ".lock-holder", first.process)
    with faults.stopped(first):
        code, output = faults.run([*command, str(out)], tmp_path / "second.log")
    line = faults.one_line(output)
    assert code == 2 and line.startswith(first.refuses(out)), line
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
    """For a picture, in the kernel: its notebook says so, and nothing half is taken for it."""
    with faults.small_disk(tmp_path / "disk", kib=28) as disk:
        code, output = faults.run([*command, str(disk / "out")], tmp_path / "log")
        assert code in (1, 2) and "No space left on device" in output, output
        # No traceback of ours; a kernel that ends may log one of its own.
        assert not re.search(r'File ".*evitlab/', output), output
        assert not faults.unreadable(disk)
        faults.remount(disk, "size=64m")
        faults.finished(command, disk / "out")
        equal = [results(disk / "out") == reference[0]]
    faults.note(record_property, "disk full", "reproduce", lost="this call", equal=equal)

"""The README says what is true: its links lead somewhere, its numbers are the records'.

Its code is carried out by test_docs_python.py and test_docs_commands.py.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evitlab.records import DeployRatios, TrainingRecord
from evitlab.resources import data_dir

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDED = (data_dir() / "results" / "README.md").read_text(encoding="utf-8")
DEPLOY = data_dir() / "results" / "deploy.json"
FINDINGS = " ".join(
    f"{finding['claim']} {finding['paper']} {finding['ours']} {finding['note']}"
    for path in sorted((ROOT / "figures" / "findings").glob("*.json"))
    for finding in json.loads(path.read_text(encoding="utf-8"))["findings"]
).replace("%", " %").replace("  %", " %")
RECORDS = sorted((data_dir() / "results").glob("efficientvit_*.json"))  # training runs


def row_of(path: Path) -> str:
    """The table row that data/results/README.md must hold for a recorded run."""
    record = TrainingRecord.load(path)
    where = record.environment.hardware
    return (
        f"| `{record.model}` | {record.dataset}, {record.img_size[0]} px | {len(record.history)} | "
        f"{where} | {record.final.top1:.2f} % | `{path.name}` |"
    )


def ratios_of(record: DeployRatios) -> list[str]:
    """The table rows that it must hold for the recorded deploy ratios."""
    columns = (
        ("deploy", "eager", 1),
        ("deploy", "folded", 1),
        ("onnxruntime", "exported", 1),
        ("onnxruntime", "exported", 16),
    )
    ratios = {(row.model, row.engine, row.peer, row.batch_size): row.ratio for row in record.rows}
    rows = []
    for model in dict.fromkeys(row.model for row in record.rows):
        cells = " | ".join(f"{ratios[model, *column]:.2f}×" for column in columns)
        rows.append(f"| `{model}` | {cells} |")
    return rows


def table_of(name: str) -> list[dict[str, Any]]:
    """The rows that `make faults` or `make hostile` recorded."""
    path = data_dir() / "results" / f"{name}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def total(rows: list[dict[str, Any]], column: str, beginning: str = "") -> int:
    """The sum of a column, over the rows whose first cell begins so."""
    return sum(row[column] for row in rows if next(iter(row.values())).startswith(beginning))


def withstands() -> list[str]:
    """The two items that the README must hold."""
    faults, hostile = table_of("faults"), table_of("hostile_input")
    ended = [row["resumed equal"].split(" of ") for row in faults]
    equal, resumed = (sum(int(row[i]) for row in ended) for i in (0, 1))
    return [
        f"- `make faults` did harm to running commands {total(faults, 'tries')} times: "
        f"{total(faults, 'tries', 'kill')} kills, full and read-only disks, no memory, dead "
        "workers, a clock that goes backwards, two commands on one folder. Of "
        f"{total(faults, 'files read'):,} files read afterwards {total(faults, 'corrupt files')} "
        f"were corrupt, and {equal} of {resumed} runs that went on came to what undisturbed ones "
        "come to, bit for bit; training lost an epoch at most.",
        f"- `make hostile` fed {total(hostile, 'inputs tried'):,} inputs to the readers, "
        f"{total(hostile, 'inputs tried', 'fuzzed'):,} of them made by a fuzzer: "
        f"{total(hostile, 'crashes')} crashes, code executed {total(hostile, 'code executed')} "
        f"times, {total(hostile, 'files outside')} files written outside the target.",
    ]  # fmt: skip


def rows_in_words(name: str) -> list[str]:
    """A recorded table as Markdown, which data/results/README.md must hold."""
    rows = table_of(name)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = (f"{value:,}" if isinstance(value, int) else value for value in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def test_every_linked_file_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_picture_opens_and_has_words():
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
    assert "figures/explorer.png" in [target for _, target in pictures]
    for text, target in pictures:
        assert text, target
        with Image.open(ROOT / target) as picture:
            picture.verify()


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_every_recorded_run_stands_in_the_table(path):
    assert row_of(path) in RECORDED, f"expected the row\n{row_of(path)}"


def test_deploy_ratios_are_the_recorded_ones():
    record = DeployRatios.load(DEPLOY)
    assert record.environment.hardware in RECORDED
    for row in ratios_of(record):
        assert row in RECORDED, f"expected the row\n{row}"


def test_deploy_sentence_is_of_the_recorded_ratios() -> None:
    """The README's ranges are the ends of the recorded columns."""
    rows = [row.split("|")[2:6] for row in ratios_of(DeployRatios.load(DEPLOY))]
    built, folded, runtime = (
        [float(row[column].strip(" ×")) for row in rows] for column in range(3)
    )
    assert f"{built[0]:.2f} (M0) to {built[-1]:.2f} (M5) times as fast as timm's as built" in README
    assert f"{folded[0]:.2f} to {folded[-1]:.2f} times as fast as timm's folded" in README
    assert f"{min(runtime):.2f} to {max(runtime):.2f} times in ONNX Runtime" in README


CELLS = re.findall(r"<td .*?</td>", README, flags=re.DOTALL)


@pytest.mark.parametrize("cell", CELLS, ids=re.findall(r'href="figures/(\w+)', "".join(CELLS)))
def test_gallery_shows_the_findings(cell: str) -> None:
    """Each picture is there with words, and each number beside it stands in a finding."""
    links = re.findall(r'(?:href|src)="([^"]+)"', cell)
    assert len(links) == 2 and len(set(links)) == 1 and re.search(r'alt="[^"]{20,}"', cell)
    with Image.open(ROOT / links[0]) as picture:
        picture.verify()
    caption = html.unescape(re.sub(r"<[^>]+>", " ", cell))
    assert re.search(r"<b>(Reproduced|Not reproduced)[^<]*</b></td>", cell)
    text = caption.partition(", ")[2].replace("−", "-").replace("\xa0", " ")
    for number in re.findall(r"[-+]?\d+(?:\.\d+)?(?: of \d+)?(?: %)?", text):
        assert number in FINDINGS, f"{number}: in no finding of figures/findings"


def test_what_it_withstands_is_what_was_recorded() -> None:
    for item in withstands():
        assert item in README, f"expected\n{item}"


@pytest.mark.parametrize("name", ["faults", "hostile_input"])
def test_tables_of_harm_are_the_recorded_ones(name: str) -> None:
    assert "\n".join(rows_in_words(name)) in RECORDED

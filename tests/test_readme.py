"""The README says what is true: its example runs, its commands exist, its numbers are records'."""

import re
from pathlib import Path

import pytest
from PIL import Image

from evitlab.cli import main
from evitlab.records import DeployRatios, TrainingRecord
from evitlab.resources import data_dir

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDS = sorted((data_dir() / "results").glob("efficientvit_*.json"))  # training runs


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def row_of(path: Path) -> str:
    """The table row that the README must hold for a recorded run."""
    record = TrainingRecord.load(path)
    where = record.environment.hardware
    return (
        f"| `{record.model}` | {record.dataset}, {record.img_size[0]} px | {len(record.history)} | "
        f"{where} | {record.final.top1:.2f} % | `data/results/{path.name}` |"
    )


def ratios_of(record: DeployRatios) -> list[str]:
    """The table rows that the README must hold for the recorded deploy ratios."""
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


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    assert "8.80 M parameters, 299 M MACs" in capsys.readouterr().out
    assert (tmp_path / "block.png").stat().st_size > 10_000


def test_every_python_block_is_python():
    for block in blocks("python"):
        compile(block, "README.md", "exec")


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^evitlab (\w+)", README, re.M))))
def test_every_command_exists(command):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0


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
    assert row_of(path) in README, f"expected the row\n{row_of(path)}"


def test_deploy_ratios_are_the_recorded_ones():
    record = DeployRatios.load(data_dir() / "results" / "deploy.json")
    assert record.environment.hardware in README
    for row in ratios_of(record):
        assert row in README, f"expected the row\n{row}"

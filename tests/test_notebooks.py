"""What holds for every notebook as text; nothing is executed here.

`test_layout` holds what a committed, executed one must be: the public API alone, size, order of
execution, no error, no folder of one machine.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 8  # lines with something on them; the first cell has the imports on top

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> NotebookNode:
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    return notebook


def code_cells(path: Path) -> list[NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def test_there_are_notebooks() -> None:
    names = [path.stem for path in NOTEBOOKS]
    expected = (
        "00_tour 01_memory_access 02_attention_share 03_head_similarity 04_channel_importance "
        "05_building_block 06_train_the_family 07_speed_and_accuracy 08_transfer "
        "10_attention_explorer"
    )
    assert set(expected.split()) <= set(names)
    assert all(re.fullmatch(r"\d\d_[a-z_]+", name) for name in names)
    assert len({name[:2] for name in names}) == len(names), "two notebooks share a number"


@every_notebook
def test_format(path: Path) -> None:
    notebook = read(path)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        assert cell.source.strip(), f"{cell.id} is empty"
        assert set(cell.metadata) <= {"tags"}, f"{cell.id} carries {sorted(cell.metadata)}"


@every_notebook
def test_first_cells_say_what_it_is_and_what_it_runs_with(path: Path) -> None:
    title, first = read(path).cells[:2]
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    assert first.cell_type == "code" and "import evitlab" in first.source
    assert 'SCALE = os.environ.get("EVITLAB_SCALE", "quick")' in first.source
    for said in ("evitlab.__version__", "card.torch", "card.hardware", "{SCALE} scale"):
        assert said in first.source, f"the first cell does not print {said}"
    assert f"--notebooks {path.stem[:2]}" in first.source, "its command runs another notebook"


@every_notebook
def test_cells_are_short_and_import_nothing_after_the_first(path: Path) -> None:
    for number, cell in enumerate(code_cells(path)):
        tree = ast.parse(cell.source)
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert number == 0 or not imports, f"{cell.id} imports {ast.unparse(imports[0])}"
        lines = [line for line in cell.source.splitlines() if line.strip()]
        allowed = LONGEST_CELL + len(imports)
        assert len(lines) <= allowed, f"{cell.id} has {len(lines)} lines:\n{cell.source}"


@every_notebook
def test_steps_are_explained(path: Path) -> None:
    """A heading opens each step, and no reader meets many code cells without a word between."""
    kinds = "".join(cell.cell_type[0] for cell in read(path).cells)  # "mcmcc…"
    assert "c" * 5 not in kinds
    headings = [
        line
        for cell in read(path).cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#")
    ]
    assert sum(line.startswith("# ") for line in headings) == 1
    assert len(headings) >= 4 and len(set(headings)) == len(headings)


@every_notebook
def test_links_lead_somewhere(path: Path) -> None:
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#:]+)\)", cell.source):
                assert (path.parent / target).exists(), f"{cell.id} links to {target}"


@every_notebook
def test_every_figure_is_saved_under_a_name_of_its_own(path: Path) -> None:
    """So `evitlab reproduce` regenerates it; an `image_grid` may show what is not ours to keep."""
    text = "\n".join(cell.source for cell in code_cells(path))
    drawn = set(re.findall(r"evitlab\.figures\.(?!save_figure\b|image_grid\b)(\w+)\(", text))
    saved = re.findall(r"save_figure\(\w+, \"(\w+)\"", text)
    assert len(saved) >= len(drawn) and len(set(saved)) == len(saved)
    for cell in code_cells(path):
        if "image_grid(" in cell.source:
            kept_back = "remove_output" in cell.metadata.get("tags", [])
            assert kept_back != ("save_figure(" in cell.source), cell.id


@every_notebook
def test_pictures_of_real_data_sets_are_not_committed(path: Path) -> None:
    """They are not ours to pass on: such a cell is tagged, and committed without its output."""
    for cell in code_cells(path):
        if "remove_output" in cell.metadata.get("tags", []):
            assert not cell.outputs, f"{cell.id}: shows images of a data set"


@every_notebook
def test_ends_in_its_conclusions(path: Path) -> None:
    *before, last = code_cells(path)
    assert read(path).cells[-1].cell_type == "code"
    call = ast.parse(last.source).body[-1]
    assert isinstance(call, ast.Expr) and ast.unparse(call.value).startswith("evitlab.conclude(")
    assert f'notebook="{path.stem}"' in last.source
    findings = "\n".join(cell.source for cell in before).count("evitlab.Finding(")
    assert findings >= 3, f"{findings} findings"

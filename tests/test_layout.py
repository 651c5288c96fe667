"""Which way imports may run, what `import evitlab` brings along, and what a notebook may be."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

import evitlab

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "evitlab").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# By first part below evitlab: the only others it may import, beside `wording`, which is everyone's;
# a part that is not here may import all but the entries of NOWHERE.
ALLOWED = {
    "resources": set(),
    "schema": set(),
    "wording": set(),
    "records": {"schema", "resources"},
    "paper": {"resources", "datasets"},  # what the data sets are called
    "models": {"resources"},  # nothing but itself, and where data/checkpoints lies
    "analysis": {"datasets", "models", "records", "training"},
    "figures": {"records", "paper", "resources"},
    "findings": {"records", "resources"},
    "explorer": {"analysis", "figures", "models", "datasets", "records"},
}
NOWHERE = {"cli", "explorer", "__main__"}
HEAVY = {
    "matplotlib", "seaborn", "captum", "ipywidgets", "anywidget", "IPython", "nbclient",
    "jupyterlab",
}  # fmt: skip


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """ "models" for "evitlab.models.zoo"; "" for evitlab itself."""
    return module.partition(".")[2].partition(".")[0]


def imports(path: Path, *, at_import_time: bool) -> Iterator[str]:
    """Modules that a file imports, except for types only; or only those it cannot load without."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if at_import_time and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            yield child
            yield from walk(child)

    known = {name_of(module) for module in MODULES}
    for node in walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: imports are absolute here"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    own = part_of(name_of(path))
    for module in imports(path, at_import_time=False):
        if module.partition(".")[0] != "evitlab":
            continue
        other = part_of(module)
        if other == own:
            continue
        assert other, f"{name_of(path)} imports all of evitlab: name the module"
        if own in ALLOWED:
            allowed = ", ".join(sorted(ALLOWED[own])) or "nothing else of evitlab"
            said = f"evitlab.{own} imports {module}; it may: {allowed}"
            assert other in ALLOWED[own] | {"wording"}, said
        elif own not in ("", "cli", "__main__"):
            assert other not in NOWHERE, f"evitlab.{own} imports {module}"


def test_figures_do_not_compute() -> None:
    """They draw records: no tensor library, no model."""
    for path in (ROOT / "evitlab" / "figures").rglob("*.py"):
        heavy = {module.partition(".")[0] for module in imports(path, at_import_time=False)}
        assert not heavy & {"torch", "timm", "torchvision", "captum"}, path.name


def test_only_capture_hooks_into_a_model() -> None:
    """Its context manager, and `probe`'s, take every hook off again; `structure` hooks into a copy
    of its own, and `parts` into no module: torch's global hooks, also gone with its manager."""
    for path in (ROOT / "evitlab" / "analysis").rglob("*.py"):
        if path.name not in ("capture.py", "probe.py", "structure.py", "parts.py"):
            hooks = re.findall(r"\bregister_\w*hook\w*\(", path.read_text(encoding="utf-8"))
            assert not hooks, f"{path.name}: {hooks[0]}"


def test_modules_load_in_one_order() -> None:
    """No two modules need each other in order to load."""
    graph = {
        name_of(path): {
            module
            for module in imports(path, at_import_time=True)
            if module.startswith("evitlab.") and module != name_of(path)
        }
        for path in MODULES
    }
    TopologicalSorter(graph).prepare()  # CycleError names the modules


def test_import_brings_no_heavy_library() -> None:
    script = f"import sys, evitlab; print(*sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert result.stdout.split() == []


def test_public_api_is_alphabetical_and_there() -> None:
    assert evitlab.__all__ == sorted(evitlab.__all__)
    for name in evitlab.__all__:
        assert getattr(evitlab, name) is not None


def test_names_load_on_first_use() -> None:
    """From where the type checker sees them come from; completion offers them before that."""
    stub = Path(evitlab.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    seen = {
        alias.name: f"{node.module}.{alias.name}"
        for node in ast.parse(stub).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    del seen["__version__"]
    where = {name: f"evitlab.{module}.{name}" for name, module in vars(evitlab)["_WHERE"].items()}
    assert seen == where | {name: f"evitlab.{name}" for name in vars(evitlab)["_MODULES"]}
    script = "import sys, evitlab; print(*sys.modules); print(*dir(evitlab))"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    loaded, offered = map(str.split, result.stdout.splitlines())
    assert not {"torch", "timm", "pandas"} & set(loaded)
    assert set(evitlab.__all__) <= set(offered)


def code_of(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE) for source in sources]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_uses_the_public_api(notebook: Path) -> None:
    for number, source in enumerate(code_of(notebook)):
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert number == 0, f"imports belong into the first cell: {ast.unparse(node)}"
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("evitlab.") for alias in node.names)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("evitlab"):
                assert node.module == "evitlab", f"not public: {ast.unparse(node)}"
                assert {alias.name for alias in node.names} <= set(evitlab.__all__)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "evitlab":
                assert node.attr in (*evitlab.__all__, "__version__"), f"evitlab.{node.attr}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_as_it_ran(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")
    assert len(text.encode()) <= 400_000, f"{len(text.encode())} bytes"
    cells: list[dict[str, Any]] = json.loads(text)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"])]
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1)), "run `make notebooks`: cells ran out of order"
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error", output.get("evalue")
    assert "conclude(" in "".join(code[-1]["source"]), "a notebook ends in its conclusions"
    found = re.search(r"(?<![\w.:/<])(/(home|root|Users|tmp|mnt|opt|work)/|[A-Z]:\\\\)\S+", text)
    assert not found, f"a folder of one machine: {found and found[0][:80]}"

"""What other systems would trip over, read from the code: encodings, file names, POSIX alone."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from readme_text import ROOT

MODULES = sorted((ROOT / "evitlab").rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))
POSIX_MODULES = {"fcntl", "grp", "pwd", "resource", "termios", "pty", "tty"}
POSIX_NAMES = {"os.fork", "os.geteuid", "os.getuid", "os.killpg", "os.mkfifo", "os.setsid",
               "signal.SIGKILL", "signal.SIGHUP", "signal.SIGALRM"}  # fmt: skip
RESERVED = {"con", "prn", "aux", "nul", *(f"{p}{n}" for p in ("com", "lpt") for n in range(1, 10))}


def calls(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def without_encoding(call: ast.Call) -> bool:
    """Whether a call opens a text file in whatever encoding the machine has."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg for keyword in call.keywords}
    if "encoding" in given or None in given:
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) <= (name == "write_text")
    if name not in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile"):
        return False
    own = isinstance(call.func, ast.Attribute) and not (
        isinstance(call.func.value, ast.Name) and call.func.value.id in ("os", "io", "tempfile")
    )
    # Path.open(mode) and open(file, mode); others' `open` (an archive's) take no text mode.
    position = 0 if own or name.endswith("TemporaryFile") else 1
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes = modes or call.args[position : position + 1]
    mode = modes[0].value if modes and isinstance(modes[0], ast.Constant) else None
    if mode is None:  # text by default where it is Python's own open()
        return name == "open" and isinstance(call.func, ast.Name) and not modes
    return isinstance(mode, str) and re.fullmatch(r"[rwxat+]+", mode) is not None


def test_text_has_an_encoding() -> None:
    """Windows reads and writes text in another one than UTF-8 where none is named."""
    missing = [
        f"{path.name}:{call.lineno}"
        for path in MODULES
        for call in calls(path)
        if without_encoding(call)
    ]
    assert not missing, f"encoding='utf-8' is missing: {missing}"


def test_nothing_of_posix_alone() -> None:
    """Except behind a question: `hasattr`, `getattr`, `os.name`, an import that may fail."""
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        for node in tree.body:  # what is imported with the module
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not POSIX_MODULES & set(names), f"{path.name}:{node.lineno}: {names}"
        if re.search(r"(has|get)attr\((os|signal)|os\.name|sys\.platform", text):
            continue
        for part in ast.walk(tree):
            if isinstance(part, ast.Attribute) and ast.unparse(part) in POSIX_NAMES:
                raise AssertionError(f"{path.name}:{part.lineno}: {ast.unparse(part)} is POSIX's")


def committed() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.rstrip("\0").split("\0")


def test_committed_names_are_names_everywhere() -> None:
    """No two differ in case alone, and Windows takes each of them."""
    paths = committed()
    twice = [path for path, count in Counter(map(str.casefold, paths)).items() if count > 1]
    assert not twice, f"alike where case does not count: {twice}"
    for path in paths:
        assert len(path) <= 150, f"too long below a folder of Windows: {path}"
        for part in path.split("/"):
            assert not re.search(r'[<>:"\\|?*\x00-\x1f]|[ .]$', part), path
            assert part.partition(".")[0].casefold() not in RESERVED, path


def test_written_names_are_names_everywhere() -> None:
    """No time of day with colons, and no name of a run or model that Windows refuses."""
    for path in MODULES:
        for call in calls(path):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "strftime":
                assert "%H:%M" not in ast.unparse(call), f"{path.name}:{call.lineno}"
    from evitlab import list_models
    from evitlab.studies import STUDIES

    names = [*list_models(), *STUDIES]
    names += [run.name for study in STUDIES.values() for run in study.runs("lab")]
    for name in names:
        assert re.fullmatch(r"[\w.-]+", name) and name.casefold() not in RESERVED, name
    assert len({name.casefold() for name in names}) == len(set(names))


def test_lines_end_alike() -> None:
    """In LF, also in a checkout on Windows: the tests compare bytes."""
    assert "text=auto" in (ROOT / ".gitattributes").read_text(encoding="utf-8")
    for path in (*MODULES, *TESTS, ROOT / "README.md", ROOT / "Makefile"):
        assert b"\r" not in path.read_bytes(), path.name

"""Results do not depend on the locale, the time zone, the working directory or the hash seed.

Two processes do the same small things, one as usual and one as inconveniently as can be: a locale
with a decimal comma and Turkish letters (or C, where none can be made), text that is ASCII unless
said otherwise, an eastern time zone, a folder with a space and an accent, another seed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # two processes that import everything

TESTS = Path(__file__).parent
# What an own program does on purpose, and what one does that a library (a GUI, say) asked to.
SCRIPT = """
import contextlib, io, json, locale, sys
from pathlib import Path

with contextlib.suppress(locale.Error):
    locale.setlocale(locale.LC_ALL, "")
sys.path.insert(0, sys.argv[1])
import evitlab
from analyses import Subject, plain
from evitlab import figures
from evitlab.cli import main
from small_runs import plain_net, recipe, shapes

out = Path("made")
record = evitlab.head_similarity(Subject("deit").model, Subject("deit").images)
record.save(out / "heads.json")
assert type(record).load(out / "heads.json") == record
figure = figures.head_maps(record)
figures.save_figure(figure, "maps", record.pairs(), out_dir=out)
(out / "channels.csv").write_bytes(
    evitlab.channel_importance(Subject("deit").model, Subject("deit").batch)
    .to_frame().to_csv(index=False, lineterminator="\\n").encode()
)
evitlab.train(plain_net(), shapes(16), shapes(8, "val"), recipe(epochs=1), out_dir=out / "run",
              device="cpu")
for name, words in {
    "models": ["models", "efficientvit_m0*"],
    "help": ["train", "--help"],
    "wrong": ["train", "efficientvit_m0", "--data", "nowhere/\u00e4", "--out", "run"],
}.items():
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(words)
        except SystemExit as ended:
            code = ended.code
    (out / f"{name}.txt").write_bytes(f"{code}\\n{said.getvalue()}".encode())
main(["models", "efficientvit_m0*"])  # into whatever encoding this process prints in
"""
# They say when, how fast and where, and the checkpoint holds the record.
TIMES = re.compile(r'"(date|seconds|img_per_s|git_commit)": ("[^"]*"|[-0-9.e+]+)')
NOT_COMPARED = {"last.pt", "before-last.pt"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("everywhere")
    locales, name = _decimal_comma(root)
    usual = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0"}
    unusual = {
        "LC_ALL": name, "LANGUAGE": name, "TZ": "Asia/Kolkata", "PYTHONHASHSEED": "12345",
        "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii", **locales,
    }  # fmt: skip
    made = {}
    for kind, settings in (("usual", usual), ("un usu\u00e4l", unusual)):
        folder = root / kind
        folder.mkdir()
        environment = {key: value for key, value in os.environ.items() if key[:3] != "LC_"}
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(TESTS)], cwd=folder, capture_output=True,
            env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "90", **settings}, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr.decode(errors="replace")[-3000:]
        made["usual" if kind == "usual" else "unusual"] = folder / "made"
    return made


def _decimal_comma(root: Path) -> tuple[dict[str, str], str]:
    """A locale that writes 0,5: where to find it, and its name; C, where none can be made."""
    if shutil.which("localedef") and Path("/usr/share/i18n/locales/tr_TR").is_file():
        folder = root / "locales"
        folder.mkdir()
        made = subprocess.run(
            ["localedef", "-i", "tr_TR", "-f", "UTF-8", str(folder / "tr_TR.UTF-8")],
            capture_output=True, check=False,
        )  # fmt: skip
        if made.returncode == 0:
            return {"LOCPATH": str(folder)}, "tr_TR.UTF-8"
    return {}, "C"


def _content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in NOT_COMPARED
    }


def test_every_file_is_the_same(folders: dict[str, Path]) -> None:
    """Byte by byte, apart from times."""
    usual, unusual = (_content(folders[kind]) for kind in ("usual", "unusual"))
    assert set(usual) == set(unusual)
    kinds = {Path(name).suffix for name in usual}
    assert {".json", ".csv", ".png", ".svg", ".txt", ".safetensors"} <= kinds
    for name, data in usual.items():
        if name.endswith(".json"):
            ours, theirs = (TIMES.sub("", d.decode()) for d in (data, unusual[name]))
            assert ours == theirs, name
        elif Path(name).parts[0] == "run" and name.endswith((".png", ".svg")):
            continue  # its curves say how fast the run was
        else:
            assert data == unusual[name], name


def test_dates_are_utc_and_iso(folders: dict[str, Path]) -> None:
    """Kolkata is five and a half hours ahead."""
    for folder in folders.values():
        card: dict[str, Any] = json.loads((folder / "heads.json").read_text("utf-8"))["environment"]
        made = datetime.fromisoformat(card["date"])
        assert made.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - made) < timedelta(hours=1), card["date"]


def test_a_mistake_is_one_line_in_any_locale(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        code, line = (folder / "wrong.txt").read_text("utf-8").splitlines()
        assert code == "2" and "nowhere/\u00e4" in line

"""`evitlab explore` up to the server: the notebook that it writes, and what it refuses."""

from __future__ import annotations

import ast
import gc
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browser import answers, at_home_in, free_port, running, wait_until
from cases import slow
from PIL import Image

from evitlab import serving
from evitlab.cli import explore, main
from evitlab.explorer.subject import Subject
from evitlab.models.zoo import create_model
from evitlab.training.checkpoint import save_weights

SMALL = "efficientvit_m0_cifar10"


class Served:
    """What would have been served."""

    command: list[str]
    file: Path
    notebook: nbformat.NotebookNode

    @property
    def code(self) -> str:
        return str(self.notebook.cells[-1].source)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """Stands in for the server: keeps what it is asked to serve."""
    kept = Served()

    def serve(command: list[str]) -> int:
        kept.command = command
        kept.file = next(Path(word) for word in command if word.endswith(".ipynb"))
        kept.notebook = nbformat.read(kept.file, as_version=4)
        return 0

    monkeypatch.setattr(serving, "serve", serve)
    return kept


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one picture; its parent is the working directory."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    monkeypatch.chdir(tmp_path)
    return folder


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that is refused."""
    assert main(["explore", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("evitlab: error: ")


def test_notebook(served: Served, pictures: Path) -> None:
    assert main(["explore", SMALL, "--images", "pictures"]) == 0
    nbformat.validate(served.notebook)
    guide, first, _ = served.notebook.cells
    assert guide.cell_type == "markdown" and "Run All Cells" in guide.source
    page = serving.explorer_notebook({SMALL: SMALL}, "embedded", app=True)
    assert "Run" not in page.cells[0].source and "Click a patch" in page.cells[0].source
    assert "import evitlab" in first.source
    assert f"os.chdir({str(pictures.parent)!r})" in first.source  # where views are saved
    assert served.code.splitlines() == [
        f"explorer = evitlab.AttentionExplorer({SMALL!r}, {str(pictures)!r})",
        "explorer",
    ]
    assert not served.file.parent.exists(), "the folder made for it is still there"


def test_notebook_with_two_models_of_which_one_is_a_file(served: Served, pictures: Path) -> None:
    file = pictures.parent / "mine.safetensors"
    save_weights(create_model("efficientvit_m0_p4", img_size=32, num_classes=3), file)
    assert main(["explore", "mine.safetensors", "--compare", SMALL]) == 0
    models = {"mine.safetensors": str(file), SMALL: SMALL}
    assert served.code.splitlines() == [
        f"models = {models!r}",
        "explorer = evitlab.AttentionExplorer(models, 'embedded')",
        f"explorer.select(compare={SMALL!r})",
        "explorer",
    ]


def test_notebook_with_weights(served: Served, pictures: Path) -> None:
    model = create_model("efficientvit_m0_p4", img_size=32, num_classes=3)
    save_weights(model, pictures.parent / "m0.safetensors")
    with pytest.raises(ValueError, match="weights: expected a model that is given by its name"):
        main(["--debug", "explore", SMALL, "--weights", "m0.safetensors"])
    notebook = serving.explorer_notebook({"a": "a"}, "embedded", weights="hub")
    (call,) = [
        node for node in ast.walk(ast.parse(notebook.cells[-1].source))
        if isinstance(node, ast.Call)
    ]  # fmt: skip
    assert ast.unparse(call) == "evitlab.AttentionExplorer('a', 'embedded', weights='hub')"


def test_a_folder_called_like_a_model_is_not_the_model(
    served: Served, pictures: Path
) -> None:
    (pictures.parent / "efficientvit_m0").mkdir()
    assert main(["explore", "efficientvit_m0", "--images", "pictures"]) == 0
    assert "AttentionExplorer('efficientvit_m0', " in served.code


def test_defaults_are_at_hand(served: Served) -> None:
    assert main(["explore"]) == 0
    assert f"AttentionExplorer({explore.DEFAULT_MODEL!r}, 'embedded')" in served.code


def test_notebook_is_kept_and_never_overwritten(
    served: Served, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pictures.parent / "mine.ipynb"
    assert main(["explore", SMALL, "--notebook", "mine.ipynb"]) == 0
    assert "os.chdir" not in file.read_text()  # views are saved beside it
    file.write_text("changed by its reader")
    capsys.readouterr()
    said = mistake(capsys, SMALL, "--notebook", "mine.ipynb")
    assert said.startswith("notebook: 'mine.ipynb' exists and is not overwritten")
    assert file.read_text() == "changed by its reader"
    assert "ends in .ipynb, got 'mine.txt'" in mistake(capsys, "--notebook", "mine.txt")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["efficientvit_m9"], "model: expected one of our own or timm's models, got 'efficientvi"),
        (["resnet18"], "model: expected"),
        (["nowhere/run"], "nowhere/run"),
        ([SMALL, "--images", "nowhere/pictures"], "nowhere/pictures"),
        ([SMALL, "--images", "empty"], "expected a folder with pictures"),
        ([SMALL, "--compare", "efficientvit_m9"], "got 'efficientvit_m9'"),
        ([SMALL, "--compare", SMALL], "--compare: expected another model than"),
        (["--port", "0"], "port: expected 1 to 65535, got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_come_before_the_server(
    arguments: list[str], said: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures.parent / "empty").mkdir()
    assert said in mistake(capsys, *arguments)


def test_the_second_model_is_looked_through_too(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Subject.look

    def refuse(subject: Subject, *given: Any) -> Any:
        if subject.name == "efficientvit_m0_p4":
            raise ValueError("model: expected tokens on a grid, found none")
        return look(subject, *given)

    monkeypatch.setattr(Subject, "look", refuse)
    chosen = [SMALL, "--images", "pictures", "--compare", "efficientvit_m0_p4"]
    assert "expected tokens on a grid" in mistake(capsys, *chosen)


def test_models_are_not_kept_beside_the_server(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[weakref.ref[Subject]] = []
    build = Subject.__init__

    def remember(subject: Subject, *given: Any, **named: Any) -> None:
        opened.append(weakref.ref(subject))
        build(subject, *given, **named)

    def serve(command: list[str]) -> int:
        gc.collect()
        assert len(opened) == 2 and all(subject() is None for subject in opened)
        return 0

    monkeypatch.setattr(Subject, "__init__", remember)
    monkeypatch.setattr(serving, "serve", serve)
    chosen = [SMALL, "--images", "pictures", "--compare", "efficientvit_m0_p4"]
    assert main(["--debug", "explore", *chosen]) == 0


def test_what_becomes_of_the_notebook_is_said(
    served: Served, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", SMALL, "--images", "pictures"]) == 0
    (said,) = capsys.readouterr().out.splitlines()
    assert "Ctrl-C ends it" in said and "--notebook FILE keeps what you write" in said
    assert main(["explore", SMALL, "--images", "pictures", "--notebook", "mine.ipynb"]) == 0
    assert "the notebook stays in mine.ipynb" in capsys.readouterr().out


def test_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = mistake(capsys, SMALL, "--port", str(port))
    assert f"port: expected one that is free, {port} is not" in said


def test_missing_voila(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert mistake(capsys, SMALL, "--app") == (
        "app: expected Voila to be installed: pip install 'evitlab[app]'"
    )


@pytest.mark.parametrize("app", [False, True])
def test_servers_answer_this_machine_alone(app: bool, tmp_path: Path) -> None:
    file = tmp_path / "explore.ipynb"
    command = serving.server_command(file, app=app, port=None, browser=True)
    assert command[1:4] == ["-m", "voila" if app else "jupyterlab", str(file)]
    assert ("--Voila.ip=127.0.0.1" if app else "--ServerApp.ip=127.0.0.1") in command
    assert not any("port" in word or "no-browser" in word for word in command)
    command = serving.server_command(file, app=app, port=9000, browser=False)
    assert {"--no-browser", f"--{'Voila' if app else 'ServerApp'}.port=9000"} <= set(command)
    assert not any("token=" in word or "password" in word for word in command)


def test_jupyterlab_answers(tmp_path: Path) -> None:
    """The very command line; no kernel starts before a page asks for one."""
    file = tmp_path / "explore.ipynb"
    file.write_text(nbformat.writes(serving.explorer_notebook({SMALL: SMALL}, "embedded")))
    port, log = free_port(), tmp_path / "log"
    command = serving.server_command(file, app=False, port=port, browser=False)
    address = f"http://127.0.0.1:{port}"
    settings = {**at_home_in(tmp_path / "home"), "JUPYTER_TOKEN": "secret"}
    with running(command, log, settings):
        wait_until(lambda: answers(f"{address}/api/status?token=secret"), log)
        assert not answers(f"{address}/api/status"), "open to everyone on this machine"
        assert answers(f"{address}/api/contents/explore.ipynb?token=secret")


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
@pytest.mark.parametrize("name", ["SIGINT", slow("SIGTERM"), slow("SIGHUP")])
def test_server_and_folder_go_at_the_end(name: str, tmp_path: Path) -> None:
    """With Ctrl-C, a signal to end, and a terminal that is closed."""
    server = "import pathlib, time; pathlib.Path({!r}).touch(); time.sleep(600)"
    started = tmp_path / "started"
    script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell has it ignored
sys.modules["evitlab.records"] = type(sys)("records")  # what it needs of it, without the rest
sys.modules["evitlab.records"].write_atomically = lambda path, text: path.write_text(text)
sys.modules["evitlab"] = type(sys)("evitlab")
sys.modules["evitlab"].__path__ = [{str(Path(serving.__file__).parent)!r}]
from evitlab import serving
with serving.placed(serving.explorer_notebook({{"m": "m"}}, "i"), None) as file:
    print(file, flush=True)
    try:
        serving.serve([sys.executable, "-c", {server.format(str(started))!r}])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        file = Path(process.stdout.readline().strip())
        end = time.monotonic() + 60
        while not started.exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        assert file.exists()
        process.send_signal(getattr(signal, name))
        said = process.stdout.read()  # until the server, too, has let go of it
    assert (said, process.returncode) == ("interrupted\n", 0)
    assert not file.parent.exists()

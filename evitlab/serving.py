"""The explorer as a notebook of its own, in JupyterLab or as a page by Voila.

Both servers run below this process, answer this machine alone (127.0.0.1) and keep the token that
they make up themselves.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import nbformat

from evitlab.records import write_atomically

LOOPBACK = "127.0.0.1"
GRACE_S = 20  # what a server may take to end its kernels

_RUN = "Run both cells (*Run → Run All Cells*). Then click"
_GUIDE = """\
# Attention heads, one by one

{click} a patch of the picture, or press Tab until the picture has a frame and use the arrow keys: \
the patch becomes the query, and the colours show how much attention it pays to each other patch, \
relative to an even spread."""


def explorer_notebook(
    models: Mapping[str, str],
    images: str,
    *,
    weights: str | None = None,
    folder: Path | None = None,
    app: bool = False,
) -> nbformat.NotebookNode:
    """A notebook that shows the explorer: a guide, the import, the explorer.

    Args:
        models: {name on screen: name or absolute path}; a second one is shown beside the first.
        images, weights: as `AttentionExplorer` takes them; paths absolute.
        folder: where the kernel goes first, so that views are saved there; None: the notebook's.
        app: for Voila, which runs the cells by itself.
    """
    first = ["import evitlab"]
    if folder is not None:
        # `os` and not `%cd`, which prints the folder
        first = ["import os", "", *first, "", f"os.chdir({str(folder)!r})  # views are saved there"]
    shown, *others = models
    with_weights = "" if weights is None else f", weights={weights!r}"
    if list(models.items()) == [(shown, shown)]:
        lines, named = [], repr(shown)
    else:
        lines, named = [f"models = {dict(models)!r}"], "models"
    lines.append(f"explorer = evitlab.AttentionExplorer({named}, {images!r}{with_weights})")
    lines += [f"explorer.select(compare={other!r})" for other in others[:1]]
    cells = [
        nbformat.v4.new_markdown_cell(
            _GUIDE.format(click="Click" if app else _RUN), id="guide"
        ),
        nbformat.v4.new_code_cell("\n".join(first), id="import"),
        nbformat.v4.new_code_cell("\n".join([*lines, "explorer"]), id="explorer"),
    ]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


@contextmanager
def placed(notebook: nbformat.NotebookNode, file: Path | None) -> Iterator[Path]:
    """The notebook as a file: `file`, which stays, or one in a folder that goes afterwards.

    Raises:
        ValueError: `file` is no .ipynb file's name, or there is a file already.
    """
    with ExitStack() as stack:
        if file is None:
            folder = tempfile.TemporaryDirectory(
                prefix="evitlab-explore-",
                ignore_cleanup_errors=True,  # where a system locks what was open a moment ago
            )
            file = Path(stack.enter_context(folder), "explore.ipynb")
        else:
            check_new_notebook(file)
        write_atomically(file, nbformat.writes(notebook) + "\n")
        yield file


def check_new_notebook(file: Path) -> None:
    """Whether a notebook can be written to `file`.

    Raises:
        ValueError: its name does not end in .ipynb, or there is something already.
    """
    if file.suffix != ".ipynb":
        raise ValueError(f"notebook: expected a name that ends in .ipynb, got {str(file)!r}")
    if file.exists():
        raise ValueError(
            f"notebook: {str(file)!r} exists and is not overwritten; name another, or open it: "
            "jupyter lab"
        )


def check_port(port: int) -> None:
    """Whether a server can listen there.

    Raises:
        ValueError: no number of a port, or one that is in use.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"port: expected 1 to 65535, got {port}")
    with socket.socket() as probe:
        if os.name == "posix":  # a port that was in use a minute ago is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ValueError(
                f"port: expected one that is free, {port} is not ({error.strerror}); without a "
                "port a free one is found"
            ) from error


def check_voila() -> None:
    """Whether Voila is installed.

    Raises:
        ValueError: it is not.
    """
    if importlib.util.find_spec("voila") is None:
        raise ValueError("app: expected Voila to be installed: pip install 'evitlab[app]'")


def server_command(notebook: Path, *, app: bool, port: int | None, browser: bool) -> list[str]:
    """The command line that serves a notebook on this machine alone.

    Args:
        notebook: a file.
        app: the page without the code, by Voila; else JupyterLab.
        port: exactly this one; None: the server's usual one, or the next that is free.
        browser: also open it in the browser.
    """
    if app:
        command = [sys.executable, "-m", "voila", str(notebook), f"--Voila.ip={LOOPBACK}"]
        command += ["--token", "--show_tracebacks=True"]
        # Else it answers to any name, and a page elsewhere can have its own name lead here.
        command += ["--Voila.tornado_settings={'allow_remote_access': False}"]
        exact = [f"--Voila.port={port}", "--Voila.port_retries=0"]
    else:
        command = [sys.executable, "-m", "jupyterlab", str(notebook), f"--ServerApp.ip={LOOPBACK}"]
        # The kernel and the folder beside the page, wherever the command was given.
        command += [f"--ServerApp.root_dir={notebook.parent}", "--log-level=WARN"]
        command += ["--ServerApp.terminals_enabled=False"]
        command += [f"--LabApp.default_url=/lab/tree/{notebook.name}"]
        command += ["--allow-root"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
        exact = [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    # Voila, also where it is installed and JupyterLab loads it, else gives the pictures in the
    # folder to whoever asks, token or not.
    command += ["--VoilaConfiguration.file_denylist=.*"]
    return command + (exact if port is not None else []) + ([] if browser else ["--no-browser"])


def serve(command: list[str]) -> int:
    """Run a server until it ends, or until this process is asked to; returns its exit code.

    The server is out of the terminal's reach: JupyterLab would ask at Ctrl-C whether it should
    stop, and the kernels would outlive a question that nobody answers.

    Raises:
        KeyboardInterrupt: Ctrl-C, or a signal to end; the server and its kernels are gone.
    """
    with _signals_interrupt(), subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True
    ) as server:  # fmt: skip
        try:
            return server.wait()
        finally:
            if server.poll() is None:
                _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ask a server to stop, so that it stops its kernels; after a while, stop it."""
    server.terminate()
    try:
        server.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        server.kill()


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM, and a terminal that closes, as Ctrl-C: else nothing would be cleaned up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
